"""From nothing to a report: data, prompter, pre-training, figures.

  python launch/demo.py --output=runs/demo

Draws a world of moving shapes, prepares it, makes tokenizer and entities,
trains the prompter, pre-trains ALPRO with it, and fine-tunes that for retrieval
and for question answering on a second world that says things in other words.
To compare, it pre-trains with contrast alone, fine-tunes from random weights,
and answers from averaged frames. Then it asks all of them what they know, and
writes report.html and two cards.
Every step is one of the commands of this repository, printed before it runs. A
step that is done is not done again: start it again after an interruption.
"""

import argparse
import functools
import importlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from alpro_jax import files

ROOT = pathlib.Path(__file__).resolve().parents[1]

QUICK = (
    'Made with --quick: a few steps on a few clips, to see that everything '
    'runs. The figures mean nothing.')
QUICK_WORLD = {
    'train': {'move': 48, 'resize': 24, 'turn': 8, 'wall': 8, 'event': 8},
    'test_captions': {
        'move': 6, 'resize': 4, 'turn': 2, 'wall': 2, 'event': 2},
}
QUICK_DOWNSTREAM = {
    'train': {'move': 16, 'resize': 16, 'event': 16, 'count': 16},
    'test_captions': {'move': 4, 'resize': 4, 'event': 4, 'count': 4},
}
QUICK_STEPS = 6


class Downstream(NamedTuple):
  """A model on the downstream world: what it is, and the run that made it."""

  title: str
  task: str  # 'retrieval' or 'qa'.
  run: str


# The fine-tuned model of each task last; the others are what it is compared to.
DOWNSTREAM = {
    'retrieval_zero_shot': Downstream(
        'not fine-tuned', 'retrieval', 'pretrain'),
    'retrieval_scratch': Downstream(
        'the same fine-tuning, from random weights', 'retrieval',
        'retrieval_scratch'),
    'retrieval': Downstream('fine-tuned', 'retrieval', 'retrieval'),
    'qa_frames': Downstream(
        'fine-tuned, frames averaged over time', 'qa', 'qa_frames'),
    'qa_scratch': Downstream(
        'the same fine-tuning, from random weights', 'qa', 'qa_scratch'),
    'qa': Downstream('fine-tuned', 'qa', 'qa'),
}


