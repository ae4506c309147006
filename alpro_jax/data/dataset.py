"""Opens a prepared set: counts and digests checked, records by number."""

import contextlib
import copy
import functools
import hashlib
import json
import os
import re
import resource
import threading
import time
from collections.abc import Sequence
from concurrent import futures
from typing import NamedTuple

import numpy as np
from absl import logging

from alpro_jax import buckets, files
from alpro_jax.data import annotations, bucket_shards
from alpro_jax.data import manifest as manifests
from alpro_jax.data.manifest import read_manifest

# Digests are checked at every opening below this size; it takes seconds.
VERIFY_BELOW_BYTES = 4 << 30
RETRY_SECONDS = (1, 2, 4, 8, 16, 32)  # Waits between attempts to read a record.
# What array_record and the system raise; never a MemoryError, which is ours.
_READ_ERRORS = (RuntimeError, ValueError, LookupError, OSError)
_OTHER_FILES = 200  # Sockets, libraries, checkpoints.
_READERS = 64  # Threads that read one batch; four times as many those of a bucket.
_LINES = 64  # Of an index, parsed at once: four times as fast as one by one.


def features():
  """Returns the TFDS features of a record: one clip and all its texts."""
  import tensorflow_datasets as tfds  # noqa: PLC0415

  jpeg = tfds.features.Image(shape=(None, None, 3), encoding_format='jpeg')
  texts = ('captions', 'styles', 'questions', 'answers', 'kinds')
  return tfds.features.FeaturesDict(
    {
      'video': tfds.features.Text(),
      'frames': tfds.features.Sequence(jpeg),
      'seconds': tfds.features.Sequence(tfds.features.Scalar(np.float32)),
      **{name: tfds.features.Sequence(tfds.features.Text()) for name in texts},
      'still': tfds.features.Scalar(np.bool_),
    }
  )


class RecordInfo(NamedTuple):
  """What is known of a record without reading it."""

  video: str  # Relative to the folder it came from.
  captions: tuple[str, ...]
  styles: tuple[str, ...]  # One for each caption, '' where there is none.
  still: bool  # It is a photo.
  frames: int  # How many are stored.
  questions: tuple[annotations.Question, ...] = ()

  def captions_of(self, style: str) -> list[str]:
    """Returns the captions in a style; '' is any."""
    pairs = zip(self.captions, self.styles, strict=True)
    return [caption for caption, own in pairs if style in ('', own)]

  def questions_of(self, kind: str) -> list[annotations.Question]:
    """Returns the questions of a kind; '' is any."""
    return [question for question in self.questions if kind in ('', question.kind)]


class Index(Sequence):
  """RecordInfo of every record, parsed from its line of JSON when asked for.

  All at once would be gigabytes of objects for millions of records, and half a
  minute to make.
  """

  def __init__(self, data):
    self._data = data
    self._starts = _line_starts(data)
    self.numbers = np.arange(len(self._starts) - 1)  # On disk, of each record.

  def __len__(self):
    return len(self.numbers)

  def __getitem__(self, index):
    infos = self._parse(np.atleast_1d(self.numbers[index]))
    return infos if isinstance(index, slice) else infos[0]

  def __iter__(self):
    for start in range(0, len(self), _LINES):
      yield from self[start : start + _LINES]

  def take(self, chosen):
    """Returns the Index of some of the records, int64[n]."""
    part = copy.copy(self)
    part.numbers = self.numbers[chosen]
    return part

  def _parse(self, numbers):
    bounds = np.stack([self._starts[numbers], self._starts[numbers + 1] - 1], 1)
    lines = [self._data[start:end] for start, end in bounds.tolist()]
    return [_record_info(row) for row in json.loads(b'[%b]' % b','.join(lines))]


def _record_info(row):
  questions = ()
  if row.get('questions'):  # Format 1 has no such key.
    questions = map(annotations.Question, row['questions'], row['answers'], row['kinds'])
  texts = tuple(row['captions']), tuple(row['styles'])
  return RecordInfo(row['video'], *texts, row['still'], row['frames'], tuple(questions))


def _line_starts(data, block=1 << 24):
  """int64[n + 1]: where each line of bytes starts, and where the last ends."""
  codes = np.frombuffer(data, np.uint8)
  ends = (
    np.flatnonzero(codes[start : start + block] == ord('\n')) + start + 1
    for start in range(0, len(codes), block)
  )
  return np.concatenate([np.zeros(1, np.int64), *ends])


class UnreadableRecord(ValueError):
  """A record is damaged on disk; `index` is its number."""

  def __init__(self, message, index):
    super().__init__(message)
    self.index = index


