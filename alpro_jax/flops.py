"""Floating-point operations of a model, by formula.

Two for every multiply-add of matrix products and convolutions; norms,
softmax and other element-wise work are left out, as is usual for the share of
a chip's peak. Formulas, because XLA's own count takes the body of a loop once
and counts recomputation.
"""

from alpro_jax.models.alpro import AlproConfig


def _layer(tokens: int, width: int, mlp: int, read: int | None = None) -> int:
  """Keys and values of all tokens, and of those that are read query, output
  and the two MLP products.
  """
  read = tokens if read is None else read
  return 2 * width * (2 * tokens * width + read * (2 * width + 2 * mlp))


def _attention(sequences: int, length: int, width: int, read: int | None = None) -> int:
  """Scores and weighted values."""
  read = length if read is None else read
  return 4 * sequences * read * length * width


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


def fusion_forward(
  config: AlproConfig, length: int, image_size: int, read: int | None = None
) -> int:
  """One pair of text and video tokens through the fusion encoder.

  The last layer makes only the first `read` tokens; None is all.
  """
  text = config.text
  tokens = length + 1 + (image_size // config.video.patch_size) ** 2

  def layer(read=None):
    return _layer(tokens, text.width, text.mlp_size, read) + _attention(1, tokens, text.width, read)

  return (text.depth - text.fusion_layer - 1) * layer() + layer(read)


def mlm_head_forward(config: AlproConfig, length: int) -> int:
  """One text through the transform and the tied decoder."""
  d = config.text.width
  return 2 * length * d * (d + config.text.vocab_size)


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
  """Evaluation: everything encoded once, and `pairs` read."""
  fusion = fusion_forward(config, length, image_size, read=1)
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
  as_original: bool = False,
) -> int:
  """Forward and backward of one pair, the teacher's forward pass included.

  Backward counts twice the forward. Work is counted once wherever it is
  merged or repeated, and recomputation for memory is not counted: this is
  what the method needs, not what a program does. The last layer of the fusion
  encoder needs to make only the tokens that a loss reads; with `as_original`
  it makes all, as the original does.
  """
  # How many tokens of each pair are read.
  pairs = [None] if pem else [1] if vtm or config.answers else []
  pairs += [1, 1] if vtm else []
  pairs += [length] if mlm else []
  trained = video_forward(config, frames, image_size)
  trained += text_forward(config, length) * (2 if mlm else 1)
  trained += sum(
    fusion_forward(config, length, image_size, None if as_original else read) for read in pairs
  )
  if mlm:
    trained += mlm_head_forward(config, length)
  d = config.text.width
  for classes in (config.entities if pem else 0, config.answers):
    if classes:
      trained += 2 * (2 * d * d + 2 * d * classes)
  teacher = video_forward(config, frames, image_size) if pem else 0
  return 3 * trained + teacher
