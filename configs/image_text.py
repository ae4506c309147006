"""Models that start from image-text weights: rates that keep what these know.

`:clip_b32`, `:clip_b16`, `:clip_l14`, `:siglip2_b16`, `:pe_core_b16` and `:pe_core_l14` of
configs/pretrain.py, pretrain_prompter.py and the fine-tunings are these, from a checkpoint
that launch/convert.py --image_text made (docs/weights.md):

  python launch/convert.py --image_text=data/clip-vit-base-patch16 \\
    --bert=data/bert-base-uncased --output=runs/clip_b16
  python launch/main.py --config=configs/finetune_msrvtt_retrieval.py:clip_b16 \\
    --workdir=runs/msrvtt --config.train.init_from=runs/clip_b16

The same checkpoint, with a BERT or without one, starts `:own` and `:tiny_own` on one's own set
(configs/own.py):

  python launch/main.py --config=configs/finetune_retrieval.py:own \\
    --workdir=runs/clips --config.data.path=sets/clips --config.train.init_from=runs/clip_b16
"""

import math

from configs import models

SCALES = tuple(models.IMAGE_TEXT)
FRAMES = 12  # Of published figures.
RATE = 1e-4  # Of what is new.
# The share of it at which towers learn.
PRETRAIN_SHARE, FINETUNE_SHARE = 0.05, 0.001
# Trained before, by others: towers, projections and temperature, but for what reads time.
# CLIP4Clip (Luo et al. 2021, arXiv 2104.08860) trains these at a thousandth of the rate of
# what is new: its --coef_lr 1e-3.
KNOWN = r'video_encoder,text_tower,(video|text)_projection,temperature,logit_bias'
TIME = r'video_encoder/times,video_encoder/block\d+/temporal_\w+'


def slow(config, factor):
  """Trains what the weights knew at this share of the learning rate."""
  known = KNOWN.split(',')
  if config.task == 'question_answering':  # Which has nothing that contrasts.
    known = known[:1]
  elif config.model.get('logit_bias') is None:  # Of sigmoid losses alone.
    known = known[:-1]
  parts = [f'{part}={factor}' for part in known] + [f'{part}=1' for part in TIME.split(',')]
  config.optimizer.groups = ','.join(parts)


def start(config):
  """What any run from such weights has: their images, texts and temperature, and no
  augmentation of colours, which they did not see.

  Args:
    config: common.get_config of one of SCALES, to change.
  """
  video, tower = config.model.video, config.model.text_tower
  config.model.dtype = 'bfloat16'
  config.data.update(
    {
      'tokenizer': 'data/bert-base-uncased/vocab.txt',
      'image_size': video.image_size,
      'resize': video.image_size,
      'frames': video.frames,
      'max_tower_tokens': tower.max_positions,
      # CLIP crops the middle of frames, the others squash them to squares.
      'resize_mode': 'short_side' if video.pooling == 'class' else 'squash',
    }
  )
  if config.model.logit_bias is not None:  # As SigLIP was trained.
    config.loss.vtc_form = 'sigmoid'
  config.data.randaugment.enabled = False
  config.train.init_from = 'runs/start'
  return config


def pretrain(config):
  """CLIP-ViP's post-pre-training (arXiv 2209.06430; its pretrain_vip_base_16.json): 5e-6 on
  the towers, cosine, weight decay 0.05, gradient norm 5; ALPRO's 1e-4 on what is new."""
  config.optimizer.update(
    {'learning_rate': RATE, 'schedule': 'cosine', 'weight_decay': 0.05, 'clip_norm': 5.0}
  )
  slow(config, PRETRAIN_SHARE)
  return config


def finetune(config, *, examples):
  """CLIP4Clip's fine-tuning (arXiv 2104.08860, and its README): 12 frames, 32 words, 5 epochs
  of 128 pairs, 1e-4 on what is new and 1e-7 on the towers, a tenth of warm-up, cosine.

  Args:
    config: to change.
    examples: captions or questions of the training split.
  """
  config.data.frames = config.model.video.frames = FRAMES
  config.data.update({'batch_size': 128, 'max_text_tokens': 32})
  config.train.steps = math.ceil(5 * examples / config.data.batch_size)
  config.optimizer.update(
    {
      'learning_rate': RATE,
      'schedule': 'cosine',
      'warmup_steps': config.train.steps // 10,
      'weight_decay': 0.2,
      'clip_norm': 1.0,
      'accumulation': 1,
    }
  )
  slow(config, FINETUNE_SHARE)
  return config


def own(config):
  """The same rates and pictures for a run on one's own set, whose batch and steps stay.

  A model without a BERT learns by contrast alone.

  Args:
    config: with the model that it starts from, to change.
  """
  fine = config.task in ('retrieval', 'question_answering')
  config.optimizer.learning_rate = RATE
  slow(config, FINETUNE_SHARE if fine else PRETRAIN_SHARE)
  config.data.randaugment.enabled = False
  if not config.model.get('text'):
    config.data.max_text_tokens = config.data.max_tower_tokens
    config.eval.scoring = 'similarity'
    if config.task == 'retrieval':
      config.loss.vtm = 0.0
  return config
