"""A model at work on a split: features of everything, scores of pairs.

Each video and each distinct text is encoded once (the original encodes the
videos again for every chunk of captions, defect 57). The fusion encoder then
reads pairs of them. Shapes of the calls never change: an uneven end is filled
up with repetitions, whose results are dropped, so that no pair counts twice
(defects 14 and 39). Token features stay on the host, in the compute type of the
model, and travel to the devices sharded along the videos:

  all pairs      b videos and the same a texts for each
  chosen pairs   b rows of one video and up to a of its texts; a is a quarter
                 of the texts that a video has on average, or less, so that
                 little of a row stays empty

The margin of the logits orders pairs as the probability of a match does, which
the paper ranks by, but it does not saturate: a softmax in float32 is exactly 1
from a margin of 17 on and would make ties.
"""

import functools
import os
import tempfile
import time
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from einops import rearrange, repeat

from alpro_jax import sharding
from alpro_jax.data.progress import Progress
from alpro_jax.encoded import Texts, Videos
from alpro_jax.evaluation import looks
from alpro_jax.evaluation.trained import TrainedModel
from alpro_jax.models import prompter
from alpro_jax.models.alpro import Alpro


class VideoFeatures(NamedTuple):
  """Encoded videos, in the order of their records."""

  tokens: np.ndarray  # f[videos, S, D].
  feature: np.ndarray  # float32[videos, E], unit length.
  look: np.ndarray | None = None  # f[videos, T, looks.WIDTH], if it was asked for.


class TextFeatures(NamedTuple):
  """Encoded texts."""

  mask: np.ndarray  # bool[texts, L].
  tokens: np.ndarray  # f[texts, L, D].
  feature: np.ndarray  # float32[texts, E], unit length.


class Matching(NamedTuple):
  """What the fusion encoder says of pairs, float32[...]."""

  margin: np.ndarray  # logit(match) - logit(no match).
  logit: np.ndarray  # logit(match).


class Stopwatch:
  """Seconds between laps, by name."""

  def __init__(self):
    self.seconds, self._last = {}, time.monotonic()

  def lap(self, name: str) -> None:
    now = time.monotonic()
    self.seconds[name], self._last = now - self._last, now


@functools.lru_cache(maxsize=8)
def _compiled(model, mesh):
  """The jitted calls of a model; an evaluation during training reuses them."""
  # Results leave the devices whole, so that every host can read them.
  jit = functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))

  @jit
  def video(params, video, record, valid):
    encoding = model.bind({'params': params}).encode_video(video, train=False)
    return (encoding.tokens, encoding.feature), record, valid

  @jit
  def text(params, *ids):
    encoding = model.bind({'params': params}).encode_text(*ids, train=False)
    return encoding.tokens, encoding.feature

  def read(head, params, text_tokens, mask, video_tokens):
    """f[b or 1, a, L, D], bool[b or 1, a, L], f[b, S, D] -> the head's f[b, a, C]."""
    b, a = len(video_tokens), text_tokens.shape[1]
    text_tokens, mask = (
      rearrange(jnp.broadcast_to(x, (b, *x.shape[1:])), 'b a ... -> (b a) ...')
      for x in (text_tokens, mask)
    )
    video_tokens = repeat(video_tokens, 'b s d -> (b a) s d', a=a)
    logits = head(model.bind({'params': params}), text_tokens, mask, video_tokens)
    return rearrange(logits, '(b a) c -> b a c', a=a)

  @jit
  def match(*inputs):
    logits = read(Alpro.match, *inputs)
    return Matching(logits[..., 1] - logits[..., 0], logits[..., 1])

  @jit
  def answer(*inputs):
    return (read(Alpro.answer, *inputs),)

  look = jit(looks.describe)
  return types.SimpleNamespace(video=video, look=look, text=text, match=match, answer=answer)


