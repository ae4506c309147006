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

Ties count against the model. What it takes of memory: docs/evaluation.md.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from alpro_jax import metrics
from alpro_jax.evaluation import candidates
from alpro_jax.evaluation.scorer import Scorer, Stopwatch, TextFeatures, VideoFeatures, check_finite

RULES = ('matching', 'matching+similarity', 'similarity')
# Pairs up to which matrices are formed: 1 GiB for each of them.
DENSE_PAIRS = 2**28
TOP = 10  # Best videos of a text that are kept.


@dataclasses.dataclass(frozen=True)
class Scoring:
  """How a split is scored."""

  rule: str = 'matching'  # Of RULES.
  # The fusion encoder reads so many nearest of every text and of every video; 0
  # is all pairs. No matter to 'similarity'.
  rerank_k: int = 0
  # Give its figures beside. They use the whole test set for every query
  # (metrics.py), and do not compare with others.
  dual_softmax: bool = False
  instead: str = ''  # Why the similarity decides instead of matching, if it does.

  def __post_init__(self):
    if self.rerank_k < 0:
      raise ValueError(
        f'scoring {self.rerank_k=} must be a number of candidates, or 0 for all pairs.'
      )

  @property
  def reads(self) -> bool:
    """Whether the fusion encoder is asked."""
    return self.rule != 'similarity'


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """Scores of a split, float32[texts, videos], and what follows from them.

  `metrics` holds those of metrics.retrieval_figures for the final order, as
  t2v_r1, ...; for that by similarity, as similarity/t2v_r1, ...; for dual
  softmax, as dual_softmax/t2v_r1, ...; texts and videos.
  """

  texts: tuple[str, ...]  # Distinct captions.
  pairs: np.ndarray  # int[P, 2], (text, video) that belong together.
  similarity: np.ndarray | None  # None beyond DENSE_PAIRS.
  matching: np.ndarray | None  # Logit margins; None if not all were read.
  metrics: dict[str, float]
  seconds: dict[str, float]  # Time of each part.
  order: candidates.Order | None = None  # Its top holds 10 videos of a text.
  intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
  scoring: Scoring = Scoring()
  # Pairs that the fusion encoder read, and their share of all pairs.
  cost: dict[str, float] = dataclasses.field(default_factory=dict)
  scores: np.ndarray | None = None  # That decide the order; None if not formed.
  near: candidates.Order | None = None  # The order by similarity.
  # float32[texts, k] and [videos, k], scores of the first of `near`, if only
  # those were read.
  reranked: tuple[np.ndarray, np.ndarray] | None = None

  @property
  def ranks(self) -> np.ndarray:
    """float64[distinct pairs], text to video, as np.unique(pairs, axis=0)."""
    return self.order.ranks[0].resolve()


def list_pairs(captions: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], np.ndarray]:
  """Lists distinct captions and which video they belong to.

  [['a disc', 'a red disc'], ['a disc']]
    -> ('a disc', 'a red disc'),  [[0, 0], [1, 0], [0, 1]]
  """
  index, pairs = {}, {}
  for video, texts in enumerate(captions):
    for text in texts:
      pairs[index.setdefault(text, len(index)), video] = None
  return tuple(index), np.array(list(pairs), np.int32).reshape(len(pairs), 2)


def retrieve(
  scorer: Scorer,
  batches: Iterable[Mapping[str, np.ndarray]],
  captions: Sequence[Sequence[str]],
  scoring: Scoring = Scoring(),
) -> tuple[Retrieval, TextFeatures, VideoFeatures]:
  """Scores all captions of a split against all its videos.

  A video without captions is only a competitor. Batches: see Scorer.embed_videos.

  Raises:
    ValueError: if there is nothing to score, a feature or a score is not
      finite, or the model cannot score by this rule.
  """
  texts, pairs = list_pairs(captions)
  _check_size(len(texts), len(captions), scoring)
  watch = Stopwatch()
  text_features = scorer.embed_texts(texts)
  watch.lap('texts')
  video_features = scorer.embed_videos(batches, len(captions))
  watch.lap('videos')
  found = score(scorer, text_features, video_features, texts, pairs, scoring)
  found = dataclasses.replace(found, seconds=watch.seconds | found.seconds)
  return found, text_features, video_features


