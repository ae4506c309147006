"""BERT, cut in two: its first layers read text, its last ones fuse."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from alpro_jax.models import layers

EPSILON = 1e-12
PADDING_ID = 0


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Sizes and initial values of text encoder and fusion encoder."""

  vocab_size: int
  width: int
  depth: int
  fusion_layer: int
  heads: int
  mlp_size: int
  max_positions: int
  dropout: float
  matrix_std: float
  word_std: float
  position_std: float
  mlm_logit_scale: float

  def __post_init__(self):
    if not 0 < self.fusion_layer < self.depth:
      raise ValueError(
          f'{self.fusion_layer=} must be above 0 and below {self.depth=}: the '
          'text encoder and the fusion encoder need a layer each.'
      )
    if self.width % self.heads:
      raise ValueError(f'{self.heads=} must divide {self.width=}.')


class TextEmbedding(nn.Module):
  """Word, position and type vectors; the word table also decodes."""

  config: TextConfig
  dtype: jnp.dtype

  def setup(self):
    config = self.config

    def table(name, rows, axis, std):
      init = nn.initializers.normal(std)
      init = nn.with_logical_partitioning(init, (axis, 'embed'))
      return self.param(name, init, (rows, config.width))

    self.words = table('words', config.vocab_size, 'vocab', config.word_std)
    self.positions = table(
        'positions', config.max_positions, 'positions', config.position_std
    )
    # Row 1, of second sentences, is never read: it is part of BERT's weights.
    self.types = table('types', 2, 'positions', config.matrix_std)
    self.norm = layers.layer_norm(EPSILON, self.dtype)
    self.dropout = nn.Dropout(config.dropout)

  def __call__(self, ids: jax.Array, *, train: bool) -> jax.Array:
    """int32[B, L] -> f[B, L, D]."""
    _, length = ids.shape
    if length > self.config.max_positions:
      raise ValueError(
          f'{ids.shape=}: at most {self.config.max_positions=} tokens have a '
          'position; truncate the text.'
      )
    words = self.words[ids]
    # As torch's padding_idx: the padding row learns from the decoder alone.
    padding = (ids == PADDING_ID)[..., None]
    words = jnp.where(padding, jax.lax.stop_gradient(words), words)
    x = words + self.positions[:length] + self.types[0]
    x = self.norm(x.astype(self.dtype))
    return self.dropout(x, deterministic=not train)

  def decode(self, x: jax.Array) -> jax.Array:
    """f[..., D] -> float32[..., V], the product with every word's vector."""
    return jnp.einsum(
        '...d,vd->...v', x, self.words.astype(self.dtype),
        preferred_element_type=jnp.float32,
    )


class BertLayer(nn.Module):
  """A post-norm transformer layer."""

  config: TextConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(
      self, x: jax.Array, mask: jax.Array, train: bool
  ) -> jax.Array:
    config = self.config
    init = nn.initializers.normal(config.matrix_std)
    dropout = nn.Dropout(config.dropout, deterministic=not train)
    y = layers.Attention(
        config.heads, self.dtype, init, config.dropout, name='attention'
    )(x, mask, train=train)
    x = layers.layer_norm(EPSILON, self.dtype, 'norm')(x + dropout(y))
    y = layers.Mlp(config.mlp_size, self.dtype, init, name='mlp')(x)
    return layers.layer_norm(EPSILON, self.dtype, 'mlp_norm')(x + dropout(y))


class BertLayers(nn.Module):
  """Layers start..stop-1 of one BERT, numbered as in the whole."""

  config: TextConfig
  dtype: jnp.dtype
  remat: bool
  start: int
  stop: int

  @nn.compact
  def __call__(
      self, x: jax.Array, mask: jax.Array, *, train: bool
  ) -> jax.Array:
    """f[B, L, D] with bool[B, L], True on real tokens -> f[B, L, D]."""
    module = BertLayer
    if self.remat:
      module = nn.remat(module, static_argnums=(3,))
    for i in range(self.start, self.stop):
      x = module(self.config, self.dtype, name=f'layer{i}')(x, mask, train)
    return x


class MlmHead(nn.Module):
  """Prepares hidden states for the tied decoder; owns the decoder's bias."""

  config: TextConfig
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """f[B, L, D] -> (f[B, L, D], bias float32[V])."""
    config = self.config
    x = layers.dense(
        config.width, ('embed', 'embed_out'), name='transform',
        dtype=self.dtype, kernel_init=nn.initializers.normal(config.matrix_std),
    )(x)
    x = jax.nn.gelu(x, approximate=False)
    x = layers.layer_norm(EPSILON, self.dtype, 'norm')(x)
    init = nn.with_logical_partitioning(nn.initializers.zeros, ('vocab',))
    return x, self.param('bias', init, (config.vocab_size,))
