"""Which region of a clip PEM names, and what the teacher calls it (paper section 3.2)."""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange

from alpro_jax import masking
from alpro_jax.tasks.teacher import Teacher


def draw(options, key: jax.Array, rows: int, grid: int) -> jax.Array:
  """Returns bool[B, K, N], boxes that `name` chooses from.

  Args:
    options: config.loss.
    key: random key.
    rows: B.
    grid: patches along a side.
  """
  number = 1 if _choice(options) == 'random' else options.region_candidates
  boxes = masking.sample_regions(
    key, rows * number, grid, area=options.region_area, rule=options.region_rule
  )
  return rearrange(boxes, '(b k) n -> b k n', k=number)


def name(
  options,
  teacher: Teacher,
  video: jax.Array,
  still: jax.Array,
  boxes: jax.Array,
  *,
  patch_size: int,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Chooses a region of each clip and names it.

  Args:
    options: config.loss.
    teacher: the frozen prompter.
    video: uint8[B, T, H, W, 3].
    still: bool[B], True where the clip is a photo.
    boxes: bool[B, K, N], from `draw`.
    patch_size: of these.
    mesh: of the devices that the batch is sharded over.
  Returns:
    bool[B, N], or bool[B, T, N] where it follows what changes; float32[B, Z] soft labels;
    bool[B], whether the teacher is sure enough of them.
  """
  label = functools.partial(teacher.label, video, still=still, patch_size=patch_size, mesh=mesh)
  if options.get('region_follows', False):
    boxes = masking.follow_change(video, boxes, patch_size)
  if _choice(options) == 'confidence':
    found = jax.lax.map(label, rearrange(boxes, 'b k ... -> k b ...'))
    entity, keep = (rearrange(x, 'k b ... -> b k ...') for x in found)
    best = jnp.argmax(entity.max(-1), axis=1)
    return tuple(jax.vmap(lambda x, i: x[i])(x, best) for x in (boxes, entity, keep))
  region = boxes[:, 0]
  if _choice(options) == 'change':
    best = masking.changing_regions(video, boxes, patch_size)
    region = jax.vmap(lambda x, i: x[i])(boxes, best)
  return region, *label(region)


def _choice(options):
  return options.get('region_choice', 'random')  # Older runs have none.
