"""Frame choice: the rules, short clips, odd counts and the original's picks."""

import numpy as np
import pytest
import tensorflow as tf

from alpro_jax.data import frames

SEED = tf.constant([3, 4], tf.int64)


def choose(strategy, available, wanted, seed=(3, 4)):
  return frames.choose_frames(strategy, available, wanted, tf.constant(seed, tf.int64)).numpy()


@pytest.mark.parametrize('strategy', frames.STRATEGIES)
@pytest.mark.parametrize('wanted', (1, 3, 4, 7, 8))
@pytest.mark.parametrize('available', (1, 2, 3, 5, 9, 31, 300))
def test_always_the_wanted_number_in_order(strategy, available, wanted):
  index = choose(strategy, available, wanted)
  assert index.shape == (wanted,) and index.dtype == np.int64
  assert (np.diff(index) >= 0).all()
  assert 0 <= index.min() and index.max() < available
  # Frames repeat only as often as they must.
  if strategy in ('rand', 'uniform', 'nlvl_uniform'):
    most = np.unique(index, return_counts=True)[1].max()
    assert most <= -(-wanted // available)


@pytest.mark.parametrize('strategy', frames.STRATEGIES)
@pytest.mark.parametrize(
  'available, wanted', [(3, 4), (2, 3), (3, 8), (5, 8), (3, 3), (7, 7), (1, 4)]
)
def test_short_clips_are_repeated_evenly(strategy, available, wanted):
  seen = set()
  for seed in range(30):
    index = choose(strategy, available, wanted, (seed, 5))
    often = np.bincount(index, minlength=available)
    assert often.min() == wanted // available
    assert often.max() == -(-wanted // available)
    seen.add(tuple(index))
  if wanted % available and 'uniform' not in strategy:
    # Any of the frames may be among those that come once more.
    assert set().union(
      *(np.flatnonzero(np.bincount(x) > wanted // available) for x in seen)
    ) == set(range(available))


def test_uniform_by_hand():
  np.testing.assert_array_equal(choose('uniform', 10, 4), [0, 2, 5, 7])
  np.testing.assert_array_equal(choose('uniform', 3, 4), [0, 0, 1, 2])
  np.testing.assert_array_equal(choose('uniform', 1, 4), [0, 0, 0, 0])


def test_headtail_takes_half_from_each_half():
  seen = set()
  for seed in range(20):
    index = choose('headtail', 12, 5, (seed, 0))
    assert (index < 6).sum() == 3 and len(set(index)) == 5
    seen |= set(index)
  assert len(seen) == 12
  first, last = choose('headtail', 12, 2)
  assert first < 6 <= last
  assert all(choose('headtail', 3, 2, (seed, 0))[0] == 0 for seed in range(9))


def test_the_halves_are_drawn_apart():
  same = [
    np.array_equal(index[:2] + 6, index[2:])
    for index in (choose('headtail', 12, 4, (seed, 0)) for seed in range(20))
  ]
  assert sum(same) < 10


def test_nlvl_rand_takes_one_from_each_segment():
  for seed in range(10):
    np.testing.assert_array_equal(choose('nlvl_rand', 40, 4, (seed, 0)) // 10, [0, 1, 2, 3])
  seen = [choose('nlvl_rand', 8, 4, (seed, 0)) for seed in range(20)]
  assert set(np.concatenate(seen)) == set(range(8))


@pytest.mark.parametrize('strategy', ('rand', 'headtail', 'nlvl_rand'))
def test_the_seed_alone_decides(strategy):
  first = choose(strategy, 100, 8, (1, 2))
  np.testing.assert_array_equal(first, choose(strategy, 100, 8, (1, 2)))
  assert (first != choose(strategy, 100, 8, (1, 3))).any()


def test_rand_is_even():
  count = np.zeros(6)
  for seed in range(200):
    count[choose('rand', 6, 3, (seed, 9))] += 1
  assert count.min() > 70 and count.max() < 130


def test_runs_in_a_graph_with_a_dynamic_length():
  dataset = tf.data.Dataset.range(1, 9).map(lambda n: frames.choose_frames('headtail', n, 4, SEED))
  assert dataset.element_spec.shape == [4]
  assert [x.shape for x in dataset.as_numpy_iterator()] == [(4,)] * 8


def test_refuses_unknown_names():
  with pytest.raises(ValueError, match='set data.sampling to one of'):
    choose('middle', 10, 4)
  with pytest.raises(ValueError, match='set data.frames'):
    choose('uniform', 10, 0)


# Recorded from the original's code, (frames, wanted): picks.
ORIGINAL = {
  (10, 4): [0, 2, 5, 7],
  (300, 8): [0, 37, 75, 112, 150, 187, 225, 262],
  (137, 8): [0, 17, 34, 51, 68, 85, 102, 119],
  (100, 16): [0, 6, 12, 18, 25, 31, 37, 43, 50, 56, 62, 68, 75, 81, 87, 93],
  (5, 8): [0, 0, 1, 1, 2, 3, 3, 4],
  (3, 4): [0, 0, 1, 2],
  (37, 16): [0, 2, 4, 6, 9, 11, 13, 16, 18, 20, 23, 25, 27, 30, 32, 34],
  (31, 4): [0, 7, 15, 23],
  (9, 3): [0, 3, 6],
}


@pytest.mark.parametrize('available, wanted', ORIGINAL)
def test_nlvl_uniform_picks_what_the_original_picks(available, wanted):
  """Its `uniform` rounds the step down and so differs."""
  np.testing.assert_array_equal(
    choose('nlvl_uniform', available, wanted), ORIGINAL[available, wanted]
  )
