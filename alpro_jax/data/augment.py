"""Pixels of a clip: decode, crop, resize and RandAugment, all stateless.

Every frame of a clip gets the same crop and the same operations, so that
augmentation never looks like motion.

What XLA compiles here it makes into one pass over the pixels, up to five times
faster than the same operations of TensorFlow one by one. Decoding stays out:
frames have many sizes, and each would be compiled anew.
"""

import functools

import numpy as np
import tensorflow as tf

COLOUR = ('identity', 'brightness', 'contrast', 'sharpness')
WARPS = ('shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate', 'horizontal_flip')
OPERATIONS = COLOUR + WARPS
RESIZE_MODES = ('squash', 'short_side')
LUMINANCE = (0.299, 0.587, 0.114)  # Of R, G, B.
FILL = 128  # Grey, where a warp uncovers the outside.
# A frame more than this many times too large is averaged while it is shrunk;
# below, plain bilinear sampling is five times cheaper and loses little.
SHRINK_PLAINLY = 1.5


def decode_clip(frames, position, options):
  """Decodes the window of each frame that is wanted and scales it.

  As if the frame was scaled to `resize` and then cut to `image_size`, but cut
  first, which decodes less and interpolates once:

    squash      the whole frame becomes resize x resize, whatever its shape
    short_side  the short side becomes `resize`, and the shape is kept

  Args:
    frames: string[n] of JPEG, n known to the tracer.
    position: float32[2] of the window, down and across: 0 is the top or left
      edge, 1 the other, 0.5 the centre.
    options: image_size, resize and resize_mode, as in config.data.

  Returns:
    uint8[n, image_size, image_size, 3].
  """
  return _scale(decode_windows(frames, position, options), options.image_size)


def decode_windows(frames, position, options):
  """Decodes what decode_clip scales: uint8[n, h, w, 3]; see there."""
  image_size, resize, resize_mode = options.image_size, options.resize, options.resize_mode
  if resize_mode not in RESIZE_MODES:
    raise ValueError(f'{resize_mode=} is unknown; set data.resize_mode to one of {RESIZE_MODES}.')
  if not 0 < image_size <= resize:
    raise ValueError(f'{image_size=} must be between 1 and {resize=}; set data.resize.')
  # The default, fast DCT makes every frame about one level too dark.
  exact = {'channels': 3, 'dct_method': 'INTEGER_ACCURATE'}
  jpegs = [frames[i] for i in range(frames.shape[0])]
  if resize == image_size and resize_mode == 'squash':
    return tf.stack([tf.io.decode_jpeg(jpeg, **exact) for jpeg in jpegs])
  side = frame_size = tf.image.extract_jpeg_shape(jpegs[0])[:2]
  if resize_mode == 'short_side':
    side = tf.fill([2], tf.reduce_min(frame_size))
  share = image_size / resize
  side = tf.maximum(tf.cast(tf.round(tf.cast(side, tf.float32) * share), tf.int32), 1)
  room = frame_size - side
  # 0..room inclusive, each as likely as the next for a uniform position.
  start = tf.cast(tf.floor(position * tf.cast(room + 1, tf.float32)), tf.int32)
  window = tf.concat([tf.minimum(start, room), side], 0)
  return tf.stack([tf.image.decode_and_crop_jpeg(jpeg, window, **exact) for jpeg in jpegs])


def rand_augment(clip, seed, options):
  """Applies different randomly drawn operations, each in a random direction.

  Args:
    clip: uint8[n, H, W, 3]; H and W known to the tracer.
    seed: int64[2].
    options: operations, level and exclude, as in config.data.randaugment.

  Returns:
    uint8[n, H, W, 3].
  """
  operations, exclude = options.operations, options.exclude
  if unknown := sorted(set(exclude) - set(OPERATIONS)):
    raise ValueError(
      f'{unknown} in data.randaugment.exclude are no operations; the operations are {OPERATIONS}.'
    )
  allowed = [i for i, name in enumerate(OPERATIONS) if name not in exclude]
  if not 0 < operations <= len(allowed):
    raise ValueError(
      f'{operations=} must be between 1 and the {len(allowed)} that are not '
      'excluded; set data.randaugment.'
    )
  noise = tf.random.stateless_uniform([len(allowed) + operations], seed)
  drawn = tf.math.top_k(noise[: len(allowed)], operations).indices
  mirrored = tf.cast(noise[len(allowed) :] < 0.5, tf.int32)
  return apply_operations(clip, tf.gather(tf.constant(allowed), drawn), mirrored, options.level)


