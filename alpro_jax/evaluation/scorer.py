"""A model at work on a split: features of everything, scores of pairs.

Each video and each distinct text is encoded once (the original encodes the
videos again for every chunk of captions, defect 57). Two scores follow:

  similarity   dot product of the contrastive features; cheap, for all pairs
  matching     logit(match) - logit(no match) of the fusion encoder

The margin of the logits orders pairs as the probability of a match does, which
the paper ranks by, but it does not saturate: a softmax in float32 is exactly 1
from a margin of 17 on and would make ties.

Token features stay on the host, in the compute type of the model. Pairs travel
to the devices in two ways, both cut over the devices along the videos:

  all pairs      b videos and a texts make a * b pairs on the devices
  chosen pairs   b rows of one video and up to a of its texts; a is a quarter
                 of the texts that a video has on average, or less, so that
                 few places of a row stay empty

An uneven end is filled up with repetitions, whose scores are dropped: shapes
never change, and no pair counts twice (defect 39).
"""

import functools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from einops import rearrange, repeat

from alpro_jax import sharding
from alpro_jax.data.progress import Progress
from alpro_jax.evaluation import candidates


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


class Matching(NamedTuple):
  """What the fusion encoder says of pairs.

  Attributes:
    margin: float32[...], logit(match) - logit(no match).
    logit: float32[...], logit(match).
  """

  margin: np.ndarray
  logit: np.ndarray


class _Calls(NamedTuple):
  video: Callable
  text: Callable
  block: Callable
  rows: Callable


@functools.lru_cache(maxsize=8)
def _compiled(model, mesh) -> _Calls:
  """The jitted calls of a model; an evaluation during training reuses them."""

  def video(params, video, record, valid):
    encoding = model.bind({'params': params}).encode_video(video, train=False)
    return encoding.tokens, encoding.feature, record, valid

  def text(params, ids, mask):
    encoding = model.bind({'params': params}).encode_text(ids, mask, train=False)
    return encoding.tokens, encoding.feature

  def pairs(params, text_tokens, mask, video_tokens):
    """f[Q, L, D], bool[Q, L], f[Q, S, D] -> Matching of float32[Q]."""
    logits = model.bind({'params': params}).match(text_tokens, mask, video_tokens)
    return Matching(logits[:, 1] - logits[:, 0], logits[:, 1])

  def block(params, text_tokens, mask, video_tokens):
    """a texts, b videos (cut over the devices) -> Matching of [a, b]."""
    a, b = len(text_tokens), len(video_tokens)
    found = pairs(
      params,
      repeat(text_tokens, 'a l d -> (b a) l d', b=b),
      repeat(mask, 'a l -> (b a) l', b=b),
      repeat(video_tokens, 'b s d -> (b a) s d', a=a),
    )
    return Matching(*(rearrange(x, '(b a) -> a b', a=a) for x in found))

  def rows(params, text_tokens, mask, video_tokens):
    """b videos with a texts each (both cut) -> Matching of [b, a]."""
    a = text_tokens.shape[1]
    found = pairs(
      params,
      rearrange(text_tokens, 'b a l d -> (b a) l d'),
      rearrange(mask, 'b a l -> (b a) l'),
      repeat(video_tokens, 'b s d -> (b a) s d', a=a),
    )
    return Matching(*(rearrange(x, '(b a) -> b a', a=a) for x in found))

  # Results leave the devices whole, so that every host can read them.
  jit = functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
  return _Calls(*map(jit, (video, text, block, rows)))


