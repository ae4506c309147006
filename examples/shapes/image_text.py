"""Does it pay to start from image-text weights? A trial in the world of shapes.

  python -m examples.shapes.image_text --output=runs/image_text

No real image-text weights were at hand. A small CLIP, trained on single frames, stands in for
them: it is written as Hugging Face lays one out, converted by launch/convert.py --image_text,
and fine-tuned on clips in several ways (image_text_runs.py), for each seed again. Every
model is then asked what it learned and what is left of what it knew.

Every step is one of the commands of this repository, printed before it runs, and each model's
figures are kept in --results as soon as they are there: the same command goes on where it was,
and makes the page of --page of what is there. --quick tries everything with a few steps, in
runs/quick/image_text, and leaves nothing in docs/.
"""

import json
import math
import os
import pathlib
import statistics
from typing import Any, NamedTuple

from absl import flags

from alpro_jax import files
from alpro_jax.evaluation import page
from configs import image_text
from examples.shapes import clip_folder, image_text_runs, scenes, stills
from examples.shapes.demo_page import how_made
from examples.shapes.report import TEMPLATES
from examples.shapes.stages import ROOT, Stages, claim, keep_off_docs, log_to_console, script
from launch import command


class Row(NamedTuple):
  """A model: what it is, its run, and which of the run's weights."""

  title: str
  run: str
  averaged: bool = True


ROWS = {
  'start': Row('converted, not fine-tuned', 'start'),
  'plain': Row('all weights trained', 'plain', averaged=False),
  'average': Row('averaged over steps, EMA', 'plain'),
  'between': Row('half way from the start to these, WiSE-FT', 'between'),
  'between_space': Row('half way, but for what reads time (*)', 'between_space'),
  'random': Row('from random weights', 'random'),
  'lora': Row('what was known frozen, with LoRA', 'lora'),
  'decay': Row('all weights trained, rates falling by layers', 'decay'),
  'slow': Row('what was known at a tenth of the rate', 'slow'),
}
# Of each model: a name, and what it says.
METRICS = {
  'clips': 'text to clip, R@1',
  'order': 'clip or clip reversed',
  'shown': 'text to still, R@1, things of the clips',
  'other': 'text to still, R@1, other things',
}
REFERENCE = 'plain'  # What the others are compared with, seed by seed.
ALPHA = 0.5
# Student's t for 95 % of both sides, by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


class Options(NamedTuple):
  """What the trial is made with."""

  seed: int  # Of all training; the worlds are the same for all.
  quick: bool = False


class Sets:
  """The worlds and sets, which all seeds share."""

  def __init__(self, output: pathlib.Path):
    data = output / 'data'
    self.world, self.drawn = output / 'world', output / 'stills'
    self.clips, self.stills = data / 'clips', data / 'stills'
    self.truth = self.world / 'test' / 'truth.jsonl'


def world(quick: bool) -> scenes.World:
  """The clips of fine-tuning: each caption of the test split has one clip."""
  train = {'move': 1000, 'resize': 400, 'turn': 100, 'wall': 150, 'event': 350}
  test = dict.fromkeys(train, -1)
  if quick:
    train, test = {'move': 48, 'resize': 16}, {'move': 16, 'resize': 8}
  else:
    assert sum(train.values()) == image_text_runs.CLIPS
  return scenes.World(seed=0, train=train, test_captions=test, renderings=1)


def run(output, results, seeds, *, quick: bool = False) -> None:
  """Trains and measures what is not there yet: each row for all seeds, before the next row.

  Args:
    output: folder for everything.
    results: folder of a small JSON file for each seed.
    seeds: of training.
    quick: a few steps on a few clips.
  Raises:
    ValueError: if a file of --results or the folder was made with another `quick`.
  """
  output, results = pathlib.Path(output), pathlib.Path(results)
  for seed in seeds:
    made = _read(results, seed).get('made')
    if made and made['quick'] != quick:
      raise ValueError(
        f'{results}/seed{seed}.json was made {"with" if made["quick"] else "without"} --quick, '
        'and these figures do not belong together; choose another --results.'
      )
  todo = [(row, seed) for row in ROWS for seed in seeds if row not in _read(results, seed)['rows']]
  if not todo:
    return
  results.mkdir(parents=True, exist_ok=True)
  output.mkdir(parents=True, exist_ok=True)
  claim(output, {'quick': quick})
  stages = Stages(output, total=6 + 2 * len(seeds) + len(todo))
  sets = Sets(output)
  _prepare(stages, sets, quick)
  for seed in seeds:
    Seed(stages, sets, output / f'seed{seed}', Options(seed, quick)).start()
  for name, seed in todo:
    folder = Seed(stages, sets, output / f'seed{seed}', Options(seed, quick)).make(ROWS[name].run)
    found = _read(results, seed) | {'made': how_made(Options(seed, quick))}
    found['rows'][name] = measure(folder, sets, averaged=ROWS[name].averaged)
    files.write_text(results / f'seed{seed}.json', json.dumps(found, indent=1) + '\n')
    print(f'seed {seed}, {name}: {found["rows"][name]}', flush=True)


