"""Configs of the trial of image-text weights: `:stand_in`, and a fine-tuning for each row.

See image_text.py, which fills in the sets and the tokenizer.
"""

from configs import common, image_text

CLIPS = 2000  # Of fine-tuning.
TOKENS = 16  # Of the longest text.
STAND_IN_STEPS, STEPS = 400, 300
BATCH = 64
# Of what reads time, which is new to image-text weights; and what they knew learns at this
# share of it, but for the row `slow`.
RATE, SHARE, SLOW_SHARE = 1e-2, 0.1, 0.01
RANDOM_RATE = 2e-3  # As the demo.
EMA, LAYER_DECAY, RANK = 0.99, 0.5, 8
# What the weights knew, but for what reads time. LoRA holds it.
_SPACE = (
  r'text_tower,(video|text)_projection,temperature,'
  r'video_encoder/(patch_embed|positions|class_\w+|norm\w*|block\d+/(attention|mlp|norm|mlp_norm))'
)
ROWS = ('plain', 'slow', 'decay', 'lora', 'random')


def get_config(name):
  """Returns the run for 'stand_in' or one of ROWS."""
  config = image_text.start(common.get_config('tiny_clip'))
  image_text.finetune(config, examples=CLIPS)
  config.task = 'prompter'  # Contrast alone.
  with config.unlocked():
    del config.model['text']
  config.model.dtype = 'float32'
  config.model.video.frames = 4
  config.model.text_tower.max_positions = TOKENS
  config.data.update(
    {
      'tokenizer': '',
      'max_text_tokens': TOKENS,
      'max_tower_tokens': TOKENS,
      'batch_size': BATCH,
      'frames': 4,
      'sampling': 'rand',
      'examples': 'texts',
    }
  )
  config.train.steps = STEPS
  config.data.sources = (common.source('runs/image_text/data/clips', style='full'),)
  config.eval.scoring = 'similarity'
  config.optimizer.learning_rate = RATE
  image_text.slow(config, SLOW_SHARE if name == 'slow' else SHARE)
  if name in ('stand_in', 'random'):
    config.optimizer.update({'learning_rate': RANDOM_RATE, 'groups': ''})
    config.train.init_from = ''
    _from_random_weights(config.model)
  if name == 'stand_in':
    config.data.sources = (common.source('runs/image_text/data/stills'),)
    config.train.steps = STAND_IN_STEPS
    config.data.frames = config.model.video.frames = 1
    config.model.video.attention = 'space_only'
  elif name == 'plain':
    config.train.ema_decay = EMA
  elif name == 'decay':
    config.optimizer.layer_decay = LAYER_DECAY
  elif name == 'lora':
    config.optimizer.freeze = _SPACE
    config.optimizer.lora.update({'rank': RANK, 'kernels': r'.*/attention/(query|value)'})
    time = ','.join(f'{part}={1 / SHARE}' for part in image_text.TIME.split(','))
    config.optimizer.update({'learning_rate': RATE * SHARE, 'groups': time})
  elif name not in ('slow', 'random'):
    raise ValueError(f"unknown {name=} after ':' in --config; choose stand_in or one of {ROWS}.")
  config.optimizer.warmup_steps = config.train.steps // 10
  return config


def _from_random_weights(model):
  """Initial values for little data: those of models.from_random_weights."""
  model.video.update(
    {'matrix_std': 0.16, 'temporal_fc_std': 0.16, 'position_std': 1.0, 'time_std': 1.0}
  )
  model.text_tower.update({'matrix_std': 0.15, 'word_std': 1.0, 'position_std': 0.3})
