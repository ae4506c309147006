"""What a task is: the seam between the training loop and the paper."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from alpro_jax import losses
from alpro_jax.batch import SpecialTokens, VideoTextBatch

# Sum and count of each loss and of each measurement.
Terms = dict[str, tuple[jax.Array, jax.Array | float]]


class TextInfo(NamedTuple):
  """What a task must know of the tokenizer.

  Attributes:
    special: ids of the special tokens.
    vocab_size: number of ids.
  """

  special: SpecialTokens
  vocab_size: int


class Task(Protocol):
  """A way to train. A new task is one file here and one line in `get_task`.

  Attributes:
    model: an Alpro.
    answers: the answers that it chooses from; () unless it answers questions.
    entities: what regions are named by; () without PEM.
    weights: of the losses, by their names in `terms`.
  """

  model: Any
  answers: tuple[str, ...]
  entities: tuple[str, ...]
  weights: Mapping[str, float]

  def init(self, key: jax.Array) -> Any:
    """Returns fresh float32 parameters, boxed with their logical axes."""

  def load_frozen(
    self,
    encode: Callable[[list[str], int], tuple[Any, Any]],
    prompter: str,
    load_meta: Callable[[str], dict],
    load_params: Callable[[str, Any], Any],
  ) -> Any:
    """Returns what the loss needs beside the parameters and does not train.

    Args:
      encode: (texts, max_tokens) -> int32[B, L], bool[B, L].
      prompter: folder of its checkpoint; '' if none is named.
      load_meta: checkpoint path -> what was stored with it.
      load_params: (checkpoint path, abstract parameters) -> parameters.
    """

  def untrained_frozen(self, key: jax.Array) -> Any:
    """Returns what `load_frozen` does, of random weights: for benchmarks."""

  def ask(
    self, frozen: Any, batch: VideoTextBatch, key: jax.Array, *, parts: int = 1
  ) -> tuple[Any, dict[str, jax.Array]]:
    """Decides what is asked of a batch, before any parameter is looked at.

    Args:
      frozen: from `load_frozen`.
      batch: of B rows.
      key: of the step; what is drawn does not depend on `parts`.
      parts: micro-batches that the batch will be cut into, as
        `sharding.split_parts` does.
    Returns:
      what `terms` needs: a tree of f[B, ...], or None; and for each name in
      `weights` the count that `terms` will give, summed over the parts. A
      micro-batch divides its sum of losses by the count of the whole batch,
      so that count must be known before the first of them.
    """

  def terms(
    self,
    params: Any,
    asked: Any,
    batch: VideoTextBatch,
    key: jax.Array,
    step: jax.Array,
    *,
    train: bool,
  ) -> Terms:
    """Returns the losses and what else is measured, by name.

    Each is a float32 sum and the count that it is to be divided by: over
    micro-batches both add up. Sums are scalars, or vectors that `describe`
    explains.

    Args:
      params: that are trained.
      asked: of these rows, from `ask`.
      batch: these rows.
      key: for dropout and negatives.
      step: number of the step.
      train: whether dropout acts.
    """

  # A task with VTC has two more methods, and `terms` takes `pull`:
  #
  # embed(params, asked, batch, key, *, train) -> contrastive.Features, as
  #   `terms` finds them with the same key.
  # contrast(params, features, batch) -> the terms of VTC.
  # terms(..., pull=features): the gradient of the sum of VTC by the features is
  #   known, so that `terms` leaves VTC out but for that gradient.

  def describe(self, metrics: dict[str, Any]) -> str:
    """Returns a line about the averaged parts for the log, or ''."""


class NothingFrozen:
  """What a task does not have to say that trains all it needs."""

  entities = ()

  def load_frozen(self, encode, prompter, load_meta, load_params) -> None:
    return None

  def untrained_frozen(self, key: jax.Array) -> None:
    return None

  def describe(self, metrics: dict[str, Any]) -> str:
    return ''


def weighted(
  weights: Mapping[str, float], terms: Terms, counts: Mapping[str, jax.Array]
) -> jax.Array:
  """Returns the float32 loss: each sum by its count, times its weight."""
  return sum(weight * losses.mean(terms[name][0], counts[name]) for name, weight in weights.items())


def loss(
  task: Task,
  params: Any,
  frozen: Any,
  batch: VideoTextBatch,
  key: jax.Array,
  step: jax.Array,
  *,
  train: bool,
) -> tuple[jax.Array, Terms]:
  """Returns the loss of a whole batch, and its terms."""
  asked, counts = task.ask(frozen, batch, key)
  terms = task.terms(params, asked, batch, key, step, train=train)
  return weighted(task.weights, terms, counts), terms


def get_task(config, text: TextInfo, mesh) -> Task:
  """Returns the task that `config.task` names.

  Raises:
    ValueError: for an unknown name.
  """
  # Here, not at the top: a task imports this file.
  from alpro_jax.tasks import pretrain, prompter, question_answering, retrieval

  tasks = {
    'pretrain': pretrain.Pretrain,
    'prompter': prompter.Prompter,
    'question_answering': question_answering.QuestionAnswering,
    'retrieval': retrieval.Retrieval,
  }
  if config.task not in tasks:
    raise ValueError(f'{config.task=} is unknown; choose one of {sorted(tasks)}.')
  return tasks[config.task].from_config(config, text, mesh)
