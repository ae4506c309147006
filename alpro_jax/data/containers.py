"""Recordings in the containers of videos: where they are, their frames and times."""

import collections
import itertools
import os
from fractions import Fraction

import av

from alpro_jax.data import sniff

av.logging.set_level(av.logging.PANIC)

# Not playlists, which name other files and addresses, and not pictures, which
# are for Pillow.
_NOT_OPENED = {'hls', 'concat', 'dash', 'webm_dash_manifest', 'imf', 'sdp', 'rtsp', 'rtp', 'sap'}
_NOT_OPENED |= {name for name in av.formats_available if name.endswith('_pipe')}
_NOT_OPENED |= {'image2', 'image2pipe', 'ico'}
_OPTIONS = {
  'format_whitelist': ','.join(sorted(av.formats_available - _NOT_OPENED)),
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


class UnreadableVideo(Exception):
  """A file that gives no frames; `reason` is a short fixed phrase."""

  def __init__(self, reason, detail=''):
    super().__init__(f'{reason}: {detail}' if detail else reason)
    self.reason, self.detail = reason, detail


def check_pixels(picture):
  """Raises UnreadableVideo if a picture, or a stream of them, is too large."""
  if picture.width * picture.height > _MAX_PIXELS:
    raise UnreadableVideo('too large', f'{picture.width}x{picture.height}')


def recordings(file):
  """Yields a Recording for each in a file, given by its descriptor.

  FLV, MP4 and Matroska may have been joined by writing one behind the other:
  FFmpeg reads the first alone, or parts of the others.
  """
  for begin, end in itertools.pairwise(_offsets(file)):
    with av.open(_Part(file, begin, end), options=_OPTIONS) as container:
      yield Recording(container, end - begin)


def _offsets(file):
  """Returns where the recordings in a file begin, and where the last one ends."""
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
  """Bytes `begin` to `end` of a file.

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


class Recording:
  """A recording that is being read: its frames, and what its header says of them.

  Attributes:
    container: of PyAV.
    stream: the default one of its video streams, which need not be the largest.
  """

  def __init__(self, container, size):
    self.container, self._size = container, size
    self._begin = (container.start_time or 0) / av.time_base
    self._seconds = (container.duration or 0) / av.time_base
    # Where the packets of all streams end. Sound and subtitles may well go on
    # when there are no more pictures.
    self._end = 0.0
    kinds = av.stream.Disposition
    streams = [x for x in container.streams.video if not x.disposition & kinds.attached_pic]
    if not streams:
      raise UnreadableVideo('no video stream')
    self.stream = next((x for x in streams if x.disposition & kinds.default), streams[0])
    if self.stream.codec_context is None:
      raise UnreadableVideo('unreadable', 'unknown codec')
    self.stream.codec_context.thread_count = 1
    check_pixels(self.stream)
    # Later frames may be larger; the memory of those is not even asked for.
    self.stream.codec_context.options = {'max_pixels': str(_MAX_PIXELS)}

  def frames(self):
    """Yields frames and the seconds that the file says, or None."""
    self.container.flags &= ~av.container.Flags.gen_pts.value  # It makes some up.
    # AVI has no times but those at which to decode, one packet after another.
    # Frames come in the order in which they are shown: each takes the next one.
    only_decoding, waiting = None, collections.deque()
    for packet in self.container.demux():
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
    formats = set(self.container.format.name.split(','))
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


class Clock:
  """Seconds from the first frame, which never run backwards."""

  def __init__(self):
    self._time = self._duration = None  # Of the last frame.

  def start(self, recording):
    """A recording begins, the first one or another."""
    self._step = 1 / (recording.stream.average_rate or Fraction(25))
    # FFmpeg's own program, too, takes ten seconds in these for a gap between
    # two recordings.
    self._gaps = recording.container.format.flags & av.format.Flags.ts_discont.value
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
