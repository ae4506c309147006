"""Measures the input pipeline: what a core delivers, and where its time goes.

CPU seconds, of all threads, not wall time: another program on the machine
makes them grow a little, not several times. Records come from the page cache,
so the disk is not measured.
"""

import contextlib
import json
import os
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np
import tensorflow as tf
from absl import logging

from alpro_jax import sharding
from alpro_jax.data import augment, dataset, feed, frames, pipeline, prepare, sources, tokens
from alpro_jax.data.mixture import Source
from alpro_jax.data.order import Order
from examples.shapes.files import write_video

WINDOWS = 12  # Measurements of each kind; the median counts.
CLIPS = 64  # In each of them.
# A made-up clip: ten seconds, two frames of 340 x 256 kept of each.
HEIGHT, WIDTH, FRAMES, FPS = 256, 340, 20, 2


def measure(config, *, data, clips, needed):
  """Returns CPU milliseconds per clip by kind and part, and clips/s.

  Args:
    config: see configs/common.py.
    data: folder of a prepared set; '' makes one up.
    clips: of the made-up set.
    needed: clips/s that the devices of this host take; 0 if not known.
  """
  with contextlib.ExitStack() as stack:
    if not data:
      data = stack.enter_context(tempfile.TemporaryDirectory())
      logging.info('Making up %d clips.', clips)
      data = make_set(pathlib.Path(data), clips)
    prepared = dataset.open_dataset(data, 'train')
    source = Source(prepared, 0)
    tokenizer = _tokenizer(config.data.tokenizer, source)
    serialized = prepared.fetch(range(min(len(prepared), CLIPS)))
    figures = {
      'clips': len(prepared),
      'record_kb': np.mean([len(record) for record in serialized]) / 1e3,
      'cores': os.cpu_count(),
    }
    kinds = {}
    for augmented in (False, True):
      for threads in (1, 0):
        kinds[augmented, threads] = cpu, wall = _whole(
          config.data, source, tokenizer, augmented=augmented, threads=threads
        )
        name = f'{"augmented" if augmented else "plain"}/' + (
          'one thread' if threads else 'all threads'
        )
        figures[f'cpu_ms/{name}'] = 1e3 * cpu
        figures[f'clips_per_s_and_core/{name}'] = 1 / cpu
        figures[f'clips_per_s/{name}'] = 1 / wall
    parts = _parts(config.data, source, tokenizer, serialized)
    parts['batches and threads'] = 1e3 * kinds[True, 1][0] - sum(parts.values())
    # Not of the threads above: the feed's own thread does this.
    parts['copy to the devices'] = _copy(config.data, source, tokenizer)
    figures |= {f'cpu_ms/part/{name}': x for name, x in parts.items()}

  cpu, wall = kinds[bool(config.data.randaugment.enabled), 0]
  figures['delivered_clips_per_s'] = 1 / wall
  if needed:
    figures['needed_clips_per_s'] = needed
    figures['needed_cores'] = needed * cpu
    figures['what_limits'] = 'input' if needed * wall > 1 else 'step'
  return figures


def read_needed(path):
  """Returns the clips/s in what `benchmark.py step --output` has written."""
  figures = json.loads(pathlib.Path(path).read_text())
  if 'clips_per_s' not in figures:
    raise ValueError(f'{path} has no clips_per_s; make it with benchmark.py step --output=FILE.')
  return figures['clips_per_s']


# --- A made-up set ----------------------------------------------------------


def make_set(folder, clips, part_size=1000):
  """Makes clips up and prepares them as launch/prepare.py does, `part_size` in a shard.

  Returns:
    The path of the set.
  """
  videos = folder / 'videos'
  videos.mkdir()
  rows = []
  for number in range(clips):
    name = f'{number:05}.mp4'
    write_video(str(videos / name), make_clip(np.random.default_rng(number)), FPS)
    rows.append({'video': name, 'caption': f'clip {number} of clouds that drift by'})
  captions = folder / 'captions.jsonl'
  captions.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  path = str(folder / 'set')
  prepare.prepare(
    sources.read_folder(str(captions), '', split='train'),
    str(videos),
    path,
    options=prepare.Options(fps=FPS, part_size=part_size),
  )
  return path


def make_clip(rng):
  """Returns uint8[FRAMES, HEIGHT, WIDTH, 3], clouds that drift by.

  Random phases under an amplitude that falls with the 1.65th power of the
  frequency. Photographs fall with about the first, but have edges and plain
  areas where this has grain: at 1.65 a frame takes as many bytes of JPEG as
  one of a real clip does (15 to 16 KB at quality 85), and as long to decode.
  """
  height, width = HEIGHT + 3 * FRAMES, WIDTH + 6 * FRAMES
  frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
  amplitude = np.where(frequency > 0, frequency, np.inf) ** -1.65
  shape = 3, *amplitude.shape
  noise = rng.normal(size=shape) + 1j * rng.normal(size=shape)
  planes = np.fft.irfft2(amplitude * noise, (height, width))
  planes *= 55 / planes.std((1, 2), keepdims=True)
  light, blue, red = planes * np.array([1, 0.25, 0.25])[:, None, None]
  picture = 128 + np.stack(
    [light + 1.4 * red, light - 0.34 * blue - 0.71 * red, light + 1.77 * blue], -1
  )
  picture = np.clip(picture, 0, 255).astype(np.uint8)
  return np.stack([picture[3 * i : 3 * i + HEIGHT, 6 * i : 6 * i + WIDTH] for i in range(FRAMES)])


