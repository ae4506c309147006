"""Orders of videos and texts: by all scores, or by those of candidates.

The fusion encoder is expensive and the similarity is cheap. With `rerank_k` = k
the fusion encoder reads the k videos nearest to every text, for text to video,
and the k texts nearest to every video, for video to text. Those candidates come
first, in the order of their scores; all others follow by similarity:

      videos, nearest first      c   a   e  |  d   b         k = 3
      score                      1   7   3  |  -   -
      order                      a   e   c     d   b

A pair that both directions want is read once. Of equally near ones at the edge
the smaller index is a candidate. With k >= all it is the order by score alone.

Scores are visited in blocks of rows (metrics.CELLS). Similarities are computed
in float64 and rounded to float32: so they do not depend on the blocks, and
equal features are equally near.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from alpro_jax import metrics

# 0, rows are texts, or 1, rows are videos -> blocks; see metrics.row_blocks.
Blocks = Callable[[int], Iterator[tuple[int, np.ndarray]]]


class TopK(NamedTuple):
  """The best columns of every row, best first; of equal ones the smaller first."""

  item: np.ndarray  # int32[R, K], columns.
  score: np.ndarray  # float32[R, K], theirs.


class Order(NamedTuple):
  """What an order of all columns of every row gives; see metrics.py for ranks."""

  top: tuple[TopK, TopK]  # Of the texts, of the videos.
  # t2v, v2t and v2t_grouped; the last is None if no video has several captions.
  ranks: tuple[metrics.Ranks, metrics.Ranks, metrics.Ranks | None]
  # t2v and v2t by dual softmax, None if not asked.
  dual_softmax: tuple[metrics.Ranks, metrics.Ranks] | None = None


def matrix_blocks(scores: np.ndarray) -> Blocks:
  """Blocks of a matrix f[texts, videos]."""
  return lambda side: metrics.row_blocks(scores.T if side else scores)


def similarity_blocks(texts: np.ndarray, videos: np.ndarray) -> Blocks:
  """Blocks of the products of features f[texts, E] and f[videos, E], float32."""

  def blocks(side):
    rows, columns = (videos, texts) if side else (texts, videos)
    columns = np.asarray(columns, np.float64).T
    for first, last in metrics.row_spans(len(rows), columns.shape[1]):
      yield first, (np.asarray(rows[first:last], np.float64) @ columns).astype(np.float32)

  return blocks


def similarity_matrix(texts: np.ndarray, videos: np.ndarray) -> np.ndarray:
  """float32[texts, videos]: all that similarity_blocks gives."""
  return np.concatenate([block for _, block in similarity_blocks(texts, videos)(0)])


def top_k(block: np.ndarray, k: int) -> TopK:
  """The best min(k, C) of every row f[R, C]."""
  score, item = jax.device_get(jax.lax.top_k(block, min(k, block.shape[1])))
  return TopK(item, score)


def has_groups(queries: metrics.Queries) -> bool:
  """Whether one of the videos that ask has several captions."""
  return len(queries.column) > len(queries.row)


def rank_all(
  blocks: Blocks, queries: Sequence[metrics.Queries], keep: int, *, scale: float = 0.0
) -> Order:
  """The order by score alone; visits all scores once, twice for dual softmax.

  Args:
    blocks: of the scores.
    queries: of texts, of videos.
    keep: K of the top.
    scale: of the penalty of dual softmax, 0 without.
  """
  top, ranks, grouped, penalties = [], [], [], ([], [])
  for side, asking in enumerate(queries):
    tops, parts = [], []
    for first, block in blocks(side):
      tops.append(top_k(block, keep))
      parts.append(metrics.rank_block(first, block, asking))
      if has_groups(asking):
        grouped.append(metrics.rank_grouped(first, block, asking))
      if scale:
        penalties[side].append(metrics.dual_softmax_penalty(block, scale))
    top.append(TopK(*map(np.concatenate, zip(*tops, strict=True))))
    ranks.append(metrics.join_ranks(parts))
  ranks.append(metrics.join_ranks(grouped) if grouped else None)
  dual = None
  if scale:
    dual = tuple(
      metrics.rank_blocks(blocks(side), asking, np.concatenate(penalties[1 - side]))
      for side, asking in enumerate(queries)
    )
  return Order(tuple(top), tuple(ranks), dual)


class Candidates(NamedTuple):
  """The pairs that one direction or the other wants, each once."""

  text: np.ndarray  # int32[P].
  video: np.ndarray  # int32[P], ascending.
  # int[texts, k] and int[videos, k]: which of the P pairs the candidates are.
  index: tuple[np.ndarray, np.ndarray]

  def penalties(self, scores: np.ndarray) -> list[np.ndarray]:
    """metrics.dual_softmax_penalty of f[P], over the pairs of each text and video.

    Returns:
      float64[texts], float64[videos]; -inf where nothing was read.
    """
    found = []
    for group, rows in zip((self.text, self.video), map(len, self.index), strict=True):
      top = np.full(rows, -np.inf)
      np.maximum.at(top, group, scores)
      total = np.bincount(group, np.exp(scores - top[group]), minlength=rows)
      with np.errstate(divide='ignore'):
        found.append((top + np.log(total)) / 2)
    return found


def union(videos_of_text: np.ndarray, texts_of_video: np.ndarray) -> Candidates:
  """Merges int32[texts, k] videos and int32[videos, k] texts."""
  texts, videos = len(videos_of_text), len(texts_of_video)
  # All pairs of one video have keys that follow each other. numpy.unique would
  # take twice the memory.
  key = np.concatenate(
    [
      (videos_of_text * np.int64(texts) + np.arange(texts)[:, None]).ravel(),
      (texts_of_video + np.arange(videos)[:, None] * texts).ravel(),
    ]
  )
  order = np.argsort(key)
  key = key[order]
  first = np.r_[True, key[1:] != key[:-1]]
  index = np.empty_like(order)
  index[order] = np.cumsum(first)
  index -= 1
  key = key[first]
  of_text, of_video = np.split(index, [videos_of_text.size])
  index = of_text.reshape(videos_of_text.shape), of_video.reshape(texts_of_video.shape)
  return Candidates((key % texts).astype(np.int32), (key // texts).astype(np.int32), index)


def rerank(
  near: Order,
  queries: Sequence[metrics.Queries],
  scores: Sequence[np.ndarray],
  keep: int,
  penalties: Sequence[np.ndarray] | None = None,
) -> Order:
  """The order if the first k columns of every row are re-scored.

  Args:
    near: by similarity, K >= k, and K >= keep or K = all columns.
    queries: of texts, of videos.
    scores: f[texts, k] and f[videos, k], of near.top[...].item[:, :k].
    keep: K of the top. Its score is the similarity behind the candidates.
    penalties: see Candidates.penalties; None without dual softmax.
  """
  sides = list(zip(queries, near.top, near.ranks[:2], scores, strict=True))
  grouped = dual = None
  if near.ranks[2] is not None:
    grouped = _rerank_grouped(queries[1], near.top[1], near.ranks[2], scores[1])
  if penalties:
    dual = tuple(
      _rerank(asking, top, ranks, score - penalty[top.item[:, : score.shape[1]]])
      for (asking, top, ranks, score), penalty in zip(sides, penalties[::-1], strict=True)
    )
  tops = tuple(_reorder(top, score, keep) for _, top, _, score in sides)
  return Order(tops, (*(_rerank(*side) for side in sides), grouped), dual)


def _reorder(top, scores, keep):
  k = scores.shape[1]
  order = np.argsort(-scores, axis=1, kind='stable')[:, :keep]
  behind = slice(k, max(keep, k))
  parts = ((top.item[:, :k], top.item), (scores, top.score))
  return TopK(
    *(
      np.concatenate([np.take_along_axis(first, order, 1), rest[:, behind]], 1, dtype=rest.dtype)
      for first, rest in parts
    )
  )


def _rerank(queries, top, near, scores):
  """Ranks if the first k columns are re-scored; near: by similarity."""
  parts, k = [], scores.shape[1]
  widest = int(np.diff(queries.start).max())
  for start, stop in metrics.row_spans(len(queries.row), k * widest):
    row = queries.row[start:stop]
    item, score = top.item[row, :k], scores[row]
    query, column, bounds = queries.right_columns(start, stop)
    # bool[Q, k]: which candidates are right.
    right = np.logical_or.reduceat(item[query] == column[:, None], bounds)
    best = np.where(right, score, -np.inf).max(1, keepdims=True)
    ahead, equal = (score > best).sum(1), ((score == best) & ~right).sum(1)
    # Without a right candidate, all candidates come first, and so does what is
    # nearer: one of the two holds the other.
    by_near = metrics.Ranks(*(part[start:stop] for part in near))
    behind = np.maximum(by_near.ahead, k)
    inside = right.any(1)
    parts.append(
      metrics.Ranks(
        np.where(inside, best[:, 0], by_near.score),
        np.where(inside, ahead, behind),
        np.where(inside, equal, by_near.ahead + by_near.equal - behind),
      )
    )
  return metrics.join_ranks(parts)


def _rerank_grouped(queries, top, near, scores):
  """As _rerank, with the captions of each video as one competitor, the best of them."""
  videos = {}  # Text -> the queries of the videos that it describes.
  for query, texts in enumerate(np.split(queries.column, queries.start[1:-1])):
    for text in texts.tolist():
      videos.setdefault(text, []).append(query)
  ranks, k = [], scores.shape[1]
  for query, row in enumerate(queries.row):
    best = {}
    for text, score in zip(top.item[row, :k].tolist(), scores[row].tolist(), strict=True):
      best |= {video: max(score, best.get(video, score)) for video in videos.get(text, ())}
    own, others = best.pop(query, None), np.array(list(best.values()))
    score, ahead, equal = (part[query] for part in near)
    behind = max(ahead, len(others))
    if own is None:
      ranks.append((score, behind, ahead + equal - behind))
    else:
      ranks.append((own, (others > own).sum(), (others == own).sum()))
  return metrics.Ranks(*map(np.array, zip(*ranks, strict=True)))
