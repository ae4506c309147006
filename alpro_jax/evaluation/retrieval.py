"""Retrieval on a split: every text against every video, in both directions.

  1. Every video and every distinct text is encoded once    (scorer.py)
  2. Similarities say what is near, in blocks of rows       (candidates.py)
  3. The fusion encoder reads all pairs, or the near ones   (scorer.py)
  4. Ranks, recall and intervals                            (metrics.py)

The rules of scoring:

  matching             logit(match) - logit(no match), in the order of the
                       paper's probability of a match
  matching+similarity  logit(match) + cosine of the features, as
                       AlproRetrieval.compute_sim_matrix of LAVIS adds them:
                       the bare logit, before any softmax, and the similarity
                       not divided by the temperature
  similarity           the cosine alone; the fusion encoder is not asked

Memory of a host, in bytes, for N texts of L tokens, M videos of S tokens,
width D, features of size E, tokens of b bytes (2 for a bfloat16 model), k
candidates, K = max(k, 10), P <= k (N + M) pairs read, C = metrics.CELLS:

  tokens       b D (N L + M S)        on disk if larger than Scorer allows
  features     4 E (N + M) + 8 E max(N, M)
  near         8 K (N + M)            columns and similarities
  pairs        32 P                   keys, their texts and videos, both logits
  scores       8 k (N + M)
  one block    24 C = 384 MiB

100,000 texts of 30 tokens, as many videos of 197, D = 768, E = 256, k = 128:
35 GB of tokens; at most 0.4 + 0.2 + 0.8 + 0.2 + 0.4 = 2 GB beside. Matrices
[texts, videos] are formed up to DENSE_PAIRS only, 4 bytes a pair for each of
similarity, margin, logit and their sum.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from alpro_jax import metrics
from alpro_jax.evaluation import candidates
from alpro_jax.evaluation.candidates import Survey
from alpro_jax.evaluation.scorer import Scorer, TextFeatures, VideoFeatures

RULES = ('matching', 'matching+similarity', 'similarity')
# Pairs up to which matrices are formed: 1 GiB for each of them.
DENSE_PAIRS = 2**28
# Best videos of a text that are kept.
TOP = 10


@dataclasses.dataclass(frozen=True)
class Scoring:
  """How a split is scored.

  Attributes:
    rule: one of RULES.
    rerank_k: the fusion encoder reads the k videos nearest to every text and
      the k texts nearest to every video; 0 is all pairs. No matter to
      'similarity'.
    ties: one of metrics.TIES.
    dual_softmax: give the figures of dual softmax beside, as dual_softmax/...
      It uses the whole test set for every query (metrics.py), so that these
      figures do not compare with others.
    instead: why the similarity took the place of matching, '' if it did not.
  """

  rule: str = 'matching'
  rerank_k: int = 0
  ties: str = 'pessimistic'
  dual_softmax: bool = False
  instead: str = ''

  def __post_init__(self):
    for name, choices in (('rule', RULES), ('ties', metrics.TIES)):
      if getattr(self, name) not in choices:
        raise ValueError(f'scoring {name}={getattr(self, name)!r} is none of {choices}.')
    if self.rerank_k < 0:
      raise ValueError(
        f'scoring {self.rerank_k=} must be a number of candidates, or 0 for all pairs.'
      )

  @property
  def reads(self) -> bool:
    """Whether the fusion encoder is asked."""
    return self.rule != 'similarity'


class Direction(NamedTuple):
  """Who asks in one direction, and what was found.

  Attributes:
    queries: rows ask.
    near: by similarity; at least rerank_k columns of every row.
    scores: float32[rows, k], of near.item[:, :k], if only those were read.
  """

  queries: metrics.Queries
  near: Survey
  scores: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """Scores of a split and what follows from them.

  Attributes:
    texts: distinct captions, rows of the matrices.
    pairs: int[pairs, 2], (text, video) that belong together; the column of a
      video is its record.
    similarity: float32[texts, videos], or None beyond DENSE_PAIRS.
    matching: float32[texts, videos], logit margins; None if not all were read.
    metrics: figures of the final order as t2v_r1, ..., see
      metrics.retrieval_figures; of the order by similarity as
      similarity/t2v_r1, ...; of dual softmax as dual_softmax/t2v_r1, ...;
      texts, videos.
    seconds: time of each part.
    ranks: float64[distinct pairs], text to video, in the order of
      np.unique(pairs, axis=0).
    top: int32[texts, min(10, videos)], the best videos, best first.
    top_scores: float32, their scores; the similarity of a video that stands
      behind the candidates.
    intervals: of the figures, {name: (low, high)}, 95 % bootstrap by video.
    scoring: how it was scored.
    cost: pairs that the fusion encoder read, and their share of all pairs.
    summed: float32[texts, videos], the scores of 'matching+similarity' if all
      pairs were read.
    directions: text to video and video to text; empty if made by hand.
  """

  texts: tuple[str, ...]
  pairs: np.ndarray
  similarity: np.ndarray | None
  matching: np.ndarray | None
  metrics: dict[str, float]
  seconds: dict[str, float]
  ranks: np.ndarray | None = None
  top: np.ndarray | None = None
  top_scores: np.ndarray | None = None
  intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
  scoring: Scoring = Scoring()
  cost: dict[str, float] = dataclasses.field(default_factory=dict)
  summed: np.ndarray | None = None
  directions: tuple[Direction, ...] = ()

  @property
  def scores(self) -> np.ndarray | None:
    """The matrix that decides the final order; None if it was not formed."""
    if any(side.scores is not None for side in self.directions):
      return None
    if self.summed is not None:
      return self.summed
    return self.similarity if self.matching is None else self.matching


def list_pairs(captions: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], np.ndarray]:
  """Lists distinct captions and which video they belong to.

    [['a disc', 'a red disc'], ['a disc']]
      -> ('a disc', 'a red disc'),  [[0, 0], [1, 0], [0, 1]]

  Args:
    captions: of every video, in the order of the records.
  """
  index, pairs = {}, []
  for video, texts in enumerate(captions):
    for text in texts:
      pairs.append((index.setdefault(text, len(index)), video))
  pairs = list(dict.fromkeys(pairs))
  return tuple(index), np.array(pairs, np.int32).reshape(len(pairs), 2)


def retrieve(
  scorer: Scorer,
  batches: Iterable[Mapping[str, np.ndarray]],
  captions: Sequence[Sequence[str]],
  scoring: Scoring = Scoring(),
) -> tuple[Retrieval, TextFeatures, VideoFeatures]:
  """Scores all captions of a split against all its videos.

  Args:
    scorer: with the model.
    batches: see Scorer.embed_videos.
    captions: of every record of the split; a video without any is only a
      competitor.
    scoring: how.
  Returns:
    The scores, and the features for the probes.
  Raises:
    ValueError: if there is nothing to score, a feature or a score is not
      finite, or the model cannot score by this rule.
  """
  texts, pairs = list_pairs(captions)
  _check_size(len(texts), len(captions), scoring)
  clock = _Clock()
  text_features = scorer.embed_texts(texts)
  clock.lap('texts')
  video_features = scorer.embed_videos(batches, len(captions))
  clock.lap('videos')
  found = score(scorer, text_features, video_features, texts, pairs, scoring)
  found = dataclasses.replace(found, seconds=clock.seconds | found.seconds)
  return found, text_features, video_features


def score(
  scorer: Scorer,
  texts: TextFeatures,
  videos: VideoFeatures,
  names: Sequence[str],
  pairs: np.ndarray,
  scoring: Scoring = Scoring(),
) -> Retrieval:
  """Scores encoded texts against encoded videos; see `retrieve`.

  Args:
    scorer: reads pairs; only `matching`, `matching_by_video` and `temperature`
      are asked.
    texts: encoded.
    videos: encoded.
    names: the texts.
    pairs: int[pairs, 2], see list_pairs.
    scoring: how.
  """
  clock = _Clock()
  split = _look(scorer, texts, videos, np.asarray(pairs), scoring)
  clock.lap('similarity')
  if not scoring.reads:
    order = _order_by_similarity(split, scoring)
  elif scoring.rerank_k:
    order = _order_of_candidates(split, scorer, scoring, clock)
  else:
    order = _order_of_all(split, scorer, scoring, clock)
  near = [side.near for side in split.sides]
  by_similarity = None
  if split.texts.feature.shape[1]:
    by_similarity = [*(side.standing for side in near), near[1].grouped]
  figures, intervals = {}, {}
  for prefix, found in (
    ('', order.standings),
    ('similarity/', by_similarity),
    ('dual_softmax/', order.dual),
  ):
    if found:
      parts = metrics.retrieval_figures(
        split.sides[0].queries,
        found[0],
        split.sides[1].queries,
        *found[1:],
        videos=split.shape[1],
        ties=scoring.ties,
      )
      for into, part in zip((figures, intervals), parts, strict=True):
        into |= {prefix + name: value for name, value in part.items()}
  figures['texts'], figures['videos'] = map(float, split.shape)
  clock.lap('metrics')
  return Retrieval(
    tuple(names),
    pairs,
    split.similarity,
    order.margin,
    figures,
    clock.seconds,
    order.standings[0].resolve(scoring.ties),
    order.top,
    order.top_scores,
    intervals,
    scoring,
    {'pairs': float(order.read), 'share': order.read / split.size},
    order.summed,
    order.sides,
  )


def figure_names(scoring: Scoring, pairs: np.ndarray, *, similarity: bool = True) -> list[str]:
  """The figures that have an interval, by name, as `score` will give them.

  Args:
    scoring: how.
    pairs: int[pairs, 2], see list_pairs.
    similarity: whether the model has contrastive features.
  """
  plain = ['t2v', 'v2t']
  groups = _groups(metrics.video_queries(pairs), 1)
  orders = {'': plain + ['v2t_grouped'] * groups}
  if similarity:
    orders['similarity/'] = orders['']
  if scoring.dual_softmax:
    orders['dual_softmax/'] = plain
  return [
    order + name
    for order, directions in orders.items()
    for direction in directions
    for name in metrics.summarize_ranks([1.0], direction)
  ]


class _Clock:
  """Seconds between laps, by name."""

  def __init__(self):
    self.seconds, self._last = {}, time.monotonic()

  def lap(self, name: str) -> None:
    now = time.monotonic()
    self.seconds[name], self._last = now - self._last, now


class _Split(NamedTuple):
  """A split whose similarities have been visited."""

  texts: TextFeatures
  videos: VideoFeatures
  similarity: np.ndarray | None
  sides: tuple[Direction, Direction]

  @property
  def shape(self):
    return len(self.texts.feature), len(self.videos.feature)

  @property
  def size(self):
    return self.shape[0] * self.shape[1]

  def blocks(self, side):
    """Of similarities: texts ask (0) or videos do (1)."""
    return _similarity_blocks(self.texts, self.videos, self.similarity, side)


def _similarity_blocks(texts, videos, similarity, side):
  if similarity is not None:
    return metrics.row_blocks(similarity.T if side else similarity)
  rows, columns = texts.feature, videos.feature
  if side:
    rows, columns = columns, rows
  return candidates.similarity_blocks(rows, columns)


def _look(scorer, texts, videos, pairs, scoring) -> _Split:
  """Checks everything, and visits the similarities once a side."""
  shape = len(texts.feature), len(videos.feature)
  metrics.check_pairs(pairs, *shape)
  for name, feature in (('text', texts.feature), ('video', videos.feature)):
    _check_finite(feature, f'{name} features')
  width = texts.feature.shape[1]
  if not width and (scoring.rule != 'matching' or scoring.rerank_k):
    raise ValueError(
      f'{scoring.rule=} with {scoring.rerank_k=} needs a similarity, but '
      "this model has no contrastive features; score by 'matching' and "
      'rerank_k=0.'
    )
  _check_size(*shape, scoring)
  similarity = None
  if shape[0] * shape[1] <= DENSE_PAIRS:
    similarity = candidates.similarity_matrix(texts.feature, videos.feature)
  scale = 0.0
  if scoring.dual_softmax and not scoring.reads:
    scale = 1 / scorer.temperature()
  keep = max(scoring.rerank_k if scoring.reads else 0, TOP)
  sides = []
  for side, queries in enumerate((metrics.text_queries(pairs), metrics.video_queries(pairs))):
    near = candidates.survey(
      _similarity_blocks(texts, videos, similarity, side),
      queries,
      keep,
      scale=scale,
      grouped=_groups(queries, side),
    )
    sides.append(Direction(queries, near, None))
  return _Split(texts, videos, similarity, tuple(sides))


def _groups(queries, side):
  """Whether videos ask, and one of them has several captions."""
  return side == 1 and len(queries.column) > len(queries.row)


class _Order(NamedTuple):
  """What a rule makes of a split; see Retrieval.

  Standings are those of the texts, of the videos, and of the videos among
  grouped captions (None without groups).
  """

  standings: Sequence[metrics.Ranks | None]
  dual: Sequence[metrics.Ranks] | None
  top: np.ndarray
  top_scores: np.ndarray
  sides: tuple[Direction, Direction]
  read: int = 0
  margin: np.ndarray | None = None
  summed: np.ndarray | None = None


def _order_by_similarity(split, scoring) -> _Order:
  near = [side.near for side in split.sides]
  dual = None
  if scoring.dual_softmax:
    dual = [
      metrics.rank_blocks(split.blocks(i), side.queries, split.sides[1 - i].near.penalty)
      for i, side in enumerate(split.sides)
    ]
  return _Order(
    [*(side.standing for side in near), near[1].grouped],
    dual,
    near[0].item[:, :TOP],
    near[0].score[:, :TOP],
    split.sides,
  )


def _order_of_all(split, scorer, scoring, clock) -> _Order:
  margin, logit = scorer.matching(split.texts, split.videos)
  _check_finite(margin, 'scores')
  clock.lap('pairs')
  summed = None
  if scoring.rule == 'matching+similarity':
    summed = logit + split.similarity
  del logit
  scores = margin if summed is None else summed
  matrices = scores, scores.T
  best, back = (
    candidates.survey(
      metrics.row_blocks(matrix),
      side.queries,
      TOP,
      scale=float(scoring.dual_softmax),
      grouped=_groups(side.queries, i),
    )
    for i, (matrix, side) in enumerate(zip(matrices, split.sides, strict=True))
  )
  dual = None
  if scoring.dual_softmax:
    dual = [
      metrics.rank_blocks(metrics.row_blocks(matrix), side.queries, other.penalty)
      for matrix, side, other in zip(matrices, split.sides, (back, best), strict=True)
    ]
  return _Order(
    [best.standing, back.standing, back.grouped],
    dual,
    best.item,
    best.score,
    split.sides,
    split.size,
    margin,
    summed,
  )


def _order_of_candidates(split, scorer, scoring, clock) -> _Order:
  k = scoring.rerank_k
  sides = [side._replace(near=_agreed(side.near)) for side in split.sides]
  near = [side.near.item[:, :k] for side in sides]
  wanted = candidates.union(*near)
  text, video = wanted.text, wanted.video
  matching = scorer.matching_by_video(split.texts, split.videos, text, video)
  scores = matching.margin
  _check_finite(scores, 'scores')
  clock.lap('pairs')
  if scoring.rule == 'matching+similarity':
    scores = matching.logit + candidates.similarity_of(
      split.texts.feature, split.videos.feature, text, video
    )
  values = wanted.of_texts(scores, near[0]), wanted.of_videos(scores, near[1])
  sides = tuple(side._replace(scores=value) for side, value in zip(sides, values, strict=True))
  dual = None
  if scoring.dual_softmax:
    penalties = candidates.penalties(wanted, scores, split.shape[1])
    dual = [
      candidates.reranked(side.queries, side.near, value - other[item])
      for side, value, item, other in zip(sides, values, near, penalties[::-1], strict=True)
    ]
  margin = None
  if len(text) == split.size:
    margin = np.ascontiguousarray(matching.margin.reshape(split.shape[::-1]).T)
  grouped = None
  if _groups(sides[1].queries, 1):
    grouped = candidates.reranked_grouped(*sides[1])
  return _Order(
    [*(candidates.reranked(*side) for side in sides), grouped],
    dual,
    *candidates.reordered(sides[0].near, values[0], TOP),
    sides,
    len(text),
    margin,
  )


def _agreed(near):
  """What the first process found: others may round otherwise, and then they
  would read other pairs, in another number of calls."""
  if jax.process_count() == 1:
    return near
  narrow = jax.tree.map(lambda x: x.astype(np.int32) if x.dtype == np.int64 else x, near)
  return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(narrow))


def _check_size(texts, videos, scoring):
  size = texts * videos
  if scoring.reads and not scoring.rerank_k and size > DENSE_PAIRS:
    raise ValueError(
      f'all {size} pairs of {texts} texts and {videos} videos do not fit '
      f'into matrices of {DENSE_PAIRS}; set config.eval.rerank_k, e.g. to '
      '128.'
    )


def _check_finite(array, name):
  wrong = sum(
    int((~np.isfinite(array[first:last])).sum())
    for first, last in metrics.row_spans(len(array), array[:1].size)
  )
  if wrong:
    raise ValueError(
      f'{wrong} of {array.size} {name} are NaN or infinite; they have no '
      'rank. Check the parameters.'
    )


class Tradeoff(NamedTuple):
  """What k costs and brings.

  Attributes:
    k: candidates per text and per video; 0 is all pairs.
    t2v_r1: percent; t2v_r5, t2v_r10 and v2t_r1, too.
    pairs: that the fusion encoder reads.
    share: of all pairs.
    flops: of the whole evaluation; 0 if not asked.
  """

  k: int
  t2v_r1: float
  t2v_r5: float
  t2v_r10: float
  v2t_r1: float
  pairs: int
  share: float
  flops: float


def recall_against_k(
  retrieval: Retrieval, *, flops: Callable[[int], float] | None = None, largest: int = 1024
) -> list[Tradeoff]:
  """Recall that smaller rerank_k would have had, without reading any more.

  Args:
    retrieval: by a rule that reads pairs: all of them, or candidates.
    flops: operations of an evaluation that reads so many pairs, e.g.
      lambda pairs: flops.retrieval(config, pairs=pairs, ...).
    largest: k that is tried where all pairs were read; memory grows with it.
  Returns:
    Rows of k = 1, 2, 4, ..., and of the evaluation as it was, last; that alone
    for a model without contrastive features, to which all are equally near.
  """
  if not retrieval.scoring.reads or not retrieval.directions:
    raise ValueError(
      f'{retrieval.scoring.rule=} read no pairs; recall against k needs '
      "'matching' or 'matching+similarity'."
    )
  sides = retrieval.directions
  texts, videos = (int(retrieval.metrics[name]) for name in ('texts', 'videos'))
  end = retrieval.scoring.rerank_k
  if retrieval.scores is not None:
    end = min(largest + 1, max(texts, videos))
    sides = _sides_of_matrices(retrieval, end)
  if 'similarity/t2v_r1' not in retrieval.metrics:
    end = 0
  rows, k = [], 1
  while k < end:
    near = [side.near.item[:, :k] for side in sides]
    found = [candidates.reranked(side.queries, side.near, side.scores[:, :k]) for side in sides]
    ranks = [x.resolve(retrieval.scoring.ties) for x in found]
    figures = {
      **metrics.summarize_ranks(ranks[0], 't2v'),
      **metrics.summarize_ranks(ranks[1], 'v2t'),
    }
    rows.append((k, figures, len(candidates.union(*near).key)))
    k *= 2
  rows.append((retrieval.scoring.rerank_k, retrieval.metrics, int(retrieval.cost['pairs'])))
  return [
    Tradeoff(
      k,
      *(figures[name] for name in Tradeoff._fields[1:5]),
      pairs,
      pairs / (texts * videos),
      flops(pairs) if flops else 0.0,
    )
    for k, figures, pairs in rows
  ]


def _sides_of_matrices(retrieval, keep):
  """The nearest `keep` of both directions with their scores."""
  sides = []
  for i, side in enumerate(retrieval.directions):
    similarity, scores = retrieval.similarity, retrieval.scores
    if i:
      similarity, scores = similarity.T, scores.T
    near = candidates.survey(metrics.row_blocks(similarity), side.queries, keep)
    sides.append(Direction(side.queries, near, np.take_along_axis(scores, near.item, 1)))
  return sides
