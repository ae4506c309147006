"""TimeSformer: the video encoder, with divided, joint or no time attention."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn

from alpro_jax.models import layers, stack
from alpro_jax.models.dropout import drop_path, dropout, split

ATTENTIONS = ('divided', 'joint', 'space_only')

# Statistics of CLIP's pixels, for RGB in 0..1.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class Config:
  """The video encoder's sizes and initial values; see configs/models.py."""

  image_size: int
  patch_size: int
  frames: int
  width: int
  depth: int
  heads: int
  mlp_size: int
  attention: str
  drop_path: float
  dropout: float
  matrix_std: float
  temporal_fc_std: float
  position_std: float
  time_std: float
  smooth_positions: bool
  encoder: str = 'timesformer'
  pixel_mean = PIXEL_MEAN
  pixel_std = PIXEL_STD

  def __post_init__(self):
    if self.attention not in ATTENTIONS:
      raise ValueError(f'{self.attention=} is not known; choose one of {ATTENTIONS}.')
    if self.image_size % self.patch_size:
      raise ValueError(f'{self.patch_size=} must divide {self.image_size=}.')
    if self.width % self.heads:
      raise ValueError(f'{self.heads=} must divide {self.width=}.')

  @property
  def grid(self) -> int:
    """Patches along one side of the configured image."""
    return self.image_size // self.patch_size


def normalize_pixels(
  video: jax.Array, mean: tuple[float, ...] = PIXEL_MEAN, std: tuple[float, ...] = PIXEL_STD
) -> jax.Array:
  """uint8 RGB in 0..255 -> float32 with mean and deviation, of RGB in 0..1, removed."""
  video = video.astype(jnp.float32) / 255.0
  return (video - jnp.array(mean)) / jnp.array(std)