def _parser():
  parser = argparse.ArgumentParser(
      prog='python launch/demo.py', description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  add = parser.add_argument
  add('--output', default='runs/demo', help='folder for everything')
  add('--seed', type=int, default=0, help='of the world and of training (0)')
  add('--quick', action='store_true',
      help='a few steps on a few clips; the figures mean nothing')
  return parser


class Stages:
  """Runs commands once, and remembers how long each took."""

  def __init__(self, output: pathlib.Path, total: int):
    self._file = output / 'stages.json'
    self._done = {}
    if self._file.exists():
      self._done = json.loads(self._file.read_text())
    self._number, self._total = 0, total
    self.shown = []  # (name, seconds, command, kept)

  def run(self, name: str, *command: str) -> None:
    """Runs a Python command unless the same one is done already."""
    line = shlex.join(('python', *command))
    self._announce(name)
    print(f'$ {line}', flush=True)
    known = self._done.get(name)
    if not known or known['command'] != line:
      known = {'command': line, 'seconds': 0.0, 'done': False}
    if known['done']:
      print(f'done before, {known["seconds"]:.0f} s', flush=True)
      self.shown.append((name, known['seconds'], line, True))
      return
    start = time.monotonic()
    code = _wait(command)
    seconds = time.monotonic() - start
    # An interrupted command goes on where it was: its time adds up.
    known['seconds'] += seconds
    known['done'] = not code
    self._done[name] = known
    files.write_text(self._file, json.dumps(self._done, indent=1) + '\n')
    if code:
      raise SystemExit(
          f'demo: "{name}" ended with code {code} after {seconds:.0f} s. Give '
          'the same command again to go on from here.')
    self.finish(name, known['seconds'], line)

  def finish(self, name, seconds, line=''):
    print(f'{seconds:.0f} s', flush=True)
    self.shown.append((name, seconds, line, False))

  def _announce(self, name):
    self._number += 1
    print(f'\n[{self._number}/{self._total}] {name}', flush=True)

  def begin(self, name):
    self._announce(name)
    return time.monotonic()


def _wait(command):
  """Runs a command to its end; Ctrl-C lets it save first."""
  environment = dict(os.environ)
  environment['PYTHONPATH'] = os.pathsep.join(
      filter(None, (str(ROOT), environment.get('PYTHONPATH'))))
  process = subprocess.Popen((sys.executable, *command), env=environment)
  previous = signal.signal(
      signal.SIGTERM, lambda *_: process.send_signal(signal.SIGTERM))
  try:
    while True:
      try:
        return process.wait()
      except KeyboardInterrupt:
        pass  # The child got it as well, and saves.
  finally:
    signal.signal(signal.SIGTERM, previous)


def main(argv=None):
  options = _parser().parse_args(argv)
  output = pathlib.Path(options.output)
  output.mkdir(parents=True, exist_ok=True)
  claim(output, {'seed': options.seed, 'quick': options.quick})
  stages = Stages(output, total=20)
  files = Files(output)
  changes = {'seed': options.seed} | (QUICK_WORLD if options.quick else {})
  stages.run(
      'draw the world', script('make_shapes_world'), f'--output={files.world}',
      f'--options={json.dumps(changes)}')
  # Another seed, or clips would share their backgrounds with the first world.
  changes = {'purpose': 'downstream', 'seed': 1000 + options.seed} | (
      QUICK_DOWNSTREAM if options.quick else {})
  stages.run(
      'draw the downstream world', script('make_shapes_world'),
      f'--output={files.tuning_world}', f'--options={json.dumps(changes)}')
  for name, world, data, asked in (
      ('', files.world, files.shapes, False),
      ('downstream ', files.tuning_world, files.downstream, True)):
    for split in ('train', 'test'):
      rows = {kind: world / split / f'{kind}.jsonl'
              for kind in ('captions', 'questions')[:1 + asked]}
      stages.run(
          f'prepare the {name}{split} split', script('prepare'),
          '--source=folder', f'--videos={world / split / "videos"}',
          *(f'--{kind}={file}' for kind, file in rows.items()),
          f'--output={data}', f'--split={split}', '--fps=0', '--short_side=0',
          '--quality=95')
  # One for both worlds, as a published vocabulary would be.
  stages.run(
      'make the tokenizer', script('tokenizer'), f'--captions={files.shapes}',
      f'--captions={files.downstream}', '--vocab_size=320',
      f'--output={files.tokenizer}')
  # Nouns, but no things that a region could show.
  stages.run(
      'list the entities', script('entities'), f'--captions={files.shapes}',
      '--limit=100', '--stop_words=shape,right,front',
      f'--output={files.entities}')
  stages.run(
      'list the answers', script('answers'), f'--data={files.downstream}',
      f'--output={files.answers}')

  train = functools.partial(_train, options, stages, files)
  train('train the prompter', 'prompter', 'pretrain_prompter')
  started = f'--config.train.init_from={files.output / "prompter"}'
  train('pre-train with all four losses', 'pretrain', 'pretrain', started)
  train('pre-train with contrast alone, to compare', 'contrast_only',
        'pretrain', started, '--config.loss.vtm=0', '--config.loss.mlm=0',
        '--config.loss.pem=0')
  started = f'--config.train.init_from={files.output / "pretrain"}'
  scratch, frames = 'ablations/from_scratch', 'ablations/frame_encoder'
  train('fine-tune for retrieval', 'retrieval', 'finetune_msrvtt_retrieval',
        started)
  train('the same from random weights', 'retrieval_scratch',
        scratch, argument='retrieval,demo')
  train('fine-tune for question answering', 'qa', 'finetune_msrvtt_qa', started)
  train('the same from random weights, to compare', 'qa_scratch', scratch,
        argument='qa,demo')
  train('the same from averaged frames, to compare', 'qa_frames', frames,
        started, argument='qa,demo')
  _evaluate(options, stages, files)


class Files:
  """Where everything lies."""

  def __init__(self, output: pathlib.Path):
    data = output / 'data'
    self.output = output
    self.world, self.tuning_world = output / 'world', output / 'tuning_world'
    self.shapes, self.downstream = data / 'shapes', data / 'downstream'
    self.tokenizer = data / 'tokenizer.model'
    self.entities, self.answers = data / 'entities.txt', data / 'answers.txt'


def script(name: str) -> str:
  """The path of a command of this repository, from here."""
  return os.path.relpath(ROOT / 'launch' / f'{name}.py')


def _train(options, stages, files, name, run, file, *flags, argument='demo'):
  """Trains a config as a stage, unless it is done."""
  stages.run(
      name, script('main'), *config_flags(options, files, file, argument),
      *flags, f'--workdir={files.output / run}')


def claim(output, options):
  """Refuses a folder that was begun with other options."""
  file = output / 'options.json'
  known = json.loads(file.read_text()) if file.exists() else options
  if known != options:
    raise ValueError(
        f'{output} was begun with {known}, and this is {options}; choose '
        'another --output, or remove that folder.')
  file.write_text(json.dumps(options) + '\n')


def config_flags(options, files, file: str, argument: str) -> list[str]:
  """The flags that make a demo config read and write this folder.

  Args:
    options: seed and quick.
    files: of the demo.
    file: below configs/, without suffix.
    argument: of the config.
  """
  module = importlib.import_module(f'configs.{file.replace("/", ".")}')
  config = module.get_config(argument)
  tuning = config.task in ('retrieval', 'question_answering')
  data = files.downstream if tuning else files.shapes
  path = os.path.relpath(ROOT / 'configs' / f'{file}.py')
  flags = [
      f'--config={path}:{argument}', f'--config.seed={options.seed}',
      *(f'--config.{part}.sources[{i}].path={data}'
        for part in ('data', 'eval') for i in range(len(config[part].sources))),
      f'--config.data.tokenizer={files.tokenizer}']
  if config.data.text == 'questions':
    flags.append(f'--config.data.answers={files.answers}')
  if config.task == 'pretrain' and config.loss.pem:
    from alpro_jax.data import entities
    number = min(
        len(entities.read_entities(files.entities, 0)),
        config.prompter.num_entities)
    flags += [
        f'--config.prompter.checkpoint={files.output / "prompter"}',
        f'--config.prompter.entities={files.entities}',
        f'--config.prompter.num_entities={number}']
  if options.quick:
    flags += [
        f'--config.train.steps={QUICK_STEPS}',
        f'--config.train.log_every_steps={QUICK_STEPS // 3}',
        '--config.data.batch_size=16', '--config.optimizer.warmup_steps=1',
        # Compiling takes nearly all of the time.
        '--config.model.video.depth=1', '--config.model.text.depth=2',
        '--config.model.text.fusion_layer=1']
  return flags


def log_to_console() -> None:
  """Shows progress lines, without the chatter of other libraries."""
  from absl import logging

  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)

  def ours(record):
    return record.levelno > 30 or 'alpro_jax' in record.pathname

  logging.get_absl_handler().addFilter(ours)


