"""The page of the demo: whether it worked, beside what it is compared with."""

import datetime
import json
import os
import pathlib
import platform
import re
from collections.abc import Mapping
from typing import Any

import jax

from alpro_jax.evaluation import facts
from alpro_jax.evaluation.page import Table
from alpro_jax.train import identity
from examples.shapes import report, zero_shot
from examples.shapes.report import Headline


def headlines(results, tuned):
  """The figures that answer whether it worked, with what they should reach."""
  found = results['pretrain'].figures
  texts, videos = (int(found[f'zero_shot.{x}']) for x in ('texts', 'videos'))
  ceiling = found['zero_shot.t2v_r1_ceiling']
  low, high = (found[f'zero_shot.similarity.t2v_r1_{x}'] for x in ('low', 'high'))
  return [
    Headline(
      'zero_shot.similarity.t2v_r1',
      'Does a text find its clip?',
      f'R@1 of {texts} texts among {videos} clips never seen in training, '
      'by the similarity of their features (95 % interval '
      f'{low:.1f} to {high:.1f} %). Each text describes several clips and '
      f'only one can be first, so {ceiling:.0f} % is the most there is.',
      0.6 * ceiling,
      100 / videos,
    ),
    Headline(
      'zero_shot.t2v_r1',
      'And if the fusion encoder reads both?',
      'R@1 of the same search, ordered by the match that it sees in every pair of text and clip.',
      0.6 * ceiling,
      100 / videos,
    ),
    Headline(
      'zero_shot.similarity.t2v_r10',
      'Is it at least among the first ten?',
      'R@10 by similarity.',
      90.0,
      1000 / videos,
    ),
    Headline(
      'probes.right_caption.similarity.all',
      'Does a clip find its caption?',
      f'Its own caption scores highest of all {texts}, by similarity. This '
      'is the honest figure in this world: equal captions do not compete.',
      75.0,
      100 / texts,
    ),
    Headline(
      'probes.right_caption.similarity.never_trained',
      'Also captions that were never trained?',
      'Colours, shapes and motions were seen, but not in this combination.',
      75.0,
      100 / texts,
    ),
    Headline(
      'probes.order.similarity.all',
      'Can it tell a motion from the same frames backwards?',
      'A clip scores higher with its caption than with the one for its '
      'frames in reverse order. A frame of unknown time cannot tell.',
      95.0,
      50.0,
    ),
    Headline(
      'probes.vtm.random',
      'Can it tell a right pair from a wrong one?',
      'Video-text matching with random wrong partners. Always saying no gives 66.7 %.',
      90.0,
      200 / 3,
    ),
    Headline(
      'probes.vtm.hard',
      'And from a wrong one that looks right?',
      'Wrong partners drawn by similarity, as in training.',
      80.0,
      200 / 3,
    ),
    Headline(
      'probes.pseudo.right',
      'Does the prompter name what a region shows?',
      'Of random crops that hold the object, labelled from the crop alone. '
      'The mark of chance is one answer for all crops; twice that, and twice '
      'what shuffled labels reach, is asked.',
      _twice(found, 'probes.pseudo.right'),
      found.get('probes.pseudo.right_constant'),
    ),
    Headline(
      'probes.pem.agrees',
      'Does the model learn these names?',
      'It sees the whole clip and predicts the label of the region. The '
      'mark of chance is one answer for all crops.',
      _twice(found, 'probes.pem.agrees'),
      found.get('probes.pem.agrees_constant'),
    ),
    Headline(
      'probes.pem.right_misled',
      'Does it look, or only read the caption?',
      'The entity that it predicts names what is in the clip even beside a '
      'caption that names another shape. With the right caption: '
      f'{found.get("probes.pem.right", 0):.1f} %.',
      None,
      found.get('probes.pseudo.right_constant'),
    ),
    *_tuned_headlines({name: x.metrics for name, x in tuned.items()}),
  ]


