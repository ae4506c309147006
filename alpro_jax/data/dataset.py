"""Opens a prepared set: counts and digests checked, records by number."""

import copy
import dataclasses
import functools
import json
import os
from concurrent import futures

import numpy as np

from alpro_jax.data import annotations, prepare

# Digests are checked at every opening below this size; it takes seconds.
VERIFY_BELOW_BYTES = 4 << 30


def features():
  """Returns the TFDS features of a record: one clip and all its texts."""
  import tensorflow_datasets as tfds  # noqa: PLC0415

  return tfds.features.FeaturesDict({
      'video': tfds.features.Text(),
      'frames': tfds.features.Sequence(tfds.features.Image(
          shape=(None, None, 3), encoding_format='jpeg')),
      'seconds': tfds.features.Sequence(tfds.features.Scalar(np.float32)),
      'captions': tfds.features.Sequence(tfds.features.Text()),
      'styles': tfds.features.Sequence(tfds.features.Text()),
      'questions': tfds.features.Sequence(tfds.features.Text()),
      'answers': tfds.features.Sequence(tfds.features.Text()),
      'kinds': tfds.features.Sequence(tfds.features.Text()),
      'still': tfds.features.Scalar(np.bool_),
  })


@dataclasses.dataclass(frozen=True)
class RecordInfo:
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
    return [caption for caption, its in zip(
        self.captions, self.styles, strict=True) if style in ('', its)]

  def questions_of(self, kind: str) -> list[annotations.Question]:
    """Returns the questions of a kind; '' is any."""
    return [asked for asked in self.questions if kind in ('', asked.kind)]


class UnreadableRecord(ValueError):
  """`index` is the number of the record."""

  def __init__(self, message, index):
    super().__init__(message)
    self.index = index


class PreparedDataset:
  """One split of a set; made by open_dataset.

  Attributes:
    path, split: where it is.
    digest: hex sha256 over all of its content.
  """

  def __init__(self, path, split, entry, records):
    self.path = path
    self.split = split
    self.digest = entry['digest']
    self._records = records
    self._shards = entry['shards']
    self._stored = range(len(records))  # Number on disk of each record.

  def __len__(self):
    return len(self._records)

  def metadata(self):
    """Returns list of RecordInfo, one per record, in order."""
    return self._records

  def select(self, keep):
    """Returns the same split with some of its records, numbered anew.

    Args:
      keep: RecordInfo -> bool.
    """
    kept = [i for i, record in enumerate(self._records) if keep(record)]
    view = copy.copy(self)
    view._records = [self._records[i] for i in kept]
    view._stored = [self._stored[i] for i in kept]
    return view

  @functools.cached_property
  def _source(self):
    from array_record.python import array_record_data_source  # noqa: PLC0415
    instructions = [
        f'{os.path.join(self.path, shard["file"])}[0:{shard["examples"]}]'
        for shard in self._shards]
    return array_record_data_source.ArrayRecordDataSource(instructions)

  def fetch(self, indices):
    """Returns list of bytes, the serialised records of these numbers.

    Raises:
      UnreadableRecord: a record is damaged on disk.
    """
    indices = [int(index) for index in indices]
    for index in indices:
      if not 0 <= index < len(self):
        raise IndexError(f'{index=} is not in 0..{len(self) - 1}.')
    if not indices:
      return []
    try:
      return list(self._source.__getitems__(
          [self._stored[index] for index in indices]))
    except Exception:
      return [self._fetch_one(index) for index in indices]

  def _fetch_one(self, index):
    try:
      return self._source[self._stored[index]]
    except Exception as e:
      raise UnreadableRecord(
          f'Record {index} ({self._records[index].video!r}) of {self.path} '
          f'is damaged: {e}', index) from e

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
        serialized, decoders={'frames': tfds.decode.SkipDecoding()})


def open_dataset(path, split='train', *, verify=None):
  """Opens one split of a prepared set.

  Names, sizes and counts are always checked.

  Args:
    path: folder made by launch/prepare.py.
    split: name of the split.
    verify: compare the sha256 of every file with the manifest; None does so
      below VERIFY_BELOW_BYTES.
  Returns:
    PreparedDataset.
  Raises:
    FileNotFoundError: there is no finished set, or a file is gone.
    ValueError: the split is unknown, or a file is not as it was written.
  """
  path = os.path.abspath(os.fspath(path))
  manifest = prepare.read_manifest(path)
  if split not in manifest['splits']:
    raise ValueError(
        f'{path} has no split {split!r}, only {sorted(manifest["splits"])}.')
  entry = manifest['splits'][split]
  if verify is None:
    verify = entry['bytes'] < VERIFY_BELOW_BYTES
  files = [*entry['shards'], entry['index']]
  for file in files:
    _check_size(path, file)
  if verify:
    with futures.ThreadPoolExecutor(4) as pool:  # sha256 frees the GIL.
      for _ in pool.map(functools.partial(_check_digest, path), files):
        pass
  records = _read_index(os.path.join(path, entry['index']['file']))
  counts = {'manifest': entry['examples'], 'index': len(records),
            'shards': sum(shard['examples'] for shard in entry['shards'])}
  if len(set(counts.values())) > 1:
    raise ValueError(f'{path} disagrees on the number of records: {counts}; '
                     'prepare it again.')
  return PreparedDataset(path, split, entry, records)


def _check_size(path, entry):
  file = os.path.join(path, entry['file'])
  if not os.path.isfile(file):
    raise FileNotFoundError(f'{file} is missing; the manifest lists it.')
  if os.path.getsize(file) != entry['bytes']:
    raise ValueError(
        f'{file} has {os.path.getsize(file)} bytes, expected '
        f'{entry["bytes"]}; copy or prepare it again.')


def _check_digest(path, entry):
  file = os.path.join(path, entry['file'])
  got = prepare.sha256_file(file)
  if got != entry['sha256']:
    raise ValueError(
        f'{file} is damaged: its sha256 is {got[:12]}..., expected '
        f'{entry["sha256"][:12]}...; copy or prepare it again.')


def _read_index(file):
  with open(file, encoding='utf-8') as lines:
    return [
        RecordInfo(row['video'], tuple(row['captions']), tuple(row['styles']),
                   row['still'], row['frames'], _questions(row))
        for row in map(json.loads, lines)]


def _questions(row):
  if 'questions' not in row:  # Format 1.
    return ()
  return tuple(map(annotations.Question, row['questions'], row['answers'],
                   row['kinds']))
