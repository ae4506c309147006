"""The kernels that a GPU really runs, in bfloat16, beside float32.

ALPRO_TEST_DEVICE=gpu python -m pytest -n 0 tests/test_gpu.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alpro_jax.models import attention, dropout_attention
from alpro_jax.models.dropout import draw_kept

pytestmark = pytest.mark.gpu

# Over space, over the tokens of a text and a video, over time.
SPACE, FUSION, TIME = (8, 197, 12, 64), (8, 227, 12, 64), (2, 196, 4, 12, 64)
RATE = 0.1


def draw(shape, masked):
  arrays = [jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i in range(3)]
  if not masked:
    return arrays, None
  return arrays, jnp.arange(shape[1]) < jnp.linspace(40, shape[1], shape[0])[:, None]


def both_passes(attend, arrays, mask):
  """Returns values and gradients of queries, keys and values, as float32."""

  @jax.jit
  def run(*qkv):
    out, pull = jax.vjp(lambda *qkv: attend(*qkv, mask), *qkv)
    weights = jax.random.normal(jax.random.key(9), out.shape).astype(out.dtype)
    return out, *pull(weights)

  return [np.asarray(x.astype(jnp.float32)) for x in run(*arrays)]


def check(found, expected):
  for name, one, other in zip(('out', 'dq', 'dk', 'dv'), found, expected, strict=True):
    error = np.linalg.norm(one - other) / np.linalg.norm(other)
    # A value that is no number is no small error.
    assert error < 1e-2, f'{name}: {error:.1e}'


@pytest.mark.parametrize('kernel', ['cudnn', 'elementwise', 'xla'])
@pytest.mark.parametrize(
  ('shape', 'masked'), [(SPACE, False), (FUSION, False), (FUSION, True), (TIME, False)]
)
def test_attention(kernel, shape, masked):
  arrays, mask = draw(shape, masked)
  found = both_passes(lambda *given: attention.attend(*given, kernel=kernel), arrays, mask)
  wide = [x.astype(jnp.float32) for x in arrays]
  check(found, both_passes(lambda *given: attention.attend(*given, kernel='xla'), wide, mask))


@pytest.mark.filterwarnings('ignore:The Pallas Triton backend:DeprecationWarning')
@pytest.mark.parametrize('masked', [False, True])
def test_attention_with_dropout(masked):
  arrays, mask = draw(FUSION, masked)
  rng = jax.random.key(7)
  n, length, heads, _ = FUSION
  kept, share = draw_kept(rng, RATE, (n, heads, length, length))

  def by_kernel(query, key, value, mask):
    return dropout_attention.attend(query, key, value, mask, kept, share)

  def plainly(query, key, value, mask):
    return attention.attend(query, key, value, mask, kernel='xla', rate=RATE, rng=rng)

  wide = [x.astype(jnp.float32) for x in arrays]
  check(both_passes(by_kernel, arrays, mask), both_passes(plainly, wide, mask))