def _tokenizer(path, source):
  if pathlib.Path(path).is_file():
    return tokens.load_tokenizer(path)
  with tempfile.TemporaryDirectory() as folder:
    texts = [source.read_text(i) for i in range(min(source.num_texts, 1000))]
    return tokens.train_sentencepiece(texts, f'{folder}/tokenizer.model', 256)


# --- Clocks -----------------------------------------------------------------


def _median(call):
  """Returns median CPU and wall seconds per clip of calls of CLIPS clips."""
  found = []
  for _ in range(WINDOWS):
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    found.append((time.process_time() - cpu, time.perf_counter() - wall))
  cpu, wall = (statistics.median(x) for x in zip(*found, strict=True))
  return cpu / CLIPS, wall / CLIPS


def _batches(options, source, tokenizer):
  return pipeline.train_batches(
    options, [source], tokenizer, seed=0, start_step=0, batch_size=CLIPS, rows=slice(0, CLIPS)
  )


def _whole(options, source, tokenizer, *, augmented, threads):
  """Returns CPU and wall seconds per clip of the real pipeline."""
  options = options.copy_and_resolve_references()
  options.threads, options.randaugment.enabled = threads, augmented
  batches = _batches(options, source, tokenizer)
  with contextlib.closing(batches):
    for _ in range(6):  # What is read ahead is full, all is compiled.
      next(batches)
    return _median(lambda: next(batches))


def _parts(options, source, tokenizer, serialized):
  """Returns CPU milliseconds per clip of what the pipeline does in turn."""
  options = options.copy_and_resolve_references()
  seed = tf.constant([1, 2], tf.int64)

  def parse(record):
    return tf.io.parse_single_example(record, pipeline.FEATURES)['frames']

  def choose(record):
    stored = parse(record)
    index = frames.choose_frames(options.sampling, tf.shape(stored)[0], options.frames, seed)
    return tf.ensure_shape(tf.gather(stored, index), [options.frames])

  def decode_jpeg(record):
    return augment.decode_windows(choose(record), tf.constant([0.5, 0.5]), options)

  def whole(augmented):
    changed = options.copy_and_resolve_references()
    changed.randaugment.enabled = augmented

    def decode(record, number):
      return pipeline.decode_record(record, tf.stack([number, 0]), changed, train=True)[0]

    return decode

  nothing = _stage(serialized, lambda record, number: record)
  stages = {
    'parse': _stage(serialized, lambda record, number: parse(record)),
    'choose frames': _stage(serialized, lambda record, number: choose(record)),
    'decode JPEG': _stage(serialized, lambda record, number: decode_jpeg(record)),
    'crop and resize': _stage(serialized, whole(False)),
    'augment': _stage(serialized, whole(True)),
  }
  before, parts = nothing, {'read and tokenize': _read(options, source, tokenizer)}
  for name, total in stages.items():
    parts[name] = 1e3 * (total - before)
    before = total
  return parts


def _stage(serialized, call):
  """Returns CPU seconds per clip of a map in one thread of TensorFlow."""
  options = tf.data.Options()
  options.threading.private_threadpool_size = 1
  options.threading.max_intra_op_parallelism = 1
  mapped = tf.data.Dataset.from_tensor_slices(serialized).repeat().enumerate()
  mapped = mapped.map(
    tf.autograph.experimental.do_not_convert(lambda number, record: call(record, number))
  )
  # One number of each clip, lest the copy to Python is measured.
  mapped = mapped.map(tf.autograph.experimental.do_not_convert(lambda x: tf.size(x)))
  running = mapped.batch(CLIPS).with_options(options).as_numpy_iterator()
  next(running)
  return _median(lambda: next(running))[0]


def _read(options, source, tokenizer):
  order = Order([source], 0, CLIPS)
  steps = iter(range(10**9))

  def read():
    plan = order.plan(next(steps), slice(0, CLIPS))
    source.dataset.fetch(plan.records)
    tokenizer.encode([source.read_text(i) for i in plan.texts], options.max_text_tokens)

  return 1e3 * _median(read)[0]


def _copy(options, source, tokenizer):
  mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
  batches = _batches(options, source, tokenizer)
  with contextlib.closing(batches):
    rows = next(batches)

  def copy():
    jax.block_until_ready(feed.to_batch(rows, mesh))

  copy()
  return 1e3 * _median(copy)[0]
