"""Where arrays live, and that moving rows is exact and sends little."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from alpro_jax import sharding


def test_mesh_must_cover_the_devices():
  assert sharding.make_mesh(-1, 2).shape == {'slice': 1, 'data': 4, 'fsdp': 2, 'tensor': 1}
  with pytest.raises(ValueError, match='covers 6 of 8 devices'):
    sharding.make_mesh(3, 2)
  assert sharding.make_mesh(-1, 2, slices=2).shape['data'] == 2
  with pytest.raises(ValueError, match='covers 8 of 4 devices, in each of 2 slices'):
    sharding.make_mesh(4, 2, slices=2)
  with pytest.raises(ValueError, match='slices=3 does not cut 8 devices'):
    sharding.make_mesh(slices=3)


@dataclasses.dataclass(frozen=True)
class Chip:
  """One of four chips of a TPU host of a slice."""

  id: int
  coords: tuple[int, int, int]
  process_index: int
  slice_index: int
  platform: str = 'tpu'
  device_kind: str = 'TPU v5 lite'


def test_hosts_of_tpu_slices_hold_neighbouring_rows():
  """As libtpu numbers two slices of 4 x 4 chips, in any order of them."""
  chips = [
    Chip(16 * n + x + 4 * y, (x, y, 0), 4 * n + y // 2 * 2 + x // 2, n)
    for y in range(4)
    for x in range(4)
    for n in (1, 0)
  ]
  mesh = sharding.make_mesh(fsdp=2, devices=chips)
  assert mesh.shape == {'slice': 2, 'data': 8, 'fsdp': 2, 'tensor': 1}
  assert [chip.process_index for chip in mesh.devices.flat] == [i // 4 for i in range(32)]
  assert {chip.slice_index for chip in mesh.devices[0].flat} == {0}
  # Inside a host and on to the next one along x, each chip is beside the one before.
  at = np.array([chip.coords for chip in mesh.devices[0].flat])
  apart = np.abs(np.diff(at, axis=0)).sum(axis=1)
  assert (np.delete(apart, 7) == 1).all()
  with pytest.raises(ValueError, match='slices=4 does not cut 32 devices, which come in slices'):
    sharding.make_mesh(devices=chips, slices=4)


def test_batch_must_divide():
  mesh = sharding.make_mesh()
  sharding.check_batch_size(16, mesh, accumulation=2)
  with pytest.raises(ValueError, match='a multiple of 8, e.g. 16'):
    sharding.check_batch_size(12, mesh)


def test_unknown_logical_axis_is_refused():
  boxed = {'w': nn.LogicallyPartitioned(jnp.zeros((4, 4)), ('embd', None))}
  with pytest.raises(ValueError, match='without a rule'):
    sharding.tree_sharding(boxed, sharding.make_mesh())


def test_uneven_parameter_is_refused():
  boxed = {'w': nn.LogicallyPartitioned(jnp.zeros((6, 4)), ('embed', None))}
  with pytest.raises(ValueError, match='cannot be sharded over 4 devices'):
    sharding.tree_sharding(boxed, sharding.make_mesh(2, 4))


def test_parameters_are_cut_along_fsdp_and_tensor():
  boxed = {'w': nn.LogicallyPartitioned(jnp.zeros((8, 4)), ('embed', 'mlp'))}
  tree = sharding.abstract(boxed, sharding.make_mesh(4, 2))
  assert tree['w'].sharding.spec == P('fsdp', 'tensor')


def test_a_vocabulary_is_cut_if_it_can_be():
  mesh = sharding.make_mesh(4, tensor=2)
  for rows, axis in ((6, 'tensor'), (7, None)):
    boxed = {'w': nn.LogicallyPartitioned(jnp.zeros((rows,)), ('vocab',))}
    assert sharding.abstract(boxed, mesh)['w'].sharding.spec == P(axis)


def test_tensor_neighbours_hold_the_same_rows():
  mesh = sharding.make_mesh(2, 2, tensor=2)
  assert sharding.batch_shards(mesh) == 4
  sharding.check_batch_size(4, mesh)
  rows = sharding.batch_sharding(mesh).devices_indices_map((4,))
  for pair in mesh.devices.reshape(4, 2):
    assert rows[pair[0]] == rows[pair[1]]


@pytest.mark.parametrize('blocks', [1, 4, 8, 16])
@pytest.mark.parametrize(
  'shape', [(8, 1, 1, 1), (4, 2, 1, 1), (2, 2, 2, 1), (4, 1, 1, 2), (1, 2, 1, 4), (1, 1, 1, 8)]
)
def test_take_rows_equals_plain_indexing(blocks, shape):
  data, fsdp, tensor, slices = shape
  mesh = sharding.make_mesh(data, fsdp, tensor=tensor, slices=slices)
  rng = np.random.default_rng(0)
  array = rng.normal(size=(32, 3, 5)).astype(np.float32)
  size = 32 // blocks
  index = rng.integers(0, size, 32).astype(np.int32)
  rows = np.arange(32) // size * size + index
  weights = rng.normal(size=array.shape).astype(np.float32)
  place = sharding.batch_sharding(mesh)

  def total(array, index):
    taken = sharding.take_rows(array, index, mesh, blocks=blocks)
    return jnp.sum(taken * weights), taken

  compiled = jax.jit(jax.value_and_grad(total, has_aux=True))
  (_, taken), grad = compiled(jax.device_put(array, place), jax.device_put(index, place))
  np.testing.assert_array_equal(taken, array[rows])
  expected = np.zeros_like(array)
  np.add.at(expected, rows, weights)
  np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-6)


def test_take_rows_never_holds_the_whole_batch():
  mesh = sharding.make_mesh()
  place = sharding.batch_sharding(mesh)
  array = jax.ShapeDtypeStruct((32, 7, 5), jnp.float32, sharding=place)
  index = jax.ShapeDtypeStruct((32,), jnp.int32, sharding=place)

  def text(blocks):
    take = jax.grad(lambda a, i: jnp.sum(sharding.take_rows(a, i, mesh, blocks=blocks) ** 2))
    return jax.jit(take, out_shardings=place).lower(array, index).compile().as_text()

  assert 'f32[32,7,5]' not in text(1)
  # A block is seen at home first: 8 shards need 7 hops, and 7 back.
  assert 'collective-permute' in text(1)
  local = text(8)
  assert 'f32[32,7,5]' not in local
  assert 'collective-permute' not in local and 'all-gather' not in local


def test_rings_of_rows_stay_inside_a_slice():
  mesh = sharding.make_mesh(slices=2)
  place = sharding.batch_sharding(mesh)
  array = jax.ShapeDtypeStruct((32, 5), jnp.float32, sharding=place)
  index = jax.ShapeDtypeStruct((32,), jnp.int32, sharding=place)

  def crossing(blocks):
    """How many permutations send all, some or no rows from slice to slice."""
    take = jax.jit(lambda a, i: sharding.take_rows(a, i, mesh, blocks=blocks))
    text = take.lower(array, index).compile().as_text()
    sent = re.findall(r'collective-permute\(.*source_target_pairs=\{(.*?)\}\}', text)
    pairs = [re.findall(r'(\d+),(\d+)', one) for one in sent]
    return sorted(sum(int(a) // 4 != int(b) // 4 for a, b in one) for one in pairs)

  assert crossing(1) == [0, 0, 8]
  assert crossing(2) == crossing(4) == [0]


def test_a_ring_keeps_little_for_the_backward_pass():
  mesh = sharding.make_mesh()

  def pull(array, index):
    return jax.vjp(lambda a: sharding.take_rows(a, index, mesh), array)[1]

  kept = jax.tree.leaves(jax.eval_shape(pull, jnp.zeros((32, 70, 50)), jnp.zeros(32, jnp.int32)))
  # The index and where it points at each hop.
  assert sum(leaf.size for leaf in kept) <= 8 * 2 * 32 + 64


def test_take_rows_refuses_blocks_that_do_not_fit():
  with pytest.raises(ValueError, match='divide its 8 shards'):
    sharding.take_rows(jnp.zeros((48, 2)), jnp.zeros(48, jnp.int32), sharding.make_mesh(), blocks=3)


def test_initial_values_are_those_of_one_program_and_can_be_donated():
  mesh = sharding.make_mesh(4, 2)

  def init(key):
    drawn = jax.random.normal(key, (8, 6))
    jax.random.normal(jax.random.fold_in(key, 1), (8, 7))  # Not read.
    return {'drawn': nn.Partitioned(drawn, ('embed', None)), 'again': drawn, 'zero': jnp.zeros(3)}

  made = sharding.create(init, jax.random.key(5), mesh)
  where = sharding.tree_sharding(jax.eval_shape(init, jax.random.key(5)), mesh)
  at_once = jax.jit(lambda key: nn.unbox(init(key)), out_shardings=where)(jax.random.key(5))
  assert made['drawn'].sharding.spec == P('fsdp', None)
  for one, other in zip(jax.tree.leaves(made), jax.tree.leaves(at_once), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6)
    assert (one.sharding, one.dtype, one.weak_type) == (other.sharding, other.dtype, False)

  def addresses(tree):
    return {part.data.unsafe_buffer_pointer() for part in tree.addressable_shards}

  assert not addresses(made['drawn']) & addresses(made['again'])
  before = addresses(made['drawn'])
  after = jax.jit(lambda x: x + 1, donate_argnums=0)(made['drawn'])
  assert addresses(after) == before


def test_initial_values_are_drawn_by_a_kernel_on_gpus():
  def draw(key):
    return jax.random.normal(key, (8, 8))

  def lowered():
    return (
      jax.jit(lambda key: draw(key)).trace(jax.random.key(0)).lower(lowering_platforms=('cuda',))
    )

  with sharding.threefry_kernel():
    assert 'threefry2x32_ffi' in lowered().as_text()
  assert 'threefry2x32_ffi' not in lowered().as_text()
