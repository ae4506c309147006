"""What TensorBoard shows of held-out clips in the middle of a training."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from alpro_jax import sharding
from alpro_jax.data import dataset
from alpro_jax.data.annotations import Question
from alpro_jax.evaluation import pictures, samples
from alpro_jax.evaluation.during_training import DuringTraining
from alpro_jax.tasks.base import TextInfo
from alpro_jax.tasks.registry import get_task
from alpro_jax.train.loop import Plan
from configs import common
from tests import small_sets, small_task
from tests.processes import run_two

QUESTIONS = [[Question(f'what is {i}?', answer, 'what')] for i, answer in enumerate(('disc', 'x'))]


class Tokenizer(small_sets.Letters):
  special = small_task.TEXT.special


def plan_and_params(folder, mesh, task='pretrain'):
  """A run of random weights that shows two of its five held-out clips."""
  config = small_task.small_config(folder, task)
  config.data.update({'resize': 24, 'max_text_tokens': 16})
  config.eval.update(
    {'sources': (common.source('sets/set', split='test'),), 'pictures': 2, 'batch_size': 4}
  )
  if task == 'question_answering':
    (folder / 'answers.txt').write_text('disc\nring\n')
    config.data.update({'text': 'questions', 'answers': str(folder / 'answers.txt')})
  task = get_task(config, TextInfo(Tokenizer.special, 256), mesh)
  frozen = sharding.create(task.init_frozen, jax.random.key(1), mesh)
  params = sharding.create(task.init, jax.random.key(0), mesh)
  return Plan(config, task, Tokenizer(), mesh, frozen=frozen), params


def held_out(path, name='train', **_):
  return small_sets.MemorySet(
    5, captions=[(f'clip {i}', f'it is {i}') for i in range(5)], questions=QUESTIONS + 3 * [[]]
  )


@pytest.fixture
def drawn(monkeypatch):
  """The clips and lines that are drawn, as they come."""
  seen, draw = [], pictures.captioned

  def captioned(frames, lines):
    seen.append((int(small_sets.who(frames[None])[0][0]), lines))
    return draw(frames, lines)

  monkeypatch.setattr(pictures, 'captioned', captioned)
  monkeypatch.setattr(dataset, 'open_dataset', held_out)
  return seen


@pytest.mark.slow
def test_searches_and_entities(drawn, tmp_path):
  plan, params = plan_and_params(tmp_path, sharding.make_mesh(devices=jax.devices()[:4]))
  found = DuringTraining()(plan, params, 7)
  assert {'eval/searches', 'eval/entities'} == {k for k, v in found.items() if np.ndim(v)}
  for name in ('eval/searches', 'eval/entities'):
    assert found[name].dtype == np.uint8 and found[name].shape[::3] == (2, 3)
  clips, lines = zip(*drawn, strict=True)
  # The middles of halves of five, in both.
  assert clips[:2] == (1, 3)
  for clip, (first, own, rank) in zip(clips[:2], lines[:2], strict=True):
    assert own == (f'its own: clip {clip} (or 1 more)', None)
    text = first[0].partition(': ')[2]
    assert first[1] == (text in (f'clip {clip}', f'it is {clip}'))
    assert ('(right)' in first[0]) == first[1] == rank[0].startswith('its rank: 1 of 10')
  for clip, (prompter, model, caption) in zip((1, 3), lines[2:], strict=True):
    assert caption == (f'caption: clip {clip}', None)
    named = [
      [share.rsplit(' ', 1) for share in line[0].partition(': ')[2].split(' (')[0].split(', ')]
      for line in (prompter, model)
    ]
    for names in named:
      assert {name for name, _ in names} == {'disc', 'ring', 'cross'}
      assert sum(float(share) for _, share in names) == pytest.approx(1, abs=0.02)
    assert model[1] == (named[0][0][0] == named[1][0][0])
  # The same at the next evaluation: nothing is drawn by lot anew.
  again = DuringTraining()(plan, params, 9)
  for name in ('eval/searches', 'eval/entities'):
    np.testing.assert_array_equal(found[name], again[name])


def test_answers(drawn, tmp_path):
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  plan, params = plan_and_params(tmp_path, mesh, 'question_answering')
  found = DuringTraining()(plan, params, 7)
  assert {k for k, v in found.items() if np.ndim(v)} == {'eval/answers'}
  (first, known), (second, unknown) = drawn
  assert (first, second) == (0, 1)
  assert known[0] == ('question: what is 0?', None)
  assert known[1][1] == ('(right): disc' in known[1][0]) == (found['eval/accuracy'] == 50)
  assert known[2] == ('right answer: disc', None)
  assert '(wrong)' in unknown[1][0] and unknown[1][1] is False
  assert unknown[2] == ('right answer: x, not in the list of answers', None)


def test_none_are_asked_for():
  assert samples.show(None, 0, None, None) == {}


def test_text_is_coloured_and_cut(monkeypatch):
  frames = np.full((2, 16, 16, 3), 200, np.uint8)
  monkeypatch.setattr(pictures, '_FONTS', ())
  pictures._font.cache_clear()
  long = pictures.captioned(frames, [('word ' * 100, None)])
  two = pictures.captioned(frames, [('right', True), ('wrong', False)])
  pictures._font.cache_clear()
  assert long.shape == two.shape and (two[:112, :112] == 200).all()
  strip, rows = pictures.film_strip(pictures.enlarge(frames)), two[116:]
  assert strip.shape[0] == 112
  red, green = (rows[at].reshape(-1, 3).min(0).astype(int) for at in (slice(20, 36), slice(0, 16)))
  assert red[0] > red[1] and green[1] > green[0]
  assert Image.fromarray(two).size == (400, 112 + 2 * 18 + 8)


@pytest.mark.slow
def test_two_processes_show_what_one_does(tmp_path):
  files = [tmp_path / f'{index}.json' for index in range(2)]
  run_two('two_processes_samples', files)
  first, second = (json.loads(file.read_text()) for file in files)
  shown = ['eval/entities', 'eval/searches']
  assert sorted(set(first) - set(second)) == shown
  assert all(first.pop(name)[::3] == [2, 3] for name in shown)
  assert first == second