def _prepare(stages, sets, quick):
  shown = world(quick)
  options = {
    name: getattr(shown, name) for name in ('seed', 'train', 'test_captions', 'renderings')
  }
  stages.run(
    'draw clips',
    script('make_shapes_world'),
    f'--output={sets.world}',
    f'--options={json.dumps(options)}',
    '--workers=1',
  )
  if not (sets.drawn / 'other' / 'captions.json').is_file():
    drawn = stills.write(stills.world(3000, 16 if quick else 2000), sets.drawn, shown)
    print(f'stills: {drawn}', flush=True)
  made = ('--fps=0', '--short_side=0', '--quality=95', '--workers=1')
  for split in ('train', 'test'):
    folder = sets.world / split
    stages.run(
      f'prepare clips, {split}',
      script('prepare'),
      '--source=folder',
      f'--videos={folder / "videos"}',
      f'--captions={folder / "captions.jsonl"}',
      f'--output={sets.clips}',
      f'--split={split}',
      *made,
    )
  for split in stills.SPLITS:
    folder = sets.drawn / split
    stages.run(
      f'prepare stills, {split}',
      script('prepare'),
      '--source=cc3m',
      f'--images={folder / "images"}',
      f'--captions={folder / "captions.json"}',
      f'--output={sets.stills}',
      f'--split={split}',
      *made,
    )


class Seed:
  """The runs of one seed."""

  def __init__(self, stages, sets, folder, options):
    self._stages, self._sets, self._folder, self._options = stages, sets, folder, options
    self._clip = folder / 'clip'

  def start(self):
    """Trains the stand-in, writes it as a CLIP, and converts that."""
    if not (self._clip / 'vocab.json').is_file():
      # Of both sets, as a published vocabulary would be.
      clip_folder.write_vocabulary(self._clip, _captions(self._sets), 640)
    self._train('stand_in')
    if not (self._clip / 'model.safetensors').is_file():
      from alpro_jax.evaluation import trained

      model = trained.load(self._folder / 'stand_in')
      clip_folder.write_weights(self._clip, model.params, model.model.config)
    self._run(
      'convert',
      f'--image_text={self._clip}',
      '--frames=4',
      f'--seed={self._options.seed}',
      f'--output={self._folder / "start"}',
    )

  def make(self, run):
    """Makes a run unless it is there, and returns its folder."""
    start = self._folder / 'start'
    if run in image_text_runs.ROWS:
      self._train(run, *(() if run == 'random' else (f'--config.train.init_from={start}',)))
    elif run.startswith('between'):
      self._run(
        'convert',
        f'--checkpoint={self._folder / "plain"}',
        f'--interpolate={start}',
        f'--alpha={ALPHA}',
        *([f'--keep={image_text.TIME}'] if run == 'between_space' else []),
        f'--output={self._folder / run}',
        name=f'interpolate, {run}',
      )
    return self._folder / run

  def _train(self, name, *more):
    words = json.loads((self._clip / 'vocab.json').read_text())
    quick = ('train.steps=4', 'optimizer.warmup_steps=1', 'data.batch_size=16')
    self._run(
      'main',
      f'--config={os.path.relpath(ROOT / "examples/shapes/image_text_runs.py")}:{name}',
      f'--config.seed={self._options.seed}',
      '--config.data.sources[0].path='
      + str(self._sets.stills if name == 'stand_in' else self._sets.clips),
      f'--config.data.tower_tokenizer={self._clip}',
      f'--config.model.text_tower.end_id={len(words) - 1}',
      *more,
      *(f'--config.{option}' for option in quick if self._options.quick),
      f'--workdir={self._folder / name}',
      name=f'train {name}',
    )

  def _run(self, command, *flags, name=''):
    self._stages.run(f'seed {self._options.seed}: {name or command}', script(command), *flags)


def _captions(sets):
  rows = (sets.world / 'train' / 'captions.jsonl').read_text().splitlines()
  of_stills = json.loads((sets.drawn / 'train' / 'captions.json').read_text())
  return [row['caption'] for row in [*map(json.loads, rows), *of_stills]]


def measure(run: pathlib.Path, sets: Sets, *, averaged: bool) -> dict[str, float]:
  """Asks a model what it knows, in %: METRICS, and what chance gives for each."""
  import tensorflow as tf

  tf.config.set_visible_devices([], 'GPU')
  from alpro_jax.evaluation import trained
  from examples.shapes import zero_shot

  log_to_console()
  # Only a run that averaged may be asked for its last step.
  model = trained.load(run, averaged=averaged)
  asked = zero_shot.evaluate(model, sets.clips, 'test', truth=str(sets.truth)).figures
  found = {
    'clips': asked['zero_shot.t2v_r1'],
    'clips_chance': asked['zero_shot.t2v_r1_chance'],
    'order': asked['probes.order.similarity.all'],
    'order_chance': 50.0,
  }
  for split in ('shown', 'other'):
    asked = zero_shot.evaluate(model, sets.stills, split).figures
    found |= {split: asked['zero_shot.t2v_r1'], f'{split}_chance': asked['zero_shot.t2v_r1_chance']}
  return found


