"""Shards of a prepared set in a bucket: read where they are, or kept on local disk.

ArrayRecord reads single records of gs:// by itself, one request for each. For s3://, and
wherever a folder for them is given, a shard is copied whole when it is first needed, and the
ones used longest ago are removed when they are too many.
"""

import contextlib
import os
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

from absl import logging

from alpro_jax import buckets, files
from alpro_jax.data import manifest

_LIMIT_GB = 100.0
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
    self._reader, self._inode = None, 0

  def check_digest(self) -> None:
    """Raises ValueError if its content is not what the manifest says."""
    manifest.check_digest(self.file, self.entry, files.sha256(self.file))

  def check_unchanged(self) -> None:
    """An object is never written to; that it was replaced is found where a read fails."""

  def read(self, positions: Sequence[int]) -> list[bytes]:
    with self._lock:
      reader = self._open()
    return reader.read(positions)

  def is_damaged(self) -> bool:
    """Reads the whole file: is it another than the manifest says?

    Raises:
      ValueError: it was replaced since it was opened.
    """
    with self._lock:
      self._reader = None
      if self._cache:  # What is on the disk here may be at fault.
        self._cache.drop(self.entry)
    now = buckets.entry(self.file)
    if now and now.version != self._version:
      raise ReplacedError(
        f'{self.file} was replaced while it was in use, so its records may no longer be those '
        'of the index; start again, and prepare or copy sets that are in use under another name.'
      )
    return files.sha256(self.file) != self.entry['sha256']

  def _open(self):
    from array_record.python import array_record_module  # noqa: PLC0415

    if not self._cache:
      if self._reader is None:
        # The footer with the places of records; the default asks for 1 MiB.
        options = f'{_OPTIONS},footer_prefetch_bytes:128k'
        self._reader = array_record_module.ArrayRecordReader(
          self.file, options=options, file_reader_buffer_size=1 << 15
        )
      return self._reader
    path = self._cache.take(self.file, self.entry)
    if self._reader is None or path.stat().st_ino != self._inode:
      self._reader = array_record_module.ArrayRecordReader(
        str(path), options=_OPTIONS, file_reader_buffer_size=1 << 15
      )
      self._inode = path.stat().st_ino
    return self._reader


class ReplacedError(ValueError):
  """A shard is another one than when the set was opened."""


def open_all(address: str, entries: Sequence[dict[str, Any]], cache: Cache | None) -> list[Shard]:
  """Returns the shards of a split, each of the size that the manifest says: one request.

  Raises:
    FileNotFoundError, ValueError: if one is missing, or has another size.
  """
  there, shards = buckets.listing(address), []
  if not cache and not address.startswith('gs://'):
    cache = Cache()
  for entry in entries:
    path = files.join(address, entry['file'])
    found = there.get(entry['file'])
    manifest.check_size(path, entry, found and found.size)
    shards.append(Shard(path, entry, found.version, cache))
  return shards
