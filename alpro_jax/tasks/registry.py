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
    ValueError: for an unknown name; or if pictures come without text, and the task learns
      nothing from them.
  """
  if config.task not in TASKS:
    raise ValueError(f'{config.task=} is unknown; choose one of {sorted(TASKS)}.')
  alone, loss = config.data.get('without_text', 0.0), config.loss
  told = (loss.vtc_form, loss.same_caption) == ('softmax', 'neutral')
  # A positive of the same video would pull it to the empty text.
  told &= loss.same_video != 'positive'
  if alone and not (config.task == 'pretrain' and loss.pem and told):
    raise ValueError(
      f'config.data.without_text={alone} is for PEM alone: it needs config.task=pretrain, '
      'config.loss.pem above 0, config.loss.vtc_form=softmax, config.loss.same_caption=neutral and '
      'config.loss.same_video not positive; set it to 0.'
    )
  return TASKS[config.task].from_config(config, text, mesh)