def _evaluate(options, stages, files):
  start = stages.begin('ask what they know')
  import tensorflow as tf

  tf.config.set_visible_devices([], 'GPU')
  from alpro_jax.data import dataset
  from alpro_jax.evaluation import card, split, trained
  from examples.shapes import zero_shot

  log_to_console()
  truth = files.world / 'test' / 'truth.jsonl'
  results = {}
  for name in ('prompter', 'contrast_only', 'pretrain'):
    results[name] = zero_shot.evaluate(
        trained.load(files.output / name), files.shapes, 'test',
        truth=str(truth))
  stages.finish('ask what they know', time.monotonic() - start)

  start = stages.begin('ask what fine-tuning taught them')
  prepared = dataset.open_dataset(files.downstream, 'test')
  tuned, cards = {}, {}
  for name, model in DOWNSTREAM.items():
    evaluated = split.evaluate(
        trained.load(files.output / model.run), prepared)
    tuned[name] = evaluated.found
    if name in ('retrieval', 'qa'):
      cards[name] = card.write(
          card.make(evaluated), files.output / 'cards' / name)
  stages.finish('ask what fine-tuning taught them', time.monotonic() - start)

  start = stages.begin('write the report')
  page = _write_report(options, stages, files, results, tuned, cards)
  figures = json.loads((files.output / 'report.json').read_text())
  _print_table(figures, results, tuned)
  stages.finish('write the report', time.monotonic() - start)
  total = sum(seconds for _, seconds, _, _ in stages.shown)
  print(f'\n{total / 60:.1f} minutes of work in all.\nReport: {page}\n'
        f'Figures: {files.output / "report.json"}\n'
        f'Model: {files.output / "pretrain"}')
  for name, path in cards.items():
    print(f'Card of {name}: {path}')
  if options.quick:
    print(QUICK)


