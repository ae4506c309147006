"""Scaled dot-product attention, by the kernel that suits device and length."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

KERNELS = ('auto', 'xla', 'elementwise', 'cudnn')
# Stands in for minus infinity where a whole row may be masked.
MASKED = -1e9
# Sequences up to this length need no matrix unit.
SHORT = 16


def choose_kernel(name: str, device: jax.Device) -> str:
  """Returns what 'auto' means on a device; other names stay.

  Raises:
    ValueError: for an unknown name.
  """
  if name not in KERNELS:
    raise ValueError(
        f'config.model.attention_impl={name!r} is unknown; choose one of '
        f'{KERNELS}.'
    )
  if name != 'auto':
    return name
  if 'nvidia' in device.device_kind.lower():
    return 'cudnn'
  return 'elementwise' if device.platform == 'tpu' else 'xla'


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    *,
    kernel: str,
    dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
  """Returns the values of each sequence, weighted by softmax(q k / sqrt(K)).

  Args:
    query: f[..., L, A, K], at least one axis before L.
    key: f[..., L, A, K].
    value: f[..., L, A, K].
    mask: bool[..., L], True on the tokens that may be attended to.
    kernel: 'xla' multiplies matrices; 'elementwise' does so but for short
      sequences, see `_attend_elementwise`; 'cudnn' keeps no scores of long
      sequences where type and shape allow it, and is 'elementwise' elsewhere.
    dropout: of the weights f[..., A, L, L]; no kernel has it, so that scores
      are then formed.
  Returns:
    f[..., L, A, K]. Scores and softmax are float32.
  """
  if dropout is not None:
    return _attend_with_dropout(query, key, value, mask, dropout)
  if kernel != 'xla' and mask is None and query.shape[-3] <= SHORT:
    return _attend_elementwise(query, key, value)
  if kernel == 'cudnn' and _fits_cudnn(query):
    return _attend_even(query, key, value, mask, 'cudnn')

  def run(query, key, value, mask):
    mask = None if mask is None else mask[:, None, None, :]
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, implementation='xla'
    )

  for _ in range(query.ndim - 4):
    run = jax.vmap(run)
  return run(query, key, value, mask)


def _attend_even(query, key, value, mask, implementation):
  """Attention over an even length, as cuDNN's gradient wants it.

  An odd sequence, such as a class token and 14 x 14 patches, gets one more
  token, which is attended to by none.
  """
  *lead, length, _, _ = query.shape
  count, odd = math.prod(lead), length % 2

  def even(x, *axes):
    x = x.reshape(count, *axes, length, *x.shape[len(lead) + 1 :])
    pads = [(0, 0)] * x.ndim
    pads[1 + len(axes)] = (0, odd)
    return jnp.pad(x, pads)

  lengths = None
  if mask is not None:
    size = length + odd  # cuDNN takes no mask that is one for all queries.
    mask = jnp.broadcast_to(even(mask, 1, 1), (count, 1, size, size))
  elif odd:
    lengths = jnp.full(count, length, jnp.int32)
  out = jax.nn.dot_product_attention(
      *(even(x) for x in (query, key, value)), mask=mask,
      key_value_seq_lengths=lengths, implementation=implementation,
  )
  return out[:, :length].reshape(query.shape)


def _attend_elementwise(query, key, value):
  """Attention over a few tokens by products and sums of numbers.

  As products of matrices, four tokens fill 4 of a matrix unit's 128 rows, and
  their 4 x 4 scores are padded to tiles of 8 x 128 in memory. Products and
  sums are fused with what is around them: for a TPU v5e the compiled layer
  moves a third of the bytes. On a CPU, which has neither, it is slower.
  """
  query, key, wide = (x.astype(jnp.float32) for x in (query, key, value))
  scores = query[..., :, None, :, :] * key[..., None, :, :, :]
  scores = jnp.sum(scores, axis=-1, keepdims=True) * query.shape[-1] ** -0.5
  weights = jax.nn.softmax(scores, axis=-3)  # [..., L, L, A, 1]
  out = jnp.sum(weights * wide[..., None, :, :, :], axis=-3)
  return out.astype(value.dtype)


def _fits_cudnn(query):
  size = query.shape[-1]
  return (
      query.dtype in (jnp.bfloat16, jnp.float16)
      and size % 8 == 0
      and size <= 128
  )


def _attend_with_dropout(query, key, value, mask, dropout):
  query = query * query.shape[-1] ** -0.5
  scores = jnp.einsum(
      '...qak,...lak->...aql', query, key, preferred_element_type=jnp.float32
  )
  if mask is not None:
    scores = jnp.where(mask[..., None, None, :], scores, MASKED)
  weights = dropout(jax.nn.softmax(scores).astype(value.dtype))
  return jnp.einsum('...aql,...lak->...qak', weights, value)
