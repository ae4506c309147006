"""Cuts a video into clips, in a worker process: neither TensorFlow nor jax.

A clip is a span of a video, of which the model sees T frames. With span 10 and
stride 10, seconds:

  24 s -> 0-10, 10-24      the rest is less than half a stride: it joins
  26 s -> 0-10, 10-20, 20-26
  with stride 5:  17 s -> 0-10, 5-17;   19 s -> 0-10, 5-15, 10-19

Of several spans each cuts the whole video; a clip that two of them give is one.
"""

import dataclasses
import heapq
import io
import itertools
import math
import os
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from alpro_jax.data import video, workers

_QUALITY = 90  # Of the frames for the model; thumbnails have less.


@dataclasses.dataclass(frozen=True)
class Cutting:
  """How videos are cut."""

  frames: int  # T, of every clip.
  # Seconds of a clip, in ascending order; the last one of a video has up to 1.5 times.
  spans: tuple[float, ...] = (10.0,)
  # Seconds from start to start, at most `span`; of shorter spans in proportion.
  stride: float = 10.0
  fps: float = 8.0  # Frames per second among which T are chosen; 0 is all.
  short_side: int = 256  # Pixels of the frames; smaller videos keep their size.
  begin: float = 0.0  # Second where the first clip starts.

  def __post_init__(self):
    given = ','.join(map(str, self.spans))
    if not self.spans or sorted(set(self.spans)) != list(self.spans) or self.spans[0] <= 0:
      raise ValueError(f'--span={given} must be seconds above 0, in ascending order.')
    if not 0 < self.stride <= self.span < math.inf:
      raise ValueError(
        f'--span={given} and --stride={self.stride} must be above 0, and the stride at '
        'most the longest span: clips may overlap, but leave no gaps.'
      )
    if not 0 <= self.fps <= 1000:
      raise ValueError(f'--fps={self.fps} must be 0 (all frames) to 1000.')
    if self.frames < 1 or self.short_side < 0 or not 0 <= self.begin < 1e9:
      raise ValueError(f'{self} needs a frame and no negative number.')

  @property
  def span(self) -> float:
    """The longest."""
    return self.spans[-1]

  @property
  def overlaps(self) -> bool:
    """Whether clips of one video may overlap."""
    return len(self.spans) > 1 or self.stride < self.span

  def each(self) -> 'list[Cutting]':
    """One for each span."""
    share = self.stride / self.span
    return [
      *(dataclasses.replace(self, spans=(x,), stride=x * share) for x in self.spans[:-1]),
      dataclasses.replace(self, spans=self.spans[-1:]),  # Not by way of a share: it rounds.
    ]


@dataclasses.dataclass(frozen=True)
class Segment:
  """A span of a video."""

  start: float  # Seconds from the first frame.
  stop: float
  frames: tuple[bytes, ...]  # T files of JPEG.
  strip: bytes  # A JPEG of up to four frames side by side, to look at.


@dataclasses.dataclass(frozen=True)
class CutVideo:
  """The clips of a video; without any, `reason` says why.

  A video that breaks off has both: clips, and where it broke.
  """

  clips: tuple[Segment, ...] = ()
  reason: str = ''
  detail: str = ''

  @property
  def size(self) -> int:
    """Bytes, for workers.run_in_order."""
    return sum(sum(map(len, clip.frames)) for clip in self.clips)


def decode(
  items, cutting: Cutting, *, num_workers: int = 0, timeout_s: float | None = None
) -> Iterator[CutVideo]:
  """Cuts videos in worker processes, which may hang or crash.

  Args:
    items: see cut_video.
    cutting: how.
    num_workers: processes; 0 is one per core.
    timeout_s: longest time for one video; see workers.run_in_order.
  """
  for result in workers.run_in_order(
    'alpro_jax.data.cut:cut_video',
    {'cutting': cutting},
    items,
    workers=num_workers or os.cpu_count() or 1,
    timeout_s=timeout_s,
  ):
    yield CutVideo((), *result) if isinstance(result, workers.Lost) else result


