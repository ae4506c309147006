"""Runs side by side on one page: which options differ, and what came of it.

A run is a workdir, with the cards of evaluate.py somewhere below it, or the
folder of one card. Figures are compared where they were measured on the same
data in the same way; where both cards keep what came of each example, the
differences are paired:

             video 0   video 1   video 2
  run A         1         0         0        right: 33.3 %
  run B         1         1         0        right: 66.7 %
  B - A         0         1         0        33.3, interval by bootstrap over videos

so that what is hard for both runs does not widen the interval.
"""

import collections
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from alpro_jax import metrics
from alpro_jax.evaluation import page

_EXAMPLES = ('ranks.jsonl', 'answers.jsonl')
_NONE = '–'


class Measured(NamedTuple):
  """What card.json says, and the lines of ranks.jsonl or answers.jsonl beside it."""

  card: Mapping[str, Any]
  examples: Sequence[Mapping[str, Any]]


class Run(NamedTuple):
  """One run.

  Attributes:
    label: its letter on the page.
    path: as it was given.
    options: {dotted name: value} of its training; of a card's folder the main ones.
    report: report.json, {} if there is none.
    measured: by what was measured how, see `_key`; of several the newest that was shown the
      same as those of the other runs.
  """

  label: str
  path: str
  options: Mapping[str, Any]
  report: Mapping[str, Any]
  measured: Mapping[tuple[str, ...], Measured]


class Paired(NamedTuple):
  """A figure of one run minus that of the first, on the same examples.

  Attributes:
    figure, label: which, and of which run.
    value, low, high: mean difference in percentage points, and its 95 % interval.
    better, worse: examples that this run alone, or the first alone, got right.
    examples: of both.
  """

  figure: str
  label: str
  value: float
  low: float
  high: float
  better: int
  worse: int
  examples: int


def read(paths: Sequence[str]) -> list[Run]:
  """Reads runs.

  Raises:
    FileNotFoundError: a path is no folder of a run or card.
    ValueError: there are fewer than two, or more than letters, or a file is damaged.
  """
  if not 2 <= len(paths) <= 26:
    raise ValueError(f'got {len(paths)} runs; give 2 to 26 workdirs, or folders of cards.')
  read = [_read(path) for path in paths]
  keys = dict.fromkeys(key for *_, cards in read for key in cards)
  chosen = [{} for _ in read]
  for key in keys:
    having = [i for i, (*_, cards) in enumerate(read) if key in cards]
    for i, one in zip(having, _shown_alike([read[i][-1][key] for i in having]), strict=True):
      chosen[i][key] = one
  return [
    Run(chr(ord('A') + i), str(path), options, report, measured)
    for i, (path, (options, report, _), measured) in enumerate(
      zip(paths, read, chosen, strict=True)
    )
  ]


def _shown_alike(each: Sequence[Sequence[Measured]]) -> list[Measured]:
  """Of several lists of cards, one of each: shown the same if there are such, or the newest."""
  # Two frames and four, or the best step and the last, may both have been measured.
  shown = [[_shows(one.card) for one in cards] for cards in each]
  common = next((x for x in shown[0] if all(x in of for of in shown)), None)
  return [cards[of.index(common) if common else 0] for cards, of in zip(each, shown, strict=True)]


def _shows(card):
  """How clips and texts were shown to the model."""
  image = card.get('image', {})
  return {
    'frames of a clip': card.get('frames', {}).get('per_clip'),
    'pixels': image.get('side'),
    'resized': image.get('resize'),
    'tokens of a text, at most': card.get('text', {}).get('max_tokens'),
  }


def shown_otherwise(runs: Sequence[Run], key: tuple[str, ...]) -> list[tuple[str, list]]:
  """Returns [(what, [(label, value)])] of what differs in how `key` was measured."""
  each = []
  for run in runs:
    card = run.measured[key].card
    each.append(_shows(card) | {'step': (card.get('checkpoint') or {}).get('step')})
  return [
    (name, [(run.label, _shown(one[name])) for run, one in zip(runs, each, strict=True)])
    for name in each[0]
    if len({_shown(one[name]) for one in each}) > 1
  ]


def _read(path):
  """Returns its options, its report and {key: all of its cards, the newest first}."""
  folder, measured = pathlib.Path(path), {}
  for file in sorted(folder.rglob('card.json')):
    card = _json(file)
    examples = [file.with_name(name) for name in _EXAMPLES if file.with_name(name).is_file()]
    one = Measured(card, _lines(examples[0]) if examples else ())
    measured.setdefault(_key(card), []).append(one)
  for of in measured.values():
    of.sort(key=lambda one: one.card['date'], reverse=True)
  config, report = (_json(folder / name, {}) for name in ('config.json', 'report.json'))
  if not (measured or config):
    raise FileNotFoundError(
      f'{path} has neither config.json nor a card.json below it; give the workdir of a run, or '
      'the folder that launch/evaluate.py --output wrote.'
    )
  # A card says the main ones of the run that it is about.
  options = dict(_flat(config)) if config else next(iter(measured.values()))[0].card['run']
  return options, report, measured


def _json(path, default=None):
  if default is not None and not path.is_file():
    return default
  try:
    return dict(json.loads(path.read_text(encoding='utf-8')))
  except (ValueError, TypeError) as error:
    raise ValueError(f'{path} is damaged: {error}; write it again.') from error


def _lines(path):
  try:
    with path.open(encoding='utf-8', newline='\n') as file:
      return [json.loads(line) for line in file]
  except ValueError as error:
    raise ValueError(f'{path} is damaged: {error}; evaluate again.') from error


