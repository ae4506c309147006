"""Pixels of a clip: decode, crop, resize and RandAugment, all stateless.

Every frame of a clip gets the same crop and the same operations, so that
augmentation never looks like motion.
"""

import numpy as np
import tensorflow as tf

OPERATIONS = (
    'identity', 'brightness', 'contrast', 'sharpness',
    'shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate',
    'horizontal_flip')
COLOUR = OPERATIONS[:4]
RESIZE_MODES = ('squash', 'short_side')
LUMINANCE = (0.299, 0.587, 0.114)  # Of R, G, B.
FILL = 128.0  # Grey, where a warp uncovers the outside.
# A frame more than this many times too large is averaged while it is shrunk;
# below, plain bilinear sampling is five times cheaper and loses little.
SHRINK_PLAINLY = 1.5


def decode_clip(frames, place, *, image_size, resize, resize_mode):
  """Decodes the part of each frame that is wanted and scales it.

  As if the frame was scaled to `resize` and then cut to `image_size`, but cut
  first, which decodes less and interpolates once:

    squash      the whole frame becomes resize x resize, whatever its shape
    short_side  the short side becomes `resize`, and the shape is kept

  Args:
    frames: string[n] of JPEG, n known to the tracer.
    place: float32[2], where the window lies, down and across: 0 is the top
      or left edge, 1 the other, 0.5 the centre.
    image_size: side of the result in pixels.
    resize: side that the window is measured by; at least image_size.
    resize_mode: one of RESIZE_MODES.

  Returns:
    uint8[n, image_size, image_size, 3].
  """
  if resize_mode not in RESIZE_MODES:
    raise ValueError(
        f'{resize_mode=} is unknown; set data.resize_mode to one of '
        f'{RESIZE_MODES}.')
  if not 0 < image_size <= resize:
    raise ValueError(
        f'{image_size=} must be between 1 and {resize=}; set data.resize.')
  count = frames.shape[0]
  # The default, fast DCT makes every frame about one level too dark.
  exact = {'channels': 3, 'dct_method': 'INTEGER_ACCURATE'}
  if resize == image_size and resize_mode == 'squash':
    whole = tf.stack([
        tf.io.decode_jpeg(frames[i], **exact) for i in range(count)])
    return _scale(whole, image_size)
  frame_size = tf.image.extract_jpeg_shape(frames[0])[:2]
  side = frame_size
  if resize_mode == 'short_side':
    side = tf.fill([2], tf.reduce_min(frame_size))
  share = image_size / resize
  side = tf.maximum(tf.cast(tf.round(tf.cast(side, tf.float32) * share),
                            tf.int32), 1)
  room = frame_size - side
  # 0..room inclusive, each as likely as the next for a uniform place.
  start = tf.cast(tf.floor(place * tf.cast(room + 1, tf.float32)), tf.int32)
  window = tf.concat([tf.minimum(start, room), side], 0)
  return _scale(tf.stack([
      tf.image.decode_and_crop_jpeg(frames[i], window, **exact)
      for i in range(count)]), image_size)


def rand_augment(clip, seed, *, operations, level, exclude=()):
  """Applies different randomly drawn operations, each in a random direction.

  Args:
    clip: uint8[n, H, W, 3]; H and W known to the tracer.
    seed: int64[2].
    operations: how many to draw.
    level: 0..10, how strong.
    exclude: names in OPERATIONS that are never drawn, for instance
      'horizontal_flip' where captions say left and right.

  Returns:
    uint8[n, H, W, 3].
  """
  unknown = sorted(set(exclude) - set(OPERATIONS))
  if unknown:
    raise ValueError(
        f'{unknown} in data.randaugment.exclude are no operations; the '
        f'operations are {OPERATIONS}.')
  allowed = [i for i, name in enumerate(OPERATIONS) if name not in exclude]
  if not 0 < operations <= len(allowed):
    raise ValueError(
        f'{operations=} must be between 1 and the {len(allowed)} that are not '
        'excluded; set data.randaugment.')
  noise = tf.random.stateless_uniform([len(allowed) + operations], seed)
  drawn = tf.math.top_k(noise[:len(allowed)], operations).indices
  mirrored = tf.cast(noise[len(allowed):] < 0.5, tf.int32)
  return apply_operations(
      clip, tf.gather(tf.constant(allowed), drawn), mirrored, level=level)