class PreparedDataset:
  """One split of a set; made by open_dataset.

  Attributes:
    path, split: where it is.
    name: the last name of the folder, and the split.
    digest: hex sha256 over all of its content.
  """

  def __init__(self, path, split, entry, records, shards=()):
    self.path = path
    self.split = split
    self.name = f'{os.path.basename(path)}/{split}'
    self.digest = entry['digest']
    self._records = records
    self._shards = shards
    # How many batches are read at once: a bucket answers slowly, but many at a time.
    self.at_once = 8 if buckets.is_address(path) else 1
    self._ends = np.cumsum([shard.entry['examples'] for shard in shards])

  def __len__(self):
    return len(self._records)

  def metadata(self):
    """Returns a sequence of RecordInfo, one per record, in order."""
    return self._records

  def captions(self, style=''):
    """Returns the captions of every record in a style ('' is any): list of lists."""
    return [record.captions_of(style) for record in self._records]

  def select(self, keep):
    """Returns the records for which keep(RecordInfo) holds, numbered anew."""
    chosen = np.fromiter((i for i, record in enumerate(self._records) if keep(record)), np.int64)
    view = copy.copy(self)
    view._records = self._records.take(chosen)
    return view

  def fetch(self, indices):
    """Returns list of bytes, the serialised records of these numbers.

    Raises:
      UnreadableRecord: a record is damaged on disk.
      OSError: the disk or the network fails, again and again.
      ValueError: a file was written to since it was opened.
    """
    indices = [int(index) for index in indices]
    for index in indices:
      if not 0 <= index < len(self):
        raise IndexError(f'{index=} is not in 0..{len(self) - 1}.')
    numbers = self._records.numbers[indices]
    which = np.searchsorted(self._ends, numbers, side='right')
    found = {}

    def read(shard):
      rows = np.flatnonzero(which == shard)
      first = self._ends[shard - 1] if shard else 0
      positions = (numbers[rows] - first).tolist()
      self._shards[shard].check_unchanged()
      try:
        records = self._shards[shard].read(positions)
      except _READ_ERRORS:
        records = [
          self._read_alone(self._shards[shard], position, indices[row])
          for position, row in zip(positions, rows, strict=True)
        ]
      found.update(zip(rows.tolist(), records, strict=True))

    with contextlib.ExitStack() as held:
      # A bucket's are kept: most of them wait, and to make so many takes as long as to decode.
      few = self.at_once == 1
      pool = held.enter_context(futures.ThreadPoolExecutor(_READERS)) if few else _waiting_readers()
      list(pool.map(read, np.unique(which)))
    return [found[row] for row in range(len(indices))]

  def _read_alone(self, shard, position, index):
    """Reads a record again and again, unless its file is damaged.

    A failure is damage only if the file is not what was written; otherwise the
    disk or the network is at fault, and no record must be replaced for that.
    """
    for tries, seconds in enumerate((*RETRY_SECONDS, 0)):
      try:
        return shard.read([position])[0]
      except _READ_ERRORS as error:
        problem = error
      try:
        if tries < shard.patience:
          raise OSError(problem)
        if shard.is_damaged():
          video = self._records[index].video
          message = f'Record {index} ({video!r}) of {self.path} is damaged: {problem}'
          raise UnreadableRecord(message, index) from problem
      except OSError as error:
        problem = error
      logging.warning('reading %s fails: %s', shard.file, problem)
      time.sleep(seconds)
    raise OSError(
      f'reading {shard.file} failed {len(RETRY_SECONDS) + 1} times in {sum(RETRY_SECONDS)} s: '
      f'{problem}. The disk or the network fails, not a record; look after it and start again.'
    ) from problem


def open_dataset(path, split='train', *, verify=None, cache=None):
  """Opens one split of a prepared set.

  Names, sizes and counts are always checked, and the digest of the index. A
  damaged record is found when it is read: each has a checksum of its own.

  Args:
    path: folder made by launch/prepare.py, here or in a bucket.
    split: name of the split, or a part of it: 'train[:-100]' is without, and
      'train[-100:]' only, a hundred of its videos, 'train[-200:-100]' another hundred;
      they are in the order of the digests of their names.
    verify: compare the sha256 of every shard with the manifest too; None does
      so below VERIFY_BELOW_BYTES, unless the set lies in a bucket.
    cache: a bucket_shards.Cache for those of a bucket; None reads records where they are.
  Raises:
    FileNotFoundError: there is no finished set, or a file is gone.
    ValueError: the split is unknown, or a file is not as it was written.
  """
  path, remote = files.absolute(path), buckets.is_address(path)
  manifest = read_manifest(path)
  part = re.fullmatch(r'(.+)\[(?=.*\d)(?:-(\d+))?:(?:-(\d+))?\]', split)
  whole = part[1] if part else split
  if whole not in manifest['splits']:
    raise ValueError(f'{path} has no split {split!r}, only {sorted(manifest["splits"])}.')
  entry = manifest['splits'][whole]
  _allow_open_files(path, len(entry['shards']), each=2 if remote and not cache else 1)
  # All opened here: what was checked is what is read, whatever comes in its place.
  if remote:
    shards = bucket_shards.open_all(path, entry['shards'], cache)
  else:
    shards = [_Shard(path, shard) for shard in entry['shards']]
  if verify or verify is None and entry['bytes'] < VERIFY_BELOW_BYTES and not remote:
    with futures.ThreadPoolExecutor(4) as pool:  # sha256 frees the GIL.
      list(pool.map(lambda shard: shard.check_digest(), shards))
  records = Index(_read_index(path, entry['index']))
  if read_manifest(path) != manifest:  # It is written last.
    raise ValueError(f'{path} was replaced while it was opened; start again.')
  in_shards = sum(shard['examples'] for shard in entry['shards'])
  counts = {'manifest': entry['examples'], 'index': len(records), 'shards': in_shards}
  if len(set(counts.values())) > 1:
    raise ValueError(f'{path} disagrees on the number of records: {counts}; prepare it again.')
  if part:
    chosen = _choose(records, part[2], part[3])
    if not len(chosen):
      raise ValueError(f'{path}: {split!r} is empty: {whole!r} has {len(records)} videos.')
    records = records.take(chosen)
  return PreparedDataset(path, split, entry, records, shards)


