"""Ranks, recall and intervals of retrieval: arithmetic on numpy arrays.

A score matrix has one row per distinct text and one column per video, larger
is better. Which text belongs to which video is a list of pairs, so a video may
have many captions and a caption may describe many videos:

                video 0   video 1          pairs (text, video)
      text 0      0.9       0.1            (0, 0)
      text 1      0.4       0.4            (1, 0)   ranks 1, 2, 1 of the
      text 2      0.2       0.8            (2, 1)   pairs, ties pessimistic

Text to video: every pair is one query, all other videos compete.
Video to text: every video that has captions is one query. Its best caption
counts, and the texts that are not its captions compete, each for itself (the
original counts the last caption alone, defect 13). Where videos have
several captions, others rank otherwise, and those figures stand beside ours
under a name of their own:

  v2t           ours: rank 1 + texts of other videos ahead of its best caption
  v2t_grouped   CLIP4Clip's: rank 1 + other videos of which any caption is ahead

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
and nobody has to hold all of it; see evaluation/candidates.py.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

TIES = ('pessimistic', 'optimistic', 'expected')
# Scores in a block of rows; a float64 copy of it takes 128 MiB.
CELLS = 2**24
_SHARE_AHEAD = {'pessimistic': 1.0, 'optimistic': 0.0, 'expected': 0.5}


class Queries(NamedTuple):
  """Who asks, and which columns are right.

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


def text_queries(pairs: np.ndarray) -> Queries:
  """One query for every distinct pair; rows are texts, columns videos."""
  text, video = np.unique(pairs, axis=0).T
  return Queries(text, video, np.arange(len(text) + 1), video)


def video_queries(pairs: np.ndarray) -> Queries:
  """One query for every video with captions; rows are videos, columns texts."""
  video, text = np.unique(np.asarray(pairs)[:, ::-1], axis=0).T
  row, start = np.unique(video, return_index=True)
  return Queries(row, text, np.append(start, len(video)), row)


class Standing(NamedTuple):
  """Where the best right item of every query stands.

  Attributes:
    score: f[Q], of the best right item.
    ahead: int64[Q], competitors of a greater score.
    equal: int64[Q], competitors of the same score.
  """

  score: np.ndarray
  ahead: np.ndarray
  equal: np.ndarray

  def ranks(self, ties: str = 'pessimistic') -> np.ndarray:
    """float64[Q], from 1."""
    if ties not in TIES:
      raise ValueError(f'{ties=} is none of {TIES}.')
    return 1.0 + self.ahead + _SHARE_AHEAD[ties] * self.equal


