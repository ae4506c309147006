"""Batches of prepared sets, addressed by step.

The global batch of step k is a function of (seed, k) alone, and every host
reads its own rows only. For each step, in Python, for the whole batch at once:

  step k -> source -> examples -> records, texts -> bytes

and then for each clip, in TensorFlow's own threads, some batches ahead:

  bytes -> JPEG of all frames -> choose T -> decode, crop, scale -> augment

All randomness of a clip is keyed by (seed, source, epoch, record).
"""

import contextlib
import os
import weakref
from collections.abc import Iterator
from concurrent import futures

import numpy as np
import tensorflow as tf
from absl import logging

from alpro_jax.data import augment, dataset, frames
from alpro_jax.data.mixture import TooManyBroken
from alpro_jax.data.order import Order, texts

CROPS = ('random', 'centre')  # Runs that are older than this option did the first.
# What the pixels need of a record; the rest is known from its metadata.
# TFDS's own parser reads all of it and takes ten times as long.
FEATURES = {
  'frames': tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True),
  'still': tf.io.FixedLenFeature([], tf.int64),
}


def train_batches(config, sources, tokenizer, *, seed, start_step, batch_size, rows):
  """Returns an endless generator of batches; its `close` stops what reads ahead.

  Args:
    config: config.data.
    sources: from open_sources.
    tokenizer: from tokens.load_tokenizers.
    seed: of the run.
    start_step: step of the first batch.
    batch_size: global.
    rows: slice of the global batch that this host reads.

  Returns:
    dicts of numpy arrays, the fields of VideoTextBatch with these rows.

  Raises:
    ValueError: the rows are no part of the batch, or no source is active; while
      reading also TooManyBroken, and OSError where the disk fails.
  """
  if not 0 <= rows.start < rows.stop <= batch_size:
    raise ValueError(f'{rows=} is no part of {batch_size=}.')
  shares = (config.get(name, 0.0) for name in ('single_frames', 'without_text'))
  order = Order(sources, seed, batch_size, *shares)
  order.plan(start_step, rows)  # Options that cannot work fail here.
  return _train_batches(config, order, tokenizer, start_step, rows)


def _train_batches(config, order, tokenizer, step, rows):
  def read(step):
    plan = order.plan(step, rows)
    photos = config.still_frames and plan.source.only_photos
    frames = config.still_frames if photos else config.frames
    return plan.source.dataset.fetch(plan.records), plan.seeds, plan.frame, frames

  failed = None
  while True:  # Opened anew behind what could not be read.
    steps = range(step, np.iinfo(np.int64).max)
    with contextlib.closing(
      _Clips(steps, read, rows, config, train=True, at_once=order.at_once)
    ) as clips:
      try:
        for clip in clips:
          yield clip | texts(order.plan(step, rows), tokenizer, config.max_text_tokens)
          step += 1
      except tf.errors.OpError as error:
        # A copy: the frames behind it would hold the clips, which went on reading.
        failure = type(error)(None, None, error.message)
    # Which records are broken is a property of the data, so the replacement is
    # the same whenever and wherever it is found out.
    source, _, records, *_ = order.plan(step, rows)
    broken = _find_unreadable(source.dataset, records, config, train=True)
    if broken:
      _replace(source, broken, step, config.broken_share)
    elif failed == step:  # Twice, and no record is at fault.
      raise failure
    failed = step


def _replace(source, broken, step, share):
  """Marks records that cannot be read, if they are no more than allowed."""
  for reason in broken.values():
    logging.warning('Replacing a record of %s from step %d on: %s', source.name, step, reason)
  source.broken.update(broken)
  allowed = max(1, int(share * source.num_records))
  if len(source.broken) > allowed:
    raise TooManyBroken(
      f'{len(source.broken)} records of {source.name} cannot be read, '
      f'data.broken_share allows {allowed} of {source.num_records}; the last: '
      f'{reason}. Copy or prepare the set again.'
    )


