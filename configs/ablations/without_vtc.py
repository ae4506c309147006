"""Pre-training without contrast: what VTC brings (paper 4.4).

Features are not comparable then, so wrong pairs are drawn uniformly."""

from configs.ablations import stages


def change(config, stage):
  if stage == 'pretrain':
    config.loss.vtc = 0.0
    config.loss.uniform_negative_steps = config.train.steps


def get_config(argument='pretrain'):
  """See stages.py."""
  return stages.get_config(argument, change)
