"""Training the prompter: video-text contrast alone (paper section 3.2)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from alpro_jax import contrastive
from alpro_jax.batch import VideoTextBatch
from alpro_jax.contrastive import Features
from alpro_jax.models.alpro import Alpro, Encoding
from alpro_jax.tasks.base import Task
from alpro_jax.tasks.shared import model_config


@dataclasses.dataclass(frozen=True)
class Prompter(Task):
  """Both encoders by VTC; the same loss as in pre-training.

  Attributes:
    options: config.loss.
  """

  model: Alpro
  options: Any
  mesh: jax.sharding.Mesh
  weights = {'loss/vtc': 1.0}
  contrasts = True

  @classmethod
  def from_config(cls, config, text, mesh):
    model = Alpro(model_config(config.model, text.vocab_size), mesh)
    return cls(model=model, options=config.loss, mesh=mesh)

  def make_targets(self, frozen, batch, key, *, parts=1):
    return None, {'loss/vtc': jnp.float32(batch.video.shape[0])}

  def embed(self, params, targets, batch, key, *, train):
    video, text = self.encode(self.bind(params, key), targets, batch, train)[:2]
    return Features(video.feature, text.feature)

  def contrast(self, params, features, batch, cotangent=None):
    if cotangent is not None:
      return {'loss/vtc': contrastive.zero_with_gradient(features, cotangent)}
    temperature = self.bind(params).temperature()
    total, count, (v2t, t2v) = contrastive.vtc(
      features, temperature, self.identities(batch), chunk=self.options.vtc_chunk, mesh=self.mesh
    )
    return {
      'loss/vtc': (total, count),
      'accuracy/v2t': (v2t, 1.0),
      'accuracy/t2v': (t2v, 1.0),
      'temperature': (temperature, 1.0),
    }

  def terms(self, params, targets, batch, key, step, *, train, cotangent=None):
    features = self.embed(params, targets, batch, key, train=train)
    return self.contrast(params, features, batch, cotangent)

  def bind(self, params: Any, key: jax.Array | None = None) -> Alpro:
    """Returns the model with its parameters, and the key of its dropout."""
    rngs = {} if key is None else {'dropout': key}
    return self.model.bind({'params': params}, rngs=rngs)

  def encode(self, model, targets, batch, train) -> tuple[Encoding, Encoding]:
    """Encodes both sides. Dropout falls alike in `embed` and in `terms`."""
    video = model.encode_video(batch.video, train=train)
    return video, model.encode_text(batch.text_ids, batch.text_mask, train=train)

  def identities(self, batch: VideoTextBatch) -> jax.Array:
    """int32[B, 1 or 2]: the video and, with `mask_equal_captions`, the caption.

    Rows that are equal in a column are no negatives of each other; the original
    contrasts repeated videos and captions with themselves (defect 22).
    """
    columns = [batch.video_id]
    if self.options.mask_equal_captions:
      columns.append(batch.caption_id)
    return jnp.stack(columns, axis=1)
