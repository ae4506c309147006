"""Which pairs are worth reading, and ranks if only those are read.

The fusion encoder is dear and the similarity is cheap. With `rerank_k` = k the
fusion encoder reads the k videos nearest to every text, for text to video, and
the k texts nearest to every video, for video to text. Those candidates come
first, in the order of their scores; all others follow by similarity:

      videos, nearest first      c   a   e  |  d   b         k = 3
      score                      1   7   3  |  -   -
      order                      a   e   c     d   b

A pair that both directions want is read once. Of equally near ones at the edge
the smaller index is a candidate. With k >= all it is the order by score alone.

Similarities are visited in blocks of rows (metrics.CELLS), computed in float64
and rounded to float32: so they do not depend on the blocks, and equal features
are equally near. Numpy only.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from alpro_jax import metrics


class Survey(NamedTuple):
  """What one direction knows after a visit to all of its scores.

  Attributes:
    item: int32[R, K], the best columns of every row, best first; of equal ones
      the smaller index first.
    score: float32[R, K], theirs.
    standing: of the right items among all columns.
    penalty: float64[R], see metrics.dual_softmax_penalty; None if not asked.
    grouped: see metrics.rank_grouped; None if not asked.
  """

  item: np.ndarray
  score: np.ndarray
  standing: metrics.Ranks
  penalty: np.ndarray | None
  grouped: metrics.Ranks | None = None


def similarity_blocks(rows: np.ndarray, columns: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
  """Yields (first row, float32[n, C]) of rows f[R, E] times columns f[C, E]."""
  columns = np.asarray(columns, np.float64).T
  for first, last in metrics.row_spans(len(rows), columns.shape[1]):
    rows_now = np.asarray(rows[first:last], np.float64)
    yield first, (rows_now @ columns).astype(np.float32)


def similarity_matrix(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
  """float32[R, C]: all similarities, as similarity_blocks gives them."""
  matrix = np.empty((len(rows), len(columns)), np.float32)
  for first, block in similarity_blocks(rows, columns):
    matrix[first : first + len(block)] = block
  return matrix


def survey(
  blocks: Iterable[tuple[int, np.ndarray]],
  queries: metrics.Queries,
  keep: int,
  *,
  scale: float = 0.0,
  grouped: bool = False,
) -> Survey:
  """Visits all scores once.

  Args:
    blocks: see metrics.row_blocks.
    queries: who asks.
    keep: K, how many of the best columns of a row are kept.
    scale: of the penalty of dual softmax, 0 without.
    grouped: rank among grouped captions, too; rows are videos.
  """
  items, scores, standings, penalties, groups = [], [], [], [], []
  for first, block in blocks:
    item = best_columns(block, keep)
    items.append(item)
    scores.append(np.take_along_axis(block, item, 1))
    standings.append(metrics.rank_block(first, block, queries))
    if scale:
      penalties.append(metrics.dual_softmax_penalty(block, scale))
    if grouped:
      groups.append(metrics.rank_grouped(first, block, queries))
  return Survey(
    np.concatenate(items),
    np.concatenate(scores),
    metrics.join_ranks(standings),
    np.concatenate(penalties) if scale else None,
    metrics.join_ranks(groups) if grouped else None,
  )


def best_columns(block: np.ndarray, keep: int) -> np.ndarray:
  """int32[R, min(keep, C)]: the greatest of every row f[R, C], in order."""
  rows, columns = block.shape
  if keep >= columns:
    return np.argsort(-block, axis=1, kind='stable').astype(np.int32)
  edge = np.partition(block, columns - keep, axis=1)[:, columns - keep]
  chosen = block >= edge[:, None]
  surplus = chosen.sum(1) - keep
  for row in np.flatnonzero(surplus):
    equal = np.flatnonzero(block[row] == edge[row])
    chosen[row, equal[-surplus[row] :]] = False
  item = np.nonzero(chosen)[1].astype(np.int32).reshape(rows, keep)
  order = np.argsort(-np.take_along_axis(block, item, 1), axis=1, kind='stable')
  return np.take_along_axis(item, order, 1)


def reranked(queries: metrics.Queries, found: Survey, scores: np.ndarray) -> metrics.Ranks:
  """Who stands ahead if the first k columns of every row are re-scored.

  Args:
    queries: who asks.
    found: by similarity, K >= k.
    scores: f[R, k], of found.item[:, :k].
  """
  parts, k = [], scores.shape[1]
  for start, stop in _spans_of(queries, k):
    row = queries.row[start:stop]
    near, score = found.score[row, :k], scores[row]
    query, _, bounds = queries.right_columns(start, stop)
    value, best, inside = _right_in(queries, found, scores, start, stop)
    own = np.add.reduceat((value == best[query]).astype(np.int64), bounds)
    ahead = (score > best[:, None]).sum(1)
    equal = (score == best[:, None]).sum(1) - own
    # Without a right candidate: all candidates, and then by similarity.
    by_near = metrics.Ranks(*(part[start:stop] for part in found.standing))
    nearer = (near > by_near.score[:, None]).sum(1)
    level = (near == by_near.score[:, None]).sum(1)
    parts.append(
      metrics.Ranks(
        np.where(inside, best, by_near.score),
        np.where(inside, ahead, k + by_near.ahead - nearer),
        np.where(inside, equal, by_near.equal - level),
      )
    )
  return metrics.join_ranks(parts)


def _spans_of(queries, k):
  return metrics.row_spans(len(queries.row), k * int(np.diff(queries.start).max()))


def _right_in(queries, found, scores, start, stop):
  """The right candidates of queries start..stop.

  Returns:
    f[P], the score of every right column, -inf if it is no candidate; f[Q],
    the best of a query; bool[Q], whether there is any.
  """
  row, k = queries.row[start:stop], scores.shape[1]
  query, column, bounds = queries.right_columns(start, stop)
  # bool[P, k]: which candidate is a right one.
  right = found.item[row, :k][query] == column[:, None]
  value = np.where(right, scores[row][query], -np.inf).max(1)
  return (value, np.maximum.reduceat(value, bounds), np.logical_or.reduceat(right.any(1), bounds))


def reranked_grouped(queries: metrics.Queries, found: Survey, scores: np.ndarray) -> metrics.Ranks:
  """As `reranked`, of videos among the captions of a video at a time.

  The place of a group is that of its first caption; see metrics.rank_grouped.
  """
  parts, k, count = [], scores.shape[1], len(queries.row)
  # The groups of text t are group[first[t]:first[t + 1]].
  order = np.argsort(queries.column, kind='stable')
  group = np.repeat(np.arange(count), np.diff(queries.start))[order]
  first = np.searchsorted(queries.column[order], np.arange(max(found.item.max() + 1, 1) + 1))
  # Several numbers of 8 bytes for every candidate.
  for start, stop in _spans_of(queries, 8 * k):
    row, number = queries.row[start:stop], stop - start
    _, best, inside = _right_in(queries, found, scores, start, stop)
    item = found.item[row, :k].ravel()
    # One entry for every candidate and group that it belongs to.
    size = first[item + 1] - first[item]
    query = np.repeat(np.repeat(np.arange(number), k), size)
    place = np.repeat(first[item] - (np.cumsum(size) - size), size)
    own = group[place + np.arange(len(place))]
    value = np.repeat(scores[row].ravel(), size)
    other = own != start + query
    key, value = (query * count + own)[other], value[other]
    by_key = np.argsort(key, kind='stable')
    key, begin = np.unique(key[by_key], return_index=True)
    query = key // count
    value = np.maximum.reduceat(value[by_key], begin) if len(key) else value

    def per_query(which, query=query, number=number):
      return np.bincount(query[which], minlength=number)

    # Without an own candidate, all groups that have one come first, and so do
    # those that have a nearer caption: one of the two holds the other.
    near = metrics.Ranks(*(part[start:stop] for part in found.grouped))
    outside = np.maximum(near.ahead, per_query(slice(None)))
    parts.append(
      metrics.Ranks(
        np.where(inside, best, near.score),
        np.where(inside, per_query(value > best[query]), outside),
        np.where(inside, per_query(value == best[query]), near.ahead + near.equal - outside),
      )
    )
  return metrics.join_ranks(parts)


def reordered(found: Survey, scores: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
  """The first columns of every row after re-scoring, and their scores.

  Args:
    found: by similarity, K >= keep or K = all columns.
    scores: f[R, k], of found.item[:, :k].
    keep: how many.
  Returns:
    int32[R, min(keep, K)]; float32, same shape: the score of a candidate, the
    similarity of those behind.
  """
  k = scores.shape[1]
  order = np.argsort(-scores, axis=1, kind='stable')[:, :keep]
  behind = slice(k, max(keep, k))
  return (
    np.concatenate([np.take_along_axis(found.item[:, :k], order, 1), found.item[:, behind]], 1),
    np.concatenate(
      [np.take_along_axis(scores, order, 1), found.score[:, behind]], 1, dtype=np.float32
    ),
  )


class Union(NamedTuple):
  """The pairs that one direction or the other wants, each once.

  Attributes:
    key: int64[P], ascending, video * texts + text: all pairs of one video
      stand together.
    texts: number of texts.
  """

  key: np.ndarray
  texts: int

  @property
  def text(self) -> np.ndarray:
    return (self.key % self.texts).astype(np.int32)

  @property
  def video(self) -> np.ndarray:
    return (self.key // self.texts).astype(np.int32)

  def of_texts(self, values: np.ndarray, item: np.ndarray) -> np.ndarray:
    """f[P] -> f[texts, k], for videos int32[texts, k] of every text."""
    return self._look_up(values, item, lambda row, item: item * self.texts + row)

  def of_videos(self, values: np.ndarray, item: np.ndarray) -> np.ndarray:
    """f[P] -> f[videos, k], for texts int32[videos, k] of every video."""
    return self._look_up(values, item, lambda row, item: row * self.texts + item)

  def _look_up(self, values, item, key):
    found = np.empty(item.shape, values.dtype)
    for first, last in metrics.row_spans(*item.shape):
      row = np.arange(first, last)[:, None]
      wanted = key(row, item[first:last].astype(np.int64))
      found[first:last] = values[np.searchsorted(self.key, wanted)]
    return found


def union(videos_of_text: np.ndarray, texts_of_video: np.ndarray) -> Union:
  """Merges int32[texts, k] videos and int32[videos, k] texts."""
  texts, videos = len(videos_of_text), len(texts_of_video)
  key = np.empty(videos_of_text.size + texts_of_video.size, np.int64)
  from_text, from_video = np.split(key, [videos_of_text.size])
  from_text = from_text.reshape(videos_of_text.shape)
  np.multiply(videos_of_text, texts, out=from_text, dtype=np.int64)
  from_text += np.arange(texts)[:, None]
  from_video = from_video.reshape(texts_of_video.shape)
  np.add(texts_of_video, np.arange(videos)[:, None] * texts, out=from_video)
  key.sort()
  first = np.ones(len(key), bool)
  np.not_equal(key[1:], key[:-1], out=first[1:])
  return Union(key[first], texts)


def similarity_of(
  texts: np.ndarray, videos: np.ndarray, text: np.ndarray, video: np.ndarray
) -> np.ndarray:
  """float32[P] of pairs of features f[texts, E], f[videos, E]."""
  similarity = np.empty(len(text), np.float32)
  for first, last in metrics.row_spans(len(text), texts.shape[1]):
    similarity[first:last] = np.einsum(
      'pe,pe->p',
      texts[text[first:last]].astype(np.float64),
      videos[video[first:last]].astype(np.float64),
    )
  return similarity


def penalties(pairs: Union, scores: np.ndarray, videos: int) -> tuple[np.ndarray, np.ndarray]:
  """metrics.dual_softmax_penalty over the pairs that were read.

  Args:
    pairs: that were read.
    scores: f[P], theirs.
    videos: number of videos.
  Returns:
    float64[texts], float64[videos]; -inf where nothing was read.
  """
  return tuple(
    _log_sum_exp(scores, group, count) / 2
    for group, count in ((pairs.text, pairs.texts), (pairs.video, videos))
  )


def _log_sum_exp(values, group, count):
  top = np.full(count, -np.inf)
  np.maximum.at(top, group, values)
  total = np.bincount(group, np.exp(values - top[group]), minlength=count)
  with np.errstate(divide='ignore'):
    return top + np.log(total)
