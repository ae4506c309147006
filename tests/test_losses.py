"""Losses against hand-made numbers; negatives that are really negative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alpro_jax import losses


def features(key, rows, size=8):
  x = jax.random.normal(jax.random.key(key), (rows, size))
  return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def test_vtc_of_two_pairs_by_hand():
  video = jnp.array([[1.0, 0.0], [0.0, 1.0]])
  text = jnp.array([[1.0, 0.0], [0.6, 0.8]])
  # Rows are videos: [[1, .6], [0, .8]], divided by a temperature of .5.
  rows = np.log1p(np.exp(-0.8)) + np.log1p(np.exp(-1.6))
  columns = np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-0.4))
  total, count = losses.vtc(video, text, jnp.float32(0.5))
  np.testing.assert_allclose(total, (rows + columns) / 2, rtol=1e-6)
  assert count == 2


def test_vtc_pulls_pairs_together_and_others_apart():
  video, text = features(0, 5), features(1, 5)

  def loss(scores):
    return losses.vtc(scores, jnp.eye(5), jnp.float32(1.0))[0]

  gradient = np.asarray(jax.grad(loss)(video @ text.T))
  assert (np.diagonal(gradient) < 0).all()
  assert (gradient[~np.eye(5, dtype=bool)] > 0).all()


def test_vtc_leaves_equal_captions_out_of_the_negatives():
  """Captions a b a: pairs 0 and 2 say nothing about each other."""
  video, text, t = features(0, 3), features(1, 3), jnp.float32(0.1)
  same = jnp.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]], bool)
  scores = np.asarray(video @ text.T) / 0.1

  def one(own, others):
    return np.log(np.exp(own) + np.exp(others).sum()) - own

  want = (
      one(scores[0, 0], scores[0, [1]]) + one(scores[0, 0], scores[[1], 0])
      + one(scores[1, 1], scores[1, [0, 2]])
      + one(scores[1, 1], scores[[0, 2], 1])
      + one(scores[2, 2], scores[2, [1]]) + one(scores[2, 2], scores[[1], 2])
  ) / 2
  total, count = losses.vtc(video, text, t, same=same)
  np.testing.assert_allclose(total, want, rtol=1e-4)
  assert count == 3
  assert total < losses.vtc(video, text, t)[0]

  def loss(scores):
    return losses.vtc(scores, jnp.eye(3), t, same=same)[0]

  gradient = jax.grad(loss)(video @ text.T)
  assert jnp.isfinite(gradient).all()
  assert gradient[0, 2] == gradient[2, 0] == 0
  assert (gradient[[0, 1, 1, 2], [1, 0, 2, 1]] > 0).all()


@pytest.mark.parametrize('rows', [1, 3])
def test_vtc_without_any_negative_is_zero(rows):
  video, text = features(0, rows), features(1, rows)
  same = jnp.ones((rows, rows), bool)

  def loss(video):
    return losses.mean(*losses.vtc(video, text, jnp.float32(0.1), same=same))

  value, gradient = jax.value_and_grad(loss)(video)
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


def draw(scores, forbidden, share, draws=400):
  keys = jax.random.split(jax.random.key(0), draws)
  index, valid = jax.vmap(
      lambda k: losses.hard_negatives(
          k, scores, forbidden, uniform_share=share
      )
  )(keys)
  assert index.dtype == jnp.int32 and valid.dtype == bool
  return np.asarray(index), np.asarray(valid)


@pytest.mark.parametrize('share', [0.0, 0.5, 1.0])
def test_a_negative_is_never_itself_nor_the_same_video_or_caption(share):
  video_id = jnp.array([0, 1, 1, 2, 3, 4])
  caption_id = jnp.array([0, 1, 2, 0, 3, 4])
  same = video_id[:, None] == video_id
  same |= caption_id[:, None] == caption_id
  # The forbidden are the most similar by far.
  scores = jnp.where(same, 50.0, 0.0)
  index, valid = draw(scores, same, share)
  assert valid.all()
  for row in range(6):
    drawn = set(index[:, row].tolist())
    allowed = set(np.nonzero(~np.asarray(same[row]))[0].tolist())
    assert drawn == allowed


def test_the_more_similar_the_more_likely():
  scores = jnp.log(jnp.array([[1e9, 1.0, 2.0, 5.0]]))
  forbidden = jnp.array([[True, False, False, False]])
  for share, want in ((0.0, [1, 2, 5]), (1.0, [8 / 3] * 3)):
    index, _ = draw(scores, forbidden, share, draws=4000)
    counts = np.bincount(index[:, 0], minlength=4) / 4000 * 8
    np.testing.assert_allclose(counts, [0, *want], atol=0.3)
  # Half of each.
  index, _ = draw(scores, forbidden, 0.5, draws=4000)
  counts = np.bincount(index[:, 0], minlength=4) / 4000 * 8
  np.testing.assert_allclose(counts, [0, 11 / 6, 7 / 3, 23 / 6], atol=0.3)


def test_a_row_without_any_negative_is_not_valid():
  scores, forbidden = jnp.zeros((2, 2)), jnp.array([[1, 1], [0, 1]], bool)
  index, valid = draw(scores, forbidden, 0.3, draws=20)
  np.testing.assert_array_equal(valid, [[False, True]] * 20)
  np.testing.assert_array_equal(index, 0)


def test_a_batch_of_one_has_no_negative_and_no_nan():
  one = jnp.ones((1, 1))
  index, valid = draw(one, one.astype(bool), 0.0, draws=3)
  assert not valid.any() and not index.any()


def test_very_far_scores_still_draw_an_allowed_column():
  scores = jnp.array([[0.0, -1e4, -2e4]])
  forbidden = jnp.array([[True, False, False]])
  index, _ = draw(scores, forbidden, 0.0, draws=50)
  np.testing.assert_array_equal(index, 1)


def test_draws_do_not_depend_on_the_devices():
  if jax.device_count() < 8:
    pytest.skip('needs 8 devices')
  mesh = jax.make_mesh((8,), ('data',))
  mesh = jax.sharding.Mesh(mesh.devices, ('data',))
  scores = jax.random.normal(jax.random.key(0), (16, 16))
  forbidden = jnp.eye(16, dtype=bool)

  @jax.jit
  def negatives(scores, forbidden):
    return losses.hard_negatives(
        jax.random.key(1), scores, forbidden, uniform_share=0.1
    )[0]

  rows = jax.NamedSharding(mesh, jax.P('data'))
  spread = negatives(*jax.device_put((scores, forbidden), rows))
  np.testing.assert_array_equal(spread, negatives(scores, forbidden))


def test_hard_negatives_have_no_gradient():
  def loss(scores):
    index, _ = losses.hard_negatives(
        jax.random.key(0), scores, jnp.eye(3, dtype=bool), uniform_share=0.1
    )
    return jnp.sum(index.astype(jnp.float32))

  np.testing.assert_array_equal(jax.grad(loss)(jnp.ones((3, 3))), 0)


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


def test_pem_is_the_cross_entropy_of_soft_labels():
  logits = jnp.array([[0.0, np.log(3.0)], [7.0, -7.0]])
  q, keep = jnp.array([[0.5, 0.5], [0.0, 1.0]]), jnp.array([True, False])
  total, count = losses.pem(logits, q, keep)
  np.testing.assert_allclose(total, -0.5 * np.log(3 / 16), rtol=1e-6)
  assert count == 1


@pytest.mark.parametrize('loss', [
    lambda x: losses.vtm(x[0, :, :2], jnp.ones(4, int), jnp.zeros(4)),
    lambda x: losses.mlm(x, jnp.full((3, 4), -1)),
    lambda x: losses.pem(x[0], jnp.full((4, 5), 0.2), jnp.zeros(4, bool)),
], ids=['vtm', 'mlm', 'pem'])
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