def patches(video: jax.Array, config: Any, dtype: jnp.dtype) -> tuple[jax.Array, tuple[int, int]]:
  """Cuts frames into patches.

  Args:
    video: uint8[B, T, H, W, 3], or floats that are already normalised.
    config: of a video encoder: its patches and pixel statistics.
    dtype: of the result.
  Returns:
    f[B, T, N, 3 P P], and rows and columns of the N patches.
  Raises:
    ValueError: if H or W is not a multiple of P.
  """
  height, width = video.shape[2:4]
  p = config.patch_size
  if height % p or width % p:
    raise ValueError(
      f'{video.shape=}: height and width must be multiples of {p=}, the '
      'patch side; resize or crop the frames.'
    )
  if not jnp.issubdtype(video.dtype, jnp.floating):
    video = normalize_pixels(video, config.pixel_mean, config.pixel_std)
  video = video.astype(dtype)
  cut = einops.rearrange(video, 'b t (h p) (w q) c -> b t (h w) (p q c)', p=p, q=p)
  return cut, (height // p, width // p)


def resize_positions(table: jax.Array, old: tuple[int, int], new: tuple[int, int]) -> jax.Array:
  """Resizes f[N, D] patch positions bilinearly, as the grid they are."""
  if old == new:
    return table
  grid = einops.rearrange(table, '(h w) d -> h w d', h=old[0], w=old[1])
  grid = jax.image.resize(grid, (*new, table.shape[-1]), 'bilinear')
  return einops.rearrange(grid, 'h w d -> (h w) d')


def resize_times(table: jax.Array, frames: int) -> jax.Array:
  """Repeats or skips rows of f[T, D]: new[i] = old[floor(i * old / new)].

  4 rows to 8: 0 0 1 1 2 2 3 3.   8 rows to 4: 0 2 4 6.
  """
  old = table.shape[0]
  if old == frames:
    return table
  return table[jnp.arange(frames) * old // frames]


def fit_table(name: str, table: jax.Array, rows: int) -> jax.Array:
  """Resizes a table of a stored encoder to another image size or clip length.

  Args:
    name: 'positions' of a square grid or 'times'.
    table: f[old rows, D].
    rows: new number of rows.
  Returns:
    f[rows, D]; positions in 2-D (defect 15).
  Raises:
    ValueError: if positions are not those of square grids.
  """
  if name == 'times':
    return resize_times(table, rows)
  old, new = math.isqrt(len(table)), math.isqrt(rows)
  if old * old != len(table) or new * new != rows:
    raise ValueError(
      f'cannot resize {len(table)} patch positions to {rows}: both must be square grids.'
    )
  return resize_positions(table, (old, old), (new, new))


def smooth_init(std: float, sizes: Sequence[int]) -> layers.Initializer:
  """Random Fourier features over a grid: neighbours start out alike.

  Channel d of the point p in [0, 1]^n is sqrt(2) std cos(2 pi (f_d p + u_d)),
  f_d normal with deviation 0.5 cycles, u_d uniform: deviation std, mean 0.
  """

  def init(key, shape, dtype=jnp.float32):
    axes = [(jnp.arange(n, dtype=jnp.float32) + 0.5) / n for n in sizes]
    points = jnp.stack(jnp.meshgrid(*axes, indexing='ij'), axis=-1)
    points = points.reshape(math.prod(sizes), len(sizes))
    frequency_key, phase_key = jax.random.split(key)
    frequency = 0.5 * jax.random.normal(frequency_key, (len(sizes), shape[-1]))
    phase = jax.random.uniform(phase_key, (1, shape[-1]))
    table = jnp.cos(2 * jnp.pi * (points @ frequency + phase))
    return (math.sqrt(2) * std * table).astype(dtype).reshape(shape)

  return init


class Block(nn.Module):
  """A pre-norm transformer block over f[..., tokens, D]."""

  config: Config
  options: layers.ComputeOptions

  @nn.compact
  def __call__(
    self, x: jax.Array, *, key: jax.Array | None, drop_path: jax.Array | float
  ) -> jax.Array:
    """f[..., tokens, D] -> the same.

    Args:
      x: f[..., tokens, D].
      key: of dropout and drop path; None in evaluation.
      drop_path: the chance that a sequence is dropped.
    """
    keys = split(key, 4)
    x = x + self._drop(self._attend(x), drop_path, *keys[:2])
    return x + self._drop(self._mlp(x), drop_path, *keys[2:])

  def _attend(self, x, prefix='', mask=None):
    config, options = self.config, self.options
    x = options.layer_norm(EPSILON, name=f'{prefix}norm')(x)
    init, attention = nn.initializers.normal(config.matrix_std), options.choose(layers.Attention)
    return attention(config.heads, options, init, name=f'{prefix}attention')(x, mask)

  def _mlp(self, x):
    config, options = self.config, self.options
    x = options.layer_norm(EPSILON, name='mlp_norm')(x)
    init = nn.initializers.normal(config.matrix_std)
    return layers.Mlp(config.mlp_size, options, init, name='mlp')(x)

  def _drop(self, x, rate, key, path_key):
    x = dropout(x, self.config.dropout, key)
    return drop_path(x, rate, path_key) if self.config.drop_path else x


class DividedBlock(Block):
  """Attention over time at each place, then over space in each frame.

  The drop paths are TimeSformer's: time drops single places and does so before
  temporal_fc, whose bias is therefore always added; space drops single frames
  before their class tokens are averaged; the MLP drops whole videos.
  """

  frames: int

  @nn.compact
  def __call__(
    self, x: jax.Array, *, key: jax.Array | None, drop_path: jax.Array | float
  ) -> jax.Array:
    """As `Block`, over f[B, 1 + T*N, D]; frame t's patches are together."""
    config, keys = self.config, split(key, 6)
    class_token, patches = x[:, :1], x[:, 1:]

    places = einops.rearrange(patches, 'b (t n) d -> b n t d', t=self.frames)
    y = self._drop(self._attend(places, 'temporal_'), drop_path, *keys[:2])
    init = nn.initializers.normal(config.temporal_fc_std)
    axes = ('embed', 'embed_out')
    y = layers.dense(config.width, axes, self.options, init, name='temporal_fc')(y)
    frames = einops.rearrange(places + y, 'b n t d -> b t n d')

    copies = jnp.broadcast_to(class_token[:, None], (*frames.shape[:2], 1, config.width))
    y = self._attend(jnp.concatenate([copies, frames], axis=2))
    y = self._drop(y, drop_path, *keys[2:4])
    class_token = class_token + jnp.mean(y[:, :, 0], axis=1, keepdims=True)
    patches = einops.rearrange(frames + y[:, :, 1:], 'b t n d -> b (t n) d')
    x = jnp.concatenate([class_token, patches], axis=1)
    return x + self._drop(self._mlp(x), drop_path, *keys[4:])


class Encoder(nn.Module):
  """Pixels to one class token and one token per patch, averaged over time."""

  config: Config
  options: layers.ComputeOptions

  @nn.compact
  def __call__(self, video: jax.Array, *, train: bool) -> jax.Array:
    """Encodes a clip of any length and any size that patches divide.

    Args:
      video: uint8[B, T, H, W, 3], or floats that are already normalised.
      train: whether dropout and drop path act.
    Returns:
      f[B, 1 + N, D]; token 0 is the class token.
    Raises:
      ValueError: if H or W is not a multiple of the patch side.
    """
    config, options = self.config, self.options
    t = video.shape[1]
    pixels, grid = patches(video, config, options.dtype)
    init = layers.uniform_fan_in(pixels.shape[-1])
    embed = layers.dense(config.width, ('pixels', 'embed'), options, init, init, name='patch_embed')
    class_token, positions, times = self._embeddings(grid, t)
    x = embed(pixels) + positions + times[:, None]
    key, layers_key = split(self.make_rng('dropout') if train else None, 2)
    x = dropout(x, config.dropout, key)
    space_only = config.attention == 'space_only'
    if not space_only:
      x = einops.rearrange(x, 'b t n d -> b (t n) d')
    # Not einops.repeat, whose gradient makes XLA's GPU compiler transpose all
    # tokens before and after each layer.
    first = jnp.broadcast_to(class_token, (*x.shape[:-2], 1, config.width))
    x = jnp.concatenate([first, x], axis=-2)

    def make_block(name):
      if config.attention == 'divided':
        return options.choose(DividedBlock)(config, options, t, name=name)
      return Block(config, options, name=name)

    names = [f'block{i}' for i in range(config.depth)]
    keys = None if key is None else split(layers_key, config.depth)
    each = {'key': keys, 'drop_path': drop_path_rates(config)}
    x = stack.run_layers(self, make_block, names, x, each=each, options=options)
    x = options.layer_norm(EPSILON, name='norm')(x)
    if space_only:
      return jnp.mean(x, axis=1)
    places = einops.reduce(x[:, 1:], 'b (t n) d -> b n d', 'mean', t=t)
    return jnp.concatenate([x[:, :1], places], axis=1)

  def _embeddings(self, grid, frames):
    """Class token f[D], positions f[N, D], times f[T, D] (0 if space_only)."""
    config = self.config
    normal = nn.initializers.normal(config.position_std)
    position_init, time_init = normal, nn.initializers.normal(config.time_std)
    if config.smooth_positions:
      position_init = smooth_init(config.position_std, (config.grid,) * 2)
      time_init = smooth_init(config.time_std, (config.frames,))

    def param(name, init, rows):
      init = nn.with_logical_partitioning(init, ('positions', 'embed'))
      return self.param(name, init, (rows, config.width))

    class_token = param('class_token', normal, 1) + param('class_position', normal, 1)
    positions = param('positions', position_init, config.grid**2)
    positions = resize_positions(positions, (config.grid,) * 2, grid)
    times = jnp.zeros((frames, config.width))
    if config.attention != 'space_only':
      times = resize_times(param('times', time_init, config.frames), frames)
    return tuple(x.astype(self.options.dtype) for x in (class_token[0], positions, times))


def drop_path_rates(config: Config) -> list[float]:
  """Returns each block's rate: 0 in the first, the configured in the last."""
  last = max(config.depth - 1, 1)
  return [config.drop_path * i / last for i in range(config.depth)]


def forward_flops(config: Config, frames: int, image_size: int) -> int:
  """Operations for one clip; see flops.py."""
  n, t, d, mlp = (image_size // config.patch_size) ** 2, frames, config.width, config.mlp_size
  if config.attention == 'divided':
    # Time: four products of attention and temporal_fc, on patches alone.
    block = n * t * 2 * d * 5 * d + layers.attention_flops(n, t, d)
    block += t * (1 + n) * 2 * d * 4 * d + layers.attention_flops(t, 1 + n, d)
    block += (1 + n * t) * 4 * d * mlp
  elif config.attention == 'joint':
    block = layers.layer_flops(1, 1 + n * t, d, mlp)
  else:
    block = layers.layer_flops(t, 1 + n, d, mlp)
  return 2 * n * t * config.patch_size**2 * 3 * d + config.depth * block
