"""TimeSformer: the video encoder, with divided, joint or no time attention."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn

from alpro_jax.models import fused, layers, stack

ATTENTIONS = ('divided', 'joint', 'space_only')

# Statistics of CLIP's pixels, for RGB in 0..1.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class VideoConfig:
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


def normalize_pixels(video: jax.Array) -> jax.Array:
  """uint8 RGB in 0..255 -> float32 with CLIP's mean and deviation removed."""
  video = video.astype(jnp.float32) / 255.0
  return (video - jnp.array(PIXEL_MEAN)) / jnp.array(PIXEL_STD)


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


def _drop(config, drop_path, y, key, path_key):
  """Dropout, and then the drop path of a block over f[..., tokens, D]."""
  y = layers.dropout(y, config.dropout, key)
  if not config.drop_path:
    return y
  return layers.dropout(y, drop_path, path_key, sequences=True)


class Block(nn.Module):
  """A pre-norm transformer block over f[..., tokens, D]."""

  config: VideoConfig
  options: layers.ComputeOptions

  @nn.compact
  def __call__(
    self, x: jax.Array, *, key: jax.Array | None, drop_path: jax.Array | float
  ) -> jax.Array:
    """f[..., tokens, D] -> the same.

    Args:
      x: f[..., tokens, D].
      key: of dropout and drop path; None in evaluation.
      drop_path: the chance that a sequence is dropped, a number.
    """
    config, options = self.config, self.options
    init = nn.initializers.normal(config.matrix_std)
    keys = layers.split(key, 4)
    drop = functools.partial(_drop, config, drop_path)

    y = layers.layer_norm(EPSILON, options, name='norm')(x)
    y = layers.Attention(config.heads, options, init, name='attention')(y)
    x = x + drop(y, *keys[:2])
    y = layers.layer_norm(EPSILON, options, name='mlp_norm')(x)
    y = layers.Mlp(config.mlp_size, options, init, name='mlp')(y)
    return x + drop(y, *keys[2:])


class DividedBlock(nn.Module):
  """Attention over time at each place, then over space in each frame.

  The drop paths are TimeSformer's: time drops single places and does so before
  temporal_fc, whose bias is therefore always added; space drops single frames
  before their class tokens are averaged; the MLP drops whole videos.
  """

  config: VideoConfig
  options: layers.ComputeOptions
  frames: int

  @nn.compact
  def __call__(
    self, x: jax.Array, *, key: jax.Array | None, drop_path: jax.Array | float
  ) -> jax.Array:
    """As `Block`, over f[B, 1 + T*N, D]; frame t's patches are together."""
    config, options = self.config, self.options
    init = nn.initializers.normal(config.matrix_std)
    keys = layers.split(key, 6)
    drop = functools.partial(_drop, config, drop_path)

    if options.fused:
      x = fused.store_gradient(x)
    class_token, patches = x[:, :1], x[:, 1:]

    places = einops.rearrange(patches, 'b (t n) d -> b n t d', t=self.frames)
    y = layers.layer_norm(EPSILON, options, name='temporal_norm')(places)
    y = layers.Attention(config.heads, options, init, name='temporal_attention')(y)
    y = layers.dense(
      config.width,
      ('embed', 'embed_out'),
      name='temporal_fc',
      dtype=options.dtype,
      kernel_init=nn.initializers.normal(config.temporal_fc_std),
    )(drop(y, *keys[:2]))
    frames = einops.rearrange(places + y, 'b n t d -> b t n d')

    b, t, n, d = frames.shape
    copies = jnp.broadcast_to(class_token[:, None], (b, t, 1, d))
    tokens = [copies, frames]
    if options.fused:
      tokens.append(fused.padding(frames, 1 + n, options.attention))
    y = jnp.concatenate(tokens, axis=2)
    y = layers.layer_norm(EPSILON, options, name='norm')(y)
    y = layers.Attention(config.heads, options, init, name='attention')(y, length=1 + n)
    y = drop(y, *keys[2:4])
    class_token = class_token + jnp.mean(y[:, :, 0], axis=1, keepdims=True)
    frames = frames + y[:, :, 1:]
    x = jnp.concatenate([class_token, einops.rearrange(frames, 'b t n d -> b (t n) d')], axis=1)

    y = layers.layer_norm(EPSILON, options, name='mlp_norm')(x)
    y = layers.Mlp(config.mlp_size, options, init, name='mlp')(y)
    return x + drop(y, *keys[4:])


