"""The step in PyTorch, for benchmarks: the same work as ours."""

import importlib

import jax
import numpy as np
import pytest
from flax import linen as nn

from alpro_jax import losses, sharding
from alpro_jax.weights import tables
from benchmarks import dry_run
from configs import pretrain
from tests import small_task

torch = pytest.importorskip('torch')

torch_step = importlib.import_module('benchmarks.torch_step')


@pytest.mark.slow
def test_the_same_losses_and_gradients(tmp_path):
  """Without dropout; with two rows, the one negative is the other row."""
  config = small_task.small_config(tmp_path)
  config.data.batch_size = 2
  config.model.text.update({'dropout': 0.0, 'mlm_logit_scale': 1.0})
  config.prompter.ignore_threshold = 0.0
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  task = small_task.small_task(config, mesh)
  key = jax.random.key(3)
  params = sharding.create(task.init, key, mesh)
  # Biases and what starts at zero must count as well.
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: x + 0.02 * rng.normal(size=x.shape).astype(np.float32), params)
  frozen = sharding.create(task.init_frozen, jax.random.key(1), mesh)
  batch = small_task.small_batch(8)
  batch = jax.tree.map(lambda x: x[4:6], batch)

  def loss(params):
    return small_task.loss_of(task, params, frozen, batch, key, np.int32(0))

  (_, ours), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

  student, prompter = torch_step.build(config, task)
  torch_step.load(student, params, task.model.config)
  torch_step.load(prompter, frozen.params, task.model.config)
  prompter.bank = torch.tensor(np.stack([frozen.bank.video, frozen.bank.image]))
  drawn = torch_step.draw(task, batch, key)
  theirs = student(drawn, *prompter(drawn.video, drawn.region, drawn.still))
  for name, value in theirs._asdict().items():
    np.testing.assert_allclose(
      value.item(), losses.mean(*ours[f'loss/{name}']), rtol=1e-4, err_msg=name
    )

  sum(theirs).backward()
  expected = tables.to_original(gradients, task.model.config)
  found = dict(student.named_parameters())
  assert set(found) == set(expected)
  for name, value in expected.items():
    # A key's bias has no gradient but rounding: measured by the query's.
    scale = np.abs(expected[name.replace('key.bias', 'query.bias')]).max()
    np.testing.assert_allclose(
      found[name].grad.numpy(), value, err_msg=name, atol=1e-4 * max(1e-3, scale), rtol=1e-3
    )


def test_the_same_parameters():
  """Name by name at base size, where nothing is allocated."""
  config = pretrain.get_config()
  task = dry_run.task(config, sharding.make_mesh())
  boxed = jax.eval_shape(task.init, jax.random.key(0))
  with torch.device('meta'):
    student, _ = torch_step.build(config, task)
  found = {n: tuple(x.shape) for n, x in student.named_parameters()}
  ours = tables.to_original(
    jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), nn.unbox(boxed)),
    task.model.config,
  )
  assert found == {name: x.shape for name, x in ours.items()}
