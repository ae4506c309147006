"""Attention with dropout that stores no scores: a kernel for NVIDIA's GPUs.

Which weights are kept is drawn outside, from the key and the position, as the
plain form draws it: so the same on any number of devices and after a restart.
The kernel is that of Dao et al., FlashAttention-2 (2023), with the weights dropped
between the softmax and the values.

On an H200 it saves memory, not time (docs/performance.md), so that only
`model.attention_impl='pallas'` chooses it. JAX has deprecated its compiler, Triton's.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import PartitionSpec as P

from alpro_jax import sharding
from alpro_jax.models.attention import MASKED

BLOCK = 64  # Queries, and keys, that a program holds at once.
WARPS = 4


def fits(dtype: jnp.dtype, size: int) -> bool:
  """Tells whether the kernel takes as many queries as keys, f[..., L, A, size]."""
  return dtype in (jnp.bfloat16, jnp.float16) and 16 <= size <= 128 and size & (size - 1) == 0


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: jax.Array | None,
  kept: jax.Array,
  share: jax.Array,
  *,
  mesh: jax.sharding.Mesh | None = None,
  interpret: bool = False,
) -> jax.Array:
  """Returns the values, weighted by softmax(q k / sqrt(K)) where kept.

  Args:
    query, key, value: f[..., L, A, K], at least one axis before L.
    mask: bool[..., L], True on the tokens that may be attended to; None is all.
    kept: bool[..., A, L, L], False where a weight is dropped.
    share: float32[], of weights that are kept; the others are divided by it.
    mesh: of the devices that the first axis is sharded over, and the heads over
      its axis `tensor`; each computes its own.
    interpret: run without a GPU, slowly.
  Returns:
    f[..., L, A, K]. Scores and softmax are float32.
  """
  if mask is None:
    mask = jnp.ones(query.shape[:-2], bool)
  run = functools.partial(_attend_locally, interpret=interpret)
  arguments = query, key, value, mask.astype(jnp.int8), kept.astype(jnp.int8), share
  if mesh is None or mesh.size == 1:
    return run(*arguments)
  between = (None,) * (query.ndim - 4)
  tokens = P(sharding.BATCH_AXES, *between, None, 'tensor', None)
  weights = P(sharding.BATCH_AXES, *between, 'tensor', None, None)
  specs = tokens, tokens, tokens, P(sharding.BATCH_AXES, *between, None), weights, P()
  # The kernel does not tell over which axes of the mesh its output varies.
  return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=tokens, check_vma=False)(
    *arguments
  )


def _attend_locally(query, key, value, mask, kept, share, *, interpret):
  *lead, length, heads, size = query.shape
  flat = [x.reshape(-1, length, heads, size) for x in (query, key, value)]
  mask, kept = mask.reshape(-1, length), kept.reshape(-1, heads, length, length)
  return _attend(*flat, mask, kept, share[None], interpret).reshape(*lead, length, heads, size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attend(query, key, value, mask, kept, share, interpret):
  return _forward(query, key, value, mask, kept, share, interpret)[0]


def _forward(query, key, value, mask, kept, share, interpret):
  n, length, heads, _ = query.shape
  tokens, flags, weights, numbers = _specs(query.shape)
  number = jax.ShapeDtypeStruct((n, heads, length), jnp.float32)
  out, top, total = pl.pallas_call(
    functools.partial(_forward_kernel, length=length),
    grid=(n, heads, pl.cdiv(length, BLOCK)),
    in_specs=[tokens, tokens, tokens, flags, weights, _one()],
    out_specs=[tokens, numbers, numbers],
    out_shape=[jax.ShapeDtypeStruct(query.shape, query.dtype), number, number],
    compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=2),
    interpret=interpret,
    name='attend_with_dropout',
  )(query, key, value, mask, kept, share)
  return out, (query, key, value, mask, kept, share, out, top, total)


def _backward(interpret, residuals, of_out):
  query, key, value, mask, kept, share, out, top, total = residuals
  n, length, heads, _ = query.shape
  tokens, flags, weights, numbers = _specs(query.shape)
  # Softmax's own part of its gradient, the sum over l of weights * their gradients,
  # is that over k of out * its gradient.
  common = jnp.sum(out.astype(jnp.float32) * of_out.astype(jnp.float32), axis=-1)
  common = jnp.swapaxes(common, 1, 2)
  like = [jax.ShapeDtypeStruct(query.shape, query.dtype)] * 3
  gradients = pl.pallas_call(
    functools.partial(_backward_kernel, length=length),
    grid=(n, heads, pl.cdiv(length, BLOCK)),
    in_specs=[tokens, tokens, tokens, flags, weights, _one(), tokens, numbers, numbers, numbers],
    out_specs=[tokens] * 3,
    out_shape=like,
    compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=2),
    interpret=interpret,
    name='attend_with_dropout_gradient',
  )(query, key, value, mask, kept, share, of_out, top, total, common)
  return *gradients, None, None, None


_attend.defvjp(_forward, _backward)


def _one():
  return pl.BlockSpec((1,), lambda n, a, i: (0,))


def _specs(shape):
  """A sequence and a head for each program: tokens, mask, weights, a number each."""
  _, length, _, size = shape
  return (
    pl.BlockSpec((None, length, None, size), lambda n, a, i: (n, 0, a, 0)),
    pl.BlockSpec((None, length), lambda n, a, i: (n, 0)),
    pl.BlockSpec((None, None, length, length), lambda n, a, i: (n, a, 0, 0)),
    pl.BlockSpec((None, None, length), lambda n, a, i: (n, a, 0)),
  )


def _places(block, length):
  """A block of tokens, and which of them there are."""
  return pl.ds(block * BLOCK, BLOCK), block * BLOCK + jnp.arange(BLOCK) < length


def _tokens(ref, places, inside):
  return triton.load(ref.at[places, :], mask=inside[:, None], other=0)


def _scores(query, key, mask_ref, columns, there):
  """float32[BLOCK, BLOCK]; -1e9 where masked, minus infinity where there is no key."""
  scale = query.shape[-1] ** -0.5
  scores = triton.dot(query, key, trans_b=True) * scale
  seen = triton.load(mask_ref.at[columns], mask=there, other=0)
  scores = jnp.where((seen != 0)[None, :], scores, MASKED)
  return jnp.where(there[None, :], scores, -jnp.inf)


def _drop(weights, kept_ref, rows, inside, columns, there):
  kept = triton.load(kept_ref.at[rows, columns], mask=inside[:, None] & there[None, :], other=0)
  return jnp.where(kept != 0, weights, 0.0)


def _forward_kernel(
  query_ref,
  key_ref,
  value_ref,
  mask_ref,
  kept_ref,
  share_ref,
  out_ref,
  top_ref,
  total_ref,
  *,
  length,
):
  rows, inside = _places(pl.program_id(2), length)
  query = _tokens(query_ref, rows, inside)

  def add(j, carry):
    total, top, out = carry
    columns, there = _places(j, length)
    scores = _scores(query, _tokens(key_ref, columns, there), mask_ref, columns, there)
    higher = jnp.maximum(top, jnp.max(scores, axis=-1))
    weights = jnp.exp(scores - higher[:, None])
    rescale = jnp.exp(top - higher)
    total = total * rescale + jnp.sum(weights, axis=-1)
    value = _tokens(value_ref, columns, there)
    dropped = _drop(weights, kept_ref, rows, inside, columns, there).astype(value.dtype)
    return total, higher, out * rescale[:, None] + triton.dot(dropped, value)

  zeros = jnp.zeros((BLOCK,), jnp.float32)
  start = zeros, zeros - jnp.inf, jnp.zeros(query.shape, jnp.float32)
  total, top, out = jax.lax.fori_loop(0, pl.cdiv(length, BLOCK), add, start)
  out = out / (total * share_ref[0])[:, None]
  triton.store(out_ref.at[rows, :], out.astype(out_ref.dtype), mask=inside[:, None])
  triton.store(top_ref.at[rows], top, mask=inside)
  triton.store(total_ref.at[rows], total, mask=inside)


def _backward_kernel(
  query_ref,
  key_ref,
  value_ref,
  mask_ref,
  kept_ref,
  share_ref,
  of_out_ref,
  top_ref,
  total_ref,
  common_ref,
  of_query_ref,
  of_key_ref,
  of_value_ref,
  *,
  length,
):
  """A program makes the gradients of a block of keys, then of a block of queries."""
  blocks, share = pl.cdiv(length, BLOCK), share_ref[0]

  def meet(rows, inside, query, of_out, columns, there, key, value):
    """Returns the dropped weights and the gradients of the scores."""
    scores = _scores(query, key, mask_ref, columns, there)
    top = triton.load(top_ref.at[rows], mask=inside, other=0)
    total = triton.load(total_ref.at[rows], mask=inside, other=1)
    common = triton.load(common_ref.at[rows], mask=inside, other=0)
    weights = jnp.exp(scores - top[:, None]) / total[:, None]
    dropped = _drop(weights, kept_ref, rows, inside, columns, there) / share
    of_dropped = triton.dot(of_out, value, trans_b=True)
    of_scores = dropped * of_dropped - weights * common[:, None]
    return dropped, jnp.where(scores > MASKED, of_scores, 0.0)

  here, exists = _places(pl.program_id(2), length)
  key, value = _tokens(key_ref, here, exists), _tokens(value_ref, here, exists)

  def add_of_keys(j, carry):
    of_key, of_value = carry
    rows, inside = _places(j, length)
    query, of_out = _tokens(query_ref, rows, inside), _tokens(of_out_ref, rows, inside)
    dropped, of_scores = meet(rows, inside, query, of_out, here, exists, key, value)
    of_value += triton.dot(dropped.astype(of_out.dtype), of_out, trans_a=True)
    of_key += triton.dot(of_scores.astype(query.dtype), query, trans_a=True)
    return of_key, of_value

  zeros, scale = jnp.zeros(key.shape, jnp.float32), key.shape[-1] ** -0.5
  of_key, of_value = jax.lax.fori_loop(0, blocks, add_of_keys, (zeros, zeros))
  of_key *= scale
  triton.store(of_key_ref.at[here, :], of_key.astype(of_key_ref.dtype), mask=exists[:, None])
  triton.store(of_value_ref.at[here, :], of_value.astype(of_value_ref.dtype), mask=exists[:, None])

  query, of_out = _tokens(query_ref, here, exists), _tokens(of_out_ref, here, exists)

  def add_of_queries(j, of_query):
    columns, there = _places(j, length)
    key, value = _tokens(key_ref, columns, there), _tokens(value_ref, columns, there)
    _, of_scores = meet(here, exists, query, of_out, columns, there, key, value)
    return of_query + triton.dot(of_scores.astype(key.dtype), key)

  of_query = scale * jax.lax.fori_loop(0, blocks, add_of_queries, zeros)
  triton.store(of_query_ref.at[here, :], of_query.astype(of_query_ref.dtype), mask=exists[:, None])
