"""Zero-shot retrieval: every text of a split against every video of it.

Each video and each distinct text is encoded once (the original encodes the
videos again for every chunk of captions, SPEC defect 57). Two scores follow:

  similarity   dot product of the contrastive features; cheap, exact for all
  matching     logit(match) - logit(no match) of the fusion encoder, all pairs

Matching decides the final order. It is the logit of the probability of a
match, so it orders pairs as the probability does, but does not saturate: a
softmax in float32 is exactly 1 from a margin of 17 on and would make ties.

Token features stay in host memory. A call to the fusion encoder takes a block
of videos, cut over the devices, and a block of texts, and forms their pairs on
the devices, so that a + b features travel for a * b scores.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from einops import rearrange, repeat

from alpro_jax import metrics, sharding

_SECONDS_BETWEEN_LINES = 10.0


class VideoFeatures(NamedTuple):
  """Encoded videos, in the order of their records.

  Attributes:
    record: int[videos], index of each video in its split.
    tokens: f[videos, S, D].
    feature: float32[videos, E], unit length.
  """

  record: np.ndarray
  tokens: np.ndarray
  feature: np.ndarray


class TextFeatures(NamedTuple):
  """Encoded texts.

  Attributes:
    mask: bool[texts, L].
    tokens: f[texts, L, D].
    feature: float32[texts, E], unit length.
  """

  mask: np.ndarray
  tokens: np.ndarray
  feature: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scoring:
  """How a split is scored.

  Attributes:
    rule: 'matching', 'matching+similarity' or 'similarity'.
    rerank_k: the fusion encoder reads the k videos nearest to every text and
      the k texts nearest to every video; 0 is all pairs.
    ties: one of metrics.TIES.
    dual_softmax: report the order by dual softmax beside, labelled.
  """

  rule: str = 'matching'
  rerank_k: int = 0
  ties: str = 'pessimistic'
  dual_softmax: bool = False


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """Scores of a split and what follows from them.

  Attributes:
    texts: distinct captions, rows of the matrices.
    pairs: int[pairs, 2], (text, video) that belong together; the column of a
      video is its record.
    similarity: float32[texts, videos].
    matching: float32[texts, videos], or None without re-scoring.
    metrics: figures of the final order as t2v_r1, ..., of the contrastive
      order as similarity/t2v_r1, ..., and texts, videos.
    seconds: time of each part.
    ranks: float64[distinct pairs], text to video, in the order of
      np.unique(pairs, axis=0).
    top: int32[texts, min(10, videos)], the best videos, best first.
    top_scores: float32, their scores.
    intervals: of the figures, {name: (low, high)}, 95 % bootstrap by video.
    scoring: how it was scored.
    cost: pairs that the fusion encoder read, and their share of all pairs.
  """

  texts: tuple[str, ...]
  pairs: np.ndarray
  similarity: np.ndarray
  matching: np.ndarray | None
  metrics: dict[str, float]
  seconds: dict[str, float]
  ranks: np.ndarray | None = None
  top: np.ndarray | None = None
  top_scores: np.ndarray | None = None
  intervals: dict[str, tuple[float, float]] = dataclasses.field(
      default_factory=dict)
  scoring: Scoring = Scoring()
  cost: dict[str, float] = dataclasses.field(default_factory=dict)

  @property
  def scores(self) -> np.ndarray:
    """The matrix that decides the final order."""
    return self.similarity if self.matching is None else self.matching


class Progress:
  """Logs a line with rate and time left, every ten seconds and at the end."""

  def __init__(self, what: str, total: int):
    self._what, self._total, self._done = what, total, 0
    self._start = self._last = time.monotonic()

  def add(self, count: int) -> None:
    self._done += count
    now = time.monotonic()
    end = self._done >= self._total
    if not end and now - self._last < _SECONDS_BETWEEN_LINES:
      return
    self._last = now
    rate = self._done / max(now - self._start, 1e-6)
    logging.info(
        '%s: %d of %d, %.0f/s, %.0f s left', self._what, self._done,
        self._total, rate, max(self._total - self._done, 0) / rate)


class _Calls(NamedTuple):
  video: Callable
  text: Callable
  pairs: Callable
  block: Callable


@functools.lru_cache(maxsize=8)
def _compiled(model, mesh) -> _Calls:
  """The jitted calls of a model; an evaluation during training reuses them."""

  def video(params, video, record, valid):
    encoding = model.bind({'params': params}).encode_video(video, train=False)
    return encoding.tokens, encoding.feature, record, valid

  def text(params, ids, mask):
    encoding = model.bind({'params': params}).encode_text(
        ids, mask, train=False)
    return encoding.tokens, encoding.feature

  def pairs(params, text_tokens, mask, video_tokens):
    """f[Q, L, D], bool[Q, L], f[Q, S, D] -> logit margins float32[Q]."""
    bound = model.bind({'params': params})
    fused = bound.fuse(text_tokens, mask, video_tokens, train=False)
    logits = bound.match_logits(fused[:, 0])
    return logits[:, 1] - logits[:, 0]

  def block(params, text_tokens, mask, video_tokens):
    """a texts, b videos (cut over the devices) -> float32[a, b]."""
    a, b = len(text_tokens), len(video_tokens)
    margin = pairs(
        params,
        repeat(text_tokens, 'a l d -> (b a) l d', b=b),
        repeat(mask, 'a l -> (b a) l', b=b),
        repeat(video_tokens, 'b s d -> (b a) s d', a=a))
    return rearrange(margin, '(b a) -> a b', a=a)

  # Results leave the devices whole, so that every host can read them.
  jit = functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
  return _Calls(*map(jit, (video, text, pairs, block)))


class Scorer:
  """Encodes and scores with one model, on all devices of a mesh."""

  def __init__(self, model, params, mesh, *, encode, max_text_tokens: int,
               batch_size: int, pairs_per_call: int):
    """Compiles nothing yet.

    Args:
      model: an Alpro (models/alpro.py).
      params: its parameters, boxes off.
      mesh: from sharding.make_mesh.
      encode: tokenizer.encode, (texts, max_tokens) -> int32[B, L], bool[B, L].
      max_text_tokens: L.
      batch_size: texts per call of the text encoder.
      pairs_per_call: pairs per call of the fusion encoder, over all devices;
        rounded to whole blocks of videos and texts.
    """
    self.model, self.params, self.mesh = model, params, mesh
    self._encode, self._max_text_tokens = encode, max_text_tokens
    self._batch_size = -(-batch_size // mesh.size) * mesh.size
    side = max(int(np.sqrt(pairs_per_call)), 1)
    self._videos_per_call = max(side // mesh.size, 1) * mesh.size
    self._texts_per_call = max(pairs_per_call // self._videos_per_call, 1)
    self._rows = sharding.batch_sharding(mesh)
    self._everywhere = sharding.replicated(mesh)
    self._call = _compiled(model, mesh)

  def _place(self, array, where):
    """Puts an array that every host has whole onto the devices."""
    return jax.make_array_from_callback(
        array.shape, where, lambda index: array[index])

  def embed_videos(
      self, batches: Iterable[Mapping[str, np.ndarray]], total: int
  ) -> VideoFeatures:
    """Encodes the videos of a split, each once.

    Args:
      batches: dicts with `video` uint8[B, T, H, W, 3], `record` int[B] and
        `valid` bool[B], the rows of this host; the last one is padded.
      total: records of the split.
    Raises:
      ValueError: if the batches do not hold every record exactly once.
    """
    progress, parts = Progress('videos', total), []
    for batch in batches:
      rows = [
          jax.make_array_from_process_local_data(self._rows, np.asarray(x))
          for x in (batch['video'], np.asarray(batch['record'], np.int32),
                    np.asarray(batch['valid'], bool))]
      *part, valid = jax.device_get(self._call.video(self.params, *rows))
      parts.append([x[valid] for x in part])
      progress.add(int(valid.sum()))
    if not parts:
      raise ValueError(f'saw no batch of a split of {total} records.')
    tokens, feature, record = map(np.concatenate, zip(*parts, strict=True))
    order = np.argsort(record, kind='stable')
    if not np.array_equal(record[order], np.arange(total)):
      raise ValueError(
          f'saw {len(record)} videos, {len(np.unique(record))} of them '
          f'distinct, but the split has {total}; every record must come '
          'exactly once, padding rows marked with valid=False.')
    return VideoFeatures(record[order], tokens[order], feature[order])

  def embed_texts(self, texts: Sequence[str]) -> TextFeatures:
    """Encodes texts; the last batch is padded with its last text."""
    if not texts:
      raise ValueError('there is no text to encode; the split has no captions.')
    ids, mask = self._encode(list(texts), self._max_text_tokens)
    progress, tokens, feature = Progress('texts', len(texts)), [], []
    for rows in _chunks(len(texts), self._batch_size):
      part = jax.device_get(self._call.text(
          self.params, self._place(ids[rows.padded], self._rows),
          self._place(mask[rows.padded], self._rows)))
      tokens.append(part[0][:rows.count])
      feature.append(part[1][:rows.count])
      progress.add(rows.count)
    return TextFeatures(mask, np.concatenate(tokens), np.concatenate(feature))

  def similarity(
      self, texts: TextFeatures, videos: VideoFeatures
  ) -> np.ndarray:
    """float32[texts, videos]: cosine of the contrastive features."""
    return np.asarray(texts.feature @ videos.feature.T, np.float32)

  def matching(self, texts: TextFeatures, videos: VideoFeatures) -> np.ndarray:
    """float32[texts, videos]: logit margin of a match, for all pairs."""
    a, b = len(texts.mask), len(videos.feature)
    scores = np.empty((a, b), np.float32)
    progress = Progress('pairs', a * b)
    for columns in _chunks(b, self._videos_per_call):
      video = self._place(videos.tokens[columns.padded], self._rows)
      for rows in _chunks(a, self._texts_per_call):
        block = jax.device_get(self._call.block(
            self.params,
            self._place(texts.tokens[rows.padded], self._everywhere),
            self._place(texts.mask[rows.padded], self._everywhere), video))
        scores[rows.real, columns.real] = (
            block[:rows.count, :columns.count])
        progress.add(rows.count * columns.count)
    return scores

  def matching_of(
      self, texts: TextFeatures, videos: VideoFeatures, pairs: np.ndarray
  ) -> np.ndarray:
    """float32[Q]: logit margins of chosen pairs int[Q, 2] (text, video)."""
    size = self._videos_per_call * self._texts_per_call
    scores = []
    for rows in _chunks(len(pairs), size):
      text, video = np.asarray(pairs)[rows.padded].T
      margin = jax.device_get(self._call.pairs(
          self.params, self._place(texts.tokens[text], self._rows),
          self._place(texts.mask[text], self._rows),
          self._place(videos.tokens[video], self._rows)))
      scores.append(margin[:rows.count])
    return np.concatenate(scores) if scores else np.zeros(0, np.float32)


def list_pairs(
    captions: Sequence[Sequence[str]],
) -> tuple[tuple[str, ...], np.ndarray]:
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
  """
  if (scoring.rule not in ('matching', 'similarity') or scoring.rerank_k
      or scoring.dual_softmax):
    raise ValueError(f'{scoring} is not supported.')
  rerank, ties = scoring.rule == 'matching', scoring.ties
  texts, pairs = list_pairs(captions)
  seconds, start = {}, time.monotonic()

  def lap(name):
    nonlocal start
    now = time.monotonic()
    seconds[name], start = now - start, now

  text_features = scorer.embed_texts(texts)
  lap('texts')
  video_features = scorer.embed_videos(batches, len(captions))
  lap('videos')
  similarity = scorer.similarity(text_features, video_features)
  matching = None
  if rerank:
    matching = scorer.matching(text_features, video_features)
    lap('pairs')
  by_similarity = metrics.retrieval_metrics(similarity, pairs, ties)
  final = by_similarity
  if rerank:
    final = metrics.retrieval_metrics(matching, pairs, ties)
  figures = {
      **final,
      **{f'similarity/{name}': value for name, value in by_similarity.items()},
      'texts': float(len(texts)), 'videos': float(len(captions)),
  }
  lap('metrics')
  scores = matching if rerank else similarity
  top = np.argsort(-scores, axis=1, kind='stable')[:, :10].astype(np.int32)
  ranks = metrics.text_to_video_ranks(scores, pairs, ties)
  back = metrics.video_to_text_ranks(scores, pairs, ties)
  intervals = {
      **metrics.rank_intervals(ranks, np.unique(pairs, axis=0)[:, 1], 't2v'),
      **metrics.rank_intervals(back, np.arange(len(back)), 'v2t')}
  retrieval = Retrieval(
      texts, pairs, similarity, matching, figures, seconds, ranks, top,
      np.take_along_axis(scores, top, 1), intervals, scoring,
      {'pairs': float(scores.size) if rerank else 0.0,
       'share': 1.0 if rerank else 0.0})
  return retrieval, text_features, video_features


class _Chunk(NamedTuple):
  real: slice  # Rows of this chunk.
  padded: np.ndarray  # Their indices, the last repeated up to a full chunk.
  count: int  # Rows that are not padding.


def _chunks(total, size):
  for start in range(0, total, size):
    stop = min(start + size, total)
    yield _Chunk(slice(start, stop),
                 np.minimum(np.arange(start, start + size), total - 1),
                 stop - start)
