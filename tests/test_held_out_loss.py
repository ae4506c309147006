"""The losses on held-out clips, in the middle of a training."""

import jax
import numpy as np
import pytest

from alpro_jax import sharding
from alpro_jax.data import dataset
from alpro_jax.evaluation import during_training
from alpro_jax.evaluation.held_out_loss import HeldOutLoss, batch_size
from alpro_jax.tasks.base import TextInfo
from alpro_jax.tasks.registry import get_task
from alpro_jax.train.loop import Plan
from configs import common
from tests import small_sets, small_task


class Tokenizer(small_sets.Letters):
  special = small_task.TEXT.special


@pytest.fixture
def plan(tmp_path, monkeypatch):
  config = small_task.small_config(tmp_path)
  config.data.update({'resize': 24, 'max_text_tokens': 16, 'batch_size': 4})
  config.eval.update({'sources': (common.source('sets/set', split='test'),), 'loss_batches': 2})
  held_out = small_sets.MemorySet(6)
  monkeypatch.setattr(dataset, 'open_dataset', lambda path, name='train', **_: held_out)
  mesh = sharding.make_mesh(devices=jax.devices()[:2])
  task = get_task(config, TextInfo(Tokenizer.special, 256), mesh)
  frozen = sharding.create(task.init_frozen, jax.random.key(1), mesh)
  return Plan(config, task, Tokenizer(), mesh, frozen=frozen)


@pytest.mark.slow
def test_all_losses_the_same_each_time(plan):
  params = sharding.create(plan.task.init, jax.random.key(0), plan.mesh)
  evaluation = HeldOutLoss()
  found = evaluation(plan, params, 7)
  assert sorted(found) == sorted(evaluation.names(plan))
  assert {'eval/loss', 'eval/loss/vtc', 'eval/loss/mlm'} <= set(found)
  weights = plan.task.weights
  total = sum(weight * found[f'eval/{name}'] for name, weight in weights.items())
  np.testing.assert_allclose(found['eval/loss'], total, rtol=1e-5)
  # Of two batches of six clips: nothing is drawn anew, whatever the step.
  assert evaluation(plan, params, 9) == found
  other = jax.tree.map(lambda x: x * 0.9, params)
  assert evaluation(plan, other, 9)['eval/loss'] != found['eval/loss']


def test_it_is_of_whole_clips_with_their_texts(plan, monkeypatch):
  plan.config.data.update({'single_frames': 1.0, 'without_text': 1.0, 'sampling': 'rand'})
  asked = []

  def batches(config, *args, **kwargs):
    asked.append(config)
    raise StopIteration

  monkeypatch.setattr('alpro_jax.data.pipeline.train_batches', batches)
  with pytest.raises(StopIteration):
    HeldOutLoss()(plan, None, 1)
  (data,) = asked
  shown = data.single_frames, data.without_text, data.sampling, data.crop, data.randaugment.enabled
  assert shown == (0.0, 0.0, 'uniform', 'centre', False)


def test_it_is_asked_for_by_an_option(plan):
  def kinds():
    return [type(one) for one in during_training.evaluations(plan.config)]

  assert kinds() == [during_training.DuringTraining, HeldOutLoss]
  plan.config.eval.loss_batches = 0
  assert kinds() == [during_training.DuringTraining]


@pytest.mark.parametrize(
  ('records', 'blocks', 'chunk', 'rows'), [(6, 0, 0, 4), (3, 0, 0, 2), (1, 0, 0, 2), (9, 3, 0, 6)]
)
def test_rows_of_a_batch(plan, records, blocks, chunk, rows):
  plan.config.data.batch_size = 4 if not blocks else 8
  plan.config.loss.update({'negative_blocks': blocks, 'vtc_chunk': chunk})
  assert batch_size(plan.config, plan.mesh, records) == rows
