"""Videos and photos into frames and JPEG, without TensorFlow.

One thread per call: preparation runs one process per core, and a decoder's
own threads cost 40 % more CPU in all.
"""

import io
import math
import os
import struct
import warnings
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import ColorTrc, Interpolation, VideoReformatter
from PIL import Image, ImageOps

from alpro_jax.data import containers, sniff, workers
from alpro_jax.data.containers import UnreadableVideo

warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # Ours is lower.

_HELD_BYTES = 2**30  # Of decoded frames, in read_evenly.
# Pillow knows more, but hands some on: EPS to Ghostscript, which runs programs.
_PHOTOS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'JPEG2000', 'AVIF', 'PPM', 'TGA', 'ICO')


class PartlyReadable(UnreadableVideo):
  """A file that breaks off after at least one frame."""

  def __init__(self, detail):
    super().__init__('breaks off', detail)


class EndsEarly(PartlyReadable):
  """A file read without an error, of which more was to be expected."""


def iterate_frames(path, *, fps=0.0, short_side=0, max_frames=0, max_seconds=0.0):
  """Decodes a video, upright and at an even rate.

  Times start at the first frame and never run back: where recordings were
  joined, the next frame follows the last one. With fps, the first frame at or
  after each multiple of 1 / fps is kept; a video with a lower rate keeps all of
  its frames once. Of HDR (PQ, HLG) 203 cd/m2 and what is brighter become white.

  Args:
    path: a local file, of a video or a picture, whatever its name says.
    fps: frames per second to keep; 0 keeps all.
    short_side: pixels of the shorter side, if it is longer; 0 keeps the size.
    max_frames: stop after so many; 0 is no limit.
    max_seconds: stop before the first frame at this time; 0 is no limit.
  Yields:
    uint8[H, W, 3] RGB, all of one size, and the time in seconds.
  Raises:
    UnreadableVideo: no frame can be read.
    PartlyReadable: the file breaks off after some frames.
    EndsEarly: the same, where there is no error but frames are missing.
  """
  if not os.path.isfile(path):
    raise UnreadableVideo('missing file')
  count, kind = 0, ''
  try:
    kind = sniff.what_file(path)
    if kind == 'picture':
      yield read_still(path, short_side=short_side), 0.0
      return
    with open(path, 'rb', buffering=0) as file:
      for frame in _decode(file.fileno(), fps, short_side, max_frames, max_seconds):
        count += 1
        yield frame
  except (av.FFmpegError, OSError, ValueError, MemoryError, ArithmeticError) as e:
    detail = getattr(e, 'strerror', None) or str(e) or type(e).__name__
    if count:
      raise PartlyReadable(f'{count} frames kept, then: {detail}') from e
    if kind not in ('', 'video'):
      detail = f'it holds no video but {kind}'
    raise UnreadableVideo('unreadable', detail) from e
  if not count:
    raise UnreadableVideo('no frames')


def _decode(file, fps, short_side, max_frames, max_seconds):
  """Yields the frames of all recordings of a file, given by its descriptor."""
  scaler, clock = VideoReformatter(), containers.Clock()
  size, kept, last_tick, decoding_seconds, missing = None, 0, -1, 0, ''
  # Containers round times to a millisecond or so: a frame may be early.
  early = min(Fraction(1, 500), 1 / (4 * Fraction(fps))) if fps else 0
  for recording in containers.recordings(file):
    clock.start(recording)
    decoding_seconds += recording.decoding_seconds()
    workers.allow(decoding_seconds)
    orientation = _UPRIGHT
    for frame, stamp in recording.frames():
      time = clock.read(frame, stamp)
      if max_seconds and time >= max_seconds:
        return
      # Some files say in key frames alone how they are to be turned.
      orientation = _orientation_of(frame) or orientation
      if fps:
        tick = math.floor((time + early) * Fraction(fps))
        if tick <= last_tick:
          continue
        last_tick = tick
      containers.check_pixels(frame)
      # Later frames follow the first, should the size change.
      if not size:
        aspect = recording.stream.sample_aspect_ratio
        size = target_size(frame.width, frame.height, short_side, aspect)
        size = size[::-1] if orientation[0] else size
      kept += 1
      yield _pixels(scaler, frame, size, orientation), float(time)
      if kept == max_frames:
        return
    missing = recording.missing() or missing
  if kept and missing:
    raise EndsEarly(missing)


def target_size(width, height, short_side=0, pixel_aspect=None):
  """Returns the (width, height) to store in square pixels; never larger.

  Args:
    width, height, short_side: as in iterate_frames, in pixels.
    pixel_aspect: width of a pixel over its height, or None.
  """
  w, h = Fraction(width), Fraction(height)
  if pixel_aspect and pixel_aspect > 1:
    h /= pixel_aspect
  elif pixel_aspect and pixel_aspect > 0:
    w *= pixel_aspect
  if short_side and min(w, h) > short_side:
    scale = short_side / min(w, h)
    w, h = w * scale, h * scale
  return max(1, round(w)), max(1, round(h))


# How a frame is to be shown: whether rows become columns, whether left and
# right are swapped then, whether top and bottom are.
_UPRIGHT = (False, False, False)
_QUARTERS = [None, (True, False, True), (False, True, True), (True, True, False)]


def _orientation_of(frame):
  """Returns what a frame says of how it is to be shown; None if nothing."""
  try:
    matrix = frame.side_data.get('DISPLAYMATRIX')
  except ValueError:  # PyAV does not know another of the frame's side data.
    return _QUARTERS[round(frame.rotation / 90) % 4]
  if matrix is None:
    return None
  # A stored place (x, y) is shown at (a x + c y, b x + d y).
  a, b, _, c, d = struct.unpack('=5i', bytes(matrix)[:20])
  if abs(a) + abs(d) < abs(b) + abs(c):
    return True, c < 0, b < 0
  return False, a < 0, d < 0


