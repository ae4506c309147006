"""Opens a prepared set: counts and digests checked, records by number."""

import copy
import functools
import hashlib
import json
import os
import resource
import threading
import weakref
from collections.abc import Sequence
from concurrent import futures
from typing import NamedTuple

import numpy as np

from alpro_jax.data import annotations
from alpro_jax.data.manifest import read_manifest

# Digests are checked at every opening below this size; it takes seconds.
VERIFY_BELOW_BYTES = 4 << 30
_OTHER_FILES = 200  # Sockets, libraries, checkpoints.
_READERS = 64  # Threads that read one batch.
_LINES = 64  # Of an index, parsed at once.
_NEW_LINE = '\n'  # Within a text it is escaped.


def features():
  """Returns the TFDS features of a record: one clip and all its texts."""
  import tensorflow_datasets as tfds  # noqa: PLC0415

  return tfds.features.FeaturesDict(
    {
      'video': tfds.features.Text(),
      'frames': tfds.features.Sequence(
        tfds.features.Image(shape=(None, None, 3), encoding_format='jpeg')
      ),
      'seconds': tfds.features.Sequence(tfds.features.Scalar(np.float32)),
      'captions': tfds.features.Sequence(tfds.features.Text()),
      'styles': tfds.features.Sequence(tfds.features.Text()),
      'questions': tfds.features.Sequence(tfds.features.Text()),
      'answers': tfds.features.Sequence(tfds.features.Text()),
      'kinds': tfds.features.Sequence(tfds.features.Text()),
      'still': tfds.features.Scalar(np.bool_),
    }
  )


class RecordInfo(NamedTuple):
  """What is known of a record without reading it.

  Attributes:
    video: name relative to the folder it came from.
    captions, styles: one style per caption, '' where there is none.
    still: True for a photo.
    frames: how many are stored.
    questions: with their answers and kinds.
  """

  video: str
  captions: tuple[str, ...]
  styles: tuple[str, ...]
  still: bool
  frames: int
  questions: tuple[annotations.Question, ...] = ()

  def captions_of(self, style: str) -> list[str]:
    """Returns the captions in a style; '' is any."""
    if not style:
      return list(self.captions)
    return [
      caption for caption, its in zip(self.captions, self.styles, strict=True) if style == its
    ]

  def questions_of(self, kind: str) -> list[annotations.Question]:
    """Returns the questions of a kind; '' is any."""
    return [asked for asked in self.questions if kind in ('', asked.kind)]


class Infos(Sequence):
  """RecordInfo of every record, made when it is asked for.

  All of them at once would be several objects for each of millions of
  records: gigabytes, and half a minute to make.
  """

  def __getitem__(self, index):
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    if not -len(self) <= index < len(self):
      raise IndexError(f'record {index} of {len(self)}')
    return self._at(index % len(self))

  def __eq__(self, other):
    return isinstance(other, Sequence) and list(self) == list(other)

  __hash__ = None


class IndexInfos(Infos):
  """Those of an index file.

  Attributes:
    data: bytes of the file; a line for each record.
  """

  def __init__(self, data):
    self.data = data
    self._ends = _line_ends(data)

  def __len__(self):
    return len(self._ends)

  def __iter__(self):
    # Many lines at once: four times as fast as one by one.
    for start in range(0, len(self), _LINES):
      yield from self._parse(start, min(start + _LINES, len(self)))

  def _at(self, index):
    (info,) = self._parse(index, index + 1)
    return info

  def _parse(self, start, stop):
    """Yields the RecordInfo of some lines."""
    first = self._ends[start - 1] if start else 0
    lines = self.data[first : self._ends[stop - 1] - 1].decode()
    for row in json.loads(f'[{lines.replace(_NEW_LINE, ",")}]'):
      yield RecordInfo(
        row['video'],
        tuple(row['captions']),
        tuple(row['styles']),
        row['still'],
        row['frames'],
        _questions(row),
      )


class ChosenInfos(Infos):
  """Some of another sequence's: those of `numbers`, int64[n]."""

  def __init__(self, infos, numbers):
    self._infos = infos
    self._numbers = numbers

  def __len__(self):
    return len(self._numbers)

  def _at(self, index):
    return self._infos[int(self._numbers[index])]


class UnreadableRecord(ValueError):
  """`index` is the number of the record."""

  def __init__(self, message, index):
    super().__init__(message)
    self.index = index