def _tuned_headlines(found):
  """The figures of fine-tuning, on clips of the downstream world."""
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
      found['retrieval_zero_shot']['t2v_r1'],
      search['t2v_r1_chance'],
    ),
    Headline(
      'qa.accuracy',
      'Can it answer questions about a clip?',
      f'{asked["questions"]:.0f} questions of what is there, how many, '
      'where it goes and what happens first. The mark of chance is the most '
      'frequent answer; 25 points more are asked. Fine-tuned from random '
      f'weights: {found["qa_scratch"]["accuracy"]:.1f} %.',
      asked['most_frequent'] + 25,
      asked['most_frequent'],
    ),
  ]
  for kind, question in (
    ('direction', 'Which way does it move?'),
    ('order', 'What happens first?'),
  ):
    name = f'accuracy_{kind}'
    lines.append(
      Headline(
        f'qa.{name}',
        question,
        'Two answers to choose from, as often right. The same model with '
        f'frames averaged over time: {frames[name]:.1f} %.',
        80.0,
        asked[f'best_per_wording_{kind}'],
      )
    )
  return lines


def _twice(figures, name):
  """Twice the better of a constant and of shuffled labels; None if absent."""
  known = [figures.get(f'{name}_{x}') for x in ('constant', 'shuffled')]
  return None if None in known else 2 * max(known)


def how_made(options) -> dict[str, Any]:
  """What may make a difference between two demos.

  The options, the code and versions of libraries, the processor, what tells XLA
  which of its cores and instructions to use, and the day.
  """
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  names = re.findall(r'model name\s*: (.*)', cpuinfo.read_text() if cpuinfo.exists() else '')
  return {
    **options._asdict(),
    'code': facts.code_version(),
    'versions': identity.versions(),
    'processor': names[0] if names else platform.machine(),
    'cores': os.cpu_count(),
    'environment': {x: os.environ[x] for x in ('PJRT_NPROC', 'XLA_FLAGS') if os.environ.get(x)},
    'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
  }


def write(
  files, results, tuned, cards, models, stages, *, made: Mapping[str, Any], warning: str
) -> pathlib.Path:
  """Writes report.html and report.json; returns the path of the page.

  Args:
    files: of the demo; see demo.Files.
    results: zero_shot.Result of prompter, contrast_only and pretrain.
    tuned: what was found out about each of the models.
    cards: of two of these, paths by name.
    models: the fine-tuned ones; see demo.DOWNSTREAM.
    stages: of the work, in order.
    made: of `how_made`.
    warning: to stand on top, or ''.
  """
  output = files.output
  runs = {name: output / name for name in (*results, *(model.run for model in models.values()))}
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
  figures |= {f'seconds.{x.name.replace(" ", "_").replace(",", "")}': x.seconds for x in stages}
  best, worst = zero_shot.searches(main_result)
  parameters = sum(x.size for x in jax.tree.leaves(main_result.trained.params))
  device = jax.devices()[0].device_kind
  config = main_result.trained.config
  matching = 'train/accuracy/vtm'
  return report.write(
    report.Report(
      title='What a small ALPRO learned from moving shapes',
      notes=[
        f'A model of {parameters / 1e6:.1f} million parameters, trained from '
        'random weights on clips drawn by this program (seed '
        f'{made["seed"]}), on {jax.device_count()} device(s) of kind '
        f'{device} and {made["cores"]} processor cores. First the prompter '
        'learns by contrast, then all four losses of the paper for '
        f'{config.train.steps} steps, with the frozen prompter naming '
        'regions.',
        'All figures are on clips and, where it says so, captions that were '
        'never trained. Ties count against the model.',
      ],
      warning=warning,
      figures=figures,
      made=made,
      headlines=headlines(results, tuned),
      best=best,
      worst=worst,
      regions=zero_shot.regions(main_result, seed=made['seed']),
      entities=zero_shot.chosen_entities(main_result),
      comparison=_comparison(results),
      details=tuning_tables(tuned, models) | zero_shot.detail_tables(figures),
      curves={
        'the prompter': report.read_curves(
          runs['prompter'] / 'tensorboard',
          ['train/loss/vtc', 'train/accuracy/t2v', 'train/temperature'],
        ),
        'all four losses': report.read_curves(
          runs['pretrain'] / 'tensorboard',
          [
            'train/loss/vtc',
            'train/loss/vtm',
            'train/loss/mlm',
            'train/loss/pem',
            matching,
            'train/accuracy/mlm',
            'train/accuracy/pem',
            'train/pseudo/entropy',
            'train/pseudo/kept',
          ],
          {'train/loss/vtm': 0.6365, matching: 2 / 3},
        ),
        'retrieval': report.read_curves(
          runs['retrieval'] / 'tensorboard',
          ['train/loss/vtc', 'train/loss/vtm'],
          {'train/loss/vtm': 0.6365},
        ),
        'question answering': report.read_curves(
          runs['qa'] / 'tensorboard', ['train/loss/answer', 'train/accuracy/answer']
        ),
      },
      stages=stages,
      files={
        'this page, as numbers': str(output / 'report.json'),
        'the model': str(runs['pretrain']),
        'the prompter': str(runs['prompter']),
        'fine-tuned for retrieval': str(runs['retrieval']),
        'fine-tuned for questions': str(runs['qa']),
        **{f'card of {name}': str(path) for name, path in cards.items()},
        'the model of contrast alone': str(runs['contrast_only']),
        'data': str(output / 'data'),
        'videos': str(output / 'world'),
      },
    ),
    output,
  )


