"""Video question answering: choosing among the training answers.

See docs/specification.md, Question answering.
"""

import dataclasses

import jax
import jax.numpy as jnp

from alpro_jax import losses
from alpro_jax.data.answers import read_answers
from alpro_jax.models.alpro import Alpro
from alpro_jax.tasks.base import Task
from alpro_jax.tasks.shared import model_config


@dataclasses.dataclass(frozen=True)
class QuestionAnswering(Task):
  """Question and clip are fused; token 0 of the pair names the answer.

  The list of answers has as many labels as answers (defect 24). A
  question whose answer is not in it teaches nothing (defect 52).

  Attributes:
    answers: most frequent first; the index is the label.
  """

  model: Alpro
  mesh: jax.sharding.Mesh
  answers: tuple[str, ...]
  weights = {'loss/answer': 1.0}

  @classmethod
  def from_config(cls, config, text, mesh):
    """Returns the task of `config`.

    Raises:
      FileNotFoundError: if config.data.answers is no file.
      ValueError: if the batches do not hold questions, or the model has no fusion encoder.
    """
    if config.data.text != 'questions':
      raise ValueError(
        f"config.data.text={config.data.text!r} must be 'questions' for "
        "config.task='question_answering'."
      )
    if not config.model.get('text'):
      raise ValueError(
        'answering questions needs a fusion encoder, but config.model.text is left out: give the '
        'model a BERT, as `launch/convert.py --bert=FOLDER` does.'
      )
    answers = read_answers(config.data.answers)
    # What contrasts is left out.
    heads = {'embed_size': 0, 'match': False, 'mlm': False, 'text_tower': None}
    heads['answers'] = len(answers)
    values = model_config(config.model, text.vocab_size, **heads)
    return cls(model=Alpro(values, mesh), mesh=mesh, answers=answers)

  def make_targets(self, frozen, batch, key, *, parts=1):
    return None, {'loss/answer': losses.labelled(batch.answer)}

  def terms(self, params, targets, batch, key, step, *, train):
    model = self.model.bind({'params': params}, rngs={'dropout': key})
    video = model.encode_video(batch.video, train=train)
    text = model.text_tokens(batch.text_ids, batch.text_mask, train=train)
    logits = model.answer(text, batch.text_mask, video.tokens, train=train)
    # -1 is never the largest: an answer outside the list is a wrong one.
    right = jnp.argmax(logits, axis=1) == batch.answer
    return {
      'loss/answer': losses.answering(logits, batch.answer),
      'accuracy/answer': (jnp.mean(right.astype(jnp.float32)), 1.0),
    }
