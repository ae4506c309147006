"""Every decision about where arrays live: mesh, logical axes, batch, rows.

Plain `jax.jit` with NamedSharding does nearly all of it. The one exception is
`take_rows`: written plainly, `video[index]` makes every device gather the
whole batch of video tokens.
"""

import collections
import contextlib
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.extend import core as jax_core
from jax.interpreters import partial_eval
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# The batch is sharded over `slice`, between which links are slow, `data` and `fsdp`;
# parameters over `fsdp`, so that a layer gathers its own when it needs them, and over
# `tensor`, so that each device computes a part of the heads and of the MLP for the
# same rows. What is reduced over several axes the compiler reduces inside a slice first.
MESH_AXES = ('slice', 'data', 'fsdp', 'tensor')
BATCH_AXES = ('slice', 'data', 'fsdp')

# Logical axis of a parameter -> mesh axis. A name without a rule is an error:
# flax would replicate it without a word.
RULES = {
  'pixels': None,  # P * P * 3 values of a patch.
  'embed': 'fsdp',  # D on the input side.
  'embed_out': None,  # D on the output side of a D x D matrix.
  'heads': 'tensor',  # A * K, head-major.
  'mlp': 'tensor',  # M.
  'positions': None,  # Rows of a position table.
  'vocab': 'tensor',  # V.
  'joint': None,  # E.
  'classes': None,  # Match logits, entities, answers.
}
# Sharded if it can be: a vocabulary is as large as it is.
OPTIONAL = ('vocab',)


def make_mesh(
  data: int = -1, fsdp: int = 1, devices=None, *, tensor: int = 1, slices: int = 0
) -> Mesh:
  """Returns a mesh over all devices; those of a process hold neighbouring rows of a batch.

  Args:
    data: devices of a slice along `data`; -1 takes all that the others leave.
    fsdp: devices along `fsdp`, over which parameters and moments are sharded.
    devices: the devices to use; None is all of them.
    tensor: devices along `tensor`, which share the work of the same rows; must
      divide the heads of attention.
    slices: parts between which links are slow; 0 is as the devices say.
  Raises:
    ValueError: if they do not cover the devices exactly, or for other slices than
      the devices say.
  """
  parts = _by_slice(jax.devices() if devices is None else devices, slices)
  count = len(parts[0])
  if data == -1:
    data = count // max(fsdp * tensor, 1)
  shape = (data, fsdp, tensor)
  if min(shape) < 1 or math.prod(shape) != count:
    of_each = f', in each of {len(parts)} slices' if len(parts) > 1 else ''
    raise ValueError(
      f'mesh {data=} x {fsdp=} x {tensor=} covers {math.prod(shape)} of '
      f'{count} devices{of_each}; set config.mesh so that their product is {count} '
      '(data=-1 takes all that are left).'
    )
  grids = [_arrange(part, shape) for part in parts]
  return Mesh(np.stack(grids), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _by_slice(devices, slices):
  """Cuts a list of devices where links are slow, or where it is told to."""
  said = collections.defaultdict(list)
  for device in devices:
    said[getattr(device, 'slice_index', None) or 0].append(device)
  parts = sorted(said.values(), key=lambda part: part[0].process_index)
  if len(parts) == 1 and slices > 1 and len(devices) % slices == 0:
    size = len(devices) // slices
    parts = [devices[i : i + size] for i in range(0, len(devices), size)]
  if slices not in (0, len(parts)) or len({len(part) for part in parts}) > 1:
    sizes = [len(part) for part in parts]
    raise ValueError(
      f'config.mesh.{slices=} does not cut {len(devices)} devices, which come in slices '
      f'of {sizes}, into equal parts; 0 takes them as they come.'
    )
  return parts


def _arrange(devices, shape):
  """Returns the devices of a slice as an array of a shape."""
  if devices[0].platform == 'tpu' and len({device.process_index for device in devices}) > 1:
    # JAX's own order follows the links alone, and would scatter the rows of a host. This one
    # walks through the four chips of a host as a U; hosts follow each other along x.
    def place(device):
      x, y, z = device.coords
      return device.process_index, z, x, -y if x % 2 else y

    return np.array(sorted(devices, key=place)).reshape(shape)
  return jax.make_mesh(shape, MESH_AXES[1:], devices=devices).devices


def mesh_from_config(config, devices=None) -> Mesh:
  """Returns the mesh of config.mesh; see `make_mesh`. Older ones say nothing of slices."""
  slices = config.get('slices', 0)
  return make_mesh(config.data, config.fsdp, devices, tensor=config.tensor, slices=slices)


def batch_shards(mesh) -> int:
  """The number of parts that a batch is sharded into."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(batch_size: int, mesh, *, accumulation: int = 1) -> None:
  """Raises ValueError if a global batch cannot be sharded over the devices."""
  shards = batch_shards(mesh)
  parts = shards * accumulation
  if batch_size % parts:
    raise ValueError(
      f'a global batch of {batch_size} cannot be sharded over {shards} '
      f'shards x {accumulation} micro-batches; set config.data.batch_size '
      f'to a multiple of {parts}, e.g. {-(-batch_size // parts) * parts}.'
    )


def replicated(mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def batch_sharding(mesh) -> NamedSharding:
  """Sharding of arrays whose first axis is the batch."""
  return NamedSharding(mesh, P(BATCH_AXES))


def constrain_batch(array: jax.Array, mesh, *, axis: int = 0) -> jax.Array:
  """Keeps axis `axis` of an array inside jit sharded over the devices."""
  spec = P(*(None,) * axis, BATCH_AXES)
  return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))


def map_parts(function, rows: Any, parts: int, mesh) -> Any:
  """Calls a function with `parts` micro-batches of a tree of f[B, ...], in turn.

  Returns:
    its results, joined to trees of f[B, ...].
  """
  if parts == 1:
    return function(rows)
  return join_parts(jax.lax.map(function, split_parts(rows, parts, mesh)), mesh)


def split_parts(rows: Any, parts: int, mesh) -> Any:
  """f[B, ...] -> f[parts, B / parts, ...]: part i has the rows i::parts.

  Each part is spread over all devices.
  """

  def split(leaf):
    leaf = leaf.reshape(leaf.shape[0] // parts, parts, *leaf.shape[1:])
    return constrain_batch(jnp.moveaxis(leaf, 1, 0), mesh, axis=1)

  return jax.tree.map(split, rows)


def join_parts(parts: Any, mesh) -> Any:
  """Undoes `split_parts`."""

  def join(leaf):
    leaf = jnp.moveaxis(leaf, 0, 1)
    return constrain_batch(leaf.reshape(-1, *leaf.shape[2:]), mesh)

  return jax.tree.map(join, parts)


def gather(array: jax.Array, mesh) -> jax.Array:
  """Gives every device the whole array."""
  return jax.lax.with_sharding_constraint(array, replicated(mesh))


def copy_per_shard(array: jax.Array, mesh) -> jax.Array:
  """f[...] -> f[shards, ...]: the same array once for each shard of the batch.

  A device holds the one copy that it holds anyway. But the gradients of
  several uses of the copies are added where they are and reduced over the
  devices once, not once for each use.
  """
  copies = jnp.broadcast_to(array[None], (batch_shards(mesh), *array.shape))
  spec = P(BATCH_AXES, *(P.UNCONSTRAINED,) * array.ndim)
  return jax.lax.with_sharding_constraint(copies, NamedSharding(mesh, spec))


def tree_sharding(boxed: Any, mesh) -> Any:
  """Returns the NamedSharding of every leaf of a tree of linen boxes.

  Args:
    boxed: what `jax.eval_shape` of an init returns, boxes still on.
    mesh: as made by `make_mesh`.
  Raises:
    ValueError: if a logical axis has no rule, or if an axis of a parameter
      cannot be cut evenly.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, spec, leaf: _leaf_sharding(jax.tree_util.keystr(path), spec, leaf.shape, mesh),
    nn.get_partition_spec(boxed),
    nn.unbox(boxed),
    is_leaf=lambda x: isinstance(x, P),
  )


