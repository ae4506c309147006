"""From a text to the clips that fit it, from a question to answers."""

import contextlib
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from alpro_jax.data import workers
from alpro_jax.evaluation import question_answering
from alpro_jax.evaluation.scorer import VideoFeatures
from alpro_jax.search.cut import Cutting, CutVideo
from alpro_jax.search.encoder import Encoder
from alpro_jax.search.store import Clips, Store, look_at, show_name


class Hit(NamedTuple):
  """A clip that was found.

  Attributes:
    clip: its id in the index.
    name: of its video.
    start, stop: in seconds.
    similarity: cosine of the contrastive features.
    match: probability of a match, None if the fusion encoder was not asked.
  """

  clip: int
  name: bytes
  start: float
  stop: float
  similarity: float
  match: float | None


class Found(NamedTuple):
  """What a text found, best first; clips that were read again by fusion."""

  text: str
  hits: list[Hit]
  read: int
  seconds: float


def search(
  encoder: Encoder,
  store: Store,
  clips: Clips,
  texts: Sequence[str],
  *,
  top: int = 10,
  rerank_k: int = 64,
) -> list[Found]:
  """Finds the clips that fit each text.

  The nearest by similarity, of which the `rerank_k` first are put in the
  order of the fusion encoder's logit of a match; the others follow.

  Args:
    encoder: with the model that the index was made with.
    store: the index.
    clips: all of it.
    texts: to search by.
    top: hits to keep.
    rerank_k: 0 leaves the fusion encoder out.
  """
  found = []
  for text in texts:
    start = time.monotonic()
    features = encoder.texts([text])
    similarity = clips.vector @ features.feature[0]
    order = np.argsort(-similarity, kind='stable')[: max(top, rerank_k)]
    match, read = {}, 0
    if rerank_k:
      near, tokens = _tokens(encoder, store, clips, order[:rerank_k])
      read = len(near)
      if read:
        # Rows of videos and of scores are those of `near`.
        videos = VideoFeatures(tokens, clips.vector[near])
        margin = encoder.scorer.matching_by_video(
          features, videos, np.zeros(read, int), np.arange(read)
        ).margin
        match = dict(zip(near.tolist(), margin.tolist(), strict=True))
        ahead = sorted(match, key=lambda i: -match[i])
        order = np.array(ahead + [i for i in order if i not in match])
    hits = [
      Hit(
        int(clips.id[i]),
        clips.name[i],
        float(clips.start[i]),
        float(clips.stop[i]),
        float(similarity[i]),
        float(1 / (1 + np.exp(-match[i]))) if i in match else None,
      )
      for i in order[:top].tolist()
    ]
    found.append(Found(text, hits, read, time.monotonic() - start))
  return found


def _tokens(encoder, store, clips, chosen):
  """Tokens of clips, from the index or from their videos.

  Returns:
    int[n], those of `chosen` that could be had, and f[n, S, D].
  """
  dtype = np.dtype(encoder.trained.model.config.dtype)
  if store.about['tokens']:
    return chosen, store.tokens(clips.id[chosen]).astype(dtype)
  starts = {}
  for i in chosen:
    starts.setdefault(clips.name[i], []).append(float(clips.start[i]))
  root = bytes.fromhex(store.about['root_bytes'])
  known = store.files()
  for name in list(starts):
    # What is not there is said when it is decoded.
    with contextlib.suppress(OSError):
      if name not in known or not known[name].is_now(look_at(root, name)):
        logging.warning('%s has changed since it was indexed; index again.', show_name(name))
        del starts[name]
  cut = {}
  for name, result in zip(
    starts,
    decode(
      [(os.fsdecode(os.path.join(root, name)), tuple(own)) for name, own in starts.items()],
      Cutting(**store.about['cutting']),
    ),
    strict=True,
  ):
    if not result.clips:
      logging.warning('%s cannot be read again: %s', show_name(name), result.reason)
    cut |= {(name, clip.start): clip for clip in result.clips}
  there = np.array([i for i in chosen if (clips.name[i], float(clips.start[i])) in cut], int)
  if not len(there):
    return there, np.empty((0, 0, 0), dtype)
  features = encoder.videos([cut[clips.name[i], float(clips.start[i])] for i in there])
  return there, features.tokens


def decode(items, cutting: Cutting, timeout_s: float | None = None):
  """Cuts videos in worker processes; see cut.cut_video for the items."""
  for result in workers.run_in_order(
    'alpro_jax.search.cut:cut_video',
    {'cutting': cutting},
    items,
    workers=os.cpu_count() or 1,
    timeout_s=timeout_s,
  ):
    if isinstance(result, workers.Lost):
      result = CutVideo((), result.reason, result.detail)
    yield result


class Answers(NamedTuple):
  """What a model answers about a span of a video, or about all of it.

  Attributes:
    start, stop: in seconds.
    top: the most probable answers with their probabilities.
  """

  start: float
  stop: float
  top: list[tuple[str, float]]


def ask(encoder: Encoder, cut: CutVideo, question: str) -> tuple[Answers, list[Answers]]:
  """Answers a question about a video and about each of its clips.

  Over all clips, each speaks with its probabilities: they are averaged.

  Raises:
    ValueError: if the model does not answer questions.
  """
  trained = encoder.trained
  if not trained.answers_questions:
    raise ValueError(
      f'{trained.origin.path} was trained for {trained.config.task!r} and '
      'answers no questions; pass a checkpoint of question answering.'
    )
  clips = cut.clips
  size, total = encoder.batch_size, len(clips)

  def batches():
    for start in range(0, total, size):
      rows = np.arange(start, start + size)
      pixels = encoder.pixels([clips[min(i, total - 1)] for i in rows])
      yield {'video': pixels, 'record': np.minimum(rows, total - 1), 'valid': rows < total}

  found = question_answering.answer(
    encoder.scorer, batches(), [[(question, '', 'other')]] * total, trained.answers
  )
  share = np.asarray(jax.nn.softmax(found.logits, axis=-1))

  def top(shares):
    best = np.argsort(-shares, kind='stable')[: question_answering.TOP]
    return [(trained.answers[i], float(shares[i])) for i in best]

  each = [Answers(clip.start, clip.stop, top(row)) for clip, row in zip(clips, share, strict=True)]
  whole = Answers(clips[0].start, clips[-1].stop, top(share.mean(0)))
  return whole, each
