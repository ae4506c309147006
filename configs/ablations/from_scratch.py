"""Fine-tuning from random weights: what pre-training brings."""

from configs.ablations import stages


def change(config, stage):
  if stage == 'pretrain':
    raise ValueError('from_scratch has no stage pretrain.')
  config.train.init_from = ''


def get_config(argument='pretrain'):
  """See stages.py."""
  return stages.get_config(argument, change)
