"""Attention, MLP and drop path: the pieces both encoders are made of."""

import math
from collections.abc import Callable

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn

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

# Stands in for minus infinity where a whole row may be masked.
MASKED = -1e9


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


def layer_norm(
    epsilon: float, dtype: jnp.dtype, name: str | None = None
) -> nn.LayerNorm:
  """LayerNorm as PyTorch computes it: exact variance, in float32."""
  return nn.LayerNorm(
      epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name
  )


class DropPath(nn.Module):
  """Drops whole sequences: one draw per entry of all but the last two axes."""

  rate: float

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    if not train or self.rate == 0.0:
      return x
    keep = 1.0 - self.rate
    shape = x.shape[:-2] + (1, 1)
    kept = jax.random.bernoulli(self.make_rng('dropout'), keep, shape)
    return x * (kept / keep).astype(x.dtype)


class Attention(nn.Module):
  """Self attention over axis -2.

  Attributes:
    heads: number of heads A; must divide the width.
    dtype: compute type; scores and softmax stay float32.
    kernel_init: for all four matrices.
    dropout: on the attention probabilities, when training.
  """

  heads: int
  dtype: jnp.dtype
  kernel_init: Initializer
  dropout: float = 0.0

  @nn.compact
  def __call__(
      self, x: jax.Array, mask: jax.Array | None = None, *, train: bool
  ) -> jax.Array:
    """Attends.

    Args:
      x: f[..., L, D].
      mask: bool[..., L], True on the tokens that may be attended to.
      train: whether dropout acts.
    Returns:
      f[..., L, D].
    """
    width = x.shape[-1]
    if width % self.heads:
      raise ValueError(f'{self.heads=} must divide {width=}.')

    def project(name):
      y = dense(
          width, ('embed', 'heads'), name=name, dtype=self.dtype,
          kernel_init=self.kernel_init,
      )(x)
      return einops.rearrange(y, '... l (a k) -> ... l a k', a=self.heads)

    query, key, value = project('query'), project('key'), project('value')
    query = query * (width // self.heads) ** -0.5
    scores = jnp.einsum(
        '...qak,...lak->...aql', query, key,
        preferred_element_type=jnp.float32,
    )
    if mask is not None:
      scores = jnp.where(mask[..., None, None, :], scores, MASKED)
    weights = jax.nn.softmax(scores).astype(self.dtype)
    weights = nn.Dropout(self.dropout)(weights, deterministic=not train)
    out = jnp.einsum('...aql,...lak->...qak', weights, value)
    out = einops.rearrange(out, '... l a k -> ... l (a k)')
    return dense(
        width, ('heads', 'embed'), name='out', dtype=self.dtype,
        kernel_init=self.kernel_init,
    )(out)


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
    hidden = jax.nn.gelu(hidden, approximate=False)
    return dense(
        width, ('mlp', 'embed'), name='fc2', dtype=self.dtype,
        kernel_init=self.kernel_init,
    )(hidden)
