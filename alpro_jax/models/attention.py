"""Scaled dot-product attention, by the kernel that suits device and length."""

import itertools
import math
from collections.abc import Callable, Sequence

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
    raise ValueError(f'config.model.attention_impl={name!r} is unknown; choose one of {KERNELS}.')
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
  dropout: Callable[..., tuple[jax.Array, jax.Array]] | None = None,
) -> jax.Array:
  """Returns the values of each sequence, weighted by softmax(q k / sqrt(K)).

  Args:
    query: f[..., Q, A, K], at least one axis before Q.
    key: f[..., L, A, K].
    value: f[..., L, A, K].
    mask: bool[..., L], True on the tokens that may be attended to.
    kernel: 'xla' multiplies matrices; 'elementwise' does so but for short
      sequences, see `_attend_elementwise`; 'cudnn' keeps no scores of long
      sequences where type and shape allow it, and is 'elementwise' elsewhere.
      Fewer queries than keys have few scores: 'xla', whatever is asked for.
    dropout: of the weights: shape -> which are kept, and the share that is. No
      kernel has it, so that scores are then formed.
  Returns:
    f[..., Q, A, K]. Scores and softmax are float32.
  """
  if dropout is not None:
    return _attend_with_dropout(query, key, value, mask, dropout)
  if query.shape != key.shape:
    kernel = 'xla'
  if kernel != 'xla' and mask is None and key.shape[-3] <= SHORT:
    return _attend_elementwise(query, key, value)
  if kernel == 'cudnn' and fits_cudnn(query):
    return attend_cudnn(query, key, value, mask)

  def run(query, key, value, mask):
    mask = None if mask is None else mask[:, None, None, :]
    return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation='xla')

  for _ in range(query.ndim - 4):
    run = jax.vmap(run)
  return run(query, key, value, mask)


def attend_by_type(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: jax.Array | None,
  query_tokens: Sequence[int],
  attend: Callable[..., jax.Array],
) -> jax.Array:
  """Attends within each of T sequences that a row consists of.

      query_tokens=(3, 1):  the first 3 tokens of type 0, then one of type 1

  Args:
    query: f[B, sum(query_tokens), A, K], one type after the other.
    key: f[B, T, L, A, K].
    value: f[B, T, L, A, K].
    mask: bool[B, T, L] or None.
    query_tokens: T numbers of queries.
    attend: (query, key, value, mask, index of the type) -> as query.
  Returns:
    f[B, sum(query_tokens), A, K].
  """
  ends = list(itertools.accumulate(query_tokens))[:-1]
  out = [
    attend(part, key[:, i], value[:, i], None if mask is None else mask[:, i], i)
    for i, part in enumerate(jnp.split(query, ends, axis=1))
  ]
  return jnp.concatenate(out, axis=1)


def scores(query: jax.Array, key: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Arguments of `attend` -> float32[..., A, Q, L], before the softmax."""
  products = jnp.einsum(
    '...qak,...lak->...aql',
    query * query.shape[-1] ** -0.5,
    key,
    preferred_element_type=jnp.float32,
  )
  if mask is None:
    return products
  return jnp.where(mask[..., None, None, :], products, MASKED)


def drop(weights: jax.Array, kept: jax.Array, share: jax.Array) -> jax.Array:
  """Zeroes weights that are not kept, and scales the others by 1 / share."""
  zero = jnp.zeros((), weights.dtype)
  return jnp.where(kept, weights / share.astype(weights.dtype), zero)


def _attend_with_dropout(query, key, value, mask, dropout):
  weights = jax.nn.softmax(scores(query, key, mask)).astype(value.dtype)
  weights = drop(weights, *dropout(weights.shape))
  return jnp.einsum('...aql,...lak->...qak', weights, value)


def _attend_elementwise(query, key, value):
  """Attention over a few tokens by products and sums of numbers.

  As products of matrices, four tokens fill 4 of a matrix unit's 128 rows, and
  their 4 x 4 scores are padded to tiles of 8 x 128 in memory. Products and
  sums are fused with what is around them: for a TPU v5e the compiled layer
  moves a third of the bytes. On a CPU, which has neither, it is slower.
  """
  query, key, wide = (x.astype(jnp.float32) for x in (query, key, value))
  products = query[..., :, None, :, :] * key[..., None, :, :, :]
  products = jnp.sum(products, axis=-1, keepdims=True)
  weights = jax.nn.softmax(products * query.shape[-1] ** -0.5, axis=-3)
  # Of [..., L, L, A, 1].
  out = jnp.sum(weights * wide[..., None, :, :, :], axis=-3)
  return out.astype(value.dtype)


def fits_cudnn(query: jax.Array) -> bool:
  """Tells whether cuDNN's kernel takes f[..., Q, A, K] of this type and K."""
  size = query.shape[-1]
  return query.dtype in (jnp.bfloat16, jnp.float16) and size % 8 == 0 and size <= 128


def attend_cudnn(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: jax.Array | None,
  length: int | None = None,
  implementation: str = 'cudnn',
) -> jax.Array:
  """As `attend`; keeps no scores.

  Args:
    query: f[..., L, A, K].
    key: f[..., L, A, K].
    value: f[..., L, A, K].
    mask: see `attend`.
    length: without a mask, how many tokens are attended to; None is L.
    implementation: see jax.nn.dot_product_attention.
  """
  *lead, size, _, _ = query.shape
  count = math.prod(lead)
  length = length or size
  # The kernel's gradient wants an even length.
  odd = size % 2

  def flat(x, axis):
    x = x.reshape(count, *x.shape[len(lead) :])
    pads = [(0, odd) if i == axis else (0, 0) for i in range(x.ndim)]
    return jnp.pad(x, pads) if odd else x

  lengths = None
  if mask is not None:
    # cuDNN takes no mask that is one for all queries.
    mask = jnp.broadcast_to(flat(mask, 1)[:, None, None], (count, 1, size + odd, size + odd))
  elif length < size + odd:
    lengths = jnp.full(count, length, jnp.int32)
  out = jax.nn.dot_product_attention(
    *(flat(x, 1) for x in (query, key, value)),
    mask=mask,
    key_value_seq_lengths=lengths,
    implementation=implementation,
  )
  return out[:, :size].reshape(query.shape)
