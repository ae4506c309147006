"""Frames encoded one by one and averaged, as in ClipBERT."""

from configs.ablations import stages


def change(config, stage):
  del stage
  config.model.video.attention = 'space_only'
  # What a checkpoint with attention over time has and this one does not.
  config.train.unused_parameters = (
    *config.train.unused_parameters,
    'video_encoder/times',
    *(f'video_encoder/block{i}/temporal_' for i in range(config.model.video.depth)),
  )


def get_config(argument='pretrain'):
  """See stages.py."""
  return stages.get_config(argument, change)
