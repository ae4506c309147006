"""Videos and photos into frames and JPEG, without TensorFlow.

One thread per call: preparation runs one process per core, and a decoder's
own threads cost 40 % more CPU in all.
"""

import collections
import io
import itertools
import math
import os
import struct
import warnings
from fractions import Fraction

import av
import numpy as np
from PIL import Image, ImageOps

from alpro_jax.data import sniff, workers

av.logging.set_level(av.logging.PANIC)

# Not playlists, which name other files and addresses, and not pictures, which
# are for Pillow.
_FORMATS = ','.join(
  sorted(
    name
    for name in av.formats_available
    - {
      'hls',
      'concat',
      'dash',
      'webm_dash_manifest',
      'imf',
      'sdp',
      'rtsp',
      'rtp',
      'sap',
      'image2',
      'image2pipe',
      'ico',
    }
    if not name.endswith('_pipe')
  )
)
# Their headers say how long they are.
_DECLARING_FORMATS = {'matroska', 'flv', 'avi', 'asf', 'mov'}
_EBML = b'\x1a\x45\xdf\xa3'  # Matroska, WebM.
_MAX_PIXELS = 8192 * 8192
_PIXELS_PER_SECOND = 5e6  # HDR, if all frames are kept at their size.
_PIXELS_PER_BYTE = 20
_LEAST_BYTES = 16  # Of a frame.
# Pillow knows more, but hands some on: EPS to Ghostscript, which runs programs.
_PHOTOS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'JPEG2000', 'AVIF', 'PPM', 'TGA', 'ICO')


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
  """A file read without an error, of which more was to be expected."""


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
  """The default video stream, which need not be the largest, set up."""
  streams = [
    stream
    for stream in container.streams.video
    if not stream.disposition & av.stream.Disposition.attached_pic
  ]
  if not streams:
    raise UnreadableVideo('no video stream')
  for stream in streams:
    if stream.disposition & av.stream.Disposition.default:
      break
  else:
    stream = streams[0]
  if stream.codec_context is None:
    raise UnreadableVideo('unreadable', 'unknown codec')
  stream.codec_context.thread_count = 1
  if stream.width * stream.height > _MAX_PIXELS:
    raise UnreadableVideo('too large', f'{stream.width}x{stream.height}')
  # Later frames may be larger; the memory of those is not even asked for.
  stream.codec_context.options = {'max_pixels': str(_MAX_PIXELS)}
  return stream


