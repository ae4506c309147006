"""Draws a whole world: into memory, or as videos and the rows about them."""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import pathlib
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

from alpro_jax.data import workers as processes
from examples.shapes.drawing import draw
from examples.shapes.scenes import SPLITS, ShapeClip, World, list_clips
from examples.shapes.words import caption, caption_rows, question_rows


def truth_row(world: World, clip: ShapeClip, boxes: np.ndarray) -> dict:
  """The row of truth.jsonl for a clip: what a probe may ask about it.

  'shape' names what is drawn, in the words of pre-training. Downstream there is
  the 'number' of shapes too.
  """
  backwards = clip.scene.reversed()
  row = {
    'video': clip.name,
    'family': clip.scene.family,
    'colour': clip.scene.colour,
    'shape': clip.scene.shape,
    'motion': clip.scene.motion,
    'caption': caption(clip.scene, purpose=world.purpose),
    # The caption of the same frames backwards; '' if that is the same one.
    'reversed_caption': (caption(backwards, purpose=world.purpose) if backwards else ''),
    'trained': clip.trained,
    'boxes': [[round(float(x), 4) for x in box] for box in boxes],
  }
  if world.purpose == 'downstream':
    row['number'] = clip.scene.number
  return row


def make_arrays(world: World, split: str, workers: int = 1) -> dict:
  """Draws a split in memory, for experiments that need no files.

  Returns:
    A dict with `clips` (list of ShapeClip), `frames` uint8[n, T, H, W, 3], `boxes`
    float32[n, T, 4], `rows` and `questions` (lists of the caption rows and of
    the question rows of each clip) and `truth` (list of truth rows).
  """
  clips = list_clips(world, split)
  drawings = list(_map(_draw_one, [(world, c) for c in clips], workers))
  boxes = np.stack([d.boxes for d in drawings])
  return {
    'clips': clips,
    'frames': np.stack([d.frames for d in drawings]),
    'boxes': boxes,
    'rows': [caption_rows(world, clip) for clip in clips],
    'questions': [question_rows(world, clip) for clip in clips],
    'truth': [truth_row(world, c, b) for c, b in zip(clips, boxes, strict=True)],
  }


def write(world: World, output: str | pathlib.Path, workers: int = 1) -> dict:
  """Writes the world as files.

    output/world.json          the options
    output/train/captions.jsonl   rows of video, caption, style
    output/train/questions.jsonl  rows of video, question, answer, type; of the
                                downstream world alone
  output/train/truth.jsonl      what each clip shows
    output/train/videos/*.mp4
    output/test/...               the same

  Returns:
    The number of clips of each split.
  """
  output = pathlib.Path(output)
  counts = {}
  for split in SPLITS:
    folder = output / split
    (folder / 'videos').mkdir(parents=True, exist_ok=True)
    clips = list_clips(world, split)
    jobs = [(world, clip, str(folder / 'videos')) for clip in clips]
    boxes = list(_map(_write_one, jobs, workers))
    _write_rows(
      folder / 'captions.jsonl', (row for clip in clips for row in caption_rows(world, clip))
    )
    if world.purpose == 'downstream':
      _write_rows(
        folder / 'questions.jsonl', (row for clip in clips for row in question_rows(world, clip))
      )
    _write_rows(
      folder / 'truth.jsonl', (truth_row(world, c, b) for c, b in zip(clips, boxes, strict=True))
    )
    counts[split] = len(clips)
  (output / 'world.json').write_text(json.dumps(dataclasses.asdict(world), indent=1) + '\n')
  return counts


def write_video(path: str, frames: np.ndarray, rate: int) -> None:
  """Writes uint8[T, H, W, 3] as one mp4 file."""
  import av  # Slow to import, and not needed for arrays.

  with av.open(path, 'w', options={'fflags': '+bitexact'}) as container:
    # Not h264: libx264 wrote other bytes for the same frames now and then.
    stream = container.add_stream('mpeg4', rate=Fraction(rate))
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = 'yuv420p'
    stream.bit_rate = 8 * frames.shape[1] * frames.shape[2] * rate
    stream.options = {'threads': '1', 'flags': '+bitexact', 'qmax': '4'}
    for frame in frames:
      frame = av.VideoFrame.from_ndarray(frame, format='rgb24')
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _write_rows(path, rows: Iterator[dict]):
  with open(path, 'w', encoding='utf-8') as lines:
    for row in rows:
      lines.write(json.dumps(row) + '\n')


def _draw_one(job):
  return draw(*job)


def _write_one(job):
  world, clip, folder = job
  drawing = draw(world, clip)
  write_video(f'{folder}/{clip.name}', drawing.frames, world.rate)
  return drawing.boxes


def _map(function, jobs: Sequence, workers: int):
  if workers <= 1:
    yield from map(function, jobs)
    return
  # Spawned: a fork of a process with threads (jax, tf) may hang.
  with (
    processes.environment_of_children(),
    (
      concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context('spawn')
      )
    ) as pool,
  ):
    yield from pool.map(function, jobs, chunksize=64)
