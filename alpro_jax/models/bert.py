"""BERT in two parts: its first layers read text, its last ones fuse."""

import dataclasses

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn

from alpro_jax import sharding
from alpro_jax.models import layers, stack
from alpro_jax.models.dropout import dropout, split

EPSILON = 1e-12
PADDING_ID = 0


@dataclasses.dataclass(frozen=True)
class Config:
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
  encoder: str = 'bert'

  def __post_init__(self):
    if not 0 < self.fusion_layer < self.depth:
      raise ValueError(
        f'{self.fusion_layer=} must be above 0 and below {self.depth=}: the '
        'text encoder and the fusion encoder need a layer each.'
      )
    if self.width % self.heads:
      raise ValueError(f'{self.heads=} must divide {self.width=}.')


class Embedding(nn.Module):
  """Word, position and type vectors; the word table also decodes."""

  config: Config
  options: layers.ComputeOptions

  def setup(self):
    config = self.config

    def table(name, rows, axis, std):
      init = nn.initializers.normal(std)
      init = nn.with_logical_partitioning(init, (axis, 'embed'))
      return self.param(name, init, (rows, config.width))

    self.words = table('words', config.vocab_size, 'vocab', config.word_std)
    self.positions = table('positions', config.max_positions, 'positions', config.position_std)
    # Row 1, of second sentences, is never read: it is part of BERT's weights.
    self.types = table('types', 2, 'positions', config.matrix_std)
    # The table is used twice, and its gradient is the largest of all.
    self.copies = self.words[None]
    mesh = self.options.mesh
    if mesh is not None:
      self.copies = sharding.copy_per_shard(self.words, mesh)
    self.norm = self.options.layer_norm(EPSILON)

  def __call__(self, ids: jax.Array, *, train: bool) -> jax.Array:
    """int32[B, L] -> f[B, L, D]."""
    _, length = ids.shape
    if length > self.config.max_positions:
      raise ValueError(
        f'{ids.shape=}: at most {self.config.max_positions=} tokens have a '
        'position; truncate the text.'
      )
    words = self._per_shard(lambda words, ids: words[ids], ids)
    # As torch's padding_idx: the padding row learns from the decoder alone.
    padding = (ids == PADDING_ID)[..., None]
    words = jnp.where(padding, jax.lax.stop_gradient(words), words)
    x = words + self.positions[:length] + self.types[0]
    x = self.norm(x.astype(self.options.dtype))
    key = self.make_rng('dropout') if train else None
    return dropout(x, self.config.dropout, key)

  def decode(self, x: jax.Array) -> jax.Array:
    """f[..., D] -> float32[..., V], the product with every word's vector."""

    def product(words, x):
      return jnp.einsum(
        '...d,vd->...v', x, words.astype(self.options.dtype), preferred_element_type=jnp.float32
      )

    return self._per_shard(product, x)

  def _per_shard(self, function, rows):
    """function(words, rows) by the copy of the words where the rows are."""
    shards = self.copies.shape[0]
    # One device, or rows that are not sharded, as those of `init`.
    if shards == 1 or rows.shape[0] % shards:
      return function(self.words, rows)
    parts = rows.reshape(shards, rows.shape[0] // shards, *rows.shape[1:])
    out = jax.vmap(function)(self.copies, parts)
    return out.reshape(rows.shape[0], *out.shape[2:])


class Layer(nn.Module):
  """A post-norm transformer layer; `query_tokens` as in layers.Attention."""

  config: Config
  options: layers.ComputeOptions
  query_tokens: tuple[int, ...] = ()

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array, *, key: jax.Array | None) -> jax.Array:
    """f[B, L, D], bool[B, L], key of dropout or None -> f[B, L, D].

    With `query_tokens`: f[B, T, L, D], bool[B, T, L] -> f[B, sum(query_tokens), D].
    """
    config, options = self.config, self.options
    init = nn.initializers.normal(config.matrix_std)
    keys = split(key, 3)
    attention = options.choose(layers.Attention)
    attend = attention(config.heads, options, init, config.dropout, name='attention')
    y = attend(x, mask, rng=keys[0], query_tokens=self.query_tokens)
    if self.query_tokens:
      x = layers.first_tokens(x, self.query_tokens)
    x = options.layer_norm(EPSILON, name='norm')(x + dropout(y, config.dropout, keys[1]))
    y = layers.Mlp(config.mlp_size, options, init, name='mlp')(x)
    return options.layer_norm(EPSILON, name='mlp_norm')(x + dropout(y, config.dropout, keys[2]))


