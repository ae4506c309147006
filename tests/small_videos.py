"""Small videos with a known look, made on the fly."""

import json

import av
import numpy as np

from alpro_jax.data import annotations, prepare


def write_video(path, *, frames=8, rate=8, size=(48, 32), rotation=0,
                codec='libx264', colours=None):
  """Writes frames of one colour each, red above blue at the left edge.

  Args:
    path: where to.
    frames, rate: count, and frames per second.
    size: width, height.
    rotation: degrees in the display matrix.
    codec: of the video.
    colours: list of RGB, one per frame; grey levels rise by default.
  """
  width, height = size
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=rate)
    stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
    stream.codec_context.thread_count = 1
    if rotation:
      stream.set_display_rotation(rotation)
    for number in range(frames):
      colour = colours[number] if colours else (number * 20,) * 3
      image = np.full((height, width, 3), colour, np.uint8)
      image[:height // 2, :width // 4] = 255, 0, 0
      image[height // 2:, :width // 4] = 0, 0, 255
      for packet in stream.encode(av.VideoFrame.from_ndarray(image, 'rgb24')):
        container.mux(packet)
    for packet in stream.encode():
      container.mux(packet)
  return path


def write_folder(folder, count, **options):
  """Writes count videos and captions.jsonl; returns its path."""
  folder.mkdir(parents=True, exist_ok=True)
  rows = []
  for number in range(count):
    write_video(folder / f'{number:03}.mp4',
                colours=[(number * 7 % 256, 90, 40)] * 8, **options)
    rows.append({'video': f'{number:03}.mp4', 'caption': f'clip {number}',
                 'style': 'full'})
    rows.append({'video': f'{number:03}.mp4', 'caption': 'a clip',
                 'style': 'short'})
  return write_captions(folder, rows)


def write_captions(folder, rows):
  path = folder / 'captions.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def write_questions(folder, rows):
  """Writes (video, question, answer) to questions.jsonl; returns its path."""
  path = folder / 'questions.jsonl'
  path.write_text(''.join(
      json.dumps(dict(zip(('video', 'question', 'answer'), row, strict=True)))
      + '\n' for row in rows))
  return path


def prepare_seven(folder):
  """Returns a prepared set of seven clips, in shards of 3, 3 and 1."""
  videos = folder / 'videos'
  videos.mkdir()
  captions = write_folder(videos, 7)
  prepare.prepare(
      annotations.read_folder(captions), videos, folder / 'set', num_workers=1,
      options=prepare.Options(fps=0, short_side=0, part_size=3, quality=95))
  return folder / 'set'
