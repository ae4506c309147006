"""Single frames of the world of shapes: what a stand-in for image-text weights learns from.

A still shows a coloured shape somewhere, and its caption says both: "a red disc on the left".
It is a frame at the beginning, in the middle or at the end of a clip, whose motion nothing
tells. There are more colours and shapes than in the clips of fine-tuning, so that one can ask
afterwards what is left of those that these never show.
"""

import json
import pathlib

from PIL import Image

from examples.shapes import files
from examples.shapes.scenes import COLOURS, SHAPES, World

# Where a shape is in the first of three frames, by where it drifts to; it ends in the other.
PLACES = {
  'right': 'on the left',
  'left': 'on the right',
  'down': 'at the top',
  'up': 'at the bottom',
}
_OPPOSITE = {'left': 'right', 'right': 'left', 'up': 'down', 'down': 'up'}
SPLITS = ('train', 'shown', 'other')


def world(seed: int, clips: int) -> World:
  """The world that stills are frames of: three of each of so many clips for training."""
  return World(
    seed=seed,
    frames=3,
    colours=tuple(COLOURS),
    shapes=SHAPES,
    train={'move': clips},
    test_captions={'move': -1},
    renderings=1,
    never_trained=0.0,
  )


def write(world: World, output: str | pathlib.Path, shown: World) -> dict[str, int]:
  """Writes stills as launch/prepare.py --source=cc3m reads them.

    output/train/images/*.png, captions.json
    output/shown/...   one still of each caption, of colours and shapes that `shown` has
    output/other/...   the same of the others

  Returns:
    The number of stills of each split.
  """
  rows: dict[str, list] = {split: [] for split in SPLITS}
  for split in ('train', 'test'):
    drawn = files.make_arrays(world, split)
    met = set()
    for clip, frames in zip(drawn['clips'], drawn['frames'], strict=True):
      colour, shape, motion = clip.scene.colour, clip.scene.shape, clip.scene.motion
      places = PLACES[motion], 'in the middle', PLACES[_OPPOSITE[motion]]
      for number, (place, frame) in enumerate(zip(places, frames, strict=True)):
        caption = f'a {colour} {shape} {place}'
        if split == 'train':
          name = split
        elif caption in met:
          continue
        else:
          name = 'shown' if colour in shown.colours and shape in shown.shapes else 'other'
        met.add(caption)
        image = f'{pathlib.Path(clip.name).stem}_{number}.png'
        folder = pathlib.Path(output, name, 'images')
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(folder / image)
        rows[name].append({'image': image, 'caption': caption})
  for name, found in rows.items():
    pathlib.Path(output, name, 'captions.json').write_text(json.dumps(found, indent=0) + '\n')
  return {name: len(found) for name, found in rows.items()}
