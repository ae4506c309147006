"""Batches of prepared sets, addressed by step.

The global batch of step k is a function of (seed, k) alone: of no file
position, no shuffle buffer and no number of hosts. So a run that resumes at k
reads exactly what it would have read, at once, and every host reads its own
rows only. For each step, in Python and for the whole batch at a time:

  step k -> source -> place in its order -> records, captions -> bytes

and then for each clip, in TensorFlow's own threads:

  bytes -> JPEG of all frames -> choose T -> decode, crop, scale -> augment

All randomness of a clip is keyed by (seed, source, epoch, record).
"""

import array
import collections
import dataclasses
import functools
import hashlib
import os
import threading
import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from alpro_jax.data import answers, augment, dataset, frames, tokens

# Streams of random numbers: one for each kind of choice.
SOURCE, SHUFFLE, CAPTION, PIXELS, VIDEO = range(1, 6)
# Nothing here needs its control flow rewritten, which costs seconds.
_plain = tf.autograph.experimental.do_not_convert
BLOCK = 4096  # Steps whose sources are drawn at once.
TEXTS = ('captions', 'questions')
EXAMPLES = ('videos', 'texts')
MEASURED = 20_000  # Texts of a source that are counted by their length.


class TooManyBroken(RuntimeError):
  """More records cannot be read than `data.broken_share` allows."""


@dataclasses.dataclass(eq=False)
class Source:
  """A prepared set as training uses it: which texts, when, how often.

  An example is a video with one of its texts drawn at random, or, where
  `examples` is 'texts', one text with its video.

  Attributes:
    dataset: the PreparedDataset.
    key: number that keys its randomness, its place in the list.
    weight, style, from_step, until_step: see configs.common.source.
    text: 'captions', or 'questions', whose kind is their style.
    examples: 'videos' or 'texts'; what an epoch visits once.
    answers: the known ones, for questions.
    records: int64[n], the record of each example.
    keys: int64[n], what keys the randomness of each example.
    texts: those of the examples, one after the other, a sequence of str.
    labels: int32[texts], place among the known answers, -1 for none.
    first: int64[n + 1], where the texts of each example begin.
    only_photos: bool, of all examples.
    broken: record -> why it could not be read; grows while reading.
    unknown_answers: how often each answer occurs that is not a known one.
    cut: (texts that lose tokens, texts looked at), from `measure_texts`.
  """

  dataset: dataset.PreparedDataset
  key: int
  weight: float = 1.0
  style: str = ''
  from_step: int = 0
  until_step: int = -1
  text: str = 'captions'
  examples: str = 'videos'
  answers: tuple[str, ...] = ()
  broken: dict[int, str] = dataclasses.field(default_factory=dict)
  unknown_answers: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  cut: tuple[int, int] | None = None

  def __post_init__(self):
    if not self.weight >= 0:
      raise ValueError(f'{self.name}: weight={self.weight} must not be negative.')
    if self.text not in TEXTS or self.examples not in EXAMPLES:
      raise ValueError(
        f'config.data.text={self.text!r} must be one of {TEXTS} and '
        f'config.data.examples={self.examples!r} one of {EXAMPLES}.'
      )
    # Arrays, not lists: there may be millions of records.
    numbers, counts = array.array('q'), array.array('q')
    answered = []
    self.only_photos = True
    for number, record in enumerate(self.dataset.metadata()):
      chosen = self._texts_of(record)
      if chosen:
        numbers.append(number)
        counts.append(len(chosen))
        self.only_photos &= record.still
        if self.text == 'questions':
          answered += [asked.answer for asked in chosen]
    if not numbers:
      raise ValueError(self._nothing())
    self.records = np.array(numbers, np.int64)
    self.keys = self.records
    self.first = np.concatenate([[0], np.cumsum(counts)])
    self.texts = Texts(self, self.records, self.first)
    self.labels = np.full(len(self.texts), -1, np.int32)
    if self.text == 'questions':
      self.labels = answers.label_answers(answered, self.answers)
      self.unknown_answers.update(
        answer for answer, label in zip(answered, self.labels, strict=True) if label < 0
      )
    if self.examples == 'texts':
      self.records = np.repeat(self.records, counts)
      self.keys = np.arange(len(self.texts))
      self.first = np.arange(len(self.texts) + 1)

  def _texts_of(self, record):
    """Returns list of str, captions, or of Question."""
    if self.text == 'captions':
      return record.captions_of(self.style)
    return record.questions_of(self.style)

  def _nothing(self):
    records = self.dataset.metadata()
    if self.text == 'captions':
      styles = {style for record in records for style in record.styles}
    else:
      styles = {asked.kind for record in records for asked in record.questions}
    if not styles:
      return f'{self.name} has no {self.text}; prepare it with a file of {self.text}.'
    return (
      f'{self.name}: none of its {self.text} has style={self.style!r}, '
      f'only {sorted(styles)}; set style in data.sources.'
    )

  @property
  def name(self):
    return f'{os.path.basename(self.dataset.path)}/{self.dataset.split}'

  @property
  def digest(self):
    return self.dataset.digest

  @property
  def num_records(self):
    """How many records have a text; there may be more examples."""
    return len(np.unique(self.records))

  def __len__(self):
    return len(self.records)


