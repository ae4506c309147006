"""The four losses of ALPRO and the choice of hard negatives.

Arrays in, (sum, count) in float32 out: sums over devices or steps stay exact,
and `mean` guards the empty case.
"""

import jax
import jax.numpy as jnp


def mean(total: jax.Array, count: jax.Array) -> jax.Array:
  """total / count, or 0 where nothing was counted."""
  return total / jnp.maximum(count, 1.0)


def similarity(
    video_feature: jax.Array, text_feature: jax.Array, temperature: jax.Array
) -> jax.Array:
  """float32[Bv, E], float32[Bt, E] -> float32[Bv, Bt], videos in rows."""
  return (
      jnp.einsum(
          've,te->vt', video_feature, text_feature,
          precision=jax.lax.Precision.HIGHEST,
      )
      / temperature
  )


def vtc(
    video_feature: jax.Array,
    text_feature: jax.Array,
    temperature: jax.Array,
    *,
    same: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Video-text contrastive loss: each video must find its text, and back.

  Args:
    video_feature: float32[B, E], unit length.
    text_feature: float32[B, E], unit length; row i belongs to video i.
    temperature: float32[].
    same: bool[B, B], True where text j would also be right for video i. Such
      pairs are no negatives: they leave both denominators. With captions
      a b a:   1 0 1          the diagonal always stays,
               0 1 0   and    pairs (0, 2) and (2, 0) are left out.
               1 0 1
  Returns:
    Sum over the B pairs of the two directions' mean, and B.
  """
  scores = similarity(video_feature, text_feature, temperature)
  own = jnp.eye(scores.shape[0], dtype=bool)
  if same is not None:
    scores = jnp.where(same & ~own, -jnp.inf, scores)
  found = jnp.diagonal(jax.nn.log_softmax(scores, axis=1))
  found += jnp.diagonal(jax.nn.log_softmax(scores, axis=0))
  return -jnp.sum(found) / 2, jnp.float32(scores.shape[0])


def hard_negatives(
    key: jax.Array,
    scores: jax.Array,
    forbidden: jax.Array,
    *,
    uniform_share: jax.Array | float,
) -> tuple[jax.Array, jax.Array]:
  """Draws one negative per row, the more similar the more likely.

  Column c is drawn for row r with probability
  (1 - u) softmax(scores[r])[c] + u / allowed[r], over allowed columns only:

    forbidden   1 0 0     scores  9 2 2     u = 0:  0 .5 .5
                0 1 0             0 9 5             .007 0 .993
                1 1 1             1 2 3     nothing allowed: not valid

  The noise belongs to the entry (r, c), not to a device, so the draw does not
  depend on how the batch is spread.

  Args:
    key: random key.
    scores: float32[..., R, C], similarities over temperature. No gradient.
    forbidden: bool[..., R, C], True where column c must not be drawn: itself,
      the same video, the same caption.
    uniform_share: u in 0..1.
  Returns:
    int32[..., R], the column (0 where not valid), and bool[..., R].
  """
  scores = jax.lax.stop_gradient(scores)
  allowed = ~forbidden
  count = jnp.sum(allowed, axis=-1, keepdims=True)
  hard = jax.nn.softmax(jnp.where(allowed, scores, -1e30), axis=-1)
  uniform = 1.0 / jnp.maximum(count, 1)
  share = jnp.asarray(uniform_share, jnp.float32)
  weight = (1.0 - share) * hard + share * uniform
  logits = jnp.where(allowed, jnp.log(weight), -jnp.inf)
  valid = count[..., 0] > 0
  index = jax.random.categorical(key, logits, axis=-1)
  return jnp.where(valid, index, 0).astype(jnp.int32), valid


def vtm(
    logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Video-text matching: cross entropy of match (1) against no match (0).

  Args:
    logits: float32[R, 2].
    labels: int32[R].
    weights: float32[R] or bool[R], 0 on rows without a valid negative.
  Returns:
    Weighted sum and the sum of weights.
  """
  weights = weights.astype(jnp.float32)
  losses = _cross_entropy(logits, labels)
  return jnp.sum(losses * weights), jnp.sum(weights)


def mlm(
    logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Masked language modelling: float32[B, L, V], int32[B, L], -1: no label."""
  return _labelled_cross_entropy(logits, labels)


def answering(
    logits: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Question answering: float32[B, A], int32[B], -1: answer not in the list.

  The original fails on such an answer (SPEC defect 52).
  """
  return _labelled_cross_entropy(logits, labels)


def pem(
    logits: jax.Array, q: jax.Array, keep: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Prompting entity modelling: cross entropy with soft pseudo-labels.

  Args:
    logits: float32[B, Z].
    q: float32[B, Z], the prompter's probabilities. No gradient.
    keep: bool[B], False where the prompter was not sure enough.
  Returns:
    Sum over the kept rows and their number.
  """
  q = jax.lax.stop_gradient(q)
  losses = -jnp.sum(q * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)
  keep = keep.astype(jnp.float32)
  return jnp.sum(losses * keep), jnp.sum(keep)


def _labelled_cross_entropy(logits, labels):
  labelled = (labels >= 0).astype(jnp.float32)
  losses = _cross_entropy(logits, jnp.maximum(labels, 0))
  return jnp.sum(losses * labelled), jnp.sum(labelled)


def _cross_entropy(logits, labels):
  scores = jax.nn.log_softmax(logits.astype(jnp.float32))
  return -jnp.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]
