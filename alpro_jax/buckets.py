"""Buckets: what lies at gs:// or s3:// is fetched, and what is made is uploaded.

Most files are small or read as a whole, so they are copied to this machine and used from
there (`fetch`), and made here and uploaded (`upload`). Two things are not: records, which
data/bucket_shards.py reads one by one, and checkpoints at gs://, which Orbax reads and writes.

What was fetched is kept in ~/.cache/alpro_jax, or $ALPRO_CACHE, under the digest of its
address and of the versions of its files: other content has another place. An upload ends
with the file that says that all is there, as manifest.json does: a bucket cannot rename.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import psutil

# Orbax's paths would go through TensorFlow, which knows no server but Google's, and gcsfs
# would ask a service that few buckets have for the kind of bucket, for a minute.
os.environ.setdefault('EPATH_USE_TF', 'false')
os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')

DIGEST = '.sha256'  # Ends the name of the file beside another one; see data/checksum.py.
SCHEMES = ('gs', 's3')
# pathlib makes gs:/b of gs://b.
_ADDRESS = re.compile(r'([A-Za-z][A-Za-z0-9+.-]*)://|(gs|s3|file|hdfs|https?|az|abfs):/')
# What says of a folder that all of it is there.
LAST = ('digests.json', 'config.json', 'manifest.json')
LEASE_SECONDS = 60.0  # Not renewed for so long, it is a dead process's.
_UPLOAD_EVERY = 10.0  # Seconds between uploads of what a run has written.


class BucketError(OSError):
  """A bucket did not do what was asked; the message has the address."""


class Entry(NamedTuple):
  """A file of a bucket: its bytes, and what changes whenever it is written."""

  size: int
  version: str


def is_address(path) -> bool:
  """Whether a path leads into a bucket.

  Raises:
    ValueError: for an address of another kind, such as file:// or hdfs://, and for one
      that pathlib has been at: it makes gs:/b of gs://b, a folder of the working directory.
  """
  text = os.fspath(path)
  if not isinstance(text, str) or not (found := _ADDRESS.match(text)):
    return False
  if found[1] in SCHEMES:
    return True
  raise ValueError(
    f'{text} is an address that cannot be read or written: give a path of this machine, '
    'gs://bucket/name or s3://bucket/name.'
  )


def listing(address: str) -> dict[str, Entry]:
  """Returns the files below an address by their names there; of a file itself {'': entry}.

  Raises:
    BucketError: if the bucket does not answer, or refuses.
  """
  fs, root = _open(address)
  with _saying(address):
    found = fs.find(root, detail=True)
  return {
    name.removeprefix(root).lstrip('/'): Entry(int(info['size']), _version(info))
    for name, info in found.items()
    if info['type'] == 'file' and not name.endswith('/')
  }


def entry(address: str) -> Entry | None:
  """Returns the file at an address, None if there is none."""
  return listing(address).get('')


def read(address: str) -> bytes:
  """Returns the bytes of a file.

  Raises:
    FileNotFoundError: if there is none.
    BucketError: as `listing`.
  """
  fs, root = _open(address)
  with _saying(address):
    return fs.cat_file(root)


def stream_sha256(address: str) -> str:
  """Returns the hex sha256 of a file, read in blocks."""
  fs, root = _open(address)
  digest = hashlib.sha256()
  with _saying(address), fs.open(root, 'rb', block_size=1 << 24, cache_type='readahead') as stream:
    while block := stream.read(1 << 24):
      digest.update(block)
  return digest.hexdigest()


def write(address: str, content: bytes, *, new: bool = False) -> None:
  """Writes a file, which is never seen half written.

  Raises:
    FileExistsError: if `new` and there is one.
    BucketError: as `listing`.
  """
  fs, root = _open(address)
  with _saying(address):
    if new:
      fs.pipe_file(root, content, mode='create')
    else:
      fs.pipe_file(root, content)


def remove(address: str, names: Iterable[str] = ('',)) -> None:
  """Removes files below an address; those that are gone already are no mistake."""
  fs, root = _open(address)
  with _saying(address):
    for name in names:
      with contextlib.suppress(FileNotFoundError):
        fs.rm_file(f'{root}/{name}' if name else root)


def move(address: str, to: str) -> None:
  """Gives all files below an address another one."""
  fs, root = _open(address)
  with _saying(address):
    fs.mv(root, _open(to)[1], recursive=True)


def cache_folder() -> pathlib.Path:
  """Where fetched files are kept."""
  given = os.environ.get('ALPRO_CACHE')
  return pathlib.Path(given or pathlib.Path.home() / '.cache' / 'alpro_jax').absolute()


def fetch(
  address: str, choose: Callable[[Mapping[str, Entry]], Sequence[str]] | None = None
) -> pathlib.Path:
  """Returns a copy of a file or folder on this machine.

  Args:
    address: of the file or folder.
    choose: which of the files of a folder are wanted, given its listing; None is all.
  Raises:
    FileNotFoundError: if nothing is there.
    BucketError: as `listing`.
  """
  address = address.rstrip('/')
  there = listing(address)
  if not there:
    raise FileNotFoundError(f'nothing is at {address}; check the bucket and the name.')
  if '' in there and (digest := entry(f'{address}{DIGEST}')):
    there[DIGEST] = digest
  wanted = sorted(choose(there) if choose and '' not in there else there)
  told = json.dumps([address, [(name, *there[name]) for name in wanted]])
  key = hashlib.sha256(told.encode('utf-8', 'surrogatepass')).hexdigest()[:32]
  place = cache_folder() / 'fetched' / key / address.rpartition('/')[2]
  if not place.parent.exists():
    place.parent.parent.mkdir(parents=True, exist_ok=True)
    made = pathlib.Path(tempfile.mkdtemp(dir=place.parent.parent, prefix='.unfinished-'))
    try:
      paths = {
        x: (made / f'{place.name}{x}') if '' in there else (made / place.name / x) for x in wanted
      }
      download(address, paths, there)
      with contextlib.suppress(OSError):  # Another process was faster.
        os.rename(made, place.parent)
    finally:
      shutil.rmtree(made, ignore_errors=True)
  return place


def download(address: str, files: Mapping[str, pathlib.Path], there: Mapping[str, Entry]) -> None:
  """Copies files below an address to paths, several at once; sizes are checked."""
  fs, root = _open(address)
  for path in files.values():
    path.parent.mkdir(parents=True, exist_ok=True)
  if not files:
    return
  with _saying(address):
    names = [root + name if name in ('', DIGEST) else f'{root}/{name}' for name in files]
    fs.get(names, [str(path) for path in files.values()])
  for name, path in files.items():
    if (size := path.stat().st_size) != there[name].size:
      raise BucketError(
        f'{address}/{name} has {there[name].size} bytes, and {size} came: '
        'it was replaced meanwhile, or the transfer broke off; give the command again.'
      )


def upload(folder: pathlib.Path, address: str, names: Iterable[str] | None = None) -> None:
  """Copies files of a folder to an address, those of LAST after the others; or one file.

  `names` are those of the files, relative to the folder; None is all.
  """
  fs, root = _open(address)
  with _saying(address):
    if folder.is_file():
      fs.put_file(str(folder), root)
      return
    if names is None:
      names = [str(x.relative_to(folder)) for x in folder.rglob('*') if x.is_file()]
    first = sorted(name for name in names if not _is_last(name))
    last = sorted(set(names) - set(first), key=lambda x: LAST.index(pathlib.Path(x).name))
    for group in (first, *([name] for name in last)):
      if group:
        fs.put([str(folder / x) for x in group], [f'{root}/{x}' for x in group])


class LeaseLost(BucketError):
  """Another process took the lease over: this one must write no more."""


class Lease:
  """The right to write below an address, held by one process at a time; a context.

  An object that is made only where there is none. Its owner rewrites it; one that has not
  been for some time, as seen by whoever waits, is a dead process's and is taken over. No
  two clocks are compared.
  """

  def __init__(self, address: str, refusal: str, *, seconds: float = 0.0):
    """Takes the lease, or waits until a dead one has run out.

    Args:
      address: of the object.
      refusal: the end of the ValueError if another process holds it, after 'process 7 on
        HOST '.
      seconds: without a sign of life after which its owner is dead; 0 is LEASE_SECONDS.
    Raises:
      ValueError: if it is renewed meanwhile.
    """
    self.address, self._seconds = address, seconds or LEASE_SECONDS
    self._mine = {'id': uuid.uuid4().hex, 'host': socket.gethostname(), 'process': os.getpid()}
    self._lost = ''
    while not self._take():
      self._wait_for_death(refusal)
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._renew, name='lease', daemon=True)
    self._thread.start()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._stop.set()
    self._thread.join()
    if self._owner() == self._mine['id']:
      remove(self.address)

  def check(self) -> None:
    """Raises LeaseLost if another process has taken the lease."""
    if self._lost:
      raise LeaseLost(self._lost)

  def _take(self):
    try:
      write(self.address, self._content(), new=True)
    except FileExistsError:
      return self._owner() == self._mine['id']  # A first try that did arrive.
    return True

  def _wait_for_death(self, refusal):
    seen, since = self._read(), time.monotonic()
    if seen is None:
      return
    told = json.loads(seen)
    if told['host'] != self._mine['host'] or psutil.pid_exists(told['process']):
      _log(
        f'{self.address} is held by process {told["process"]} on {told["host"]}; if that gives '
        f'no sign of life for {self._seconds:.0f} s, it is taken over'
      )
      while time.monotonic() - since < self._seconds:
        time.sleep(min(self._seconds / 10, 2.0))
        if (now := self._read()) is None:
          return
        if now != seen:
          raise ValueError(f'process {told["process"]} on {told["host"]} {refusal}')
    remove(self.address)

  def _renew(self):
    renewed = time.monotonic()
    while not self._stop.wait(self._seconds / 4):
      try:
        if self._owner() != self._mine['id']:
          self._lost = (
            f'{self.address} is held by another process now: this one did not renew it for '
            f'{time.monotonic() - renewed:.0f} s, as of a machine that stood still. It writes '
            'nothing more there.'
          )
          _log(self._lost)
          return
        write(self.address, self._content())
        renewed = time.monotonic()
      except OSError as error:
        _log(f'{error}; it is tried again')

  def _content(self):
    return json.dumps(self._mine | {'renewed': time.time()}).encode()

  def _read(self):
    try:
      return read(self.address)
    except FileNotFoundError:
      return None

  def _owner(self):
    return json.loads(self._read() or b'{}').get('id')


class Mirror:
  """A folder of this machine whose files are uploaded while they are written; a context.

  Leaving it uploads what is left. An upload that fails is logged and tried again; the last
  one raises.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    address: str,
    lease: Lease,
    stays: Callable[[pathlib.PurePath], bool],
  ):
    """`stays` says which relative paths are not uploaded, nor removed there."""
    self._folder, self._address, self._lease, self._stays = folder, address, lease, stays
    self._sent: dict[str, tuple[int, int]] = {}
    self._stop, self._lock = threading.Event(), threading.Lock()
    self._thread = threading.Thread(target=self._run, name='mirror', daemon=True)

  def __enter__(self):
    self._sent = self._here()
    self._thread.start()
    return self

  def __exit__(self, *_):
    self._stop.set()
    self._thread.join()
    self.send()

  def send(self) -> None:
    """Uploads what has changed, and removes what is gone.

    Raises:
      LeaseLost: if another process writes at the address by now.
      BucketError: if the bucket refuses.
    """
    with self._lock:
      self._lease.check()
      here = self._here()
      gone, changed = self._sent.keys() - here.keys(), dict(here.items() - self._sent.items())
      # What says that others are there goes first, and comes last.
      for name in sorted(gone, key=_is_last, reverse=True):
        remove(self._address, [name])
        del self._sent[name]
      fs, root = _open(self._address)
      for name in sorted(changed, key=_is_last):
        with _saying(self._address), contextlib.suppress(FileNotFoundError):  # Gone already.
          fs.put_file(str(self._folder / name), f'{root}/{name}')
          self._sent[name] = changed[name]

  def _here(self):
    found = {}
    for path in self._folder.rglob('*'):
      with contextlib.suppress(FileNotFoundError):
        if path.is_file() and not self._stays(relative := path.relative_to(self._folder)):
          status = path.stat()
          found[str(relative)] = status.st_mtime_ns, status.st_size
    return found

  def _run(self):
    while not self._stop.wait(_UPLOAD_EVERY):
      try:
        self.send()
      except LeaseLost:
        return
      except OSError as error:
        _log(f'{error}; it is tried again')


