"""The text encoder of an image-text model, for contrast alone: CLIP's, SigLIP's, PE-Core's.

Its blocks are those of vit.py, without time. It has a tokenizer of its own, and stands
beside the BERT that feeds the fusion encoder, or, in a model that only contrasts, alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from alpro_jax.models import layers, stack, vit
from alpro_jax.models.dropout import dropout, split
from alpro_jax.models.timesformer import drop_path_rates

POOLINGS = ('end', 'last')


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes and family of the tower; see configs/models.py.

  Attributes:
    max_positions: tokens of the longest text, for which texts are padded.
    activation: one of layers.ACTIVATIONS.
    epsilon: of all norms.
    causal: whether a token attends to none after it.
    pooling: what stands for a text: its first token `end_id` (CLIP), or its 'last' token,
      padding or not (SigLIP).
    end_id: of the end-of-text token.
  """

  vocab_size: int
  width: int
  depth: int
  heads: int
  mlp_size: int
  max_positions: int
  activation: str
  epsilon: float
  causal: bool
  pooling: str
  end_id: int
  drop_path: float
  dropout: float
  matrix_std: float
  word_std: float
  position_std: float
  encoder: str = 'transformer'
  layer_scale = 0.0

  def __post_init__(self):
    layers.check_choice('text_tower.activation', self.activation, layers.ACTIVATIONS)
    layers.check_choice('text_tower.pooling', self.pooling, POOLINGS)
    if self.width % self.heads:
      raise ValueError(f'{self.heads=} must divide {self.width=}.')


class Encoder(nn.Module):
  """Ids to one token for the text."""

  config: Config
  options: layers.ComputeOptions

  @nn.compact
  def __call__(self, ids: jax.Array, *, train: bool) -> jax.Array:
    """int32[B, L] -> f[B, D].

    Padding is not masked: these families train with it, or attend to nothing after the end.

    Raises:
      ValueError: if L is not `max_positions` where the last token is what counts, or above it.
    """
    config, options = self.config, self.options
    length = ids.shape[1]
    if length > config.max_positions or (
      config.pooling == 'last' and length != config.max_positions
    ):
      raise ValueError(
        f'{ids.shape=}: texts must be padded to {config.max_positions=}; set '
        'config.data.max_tower_tokens to it.'
      )

    def table(name, rows, axis, std):
      init = nn.with_logical_partitioning(nn.initializers.normal(std), (axis, 'embed'))
      return self.param(name, init, (rows, config.width))

    words = table('words', config.vocab_size, 'vocab', config.word_std)
    positions = table('positions', config.max_positions, 'positions', config.position_std)
    x = (words[ids] + positions[:length]).astype(options.dtype)
    key, layers_key = split(self.make_rng('dropout') if train else None, 2)
    x = dropout(x, config.dropout, key)

    def make_block(name):
      return vit.Block(config, options, causal=config.causal, name=name)

    keys = None if key is None else split(layers_key, config.depth)
    each = {'key': keys, 'drop_path': drop_path_rates(config)}
    names = [f'block{i}' for i in range(config.depth)]
    x = stack.run_layers(self, make_block, names, x, each=each, options=options)
    if config.pooling == 'last':
      x = x[:, -1]
    else:
      end = jnp.argmax(ids == config.end_id, axis=1)
      x = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
    return options.layer_norm(config.epsilon, name='norm')(x)


def text_flops(config: Config, length: int) -> int:
  """Operations for one text; see flops.py."""
  return config.depth * layers.layer_flops(1, length, config.width, config.mlp_size)
