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
from alpro_jax.evaluation.question_answering import AnswerResult
from alpro_jax.evaluation.retrieval import Tradeoff
from alpro_jax.evaluation.split import EvaluationResult

_SHOWN = 6  # Best cases, and as many worst ones.


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


def make(evaluated: EvaluationResult, *, recall: Sequence[Tradeoff] = ()) -> Card:
  """Returns the card of an evaluation; recall is split.recall_against_cost."""
  trained, prepared, style, found = evaluated
  what, choose, answers = 'Text-video retrieval', cases.search_cases, ()
  if isinstance(found, AnswerResult):
    what, choose = 'Question answering', cases.answer_cases
    answers = question_answering.rows(found, [record.video for record in prepared.metadata()])
  where = f'{pathlib.Path(prepared.path).name}, {prepared.split}'
  return Card(
    f'{what} on {where}' + (f', {style}' if style else ''),
    facts.collect(evaluated),
    facts.run_options(trained),
    found.metrics,
    found.intervals,
    *choose(evaluated, _SHOWN),
    recall,
    answers,
  )


def write(card: Card, folder) -> pathlib.Path:
  """Writes card.json and card.html, and answers.jsonl if there are any.

  Returns:
    the path of the page.

  Raises:
    ValueError: if a metric is not a finite number.
  """
  folder, content = pathlib.Path(folder), to_json(card)
  files.write_text(folder / 'card.json', content)
  files.write_text(folder / 'card.html', render(card))
  if card.answers:
    rows = (json.dumps(row, ensure_ascii=False) + '\n' for row in card.answers)
    files.write_text(folder / 'answers.jsonl', ''.join(rows))
  return folder / 'card.html'


def to_json(card: Card) -> str:
  """Returns the card as JSON, without the cases.

  A metric is {'value': v} or {'value': v, 'low': l, 'high': h}.
  """
  if bad := {k: v for k, v in card.metrics.items() if not math.isfinite(v)}:
    raise ValueError(f'figures {bad} are not finite; leave out what was not measured.')
  figures = {}
  for name in sorted(card.metrics):
    # The ends of intervals stand beside what they belong to.
    if not name.endswith(('_low', '_high')):
      ends = zip(('low', 'high'), card.intervals.get(name, ()), strict=False)
      figures[name] = {'value': float(card.metrics[name])} | {k: float(v) for k, v in ends}
  content = {'title': card.title, 'summary': summary(card), **card.facts, 'metrics': figures}
  if card.recall:
    content['recall_against_cost'] = [row._asdict() for row in card.recall]
  content['run'] = card.run
  return json.dumps(content, indent=1, ensure_ascii=False) + '\n'


def render(card: Card) -> str:
  """Returns the page."""
  kinds = [name.removeprefix('accuracy_') for name in card.metrics if name.startswith('accuracy_')]
  rule = card.facts['scoring']['rule']
  others = dict.fromkeys(name.split('/')[0] for name in card.metrics if '/' in name)
  return page.render(
    'card.html',
    title=card.title,
    card=card,
    summary=summary(card),
    recall=recall_table(card.recall),
    kinds=question_answering.list_kinds(kinds),
    rule=facts.RULES.get(rule),
    # All orders of one search: names, and what their metrics begin with.
    orders=[(rule, ''), *((name, f'{name}/') for name in others if name != rule)],
  )


def summary(card: Card) -> str:
  """The first line of a card: who was asked what, and how it was scored."""
  items, origin, who = card.facts['items'], card.facts['checkpoint'], 'A model in training'
  if origin:
    # runs/a/checkpoints/300 is called a.
    path = [
      part
      for part in pathlib.Path(origin['path']).parts
      if part != 'checkpoints' and not part.isdigit()
    ]
    who = f'{path[-1] if path else origin["path"]} at step {origin["step"]:,}'
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


def recall_table(rows: Sequence[Tradeoff]) -> page.Table:
  """The columns of recall against cost, for people."""
  columns = 'k', 'text → video, R@1', 'R@5', 'R@10', 'video → text, R@1'
  return page.Table(
    [*columns, 'pairs read', 'of all', 'GFLOP'],
    [
      (str(row.k or 'all pairs'), *row[1:6], f'{100 * row.share:.3g} %', f'{row.flops / 1e9:,.4g}')
      for row in rows
    ],
  )