def score(
  scorer: Scorer,
  texts: TextFeatures,
  videos: VideoFeatures,
  names: Sequence[str],
  pairs: np.ndarray,
  scoring: Scoring = Scoring(),
) -> Retrieval:
  """Scores encoded texts, of these names, against encoded videos; see `retrieve`."""
  watch, k = Stopwatch(), scoring.rerank_k
  pairs, features = np.asarray(pairs), (texts.feature, videos.feature)
  shape = len(texts.feature), len(videos.feature)
  size = shape[0] * shape[1]
  _check(features, pairs, scoring)
  queries = metrics.text_queries(pairs), metrics.video_queries(pairs)
  similarity, blocks = None, candidates.similarity_blocks(*features)
  if size <= DENSE_PAIRS:
    similarity = candidates.similarity_matrix(*features)
    blocks = candidates.matrix_blocks(similarity)
  scale = 1 / scorer.temperature() if scoring.dual_softmax and not scoring.reads else 0.0
  near = candidates.rank_all(blocks, queries, max(k * scoring.reads, TOP), scale=scale)
  watch.lap('similarity')
  margin = reranked = None
  if not scoring.reads:
    read, scores, order = 0, similarity, near
  elif not k:
    margin, logit = scorer.matching(texts, videos)
    check_finite(margin, 'scores')
    watch.lap('pairs')
    read, scores = size, margin if scoring.rule == 'matching' else logit + similarity
    del logit
    blocks = candidates.matrix_blocks(scores)
    order = candidates.rank_all(blocks, queries, TOP, scale=float(scoring.dual_softmax))
  else:
    near, scores = _agreed(near), None
    chosen = candidates.union(*(top.item[:, :k] for top in near.top))
    values, logit = scorer.matching_by_video(texts, videos, chosen.text, chosen.video)
    check_finite(values, 'scores')
    watch.lap('pairs')
    read = len(chosen.text)
    if read == size:
      margin = np.ascontiguousarray(values.reshape(shape[::-1]).T)
    if scoring.rule == 'matching+similarity':
      for top, index in zip(near.top, chosen.index, strict=True):
        values[index] = logit[index] + top.score[:, :k]
    reranked = tuple(values[index] for index in chosen.index)
    penalties = chosen.penalties(values) if scoring.dual_softmax else None
    order = candidates.rerank(near, queries, reranked, TOP, penalties)
  figures, intervals = {}, {}
  for prefix, ranks in (
    ('', order.ranks),
    ('similarity/', near.ranks if features[0].shape[1] else None),
    ('dual_softmax/', order.dual_softmax),
  ):
    if ranks:
      (t2v, *v2t), videos = ranks, shape[1]
      parts = metrics.retrieval_figures(queries[0], t2v, queries[1], *v2t, videos=videos)
      for into, part in zip((figures, intervals), parts, strict=True):
        into |= {prefix + name: value for name, value in part.items()}
  figures['texts'], figures['videos'] = map(float, shape)
  watch.lap('metrics')
  return Retrieval(
    tuple(names),
    pairs,
    similarity,
    margin,
    figures,
    watch.seconds,
    order,
    intervals,
    scoring,
    {'pairs': float(read), 'share': read / size},
    scores,
    near,
    reranked,
  )


def figure_names(scoring: Scoring, pairs: np.ndarray, *, similarity: bool = True) -> list[str]:
  """Names of the figures with an interval; a model may have no similarity."""
  plain = ['t2v', 'v2t']
  every = plain + ['v2t_grouped'] * candidates.has_groups(metrics.video_queries(pairs))
  orders = [('', every), ('similarity/', every * similarity)]
  orders.append(('dual_softmax/', plain * scoring.dual_softmax))
  return [
    order + name
    for order, directions in orders
    for direction in directions
    for name in metrics.summarize_ranks([1.0], direction)
  ]


