"""Pixels: windows, scaling, each operation, and the original's results."""

import pathlib
import types

import numpy as np
import pytest
import tensorflow as tf

from alpro_jax.data import augment

GOLDEN = pathlib.Path(__file__).parent / 'golden/augment.npz'


@pytest.fixture(autouse=True)
def not_compiled():
  """Every size would be compiled anew; one test looks at what comes out."""
  tf.config.run_functions_eagerly(True)
  yield
  tf.config.run_functions_eagerly(False)


def jpeg(frame):
  """Bytes that decode to nearly the same frame."""
  return tf.io.encode_jpeg(frame, quality=100, chroma_downsampling=False).numpy()


def ramp(height, width):
  """A frame whose red grows across and green grows down, by 2 a pixel."""
  down, across = np.mgrid[:height, :width]
  return np.stack([across * 2, down * 2, 0 * down + 99], -1).astype(np.uint8)


def apply(clip, *names, level, mirrored=None):
  drawn = [augment.OPERATIONS.index(name) for name in names]
  return augment.apply_operations(
    tf.constant(clip), tf.constant(drawn), tf.constant(mirrored or [0] * len(drawn)), level
  ).numpy()


def decode(frames, place=(0.5, 0.5), **options):
  options = types.SimpleNamespace(**{'resize_mode': 'squash', **options})
  jpegs = tf.constant([jpeg(x) for x in frames])
  return augment.decode_clip(jpegs, tf.constant(place), options).numpy().astype(int)


def draw(clip, seed, **options):
  options = types.SimpleNamespace(**{'exclude': (), **options})
  return augment.rand_augment(tf.constant(clip), tf.constant(seed, tf.int64), options).numpy()


def check_same(clip, expected):
  """Up to JPEG's rounding; a ramp moved by one pixel would differ by 2."""
  assert np.abs(clip - expected).max() <= 5
  assert np.abs((clip - expected).mean((-3, -2))).max() < 1


def test_a_frame_of_the_right_size_is_left_alone():
  frame = ramp(48, 48)
  clip = decode([frame, frame], image_size=48, resize=48)
  assert clip.shape == (2, 48, 48, 3)
  check_same(clip, frame)


@pytest.mark.parametrize(
  'place, start',
  [((0.0, 0.0), (0, 0)), ((0.5, 0.5), (8, 8)), ((0.999, 0.0), (16, 0)), ((0.0, 1.0), (0, 16))],
)
def test_crops_the_window_asked_for(place, start):
  frame = ramp(64, 64)
  clip = decode([frame], place, image_size=48, resize=64)
  down, across = start
  expected = frame[down : down + 48, across : across + 48]
  check_same(clip[0], expected)


def test_squash_takes_the_whole_frame():
  clip = decode([ramp(64, 96)], image_size=64, resize=64)[0]
  assert clip[32, 0, 0] <= 4 and clip[32, -1, 0] >= 186  # Red 0 to 190.


def test_short_side_keeps_the_shape():
  clip = decode([ramp(64, 96)], image_size=64, resize=64, resize_mode='short_side')[0]
  check_same(clip, ramp(64, 96)[:, 16:80])


def test_strong_shrinking_averages():
  checker = np.indices((128, 128)).sum(0) % 2 * 255
  frame = np.repeat(checker[..., None], 3, -1).astype(np.uint8)
  clip = decode([frame], image_size=32, resize=32)[0]
  assert np.abs(clip[2:-2, 2:-2] - 127).max() <= 8


def test_refuses_bad_sizes_and_modes():
  with pytest.raises(ValueError, match='set data.resize_mode'):
    decode([ramp(8, 8)], image_size=8, resize=8, resize_mode='fit')
  with pytest.raises(ValueError, match='set data.resize'):
    decode([ramp(8, 8)], image_size=8, resize=4)


@pytest.mark.parametrize('name', ('shear_x', 'shear_y', 'rotate', 'horizontal_flip'))
def test_moves_like_the_original(name):
  """Within the rounding of OpenCV's fixed-point interpolation."""
  with np.load(GOLDEN) as golden:
    moved = apply(golden['input'][None], name, level=7)[0]
    assert np.abs(moved.astype(int) - golden[name]).max() <= 1


@pytest.mark.parametrize('name', ('brightness', 'contrast', 'sharpness'))
def test_colours_like_the_original(name):
  """At its factor of 1.36.

  It truncates where we round, weighs luminance as if the channels were BGR,
  and lets sharpness wrap past 0 and 255.
  """
  with np.load(GOLDEN) as golden:
    change = getattr(augment, f'change_{name}')
    ours = change(tf.constant(golden['input'][None]), 1.36).numpy()[0]
    ours = ours.astype(float)
    inside = (ours > 1) & (ours < 254)
    assert inside.mean() > 0.5
    assert np.abs(ours - golden[name])[inside].max() <= 2.0


