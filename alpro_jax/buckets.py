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
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

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
_READERS = 256  # Requests for parts of files at a time: 5,000 a second at 50 ms.


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


class Span(NamedTuple):
  """Bytes [start, stop) of a file; of a version of it (see Entry) unless that is ''."""

  address: str
  start: int
  stop: int
  version: str = ''


def read_spans(spans: Sequence[Span]) -> list[Any]:
  """Returns what files hold there, asked for side by side, and not a byte more.

  What is returned has the bytes, as memoryview and bytes() take them.

  Raises:
    FileNotFoundError: a file is gone, or another version.
    BucketError: as `listing`.
  """
  return [*map(_read_span, spans)] if len(spans) == 1 else list(_readers().map(_read_span, spans))


def _read_span(span):
  if span.stop <= span.start:
    return b''
  scheme, bucket, name = *_split(span.address), span.address.split('/', 3)[3]
  options = {'range': (span.start, span.stop)}
  if span.version:
    options |= {'version' if scheme == 'gs' else 'if_match': span.version}
  import obstore  # noqa: PLC0415

  with _saying(span.address):
    return obstore.get(_store(scheme, bucket), name, options=options).bytes()


def copy_here(address: str, path: str | os.PathLike) -> None:
  """Copies one file to a path.

  Raises:
    FileNotFoundError, BucketError: as `read`.
  """
  fs, root = _open(address)
  with _saying(address):
    fs.get_file(root, os.fspath(path))


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
    first = sorted(name for name in names if not is_last(name))
    last = sorted(set(names) - set(first), key=lambda x: LAST.index(pathlib.Path(x).name))
    for group in (first, *([name] for name in last)):
      if group:
        fs.put([str(folder / x) for x in group], [f'{root}/{x}' for x in group])


def is_last(name: str) -> bool:
  """Whether a file of this name says that others are there."""
  return pathlib.PurePath(name).name in LAST


@functools.cache
def _filesystem(scheme):
  try:
    import fsspec  # noqa: PLC0415
    import obstore  # noqa: F401, PLC0415

    for name in ('fsspec', 'gcsfs', 's3fs'):  # They tell of every file that is opened.
      logging.getLogger(name).setLevel(logging.WARNING)
    # Of what others write, an old listing would be believed.
    return fsspec.filesystem(scheme, use_listings_cache=False)
  except ImportError as error:
    # fsspec says in words which of its libraries is missing; what it caught has the name.
    name = error.name or getattr(error.__cause__, 'name', None) or 'a library'
    raise ImportError(
      f"{scheme}:// needs {name}, which is not installed: pip install 'alpro_jax[cloud]'."
    ) from error


@functools.cache
def _store(scheme, bucket):
  """What reads parts of files: fsspec takes several times as long for each."""
  _filesystem(scheme)  # Says which library is missing.
  from obstore import store  # noqa: PLC0415

  if scheme == 's3':
    endpoint = os.environ.get('AWS_ENDPOINT_URL', '')
    return store.S3Store(bucket, client_options={'allow_http': endpoint.startswith('http:')})
  if emulator := os.environ.get('STORAGE_EMULATOR_HOST'):
    told = {'skip_signature': True, 'base_url': emulator}
    return store.GCSStore(bucket, config=told, client_options={'allow_http': True})
  return store.GCSStore(bucket)


@functools.cache
def _readers():
  return futures.ThreadPoolExecutor(_READERS, thread_name_prefix='bucket')


def _split(address):
  """Returns the scheme and the bucket."""
  scheme, _, rest = address.partition('://')
  return scheme, rest.partition('/')[0]


def _open(address):
  scheme, bucket = _split(address)
  if len(bucket) < 3:  # It would be asked for again and again, for a minute.
    raise ValueError(f'{address}: the name of a bucket has 3 letters or more, not {len(bucket)}.')
  return _filesystem(scheme), address.partition('://')[2].rstrip('/')


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