def _agreed(near):
  """What the first process found: others may round otherwise, and then they
  would read other pairs, in another number of calls."""
  if jax.process_count() == 1:
    return near
  narrow = jax.tree.map(lambda x: x.astype(np.int32) if x.dtype == np.int64 else x, near)
  return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(narrow))


def _check(features, pairs, scoring):
  shape = tuple(map(len, features))
  metrics.check_pairs(pairs, *shape)
  for name, feature in zip(('text', 'video'), features, strict=True):
    check_finite(feature, f'{name} features')
  if not features[0].shape[1] and (scoring.rule != 'matching' or scoring.rerank_k):
    raise ValueError(
      f'{scoring.rule=} with {scoring.rerank_k=} needs a similarity, but this model has '
      "no contrastive features; score by 'matching' and rerank_k=0."
    )
  _check_size(*shape, scoring)


def _check_size(texts, videos, scoring):
  size = texts * videos
  if scoring.reads and not scoring.rerank_k and size > DENSE_PAIRS:
    raise ValueError(
      f'all {size} pairs of {texts} texts and {videos} videos do not fit into '
      f'matrices of {DENSE_PAIRS}; set config.eval.rerank_k, e.g. to 128.'
    )


class Tradeoff(NamedTuple):
  """What k costs and brings."""

  k: int  # Candidates per text and per video; 0 is all pairs.
  t2v_r1: float  # Percent, as those that follow.
  t2v_r5: float
  t2v_r10: float
  v2t_r1: float
  pairs: int  # That the fusion encoder reads.
  share: float  # Of all pairs.
  flops: float  # Of the whole evaluation; 0 if not asked.


def recall_against_k(
  retrieval: Retrieval, *, flops: Callable[[int], float] = lambda pairs: 0.0, largest: int = 1024
) -> list[Tradeoff]:
  """Recall that smaller rerank_k would have had, without reading any more.

  Args:
    retrieval: by a rule that reads pairs: all of them, or candidates.
    flops: operations of an evaluation that reads so many pairs.
    largest: k that is tried where all pairs were read; memory grows with it.
  Returns:
    Rows of k = 1, 2, 4, ..., and of the evaluation as it was, last; that alone
    for a model without contrastive features, to which all are equally near.
  """
  scoring, near, scores = retrieval.scoring, retrieval.near, retrieval.reranked
  if not scoring.reads or not near:
    raise ValueError(
      f"{scoring.rule=} read no pairs; recall against k needs 'matching' or 'matching+similarity'."
    )
  queries = metrics.text_queries(retrieval.pairs), metrics.video_queries(retrieval.pairs)
  end = scoring.rerank_k
  if 'similarity/t2v_r1' not in retrieval.metrics:
    end = 0
  elif not end:
    end = min(largest + 1, max(retrieval.scores.shape))
    near = candidates.rank_all(candidates.matrix_blocks(retrieval.similarity), queries, end)
    matrices = zip((retrieval.scores, retrieval.scores.T), near.top, strict=True)
    scores = [np.take_along_axis(matrix, top.item, 1) for matrix, top in matrices]
  near = near._replace(ranks=(*near.ranks[:2], None))  # Groups are not shown.
  rows, k = [], 1
  while k < end:
    t2v, v2t, _ = candidates.rerank(near, queries, [score[:, :k] for score in scores], 1).ranks
    figures = metrics.summarize_ranks(t2v.resolve(), 't2v')
    figures |= metrics.summarize_ranks(v2t.resolve(), 'v2t')
    rows.append((k, figures, len(candidates.union(*(top.item[:, :k] for top in near.top)).text)))
    k *= 2
  rows.append((scoring.rerank_k, retrieval.metrics, int(retrieval.cost['pairs'])))
  size = len(retrieval.texts) * int(retrieval.metrics['videos'])
  return [
    Tradeoff(
      k, *(figures[name] for name in Tradeoff._fields[1:5]), pairs, pairs / size, flops(pairs)
    )
    for k, figures, pairs in rows
  ]