def apply_operations(clip, drawn, mirrored, *, level):
  """Applies given operations, in order, to all frames of a clip.

  Changes of colour come first, then all changes of place as a single warp.
  With m = level / 10 and the sign + where `mirrored` is 0:

    brightness, contrast, sharpness  factor 1 +- 0.9 m
    shear_x, shear_y                 by +- 0.3 m about the top left corner
    translate_x, translate_y         by +- 10 m pixels of a 224 pixel frame
    rotate                           by +- 30 m degrees about the centre
    horizontal_flip, identity        the same for either sign

  Args:
    clip: uint8[n, H, W, 3]; H and W known to the tracer.
    drawn: int32[k], places in OPERATIONS; k known to the tracer.
    mirrored: int32[k], 0 or 1.
    level: 0..10.

  Returns:
    uint8[n, H, W, 3].
  """
  if not 0 <= level <= 10:
    raise ValueError(
        f'{level=} must be between 0 and 10; set data.randaugment.level.')
  height, width = clip.shape[1:3]
  pixels = tf.cast(clip, tf.float32)
  factors = tf.constant([1 + 0.09 * level, 1 - 0.09 * level], tf.float32)
  warps = tf.constant(_warps(height, width, level), tf.float32)
  warp = tf.eye(3)
  for i in range(drawn.shape[0]):
    factor = factors[mirrored[i]]
    pixels = _change_colour(pixels, drawn[i], factor)
    # A warp says where an output pixel comes from, so the first is outermost.
    warp = warp @ warps[drawn[i], mirrored[i]]
  moved = tf.reduce_any(drawn >= len(COLOUR))
  pixels = tf.cond(moved, lambda: _warp(pixels, warp), lambda: pixels)
  return tf.ensure_shape(_to_pixels(pixels), clip.shape)


def blend_colour(pixels, name, factor):
  """Moves pixels away from (factor > 1) or towards a duller picture.

  The duller picture is black for brightness, the mean luminance of the clip
  for contrast and a smoothed one for sharpness.
  """
  if name == 'brightness':
    return tf.clip_by_value(pixels * factor, 0.0, 255.0)
  if name == 'contrast':
    mean = tf.tensordot(tf.reduce_mean(pixels, (0, 1, 2)), LUMINANCE, 1)
    return tf.clip_by_value(mean + factor * (pixels - mean), 0.0, 255.0)
  if name == 'sharpness':
    # The kernel [1 1 1; 1 5 1; 1 1 1] / 13 is a mean plus more of the centre.
    inner = pixels[:, 1:-1, 1:-1]
    mean = tf.nn.avg_pool2d(pixels, 3, 1, 'VALID')
    smooth = tf.round((9 * mean + 4 * inner) / 13)
    inner = tf.clip_by_value(smooth + factor * (inner - smooth), 0.0, 255.0)
    # The border of one pixel has no full neighbourhood and stays.
    rows = tf.concat([pixels[:, 1:-1, :1], inner, pixels[:, 1:-1, -1:]], 2)
    return tf.concat([pixels[:, :1], rows, pixels[:, -1:]], 1)
  raise ValueError(f'{name=} is no change of colour; they are {COLOUR}.')


def _change_colour(pixels, operation, factor):
  branches = [lambda: pixels]
  for name in COLOUR[1:]:
    branches.append(lambda name=name: blend_colour(pixels, name, factor))
  # The last branch serves every operation that leaves colours alone.
  return tf.switch_case(operation, branches, default=lambda: pixels)


def _warps(height, width, level):
  """float64[operations, 2, 3, 3]: output to input place, by direction."""
  shear = 0.03 * level
  angle = np.deg2rad(3.0 * level)
  across, down = level * width / 224, level * height / 224
  table = np.tile(np.eye(3), (len(OPERATIONS), 2, 1, 1))
  for side, sign in enumerate((1, -1)):
    def place(name, row, column, value, side=side):
      table[OPERATIONS.index(name), side, row, column] = value
    place('shear_x', 0, 1, -sign * shear)
    place('shear_y', 1, 0, -sign * shear)
    place('translate_x', 0, 2, sign * across)
    place('translate_y', 1, 2, sign * down)
    place('horizontal_flip', 0, 0, -1)
    place('horizontal_flip', 0, 2, width - 1)
    cos, sin = np.cos(angle), sign * np.sin(angle)
    x, y = width / 2, height / 2
    table[OPERATIONS.index('rotate'), side] = [
        [cos, -sin, x - cos * x + sin * y],
        [sin, cos, y - sin * x - cos * y],
        [0, 0, 1]]
  return table


def _scale(clip, image_size):
  side = tf.shape(clip)[1:3]
  size = (image_size, image_size)
  clip = tf.cond(
      tf.reduce_all(side == image_size),
      lambda: clip,
      lambda: tf.cond(
          tf.reduce_max(side) > int(SHRINK_PLAINLY * image_size),
          lambda: _to_pixels(tf.image.resize(clip, size, antialias=True)),
          lambda: _to_pixels(tf.image.resize(clip, size))))
  return tf.ensure_shape(clip, (clip.shape[0], *size, 3))


def _warp(pixels, warp):
  return tf.raw_ops.ImageProjectiveTransformV3(
      images=pixels, transforms=tf.reshape(warp, [9])[None, :8],
      output_shape=pixels.shape[1:3], fill_value=FILL,
      interpolation='BILINEAR', fill_mode='CONSTANT')


def _to_pixels(values):
  return tf.saturate_cast(tf.round(values), tf.uint8)
