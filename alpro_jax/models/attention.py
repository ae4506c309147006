"""Scaled dot-product attention, by the kernel that suits device and length."""

import jax
import jax.numpy as jnp

from alpro_jax.models.dropout import draw_kept, scale_kept

KERNELS = ('auto', 'xla', 'elementwise', 'cudnn', 'pallas')
# Those that leave long sequences without dropout to cuDNN.
BY_CUDNN = ('cudnn', 'pallas')
# Stands in for minus infinity where a whole row may be masked.
MASKED = -1e9
# Sequences up to this length need no matrix unit.
SHORT = 16


def choose_kernel(name: str, device: jax.Device) -> str:
  """Returns what 'auto' means on a device; other names stay."""
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
  rate: float = 0.0,
  rng: jax.Array | None = None,
  causal: bool = False,
) -> jax.Array:
  """Returns the values of each sequence, weighted by softmax(q k / sqrt(K)).

  Args:
    query: f[..., Q, A, K], at least one axis before Q.
    key: f[..., L, A, K].
    value: f[..., L, A, K].
    mask: bool[..., L], True on the tokens that may be attended to.
    kernel: 'xla' multiplies matrices; 'elementwise' does so but for short
      sequences, see `_attend_elementwise`; 'cudnn' keeps no scores of long
      sequences where type and shape allow it, and is 'elementwise' elsewhere;
      'pallas' is 'cudnn', but in fused.py has a kernel with dropout too.
      Other queries than keys are few and have few scores: always 'xla'.
    rate: of dropout of the weights, which no kernel here has.
    rng: key of dropout; None in evaluation.
    causal: each token attends to itself and to those before it; by 'xla', without dropout.
  Returns:
    f[..., Q, A, K]. Scores and softmax are float32.
  """
  if rate and rng is not None:
    weights = jax.nn.softmax(scores(query, key, mask)).astype(value.dtype)
    weights = scale_kept(weights, *draw_kept(rng, rate, weights.shape))
    return jnp.einsum('...aql,...lak->...qak', weights, value)
  if kernel != 'xla' and query.shape == key.shape and not causal:
    if mask is None and key.shape[-3] <= SHORT:
      return _attend_elementwise(query, key, value)
    if kernel in BY_CUDNN and fits_cudnn(query):
      return attend_cudnn(query, key, value, mask)

  def run(query, key, value, mask):
    mask = None if mask is None else mask[:, None, None, :]
    return jax.nn.dot_product_attention(
      query, key, value, mask=mask, is_causal=causal, implementation='xla'
    )

  for _ in range(query.ndim - 4):
    run = jax.vmap(run)
  return run(query, key, value, mask)


def scores(query: jax.Array, key: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Arguments of `attend` -> float32[..., A, Q, L], before the softmax."""
  query = query * query.shape[-1] ** -0.5
  products = jnp.einsum('...qak,...lak->...aql', query, key, preferred_element_type=jnp.float32)
  return products if mask is None else jnp.where(mask[..., None, None, :], products, MASKED)


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
  weights = jax.nn.softmax(products * query.shape[-1] ** -0.5, axis=-3)  # [..., L, L, A, 1].
  return jnp.sum(weights * wide[..., None, :, :, :], axis=-3).astype(value.dtype)


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
  """As `attend` with as many queries as keys; keeps no scores.

  Without a mask `length` first tokens are attended to; None is all. For
  `implementation` see jax.nn.dot_product_attention.
  """
  *lead, size, _, _ = query.shape
  even = size + size % 2  # As the kernel's gradient wants it.

  def flatten(x):
    x = x.reshape(-1, *x.shape[len(lead) :])
    return jnp.pad(x, [(0, 0), (0, even - size)] + [(0, 0)] * (x.ndim - 2))

  query, key, value = (flatten(x) for x in (query, key, value))
  lengths = None
  if mask is not None:
    # cuDNN takes no mask that is one for all queries.
    mask = jnp.broadcast_to(flatten(mask)[:, None, None], (len(query), 1, even, even))
  elif (length or size) < even:
    lengths = jnp.full(len(query), length or size, jnp.int32)
  out = jax.nn.dot_product_attention(
    query, key, value, mask=mask, key_value_seq_lengths=lengths, implementation=implementation
  )
  return out[:, :size].reshape(*lead, size, *out.shape[2:])