def create(init, key: jax.Array, mesh) -> Any:
  """Allocates what `init(key)` returns, unboxed, each device its own part."""
  where = tree_sharding(jax.eval_shape(init, key), mesh)

  def unboxed(key):
    return nn.unbox(init(key))

  if mesh.devices.flat[0].platform == 'cpu':
    return _create_one_by_one(unboxed, key, where)
  with threefry_kernel():
    return jax.jit(unboxed, out_shardings=where)(key)


def _create_one_by_one(init, key, where):
  """Does what jit does, for CPUs: there XLA compiles the draws of each parameter anew.

  One operation after the other, a draw is compiled once for all parameters of a shape.
  """
  traced, shapes = jax.make_jaxpr(init, return_shape=True)(key)
  # A module's init computes its outputs too, which nobody reads.
  read, _ = partial_eval.dce_jaxpr(
    traced.jaxpr, [True] * len(traced.jaxpr.outvars), instantiate=True
  )
  values = jax_core.jaxpr_as_fun(jax_core.ClosedJaxpr(read, traced.consts))(key)[::-1]

  def place(shape, sharding):
    # The last one, which is freed then: a model must not lie in memory twice. Copied by JAX:
    # a step can write in place neither what two share nor what is NumPy's.
    value = np.asarray(values.pop())
    return jax.make_array_from_callback(shape.shape, sharding, lambda at: jnp.array(value[at]))

  return jax.tree.map(place, shapes, where)


@contextlib.contextmanager
def threefry_kernel():
  """Lets CUDA programs draw random bits by JAX's own kernel: the same bits.

  XLA's GPU compiler would write the hash of all parameters out in a few kernels of
  thousands of instructions, which take minutes to compile. Not for a training step:
  every device would draw for all of them.
  """
  before = jax.config.jax_threefry_gpu_kernel_lowering
  jax.config.update('jax_threefry_gpu_kernel_lowering', True)
  try:
    yield
  finally:
    jax.config.update('jax_threefry_gpu_kernel_lowering', before)


