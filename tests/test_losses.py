"""Losses of single pairs against hand-made numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alpro_jax import losses


def test_a_mean_is_the_sum_by_the_count():
  assert losses.mean(jnp.float32(6.0), jnp.float32(4.0)) == 1.5
  np.testing.assert_array_equal(losses.mean(jnp.float32([6, 2]), 2.0), [3, 1])


def test_vtm_counts_weighted_rows_only():
  logits = jnp.array([[0.0, 2.0], [0.0, 2.0], [9.0, -9.0]])
  labels, weights = jnp.array([1, 0, 1]), jnp.array([True, True, False])
  total, count = losses.vtm(logits, labels, weights)
  want = np.log1p(np.exp(-2)) + np.log1p(np.exp(2))
  np.testing.assert_allclose(total, want, rtol=1e-6)
  assert count == 2


def test_mlm_counts_labelled_positions_only():
  logits = jnp.array([[[0.0, 1.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
  labels = jnp.array([[1, -1, 2]])
  total, count = losses.mlm(logits, labels)
  want = np.log(np.e + 2) - 1 + np.log(3)
  np.testing.assert_allclose(total, want, rtol=1e-6)
  assert count == 2


def test_answering_counts_known_answers_only():
  logits = jnp.array([[0.0, 1.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
  total, count = losses.answering(logits, jnp.array([1, -1, 2]))
  np.testing.assert_allclose(total, np.log(np.e + 2) - 1 + np.log(3), rtol=1e-6)
  assert count == 2


def test_pem_is_the_cross_entropy_of_soft_labels():
  logits = jnp.array([[0.0, np.log(3.0)], [7.0, -7.0], [0.0, 0.0]])
  q = jnp.array([[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]])
  keep = jnp.array([True, False, True])
  total, count = losses.pem(logits, q, keep)
  want = -0.5 * np.log(3 / 16) + np.log(2)
  np.testing.assert_allclose(total, want, rtol=1e-6)
  assert count == 2
  gradient = jax.grad(lambda q: losses.pem(logits, q, keep)[0])(q)
  np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
  'loss',
  [
    lambda x: losses.vtm(x[0, :, :2], jnp.ones(4, int), jnp.zeros(4)),
    lambda x: losses.mlm(x, jnp.full((3, 4), -1)),
    lambda x: losses.pem(x[0], jnp.full((4, 5), 0.2), jnp.zeros(4, bool)),
  ],
  ids=['vtm', 'mlm', 'pem'],
)
def test_nothing_counted_gives_zero_loss_and_gradient(loss):
  logits = jax.random.normal(jax.random.key(0), (3, 4, 5))
  value, gradient = jax.value_and_grad(lambda x: losses.mean(*loss(x)))(logits)
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


def test_losses_are_float32_from_bfloat16():
  logits = jnp.ones((2, 3, 4), jnp.bfloat16)
  assert losses.mlm(logits, jnp.ones((2, 3), int))[0].dtype == jnp.float32
  q = jnp.full((3, 4), 0.25)
  total, _ = losses.pem(logits[0], q, jnp.ones(3, bool))
  assert total.dtype == jnp.float32
