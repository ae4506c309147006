"""What is computed from the similarities of all pairs of a batch, in chunks.

Each device has its rows, meets all columns chunk by chunk, and keeps a few
numbers for each row: memory grows with the batch, not with its square. What is
sent is the features, once, and one number for each row.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alpro_jax import sharding

# Below any score, and finite: the difference of two is a number.
_LOWEST = -1e30


class Features(NamedTuple):
  """Row i of one belongs to row i of the other.

  Attributes:
    video: float32[B, E], unit length.
    text: float32[B, E], unit length.
  """

  video: jax.Array
  text: jax.Array


def similarity(
  video_feature: jax.Array, text_feature: jax.Array, temperature: jax.Array
) -> jax.Array:
  """float32[Bv, E], float32[Bt, E] -> float32[Bv, Bt], videos in rows."""
  return (
    jnp.einsum('ve,te->vt', video_feature, text_feature, precision=jax.lax.Precision.HIGHEST)
    / temperature
  )


def vtc(
  features: Features,
  temperature: jax.Array,
  ids: jax.Array | None = None,
  *,
  chunk: int = 0,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array]]:
  """Video-text contrastive loss: each video must find its text, and back.

  Args:
    features: of B pairs.
    temperature: float32[].
    ids: int32[B, I]. Pairs of rows that agree in one of the I are no negatives
      of each other: they leave both denominators. With captions
      a b a:   1 0 1          the diagonal always stays,
               0 1 0   and    pairs (0, 2) and (2, 0) are left out.
               1 0 1
    chunk: columns met at a time; 0 is all.
    mesh: of the devices that the rows are cut over.
  Returns:
    Sum over the B pairs of the two directions' mean; B; and the shares of
    videos that find their text and of texts that find their video.
  """
  rows = features.video.shape[0]
  if ids is None:
    ids = jnp.arange(rows)[:, None]
  total, right = _vtc(_chunk_size(rows, chunk), mesh, features, temperature, ids)
  return total, jnp.float32(rows), right


def zero_with_gradient(features: Features, cotangent: Features) -> tuple[jax.Array, jax.Array]:
  """Returns a sum of 0, whose gradient by the features is `cotangent`; and 0."""
  product = sum(
    jnp.sum(feature * jax.lax.stop_gradient(gradient))
    for feature, gradient in zip(features, cotangent, strict=True)
  )
  return product - jax.lax.stop_gradient(product), jnp.zeros(())


# Written by hand: a backward pass through the loop would keep every chunk, and
# would send the gradients of all columns. With the two logarithms of each row
# a device finds the gradient of its own rows from what it has already.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _vtc(chunk, mesh, features, temperature, ids):
  return _vtc_forward(chunk, mesh, features, temperature, ids)[0]


def _vtc_forward(chunk, mesh, features, temperature, ids):
  everyone = Features(*(_gather(x, mesh) for x in features))
  every_id = _gather(ids, mesh)
  found = [
    _find(_cut(rows, mesh), columns, ids, every_id, temperature, chunk)
    for rows, columns in ((features.video, everyone.text), (features.text, everyone.video))
  ]
  logs = [log for log, _, _ in found]
  total = sum(jnp.sum(log - own) for log, own, _ in found) / 2
  right = tuple(jnp.mean(right) for _, _, right in found)
  return (total, right), (features, everyone, temperature, ids, every_id, logs)


def _find(rows, columns, row_ids, column_ids, temperature, chunk):
  """log sum exp of each row, its own score, whether that is the highest."""
  count = rows.shape[0]
  own_place = jnp.arange(count)

  def visit(carry, part):
    top, total, own, best = carry
    columns, column_ids, places = part
    scores, is_own, _ = _scores(rows, columns, row_ids, column_ids, places, temperature)
    peak = jnp.max(scores, axis=1)
    best = jnp.where(peak > top, places[jnp.argmax(scores, axis=1)], best)
    peak = jnp.maximum(peak, top)
    total *= jnp.exp(top - peak)
    total += jnp.sum(jnp.exp(scores - peak[:, None]), axis=1)
    own += jnp.sum(jnp.where(is_own, scores, 0), axis=1)
    return (peak, total, own, best), None

  zero = jnp.zeros_like(rows[:, 0])
  start = (zero + _LOWEST, zero, zero, jnp.zeros_like(own_place))
  (top, total, own, best), _ = jax.lax.scan(visit, start, _chunks(chunk, columns, column_ids))
  return top + jnp.log(total), own, (best == own_place).astype(jnp.float32)


def _vtc_backward(chunk, mesh, kept, cotangents):
  features, everyone, temperature, ids, every_id, logs = kept
  every_log = [_gather(log, mesh) for log in logs]
  scale = cotangents[0] / (2 * temperature)
  gradients, of_temperature = [], 0.0
  for rows, columns, log, column_log in (
    (features.video, everyone.text, logs[0], every_log[1]),
    (features.text, everyone.video, logs[1], every_log[0]),
  ):
    gradient, sums = _pull(
      _cut(rows, mesh), columns, ids, every_id, log, column_log, temperature, chunk
    )
    gradients.append(scale * gradient)
    # Each direction sees all pairs: half of it from each.
    of_temperature -= scale * jnp.sum(sums) / 2
  return Features(*gradients), of_temperature, None


def _pull(rows, columns, row_ids, column_ids, row_log, column_log, temperature, chunk):
  """Gradient of both directions by the rows, times 2, and by log(scale)."""

  def visit(carry, part):
    gradient, sums = carry
    columns, column_ids, column_log, places = part
    scores, is_own, out = _scores(rows, columns, row_ids, column_ids, places, temperature)
    slope = jnp.exp(scores - row_log[:, None])
    slope += jnp.exp(scores - column_log[None, :])
    slope = jnp.where(is_own, slope - 2, jnp.where(out, 0, slope))
    gradient += jnp.einsum('rc,ce->re', slope, columns, precision=jax.lax.Precision.HIGHEST)
    return (gradient, sums + jnp.sum(slope * scores, axis=1)), None

  start = (jnp.zeros_like(rows), jnp.zeros_like(rows[:, 0]))
  return jax.lax.scan(visit, start, _chunks(chunk, columns, column_ids, column_log))[0]


_vtc.defvjp(_vtc_forward, _vtc_backward)


def hard_negatives(
  key: jax.Array,
  rows: jax.Array,
  columns: jax.Array,
  temperature: jax.Array,
  ids: jax.Array,
  *,
  uniform_share: jax.Array | float,
  blocks: int = 1,
  chunk: int = 0,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Draws one negative per row, the more similar the more likely.

  Column c is drawn for row r with probability
  (1 - u) softmax(scores[r])[c] + u / allowed[r], over allowed columns only:

    allowed   0 1 1     scores  9 2 2     u = 0:  0 .5 .5
              1 0 1             0 9 5             .007 0 .993
              0 0 0             1 2 3     nothing allowed: not valid

  By the largest score plus Gumbel noise, so that one pass over the columns is
  enough. The noise belongs to the entry (r, c), not to a device or a chunk.

  Args:
    key: random key.
    rows: float32[B, E], features of one kind. No gradient.
    columns: float32[B, E], features of the other kind.
    temperature: float32[].
    ids: int32[B, I]; column c is not allowed for row r if they agree in one:
      itself, the same video, the same caption.
    uniform_share: u in 0..1.
    blocks: of rows that draw among themselves; must divide B.
    chunk: columns met at a time; 0 is all.
    mesh: of the devices that the rows are cut over.
  Returns:
    int32[B], the column (0 where not valid), and bool[B].
  """
  rows, columns, temperature = jax.lax.stop_gradient((rows, columns, temperature))
  count = rows.shape[0]
  chunk = _chunk_size(count, chunk)
  block = jnp.arange(count) // (count // blocks)
  noise_key, share_key = jax.random.split(key)
  uniform = jax.random.uniform(share_key, (count,)) < uniform_share
  rows, ids = _cut(rows, mesh), _cut(ids, mesh)

  def visit(carry, part):
    top, best = carry
    columns, column_ids, column_block, places = part
    scores = similarity(rows, columns, temperature)
    scores = jnp.where(uniform[:, None], 0, scores)
    noise = jax.vmap(
      lambda place: jax.random.gumbel(jax.random.fold_in(noise_key, place), (count,))
    )(places)
    forbidden = _same(ids, column_ids)
    forbidden |= block[:, None] != column_block[None, :]
    scores = jnp.where(forbidden, -jnp.inf, scores + noise.T)
    peak = jnp.max(scores, axis=1)
    best = jnp.where(peak > top, places[jnp.argmax(scores, axis=1)], best)
    return (jnp.maximum(peak, top), best), None

  start = (jnp.full_like(rows[:, 0], -jnp.inf), jnp.zeros(count, jnp.int32))
  everything = (_gather(x, mesh) for x in (columns, ids, block))
  (top, best), _ = jax.lax.scan(visit, start, _chunks(chunk, *everything))
  return best, top > -jnp.inf