def _leaf_sharding(name, spec, shape, mesh):
  if unknown := [axis for axis in spec if axis is not None and axis not in RULES]:
    raise ValueError(
      f'parameter {name} has logical axes {unknown} without a rule; add '
      'them to RULES in sharding.py.'
    )
  axes = []
  for logical, size in zip(spec, shape, strict=False):
    axis = RULES.get(logical)
    # Of two dimensions on one mesh axis the first one takes it.
    if axis is None or axis in axes:
      axes.append(None)
    elif size % mesh.shape[axis] == 0:
      axes.append(axis)
    elif logical in OPTIONAL:
      axes.append(None)
    else:
      raise ValueError(
        f'parameter {name} of shape {shape} cannot be sharded over '
        f'{mesh.shape[axis]} devices; choose config.mesh.{axis} so that '
        f'it divides {size}.'
      )
  return NamedSharding(mesh, P(*axes))


def abstract(boxed: Any, mesh) -> Any:
  """Returns unboxed ShapeDtypeStructs that carry their sharding."""
  return jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
    nn.unbox(boxed),
    tree_sharding(boxed, mesh),
  )


def take_rows(array: jax.Array, index: jax.Array, mesh, *, blocks: int = 1):
  """Takes rows of a batch without gathering it: `array[index]`, sharded.

      blocks=2:  array [a b | c d],  index [1 0 | 1 1]  ->  [b a | d d]

  Args:
    array: f[B, ...], sharded over the devices.
    index: int32[B], row within the block of each output row.
    mesh: the mesh that the batch is sharded over.
    blocks: number of equal blocks of rows that do not exchange anything. If
      it is a multiple of the number of shards nothing is sent; if it divides
      that, the shards of a block travel around rings, one at a time, and each
      device keeps the rows it asked for.
  Returns:
    f[B, ...].
  Raises:
    ValueError: if the blocks do not fit the batch or the shards.
  """
  b, shards = array.shape[0], batch_shards(mesh)
  if b % blocks or (blocks % shards and shards % blocks):
    raise ValueError(
      f'{blocks=} of negatives must divide the batch of {b} and divide its '
      f'{shards} shards or be a multiple of them; change '
      'config.loss.negative_blocks.'
    )
  if blocks % shards == 0:
    size = b // blocks
    rows = array.reshape(blocks, size, *array.shape[1:])
    picked = jax.vmap(lambda r, i: jnp.take(r, i, axis=0))(rows, index.reshape(blocks, size))
    return constrain_batch(picked.reshape(array.shape), mesh)
  ring = shards // blocks
  # Rings lie inside a slice; a block of several slices turns in each, then moves on to the
  # next: each device sends its rows over the slow links once for each other slice.
  of_slice = shards // mesh.shape['slice']
  near = of_slice if ring % of_slice == 0 else ring
  take = jax.shard_map(
    lambda a, i: _ring_take(a, i, shards, near, ring // near),
    mesh=mesh,
    in_specs=(P(BATCH_AXES), P(BATCH_AXES)),
    out_specs=P(BATCH_AXES),
  )
  return take(array, index)


def _ring_take(block, index, shards, near, turns):
  """Body of `take_rows` on one device: f[b, ...], int32[b] -> f[b, ...]."""
  b = block.shape[0]
  turn_here, here = jnp.divmod(jax.lax.axis_index(BATCH_AXES) % (near * turns), near)

  def send(visiting, size, step):
    # Groups of `size` neighbours form a ring each: 0 -> 1 -> 0, 2 -> 3 -> 2, ... of two.
    there = [(i, i // size * size + (i + step) % size) for i in range(shards)]
    return jax.lax.ppermute(visiting, BATCH_AXES, there)

  # Or each hop would keep what it took, as large as a block's mask.
  @functools.partial(jax.checkpoint, prevent_cse=False)
  def take(visiting, taken, turn, hop):
    # Each turn left the visitors one hop short of home.
    home = (here - hop - turn * (near - 1)) % near + (turn_here - turn) % turns * near
    local = index - home * b
    inside = (local >= 0) & (local < b)
    rows = jnp.take(visiting, jnp.clip(local, 0, b - 1), axis=0)
    inside = inside.reshape(b, *(1,) * (block.ndim - 1))
    return jnp.where(inside, rows, taken)

  visiting, taken = block, jnp.zeros_like(block)
  for turn in range(turns):
    if turn:
      visiting = send(visiting, near * turns, near)
    taken = take(visiting, taken, turn, 0)

    def visit(carry, hop, turn=turn):
      visiting, taken = carry
      visiting = send(visiting, near, 1)
      return (visiting, take(visiting, taken, turn, hop)), None

    (visiting, taken), _ = jax.lax.scan(visit, (visiting, taken), jnp.arange(1, near))
  return taken