def iterate_frames(path, *, fps=0.0, short_side=0, max_frames=0, max_seconds=0.0):
  """Decodes a video, upright and at an even rate.

  The clock starts at the first frame and only goes on: where the times of a
  file jump back, as where two recordings were joined, the next frame follows
  the last one. With fps, the first frame at or after each multiple of 1 / fps
  is kept; a video with a lower rate keeps all of its frames once.

  HDR (PQ, HLG) becomes BT.709: its reference white, 203 cd/m2, is white, and
  what is brighter is white as well. A file that holds a picture has one frame.

  Args:
    path: a local file; its name says nothing of what it holds.
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
  except UnreadableVideo:
    raise
  except (av.FFmpegError, OSError, ValueError, MemoryError, ArithmeticError) as e:
    detail = getattr(e, 'strerror', None) or str(e) or type(e).__name__
    if count:
      raise PartlyReadable(f'{count} frames kept, then: {detail}') from e
    if kind not in ('', 'video'):
      detail = f'it holds no video but {kind}'
    raise UnreadableVideo('unreadable', detail) from e
  if not count:
    raise UnreadableVideo('no frames')


def read_frames(path, **options):
  """Returns lists of frames and seconds; see iterate_frames."""
  frames, seconds = zip(*iterate_frames(path, **options), strict=True)
  return list(frames), list(seconds)


def _decode(file, fps, short_side, max_frames, max_seconds):
  """Yields the frames of all recordings of a file; see iterate_frames."""
  scaler = av.video.reformatter.VideoReformatter()
  clock = _Clock()
  size = None
  kept = 0
  last_tick = -1
  early = min(Fraction(1, 500), 1 / (4 * Fraction(fps))) if fps else 0
  missing, slow = '', 0
  for begin, end in itertools.pairwise(_recordings(file)):
    # Not one protocol by which another file might be opened.
    with av.open(
      _Part(file, begin, end), options={'protocol_whitelist': 'none', 'format_whitelist': _FORMATS}
    ) as container:
      stream = _pick_stream(container)
      clock.start(container, stream)
      slow += _decoding_seconds(end - begin, container, stream)
      workers.allow(slow)
      turn = _UPRIGHT
      ends = [0.0]
      for frame, stamp in _frames_of(container, stream, ends):
        time = clock.read(frame, stamp)
        if max_seconds and time >= max_seconds:
          return
        # Some files say in key frames alone how they are to be turned.
        turn = _turn_of(frame) or turn
        if fps:
          # Containers round times to a millisecond or so: a frame may be early.
          tick = math.floor((time + early) * Fraction(fps))
          if tick <= last_tick:
            continue
          last_tick = tick
        if frame.width * frame.height > _MAX_PIXELS:
          raise UnreadableVideo('too large', f'{frame.width}x{frame.height}')
        # Later frames follow the first, should the size change.
        size = size or _turned(
          target_size(
            frame.width,
            frame.height,
            short_side=short_side,
            pixel_aspect=stream.sample_aspect_ratio,
          ),
          turn,
        )
        kept += 1
        yield _pixels(scaler, frame, size, turn), float(time)
        if kept == max_frames:
          return
      declared = _declared_seconds(container, stream)
      if ends[0] < 0.9 * declared and declared - ends[0] > 1:
        missing = f'its data end at {ends[0]:.1f} of {declared:.1f} s'
  if kept and missing:
    raise EndsEarly(missing)


class _Part:
  """Bytes `begin` to `end` of a file, given by its descriptor.

  FFmpeg learns no name of it, in which it might see a pattern or a protocol.
  """

  def __init__(self, file, begin, end):
    self._file, self._begin, self._end = file, begin, end
    self._at = begin

  def read(self, size):
    data = os.pread(self._file, min(size, max(self._end - self._at, 0)), self._at)
    self._at += len(data)
    return data

  def seek(self, offset, whence=os.SEEK_SET):
    self._at = (
      offset + {os.SEEK_SET: self._begin, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
    )
    return self.tell()

  def tell(self):
    return self._at - self._begin


def _recordings(file):
  """Returns where the recordings in a file begin, and where the last one ends.

  FLV, MP4 and Matroska may have been joined by writing one behind the other:
  FFmpeg reads the first alone, or parts of the others.
  """
  end = os.fstat(file).st_size
  start = os.pread(file, 8, 0)
  flv, mp4 = start.startswith(b'FLV'), start[4:] == b'ftyp'
  begins, at, has_index = [], 0, False
  while (flv or mp4 or start.startswith(_EBML)) and len(head := os.pread(file, 16, at)) == 16:
    if flv:
      new, tag = head.startswith(b'FLV'), head[0] & 31
      # A tag: its own header, its data, and its length once more.
      size = 15 + int.from_bytes(head[1:4], 'big')
      size = 13 if new else size if tag in (8, 9, 18) else 0
    elif mp4:
      new = head[4:8] == b'ftyp' and (not begins or has_index)
      has_index = not new and (has_index or head[4:8] == b'moov')
      size = int.from_bytes(head[:4], 'big')
      if size == 1:
        size = int.from_bytes(head[8:], 'big')
    else:
      new = head.startswith(_EBML)
      # Zeros say of how many bytes the length is, which is all ones if unknown.
      width = 9 - head[4].bit_length()
      most = (1 << 7 * width) - 1
      size = int.from_bytes(head[4 : 4 + width], 'big') & most
      size = 0 if size == most else 4 + width + size
    if new:
      begins.append(at)
    if size < 8:
      break
    at += size
  return [*(begins or [0]), end]


def _pixels(scaler, frame, size, turn):
  """Returns a frame as uint8[H, W, 3] RGB, of a size (width, height)."""
  width, height = _turned(size, turn)
  to_sdr = _TO_SDR.get(frame.color_trc)
  pixels = scaler.reformat(
    frame,
    width=width,
    height=height,
    format='rgb48le' if to_sdr else 'rgb24',
    src_color_range=frame.color_range,
    src_colorspace='BT2020' if to_sdr else None,
    interpolation=av.video.reformatter.Interpolation.BICUBIC,
    threads=1,
  ).to_ndarray()
  if to_sdr:
    pixels = to_sdr(pixels)
  swap, left_right, up_down = turn
  if swap:
    pixels = pixels.swapaxes(0, 1)
  return np.ascontiguousarray(pixels[:: -1 if up_down else 1, :: -1 if left_right else 1])


def _decoding_seconds(size, container, stream):
  """Returns how long reading all of `size` bytes may take on a slow core."""
  seconds = (container.duration or 0) / av.time_base
  frames = max(seconds * float(stream.average_rate or 25), stream.frames)
  # Headers may say anything, or nothing; but a frame takes some bytes, and in
  # most videos a byte is for some pixels.
  pixels = min(frames, size / _LEAST_BYTES) * stream.width * stream.height
  return max(pixels, size * _PIXELS_PER_BYTE) / _PIXELS_PER_SECOND


def _frames_of(container, stream, ends):
  """Yields the frames of a stream, and the seconds their file says, or None.

  Args:
    ends: [seconds], where the packets of all streams end; it grows. Sound and
      subtitles may well go on when there are no more pictures.
  """
  begin = (container.start_time or 0) / av.time_base
  container.flags &= ~av.container.Flags.gen_pts.value  # It makes some up.
  # AVI has no times but those at which to decode, one packet after another.
  # Frames come in the order in which they are shown: each takes the next one.
  only_decoding, waiting = None, collections.deque()
  for packet in container.demux():
    time = packet.dts if packet.pts is None else packet.pts
    if time is not None and packet.time_base:
      ends[0] = max(ends[0], float((time + (packet.duration or 0)) * packet.time_base) - begin)
    if packet.stream.index != stream.index:
      continue
    if only_decoding is None:
      only_decoding = packet.pts is None
    if only_decoding and packet.dts is not None:
      waiting.append(packet.dts)
    for frame in packet.decode():
      pts = waiting.popleft() if waiting else frame.pts
      known = pts is not None and frame.time_base
      yield frame, pts * frame.time_base if known else None


class _Clock:
  """Seconds from the first frame, which never run backwards."""

  def __init__(self):
    self._time = None

  def start(self, container, stream):
    """A recording begins, the first one or another."""
    self._step = 1 / (stream.average_rate or Fraction(25))
    # FFmpeg's own program, too, takes ten seconds in these for a gap between
    # two recordings.
    self._gaps = container.format.flags & av.format.Flags.ts_discont.value
    self._shift = None

  def _next(self):
    """The end of the last frame."""
    if self._time is None:
      return Fraction(0)
    ticks, unit = self._duration
    return self._time + (ticks * unit if ticks and unit else self._step)

  def read(self, frame, stamp):
    """Returns the time of a frame for which its file says `stamp`, or None."""
    if stamp is None:
      time = self._next()
    else:
      if self._shift is None:
        self._shift = self._next() - stamp
      time = stamp + self._shift
      back = -1 if self._time is None else self._time - time
      if back >= 0 and (frame.key_frame or back > 1) or self._gaps and back < -10:
        # Another recording: it starts with a key frame.
        time = self._next()
        self._shift = time - stamp
      elif back > 0:  # Wrong times, as of frames in another order.
        time = self._time
    self._time, self._duration = time, (frame.duration, frame.time_base)
    return time


_UPRIGHT = (False, False, False)


def _turn_of(frame):
  """Returns what a frame says of how it is to be shown; None if nothing.

  Returns:
    (whether rows become columns, whether left and right are swapped then,
    whether top and bottom are)
  """
  try:
    matrix = frame.side_data.get('DISPLAYMATRIX')
  except ValueError:  # PyAV does not know another of the frame's side data.
    return {0: None, 1: (True, False, True), 2: (False, True, True), 3: (True, True, False)}[
      round(frame.rotation / 90) % 4
    ]
  if matrix is None:
    return None
  # A stored place (x, y) is shown at (a x + c y, b x + d y).
  a, b, _, c, d = struct.unpack('=5i', bytes(matrix)[:20])
  if abs(a) + abs(d) < abs(b) + abs(c):
    return True, c < 0, b < 0
  return False, a < 0, d < 0


def _turned(size, turn):
  """(width, height) as shown from as stored, and the other way round."""
  return size[::-1] if turn[0] else size


# BT.2100: how much light a value stands for, where 1 is reference white.
_LEVELS = np.arange(4096, dtype=np.float32) / 4095
_PQ = np.maximum(_LEVELS ** (1 / 78.84375) - 0.8359375, 0) / (
  18.8515625 - 18.6875 * _LEVELS ** (1 / 78.84375)
)
_PQ = _PQ ** (1 / 0.1593017578125) * (10000 / 203)
# Of HLG, light in the scene; a screen of 1000 cd/m2 shows its 1.2th power.
_HLG = np.where(
  _LEVELS <= 0.5, _LEVELS**2 / 3, (np.exp((_LEVELS - 0.55991073) / 0.17883277) + 0.28466892) / 12
)
_BT2020_LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)
_BT2020_TO_BT709 = np.array(
  [[1.6605, -0.1246, -0.0182], [-0.5876, 1.1329, -0.1006], [-0.0728, -0.0083, 1.1187]], np.float32
)


def _show(light):
  """Light in BT.2020 colours, 1 for white, -> uint8 of BT.709."""
  light = np.clip(light @ _BT2020_TO_BT709, 0, 1)
  return np.rint(255 * light ** (1 / 2.4)).astype(np.uint8)


def _pq_to_sdr(pixels):
  return _show(_PQ[pixels >> 4])


def _hlg_to_sdr(pixels):
  light = _HLG[pixels >> 4]
  luma = (light @ _BT2020_LUMA)[..., None]
  return _show(light * luma**0.2 * (1000 / 203))


_TO_SDR = {
  av.video.reformatter.ColorTrc.SMPTE2084: _pq_to_sdr,
  av.video.reformatter.ColorTrc.ARIB_STD_B67: _hlg_to_sdr,
}


def _declared_seconds(container, stream):
  """Returns how long a video is by its header; 0 if that does not say."""
  formats = set(container.format.name.split(','))
  if not _DECLARING_FORMATS & formats:
    return 0  # FFmpeg's own estimate, from the size of the file.
  seconds = (container.duration or 0) / av.time_base
  begin = (container.start_time or 0) / av.time_base
  if 0 < begin < seconds:  # Some headers give the length, others the end.
    seconds -= begin
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
      if image.mode.startswith('I;16'):  # Pillow would cut all to 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
      elif image.mode in ('I', 'F'):
        raise UnreadableVideo('unreadable', 'its pixels are numbers of 32 bit; which is white?')
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
