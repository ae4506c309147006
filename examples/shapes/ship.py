"""Makes the model that comes with the package, of a finished demo.

  make demo
  python -m examples.shapes.ship --demo=runs/demo

writes alpro_jax/shipped/shapes anew: the pre-trained model with its card, a summary of
what is familiar to it, and three held-out clips with their captions.
`alpro_jax.load('shapes')` opens it.
"""

import json
import pathlib
import shutil
import tempfile

from absl import flags

import alpro_jax
from alpro_jax.api import SHIPPED
from alpro_jax.data import dataset
from alpro_jax.evaluation import card, split
from launch import command

_DEMO = flags.DEFINE_string('demo', 'runs/demo', 'Folder of the demo.')
_MODEL = flags.DEFINE_string('model', '', 'The model, if not the pre-training of the demo.')
_OUTPUT = flags.DEFINE_string('output', str(SHIPPED / 'shapes'), 'Folder to make anew.')

CLIPS = 3
_NOTES = """\
It was trained on drawings of moving shapes alone, in captions such as "a red disc
drifts left". It knows colours, shapes, motions and their order, and nothing of real
videos: it is there to try the library with. `clips/` has three held-out clips and
their captions.
"""


def main() -> None:
  demo, output = pathlib.Path(_DEMO.value), pathlib.Path(_OUTPUT.value)
  loaded = alpro_jax.load(_MODEL.value or demo / 'pretrain').trained
  training, prepared = (
    dataset.open_dataset(demo / 'data' / 'shapes', name) for name in ('train', 'test')
  )
  known = split.familiarity(loaded, [(training, ('',))], prepared)
  model = alpro_jax.Model(loaded._replace(familiarity=known))
  test = demo / 'world' / 'test'
  rows = map(json.loads, (test / 'captions.jsonl').read_text().splitlines())
  chosen = [row for row in rows if row['style'] == 'full'][:CLIPS]
  with tempfile.TemporaryDirectory() as folder:
    figures = pathlib.Path(folder)
    card.write(card.make(split.evaluate(model.trained, prepared)), figures)
    made = figures / 'shapes'
    model.save_pretrained(made, licence='apache-2.0', figures=[figures / 'card.json'], notes=_NOTES)
    (made / 'clips').mkdir()
    for row in chosen:
      shutil.copy(test / 'videos' / row['video'], made / 'clips')
    lines = (json.dumps({name: row[name] for name in ('video', 'caption')}) for row in chosen)
    (made / 'clips' / 'captions.jsonl').write_text('\n'.join(lines) + '\n')
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(made, output)
  size = sum(path.stat().st_size for path in output.rglob('*') if path.is_file())
  print(f'Written: {output}, {size / 1e6:.2f} MB')


if __name__ == '__main__':
  command.run(main)
