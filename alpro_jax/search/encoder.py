"""A model at work on clips that were cut from videos."""

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

  def __init__(self, trained: TrainedModel, *, batch_size: int = 16, pairs_per_call: int = 64):
    config, mesh = trained.config, trained.mesh
    if jax.process_count() > 1:
      raise ValueError('search runs in one process; start it without others.')
    self.trained = trained
    self.batch_size = -(-batch_size // mesh.size) * mesh.size
    self.scorer = Scorer(
      trained.model,
      trained.params,
      mesh,
      encode=trained.tokenizer.encode,
      max_text_tokens=config.data.max_text_tokens,
      batch_size=mesh.size,
      pairs_per_call=pairs_per_call,
    )

  def pixels(self, clips: list[Segment]) -> np.ndarray:
    """uint8[n, T, H, W, 3]: resized and cut as config.data says."""
    data = self.trained.config.data
    return np.stack(
      [
        augment.decode_clip(tf.constant(clip.frames), tf.constant([0.5, 0.5]), data).numpy()
        for clip in clips
      ]
    )

  def videos(self, clips: list[Segment]) -> VideoFeatures:
    """Encodes clips, in calls of `batch_size`; the last is filled up."""
    total = len(clips)

    def batches():
      for start in range(0, total, self.batch_size):
        part = clips[start : start + self.batch_size]
        row = np.arange(start, start + self.batch_size)
        pixels = self.pixels(part)
        empty = self.batch_size - len(part)
        yield {
          'video': np.concatenate([pixels, pixels[-1:].repeat(empty, 0)]),
          'record': np.minimum(row, total - 1),
          'valid': row < total,
        }

    return self.scorer.embed_videos(batches(), total)

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
