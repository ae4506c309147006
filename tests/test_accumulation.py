"""Micro-batches add up to one batch, but for where negatives come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alpro_jax import losses, sharding
from alpro_jax.contrastive import Features
from alpro_jax.train.step import check_negatives, make_gradients
from tests import small_task, test_step


@pytest.fixture
def prompter(tmp_path):
  config = small_task.small_config(tmp_path, 'prompter')
  config.model.text.dropout = 0.0
  return config


@pytest.fixture
def answering(tmp_path):
  config = small_task.small_config(tmp_path, 'question_answering')
  path = tmp_path / 'answers.txt'
  path.write_text('left\nright\n')
  config.data.update({'text': 'questions', 'answers': str(path)})
  return config


@pytest.mark.parametrize('form', ['softmax', pytest.param('sigmoid', marks=pytest.mark.slow)])
def test_two_micro_batches_contrast_as_one_batch(prompter, form):
  if form == 'sigmoid':
    prompter.model.logit_bias = -2.0
    prompter.loss.update({'vtc_form': form, 'same_video': 'positive', 'same_caption': 'positive'})
  whole = small_task.gradients_on(prompter, test_step.mesh_of(1))
  prompter.loss.vtc_chunk = 4
  parts = small_task.gradients_on(
    prompter, test_step.mesh_of(8), accumulation=2, negatives='global'
  )
  test_step.assert_equal_results(whole, parts)
  assert ('logit_bias' in whole[0]) == ('logit_bias' in whole[1]) == (form == 'sigmoid')


@pytest.mark.slow
def test_both_passes_drop_the_same(prompter):
  """As one loss of all features, each embedded with its micro-batch's key."""
  prompter.model.text.dropout = 0.3
  prompter.model.video.drop_path = 0.3
  mesh = test_step.mesh_of(1)
  task = small_task.small_task(prompter, mesh)
  params = sharding.create(task.init, jax.random.key(0), mesh)
  batch = jax.tree.map(jnp.asarray, small_task.small_batch())
  key = jax.random.key(3)

  def loss(params):
    parts = [
      task.embed(
        params,
        None,
        jax.tree.map(lambda x: x[i::2], batch),  # noqa: B023
        jax.random.fold_in(key, i),
        train=True,
      )
      for i in range(2)
    ]
    features = Features(
      *(jnp.stack(pair, axis=1).reshape(16, -1) for pair in zip(*parts, strict=True))
    )
    return losses.mean(*task.contrast(params, features, batch)['loss/vtc'])

  wanted = jax.jit(jax.value_and_grad(loss))(params)
  gradients = make_gradients(task, mesh, accumulation=2, negatives='global')
  metrics, found = jax.jit(gradients)(params, None, batch, key, 0)
  np.testing.assert_allclose(metrics['loss'], wanted[0], rtol=1e-5)
  found = dict(jax.tree.leaves_with_path(found))
  test_step.assert_equal_gradients(wanted[1], found.__getitem__)


@pytest.mark.slow
def test_pretraining_averages_the_other_losses(tmp_path):
  """Over all rows, as one batch does; VTM has other negatives, and is out."""
  config = small_task.small_config(tmp_path)
  config.model.text.dropout = 0.0
  config.loss.vtm = 0.0
  config.prompter.ignore_threshold = 0.6
  mesh = test_step.mesh_of(1)
  whole = small_task.gradients_on(config, mesh)
  parts = small_task.gradients_on(config, mesh, accumulation=4, negatives='global')
  # Ten rows, which four micro-batches cannot have in equal parts.
  assert whole[0]['pseudo/kept'] == 10 / 16
  test_step.assert_equal_results(whole, parts)
  losses = [whole[0][f'loss/{name}'] for name in ('vtc', 'mlm', 'pem')]
  np.testing.assert_allclose(whole[0]['loss'], sum(losses), rtol=1e-6)


@pytest.mark.slow
def test_answers_without_a_label_do_not_count(answering):
  """Eight rows of the one micro-batch have a label, two of the other."""
  answering.model.text.dropout = 0.0
  rows = np.arange(16)
  host = small_task.small_batch()
  host = host.replace(answer=np.where((rows % 2 == 0) | (rows < 4), rows % 2, -1).astype(np.int32))
  whole = small_task.gradients_on(answering, test_step.mesh_of(1), host=host)
  parts = small_task.gradients_on(answering, test_step.mesh_of(8), accumulation=2, host=host)
  test_step.assert_equal_results(whole, parts)


