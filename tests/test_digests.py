"""One digest, however an array is cut; another for every other array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from alpro_jax import sharding
from alpro_jax.train.digests import of_arrays


def digest(array):
  return of_arrays({'a': array})['a']


def arrays():
  numbers = np.random.default_rng(0).normal(size=(8, 4, 2))
  return {
    'float32': numbers.astype(np.float32),
    'bfloat16': jnp.asarray(numbers, jnp.bfloat16),
    'int32': (numbers * 1e6).astype(np.int32),
    'uint8': (numbers * 9).astype(np.uint8),
    'bool': numbers > 0,
    'scalar': np.float32(3.5),
    'empty': np.zeros((8, 0), np.float32),
  }


def test_digests_do_not_change():
  # What is stored in checkpoints must be found again by any version.
  tree = {'a': np.arange(6, dtype=np.int32).reshape(2, 3), 'b': [np.float32(1)]}
  assert of_arrays(tree) == {'a': '85f5de0bf7ccf170', 'b/0': 'e7f2d91eb7ff1fa5'}


@pytest.mark.parametrize('name', arrays())
def test_the_cut_does_not_matter(name):
  array = arrays()[name]
  want = digest(array)
  mesh = sharding.make_mesh(2, 4)
  cuts = [P()]
  if np.ndim(array) == 3:
    cuts += [P('fsdp'), P(('data', 'fsdp')), P('data', 'fsdp'), P(None, 'fsdp')]
  for cut in cuts:
    placed = jax.device_put(array, NamedSharding(mesh, cut))
    assert digest(placed) == want, cut


@pytest.mark.parametrize('name', ['float32', 'bfloat16', 'int32', 'uint8'])
def test_every_bit_of_every_element_matters(name):
  array = np.asarray(arrays()[name])
  seen = {digest(array)}
  raw = array.view(np.uint8).reshape(-1)
  for place in range(raw.size):
    other = raw.copy()
    other[place] ^= 1 << place % 8
    seen.add(digest(other.view(array.dtype).reshape(array.shape)))
  assert len(seen) == raw.size + 1


def test_order_and_shape_matter():
  array = np.arange(24, dtype=np.float32).reshape(4, 6)
  others = [array[::-1], array[:, ::-1], array.T.reshape(4, 6), -0.0 * array]
  assert len({digest(x) for x in [array, 0 * array, *others]}) == 6
  tree = {'x': array, 'y': [array, {'z': array}]}
  assert list(of_arrays(tree)) == ['x', 'y/0', 'y/1/z']


def test_many_sharded_arrays():
  """All sums on their way at once waited for each other, on a busy machine."""
  mesh = sharding.make_mesh(2, 4)
  arrays = {f'{i}': np.full((8, 64), i, np.float32) for i in range(60)}
  cut = jax.device_put(arrays, NamedSharding(mesh, P('fsdp')))
  whole = of_arrays(arrays)
  for _ in range(5):
    assert of_arrays(cut) == whole
