"""The prompter: video-text contrast on WebVid and CC3M (paper section 3.2).

  python launch/main.py --config=configs/pretrain_prompter.py --workdir=DIR

8 processes x 16 pairs x 2 accumulated, 10 epochs (SPEC 2.3). `:demo` is the
prompter of `make demo`.
"""

from configs import pretrain


def get_config(scale=''):
  """Returns the paper's run for '' or 'base', or 'large', 'own', 'demo'."""
  config = pretrain.get_config(scale)
  config.task = 'prompter'
  return config
