"""Floating-point operations of a model, by formula.

Two for every multiply-add of matrix products and convolutions; norms,
softmax and other element-wise work are left out, as is usual for the share of
a chip's peak. Formulas, because XLA's own count takes the body of a loop once
and counts recomputation.
"""

from alpro_jax.models.alpro import AlproConfig


def _layer(tokens: int, width: int, mlp: int) -> int:
  """Query, key, value, output and the two MLP products of all tokens."""
  return 2 * tokens * width * (4 * width + 2 * mlp)


def _attention(sequences: int, length: int, width: int) -> int:
  """Scores and weighted values."""
  return 4 * sequences * length**2 * width


def video_forward(config: AlproConfig, frames: int, image_size: int) -> int:
  """One clip through the video encoder and its projection."""
  video = config.video
  n, t, d = (image_size // video.patch_size) ** 2, frames, video.width
  mlp = video.mlp_size
  if video.attention == 'divided':
    # Time: four products of attention and temporal_fc, on patches alone.
    block = 2 * n * t * d * 5 * d + _attention(n, t, d)
    block += 2 * t * (1 + n) * d * 4 * d + _attention(t, 1 + n, d)
    block += 4 * (1 + n * t) * d * mlp
  elif video.attention == 'joint':
    block = _layer(1 + n * t, d, mlp) + _attention(1, 1 + n * t, d)
  else:
    block = _layer(t * (1 + n), d, mlp) + _attention(t, 1 + n, d)
  patches = 2 * n * t * video.patch_size**2 * 3 * d
  return patches + video.depth * block + 2 * d * config.embed_size


def text_forward(config: AlproConfig, length: int) -> int:
  """One text through the text encoder and its projection."""
  text = config.text
  layer = _layer(length, text.width, text.mlp_size)
  layer += _attention(1, length, text.width)
  return text.fusion_layer * layer + 2 * text.width * config.embed_size


def fusion_forward(config: AlproConfig, length: int, image_size: int) -> int:
  """One pair of text and video tokens through the fusion encoder."""
  text = config.text
  tokens = length + 1 + (image_size // config.video.patch_size) ** 2
  layer = _layer(tokens, text.width, text.mlp_size)
  layer += _attention(1, tokens, text.width)
  return (text.depth - text.fusion_layer) * layer


def mlm_head_forward(config: AlproConfig, length: int) -> int:
  """One text through the transform and the tied decoder."""
  d = config.text.width
  return 2 * length * d * (d + config.text.vocab_size)


def retrieval(
    config: AlproConfig, *, texts: int, videos: int, pairs: int, frames: int,
    image_size: int, length: int,
) -> int:
  """Evaluation: everything encoded once, and `pairs` read (SPEC 10)."""
  fusion = fusion_forward(config, length, image_size)
  return (
      videos * video_forward(config, frames, image_size)
      + texts * text_forward(config, length)
      + pairs * (fusion + 2 * config.text.width * 2)
      + 2 * texts * videos * config.embed_size
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
) -> int:
  """Forward and backward of one pair, the teacher's forward pass included.

  Backward counts twice the forward. Work is counted once wherever it is
  merged or repeated, and recomputation for memory is not counted: this is
  what the method needs, not what a program does.
  """
  pairs = (3 if vtm else 1 if pem or config.answers else 0)
  pairs += 1 if mlm else 0
  trained = video_forward(config, frames, image_size)
  trained += text_forward(config, length) * (2 if mlm else 1)
  trained += pairs * fusion_forward(config, length, image_size)
  if mlm:
    trained += mlm_head_forward(config, length)
  d = config.text.width
  for classes in (config.entities if pem else 0, config.answers):
    if classes:
      trained += 2 * (2 * d * d + 2 * d * classes)
  teacher = video_forward(config, frames, image_size) if pem else 0
  return 3 * trained + teacher
