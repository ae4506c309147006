"""Accumulation whose VTC sees all pairs of the step, not of the micro-batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from alpro_jax.contrastive import Features
from alpro_jax.train.step import make_gradients
from tests import small_task, test_step


@pytest.fixture
def prompter(tmp_path):
  config = small_task.small_config(tmp_path, 'prompter')
  config.model.text.dropout = 0.0
  return config


def test_two_micro_batches_contrast_as_one_batch(prompter):
  whole = small_task.gradients_on(prompter, test_step.mesh_of(1))
  prompter.loss.vtc_chunk = 4
  parts = small_task.gradients_on(
      prompter, test_step.mesh_of(8), accumulation=2, negatives='global'
  )
  test_step.assert_equal_results(whole, parts)


def test_both_passes_drop_the_same(prompter):
  """As one loss of all features, each embedded with its micro-batch's key."""
  prompter.model.text.dropout = 0.3
  prompter.model.video.drop_path = 0.3
  mesh = test_step.mesh_of(1)
  task = small_task.small_task(prompter, mesh)
  params = jax.jit(lambda key: nn.unbox(task.init(key)))(jax.random.key(0))
  batch = jax.tree.map(jnp.asarray, small_task.small_batch())
  key = jax.random.key(3)

  def loss(params):
    parts = [
        task.embed(
            params, jax.tree.map(lambda x: x[i::2], batch),  # noqa: B023
            jax.random.fold_in(key, i), train=True,
        )
        for i in range(2)
    ]
    features = Features(*(
        jnp.stack(pair, axis=1).reshape(16, -1)
        for pair in zip(*parts, strict=True)
    ))
    return task.contrast(params, features, batch)[0]

  wanted = jax.jit(jax.value_and_grad(loss))(params)
  gradients = make_gradients(task, mesh, accumulation=2, negatives='global')
  metrics, found = jax.jit(gradients)(params, None, batch, key, 0)
  np.testing.assert_allclose(metrics['loss'], wanted[0], rtol=1e-5)
  found = dict(jax.tree.leaves_with_path(found))
  test_step.assert_equal_gradients(wanted[1], found.__getitem__)


def test_pretraining_averages_the_other_losses(tmp_path):
  config = small_task.small_config(tmp_path)
  mesh = test_step.mesh_of(1)
  task = small_task.small_task(config, mesh)
  shapes = [
      jax.eval_shape(
          make_gradients(task, mesh, accumulation=2, negatives=negatives),
          nn.unbox(jax.eval_shape(task.init, jax.random.key(0))),
          task.untrained_frozen(jax.random.key(1)), small_task.small_batch(),
          jax.random.key(0), 0,
      )
      for negatives in ('micro', 'global')
  ]
  assert shapes[0] == shapes[1]


def test_negatives_that_are_not_there_are_refused(tmp_path):
  config = small_task.small_config(tmp_path, 'question_answering')
  path = tmp_path / 'answers.txt'
  path.write_text('left\nright\n')
  config.data.update({'text': 'questions', 'answers': str(path)})
  mesh = test_step.mesh_of(1)
  task = small_task.small_task(config, mesh)
  with pytest.raises(ValueError, match='needs a task that contrasts'):
    make_gradients(task, mesh, accumulation=2, negatives='global')
  with pytest.raises(ValueError, match="'all' is unknown"):
    make_gradients(task, mesh, accumulation=2, negatives='all')
