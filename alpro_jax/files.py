"""Files and folders that are whole or not there, however their writing ends.

What is written lies in a hidden folder beside its place until it is whole, and
is renamed once:

  runs/.alpro.unfinished-1/made-by-alpro_jax   the mark, locked by its process
  runs/.alpro.unfinished-1/alpro               becomes runs/alpro

A process that is killed leaves that folder behind; the next one that writes to
the same place clears it. Only a folder with the mark is ever cleared. An
OSError that names no file, as of a full disk, names the place.

What is to lie in a bucket (gs://, s3://) is made here and uploaded when it is whole; what
lies there is fetched. See buckets.py.
"""

import contextlib
import fcntl
import hashlib
import itertools
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator

from alpro_jax import buckets, lease

MARK = 'made-by-alpro_jax'
_BLOCK = 1 << 16  # Bytes.


def local(path) -> pathlib.Path:
  """Returns a path of this machine; what lies in a bucket is fetched.

  Raises:
    FileNotFoundError: if nothing is there in the bucket.
    ValueError: for an address of another kind, such as file://.
  """
  return buckets.fetch(os.fspath(path)) if buckets.is_address(path) else pathlib.Path(path)


def on_disk(path) -> pathlib.Path:
  """Returns a path of this machine, for what no bucket can hold.

  Raises:
    ValueError: for an address.
  """
  if buckets.is_address(path):
    raise ValueError(
      f'{path} is an address in a bucket; what is meant here lies in folders of this machine alone.'
    )
  return pathlib.Path(path)


def absolute(path) -> str:
  """Returns a path that holds in every working directory; an address as it is."""
  return os.fspath(path) if buckets.is_address(path) else os.path.abspath(path)


def join(path, *names) -> str:
  """Returns the path of a file in a folder, or in a bucket."""
  path = os.fspath(path)
  return (
    '/'.join((path.rstrip('/'), *names)) if buckets.is_address(path) else os.path.join(path, *names)
  )


def size(path) -> int | None:
  """Returns how many bytes a file has; None if there is no file."""
  if buckets.is_address(path):
    found = buckets.entry(os.fspath(path))
    return found and found.size
  return os.path.getsize(path) if os.path.isfile(path) else None


def sizes(folder) -> dict[str, int]:
  """Returns the bytes of all files below a folder, here or in a bucket, by relative name."""
  if buckets.is_address(folder):
    return {name: found.size for name, found in buckets.listing(os.fspath(folder)).items()}
  paths = (path for path in pathlib.Path(folder).rglob('*') if path.is_file())
  return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def exists(path) -> bool:
  """Whether a file is there."""
  return size(path) is not None


def names(folder) -> list[str]:
  """Returns what lies in a folder, here or in a bucket, sorted; [] if there is none."""
  if buckets.is_address(folder):
    return sorted({name.partition('/')[0] for name in buckets.listing(os.fspath(folder)) if name})
  return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def read(path) -> bytes:
  """Returns what a file holds, here or in a bucket."""
  return (
    buckets.read(os.fspath(path)) if buckets.is_address(path) else pathlib.Path(path).read_bytes()
  )


def remove(path) -> None:
  """Removes a file, here or in a bucket."""
  if buckets.is_address(path):
    buckets.remove(os.fspath(path))
  else:
    os.remove(path)


def sha256(path) -> str:
  """Returns the hex sha256 of what a file holds, here or in a bucket."""
  if buckets.is_address(path):
    return buckets.stream_sha256(os.fspath(path))
  with open(path, 'rb') as stream:
    return hashlib.file_digest(stream, 'sha256').hexdigest()


def ends_of(size: int) -> tuple[tuple[int, int], tuple[int, int]]:
  """Returns [start, stop) of the first and the last 64 KiB of so many bytes."""
  return (0, min(size, _BLOCK)), (max(size - _BLOCK, 0), size)


def digest_of_ends(first: bytes, last: bytes) -> bytes:
  """Returns the sha256 of both ends; it tells a video from another of the same size."""
  return hashlib.sha256(first + last).digest()


def ends_digest(stream) -> bytes:
  """Returns digest_of_ends of a file open for reading bytes."""
  parts = []
  for start, stop in ends_of(os.fstat(stream.fileno()).st_size):
    stream.seek(start)
    parts.append(stream.read(stop - start))
  return digest_of_ends(*parts)


def check_free(path) -> None:
  """Raises FileExistsError unless nothing is here, or an empty folder."""
  if buckets.is_address(path):
    if buckets.listing(os.fspath(path)):
      raise FileExistsError(f'{path} exists already; choose another --output, or delete it.')
    return
  path = pathlib.Path(os.path.realpath(path))
  if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
    raise FileExistsError(f'{path} exists already; choose another --output, or delete it.')


@contextlib.contextmanager
def folder(path) -> Iterator[pathlib.Path]:
  """Makes a folder that gets its name when everything is in it.

  Args:
    path: of the folder; nothing may be there, or an empty folder.
  Yields:
    an empty folder with the same last name, to write to. When the block ends
    it is renamed to `path`; when it raises, it is removed.
  Raises:
    FileExistsError: if something is there, at the beginning or the end.
    ValueError: if another process is writing to the same place.
  """
  check_free(path)
  with scratch(path) as made:
    check_free(path)
    yield made
    check_free(path)
    if buckets.is_address(path):
      buckets.upload(made, os.fspath(path))
    else:
      os.rename(made, os.path.realpath(path))


