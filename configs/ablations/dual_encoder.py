"""Two encoders trained by contrast alone, as Frozen-in-Time is."""

from configs.ablations import stages


def change(config, stage):
  if stage == 'pretrain':
    config.loss.update({'vtm': 0.0, 'mlm': 0.0, 'pem': 0.0})
  elif stage == 'retrieval':
    config.loss.vtm = 0.0
    config.train.unused_parameters = (*config.train.unused_parameters, 'match_head')


def get_config(argument='pretrain'):
  """See stages.py."""
  return stages.get_config(argument, change)
