"""Attention, MLP and dropout: the pieces both encoders are made of."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn

from alpro_jax.models import attention, fused

Initializer = Callable[..., jax.Array]

# Every logical axis a parameter here may name. sharding.py must have a
# rule for each: flax replicates an unknown name without a word.
LOGICAL_AXES = (
  'pixels',  # P * P * 3 values of a patch.
  'embed',  # D on the input side.
  'embed_out',  # D on the output side of a D x D matrix.
  'heads',  # A * K, head-major.
  'mlp',  # M.
  'positions',  # Rows of a position table.
  'vocab',  # V.
  'joint',  # E.
  'classes',  # Match logits, entities.
)


@dataclasses.dataclass(frozen=True)
class ComputeOptions:
  """How layers are computed, which changes no number but by rounding.

  One exception: where fused layers pad a sequence, dropout of the attention
  weights draws for the padding too, and so other draws.

  Attributes:
    dtype: compute type; parameters, scores, softmax and norms are float32.
    fused: gradients and layouts for GPUs of models/fused.py.
    attention: one of attention.KERNELS but 'auto'.
    remat: what is kept for the backward pass, one of stack.REMAT.
    scan: run the layers of a stack as a loop, compiled once.
    mesh: of the devices that the batch is sharded over; None if it is not.
  """

  dtype: jnp.dtype
  fused: bool = False
  attention: str = 'xla'
  remat: str = 'none'
  scan: bool = False
  mesh: jax.sharding.Mesh | None = None


def uniform_fan_in(fan_in: int) -> Initializer:
  """PyTorch's default for Linear and Conv: uniform in +-1/sqrt(fan_in)."""
  bound = 1.0 / math.sqrt(fan_in)

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def dense(
  features: int,
  axes: tuple[str, str],
  *,
  name: str | None = None,
  dtype: jnp.dtype,
  kernel_init: Initializer,
  bias_init: Initializer = nn.initializers.zeros,
) -> nn.Dense:
  """A float32 Dense whose kernel carries its logical axes."""
  return nn.Dense(
    features,
    dtype=dtype,
    kernel_init=nn.with_logical_partitioning(kernel_init, axes),
    bias_init=bias_init,
    name=name,
  )


def layer_norm(epsilon: float, options: ComputeOptions, *, name: str | None = None) -> nn.LayerNorm:
  """A LayerNorm as PyTorch computes it: exact variance, in float32."""
  module = fused.LayerNorm if options.fused else nn.LayerNorm
  return module(epsilon=epsilon, dtype=options.dtype, use_fast_variance=False, name=name)


def gelu(x: jax.Array, options: ComputeOptions) -> jax.Array:
  """x Phi(x), exact; f[...] -> the same."""
  return fused.gelu(x) if options.fused else jax.nn.gelu(x, approximate=False)


def dropout(
  x: jax.Array, rate: jax.Array | float, key: jax.Array | None, *, sequences: bool = False
) -> jax.Array:
  """Zeroes a share of the entries and scales the others up to keep the mean.

  Args:
    x: f[...].
    rate: the share, below 1.
    key: None is evaluation, which drops nothing.
    sequences: drop whole sequences, as drop path does: one draw for each entry
      of all but the last two axes.
  """
  if key is None or (isinstance(rate, float) and rate == 0.0):
    return x
  shape = (*x.shape[:-2], 1, 1) if sequences else x.shape
  kept, share = _draw_kept(key, rate, shape)
  return jnp.where(kept, x / share.astype(x.dtype), jnp.zeros((), x.dtype))


def _draw_kept(key, rate, shape):
  """bool[shape], and the share of True in 65536ths: float32[]."""
  threshold = jnp.round((1.0 - rate) * 2**16)
  kept = _draw_16_bits(key, shape) < threshold.astype(jnp.uint32)
  return kept, threshold / 2**16


