"""Files and folders that are whole or not there, however their writing ends.

What is written lies in a hidden folder beside its place until it is whole, and
is renamed once:

  runs/.alpro.unfinished-1/made-by-alpro_jax   the mark, locked by its process
  runs/.alpro.unfinished-1/alpro               becomes runs/alpro

A process that is killed leaves that folder behind; the next one that writes to
the same place clears it. Only a folder with the mark is ever cleared. An
OSError that names no file, as of a full disk, names the place.
"""

import contextlib
import fcntl
import hashlib
import itertools
import os
import pathlib
import re
import shutil
from collections.abc import Iterator

MARK = 'made-by-alpro_jax'
_BLOCK = 1 << 16  # Bytes.
# pathlib makes gs:/b of gs://b.
_ADDRESS = re.compile(r'[A-Za-z][A-Za-z0-9+.-]*://|(?:gs|s3|file):/')


def local(path) -> pathlib.Path:
  """Returns a path, of this machine.

  Raises:
    ValueError: for an address, such as gs://bucket/run, which pathlib takes for a folder
      called gs: of the working directory.
  """
  if address := _ADDRESS.match(os.fspath(path)):
    raise ValueError(
      f'{os.fspath(path)} is an address, and alpro_jax reads and writes files of this machine '
      f'alone: give a path without {address[0]}, copied here or mounted, as by gcsfuse.'
    )
  return pathlib.Path(path)


def sha256(path) -> str:
  """Returns the hex sha256 of what a file holds."""
  with open(path, 'rb') as stream:
    return hashlib.file_digest(stream, 'sha256').hexdigest()


def ends_digest(stream) -> bytes:
  """Returns the sha256 of the first and last 64 KiB of a file open for reading bytes.

  It tells a video from another of the same size without reading it all.
  """
  size = os.fstat(stream.fileno()).st_size
  stream.seek(0)
  digest = hashlib.sha256(stream.read(_BLOCK))
  stream.seek(max(size - _BLOCK, 0))
  digest.update(stream.read(_BLOCK))
  return digest.digest()


def check_free(path) -> None:
  """Raises FileExistsError unless nothing is here, or an empty folder."""
  path = pathlib.Path(os.path.realpath(local(path)))
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
    os.rename(made, os.path.realpath(path))


@contextlib.contextmanager
def scratch(path) -> Iterator[pathlib.Path]:
  """Makes an empty folder beside `path`, which is gone when the block ends."""
  with _aside(path) as made:
    made.mkdir()
    yield made


@contextlib.contextmanager
def file(path, *, wait: bool = False) -> Iterator[pathlib.Path]:
  """Writes a file that is never seen half written; replaces what is there.

  Args:
    path: of the file. A link stays, and what it leads to is replaced.
    wait: for another process that is writing the same file; else it raises
      ValueError.
  Yields:
    the path to write to, as `folder` does.
  """
  with _aside(path, wait) as made:
    yield made
    os.replace(made, os.path.realpath(path))


def write_text(path, text: str) -> None:
  """Writes UTF-8 text as a file that is never seen half written."""
  with file(path, wait=True) as made:
    made.write_text(text, encoding='utf-8')


@contextlib.contextmanager
def lock(path, refusal: str) -> Iterator[None]:
  """Holds the lock of a file, which goes with the process, however that ends.

  Args:
    path: of the file, which is made and stays.
    refusal: the message of the ValueError if another process holds it, after
      'process 7 '.
  """
  mark = os.open(local(path), os.O_RDWR | os.O_CREAT, 0o666)
  try:
    _take(mark, refusal)
    yield
  finally:
    os.close(mark)


@contextlib.contextmanager
def _aside(path, wait=False):
  """Yields where to write what will be renamed to `path`."""
  path = pathlib.Path(os.path.realpath(local(path)))
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
    raise ValueError(f'process {os.pread(mark, 20, 0).decode()} {refusal}') from error
  os.truncate(mark, 0)
  # On a full disk, what is written next says so.
  with contextlib.suppress(OSError):
    os.pwrite(mark, str(os.getpid()).encode(), 0)


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