class Texts(Sequence):
  """The texts of a source, one after the other, read when asked for.

  Args:
    source: the Source.
    records: int64[n], those that have texts.
    first: int64[n + 1], where the texts of each of them begin.
  """

  def __init__(self, source, records, first):
    self._source = source
    self._records = records
    self._first = first

  def __len__(self):
    return int(self._first[-1])

  def __getitem__(self, index):
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    if not 0 <= index < len(self):
      raise IndexError(f'text {index} of {len(self)}')
    place = np.searchsorted(self._first, index, 'right') - 1
    record = self._source.dataset.metadata()[self._records[place]]
    text = self._source._texts_of(record)[index - self._first[place]]
    return text if isinstance(text, str) else text.text


def open_sources(config):
  """Opens `config.sources`; returns list of Source.

  Args:
    config: config.data.
  Raises:
    ValueError: if there is no source, or one has no text of the wanted kind.
    FileNotFoundError: if a set or the list of answers is not there.
  """
  if not config.sources:
    raise ValueError('data.sources is empty; list prepared sets by common.source(path).')
  opened = {}
  for entry in config.sources:
    where = entry.path, entry.split
    if where not in opened:
      opened[where] = dataset.open_dataset(*where, verify=None if config.verify else False)
  known = ()
  if config.text == 'questions':
    known = answers.read_answers(config.answers)
  sources = [
    Source(
      opened[entry.path, entry.split],
      key,
      entry.weight,
      entry.style,
      entry.from_step,
      entry.until_step,
      config.text,
      config.examples,
      known,
    )
    for key, entry in enumerate(config.sources)
  ]
  if config.text == 'questions':
    for source in sources:
      _check_answers(source, config.answers)
  return sources


def _check_answers(source, path):
  """Says how many questions of a source have an answer of the list.

  Raises:
    ValueError: if none has: every loss would be 0, and nothing be learned.
  """
  missing = source.unknown_answers.most_common(5)
  examples = ', '.join(f'{answer!r} ({n})' for answer, n in missing)
  if (source.labels < 0).all():
    raise ValueError(
      f'{source.name}: not one of its {len(source.labels)} questions has an '
      f'answer of config.data.answers={path}, so that nothing could be '
      f'learned. The questions are answered by {examples}; the list begins '
      f'with {list(source.answers[:5])}. Make the list of this set with '
      f'`python launch/answers.py --data={source.dataset.path} --split='
      f'{source.dataset.split} --output=answers.txt`.'
    )
  logging.info(
    '%s: %.1f %% of %d questions have an answer of the list; the others teach nothing%s',
    source.name,
    100 * (source.labels >= 0).mean(),
    len(source.labels),
    f', such as {examples}' if missing else '',
  )


def measure_texts(sources, tokenizer, max_tokens):
  """Counts texts that are longer than max_tokens, and says so in the log.

  Of each source all texts are looked at, or MEASURED of them, evenly spread.
  The counts go to `Source.cut`, and into the report.
  """
  for source in sources:
    number = min(len(source.texts), MEASURED)
    places = np.arange(number) * len(source.texts) // number
    cut = tokens.count_cut(tokenizer, [source.texts[i] for i in places], max_tokens)
    source.cut = cut, number
    if cut:
      logging.warning(
        '%s: %d of %d %s have more than data.max_text_tokens=%d tokens; their ends are cut off.',
        source.name,
        cut,
        number,
        source.text,
        max_tokens,
      )


