"""Pre-training without entity modelling: what PEM brings (paper 4.4)."""

from configs.ablations import stages


def change(config, stage):
  if stage == 'pretrain':
    config.loss.pem = 0.0


def get_config(argument='pretrain'):
  """See stages.py."""
  return stages.get_config(argument, change)
