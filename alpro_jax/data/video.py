"""Videos and photos into frames and JPEG, without TensorFlow.

One thread per call: preparation runs one process per core, and a decoder's
own threads cost 40 % more CPU in all.
"""

import io
import math
import os
import warnings
from fractions import Fraction

import av
import numpy as np
from PIL import Image, ImageOps

av.logging.set_level(av.logging.PANIC)

# Playlists name other files and addresses; a video file holds its own data.
_REFUSED_FORMATS = {'hls', 'concat', 'dash', 'sdp', 'rtsp', 'applehttp', 'imf'}
# Their headers say how long they are.
_DECLARING_FORMATS = {'matroska', 'flv', 'avi', 'asf', 'mov'}
_MAX_PIXELS = 8192 * 8192
# Pillow knows more, but hands some on: EPS to Ghostscript, which runs programs.
_PHOTOS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'JPEG2000',
           'AVIF', 'PPM', 'TGA', 'ICO')


class UnreadableVideo(Exception):
  """A file that gives no frames; `reason` is a short fixed phrase."""

  def __init__(self, reason, detail=''):
    super().__init__(f'{reason}: {detail}' if detail else reason)
    self.reason = reason
    self.detail = detail


class PartlyReadable(UnreadableVideo):
  """A file that breaks off after at least one frame."""

  def __init__(self, detail):
    super().__init__('breaks off', detail)


class EndsEarly(PartlyReadable):
  """A file without an error, whose data end long before its header says."""

  def __init__(self, end, declared):
    super().__init__(f'its data end at {end:.1f} of {declared:.1f} s')


def target_size(width, height, *, short_side=0, pixel_aspect=None):
  """Returns the (width, height) of square pixels to store; never larger.

  Args:
    width, height: stored pixels.
    short_side: wanted length of the shorter side; 0 keeps the size, and so
      does anything larger than the video.
    pixel_aspect: width of a pixel over its height, or None.
  """
  w, h = Fraction(width), Fraction(height)
  if pixel_aspect and pixel_aspect > 0:
    if pixel_aspect > 1:
      h /= pixel_aspect
    else:
      w *= pixel_aspect
  if short_side and min(w, h) > short_side:
    scale = short_side / min(w, h)
    w, h = w * scale, h * scale
  return max(1, round(w)), max(1, round(h))


def _pick_stream(container):
  """The default video stream, which need not be the largest."""
  streams = [
      stream for stream in container.streams.video
      if not stream.disposition & av.stream.Disposition.attached_pic]
  if not streams:
    raise UnreadableVideo('no video stream')
  for stream in streams:
    if stream.disposition & av.stream.Disposition.default:
      return stream
  return streams[0]


def iterate_frames(path, *, fps=0.0, short_side=0, max_frames=0,
                   max_seconds=0.0):
  """Decodes a video, upright and at an even rate.

  The clock starts at the first frame. With fps, the first frame at or after
  each multiple of 1 / fps is kept; a video with a lower rate keeps all of its
  frames once.

  Args:
    path: a local file.
    fps: frames per second to keep; 0 keeps all.
    short_side: length of the shorter side, in pixels; 0, or more than the
      video has, keeps the size.
    max_frames: stop after so many; 0 is no limit.
    max_seconds: stop before the first frame at this time; 0 is no limit.
  Yields:
    uint8[H, W, 3] RGB, all of one size, and the time in seconds.
  Raises:
    UnreadableVideo: no frame can be read.
    PartlyReadable: the file breaks off after some frames.
    EndsEarly: the same, where only the header tells.
  """
  path = os.path.abspath(path)
  if not os.path.isfile(path):
    raise UnreadableVideo('missing file')
  count = 0
  try:
    with av.open(path, options={'protocol_whitelist': 'file'}) as container:
      if _REFUSED_FORMATS & set(container.format.name.split(',')):
        raise UnreadableVideo('unreadable', 'a playlist, not a video')
      for frame in _decode(container, fps, short_side, max_frames,
                           max_seconds):
        count += 1
        yield frame
  except UnreadableVideo:
    raise
  except (av.FFmpegError, OSError, ValueError, MemoryError,
          ArithmeticError) as e:
    detail = getattr(e, 'strerror', None) or str(e) or type(e).__name__
    if count:
      raise PartlyReadable(f'{count} frames kept, then: {detail}') from e
    raise UnreadableVideo('unreadable', detail) from e
  if not count:
    raise UnreadableVideo('no frames')


