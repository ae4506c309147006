"""The card of an evaluation: what was measured, on what, and exactly how.

  card.json   for programs: facts, and every metric with its 95 % interval
  card.html   for people: the same, with the best and the worst cases; opens
              from a file, without a server or network

and what came of each example: answers.jsonl, a line per question, or ranks.jsonl, a
line per caption.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from alpro_jax import files
from alpro_jax.evaluation import cases, facts, page, question_answering
from alpro_jax.evaluation.question_answering import AnswerResult
from alpro_jax.evaluation.retrieval import Tradeoff
from alpro_jax.evaluation.split import EvaluationResult

_SHOWN = 6  # Best cases, and as many worst ones.


class Card(NamedTuple):
  """Everything a card says."""

  content: Mapping[str, Any]  # Of card.json; see facts.collect.
  best: Sequence[page.Search | cases.AnswerCase]
  worst: Sequence[page.Search | cases.AnswerCase]
  examples: Sequence[Mapping[str, Any]]  # See question_answering.rows, and rank_rows.

  @property
  def examples_file(self) -> str:
    return 'answers.jsonl' if 'accuracy' in self.content['metrics'] else 'ranks.jsonl'


def make(evaluated: EvaluationResult, *, recall: Sequence[Tradeoff] = ()) -> Card:
  """Returns the card of an evaluation; see facts.collect."""
  content = facts.collect(evaluated, recall)
  videos = [record.video for record in evaluated.prepared.metadata()]
  if not isinstance(evaluated.found, AnswerResult):
    rows = rank_rows(evaluated.found, videos)
    return Card(content, *cases.search_cases(evaluated, _SHOWN), rows)
  answers = question_answering.rows(evaluated.found, videos)
  return Card(content, *cases.answer_cases(evaluated, _SHOWN), answers)


def rank_rows(found, videos):
  """The rank, from 1, of the video of every caption, as JSON; videos name the records."""
  return [
    {'video': videos[video], 'text': found.texts[text], 'rank': int(rank)}
    for (text, video), rank in zip(np.unique(found.pairs, axis=0), found.ranks, strict=True)
  ]


def write(card: Card, folder) -> pathlib.Path:
  """Writes the files of a card into a folder; returns the path of the page."""
  folder = pathlib.Path(folder)
  content = json.dumps(card.content, indent=1, ensure_ascii=False)
  files.write_text(folder / 'card.json', content + '\n')
  files.write_text(folder / 'card.html', render(card))
  rows = (json.dumps(row, ensure_ascii=False) + '\n' for row in card.examples)
  files.write_text(folder / card.examples_file, ''.join(rows))
  return folder / 'card.html'


def render(card: Card) -> str:
  """Returns the page."""
  names = card.content['metrics']
  return page.render(
    'card.html',
    title=card.content['title'],
    card=card,
    rule=facts.RULES.get(card.content['scoring']['rule']),
    kinds=question_answering.list_kinds(
      name.removeprefix('accuracy_') for name in names if name.startswith('accuracy_')
    ),
    recall=recall_table([Tradeoff(**row) for row in card.content.get('recall_against_cost', ())]),
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
