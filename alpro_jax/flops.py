"""Floating-point operations of a model, by formula.

Two for every multiply-add of matrix products and convolutions; norms,
softmax and other element-wise work are left out, as is usual for the share of
a chip's peak. Formulas, because XLA's own count takes the body of a loop once
and counts recomputation.
"""

from alpro_jax.models import encoders
from alpro_jax.models.alpro import AlproConfig


def video_forward(config: AlproConfig, frames: int, image_size: int) -> int:
  """One clip through the video encoder and its projection."""
  encoder = encoders.find('video', config.video.encoder)
  tokens = encoder.forward_flops(config.video, frames, image_size)
  return tokens + 2 * config.video.width * config.embed_size


def text_forward(config: AlproConfig, length: int) -> int:
  """One text through the encoders of texts, the tower's as long as it can be, and projected."""
  total, tower = 2 * config.contrasted('text').width * config.embed_size, config.text_tower
  if config.text:
    total += encoders.find('text', config.text.encoder).text_flops(config.text, length)
  if tower:
    encoder = encoders.find('text_tower', tower.encoder)
    total += encoder.text_flops(tower, tower.max_positions)
  return total


def fusion_forward(
  config: AlproConfig, length: int, image_size: int, query_tokens: int | None = None
) -> int:
  """One pair of text and video tokens through the fusion encoder.

  The last layer makes only the first `query_tokens`; None is all.
  """
  if not config.text:
    return 0
  tokens = length + 1 + (image_size // config.video.patch_size) ** 2
  encoder = encoders.find('text', config.text.encoder)
  return encoder.fusion_flops(config.text, tokens, query_tokens)


def retrieval(
  config: AlproConfig,
  *,
  texts: int,
  videos: int,
  pairs: int,
  frames: int,
  image_size: int,
  length: int,
) -> int:
  """Evaluation: everything encoded once, and `pairs` read by fusion."""
  pair = fusion_forward(config, length, image_size, 1) + 2 * config.token_width * 2
  return (
    videos * video_forward(config, frames, image_size)
    + texts * text_forward(config, length)
    + pairs * pair
    + 2 * texts * videos * config.embed_size
  )
