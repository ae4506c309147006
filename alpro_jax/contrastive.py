"""What is computed from the similarities of all pairs of a batch, in chunks.

Each device has its rows, meets all columns chunk by chunk, and keeps a few
numbers for each row: memory grows with the batch, not with its square. What is
sent is the features, once, and a few numbers for each row.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alpro_jax import sharding
from alpro_jax.batch import NO_TEXT

# Below any score, and finite: the difference of two is a number.
_LOWEST = -1e30
# Far below any score of unit features, and small enough to tell scores beside it apart.
_FAR = 1e4


class Features(NamedTuple):
  """Both float32[B, E], of unit length; row i of one belongs to row i of the other."""

  video: jax.Array
  text: jax.Array


def similarity(video: jax.Array, text: jax.Array, temperature: jax.Array) -> jax.Array:
  """float32[Bv, E], float32[Bt, E] -> float32[Bv, Bt], videos in rows."""
  products = jnp.einsum('ve,te->vt', video, text, precision=jax.lax.Precision.HIGHEST)
  return products / temperature


# Sum, count, shares of videos and of texts that find what is theirs.
Contrast = tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array]]


def vtc(
  features: Features,
  temperature: jax.Array,
  ids: jax.Array | None = None,
  *,
  positives: Sequence[int] = (),
  chunk: int = 0,
  mesh: jax.sharding.Mesh | None = None,
) -> Contrast:
  """Video-text contrastive loss: each video must find its text, and back.

  With positives, any of its texts: the target of a row is spread evenly over its
  positives, as in UniCL (Yang et al. 2022, arXiv 2204.03610), so that the loss is
  the mean over them of the cross entropy. It is lowest where all are equally near.

  Args:
    features: of B pairs.
    temperature: float32[].
    ids: int32[B, I]. Pairs of rows that agree in one of the I are no negatives
      of each other: they leave both denominators. With captions
      a b a:   1 0 1          the diagonal always stays,
               0 1 0   and    pairs (0, 2) and (2, 0) are left out.
               1 0 1
      A row of the id NO_TEXT agrees with all others: its loss is 0, and it is nobody's
      negative.
    positives: which of the I are more than that: rows that agree in one of these
      are right for each other, as each is for itself. With captions a b a the
      targets of rows are   .5 0 .5
                             0 1  0
                            .5 0 .5
    chunk: columns met at a time; 0 is all.
    mesh: of the devices that the rows are sharded over.
  Returns:
    Sum over the B pairs of the two directions' mean; B; and the shares of
    videos that find a text of theirs and of texts that find a video.
  """
  total, right = _vtc(tuple(positives), chunk, mesh, features, temperature, _ids(ids, features))
  return total, jnp.float32(features.video.shape[0]), right


def sigmoid_vtc(
  features: Features,
  temperature: jax.Array,
  bias: jax.Array,
  ids: jax.Array | None = None,
  *,
  positives: Sequence[int] = (),
  chunk: int = 0,
  mesh: jax.sharding.Mesh | None = None,
) -> Contrast:
  """VTC by a question for each pair: do these belong together?

  The sigmoid loss of SigLIP (Zhai et al. 2023, arXiv 2303.15343): with scores
  s = similarity / temperature + bias of all B x B pairs, the sum of
  log(1 + exp(-s)) of the positives and of log(1 + exp(s)) of the negatives. No
  row depends on the others of its batch, but for what the batch contains.

  Args:
    features: of B pairs.
    temperature: float32[]; SigLIP's scale is 1 / temperature.
    bias: float32[]; far below 0 at first, or the many negatives outweigh all.
    ids: see `vtc`; pairs that are neither positive nor negative do not count.
    positives: see `vtc`; each positive pair is one question more with the answer yes.
    chunk: see `vtc`.
    mesh: see `vtc`.
  Returns:
    Sum over all pairs; B, which it is divided by as in the paper; and the shares
    of `vtc`.
  """
  total, right = _sigmoid(
    tuple(positives), chunk, mesh, features, temperature, bias, _ids(ids, features)
  )
  return total, jnp.float32(features.video.shape[0]), right


def _ids(ids, features):
  return jnp.arange(features.video.shape[0])[:, None] if ids is None else ids


def zero_with_gradient(features: Features, cotangent: Features) -> tuple[jax.Array, jax.Array]:
  """Returns a sum of 0, whose gradient by the features is `cotangent`; and 0."""
  products = (
    jnp.sum(feature * jax.lax.stop_gradient(gradient))
    for feature, gradient in zip(features, cotangent, strict=True)
  )
  product = sum(products, jnp.zeros(()))
  return product - jax.lax.stop_gradient(product), jnp.zeros(())


# Written by hand: a backward pass through the loop would keep every chunk, and
# would send the gradients of all columns. With the logarithms of both
# directions' denominators a device finds the gradient of its own rows from what
# it has already.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _vtc(positives, chunk, mesh, features, temperature, ids):
  return _vtc_forward(positives, chunk, mesh, features, temperature, ids)[0]


def _vtc_forward(positives, chunk, mesh, features, temperature, ids):
  columns = Features(*(_gather(x, mesh) for x in features))
  pairs = _Pairs(ids, _gather(ids, mesh), positives)
  share = _target(pairs, chunk)
  logs, losses, right = [], [], []
  for rows, others in ((features.video, columns.text), (features.text, columns.video)):
    log, own, best = _softmax_parts(_shard(rows, mesh), others, pairs, temperature, chunk)
    logs.append(log)
    losses.append(jnp.sum(log - own * share))
    right.append(_share_right(pairs, best))
  kept = features, columns, temperature, pairs.row_ids, pairs.column_ids, share, logs
  return (sum(losses) / 2, tuple(right)), kept


def _softmax_parts(rows, columns, pairs, temperature, chunk):
  """Of each row: log of the sum of exp(scores), the sum of its own, the best column."""

  def visit(carry, columns, column_ids, index):
    top, total, own, best = carry
    positive, out = pairs.compare(column_ids, index)
    scores = jnp.where(out, _LOWEST, similarity(rows, columns, temperature))
    peak, best = _better(top, best, scores, index)
    total *= jnp.exp(top - peak)
    total += jnp.sum(jnp.exp(scores - peak[:, None]), axis=1)
    own += jnp.sum(jnp.where(positive, scores, 0), axis=1)
    return peak, total, own, best

  zero = jnp.zeros_like(rows[:, 0])
  start = (zero + _LOWEST, zero, zero, jnp.zeros_like(jnp.arange(len(rows))))
  top, total, own, best = _scan(visit, start, chunk, columns, pairs.column_ids)
  return top + jnp.log(total), own, best


def _vtc_backward(positives, chunk, mesh, kept, cotangents):
  features, columns, temperature, row_ids, column_ids, share, logs = kept
  pairs = _Pairs(row_ids, column_ids, positives)
  column_share, *column_logs = (_gather(x, mesh) for x in (share, *logs))
  scale = cotangents[0] / (2 * temperature)
  gradients, temperature_gradient = [], 0.0
  for rows, others, row_log, column_log in (
    (features.video, columns.text, logs[0], column_logs[1]),
    (features.text, columns.video, logs[1], column_logs[0]),
  ):
    gradient, sums = _row_gradients(
      _shard(rows, mesh),
      others,
      pairs,
      (row_log, share),
      (column_log, column_share),
      temperature,
      chunk,
    )
    gradients.append(scale * gradient)
    # Each direction sees all pairs: half of it from each.
    temperature_gradient -= scale * jnp.sum(sums) / 2
  return Features(*gradients), temperature_gradient, None


def _row_gradients(rows, columns, pairs, of_rows, of_columns, temperature, chunk):
  """Gradient of both directions by the rows, times 2, and by log(scale)."""
  row_log, row_share = of_rows

  def visit(carry, columns, column_ids, column_log, column_share, index):
    gradient, sums = carry
    positive, out = pairs.compare(column_ids, index)
    scores = jnp.where(out, _LOWEST, similarity(rows, columns, temperature))
    slope = jnp.exp(scores - row_log[:, None])
    slope += jnp.exp(scores - column_log[None, :])
    target = row_share[:, None] + column_share[None, :]
    slope = jnp.where(positive, slope - target, jnp.where(out, 0, slope))
    gradient += jnp.einsum('rc,ce->re', slope, columns, precision=jax.lax.Precision.HIGHEST)
    return gradient, sums + jnp.sum(slope * scores, axis=1)

  start = (jnp.zeros_like(rows), jnp.zeros_like(rows[:, 0]))
  return _scan(visit, start, chunk, columns, pairs.column_ids, *of_columns)


_vtc.defvjp(_vtc_forward, _vtc_backward)


# Written by hand for the same reasons. An entry's slope depends on its score alone,
# so the gradient of a row is found where its loss is, and nothing is met twice.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _sigmoid(positives, chunk, mesh, features, temperature, bias, ids):
  return _sigmoid_forward(positives, chunk, mesh, features, temperature, bias, ids)[0]


def _sigmoid_forward(positives, chunk, mesh, features, temperature, bias, ids):
  columns = Features(*(_gather(x, mesh) for x in features))
  pairs = _Pairs(ids, _gather(ids, mesh), positives)
  gradients, right = [], []
  for rows, others in ((features.video, columns.text), (features.text, columns.video)):
    gradient, best, *sums = _sigmoid_parts(
      _shard(rows, mesh), others, pairs, temperature, bias, chunk
    )
    gradients.append(gradient / temperature)
    right.append(_share_right(pairs, best))
  # Either direction sees all pairs.
  total, by_score, by_bias = (jnp.sum(x) for x in sums)
  kept = Features(*gradients), -by_score / temperature, by_bias
  return (total, tuple(right)), kept


def _sigmoid_parts(rows, columns, pairs, temperature, bias, chunk):
  """Of each row: gradient by it, times the temperature, the best column, and sums.

  The sums are of the losses, of slope * scores without the bias, and of slopes.
  """

  def visit(carry, columns, column_ids, index):
    gradient, top, best, total, by_score, by_bias = carry
    positive, out = pairs.compare(column_ids, index)
    scores = similarity(rows, columns, temperature)
    top, best = _better(top, best, jnp.where(out, _LOWEST, scores), index)
    sign = jnp.where(positive, -1.0, jnp.where(out, 0.0, 1.0))
    # Softplus and its slope, where the answer is wrong if sign * score > 0.
    wrong = sign * (scores + bias)
    slope = sign * jax.nn.sigmoid(wrong)
    total += jnp.sum(jnp.abs(sign) * jax.nn.softplus(wrong), axis=1)
    gradient += jnp.einsum('rc,ce->re', slope, columns, precision=jax.lax.Precision.HIGHEST)
    by_score += jnp.sum(slope * scores, axis=1)
    return gradient, top, best, total, by_score, by_bias + jnp.sum(slope, axis=1)

  zero = jnp.zeros_like(rows[:, 0])
  best = jnp.zeros_like(jnp.arange(len(rows)))
  start = (jnp.zeros_like(rows), zero + _LOWEST, best, zero, zero, zero)
  gradient, _, best, *sums = _scan(visit, start, chunk, columns, pairs.column_ids)
  return gradient, best, *sums


def _sigmoid_backward(positives, chunk, mesh, kept, cotangents):
  del positives, chunk, mesh
  return *jax.tree.map(lambda x: cotangents[0] * x, kept), None


_sigmoid.defvjp(_sigmoid_forward, _sigmoid_backward)


def hard_negatives(
  key: jax.Array,
  rows: jax.Array,
  columns: jax.Array,
  temperature: jax.Array,
  ids: jax.Array,
  *,
  uniform_share: jax.Array | float,
  margin: float = -2.0,
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
    margin: columns count that are less similar to the row than its own one by this much
      at least (cosine), as in the positive-aware mining of NV-Retriever (Moreira et al.
      2024, arXiv 2407.15831): what is nearer may be right for the row as well. If there is
      none, the least similar ones are the likely ones. -2 is any column.
    blocks: of rows that draw among themselves; must divide B.
    chunk: columns met at a time; 0 is all.
    mesh: of the devices that the rows are sharded over.
  Returns:
    int32[B], the column (0 where not valid), and bool[B].
  """
  rows, columns, temperature = jax.lax.stop_gradient((rows, columns, temperature))
  count = rows.shape[0]
  block = jnp.arange(count) // (count // blocks)
  noise_key, share_key = jax.random.split(key)
  uniform = jax.random.uniform(share_key, (count,)) < uniform_share
  highest = (jnp.sum(rows * columns, axis=1) - margin) / temperature
  rows, ids = _shard(rows, mesh), _shard(ids, mesh)

  def visit(carry, columns, column_ids, column_block, index):
    similar = similarity(rows, columns, temperature)
    scores = jnp.where(uniform[:, None], 0, similar)
    if margin > -2:
      scores = jnp.where(similar > highest[:, None], -_FAR - similar, scores)
    noise = jax.vmap(
      lambda column: jax.random.gumbel(jax.random.fold_in(noise_key, column), (count,))
    )(index)
    forbidden = _same(ids, column_ids)
    forbidden |= block[:, None] != column_block[None, :]
    return _better(*carry, jnp.where(forbidden, -jnp.inf, scores + noise.T), index)

  start = (jnp.full_like(rows[:, 0], -jnp.inf), jnp.zeros(count, jnp.int32))
  top, best = _scan(visit, start, chunk, *(_gather(x, mesh) for x in (columns, ids, block)))
  return best, top > -jnp.inf


