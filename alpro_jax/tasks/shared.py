"""The model of a task: its config, fresh parameters, and their layout."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from alpro_jax import sharding
from alpro_jax.models import timesformer
from alpro_jax.models.alpro import Alpro, AlproConfig


def model_config(config, vocab_size: int, **heads) -> AlproConfig:
  """Returns the model's config with what task and data decide filled in.

  Args:
    config: config.model.
    vocab_size: of the tokenizer.
    **heads: that differ from AlproConfig; embed_size=0 leaves the
      contrastive features out.
  """
  values = config.to_dict()
  # The tokenizer is the tower's where there is no other.
  values['text' if values.get('text') else 'text_tower']['vocab_size'] = vocab_size
  return AlproConfig.from_dict(values | heads)


def init_model(model: Alpro, key: jax.Array) -> Any:
  """Returns fresh parameters of a model, boxed."""
  video, tower = model.config.video, model.config.text_tower
  size = (1, video.frames, video.image_size, video.image_size, 3)
  return model.init(
    key,
    jnp.zeros(size, jnp.uint8),
    jnp.zeros((1, 2), jnp.int32),
    jnp.ones((1, 2), bool),
    jnp.zeros((1, tower.max_positions if tower else 0), jnp.int32),
    method='init_all',
  )['params']


def abstract_params(model: Alpro, mesh: jax.sharding.Mesh) -> Any:
  """Returns shape, type and sharding of every parameter, to load them into."""
  boxed = jax.eval_shape(lambda key: init_model(model, key), jax.random.key(0))
  return sharding.abstract(boxed, mesh)


def resized_tables() -> dict[str, Callable[[jax.Array, int], jax.Array]]:
  """Returns `resize` of Checkpoint.load_params: what fits other frames and image sizes."""
  return {
    f'video_encoder/{name}': functools.partial(timesformer.fit_table, name)
    for name in ('positions', 'times')
  }
