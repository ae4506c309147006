"""From the arrays of this host to global batches on the devices, ahead."""

import dataclasses
import queue
import threading
import time
import weakref
from collections.abc import Iterator

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
  start = jax.process_index() * size
  return slice(start, start + size)


def to_batch(rows, mesh):
  """Puts the rows of this host on its devices.

  Args:
    rows: dict of arrays with the fields of VideoTextBatch.
    mesh: from sharding.make_mesh.

  Returns:
    VideoTextBatch of global arrays, cut over all devices.
  """
  missing = sorted(set(FIELDS) - set(rows))
  extra = sorted(set(rows) - set(FIELDS))
  if missing or extra:
    raise ValueError(f'A batch needs the fields {list(FIELDS)}; {missing=}, {extra=}.')
  placement = sharding.batch_sharding(mesh)
  return VideoTextBatch(
    **{
      name: jax.make_array_from_process_local_data(placement, np.asarray(rows[name]))
      for name in FIELDS
    }
  )


class Feed(Iterator):
  """Global batches, made ahead by a thread; from prefetch.

  Attributes:
    wait_seconds: how long next() has waited, in all.
  """

  def __init__(self, batches, mesh, depth):
    self.wait_seconds = 0.0
    self._mesh = mesh
    self._batches = batches
    self._ready = queue.Queue(depth)
    self._stop = threading.Event()
    self._error = None
    # The thread must not hold the Feed, or it would live as long as the
    # process when nobody closes it.
    self._thread = threading.Thread(
      target=_work, args=(batches, mesh, self._ready, self._stop), name='feed', daemon=True
    )
    # Runs on close, when the Feed is forgotten, and at exit: a thread inside
    # TensorFlow while Python shuts down can abort the process.
    self._finish = weakref.finalize(self, _finish, self._thread, self._ready, self._stop)
    self._thread.start()

  def __next__(self):
    if self._error is not None:
      raise self._error
    if self._stop.is_set():
      raise RuntimeError('The feed is closed.')
    start = time.perf_counter()
    batch, self._error = self._ready.get()
    self.wait_seconds += time.perf_counter() - start
    if self._error is not None:
      raise self._error
    return batch

  def close(self):
    """Stops the thread and the batches behind it."""
    self._finish()
    if hasattr(self._batches, 'close'):
      self._batches.close()

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    self.close()


def prefetch(batches, mesh, *, depth=2):
  """Starts to make global batches ahead of their use.

  Args:
    batches: iterable of dicts with the rows of this host.
    mesh: from sharding.make_mesh.
    depth: batches that may lie ready on the devices.

  Returns:
    Feed. What goes wrong in its thread is raised by next().
  """
  return Feed(batches, mesh, depth)


def _work(batches, mesh, ready, stop):
  checked = False
  try:
    for rows in batches:
      if stop.is_set():
        return
      batch = to_batch(rows, mesh)
      if not checked:
        _check_rows(len(rows['valid']), mesh)
        checked = True
      _put((batch, None), ready, stop)
    _put((None, StopIteration()), ready, stop)
  except BaseException as error:  # noqa: BLE001  Raised by next().
    _put((None, error), ready, stop)


def _check_rows(count, mesh):
  """Raises ValueError if the devices of this process want other rows."""
  total = count * jax.process_count()
  places = sharding.batch_sharding(mesh).addressable_devices_indices_map((total,))
  # Devices along `tensor` share their rows.
  wanted = sorted({rows.start or 0 for (rows,) in places.values()})
  expected = host_rows(total)
  size = total // sharding.batch_shards(mesh)
  if wanted != list(range(expected.start, expected.stop, size)):
    raise ValueError(
      f'Process {jax.process_index()} reads rows {expected.start} to '
      f'{expected.stop}, but its devices hold the rows from {wanted}; give '
      'jax.make_mesh the devices in the order of their processes.'
    )


def _put(item, ready, stop):
  while not stop.is_set():
    try:
      ready.put(item, timeout=0.1)
      return
    except queue.Full:
      pass


def _finish(thread, ready, stop):
  stop.set()
  while not ready.empty():
    ready.get_nowait()
  # It may be in the middle of a batch.
  thread.join(timeout=30)
