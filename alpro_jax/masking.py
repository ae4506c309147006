"""Hides words and cuts out regions: labels made from the input, on device."""

import einops
import jax
import jax.numpy as jnp

from alpro_jax.batch import SpecialTokens

NO_LABEL = -1
REGION_RULES = ('original', 'nominal')
REGION_CHOICES = ('random', 'confidence', 'change')
REGION_TRIES = 64


def mask_tokens(
  key: jax.Array,
  ids: jax.Array,
  mask: jax.Array,
  *,
  special: SpecialTokens,
  vocab_size: int,
  probability: float = 0.15,
) -> tuple[jax.Array, jax.Array]:
  """Corrupts some words for masked language modelling.

  Each word is chosen on its own. Of the chosen, 80 % become the mask token,
  10 % any id of the vocabulary, 10 % stay:

    ids      CLS  a  red  disc  rolls SEP PAD
    chosen         .   x    .     x
    new ids  CLS  a MASK  disc  rolls SEP PAD
    labels    -1 -1  red   -1   rolls  -1  -1

  Args:
    key: random key.
    ids: int32[B, L].
    mask: bool[B, L], True on real tokens.
    special: ids that are never chosen.
    vocab_size: V.
    probability: of choosing a word.
  Returns:
    Corrupted ids and labels, both int32[B, L]; -1 where there is no label.
  """
  choose_key, kind_key, word_key = jax.random.split(key, 3)
  eligible = mask.astype(bool)
  for token in special:
    eligible &= ids != token
  chosen = eligible & jax.random.bernoulli(choose_key, probability, ids.shape)
  kind = jax.random.uniform(kind_key, ids.shape)
  words = jax.random.randint(word_key, ids.shape, 0, vocab_size, ids.dtype)
  new = jnp.where(kind < 0.8, special.mask, jnp.where(kind < 0.9, words, ids))
  labels = jnp.where(chosen, ids, NO_LABEL)
  return jnp.where(chosen, new, ids).astype(ids.dtype), labels


def sample_regions(
  key: jax.Array,
  batch: int,
  grid: int | tuple[int, int],
  *,
  area: tuple[float, float] = (0.3, 0.5),
  aspect: tuple[float, float] = (0.3, 1 / 0.3),
  rule: str = 'original',
) -> jax.Array:
  """Draws one box of whole patches per example, the same for all frames.

    grid 4, one box of 2 x 3 patches:   0 0 0 0
                                        0 1 1 1
                                        0 1 1 1
                                        0 0 0 0
  'original': sides are rounded down to patches, the corner falls anywhere in
  the image, and a box that sticks out is drawn again. This favours small boxes:
  on a grid of 14, 20 to 46 % of the image and 33 % on average, for a nominal
  30 to 50 %. 'nominal': sides are rounded to the nearest patch and the corner
  falls where the box fits, which keeps the nominal area but for boxes longer
  than the image.

  Args:
    key: random key.
    batch: B.
    grid: patches along a side, or (rows, columns).
    area: smallest and largest share of the image.
    aspect: smallest and largest height over width, drawn uniformly.
    rule: 'original' or 'nominal'.
  Returns:
    bool[B, N], row-major, True inside.
  """
  if rule not in REGION_RULES:
    raise ValueError(f'{rule=} is not known; choose one of {REGION_RULES}.')
  rows, columns = (grid, grid) if isinstance(grid, int) else grid
  nominal = rule == 'nominal'
  area_key, aspect_key, top_key, left_key = jax.random.split(key, 4)
  shape = (batch, 1 if nominal else REGION_TRIES)
  size = jax.random.uniform(area_key, shape, minval=area[0], maxval=area[1])
  size = size * rows * columns
  ratio = jax.random.uniform(aspect_key, shape, minval=aspect[0], maxval=aspect[1])
  to_patches = jnp.round if nominal else jnp.floor
  height = jnp.maximum(to_patches(jnp.sqrt(size * ratio)), 1)
  width = jnp.maximum(to_patches(jnp.sqrt(size / ratio)), 1)
  if nominal:
    height, width = jnp.minimum(height, rows), jnp.minimum(width, columns)
  places = (rows - height + 1, columns - width + 1) if nominal else (rows, columns)
  top = jnp.floor(jax.random.uniform(top_key, shape) * places[0])
  left = jnp.floor(jax.random.uniform(left_key, shape) * places[1])
  # The first that fits. If none does, the first try is shifted back below.
  fits = (top + height <= rows) & (left + width <= columns)
  first = jnp.argmax(fits, axis=1)[:, None]
  top, left, height, width = (
    jnp.take_along_axis(x, first, axis=1) for x in (top, left, height, width)
  )
  height, width = jnp.minimum(height, rows), jnp.minimum(width, columns)
  top, left = jnp.minimum(top, rows - height), jnp.minimum(left, columns - width)
  row, column = jnp.arange(rows)[None], jnp.arange(columns)[None]
  in_rows = (row >= top) & (row < top + height)
  in_columns = (column >= left) & (column < left + width)
  inside = in_rows[:, :, None] & in_columns[:, None, :]
  return einops.rearrange(inside, 'b h w -> b (h w)')


