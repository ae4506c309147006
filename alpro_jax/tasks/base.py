"""What a task is: the seam between the training loop and the paper."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

from alpro_jax.batch import SpecialTokens, VideoTextBatch


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
  """

  model: Any
  answers: tuple[str, ...]
  entities: tuple[str, ...]

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

  def loss(
      self,
      params: Any,
      frozen: Any,
      batch: VideoTextBatch,
      key: jax.Array,
      step: jax.Array,
      *,
      train: bool,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the float32 loss of a global batch and its parts by name.

    Parts are float32 scalars, or vectors that `describe` explains.
    """

  # A task with VTC has two more methods, and `loss` takes `pull`:
  #
  # embed(params, batch, key, *, train) -> contrastive.Features, as `loss`
  #   finds them with the same key.
  # contrast(params, features, batch) -> the weighted VTC loss and its parts.
  # loss(..., pull=features): the gradient of VTC by the features is known, so
  #   that `loss` leaves VTC out but for that gradient.

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


def get_task(config, text: TextInfo, mesh) -> Task:
  """Returns the task that `config.task` names.

  Raises:
    ValueError: for an unknown name.
  """
  # Here, not at the top: a task imports this file.
  from alpro_jax.tasks import (
      pretrain,
      prompter,
      question_answering,
      retrieval,
  )

  tasks = {
      'pretrain': pretrain.Pretrain,
      'prompter': prompter.Prompter,
      'question_answering': question_answering.QuestionAnswering,
      'retrieval': retrieval.Retrieval,
  }
  if config.task not in tasks:
    raise ValueError(
        f'{config.task=} is unknown; choose one of {sorted(tasks)}.'
    )
  return tasks[config.task].from_config(config, text, mesh)
