"""Fine-tuning for text-video retrieval: VTC + VTM.

See docs/specification.md, Retrieval.
"""

from alpro_jax.tasks.pretrain import Pretrain


class Retrieval(Pretrain):
  """Pre-training without words to guess and regions to name.

  With config.loss.vtm = 0 it is a dual encoder trained by contrast alone, as
  Frozen-in-Time is: the fusion encoder stays as it was.
  """

  @staticmethod
  def heads(options, entities):
    """No head that is not trained; see Pretrain."""
    return {'match': options.vtm > 0, 'mlm': False}

  @classmethod
  def from_config(cls, config, text, mesh):
    """Returns the task of `config`.

    Raises:
      ValueError: if a loss has a weight that is not of retrieval.
    """
    loss = config.loss
    if loss.mlm or loss.pem:
      raise ValueError(
        f'config.loss.{loss.mlm=} and {loss.pem=} must be 0 for '
        "config.task='retrieval', which trains vtc and vtm alone; "
        "'pretrain' has all four."
      )
    return super().from_config(config, text, mesh)
