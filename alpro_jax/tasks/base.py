"""The seam between the training loop and the paper: what a task decides.

    targets, counts = task.make_targets(frozen, batch, key)      what is asked
    terms = task.terms(params, targets, batch, key, step, ...)   what is learned
    loss = weighted_loss(task.weights, terms, counts)

A batch may be split into micro-batches between the first two lines.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from alpro_jax import losses
from alpro_jax.batch import SpecialTokens, VideoTextBatch
from alpro_jax.contrastive import Features
from alpro_jax.models.alpro import Alpro
from alpro_jax.tasks import shared

# Sum and count of each loss and of each measurement.
Terms = dict[str, tuple[jax.Array, jax.Array | float]]
# (texts, max_tokens) -> what Alpro.encode_text reads: int32[B, L] ids, bool[B, L] mask and, for a
# model with two encoders of texts, int32[B, M] ids for the second; see data/tokens.py.
Encode = Callable[[list[str], int], tuple[Any, ...]]


class TextInfo(NamedTuple):
  """What a task must know of the tokenizer: special ids, and how many ids."""

  special: SpecialTokens
  vocab_size: int


class Task:
  """A way to train: which model, losses and weights make a run.

  A new task is a subclass in a file of its own and a line in registry.py. It
  must have `model`, `weights`, `make_targets` and `terms`; the rest has defaults.

  Attributes:
    model: that is trained.
    weights: of the losses, by their names in `terms`.
    mesh: the devices that the batch is sharded over.
    answers: the answers that it chooses from.
    entities: what regions are named by.
    negative_blocks: of rows among which VTM draws its negatives; 1 is the batch.
    contrasts: whether it has `embed` and `contrast`, so that VTC may find its
      negatives in all micro-batches.
    needs_prompter: whether `make_frozen` must be given a trained prompter.
  """

  model: Alpro
  weights: Mapping[str, float]
  mesh: jax.sharding.Mesh
  answers: tuple[str, ...] = ()
  entities: tuple[str, ...] = ()
  negative_blocks: int = 1
  contrasts: bool = False
  needs_prompter: bool = False

  @classmethod
  def from_config(cls, config, text: TextInfo, mesh: jax.sharding.Mesh) -> 'Task':
    """Returns the task of a config; see configs/common.py."""
    raise NotImplementedError

  def init(self, key: jax.Array) -> Any:
    """Returns fresh float32 parameters, boxed with their logical axes."""
    return shared.init_model(self.model, key)

  def make_frozen(self, model: Alpro, params: Any, encode: Encode) -> Any:
    """Returns what `make_targets` needs of a trained prompter: a teacher that stays as it is."""
    raise NotImplementedError

  def init_frozen(self, key: jax.Array) -> Any:
    """Returns what `make_frozen` does, of random weights and boxed: for benchmarks."""

  def make_targets(
    self, frozen: Any, batch: VideoTextBatch, key: jax.Array, *, parts: int = 1
  ) -> tuple[Any, dict[str, jax.Array]]:
    """Draws and labels what is asked of a batch, before any parameter is used.

    Args:
      frozen: from `make_frozen`, or None.
      batch: of B rows.
      key: of the step; what is drawn does not depend on `parts`.
      parts: micro-batches that the batch will be split into, as
        `sharding.split_parts` does.

    Returns:
      what `terms` needs: a tree of f[B, ...], or None; and for each name in
      `weights` the count that `terms` will give, summed over the parts. A
      micro-batch divides its sum of losses by the count of the whole batch,
      so that count must be known before the first of them.
    """
    raise NotImplementedError

  def terms(
    self,
    params: Any,
    targets: Any,
    batch: VideoTextBatch,
    key: jax.Array,
    step: jax.Array,
    *,
    train: bool,
    cotangent: Features | None = None,
  ) -> Terms:
    """Returns the losses and what else is measured, by name.

    Each is a float32 sum and the count that it is to be divided by: over
    micro-batches both add up. Sums are scalars, or vectors that `describe`
    explains.

    Args:
      params: that are trained.
      targets: of these rows, from `make_targets`.
      batch: these rows.
      key: for dropout and negatives.
      step: number of the step.
      train: whether dropout acts.
      cotangent: only if the task contrasts: VTC is known of the whole batch,
        and all that is missing is this gradient of its sum by the features.
    """
    raise NotImplementedError

  def embed(
    self, params: Any, targets: Any, batch: VideoTextBatch, key: jax.Array, *, train: bool
  ) -> Features:
    """Returns the features that `terms` finds with the same arguments."""
    raise NotImplementedError

  def contrast(
    self, params: Any, features: Features, batch: VideoTextBatch, cotangent: Features | None = None
  ) -> Terms:
    """Returns the terms of VTC; with a cotangent its gradient alone, see `terms`."""
    raise NotImplementedError

  def describe(self, metrics: Mapping[str, Any]) -> str:
    """Returns a line about the averaged terms for the log, or ''."""
    return ''


def weighted_loss(
  weights: Mapping[str, float], terms: Terms, counts: Mapping[str, jax.Array]
) -> jax.Array:
  """Returns the float32 loss: each sum by its count, times its weight."""
  parts = (weight * losses.mean(terms[name][0], counts[name]) for name, weight in weights.items())
  return sum(parts, jnp.zeros(()))
