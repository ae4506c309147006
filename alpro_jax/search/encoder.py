"""A model at work on clips that were cut from videos."""

from collections.abc import Iterator

import jax
import numpy as np
import tensorflow as tf
from absl import logging

from alpro_jax.data import augment, tokens
from alpro_jax.evaluation.scorer import Scorer, TextFeatures, VideoFeatures
from alpro_jax.evaluation.trained import TrainedModel
from alpro_jax.search.cut import Segment


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
    mesh = trained.mesh
    self.trained = trained
    self.batch_size = -(-batch_size // mesh.size) * mesh.size
    self.scorer = Scorer(
      trained.model,
      trained.params,
      mesh,
      encode=trained.tokenizer.encode,
      max_text_tokens=trained.config.data.max_text_tokens,
      batch_size=mesh.size,
      pairs_per_call=64,
    )

  def pixels(self, clips: list[Segment]) -> np.ndarray:
    """uint8[n, T, H, W, 3]: resized and cut as config.data says."""
    data, middle = self.trained.config.data, tf.constant([0.5, 0.5])
    shown = [augment.decode_clip(tf.constant(clip.frames), middle, data) for clip in clips]
    return np.stack([clip.numpy() for clip in shown])

  def videos(self, clips: list[Segment]) -> VideoFeatures:
    """Encodes clips, in calls of `batch_size`."""
    return self.scorer.embed_videos(batches(self, clips), len(clips))

  def texts(self, texts: list[str]) -> TextFeatures:
    """Encodes texts; says so where one is longer than the model reads."""
    most = self.trained.config.data.max_text_tokens
    if cut := tokens.count_cut(self.trained.tokenizer, texts, most):
      logging.warning(
        '%d of %d texts have more than %d tokens; their ends are not searched for.',
        cut,
        len(texts),
        most,
      )
    return self.scorer.embed_texts(texts)


def batches(encoder: Encoder, clips: list[Segment]) -> Iterator[dict[str, np.ndarray]]:
  """What a Scorer reads of clips; the last batch is filled up with the last clip."""
  total = len(clips)
  for start in range(0, total, encoder.batch_size):
    row = np.arange(start, start + encoder.batch_size)
    pixels = encoder.pixels(clips[start : start + encoder.batch_size])
    empty = len(row) - len(pixels)
    yield {
      'video': np.concatenate([pixels, pixels[-1:].repeat(empty, 0)]),
      'record': np.minimum(row, total - 1),
      'valid': row < total,
    }
