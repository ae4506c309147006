"""Eight frames of each clip (paper 4.4)."""

from configs.ablations import stages


def change(config, stage):
  del stage
  config.data.frames = config.model.video.frames = 8


def get_config(argument='pretrain'):
  """See stages.py."""
  return stages.get_config(argument, change)