def report(sources):
  """Returns what was read from where, and what could not be, as JSON."""
  return [
    {
      'source': source.name,
      'style': source.style,
      'digest': source.digest,
      'records': source.num_records,
      source.text: len(source.texts),
      **({'unknown_answers': int((source.labels < 0).sum())} if source.text == 'questions' else {}),
      **({'texts_cut': source.cut[0], 'texts_measured': source.cut[1]} if source.cut else {}),
      'replaced': {
        source.dataset.metadata()[record].video: reason
        for record, reason in sorted(source.broken.items())
      },
    }
    for source in sources
  ]


# --- The order: all numbers, no input ---------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan:
  """What the rows of a host hold at one step.

  Attributes:
    source: the Source.
    epoch: int64[b], how often the order of the source had begun anew.
    place: int64[b], in source.records.
  """

  source: Source
  epoch: np.ndarray
  place: np.ndarray

  @property
  def records(self):
    return self.source.records[self.place]


class Order:
  """Says what every step reads."""

  def __init__(self, sources, seed, batch_size):
    self._sources = sources
    self._shuffled = functools.lru_cache(maxsize=8)(self._shuffle)
    self._seed = seed
    self._batch_size = batch_size
    self._lock = threading.Lock()
    self._block = None  # Number of the block, its choices, earlier counts.

  def plan(self, step, rows):
    """Returns the Plan of a step for a slice of the global batch."""
    choice, batches_before = self._choice(step)
    source = self._sources[choice]
    place = batches_before * self._batch_size + np.arange(rows.start, rows.stop)
    epoch, offset = np.divmod(place, len(source))
    chosen = np.empty_like(place)
    for number in np.unique(epoch):
      shuffled = self._shuffled(choice, int(number))
      now = epoch == number
      chosen[now] = _next_readable(source, shuffled, offset[now])
    return Plan(source, epoch, chosen)

  def _choice(self, step):
    """Returns the source of a step and how many batches it gave before."""
    with self._lock:
      number = step // BLOCK
      if self._block is None or self._block[0] != number:
        self._block = number, *self._choose_block(number)
      _, choices, counts = self._block
    here = choices[step % BLOCK]
    if here < 0:
      raise ValueError(
        f'No source is active at {step=}; look at from_step, until_step and weight in data.sources.'
      )
    return here, counts[here] + np.sum(choices[: step % BLOCK] == here)

  def _choose_block(self, number):
    counts = np.zeros(len(self._sources), np.int64)
    for earlier in range(number):  # 0.2 ms each: 50 ms at step 1,000,000.
      choices = self._draw(earlier)
      counts += np.bincount(choices[choices >= 0], minlength=len(counts))
    return self._draw(number), counts

  def _draw(self, number):
    """Draws sources by weight among the active: int64[BLOCK], -1 if none."""
    steps = np.arange(number * BLOCK, (number + 1) * BLOCK)
    weights = np.stack(
      [
        source.weight
        * ((steps >= source.from_step) & ((source.until_step < 0) | (steps < source.until_step)))
        for source in self._sources
      ]
    )
    upper = np.cumsum(weights, 0)
    # In 0..1, 53 bits; times a total it stays below that total.
    uniform = (hash64(self._seed, SOURCE, steps) >> np.uint64(11)) / 2**53
    choices = np.sum(uniform * upper[-1] >= upper, 0)
    return np.where(upper[-1] > 0, choices, -1)

  def _shuffle(self, choice, epoch):
    source = self._sources[choice]
    noise = hash64(self._seed, SHUFFLE, source.key, epoch, np.arange(len(source)))
    return np.argsort(noise, kind='stable')


def hash64(*parts):
  """Mixes whole numbers, or arrays of them, to uint64 of full range.

  The same on every machine and under every version, which a generator of
  numpy does not promise.
  """
  mixed = np.zeros(1, np.uint64)
  for part in parts:
    part = np.asarray(part).astype(np.uint64)
    # A round of splitmix64 after each part.
    mixed = (mixed ^ part) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
  return mixed


def caption_ids(ids):
  """Returns int32[B], the same for texts that the model reads alike.

  Capitals, other forms of a letter, unknown words and what is cut off make
  other texts, but no other tokens.

  Args:
    ids: int32[B, L], what the tokenizer made of them.
  """
  return (hash64(*ids.T) >> np.uint64(33)).astype(np.int32)


def video_ids(prepared, records):
  """Returns int32[b], the same for the same record of the same set."""
  name = f'{os.path.basename(prepared.path)}/{prepared.split}'
  mixed = hash64(VIDEO, _hash_text(name), records)
  return (mixed >> np.uint64(33)).astype(np.int32)


