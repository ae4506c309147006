"""Attention, MLP and dropout: the pieces both encoders are made of."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn

from alpro_jax.models.attention import attend, padded_length

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
class Form:
  """How layers are computed, which changes no number but by rounding.

  One exception: where 'cudnn' pads a sequence, dropout of the attention weights
  draws for the padding too, and so other draws.

  Attributes:
    dtype: compute type; parameters, scores, softmax and norms are float32.
    attention: one of attention.KERNELS but 'auto'.
    remat: what is kept for the backward pass, one of stack.REMAT.
    scan: run the layers of a stack as a loop, compiled once.
    mesh: of the devices that the batch is cut over; None if it is not cut.
  """

  dtype: jnp.dtype
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


class LayerNorm(nn.Module):
  """LayerNorm as PyTorch computes it: exact variance, in float32.

  Attributes:
    epsilon: added to the variance.
    dtype: of the result.
  """

  epsilon: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """f[..., D] -> f[..., D]."""
    size = x.shape[-1:]
    scale = self.param('scale', nn.initializers.ones, size)
    bias = self.param('bias', nn.initializers.zeros, size)
    return _layer_norm(self.epsilon, self.dtype, x, scale, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _layer_norm(epsilon, dtype, x, scale, bias):
  return _norm_forward(epsilon, dtype, x, scale, bias)[0]


def _norm_forward(epsilon, dtype, x, scale, bias):
  wide = x.astype(jnp.float32)
  mean = jnp.mean(wide, axis=-1, keepdims=True)
  centred = wide - mean
  variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
  inverse = jax.lax.rsqrt(variance + epsilon)
  out = centred * (inverse * scale) + bias
  return out.astype(dtype), (x, scale, mean, inverse)


def _norm_backward(epsilon, dtype, residuals, of_out):
  """Reads `x` and its gradient twice, once along rows and once down columns.

  Left to itself XLA's GPU compiler makes the products once, in float32, and
  stores them for both.
  """
  del epsilon, dtype
  x, scale, mean, inverse = residuals
  normed = (x.astype(jnp.float32) - mean) * inverse
  wide = of_out.astype(jnp.float32) * scale
  of_x = wide - jnp.mean(wide, axis=-1, keepdims=True)
  of_x -= normed * jnp.mean(wide * normed, axis=-1, keepdims=True)
  of_x = (of_x * inverse).astype(x.dtype)

  x, mean, inverse, of_out = jax.lax.optimization_barrier(
      (x, mean, inverse, of_out)
  )
  normed = (x.astype(jnp.float32) - mean) * inverse
  of_out = of_out.astype(jnp.float32)
  axes = tuple(range(x.ndim - 1))
  return of_x, jnp.sum(of_out * normed, axes), jnp.sum(of_out, axes)


_layer_norm.defvjp(_norm_forward, _norm_backward)


def dropout(
    x: jax.Array,
    rate: jax.Array | float,
    key: jax.Array | None,
    *,
    sequences: bool = False,
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
    form: how it is computed.
    kernel_init: for all four matrices.
    dropout: on the attention probabilities, when training.
    read: if not all tokens are wanted: of rows that are len(read) kinds side by
      side, how many first tokens of each. They attend to all tokens of theirs.
  """

  heads: int
  form: Form
  kernel_init: Initializer
  dropout: float = 0.0
  read: tuple[int, ...] = ()

  @nn.compact
  def __call__(
      self,
      x: jax.Array,
      mask: jax.Array | None = None,
      *,
      key: jax.Array | None = None,
      length: int | None = None,
  ) -> jax.Array:
    """Attends.

    Args:
      x: f[..., L, D]; with `read` f[B, L, D], B = (b kinds).
      mask: bool[..., L], True on the tokens that may be attended to.
      key: of dropout; None in evaluation.
      length: of the sequence if tokens were appended, `padded_length` of them,
        to spare a copy here; none attends to these. None is L.
    Returns:
      f[..., length, D]; with `read` f[b, sum(read), D], one kind after another.
    """
    width = x.shape[-1]
    length = length or x.shape[-2]
    if width % self.heads:
      raise ValueError(f'{self.heads=} must divide {width=}.')
    dropped = key is not None and bool(self.dropout)
    size = padded_length(length, self.form.attention, dropout=dropped)
    if size > x.shape[-2]:
      x = _pad(x, -2, size)
      mask = None if mask is None else _pad(mask, -1, size)
    # All tokens of a kind are made with their padding, as keys and values are.
    made = [size if n == length else n for n in self.read]

    def project(name, x):
      y = dense(
          width, ('embed', 'heads'), name=name, dtype=self.form.dtype,
          kernel_init=self.kernel_init,
      )(x)
      return einops.rearrange(y, '... l (a k) -> ... l a k', a=self.heads)

    def run(query, key_, value, mask, key):
      drop = functools.partial(_draw_kept, key, self.dropout)
      return attend(
          query, key_, value, mask, kernel=self.form.attention,
          length=length, dropout=drop if dropped else None,
      )

    query = project('query', first_tokens(x, made) if made else x)
    keys, values = project('key', x), project('value', x)
    if not made:
      out = run(query, keys, values, mask, key)
    else:
      # Each matrix is used once, so that its gradient is reduced once.
      queries = split_kinds(query, made)
      own = [_kinds(array, len(made)) for array in (keys, values, mask)]
      out = jnp.concatenate([
          run(*part, key) for *part, key in zip(
              queries, *own, split(key, len(made)), strict=True
          )
      ], axis=1)
    out = einops.rearrange(out, '... l a k -> ... l (a k)')
    out = dense(
        width, ('heads', 'embed'), name='out', dtype=self.form.dtype,
        kernel_init=self.kernel_init,
    )(out)
    if not made:
      return out[..., :length, :]
    return _first_of_each(split_kinds(out, made), self.read)