def _is_last(name):
  return pathlib.PurePath(name).name in LAST


@functools.cache
def _filesystem(scheme):
  import fsspec  # noqa: PLC0415

  for name in ('fsspec', 'gcsfs', 's3fs'):  # They tell of every file that is opened.
    logging.getLogger(name).setLevel(logging.WARNING)
  try:
    # Of what others write, an old listing would be believed.
    return fsspec.filesystem(scheme, use_listings_cache=False)
  except ImportError as error:
    raise ImportError(
      f"{scheme}:// needs {error.name or 'a library'}: pip install 'alpro_jax[cloud]'."
    ) from error


def _open(address):
  scheme, _, rest = address.partition('://')
  return _filesystem(scheme), rest.rstrip('/')


@contextlib.contextmanager
def _saying(address) -> Iterator[None]:
  """Turns what libraries raise into a sentence that has the address."""
  try:
    yield
  except FileNotFoundError as error:
    raise FileNotFoundError(f'{address} is not there ({error}).') from error
  except (FileExistsError, ImportError, MemoryError):
    raise
  except Exception as error:  # Each library has its own.
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
    raise BucketError(
      f'{address}: {reason}. Check the name, the credentials and the network.'
    ) from error


def _version(info):
  for name in ('generation', 'ETag', 'etag', 'md5Hash', 'LastModified', 'mtime'):
    if info.get(name):
      return str(info[name])
  return ''


def _log(message):
  logging.getLogger('absl').warning('%s', message)
