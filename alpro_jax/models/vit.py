"""A ViT of an image-text model over the frames of a clip, with attention over time between.

Towers of CLIP, SigLIP, SigLIP 2 and PE-Core (docs/weights.md) differ in the options of
`Config`. Where nothing about time has been learned, `temporal_fc` and `times` are 0 and
every frame is encoded as the image that it is: each has a class token of its own, unlike
in timesformer.py, where one is shared and already mixes frames in the first block.
"""

import dataclasses
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from alpro_jax.models import attention, layers, stack, timesformer
from alpro_jax.models.dropout import drop_path as drop_sequences
from alpro_jax.models.dropout import dropout, split

POOLINGS = ('class', 'attention')
POSITIONS = ('absolute', 'rotary', 'both')
ROTARY_BASE = 10_000


@dataclasses.dataclass(frozen=True)
class Config:
  """Sizes, family and initial values of the encoder; see configs/models.py.

  Attributes:
    attention: 'divided', over time and then over space, which starts out as the image
      model; 'joint', over both at once; or 'space_only'.
    activation: one of layers.ACTIVATIONS.
    epsilon: of all norms.
    class_token: whether each frame has one.
    registers: further tokens of each frame, which nothing reads.
    pooling: what stands for a frame: its class token, or 'attention', a learned query
      that attends to all of its tokens (MAP, Zhai et al. 2022, arXiv 2106.04560).
    pool_heads: heads of that query.
    patch_bias: whether the embedding of patches has a bias.
    norm_before: whether there is a norm before the first block.
    positions: 'absolute', a table that is added; 'rotary', in two dimensions; 'both'.
    layer_scale: initial factor of what a block adds; 0 has none.
    pixel_mean, pixel_std: of RGB in 0..1, as the weights were trained with.
  """

  image_size: int
  patch_size: int
  frames: int
  width: int
  depth: int
  heads: int
  mlp_size: int
  attention: str
  activation: str
  epsilon: float
  class_token: bool
  registers: int
  pooling: str
  pool_heads: int
  patch_bias: bool
  norm_before: bool
  positions: str
  layer_scale: float
  pixel_mean: tuple[float, ...]
  pixel_std: tuple[float, ...]
  drop_path: float
  dropout: float
  matrix_std: float
  temporal_fc_std: float
  position_std: float
  time_std: float
  encoder: str = 'vit'

  def __post_init__(self):
    for name in ('pixel_mean', 'pixel_std'):  # Lists, where a checkpoint stored them.
      object.__setattr__(self, name, tuple(getattr(self, name)))
    for name, choices in (
      ('attention', timesformer.ATTENTIONS),
      ('activation', layers.ACTIVATIONS),
      ('pooling', POOLINGS),
      ('positions', POSITIONS),
    ):
      layers.check_choice(f'video.{name}', getattr(self, name), choices)
    if self.image_size % self.patch_size:
      raise ValueError(f'{self.patch_size=} must divide {self.image_size=}.')
    if self.width % self.heads or (self.pooling == 'attention' and self.width % self.pool_heads):
      raise ValueError(f'{self.heads=} and {self.pool_heads=} must divide {self.width=}.')
    if self.pooling == 'class' and not self.class_token:
      raise ValueError("config.model.video.pooling='class' needs class_token=True.")
    if self.positions != 'absolute' and self.width // self.heads % 4:
      raise ValueError(
        f'{self.width=} over {self.heads=} must be a multiple of 4 for rotary positions: half of '
        'a head turns by the column, half by the row, in pairs.'
      )

  @property
  def grid(self) -> int:
    """Patches along one side of the configured image."""
    return self.image_size // self.patch_size

  @property
  def prefix(self) -> int:
    """Tokens of a frame before its patches."""
    return int(self.class_token) + self.registers