@contextlib.contextmanager
def into(path) -> Iterator[pathlib.Path]:
  """Yields a folder to write files to, which may have others; it is made if need be.

  What is to lie in a bucket is uploaded when the block ends.
  """
  if buckets.is_address(path):
    with _aside(path) as made:
      made.mkdir()
      yield made
      buckets.upload(made, os.fspath(path))
    return
  pathlib.Path(path).mkdir(parents=True, exist_ok=True)
  yield pathlib.Path(path)


@contextlib.contextmanager
def scratch(path) -> Iterator[pathlib.Path]:
  """Makes an empty folder beside `path`, which is gone when the block ends."""
  with _aside(path) as made:
    made.mkdir()
    yield made


@contextlib.contextmanager
def file(path, *, wait: bool = False) -> Iterator[pathlib.Path]:
  """Writes a file that is never seen half written; replaces what is there.

  It has its old content or the new, whatever happens, a loss of power too.

  Args:
    path: of the file. A link stays, and what it leads to is replaced.
    wait: for another process that is writing the same file; else it raises
      ValueError.
  Yields:
    the path to write to, as `folder` does.
  """
  with _aside(path, wait) as made:
    yield made
    if buckets.is_address(path):
      buckets.upload(made, os.fspath(path))
    else:
      with open(made, 'rb') as written:  # Renamed before it is on the disk, it may end up empty.
        os.fsync(written.fileno())
      os.replace(made, os.path.realpath(path))


def write_text(path, text: str) -> None:
  """Writes UTF-8 text as a file that is never seen half written."""
  with file(path, wait=True) as made:
    made.write_text(text, encoding='utf-8')


@contextlib.contextmanager
def lock(path, refusal: str) -> Iterator[None]:
  """Holds the lock of a file, which goes with the process, however that ends.

  Args:
    path: of the file, which is made and stays. In a bucket it is a lease, and goes.
    refusal: the message of the ValueError if another process holds it, after
      'process 7 ' (in a bucket 'process 7 on HOST ', on a full disk 'another process ').
  """
  if buckets.is_address(path):
    with lease.Lease(os.fspath(path), refusal):
      yield
    return
  mark = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
  try:
    try:
      _take(mark, refusal)
    except OSError as error:  # As of a disk without locks.
      raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    yield
  finally:
    os.close(mark)


@contextlib.contextmanager
def _aside(path, wait=False):
  """Yields where to write what will be renamed to `path`, or uploaded to it."""
  if buckets.is_address(path):
    with tempfile.TemporaryDirectory(prefix='alpro_jax-') as work:
      yield pathlib.Path(work) / os.fspath(path).rstrip('/').rpartition('/')[2]
    return
  path = pathlib.Path(os.path.realpath(path))
  path.parent.mkdir(parents=True, exist_ok=True)
  work, mark = _claim(path, wait)
  try:
    _clear(work)  # Of a process that was killed.
    yield work / path.name
  except OSError as error:
    if error.errno is not None and error.filename is None:
      error.filename = str(path)
    raise
  finally:
    with contextlib.suppress(OSError):
      _clear(work)
      # From here on others may take the folder; then it is not empty.
      (work / MARK).unlink()
      work.rmdir()
    os.close(mark)


def _claim(path, wait):
  """Returns a hidden folder beside `path` and its mark's descriptor, locked."""
  refusal = f'is writing {path} at this moment; wait for its end, or choose another --output.'
  for number in itertools.count(1):
    work = path.with_name(f'.{path.name}.unfinished-{number}')
    while _is_ours(work):
      # FileNotFoundError: its last owner has just removed it.
      with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
        mark = os.open(work / MARK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        stack.callback(os.close, mark)
        _take(mark, refusal, wait)
        if os.path.samestat(os.fstat(mark), os.stat(work / MARK)):
          stack.pop_all()
          return work, mark
  raise AssertionError('not reached')


def _take(mark, refusal, wait=False):
  """Locks a descriptor and writes the number of this process to its file."""
  try:
    fcntl.flock(mark, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
  except BlockingIOError as error:
    raise ValueError(f'{_holder(mark)} {refusal}') from error
  os.truncate(mark, 0)
  # On a full disk, what is written next says so.
  with contextlib.suppress(OSError):
    os.pwrite(mark, str(os.getpid()).encode(), 0)


def _holder(mark):
  """Who holds the lock of a descriptor, in words."""
  for _ in range(20):  # Whoever has just taken it writes its number next.
    if number := os.pread(mark, 20, 0).decode():
      return f'process {number}'
    time.sleep(0.05)
  return 'another process'  # As on a full disk.


def _is_ours(work):
  """Makes a folder, or says whether the one that is there may be used."""
  with contextlib.suppress(FileExistsError):
    work.mkdir()
  if work.is_symlink() or not work.is_dir():
    return False
  names = os.listdir(work)
  return MARK in names or not names


def _clear(work):
  """Removes all but the mark."""
  for entry in os.scandir(work):
    if entry.is_dir(follow_symlinks=False):
      shutil.rmtree(entry.path)
    elif entry.name != MARK:
      os.unlink(entry.path)
