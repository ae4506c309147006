"""Attention, MLP and norms: the pieces both encoders are made of."""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn

from alpro_jax.models import attention
from alpro_jax.models.dropout import split

Initializer = Callable[..., jax.Array]


def uniform_fan_in(fan_in: int) -> Initializer:
  """PyTorch's default for Linear and Conv: uniform in +-1/sqrt(fan_in)."""
  bound = 1.0 / math.sqrt(fan_in)

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def dense(
  features: int,
  axes: tuple[str, str],
  options: 'ComputeOptions',
  kernel_init: Initializer,
  bias_init: Initializer = nn.initializers.zeros,
  *,
  name: str | None = None,
) -> nn.Dense:
  """A float32 Dense whose kernel carries its logical axes; see sharding.RULES."""
  kernel_init = nn.with_logical_partitioning(kernel_init, axes)
  return options.choose(nn.Dense)(
    features, dtype=options.dtype, kernel_init=kernel_init, bias_init=bias_init, name=name
  )


class Attention(nn.Module):
  """Multi-head self attention over axis -2.

  Attributes:
    heads: number of heads A; must divide the width.
    options: how it is computed.
    kernel_init: for all four matrices.
    dropout: on the attention weights, when training.
  """

  heads: int
  options: 'ComputeOptions'
  kernel_init: Initializer
  dropout: float = 0.0
  causal: bool = False  # Each token attends to itself and to those before it.
  attend = staticmethod(attention.attend)

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    mask: jax.Array | None = None,
    *,
    rng: jax.Array | None = None,
    query_tokens: Sequence[int] = (),
    rotary: 'Rotary | None' = None,
  ) -> jax.Array:
    """f[..., L, D] -> f[..., L, D].

    Args:
      x: f[..., L, D]; with `query_tokens` f[B, T, L, D], sequences of T types.
      mask: bool[..., L], True on the tokens that may be attended to.
      rng: key of dropout; None in evaluation.
      query_tokens: how many of the first tokens of each type attend, to all of
        theirs; () is all of all.
      rotary: turns queries and keys by their places.
    Returns:
      f[..., L, D]; with `query_tokens` as `first_tokens`. Either way each
      matrix is used once, so that its gradient is reduced over devices once.
    """
    width = x.shape[-1]
    if width % self.heads:
      raise ValueError(f'{self.heads=} must divide {width=}.')

    def project(name, x):
      y = dense(width, ('embed', 'heads'), self.options, self.kernel_init, name=name)(x)
      return einops.rearrange(y, '... l (a k) -> ... l a k', a=self.heads)

    query = project('query', first_tokens(x, query_tokens) if query_tokens else x)
    key, value = project('key', x), project('value', x)
    if rotary is not None:
      query, key = rotary.turn(query), rotary.turn(key)
    attend = functools.partial(self.attend, kernel=self.options.kernel, rate=self.dropout)
    if self.causal:
      attend = functools.partial(attend, causal=True)
    if query_tokens:
      attend = functools.partial(_attend_by_type, attend, query_tokens)
    out = einops.rearrange(attend(query, key, value, mask, rng=rng), '... l a k -> ... l (a k)')
    return dense(width, ('heads', 'embed'), self.options, self.kernel_init, name='out')(out)


def _attend_by_type(attend, counts, query, key, value, mask, *, rng):
  """Attends within each of the T types: f[B, sum(counts), A, K] of f[B, T, L, A, K]."""
  parts = enumerate(zip(split_types(query, counts), split(rng, len(counts)), strict=True))
  out = [attend(q, key[:, t], value[:, t], mask[:, t], rng=r) for t, (q, r) in parts]
  return jnp.concatenate(out, axis=1)


def first_tokens(x: jax.Array, counts: Sequence[int]) -> jax.Array:
  """The first counts[t] tokens of each of T types, one type after the other.

      counts=(3, 1):  [[a b c d], [e f g h]]  ->  [a b c e]

  f[B, T, L, D] -> f[B, sum(counts), D]; `split_types` takes them apart.
  """
  return jnp.concatenate([x[:, t, :n] for t, n in enumerate(counts)], axis=1)


