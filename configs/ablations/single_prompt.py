"""One prompt for each entity instead of an ensemble (paper 4.4)."""

from configs.ablations import stages


def change(config, stage):
  del stage
  templates = config.prompter.video_templates
  config.prompter.video_templates = templates[:1] or ('A video of a {entity}.',)
  config.prompter.image_templates = config.prompter.image_templates[:1] or (
    'A photo of a {entity}.',
  )


def get_config(argument='pretrain'):
  """See stages.py."""
  return stages.get_config(argument, change)