def _hash_text(text):
  digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
  return int.from_bytes(digest, 'little')


def _next_readable(source, shuffled, offset):
  """Returns places, each broken record replaced by the next in the order."""
  chosen = shuffled[offset]
  if source.broken:
    broken = np.isin(source.records[chosen], list(source.broken))
    for i in np.flatnonzero(broken):
      for step in range(1, len(shuffled)):
        chosen[i] = shuffled[(offset[i] + step) % len(shuffled)]
        if source.records[chosen[i]] not in source.broken:
          break
      else:
        raise TooManyBroken(f'No record of {source.name} can be read.')
  return chosen


# --- Training ---------------------------------------------------------------


class TrainBatches(Iterator):
  """Batches for training; made by train_batches."""

  def __init__(self, config, sources, tokenizer, *, seed, start_step, batch_size, rows):
    if not 0 <= rows.start < rows.stop <= batch_size:
      raise ValueError(f'{rows=} is no part of {batch_size=}.')
    self._config = config
    self._order = Order(sources, seed, batch_size)
    self._tokenizer = tokenizer
    self._seed = seed
    self._rows = rows
    self._step = start_step
    self._batches = None
    self._order.plan(start_step, rows)  # Options that cannot work fail here.

  def __next__(self):
    while True:
      if self._batches is None:
        self._batches = self._open(self._step)
      try:
        batch = next(self._batches)
      except tf.errors.OpError as error:
        self.close()
        self._find_broken(error)
        continue  # Opens anew at this step.
      self._step += 1
      return batch

  def close(self):
    """Stops the threads that read ahead."""
    if self._batches is not None:
      self._batches.close()
      self._batches = None

  def _open(self, start):
    count = self._rows.stop - self._rows.start
    length = self._config.max_text_tokens
    specs = {
      'serialized': ((), tf.string),
      'seed': ((2,), tf.int64),
      'frames': ((), tf.int32),
      'text_ids': ((length,), tf.int32),
      'text_mask': ((length,), tf.bool),
      'video_id': ((), tf.int32),
      'caption_id': ((), tf.int32),
      'answer': ((), tf.int32),
    }
    config = self._config  # TensorFlow need not know self.

    def decode(row):
      pixels, still = decode_record(
        row.pop('serialized'), row.pop('seed'), config, train=True, num_frames=row.pop('frames')
      )
      return {**row, 'video': pixels, 'still': still, 'valid': True}

    steps = tf.data.Dataset.range(start, np.iinfo(np.int64).max)
    return _run(steps, self._read, specs, decode, count, config.threads)

  def _read(self, step):
    """Reads the rows of one step; runs in a thread of TensorFlow."""
    plan = self._order.plan(step, self._rows)
    source, records = plan.source, plan.records
    key = self._seed, source.key
    first = source.first[plan.place]
    among = source.first[plan.place + 1] - first
    own = source.keys[plan.place]
    drawn = hash64(*key, CAPTION, plan.epoch, own) % among.astype('uint64')
    chosen = first + drawn.astype(np.int64)
    texts = [source.texts[i] for i in chosen]
    ids, mask = self._tokenizer.encode(texts, self._config.max_text_tokens)
    pixels = hash64(*key, PIXELS, plan.epoch, own).view(np.int64)
    return (
      np.array(source.dataset.fetch(records), object),
      np.stack([pixels, np.zeros_like(pixels)], 1),
      np.full(len(records), self._num_frames(source), np.int32),
      ids,
      mask,
      video_ids(source.dataset, records),
      caption_ids(ids),
      source.labels[chosen],
    )

  def _num_frames(self, source):
    few = self._config.still_frames
    return few if few and source.only_photos else self._config.frames

  def _find_broken(self, error):
    """Marks what cannot be read at this step, or raises the error.

    Which records are broken is a property of the data, so the replacement is
    the same whenever and wherever it is found out.
    """
    plan = self._order.plan(self._step, self._rows)
    source, found = plan.source, {}
    for record in np.unique(plan.records).tolist():
      reason = _reason_unreadable(
        source.dataset,
        record,
        lambda x: decode_record(
          x,
          tf.constant([0, 0], tf.int64),
          self._config,
          train=True,
          num_frames=self._num_frames(source),
        ),
      )
      if reason:
        found[record] = reason
    if not found:
      raise error
    for reason in found.values():
      logging.warning(
        'Replacing a record of %s from step %d on: %s', source.name, self._step, reason
      )
    source.broken.update(found)
    records = source.num_records
    allowed = max(1, int(self._config.broken_share * records))
    if len(source.broken) > allowed:
      raise TooManyBroken(
        f'{len(source.broken)} records of {source.name} cannot be read, '
        f'data.broken_share allows {allowed} of {records}; the last: '
        f'{reason}. Copy or prepare the set again.'
      ) from error


