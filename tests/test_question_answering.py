"""Question answering: every question once, on any devices; honest figures."""

import dataclasses

import jax
import numpy as np
import pytest

from alpro_jax import sharding
from alpro_jax.evaluation import question_answering
from alpro_jax.evaluation.question_answering import AskedQuestion
from alpro_jax.evaluation.scorer import Scorer
from alpro_jax.models.alpro import Alpro
from tests import test_retrieval as small
from tests.processes import run_two
from tests.small_task import fresh_params

ANSWERS = ('left', 'up', 'down')
QUESTIONS = [
  [('where to?', 'left', 'what'), ('who?', 'a disc', 'who')],
  [],
  [('where to?', 'up', 'what')],
  [('how many?', 'left', 'how')],
  [],
  [('where to?', 'up', 'what'), ('how many?', 'down', 'how')],
  [('is it?', 'left', 'odd')],
]


def make_model():
  """Chooses from three answers, and has no other head."""
  module = Alpro(
    dataclasses.replace(small.small_config(), embed_size=0, match=False, mlm=False, answers=3)
  )
  return module, fresh_params(module)


@pytest.fixture(scope='module')
def model():
  return make_model()


def answer(model, devices, batches, questions, pairs_per_call=4):
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  params = jax.device_put(jax.tree.map(np.asarray, model[1]), sharding.replicated(mesh))
  scorer = Scorer(
    model[0],
    params,
    mesh,
    encode=small.encode,
    max_text_tokens=12,
    batch_size=2,
    pairs_per_call=pairs_per_call,
  )
  return question_answering.answer(scorer, batches, questions, ANSWERS)


def plain_logits(model, text, video):
  """One pair alone, straight from the model."""
  ids, mask = small.encode([text], 12)

  @jax.jit
  def call(params, video):
    module = model[0].bind({'params': params})
    text = module.encode_text(ids, mask, train=False)
    video = module.encode_video(video[None], train=False)
    fused = module.fuse(text.tokens, mask, video.tokens, train=False)
    return module.answer_logits(fused[:, 0])[0]

  return call(model[1], video)


@pytest.fixture(scope='module')
def one_device(model):
  return answer(model, 1, small.batches(3, small.clips()), QUESTIONS)


def test_logits_are_those_of_the_model(model, one_device):
  videos = small.clips()
  assert [asked.record for asked in one_device.questions] == [0, 0, 2, 3, 5, 5, 6]
  assert one_device.logits.shape == (7, 3)
  for number in (1, 4):
    asked = one_device.questions[number]
    np.testing.assert_allclose(
      one_device.logits[number], plain_logits(model, asked.text, videos[asked.record]), atol=1e-5
    )
  # Not one answer to everything: the test would be empty.
  assert np.ptp(one_device.logits, axis=0).min() > 1e-3


def test_eight_devices_and_other_batches_agree(model, one_device, monkeypatch):
  monkeypatch.setattr(question_answering, '_QUESTIONS_AT_ONCE', 2)
  order = np.random.default_rng(1).permutation(7)
  found = answer(model, 8, small.batches(8, small.clips(), order), QUESTIONS)
  np.testing.assert_allclose(found.logits, one_device.logits, atol=1e-5)
  assert found.metrics == one_device.metrics
  assert found.intervals == one_device.intervals


@pytest.mark.parametrize('devices', [1, 8])
def test_one_question(model, one_device, devices):
  found = answer(model, devices, small.batches(8, small.clips()[:1]), [QUESTIONS[0][:1]])
  np.testing.assert_allclose(found.logits, one_device.logits[:1], atol=1e-5)
  assert found.metrics['questions'] == found.metrics['videos'] == 1


@pytest.mark.slow
def test_two_processes_agree_with_one(one_device, tmp_path):
  files = [tmp_path / f'{index}.npz' for index in range(2)]
  run_two('two_processes_answer', files)
  for file in files:
    with np.load(file) as got:
      np.testing.assert_allclose(got['logits'], one_device.logits, atol=1e-5)
      assert got['accuracy'] == one_device.metrics['accuracy']


def test_what_is_not_a_number_is_no_answer(model):
  module, params = model
  broken = jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), params)
  with pytest.raises(ValueError, match='scores of answers are NaN or infinite'):
    answer((module, broken), 1, small.batches(8, small.clips()[:1]), [QUESTIONS[0][:1]])


def test_refuses_what_it_cannot_answer(model, one_device):
  scorer = Scorer(
    model[0],
    model[1],
    sharding.make_mesh(devices=jax.devices()[:1]),
    encode=small.encode,
    max_text_tokens=12,
    batch_size=2,
    pairs_per_call=4,
  )
  with pytest.raises(ValueError, match='no question to answer'):
    question_answering.answer(scorer, [], [[], []], ANSWERS)
  with pytest.raises(ValueError, match='2 answers were given, but the model'):
    question_answering.answer(scorer, [], QUESTIONS, ANSWERS[:2])