def _flat(value, name='') -> Iterator[tuple[str, Any]]:
  """{'a': {'b': [1]}} -> ('a.b[0]', 1)"""
  if isinstance(value, Mapping):
    for key, below in value.items():
      yield from _flat(below, f'{name}.{key}' if name else key)
  elif isinstance(value, list):
    for i, below in enumerate(value):
      yield from _flat(below, f'{name}[{i}]')
  else:
    yield name, value


def _key(card):
  """What must agree for figures to be comparable."""
  data, scoring = card['data'], card['scoring']
  how = f'{scoring["rule"]}, {scoring["k"]}' if 'k' in scoring else scoring['rule']
  return card['title'], data['digest'], how


def differing(runs: Sequence[Run]) -> list[tuple[str, ...]]:
  """Returns (option, value in each run) of the options that are not the same in all.

  Where a run is known by its card alone, those count that all of them state.
  """
  names = dict.fromkeys(name for run in runs for name in run.options)
  if not all('data.frames' in run.options for run in runs):
    names = [name for name in names if all(name in run.options for run in runs)]
  rows = [(name, *(_shown(run.options.get(name)) for run in runs)) for name in names]
  return [row for row in rows if len(set(row[1:])) > 1]


def _shown(value):
  if value is None:
    return _NONE
  return f'{value:g}' if isinstance(value, float) else str(value) if value != '' else "''"


def paired(first: Run, other: Run, key: tuple[str, ...]) -> list[Paired]:
  """Returns the paired differences of two runs, [] if their examples are not the same."""
  mine, theirs = (_right(run.measured[key].examples) for run in (first, other))
  if not mine or mine.keys() != theirs.keys():
    return []
  _, groups = np.unique([video for video, *_ in mine], return_inverse=True)
  rows = []
  for figure in next(iter(mine.values())):
    a, b = (np.array([of[key][figure] for key in mine], float) for of in (mine, theirs))
    low, high = metrics.bootstrap_interval(100 * (b - a), groups=groups)
    value = 100 * float((b - a).mean())
    rows.append(
      Paired(figure, other.label, value, low, high, int((b > a).sum()), int((b < a).sum()), len(a))
    )
  return rows


def _right(examples):
  """{(video, text, true answer, how often it came before): {figure: whether right}}."""
  found, seen = {}, collections.Counter()
  for row in examples:
    key = row['video'], row.get('text') or row.get('question'), row.get('answer', '')
    right = (
      {f't2v_r{k}': row['rank'] <= k for k in (1, 5, 10)}
      if 'rank' in row
      else {'accuracy': row['right']}
    )
    found[*key, seen[key]] = right
    seen[key] += 1
  return found


def name_of(figure: str) -> str:
  """'t2v_r1' -> 'text to video, R@1'; 'accuracy_what' -> 'right, what'."""
  first, _, rest = figure.partition('_')
  names = {'t2v': 'text to video', 'v2t': 'video to text', 'accuracy': 'right'}
  if first not in names:
    return figure.replace('_', ' ')
  if rest.startswith('grouped_'):
    first, rest = f'{names[first]}, captions grouped', rest.removeprefix('grouped_')
  recall = rest.startswith('r') and rest[1:].isdigit()
  rest = f'R@{rest[1:]}' if recall else rest.replace('_', ' ')
  return ', '.join(filter(None, (names.get(first, first), rest)))


def render(runs: Sequence[Run]) -> str:
  """Returns the page."""
  keys = dict.fromkeys(key for run in runs for key in run.measured)
  shared = {key: [run for run in runs if key in run.measured] for key in keys}
  ends = dict.fromkeys(name for run in runs for name in run.report.get('evaluation') or {})
  training = {
    'step': lambda report: report.get('step'),
    'clips per second': lambda report: report.get('clips_per_second'),
    'waiting for input, %': lambda report: round(100 * report['waiting_share'], 1),
    'loss': lambda report: report['metrics'].get('loss'),
    **{name: lambda report, name=name: (report['evaluation'] or {}).get(name) for name in ends},
  }
  trained = [run for run in runs if run.report]
  head = ['figure', *(run.label for run in trained)]
  rows = [(name, *(_end(of, run.report) for run in trained)) for name, of in training.items()]
  columns = [run.label for run in runs]
  return page.render(
    'compare.html',
    title=f'{len(runs)} runs compared',
    runs=runs,
    letters=[(run.label, run.path) for run in runs],
    options=page.Table(['option', *columns], differing(runs)),
    same=len(set.intersection(*(set(run.options.items()) for run in runs))),
    training=page.Table(head, [row for row in rows if row[0].count('/') < 2]),
    # Of single sets and by other orders: eval/0/t2v_r1, eval/similarity/t2v_r1.
    others=page.Table(head, [row for row in rows if row[0].count('/') > 1]),
    measured=[
      (
        key,
        those,
        shown_otherwise(those, key),
        _figures(key, those),
        [row for run in those[1:] for row in paired(those[0], run, key)],
      )
      for key, those in shared.items()
    ],
    name_of=name_of,
  )


def _end(of, report):
  try:
    value = of(report)
  except KeyError:
    value = None
  return _NONE if value is None else f'{value:,}' if isinstance(value, int) else f'{value:.4g}'


def _figures(key, runs):
  """[(figure, [(label, value with its interval)])] of those that have intervals."""
  cards = {run.label: run.measured[key].card['metrics'] for run in runs}
  names = dict.fromkeys(
    name for card in cards.values() for name, value in card.items() if 'low' in value
  )

  def order(name):  # R@10 after R@5, ranks after shares.
    padded = re.sub(r'\d+', lambda number: number[0].zfill(3), name)
    return '/' in name, 'rank' in name, 'grouped' in name, padded

  return [
    (name, [(label, card[name]) for label, card in cards.items() if name in card])
    for name in sorted(names, key=order)
  ]
