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
from av.video.reformatter import ColorTrc, Interpolation, VideoReformatter
from PIL import Image, ImageOps

from alpro_jax.data import sniff, workers

av.logging.set_level(av.logging.PANIC)
warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # _MAX_PIXELS is lower.

# Not playlists, which name other files and addresses, and not pictures, which
# are for Pillow.
_NOT_OPENED = {'hls', 'concat', 'dash', 'webm_dash_manifest', 'imf', 'sdp', 'rtsp', 'rtp', 'sap'}
_NOT_OPENED |= {'image2', 'image2pipe', 'ico'}
_OPTIONS = {
  'format_whitelist': ','.join(
    sorted(name for name in av.formats_available - _NOT_OPENED if not name.endswith('_pipe'))
  ),
  # Not one protocol by which another file might be opened.
  'protocol_whitelist': 'none',
}
_EBML = b'\x1a\x45\xdf\xa3'  # Matroska, WebM.
# Their headers say how long they are.
_DECLARING_FORMATS = {'matroska', 'flv', 'avi', 'asf', 'mov'}
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
  """Yields the frames of all recordings of a file, given by its descriptor."""
  scaler = VideoReformatter()
  clock = _Clock()
  size, kept, last_tick = None, 0, -1
  # Containers round times to a millisecond or so: a frame may be early.
  early = min(Fraction(1, 500), 1 / (4 * Fraction(fps))) if fps else 0
  missing, decoding_seconds = '', 0
  for begin, end in itertools.pairwise(_recordings(file)):
    with av.open(_Part(file, begin, end), options=_OPTIONS) as container:
      recording = _Recording(container, end - begin)
      stream = recording.stream
      clock.start(container, stream)
      decoding_seconds += recording.decoding_seconds()
      workers.allow(decoding_seconds)
      turn = _UPRIGHT
      for frame, stamp in recording.frames():
        time = clock.read(frame, stamp)
        if max_seconds and time >= max_seconds:
          return
        # Some files say in key frames alone how they are to be turned.
        turn = _turn_of(frame) or turn
        if fps:
          tick = math.floor((time + early) * Fraction(fps))
          if tick <= last_tick:
            continue
          last_tick = tick
        _check_pixels(frame)
        # Later frames follow the first, should the size change.
        if not size:
          size = target_size(frame.width, frame.height, short_side, stream.sample_aspect_ratio)
          size = size[::-1] if turn[0] else size
        kept += 1
        yield _pixels(scaler, frame, size, turn), float(time)
        if kept == max_frames:
          return
      missing = recording.missing() or missing
  if kept and missing:
    raise EndsEarly(missing)


def _recordings(file):
  """Returns where the recordings in a file begin, and where the last one ends.

  FLV, MP4 and Matroska may have been joined by writing one behind the other:
  FFmpeg reads the first alone, or parts of the others.
  """
  end = os.fstat(file).st_size
  start = os.pread(file, 8, 0)
  flv, mp4, ebml = start.startswith(b'FLV'), start[4:] == b'ftyp', start.startswith(_EBML)
  begins, at, whole = [], 0, True
  while (flv or mp4 or ebml) and len(head := os.pread(file, 16, at)) == 16:
    if flv:
      begin, is_tag = head.startswith(b'FLV'), head[0] & 31 in (8, 9, 18)
      # A tag: its own header, its data, and its length once more.
      size = 13 if begin else is_tag * (15 + int.from_bytes(head[1:4], 'big'))
    elif mp4:  # Which may repeat its first box before its index.
      begin, size = whole and head[4:8] == b'ftyp', sniff.box_size(head)
      whole = not begin and (whole or head[4:8] == b'moov')
    else:
      begin = head.startswith(_EBML)
      # Zeros say of how many bytes the length is, which is all ones if unknown.
      width = 9 - head[4].bit_length()
      most = (1 << 7 * width) - 1
      length = int.from_bytes(head[4 : 4 + width], 'big') & most
      size = 0 if length == most else 4 + width + length
    if begin:
      begins.append(at)
    if size < 8:
      break
    at += size
  return [*(begins or [0]), end]


class _Part:
  """Bytes `begin` to `end` of a file, given by its descriptor.

  FFmpeg learns no name of it, in which it might see a pattern or a protocol.
  """

  def __init__(self, file, begin, end):
    self._file, self._begin, self._end, self._at = file, begin, end, begin

  def read(self, size):
    data = os.pread(self._file, max(min(size, self._end - self._at), 0), self._at)
    self._at += len(data)
    return data

  def seek(self, offset, whence=os.SEEK_SET):
    self._at = offset + (self._begin, self._at, self._end)[whence]
    return self.tell()

  def tell(self):
    return self._at - self._begin