def eval_batches(config, prepared, *, batch_size, rows=None, first=0):
  """Yields every record once: same frames, centre crop, no augmentation.

  The last batch is filled with copies marked by valid = False, so that all
  hosts take the same number of steps.

  Args:
    config: config.data.
    prepared: PreparedDataset.
    batch_size: global.
    rows: slice of the global batch that this host reads; None is all.
    first: record to begin with.

  Yields:
    dicts of numpy arrays, for b rows: video uint8[b, T, H, W, 3], still bool[b],
    record int32[b] and valid bool[b].

  Raises:
    ValueError: a record cannot be read; OSError where the disk fails.
  """
  rows = rows or slice(0, batch_size)
  at_once = prepared.at_once
  steps = range(-((first - len(prepared)) // batch_size))

  def rows_of(step):
    numbers = first + step * batch_size + np.arange(rows.start, rows.stop)
    return np.minimum(numbers, len(prepared) - 1), numbers < len(prepared)

  def read(step):
    records, _ = rows_of(step)
    seeds, clips = np.zeros((len(records), 2), np.int64), np.zeros(len(records), bool)
    return prepared.fetch(records), seeds, clips, config.frames

  with contextlib.closing(_Clips(steps, read, rows, config, train=False, at_once=at_once)) as clips:
    for step in steps:
      records, valid = rows_of(step)
      try:
        batch = next(clips)
      except tf.errors.OpError as error:
        for reason in _find_unreadable(prepared, records, config, train=False).values():
          raise ValueError(
            f'{reason}. Nothing is left out here: copy or prepare the set again.'
          ) from error
        raise
      yield batch | {'record': records.astype(np.int32), 'valid': valid}


def decode_record(serialized, seed, config, *, train, num_frames=None, frame=False):
  """Makes the clip of one record, in TensorFlow alone.

  Args:
    serialized: string[], a record of a PreparedDataset.
    seed: int64[2].
    config: config.data.
    train: crop as `config.crop` says, and augmentation; else centre crop.
    num_frames: T of a photo, int32[]; None is config.frames, as of a clip.
    frame: bool[], whether to show one frame of it, at random, as if it were a photo.

  Returns:
    uint8[T, H, W, 3] and bool[], whether it is a photo or a frame.
  """
  record = tf.io.parse_single_example(serialized, FEATURES)
  stored = record['frames']
  strategy = config.sampling if train else config.eval_sampling

  def stream(number):
    return seed + tf.constant([0, number], tf.int64)

  frame = tf.convert_to_tensor(frame)
  one = frames.choose_frames('rand', tf.shape(stored)[0], 1, stream(0))
  stored = tf.cond(frame, lambda: tf.gather(stored, one), lambda: stored)
  index = frames.choose_frames(strategy, tf.shape(stored)[0], config.frames, stream(0))
  if (crop := config.get('crop', CROPS[0])) not in CROPS:
    raise ValueError(f'data.{crop=} is unknown; choose one of {CROPS}.')
  moves = train and crop == 'random'
  position = tf.random.stateless_uniform([2], stream(10)) if moves else tf.constant([0.5, 0.5])
  # A photo is decoded and augmented once, then repeated.
  clip = tf.cond(
    tf.shape(stored)[0] == 1,
    lambda: augment.decode_clip(tf.ensure_shape(stored, [1]), position, config),
    lambda: augment.decode_clip(
      tf.ensure_shape(tf.gather(stored, index), [config.frames]), position, config
    ),
  )
  if train and config.randaugment.enabled:
    clip = augment.rand_augment(clip, stream(20), config.randaugment)
  size = config.image_size, config.image_size, 3
  if num_frames is None or not config.still_frames:
    num_frames = config.frames
  return tf.broadcast_to(clip, (num_frames, *size)), (record['still'] > 0) | frame


def _find_unreadable(prepared, records, config, *, train):
  """Returns {record: why it cannot be read} of some records."""
  seed, found = tf.constant([0, 0], tf.int64), {}
  for record in np.unique(records).tolist():
    try:
      (serialized,) = prepared.fetch([record])
      decode_record(tf.constant(serialized), seed, config, train=train)
    except dataset.UnreadableRecord as error:
      found[record] = str(error)
    except tf.errors.OpError as error:
      # Without the name of the kernel before it and of the call behind.
      reason = error.message.split('}} ')[-1].split(' [Op:')[0]
      video = prepared.metadata()[record].video
      found[record] = f'record {record} ({video!r}) of {prepared.path}: {reason}'
  return found


class _Clips(Iterator):
  """Clips of batches: read in Python, decoded in parallel, given in order.

  It ends before Python does: its threads call Python, and one that does so
  during shutdown aborts the process. Nor may the garbage collector end it,
  which waits for these threads wherever it happens to run, and they may want a
  lock that is held there: what is held is known to the finalizer, so if `read`
  leads back here, only `close` ends it.

  Args:
    steps: range of what `read` is called with.
    read: step -> list of b records as bytes, int64[b, 2] seeds, bool[b] whether one frame
      is shown, frames of a clip.
    rows: slice of length b.
    config: config.data.
    train: see decode_record.
    at_once: steps that are read beside each other.
  """

  def __init__(self, steps, read, rows, config, *, train, at_once):
    held = self._held = {'read': _Ahead(read, steps.stop, at_once)}
    count, threads = rows.stop - rows.start, config.threads

    def read_now(step):
      records, seeds, single, num_frames = held['read'](int(step))
      return np.array(records, object), seeds, single, np.full(count, num_frames, np.int32)

    def read_batch(step):
      # TensorFlow keeps this function, and what it refers to, until the process
      # ends. With `read` itself every evaluation left its data set's files open.
      columns = tf.numpy_function(read_now, [step], (tf.string, tf.int64, tf.bool, tf.int32))
      shapes = (count,), (count, 2), (count,), (count,)
      return tuple(map(tf.ensure_shape, columns, shapes))

    def decode(serialized, seed, frame, num_frames):
      video, still = decode_record(
        serialized, seed, config, train=train, num_frames=num_frames, frame=frame
      )
      return {'video': video, 'still': still}

    # Nothing here needs its control flow rewritten, which costs seconds.
    plain = tf.autograph.experimental.do_not_convert
    options = tf.data.Options()
    options.deterministic = True
    # One clip is one thread's work; clips run beside each other.
    options.threading.max_intra_op_parallelism = 1
    if threads:
      options.threading.private_threadpool_size = threads
    clips = (
      tf.data.Dataset.range(steps.start, steps.stop)
      .map(plain(read_batch))
      .prefetch(2)
      .unbatch()
      .map(plain(decode), num_parallel_calls=threads or os.cpu_count())
      .batch(count, drop_remainder=True)
      .prefetch(2)
    )
    held['clips'] = clips.with_options(options).as_numpy_iterator()
    # Runs when called, when the last name of the reader goes, and at exit.
    self.close = weakref.finalize(self, _let_go, held)

  def __next__(self):
    return next(self._held['clips'])


def _let_go(held):
  del held['clips']  # Waits for its threads, which call the other.
  held.pop('read').close()


class _Ahead:
  """A function of consecutive steps, called for those to come while one is waited for.

  Not by tf.data's threads, of which there are as many as cores: waiting for a bucket, they
  would decode nothing.
  """

  def __init__(self, read, stop, at_once):
    self._read, self._stop, self._at_once = read, stop, at_once
    self._pool = futures.ThreadPoolExecutor(at_once, thread_name_prefix='read_ahead')
    self._begun = {}

  def __call__(self, step):
    if self._at_once == 1:
      return self._read(step)
    for later in range(step, min(step + self._at_once, self._stop)):
      if later not in self._begun:
        self._begun[later] = self._pool.submit(self._read, later)
    return self._begun.pop(step).result()

  def close(self):
    self._pool.shutdown(cancel_futures=True)
