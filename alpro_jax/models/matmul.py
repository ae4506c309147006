"""A Dense of bfloat16 for CPUs: its products in the form that XLA has a fast library for.

Processors with AVX512_BF16 or AMX multiply bfloat16 twice as fast as float32. XLA lets them
where rows of the left side meet columns of the right one, both as they lie in memory, and,
with jax 0.10, where the result is float32. Other forms, such as the gradients of a Dense,
take as long as float32 or longer (docs/performance.md).
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental.layout import Layout, with_layout_constraint


class Dense(nn.Dense):
  """nn.Dense, with a bias, that sums up in float32, gradients too, and rounds once."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., K] -> [..., N]."""
    kernel = self.param('kernel', self.kernel_init, (x.shape[-1], self.features))
    bias = self.param('bias', self.bias_init, (self.features,))
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).astype(self.dtype)
    out = _affine(rows, kernel, bias)
    return out.reshape(*x.shape[:-1], self.features)


def _multiply(x, y):
  return jnp.dot(x, y, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _affine(x, kernel, bias):
  """bfloat16[M, K], float32[K, N] and float32[N] -> bfloat16[M, N]."""
  return _forward(x, kernel, bias)[0]


def _forward(x, kernel, bias):
  kernel = kernel.astype(x.dtype)
  return (_multiply(x, kernel) + bias).astype(x.dtype), (x, kernel)


def _backward(saved, cotangent):
  x, kernel = saved
  of_x = _multiply(cotangent, _turned(kernel)).astype(x.dtype)
  of_kernel = _multiply(_turned(x), cotangent)
  # As a sum of bfloat16, XLA would round each of its pieces to bfloat16.
  of_bias = _multiply(jnp.ones((1, len(x)), x.dtype), cotangent)[0]
  return of_x, of_kernel, of_bias


def _turned(x):
  """[M, K] -> [K, M], copied: else its columns would be read as rows."""
  return with_layout_constraint(x.T, Layout((0, 1)))


_affine.defvjp(_forward, _backward)