class _Shard:
  """One file of records: what was opened is what is checked and read.

  The file itself is held, not its name: what is put in its place later, as a
  new preparation or rsync does, is not seen.
  """

  def __init__(self, path, entry):
    self._entry = entry
    self._path = path
    self._file = os.path.join(path, entry['file'])
    _check_size(path, entry)
    self._descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
    self._close = weakref.finalize(self, os.close, self._descriptor)
    self._status = os.fstat(self._descriptor)
    _check_size(path, entry, self._status.st_size)
    self._lock = threading.Lock()
    self._reader = None

  def check_digest(self):
    with open(self._descriptor, 'rb', closefd=False) as file:
      _check_digest(self._path, self._entry, hashlib.file_digest(file, 'sha256').hexdigest())

  def check_unchanged(self):
    """Raises ValueError if others have written into the file itself."""
    try:
      now = os.stat(self._file)
    except (FileNotFoundError, NotADirectoryError):
      return
    if os.path.samestat(now, self._status) and (
      (now.st_size, now.st_mtime_ns) != (self._status.st_size, self._status.st_mtime_ns)
    ):
      raise ValueError(
        f'{self._file} was written to while it was open, so its records may '
        'no longer be those of the index; start again, and prepare or copy '
        'sets that are in use under another name.'
      )

  def read(self, positions):
    """Returns list of bytes."""
    with self._lock:
      if self._reader is None:
        from array_record.python import array_record_module  # noqa: PLC0415

        self._reader = array_record_module.ArrayRecordReader(
          f'/dev/fd/{self._descriptor}',
          options='readahead_buffer_size:0',
          file_reader_buffer_size=1 << 15,
        )
        self._close()  # The reader has the file open, too.
    return self._reader.read(positions)


class _Shards:
  """The files of a split, opened once for all views of it."""

  def __init__(self, path, entries):
    _allow_open_files(path, len(entries))
    self._shards = [_Shard(path, entry) for entry in entries]
    self._ends = np.cumsum([entry['examples'] for entry in entries])

  def check_digests(self):
    with futures.ThreadPoolExecutor(4) as pool:  # sha256 frees the GIL.
      for _ in pool.map(_Shard.check_digest, self._shards):
        pass

  def check_unchanged(self, numbers):
    for which in np.unique(self._which(numbers)):
      self._shards[which].check_unchanged()

  def read(self, numbers):
    """int64[n] -> list of bytes; several files are read at once."""
    found = [b''] * len(numbers)
    which = self._which(numbers)

    def read_one(shard):
      places = np.flatnonzero(which == shard)
      start = self._ends[shard - 1] if shard else 0
      records = self._shards[shard].read((numbers[places] - start).tolist())
      for place, record in zip(places, records, strict=True):
        found[place] = record

    shards = np.unique(which)
    with futures.ThreadPoolExecutor(min(len(shards), _READERS)) as pool:
      for _ in pool.map(read_one, shards):
        pass
    return found

  def _which(self, numbers):
    return np.searchsorted(self._ends, numbers, side='right')


class PreparedDataset:
  """One split of a set; made by open_dataset.

  Attributes:
    path, split: where it is.
    digest: hex sha256 over all of its content.
  """

  def __init__(self, path, split, entry, records, shards=None):
    self.path = path
    self.split = split
    self.digest = entry['digest']
    self._records = records
    self._shards = shards
    self._stored = np.arange(len(records))  # Number on disk of each record.

  def __len__(self):
    return len(self._records)

  def metadata(self):
    """Returns a sequence of RecordInfo, one per record, in order."""
    return self._records

  def select(self, keep):
    """Returns the same split with some of its records, numbered anew.

    Args:
      keep: RecordInfo -> bool.
    """
    kept = np.fromiter((i for i, record in enumerate(self._records) if keep(record)), np.int64)
    view = copy.copy(self)
    view._records = ChosenInfos(self._records, kept)
    view._stored = self._stored[kept]
    return view

  def fetch(self, indices):
    """Returns list of bytes, the serialised records of these numbers.

    Raises:
      UnreadableRecord: a record is damaged on disk.
      ValueError: a file was written to since it was opened.
    """
    indices = [int(index) for index in indices]
    for index in indices:
      if not 0 <= index < len(self):
        raise IndexError(f'{index=} is not in 0..{len(self) - 1}.')
    if not indices:
      return []
    numbers = self._stored[indices]
    self._shards.check_unchanged(numbers)  # If not, no record is to blame.
    try:
      return self._shards.read(numbers)
    except MemoryError:
      raise
    except Exception:
      return [self._fetch_one(index) for index in indices]

  def _fetch_one(self, index):
    try:
      return self._shards.read(self._stored[[index]])[0]
    except MemoryError:
      raise
    except Exception as e:
      raise UnreadableRecord(
        f'Record {index} ({self._records[index].video!r}) of {self.path} is damaged: {e}', index
      ) from e

  @functools.cached_property
  def _features(self):
    return features()

  def parse(self, serialized):
    """Parses one record inside tf.data.

    Args:
      serialized: tf string[].
    Returns:
      dict: video string[], frames string[F] (JPEG), seconds float32[F],
      captions string[K], styles string[K], questions, answers and kinds
      string[Q], still bool[].
    """
    import tensorflow_datasets as tfds  # noqa: PLC0415

    return self._features.deserialize_example(
      serialized, decoders={'frames': tfds.decode.SkipDecoding()}
    )


