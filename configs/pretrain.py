"""ALPRO: the four losses on WebVid2M and CC3M (paper section 4.2).

  python launch/main.py --config=configs/pretrain.py --workdir=DIR \\
    --config.prompter.checkpoint=DIR_OF_PROMPTER

16 processes x 16 pairs for 100,000 steps, about 10 epochs of 2.5 million
clips and 3 million photos. `:large` is ViT-L with BERT-large, `:demo` the
pre-training of `make demo`, `:own` a run on the set that the README makes.

The paper starts from a ViT and a BERT. Without --config.train.init_from all
weights are random, and the log says so; with one, made by

  python launch/convert.py --vit=vit_base_patch16_224.safetensors \\
    --bert=data/bert-base-uncased --output=runs/start

pass --config.train.init_from=runs/start, here as to the prompter.
"""

from configs import common

SCALES = ('base', 'large', 'own', 'demo')


def get_config(scale=''):
  """Returns the paper's run for '' or 'base', or 'large', 'own', 'demo'.

  Raises:
    ValueError: for another scale.
  """
  scale = scale or 'base'
  if scale not in SCALES:
    raise ValueError(f"unknown {scale=} after ':' in --config; choose one of {SCALES}.")
  if scale == 'demo':
    return demo()
  return own() if scale == 'own' else paper(scale)


def paper(model):
  """The paper's values, which are the defaults, with its data."""
  config = common.get_config(model)
  config.model.dtype = 'bfloat16'
  config.data.sources = (common.source('data/webvid2m'), common.source('data/cc3m'))
  config.data.tokenizer = 'data/bert-base-uncased/vocab.txt'
  config.prompter.entities = 'data/entities.txt'
  config.optimizer.warmup_steps = 5_000
  config.train.steps = 100_000
  config.train.checkpoint_every_steps = 1_000
  return config


def own():
  """The base model on one set in sets/clips, in batches for one GPU."""
  config = paper('base')
  config.data.update(
    {
      'sources': (common.source('sets/clips'),),
      'tokenizer': 'sets/tokenizer.model',
      'batch_size': 32,
    }
  )
  config.prompter.entities = 'sets/entities.txt'
  config.prompter.num_entities = 0  # As many as the captions gave.
  config.optimizer.warmup_steps = 500
  config.train.steps = 10_000
  return config


def demo():
  """A small model on the embedded data set, from random weights.

  Starts from the prompter of `pretrain_prompter:demo`, which has learned the
  same captions by contrast. One style of caption per batch: a short caption is
  right for many clips that a full one is wrong for.
  """
  shapes = 'runs/demo/data/shapes'
  config = common.get_config('tiny')
  # Large, or captions and clips all start out alike and neither side has
  # anything to learn from; but not so large that attention sees one token.
  config.model.video.update(
    {
      'drop_path': 0.0,
      'matrix_std': 0.16,
      'temporal_fc_std': 0.16,
      'position_std': 1.0,
      'time_std': 1.0,
      'smooth_positions': True,
    }
  )
  config.model.text.update(
    {
      'dropout': 0.0,
      'max_positions': 32,
      'matrix_std': 0.15,
      'word_std': 1.0,
      'position_std': 0.3,
      'mlm_logit_scale': 0.125,
    }
  )
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
