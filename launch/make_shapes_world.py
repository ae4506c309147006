"""Draws the small world of moving shapes: videos, captions and the truth.

  python launch/make_shapes_world.py --output=runs/shapes

Then launch/prepare.py reads runs/shapes/{train,test}. The world for fine-tuning
says the same in other words and has questions too:

  python launch/make_shapes_world.py --output=runs/downstream \
      --options='{"purpose": "downstream", "seed": 1000}'

Take another seed than that of pre-training: clips of one seed may share their
background and their path.
"""

try:
  from launch import command
except ModuleNotFoundError:
  import not_installed  # noqa: F401

import json
import os
import time

from absl import flags, logging

from examples.shapes import files, scenes

_OUTPUT = flags.DEFINE_string('output', None, 'Folder to write to.', required=True)
_OPTIONS = flags.DEFINE_string(
  'options',
  '{}',
  'Options of scenes.World to change, as JSON, e.g. '
  '\'{"seed": 1, "size": 64, "train": {"move": 100}}\'.',
)
_WORKERS = flags.DEFINE_integer('workers', 0, 'Processes to draw with; 0 is one for each core.')


def main():
  world = scenes.world_from_options(json.loads(_OPTIONS.value))
  start = time.time()
  counts = files.write(world, _OUTPUT.value, _WORKERS.value or os.cpu_count())
  logging.info(
    'Wrote %d training and %d test clips to %s in %.0f s.',
    counts['train'],
    counts['test'],
    _OUTPUT.value,
    time.time() - start,
  )


if __name__ == '__main__':
  command.run(main)
