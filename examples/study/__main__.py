"""Trains the rows of the study and writes what came out.

  python -m examples.study --output=runs/study
  python -m examples.study --output=runs/study --rows=alpro,without_pem --seeds=0,1
  python -m examples.study --output=runs/study --labels
  python -m examples.study --page_only

--labels names regions by each seed's prompter, as the rows of plan.labelled do, and trains
nothing else.
What is finished is kept: each row and seed leaves a small file in docs/results/study/,
which is committed, so that the study goes on on any machine, and docs/study.md is written
from all of them. Two commands with other --seeds may run side by side, once the clips are
made. Rows, metrics and seeds: plan.py. --quick tries everything with a few steps, in
runs/quick/study, and leaves nothing in docs/.
"""

import functools
import importlib
import json
import os
import pathlib
import shutil
import time
from typing import NamedTuple

from absl import flags

from alpro_jax import files
from examples.shapes.stages import ROOT, Stages, keep_off_docs, log_to_console, script
from examples.study import plan
from launch import command

_OUTPUT = flags.DEFINE_string(
  'output', None, 'Folder of clips, sets and runs; runs/study, with --quick runs/quick/study.'
)
_WORLD = flags.DEFINE_enum('world', 'babyai', [*plan.WORLDS], 'Where the clips come from.')
_ROWS = flags.DEFINE_list('rows', [], f'Some of {", ".join(plan.ROWS)}; all by default.')
_SEEDS = flags.DEFINE_list('seeds', [], "Some of each row's seeds; all by default.")
_RESULTS = flags.DEFINE_string(
  'results', None, 'Folder of finished rows; docs/results/study, with --quick below --output.'
)
_PAGE = flags.DEFINE_string(
  'page', None, 'The page; docs/study.md, with --quick study.md below --output.'
)
_PAGE_ONLY = flags.DEFINE_bool('page_only', False, 'Write the page, train nothing.')
_LABELS = flags.DEFINE_bool('labels', False, 'Compare labels of regions; train prompters alone.')
_QUICK = flags.DEFINE_bool('quick', False, 'A few steps on a few clips; the figures mean nothing.')

QUICK_CLIPS = {
  'babyai': ('--clips=40',),
  # Ten episodes each: of fifty tasks none would be held out.
  'metaworld': ('--clips=40', '--tasks=door-open,drawer-close,faucet-open,push'),
}
QUICK_FLAGS = (
  '--config.train.steps=2',
  '--config.optimizer.warmup_steps=1',
  '--config.data.batch_size=8',
  # Compiling takes nearly all of the time.
  '--config.model.video.depth=1',
  '--config.model.text.depth=2',
  '--config.model.text.fusion_layer=1',
)


def main():
  unknown = sorted(set(_ROWS.value) - set(plan.ROWS))
  if unknown:
    raise ValueError(f'--rows names {unknown}; choose from {list(plan.ROWS)}.')
  output, results, page = _places()
  if not _PAGE_ONLY.value:
    study = Study(_WORLD.value, output, results)
    study.make_sets()
    if _LABELS.value:
      run, rows = study.label_regions, plan.labelled(study.name)
    else:
      run, rows = study.run, _ROWS.value or study.world.rows or plan.ROWS
    for row in rows:
      seeds = plan.seeds(study.name, 'alpro' if _LABELS.value else row)
      for seed in map(int, _SEEDS.value or seeds):
        run(row, seed)
  _write_page(results, page)


def _places():
  """Paths of --output, --results and --page."""
  quick, docs = _QUICK.value, pathlib.Path(os.path.relpath(ROOT / 'docs'))
  output = pathlib.Path(_OUTPUT.value or ('runs/quick/study' if quick else 'runs/study'))
  results = pathlib.Path(_RESULTS.value or (output if quick else docs) / 'results' / 'study')
  page = pathlib.Path(_PAGE.value or (output if quick else docs) / 'study.md')
  if quick:
    keep_off_docs(output=output, results=results, page=page)
  return output, results, page


def _write_page(results, page):
  from examples.study import table

  parts = ['# The study\n']
  if _QUICK.value:
    parts.append('Made with --quick: a few steps on a few clips; the figures mean nothing.\n')
  for world in plan.WORLDS:
    read = functools.partial(
      table.read, results, digest=functools.partial(plan.digest, world), quick=_QUICK.value
    )
    if found := read(world):
      parts.append(table.write(found, world))
    if found := read(f'{world}/labels'):
      parts.append(table.write(found, f'{world}: labels of regions, by prompters alone'))
  files.write_text(page, '\n'.join(parts))
  print(f'Written: {page}')


