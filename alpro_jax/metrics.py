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
counts, and the texts that are not its captions compete (the original counts
the last caption alone, SPEC defect 13).

The tie rule is always explicit. 'pessimistic', the default, puts a competitor
of equal score ahead, so a model that gives one score to everything has recall
0. 'optimistic' puts it behind, 'expected' is the mean over all orders. Scores
are compared at full precision, never rounded (defect 12).
"""

import numpy as np

TIES = ('pessimistic', 'optimistic', 'expected')
_ROWS_AT_ONCE = 1024


def _ranks(gold, scores, competes, ties):
  """float64[Q]: ranks from 1 of gold f[Q] among scores f[Q, R]."""
  ahead = ((scores > gold[:, None]) & competes).sum(1)
  equal = ((scores == gold[:, None]) & competes).sum(1)
  share = {'pessimistic': 1.0, 'optimistic': 0.0, 'expected': 0.5}[ties]
  return 1.0 + ahead + share * equal


def _check(scores, pairs, ties):
  scores, pairs = np.asarray(scores), np.asarray(pairs)
  if ties not in TIES:
    raise ValueError(f'{ties=} is none of {TIES}.')
  if scores.ndim != 2:
    raise ValueError(
        f'{scores.shape=} must be [texts, videos]; pass one matrix.')
  if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs):
    raise ValueError(
        f'{pairs.shape=} must be [pairs, 2] with at least one row of '
        '(text, video).')
  if pairs.min() < 0 or (pairs.max(0) >= scores.shape).any():
    raise ValueError(
        f'pairs reach {tuple(pairs.max(0))} from {pairs.min()} but '
        f'{scores.shape=}; index rows and columns of the matrix.')
  if np.isnan(scores).any():
    raise ValueError(
        f'{int(np.isnan(scores).sum())} of {scores.size} scores are NaN; '
        'a NaN has no rank. Check the parameters.')
  return scores, np.unique(pairs, axis=0)


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
  ranks = []
  for start in range(0, len(pairs), _ROWS_AT_ONCE):
    text, video = pairs[start:start + _ROWS_AT_ONCE].T
    own = np.arange(scores.shape[1]) == video[:, None]
    row = np.asarray(scores[text], np.float64)
    gold = scores[text, video].astype(np.float64)
    ranks.append(_ranks(gold, row, ~own, ties))
  return np.concatenate(ranks)


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
  videos = np.unique(pairs[:, 1])
  ranks = []
  for start in range(0, len(videos), _ROWS_AT_ONCE):
    chunk = videos[start:start + _ROWS_AT_ONCE]
    own = np.zeros((len(chunk), len(scores)), bool)
    text, video = pairs[np.isin(pairs[:, 1], chunk)].T
    own[np.searchsorted(chunk, video), text] = True
    column = np.asarray(scores[:, chunk].T, np.float64)
    gold = np.where(own, column, -np.inf).max(1)
    ranks.append(_ranks(gold, column, ~own, ties))
  return np.concatenate(ranks)


def summarize_ranks(ranks, prefix):
  """{prefix_r1, _r5, _r10 in %, _median_rank, _mean_rank} of float[Q]."""
  ranks = np.asarray(ranks, np.float64)
  figures = {
      f'{prefix}_r{k}': 100.0 * int((ranks <= k).sum()) / len(ranks)
      for k in (1, 5, 10)}
  figures[f'{prefix}_median_rank'] = float(np.median(ranks))
  figures[f'{prefix}_mean_rank'] = float(np.mean(ranks))
  return figures


def retrieval_metrics(scores, pairs, ties='pessimistic'):
  """All figures of one score matrix, both directions, as a flat dict.

  Keys: t2v_r1, t2v_r5, t2v_r10 (percent), t2v_median_rank, t2v_mean_rank, the
  same with v2t; t2v_r1_low and t2v_r1_high (95 % interval over queries, by
  video); t2v_r1_ceiling (the same text on m videos can be first on one only)
  and t2v_r1_chance. Where optimistic ties would give another R@1 it is added
  as t2v_r1_optimistic: a difference says that scores are not distinct.
  """
  _, distinct = _check(scores, pairs, ties)
  t2v = text_to_video_ranks(scores, pairs, ties)
  v2t = video_to_text_ranks(scores, pairs, ties)
  figures = {**summarize_ranks(t2v, 't2v'), **summarize_ranks(v2t, 'v2t')}
  low, high = bootstrap_interval(100.0 * (t2v <= 1), groups=distinct[:, 1])
  figures['t2v_r1_low'], figures['t2v_r1_high'] = low, high
  figures['t2v_r1_ceiling'] = (
      100.0 * len(np.unique(distinct[:, 0])) / len(distinct))
  figures['t2v_r1_chance'] = 100.0 / np.shape(scores)[1]
  for name, function, ranks in (
      ('t2v', text_to_video_ranks, t2v), ('v2t', video_to_text_ranks, v2t)):
    best = function(scores, pairs, 'optimistic')
    if (best != ranks).any():
      figures[f'{name}_r1_optimistic'] = summarize_ranks(best, 'x')['x_r1']
  return figures


def rank_intervals(ranks, groups, prefix):
  """95 % bootstrap intervals of the figures of summarize_ranks.

  Args:
    ranks: float[Q].
    groups: int[Q], see bootstrap_interval.
    prefix: of the names.
  Returns:
    {name: (low, high)}.
  """
  ranks = np.asarray(ranks, np.float64)
  intervals = {
      f'{prefix}_r{k}': bootstrap_interval(100.0 * (ranks <= k), groups=groups)
      for k in (1, 5, 10)}
  intervals[f'{prefix}_mean_rank'] = bootstrap_interval(ranks, groups=groups)
  return intervals


def bootstrap_interval(values, *, groups=None, level=0.95, samples=1000,
                       seed=0):
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
  generator = np.random.default_rng(seed)
  means = []
  for _ in range(samples):
    drawn = generator.integers(0, len(total), len(total))
    means.append(total[drawn].sum() / count[drawn].sum())
  low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)