def train_batches(config, sources, tokenizer, *, seed, start_step, batch_size, rows):
  """Returns an endless iterator over the batches from a step on.

  Args:
    config: config.data.
    sources: from open_sources.
    tokenizer: see tokens.Tokenizer.
    seed: of the run.
    start_step: step of the first batch.
    batch_size: global, B.
    rows: slice of the global batch that this host reads.

  Returns:
    TrainBatches of dicts with the fields of VideoTextBatch, as numpy arrays
    with the rows of this host.
  """
  return TrainBatches(
    config, sources, tokenizer, seed=seed, start_step=start_step, batch_size=batch_size, rows=rows
  )


# --- Evaluation -------------------------------------------------------------


def eval_batches(config, prepared, tokenizer=None, *, batch_size, rows=None, style=''):
  """Yields every record once: same frames, centre crop, no augmentation.

  The last batch is filled with copies marked by valid = False, so that all
  hosts take the same number of steps.

  Args:
    config: config.data.
    prepared: PreparedDataset.
    tokenizer: adds the text fields, from the first caption of each record in
      the style ('' is any); None leaves them out.
    batch_size: global, B.
    rows: slice of the global batch that this host reads; None is all.
    style: of the captions.

  Yields:
    dicts with the fields of VideoTextBatch and `record` int32[B], numbers of
    the records, as numpy arrays with the rows of this host.

  Raises:
    ValueError: a record cannot be read, or lacks a caption of the style.
  """
  rows = rows or slice(0, batch_size)
  mine = np.arange(rows.start, rows.stop)
  total = len(prepared)

  def numbers(step):
    return np.minimum(step * batch_size + mine, total - 1)

  def read(step):
    return (np.array(prepared.fetch(numbers(step)), object),)

  def decode(row):
    seed = tf.constant([0, 0], tf.int64)
    pixels, still = decode_record(row['serialized'], seed, config, train=False)
    return {'video': pixels, 'still': still}

  texts = None
  if tokenizer is not None:
    texts = record_captions(prepared, style)
    for record, known in zip(prepared.metadata(), texts, strict=True):
      if not known:
        raise ValueError(f'{record.video} of {prepared.path} has no caption of {style=}.')

  steps = -(-total // batch_size)
  batches = _run(
    tf.data.Dataset.range(steps),
    read,
    {'serialized': ((), tf.string)},
    decode,
    len(mine),
    config.threads,
  )
  for step in range(steps):
    records = numbers(step)
    try:
      batch = next(batches)
    except tf.errors.OpError as error:
      for record in records.tolist():
        if reason := _reason_unreadable(prepared, record, lambda x: decode({'serialized': x})):
          raise ValueError(
            f'{reason}. Evaluation leaves nothing out: copy or prepare the set again.'
          ) from error
      raise
    batch['record'] = records.astype(np.int32)
    batch['valid'] = step * batch_size + mine < total
    batch['video_id'] = video_ids(prepared, records)
    if texts is not None:
      chosen = [texts[record][0] for record in records]
      batch['text_ids'], batch['text_mask'] = tokenizer.encode(chosen, config.max_text_tokens)
      batch['caption_id'] = caption_ids(batch['text_ids'])
      batch['answer'] = np.full(len(mine), -1, np.int32)
    yield batch


def record_captions(prepared, style=''):
  """Returns the captions of every record in the style ('' is any).

  Returns:
    list, one entry per record in order, of lists of str.
  """
  return [record.captions_of(style) for record in prepared.metadata()]


# --- Pixels -----------------------------------------------------------------


# What the pixels need of a record; the rest is known from its metadata.
# TFDS's own parser reads all of it and takes ten times as long.
FEATURES = {
  'frames': tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True),
  'still': tf.io.FixedLenFeature([], tf.int64),
}