def test_contrast_is_about_the_mean_of_the_whole_clip():
  """A dark frame, then a bright one: both move away from the middle."""
  clip = np.full((2, 4, 6, 3), 60, np.uint8)
  clip[1] = 160
  for order in (clip, clip[::-1]):
    changed = augment.change_contrast(tf.constant(order), 1.5).numpy()
    want = np.where(order == 60, 35, 185)
    assert np.abs(changed.astype(int) - want).max() <= 1


def test_translation_is_a_share_of_the_frame():
  frame = ramp(112, 112)
  moved = apply(frame[None], 'translate_x', level=8)[0]  # 4 pixels to the left.
  np.testing.assert_array_equal(moved[:, :-4], frame[:, 4:])
  assert (moved[:, -4:] == 128).all()
  back = apply(frame[None], 'translate_y', level=8, mirrored=[1])[0]
  np.testing.assert_array_equal(back[4:], frame[:-4])


@pytest.mark.parametrize('name', augment.OPERATIONS)
def test_level_five_does_something_in_both_directions(name):
  clip = np.random.default_rng(0).integers(40, 200, (1, 32, 32, 3), dtype=np.uint8)
  there = apply(clip, name, level=5)
  back = apply(clip, name, level=5, mirrored=[1])
  assert (there != clip).any() == (name != 'identity')
  assert (there != back).any() == (name not in ('identity', 'horizontal_flip'))


def test_bright_pixels_do_not_wrap():
  clip = np.zeros((1, 8, 8, 3), np.uint8)
  clip[:, :, 4:] = 255
  for name in ('brightness', 'contrast', 'sharpness'):
    for mirrored in (0, 1):
      out = apply(clip, name, level=10, mirrored=[mirrored]).astype(int)
      assert (out[..., 5:, :] >= out[..., :3, :].max()).all(), name


def test_two_moves_are_done_in_the_order_drawn():
  """Flip then shift left leaves the gap at the right; the reverse does not."""
  frame = ramp(112, 112)
  out = apply(frame[None], 'horizontal_flip', 'translate_x', level=8)[0]
  np.testing.assert_array_equal(out[:, :-4], frame[:, ::-1][:, 4:])
  assert (out[:, -4:] == 128).all()
  out = apply(frame[None], 'translate_x', 'horizontal_flip', level=8)[0]
  np.testing.assert_array_equal(out[:, 4:], frame[:, 4:][:, ::-1])


def test_all_frames_get_the_same_draw():
  frame = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
  clip = tf.constant(np.stack([frame] * 4))
  different = 0
  for seed in range(12):
    out = draw(clip, [seed, 0], operations=2, level=7)
    assert (out == out[:1]).all()
    different += (out[0] != frame).any()
  assert different >= 9


def test_compiled_is_the_same():
  """Up to rounding: XLA may add a product without rounding it first."""
  clip = np.random.default_rng(0).integers(0, 255, (2, 32, 40, 3), dtype=np.uint8)
  names = 'contrast', 'rotate', 'sharpness', 'shear_x', 'brightness'
  ours = apply(clip, *names, level=5)
  tf.config.run_functions_eagerly(False)
  compiled = apply(clip, *names, level=5)
  assert np.abs(compiled.astype(int) - ours).max() <= 2
  assert (compiled != ours).mean() < 0.01


def test_excluded_operations_are_never_drawn():
  """With only the flip left, every clip is flipped; without it, none is."""
  frame = ramp(32, 32)
  others = [x for x in augment.OPERATIONS if x != 'horizontal_flip']
  for seed in range(5):
    (out,) = draw(frame[None], [seed, 1], operations=1, level=5, exclude=others)
    np.testing.assert_array_equal(out, frame[:, ::-1])


def test_refuses_bad_options():
  clip, seed = np.zeros((1, 8, 8, 3), np.uint8), [0, 0]
  with pytest.raises(ValueError, match='are no operations'):
    draw(clip, seed, operations=1, level=5, exclude=('solarize',))
  with pytest.raises(ValueError, match='operations=11 must be between 1'):
    draw(clip, seed, operations=11, level=5)
  with pytest.raises(ValueError, match='set data.randaugment.level'):
    draw(clip, seed, operations=1, level=11)