def rotary(grid: tuple[int, int], reference: int, prefix: int, size: int) -> layers.Rotary:
  """Rotary positions of the patches of a frame, as PE-Core has them.

  Columns and rows are counted from 1, and scaled to a grid of `reference` x `reference`:
  a larger image has finer steps over the same range. Tokens before the patches do not turn.

  Args:
    grid: rows and columns of patches.
    reference: side of the grid that was trained with.
    prefix: tokens before the patches.
    size: K, of a head.
  """
  bands = ROTARY_BASE ** -(np.arange(size // 4) / (size // 4))
  rows, columns = ((np.arange(n) + 1) / n * reference for n in grid)
  places = np.stack(np.broadcast_arrays(columns[None, :], rows[:, None]), axis=-1)
  angles = np.repeat((places.reshape(-1, 2, 1) * bands).reshape(-1, size // 2), 2, axis=1)
  angles = np.concatenate([np.zeros((prefix, size)), angles])
  return layers.Rotary(*(jnp.asarray(f(angles), jnp.float32) for f in (np.cos, np.sin)))


class Block(nn.Module):
  """A pre-norm block over the tokens of frames, or of one text.

  Attributes:
    config: of vit.py or text_tower.py.
    over_time: whether tokens first attend to those in the same place of other frames.
    causal: whether a token attends to none after it.
  """

  config: Any
  options: layers.ComputeOptions
  over_time: bool = False
  causal: bool = False

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    turns: layers.Rotary | None = None,
    *,
    key: jax.Array | None,
    drop_path: jax.Array | float,
  ) -> jax.Array:
    """f[B, T, L, D], or f[B, L, D] without time -> the same.

    Args:
      x: f[B, T, L, D].
      turns: rotary positions of the L tokens.
      key: of dropout and drop path; None in evaluation.
      drop_path: the chance that a sequence is dropped.
    """
    config, options, keys = self.config, self.options, split(key, 6)
    init = nn.initializers.normal(config.matrix_std)
    # The forms for GPUs know neither.
    plain = self.causal or turns is not None
    chosen = layers.Attention if plain else options.choose(layers.Attention)

    def norm(name, x):
      return options.layer_norm(config.epsilon, name=name)(x)

    def add(name, x, y, keys):
      if config.layer_scale:
        scale = nn.initializers.constant(config.layer_scale)
        y = y * self.param(name, scale, (config.width,)).astype(y.dtype)
      y = dropout(y, config.dropout, keys[0])
      return x + (drop_sequences(y, drop_path, keys[1]) if config.drop_path else y)

    if self.over_time:
      y = jnp.swapaxes(x, 1, 2)
      y = options.choose(layers.Attention)(config.heads, options, init, name='temporal_attention')(
        norm('temporal_norm', y)
      )
      start = nn.initializers.normal(config.temporal_fc_std)
      axes = ('embed', 'embed_out')
      y = layers.dense(config.width, axes, options, start, name='temporal_fc')(y)
      x = x + jnp.swapaxes(drop_sequences(y, drop_path, keys[4]) if config.drop_path else y, 1, 2)
    attend = chosen(config.heads, options, init, causal=self.causal, name='attention')
    extra = {} if turns is None else {'rotary': turns}
    x = add('scale', x, attend(norm('norm', x), **extra), keys[:2])
    mlp = layers.Mlp(config.mlp_size, options, init, config.activation, name='mlp')
    return add('mlp_scale', x, mlp(norm('mlp_norm', x)), keys[2:4])


class AttentionPool(nn.Module):
  """A learned query that attends to all tokens, and an MLP behind it (MAP)."""

  config: Config
  options: layers.ComputeOptions

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """f[..., L, D] -> f[..., D]."""
    config, options = self.config, self.options
    init, width = nn.initializers.normal(config.matrix_std), config.width

    def project(name, x, axes=('embed', 'heads')):
      return layers.dense(width, axes, options, init, name=name)(x)

    def heads(x):
      return einops.rearrange(x, '... l (a k) -> ... l a k', a=config.pool_heads)

    latent = nn.with_logical_partitioning(nn.initializers.normal(width**-0.5), (None, 'embed'))
    query = project('query', self.param('latent', latent, (1, width)).astype(options.dtype))
    query = jnp.broadcast_to(query, (*x.shape[:-2], 1, width))
    out = attention.attend(
      heads(query), heads(project('key', x)), heads(project('value', x)), kernel='xla'
    )
    out = project('out', einops.rearrange(out, '... l a k -> ... l (a k)'), ('heads', 'embed'))
    y = options.layer_norm(config.epsilon, name='norm')(out)
    mlp = layers.Mlp(config.mlp_size, options, init, config.activation, name='mlp')
    return (out + mlp(y))[..., 0, :]


class Encoder(nn.Module):
  """Pixels to one token for each frame, and to one for each patch, averaged over time."""

  config: Config
  options: layers.ComputeOptions

  @nn.compact
  def __call__(self, video: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
    """Encodes a clip of any length and any size that patches divide.

    Args:
      video: uint8[B, T, H, W, 3], or floats that are already normalised.
      train: whether dropout and drop path act.
    Returns:
      f[B, T, D], what stands for each frame; and f[B, 1 + N, D], the mean of those and
      the patches, averaged over time.
    Raises:
      ValueError: if H or W is not a multiple of the patch side.
    """
    config, options = self.config, self.options
    pixels, grid = timesformer.patches(video, config, options.dtype)
    frames = video.shape[1]
    init = layers.uniform_fan_in(pixels.shape[-1])
    x = nn.Dense(
      config.width,
      use_bias=config.patch_bias,
      dtype=options.dtype,
      kernel_init=nn.with_logical_partitioning(init, ('pixels', 'embed')),
      bias_init=init,
      name='patch_embed',
    )(pixels)
    x = self._add_positions(x, grid)
    if config.norm_before:
      x = options.layer_norm(config.epsilon, name='norm_before')(x)
    if config.attention != 'space_only':
      times = self._table('times', config.time_std, config.frames)
      x = x + timesformer.resize_times(times, frames)[:, None].astype(options.dtype)
    key, layers_key = split(self.make_rng('dropout') if train else None, 2)
    x = dropout(x, config.dropout, key)

    turns = None
    if config.positions != 'absolute':
      turns = rotary(grid, config.grid, config.prefix, config.width // config.heads)
    joint = config.attention == 'joint'
    if joint:
      x = einops.rearrange(x, 'b t l d -> b 1 (t l) d')
      turns = turns and layers.Rotary(*(jnp.tile(table, (frames, 1)) for table in turns))

    def make_block(name):
      return Block(config, options, config.attention == 'divided', name=name)

    keys = None if key is None else split(layers_key, config.depth)
    each = {'key': keys, 'drop_path': timesformer.drop_path_rates(config)}
    names = [f'block{i}' for i in range(config.depth)]
    x = stack.run_layers(self, make_block, names, x, turns, each=each, options=options)
    if joint:
      x = einops.rearrange(x, 'b 1 (t l) d -> b t l d', t=frames)
    x = options.layer_norm(config.epsilon, name='norm')(x)
    if config.pooling == 'class':
      pooled = x[:, :, 0]
    else:
      pooled = AttentionPool(config, options, name='pool')(x)
    clip = jnp.mean(pooled, axis=1, keepdims=True)
    return pooled, jnp.concatenate([clip, jnp.mean(x[:, :, config.prefix :], axis=1)], axis=1)

  def _table(self, name, std, rows):
    init = nn.with_logical_partitioning(nn.initializers.normal(std), ('positions', 'embed'))
    return self.param(name, init, (rows, self.config.width))

  def _add_positions(self, patches, grid):
    """f[B, T, N, D] -> f[B, T, prefix + N, D]."""
    config, std = self.config, self.config.position_std
    absolute, parts = config.positions != 'rotary', []
    if config.class_token:
      token = self._table('class_token', std, 1)
      # Not in place, where parameters may be arrays of NumPy.
      parts.append(token + self._table('class_position', std, 1) if absolute else token)
    if config.registers:
      parts.append(self._table('registers', std, config.registers))
    if absolute:
      positions = self._table('positions', std, config.grid**2)
      positions = timesformer.resize_positions(positions, (config.grid,) * 2, grid)
      patches = patches + positions.astype(patches.dtype)
    lead = patches.shape[:2]
    parts = [jnp.broadcast_to(x.astype(patches.dtype), (*lead, *x.shape)) for x in parts]
    return jnp.concatenate([*parts, patches], axis=2)


def forward_flops(config: Config, frames: int, image_size: int) -> int:
  """Operations for one clip; see flops.py."""
  patches, width, mlp = (image_size // config.patch_size) ** 2, config.width, config.mlp_size
  tokens = patches + config.prefix
  if config.attention == 'joint':
    block = layers.layer_flops(1, frames * tokens, width, mlp)
  else:
    block = layers.layer_flops(frames, tokens, width, mlp)
  if config.attention == 'divided':
    # Four products of attention and temporal_fc.
    block += tokens * frames * 2 * width * 5 * width
    block += layers.attention_flops(tokens, frames, width)
  total = 2 * patches * frames * config.patch_size**2 * 3 * width + config.depth * block
  if config.pooling == 'attention':
    total += frames * (2 * tokens * 2 * width**2 + 4 * tokens * width + 4 * width * (width + mlp))
  return total
