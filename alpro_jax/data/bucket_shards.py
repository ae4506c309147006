"""Shards of a prepared set in a bucket: read where they are, or kept on local disk.

A record is one request for its bytes alone. (ArrayRecord would read gs:// by itself, but asks
for all from the record to the end of its shard and breaks off, on a connection of its own.)
Wherever a folder is given, a shard is copied whole when it is first needed, and the ones used
longest ago are removed when they are too many.
"""

import contextlib
import os
import pathlib
import tempfile
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import logging

from alpro_jax import buckets, files
from alpro_jax.data import manifest, record_ranges

_LIMIT_GB = 100.0
_FOOTER_BYTES = 16  # Of a record, about.
_OPTIONS = 'readahead_buffer_size:0,max_parallelism:0'


class Cache:
  """A folder of shards under their digests, with a limit to their bytes.

  Several processes may share it.
  """

  def __init__(self, folder=None, limit_gb: float = 0.0):
    """Args: `folder`, None is below buckets.cache_folder(); `limit_gb` in 10**9 bytes, 0 is 100."""
    self._folder = pathlib.Path(folder or buckets.cache_folder() / 'shards').absolute()
    self._limit = int((limit_gb or _LIMIT_GB) * 1e9)

  def take(self, address: str, entry: dict[str, Any]) -> pathlib.Path:
    """Returns the path of a shard, which is copied if it is not there."""
    path = self._path(entry)
    with contextlib.suppress(FileNotFoundError):
      os.utime(path)
      return path
    with files.file(path, wait=True) as made:
      if path.exists():  # Another process was faster.
        os.link(path, made)
      else:
        buckets.download(address, {'': made}, buckets.listing(address))
    self._remove_oldest(path)
    return path

  def drop(self, entry: dict[str, Any]) -> None:
    """Removes a shard, if it is there; who has it open keeps it."""
    self._path(entry).unlink(missing_ok=True)

  def _path(self, entry):
    return self._folder / f'{entry["sha256"]}.array_record'

  def _remove_oldest(self, but):
    found = []
    for path in self._folder.glob('*.array_record'):
      with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        found.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
      if total > self._limit and path != but:
        path.unlink(missing_ok=True)
        total -= size
    if total > self._limit:
      logging.warning('%s: one shard has more bytes than the limit; it is kept.', self._folder)


class Shard:
  """One file of records in a bucket; see dataset.PreparedDataset."""

  patience = 3  # A bucket may refuse now and then; damage is looked for after so many times.

  def __init__(self, address: str, entry: dict[str, Any], version: str, cache: Cache | None):
    self.file, self.entry = address, entry
    self._version, self._cache = version, cache
    self._lock = threading.Lock()
    self._opened: _Opened | None = None

  def check_digest(self) -> None:
    """Raises ValueError if its content is not what the manifest says."""
    manifest.check_digest(self.file, self.entry, files.sha256(self.file))

  def check_unchanged(self) -> None:
    """An object is never written to; that it was replaced is found where a read fails."""

  def read(self, positions: Sequence[int]) -> list[bytes]:
    if self._cache:
      with self._lock:
        reader = self._open_copy(self._cache)
      return reader.read(positions)
    with self._lock:
      opened = self._opened = self._opened or self._open_there()
    read = buckets.read_spans(
      [self._span(opened.starts[i], opened.starts[i + 1]) for i in positions]
    )
    with self._lock:
      for i, part in zip(positions, read, strict=True):
        os.pwrite(opened.file.fileno(), part, opened.starts[i])
      try:
        return opened.reader.read(positions)
      finally:
        opened.empty()

  def is_damaged(self) -> bool:
    """Reads the whole file: is it another than the manifest says?

    Raises:
      ValueError: it was replaced since it was opened.
    """
    with self._lock:
      self._opened = None
      if self._cache:  # What is on the disk here may be at fault.
        self._cache.drop(self.entry)
    now = buckets.entry(self.file)
    if now and now.version != self._version:
      raise ReplacedError(
        f'{self.file} was replaced while it was in use, so its records may no longer be those '
        'of the index; start again, and prepare or copy sets that are in use under another name.'
      )
    return files.sha256(self.file) != self.entry['sha256']

  def _open_there(self):
    """Reads what says where the records lie; one request, or two for a long one."""
    size = self.entry['bytes']
    first = max(size - 2 * record_ranges.BLOCK - _FOOTER_BYTES * (self.entry['examples'] + 100), 0)
    end = bytes(*buckets.read_spans([self._span(first, size)]))
    footer = record_ranges.footer_start(end[-record_ranges.BLOCK :])
    if footer < first:
      end = bytes(*buckets.read_spans([self._span(footer, first)])) + end
      first = footer
    end = end[footer - first :]
    starts = record_ranges.starts(end[: -record_ranges.BLOCK], footer)
    if len(starts) != self.entry['examples'] + 1:
      raise ValueError(f'it has {len(starts) - 1} records, not {self.entry["examples"]}.')
    # As long as the shard, and empty but for its end: the reader needs no more until it reads.
    file = tempfile.TemporaryFile()
    file.truncate(size)
    os.pwrite(file.fileno(), end, footer)
    return _Opened(_reader(f'/dev/fd/{file.fileno()}'), starts, file, size)

  def _span(self, start, stop):
    return buckets.Span(self.file, start, stop, self._version)

  def _open_copy(self, cache):
    path = cache.take(self.file, self.entry)
    inode = path.stat().st_ino
    if self._opened is None or inode != self._opened.inode:
      self._opened = _Opened(_reader(str(path)), inode=inode)
    return self._opened.reader


class _Opened(NamedTuple):
  """A reader of a shard.

  Attributes:
    reader: of the library, of a copy or of `file`.
    starts: where each record starts, and where the last one ends.
    file: what was fetched lies here, where it lies in the shard, until it is decoded.
    size: of the shard, in bytes.
    inode: of a copy.
  """

  reader: Any
  starts: Sequence[int] = ()
  file: Any = None
  size: int = 0
  inode: int = 0

  def empty(self):
    """Gives back the room of what was decoded."""
    os.ftruncate(self.file.fileno(), 0)
    os.ftruncate(self.file.fileno(), self.size)


def _reader(path):
  from array_record.python import array_record_module  # noqa: PLC0415

  return array_record_module.ArrayRecordReader(
    path, options=_OPTIONS, file_reader_buffer_size=1 << 15
  )


class ReplacedError(ValueError):
  """A shard is another one than when the set was opened."""


def open_all(address: str, entries: Sequence[dict[str, Any]], cache: Cache | None) -> list[Shard]:
  """Returns the shards of a split, each of the size that the manifest says: one request.

  Raises:
    FileNotFoundError, ValueError: if one is missing, or has another size.
  """
  there, shards = buckets.listing(address), []
  for entry in entries:
    path = files.join(address, entry['file'])
    found = there.get(entry['file'])
    manifest.check_size(path, entry, found and found.size)
    shards.append(Shard(path, entry, found.version, cache))
  return shards