class Scorer:
  """Encodes and scores with one model, on all devices of a mesh."""

  def __init__(
    self,
    model,
    params,
    mesh,
    *,
    encode,
    max_text_tokens: int,
    batch_size: int,
    pairs_per_call: int,
    folder: str = '',
    memory_limit: int = 64 * 2**30,
  ):
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
      folder: where tokens of more than memory_limit bytes are kept, in a file
        that goes with the process; '' keeps everything in memory. Without room
        for them, encoding raises OSError before it starts to fill the file.
      memory_limit: bytes of tokens of all videos, or of all texts.
    """
    self.model, self.params, self.mesh = model, params, mesh
    self._encode, self._max_text_tokens = encode, max_text_tokens
    self._batch_size = -(-batch_size // mesh.size) * mesh.size
    self._pairs_per_call = max(pairs_per_call, mesh.size)
    self._folder, self._memory_limit = folder, memory_limit
    self._rows = sharding.batch_sharding(mesh)
    self._everywhere = sharding.replicated(mesh)
    self._call = _compiled(model, mesh)

  def temperature(self) -> float:
    """Of the contrastive similarity."""
    return float(
      jax.jit(lambda params: self.model.bind({'params': params}).temperature())(self.params)
    )

  def embed_videos(self, batches: Iterable[Mapping[str, np.ndarray]], total: int) -> VideoFeatures:
    """Encodes the videos of a split, each once.

    Args:
      batches: dicts with `video` uint8[B, T, H, W, 3], `record` int[B] and
        `valid` bool[B], the rows of this host; the last one is padded.
      total: records of the split.
    Raises:
      ValueError: if the batches do not hold every record exactly once.
    """
    progress, seen = Progress(total, 'videos', log=logging.info), np.zeros(total, int)
    tokens = feature = None
    strangers = 0
    for batch in batches:
      rows = [
        jax.make_array_from_process_local_data(self._rows, np.asarray(x))
        for x in (
          batch['video'],
          np.asarray(batch['record'], np.int32),
          np.asarray(batch['valid'], bool),
        )
      ]
      *part, record, valid = jax.device_get(self._call.video(self.params, *rows))
      if tokens is None:
        tokens, feature = (self._store(total, x) for x in part)
      known = valid & (record >= 0) & (record < total)
      strangers += int(valid.sum()) - int(known.sum())
      record = record[known]
      tokens[record], feature[record] = (x[known] for x in part)
      np.add.at(seen, record, 1)
      progress.add(len(record))
    if tokens is None:
      raise ValueError(f'saw no batch of a split of {total} records.')
    if strangers or (seen != 1).any():
      raise ValueError(
        f'saw {seen.sum() + strangers} videos, {(seen > 0).sum()} of them '
        f'distinct, but the split has {total}; every record must come '
        'exactly once, padding rows marked with valid=False.'
      )
    return VideoFeatures(np.arange(total), tokens, feature)

  def embed_texts(self, texts: Sequence[str]) -> TextFeatures:
    """Encodes texts; the last batch is padded with its last text."""
    if not texts:
      raise ValueError('there is no text to encode; the split has no captions.')
    ids, mask = self._encode(list(texts), self._max_text_tokens)
    progress, tokens, feature = Progress(len(texts), 'texts', log=logging.info), None, None
    for rows in _chunks(len(texts), self._batch_size):
      part = jax.device_get(
        self._call.text(self.params, self._place(ids, rows.padded), self._place(mask, rows.padded))
      )
      if tokens is None:
        tokens, feature = (self._store(len(texts), x) for x in part)
      tokens[rows.real], feature[rows.real] = (x[: rows.count] for x in part)
      progress.add(rows.count)
    return TextFeatures(mask, tokens, feature)

  def similarity(self, texts: TextFeatures, videos: VideoFeatures) -> np.ndarray:
    """float32[texts, videos]: cosine of the contrastive features."""
    return candidates.similarity_matrix(texts.feature, videos.feature)

  def matching(self, texts: TextFeatures, videos: VideoFeatures) -> Matching:
    """Reads all pairs: arrays [texts, videos]."""
    self._check_head()
    a, b = len(texts.mask), len(videos.feature)
    side = max(int(np.sqrt(self._pairs_per_call)), 1)
    videos_per_call = max(side // self.mesh.size, 1) * self.mesh.size
    texts_per_call = max(self._pairs_per_call // videos_per_call, 1)
    progress = Progress(a * b, 'pairs', log=logging.info)

    def calls():
      for columns in _chunks(b, videos_per_call):
        video = self._place(videos.tokens, columns.padded)
        for rows in _chunks(a, texts_per_call):
          yield (
            (rows, columns),
            self._call.block(
              self.params,
              self._place(texts.tokens, rows.padded, self._everywhere),
              self._place(texts.mask, rows.padded, self._everywhere),
              video,
            ),
          )

    scores = Matching(*(np.empty((a, b), np.float32) for _ in range(2)))
    for (rows, columns), found in _one_ahead(calls()):
      for score, block in zip(scores, found, strict=True):
        score[rows.real, columns.real] = block[: rows.count, : columns.count]
      progress.add(rows.count * columns.count)
    return scores

  def matching_of(
    self, texts: TextFeatures, videos: VideoFeatures, pairs: np.ndarray
  ) -> np.ndarray:
    """float32[Q]: logit margins of chosen pairs int[Q, 2] (text, video)."""
    text, video = np.asarray(pairs).T
    order = np.argsort(video, kind='stable')
    margin = np.empty(len(order), np.float32)
    margin[order] = self.matching_by_video(texts, videos, text[order], video[order]).margin
    return margin

  def matching_by_video(
    self, texts: TextFeatures, videos: VideoFeatures, text: np.ndarray, video: np.ndarray
  ) -> Matching:
    """Reads chosen pairs.

    Args:
      texts: that were encoded.
      videos: that were encoded.
      text: int[Q].
      video: int[Q], ascending.
    Returns:
      Arrays [Q].
    """
    self._check_head()
    scores = Matching(*(np.empty(len(text), np.float32) for _ in range(2)))
    if not len(text):
      return scores
    width, first, count = _rows_of(video, self._pairs_per_call // self.mesh.size)
    rows_per_call = self._pairs_per_call // width // self.mesh.size
    rows_per_call *= self.mesh.size
    progress = Progress(len(text), 'pairs', log=logging.info)

    def calls():
      for rows in _chunks(len(first), rows_per_call):
        start, length = first[rows.padded], count[rows.padded]
        # int[b, a]: place of each pair; empty places repeat the last.
        place = start[:, None] + np.minimum(np.arange(width), length[:, None] - 1)
        yield (
          (place[: rows.count], length[: rows.count]),
          self._call.rows(
            self.params,
            self._place(texts.tokens, text[place]),
            self._place(texts.mask, text[place]),
            self._place(videos.tokens, video[start]),
          ),
        )

    for (place, length), found in _one_ahead(calls()):
      filled = np.arange(width) < length[:, None]
      for score, part in zip(scores, found, strict=True):
        score[place[filled]] = part[: len(place)][filled]
      progress.add(int(length.sum()))
    return scores

  def _place(self, source, rows, where=None):
    """Puts source[rows] onto the devices; hosts read their rows only."""
    return jax.make_array_from_callback(
      rows.shape + source.shape[1:],
      where or self._rows,
      lambda index: source[rows[index[: rows.ndim]]],
    )

  def _store(self, total, part):
    """An empty array for `total` rows such as those of `part`."""
    shape, dtype = (total, *part.shape[1:]), part.dtype
    size = total * part[:1].nbytes
    if not self._folder or size <= self._memory_limit:
      return np.empty(shape, dtype)
    logging.info('%.1f GiB of tokens in %s', size / 2**30, self._folder)
    try:
      with tempfile.TemporaryFile(dir=self._folder) as file:
        # All of it now: a disk that is full later ends the process by SIGBUS.
        if hasattr(os, 'posix_fallocate'):
          os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype, 'w+', shape=shape)
    except OSError as error:
      raise OSError(
        f'config.eval.folder={self._folder!r} cannot take '
        f'{size / 2**20:,.0f} MiB of tokens: {error.strerror}. Name a folder '
        "with more room, or '' to keep them in memory."
      ) from error

  def _check_head(self):
    if not self.model.config.match:
      raise ValueError("this model has no head for match or no match; score by 'similarity'.")


class _Chunk(NamedTuple):
  real: slice  # Rows of this chunk.
  padded: np.ndarray  # Their indices, the last repeated up to a full chunk.
  count: int  # Rows that are not padding.


def _chunks(total, size):
  for start in range(0, total, size):
    stop = min(start + size, total)
    yield _Chunk(
      slice(start, stop), np.minimum(np.arange(start, start + size), total - 1), stop - start
    )


def _rows_of(video, most):
  """Cuts pairs, ordered by video, into rows of one video each.

      video [0 0 0 0 0 2 2], width 2 -> first [0 2 4 5], count [2 2 1 2]

  Args:
    video: int[Q], ascending.
    most: pairs in a row.
  Returns:
    width, a power of two so that k changes the shape rarely; int[R] first pair
    of each row; int[R] its number of pairs.
  """
  start = np.flatnonzero(np.r_[True, video[1:] != video[:-1]])
  length = np.diff(np.r_[start, len(video)])
  width = min(max(len(video) // len(start) // 4, 1), most)
  width = 1 << (width.bit_length() - 1)
  rows = -(-length // width)
  # 0, 1, ... within the rows of each video.
  number = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
  first = np.repeat(start, rows) + number * width
  return width, first, np.minimum(width, np.repeat(length, rows) - number * width)


def _one_ahead(calls: Iterable) -> Iterator:
  """Fetches results while the next call runs: (where, on devices) -> host."""
  waiting = None
  for where, result in calls:
    if waiting:
      yield waiting[0], jax.device_get(waiting[1])
    waiting = where, result
  if waiting:
    yield waiting[0], jax.device_get(waiting[1])
