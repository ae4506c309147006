"""Nothing changed: what the others are compared with."""

from configs.ablations import stages


def change(config, stage):
  del config, stage


def get_config(argument='pretrain'):
  """See stages.py."""
  return stages.get_config(argument, change)