def changing_regions(video: jax.Array, regions: jax.Array, patch_size: int) -> jax.Array:
  """Says in which of some regions pixels change most from frame to frame.

  Args:
    video: uint8[B, T, H, W, 3].
    regions: bool[B, K, N], or bool[B, K, T, N] of each frame; True inside.
    patch_size: P.
  Returns:
    int32[B], by the mean over the region's patches; 0 where nothing changes, as in photos.
  """
  change = _change(video, patch_size)
  if regions.ndim == 3:
    change = change.sum(axis=1, keepdims=True)
    regions = regions[:, :, None]
  inside = regions.astype(jnp.float32)
  mean = jnp.einsum('bktn,btn->bk', inside, change, precision=jax.lax.Precision.HIGHEST)
  return jnp.argmax(mean / inside.sum((2, 3)), axis=1).astype(jnp.int32)


def follow_change(video: jax.Array, boxes: jax.Array, patch_size: int) -> jax.Array:
  """Moves boxes, in each frame, to where pixels change most: tubes over time.

    a box   1 1 0   what changes   . . .   . . x   the tube   0 0 0   0 1 1
            0 0 0   in two frames  x x .   . . .              1 1 0   0 0 0

  Args:
    video: uint8[B, T, H, W, 3].
    boxes: bool[B, K, N], from `sample_regions`.
    patch_size: P.
  Returns:
    bool[B, K, T, N]; a box stays where it was in frames in which nothing changes.
  """
  change = _change(video, patch_size)
  rows, columns = video.shape[2] // patch_size, video.shape[3] // patch_size
  change = einops.rearrange(change, 'b t (h w) -> b t h w', h=rows)
  boxes = einops.rearrange(boxes, 'b k (h w) -> b k h w', h=rows)
  in_rows, row_weights = _placings(boxes.any(axis=3))
  in_columns, column_weights = _placings(boxes.any(axis=2))
  found = jnp.einsum(
    'bthw,bkyh,bkxw->bktyx',
    change,
    row_weights,
    column_weights,
    precision=jax.lax.Precision.HIGHEST,
  )
  found = einops.rearrange(found, 'b k t y x -> b k t (y x)')
  top, left = jnp.divmod(jnp.argmax(found, axis=3), columns)
  moved_rows, moved_columns = (
    jnp.take_along_axis(placings, first[..., None], axis=2)
    for placings, first in ((in_rows, top), (in_columns, left))
  )
  moved = moved_rows[..., :, None] & moved_columns[..., None, :]
  changes = found.max(axis=3)[..., None, None] > 0
  tubes = jnp.where(changes, moved, boxes[:, :, None])
  return einops.rearrange(tubes, 'b k t h w -> b k t (h w)')


def _placings(line):
  """All places of a box along one side of the image.

  Args:
    line: bool[B, K, n], where it lies.
  Returns:
    bool[B, K, n, n], by its first patch, and float32 weights of the same shape: a little
    more in the middle of the box, so that what changes comes to lie there; 0 where it does
    not fit.
  """
  size = line.sum(axis=2)[..., None, None]
  first, place = jnp.arange(line.shape[2])[:, None], jnp.arange(line.shape[2])[None]
  inside = (place >= first) & (place < first + size)
  off = jnp.abs(place - first - (size - 1) / 2) / size
  fits = first + size <= line.shape[2]
  return inside, jnp.where(inside & fits, 1 - 0.1 * off, 0.0)


def _change(video, patch_size):
  """float32[B, T, N]: how much each patch differs from the frames before and after."""
  frames = video.astype(jnp.float32)
  change = jnp.abs(frames[:, 1:] - frames[:, :-1])
  change = einops.reduce(
    change, 'b t (h p) (w q) c -> b t (h w)', 'sum', p=patch_size, q=patch_size
  )
  before, after = (((0, 0), sides, (0, 0)) for sides in ((1, 0), (0, 1)))
  return jnp.pad(change, before) + jnp.pad(change, after)


def crop_regions(video: jax.Array, region: jax.Array, patch_size: int) -> jax.Array:
  """Blackens everything outside the region; nothing moves or is resized.

  Args:
    video: uint8[B, T, H, W, 3].
    region: bool[B, N], or bool[B, T, N] of each frame; True inside.
    patch_size: P.
  Returns:
    uint8[B, T, H, W, 3], 0 outside.
  """
  _, _, height, width, _ = video.shape
  rows, columns = height // patch_size, width // patch_size
  if region.shape[-1] != rows * columns:
    raise ValueError(
      f'{region.shape=} does not match {video.shape=}: expected '
      f'{rows} x {columns} patches of side {patch_size}.'
    )
  if region.ndim == 2:
    region = region[:, None]
  inside = einops.repeat(
    region, 'b t (h w) -> b t (h p) (w q) 1', h=rows, w=columns, p=patch_size, q=patch_size
  )
  return jnp.where(inside, video, jnp.zeros((), video.dtype))