def apply_operations(clip, drawn, mirrored, level):
  """Applies given operations, in order, to all frames of a clip.

  Changes of colour come first, then all changes of position as a single warp:
  one interpolation, where the original has one for each and rounds between.
  With m = level / 10 and the sign + where `mirrored` is 0:

    brightness, contrast, sharpness  factor 1 +- 0.9 m
    shear_x, shear_y                 by +- 0.3 m about the top left corner
    translate_x, translate_y         by +- 10 m pixels of a 224 pixel frame
    rotate                           by +- 30 m degrees about the centre
    horizontal_flip, identity        the same for either sign

  Args:
    clip: uint8[n, H, W, 3]; H and W known to the tracer.
    drawn: int32[k], indices in OPERATIONS; k known to the tracer.
    mirrored: int32[k], 0 or 1.
    level: 0..10.
  """
  if not 0 <= level <= 10:
    raise ValueError(f'{level=} must be between 0 and 10; set data.randaugment.level.')
  height, width = clip.shape[1:3]
  factors = tf.constant([1 + 0.09 * level, 1 - 0.09 * level], tf.float32)
  warps = tf.constant(_warps(height, width, level), tf.float32)
  warp, changed = tf.eye(3), clip
  for i in range(drawn.shape[0]):
    factor = factors[mirrored[i]]
    changed = _change_colour(changed, drawn[i], factor)
    # A warp says where an output pixel comes from, so the first is outermost.
    warp = warp @ warps[drawn[i], mirrored[i]]
  moved = tf.reduce_any(drawn >= len(COLOUR))
  changed = tf.cond(moved, lambda: _warp(changed, warp), lambda: changed)
  return tf.ensure_shape(changed, clip.shape)


@tf.function(jit_compile=True)
def change_brightness(clip, factor):
  """Scales the distance from black; uint8[n, H, W, 3] -> the same."""
  return _to_pixels(tf.cast(clip, tf.float32) * factor)


