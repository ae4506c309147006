"""Floating-point operations of a training step, by the formulas of alpro_jax/flops.py."""

from alpro_jax import flops
from alpro_jax.models.alpro import Alpro, AlproConfig


def step_flops(config, model: Alpro, *, as_original: bool = False) -> int:
  """Operations that a step needs, by formula; see `train_step`."""
  return config.data.batch_size * train_step(
    model.config,
    frames=config.data.frames,
    image_size=config.data.image_size,
    length=config.data.max_text_tokens,
    vtm=bool(config.loss.vtm) and config.task in ('pretrain', 'retrieval'),
    mlm=bool(config.loss.mlm) and config.task == 'pretrain',
    pem=bool(config.loss.pem) and config.task == 'pretrain',
    as_original=as_original,
  )


def train_step(
  config: AlproConfig,
  *,
  frames: int,
  image_size: int,
  length: int,
  vtm: bool,
  mlm: bool,
  pem: bool,
  as_original: bool = False,
) -> int:
  """Forward and backward of one pair, the teacher's forward pass included.

  Backward counts twice the forward. Work is counted once wherever it is
  merged or repeated, and recomputation for memory is not counted: this is
  what the method needs, not what a program does. The last layer of the fusion
  encoder needs to make only the tokens that a loss reads; with `as_original`
  it makes all, as the original does.
  """
  # How many tokens of each pair are read; None is all.
  pairs = [None] if pem else [1] if vtm or config.answers else []
  pairs += ([1, 1] if vtm else []) + ([length] if mlm else [])
  video = flops.video_forward(config, frames, image_size)
  trained = video + flops.text_forward(config, length) * (2 if mlm else 1)
  for tokens in pairs:
    trained += flops.fusion_forward(config, length, image_size, None if as_original else tokens)
  if mlm:
    trained += mlm_head_forward(config, length)
  width = config.text.width
  for classes in (config.entities if pem else 0, config.answers):
    if classes:
      trained += 4 * width * (width + classes)
  return 3 * trained + (video if pem else 0)


def mlm_head_forward(config: AlproConfig, length: int) -> int:
  """One text through the transform and the tied decoder."""
  width = config.text.width
  return 2 * length * width * (width + config.text.vocab_size)
