"""VTC by hand; negatives that are really negative; chunks that do not show."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alpro_jax import contrastive, losses, sharding
from alpro_jax.batch import NO_TEXT
from alpro_jax.contrastive import Features


def features(key, rows, size=8):
  x = jax.random.normal(jax.random.key(key), (rows, size))
  return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def of_scores(scores):
  """Features whose similarities are the given scores."""
  scores = jnp.asarray(scores, jnp.float32)
  return Features(scores, jnp.eye(scores.shape[1]))


def ids_of(*columns):
  return jnp.stack([jnp.asarray(c, jnp.int32) for c in columns], axis=1)


def dense_relations(ids, positives):
  """bool[B, B] twice: which pairs are right, and which count."""
  same = ids[:, None] == ids[None]
  right = same[..., list(positives)].any(-1) | jnp.eye(len(ids), dtype=bool)
  return right, right | ~same.any(-1)


def dense(pair, temperature, bias, ids, positives):
  """VTC as the papers write it, with all similarities at once; no bias is softmax.

  Sum of the losses; shares of videos and texts whose nearest is right.
  """
  right, counts = dense_relations(ids, positives)
  scores = pair.video @ pair.text.T / temperature
  if bias is None:
    total = 0.0
    for axis in (0, 1):
      logs = jax.nn.log_softmax(jnp.where(counts, scores, -jnp.inf), axis=axis)
      target = right / right.sum(axis=axis, keepdims=True)
      total -= jnp.sum(target * jnp.where(right, logs, 0)) / 2
  else:
    label = jnp.where(right, 1, -1)
    total = -jnp.sum(jnp.where(counts, jax.nn.log_sigmoid(label * (scores + bias)), 0))
  found = []
  for axis in (1, 0):
    nearest = jnp.argmax(jnp.where(counts, scores, -jnp.inf), axis=axis)
    found.append(jnp.mean(jnp.take_along_axis(right, jnp.expand_dims(nearest, axis), axis)))
  return total, tuple(found)


def chunked(pair, temperature, bias, ids, positives, **options):
  """`dense`, by the library."""
  if bias is None:
    found = contrastive.vtc(pair, temperature, ids, positives=positives, **options)
  else:
    found = contrastive.sigmoid_vtc(pair, temperature, bias, ids, positives=positives, **options)
  return found[0], found[2]


def test_vtc_of_two_pairs_by_hand():
  video = jnp.array([[1.0, 0.0], [0.0, 1.0]])
  text = jnp.array([[1.0, 0.0], [0.6, 0.8]])
  # Rows are videos: [[1, .6], [0, .8]], divided by a temperature of .5.
  rows = np.log1p(np.exp(-0.8)) + np.log1p(np.exp(-1.6))
  columns = np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-0.4))
  total, count, _ = contrastive.vtc(Features(video, text), jnp.float32(0.5))
  np.testing.assert_allclose(total, (rows + columns) / 2, rtol=1e-6)
  assert count == 2


def test_vtc_pulls_pairs_together_and_others_apart():
  pair = of_scores(features(0, 5) @ features(1, 5).T)
  gradient = np.asarray(
    jax.grad(lambda video: contrastive.vtc(Features(video, pair.text), jnp.float32(1.0))[0])(
      pair.video
    )
  )
  assert (np.diagonal(gradient) < 0).all()
  assert (gradient[~np.eye(5, dtype=bool)] > 0).all()


def test_vtc_leaves_equal_captions_out_of_the_negatives():
  """Captions a b a: pairs 0 and 2 say nothing about each other."""
  pair, t = Features(features(0, 3), features(1, 3)), jnp.float32(0.1)
  ids = ids_of([0, 1, 2], [0, 1, 0])
  scores = np.asarray(pair.video @ pair.text.T) / 0.1

  def one(own, others):
    return np.log(np.exp(own) + np.exp(others).sum()) - own

  want = (
    one(scores[0, 0], scores[0, [1]])
    + one(scores[0, 0], scores[[1], 0])
    + one(scores[1, 1], scores[1, [0, 2]])
    + one(scores[1, 1], scores[[0, 2], 1])
    + one(scores[2, 2], scores[2, [1]])
    + one(scores[2, 2], scores[[1], 2])
  ) / 2
  total, count, _ = contrastive.vtc(pair, t, ids)
  np.testing.assert_allclose(total, want, rtol=1e-4)
  assert count == 3
  assert total < contrastive.vtc(pair, t)[0]
  pair = of_scores(pair.video @ pair.text.T)
  gradient = jax.grad(lambda video: contrastive.vtc(Features(video, pair.text), t, ids)[0])(
    pair.video
  )
  assert jnp.isfinite(gradient).all()
  assert gradient[0, 2] == gradient[2, 0] == 0
  assert (gradient[[0, 1, 1, 2], [1, 0, 2, 1]] > 0).all()


def test_a_row_without_text_teaches_nothing_and_is_no_negative():
  pair = Features(features(0, 6), features(1, 6))
  ids = jnp.arange(12).reshape(6, 2)
  alone = ids.at[2, 1].set(NO_TEXT)

  def loss(pair, ids):
    total, _, right = contrastive.vtc(pair, jnp.float32(0.1), ids)
    return total, right

  without = jax.tree.map(lambda x: jnp.delete(x, 2, axis=0), pair)
  # It sees itself alone, and counts as neither right nor wrong.
  look = jax.value_and_grad(loss, has_aux=True)
  want, wanted = look(without, jnp.delete(ids, 2, axis=0))
  found, gradient = look(pair, alone)
  np.testing.assert_allclose(np.hstack(found), np.hstack(want), rtol=1e-5)
  for one, other in zip(gradient, wanted, strict=True):
    np.testing.assert_allclose(one[2], 0, atol=1e-6)
    np.testing.assert_allclose(jnp.delete(one, 2, axis=0), other, atol=1e-6)
  assert contrastive.has_negative(alone).tolist() == [True, True, False, True, True, True]
  drawn = [
    contrastive.hard_negatives(jax.random.key(i), *pair, jnp.float32(0.1), alone, uniform_share=1.0)
    for i in range(30)
  ]
  assert 2 not in {int(x) for column, valid in drawn for x in column[valid]}


@pytest.mark.parametrize('rows', [1, 3])
def test_vtc_without_any_negative_is_zero(rows):
  pair, ids = Features(features(0, rows), features(1, rows)), jnp.zeros((rows, 1), jnp.int32)
  value, gradient = jax.value_and_grad(
    lambda pair: losses.mean(*contrastive.vtc(pair, jnp.float32(0.1), ids)[:2])
  )(pair)
  assert value == 0
  for part in gradient:
    np.testing.assert_allclose(part, 0, atol=1e-5)


@pytest.mark.parametrize('bias', [None, -2.0], ids=['softmax', 'sigmoid'])
@pytest.mark.parametrize(
  'positives, chunk, devices',
  [((), 0, 1), ((), 8, 1), ((), 4, 8), ((), 0, 8), ((1,), 4, 8), ((0, 1), 1, 1), ((0, 1), 0, 8)],
)
def test_vtc_in_chunks_is_that_of_all_pairs(bias, positives, chunk, devices):
  """Its value, its gradients by features, temperature and bias, what is found."""
  rng = np.random.default_rng(0)
  ids = ids_of(rng.integers(0, 20, 32), rng.integers(0, 20, 32))
  pair, t = Features(features(0, 32), features(1, 32)), jnp.float32(0.07)
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])

  def run(function, pair, **options):
    numbers = (t,) if bias is None else (t, jnp.float32(bias))

    def loss(pair, temperature, bias=None):
      return function(pair, temperature, bias, ids, positives, **options)

    argnums = tuple(range(1 + len(numbers)))
    return jax.jit(jax.value_and_grad(loss, argnums, has_aux=True))(pair, *numbers)

  (want, shares), gradients = run(dense, pair)
  placed = jax.device_put(pair, sharding.batch_sharding(mesh))
  (total, right), ours = run(chunked, placed, chunk=chunk, mesh=mesh)
  np.testing.assert_allclose(total, want, rtol=1e-5)
  np.testing.assert_allclose(right, shares)
  for found, wanted in zip(jax.tree.leaves(ours), jax.tree.leaves(gradients), strict=True):
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * scale)


def test_several_right_captions_share_the_target_by_hand():
  """Captions a b a, of scores 2 0 1 in the first row: half of each of the two."""
  pair = of_scores([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
  ids = ids_of([0, 1, 2], [0, 1, 0])
  total, _, right = contrastive.vtc(pair, jnp.float32(1.0), ids, positives=(1,))
  e = np.exp
  rows = np.log(e(2) + 1 + e(1)) - 1.5 + np.log(e(1) + 2) - 1 + np.log(3)
  columns = np.log(e(2) + 2) - 1 + np.log(e(1) + 2) - 1 + np.log(e(1) + 2) - 0.5
  np.testing.assert_allclose(total, (rows + columns) / 2, rtol=1e-6)
  # Video 2 finds a caption, and text 2 a video, that is another row's.
  np.testing.assert_array_equal(right, [1, 1])
  *_, left_out = contrastive.vtc(pair, jnp.float32(1.0), ids)
  np.testing.assert_allclose(left_out, [2 / 3, 2 / 3])


def test_sigmoid_of_two_pairs_by_hand():
  video = jnp.array([[1.0, 0.0], [0.0, 1.0]])
  text = jnp.array([[1.0, 0.0], [0.6, 0.8]])
  # [[1, .6], [0, .8]], divided by a temperature of .5, and less 1.
  positives = np.log1p(np.exp(-1.0)) + np.log1p(np.exp(-0.6))
  negatives = np.log1p(np.exp(0.2)) + np.log1p(np.exp(-1.0))
  pair = Features(video, text)
  total, count, right = contrastive.sigmoid_vtc(pair, jnp.float32(0.5), jnp.float32(-1.0))
  np.testing.assert_allclose(total, positives + negatives, rtol=1e-6)
  assert count == 2
  np.testing.assert_array_equal(right, [1, 1])


def test_sigmoid_asks_each_pair_by_itself():
  """Captions a b a: the pairs 0 and 2 are left out, or right as the others are."""
  pair, t, b = Features(features(0, 3), features(1, 3)), jnp.float32(0.1), jnp.float32(-3.0)
  ids = ids_of([0, 1, 2], [0, 1, 0])

  def gradient(positives):
    wide = of_scores(pair.video @ pair.text.T)

    def loss(video):
      features = Features(video, wide.text)
      return contrastive.sigmoid_vtc(features, t, b, ids, positives=positives)[0]

    return np.asarray(jax.grad(loss)(wide.video))

  left_out, right = gradient(()), gradient((1,))
  assert left_out[0, 2] == left_out[2, 0] == 0
  assert right[0, 2] < 0 and right[2, 0] < 0
  others = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]], bool)
  np.testing.assert_array_equal(left_out[others], right[others])
  assert (np.diagonal(right) < 0).all() and (right[[0, 1, 1, 2], [1, 0, 2, 1]] > 0).all()


def test_sigmoid_is_finite_and_exact_for_very_sure_answers():
  pair = of_scores([[1.0, 0.0], [1.0, -1.0]])

  def loss(pair, t, b):
    return contrastive.sigmoid_vtc(pair, t, b)[0]

  value, (features, by_t, by_b) = jax.value_and_grad(loss, argnums=(0, 1, 2))(
    pair, jnp.float32(0.001), jnp.float32(0.0)
  )
  # Right by 1,000; the second row is wrong by as much, twice.
  np.testing.assert_allclose(value, np.log(2) + 2000, rtol=1e-6)
  np.testing.assert_allclose(features.video, [[0, 500], [1000, -1000]], rtol=1e-6)
  np.testing.assert_allclose([by_t, by_b], [-2e6, 0.5], rtol=1e-6)


@pytest.mark.parametrize('chunk', [0, 1])
def test_of_equal_scores_the_first_column_is_the_highest(chunk):
  pair = of_scores([[2.0, 2.0], [3.0, 1.0]])
  _, _, right = contrastive.vtc(pair, jnp.float32(1.0), ids_of([0, 1]), chunk=chunk)
  # Rows: the first of two equal ones, then the wrong one. Columns: both wrong.
  np.testing.assert_array_equal(right, [0.5, 0.0])


def test_a_chunk_must_divide_the_batch():
  pair = Features(features(0, 6), features(1, 6))
  with pytest.raises(ValueError, match='chunk=4 must divide the 6 rows'):
    contrastive.vtc(pair, jnp.float32(1.0), chunk=4)


@pytest.mark.parametrize('bias', [None, -10.0], ids=['softmax', 'sigmoid'])
def test_memory_does_not_grow_with_the_square_of_the_batch(bias):
  """32,768 pairs on 8 devices: all similarities would take 4 GiB."""
  rows, size, chunk = 32_768, 256, 1_024
  mesh = sharding.make_mesh()
  place = sharding.batch_sharding(mesh)

  def shaped(dtype, *shape):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

  side = shaped(jnp.float32, rows, size)

  @functools.partial(jax.jit, out_shardings=place)
  def gradient(pair, ids):
    t = jnp.float32(0.07)

    def loss(pair):
      return chunked(pair, t, bias, ids, (1,), chunk=chunk, mesh=mesh)[0]

    drawn = contrastive.hard_negatives(
      jax.random.key(0), *pair, t, ids, uniform_share=0.1, chunk=chunk, mesh=mesh
    )
    found = contrastive.has_negative(ids, chunk=chunk, mesh=mesh)
    return jax.grad(loss)(pair), drawn, found

  compiled = gradient.lower(Features(side, side), shaped(jnp.int32, rows, 2)).compile()
  # Features of all, and a few chunks of 4,096 own rows.
  memory = compiled.memory_analysis().temp_size_in_bytes
  assert memory < 2 * 4 * rows * size + 16 * 4 * rows // 8 * chunk
  assert memory < rows * rows * 4 / 8
  text = compiled.as_text()
  for many in (rows, rows // 8):
    assert f'[{many},{rows}]' not in text
  # The features are gathered, and no gradient of theirs is sent.
  assert f'all-reduce(f32[{rows},{size}]' not in text
  assert f'[{rows},{size}]{{1,0}} all-reduce' not in text


@functools.partial(jax.jit, static_argnames=('blocks', 'margin'))
def draw_many(keys, rows, columns, ids, share, blocks, margin):
  return jax.vmap(
    lambda key: contrastive.hard_negatives(
      key, rows, columns, jnp.float32(1.0), ids, uniform_share=share, blocks=blocks, margin=margin
    )
  )(keys)


def draw(rows, columns, ids, share, draws=400, blocks=1, margin=-2.0):
  keys = jax.random.split(jax.random.key(0), draws)
  index, valid = draw_many(keys, rows, columns, ids, share, blocks, margin)
  assert index.dtype == jnp.int32 and valid.dtype == bool
  return np.asarray(index), np.asarray(valid)


@pytest.mark.parametrize('share', [0.0, 0.5, 1.0])
def test_a_negative_is_never_itself_nor_the_same_video_or_caption(share):
  ids = ids_of([0, 1, 1, 2, 3, 4], [0, 1, 2, 0, 3, 4])
  same = np.asarray((ids[:, None] == ids[None]).any(-1))
  # The forbidden are the most similar by far.
  index, valid = draw(*of_scores(jnp.where(same, 50.0, 0.0)), ids, share)
  assert valid.all()
  for row in range(6):
    drawn = set(index[:, row].tolist())
    assert drawn == set(np.nonzero(~same[row])[0].tolist())


def test_the_more_similar_the_more_likely():
  scores = jnp.zeros((4, 4)).at[0].set(jnp.log(jnp.array([1e9, 1, 2, 5])))
  ids = jnp.arange(4)[:, None]
  # Half of each in the last.
  for share, want in ((0.0, [1, 2, 5]), (1.0, [8 / 3] * 3), (0.5, [11 / 6, 7 / 3, 23 / 6])):
    index, _ = draw(*of_scores(scores), ids, share, draws=2000)
    counts = np.bincount(index[:, 0], minlength=4) / 2000 * 8
    np.testing.assert_allclose(counts, [0, *want], atol=0.3)


@pytest.mark.parametrize('share', [0.0, 1.0])
def test_what_is_nearly_as_similar_as_the_pair_is_left_out(share):
  scores = jnp.array(
    [
      [0.5, 0.6, 0.45, 0.2, 0.1],  # Its own first: 0.6 and 0.45 may be right as well.
      [0.9, 0.8, 0.9, 0.85, 0.75],  # None is 0.1 below: the least similar is likely.
      [0.1, 0.2, 0.9, 0.3, 0.4],
      [0.0, 0.0, 0.0, 0.0, 0.0],
      [-0.5, -0.9, -0.5, -0.2, -0.3],
    ]
  )
  ids = jnp.arange(5)[:, None]
  index, valid = draw(*of_scores(scores), ids, share, margin=0.1)
  assert valid.all()
  drawn = [set(index[:, row].tolist()) for row in range(5)]
  assert drawn[0] == {3, 4} and drawn[2] == {0, 1, 3, 4} and drawn[4] == {0, 1, 2}
  assert drawn[1] == {0, 2, 3, 4} and drawn[3] == {0, 1, 2, 4}
  counts = np.bincount(index[:, 1], minlength=5)
  assert counts[4] > max(counts[0], counts[2])
  # A difference of 0 leaves out what is nearer alone; -2 leaves out nothing.
  assert set(draw(*of_scores(scores), ids, share, margin=0.0)[0][:, 0].tolist()) == {2, 3, 4}
  assert set(draw(*of_scores(scores), ids, share)[0][:, 0].tolist()) == {1, 2, 3, 4}


def test_a_row_without_any_negative_is_not_valid():
  """Row 0 shares its video with row 1 and its caption with row 2."""
  ids = ids_of([0, 0, 1], [5, 6, 5])
  index, valid = draw(*of_scores(jnp.zeros((3, 3))), ids, 0.3, draws=20)
  np.testing.assert_array_equal(valid, [[False, True, True]] * 20)
  np.testing.assert_array_equal(index, [[0, 2, 1]] * 20)


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize('blocks, chunk', [(1, 0), (2, 2)])
def test_the_rows_that_have_a_negative_are_known_before(blocks, chunk, devices):
  """All of one video in the first half; in the second, two of its videos."""
  ids = ids_of([0, 0, 0, 0, 1, 1, 0, 0], [0, 1, 2, 3, 4, 5, 4, 6])
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  found = jax.jit(
    functools.partial(contrastive.has_negative, blocks=blocks, chunk=chunk, mesh=mesh)
  )(ids)
  want = {1: [True] * 8, 2: [False] * 4 + [True] * 4}[blocks]
  np.testing.assert_array_equal(found, want)
  _, valid = draw(*of_scores(jnp.zeros((8, 8))), ids, 0.3, draws=2, blocks=blocks)
  np.testing.assert_array_equal(valid, [want] * 2)


def test_a_batch_of_one_has_no_negative_and_no_nan():
  one = jnp.ones((1, 1))
  index, valid = draw(one, one, jnp.zeros((1, 1), jnp.int32), 0.0, draws=3)
  assert not valid.any() and not index.any()


def test_very_far_scores_still_draw_an_allowed_column():
  scores = jnp.array([[0.0, -1e4, -2e4]] * 3)
  index, _ = draw(*of_scores(scores), jnp.arange(3)[:, None], 0.0, draws=50)
  np.testing.assert_array_equal(index[:, 0], 1)


def test_blocks_draw_among_themselves():
  index, valid = draw(*of_scores(jnp.zeros((6, 6))), jnp.arange(6)[:, None], 0.0, blocks=2)
  assert valid.all()
  np.testing.assert_array_equal(index // 3, [[0, 0, 0, 1, 1, 1]] * 400)


@pytest.mark.parametrize('margin', [-2.0, 0.1])
def test_draws_do_not_depend_on_devices_or_chunks(margin):
  rows, columns = features(0, 32), features(1, 32)

  def negatives(chunk, devices):
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    run = jax.jit(
      functools.partial(
        contrastive.hard_negatives, uniform_share=0.1, margin=margin, chunk=chunk, mesh=mesh
      )
    )
    place = sharding.batch_sharding(mesh)
    return run(
      jax.random.key(1),
      *jax.device_put((rows, columns), place),
      jnp.float32(0.1),
      jnp.arange(32)[:, None],
    )[0]

  want = negatives(0, 1)
  for chunk, devices in ((0, 8), (4, 8), (16, 1)):
    np.testing.assert_array_equal(negatives(chunk, devices), want)


def test_hard_negatives_have_no_gradient():
  def loss(rows):
    index, _ = contrastive.hard_negatives(
      jax.random.key(0),
      rows,
      jnp.eye(3),
      jnp.float32(1.0),
      jnp.arange(3)[:, None],
      uniform_share=0.1,
    )
    return jnp.sum(index.astype(jnp.float32))

  np.testing.assert_array_equal(jax.grad(loss)(jnp.ones((3, 3))), 0)