@pytest.mark.slow
def test_rows_without_a_negative_do_not_count(tmp_path):
  """Micro-batches of two pairs draw as blocks of two do; one has no negative.

  A row finds the one other row of its two, so nothing is left to chance.
  """
  config = small_task.small_config(tmp_path)
  config.model.text.dropout = 0.0
  config.loss.update({'vtc': 0.0, 'mlm': 0.0, 'pem': 0.0})
  host = small_task.small_batch(8)
  video_id = host.video_id.copy()
  video_id[4] = video_id[0]  # Rows 0 and 4 are a micro-batch.
  host = host.replace(video_id=video_id)
  mesh = test_step.mesh_of(1)
  parts = small_task.gradients_on(config, mesh, accumulation=4, host=host)
  order = np.array([0, 4, 1, 5, 2, 6, 3, 7])
  config.loss.update({'negatives': 'local', 'negative_blocks': 4})
  whole = small_task.gradients_on(config, mesh, host=jax.tree.map(lambda x: x[order], host))
  test_step.assert_equal_results(whole, parts)
  assert whole[0]['loss'] == whole[0]['loss/vtm']


def test_negatives_that_are_not_there_are_refused(answering):
  mesh = test_step.mesh_of(1)
  task = small_task.small_task(answering, mesh)
  with pytest.raises(ValueError, match='needs a task that contrasts'):
    make_gradients(task, mesh, accumulation=2, negatives='global')
  with pytest.raises(ValueError, match="'all' is unknown"):
    make_gradients(task, mesh, accumulation=2, negatives='all')


ALL_FOUR = {'vtc': 1.0, 'vtm': 1.0, 'mlm': 1.0, 'pem': 1.0}
WORDS = {'vtc': 0.0, 'vtm': 0.0, 'mlm': 1.0, 'pem': 1.0}


@pytest.mark.parametrize(
  'task, loss, optimizer, records, found',
  [
    ('pretrain', ALL_FOUR, {}, (), 'fine'),
    # Micro-batches of one pair.
    ('pretrain', ALL_FOUR, {'accumulation': 16}, (), 'refused'),
    ('prompter', ALL_FOUR, {'accumulation': 16}, (), 'refused'),
    ('retrieval', ALL_FOUR, {'accumulation': 16}, (), 'refused'),
    # VTC alone sees all of them on request.
    ('prompter', ALL_FOUR, {'accumulation': 16, 'accumulation_negatives': 'global'}, (), 'fine'),
    ('pretrain', ALL_FOUR, {'accumulation': 16, 'accumulation_negatives': 'global'}, (), 'refused'),
    (
      'pretrain',
      ALL_FOUR | {'vtm': 0.0},
      {'accumulation': 16, 'accumulation_negatives': 'global'},
      (),
      'fine',
    ),
    # Blocks of one pair.
    ('pretrain', ALL_FOUR | {'negatives': 'local', 'negative_blocks': 16}, {}, (), 'refused'),
    ('pretrain', ALL_FOUR | {'negatives': 'local', 'negative_blocks': 8}, {}, (), 'warned'),
    # A source with one video.
    ('pretrain', ALL_FOUR, {}, (16, 1), 'refused'),
    ('pretrain', ALL_FOUR, {}, (16, 8), 'fine'),
    ('pretrain', ALL_FOUR, {}, (16, 7), 'warned'),
    ('pretrain', ALL_FOUR, {'accumulation': 4}, (), 'warned'),
    # Nothing is contrasted.
    ('pretrain', WORDS, {'accumulation': 16}, (1,), 'fine'),
  ],
)
def test_a_pair_has_others_to_be_told_from(tmp_path, task, loss, optimizer, records, found):
  config = small_task.small_config(tmp_path, task)
  if task == 'retrieval':
    loss = loss | {'mlm': 0.0, 'pem': 0.0}
  config.loss.update(loss)
  config.optimizer.update(optimizer)
  made = small_task.small_task(config, test_step.mesh_of(1))
  if found == 'refused':
    with pytest.raises(ValueError, match='One pair alone .*remat=blocks'):
      check_negatives(config, made, records)
  else:
    said = check_negatives(config, made, records)
    assert bool(said) == (found == 'warned')


def test_question_answering_needs_no_negatives(answering):
  answering.optimizer.accumulation = 16
  task = small_task.small_task(answering, test_step.mesh_of(1))
  assert check_negatives(answering, task, (1,)) == ''