@tf.function(jit_compile=True)
def change_contrast(clip, factor):
  """Scales the distance from the mean luminance of the clip."""
  width = clip.shape[2]
  # Whole numbers add up exactly; first along long rows, then by channel.
  columns = tf.reduce_sum(tf.cast(tf.reshape(clip, (-1, 3 * width)), tf.int32), 0)
  total = tf.reduce_sum(tf.reshape(columns, (width, 3)), 0)
  mean = tf.tensordot(tf.cast(total, tf.float32), LUMINANCE, 1)
  mean /= tf.cast(tf.size(clip) // 3, tf.float32)
  return _to_pixels(mean + factor * (tf.cast(clip, tf.float32) - mean))


@tf.function(jit_compile=True)
def change_sharpness(clip, factor):
  """Scales the distance from a smoothed picture.

  The kernel is [1 1 1; 1 5 1; 1 1 1] / 13. The border of one pixel has no full
  neighbourhood and stays.
  """
  height, width = clip.shape[1:3]
  # In long rows, where the next pixel is three numbers away.
  rows = tf.reshape(clip, (-1, height, 3 * width))
  pixels = tf.cast(rows, tf.float32)
  inner = pixels[:, 1:-1, 3:-3]
  total = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
  total = total[:, :, :-6] + total[:, :, 3:-3] + total[:, :, 6:]
  smooth = tf.round((total + 4 * inner) / 13)
  inner = _to_pixels(smooth + factor * (inner - smooth))
  sharp = tf.concat([rows[:, 1:-1, :3], inner, rows[:, 1:-1, -3:]], 2)
  sharp = tf.concat([rows[:, :1], sharp, rows[:, -1:]], 1)
  return tf.reshape(sharp, tf.shape(clip))


def _change_colour(clip, operation, factor):
  changes = change_brightness, change_contrast, change_sharpness
  branches = [functools.partial(change, clip, factor) for change in changes]
  # The default serves every operation that leaves colours alone.
  return tf.switch_case(operation, [lambda: clip, *branches], default=lambda: clip)


def _warps(height, width, level):
  """float64[operations, 2, 3, 3]: output to input pixel, by direction."""
  shear, angle = 0.03 * level, np.deg2rad(3.0 * level)
  across, down = level * width / 224, level * height / 224
  x, y = width / 2, height / 2
  table = np.tile(np.eye(3), (len(OPERATIONS), 2, 1, 1))
  for side, sign in enumerate((1, -1)):
    warps = {name: table[i, side] for i, name in enumerate(OPERATIONS)}
    warps['shear_x'][0, 1] = -sign * shear
    warps['shear_y'][1, 0] = -sign * shear
    warps['translate_x'][0, 2] = sign * across
    warps['translate_y'][1, 2] = sign * down
    warps['horizontal_flip'][0] = [-1, 0, width - 1]
    cos, sin = np.cos(angle), sign * np.sin(angle)
    warps['rotate'][0] = [cos, -sin, x - cos * x + sin * y]
    warps['rotate'][1] = [sin, cos, y - sin * x - cos * y]
  return table


def _scale(clip, image_size):
  side, size = tf.shape(clip)[1:3], (image_size, image_size)

  def resize():
    much = tf.reduce_max(side) > int(SHRINK_PLAINLY * image_size)
    ways = [functools.partial(tf.image.resize, clip, size, antialias=x) for x in (True, False)]
    return _rounded(tf.cond(much, *ways))

  clip = tf.cond(tf.reduce_all(side == image_size), lambda: clip, resize)
  return tf.ensure_shape(clip, (clip.shape[0], *size, 3))


@tf.function(jit_compile=True)
def _warp(clip, warp):
  """Bilinear; outside there is FILL, also for neighbours at the edge."""
  height, width = clip.shape[1:3]
  across = tf.range(width, dtype=tf.float32)
  down = tf.range(height, dtype=tf.float32)[:, None]
  x = warp[0, 0] * across + warp[0, 1] * down + warp[0, 2]
  y = warp[1, 0] * across + warp[1, 1] * down + warp[1, 2]
  # One pixel of FILL before the frame and two behind: all that is further
  # outside is the same.
  padded = tf.pad(
    clip, ((0, 0), (1, 2), (1, 2), (0, 0)), constant_values=tf.constant(FILL, tf.uint8)
  )
  x = tf.clip_by_value(x + 1, 0.0, float(width + 1))
  y = tf.clip_by_value(y + 1, 0.0, float(height + 1))
  left, top = tf.floor(x), tf.floor(y)
  right, low = (x - left)[:, :, None], (y - top)[:, :, None]
  stride = width + 3
  corner = tf.cast(top, tf.int32) * stride + tf.cast(left, tf.int32)
  rows = tf.reshape(padded, (-1, (height + 3) * stride, 3))

  def neighbour(offset):
    return tf.cast(tf.gather(rows, corner + offset, axis=1), tf.float32)

  upper = neighbour(0) * (1 - right) + neighbour(1) * right
  lower = neighbour(stride) * (1 - right) + neighbour(stride + 1) * right
  return _rounded(upper * (1 - low) + lower * low)


def _rounded(values):
  """For averages of pixels, which are never below 0 or above 255."""
  return tf.cast(tf.round(values), tf.uint8)


def _to_pixels(values):
  return tf.saturate_cast(tf.round(values), tf.uint8)
