"""Draws what the shipped model answers.

  python -m examples.shapes.picture --output=runs/shapes.png

The picture of the README: clips of the package, their captions and a caption of none,
with the similarity that the model gives to each pair.
"""

import json
import pathlib

import numpy as np
from absl import flags
from PIL import Image, ImageDraw, ImageFont

import alpro_jax
from alpro_jax.data import video
from launch import command

_OUTPUT = flags.DEFINE_string('output', 'runs/shapes.png', 'The picture to write.')

FRAME, GAP, LEFT, ROW = 48, 12, 240, 44  # Pixels.
OF_NONE = 'a grey bar drifts down'


def draw(clips: list[pathlib.Path], texts: list[str]) -> Image.Image:
  """Returns a table: a column of frames for each clip, a row for each text."""
  model = alpro_jax.load('shapes')
  similarity = model.similarity(model.embed_texts(texts), model.embed_videos(clips))
  column = 4 * FRAME + GAP
  size = LEFT + len(clips) * column + GAP, FRAME + 2 * GAP + len(texts) * ROW
  picture = Image.new('RGB', size, 'white')
  canvas, font = ImageDraw.Draw(picture), ImageFont.load_default(size=17)
  for i, clip in enumerate(clips):
    for j, frame in enumerate(video.read_evenly(clip, 4)):
      small = Image.fromarray(frame).resize((FRAME, FRAME), Image.LANCZOS)
      picture.paste(small, (LEFT + i * column + j * FRAME, GAP))
  for i, text in enumerate(texts):
    top = FRAME + GAP + i * ROW
    canvas.text((GAP, top + ROW // 2), text, 'black', font, anchor='lm')
    for j, value in enumerate(similarity[i]):
      left, share = LEFT + j * column, float(np.clip(value, 0, 1))
      colour = tuple(round(255 - share * (255 - x)) for x in (63, 81, 181))
      canvas.rectangle((left, top + 3, left + column - GAP, top + ROW - 3), colour)
      ink = 'white' if share > 0.5 else 'black'
      middle = left + (column - GAP) // 2, top + ROW // 2
      canvas.text(middle, f'{value:.2f}', ink, font, anchor='mm')
  return picture


def main() -> None:
  output = pathlib.Path(_OUTPUT.value)
  output.parent.mkdir(parents=True, exist_ok=True)
  folder = pathlib.Path(alpro_jax.__file__).parent / 'shipped/shapes/clips'
  rows = [json.loads(line) for line in (folder / 'captions.jsonl').open()]
  clips = sorted({folder / row['video'] for row in rows})
  texts = [next(row['caption'] for row in rows if folder / row['video'] == clip) for clip in clips]
  draw(clips, [*texts, OF_NONE]).save(output)
  print(f'Written: {output}')


if __name__ == '__main__':
  command.run(main)