class Layers(nn.Module):
  """Layers start..stop-1 of one BERT, numbered as in the whole."""

  config: Config
  options: layers.ComputeOptions
  start: int
  stop: int

  @nn.compact
  def __call__(
    self, x: jax.Array, mask: jax.Array, *, train: bool, query_tokens: tuple[int, ...] = ()
  ) -> jax.Array | list[jax.Array]:
    """Sends tokens through the layers.

    Args:
      x: f[B, L, D].
      mask: bool[B, L], True on the tokens that may be attended to.
      train: whether dropout acts.
      query_tokens: how many of the first tokens are wanted, of each of T types
        of rows; B = (b T), the T of one clip side by side. () is all of all.
    Returns:
      f[B, L, D]; with `query_tokens` a list of f[b, n, D] for each n of them.
    """
    keys = None
    if train and self.config.dropout:
      keys = split(self.make_rng('dropout'), self.stop - self.start)
    names = [f'layer{i}' for i in range(self.start, self.stop)]
    # The last one makes fewer tokens than it reads: it is called by itself.
    last = names.pop() if query_tokens else None
    each = {'key': keys if keys is None else keys[: len(names)]}

    def make_layer(name):
      return Layer(self.config, self.options, name=name)

    x = stack.run_layers(self, make_layer, names, x, mask, each=each, options=self.options)
    if last is None:
      return x
    x = einops.rearrange(x, '(b t) l d -> b t l d', t=len(query_tokens))
    mask = einops.rearrange(mask, '(b t) l -> b t l', t=len(query_tokens))
    options = dataclasses.replace(self.options, scan=False)

    def make_last(name):
      return Layer(self.config, options, tuple(query_tokens), name=name)

    each = {'key': keys if keys is None else keys[-1:]}
    x = stack.run_layers(self, make_last, [last], x, mask, each=each, options=options)
    return layers.split_types(x, query_tokens)


def text_encoder(config: Config, options: layers.ComputeOptions) -> Layers:
  return Layers(config, options, 0, config.fusion_layer)


def fusion_encoder(config: Config, options: layers.ComputeOptions) -> Layers:
  return Layers(config, options, config.fusion_layer, config.depth)


class MlmHead(nn.Module):
  """Prepares hidden states for the tied decoder; owns the decoder's bias."""

  config: Config
  options: layers.ComputeOptions

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """f[B, L, D] -> (f[B, L, D], bias float32[V])."""
    config, options = self.config, self.options
    init = nn.initializers.normal(config.matrix_std)
    axes = ('embed', 'embed_out')
    x = layers.dense(config.width, axes, options, init, name='transform')(x)
    x = options.layer_norm(EPSILON, name='norm')(options.choose(layers.gelu)(x))
    init = nn.with_logical_partitioning(nn.initializers.zeros, ('vocab',))
    return x, self.param('bias', init, (config.vocab_size,))


def text_flops(config: Config, length: int) -> int:
  """Operations of the text encoder for one text; see flops.py."""
  return config.fusion_layer * layers.layer_flops(1, length, config.width, config.mlp_size)


def fusion_flops(config: Config, length: int, query_tokens: int | None = None) -> int:
  """Operations of the fusion encoder for one pair of so many tokens."""
  size = (1, length, config.width, config.mlp_size)
  whole = config.depth - config.fusion_layer - 1
  return whole * layers.layer_flops(*size) + layers.layer_flops(*size, query_tokens)