def test_figures_of_known_answers():
  asked = [
    AskedQuestion(0, 'w1', 'left', 'what'),
    AskedQuestion(0, 'w1', 'up', 'what'),
    AskedQuestion(1, 'w1', 'up', 'what'),
    AskedQuestion(1, 'w2', 'left', 'what'),
    AskedQuestion(2, 'h', 'a disc', 'how'),
    AskedQuestion(2, 'h', 'left', 'how'),
    AskedQuestion(3, 'c', 'a disc', 'colour'),
  ]
  chosen = ['left', 'up', 'left', 'left', 'left', 'left', 'left']
  found, intervals = question_answering.figures(asked, chosen, ANSWERS)
  assert found['questions'] == 7 and found['videos'] == 4
  assert found['wordings'] == 4
  assert found['accuracy'] == pytest.approx(400 / 7)
  # Outside the list: wrong, but asked.
  assert found['in_list'] == pytest.approx(500 / 7)
  assert found['accuracy_how'] == 50 and found['in_list_how'] == 50
  assert found['accuracy_colour'] == found['in_list_colour'] == 0
  assert found['most_frequent'] == pytest.approx(300 / 7)
  assert found['best_per_kind_what'] == 50
  assert found['best_per_kind_how'] == 50
  assert found['best_per_kind_colour'] == 0
  assert found['best_per_kind'] == pytest.approx(300 / 7)
  assert found['best_per_wording_what'] == 75  # up to w1, left to w2.
  assert found['best_per_wording'] == pytest.approx(400 / 7)
  assert [k for k in found if k.startswith('accuracy_')] == [
    'accuracy_what',
    'accuracy_how',
    'accuracy_colour',
  ]
  assert set(intervals) == {'accuracy', 'accuracy_what', 'accuracy_how', 'accuracy_colour'}
  low, high = intervals['accuracy']
  assert low <= found['accuracy'] <= high
  # Two questions of one video are drawn together.
  assert intervals['accuracy_how'] == (50, 50)


def test_spelling_makes_no_difference():
  asked = [
    AskedQuestion(0, 'w', 'Two  Red', 'what'),
    AskedQuestion(1, 'w', 'UP', 'what'),
    AskedQuestion(2, 'w', 'none', 'what'),
  ]
  known = ('up', 'two red')
  found, _ = question_answering.figures(asked, ['two red', 'up', 'up'], known)
  assert found['accuracy'] == found['in_list'] == pytest.approx(200 / 3)
  assert found['most_frequent'] == pytest.approx(100 / 3)
  assert found['best_per_kind'] == pytest.approx(100 / 3)
  answered = question_answering.AnswerResult(
    tuple(asked), known, np.array([[0, 1], [1, 0], [1, 0]]), {}, {}, {}
  )
  assert answered.right.tolist() == [True, True, False]


def test_any_spelling_that_a_checkpoint_lists_is_right():
  asked = [AskedQuestion(0, 'w', 'red', 'what'), AskedQuestion(1, 'w', 'red', 'what')]
  found, _ = question_answering.figures(asked, ['red', 'RED'], ('red', 'up', 'RED'))
  assert found['accuracy'] == found['best_per_kind'] == 100


def test_kinds_in_the_order_of_the_paper():
  assert question_answering.list_kinds(
    ['zeal', 'other', 'when', 'what', 'who', 'count', 'how', 'where']
  ) == ['what', 'who', 'how', 'where', 'when', 'other', 'count', 'zeal']


def test_rows_say_all_about_a_question():
  answered = question_answering.AnswerResult(
    (AskedQuestion(1, 'who?', 'up', 'who'), AskedQuestion(0, 'who?', 'x', 'who')),
    ANSWERS,
    np.array([[0, 2, 1], [1, 1, 1]], np.float32),
    {},
    {},
    {},
  )
  rows = question_answering.rows(answered, ['a.mp4', 'b.mp4'])
  assert rows[0] | {'top': None} == {
    'video': 'b.mp4',
    'question': 'who?',
    'answer': 'up',
    'kind': 'who',
    'prediction': 'up',
    'right': True,
    'top': None,
  }
  assert [top['answer'] for top in rows[0]['top']] == ['up', 'down', 'left']
  assert sum(top['probability'] for top in rows[0]['top']) == pytest.approx(1, abs=1e-5)
  # Of equal logits the more frequent answer.
  assert rows[1]['prediction'] == 'left' and not rows[1]['right']
