"""ALPRO: the four losses on WebVid2M and CC3M (paper section 4.2).

  python launch/main.py --config=configs/pretrain.py --workdir=DIR \\
    --config.prompter.checkpoint=DIR_OF_PROMPTER

16 processes x 16 pairs for 100,000 steps, about 10 epochs of 2.5 million
clips and 3 million photos. `:large` is ViT-L with BERT-large, `:demo` the
pre-training of `make demo`; `:own` and `:tiny_own` are runs on one's own set,
--config.data.path=SET, sized to the machine (configs/own.py); `:clip_b16` and others
start from image-text weights (configs/image_text.py).

The paper starts from a ViT and a BERT. Without --config.train.init_from all
weights are random, and the log says so; with one, made by

  python launch/convert.py --vit=vit_base_patch16_224.safetensors \\
    --bert=data/bert-base-uncased --output=runs/start

pass --config.train.init_from=runs/start, here as to the prompter.
"""

from configs import common, image_text, models, own

SCALES = ('base', 'large', 'demo', *own.SCALES, *image_text.SCALES)


def get_config(scale=''):
  """Returns the paper's run for '' or 'base', or one of SCALES.

  Raises:
    ValueError: for another scale.
  """
  scale = scale or 'base'
  if scale not in SCALES:
    raise ValueError(f"unknown {scale=} after ':' in --config; choose one of {SCALES}.")
  if scale == 'demo':
    return demo()
  if scale in image_text.SCALES:
    return image_text.pretrain(image_text.start(paper(scale)))
  return own.get_config(scale) if scale in own.SCALES else paper(scale)


def paper(model):
  """The paper's values, which are the defaults, with its data."""
  config = common.get_config(model)
  config.model.dtype = 'bfloat16'
  config.data.sources = (common.source('data/webvid2m'), common.source('data/cc3m'))
  config.data.tokenizer = 'data/bert-base-uncased/vocab.txt'
  config.prompter.entities = 'data/entities.txt'
  config.optimizer.warmup_steps = 5_000
  config.eval.loss_batches = 8  # If eval.sources names a held-out set.
  config.train.steps = 100_000
  config.train.checkpoint_every_steps = 1_000
  return config


def demo():
  """A small model on the embedded data set, from random weights.

  Starts from the prompter of `pretrain_prompter:demo`, which has learned the
  same captions by contrast. One style of caption per batch: a short caption is
  right for many clips that a full one is wrong for.
  """
  shapes = 'runs/demo/data/shapes'
  config = common.get_config('tiny')
  models.from_random_weights(config.model)
  config.model.text.max_positions = 32
  config.data.update(
    {
      'sources': (
        common.source(shapes, style='full', weight=0.55),
        common.source(shapes, style='shape', weight=0.2),
        common.source(shapes, style='entity', weight=0.1),
        common.source(shapes, style='motion', weight=0.15),
      ),
      'tokenizer': 'runs/demo/data/tokenizer.model',
      'batch_size': 64,
      'max_text_tokens': 16,
      'image_size': 48,
      'resize': 48,
      'sampling': 'headtail',
    }
  )
  config.data.randaugment.enabled = False
  config.loss.update(
    {
      # The ramp is cut short: with hard negatives alone it says no too often.
      'uniform_negative_steps': 200,
      'negative_ramp_steps': 800,
      'region_rule': 'nominal',
      'region_area': (0.4, 0.6),
    }
  )
  config.prompter.update(
    {
      'entities': 'runs/demo/data/entities.txt',
      'num_entities': 5,
      # In the words of the captions: no caption says "a video of a disc".
      'video_templates': (
        'a {entity}',
        *(f'a {colour} {{entity}}' for colour in ('red', 'green', 'blue', 'yellow')),
      ),
    }
  )
  config.optimizer.update(
    {
      'learning_rate': 2e-3,
      'schedule': 'cosine',
      'warmup_steps': 40,
      'final_fraction': 0.05,
      'clip_norm': 1.0,
    }
  )
  config.train.steps = 700
  return config
