"""From a text to the clips that fit it, from a question to answers."""

import contextlib
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from alpro_jax import metrics
from alpro_jax.evaluation import question_answering
from alpro_jax.evaluation.scorer import VideoFeatures
from alpro_jax.search.cut import CutVideo, decode
from alpro_jax.search.encoder import Encoder, batches
from alpro_jax.search.store import Clips, Store, look_at, show_name


class Hit(NamedTuple):
  """A clip that was found."""

  clip: int  # Its id in the index.
  name: bytes  # Of its video.
  start: float  # In seconds.
  stop: float
  similarity: float  # Cosine of the contrastive features.
  match: float | None  # Probability of a match, None if fusion was not asked.


class SearchResult(NamedTuple):
  """What a text found, best first, and how many clips were read by fusion."""

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
) -> list[SearchResult]:
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
    order = np.argsort(-similarity, kind='stable')[: max(top, rerank_k)].tolist()
    near, tokens = _tokens(encoder, store, clips, order[:rerank_k]) if rerank_k else ([], None)
    margin = {}
    if near:
      # Rows of videos and of scores are those of `near`.
      rows = np.arange(len(near))
      videos = VideoFeatures(tokens, clips.vector[near])
      scores = encoder.scorer.matching_by_video(features, videos, np.zeros_like(rows), rows)
      margin = dict(zip(near, scores.margin.tolist(), strict=True))
    order = sorted(margin, key=lambda i: -margin[i]) + [i for i in order if i not in margin]
    hits = [
      Hit(
        int(clips.id[i]),
        clips.name[i],
        float(clips.start[i]),
        float(clips.stop[i]),
        float(similarity[i]),
        float(1 / (1 + np.exp(-margin[i]))) if i in margin else None,
      )
      for i in order[:top]
    ]
    found.append(SearchResult(text, hits, len(near), time.monotonic() - start))
  return found


def _tokens(encoder, store, clips, chosen):
  """Tokens of clips, from the index or from their videos.

  Returns:
    those of `chosen` that could be had, and f[n, S, D].
  """
  if store.about['tokens']:
    dtype = np.dtype(encoder.trained.model.config.dtype)
    return chosen, store.tokens(clips.id[chosen]).astype(dtype)
  starts = {}
  for i in chosen:
    starts.setdefault(clips.name[i], []).append(float(clips.start[i]))
  root, known = store.root, store.files()
  for name in list(starts):
    # What is not there is said when it is decoded.
    with contextlib.suppress(OSError):
      if name not in known or not known[name].is_now(look_at(root, name)):
        logging.warning('%s has changed since it was indexed; index again.', show_name(name))
        del starts[name]
  items = [(os.fsdecode(os.path.join(root, name)), tuple(own)) for name, own in starts.items()]
  cut = {}
  for name, result in zip(starts, decode(items, store.cutting), strict=True):
    if not result.clips:
      logging.warning('%s cannot be read again: %s', show_name(name), result.reason)
    cut |= {(name, clip.start): clip for clip in result.clips}
  places = {i: (clips.name[i], float(clips.start[i])) for i in chosen}
  there = [i for i in chosen if places[i] in cut]
  if not there:
    return there, None
  return there, encoder.videos([cut[places[i]] for i in there]).tokens


class Answers(NamedTuple):
  """The most probable answers, with probabilities, about start..stop seconds of a video."""

  start: float
  stop: float
  top: list[tuple[str, float]]


def ask(encoder: Encoder, cut: CutVideo, question: str) -> tuple[Answers, list[Answers]]:
  """Answers a question about a video and about each of its clips.

  Over all clips, each speaks with its probabilities: they are averaged.

  Raises:
    ValueError: if the model does not answer questions.
  """
  trained, clips = encoder.trained, cut.clips
  if not trained.answers_questions:
    raise ValueError(
      f'{trained.origin.path} was trained for {trained.config.task!r} and '
      'answers no questions; pass a checkpoint of question answering.'
    )
  questions = [[(question, '', 'other')]] * len(clips)
  found = question_answering.answer(
    encoder.scorer, batches(encoder, clips), questions, trained.answers
  )
  share = np.asarray(jax.nn.softmax(found.logits, axis=-1))

  def top(probabilities):
    return metrics.most_probable(trained.answers, probabilities, question_answering.TOP)

  each = [Answers(clip.start, clip.stop, top(row)) for clip, row in zip(clips, share, strict=True)]
  return Answers(clips[0].start, clips[-1].stop, top(share.mean(0))), each
