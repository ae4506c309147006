"""What a browser can play of a video, in a worker process: the file, or a small copy.

Browsers agree on H.264 in MP4, and on VP8 and VP9 in WebM. Of other files the clip
alone is encoded as H.264, without sound, at most 180 pixels high or wide and 12
frames per second: some 100 kB for ten seconds.
"""

import fractions
import io
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import av

from alpro_jax.data import containers, video, workers

_PLAYED = {('.mp4', 'h264'), ('.m4v', 'h264'), ('.webm', 'vp8'), ('.webm', 'vp9')}
_PIXELS = ('yuv420p', 'yuvj420p')  # 8 bits; browsers show no other H.264.
_FPS, _SHORT_SIDE = 12, 180
# A copy decodes from the start of the file on.
_LATEST = 600.0


class Playable(NamedTuple):
  """What to play: the file itself where both are empty, else a copy, or neither and why."""

  copy: bytes = b''  # MP4.
  why_not: str = ''

  @property
  def size(self) -> int:
    """Bytes, for workers.run_in_order."""
    return len(self.copy)


def prepare(
  clips: Iterable[tuple[str, float, float]], *, copy_all: bool = False
) -> Iterator[Playable]:
  """Says how to play clips.

  Args:
    clips: (path, start, stop) in seconds.
    copy_all: copies also of what browsers can play, for a page that is shown away
      from the files.
  """
  for found in workers.run_in_order(
    'alpro_jax.data.playing:look', {'copy': copy_all}, list(clips), workers=os.cpu_count() or 1
  ):
    yield Playable(why_not=found.reason) if isinstance(found, workers.Lost) else found


def look(clip: tuple[str, float, float], *, copy: bool) -> Playable:
  """Looks at one clip; never raises."""
  path, start, stop = clip
  try:
    if not copy and plays(path):
      return Playable()
    if stop > _LATEST:
      return Playable(
        why_not=f'more than {_LATEST / 60:.0f} minutes into a file that has no player'
      )
    if 'libx264' not in av.codecs_available:
      return Playable(why_not='a copy needs PyAV with libx264')
    return Playable(encode(path, start, stop))
  except Exception as error:  # Whatever a broken file makes a decoder raise.
    why = getattr(error, 'strerror', None) or str(error) or type(error).__name__
    return Playable(why_not=why)


def plays(path: str) -> bool:
  """Whether browsers play a file.

  Raises:
    OSError, av.FFmpegError: if it cannot be opened.
  """
  with open(path, 'rb', buffering=0) as file:
    for recording in containers.recordings(file.fileno()):
      context = recording.stream.codec_context
      kind = os.path.splitext(path)[1].lower(), context.codec.canonical_name
      return kind in _PLAYED and context.pix_fmt in _PIXELS
  return False


def encode(path: str, start: float, stop: float) -> bytes:
  """Returns start..stop of a video as a small MP4.

  Raises:
    UnreadableVideo: if there are no frames.
  """
  file = io.BytesIO()
  with av.open(file, 'w', format='mp4') as made:
    stream = None
    try:
      for pixels, second in video.iterate_frames(
        path, fps=_FPS, short_side=_SHORT_SIDE, max_seconds=stop
      ):
        if second < start:
          continue
        height, width = (side // 2 * 2 for side in pixels.shape[:2])  # H.264 wants even ones.
        if stream is None:
          stream = made.add_stream('libx264', rate=_FPS, options={'crf': '30'})
          stream.width, stream.height, stream.pix_fmt = max(width, 2), max(height, 2), 'yuv420p'
          stream.codec_context.time_base = fractions.Fraction(1, 1000)
        frame = av.VideoFrame.from_ndarray(pixels, 'rgb24')
        frame.pts, frame.time_base = round(1000 * (second - start)), fractions.Fraction(1, 1000)
        made.mux(stream.encode(frame))
    except video.PartlyReadable:
      pass  # What there is.
    if stream is None:
      raise video.UnreadableVideo('no frames')
    made.mux(stream.encode())
  return file.getvalue()
