"""Which searches and answers to show, the best and the worst, with frames."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from alpro_jax.data import pipeline
from alpro_jax.data.answers import canonical
from alpro_jax.evaluation import pictures
from alpro_jax.evaluation.page import Search, ShownClip
from alpro_jax.evaluation.question_answering import AnswerResult
from alpro_jax.evaluation.retrieval import Retrieval
from alpro_jax.evaluation.split import EvaluationResult

_TOP = 5  # Videos of a search.


class RankedText(NamedTuple):
  """A text, and the video of it that came first of its own, at which rank."""

  text: int
  video: int
  rank: int


class AnswerCase(NamedTuple):
  """A question about a clip, and the answers given to it.

  Attributes:
    question, answer, kind: as they were asked.
    known: whether the true answer is in the list.
    frames: uint8[T, H, W, 3].
    video: its name.
    top: (answer, probability), most probable first.
  """

  question: str
  answer: str
  kind: str
  known: bool
  frames: np.ndarray
  video: str
  top: Sequence[tuple[str, float]]

  @property
  def true(self) -> list[str]:
    """Those of the top that are the true answer, however it is spelled."""
    return [text for text, _ in self.top if canonical(text) == canonical(self.answer)]

  @property
  def right(self) -> bool:
    """Whether the most probable answer is the true one."""
    return self.top[0][0] in self.true


def choose_searches(
  retrieval: Retrieval, count: int, families: Sequence[Hashable] = ()
) -> tuple[list[RankedText], list[RankedText]]:
  """The texts that find their video best and worst.

  A text with several videos counts by the best of them. The best texts are
  those that leave the next video farthest behind.

  Args:
    retrieval: the scores.
    count: of each.
    families: of every video, so that the best are of different ones; () if
      unknown.
  """
  pairs = np.unique(retrieval.pairs, axis=0)
  own = {}  # Text -> (rank, video) of its videos.
  for (text, video), rank in zip(pairs, retrieval.ranks, strict=True):
    own.setdefault(int(text), []).append((int(rank), int(video)))
  found = {text: RankedText(text, min(of)[1], min(of)[0]) for text, of in own.items()}
  ahead = {text: _ahead(retrieval, text, {v for _, v in own[text]}) for text in own}
  first = sorted((f for f in found.values() if f.rank == 1), key=lambda f: -ahead[f.text])
  missed = sorted((f for f in found.values() if f.rank > 1), key=lambda f: (-f.rank, ahead[f.text]))
  if len(families):
    first = take_turns(first, [families[f.video] for f in first])
  return first[:count], missed[:count]


def _ahead(retrieval, text, own):
  """Score of the best own video less that of the best other one."""
  top, scores = retrieval.top[text], retrieval.top_scores[text]
  mine = [s for v, s in zip(top, scores, strict=True) if v in own]
  others = [s for v, s in zip(top, scores, strict=True) if v not in own]
  # What is not among the top is at most as good as the last of them.
  return (mine or [scores[-1]])[0] - (others or [scores[-1]])[0]


def choose_answers(answered: AnswerResult, count: int) -> tuple[list[int], list[int]]:
  """Questions answered right and wrong, the surest ones, kinds in turn."""
  # Largest probability of each question.
  logits = answered.logits
  share = 1 / np.exp(logits - logits.max(1, keepdims=True)).sum(1)
  chosen = []
  for among in (answered.right, ~answered.right):
    order = sorted(np.flatnonzero(among).tolist(), key=lambda i: -share[i])
    # One question shows one text: the same words again say nothing new.
    texts = [answered.questions[i].text for i in order]
    order = take_turns(order, texts)
    kinds = [answered.questions[i].kind for i in order]
    chosen.append(take_turns(order, kinds)[:count])
  return chosen[0], chosen[1]


def take_turns(items: Sequence, groups: Sequence[Hashable]) -> list:
  """The first item of every group, then the second of every group, ...

  [a b c d], groups [x x y x]  ->  [a c b d]
  """
  seen, turns = {}, []
  for group in groups:
    turns.append(seen.get(group, 0))
    seen[group] = turns[-1] + 1
  order = sorted(range(len(items)), key=lambda i: turns[i])
  return [items[i] for i in order]


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
  trained, prepared, _, found = evaluated
  records, own = prepared.metadata(), {}  # Text -> its videos.
  for text, video in found.pairs.tolist():
    own.setdefault(text, set()).add(video)

  def ranked(case):
    """(rank, video, score) of the first ones; its own may be far behind."""
    top = found.top[case.text, :_TOP].tolist()
    scores = found.top_scores[case.text, :_TOP].tolist()
    rows = [(rank, *row) for rank, row in enumerate(zip(top, scores, strict=True), 1)]
    return rows if case.video in top else [*rows, (case.rank, case.video, None)]

  plans = [[(case, ranked(case)) for case in group] for group in choose_searches(found, count)]
  frames = _thumbnails(
    trained, prepared, [video for plan in plans for _, rows in plan for _, video, _ in rows]
  )

  def clip(text, rank, video, score):
    label = str(rank)
    # Behind the candidates the order is that of similarity.
    read = rank <= (found.scoring.rerank_k or rank)
    if score is not None and found.scoring.rule == 'matching' and read:
      label += f' · {100 / (1 + math.exp(-score)):.1f} % match'
    elif score is not None:
      label += f' · {score:.3f}'
    return ShownClip(frames[video], records[video].video, label, video in own[text])

  return [
    [
      Search(found.texts[case.text], case.rank, [clip(case.text, *row) for row in rows])
      for case, rows in plan
    ]
    for plan in plans
  ]


def answer_cases(evaluated: EvaluationResult, count: int) -> list[list[AnswerCase]]:
  """The surest right answers and the surest wrong ones, `count` of each."""
  trained, prepared, _, found = evaluated
  chosen = choose_answers(found, count)
  frames = _thumbnails(
    trained, prepared, [found.questions[i].record for group in chosen for i in group]
  )
  records, known = prepared.metadata(), set(map(canonical, found.answers))
  return [
    [
      AnswerCase(
        asked.text,
        asked.answer,
        asked.kind,
        canonical(asked.answer) in known,
        frames[asked.record],
        records[asked.record].video,
        found.top(i),
      )
      for i in group
      for asked in [found.questions[i]]
    ]
    for group in chosen
  ]


def _thumbnails(trained, prepared, records):
  clips = read_clips(trained.config.data, prepared, records)
  return {
    record: pictures.thumbnails(clip, side=84) for record, clip in zip(records, clips, strict=True)
  }