def _pixels(scaler, frame, size, orientation):
  """Returns a frame as uint8[H, W, 3] RGB, of a size (width, height)."""
  swap, left_right, up_down = orientation
  width, height = size[::-1] if swap else size
  hdr = frame.color_trc in _LIGHT
  pixels = scaler.reformat(
    frame,
    width=width,
    height=height,
    format='rgb48le' if hdr else 'rgb24',
    src_color_range=frame.color_range,
    src_colorspace='BT2020' if hdr else None,
    interpolation=Interpolation.BICUBIC,
    threads=1,
  ).to_ndarray()
  if hdr:
    pixels = _to_sdr(pixels, frame.color_trc)
  if swap:
    pixels = pixels.swapaxes(0, 1)
  return np.ascontiguousarray(pixels[:: -1 if up_down else 1, :: -1 if left_right else 1])


# BT.2100: how much light a level stands for. Of PQ light on the screen, where
# 1 is reference white; of HLG light in the scene.
_LEVELS = np.arange(4096, dtype=np.float32) / 4095
_PQ = np.maximum(_LEVELS ** (1 / 78.84375) - 0.8359375, 0)
_PQ /= 18.8515625 - 18.6875 * _LEVELS ** (1 / 78.84375)
_HLG = (np.exp((_LEVELS - 0.55991073) / 0.17883277) + 0.28466892) / 12
_LIGHT = {
  ColorTrc.SMPTE2084: _PQ ** (1 / 0.1593017578125) * (10000 / 203),
  ColorTrc.ARIB_STD_B67: np.where(_LEVELS <= 0.5, _LEVELS**2 / 3, _HLG),
}
_BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)
_BT2020_TO_BT709 = np.array(
  [[1.6605, -0.1246, -0.0182], [-0.5876, 1.1329, -0.1006], [-0.0728, -0.0083, 1.1187]], np.float32
)


def _to_sdr(pixels, transfer):
  """uint16[H, W, 3] of BT.2020 -> uint8 of BT.709."""
  light = _LIGHT[transfer][pixels >> 4]
  if transfer == ColorTrc.ARIB_STD_B67:  # A screen of 1000 cd/m2 shows its 1.2th power.
    light = light * (light @ _BT2020_LUMA)[..., None] ** 0.2 * (1000 / 203)
  light = np.clip(light @ _BT2020_TO_BT709, 0, 1)
  return np.rint(255 * light ** (1 / 2.4)).astype(np.uint8)


def read_evenly(path: str, count: int) -> list[np.ndarray]:
  """Reads frames of a video, evenly over it.

  Frame floor(k total / count), where they follow each other evenly; else, as in recordings
  of screens and phones, the one that is shown at k / count of the time.

  Args:
    path: of the video.
    count: frames to return; of a video with fewer, some come more than once.

  Returns:
    uint8[H, W, 3] each.

  Raises:
    UnreadableVideo: see iterate_frames.
  """
  held, times, size = [], [], 0
  for frame, time in iterate_frames(path):
    times.append(time)
    size += frame.nbytes
    if size <= _HELD_BYTES:
      held.append(frame)
  chosen = _spread(np.array(times), count)
  if len(held) == len(times):
    return [held[i] for i in chosen]
  held, wanted = [], set(chosen)  # Too long to be held: it is read once more.
  again = enumerate(frame for frame, _ in iterate_frames(path))
  kept = {i: frame for i, frame in again if i in wanted}
  return [kept[i] for i in chosen]


def _spread(times, count):
  """Returns which frames are shown at even distances; times in seconds, from 0 on."""
  total, gaps = len(times), np.diff(times)
  if total < 3 or np.ptp(gaps) <= np.median(gaps) / 2:
    return [k * total // count for k in range(count)]
  length = times[-1] + gaps.mean()
  # Containers round times to a millisecond or so: a frame may be late.
  at = np.arange(count) * length / count + 1 / 500
  return (np.searchsorted(times, at, 'right') - 1).tolist()


def read_still(path, *, short_side=0):
  """Returns a photo, upright, as uint8[H, W, 3] RGB; raises UnreadableVideo.

  Args:
    path: a local file.
    short_side: as in iterate_frames.
  """
  if not os.path.isfile(path):
    raise UnreadableVideo('missing file')
  try:
    with Image.open(path, formats=_PHOTOS) as image:
      containers.check_pixels(image)
      image = ImageOps.exif_transpose(image)
      if image.mode.startswith('I;16'):  # Pillow would cut all to 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
      elif image.mode in ('I', 'F'):
        raise UnreadableVideo('unreadable', 'its pixels are numbers of 32 bit; which is white?')
      if 'transparency' in image.info or image.mode in ('RGBA', 'LA', 'PA'):
        white = Image.new('RGBA', image.size, 'white')
        image = Image.alpha_composite(white, image.convert('RGBA'))
      image = image.convert('RGB')
      size = target_size(*image.size, short_side)
      if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
      return np.asarray(image)
  except UnreadableVideo:
    raise
  except Exception as e:  # Pillow's plugins raise many kinds.
    raise UnreadableVideo('unreadable', str(e)) from e


def encode_jpeg(frame, quality):
  """Returns the JPEG bytes of uint8[H, W, 3]."""
  buffer = io.BytesIO()
  Image.fromarray(frame).save(buffer, 'JPEG', quality=quality)
  return buffer.getvalue()