def _flat(name, found):
  """A model's figures on the downstream world, with their intervals."""
  figures = dict(found.metrics)
  for metric, (low, high) in found.intervals.items():
    figures |= {f'{metric}_low': low, f'{metric}_high': high}
  return {f'{name}.{k.replace("/", ".")}': float(v) for k, v in figures.items()}


def tuning_tables(tuned, models):
  """Fine-tuned models beside what they are compared to, with 95 % intervals."""

  def cell(found, name):
    low, high = found.intervals[name]
    return f'{found.metrics[name]:.1f} ({low:.0f}–{high:.0f})'

  tables = {}
  for title, task, columns in (
    (
      'Fine-tuned for retrieval, % (95 % interval)',
      'retrieval',
      {
        't2v_r1': 'text to clip, R@1',
        't2v_r5': 'R@5',
        't2v_r10': 'R@10',
        'v2t_r1': 'clip to text, R@1',
        'similarity/t2v_r1': 'text to clip, R@1, by similarity',
      },
    ),
    (
      'Fine-tuned for questions, % (95 % interval)',
      'qa',
      {
        'accuracy': 'all',
        'accuracy_shape': 'shape',
        'accuracy_colour': 'colour',
        'accuracy_count': 'count',
        'accuracy_direction': 'direction',
        'accuracy_change': 'change',
        'accuracy_order': 'order',
        'accuracy_depth': 'depth',
      },
    ),
  ):
    alike = {name: model for name, model in models.items() if model.task == task}
    known = tuned[task].metrics
    columns = {name: label for name, label in columns.items() if name in known}
    rows = [
      (model.title, *(cell(tuned[name], column) for column in columns))
      for name, model in alike.items()
    ]
    if task == 'qa':
      rows.insert(
        0,
        (
          'the best answer to each wording, without looking',
          *(f'{known[c.replace("accuracy", "best_per_wording")]:.1f}' for c in columns),
        ),
      )
    tables[title] = Table(['model', *columns.values()], rows)
  return tables


def _comparison(results):
  rows = []
  for label, by_similarity, by_matching in (
    ('text to clip, R@1', 'zero_shot.similarity.t2v_r1', 'zero_shot.t2v_r1'),
    ('text to clip, R@5', 'zero_shot.similarity.t2v_r5', 'zero_shot.t2v_r5'),
    ('text to clip, R@10', 'zero_shot.similarity.t2v_r10', 'zero_shot.t2v_r10'),
    ('clip to text, R@1', 'zero_shot.similarity.v2t_r1', 'zero_shot.v2t_r1'),
    (
      'right caption, never trained',
      'probes.right_caption.similarity.never_trained',
      'probes.right_caption.matching.never_trained',
    ),
    ('order of frames', 'probes.order.similarity.all', 'probes.order.matching.all'),
  ):
    names = ('prompter', 'contrast_only', 'pretrain')
    cells = [results[name].figures.get(by_similarity) for name in names]
    rows.append((label, *cells, results['pretrain'].figures.get(by_matching)))
  titles = (
    'at the start',
    'contrast alone',
    'four losses, by similarity',
    'four losses, by matching',
  )
  return Table(['%', *titles], rows)


def print_table(figures, results, tuned) -> None:
  """Prints the headlines with what they should reach, and what chance is."""
  print(f'\n{"":<58}{"found":>8}{"target":>9}{"chance":>9}')
  for key, question, _, *goals, _ in headlines(results, tuned):
    if key in figures:
      target, chance = ('' if x is None else f'{x:.1f}' for x in goals)
      print(f'{question:<58}{figures[key]:>8.1f}{target:>9}{chance:>9}')
