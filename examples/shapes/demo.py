"""The demo: every stage from drawn clips to a report; see launch/demo.py."""

import functools
import importlib
import json
import os
import pathlib
import time
from typing import NamedTuple

from examples.shapes.stages import ROOT, Stages, claim, log_to_console, script

QUICK = (
  'Made with --quick: a few steps on a few clips, to see that everything '
  'runs. The figures mean nothing.'
)
QUICK_WORLD = {
  'train': {'move': 48, 'resize': 24, 'turn': 8, 'wall': 8, 'event': 8},
  'test_captions': {'move': 6, 'resize': 4, 'turn': 2, 'wall': 2, 'event': 2},
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
  'retrieval_zero_shot': Downstream('not fine-tuned', 'retrieval', 'pretrain'),
  'retrieval_scratch': Downstream(
    'the same fine-tuning, from random weights', 'retrieval', 'retrieval_scratch'
  ),
  'retrieval': Downstream('fine-tuned', 'retrieval', 'retrieval'),
  'qa_frames': Downstream('fine-tuned, frames averaged over time', 'qa', 'qa_frames'),
  'qa_scratch': Downstream('the same fine-tuning, from random weights', 'qa', 'qa_scratch'),
  'qa': Downstream('fine-tuned', 'qa', 'qa'),
}


class Options(NamedTuple):
  """What the demo is made with."""

  seed: int = 0  # Of the world and of training.
  quick: bool = False  # A few steps on a few clips.


def run(output, options: Options) -> None:
  """Makes everything that is not there yet, and prints what was found.

  Args:
    output: a folder for everything.
    options: what it is made with.
  Raises:
    ValueError: if the folder was begun with other options.
    SystemExit: if a stage fails.
  """
  output = pathlib.Path(output)
  output.mkdir(parents=True, exist_ok=True)
  claim(output, options._asdict())
  stages = Stages(output, total=20)
  files = Files(output)
  # Another seed, or clips would share their backgrounds with the first world.
  downstream = {'purpose': 'downstream', 'seed': 1000 + options.seed}
  for name, folder, changes, quick in (
    ('world', files.world, {'seed': options.seed}, QUICK_WORLD),
    ('downstream world', files.tuning_world, downstream, QUICK_DOWNSTREAM),
  ):
    stages.run(
      f'draw the {name}',
      script('make_shapes_world'),
      f'--output={folder}',
      f'--options={json.dumps(changes | (quick if options.quick else {}))}',
    )
  for name, world, data, asked in (
    ('', files.world, files.shapes, False),
    ('downstream ', files.tuning_world, files.downstream, True),
  ):
    for split in ('train', 'test'):
      rows = {
        kind: world / split / f'{kind}.jsonl' for kind in ('captions', 'questions')[: 1 + asked]
      }
      stages.run(
        f'prepare the {name}{split} split',
        script('prepare'),
        '--source=folder',
        f'--videos={world / split / "videos"}',
        *(f'--{kind}={file}' for kind, file in rows.items()),
        f'--output={data}',
        f'--split={split}',
        '--fps=0',
        '--short_side=0',
        '--quality=95',
      )
  # One for both worlds, as a published vocabulary would be.
  stages.run(
    'make the tokenizer',
    script('tokenizer'),
    f'--captions={files.shapes}',
    f'--captions={files.downstream}',
    '--vocab_size=320',
    f'--output={files.tokenizer}',
  )
  # Nouns, but no things that a region could show.
  stages.run(
    'list the entities',
    script('entities'),
    f'--captions={files.shapes}',
    '--limit=100',
    '--stop_words=shape,right,front',
    f'--output={files.entities}',
  )
  stages.run(
    'list the answers', script('answers'), f'--data={files.downstream}', f'--output={files.answers}'
  )

  train = functools.partial(_train, options, stages, files)
  train('train the prompter', 'prompter', 'pretrain_prompter')
  started = f'--config.train.init_from={files.output / "prompter"}'
  train('pre-train with all four losses', 'pretrain', 'pretrain', started)
  train(
    'pre-train with contrast alone, to compare',
    'contrast_only',
    'pretrain',
    started,
    '--config.loss.vtm=0',
    '--config.loss.mlm=0',
    '--config.loss.pem=0',
  )
  started = f'--config.train.init_from={files.output / "pretrain"}'
  scratch, frames = 'ablations/from_scratch', 'ablations/frame_encoder'
  train('fine-tune for retrieval', 'retrieval', 'finetune_msrvtt_retrieval', started)
  train('the same from random weights', 'retrieval_scratch', scratch, argument='retrieval,demo')
  train('fine-tune for question answering', 'qa', 'finetune_msrvtt_qa', started)
  train('the same from random weights, to compare', 'qa_scratch', scratch, argument='qa,demo')
  train(
    'the same from averaged frames, to compare', 'qa_frames', frames, started, argument='qa,demo'
  )
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


