"""Training the prompter: video-text contrast alone (paper section 3.2)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from alpro_jax import losses, sharding
from alpro_jax.batch import VideoTextBatch
from alpro_jax.models.alpro import Alpro, AlproConfig
from alpro_jax.tasks.base import NothingFrozen


@dataclasses.dataclass(frozen=True)
class Prompter(NothingFrozen):
  """Both encoders by VTC; the same loss as in pre-training.

  Attributes:
    model: without an entity head.
    mask_equal_captions: see `duplicates`.
  """

  model: Alpro
  mask_equal_captions: bool
  answers = ()

  @classmethod
  def from_config(cls, config, text, mesh):
    del mesh
    return cls(
        model=Alpro(model_config(config.model, text.vocab_size)),
        mask_equal_captions=config.loss.mask_equal_captions,
    )

  def init(self, key: jax.Array) -> Any:
    return init_model(self.model, key)

  def loss(
      self,
      params: Any,
      frozen: None,
      batch: VideoTextBatch,
      key: jax.Array,
      step: jax.Array,
      *,
      train: bool,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """See tasks/base.py."""
    del frozen, step
    model = self.model.bind({'params': params}, rngs={'dropout': key})
    video = model.encode_video(batch.video, train=train)
    text = model.encode_text(batch.text_ids, batch.text_mask, train=train)
    temperature = model.temperature()
    loss, parts = contrast(
        video.feature, text.feature, temperature,
        duplicates(batch, equal_captions=self.mask_equal_captions),
    )
    return loss, {'loss/vtc': loss, 'temperature': temperature, **parts}


def model_config(config, vocab_size: int, **heads) -> AlproConfig:
  """Returns the model's config with what task and data decide filled in.

  Args:
    config: config.model.
    vocab_size: of the tokenizer.
    **heads: that differ from models.alpro.HEADS; embed_size=0 leaves the
      contrastive features out.
  """
  values = config.to_dict()
  values['text']['vocab_size'] = vocab_size
  return AlproConfig.from_dict(values | heads)


def init_model(model: Alpro, key: jax.Array) -> Any:
  """Returns fresh parameters of a model, boxed."""
  video = model.config.video
  size = (1, video.frames, video.image_size, video.image_size, 3)
  return model.init(
      key,
      jnp.zeros(size, jnp.uint8),
      jnp.zeros((1, 2), jnp.int32),
      jnp.ones((1, 2), bool),
      method='init_all',
  )['params']


def abstract_params(model: Alpro, mesh: jax.sharding.Mesh) -> Any:
  """Returns shape, type and place of every parameter, to load them into."""
  boxed = jax.eval_shape(lambda key: init_model(model, key), jax.random.key(0))
  return sharding.abstract(boxed, mesh)


def duplicates(batch: VideoTextBatch, *, equal_captions: bool) -> jax.Array:
  """Which pairs of rows must not be taken for negatives of each other.

  The original contrasts repeated videos and captions with themselves
  (defect 22).

  Args:
    batch: of B rows.
    equal_captions: count equal captions of different videos, too.
  Returns:
    bool[B, B], symmetric, True on the diagonal.
  """
  same = batch.video_id[:, None] == batch.video_id[None, :]
  if equal_captions:
    same |= batch.caption_id[:, None] == batch.caption_id[None, :]
  return same


def contrast(video_feature, text_feature, temperature, same):
  """Returns the VTC loss and the accuracy of both directions.

  Args:
    video_feature: float32[B, E], unit length.
    text_feature: float32[B, E], unit length.
    temperature: float32[].
    same: bool[B, B], pairs that are no negatives, diagonal True.
  """
  loss = losses.mean(
      *losses.vtc(video_feature, text_feature, temperature, same=same)
  )
  scores = losses.similarity(video_feature, text_feature, temperature)
  own = jnp.arange(same.shape[0])
  rivals = same & (own[:, None] != own[None, :])
  scores = jnp.where(rivals, -jnp.inf, jax.lax.stop_gradient(scores))
  accuracy = {
      'accuracy/v2t': jnp.mean(jnp.argmax(scores, axis=1) == own),
      'accuracy/t2v': jnp.mean(jnp.argmax(scores, axis=0) == own),
  }
  return loss, accuracy