def first_tokens(x: jax.Array, read: Sequence[int]) -> jax.Array:
  """The first read[k] tokens of kind k, of kinds that lie side by side.

  f[(b k), L, D] -> f[b, sum(read), D], one kind after another.
  """
  return _first_of_each(_kinds(x, len(read)), read)


def split_kinds(x: jax.Array, read: Sequence[int]) -> list[jax.Array]:
  """f[b, sum(read), ...], one kind after another -> f[b, n, ...] of each."""
  return jnp.split(x, list(itertools.accumulate(read[:-1])), axis=1)


def _first_of_each(kinds, read):
  return jnp.concatenate(
      [kind[:, :n] for kind, n in zip(kinds, read, strict=True)], axis=1
  )


def _kinds(x, count):
  """f[(b k), ...] -> k times f[b, ...]; None -> k times None."""
  if x is None:
    return [None] * count
  x = einops.rearrange(x, '(b k) ... -> b k ...', k=count)
  return [x[:, k] for k in range(count)]


def _pad(x, axis, size):
  """Appends zeros, or False, to an axis until it has that size."""
  pads = [(0, 0)] * x.ndim
  pads[axis] = (0, size - x.shape[axis])
  return jnp.pad(x, pads)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
  """x Phi(x), exact; f[...] -> the same.

  Its gradient is made from x again. JAX would keep Phi(x) too: another array as
  wide as the MLP in each layer, written once and read once.
  """
  return jax.nn.gelu(x, approximate=False)


def _gelu_backward(x, of_out):
  wide = x.astype(jnp.float32)
  phi = jax.lax.erfc(-wide * 0.5**0.5) / 2
  density = jnp.exp(-wide * wide / 2) * (2 * jnp.pi) ** -0.5
  slope = phi + wide * density
  return ((slope * of_out.astype(jnp.float32)).astype(x.dtype),)


gelu.defvjp(
    lambda x: (jax.nn.gelu(x, approximate=False), x), _gelu_backward
)


class Mlp(nn.Module):
  """D -> M -> D with the exact GELU."""

  size: int
  dtype: jnp.dtype
  kernel_init: Initializer

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    hidden = dense(
        self.size, ('embed', 'mlp'), name='fc1', dtype=self.dtype,
        kernel_init=self.kernel_init,
    )(x)
    hidden = gelu(hidden)
    return dense(
        width, ('mlp', 'embed'), name='fc2', dtype=self.dtype,
        kernel_init=self.kernel_init,
    )(hidden)
