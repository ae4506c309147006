"""Choosing which frames of a clip the model sees."""

import tensorflow as tf

STRATEGIES = ('rand', 'headtail', 'uniform', 'nlvl_uniform', 'nlvl_rand')


def choose_frames(strategy, num_available, num_frames, seed):
  """Chooses frames by one of the paper's rules, in order of time.

  With 10 frames of which 4 are wanted:

    uniform       [0 2 5 7]   floor(k 10 / 4)
    nlvl_uniform  [0 2 5 7]   the original's name for the same rule
    nlvl_rand     [1 4 6 7]   one at random in each quarter
    rand          [0 3 4 8]   four different ones
    headtail      [1 4 6 9]   two of the first half, two of the second

  A clip with fewer frames than wanted repeats all of them, as evenly as it
  can: of 3 for 4 one comes twice, with the last three rules a random one. Of
  an odd number headtail takes the middle one from the first half.

  Args:
    strategy: one of STRATEGIES.
    num_available: int scalar, frames in the clip, at least 1.
    num_frames: Python int, T.
    seed: int64[2], not used by uniform.
  Returns:
    int64[T], never decreasing, in 0..num_available-1.
  """
  if num_frames < 1:
    raise ValueError(f'{num_frames=} must be at least 1; set data.frames.')
  num_available = tf.cast(num_available, tf.int64)
  if strategy in ('uniform', 'nlvl_uniform'):
    return tf.range(num_frames, dtype=tf.int64) * num_available // num_frames
  if strategy not in STRATEGIES:
    raise ValueError(f'{strategy=} is unknown; set data.sampling to one of {STRATEGIES}.')

  spread = _sorted_sample(num_available, num_frames, seed)
  if strategy == 'rand':
    return spread
  if strategy == 'nlvl_rand':
    uniform = tf.random.stateless_uniform([num_frames], seed)
    share = (tf.range(num_frames, dtype=tf.float32) + uniform) / num_frames
    index = tf.cast(share * tf.cast(num_available, tf.float32), tf.int64)
    index = tf.minimum(index, num_available - 1)
  else:
    half = num_available // 2
    index = _sorted_sample(tf.maximum(half, 1), (num_frames + 1) // 2, seed)
    if num_frames > 1:
      # A seed of its own: equal halves must not get equal picks.
      seed = seed + tf.constant([0, 1], tf.int64)
      tail = _sorted_sample(num_available - half, num_frames // 2, seed)
      index = tf.concat([index, half + tail], 0)
  return tf.where(num_available <= num_frames, spread, index)


def _sorted_sample(size, count, seed):
  """Draws `count` of `size` indices, each as often as any other or once more."""
  size = tf.cast(size, tf.int64)
  noise = tf.random.stateless_uniform(tf.stack([size]), seed)
  more = tf.math.top_k(noise, count % size, sorted=False).indices
  often = tf.repeat(tf.range(size), count // size)
  index = tf.sort(tf.concat([often, tf.cast(more, tf.int64)], 0))
  return tf.ensure_shape(index, [count])
