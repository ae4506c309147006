"""Where arrays live, and that moving rows is exact and sends little."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from alpro_jax import sharding


def test_mesh_must_cover_the_devices():
  assert sharding.make_mesh(-1, 2).shape == {'data': 4, 'fsdp': 2, 'tensor': 1}
  with pytest.raises(ValueError, match='covers 6 of 8 devices'):
    sharding.make_mesh(3, 2)


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
@pytest.mark.parametrize('shape', [(8, 1, 1), (4, 2, 1), (2, 2, 2)])
def test_take_rows_equals_plain_indexing(blocks, shape):
  data, fsdp, tensor = shape
  mesh = sharding.make_mesh(data, fsdp, tensor=tensor)
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
