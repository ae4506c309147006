"""Which searches and answers to show, the best and the worst, with frames."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from alpro_jax.data import pipeline
from alpro_jax.evaluation.question_answering import Answered
from alpro_jax.evaluation.retrieval import Retrieval


class Found(NamedTuple):
  """A text, and the video of it that came first of its own, at which rank."""

  text: int
  video: int
  rank: int


def choose_searches(
    retrieval: Retrieval, count: int, families: Sequence[Hashable] = (),
) -> tuple[list[Found], list[Found]]:
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
  found = {text: Found(text, min(of)[1], min(of)[0])
           for text, of in own.items()}
  ahead = {text: _ahead(retrieval, text, {v for _, v in own[text]})
           for text in own}
  first = sorted((f for f in found.values() if f.rank == 1),
                 key=lambda f: -ahead[f.text])
  missed = sorted((f for f in found.values() if f.rank > 1),
                  key=lambda f: (-f.rank, ahead[f.text]))
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


def choose_answers(
    answered: Answered, count: int
) -> tuple[list[int], list[int]]:
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
  seen, places = {}, []
  for group in groups:
    places.append(seen.get(group, 0))
    seen[group] = places[-1] + 1
  order = sorted(range(len(items)), key=lambda i: places[i])
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