def headlines(results, tuned):
  """The figures that answer whether it worked, with what they should reach."""
  from alpro_jax.evaluation.report import Headline

  found = results['pretrain'].figures
  texts, videos = (int(found[f'zero_shot.{x}']) for x in ('texts', 'videos'))
  ceiling = found['zero_shot.t2v_r1_ceiling']
  low, high = (
      found[f'zero_shot.similarity.t2v_r1_{x}'] for x in ('low', 'high'))
  return [
      Headline(
          'zero_shot.similarity.t2v_r1', 'Does a text find its clip?',
          f'R@1 of {texts} texts among {videos} clips never seen in training, '
          'by the similarity of their features (95 % interval '
          f'{low:.1f} to {high:.1f} %). Each text describes several clips and '
          f'only one can be first, so {ceiling:.0f} % is the most there is.',
          0.6 * ceiling, 100 / videos),
      Headline(
          'zero_shot.t2v_r1', 'And if the fusion encoder reads both?',
          'R@1 of the same search, ordered by the match that it sees in every '
          'pair of text and clip.', 0.6 * ceiling, 100 / videos),
      Headline(
          'zero_shot.similarity.t2v_r10', 'Is it at least among the first ten?',
          'R@10 by similarity.', 90.0, 1000 / videos),
      Headline(
          'probes.right_caption.similarity.all',
          'Does a clip find its caption?',
          f'Its own caption scores highest of all {texts}, by similarity. This '
          'is the honest figure in this world: equal captions do not compete.',
          75.0, 100 / texts),
      Headline(
          'probes.right_caption.similarity.never_trained',
          'Also captions that were never trained?',
          'Colours, shapes and motions were seen, but not in this combination.',
          75.0, 100 / texts),
      Headline(
          'probes.order.similarity.all',
          'Can it tell a motion from the same frames backwards?',
          'A clip scores higher with its caption than with the one for its '
          'frames in reverse order. A frame of unknown time cannot tell.', 95.0,
          50.0),
      Headline(
          'probes.vtm.random', 'Can it tell a right pair from a wrong one?',
          'Video-text matching with random wrong partners. Always saying no '
          'gives 66.7 %.', 90.0, 200 / 3),
      Headline(
          'probes.vtm.hard', 'And from a wrong one that looks right?',
          'Wrong partners drawn by similarity, as in training.', 80.0,
          200 / 3),
      Headline(
          'probes.pseudo.right', 'Does the prompter name what a region shows?',
          'Of random crops that hold the object, labelled from the crop alone. '
          'The grey mark is one answer for all crops; twice that, and twice '
          'what shuffled labels reach, is asked.',
          _twice(found, 'probes.pseudo.right'),
          found.get('probes.pseudo.right_constant')),
      Headline(
          'probes.pem.agrees', 'Does the model learn these names?',
          'It sees the whole clip and predicts the label of the region. The '
          'grey mark is one answer for all crops.',
          _twice(found, 'probes.pem.agrees'),
          found.get('probes.pem.agrees_constant')),
      Headline(
          'probes.pem.right_misled', 'Does it look, or only read the caption?',
          'The entity that it predicts names what is in the clip even beside a '
          'caption that names another shape. With the right caption: '
          f'{found.get("probes.pem.right", 0):.1f} %.', None,
          found.get('probes.pseudo.right_constant')),
      *_tuned_headlines({name: x.metrics for name, x in tuned.items()}),
  ]


