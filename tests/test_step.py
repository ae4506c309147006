"""The step: the same on any devices, and what it must not do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alpro_jax import losses, sharding
from alpro_jax.batch import NO_TEXT
from alpro_jax.models.alpro import Alpro, AlproConfig
from alpro_jax.tasks.base import Task
from alpro_jax.train import optimizer, state
from alpro_jax.train.step import make_gradients, make_train_step, step_key
from alpro_jax.train.trainable import Trainable
from configs import common, models
from tests import small_task
from tests.processes import run_two

# Sums run in another order on other devices; float32 has 24 bits.
TOLERANCE = 1e-5


def mesh_of(data, fsdp=1, tensor=1, slices=1):
  devices = jax.devices()[: data * fsdp * tensor * slices]
  return sharding.make_mesh(data, fsdp, devices, tensor=tensor, slices=slices)


def scale_of(path, gradients):
  """The size that an error in a gradient is measured against.

  A key's bias shifts all scores of a query alike, which softmax ignores: its
  gradient is zero but for rounding, so the query's bias lends its size.
  """
  keys = [entry.key for entry in path]
  if keys[-2:] == ['key', 'bias']:
    keys[-2] = 'query'
  for key in keys:
    gradients = gradients[key]
  return np.abs(gradients).max()


def assert_equal_gradients(expected, actual):
  """Compares a tree with the leaves found under the same paths."""
  for path, leaf in jax.tree.leaves_with_path(expected):
    np.testing.assert_allclose(
      actual(path),
      leaf,
      rtol=0,
      atol=TOLERANCE * scale_of(path, expected) + 1e-8,
      err_msg=jax.tree_util.keystr(path),
    )


def assert_equal_results(one, other):
  for name in one[0]:
    np.testing.assert_allclose(
      other[0][name], one[0][name], rtol=TOLERANCE, atol=1e-6, err_msg=name
    )
  flat = dict(jax.tree.leaves_with_path(other[1]))
  assert_equal_gradients(one[1], flat.__getitem__)


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  return small_task.small_config(tmp_path_factory.mktemp('step'))


@pytest.fixture(scope='module')
def on_one_device(config):
  return small_task.gradients_on(config, mesh_of(1))


@pytest.mark.parametrize(
  'shape', [(2, 2, 2), *(pytest.param(x, marks=pytest.mark.slow) for x in [(8, 1), (2, 2, 1, 2)])]
)
def test_same_losses_and_gradients_on_eight_devices(config, on_one_device, shape):
  assert_equal_results(on_one_device, small_task.gradients_on(config, mesh_of(*shape)))


@pytest.mark.slow
def test_local_negatives_are_the_same_on_any_devices(config):
  config = config.copy_and_resolve_references()
  config.loss.negatives = 'local'
  config.loss.negative_blocks = 8
  assert_equal_results(
    small_task.gradients_on(config, mesh_of(1)), small_task.gradients_on(config, mesh_of(8))
  )


@pytest.mark.slow
def test_negatives_of_a_slice_are_blocks_of_the_batch(config, on_one_device):
  config = config.copy_and_resolve_references()
  config.loss.negatives = 'slice'
  assert_equal_results(on_one_device, small_task.gradients_on(config, mesh_of(1)))
  in_two = small_task.gradients_on(config, mesh_of(4, slices=2))
  config.loss.update({'negatives': 'local', 'negative_blocks': 2})
  assert_equal_results(in_two, small_task.gradients_on(config, mesh_of(1)))


class Brightness(Task):
  """A toy task whose loss is a mean over the rows that have an answer."""

  weights = {'loss/brightness': 2.0}

  def make_targets(self, frozen, batch, key, *, parts=1):
    return None, {'loss/brightness': losses.labelled(batch.answer)}

  def terms(self, params, targets, batch, key, step, *, train):
    rows = batch.video.astype(jnp.float32).mean((1, 2, 3, 4))
    off = jnp.square(params * rows - batch.video_id)
    total = jnp.sum(off * (batch.answer >= 0))
    return {
      'loss/brightness': (total, losses.labelled(batch.answer)),
      'brightness': (jnp.mean(rows), 1.0),
    }


@pytest.mark.parametrize('devices', [1, 8])
def test_accumulation_divides_by_what_counts_in_all(devices):
  """Eight rows count in the one micro-batch, a single one in the other."""
  mesh = mesh_of(devices)
  host = small_task.small_batch()
  rows = np.arange(16)
  host = host.replace(answer=np.where((rows % 2 == 0) | (rows == 3), 0, -1))
  batch = jax.device_put(host, sharding.batch_sharding(mesh))

  def run(accumulation):
    gradients = make_gradients(Brightness(), mesh, accumulation=accumulation)
    return jax.jit(gradients)(jnp.float32(0.1), None, batch, jax.random.key(0), 0)

  bright = host.video.mean((1, 2, 3, 4))
  off = (0.1 * bright - host.video_id)[host.answer >= 0]
  want = np.mean(np.square(off))
  slope = 4 * np.mean(off * bright[host.answer >= 0])
  for accumulation in (1, 2):
    metrics, gradient = run(accumulation)
    np.testing.assert_allclose(metrics['loss/brightness'], want, rtol=1e-5)
    np.testing.assert_allclose(metrics['loss'], 2 * want, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5)
    np.testing.assert_allclose(metrics['brightness'], bright.mean(), rtol=1e-6)


class TwoLosses(Task):
  """(params - 3 y)^2 and 100 params, over all rows."""

  weights = {'loss/near': 1.0, 'loss/small': 0.5}

  def make_targets(self, frozen, batch, key, *, parts=1):
    return None, dict.fromkeys(self.weights, jnp.float32(batch.valid.shape[0]))

  def terms(self, params, targets, batch, key, step, *, train):
    rows = jnp.ones(batch.valid.shape)
    near = jnp.sum(jnp.square(params['x'] - 3 * params['y']) * rows)
    return {'loss/near': (near, jnp.sum(rows)), 'loss/small': (100 * params['x'] * 16, 16.0)}


def test_no_loss_drowns_another_where_each_is_clipped():
  params = {'x': jnp.float32(1.0), 'y': jnp.float32(0.0)}
  batch = small_task.small_batch()

  def run(clip):
    gradients = make_gradients(TwoLosses(), mesh_of(1), clip_per_loss=clip)
    return jax.jit(gradients)(params, None, batch, jax.random.key(0), 0)

  metrics, gradient = run(0.0)
  assert gradient == {'x': 2 + 50, 'y': -6}
  clipped, gradient = run(1.0)
  assert clipped == metrics
  # (2, -6) and (100, 0) at a norm of 1, the second one at half its weight.
  length = np.sqrt(40)
  np.testing.assert_allclose(gradient['x'], 2 / length + 0.5, rtol=1e-6)
  np.testing.assert_allclose(gradient['y'], -6 / length, rtol=1e-6)
  np.testing.assert_allclose(run(1e9)[1]['x'], 52, rtol=1e-6)
  with pytest.raises(ValueError, match='clip_per_loss=-1.0 must be 0, for none, or above'):
    run(-1.0)
  with pytest.raises(ValueError, match='needs the gradient of the whole batch at once'):
    make_gradients(TwoLosses(), mesh_of(1), accumulation=2, clip_per_loss=1.0)


@pytest.mark.slow
def test_losses_one_by_one_add_up_to_all_of_them(config, on_one_device):
  found = small_task.gradients_on(config, mesh_of(4, 2), clip_per_loss=1e9)
  assert_equal_results(on_one_device, found)


def test_every_step_has_a_key_of_its_own():
  keys = {
    jax.random.key_data(step_key(seed, step)).tobytes() for seed in (0, 1) for step in range(5)
  }
  assert len(keys) == 10
  again = jax.jit(lambda step: step_key(0, step))(jnp.int32(4))
  assert jax.random.key_data(again).tobytes() in keys


class Parts(Task):
  """Loss: a weight for each part times the noise of the step.

  With a batch of [1] the loss is finite and its gradient is not.
  """

  weights = {'loss/parts': 1.0}

  def make_targets(self, frozen, batch, key, *, parts=1):
    return None, {'loss/parts': 1.0}

  def terms(self, params, targets, batch, key, step, *, train):
    total = params['temperature'] * self.slope
    for name in ('attention', 'mlp', 'norm1'):
      total += 30.0 * params['video_encoder']['block0'][name]['kernel'].sum()
    # The root has no slope at 0.
    total += jnp.sqrt(jnp.abs(total * (1 - batch[0]))) * batch[0]
    return {'loss/parts': (total, 1.0), 'drawn': (jax.random.normal(key), 1.0)}

  def __init__(self, slope=0.0, bounds=(0.001, 0.5)):
    self.slope = slope
    values = models.tiny().to_dict() | {'temperature_range': bounds}
    self.model = Alpro(AlproConfig.from_dict(values))


def parts_at(step, params, tx, trainable):
  trained, held = trainable.split(jax.tree.map(jnp.float32, params), jax.random.key(0))
  return state.TrainState(jnp.int32(step), trained, tx.init(trained), held)


def run_parts(task, now, changes, batches, non_finite='stop'):
  """Yields state and metrics after each batch of one number."""
  config = common.get_config('tiny')
  config.optimizer.update({'warmup_steps': 0, 'clip_norm': 0.0, **changes})
  config.train.non_finite = non_finite
  tx, schedule = optimizer.from_config(config.optimizer, steps=10)
  now = parts_at(*now, tx, Trainable.from_config(config.optimizer))
  mesh = mesh_of(1)
  layout = jax.tree.map(lambda x: sharding.replicated(mesh), now)
  step = make_train_step(config, task, tx, schedule, mesh, layout)
  for batch in batches:
    now, metrics = step(now, None, jnp.float32([batch]))
    yield jax.device_get(now), jax.device_get(metrics)


PARTS = {
  'temperature': 0.1,
  'video_encoder': {
    'block0': {name: {'kernel': np.ones((2, 2))} for name in ('attention', 'mlp', 'norm1')}
  },
}


def test_a_gradient_that_is_not_finite_is_skipped_and_the_schedule_goes_on():
  """The loss alone is finite; the rate of a step is its own, and ends."""
  results = list(
    run_parts(
      Parts(),
      (4, PARTS),
      {'weight_decay': 0.0, 'learning_rate': 0.1},
      [0, 1, 1, 0, 0, 0],
      non_finite='skip',
    )
  )
  assert all(np.isfinite(metrics['loss']) for _, metrics in results)
  skipped = [metrics['skipped'] for _, metrics in results]
  assert skipped == [0, 1, 1, 0, 0, 0]
  kernels = [1.0] + [
    now.params['video_encoder']['block0']['mlp']['kernel'][0, 0] for now, _ in results
  ]
  # Adam's update of a gradient that is always the same is the rate.
  moved = -np.diff(kernels)
  rates = [metrics['learning_rate'] for _, metrics in results]
  np.testing.assert_allclose(rates, [0.05, 0.04, 0.03, 0.02, 0.01, 1e-8], rtol=1e-5)
  np.testing.assert_allclose(moved, np.multiply(rates, np.subtract(1, skipped)), atol=1e-6)


def test_a_learning_rate_of_zero_changes_nothing_but_the_draws():
  results = list(run_parts(Parts(), (0, PARTS), {'learning_rate': 0.0}, [0, 0]))
  for now, metrics in results:
    assert metrics['learning_rate'] == 0 and metrics['grad_norm'] > 0
    jax.tree.map(np.testing.assert_array_equal, now.params, jax.tree.map(np.float32, PARTS))
  drawn = [metrics['drawn'] for _, metrics in results]
  assert drawn[0] != drawn[1]


def test_frozen_parameters_have_no_moments_and_no_norm():
  ((now, metrics),) = run_parts(Parts(), (0, PARTS), {'freeze': 'video_attention_and_mlp'}, [0])
  np.testing.assert_allclose(metrics['grad_norm'], 30 * 2, rtol=1e-6)
  np.testing.assert_allclose(metrics['grad_norm/video_encoder'], 30 * 2, rtol=1e-6)
  moments = [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, leaf in jax.tree.leaves_with_path(now.opt_state)
    if leaf.ndim == 2
  ]
  assert [name.rpartition('block0/')[2] for name in moments] == ['norm1/kernel'] * 2
  for name, changed in (('attention', False), ('mlp', False), ('norm1', True)):
    kernel = now.model['video_encoder']['block0'][name]['kernel']
    assert (kernel != 1).all() == changed


@pytest.mark.parametrize(
  'first, slope, bounds, bound',
  [
    (0.45, -1.0, (0.001, 0.5), 0.5),
    (0.05, 1.0, (0.001, 0.5), 0.001),
    (0.05, 1.0, (0.01, 0.5), 0.01),  # CLIP's: a scale of 100 at most.
  ],
)
def test_the_temperature_stops_at_its_bound_and_comes_back(first, slope, bounds, bound):
  task, back = Parts(slope, bounds), Parts(-slope, bounds)
  start = (0, PARTS | {'temperature': first})
  rate = {'learning_rate': 0.04, 'schedule': 'constant'}
  *_, (now, _) = run_parts(task, start, rate, [0] * 20)
  assert now.params['temperature'] == np.float32(bound)
  # A step the other way leaves the bound by the whole rate.
  ((now, _),) = run_parts(back, (20, now.params), rate, [0])
  np.testing.assert_allclose(now.params['temperature'], bound + slope * 0.04, rtol=1e-4)
  # One that lies outside, from an older run, counts as the bound.
  outside = now.params | {'temperature': bound - slope}
  ((now, _),) = run_parts(back, (20, outside), rate, [0])
  np.testing.assert_allclose(now.params['temperature'], bound + slope * 0.04, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('negatives', ['global', 'local'])
def test_no_device_gathers_the_video_tokens(config, negatives):
  config = config.copy_and_resolve_references()
  config.loss.negatives = negatives
  text = small_task.gradients_on(config, mesh_of(8), compiled=True)
  b, s, d = 16, 1 + 4, 32
  assert f'[{b},{s},{d}]' not in text
  assert f'[{b // 8},{s},{d}]' in text
  if negatives == 'local':
    assert 'collective-permute' not in text


def test_loss_of_weight_zero_skips_its_work(config, tmp_path):
  config = small_task.small_config(tmp_path)
  config.loss.update({'vtm': 0.0, 'mlm': 0.0, 'pem': 0.0})
  config.prompter.entities = ''  # Not needed without PEM.
  metrics, gradients = small_task.gradients_on(config, mesh_of(1))
  assert {k for k in metrics if k.startswith('loss/')} == {'loss/vtc'}
  assert not np.any(jax.tree.leaves(gradients['fusion_encoder'])[0])
  assert 'entity_head' not in gradients


def test_pictures_alone_are_asked_for_entities_and_for_nothing_else(config):
  """Their losses are those of the rows with text, but for PEM."""
  task = small_task.small_task(config, mesh_of(1))
  frozen = sharding.create(task.init_frozen, jax.random.key(1), mesh_of(1))
  batch = small_task.small_batch()
  alone = np.arange(16) % 4 == 3
  text_mask = np.where(alone[:, None], np.arange(batch.text_mask.shape[1]) < 2, batch.text_mask)
  special = small_task.TEXT.special
  text_ids = np.where(alone[:, None], special.pad, batch.text_ids)
  text_ids[alone, :2] = special.cls, special.sep
  mixed = batch.replace(
    text_ids=text_ids,
    text_mask=text_mask,
    caption_id=np.where(alone, NO_TEXT, batch.caption_id).astype(np.int32),
  )
  targets, counts = jax.jit(task.make_targets)(frozen, mixed, jax.random.key(2))
  found, labels = np.asarray(targets.found), np.asarray(targets.labels)
  assert not found[alone].any() and not (labels[alone] >= 0).any()
  assert found[~alone, 0].all() and (labels[~alone] >= 0).any()
  assert counts['loss/vtc'] == 12 and counts['loss/vtm'] == found.sum()
  assert np.asarray(targets.keep)[alone].any()


@pytest.mark.parametrize(
  'changes',
  [
    {'task': 'retrieval'},
    {'loss.pem': 0.0},
    {'loss.same_caption': 'positive'},
    {'loss.same_video': 'positive'},
  ],
)
def test_pictures_alone_are_for_entities_alone(config, changes):
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict({'data.without_text': 0.5} | changes)
  with pytest.raises(ValueError, match='config.data.without_text=0.5 is for PEM alone'):
    small_task.small_task(config, mesh_of(1))


def test_teacher_gets_no_gradient_and_is_no_parameter(config):
  mesh = mesh_of(1)
  task = small_task.small_task(config, mesh)
  frozen = sharding.create(task.init_frozen, jax.random.key(1), mesh)
  params = sharding.create(task.init, jax.random.key(0), mesh)

  def loss(frozen, params, batch):
    return small_task.loss_of(task, params, frozen, batch, jax.random.key(2), 0)[0]

  gradient = jax.jit(jax.grad(loss, allow_int=True))(frozen, params, small_task.small_batch())
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_the_teacher_leaves_nothing_for_the_backward_pass(config):
  """What is kept does not depend on how deep the teacher is."""
  task = small_task.small_task(config, mesh_of(1))
  from flax import linen as nn

  params = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))

  def kept(depth):
    video = dataclasses.replace(task.model.config.video, depth=depth)
    teacher = dataclasses.replace(
      task, model=task.model.clone(config=dataclasses.replace(task.model.config, video=video))
    )
    frozen = nn.unbox(jax.eval_shape(teacher.init_frozen, jax.random.key(1)))

    def backward(params, frozen):
      return jax.vjp(
        lambda params: small_task.loss_of(
          task, params, frozen, small_task.small_batch(), jax.random.key(2), 0
        )[0],
        params,
      )[1]

    # The leaves of a pulled-back function are what it keeps.
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(backward, params, frozen)))

  assert kept(1) == kept(3)


@pytest.mark.parametrize('task', ['pretrain', 'prompter'])
def test_photos_of_one_frame_and_clips_take_one_step(tmp_path, task):
  """A batch of photos need not repeat them: two shapes, one function."""
  config = small_task.small_config(tmp_path, task)
  task = small_task.small_task(config, mesh_of(1))
  from flax import linen as nn

  params = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
  frozen = nn.unbox(jax.eval_shape(task.init_frozen, jax.random.key(1)))
  batch = small_task.small_batch()
  photos = batch.replace(video=batch.video[:, :1])
  clips, stills = (
    jax.eval_shape(
      lambda params, frozen: small_task.loss_of(
        task,
        params,
        frozen,
        batch,  # noqa: B023
        jax.random.key(2),
        0,
      ),
      params,
      frozen,
    )
    for batch in (batch, photos)
  )
  assert clips == stills


@pytest.mark.slow
def test_step_counts_donates_and_learns(config):
  mesh = mesh_of(4, 2)
  task = small_task.small_task(config, mesh)
  tx, schedule = optimizer.from_config(config.optimizer, steps=100)
  layout = jax.tree.map(lambda x: x.sharding, state.abstract_state(task.init, tx, mesh))
  train_step = make_train_step(config, task, tx, schedule, mesh, layout)
  now = state.create_state(task.init, tx, mesh, seed=0)
  frozen = sharding.create(task.init_frozen, jax.random.key(1), mesh)
  batch = jax.device_put(small_task.small_batch(), sharding.batch_sharding(mesh))
  found = []
  for _ in range(30):
    before = now
    now, metrics = train_step(now, frozen, batch)
    found.append(float(metrics['loss/vtc']))
  assert int(now.step) == 30
  assert before.params['text_embedding']['words'].is_deleted()
  assert np.mean(found[-5:]) < 0.9 * np.mean(found[:5])
  moments = now.opt_state[1].mu['video_encoder']['block0']['mlp']['fc1']
  assert moments['kernel'].sharding.spec[0] == 'fsdp'


@pytest.mark.slow
def test_two_processes_agree_with_one_device(config, on_one_device, tmp_path):
  run_two('two_processes', [tmp_path, tmp_path])
  with np.load(tmp_path / 'gradients.npz') as there:
    metrics, gradients = on_one_device
    for name, value in metrics.items():
      np.testing.assert_allclose(there[f'metrics/{name}'], value, rtol=TOLERANCE, atol=1e-6)
    assert_equal_gradients(gradients, lambda path: there[jax.tree_util.keystr(path)])