def open_dataset(path, split='train', *, verify=None):
  """Opens one split of a prepared set.

  Names, sizes and counts are always checked, and the digest of the index. A
  damaged record is found when it is read: each has a sum of its own. Every
  file is opened here, so that what was checked is what is read, whatever is
  put in its place later.

  Args:
    path: folder made by launch/prepare.py.
    split: name of the split.
    verify: compare the sha256 of every shard with the manifest too; None does
      so below VERIFY_BELOW_BYTES.
  Returns:
    PreparedDataset.
  Raises:
    FileNotFoundError: there is no finished set, or a file is gone.
    ValueError: the split is unknown, or a file is not as it was written.
  """
  path = os.path.abspath(os.fspath(path))
  manifest = read_manifest(path)
  if split not in manifest['splits']:
    raise ValueError(f'{path} has no split {split!r}, only {sorted(manifest["splits"])}.')
  entry = manifest['splits'][split]
  if verify is None:
    verify = entry['bytes'] < VERIFY_BELOW_BYTES
  shards = _Shards(path, entry['shards'])
  _check_size(path, entry['index'])
  if verify:
    shards.check_digests()
  records = IndexInfos(_read_index(path, entry['index']))
  counts = {
    'manifest': entry['examples'],
    'index': len(records),
    'shards': sum(shard['examples'] for shard in entry['shards']),
  }
  if read_manifest(path) != manifest:  # It is written last.
    raise ValueError(f'{path} was replaced while it was opened; start again.')
  if len(set(counts.values())) > 1:
    raise ValueError(f'{path} disagrees on the number of records: {counts}; prepare it again.')
  return PreparedDataset(path, split, entry, records, shards)


def _check_size(path, entry, got=None):
  file = os.path.join(path, entry['file'])
  if not os.path.isfile(file):
    raise FileNotFoundError(f'{file} is missing; the manifest lists it.')
  got = os.path.getsize(file) if got is None else got
  if got != entry['bytes']:
    raise ValueError(
      f'{file} has {got} bytes, expected {entry["bytes"]}; copy or prepare it again.'
    )


def _check_digest(path, entry, got):
  file = os.path.join(path, entry['file'])
  if got != entry['sha256']:
    raise ValueError(
      f'{file} is damaged: its sha256 is {got[:12]}..., expected '
      f'{entry["sha256"][:12]}...; copy or prepare it again.'
    )


def _read_index(path, entry):
  """Returns the bytes of an index; what was read is what is checked."""
  with open(os.path.join(path, entry['file']), 'rb') as file:
    data = file.read()
  _check_digest(path, entry, hashlib.sha256(data).hexdigest())
  return data


def _line_ends(data, block=1 << 24):
  """Returns int64[n], the place behind each line of data."""
  codes = np.frombuffer(data, np.uint8)
  return np.concatenate(
    [
      np.empty(0, np.int64),
      *(
        np.flatnonzero(codes[start : start + block] == ord('\n')) + start + 1
        for start in range(0, len(codes), block)
      ),
    ]
  )


def _questions(row):
  if not row.get('questions'):  # Format 1 has no such key.
    return ()
  return tuple(map(annotations.Question, row['questions'], row['answers'], row['kinds']))


def _allow_open_files(path, shards):
  """Raises the limit of this process: every shard that is read stays open."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if hard != resource.RLIM_INFINITY and hard < shards + _OTHER_FILES:
    raise OSError(
      f'{path} has {shards} shards, and this process may open only {hard} '
      'files; raise that (ulimit -Hn), or prepare the set with a larger '
      '--part_size.'
    )
  if soft != hard and soft < 2 * shards + _OTHER_FILES:
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
