"""Products of bfloat16 matrices on a CPU, in the only form that XLA hands to a fast library.

Processors with AVX512_BF16 or AMX multiply bfloat16 twice as fast as float32. XLA lets them
where rows of the left side meet columns of the right one, both as they lie in memory; with
jax 0.10 where the result is float32, too. Other forms, such as the gradients of a layer,
take as long as float32 or longer (docs/performance.md).
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint


def dot_general(
  x: jax.Array,
  kernel: jax.Array,
  dimension_numbers: tuple,
  precision: jax.lax.PrecisionLike = None,
  preferred_element_type: jnp.dtype | None = None,
) -> jax.Array:
  """Stands in for lax.dot_general in a Dense; products are summed up in float32.

  Args:
    x: bfloat16[..., K].
    kernel: bfloat16[K, N].
    dimension_numbers: of a Dense: the last axis of x meets the first of the kernel.
    precision: has no meaning for bfloat16.
    preferred_element_type: None, for bfloat16.
  Returns:
    bfloat16[..., N].
  """
  del precision
  axis = x.ndim - 1
  if dimension_numbers != (((axis,), (0,)), ((), ())) or preferred_element_type:
    raise ValueError(f'{dimension_numbers=}, {preferred_element_type=}: not those of a Dense.')
  rows = x.reshape(math.prod(x.shape[:axis]), x.shape[axis])
  return _product(rows, kernel).reshape(*x.shape[:axis], kernel.shape[1])


@jax.custom_vjp
def _product(x, kernel):
  """[M, K] and [K, N] -> [M, N]."""
  return jnp.dot(x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)


def _forward(x, kernel):
  return _product(x, kernel), (x, kernel)


def _backward(saved, cotangent):
  x, kernel = saved
  return _product(cotangent, _turned(kernel)), _product(_turned(x), cotangent)


def _turned(x):
  """[M, K] -> [K, M], copied: else its columns would be read as rows."""
  return with_layout_constraint(x.T, Layout((0, 1)))


_product.defvjp(_forward, _backward)
