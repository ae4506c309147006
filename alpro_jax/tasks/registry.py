"""The tasks by name. A new one is a file in this folder and a line here."""

from alpro_jax.tasks.base import Task, TextInfo
from alpro_jax.tasks.pretrain import Pretrain
from alpro_jax.tasks.prompter import Prompter
from alpro_jax.tasks.question_answering import QuestionAnswering
from alpro_jax.tasks.retrieval import Retrieval

TASKS: dict[str, type[Task]] = {
  'pretrain': Pretrain,
  'prompter': Prompter,
  'question_answering': QuestionAnswering,
  'retrieval': Retrieval,
}


def get_task(config, text: TextInfo, mesh) -> Task:
  """Returns the task that `config.task` names.

  Raises:
    ValueError: for an unknown name.
  """
  if config.task not in TASKS:
    raise ValueError(f'{config.task=} is unknown; choose one of {sorted(TASKS)}.')
  return TASKS[config.task].from_config(config, text, mesh)
