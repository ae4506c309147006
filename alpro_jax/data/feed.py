"""From the arrays of this host to global batches on the devices, ahead."""

import collections
import dataclasses
import functools
import time
import weakref
from collections.abc import Iterator
from concurrent import futures

import jax
import numpy as np

from alpro_jax import sharding
from alpro_jax.batch import VideoTextBatch

FIELDS = tuple(field.name for field in dataclasses.fields(VideoTextBatch))


def host_rows(batch_size):
  """Returns the slice of the global batch that this process reads."""
  count = jax.process_count()
  if batch_size % count:
    raise ValueError(
      f'{batch_size=} must be a multiple of the {count} processes; set data.batch_size.'
    )
  size = batch_size // count
  return slice(jax.process_index() * size, (jax.process_index() + 1) * size)


def to_batch(rows, mesh):
  """Puts the rows of this host on its devices.

  Args:
    rows: dict of arrays with the fields of VideoTextBatch.
    mesh: from sharding.make_mesh.

  Returns:
    VideoTextBatch of global arrays, sharded over all devices.
  """
  missing, extra = sorted(set(FIELDS) - set(rows)), sorted(set(rows) - set(FIELDS))
  if missing or extra:
    raise ValueError(f'A batch needs the fields {list(FIELDS)}; {missing=}, {extra=}.')
  layout = sharding.batch_sharding(mesh)
  put = functools.partial(jax.make_array_from_process_local_data, layout)
  batch = jax.tree.map(lambda x: put(np.asarray(x)), {name: rows[name] for name in FIELDS})
  batch = VideoTextBatch(**batch)
  _check_rows(len(rows['valid']), mesh)
  return batch


def _check_rows(count, mesh):
  """Raises ValueError if the devices of this process want other rows."""
  total = count * jax.process_count()
  held = sharding.batch_sharding(mesh).addressable_devices_indices_map((total,))
  # Devices along `tensor` share their rows.
  wanted = sorted({rows.start or 0 for (rows,) in held.values()})
  expected = host_rows(total)
  size = total // sharding.batch_shards(mesh)
  if wanted != list(range(expected.start, expected.stop, size)):
    raise ValueError(
      f'Process {jax.process_index()} reads rows {expected.start} to '
      f'{expected.stop}, but its devices hold the rows from {wanted}; give '
      'jax.make_mesh the devices in the order of their processes.'
    )


class Feed(Iterator):
  """Global batches, made ahead by a thread; what goes wrong there next() raises.

  Args:
    batches: iterable of dicts with the rows of this host.
    mesh: from sharding.make_mesh.
    depth: batches that may lie ready on the devices.

  Attributes:
    wait_seconds: how long next() has waited, in all.
  """

  def __init__(self, batches, mesh, *, depth=2):
    self.wait_seconds = 0.0
    self._batches = batches
    # The thread must not hold the Feed, or it would live as long as the
    # process when nobody closes it.
    self._make = functools.partial(_make_next, iter(batches), mesh)
    self._pool = futures.ThreadPoolExecutor(1, 'feed')
    self._ready = collections.deque(self._pool.submit(self._make) for _ in range(depth))
    # Runs on close, when the Feed is forgotten, and at exit: a thread inside
    # TensorFlow while Python shuts down can abort the process.
    self._finish = weakref.finalize(self, self._pool.shutdown, cancel_futures=True)

  def __next__(self):
    if not self._finish.alive:
      raise RuntimeError('The feed is closed.')
    start = time.perf_counter()
    batch = self._ready[0].result()
    self.wait_seconds += time.perf_counter() - start
    self._ready.popleft()
    self._ready.append(self._pool.submit(self._make))
    return batch

  def close(self):
    """Stops the thread and the batches behind it."""
    self._finish()
    if hasattr(self._batches, 'close'):
      self._batches.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def _make_next(batches, mesh):
  return to_batch(next(batches), mesh)
