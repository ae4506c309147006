"""Ranks, recall and intervals of retrieval: arithmetic on numpy arrays.

A score matrix has one row per distinct text and one column per video, larger
is better. Which text belongs to which video is a list of pairs, so a video may
have many captions and a caption may describe many videos:

                video 0   video 1          pairs (text, video)
      text 0      0.9       0.1            (0, 0)
      text 1      0.4       0.4            (1, 0)   ranks 1, 2, 1 of the
      text 2      0.2       0.8            (2, 1)   pairs, ties pessimistic

  t2v           every pair is a query: rank 1 + other videos ahead of its own
  v2t           every video with captions is a query: rank 1 + texts of other
                videos ahead of its best caption (the original counts its last
                caption alone, defect 13)
  v2t_grouped   the same as CLIP4Clip ranks it: rank 1 + other videos of which
                any caption is ahead; given where a video has several captions

A video with twenty captions ahead counts twenty times for v2t and once for
v2t_grouped, which is therefore never the worse one but for captions that
several videos share: they are no competitors of their own video for v2t, and
for v2t_grouped a tie with the other video's group.

The tie rule is always explicit. 'pessimistic', the default, puts a competitor
of equal score ahead, so a model that gives one score to everything has recall
0. 'optimistic' puts it behind, 'expected' is the mean over all orders. Scores
are compared at full precision, never rounded (defect 12).

A rank needs no sorted row: it is one more than the competitors ahead. So the
matrix is visited in blocks of rows, (index of the first row, f[rows, columns]),
and need not be held as a whole; see evaluation/candidates.py.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

# Tie rule -> share of the competitors of equal score that count as ahead.
_SHARE_AHEAD = {'pessimistic': 1.0, 'optimistic': 0.0, 'expected': 0.5}
TIES = tuple(_SHARE_AHEAD)
# Scores in a block of rows; a float64 copy of it takes 128 MiB.
CELLS = 2**24
_RECALL_AT = (1, 5, 10)
_LEVEL = 0.95  # Of the intervals.


class Queries(NamedTuple):
  """The queries of one direction, and which columns are right.

  Attributes:
    row: int[Q], ascending, the row of the score matrix that a query reads.
    column: int[P], the right columns of all queries, one after the other.
    start: int[Q + 1], those of query q are column[start[q]:start[q + 1]].
    video: int[Q], queries about one video are not independent.
  """

  row: np.ndarray
  column: np.ndarray
  start: np.ndarray
  video: np.ndarray

  def right_columns(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The right columns of queries start..stop.

    Returns:
      int[P] query, counted from `start`; int[P] column; int[Q] where each begins.
    """
    bounds = self.start[start : stop + 1]
    query = np.repeat(np.arange(stop - start), np.diff(bounds))
    return query, self.column[bounds[0] : bounds[-1]], bounds[:-1] - bounds[0]


def text_queries(pairs: np.ndarray) -> Queries:
  """One query for every distinct pair; rows are texts, columns videos."""
  text, video = np.unique(pairs, axis=0).T
  return Queries(text, video, np.arange(len(text) + 1), video)


def video_queries(pairs: np.ndarray) -> Queries:
  """One query for every video with captions; rows are videos, columns texts."""
  video, text = np.unique(np.asarray(pairs)[:, ::-1], axis=0).T
  row, start = np.unique(video, return_index=True)
  return Queries(row, text, np.append(start, len(video)), row)


class Ranks(NamedTuple):
  """Ranks of the best right item of every query, before ties are resolved.

  Attributes:
    score: f[Q], of the best right item.
    ahead: int64[Q], competitors of a greater score.
    equal: int64[Q], competitors of the same score.
  """

  score: np.ndarray
  ahead: np.ndarray
  equal: np.ndarray

  def resolve(self, ties: str = 'pessimistic') -> np.ndarray:
    """float64[Q], from 1."""
    if ties not in TIES:
      raise ValueError(f'{ties=} is none of {TIES}.')
    return 1.0 + self.ahead + _SHARE_AHEAD[ties] * self.equal


def join_ranks(parts: list[Ranks]) -> Ranks:
  """Concatenates the ranks of consecutive queries."""
  if not parts:
    return Ranks(np.zeros(0), np.zeros(0, int), np.zeros(0, int))
  return Ranks(*map(np.concatenate, zip(*parts, strict=True)))