def decode_record(serialized, seed, config, *, train, num_frames=None):
  """Makes the clip of one record, in TensorFlow alone.

  Args:
    serialized: string[], a record of a PreparedDataset.
    seed: int64[2].
    config: config.data.
    train: random crop and augmentation; else centre crop.
    num_frames: T of a photo, int32[]; None is config.frames, as of a clip.

  Returns:
    uint8[T, H, W, 3] and bool[], whether it is a photo.
  """
  record = tf.io.parse_single_example(serialized, FEATURES)
  stored = record['frames']
  strategy = config.sampling if train else config.eval_sampling

  def stream(number):
    return seed + tf.constant([0, number], tf.int64)

  index = frames.choose_frames(strategy, tf.shape(stored)[0], config.frames, stream(0))
  place = tf.constant([0.5, 0.5])
  if train:
    place = tf.random.stateless_uniform([2], stream(10))
  decode = functools.partial(
    augment.decode_clip,
    place=place,
    image_size=config.image_size,
    resize=config.resize,
    resize_mode=config.resize_mode,
  )
  # A photo is decoded and augmented once, then repeated.
  clip = tf.cond(
    tf.shape(stored)[0] == 1,
    lambda: decode(tf.ensure_shape(stored, [1])),
    lambda: decode(tf.ensure_shape(tf.gather(stored, index), [config.frames])),
  )
  if train and config.randaugment.enabled:
    clip = augment.rand_augment(
      clip,
      stream(20),
      operations=config.randaugment.operations,
      level=config.randaugment.level,
      exclude=tuple(config.randaugment.exclude),
    )
  size = config.image_size, config.image_size, 3
  if num_frames is None or not config.still_frames:
    num_frames = config.frames
  return tf.broadcast_to(clip, (num_frames, *size)), record['still'] > 0


def _run(steps, read, specs, decode, count, threads):
  """Reads batches and decodes their rows in parallel, in order.

  Args:
    steps: tf.data.Dataset of int64[].
    read: Python, step -> tuple of arrays [count, ...].
    specs: {name: (shape of a row, type)} of these.
    decode: of TensorFlow, {name: a row} -> the row of a batch.
    count: rows.
    threads: 0 is as many as there are cores.
  Returns:
    _Reader of batches.
  """
  held = {'read': read}

  def columns(step):
    # TensorFlow keeps this function, and what it refers to, until the process
    # ends. With `read` itself every evaluation left its data set's files open.
    found = tf.numpy_function(
      lambda k: held['read'](int(k)), [step], [x for _, x in specs.values()]
    )
    return {
      name: tf.ensure_shape(column, (count, *shape))
      for column, (name, (shape, _)) in zip(found, specs.items(), strict=True)
    }

  options = tf.data.Options()
  options.deterministic = True
  # One clip is one thread's work; clips run beside each other.
  options.threading.max_intra_op_parallelism = 1
  if threads:
    options.threading.private_threadpool_size = threads
  batches = (
    steps.map(_plain(columns))
    .prefetch(2)
    .unbatch()
    .map(_plain(decode), num_parallel_calls=threads or os.cpu_count())
  )
  batches = batches.batch(count, drop_remainder=True).prefetch(2)
  held['batches'] = batches.with_options(options).as_numpy_iterator()
  return _Reader(held)


class _Reader(Iterator):
  """An iterator of TensorFlow that ends before Python does.

  Its threads call Python; one that does so during shutdown aborts the process.
  Nor may the garbage collector end it, which waits for these threads wherever
  it happens to run, and they may want a lock that is held there: what is held
  is known to the finalizer, so if `read` leads back here, only `close` ends it.
  """

  def __init__(self, held):
    self._held = held
    # Runs when called, when the last name of the reader goes, and at exit.
    self.close = weakref.finalize(self, _let_go, held)

  def __next__(self):
    return next(self._held['batches'])


def _let_go(held):
  del held['batches']  # Waits for its threads, which call the other.
  del held['read']


def _reason_unreadable(prepared, record, decode):
  """Returns why a record cannot be read, or ''."""
  name = f'record {record} ({prepared.metadata()[record].video!r}) of ' + (prepared.path)
  try:
    (serialized,) = prepared.fetch([record])
  except dataset.UnreadableRecord as e:
    return str(e)
  try:
    decode(tf.constant(serialized))
  except tf.errors.OpError as e:
    # Without the name of the kernel before it and of the call behind.
    reason = e.message.split('}} ')[-1].split(' [Op:')[0]
    return f'{name}: {reason}'
  return ''
