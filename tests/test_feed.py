"""The feed: placement, waiting, errors of its thread, and its end."""

import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from alpro_jax import sharding
from alpro_jax.batch import VideoTextBatch
from alpro_jax.data import feed
from tests import patience


def rows(number, count=8):
  return {
    'video': np.full((count, 2, 4, 4, 3), number, np.uint8),
    'text_ids': np.arange(count * 5, dtype=np.int32).reshape(count, 5),
    'text_mask': np.ones((count, 5), bool),
    'tower_ids': np.zeros((count, 0), np.int32),
    'video_id': np.arange(count, dtype=np.int32),
    'caption_id': np.arange(count, dtype=np.int32),
    'answer': np.full(count, -1, np.int32),
    'still': np.zeros(count, bool),
    'valid': np.ones(count, bool),
  }


def feeders():
  return [x for x in threading.enumerate() if x.name.startswith('feed')]


@pytest.fixture(scope='module')
def mesh():
  return sharding.make_mesh(4, 2)


def test_places_rows_on_all_devices_in_order(mesh):
  with feed.Feed(map(rows, range(3)), mesh) as batches:
    got = list(batches)
    assert len(got) == 3
    with pytest.raises(StopIteration):
      next(batches)
  assert isinstance(got[0], VideoTextBatch)
  for number, batch in enumerate(got):
    assert len(batch.video.addressable_shards) == 8
    assert batch.video.addressable_shards[0].data.shape == (1, 2, 4, 4, 3)
    for name, value in rows(number).items():
      np.testing.assert_array_equal(getattr(batch, name), value)
      assert getattr(batch, name).dtype == value.dtype


def test_works_under_the_transfer_guard(mesh):
  with jax.transfer_guard('disallow'):
    with feed.Feed(map(rows, range(1)), mesh) as batches:
      next(batches)


def test_refuses_fields_unlike_the_batch(mesh):
  extra = {**rows(0), 'record': np.arange(8)}
  del extra['still']
  with feed.Feed([extra], mesh) as batches:
    with pytest.raises(ValueError, match=r"missing=\['still'\], extra=\['rec"):
      next(batches)


def test_refuses_a_batch_that_cannot_be_cut(mesh):
  with feed.Feed([rows(0, 6)], mesh) as batches:
    with pytest.raises(ValueError, match='partitioned 8 times'):
      next(batches)


def test_measures_waiting(mesh):
  def slow():
    for number in range(3):
      time.sleep(0.1)
      yield rows(number)

  with feed.Feed(slow(), mesh) as batches:
    for _ in batches:
      pass
    assert 0.15 < batches.wait_seconds
  with feed.Feed(map(rows, range(2)), mesh) as batches:
    time.sleep(0.3)
    next(batches), next(batches)
    assert batches.wait_seconds < 0.1


def test_next_batches_reach_the_devices_during_a_step(mesh):
  """While the caller does nothing but wait, as it does for a step."""
  with feed.Feed(map(rows, range(9)), mesh, depth=2) as batches:
    next(batches)
    deadline = time.perf_counter() + 10
    while not all(x.done() for x in batches._ready) and time.perf_counter() < deadline:
      time.sleep(0.01)
    ahead = [x.result() for x in batches._ready]
    assert [int(batch.video[0, 0, 0, 0, 0]) for batch in ahead] == [1, 2]
    jax.block_until_ready(ahead)
    assert all(len(batch.video.addressable_shards) == 8 for batch in ahead)


def test_devices_along_tensor_share_rows():
  mesh = sharding.make_mesh(2, 2, tensor=2)
  with feed.Feed(map(rows, range(1)), mesh) as batches:
    batch = next(batches)
  assert batch.video.addressable_shards[0].data.shape[0] == 2
  np.testing.assert_array_equal(batch.video, rows(0)['video'])


def test_errors_come_at_their_batch_and_stay(mesh):
  def broken():
    yield rows(0)
    raise OSError('the disk is gone')

  with feed.Feed(broken(), mesh) as batches:
    next(batches)
    for _ in range(2):
      with pytest.raises(OSError, match='the disk is gone'):
        next(batches)


def test_close_ends_the_thread_and_what_is_behind(mesh):
  class Endless:
    closed = False

    def __iter__(self):
      return self

    def __next__(self):
      return rows(0)

    def close(self):
      self.closed = True

  source = Endless()
  batches = feed.Feed(source, mesh)
  next(batches)
  batches.close()
  batches.close()
  assert not feeders() and source.closed
  with pytest.raises(RuntimeError, match='closed'):
    next(batches)


def test_a_forgotten_feed_ends_its_thread(mesh):
  def endless():
    while True:
      yield rows(0)

  batches = feed.Feed(endless(), mesh)
  next(batches)
  assert feeders()
  del batches
  assert not feeders()


def test_a_script_that_never_closes_still_ends():
  script = """
import numpy as np
from alpro_jax import sharding
from alpro_jax.data import feed
from tests.test_feed import rows

def endless():
  while True:
    yield rows(0)

batches = feed.Feed(endless(), sharding.make_mesh())
next(batches)
print('done')
"""
  out = subprocess.run(
    [sys.executable, '-c', script],
    capture_output=True,
    text=True,
    timeout=patience.seconds(60),
    env={'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': '.'},
  )
  assert out.returncode == 0 and out.stdout == 'done\n', out.stderr


def test_host_rows(monkeypatch):
  assert feed.host_rows(6) == slice(0, 6)
  monkeypatch.setattr(jax, 'process_count', lambda: 4)
  monkeypatch.setattr(jax, 'process_index', lambda: 2)
  assert feed.host_rows(8) == slice(4, 6)
  with pytest.raises(ValueError, match='multiple of the 4 processes'):
    feed.host_rows(6)


def test_refuses_devices_that_want_rows_of_another_process(mesh, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(ValueError, match='in the order of their processes'):
    feed._check_rows(8, mesh)
