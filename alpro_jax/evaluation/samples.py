"""A few held-out clips with what a model says of them, as pictures for TensorBoard.

searches   the caption that is found first for a clip, and the rank of its own
entities   what the prompter and the entity head call a region (pre-training with PEM)
answers    the answers to a question about a clip, and the right one
"""

from collections.abc import Iterable

import jax
import numpy as np

from alpro_jax import metrics
from alpro_jax.data.answers import canonical
from alpro_jax.evaluation import cases, explain, pictures
from alpro_jax.evaluation.split import EvaluationResult

_TOP = 3  # Names of a region and answers that are shown.


def show(evaluated: EvaluationResult, count: int, frozen, task) -> dict[str, np.ndarray]:
  """Draws what the model says of the same clips each time, chosen evenly by their index.

  All processes must call it, since all devices take part; process 0 draws.

  Args:
    evaluated: the split.
    count: of the clips; 0 is none.
    frozen: the teacher of PEM, None without one.
    task: has the names that the teacher chooses from.
  Returns:
    uint8[n, H, W, 3] by kind, n = count or as many as there are.
  """
  if count < 1:
    return {}
  named = () if frozen is None else _regions(evaluated, count, frozen, task.entities)
  if jax.process_index():
    return {}
  if evaluated.trained.answers_questions:
    shown = {'answers': _answers(evaluated, count)}
  else:
    shown = {'searches': _searches(evaluated, count), 'entities': named}
  return {
    kind: _stack([pictures.captioned(pictures.thumbnails(clip), lines) for clip, lines in rows])
    for kind, rows in shown.items()
    if rows
  }


def _searches(evaluated, count):
  found = evaluated.found
  queries, ranks = metrics.video_queries(found.pairs), found.order.ranks[1].resolve()
  chosen = _spread(len(queries.row), count)
  _, own, start = queries.right_columns(0, len(queries.row))
  own = np.split(own, start[1:])

  def lines(query):
    first = found.order.top[1].item[queries.row[query], 0]
    right = bool(first in own[query])
    more = f' (or {len(own[query]) - 1} more)' if len(own[query]) > 1 else ''
    return [
      (f'found first ({_verdict(right)}): {found.texts[first]}', right),
      (f'its own: {found.texts[own[query][0]]}{more}', None),
      (f'its rank: {ranks[query]:.0f} of {len(found.texts)} captions', None),
    ]

  return zip(_clips(evaluated, queries.row[chosen]), map(lines, chosen), strict=True)


def _answers(evaluated, count):
  found = evaluated.found
  right, known = found.right, set(map(canonical, found.answers))
  chosen = _spread(len(found.questions), count)

  def lines(number):
    asked = found.questions[number]
    listed = '' if canonical(asked.answer) in known else ', not in the list of answers'
    return [
      (f'question: {asked.text}', None),
      (f'answered ({_verdict(right[number])}): {_shares(found.top(number))}', bool(right[number])),
      (f'right answer: {asked.answer}{listed}', None),
    ]

  clips = _clips(evaluated, [found.questions[number].record for number in chosen])
  return zip(clips, map(lines, chosen), strict=True)


def _regions(evaluated, count, teacher, entities):
  trained, records = evaluated.trained, evaluated.prepared.metadata()
  chosen = _spread(len(records), count)
  clips = _clips(evaluated, chosen)
  texts = [records[record].captions_of(evaluated.style)[0] for record in chosen]
  still = np.array([records[record].still for record in chosen])
  named = explain.name_regions(trained, teacher, entities, np.stack(clips), texts, still=still)

  def lines(region, text):
    ignored = '' if region.kept else ' (not sure enough to train on)'
    return [
      (f'the prompter: {_shares(region.labels)}{ignored}', None),
      (f'the model: {_shares(region.answers)}', region.answers[0][0] == region.labels[0][0]),
      (f'caption: {text}', None),
    ]

  outlined = (pictures.outline(clip, x.inside) for clip, x in zip(clips, named, strict=True))
  return zip(outlined, map(lines, named, texts), strict=True)


def _clips(evaluated, records):
  return cases.read_clips(evaluated.trained.config.data, evaluated.prepared, records)


def _spread(total: int, count: int) -> list[int]:
  """The middles of `count` equal parts of 0..total, or all of them."""
  count = min(count, total)
  return ((2 * np.arange(count) + 1) * total // (2 * count)).tolist()


def _shares(best: Iterable[tuple[str, float]]) -> str:
  return ', '.join(f'{name} {share:.2f}' for name, share in list(best)[:_TOP])


def _verdict(right):
  return 'right' if right else 'wrong'


def _stack(images):
  """Pictures of one width, filled up with white to one height."""
  height = max(map(len, images))
  fill = [((0, height - len(image)), (0, 0), (0, 0)) for image in images]
  return np.stack(
    [np.pad(image, at, constant_values=255) for image, at in zip(images, fill, strict=True)]
  )
