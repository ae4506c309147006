"""The kernel for attention with dropout, run by its interpreter beside the plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alpro_jax import sharding
from alpro_jax.models import attention, dropout_attention
from alpro_jax.models.dropout import draw_kept

RATE = 0.25


def draw(lead=(2,), length=70, heads=2, size=16):
  keys = jax.random.split(jax.random.key(0), 5)
  arrays = [jax.random.normal(key, (*lead, length, heads, size)) for key in keys[:3]]
  mask = jax.random.bernoulli(keys[3], 0.7, (*lead, length))
  # One sequence of which nothing may be attended to.
  return arrays, mask.at[(0,) * len(lead)].set(False), keys[4]


def by_kernel(query, key, value, mask, rng, mesh=None):
  *lead, length, heads, _ = query.shape
  drawn = draw_kept(rng, RATE, (*lead, heads, length, length))
  return dropout_attention.attend(query, key, value, mask, *drawn, mesh=mesh, interpret=True)


def plainly(query, key, value, mask, rng):
  return attention.attend(query, key, value, mask, kernel='xla', rate=RATE, rng=rng)


def both_passes(attend, arrays, mask, rng):
  @jax.jit
  def run(*arrays):
    out, pull = jax.vjp(lambda *qkv: attend(*qkv, mask, rng), *arrays)
    return out, *pull(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))

  return run(*arrays)


@pytest.mark.parametrize(
  'sizes', [{}, {'lead': (2, 3), 'length': 33}, {'length': 128, 'size': 64, 'heads': 1}]
)
def test_the_same_as_plainly(sizes):
  arrays, mask, rng = draw(**sizes)
  found = both_passes(by_kernel, arrays, mask, rng)
  expected = both_passes(plainly, arrays, mask, rng)
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(one, other, atol=2e-6, rtol=1e-5)
  assert np.abs(expected[1]).max() > 0.1


def test_without_a_mask():
  arrays, _, rng = draw()
  found, expected = (both_passes(f, arrays, None, rng) for f in (by_kernel, plainly))
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(one, other, atol=2e-6, rtol=1e-5)


def test_the_same_on_four_devices():
  """Rows over two, heads over two."""
  arrays, mask, rng = draw(lead=(4,), length=20)
  mesh = sharding.make_mesh(2, 1, jax.devices()[:4], tensor=2)
  spread = both_passes(lambda *given: by_kernel(*given, mesh=mesh), arrays, mask, rng)
  alone = both_passes(by_kernel, arrays, mask, rng)
  for one, other in zip(spread, alone, strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
  'dtype, size, fits', [('bfloat16', 64, True), ('float32', 64, False), ('bfloat16', 48, False)]
)
def test_what_fits(dtype, size, fits):
  assert dropout_attention.fits(jnp.dtype(dtype), size) == fits