def _tuned_headlines(found):
  """The figures of fine-tuning, on clips of the downstream world."""
  from alpro_jax.evaluation.report import Headline

  search, asked = found['retrieval'], found['qa']
  frames = found['qa_frames']
  lines = [
      Headline(
          'retrieval.t2v_r1',
          'Fine-tuned, does a text in other words find its clip?',
          f'R@1 of {search["texts"]:.0f} texts among {search["videos"]:.0f} '
          'clips of a second world, whose captions are worded otherwise. Not '
          f'fine-tuned: {found["retrieval_zero_shot"]["t2v_r1"]:.1f} %; '
          'fine-tuned from random weights: '
          f'{found["retrieval_scratch"]["t2v_r1"]:.1f} %.',
          found['retrieval_zero_shot']['t2v_r1'], search['t2v_r1_chance']),
      Headline(
          'qa.accuracy', 'Can it answer questions about a clip?',
          f'{asked["questions"]:.0f} questions of what is there, how many, '
          'where it goes and what happens first. The grey mark is the most '
          'frequent answer; 25 points more are asked. Fine-tuned from random '
          f'weights: {found["qa_scratch"]["accuracy"]:.1f} %.',
          asked['most_frequent'] + 25, asked['most_frequent']),
  ]
  for kind, question in (
      ('direction', 'Which way does it move?'),
      ('order', 'What happens first?')):
    name = f'accuracy_{kind}'
    lines.append(Headline(
        f'qa.{name}', question,
        'Two answers to choose from, as often right. The same model with '
        f'frames averaged over time: {frames[name]:.1f} %.', 80.0,
        asked[f'best_per_wording_{kind}']))
  return lines


def _twice(figures, name):
  """Twice the better of a constant and of shuffled labels; None if absent."""
  known = [figures.get(f'{name}_{x}') for x in ('constant', 'shuffled')]
  return None if None in known else 2 * max(known)


def _write_report(options, stages, files, results, tuned, cards):
  import jax

  from alpro_jax.evaluation import report
  from examples.shapes import zero_shot

  output = files.output
  runs = {name: output / name for name in (
      *results, *(model.run for model in DOWNSTREAM.values()))}
  main_result = results['pretrain']
  figures = dict(main_result.figures)
  for name in ('prompter', 'contrast_only'):
    figures |= {f'{name}.{k}': v for k, v in results[name].figures.items()}
  for name, found in tuned.items():
    figures |= _flat(name, found)
  for name, folder in runs.items():
    run = json.loads((folder / 'report.json').read_text())
    for key in ('clips_per_second', 'waiting_share'):
      if key in run:
        figures[f'{name}.{key}'] = run[key]
  figures |= {
      f'seconds.{name.replace(" ", "_").replace(",", "")}': seconds
      for name, seconds, _, _ in stages.shown}
  best, worst = zero_shot.searches(main_result)
  parameters = sum(x.size for x in jax.tree.leaves(main_result.trained.params))
  device = jax.devices()[0].device_kind
  config = main_result.trained.config
  matching = 'train/accuracy/vtm'
  return report.write(report.Report(
      title='What a small ALPRO learned from moving shapes',
      notes=[
          f'A model of {parameters / 1e6:.1f} million parameters, trained from '
          'random weights on clips drawn by this program (seed '
          f'{options.seed}), on {jax.device_count()} device(s) of kind '
          f'{device} and {os.cpu_count()} processor cores. First the prompter '
          'learns by contrast, then all four losses of the paper for '
          f'{config.train.steps} steps, with the frozen prompter naming '
          'regions.',
          'All figures are on clips and, where it says so, captions that were '
          'never trained. Ties count against the model.'],
      warning=QUICK if options.quick else '',
      figures=figures, headlines=headlines(results, tuned), best=best,
      worst=worst,
      regions=zero_shot.regions(main_result, seed=options.seed),
      entities=zero_shot.chosen_entities(main_result),
      comparison=_comparison(results),
      details=tuning_tables(tuned) | zero_shot.detail_tables(figures),
      curves={
          'the prompter': report.read_curves(
              runs['prompter'] / 'tensorboard',
              ['train/loss/vtc', 'train/accuracy/t2v', 'train/temperature']),
          'all four losses': report.read_curves(
              runs['pretrain'] / 'tensorboard',
              ['train/loss/vtc', 'train/loss/vtm', 'train/loss/mlm',
               'train/loss/pem', matching, 'train/accuracy/mlm',
               'train/accuracy/pem', 'train/pseudo/entropy',
               'train/pseudo/kept'],
              {'train/loss/vtm': 0.6365, matching: 2 / 3}),
          'retrieval': report.read_curves(
              runs['retrieval'] / 'tensorboard',
              ['train/loss/vtc', 'train/loss/vtm'],
              {'train/loss/vtm': 0.6365}),
          'question answering': report.read_curves(
              runs['qa'] / 'tensorboard',
              ['train/loss/answer', 'train/accuracy/answer'])},
      stages=[report.Stage(*stage) for stage in stages.shown],
      files={
          'this page, as numbers': str(output / 'report.json'),
          'the model': str(runs['pretrain']),
          'the prompter': str(runs['prompter']),
          'fine-tuned for retrieval': str(runs['retrieval']),
          'fine-tuned for questions': str(runs['qa']),
          **{f'card of {name}': str(path) for name, path in cards.items()},
          'the model of contrast alone': str(runs['contrast_only']),
          'data': str(output / 'data'), 'videos': str(output / 'world')},
  ), output)


