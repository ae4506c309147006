"""Fine-tuning tasks: their losses, heads and refusals; what a batch's pairs are to each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from alpro_jax import contrastive, losses, sharding
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


@pytest.mark.parametrize(
  'video, caption, wanted',
  [
    ('neutral', 'neutral', '=.--. .=-.. --=-- -.-=- ..--='),
    ('neutral', 'negative', '=.--. .=--. --=-- ---=- ..--='),
    ('negative', 'negative', '=---- -=--- --=-- ---=- ----='),
    ('neutral', 'positive', '=.--= .=-=. --=-- -=-=- =.--='),
    ('positive', 'neutral', '==--= ==-.= --=-- -.-=- ==--='),
    ('positive', 'negative', '==--= ==--= --=-- ---=- ==--='),
    ('negative', 'positive', '=---= -=-=- --=-- -=-=- =---='),
    ('positive', 'positive', '==--= ==-== --=-- -=-=- ==--='),
  ],
)
def test_what_pairs_are_for_each_other(retrieval, video, caption, wanted):
  """Rows 0, 1, 4 show a video, rows 0, 4 and 1, 3 share captions: = right, . neutral."""
  retrieval.loss.update({'same_video': video, 'same_caption': caption})
  batch = small_task.small_batch(5).replace(
    video_id=np.array([0, 0, 1, 2, 0]), caption_id=np.array([5, 6, 7, 6, 5])
  )
  ids, positives = small_task.small_task(retrieval, mesh_of(1)).relations(batch)
  wanted = np.array([list(row) for row in wanted.split()])
  same = np.asarray(ids[:, None] == ids[None])
  np.testing.assert_array_equal(same.any(-1) | np.eye(5, dtype=bool), wanted != '-')
  right = same[..., list(positives)].any(-1) | np.eye(5, dtype=bool)
  np.testing.assert_array_equal(right, wanted == '=')
  # What VTM draws is a negative.
  score = jnp.where(wanted == '-', 0.0, 9.0)
  drawn, valid = contrastive.hard_negatives(
    jax.random.key(0), score, jnp.eye(5), jnp.float32(1), ids, uniform_share=0.0
  )
  assert valid.all() and (wanted[np.arange(5), drawn] == '-').all()


def test_matching_asks_of_pairs_within_the_margin_alone(retrieval):
  """Each of four pairs is nearly as near to the next one, and to no other."""
  retrieval.loss.negative_margin = 0.2
  task = small_task.small_task(retrieval, mesh_of(1))
  batch = small_task.small_batch(4).replace(video_id=np.arange(4), caption_id=np.arange(4))
  video = jnp.eye(4)
  features = contrastive.Features(video, 0.7 * video + 0.7 * jnp.roll(video, 1, axis=1))
  for seed in range(5):
    other_video, other_text = task._hard_negatives(
      features, jnp.float32(0.1), batch, jax.random.key(seed), 0
    )
    assert (other_video != (np.arange(4) + 1) % 4).all()
    assert (other_text != (np.arange(4) - 1) % 4).all()


@pytest.mark.parametrize(
  'option, message',
  [
    ({'vtc_form': 'hinge'}, r"config.loss.vtc_form='hinge' is unknown; choose one of \('softmax'"),
    ({'same_video': True}, r"same_video=True is unknown; choose one of \('neutral', 'positive'"),
    ({'negative_margin': 3.0}, 'negative_margin=3.0 must lie between -2 and 2'),
    ({'vtc_form': 'sigmoid'}, "'sigmoid' needs a model with a bias: set config.model.logit_bias"),
  ],
)
def test_a_contrast_that_cannot_be_is_refused(retrieval, option, message):
  with retrieval.ignore_type():
    retrieval.loss.update(option)
  with pytest.raises(ValueError, match=message):
    small_task.small_task(retrieval, mesh_of(1))


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
  answering.data.text = 'questions'
  with answering.unlocked():
    del answering.model['text']
  with pytest.raises(ValueError, match='answering questions needs a fusion encoder'):
    small_task.small_task(answering, mesh_of(1))
