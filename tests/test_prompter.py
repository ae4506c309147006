"""Prompts, their average and the labels they give."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alpro_jax.data import tokens
from alpro_jax.models import prompter
from alpro_jax.tasks import pretrain, teacher

ENTITIES = ['dog', 'guitar', 'sea']


def test_the_papers_templates():
  video, image = prompter.VIDEO_TEMPLATES, prompter.IMAGE_TEMPLATES
  assert len(set(video)) == len(set(image)) == 12
  assert video[0] == 'A footage of a {entity}.'
  assert video[4] == 'A video of the {entity}.'
  assert video[-1] == 'A video footage of one {entity}.'
  assert image[:2] == ('A photo of a {entity}.', 'A photo of the {entity}.')
  # The good ones begin with another determiner.
  assert image[6:8] == ('A good photo of the {entity}.', 'A good photo of a {entity}.')


def test_filling_a_template():
  assert prompter.fill_template('A {entity}!', ['dog', 'sea']) == ['A dog!', 'A sea!']


@pytest.mark.parametrize('template', ['A dog.', '{entity} and {entity}'])
def test_a_template_has_one_place(template):
  with pytest.raises(ValueError, match='exactly once'):
    prompter.fill_template(template, ENTITIES)


def fake_features(texts):
  """Points at the entity, and a little at the template."""
  rows = np.zeros((len(texts), 8))
  for row, text in zip(rows, texts, strict=True):
    row[next(i for i, e in enumerate(ENTITIES) if e in text)] = 1.0
    row[3 + len(text) % 5] = 0.5
    row /= np.linalg.norm(row)
  return jnp.float32(rows)


@pytest.mark.parametrize('renormalize', [True, False])
def test_bank_averages_over_templates(renormalize):
  bank = prompter.build_prompt_bank(
    fake_features,
    ENTITIES,
    video_templates=('a {entity}', 'the {entity}'),
    image_templates=('{entity}',),
    renormalize=renormalize,
  )
  rows = [fake_features([f'{x} {e}' for e in ENTITIES]) for x in ('a', 'the')]
  want = (rows[0] + rows[1]) / 2
  length = np.linalg.norm(want, axis=1, keepdims=True)
  assert (length < 0.99).all()
  want = want / length if renormalize else want
  np.testing.assert_allclose(bank.video, want, rtol=1e-6)
  np.testing.assert_allclose(bank.image, fake_features(ENTITIES), rtol=1e-6)


def test_an_entity_is_labelled_by_its_own_prompt():
  bank = prompter.build_prompt_bank(fake_features, ENTITIES)
  q, keep = prompter.pseudo_labels(
    bank.video, bank, jnp.zeros(3, bool), jnp.float32(0.07), rule='probability'
  )
  np.testing.assert_array_equal(jnp.argmax(q, axis=1), [0, 1, 2])
  np.testing.assert_allclose(q.sum(axis=1), 1, rtol=1e-5)
  assert keep.all()


def test_photos_are_labelled_by_the_photo_prompts():
  bank = prompter.PromptBank(video=jnp.eye(2), image=jnp.eye(2)[::-1])
  feature = jnp.array([[1.0, 0.0], [1.0, 0.0]])
  q, _ = prompter.pseudo_labels(
    feature, bank, jnp.array([False, True]), jnp.float32(0.1), rule='probability'
  )
  np.testing.assert_array_equal(jnp.argmax(q, axis=1), [0, 1])


def test_both_ignore_rules():
  """Sure of 0, sure of 1, unsure between six."""
  bank = prompter.PromptBank(video=jnp.eye(6), image=jnp.eye(6))
  feature = jnp.stack([jnp.eye(6)[0], jnp.eye(6)[1], jnp.full(6, 6**-0.5)])
  still, t = jnp.zeros(3, bool), jnp.float32(0.1)

  def keep(rule):
    return prompter.pseudo_labels(feature, bank, still, t, rule=rule)[1]

  np.testing.assert_array_equal(keep('probability'), [True, True, False])
  # The original's code: all but entity 0, however sure (defect 3).
  np.testing.assert_array_equal(keep('index')[:2], [False, True])
  assert keep('index').shape == (3,)
  with pytest.raises(ValueError, match="rule='luck' is not known"):
    keep('luck')


def test_a_probability_that_reaches_the_threshold_is_enough():
  bank = prompter.PromptBank(video=jnp.eye(2), image=jnp.eye(2))
  feature = jnp.full((1, 2), 0.5**0.5)  # Exactly 1/2 for each of two.
  for threshold, wanted in ((0.5, True), (0.501, False)):
    _, keep = prompter.pseudo_labels(
      feature, bank, jnp.zeros(1, bool), jnp.float32(0.1), rule='probability', threshold=threshold
    )
    assert keep.tolist() == [wanted]


def test_labels_pass_no_gradient_to_the_prompter():
  bank = prompter.PromptBank(video=jnp.eye(2), image=jnp.eye(2))

  def sure(feature):
    return prompter.pseudo_labels(
      feature, bank, jnp.zeros(1, bool), jnp.float32(0.1), rule='probability'
    )[0][0, 0]

  np.testing.assert_array_equal(jax.grad(sure)(jnp.float32([[0.6, 0.8]])), 0)


def test_bad_lists_are_refused():
  with pytest.raises(ValueError, match=r'blank ones at \[1\]'):
    prompter.build_prompt_bank(fake_features, ['dog', ' '])
  with pytest.raises(ValueError, match='0 entities'):
    prompter.build_prompt_bank(fake_features, [])
  with pytest.raises(ValueError, match='No prompt template'):
    prompter.build_prompt_bank(fake_features, ['dog'], video_templates=())


def test_prompts_that_the_tokenizer_cuts_or_reads_alike_are_named(tmp_path, caplog):
  path = tmp_path / 'vocab.txt'
  path.write_text(
    '\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', 'dog', 'the', 'red'])
  )
  encode = tokens.load_tokenizer(path).encode
  teacher.check_prompts(encode, ['a {entity}', '{entity}'], ['dog', 'red'], 4)
  assert not caplog.records
  names = ['dog', 'red dog', 'xylophone', 'zebra', 'Dog']
  teacher.check_prompts(encode, ['the {entity}', '{entity}'], names, 4)
  cut, first, second = (record.getMessage() for record in caplog.records)
  assert '1 of 5 entities are cut off' in cut and "'the red dog'" in cut
  assert 'of 2 entities alike' in first and 'dog, Dog' in first
  assert 'of 2 entities alike' in second and 'xylophone, zebra' in second


def test_shares_of_labels_leave_out_what_is_ignored():
  target = jnp.array(
    [
      [0.9, 0.1, 0.0],
      [0.3, 0.4, 0.3],
      [0.3, 0.4, 0.3],
      [0.3, 0.4, 0.3],
      [0.1, 0.2, 0.7],
      [0.8, 0.1, 0.1],
    ]
  )
  keep = jnp.array([True, False, False, False, True, True])
  task = types.SimpleNamespace(entities=('dog', 'cat', 'sea'))

  def said(*parts):
    # As micro-batches and steps are averaged.
    found = [
      pretrain.pseudo_label_terms(target[part], keep[part])['pseudo/entities'] for part in parts
    ]
    total, count = (sum(x[i] for x in found) for i in (0, 1))
    return pretrain.Pretrain.describe(task, {'pseudo/entities': np.array(total / count)})

  assert said(slice(0, 6)) == 'pseudo-labels: dog 67%, sea 33%'
  # One half keeps a label, the other two.
  assert said(slice(0, 3), slice(3, 6)) == said(slice(0, 6))
  assert said(slice(1, 3)) == 'pseudo-labels: none was sure enough'