def _flat(name, found):
  """A model's figures on the downstream world, with their intervals."""
  figures = dict(found.metrics)
  for metric, (low, high) in found.intervals.items():
    figures |= {f'{metric}_low': low, f'{metric}_high': high}
  return {f'{name}.{k.replace("/", ".")}': float(v)
          for k, v in figures.items()}


def tuning_tables(tuned):
  """Fine-tuned models beside what they are compared to, with 95 % intervals."""
  from alpro_jax.evaluation.report import Table

  def cell(found, name):
    low, high = found.intervals[name]
    return f'{found.metrics[name]:.1f} ({low:.0f}–{high:.0f})'

  tables = {}
  for title, task, columns in (
      ('Fine-tuned for retrieval, % (95 % interval)', 'retrieval', {
          't2v_r1': 'text to clip, R@1', 't2v_r5': 'R@5', 't2v_r10': 'R@10',
          'v2t_r1': 'clip to text, R@1',
          'similarity/t2v_r1': 'text to clip, R@1, by similarity'}),
      ('Fine-tuned for questions, % (95 % interval)', 'qa', {
          'accuracy': 'all', 'accuracy_shape': 'shape',
          'accuracy_colour': 'colour', 'accuracy_count': 'count',
          'accuracy_direction': 'direction', 'accuracy_change': 'change',
          'accuracy_order': 'order', 'accuracy_depth': 'depth'})):
    models = {name: model for name, model in DOWNSTREAM.items()
              if model.task == task}
    known = tuned[task].metrics
    columns = {name: label for name, label in columns.items() if name in known}
    rows = [
        (model.title, *(cell(tuned[name], column) for column in columns))
        for name, model in models.items()]
    if task == 'qa':
      rows.insert(0, ('the best answer to each wording, without looking', *(
          f'{known[c.replace("accuracy", "best_per_wording")]:.1f}'
          for c in columns)))
    tables[title] = Table(['model', *columns.values()], rows)
  return tables


def _comparison(results):
  from alpro_jax.evaluation.report import Table

  def pick(name, key):
    return results[name].figures.get(key)

  rows = []
  for label, key in (
      ('text to clip, R@1', 't2v_r1'), ('text to clip, R@5', 't2v_r5'),
      ('text to clip, R@10', 't2v_r10'), ('clip to text, R@1', 'v2t_r1')):
    rows.append((
        label, *(pick(name, f'zero_shot.similarity.{key}')
                 for name in ('prompter', 'contrast_only', 'pretrain')),
        pick('pretrain', f'zero_shot.{key}')))
  for label, key in (
      ('right caption, never trained', 'right_caption.{}.never_trained'),
      ('order of frames', 'order.{}.all')):
    rows.append((
        label, *(pick(name, 'probes.' + key.format('similarity'))
                 for name in ('prompter', 'contrast_only', 'pretrain')),
        pick('pretrain', 'probes.' + key.format('matching'))))
  return Table(
      ['%', 'at the start', 'contrast alone', 'four losses, by similarity',
       'four losses, by matching'], rows)


def _print_table(figures, results, tuned):
  print(f'\n{"":<58}{"found":>8}{"target":>9}{"nothing":>9}')
  for line in headlines(results, tuned):
    if line.key in figures:
      target, nothing = (
          '' if x is None else f'{x:.1f}' for x in (line.target, line.nothing))
      print(f'{line.question:<58}{figures[line.key]:>8.1f}{target:>9}'
            f'{nothing:>9}')


if __name__ == '__main__':
  try:
    main()
  except (OSError, ValueError) as e:
    sys.exit(f'demo: {e}')