class _Recording:
  """A recording that is being read: its frames, and what its header says of them."""

  def __init__(self, container, size):
    """Takes the default video stream, which need not be the largest; `size` is in bytes."""
    self._container, self._size = container, size
    self._begin = (container.start_time or 0) / av.time_base
    self._seconds = (container.duration or 0) / av.time_base
    # Where the packets of all streams end. Sound and subtitles may well go on
    # when there are no more pictures.
    self._end = 0.0
    flags = av.stream.Disposition
    streams = [x for x in container.streams.video if not x.disposition & flags.attached_pic]
    if not streams:
      raise UnreadableVideo('no video stream')
    self.stream = next((x for x in streams if x.disposition & flags.default), streams[0])
    if self.stream.codec_context is None:
      raise UnreadableVideo('unreadable', 'unknown codec')
    self.stream.codec_context.thread_count = 1
    _check_pixels(self.stream)
    # Later frames may be larger; the memory of those is not even asked for.
    self.stream.codec_context.options = {'max_pixels': str(_MAX_PIXELS)}

  def frames(self):
    """Yields frames and the seconds that the file says, or None."""
    self._container.flags &= ~av.container.Flags.gen_pts.value  # It makes some up.
    # AVI has no times but those at which to decode, one packet after another.
    # Frames come in the order in which they are shown: each takes the next one.
    only_decoding, waiting = None, collections.deque()
    for packet in self._container.demux():
      time = packet.dts if packet.pts is None else packet.pts
      if time is not None and packet.time_base:
        end = float((time + (packet.duration or 0)) * packet.time_base)
        self._end = max(self._end, end - self._begin)
      if packet.stream.index != self.stream.index:
        continue
      if only_decoding is None:
        only_decoding = packet.pts is None
      if only_decoding and packet.dts is not None:
        waiting.append(packet.dts)
      for frame in packet.decode():
        pts = waiting.popleft() if waiting else frame.pts
        known = pts is not None and frame.time_base
        yield frame, pts * frame.time_base if known else None

  def decoding_seconds(self):
    """Returns how long reading all of it may take on a slow core."""
    stream = self.stream
    frames = max(self._seconds * float(stream.average_rate or 25), stream.frames)
    # Headers may say anything, or nothing; but a frame takes some bytes, and in
    # most videos a byte is for some pixels.
    pixels = min(frames, self._size / _LEAST_BYTES) * stream.width * stream.height
    return max(pixels, self._size * _PIXELS_PER_BYTE) / _PIXELS_PER_SECOND

  def missing(self):
    """Returns what is missing at the end by the header, '' if nothing or if it does not say."""
    formats = set(self._container.format.name.split(','))
    if not _DECLARING_FORMATS & formats:
      return ''  # FFmpeg's own estimate, from the size of the file.
    declared, stream = self._seconds, self.stream
    if 0 < self._begin < declared:  # Some headers give the length, others the end.
      declared -= self._begin
    if 'avi' in formats and stream.average_rate:  # Here too it takes the size.
      declared = max(declared, float(stream.frames / stream.average_rate))
    if self._end >= 0.9 * declared or declared - self._end <= 1:
      return ''
    return f'its data end at {self._end:.1f} of {declared:.1f} s'


class _Clock:
  """Seconds from the first frame, which never run backwards."""

  def __init__(self):
    self._time = self._duration = None  # Of the last frame.

  def start(self, container, stream):
    """A recording begins, the first one or another."""
    self._step = 1 / (stream.average_rate or Fraction(25))
    # FFmpeg's own program, too, takes ten seconds in these for a gap between
    # two recordings.
    self._gaps = container.format.flags & av.format.Flags.ts_discont.value
    self._shift = None

  def read(self, frame, stamp):
    """Returns the time of a frame for which its file says `stamp`, or None."""
    last = self._time
    time = following = Fraction(0) if last is None else last + (self._duration or self._step)
    if stamp is not None:
      if self._shift is None:
        self._shift = following - stamp
      time = stamp + self._shift
      back = -1 if last is None else last - time
      if back >= 0 and (frame.key_frame or back > 1) or self._gaps and back < -10:
        # Another recording: it starts with a key frame.
        time, self._shift = following, following - stamp
      elif back > 0:  # Wrong times, as of frames in another order.
        time = last
    self._time = time
    self._duration = frame.duration and frame.time_base and frame.duration * frame.time_base
    return time


def target_size(width, height, short_side=0, pixel_aspect=None):
  """Returns the (width, height) of square pixels to store; never larger.

  Args:
    width, height: stored pixels.
    short_side: wanted length of the shorter side; 0 keeps the size, and so
      does anything larger than the video.
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


def _check_pixels(picture):
  if picture.width * picture.height > _MAX_PIXELS:
    raise UnreadableVideo('too large', f'{picture.width}x{picture.height}')


# How a frame is to be shown: whether rows become columns, whether left and
# right are swapped then, whether top and bottom are.
_UPRIGHT = (False, False, False)
_QUARTERS = [None, (True, False, True), (False, True, True), (True, True, False)]


def _turn_of(frame):
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


def _pixels(scaler, frame, size, turn):
  """Returns a frame as uint8[H, W, 3] RGB, of a size (width, height)."""
  swap, left_right, up_down = turn
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


def read_still(path, *, short_side=0):
  """Reads a photo, upright.

  Args:
    path: a local file.
    short_side: as in iterate_frames.
  Returns:
    uint8[H, W, 3] RGB.
  Raises:
    UnreadableVideo: the photo cannot be read.
  """
  if not os.path.isfile(path):
    raise UnreadableVideo('missing file')
  try:
    with Image.open(path, formats=_PHOTOS) as image:
      _check_pixels(image)
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
