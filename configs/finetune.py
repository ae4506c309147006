"""What the four fine-tunings share (paper section 4.3).

The original's values: docs/specification.md, Published settings.
"""

import math

from configs import common, image_text, pretrain

SCALES = ('base', 'large', 'demo', *image_text.SCALES)


def start(scale):
  """Returns the config that a fine-tuning starts from.

  Raises:
    ValueError: for another scale than those of SCALES.
  """
  scale = scale or 'base'
  if scale not in SCALES:
    raise ValueError(f"unknown {scale=} after ':' in --config; choose one of {SCALES}.")
  if scale == 'demo':
    return pretrain.get_config('demo')
  config = common.get_config(scale)
  if scale in image_text.SCALES:
    config = image_text.start(config)
    config.data.update({'sampling': 'rand', 'examples': 'texts'})
    return config
  config.model.dtype = 'bfloat16'
  config.data.tokenizer = 'data/bert-base-uncased/vocab.txt'
  # Frames are squashed to the size of the image, without a crop.
  config.data.resize = config.data.image_size
  config.data.sampling = 'rand'
  config.data.examples = 'texts'
  config.train.init_from = 'runs/pretrain'
  return config


def retrieval(config):
  """VTC + VTM on captions."""
  config.task = 'retrieval'
  config.loss.mlm = config.loss.pem = 0.0
  # The original builds RandAugment here and never applies it (defect 11).
  config.data.randaugment.enabled = False
  config.train.new_parameters = ()
  config.train.unused_parameters = ('mlm_head', 'entity_head')
  config.train.best_metric = 'eval/t2v_r1'
  return config


def question_answering(config):
  """Classification over the training answers."""
  config.task = 'question_answering'
  config.data.text = 'questions'
  config.train.new_parameters = ('answer_head',)
  config.train.unused_parameters = (
    'mlm_head',
    'entity_head',
    'match_head',
    'video_projection',
    'text_projection',
    'temperature',
    'text_tower',
    'logit_bias',
  )
  config.train.best_metric = 'eval/accuracy'
  return config


def clip(config, *, frames, max_text_tokens):
  """Sets the length of clips and texts."""
  config.data.frames = config.model.video.frames = frames
  config.data.max_text_tokens = max_text_tokens
  return config


def schedule(
  config, *, examples, epochs, batch_size, learning_rate, clip_norm, evaluations, accumulation=1
):
  """Sets the original's schedule: a line after a tenth of warm-up.

  Models that start from image-text weights have that of configs/image_text.py. See
  docs/specification.md, Optimisation.

  Args:
    config: to change.
    examples: captions or questions of the training split.
    epochs: passes over them.
    batch_size: global, of one update.
    learning_rate: the highest.
    clip_norm: of the original, where it acts on the sum of the gradients of
      the micro-batches; here it acts on their mean.
    evaluations: during the training.
    accumulation: micro-batches of one update.
  """
  if config.model.get('text_tower'):
    image_text.finetune(config, examples=examples)
    return _every(config, evaluations)
  steps = math.ceil(epochs * examples / batch_size)
  config.data.batch_size = batch_size
  config.optimizer.update(
    {
      'learning_rate': learning_rate,
      'warmup_steps': steps // 10,
      'clip_norm': clip_norm / accumulation,
      'accumulation': accumulation,
    }
  )
  config.train.steps = steps
  return _every(config, evaluations)


def _every(config, evaluations):
  config.train.eval_every_steps = math.ceil(config.train.steps / evaluations)
  config.train.checkpoint_every_steps = math.ceil(config.train.steps / 100)
  return config


def demo(config, *, steps, learning_rate):
  """A short schedule on the embedded data set; see launch/demo.py."""
  downstream = 'runs/demo/data/downstream'
  config.data.sources = (common.source(downstream),)
  config.data.answers = 'runs/demo/data/answers.txt'
  config.data.examples = 'texts'
  config.optimizer.learning_rate = learning_rate
  config.loss.uniform_negative_steps = 0
  config.loss.negative_ramp_steps = 0
  config.train.steps = steps
  config.train.init_from = 'runs/demo/pretrain'
  config.eval.sources = (common.source(downstream, split='test'),)
  return config
