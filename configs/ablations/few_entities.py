"""Half as many entities to name (paper 4.4)."""

from configs.ablations import stages


def change(config, stage):
  del stage
  config.prompter.num_entities //= 2


def get_config(argument='pretrain'):
  """See stages.py."""
  return stages.get_config(argument, change)
