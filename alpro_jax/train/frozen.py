"""Loads what a task's loss needs beside the parameters that it trains."""

from typing import Any

from alpro_jax.models.alpro import Alpro, AlproConfig
from alpro_jax.tasks.base import Task
from alpro_jax.tasks.shared import abstract_params
from alpro_jax.train import identity
from alpro_jax.train.checkpoints import Checkpoint


def load_frozen(task: Task, prompter: Checkpoint | None, tokenizer: Any) -> Any:
  """Returns what the task makes of a trained prompter; None if it needs none.

  Args:
    task: of the run.
    prompter: its checkpoint, None if none is named.
    tokenizer: of the run, which has what the prompter was trained with.
  Raises:
    FileNotFoundError: if a prompter is needed and none is named.
  """
  if not task.needs_prompter:
    return None
  if prompter is None:
    raise FileNotFoundError(
      'pre-training with PEM needs a trained prompter. Make one by the same command with '
      'pretrain_prompter in place of pretrain in --config, and another --workdir=DIR; then '
      'pass --config.prompter.checkpoint=DIR. Or train without PEM: --config.loss.pem=0.'
    )
  model = Alpro(AlproConfig.from_dict(prompter.meta['model']), task.mesh)
  params = prompter.load_params(abstract_params(model, task.mesh))
  tokenizer = identity.tokenizer_of(prompter.meta, tokenizer)
  return task.make_frozen(model, params, tokenizer.encode)
