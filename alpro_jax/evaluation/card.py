"""The card of an evaluation: what was measured, on what, and exactly how.

  card.json   for programs: facts, and every metric with its 95 % interval
  card.html   for people: the same, with the best and the worst cases; opens
              from a file, without a server or network

of a model that answers questions also answers.jsonl, a line per question.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from alpro_jax import files
from alpro_jax.evaluation import cases, facts, page, question_answering
from alpro_jax.evaluation.page import Row, Table, format_figure
from alpro_jax.evaluation.question_answering import AnswerResult
from alpro_jax.evaluation.retrieval import Tradeoff
from alpro_jax.evaluation.split import EvaluationResult

_SHOWN = 6  # Best cases, and as many worst ones.
# Questions for each wording from which one answer per wording says something.
_RECURS = 5


@dataclasses.dataclass(frozen=True)
class Card:
  """Everything a card says.

  Attributes:
    title: of the page.
    facts: how the figures were obtained; JSON.
    run: options of the training in short, by name.
    metrics: all of them.
    intervals: 95 % intervals, of those that have one.
    best, worst: cases to show.
    recall: against the pairs that the fusion encoder reads, () without.
    answers: a row for every question, see question_answering.rows.
    warning: shown in a box on top, '' for none.
  """

  title: str
  facts: Mapping[str, Any]
  run: Mapping[str, Any]
  metrics: Mapping[str, float]
  intervals: Mapping[str, tuple[float, float]]
  best: Sequence[page.Search | cases.AnswerCase] = ()
  worst: Sequence[page.Search | cases.AnswerCase] = ()
  recall: Sequence[Tradeoff] = ()
  answers: Sequence[Mapping[str, Any]] = ()
  warning: str = ''


def make(
  evaluated: EvaluationResult, *, recall: Sequence[Tradeoff] = (), warning: str = ''
) -> Card:
  """Returns the card of an evaluation.

  Args:
    evaluated: see split.evaluate.
    recall: see split.recall_against_cost.
    warning: to show on top.
  """
  trained, prepared, style, found = evaluated
  answers = isinstance(found, AnswerResult)
  name = pathlib.Path(prepared.path).name
  what = 'Question answering' if answers else 'Text-video retrieval'
  choose = cases.answer_cases if answers else cases.search_cases
  best, worst = choose(evaluated, _SHOWN)
  rows = (
    question_answering.rows(found, [record.video for record in prepared.metadata()])
    if answers
    else ()
  )
  return Card(
    title=f'{what} on {name}, {prepared.split}' + (f', {style}' if style else ''),
    facts=facts.collect(evaluated),
    run=facts.run_options(trained),
    metrics=found.metrics,
    intervals=found.intervals,
    best=best,
    worst=worst,
    recall=recall,
    answers=rows,
    warning=warning,
  )


def write(card: Card, folder) -> pathlib.Path:
  """Writes card.json and card.html, and answers.jsonl if there are any.

  Returns:
    the path of the page.

  Raises:
    ValueError: if a metric is not a finite number.
  """
  content = to_json(card)
  folder = pathlib.Path(folder)
  files.write_text(folder / 'card.json', content)
  files.write_text(folder / 'card.html', render(card))
  if card.answers:
    files.write_text(
      folder / 'answers.jsonl',
      ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in card.answers),
    )
  return folder / 'card.html'


def to_json(card: Card) -> str:
  """Returns the card as JSON, without the cases.

  A metric is {'value': v} or {'value': v, 'low': l, 'high': h}.
  """
  bad = {k: v for k, v in card.metrics.items() if not math.isfinite(v)}
  if bad:
    raise ValueError(f'figures {bad} are not finite; leave out what was not measured.')
  figures = {}
  for name in sorted(card.metrics):
    # The ends of intervals stand beside what they belong to.
    if name.endswith(('_low', '_high')):
      continue
    figures[name] = {'value': float(card.metrics[name])}
    if name in card.intervals:
      low, high = map(float, card.intervals[name])
      figures[name] |= {'low': low, 'high': high}
  content = {'title': card.title, 'summary': summary(card), **card.facts, 'metrics': figures}
  if card.recall:
    content['recall_against_cost'] = [row._asdict() for row in card.recall]
  content['run'] = card.run
  return json.dumps(content, indent=1, ensure_ascii=False) + '\n'


def render(card: Card) -> str:
  """Returns the page."""
  content = _answer_rows if 'accuracy' in card.metrics else _search_rows
  return page.render(
    'card.html',
    title=card.title,
    card=card,
    summary=summary(card),
    recall=recall_table(card.recall),
    measured=facts.describe(card.facts),
    run=[(name, _plain(value)) for name, value in card.run.items()],
    **content(card),
  )


def summary(card: Card) -> str:
  """The first line of a card: who was asked what, and how it was scored."""
  items, origin = card.facts['items'], card.facts['checkpoint']
  who = 'A model in training'
  if origin:
    who = f'{_run_name(origin["path"])} at step {origin["step"]:,}'
  if 'questions' in items:
    return (
      f'{who}, asked {items["questions"]:,} questions about '
      f'{items["videos"]:,} videos, {card.metrics["in_list"]:.1f} % of '
      'them with an answer that it can give.'
    )
  return (
    f'{who}, searching for {items["texts"]:,} texts among '
    f'{items["videos"]:,} videos, and the other way round. '
    f'{card.facts["scoring"]["pairs"]}'
  )


def _run_name(path):
  """runs/a/checkpoints/300 -> a."""
  parts = [
    part for part in pathlib.Path(path).parts if part != 'checkpoints' and not part.isdigit()
  ]
  return parts[-1] if parts else path


def _search_rows(card):
  """What the page says of a search."""
  found, rows = card.metrics, []
  directions = {'t2v': 'text to video', 'v2t': 'video to text'}
  grouped = {'v2t_grouped': 'the same, captions grouped'}
  if 'v2t_grouped_r1' not in found:
    grouped = {}
  for direction, name in (directions | grouped).items():
    for k in (1, 5, 10):
      chance = None
      if direction == 't2v':
        chance = min(k * found['t2v_r1_chance'], 100)
      rows.append(_row(card, f'{direction}_r{k}', f'{name}, R@{k}', chance))
  optimistic = [
    (name, found[f'{direction}_r1_optimistic'])
    for direction, name in directions.items()
    if f'{direction}_r1_optimistic' in found
  ]
  return {
    'rows': rows,
    'columns': ['', '', '', '95 % interval'],
    'rule': facts.RULES[card.facts['scoring']['rule']],
    'grouped': grouped,
    'optimistic': optimistic,
    'orders': _orders(card),
  }


def _orders(card):
  """All orders of the same search side by side: ranks, and other scores."""
  rule = card.facts['scoring']['rule']
  orders = [(rule, '')] + [
    (name.replace('_', ' '), f'{name}/')
    for name in dict.fromkeys(key.split('/', 1)[0] for key in card.metrics if '/' in key)
    if name != rule
  ]
  columns = [
    (f'{direction}_{figure}', label)
    for direction, arrow in (('t2v', 'text → video'), ('v2t', 'video → text'))
    for figure, label in (
      ('r1', f'{arrow}, R@1'),
      ('r5', 'R@5'),
      ('r10', 'R@10'),
      ('median_rank', 'median'),
      ('mean_rank', 'mean rank'),
    )
  ]
  rows = [
    (name, *(card.metrics.get(prefix + key) for key, _ in columns)) for name, prefix in orders
  ]
  return Table(['order', *(label for _, label in columns)], rows)


def recall_table(rows: Sequence[Tradeoff]) -> Table:
  """The columns of recall against cost, for people."""
  return Table(
    ['k', 'text → video, R@1', 'R@5', 'R@10', 'video → text, R@1', 'pairs read', 'of all', 'GFLOP'],
    [
      (
        str(row.k or 'all pairs'),
        row.t2v_r1,
        row.t2v_r5,
        row.t2v_r10,
        row.v2t_r1,
        row.pairs,
        f'{100 * row.share:.3g} %',
        f'{row.flops / 1e9:,.4g}',
      )
      for row in rows
    ],
  )


def _answer_rows(card):
  """What the page says of answers."""
  found = card.metrics
  kinds = question_answering.list_kinds(
    name.removeprefix('accuracy_') for name in found if name.startswith('accuracy_')
  )
  shown = {'best_per_kind': 'one answer', 'in_list': 'in list'}
  if found['questions'] >= _RECURS * found['wordings']:
    shown = {'best_per_wording': 'one per wording'} | shown
  rows = [
    _row(
      card,
      f'accuracy_{kind}',
      kind,
      found[f'best_per_kind_{kind}'],
      *(format_figure(found[f'{name}_{kind}']) for name in shown),
      f'{found[f"questions_{kind}"]:,.0f}',
    )
    for kind in kinds
  ]
  return {
    'rows': rows,
    'columns': ['kind', '', 'right', '95 % interval', *shown.values(), 'questions'],
    'total': _row(card, 'accuracy', '', found['most_frequent']),
  }


def _row(card, name, label, chance, *others):
  """A metric and its interval, and other cells."""
  interval = card.intervals.get(name)
  between = interval and '{:.1f} to {:.1f}'.format(*interval)
  return Row(
    label,
    card.metrics[name],
    [format_figure(card.metrics[name]), between or '', *others],
    interval,
    chance,
  )


def _plain(value):
  if isinstance(value, int) and not isinstance(value, bool):
    return f'{value:,}' if value >= 10000 else str(value)
  return f'{value:g}' if isinstance(value, float) else str(value)
