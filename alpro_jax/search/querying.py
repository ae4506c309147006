"""From a text to the clips that fit it, from a question to answers."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from alpro_jax import metrics
from alpro_jax.evaluation import familiarity, question_answering
from alpro_jax.evaluation.scorer import VideoFeatures
from alpro_jax.search.cut import CutVideo, decode
from alpro_jax.search.encoder import Encoder, batches
from alpro_jax.search.store import Clips, Store, look_at, show_name


class Hit(NamedTuple):
  """A clip that was found."""

  clip: int  # Its id in the index.
  name: bytes  # Of its video.
  start: float  # In seconds.
  end: float
  similarity: float  # Cosine of the contrastive features.
  match: float | None  # Probability of a match, None if fusion was not asked.
  far: str = ''  # Why the clip is far from those of training, '' if it is not or unknown.
  path: str = ''  # Of its video.

  @property
  def score(self) -> float:
    """The probability of a match, or the similarity where fusion was not asked."""
    return self.similarity if self.match is None else self.match


@dataclasses.dataclass(frozen=True)
class SearchResult:
  """What a text found; also a sequence of its hits, best first.

  Attributes:
    text: that was searched by.
    hits: best first.
    read: clips that were read by the fusion encoder.
    seconds: that it took.
    far: why the text is far from those of training.
    calibrated: whether matches are worth what they say.
  """

  text: str
  hits: list[Hit]
  read: int
  seconds: float
  far: str = ''
  calibrated: bool = False

  def __len__(self) -> int:
    return len(self.hits)

  def __getitem__(self, number: int) -> Hit:
    return self.hits[number]


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
    rerank_k: 0 leaves the fusion encoder out, and so does a model that cannot match.
  Raises:
    ValueError: if nothing was indexed.
  """
  if not len(clips.id):
    raise ValueError(f'{store.folder} holds no clip; index a folder first.')
  rerank_k = rerank_k if encoder.trained.knows_matching else 0
  found = []
  for text in texts:
    start = time.monotonic()
    features = encoder.texts([text])
    similarity = clips.vector @ features.feature[0]
    order = np.argsort(-similarity, kind='stable')[: max(top, rerank_k)].tolist()
    # What is shown is looked at too, where that costs no decoding.
    chosen = order[: rerank_k or (top if store.about['tokens'] else 0)]
    near, tokens = _tokens(encoder, store, clips, chosen) if chosen else ([], None)
    margin, match, far, calibrated = {}, {}, {}, False
    if near:
      videos = VideoFeatures(tokens, clips.vector[near])
      far = dict(zip(near, encoder.far_clips(videos), strict=True))
    if near and rerank_k:
      rows = np.arange(len(near))  # Of videos and of scores, which are those of `near`.
      scores = encoder.scorer.matching_by_video(features, videos, np.zeros_like(rows), rows)
      margin = dict(zip(near, scores.margin.tolist(), strict=True))
      share, calibrated = familiarity.match_probability(encoder.trained.familiarity, scores.margin)
      match = dict(zip(near, share.tolist(), strict=True))
    order = sorted(margin, key=lambda i: -margin[i]) + [i for i in order if i not in margin]
    hits = [
      Hit(
        int(clips.id[i]),
        clips.name[i],
        float(clips.start[i]),
        float(clips.stop[i]),
        float(similarity[i]),
        match.get(i),
        far.get(i, ''),
        os.fsdecode(os.path.join(store.root, clips.name[i])),
      )
      for i in order[:top]
    ]
    strange, seconds = encoder.far_text(text, features), time.monotonic() - start
    found.append(SearchResult(text, hits, len(margin), seconds, strange, calibrated))
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
  calibrated: bool  # Whether the probabilities are worth what they say.
  far: str = ''  # Why the clip or the question is far from those of training.


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
  known = trained.familiarity
  share, calibrated = familiarity.probabilities(found.logits, known and known.answer_temperature)
  strange = known and encoder.far_text(question, encoder.texts([question]))
  far = encoder.far_clips(encoder.videos(clips)) if known else [''] * len(clips)

  def answers(clip, stop, row, reason):
    top = metrics.most_probable(trained.answers, row, question_answering.TOP)
    return Answers(clip.start, stop, top, calibrated, strange or reason)

  each = [answers(x, x.stop, *rest) for x, *rest in zip(clips, share, far, strict=True)]
  # One clip that is like those of training may speak for the others.
  reason = '' if '' in far else far[0]
  return answers(clips[0], clips[-1].stop, share.mean(0), reason), each
