"""BERT in two parts: its first layers read text, its last ones fuse."""

import dataclasses
import itertools

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn

from alpro_jax import sharding
from alpro_jax.models import layers, stack

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
    self.norm = layers.layer_norm(EPSILON, self.options)

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
    return layers.dropout(x, self.config.dropout, key)

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


class BertLayer(nn.Module):
  """A post-norm transformer layer.

  Attributes:
    config: sizes and initial values.
    options: how it is computed.
    query_tokens: see layers.Attention.
  """

  config: TextConfig
  options: layers.ComputeOptions
  query_tokens: tuple[int, ...] = ()

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array, *, key: jax.Array | None) -> jax.Array:
    """f[B, L, D], bool[B, L], key of dropout or None -> f[B, L, D].

    With `query_tokens`: f[B, T, L, D], bool[B, T, L] -> f[B, sum(query_tokens), D].
    """
    config, options = self.config, self.options
    init = nn.initializers.normal(config.matrix_std)
    keys = layers.split(key, 3)
    y = layers.Attention(config.heads, options, init, config.dropout, name='attention')(
      x, mask, key=keys[0], query_tokens=self.query_tokens
    )
    if self.query_tokens:
      x = layers.first_tokens(x, self.query_tokens)
    x = x + layers.dropout(y, config.dropout, keys[1])
    x = layers.layer_norm(EPSILON, options, name='norm')(x)
    y = layers.Mlp(config.mlp_size, options, init, name='mlp')(x)
    x += layers.dropout(y, config.dropout, keys[2])
    return layers.layer_norm(EPSILON, options, name='mlp_norm')(x)


class BertLayers(nn.Module):
  """Layers start..stop-1 of one BERT, numbered as in the whole."""

  config: TextConfig
  options: layers.ComputeOptions
  start: int
  stop: int

  @nn.compact
  def __call__(
    self, x: jax.Array, mask: jax.Array, *, train: bool, query_tokens: tuple[int, ...] = ()
  ) -> jax.Array | tuple[jax.Array, ...]:
    """Sends tokens through the layers.

    Args:
      x: f[B, L, D].
      mask: bool[B, L], True on the tokens that may be attended to.
      train: whether dropout acts.
      query_tokens: how many of the first tokens are wanted, of each of T types
        of rows; B = (b T), the T of one clip side by side. () is all of all.
    Returns:
      f[B, L, D]; with `query_tokens` a tuple of f[b, n, D] for each n of them.
    """
    keys = None
    if train and self.config.dropout:
      keys = layers.split(self.make_rng('dropout'), self.stop - self.start)
    names = [f'layer{i}' for i in range(self.start, self.stop)]

    def run(names, x, mask, keys, options, query_tokens=()):
      return stack.run_layers(
        self,
        lambda name: BertLayer(self.config, options, query_tokens, name=name),
        names,
        x,
        mask,
        options=options,
        each={'key': keys},
      )

    if not query_tokens:
      return run(names, x, mask, keys, self.options)
    before, last = (None, None) if keys is None else (keys[:-1], keys[-1:])
    x = run(names[:-1], x, mask, before, self.options)
    # The last layer makes fewer tokens than it reads, which no loop can.
    unrolled = dataclasses.replace(self.options, scan=False)
    types = len(query_tokens)
    x = einops.rearrange(x, '(b t) l d -> b t l d', t=types)
    mask = einops.rearrange(mask, '(b t) l -> b t l', t=types)
    x = run(names[-1:], x, mask, last, unrolled, tuple(query_tokens))
    return tuple(jnp.split(x, list(itertools.accumulate(query_tokens))[:-1], axis=1))


class MlmHead(nn.Module):
  """Prepares hidden states for the tied decoder; owns the decoder's bias."""

  config: TextConfig
  options: layers.ComputeOptions

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """f[B, L, D] -> (f[B, L, D], bias float32[V])."""
    config = self.config
    x = layers.dense(
      config.width,
      ('embed', 'embed_out'),
      name='transform',
      dtype=self.options.dtype,
      kernel_init=nn.initializers.normal(config.matrix_std),
    )(x)
    x = layers.gelu(x, self.options)
    x = layers.layer_norm(EPSILON, self.options, name='norm')(x)
    init = nn.with_logical_partitioning(nn.initializers.zeros, ('vocab',))
    return x, self.param('bias', init, (config.vocab_size,))