class Made(NamedTuple):
  """What tells one run of a row from another."""

  seed: int
  quick: bool


class Study:
  """Clips, sets and runs of one world below one folder."""

  def __init__(self, world: str, output: pathlib.Path, results: pathlib.Path):
    self.name, self.world = world, plan.WORLDS[world]
    self.folder, self.results = output / world, results / world
    self.data = self.folder / 'data'
    self.data.mkdir(parents=True, exist_ok=True)
    self._quick = _QUICK.value

  def make_sets(self) -> None:
    """Makes clips, sets, and the lists beside them."""
    with files.lock(self.folder / 'lock', 'makes the clips; wait for that and repeat the command'):
      stages = Stages(
        self.folder, total=(2 + len(self.world.splits)) * len(self.world.captions) + 2
      )
      clips = QUICK_CLIPS[self.name] if self._quick else (f'--clips={self.world.clips}',)
      for name, dials in self.world.captions.items():
        stages.run(
          f'{name}: clips and captions',
          '-m',
          f'examples.{self.name}',
          f'--output={self.folder / "clips"}',
          *clips,
          f'--captions={name}',
          *(f'--{dial}={share}' for dial, share in dials.items()),
        )
        for split in ('train', *self.world.splits):
          place = self.folder / 'clips' / split
          stages.run(
            f'{name}: {split} split',
            script('prepare'),
            '--source=folder',
            f'--videos={place / "videos"}',
            f'--captions={place / name}.jsonl',
            f'--questions={place / "questions.jsonl"}',
            f'--output={self.data / name}',
            f'--split={split}',
            '--fps=0',
            '--short_side=0',
            '--quality=95',
          )
      exact = self.data / 'exact'
      stages.run(
        'tokenizer',
        script('tokenizer'),
        f'--captions={exact}',
        f'--captions={self.data / "partial"}',
        f'--vocab_size={plan.PIECES}',
        f'--output={self.data / "tokenizer.model"}',
      )
      stages.run(
        'answers', script('answers'), f'--data={exact}', f'--output={self.data / "answers.txt"}'
      )
    for name, entities in self.world.entities.items():
      files.write_text(self.data / f'{name}.txt', ''.join(f'{entity}\t1\n' for entity in entities))

  def run(self, name: str, seed: int) -> None:
    """Trains a row, asks what it knows, and writes its file."""
    file = self.results / f'{name}_seed{seed}.json'
    if file.exists():
      print(f'{file} is there.')
      return
    row, start = plan.ROWS[name], time.monotonic()
    folder, prompter = self.folder / name / f'seed{seed}', self._prompter(row, seed)
    tuned = self.world.stages
    folder.mkdir(parents=True, exist_ok=True)
    stages = Stages(folder, total=2 + len(tuned))
    if row.needs_prompter:
      self._train(stages, name, 'prompter', seed, prompter, row.captions)
    begun = ''
    if row.pretrain is not None:
      flags_of_teacher = []
      if row.teaches:
        teacher = self._teacher(stages, row, prompter)
        flags_of_teacher = [f'--config.prompter.{key}={x}' for key, x in teacher.items()]
      if row.start == 'prompter':
        flags_of_teacher.append(f'--config.train.init_from={prompter}')
      self._train(
        stages, name, 'pretrain', seed, folder / 'pretrain', row.captions, *flags_of_teacher
      )
      begun = f'--config.train.init_from={folder / "pretrain"}'
    for stage in tuned:
      self._train(stages, name, stage, seed, folder / stage, 'exact', *([begun] if begun else []))
    self._write(file, name, seed, start, self._measure(row, folder))
    for stage in tuned:  # Their figures are what is left.
      shutil.rmtree(folder / stage)

  def label_regions(self, name: str, seed: int) -> None:
    """Names regions as a row does, by a prompter alone, and writes its file."""
    file = self.results / 'labels' / f'{name}_seed{seed}.json'
    if file.exists():
      print(f'{file} is there.')
      return
    row, start = plan.ROWS[name], time.monotonic()
    prompter, folder = self._prompter(row, seed), self.folder / 'labels' / name / f'seed{seed}'
    folder.mkdir(parents=True, exist_ok=True)
    stages = Stages(folder, total=1 + row.learned_prompts)
    self._train(stages, name, 'prompter', seed, prompter, row.captions)
    from examples.study import runs

    config = runs.get_config(f'{self.name},{name},pretrain')
    config.prompter.update(self._teacher(stages, row, prompter))
    measure, clips_of = self._held_out()
    found = measure.labels_of_prompter(prompter, config, clips_of(self.world.splits[0]))
    self._write(file, name, seed, start, {f'labels.{key}': x for key, x in found.items()})

  def _prompter(self, row, seed):
    """Its workdir; rows of equal captions and sizes share it."""
    return self.folder / f'prompter_{row.captions}{"_twice" * row.twice}' / f'seed{seed}'

  def _write(self, file, name, seed, start, figures):
    from examples.shapes import demo_page

    made = {
      'world': self.name,
      'row': name,
      'plan': plan.digest(self.name, name),
      'made': demo_page.how_made(Made(seed, self._quick)),
      'minutes': round((time.monotonic() - start) / 60, 1),
      'figures': {key: round(value, 3) for key, value in sorted(figures.items())},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(file, json.dumps(made, indent=1) + '\n')
    print(f'Written: {file}')

  def _teacher(self, stages, row, prompter):
    """Options of config.prompter; learns prompts from the captions of training, if the row does."""
    options = {'checkpoint': str(prompter), 'entities': f'{self.data / row.entities}.txt'}
    if not row.learned_prompts:
      return options
    file = prompter / 'prompts.npz'
    stages.run(
      'prompts',
      script('prompts'),
      'learn',
      f'--prompter={prompter}',
      f'--data={self.data / row.captions}',
      f'--entities={options["entities"]}',
      f'--start={self.world.templates[0]}',
      f'--output={file}',
    )
    return options | {'prompts': str(file)}

  def _train(self, stages, row, stage, seed, folder, captions, *more):
    config = f'examples/study/runs.py:{self.name},{row},{stage}'
    from examples.study import runs

    sources = runs.get_config(f'{self.name},{row},{stage}').data.sources
    split, share = 'train', plan.QUESTION_SHARES.get(stage.rpartition('_')[2], 1.0)
    if stage == 'retrieval':
      share = plan.RETRIEVAL_SHARE
    if share < 1:
      clips = max(round(share * self._training_clips()), 2)
      split = f'train[-{(seed + 1) * clips}:-{seed * clips}]'
    stages.run(
      f'{row}, seed {seed}: {stage}',
      script('main'),
      f'--config={os.path.relpath(ROOT / config)}',
      f'--config.seed={seed}',
      f'--config.data.tokenizer={self.data / "tokenizer.model"}',
      *(
        f'--config.data.sources[{i}].{key}={value}'
        for i in range(len(sources))
        for key, value in (('path', self.data / captions), ('split', split))
      ),
      *([f'--config.data.answers={self.data / "answers.txt"}'] if 'questions' in stage else []),
      *(QUICK_FLAGS if self._quick else []),
      *more,
      f'--workdir={folder}',
    )

  def _training_clips(self):
    from alpro_jax.data import dataset

    return len(dataset.open_dataset(self.data / 'exact', 'train'))

  def _held_out(self):
    """The module that measures, and what makes the clips of a split for it."""
    command.start()
    from examples.study import measure

    log_to_console()
    lines = (self.folder / 'clips' / 'truth.jsonl').read_text().splitlines()
    truth = {known['video']: known for known in map(json.loads, lines)}
    world = importlib.import_module(f'examples.{self.name}.truth')
    data = str(self.data / 'exact')
    return measure, lambda split: measure.Clips(data, split, truth, world)

  def _measure(self, row, folder):
    (measure, clips_of), names = self._held_out(), self.world.entities['all']
    figures = {}

    def add(prefix, found):
      figures.update({f'{prefix}.{name}': value for name, value in found.items()})

    for split in self.world.splits:
      clips = clips_of(split)
      place = '' if split == self.world.splits[0] else f'.{split}'
      if row.pretrain is not None:
        add(f'zero_shot{place}', measure.searches(folder / 'pretrain', clips, names))
      add(f'retrieval{place}', measure.searches(folder / 'retrieval', clips, ()))
      for stage in self.world.stages[1:]:
        kind = 'order' if stage == 'questions_order' else ''
        add(f'{stage}{place}', measure.questions(folder / stage, clips, kind))
      if row.teaches:
        add(f'pseudo{place}', measure.labels_of_run(folder / 'pretrain', clips))
    return figures


if __name__ == '__main__':
  command.run(main)