def read_frames(path, **options):
  """Returns lists of frames and seconds; see iterate_frames."""
  frames, seconds = zip(*iterate_frames(path, **options), strict=True)
  return list(frames), list(seconds)


def _decode(container, fps, short_side, max_frames, max_seconds):
  stream = _pick_stream(container)
  if stream.codec_context is None:
    raise UnreadableVideo('unreadable', 'unknown codec')
  stream.codec_context.thread_count = 1
  if stream.width * stream.height > _MAX_PIXELS:
    raise UnreadableVideo('too large', f'{stream.width}x{stream.height}')
  # Later frames may be larger; the memory of those is not even asked for.
  stream.codec_context.options = {'max_pixels': str(_MAX_PIXELS)}
  rate = stream.average_rate or Fraction(25)
  scaler = av.video.reformatter.VideoReformatter()
  size = None
  start = None
  kept = 0
  last_tick = -1
  early = min(Fraction(1, 500), 1 / (4 * Fraction(fps))) if fps else 0
  ends = [0.0]
  for number, frame in enumerate(_frames_of(container, stream, ends)):
    time = (frame.pts * frame.time_base if frame.pts is not None
            and frame.time_base else number / rate)
    start = time if start is None else start
    time -= start
    if max_seconds and time >= max_seconds:
      break
    if fps:
      # Containers round times to a millisecond or so: a frame may come early.
      tick = math.floor((time + early) * Fraction(fps))
      if tick <= last_tick:
        continue
      last_tick = tick
    if frame.width * frame.height > _MAX_PIXELS:
      raise UnreadableVideo('too large', f'{frame.width}x{frame.height}')
    if size is None:  # Later frames follow the first, should the size change.
      size = target_size(
          frame.width, frame.height, short_side=short_side,
          pixel_aspect=stream.sample_aspect_ratio)
    quarter_turns = round(frame.rotation / 90) % 4
    frame = scaler.reformat(
        frame, width=size[0], height=size[1], format='rgb24',
        src_color_range=frame.color_range,
        interpolation=av.video.reformatter.Interpolation.BICUBIC, threads=1)
    kept += 1
    yield (np.ascontiguousarray(np.rot90(frame.to_ndarray(), quarter_turns)),
           float(max(time, 0)))
    if kept == max_frames:
      break
  else:
    declared = _declared_seconds(container, stream)
    if kept and ends[0] < .9 * declared and declared - ends[0] > 1:
      raise EndsEarly(ends[0], declared)


def _frames_of(container, stream, ends):
  """Yields the frames of a stream.

  Args:
    ends: [seconds], where the packets of all streams end; it grows. Sound may
      well go on when there are no more pictures.
  """
  begin = (container.start_time or 0) / av.time_base
  for packet in container.demux():
    time = packet.dts if packet.pts is None else packet.pts
    if time is not None and packet.time_base:
      ends[0] = max(ends[0], float(
          (time + (packet.duration or 0)) * packet.time_base) - begin)
    if packet.stream_index == stream.index:
      yield from packet.decode()


def _declared_seconds(container, stream):
  """Returns how long a video is by its header; 0 if that does not say."""
  formats = set(container.format.name.split(','))
  if not _DECLARING_FORMATS & formats:
    return 0  # FFmpeg's own estimate, from the size of the file.
  seconds = (container.duration or 0) / av.time_base
  if 'avi' in formats and stream.average_rate:  # Here too it takes the size.
    seconds = max(seconds, float(stream.frames / stream.average_rate))
  return seconds


def read_still(path, *, short_side=0):
  """Reads a photo, upright.

  Args:
    path: a local file.
    short_side: as in read_frames.
  Returns:
    uint8[H, W, 3] RGB.
  Raises:
    UnreadableVideo: the photo cannot be read.
  """
  if not os.path.isfile(path):
    raise UnreadableVideo('missing file')
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', Image.DecompressionBombWarning)
      image = Image.open(path, formats=_PHOTOS)
    with image:
      if image.width * image.height > _MAX_PIXELS:
        raise UnreadableVideo('too large', f'{image.width}x{image.height}')
      image = ImageOps.exif_transpose(image)
      if 'transparency' in image.info or image.mode in ('RGBA', 'LA', 'PA'):
        image = image.convert('RGBA')
        white = Image.new('RGBA', image.size, 'white')
        image = Image.alpha_composite(white, image)
      image = image.convert('RGB')
      size = target_size(*image.size, short_side=short_side)
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
