"""The prompter: video-text contrast on WebVid and CC3M (paper section 3.2).

  python launch/main.py --config=configs/pretrain_prompter.py --workdir=DIR

8 processes x 16 pairs x 2 accumulated, 10 epochs (SPEC 2.3). `:demo` is the
prompter of `make demo`.
"""

from configs import common, pretrain


def get_config(scale=''):
  """Returns the paper's run for '' or 'base', or 'large', 'demo'."""
  config = pretrain.get_config(scale)
  config.task = 'prompter'
  return demo(config) if scale == 'demo' else config


def demo(config):
  """Motion first: colours are easy and would hide it."""
  motion_steps = 180
  shapes = config.data.sources[0].path
  config.data.sources = (
      common.source(shapes, style='motion', until_step=motion_steps),
      common.source(
          shapes, style='full', weight=0.6, from_step=motion_steps),
      common.source(
          shapes, style='entity', weight=0.25, from_step=motion_steps),
      common.source(
          shapes, style='motion', weight=0.15, from_step=motion_steps),
  )
  config.optimizer.learning_rate = 2e-3
  config.train.steps = 1200
  return config
