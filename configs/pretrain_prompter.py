"""The prompter: video-text contrast on WebVid and CC3M (paper section 3.2).

  python launch/main.py --config=configs/pretrain_prompter.py --workdir=DIR

8 processes x 16 pairs x 2 accumulated, 10 epochs (docs/specification.md,
Published settings). `:demo` is the prompter of `make demo`; `:own` and
`:tiny_own` are for one's own set (configs/own.py).

The paper starts from a ViT and a BERT. Without --config.train.init_from all
weights are random, and the log says so; with one, made by

  python launch/convert.py --vit=vit_base_patch16_224.safetensors \\
    --bert=data/bert-base-uncased --output=runs/start

pass --config.train.init_from=runs/start.
"""

from configs import common, image_text, own, pretrain


def get_config(scale=''):
  """Returns the paper's run for '' or 'base', or one of pretrain.SCALES."""
  config = pretrain.get_config(scale)
  config.task = 'prompter'
  if scale == 'demo':
    return demo(config)
  if scale in (*own.SCALES, *image_text.SCALES):
    return config
  # The original's 20 acts on the sum of two micro-batches.
  config.optimizer.clip_norm = 10.0
  return config


def demo(config):
  """Motion first: colours are easy and would hide it."""
  motion_steps = 200
  shapes = config.data.sources[0].path
  config.data.sources = (
    common.source(shapes, style='motion', until_step=motion_steps),
    *(
      common.source(shapes, style=style, weight=weight, from_step=motion_steps)
      for style, weight in (('full', 0.55), ('shape', 0.2), ('entity', 0.1), ('motion', 0.15))
    ),
  )
  config.train.steps = 1800
  return config
