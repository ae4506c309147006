"""Which searches and answers to show, the best and the worst, with frames."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from alpro_jax.data import pipeline
from alpro_jax.data.answers import canonical
from alpro_jax.evaluation import pictures
from alpro_jax.evaluation.page import Search, ShownClip
from alpro_jax.evaluation.question_answering import AnswerResult, AskedQuestion
from alpro_jax.evaluation.retrieval import Retrieval
from alpro_jax.evaluation.split import EvaluationResult

_TOP = 5  # Videos of a search.


class RankedText(NamedTuple):
  """A text, and the video of it that came first of its own, at which rank."""

  text: int
  video: int
  rank: int


class AnswerCase(NamedTuple):
  """A question about a clip, and the answers given to it."""

  asked: AskedQuestion
  known: bool  # Whether the true answer is in the list.
  frames: np.ndarray  # uint8[T, H, W, 3].
  video: str  # Its name.
  top: Sequence[tuple[str, float]]  # (answer, probability), best first.

  @property
  def true(self) -> list[str]:
    """Those of the top that are the true answer, however it is spelled."""
    return [text for text, _ in self.top if canonical(text) == canonical(self.asked.answer)]


def choose_searches(retrieval: Retrieval) -> tuple[list[RankedText], list[RankedText]]:
  """The texts that find their video, best first, and the others, worst first.

  A text with several videos counts by the best of them. The best texts are
  those that leave the next video farthest behind.
  """
  own = {}  # Text -> its videos, (rank, video).
  pairs = np.unique(retrieval.pairs, axis=0).tolist()
  for (text, video), rank in zip(pairs, retrieval.ranks, strict=True):
    own.setdefault(text, []).append((int(rank), video))
  found = [RankedText(text, min(of)[1], min(of)[0]) for text, of in own.items()]
  ahead = {text: _ahead(retrieval, text, {video for _, video in own[text]}) for text in own}
  first = sorted((f for f in found if f.rank == 1), key=lambda f: -ahead[f.text])
  missed = sorted((f for f in found if f.rank > 1), key=lambda f: (-f.rank, ahead[f.text]))
  return first, missed


def _ahead(retrieval, text, own):
  """Score of the best own video less that of the best other one."""
  top = list(zip(*(x[text] for x in retrieval.order.top[0]), strict=True))
  # What is not among the top is at most as good as the last of them.
  mine, other = (
    next((score for video, score in top if (video in own) == wanted), top[-1][1])
    for wanted in (True, False)
  )
  return mine - other


def choose_answers(result: AnswerResult, count: int) -> tuple[list[int], list[int]]:
  """Questions answered right and wrong, the surest ones, kinds in turn."""
  # Largest probability of each question.
  logits, questions = result.logits, result.questions
  share = 1 / np.exp(logits - logits.max(1, keepdims=True)).sum(1)
  chosen = []
  for among in (result.right, ~result.right):
    order = sorted(np.flatnonzero(among).tolist(), key=lambda i: -share[i])
    # One question shows one text: the same words again say nothing new.
    order = take_turns(order, [questions[i].text for i in order])
    chosen.append(take_turns(order, [questions[i].kind for i in order])[:count])
  return chosen[0], chosen[1]


def take_turns(items: Sequence, groups: Sequence[Hashable]) -> list:
  """The first item of every group, then the second of every group, ...

  [a b c d], groups [x x y x]  ->  [a c b d]
  """
  seen, turns = {}, []
  for group in groups:
    seen[group] = seen.get(group, -1) + 1
    turns.append(seen[group])
  return [items[i] for i in sorted(range(len(items)), key=lambda i: turns[i])]


def read_clips(config, prepared, records: Sequence[int]) -> list[np.ndarray]:
  """[uint8[T, H, W, 3]]: clips as the model sees them; config is config.data.

  Any process can read any record.
  """
  wanted = list(dict.fromkeys(map(int, records)))
  seed = np.zeros(2, np.int64)  # Nothing is drawn in evaluation.
  clips = {}
  for record, serialized in zip(wanted, prepared.fetch(wanted), strict=True):
    clip, _ = pipeline.decode_record(serialized, seed, config, train=False)
    clips[record] = clip.numpy()
  return [clips[int(record)] for record in records]


def search_cases(evaluated: EvaluationResult, count: int) -> list[list[Search]]:
  """The best searches and the worst, `count` of each at most."""
  found, records = evaluated.found, evaluated.prepared.metadata()

  def search(case):
    own = set(found.pairs[found.pairs[:, 0] == case.text, 1].tolist())
    best = found.order.top[0]
    videos, scores = best.item[case.text, :_TOP].tolist(), best.score[case.text, :_TOP].tolist()
    labels = [_label(found.scoring, *row) for row in enumerate(scores, 1)]
    if case.video not in videos:  # Its own may be far behind.
      videos, labels = [*videos, case.video], [*labels, str(case.rank)]
    shown = zip(_thumbnails(evaluated, videos), videos, labels, strict=True)
    return Search(
      found.texts[case.text],
      case.rank,
      [ShownClip(clip, records[i].video, label, i in own) for clip, i, label in shown],
    )

  return [[search(case) for case in group[:count]] for group in choose_searches(found)]


def _label(scoring, rank, score):
  # Behind the candidates the order is that of similarity.
  if scoring.rule == 'matching' and rank <= (scoring.rerank_k or rank):
    return f'{rank} · match {1 / (1 + math.exp(-score)):.2f}'
  return f'{rank} · {score:.3f}'


def answer_cases(evaluated: EvaluationResult, count: int) -> list[list[AnswerCase]]:
  """The surest right answers and the surest wrong ones, `count` of each."""
  found, records = evaluated.found, evaluated.prepared.metadata()
  known = set(map(canonical, found.answers))

  def case(number):
    asked = found.questions[number]
    (frames,) = _thumbnails(evaluated, [asked.record])
    listed = canonical(asked.answer) in known
    return AnswerCase(asked, listed, frames, records[asked.record].video, found.top(number))

  return [[case(number) for number in group] for group in choose_answers(found, count)]


def _thumbnails(evaluated, records):
  clips = read_clips(evaluated.trained.config.data, evaluated.prepared, records)
  return [pictures.thumbnails(clip, side=84) for clip in clips]