def has_negative(
  ids: jax.Array, *, blocks: int = 1, chunk: int = 0, mesh: jax.sharding.Mesh | None = None
) -> jax.Array:
  """bool[B]: which rows have a column that `hard_negatives` may draw; arguments as there."""
  count = ids.shape[0]
  block = jnp.arange(count) // (count // blocks)
  rows = _shard(ids, mesh)

  def visit(found, column_ids, column_block, index):
    del index
    allowed = ~_same(rows, column_ids)
    allowed &= block[:, None] == column_block[None, :]
    return found | jnp.any(allowed, axis=1)

  start = jnp.zeros_like(rows[:, 0], bool)
  return _scan(visit, start, chunk, *(_gather(x, mesh) for x in (ids, block)))


def _scan(visit, start, chunk, *columns):
  """Carries `start` through visit(carry, *columns, index), f[chunk, ...] at a time."""
  count = columns[0].shape[0]
  if chunk and count % chunk:
    raise ValueError(
      f'config.loss.vtc_chunk={chunk} must divide the {count} rows of a '
      'batch (of a micro-batch, with accumulation); 0 takes all at once.'
    )
  chunk = chunk or count
  index = jnp.arange(count, dtype=jnp.int32)
  parts = tuple(x.reshape(count // chunk, chunk, *x.shape[1:]) for x in (*columns, index))
  return jax.lax.scan(lambda carry, part: (visit(carry, *part), None), start, parts)[0]


class _Pairs(NamedTuple):
  """What rows and columns are for each other: int32[B, I] twice; see `vtc`."""

  row_ids: jax.Array
  column_ids: jax.Array
  positives: tuple[int, ...]

  def compare(self, column_ids, index):
    """bool[B, chunk] twice, of some columns: which are positive; which are left out."""
    positive = jnp.arange(self.row_ids.shape[0])[:, None] == index[None, :]
    for i in self.positives:
      positive |= _same(self.row_ids[:, i : i + 1], column_ids[:, i : i + 1])
    return positive, _same(self.row_ids, column_ids) & ~positive


def _target(pairs, chunk):
  """float32[B]: what each positive of a row has of its target, 1 / their number."""
  if not pairs.positives:
    return jnp.ones(len(pairs.row_ids))

  def visit(count, column_ids, index):
    return count + jnp.sum(pairs.compare(column_ids, index)[0], axis=1)

  start = jnp.zeros_like(pairs.row_ids[:, 0])
  return 1 / _scan(visit, start, chunk, pairs.column_ids).astype(jnp.float32)


def _share_right(pairs, best):
  """float32[]: of rows with text, those whose best column, int32[B], is a positive."""
  right = best == jnp.arange(len(best))
  for i in pairs.positives:
    right |= pairs.column_ids[best, i] == pairs.row_ids[:, i]
  # A row without text sees itself alone.
  told = jnp.all(pairs.row_ids != NO_TEXT, axis=1)
  return jnp.sum(right & told) / jnp.maximum(jnp.sum(told), 1).astype(jnp.float32)


def _better(top, best, scores, index):
  """The highest score of each row so far, and its column."""
  peak = jnp.max(scores, axis=1)
  best = jnp.where(peak > top, index[jnp.argmax(scores, axis=1)], best)
  return jnp.maximum(peak, top), best


def _same(row_ids, column_ids):
  # Column by column, so that nothing is reduced and all of it can be fused.
  pairs = ((row_ids[:, i, None], column_ids[None, :, i]) for i in range(row_ids.shape[1]))
  return functools.reduce(
    jnp.logical_or, ((a == b) | (a == NO_TEXT) | (b == NO_TEXT) for a, b in pairs)
  )


def _shard(rows, mesh):
  return rows if mesh is None else sharding.constrain_batch(rows, mesh)


def _gather(rows, mesh):
  return rows if mesh is None else sharding.gather(rows, mesh)