def _read(results, seed) -> dict[str, Any]:
  file = results / f'seed{seed}.json'
  return json.loads(file.read_text()) if file.is_file() else {'rows': {}}


class Interval(NamedTuple):
  """The mean over seeds, and half of its 95 % interval by Student's t; NaN of one seed."""

  mean: float
  half: float

  @property
  def clear(self) -> int:
    """1 or -1 if the interval lies above or below 0, else 0."""
    return (abs(self.mean) > self.half) * (1 if self.mean > 0 else -1)

  def __str__(self):
    return self._text(f'{self.mean:.1f}')

  def signed(self) -> str:
    """As a difference, in bold where the interval leaves out 0."""
    text = self._text(f'{self.mean:+.1f}')
    return f'**{text}**' if self.clear else text

  def _text(self, mean):
    # No half of one seed, and where all agree, as by chance.
    return (mean + (f' ± {self.half:.1f}' if self.half > 0 else '')).replace('-', '−')


def interval(values) -> Interval:
  """Returns the mean of values that are independent, with its interval."""
  if len(values) < 2:
    return Interval(statistics.mean(values), math.nan)
  error = statistics.stdev(values) / math.sqrt(len(values))
  return Interval(statistics.mean(values), _T[len(values) - 1] * error)


class Found:
  """What the page asks about all seeds; `of` there. A row counts once it has all of them."""

  def __init__(self, seeds):
    self.seeds = {seed: x for seed, x in seeds.items() if {'start', REFERENCE} <= set(x['rows'])}
    if not self.seeds:
      raise ValueError('no seed has figures yet; let the command run on.')
    self.made = [x['made'] for x in self.seeds.values()]
    self.rows = {
      name: row for name, row in ROWS.items() if all(name in x['rows'] for x in self.seeds.values())
    }

  def values(self, row: str, metric: str) -> list[float]:
    """One figure for each seed."""
    return [x['rows'][row][metric] for x in self.seeds.values()]

  def value(self, row: str, metric: str) -> Interval:
    return interval(self.values(row, metric))

  def difference(self, row: str, other: str, metric: str) -> Interval:
    """How much more a row has than another, seed by seed."""
    both = zip(self.values(row, metric), self.values(other, metric), strict=True)
    return interval([a - b for a, b in both])

  def better(self, metric: str, sign: int = 1) -> list[str]:
    """Titles of the rows that clearly have more than REFERENCE, or with sign -1 less."""
    return [
      row.title
      for name, row in self.rows.items()
      if name != 'start' and self.difference(name, REFERENCE, metric).clear == sign
    ]


def render(found: Found) -> str:
  """Returns the page, as Markdown."""
  template = page.environment(TEMPLATES).overlay(autoescape=False).get_template('image_text.md')
  text = template.render(
    of=found, metrics=METRICS, reference=REFERENCE, runs=image_text_runs, alpha=ALPHA
  )
  return text.strip() + '\n'


def main() -> None:
  flag = flags.FLAGS
  seeds = [int(seed) for seed in flag.seeds]
  quick, docs = flag.quick, ROOT / 'docs'
  output = pathlib.Path(flag.output or ('runs/quick/image_text' if quick else 'runs/image_text'))
  results = pathlib.Path(flag.results or (output if quick else docs) / 'results' / 'image_text')
  page = flag.page
  if page is None:
    page = (output if quick else docs) / 'starting-weights.md'
  if quick:
    keep_off_docs(output=output, results=results, **({'page': pathlib.Path(page)} if page else {}))
  run(output, results, seeds, quick=quick)
  if page:
    files.write_text(page, render(Found({seed: _read(results, seed) for seed in seeds})))
    print(f'Written: {page}')


if __name__ == '__main__':
  # Here, so that tests may import this beside commands with flags of these names.
  flags.DEFINE_string(
    'output',
    None,
    'Folder for worlds, sets and runs; runs/image_text, with --quick runs/quick/image_text.',
  )
  flags.DEFINE_string(
    'results',
    None,
    'Folder of the figures of each seed; docs/results/image_text, with --quick below --output.',
  )
  flags.DEFINE_string(
    'page', None, "The page; docs/starting-weights.md, with --quick below --output; '' is none."
  )
  flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds of training.')
  flags.DEFINE_bool('quick', False, 'A few steps on a few clips; the figures mean nothing.')
  command.run(main)
