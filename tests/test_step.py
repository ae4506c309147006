"""The step: the same on any devices, and what it must not do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alpro_jax import sharding
from alpro_jax.train import optimizer, state
from alpro_jax.train.step import make_gradients, make_train_step
from tests import small_task
from tests.processes import run_two

# Sums run in another order on other devices; float32 has 24 bits.
TOLERANCE = 1e-5


def mesh_of(data, fsdp=1, tensor=1):
  devices = jax.devices()[: data * fsdp * tensor]
  return sharding.make_mesh(data, fsdp, devices, tensor=tensor)


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
        actual(path), leaf, rtol=0,
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


@pytest.mark.parametrize('shape', [(8, 1), (4, 2), (2, 2, 2)])
def test_same_losses_and_gradients_on_eight_devices(
    config, on_one_device, shape
):
  assert_equal_results(
      on_one_device, small_task.gradients_on(config, mesh_of(*shape))
  )


def test_local_negatives_are_the_same_on_any_devices(config):
  config = config.copy_and_resolve_references()
  config.loss.negatives = 'local'
  config.loss.negative_blocks = 8
  assert_equal_results(
      small_task.gradients_on(config, mesh_of(1)),
      small_task.gradients_on(config, mesh_of(8)),
  )


class MeanBrightness:
  """A toy task whose loss is a mean over rows, so that no cut shows."""

  def loss(self, params, frozen, batch, key, step, *, train):
    rows = batch.video.astype(jnp.float32).mean((1, 2, 3, 4))
    loss = jnp.mean(jnp.square(params * rows - batch.video_id))
    return loss, {'brightness': jnp.mean(rows)}


@pytest.mark.parametrize('devices', [1, 8])
def test_accumulation_averages_micro_batches(devices):
  mesh = mesh_of(devices)
  batch = jax.device_put(
      small_task.small_batch(), sharding.batch_sharding(mesh)
  )

  def run(accumulation):
    gradients = make_gradients(
        MeanBrightness(), mesh, accumulation=accumulation
    )
    return jax.jit(gradients)(
        jnp.float32(0.1), None, batch, jax.random.key(0), 0
    )

  whole, cut = run(1), run(2)
  np.testing.assert_allclose(cut[0]['loss'], whole[0]['loss'], rtol=1e-6)
  np.testing.assert_allclose(cut[1], whole[1], rtol=1e-6)


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


def test_teacher_gets_no_gradient_and_is_no_parameter(config):
  task = small_task.small_task(config, mesh_of(1))
  frozen = task.untrained_frozen(jax.random.key(1))
  from flax import linen as nn

  params = nn.unbox(task.init(jax.random.key(0)))

  def loss(frozen):
    batch = small_task.small_batch()
    return task.loss(
        params, frozen, batch, jax.random.key(2), 0, train=True
    )[0]

  gradient = jax.jit(jax.grad(loss, allow_int=True))(frozen)
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_the_teacher_leaves_nothing_for_the_backward_pass(config):
  """What is kept does not depend on how deep the teacher is."""
  task = small_task.small_task(config, mesh_of(1))
  from flax import linen as nn

  params = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))

  def kept(depth):
    video = dataclasses.replace(task.model.config.video, depth=depth)
    teacher = dataclasses.replace(task, model=task.model.clone(
        config=dataclasses.replace(task.model.config, video=video)
    ))
    frozen = jax.eval_shape(teacher.untrained_frozen, jax.random.key(1))

    def pull(params, frozen):
      return jax.vjp(
          lambda params: task.loss(
              params, frozen, small_task.small_batch(), jax.random.key(2), 0,
              train=True,
          )[0],
          params,
      )[1]

    # The leaves of a pulled-back function are what it keeps.
    return sum(
        leaf.size for leaf in jax.tree.leaves(
            jax.eval_shape(pull, params, frozen)
        )
    )

  assert kept(1) == kept(3)


@pytest.mark.parametrize('task', ['pretrain', 'prompter'])
def test_photos_of_one_frame_and_clips_take_one_step(tmp_path, task):
  """A batch of photos need not repeat them: two shapes, one function."""
  config = small_task.small_config(tmp_path, task)
  task = small_task.small_task(config, mesh_of(1))
  from flax import linen as nn

  params = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))
  frozen = jax.eval_shape(task.untrained_frozen, jax.random.key(1))
  batch = small_task.small_batch()
  photos = batch.replace(video=batch.video[:, :1])
  clips, stills = (
      jax.eval_shape(
          lambda params, frozen: task.loss(
              params, frozen, batch, jax.random.key(2), 0, train=True  # noqa: B023
          ),
          params, frozen,
      )
      for batch in (batch, photos)
  )
  assert clips == stills


def test_step_counts_donates_and_learns(config):
  mesh = mesh_of(4, 2)
  task = small_task.small_task(config, mesh)
  tx, schedule = optimizer.from_config(config.optimizer, steps=100)
  layout = jax.tree.map(
      lambda x: x.sharding, state.abstract_state(task.init, tx, mesh)
  )
  train_step = make_train_step(task, tx, schedule, mesh, layout, seed=0)
  now = state.create_state(task.init, tx, mesh, seed=0)
  frozen = task.untrained_frozen(jax.random.key(1))
  batch = jax.device_put(
      small_task.small_batch(), sharding.batch_sharding(mesh)
  )
  losses = []
  for _ in range(30):
    before = now
    now, metrics = train_step(now, frozen, batch)
    losses.append(float(metrics['loss/vtc']))
  assert int(now.step) == 30
  assert before.params['text_embedding']['words'].is_deleted()
  assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
  moments = now.opt_state[1].mu['video_encoder']['block0']['mlp']['fc1']
  assert moments['kernel'].sharding.spec[0] == 'fsdp'


def test_two_processes_agree_with_one_device(config, on_one_device, tmp_path):
  run_two('two_processes', [tmp_path, tmp_path])
  with np.load(tmp_path / 'gradients.npz') as there:
    metrics, gradients = on_one_device
    for name, value in metrics.items():
      np.testing.assert_allclose(
          there[f'metrics/{name}'], value, rtol=TOLERANCE, atol=1e-6
      )
    assert_equal_gradients(
        gradients, lambda path: there[jax.tree_util.keystr(path)]
    )