def fill_batch(pixels: np.ndarray, first: int, size: int, total: int) -> dict[str, np.ndarray]:
  """Returns a batch for `Scorer.embed_videos`, filled up with the last clip.

  Args:
    pixels: uint8[n, T, H, W, 3], the clips `first` and following of `total`.
    first: index of the first.
    size: of the batch, at least n.
    total: number of all clips.
  """
  row = np.arange(first, first + size)
  return {
    'video': np.concatenate([pixels, pixels[-1:].repeat(size - len(pixels), 0)]),
    'record': np.minimum(row, total - 1),
    'valid': row < total,
  }


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
      model: an Alpro.
      params: its parameters, boxes off.
      mesh: from sharding.make_mesh.
      encode: of the tokenizer; see tasks.base.Encode.
      max_text_tokens: L.
      batch_size: texts per call of the text encoder.
      pairs_per_call: of the fusion encoder, over all devices; rounded to whole
        blocks of videos and texts.
      folder: for tokens of more than memory_limit bytes, in a file that goes
        with the process; '' keeps all in memory. Without room there, encoding
        raises OSError before it starts to fill the file.
      memory_limit: bytes of tokens of all videos, or of all texts.
    """
    self.model, self.params, self.mesh = model, params, mesh
    self._encode, self._max_text_tokens = encode, max_text_tokens
    self._batch_size = -(-batch_size // mesh.size) * mesh.size
    self._pairs_per_call = max(pairs_per_call, mesh.size)
    self._folder, self._memory_limit = folder, memory_limit
    self._rows = sharding.batch_sharding(mesh)
    self._call = _compiled(model, mesh)

  @classmethod
  def of(cls, trained: TrainedModel, **options) -> 'Scorer':
    """Returns the scorer of a trained model; `options` as of Scorer itself."""
    return cls(
      trained.model,
      trained.params,
      trained.mesh,
      encode=trained.tokenizer.encode,
      max_text_tokens=trained.config.data.max_text_tokens,
      **options,
    )

  def temperature(self) -> float:
    """Of the contrastive similarity."""
    model = self.model
    return float(jax.jit(lambda p: model.bind({'params': p}).temperature())(self.params))

  def entities(
    self, feature: np.ndarray, names: Sequence[str], templates: Sequence[str]
  ) -> np.ndarray:
    """Features float32[B, E] of videos -> logits float32[B, N] of entities, by prompts."""
    rows = [self.embed_texts(prompter.fill_template(x, names)).feature for x in templates]
    prompts = np.asarray(prompter.ensemble(jnp.stack(rows), renormalize=True))
    return feature @ prompts.T / self.temperature()

  def embed_videos(
    self, batches: Iterable[Mapping[str, np.ndarray]], total: int, look: bool = False
  ) -> VideoFeatures:
    """Encodes the videos of a split, each once.

    Args:
      batches: dicts with `video` uint8[B, T, H, W, 3], `record` int[B] and
        `valid` bool[B], the rows of this host; the last one is padded.
      total: records of the split.
      look: describe their pixels too.
    Raises:
      ValueError: if the batches do not hold every record exactly once.
    """

    def encoded():
      for batch in batches:
        rows = [
          jax.make_array_from_process_local_data(self._rows, np.asarray(batch[name], dtype))
          for name, dtype in (('video', None), ('record', np.int32), ('valid', bool))
        ]
        parts, record, valid = self._call.video(self.params, *rows)
        parts += (self._call.look(rows[0]),) if look else ()
        yield jax.device_get((parts, record, valid))

    return VideoFeatures(*self._collect(encoded(), total, 'videos'))

  def embed_texts(self, texts: Sequence[str], *, batch_size: int = 0) -> TextFeatures:
    """Encodes texts, as many a call as given to the class or here, the last text repeated."""
    if not texts:
      raise ValueError('there is no text to encode; the split has no captions.')
    encoded_ids = self._encode(list(texts), self._max_text_tokens)
    size = -(-batch_size // self.mesh.size) * self.mesh.size or self._batch_size

    def encoded():
      for row, valid in _chunks(len(texts), size):
        part = self._call.text(self.params, *(self._place(x, row) for x in encoded_ids))
        yield jax.device_get(part), row, valid

    return TextFeatures(encoded_ids[1], *self._collect(encoded(), len(texts), 'texts'))

  def _collect(self, encoded, total, unit):
    """Puts batches of (arrays [B, ...], their rows int[B], which count bool[B]) together."""
    progress, seen = Progress(total, unit, log=logging.info), np.zeros(total, int)
    stored, strangers = [], 0
    for parts, row, valid in encoded:
      stored = stored or [self._store(total, part) for part in parts]
      known = valid & (row >= 0) & (row < total)
      for array, part in zip(stored, parts, strict=True):
        array[row[known]] = part[known]
      np.add.at(seen, row[known], 1)
      strangers += int((valid & ~known).sum())
      progress.add(int(known.sum()))
    if not stored:
      raise ValueError(f'saw no batch of a split of {total} records.')
    if strangers or (seen != 1).any():
      raise ValueError(
        f'saw {seen.sum() + strangers} {unit}, {(seen > 0).sum()} of them '
        f'distinct, but the split has {total}; every record must come '
        'exactly once, padding rows marked with valid=False.'
      )
    return stored

  def matching(self, texts: TextFeatures | Texts, videos: VideoFeatures | Videos) -> Matching:
    """Reads all pairs: arrays [texts, videos]."""
    shape = len(texts.mask), len(videos.feature)
    side = max(int(np.sqrt(self._pairs_per_call)), 1)
    b = max(side // self.mesh.size, 1) * self.mesh.size
    a = max(self._pairs_per_call // b, 1)
    calls = (
      (text[None], video, (text, video[:, None]), valid & real[:, None])
      for video, real in _chunks(shape[1], b)
      for text, valid in _chunks(shape[0], a)
    )
    return self._match(texts, videos, calls, shape)

  def matching_by_video(
    self, texts: TextFeatures, videos: VideoFeatures, text: np.ndarray, video: np.ndarray
  ) -> Matching:
    """Reads chosen pairs: arrays [Q] of texts int[Q] and videos int[Q], ascending."""

    def calls():
      width, first, count = _rows_of(video, self._pairs_per_call // self.mesh.size)
      rows_per_call = self._pairs_per_call // width // self.mesh.size * self.mesh.size
      for row, valid in _chunks(len(first), rows_per_call):
        start, length = first[row], count[row, None]
        # int[b, a]: index of each pair; what is empty repeats the last.
        pair = start[:, None] + np.minimum(np.arange(width), length - 1)
        filled = np.arange(width) < length
        yield text[pair], video[start], (pair,), filled & valid[:, None]

    return self._match(texts, videos, calls() if len(text) else (), (len(text),))

  def _match(self, texts, videos, calls, shape):
    if not self.model.config.match:
      raise ValueError("this model has no head for match or no match; score by 'similarity'.")
    scores = Matching(*(np.empty(shape, np.float32) for _ in range(2)))
    progress = Progress(scores.margin.size, 'pairs', log=logging.info)
    return self._read(self._call.match, texts, videos, calls, scores, progress)

  def answers(
    self,
    texts: TextFeatures | Texts,
    videos: VideoFeatures | Videos,
    text: np.ndarray,
    video: np.ndarray,
    progress: Progress,
  ) -> np.ndarray:
    """Returns float32[Q, answers], logits of questions int[Q] about videos int[Q].

    Raises:
      ValueError: if one is NaN or infinite.
    """
    size = -(-min(self._pairs_per_call, len(text)) // self.mesh.size) * self.mesh.size
    calls = (
      (text[pair, None], video[pair], (pair[:, None],), valid[:, None])
      for pair, valid in _chunks(len(text), size)
    )
    logits = np.empty((len(text), self.model.config.answers), np.float32)
    self._read(self._call.answer, texts, videos, calls, (logits,), progress)
    check_finite(logits, 'scores of answers')
    return logits

  def _read(self, call, texts, videos, calls, scores, progress):
    """Fills scores, and fetches those of a call while the next one runs.

    `calls` has the texts int[b or 1, a] and videos int[b] of each; where in the
    scores a pair belongs, ints that broadcast to [b, a]; and which pairs count,
    bool[b, a].
    """
    placed = waiting = None

    def fetch(index, valid, result):
      index = tuple(np.broadcast_to(x, valid.shape)[valid] for x in index)
      for score, part in zip(scores, jax.device_get(result), strict=True):
        score[index] = part[valid]
      progress.add(int(valid.sum()))

    for text, video, index, valid in calls:
      if placed is not video:
        placed, video_tokens = video, self._place(videos.tokens, video)
      layout = self._rows if len(text) == len(video) else sharding.replicated(self.mesh)
      text_tokens, mask = (self._place(x, text, layout) for x in (texts.tokens, texts.mask))
      result = call(self.params, text_tokens, mask, video_tokens)
      if waiting:
        fetch(*waiting)
      waiting = index, valid, result
    if waiting:
      fetch(*waiting)
    return scores

  def _place(self, source, rows, layout=None):
    """Puts source[rows] onto the devices; hosts read their rows only."""
    return jax.make_array_from_callback(
      rows.shape + source.shape[1:],
      layout or self._rows,
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


def _chunks(total, size) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields int[size] of 0..total, the last repeated to fill a chunk, and bool[size], if real."""
  for start in range(0, total, size):
    index = np.arange(start, start + size)
    yield np.minimum(index, total - 1), index < total


def _rows_of(video, most):
  """Cuts pairs, of ascending videos int[Q], into rows of one video each.

      video [0 0 0 0 0 2 2], width 2 -> first [0 2 4 5], count [2 2 1 2]

  The width is at most `most`, a power of two so that k changes the shape rarely.
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


def check_finite(array: np.ndarray, name: str) -> None:
  """Raises ValueError if a number is NaN or infinite: it has no rank."""
  if wrong := array.size - int(np.isfinite(array).sum()):
    raise ValueError(
      f'{wrong} of {array.size} {name} are NaN or infinite; they have no '
      'rank. Check the parameters.'
    )