def row_blocks(scores: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """Yields a matrix in blocks of whole rows, as (first row, rows)."""
  for first, last in row_spans(len(scores), scores.shape[1]):
    yield first, np.ascontiguousarray(scores[first:last])


def row_spans(rows: int, columns: int) -> Iterator[tuple[int, int]]:
  """Yields (first, last) of runs of rows that hold at most CELLS scores."""
  size = max(CELLS // max(columns, 1), 1)
  for first in range(0, rows, size):
    yield first, min(first + size, rows)


def rank_blocks(
  blocks: Iterable[tuple[int, np.ndarray]], queries: Queries, penalty: np.ndarray | None = None
) -> Ranks:
  """Ranks the right items of all queries.

  Args:
    blocks: all rows in their order, see row_blocks.
    queries: of the matrix.
    penalty: float64[columns], taken off all scores of a column.
  """
  return join_ranks([rank_block(first, block, queries, penalty) for first, block in blocks])


def rank_block(
  first: int, block: np.ndarray, queries: Queries, penalty: np.ndarray | None = None
) -> Ranks:
  """The part of `rank_blocks` whose queries read the rows of one block."""
  low, high = np.searchsorted(queries.row, (first, first + len(block)))
  parts = []
  # A row is read once for every video of its text: no more rows at a time.
  for start in range(low, high, len(block)):
    stop = min(start + len(block), high)
    rows = block[queries.row[start:stop] - first]
    if penalty is not None:
      rows = rows - penalty
    query, column, bounds = queries.right_columns(start, stop)
    right = rows[query, column]
    best = np.maximum.reduceat(right, bounds)
    own = np.add.reduceat((right == best[query]).astype(np.int64), bounds)
    parts.append(Ranks(best, (rows > best[:, None]).sum(1), (rows == best[:, None]).sum(1) - own))
  return join_ranks(parts)


def rank_grouped(first: int, block: np.ndarray, queries: Queries) -> Ranks:
  """The part of v2t_grouped whose queries, videos, read the rows of one block."""
  index = np.arange(len(queries.row))
  single = Queries(queries.row, index, np.arange(len(index) + 1), queries.video)
  parts = []
  for start, stop in row_spans(len(block), len(queries.column)):
    best = np.maximum.reduceat(block[start:stop, queries.column], queries.start[:-1], axis=1)
    parts.append(rank_block(first + start, best, single))
  return join_ranks(parts)


def dual_softmax_penalty(block: np.ndarray, scale: float) -> np.ndarray:
  """float64[R]: what dual softmax takes off the scores of a competitor.

  Dual softmax scores a pair by p(video | text) p(text | video). Its logarithm
  over 2 scale is the score minus one term of the query, which moves nobody, and
  one of the competitor: log(sum over queries of exp(scale score)) / (2 scale).
  That is a sum over the WHOLE TEST SET, which is not known where queries come
  one at a time: report it apart.

  Args:
    block: f[R, Q], rows are competitors, columns all queries.
    scale: of the scores, 1 / temperature for similarities.
  """
  logits = block.astype(np.float64) * scale
  top = logits.max(1, keepdims=True)
  return (top[:, 0] + np.log(np.exp(logits - top).sum(1))) / (2 * scale)


def check_pairs(pairs: np.ndarray, texts: int, videos: int) -> None:
  """Raises ValueError if pairs are not (text, video) of a score matrix."""
  if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs):
    raise ValueError(f'{pairs.shape=} must be [pairs, 2] with at least one row of (text, video).')
  if pairs.min() < 0 or (pairs.max(0) >= (texts, videos)).any():
    raise ValueError(
      f'pairs reach {tuple(pairs.max(0))} from {pairs.min()} but scores are '
      f'[{texts}, {videos}]; index rows and columns of the matrix.'
    )


def rank_matrix(scores, pairs) -> dict[str, tuple[Queries, Ranks]]:
  """Ranks one score matrix in all directions.

  Args:
    scores: f[texts, videos].
    pairs: int[pairs, 2] of (text, video) that belong together. A pair that
      occurs twice counts once.

  Returns:
    {'t2v': of the distinct pairs, in the order of np.unique(pairs, axis=0);
    'v2t' and 'v2t_grouped': of the videos with captions, in their order}.

  Raises:
    ValueError: if a score is NaN or an index out of range.
  """
  scores, pairs = np.asarray(scores), np.asarray(pairs)
  if scores.ndim != 2:
    raise ValueError(f'{scores.shape=} must be [texts, videos]; pass one matrix.')
  check_pairs(pairs, *scores.shape)
  if wrong := sum(int(np.isnan(block).sum()) for _, block in row_blocks(scores)):
    raise ValueError(
      f'{wrong} of {scores.size} scores are NaN; a NaN has no rank. Check the parameters.'
    )
  by_text, by_video = text_queries(pairs), video_queries(pairs)
  return {
    't2v': (by_text, rank_blocks(row_blocks(scores), by_text)),
    'v2t': (by_video, rank_blocks(row_blocks(scores.T), by_video)),
    'v2t_grouped': (by_video, rank_grouped(0, scores.T, by_video)),
  }


def retrieval_metrics(scores, pairs, ties: str = 'pessimistic') -> dict[str, float]:
  """All figures of one score matrix; see `rank_matrix`, `retrieval_figures`."""
  (by_text, t2v), (by_video, v2t), (_, grouped) = rank_matrix(scores, pairs).values()
  several = len(by_video.column) != len(by_video.row)
  videos = np.shape(scores)[1]
  return retrieval_figures(
    by_text, t2v, by_video, v2t, grouped if several else None, videos=videos, ties=ties
  )[0]


def retrieval_figures(
  by_text: Queries,
  t2v: Ranks,
  by_video: Queries,
  v2t: Ranks,
  v2t_grouped: Ranks | None = None,
  *,
  videos: int,
  ties: str = 'pessimistic',
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
  """All figures of both directions, and their intervals.

  Returns:
    {t2v_r1, t2v_r5, t2v_r10 (percent), t2v_median_rank, t2v_mean_rank, the same
    with v2t and, if it is given, v2t_grouped; t2v_r1_low and t2v_r1_high (as in
    the intervals); t2v_r1_ceiling (the same text on m videos can be first on
    one only); t2v_r1_chance}. Where another tie rule gives other ranks, its
    figures stand beside, as t2v_r1_optimistic or _pessimistic: scores are not
    distinct then.
    {name: (low, high)} of the first ten or fifteen: 95 % bootstrap, by video.
  """
  figures: dict[str, float] = {}
  intervals: dict[str, tuple[float, float]] = {}
  for prefix, queries, ranks in (
    ('t2v', by_text, t2v),
    ('v2t', by_video, v2t),
    ('v2t_grouped', by_video, v2t_grouped),
  ):
    if ranks is None:
      continue
    resolved = ranks.resolve(ties)
    figures |= summarize_ranks(resolved, prefix)
    intervals |= rank_intervals(resolved, queries.video, prefix)
    for rule in ('optimistic', 'pessimistic'):
      other = ranks.resolve(rule)
      if (other != resolved).any():
        named = summarize_ranks(other, prefix).items()
        figures |= {f'{name}_{rule}': value for name, value in named}
  figures['t2v_r1_low'], figures['t2v_r1_high'] = intervals['t2v_r1']
  figures['t2v_r1_ceiling'] = 100.0 * len(np.unique(by_text.row)) / len(by_text.row)
  figures['t2v_r1_chance'] = 100.0 / videos
  return figures, intervals


def summarize_ranks(ranks, prefix: str) -> dict[str, float]:
  """{prefix_r1, _r5, _r10 in %, _median_rank, _mean_rank} of float[Q]."""
  ranks = np.asarray(ranks, np.float64)
  figures = {f'{prefix}_r{k}': 100.0 * int((ranks <= k).sum()) / len(ranks) for k in _RECALL_AT}
  figures[f'{prefix}_median_rank'] = float(np.median(ranks))
  figures[f'{prefix}_mean_rank'] = float(np.mean(ranks))
  return figures


def rank_intervals(ranks, groups, prefix: str, *, samples: int = 1000, seed: int = 0):
  """{name: (low, high)} of all figures of `summarize_ranks`, of the same draws.

  Arguments as there and in `bootstrap_interval`. A sample costs one pass over
  the queries: a second per direction for 100,000 queries.
  """
  ranks = np.asarray(ranks, np.float64)
  _, group = np.unique(groups, return_inverse=True)
  order = np.argsort(ranks, kind='stable')
  ordered, ordered_group = ranks[order], group[order]
  rows = []
  values = [*(100.0 * (ranks <= k) for k in _RECALL_AT), ranks]
  for weight, means in _resampled_means(values, group, samples, seed):
    # The two middle ones of all queries drawn, each as often as its group.
    behind = np.cumsum(weight[ordered_group])
    middle = np.searchsorted(behind, ((behind[-1] - 1) // 2, behind[-1] // 2), side='right')
    rows.append([*means, ordered[middle].mean()])
  names = [*(f'r{k}' for k in _RECALL_AT), 'mean_rank', 'median_rank']
  columns = np.array(rows).T
  return {f'{prefix}_{name}': _interval(of) for name, of in zip(names, columns, strict=True)}


def bootstrap_interval(
  values, *, groups=None, samples: int = 1000, seed: int = 0
) -> tuple[float, float]:
  """95 % percentile bootstrap interval of the mean of values.

  Args:
    values: f[Q], one per query, e.g. 100 * (rank <= 1).
    groups: int[Q]. Queries of one group (the captions of one video) are drawn
      together, since they are not independent; None is each for itself.
    samples: how often as many groups as there are are drawn.
    seed: of the draws; the same input gives the same interval.
  """
  values = np.asarray(values, np.float64)
  if not len(values):
    raise ValueError('values is empty; an interval needs at least one query.')
  _, group = np.unique(np.arange(len(values)) if groups is None else groups, return_inverse=True)
  return _interval([mean for _, (mean,) in _resampled_means([values], group, samples, seed)])


def _resampled_means(values, group, samples, seed):
  """Yields int64[groups], how often each was drawn, and the means of f[K, Q]."""
  total = np.stack([np.bincount(group, row) for row in values])
  count = np.bincount(group)
  for weight in _draws(len(count), samples, seed):
    yield weight, total @ weight / (count @ weight)


def _draws(groups, samples, seed):
  generator = np.random.default_rng(seed)
  for _ in range(samples):
    yield np.bincount(generator.integers(0, groups, groups), minlength=groups)


def _interval(values):
  low, high = np.quantile(values, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
  return float(low), float(high)


def most_probable(
  names: Sequence[str], probabilities: np.ndarray, count: int = 5
) -> list[tuple[str, float]]:
  """Returns the first `count` names and probabilities f[N], of equal ones the earlier name."""
  best = np.argsort(-probabilities, kind='stable')[:count]
  return [(names[i], float(probabilities[i])) for i in best]
