"""Prompts are judged by captions, chosen and learned, and used as they were learned."""

import jax
import numpy as np
import pytest

from alpro_jax import api
from alpro_jax.evaluation import prompts, split, trained
from alpro_jax.models import prompter
from alpro_jax.tasks import teacher
from configs import common
from tests import small_sets

NAMES = ['disc', 'ring', 'bar']


@pytest.fixture(scope='module')
def model():
  return trained.load(api.find('shapes'))


def clips_of(rows, named):
  return prompts.Named(np.float32(rows), np.array(named, bool))


def test_the_best_ensemble_and_no_more():
  """Of three clips two are named right by either template, all three by both."""
  clips = clips_of([[1, 0], [0, 1], [0.8, 0.6]], [[1, 0], [0, 1], [1, 0]])
  poor = [[0.6, 0.8], [0.8, 0.6]]
  first = [[1, 0], [0.8, 0.6]]
  second = [[0, 1], [0, 1]]
  rows = np.float32([poor, first, second])
  assert prompts.agreement(clips, rows[0])[0] == 0
  value, low, high = prompts.agreement(clips, np.float32(second))
  assert low <= value <= high
  chosen = prompts.choose_templates(clips, rows, 3)
  best = prompter.ensemble(rows[chosen], renormalize=True)
  assert 0 not in chosen
  assert prompts.agreement(clips, best)[0] >= max(prompts.agreement(clips, x)[0] for x in rows)
  assert prompts.choose_templates(clips, rows, 1) == chosen[:1]


def test_clips_whose_captions_name_something(model):
  said = [('a red disc',), ('nothing here',), ('two rings and a bar', 'a disc')]
  prepared = small_sets.MemorySet(3, captions=said, size=48)
  clips = prompts.named_clips(model, prepared, NAMES)
  np.testing.assert_array_equal(clips.named, [[1, 0, 0], [1, 1, 1]])
  assert clips.feature.shape[0] == 2
  with pytest.raises(ValueError, match='no caption of .* names one of the 1 entities'):
    prompts.named_clips(model, prepared, ['zebra'])


def test_vectors_begin_as_the_template_and_name_clips_better(model):
  """Clips are texts that the words of the template are wrong for."""
  scorer = split.make_scorer(model)
  texts = [f'a {colour} {name} drifts left' for name in NAMES for colour in ('red', 'blue')]
  named = np.repeat(np.eye(3, dtype=bool), 2, axis=0)
  # Ten of each: every fifth is held out.
  feature = np.repeat(scorer.embed_texts(texts).feature, 10, axis=0)
  clips = clips_of(feature, np.repeat(named, 10, axis=0))
  said = []
  start = 'up down up {entity}'
  feature = prompts.learn(model, clips, NAMES, start=start, steps=0, rate=0.1, log=said.append)
  (template,) = prompts.encode_templates(model, [start], NAMES)
  np.testing.assert_allclose(feature, template, atol=1e-6)
  prompts.learn(model, clips, NAMES, start=start, steps=40, rate=0.1, log=said.append)
  losses = [float(line.split('loss ')[1].split(',')[0]) for line in said]
  assert losses[-1] < 0.7 * losses[0]
  for wrong in ('a {entity} moves', '{entity}'):
    with pytest.raises(ValueError, match='must be some words and {entity} at its end'):
      prompts.learn(model, clips, NAMES, start=wrong, steps=1, rate=0.1)


def test_a_teacher_takes_what_was_learned(model, tmp_path):
  path = tmp_path / 'prompts.npz'
  feature = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
  prompter.write_prompts(path, feature, NAMES, 'abc')
  options = common.get_config('tiny').prompter
  options.prompts = str(path)
  made = teacher.make_teacher(model.model, model.params, NAMES, options, model.tokenizer.encode)
  np.testing.assert_array_equal(made.bank.video, feature)
  np.testing.assert_array_equal(made.bank.image, feature)
  jax.tree.map(np.testing.assert_array_equal, prompter.read_prompts(path, NAMES, 'abc'), made.bank)
  with pytest.raises(ValueError, match='learned for another prompter'):
    prompter.read_prompts(path, NAMES, 'another')
  with pytest.raises(ValueError, match='learned for another list of entities'):
    prompter.read_prompts(path, NAMES[:2], 'abc')
  path.write_bytes(b'PK\3\4')
  with pytest.raises(ValueError, match='is no file of launch/prompts.py'):
    prompter.read_prompts(path, NAMES)