def _train(options, stages, files, name, run, file, *flags, argument='demo'):
  """Trains a config as a stage, unless it is done."""
  stages.run(
    name,
    script('main'),
    *config_flags(options, files, file, argument),
    *flags,
    f'--workdir={files.output / run}',
  )


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
    f'--config={path}:{argument}',
    f'--config.seed={options.seed}',
    *(
      f'--config.{part}.sources[{i}].path={data}'
      for part in ('data', 'eval')
      for i in range(len(config[part].sources))
    ),
    f'--config.data.tokenizer={files.tokenizer}',
  ]
  if config.data.text == 'questions':
    flags.append(f'--config.data.answers={files.answers}')
  if config.task == 'pretrain' and config.loss.pem:
    from alpro_jax.data import entities

    number = min(len(entities.read_entities(files.entities, 0)), config.prompter.num_entities)
    flags += [
      f'--config.prompter.checkpoint={files.output / "prompter"}',
      f'--config.prompter.entities={files.entities}',
      f'--config.prompter.num_entities={number}',
    ]
  if options.quick:
    flags += [
      f'--config.train.steps={QUICK_STEPS}',
      f'--config.train.log_every_steps={QUICK_STEPS // 3}',
      '--config.data.batch_size=16',
      '--config.optimizer.warmup_steps=1',
      # Compiling takes nearly all of the time.
      '--config.model.video.depth=1',
      '--config.model.text.depth=2',
      '--config.model.text.fusion_layer=1',
    ]
  return flags


def _evaluate(options, stages, files):
  start = stages.begin('ask what they know')
  import tensorflow as tf

  tf.config.set_visible_devices([], 'GPU')
  from alpro_jax.data import dataset
  from alpro_jax.evaluation import card, split, trained
  from examples.shapes import demo_page, zero_shot

  log_to_console()
  truth = files.world / 'test' / 'truth.jsonl'
  results = {}
  for name in ('prompter', 'contrast_only', 'pretrain'):
    results[name] = zero_shot.evaluate(
      trained.load(files.output / name), files.shapes, 'test', truth=str(truth)
    )
  stages.finish('ask what they know', time.monotonic() - start)

  start = stages.begin('ask what fine-tuning taught them')
  prepared = dataset.open_dataset(files.downstream, 'test')
  tuned, cards = {}, {}
  for name, model in DOWNSTREAM.items():
    evaluated = split.evaluate(trained.load(files.output / model.run), prepared)
    tuned[name] = evaluated.found
    if name in ('retrieval', 'qa'):
      cards[name] = card.write(card.make(evaluated), files.output / 'cards' / name)
  stages.finish('ask what fine-tuning taught them', time.monotonic() - start)

  start = stages.begin('write the report')
  page = demo_page.write(
    files,
    results,
    tuned,
    cards,
    DOWNSTREAM,
    stages.shown,
    made=demo_page.how_made(options),
    warning=QUICK if options.quick else '',
  )
  figures = json.loads((files.output / 'report.json').read_text())
  demo_page.print_table(figures, results, tuned)
  stages.finish('write the report', time.monotonic() - start)
  total = sum(stage.seconds for stage in stages.shown)
  print(
    f'\n{total / 60:.1f} minutes of work in all.\nReport: {page}\n'
    f'Figures: {files.output / "report.json"}\n'
    f'Model: {files.output / "pretrain"}'
  )
  for name, path in cards.items():
    print(f'Card of {name}: {path}')
  if options.quick:
    print(QUICK)
