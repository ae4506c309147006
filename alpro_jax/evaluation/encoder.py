"""A model at work on clips that were cut from videos: their vectors, and answers about them."""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from alpro_jax import metrics
from alpro_jax.data import tokens
from alpro_jax.data.cut import CutVideo, Segment
from alpro_jax.evaluation import familiarity, question_answering
from alpro_jax.evaluation.scorer import Scorer, TextFeatures, VideoFeatures, fill_batch
from alpro_jax.evaluation.trained import TrainedModel

TEXTS = 1, 4, 16  # That are encoded at once.


class Answers(NamedTuple):
  """The most probable answers, with probabilities, about start..stop seconds of a video."""

  start: float
  stop: float
  top: list[tuple[str, float]]
  calibrated: bool  # Whether the probabilities are worth what they say.
  far: str = ''  # Why the clip or the question is far from those of training.

  def show(self, share: float) -> str:
    """A probability, as familiarity.show: no percentage where that would promise too much."""
    return familiarity.show(share, self.calibrated and not self.far)


class Encoder:
  """Encodes clips as the evaluation of the model's run would show them.

  Attributes:
    trained: the model.
    scorer: with the model.
    batch_size: clips of a call.
  """

  def __init__(self, trained: TrainedModel, *, batch_size: int = 16):
    if jax.process_count() > 1:
      raise ValueError('search runs in one process; start it without others.')
    size = trained.mesh.size
    self.trained = trained
    self.batch_size = -(-batch_size // size) * size
    self.scorer = Scorer.of(trained, batch_size=size, pairs_per_call=64)

  def pixels(self, clips: list[Segment]) -> np.ndarray:
    """uint8[n, T, H, W, 3]: resized and cut as config.data says."""
    import tensorflow as tf  # Here: it takes seconds, and a text is searched for without.

    from alpro_jax.data import augment

    data, middle = self.trained.config.data, tf.constant([0.5, 0.5])
    shown = [augment.decode_clip(tf.constant(clip.frames), middle, data) for clip in clips]
    return np.stack([clip.numpy() for clip in shown])

  def videos(self, clips: list[Segment]) -> VideoFeatures:
    """Encodes clips, in calls of `batch_size`."""
    return self.scorer.embed_videos(_batches(self, clips), len(clips), look=True)

  def far_clips(self, videos: VideoFeatures) -> tuple[str, ...]:
    """Why each clip is far from those of training; '' if it is not, or nobody knows."""
    known = self.trained.familiarity
    return known.far_videos(videos) if known else ('',) * len(videos.feature)

  def far_text(self, text: str, features: TextFeatures) -> str:
    """Why a text is far from those of training, as `far_clips`."""
    known, most = self.trained.familiarity, self.trained.config.data.max_text_tokens
    return known.far_texts(self.trained.tokenizer, [text], most, features)[0] if known else ''

  def texts(self, texts: list[str]) -> TextFeatures:
    """Encodes texts; says so where one is longer than the model reads."""
    most = self.trained.config.data.max_text_tokens
    tokens.warn_of_cut(self.trained.tokenizer, texts, most, 'not searched for')
    # Of few sizes: each is compiled.
    size = next((x for x in TEXTS if x >= len(texts)), TEXTS[-1])
    return self.scorer.embed_texts(texts, batch_size=size)

  def ask(self, cut: CutVideo, question: str) -> tuple[Answers, list[Answers]]:
    """Answers a question about a video and about each of its clips.

    Over all clips, each speaks with its probabilities: they are averaged.

    Raises:
      ValueError: if the model does not answer questions.
    """
    trained, clips = self.trained, cut.clips
    if not trained.answers_questions:
      raise ValueError(
        f'{trained.origin.path} was trained for {trained.config.task!r} and '
        'answers no questions; pass a checkpoint of question answering.'
      )
    questions = [[(question, '', 'other')]] * len(clips)
    found = question_answering.answer(
      self.scorer, _batches(self, clips), questions, trained.answers
    )
    known = trained.familiarity
    share, calibrated = familiarity.probabilities(found.logits, known and known.answer_temperature)
    strange = known and self.far_text(question, self.texts([question]))
    far = self.far_clips(self.videos(clips)) if known else [''] * len(clips)

    def answers(clip, stop, row, reason):
      top = metrics.most_probable(trained.answers, row, question_answering.TOP)
      return Answers(clip.start, stop, top, calibrated, strange or reason)

    each = [answers(x, x.stop, *rest) for x, *rest in zip(clips, share, far, strict=True)]
    # One clip that is like those of training may speak for the others.
    reason = '' if '' in far else far[0]
    return answers(clips[0], clips[-1].stop, share.mean(0), reason), each


def encode(
  encoder: Encoder, videos: Iterable[CutVideo]
) -> Iterator[tuple[CutVideo, list[tuple[np.ndarray, ...]]]]:
  """Yields each video with VideoFeatures of each of its clips, without their first axis.

  Calls are full, over the ends of videos:

    batch_size 3:  clips of a: 0 1, of b: 2 3 4 5  ->  calls of 0 1 2, 3 4 5
  """
  videos, ahead = itertools.tee(videos)
  clips = itertools.chain.from_iterable(video.clips for video in ahead)
  calls = iter(lambda: list(itertools.islice(clips, encoder.batch_size)), [])
  rows = itertools.chain.from_iterable(zip(*encoder.videos(x), strict=True) for x in calls)
  for video in videos:
    yield video, list(itertools.islice(rows, len(video.clips)))


def _batches(encoder: Encoder, clips: list[Segment]) -> Iterator[dict[str, np.ndarray]]:
  """What a Scorer reads of clips; the last batch is filled up with the last clip."""
  for first in range(0, len(clips), encoder.batch_size):
    pixels = encoder.pixels(clips[first : first + encoder.batch_size])
    yield fill_batch(pixels, first, encoder.batch_size, len(clips))
