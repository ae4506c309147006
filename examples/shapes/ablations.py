"""The table of ablations on the demo; see launch/ablations.py."""

import importlib
import json
import pathlib
import time
from typing import NamedTuple

from examples.shapes import demo
from examples.shapes.stages import Stages, claim, log_to_console, script


class Row(NamedTuple):
  """An ablation, and which of its runs the demo made, by stage."""

  title: str
  made: dict[str, str] = {}


ROWS = {
  'full': Row('ALPRO', {'pretrain': 'pretrain', 'retrieval': 'retrieval', 'qa': 'qa'}),
  'without_pem': Row('without entity modelling (PEM)'),
  'without_vtc': Row('without contrast (VTC) beside the others'),
  'single_prompt': Row('one prompt for each entity'),
  'few_entities': Row('half of the entities'),
  'two_frames': Row('two frames'),
  'eight_frames': Row('eight frames'),
  'dual_encoder': Row(
    'dual encoder, contrast alone (Frozen-in-Time)', {'pretrain': 'contrast_only'}
  ),
  'frame_encoder': Row('frames averaged over time (ClipBERT)'),
  'from_scratch': Row(
    'fine-tuned from random weights', {'retrieval': 'retrieval_scratch', 'qa': 'qa_scratch'}
  ),
}
COLUMNS = (
  ('pretrain', 't2v_r1', 'R@1, not fine-tuned'),
  ('retrieval', 't2v_r1', 'R@1, fine-tuned'),
  ('retrieval', 'similarity/t2v_r1', 'R@1, by similarity'),
  ('qa', 'accuracy', 'questions'),
  ('qa', 'accuracy_direction', 'direction'),
  ('qa', 'accuracy_order', 'order'),
)


def run(made, output, only=()) -> None:
  """Trains and measures what is not there yet, and writes the table.

  Args:
    made: folder of a finished demo.
    output: folder for everything.
    only: names of ROWS; none is all.
  Raises:
    ValueError: if a name is unknown, or the folder belongs to another demo.
    FileNotFoundError: if the demo is not finished.
  """
  names = list(only or ROWS)
  unknown = sorted(set(names) - set(ROWS))
  if unknown:
    raise ValueError(f'--only names {unknown}; choose from {list(ROWS)}.')
  made, output = pathlib.Path(made), pathlib.Path(output)
  if not (made / 'report.json').is_file():
    raise FileNotFoundError(f'--demo={made} holds no finished demo; make one with `make demo`.')
  output.mkdir(parents=True, exist_ok=True)
  from alpro_jax.train import identity

  # What is done already compares with one demo alone, wherever that lies.
  claim(
    output,
    {
      'demo': {
        name: identity.of_checkpoint(made / name)['digest'] for name in ('prompter', 'pretrain')
      }
    },
  )
  known = demo.Options(**json.loads((made / 'options.json').read_text()))
  files, runs = demo.Files(made), {}
  stages = Stages(
    output, total=1 + sum(len(_stages(name)) - len(ROWS[name].made) for name in names)
  )
  for name in names:
    for stage in _stages(name):
      if stage in ROWS[name].made:
        runs[name, stage] = made / ROWS[name].made[stage]
        continue
      runs[name, stage] = folder = output / name / stage
      started = made / 'prompter'
      if stage != 'pretrain':
        started = runs[name, 'pretrain']
      stages.run(
        f'{name}: {stage}',
        script('main'),
        *demo.config_flags(known, files, f'ablations/{name}', f'{stage},demo'),
        f'--config.train.init_from={started}',
        f'--workdir={folder}',
      )
  start = stages.begin('measure all')
  found = _measure(files, runs, output)
  _write(found, names, output)
  stages.finish('measure all', time.monotonic() - start)


def _stages(name):
  """The stages that an ablation has a config for."""
  module = importlib.import_module(f'configs.ablations.{name}')
  stages = []
  for stage in ('pretrain', 'retrieval', 'qa'):
    try:
      module.get_config(f'{stage},demo')
    except ValueError:
      continue
    stages.append(stage)
  return stages


def _measure(files, runs, output):
  """Returns {(ablation, stage): its metrics and intervals}."""
  import tensorflow as tf

  tf.config.set_visible_devices([], 'GPU')
  from alpro_jax.data import dataset
  from alpro_jax.evaluation import card, split, trained

  log_to_console()
  prepared = dataset.open_dataset(files.downstream, 'test')
  found = {}
  for (name, stage), folder in runs.items():
    evaluated = split.evaluate(trained.load(folder), prepared)
    card.write(card.make(evaluated), output / 'cards' / f'{name}_{stage}')
    found[name, stage] = evaluated.found
  return found


def _write(found, names, output):
  rows, figures = [], {}
  for name in names:
    cells = []
    for stage, metric, _ in COLUMNS:
      result = found.get((name, stage))
      if result is None:
        cells.append('')
        continue
      value, (low, high) = result.metrics[metric], result.intervals[metric]
      cells.append(f'{value:.1f} ({low:.0f}–{high:.0f})')
      figures[f'{name}.{stage}.{metric}'] = {'value': value, 'low': low, 'high': high}
    rows.append((ROWS[name].title, *cells))
  titles = ['%, 95 % interval', *(title for _, _, title in COLUMNS)]
  lines = ['| ' + ' | '.join(cells) + ' |' for cells in (titles, ['---'] * len(titles), *rows)]
  (output / 'ablations.md').write_text('\n'.join(lines) + '\n')
  (output / 'ablations.json').write_text(json.dumps(figures, indent=1) + '\n')
  print('\n'.join(lines))
  print(f'Written: {output / "ablations.md"}, ablations.json and cards/.')
