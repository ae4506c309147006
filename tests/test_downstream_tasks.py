"""Fine-tuning tasks: their losses, heads and refusals."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from alpro_jax import losses, sharding
from alpro_jax.tasks.shared import abstract_params
from tests import small_task


def mesh_of(devices):
  return sharding.make_mesh(devices, 1, devices=jax.devices()[:devices])


@pytest.fixture
def answering(tmp_path):
  config = small_task.small_config(tmp_path, 'question_answering')
  path = tmp_path / 'answers.txt'
  path.write_text('left\nright\nup\n')
  config.data.update({'text': 'questions', 'answers': str(path)})
  config.model.text.dropout = 0.0
  return config


@pytest.fixture
def retrieval(tmp_path):
  config = small_task.small_config(tmp_path, 'retrieval')
  config.loss.update({'mlm': 0.0, 'pem': 0.0})
  return config


def heads(config):
  task = small_task.small_task(config, mesh_of(1))
  return {
    name
    for name in abstract_params(task.model, mesh_of(1))
    if 'encoder' not in name and name != 'text_embedding'
  }


def test_same_answers_and_gradients_on_eight_devices(answering):
  one, eight = (small_task.gradients_on(answering, mesh_of(n)) for n in (1, 8))
  assert one[0]['loss/answer'] > 0
  # A quarter of the rows have no label: they are wrong, whatever is said.
  assert 0 <= one[0]['accuracy/answer'] <= 0.75
  for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
    scale = max(np.abs(ours).max(), 1e-3)
    np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-5)
  # All that is trained gets a gradient; a key's bias has none by nature.
  for name, gradient in flatten_dict(one[1], sep='/').items():
    if 'key/bias' not in name:
      assert np.abs(gradient).max() > 0, name


def test_unknown_answers_teach_nothing():
  logits = np.array([[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]], np.float32)
  total, count = losses.answering(logits, np.array([0, -1, 1]))
  assert count == 2
  np.testing.assert_allclose(total, np.log1p(np.exp(-2.0)) + np.log(2.0), rtol=1e-6)
  assert losses.mean(*losses.answering(logits, np.full(3, -1))) == 0


def test_a_task_has_the_heads_that_it_trains(answering, retrieval):
  assert heads(answering) == {'answer_head'}
  contrast = {'video_projection', 'text_projection', 'temperature'}
  assert heads(retrieval) == contrast | {'match_head'}
  retrieval.loss.vtm = 0.0
  assert heads(retrieval) == contrast


def test_retrieval_refuses_losses_that_are_not_its(retrieval):
  retrieval.loss.mlm = 1.0
  with pytest.raises(ValueError, match='must be 0'):
    small_task.small_task(retrieval, mesh_of(1))


def test_answering_needs_questions_and_answers(answering):
  answering.data.answers = 'nowhere.txt'
  with pytest.raises(FileNotFoundError, match='launch/answers.py'):
    small_task.small_task(answering, mesh_of(1))
  answering.data.text = 'captions'
  with pytest.raises(ValueError, match="must be 'questions'"):
    small_task.small_task(answering, mesh_of(1))