def blocks_of(scores: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """Yields a matrix in blocks of whole rows, as (first row, rows)."""
  for first, last in spans(len(scores), scores.shape[1]):
    yield first, np.ascontiguousarray(scores[first:last])


def spans(rows: int, columns: int) -> Iterator[tuple[int, int]]:
  """Yields (first, last) of runs of rows that hold at most CELLS scores."""
  size = max(CELLS // max(columns, 1), 1)
  for first in range(0, rows, size):
    yield first, min(first + size, rows)


def standing(
  blocks: Iterable[tuple[int, np.ndarray]], queries: Queries, penalty: np.ndarray | None = None
) -> Standing:
  """Counts who stands ahead of the right items.

  Args:
    blocks: all rows in their order, see blocks_of.
    queries: who asks.
    penalty: float64[columns], taken off all scores of a column, or None.
  """
  return join([standing_in(first, block, queries, penalty) for first, block in blocks])


def standing_in(first, block, queries, penalty=None) -> Standing:
  """The part of `standing` whose queries read the rows of one block."""
  low, high = np.searchsorted(queries.row, (first, first + len(block)))
  parts = []
  # A row is read once for every video of its text: no more rows at a time.
  for start in range(low, high, len(block)):
    stop = min(start + len(block), high)
    rows = block[queries.row[start:stop] - first]
    if penalty is not None:
      rows = rows - penalty
    query, column, bounds = right_columns(queries, start, stop)
    right = rows[query, column]
    best = np.maximum.reduceat(right, bounds)
    own = np.add.reduceat((right == best[query]).astype(np.int64), bounds)
    parts.append(
      Standing(best, (rows > best[:, None]).sum(1), (rows == best[:, None]).sum(1) - own)
    )
  return join(parts)


def grouped_in(first, block, queries) -> Standing:
  """Where videos stand if the captions of each video count as one, the best.

  Args:
    first: number of the first row of the block.
    block: f[rows, texts], rows are videos.
    queries: see video_queries.
  Returns:
    Standing of the queries that read these rows; competitors are the other
    videos with captions, whose score is that of their best caption.
  """
  number = np.arange(len(queries.row))
  single = Queries(queries.row, number, np.arange(len(number) + 1), queries.video)
  parts = []
  for start, stop in spans(len(block), len(queries.column)):
    best = np.maximum.reduceat(block[start:stop, queries.column], queries.start[:-1], axis=1)
    parts.append(standing_in(first + start, best, single))
  return join(parts)


def right_columns(queries: Queries, start: int, stop: int):
  """The right columns of queries start..stop.

  Returns:
    int[P] query, counted from `start`; int[P] column; int[Q] the first place of
    each query in both.
  """
  bounds = queries.start[start : stop + 1]
  query = np.repeat(np.arange(stop - start), np.diff(bounds))
  return query, queries.column[bounds[0] : bounds[-1]], bounds[:-1] - bounds[0]


def join(parts: list[Standing]) -> Standing:
  """Puts the parts of a Standing together."""
  if not parts:
    return Standing(np.zeros(0), np.zeros(0, int), np.zeros(0, int))
  return Standing(*map(np.concatenate, zip(*parts, strict=True)))


def dual_softmax_penalty(
  blocks: Iterable[tuple[int, np.ndarray]], scale: float = 1.0
) -> np.ndarray:
  """What dual softmax takes off a score for the popularity of its row.

  Dual softmax scores a pair by p(video | text) p(text | video). Its logarithm
  over 2 scale is the score minus one term of the row and one of the column.
  The term of the asking side moves nobody, so that the order is that of
  score - penalty[competitor]. The penalty is a sum over the WHOLE TEST SET of
  queries, which nobody has who gets one query at a time: report it apart.

  Args:
    blocks: rows are the competitors, columns the queries.
    scale: of the scores, 1 / temperature for similarities.
  Returns:
    float64[rows]: log(sum over columns of exp(scale score)) / (2 scale).
  """
  parts = [penalty_in(block, scale) for _, block in blocks]
  return np.concatenate(parts) if parts else np.zeros(0)


def penalty_in(block: np.ndarray, scale: float) -> np.ndarray:
  """dual_softmax_penalty of the rows of one block."""
  logits = block.astype(np.float64) * scale
  top = logits.max(1, keepdims=True)
  return (top[:, 0] + np.log(np.exp(logits - top).sum(1))) / (2 * scale)


def _check(scores, pairs, ties):
  scores, pairs = np.asarray(scores), np.asarray(pairs)
  if ties not in TIES:
    raise ValueError(f'{ties=} is none of {TIES}.')
  if scores.ndim != 2:
    raise ValueError(f'{scores.shape=} must be [texts, videos]; pass one matrix.')
  check_pairs(pairs, *scores.shape)
  wrong = sum(int(np.isnan(block).sum()) for _, block in blocks_of(scores))
  if wrong:
    raise ValueError(
      f'{wrong} of {scores.size} scores are NaN; a NaN has no rank. Check the parameters.'
    )
  return scores, pairs


def check_pairs(pairs: np.ndarray, texts: int, videos: int) -> None:
  """Raises ValueError if pairs are not (text, video) of a score matrix."""
  if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs):
    raise ValueError(f'{pairs.shape=} must be [pairs, 2] with at least one row of (text, video).')
  if pairs.min() < 0 or (pairs.max(0) >= (texts, videos)).any():
    raise ValueError(
      f'pairs reach {tuple(pairs.max(0))} from {pairs.min()} but scores are '
      f'[{texts}, {videos}]; index rows and columns of the matrix.'
    )


def text_to_video_ranks(scores, pairs, ties='pessimistic'):
  """Ranks the video of every pair among all videos.

  Args:
    scores: f[texts, videos].
    pairs: int[pairs, 2] of (text, video) that belong together. A pair that
      occurs twice counts once.
    ties: one of TIES.
  Returns:
    float64[distinct pairs], from 1, in the order of np.unique(pairs, axis=0).
  Raises:
    ValueError: if a score is NaN, an index is out of range, or ties unknown.
  """
  scores, pairs = _check(scores, pairs, ties)
  return standing(blocks_of(scores), text_queries(pairs)).ranks(ties)


def video_to_text_ranks(scores, pairs, ties='pessimistic'):
  """Ranks the best caption of every video among the texts of other videos.

  Args:
    scores: f[texts, videos].
    pairs: int[pairs, 2] of (text, video) that belong together.
    ties: one of TIES.
  Returns:
    float64[videos that have a caption], from 1, in the order of the columns.
  Raises:
    ValueError: as text_to_video_ranks.
  """
  scores, pairs = _check(scores, pairs, ties)
  return standing(blocks_of(scores.T), video_queries(pairs)).ranks(ties)


def grouped_video_to_text_ranks(scores, pairs, ties='pessimistic'):
  """Ranks every video among the groups of captions of all videos.

  CLIP4Clip's rule: a group scores as its best caption. Args and errors as
  text_to_video_ranks.

  Returns:
    float64[videos that have a caption], from 1, in the order of the columns.
  """
  scores, pairs = _check(scores, pairs, ties)
  return grouped_in(0, scores.T, video_queries(pairs)).ranks(ties)


def summarize_ranks(ranks, prefix):
  """{prefix_r1, _r5, _r10 in %, _median_rank, _mean_rank} of float[Q]."""
  ranks = np.asarray(ranks, np.float64)
  figures = {f'{prefix}_r{k}': 100.0 * int((ranks <= k).sum()) / len(ranks) for k in (1, 5, 10)}
  figures[f'{prefix}_median_rank'] = float(np.median(ranks))
  figures[f'{prefix}_mean_rank'] = float(np.mean(ranks))
  return figures


def retrieval_metrics(scores, pairs, ties='pessimistic'):
  """All figures of one score matrix, both directions, as a flat dict.

  Keys: see `retrieval_figures`.
  """
  scores, pairs = _check(scores, pairs, ties)
  by_text, by_video = text_queries(pairs), video_queries(pairs)
  grouped = None
  if len(by_video.column) > len(by_video.row):
    grouped = grouped_in(0, scores.T, by_video)
  figures, _ = retrieval_figures(
    by_text,
    standing(blocks_of(scores), by_text),
    by_video,
    standing(blocks_of(scores.T), by_video),
    grouped,
    videos=scores.shape[1],
    ties=ties,
  )
  return figures


def retrieval_figures(
  by_text: Queries,
  t2v: Standing,
  by_video: Queries,
  v2t: Standing,
  v2t_grouped: Standing | None = None,
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
  figures, intervals = {}, {}
  for prefix, queries, found in (
    ('t2v', by_text, t2v),
    ('v2t', by_video, v2t),
    ('v2t_grouped', by_video, v2t_grouped),
  ):
    if found is None:
      continue
    ranks = found.ranks(ties)
    figures |= summarize_ranks(ranks, prefix)
    intervals |= rank_intervals(ranks, queries.video, prefix)
    for rule in ('optimistic', 'pessimistic'):
      other = found.ranks(rule)
      if (other != ranks).any():
        figures |= {
          f'{name}_{rule}': value for name, value in summarize_ranks(other, prefix).items()
        }
  figures['t2v_r1_low'], figures['t2v_r1_high'] = intervals['t2v_r1']
  figures['t2v_r1_ceiling'] = 100.0 * len(np.unique(by_text.row)) / len(by_text.row)
  figures['t2v_r1_chance'] = 100.0 / videos
  return figures, intervals


def rank_intervals(ranks, groups, prefix, *, level=0.95, samples=1000, seed=0):
  """Percentile bootstrap intervals of all figures of `summarize_ranks`.

  All of them see the same draws. A sample costs one pass over the queries: a
  second per direction for 100,000 queries.

  Args:
    ranks: float[Q].
    groups: int[Q], see bootstrap_interval; level, samples and seed, too.
    prefix: of the names.
  Returns:
    {name: (low, high)}, names as in summarize_ranks.
  """
  ranks = np.asarray(ranks, np.float64)
  _, group = np.unique(groups, return_inverse=True)
  parts = [100.0 * (ranks <= k) for k in (1, 5, 10)] + [ranks]
  total = np.stack([np.bincount(group, part) for part in parts])
  count = np.bincount(group)
  order = np.argsort(ranks, kind='stable')
  ordered, ordered_group = ranks[order], group[order]
  means, medians = [], []
  for weight in _draws(len(count), samples, seed):
    means.append(total @ weight / (count @ weight))
    # The two middle ones of all queries drawn, each as often as its group.
    place = np.cumsum(weight[ordered_group])
    middle = np.searchsorted(place, ((place[-1] - 1) // 2, place[-1] // 2), side='right')
    medians.append(ordered[middle].mean())
  means = np.array(means).T
  names = [
    f'{prefix}_r1',
    f'{prefix}_r5',
    f'{prefix}_r10',
    f'{prefix}_mean_rank',
    f'{prefix}_median_rank',
  ]
  return {
    name: _middle(values, level)
    for name, values in zip(names, [*means, np.array(medians)], strict=True)
  }


def bootstrap_interval(values, *, groups=None, level=0.95, samples=1000, seed=0):
  """Percentile bootstrap interval of the mean of values.

  Args:
    values: f[Q], one per query, e.g. 100 * (rank <= 1).
    groups: int[Q] or None. Queries of one group (the captions of one video)
      are drawn together, since they are not independent.
    level: share of the bootstrap means inside the interval.
    samples: bootstrap samples.
    seed: of the draws; the same input gives the same interval.
  Returns:
    (low, high), floats.
  """
  values = np.asarray(values, np.float64)
  if not len(values):
    raise ValueError('values is empty; an interval needs at least one query.')
  if groups is None:
    groups = np.arange(len(values))
  _, group = np.unique(groups, return_inverse=True)
  total, count = np.bincount(group, values), np.bincount(group)
  return _middle(
    [total @ weight / (count @ weight) for weight in _draws(len(total), samples, seed)], level
  )


def _draws(groups, samples, seed):
  """Yields int64[groups]: how often each was drawn."""
  generator = np.random.default_rng(seed)
  for _ in range(samples):
    drawn = generator.integers(0, groups, groups)
    yield np.bincount(drawn, minlength=groups)


def _middle(values, level):
  low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)