@functools.cache
def _waiting_readers():
  return futures.ThreadPoolExecutor(4 * _READERS, thread_name_prefix='records')


def _choose(records, first, last):
  """Returns the numbers of the records in [-first:-last], in order; None is an end.

  By digests of names, which do not follow the order of the file: neighbours in it
  are often alike, and the last ones all of one kind.
  """
  names = [hashlib.sha256(record.video.encode('utf-8', 'surrogatepass')) for record in records]
  order = np.argsort([name.hexdigest() for name in names], kind='stable')
  start, stop = (max(len(order) - int(n), 0) if n else n for n in (first, last))
  return np.sort(order[start:stop])


class _Shard:
  """One file of records, held itself and not by its name.

  What is put in its place later, as a new preparation or rsync does, is not seen.
  """

  patience = 0  # Failures after which the whole file is read for damage.

  def __init__(self, folder, entry):
    self.entry = entry
    self._opened = _open(folder, entry)
    self.file = self._opened.name
    self._status = os.fstat(self._opened.fileno())
    self._lock = threading.Lock()
    self._reader = None

  def check_digest(self):
    digest = hashlib.file_digest(self._opened, 'sha256')
    manifests.check_digest(self.file, self.entry, digest.hexdigest())

  def check_unchanged(self):
    """Raises ValueError if others have written into the file itself."""
    try:
      now = os.stat(self.file)
    except OSError:
      return
    before = self._status
    same = (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    if os.path.samestat(now, before) and not same:
      raise ValueError(
        f'{self.file} was written to while it was open, so its records may '
        'no longer be those of the index; start again, and prepare or copy '
        'sets that are in use under another name.'
      )

  def read(self, positions):
    """Returns list of bytes."""
    with self._lock:
      if self._reader is None:
        from array_record.python import array_record_module  # noqa: PLC0415

        self._reader = array_record_module.ArrayRecordReader(
          f'/dev/fd/{self._opened.fileno()}',
          options='readahead_buffer_size:0',
          file_reader_buffer_size=1 << 15,
        )
        self._opened.close()  # The reader has the file open, too.
    return self._reader.read(positions)

  def is_damaged(self):
    """Reads the whole file: is it another than the manifest says?"""
    with open(self.file, 'rb') as file:
      if not os.path.samestat(os.fstat(file.fileno()), self._status):
        return True  # What is held has no name to be looked at by.
      return hashlib.file_digest(file, 'sha256').hexdigest() != self.entry['sha256']


def _open(folder, entry):
  """Opens a file that the manifest lists, if it has its size."""
  path = os.path.join(folder, entry['file'])
  if not os.path.isfile(path):
    manifests.check_size(path, entry, None)
  file = open(path, 'rb', buffering=0)
  manifests.check_size(path, entry, os.fstat(file.fileno()).st_size)
  return file


def _read_index(folder, entry):
  """Returns the bytes of an index; what was read is what is checked."""
  path = files.join(folder, entry['file'])
  if buckets.is_address(folder):
    data = buckets.read(path)
  else:
    with _open(folder, entry) as file:
      data = file.readall()
  manifests.check_digest(path, entry, hashlib.sha256(data).hexdigest())
  return data


def _allow_open_files(path, shards, each=1):
  """Raises the limit of this process: every shard that is read stays open, as `each` files."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if hard != resource.RLIM_INFINITY and hard < each * shards + _OTHER_FILES:
    raise OSError(
      f'{path} has {shards} shards, and this process may open only {hard} '
      'files; raise that (ulimit -Hn), or prepare the set with a larger '
      '--part_size.'
    )
  if soft != hard and soft < 2 * each * shards + _OTHER_FILES:
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
