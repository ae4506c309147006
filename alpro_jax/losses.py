"""The losses of ALPRO that look at one pair at a time; contrastive.py has VTC.

Arrays in, (sum, count) in float32 out: sums over devices or steps stay exact,
and `mean` guards the empty case.
"""

import jax
import jax.numpy as jnp


def mean(total: jax.Array, count: jax.Array) -> jax.Array:
  """total / count, or 0 where nothing was counted."""
  return total / jnp.maximum(count, 1.0)


def vtm(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Video-text matching: cross entropy of match (1) against no match (0).

  Args:
    logits: float32[R, 2].
    labels: int32[R].
    weights: float32[R] or bool[R], 0 on rows without a valid negative.

  Returns:
    Weighted sum and the sum of weights.
  """
  weights = weights.astype(jnp.float32)
  return jnp.sum(_cross_entropy(logits, labels) * weights), jnp.sum(weights)


def mlm(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Masked language modelling: float32[B, L, V], int32[B, L], -1: no label."""
  losses = _cross_entropy(logits, jnp.maximum(labels, 0))
  return jnp.sum(losses * (labels >= 0)), labelled(labels)


def answering(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Question answering: float32[B, A], int32[B], -1: answer not in the list.

  The original fails on such an answer (defect 52).
  """
  return mlm(logits, labels)


def pem(logits: jax.Array, q: jax.Array, keep: jax.Array) -> tuple[jax.Array, jax.Array]:
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


def labelled(labels: jax.Array) -> jax.Array:
  """float32[], how many of int32[...] are labels, not -1."""
  return jnp.sum((labels >= 0).astype(jnp.float32))


def _cross_entropy(logits, labels):
  scores = jax.nn.log_softmax(logits.astype(jnp.float32))
  return -jnp.take_along_axis(scores, labels[..., None], axis=-1)[..., 0]
