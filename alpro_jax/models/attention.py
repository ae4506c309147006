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


def padded_length(length: int, kernel: str, *, dropout: bool) -> int:
  """Returns the tokens to attend with, so that no kernel pads by itself.

  What is padded before the projections costs next to nothing. Padded later it
  is a copy each of query, key and value, or of all scores: XLA's GPU compiler
  brings every side of a 16-bit product to a multiple of 8. cuDNN's gradient
  wants an even length.
  """
  if kernel != 'cudnn' or length <= SHORT:
    return length
  multiple = 8 if dropout else 2
  return -(-length // multiple) * multiple


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    *,
    kernel: str,
    length: int | None = None,
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
    length: of the sequence without padding, which no token attends to; None
      is L.
    dropout: of the weights: shape -> which are kept, and the share that is. No
      kernel has it, so that scores are then formed.
  Returns:
    f[..., Q, A, K]. Scores and softmax are float32.
  """
  size = key.shape[-3]
  if length == size:
    length = None
  if query.shape[-3] != size:
    kernel = 'xla'
  fused = kernel == 'cudnn' and dropout is None and _fits_cudnn(query)
  fused = fused and (mask is not None or size > SHORT)
  if fused and mask is None:
    return _attend_cudnn(query, key, value, None, length)
  if length is not None:
    real = jnp.arange(size) < length
    mask = real if mask is None else mask & real
    mask = jnp.broadcast_to(mask, key.shape[:-2])
  if fused:
    return _attend_cudnn(query, key, value, mask, None)
  if dropout is not None:
    *lead, queries, heads, _ = query.shape
    kept, share = dropout((*lead, heads, queries, size))
    return _attend_with_dropout(query, key, value, mask, kept, share)
  if kernel != 'xla' and mask is None and size <= SHORT:
    return _attend_elementwise(query, key, value)

  def run(query, key, value, mask):
    mask = None if mask is None else mask[:, None, None, :]
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, implementation='xla'
    )

  for _ in range(query.ndim - 4):
    run = jax.vmap(run)
  return run(query, key, value, mask)


def _attend_cudnn(query, key, value, mask, length, implementation='cudnn'):
  """Attention that keeps no scores; L must be even if it is to be trained.

  With a mask, or with the length before the padding, or with neither.
  """
  *lead, size, _, _ = query.shape
  count = math.prod(lead)

  def flat(x):
    return x.reshape(count, *x.shape[len(lead) :])

  lengths = None
  if mask is not None:
    # cuDNN takes no mask that is one for all queries.
    mask = jnp.broadcast_to(
        flat(mask)[:, None, None], (count, 1, size, size)
    )
  elif length is not None:
    lengths = jnp.full(count, length, jnp.int32)
  out = jax.nn.dot_product_attention(
      *(flat(x) for x in (query, key, value)), mask=mask,
      key_value_seq_lengths=lengths, implementation=implementation,
  )
  return out.reshape(query.shape)


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


@jax.custom_vjp
def _attend_with_dropout(query, key, value, mask, kept, share):
  """Attention whose weights f[..., A, Q, L] are dropped where not `kept`.

  The backward pass is written by hand for what it moves, since scores are the
  largest arrays of a layer: it reads the weights once, in the compute type, and
  never forms the float32 gradients of softmax and dropout.
  """
  return _dropout_forward(query, key, value, mask, kept, share)[0]


def _dropout_forward(query, key, value, mask, kept, share):
  scores = jnp.einsum(
      '...qak,...lak->...aql', _scaled(query), key,
      preferred_element_type=jnp.float32,
  )
  if mask is not None:
    scores = jnp.where(mask[..., None, None, :], scores, MASKED)
  # The barrier keeps XLA from storing scores, twice as wide, and taking their
  # softmax again in the backward pass.
  weights = jax.lax.optimization_barrier(
      jax.nn.softmax(scores).astype(value.dtype)
  )
  dropped = _dropped(weights, kept, share)
  out = jnp.einsum('...aql,...lak->...qak', dropped, value)
  return out, (query, key, value, kept, share, weights, out)


def _dropout_backward(residuals, of_out):
  query, key, value, kept, share, weights, out = residuals
  dropped = _dropped(weights, kept, share)
  of_value = jnp.einsum('...aql,...qak->...lak', dropped, of_out)
  of_dropped = jnp.einsum('...qak,...lak->...aql', of_out, value)
  # Softmax's own part, the sum over l of dropped * of_dropped, is that over k
  # of out * of_out (Dao et al., FlashAttention, 2022, appendix B).
  common = jnp.sum(
      out.astype(jnp.float32) * of_out.astype(jnp.float32), axis=-1
  )
  common = jnp.swapaxes(common, -1, -2)[..., None]
  of_scores = dropped.astype(jnp.float32) * of_dropped.astype(jnp.float32)
  of_scores -= weights.astype(jnp.float32) * common
  of_scores = of_scores.astype(query.dtype)
  of_query = _scaled(jnp.einsum('...aql,...lak->...qak', of_scores, key))
  of_key = jnp.einsum('...aql,...qak->...lak', of_scores, _scaled(query))
  return of_query, of_key, of_value, None, None, None


_attend_with_dropout.defvjp(_dropout_forward, _dropout_backward)


def _scaled(query):
  return query * query.shape[-1] ** -0.5


def _dropped(weights, kept, share):
  zero = jnp.zeros((), weights.dtype)
  return jnp.where(kept, weights / share.astype(weights.dtype), zero)