def has_negative(
  ids: jax.Array, *, blocks: int = 1, chunk: int = 0, mesh: jax.sharding.Mesh | None = None
) -> jax.Array:
  """Tells which rows have a column that `hard_negatives` may draw.

  Args:
    ids: int32[B, I], as there.
    blocks: as there.
    chunk: as there.
    mesh: as there.
  Returns:
    bool[B].
  """
  count = ids.shape[0]
  block = jnp.arange(count) // (count // blocks)
  rows = _cut(ids, mesh)

  def visit(found, part):
    column_ids, column_block, _ = part
    allowed = ~_same(rows, column_ids)
    allowed &= block[:, None] == column_block[None, :]
    return found | jnp.any(allowed, axis=1), None

  everything = (_gather(x, mesh) for x in (ids, block))
  start = jnp.zeros_like(rows[:, 0], bool)
  chunks = _chunks(_chunk_size(count, chunk), *everything)
  return jax.lax.scan(visit, start, chunks)[0]


def _chunk_size(rows, chunk):
  if chunk and rows % chunk:
    raise ValueError(
      f'config.loss.vtc_chunk={chunk} must divide the {rows} rows of a '
      'batch (of a micro-batch, with accumulation); 0 takes all at once.'
    )
  return chunk or rows


def _chunks(chunk, *arrays):
  """f[B, ...] each -> f[B / chunk, chunk, ...], and the rows' places."""
  places = jnp.arange(arrays[0].shape[0], dtype=jnp.int32)
  return tuple(x.reshape(x.shape[0] // chunk, chunk, *x.shape[1:]) for x in (*arrays, places))


def _scores(rows, columns, row_ids, column_ids, places, temperature):
  """Scores with the lowest where left out; which are own; which left out."""
  scores = similarity(rows, columns, temperature)
  own = jnp.arange(rows.shape[0])[:, None] == places[None, :]
  out = _same(row_ids, column_ids) & ~own
  return jnp.where(out, _LOWEST, scores), own, out


def _same(row_ids, column_ids):
  # Column by column, so that nothing is reduced and all of it can be fused.
  return functools.reduce(
    jnp.logical_or, (row_ids[:, i, None] == column_ids[None, :, i] for i in range(row_ids.shape[1]))
  )


def _cut(rows, mesh):
  return rows if mesh is None else sharding.constrain_batch(rows, mesh)


def _gather(rows, mesh):
  return rows if mesh is None else sharding.gather(rows, mesh)
