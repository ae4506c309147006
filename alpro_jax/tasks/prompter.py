"""Training the prompter: video-text contrast alone (paper section 3.2)."""

import dataclasses
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from alpro_jax import contrastive, sharding
from alpro_jax.batch import VideoTextBatch
from alpro_jax.models.alpro import Alpro, AlproConfig
from alpro_jax.tasks.base import NothingFrozen, Terms


@dataclasses.dataclass(frozen=True)
class Prompter(NothingFrozen):
  """Both encoders by VTC; the same loss as in pre-training.

  Attributes:
    model: without an entity head.
    options: config.loss.
    mesh: the devices that the batch is cut over.
  """

  model: Alpro
  options: Any
  mesh: jax.sharding.Mesh
  answers = ()
  weights = MappingProxyType({'loss/vtc': 1.0})

  @classmethod
  def from_config(cls, config, text, mesh):
    values = model_config(config.model, text.vocab_size)
    return cls(model=Alpro(values, mesh), options=config.loss, mesh=mesh)

  def init(self, key: jax.Array) -> Any:
    return init_model(self.model, key)

  def ask(
    self, frozen: None, batch: VideoTextBatch, key: jax.Array, *, parts: int = 1
  ) -> tuple[None, dict[str, jax.Array]]:
    """See tasks/base.py."""
    del frozen, key, parts
    return None, {'loss/vtc': jnp.float32(batch.video.shape[0])}

  def embed(
    self, params: Any, asked: None, batch: VideoTextBatch, key: jax.Array, *, train: bool
  ) -> contrastive.Features:
    """See tasks/base.py."""
    del asked
    model = self.model.bind({'params': params}, rngs={'dropout': key})
    video = model.encode_video(batch.video, train=train)
    text = model.encode_text(batch.text_ids, batch.text_mask, train=train)
    return contrastive.Features(video.feature, text.feature)

  def contrast(self, params: Any, features: contrastive.Features, batch: VideoTextBatch) -> Terms:
    """See tasks/base.py."""
    temperature = self.model.bind({'params': params}).temperature()
    terms = contrast(features, temperature, batch, self.options, self.mesh)
    return terms | {'temperature': (temperature, 1.0)}

  def terms(
    self,
    params: Any,
    asked: None,
    batch: VideoTextBatch,
    key: jax.Array,
    step: jax.Array,
    *,
    train: bool,
    pull: contrastive.Features | None = None,
  ) -> Terms:
    """See tasks/base.py."""
    del step
    features = self.embed(params, asked, batch, key, train=train)
    if pull is not None:
      return {'loss/vtc': contrastive.pulled(features, pull)}
    return self.contrast(params, features, batch)


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


def identities(batch: VideoTextBatch, *, equal_captions: bool) -> jax.Array:
  """Which pairs of rows must not be taken for negatives of each other.

  Those that agree in a column. The original contrasts repeated videos and
  captions with themselves (defect 22).

  Args:
    batch: of B rows.
    equal_captions: count equal captions of different videos, too.
  Returns:
    int32[B, 1 or 2]: the video and, if they count, the caption.
  """
  columns = [batch.video_id]
  if equal_captions:
    columns.append(batch.caption_id)
  return jnp.stack(columns, axis=1)


def contrast(features, temperature, batch, options, mesh) -> Terms:
  """Returns the VTC loss and the accuracy of both directions.

  Args:
    features: contrastive.Features of B pairs.
    temperature: float32[].
    batch: of B rows.
    options: config.loss.
    mesh: the devices that the batch is cut over.
  """
  total, count, (v2t, t2v) = contrastive.vtc(
    features,
    temperature,
    identities(batch, equal_captions=options.mask_equal_captions),
    chunk=options.vtc_chunk,
    mesh=mesh,
  )
  return {'loss/vtc': (total, count), 'accuracy/v2t': (v2t, 1.0), 'accuracy/t2v': (t2v, 1.0)}