class VideoEncoder(nn.Module):
  """Pixels to one class token and one token per patch, averaged over time."""

  config: VideoConfig
  options: layers.ComputeOptions

  @nn.compact
  def __call__(self, video: jax.Array, *, train: bool) -> jax.Array:
    """Encodes a clip of any length and any size that patches divide.

    Args:
      video: uint8[B, T, H, W, 3], or floats that are already normalised.
      train: whether dropout and drop path act.
    Returns:
      f[B, S, D]; token 0 is the class token.
    Raises:
      ValueError: if H or W is not a multiple of the patch side.
    """
    config, dtype = self.config, self.options.dtype
    _, t, h, w, _ = video.shape
    p = config.patch_size
    if h % p or w % p:
      raise ValueError(
        f'{video.shape=}: height and width must be multiples of {p=}, the '
        'patch side; resize or crop the frames.'
      )
    if not jnp.issubdtype(video.dtype, jnp.floating):
      video = normalize_pixels(video)
    patches = einops.rearrange(
      video.astype(dtype), 'b t (h p) (w q) c -> b t (h w) (p q c)', p=p, q=p
    )
    fan_in = patches.shape[-1]
    patches = layers.dense(
      config.width,
      ('pixels', 'embed'),
      name='patch_embed',
      dtype=dtype,
      kernel_init=layers.uniform_fan_in(fan_in),
      bias_init=layers.uniform_fan_in(fan_in),
    )(patches)

    class_token, positions, times = self._embeddings((h // p, w // p), t)
    patches = patches + positions + times[:, None]
    key, layers_key = layers.split(self.make_rng('dropout') if train else None, 2)
    patches = layers.dropout(patches, config.dropout, key)
    if config.attention == 'space_only':
      first = jnp.broadcast_to(class_token, (*patches.shape[:2], 1, config.width))
      x = jnp.concatenate([first, patches], axis=2)
    else:
      patches = einops.rearrange(patches, 'b t n d -> b (t n) d')
      # Not einops.repeat, whose gradient makes XLA's GPU compiler transpose
      # all tokens before and after each layer.
      first = jnp.broadcast_to(class_token, (video.shape[0], 1, config.width))
      x = jnp.concatenate([first, patches], axis=1)

    x = stack.run_layers(
      self,
      self._make_block(t),
      [f'block{i}' for i in range(config.depth)],
      x,
      options=self.options,
      each={
        'key': None if key is None else layers.split(layers_key, config.depth),
        'drop_path': drop_path_rates(config),
      },
    )
    x = layers.layer_norm(EPSILON, self.options, name='norm')(x)
    if config.attention == 'space_only':
      return jnp.mean(x, axis=1)
    patches = einops.reduce(x[:, 1:], 'b (t n) d -> b n d', 'mean', t=t)
    return jnp.concatenate([x[:, :1], patches], axis=1)

  def _embeddings(self, grid, frames):
    """Class token f[D], positions f[N, D], times f[T, D] (0 if space_only)."""
    config = self.config
    width = config.width
    normal = nn.initializers.normal(config.position_std)
    position_init, time_init = normal, nn.initializers.normal(config.time_std)
    if config.smooth_positions:
      position_init = smooth_init(config.position_std, (config.grid,) * 2)
      time_init = smooth_init(config.time_std, (config.frames,))

    def param(name, init, rows):
      init = nn.with_logical_partitioning(init, ('positions', 'embed'))
      return self.param(name, init, (rows, width))

    class_token = param('class_token', normal, 1)
    class_token = class_token + param('class_position', normal, 1)
    positions = param('positions', position_init, config.grid**2)
    positions = resize_positions(positions, (config.grid,) * 2, grid)
    if config.attention == 'space_only':
      times = jnp.zeros((frames, width))
    else:
      times = resize_times(param('times', time_init, config.frames), frames)
    return (
      class_token[0].astype(self.options.dtype),
      positions.astype(self.options.dtype),
      times.astype(self.options.dtype),
    )

  def _make_block(self, frames):
    if self.config.attention == 'divided':
      return lambda name: DividedBlock(self.config, self.options, frames, name=name)
    return lambda name: Block(self.config, self.options, name=name)


def drop_path_rates(config: VideoConfig) -> list[float]:
  """Returns each block's rate: 0 in the first, the configured in the last."""
  last = max(config.depth - 1, 1)
  return [config.drop_path * i / last for i in range(config.depth)]