def cut_video(item, *, cutting: Cutting) -> CutVideo:
  """Decodes and cuts one video; never raises.

  Args:
    item: (path, starts); only clips with these starts are kept, None is all.
    cutting: how.
  """
  path, starts = item
  # Nothing behind the last wanted clip, which may be longer than the others.
  last = max(starts) + 2 * cutting.span if starts else 0.0
  clips, broken = [], None

  def frames():
    nonlocal broken
    try:
      yield from video.iterate_frames(
        path, fps=cutting.fps, short_side=cutting.short_side, max_seconds=last
      )
    except video.PartlyReadable as error:
      broken = error

  try:
    streams = itertools.tee(frames(), len(cutting.spans))
    cut = [spans(*each) for each in zip(streams, cutting.each(), strict=True)]
    before = None
    # In the order of starts: a stream is never far ahead of another.
    for start, stop, pixels in heapq.merge(*cut, key=lambda clip: clip[:2]):
      if (starts is None or start in starts) and (start, stop) != before:
        clips.append(_make(start, stop, pixels, cutting.frames))
        before = start, stop
  except Exception as error:  # Whatever a broken file makes a decoder raise.
    clips, broken = [], error
  if broken is None:
    return CutVideo(tuple(clips))
  if problem := workers.machine_problem(path, broken):
    return CutVideo((), workers.MACHINE, problem)
  if isinstance(broken, video.UnreadableVideo):
    return CutVideo(tuple(clips), broken.reason, broken.detail)
  return CutVideo((), 'unreadable', f'{type(broken).__name__}: {broken}')


def spans(
  frames: Iterable[tuple[np.ndarray, float]], cutting: Cutting
) -> Iterator[tuple[float, float, list]]:
  """(frame, second) in order -> (start, stop, frames) of each clip of the longest span.

  A clip is given as soon as it is known that another one follows it.
  """
  held, start = [], cutting.begin
  step = 1 / cutting.fps if cutting.fps else 0.0
  for frame, second in frames:
    if second < cutting.begin:
      continue
    while second >= start + cutting.span + cutting.stride / 2:
      stop = start + cutting.span
      if inside := [x for x, at in held if at < stop]:
        yield start, stop, inside
      start += cutting.stride
      held = [(x, at) for x, at in held if at >= start]
      if not held:  # Over a gap, however long, at once.
        start += cutting.stride * max((second - start - cutting.span) // cutting.stride, 0)
    held.append((frame, second))
  if held:
    end = held[-1][1]
    # How long the last frame is shown is not known: as long as the one before.
    if not step and len(held) > 1:
      step = end - held[-2][1]
    yield start, max(end + step, start), [x for x, _ in held]


def _make(start, stop, pixels, count):
  # frames.choose_frames 'uniform': floor(k n / T).
  chosen = [pixels[k * len(pixels) // count] for k in range(count)]
  encoded = {}
  for frame in chosen:
    if id(frame) not in encoded:
      encoded[id(frame)] = video.encode_jpeg(frame, _QUALITY)
  return Segment(start, stop, tuple(encoded[id(frame)] for frame in chosen), _strip(chosen))


def _strip(frames, count=4, height=108):
  """JPEG of up to `count` frames, evenly over time, on white."""
  if all(frame is frames[0] for frame in frames):
    frames = frames[:1]
  count = min(len(frames), count)
  frames = [frames[(2 * k + 1) * len(frames) // (2 * count)] for k in range(count)]
  h, w = frames[0].shape[:2]
  width = max(round(w * height / h), 1)
  # Small frames are enlarged by whole pixels as far as it goes.
  how = Image.Resampling.NEAREST if h < height else Image.Resampling.LANCZOS
  strip = Image.new('RGB', (count * width + 2 * (count - 1), height), 'white')
  for k, frame in enumerate(frames):
    strip.paste(Image.fromarray(frame).resize((width, height), how), (k * (width + 2), 0))
  file = io.BytesIO()
  strip.save(file, 'JPEG', quality=80)
  return file.getvalue()