def _draw_16_bits(key, shape):
  """uint32[shape], uniform in 0..65535: half the hashing of 32 bits each.

  Two neighbours along an even axis share a word. Neighbours, and not the first
  axis, so that a device that has both makes the word.
  """
  axis = next((i for i, n in enumerate(shape) if i and n % 2 == 0), None)
  if axis is None:
    return jax.random.bits(key, shape, jnp.uint32) >> 16
  half = (*shape[:axis], shape[axis] // 2, *shape[axis + 1 :])
  words = jax.random.bits(key, half, jnp.uint32)
  return jnp.stack([words & 0xFFFF, words >> 16], axis=axis + 1).reshape(shape)


def split(key: jax.Array | None, count: int):
  """Returns `count` keys of a key, or as many times None."""
  return (None,) * count if key is None else jax.random.split(key, count)


class Attention(nn.Module):
  """Self attention over axis -2.

  Attributes:
    heads: number of heads A; must divide the width.
    options: how it is computed.
    kernel_init: for all four matrices.
    dropout: on the attention probabilities, when training.
  """

  heads: int
  options: ComputeOptions
  kernel_init: Initializer
  dropout: float = 0.0

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    mask: jax.Array | None = None,
    *,
    key: jax.Array | None = None,
    query_tokens: Sequence[int] = (),
    length: int | None = None,
  ) -> jax.Array:
    """Attends.

    Args:
      x: f[..., L, D]; with `query_tokens` f[B, T, L, D], sequences of T types.
      mask: bool[..., L], True on the tokens that may be attended to.
      key: of dropout; None in evaluation.
      query_tokens: how many of the first tokens of each type attend, to all of
        theirs; () is all of all.
      length: without the tokens behind that `fused.padding` has put there,
        which none attends to; None is L.
    Returns:
      f[..., length, D]; with `query_tokens` f[B, sum(query_tokens), D], one
      type after the other. Each matrix is used once, so that its gradient is
      reduced over the devices once.
    """
    width, length = x.shape[-1], length or x.shape[-2]
    if width % self.heads:
      raise ValueError(f'{self.heads=} must divide {width=}.')
    kernel = self.options.attention
    dropped = key is not None and bool(self.dropout)
    queries = first_tokens(x, query_tokens) if query_tokens else None
    if self.options.fused:
      attend = functools.partial(fused.attend, length=length)
      x = fused.pad_tokens(x, kernel, dropout=dropped)
    else:
      attend = attention.attend

    def project(name, x):
      y = dense(
        width, ('embed', 'heads'), name=name, dtype=self.options.dtype, kernel_init=self.kernel_init
      )(x)
      return einops.rearrange(y, '... l (a k) -> ... l a k', a=self.heads)

    keys = split(key, len(query_tokens)) if query_tokens else [key]

    def run(query, key, value, mask, i=0):
      draw = functools.partial(_draw_kept, keys[i], self.dropout) if dropped else None
      return attend(query, key, value, mask, kernel=kernel, dropout=draw)

    query = project('query', x if queries is None else queries)
    arrays = query, project('key', x), project('value', x), mask
    out = attention.attend_by_type(*arrays, query_tokens, run) if query_tokens else run(*arrays)
    out = dense(
      width, ('heads', 'embed'), name='out', dtype=self.options.dtype, kernel_init=self.kernel_init
    )(einops.rearrange(out, '... l a k -> ... l (a k)'))
    return out if query_tokens else out[..., :length, :]


def first_tokens(x: jax.Array, counts: Sequence[int]) -> jax.Array:
  """The first counts[t] tokens of each type t, one type after the other.

  f[B, T, L, D] -> f[B, sum(counts), D].
  """
  return jnp.concatenate([x[:, t, :n] for t, n in enumerate(counts)], axis=1)


class Mlp(nn.Module):
  """D -> M -> D with the exact GELU."""

  size: int
  options: ComputeOptions
  kernel_init: Initializer

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    hidden = dense(
      self.size,
      ('embed', 'mlp'),
      name='fc1',
      dtype=self.options.dtype,
      kernel_init=self.kernel_init,
    )(x)
    hidden = gelu(hidden, self.options)
    return dense(
      width, ('mlp', 'embed'), name='fc2', dtype=self.options.dtype, kernel_init=self.kernel_init
    )(hidden)