def split_types(x: jax.Array, counts: Sequence[int]) -> list[jax.Array]:
  """f[B, sum(counts), ...] -> f[B, n, ...] for each n of `counts`."""
  ends = [sum(counts[: t + 1]) for t in range(len(counts) - 1)]
  return jnp.split(x, ends, axis=1)


class Rotary(NamedTuple):
  """Rotary positions (Su et al. 2021, arXiv 2104.09864), of L tokens and heads of size K.

  Attributes:
    cos: float32[L, K].
    sin: float32[L, K]; 0, with a cos of 1, leaves a token as it is.
  """

  cos: jax.Array
  sin: jax.Array

  def turn(self, x: jax.Array) -> jax.Array:
    """f[..., L, A, K] -> the same, each pair of neighbouring channels turned."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x.shape)
    return (x * self.cos[:, None] + turned * self.sin[:, None]).astype(x.dtype)


class Mlp(nn.Module):
  """D -> M -> D; the activation is one of ACTIVATIONS."""

  size: int
  options: 'ComputeOptions'
  kernel_init: Initializer
  activation: str = 'gelu'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width, options, init = x.shape[-1], self.options, self.kernel_init
    x = dense(self.size, ('embed', 'mlp'), options, init, name='fc1')(x)
    x = options.choose(ACTIVATIONS[self.activation])(x)
    return dense(width, ('mlp', 'embed'), options, init, name='fc2')(x)


def gelu(x: jax.Array) -> jax.Array:
  """x Phi(x), exact; f[...] -> the same."""
  return jax.nn.gelu(x, approximate=False)


def quick_gelu(x: jax.Array) -> jax.Array:
  """x sigmoid(1.702 x), OpenAI's CLIP; f[...] -> the same."""
  return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {'gelu': gelu, 'gelu_tanh': jax.nn.gelu, 'quick_gelu': quick_gelu}


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
  """Raises a ValueError for a value of config.model.`name` that is not among its choices."""
  if value not in choices:
    raise ValueError(
      f'config.model.{name}={value!r} is not known; choose one of {sorted(choices)}.'
    )


@dataclasses.dataclass(frozen=True)
class ComputeOptions:
  """How layers are computed, which changes no number but by rounding.

  One exception: where fused attention pads a sequence, dropout of its weights
  draws for the padding too, and so other draws.

  Attributes:
    dtype: compute type; parameters, scores, softmax and norms are float32.
    kernel: one of attention.KERNELS but 'auto'.
    remat: what is kept for the backward pass, one of stack.REMAT.
    scan: run the layers of a stack as a loop, compiled once.
    mesh: of the devices that the batch is sharded over; None if it is not.
    replaced: pairs of a layer and what stands in for it; see `choose`.
  """

  dtype: jnp.dtype
  kernel: str = 'xla'
  remat: str = 'none'
  scan: bool = False
  mesh: jax.sharding.Mesh | None = None
  replaced: tuple[tuple[Callable, Callable], ...] = ()

  def choose(self, layer: Callable) -> Callable:
    """Returns what stands in for a plain layer: itself, if nothing does."""
    return dict(self.replaced).get(layer, layer)

  def layer_norm(self, epsilon: float, *, name: str | None = None) -> nn.LayerNorm:
    """A LayerNorm as PyTorch computes it: exact variance, in float32."""
    norm = self.choose(nn.LayerNorm)
    return norm(epsilon=epsilon, dtype=self.dtype, use_fast_variance=False, name=name)


def attention_flops(sequences: int, length: int, width: int, queries: int | None = None) -> int:
  """Scores and weighted values of `sequences`; None queries are all tokens."""
  return 4 * sequences * (length if queries is None else queries) * length * width


def layer_flops(
  sequences: int, length: int, width: int, mlp_size: int, queries: int | None = None
) -> int:
  """A transformer layer: keys and values of all tokens, the rest of `queries`."""
  made = length if queries is None else queries
  products = 2 * width * (2 * length * width + made * (2 * width + 2 * mlp_size))
  return sequences * products + attention_flops(sequences, length, width, queries)
