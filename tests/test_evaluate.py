"""launch/evaluate.py: from a checkpoint and a split to a card, or one line."""

import json

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from alpro_jax import sharding
from alpro_jax.data import dataset, tokens
from alpro_jax.data.annotations import Question
from alpro_jax.evaluation import during_training, split, trained
from alpro_jax.models.alpro import Alpro, AlproConfig
from alpro_jax.tasks.base import TextInfo
from alpro_jax.tasks.registry import get_task
from alpro_jax.train import checkpoints, identity
from alpro_jax.train.loop import Plan
from alpro_jax.train.state import TrainState
from configs import common
from launch import evaluate
from tests import small_sets, small_task

QUESTIONS = [
  [Question('what is it?', 'disc', 'what')],
  [Question('what is it?', 'ring', 'what'), Question('who?', 'x', 'who')],
  [],
]


class Tokenizer(small_sets.Letters):
  special = small_task.TEXT.special

  def __init__(self, digest='letters'):
    self.digest = digest


def mesh():
  return sharding.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(autouse=True)
def parsed_flags():
  """Flags can be read, whichever test of this file a process runs first."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(['evaluate'])


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A checkpoint of random weights; (workdir, config, task, parameters)."""
  folder = tmp_path_factory.mktemp('run')
  config = small_task.small_config(folder, 'question_answering')
  (folder / 'answers.txt').write_text('disc\nring\n')
  config.data.update(
    {
      'text': 'questions',
      'answers': str(folder / 'answers.txt'),
      'tokenizer': 'letters.model',
      'resize': 24,
      'max_text_tokens': 16,
    }
  )
  config.eval.update(
    {
      'batch_size': 2,
      'pairs_per_call': 2,
      'sources': (common.source('sets/set', split='test'),),
      'pictures': 0,
    }
  )
  task = get_task(config, TextInfo(Tokenizer.special, 256), mesh())
  params = sharding.create(task.init, jax.random.key(0), mesh())
  store = checkpoints.Checkpoints(folder)
  meta = identity.describe(config, task, Tokenizer(), [])
  # A run of before there was this option.
  del meta['config']['eval']['dual_softmax']
  store.save(TrainState(step=np.int32(7), params=params, opt_state={'count': np.int32(0)}), meta)
  store.close()
  return folder, config, task, params


@pytest.fixture
def sets(monkeypatch):
  """Opens sets in memory; returns those that are there, by path."""
  there = {'sets/set': small_sets.MemorySet(3, questions=QUESTIONS)}

  def open_dataset(path, name='train', **_):
    assert name == 'test'
    return there[path]

  monkeypatch.setattr(dataset, 'open_dataset', open_dataset)
  monkeypatch.setattr(tokens, 'load_tokenizer', lambda path: Tokenizer())
  return there


def command(**given):
  """Runs launch/evaluate.py with these flags, in this process."""
  with flagsaver.flagsaver(**given):
    evaluate.evaluate()


def test_a_checkpoint_becomes_a_card(run, sets, tmp_path, capsys, caplog):
  command(checkpoint=str(run[0]), output=str(tmp_path / 'card'))
  filled = "older than these options; their present defaults count: {'eval.dual_softmax': False}"
  assert filled in caplog.text
  card = json.loads((tmp_path / 'card' / 'card.json').read_text())
  assert card['checkpoint']['step'] == 7
  # The third video has no question.
  assert card['items'] == {'videos': 2, 'questions': 3}
  assert card['metrics']['in_list']['value'] == pytest.approx(200 / 3)
  rows = (tmp_path / 'card' / 'answers.jsonl').read_text().splitlines()
  assert len(rows) == 3
  assert (tmp_path / 'card' / 'card.html').exists()
  assert 'accuracy_what' in capsys.readouterr().out

  # The same figures in the middle of a training, on one device of eight.
  _, config, task, params = run
  plan = Plan(config, task, Tokenizer(), mesh())
  found = during_training.DuringTraining()(plan, params, 7)
  assert set(found) == {'eval/accuracy', 'eval/accuracy_what', 'eval/accuracy_who'}
  for name, value in found.items():
    assert card['metrics'][name.removeprefix('eval/')]['value'] == value


def test_names_in_training_are_known_before_it(run, sets):
  _, config, task, params = run
  config = config.copy_and_resolve_references()
  sets['sets/b'] = small_sets.MemorySet(1, questions=QUESTIONS[:1])
  config.eval.sources = (
    common.source('sets/set', split='test'),
    common.source('sets/b', split='test'),
  )
  plan = Plan(config, task, Tokenizer(), mesh())
  evaluation = during_training.DuringTraining()
  names = evaluation.names(plan)
  assert sorted(names) == sorted(
    [
      'eval/accuracy',
      'eval/accuracy_what',
      'eval/accuracy_who',
      'eval/0/accuracy',
      'eval/0/accuracy_what',
      'eval/0/accuracy_who',
      'eval/1/accuracy',
      'eval/1/accuracy_what',
    ]
  )
  found = evaluation(plan, params, 7)
  assert set(found) == set(names)
  assert found['eval/accuracy'] == found['eval/0/accuracy']

  # What would end the first evaluation is said as early.
  sets['sets/b'] = small_sets.MemorySet(2)
  with pytest.raises(ValueError, match='has no questions'):
    during_training.DuringTraining().names(plan)
  sets['sets/b'] = small_sets.MemorySet(1, questions=[[Question('who?', 'x', 'who')]])
  with pytest.raises(
    ValueError,
    match=r'not one of the 1 questions .* '
    r"answered by \['x'\], the list begins with \['disc'",
  ):
    during_training.DuringTraining().names(plan)


def test_a_set_of_unknown_answers_is_said(run, sets, caplog):
  with caplog.at_level('WARNING', logger='absl'):
    command(checkpoint=str(run[0]))
    assert 'All answers will be wrong' not in caplog.text
    command(checkpoint=str(run[0]), style='who')
  assert 'wrong: not one of the 1 questions of sets/set' in caplog.text


def test_flags_and_a_config_decide_how(run, sets, tmp_path):
  folder, config, _, _ = run
  asked = small_task.small_config(tmp_path, 'question_answering')
  asked.data.update({'resize': 32, 'tokenizer': '', 'answers': config.data.answers})
  asked.train.steps = 12345
  sets['sets/b'] = sets['sets/set']
  with flagsaver.flagsaver(
    checkpoint=str(folder),
    config=asked,
    data='sets/b',
    split='other',
    style='what',
    frames=3,
    image_size=48,
  ):
    chosen = evaluate.choose_options(checkpoints.load_meta(folder))
  assert chosen.data.frames == 3
  assert (chosen.data.image_size, chosen.data.resize) == (48, 64)
  assert chosen.data.tokenizer == 'letters.model'
  assert chosen.train.steps == config.train.steps != 12345
  (source,) = chosen.eval.sources
  assert (source.path, source.split, source.style) == ('sets/b', 'other', 'what')
  assert not chosen.eval.dual_softmax


def test_a_config_with_another_tokenizer_is_refused(run, sets, tmp_path, monkeypatch):
  folder, config, _, _ = run
  other = tmp_path / 'other.model'
  asked = small_task.small_config(tmp_path, 'question_answering')
  asked.data.update({'tokenizer': str(other), 'answers': config.data.answers})
  asked.eval = config.eval
  monkeypatch.setattr(
    tokens, 'load_tokenizer', lambda path: Tokenizer('o' if path == str(other) else 'letters')
  )
  command(checkpoint=str(folder), config=asked)  # It is not there, and not needed.
  other.touch()
  with pytest.raises(ValueError, match='other.model has digest o, but .* was trained with letters'):
    command(checkpoint=str(folder), config=asked)


def test_several_splits_have_a_card_each(run, sets, tmp_path, monkeypatch):
  seen = []
  monkeypatch.setattr(
    evaluate,
    '_evaluate',
    lambda model, prepared, style, several: seen.append((prepared, style, several)),
  )
  config = run[1].copy_and_resolve_references()
  config.eval.sources = (
    common.source('sets/set', split='test'),
    common.source('sets/set', split='test', style='who'),
  )
  command(checkpoint=str(run[0]), config=config)
  assert [x[1:] for x in seen] == [('', True), ('who', True)]


def test_cards_of_one_name_are_refused(run, sets, tmp_path):
  config = run[1].copy_and_resolve_references()
  config.eval.sources = 2 * (common.source('sets/set', split='test'),)
  refused(
    'one would overwrite another', checkpoint=str(run[0]), config=config, output=str(tmp_path)
  )
  assert not list(tmp_path.iterdir())


def refused(match, error=ValueError, **given):
  with pytest.raises(error, match=match):
    command(**given)


def test_mistakes_are_one_clear_sentence(run, sets, tmp_path, monkeypatch):
  folder, config, _, _ = run
  at = {'checkpoint': str(folder)}
  refused('no checkpoint in', FileNotFoundError, checkpoint=str(tmp_path))
  refused('--rerank_k is of retrieval', **at, rerank_k=3)
  refused('--truth is of retrieval', **at, truth='truth.jsonl')
  sets['bare'] = small_sets.MemorySet(2)
  for flag, value in (('averaged', False), ('style', 'what'), ('output', 'x')):
    refused(f'--{flag}.* has no place beside', **at, familiarity=True, **{flag: value})
  refused('no questions, which question answering needs; it has captions', **at, data='bare')
  refused("no question of style 'how', only of .'what', 'who'", **at, style='how')

  other = config.copy_and_resolve_references()
  other.task = 'retrieval'
  refused("task='retrieval', but .* trained for 'question_answering'", **at, config=other)
  other = config.copy_and_resolve_references()
  other.model.video.depth = 5
  refused('model.video.depth is 1, --config says 5', **at, config=other)
  other = config.copy_and_resolve_references()
  other.data.answers = str(tmp_path / 'answers.txt')
  refused('is no file', FileNotFoundError, **at, config=other)
  (tmp_path / 'answers.txt').write_text(' DISC\nring\n')
  command(**at, config=other)  # The same answers.
  (tmp_path / 'answers.txt').write_text('ring\ndisc\n')
  refused('lists 2 answers that are not the 2 which', **at, config=other)
  other = config.copy_and_resolve_references()
  other.eval.sources = ()
  refused('nothing to evaluate on', **at, config=other)
  monkeypatch.setattr(tokens, 'load_tokenizer', lambda path: Tokenizer('others'))
  refused('letters.model has digest others, but .* with letters', **at)


def test_answers_must_be_stored(run, sets, monkeypatch):
  meta = checkpoints.load_meta(run[0])
  monkeypatch.setattr(checkpoints.Checkpoint, 'meta', meta | {'answers': ['disc']})
  with pytest.raises(ValueError, match='from 2 answers and names 1'):
    trained.load(run[0])


def test_matching_decides_only_where_it_was_trained(run):
  config = common.get_config('tiny')
  model = trained.TrainedModel(run[2].model, None, config, None, mesh())
  assert model.knows_matching and not model.answers_questions
  for change in ({'task': 'prompter'}, {'task': 'question_answering'}):
    changed = config.copy_and_resolve_references()
    changed.update(change)
    assert not model._replace(config=changed).knows_matching
  config.task = 'retrieval'
  assert model.knows_matching
  config.loss.vtm = 0.0
  assert split.choose_scoring(model).rule == 'similarity'
  assert 'loss.vtm=0' in split.choose_scoring(model).instead
  config.eval.scoring = 'matching'
  with pytest.raises(ValueError, match='trained without'):
    split.choose_scoring(model)
  config.eval.scoring = 'nearest'
  with pytest.raises(ValueError, match="'nearest' is unknown"):
    split.choose_scoring(model)


@pytest.mark.parametrize('asked', ['auto', 'matching', 'matching+similarity'])
@pytest.mark.parametrize(
  ('task', 'vtm', 'said'),
  [
    ('prompter', 1.0, "not trained by task 'prompter'"),
    ('pretrain', 0.0, 'with loss.vtm=0'),
    ('retrieval', 1.0, 'exactly 0'),
  ],
)
def test_a_head_that_was_not_trained_never_decides(task, vtm, said, asked):
  config = common.get_config('tiny')
  config.task, config.loss.vtm = task, vtm
  config.eval.update({'scoring': asked, 'rerank_k': 5})
  model = Alpro(AlproConfig.from_dict(config.model.to_dict()))
  assert model.config.match
  # Converted by somebody who could not know: only the head itself tells.
  fresh = {'match_head': {'kernel': np.ones((8, 2)), 'bias': np.zeros(2)}}
  known = trained.TrainedModel(model, fresh, config, None, mesh(), meta={'converted': {}})
  assert not known.knows_matching
  scoring = split.choose_scoring(known)
  assert (scoring.rule, scoring.rerank_k) == ('similarity', 0)
  assert said in scoring.instead
  if task == 'retrieval':
    # The head of a file that was trained, and that of a run of our own.
    fresh['match_head']['bias'] = np.array([1e-3, 0])
    assert split.choose_scoring(known).rule == asked.replace('auto', 'matching')
    fresh['match_head']['bias'] = np.zeros(2)
    assert known._replace(meta={'step': 7}).knows_matching


def test_a_similarity_that_was_not_trained_leaves_nothing_out(run, caplog):
  config = common.get_config('tiny')
  config.eval.rerank_k = 5
  model = trained.TrainedModel(run[2].model, None, config, None, mesh())
  assert split.choose_scoring(model).rerank_k == 5 and not caplog.text
  config.loss.vtc = 0.0
  assert split.choose_scoring(model).rerank_k == 0
  assert 'all pairs, not config.eval.rerank_k of them: it was not trained' in caplog.text
  caplog.clear()
  config.loss.vtm = 0.0
  assert split.choose_scoring(model).rule == 'similarity'
  assert 'the similarity says little' in caplog.text
  config.train.init_from = 'runs/another'  # Which may have trained it.
  config.loss.vtm = 1.0
  assert split.choose_scoring(model).rerank_k == 5


def test_a_split_with_nothing_to_ask_and_videos_with_nothing_to_ask(run):
  config = common.get_config('tiny')
  model = trained.TrainedModel(run[2].model, None, config, None, mesh())
  bare = small_sets.MemorySet(2, captions=[(), ()], styles=[(), ()])
  with pytest.raises(
    ValueError, match='no captions, which retrieval needs; prepare it with a file'
  ):
    split.select(model, bare)
  asked = small_sets.MemorySet(3, captions=[()] * 3, styles=[()] * 3, questions=QUESTIONS)
  with pytest.raises(ValueError, match='it has questions'):
    split.select(model, asked)
  # Videos without a caption of the style are no competitors.
  mixed = small_sets.MemorySet(
    4, captions=[('a', 'b'), (), ('c',), ('d',)], styles=[('x', 'y'), (), ('y',), ('x',)]
  )
  for style, videos in (('', '023'), ('x', '03'), ('y', '02')):
    kept = split.select(model, mixed, (style,)).metadata()
    assert [record.video[0] for record in kept] == list(videos)
  with pytest.raises(ValueError, match=r"of style 'z', only of \['x', 'y'\]"):
    split.select(model, mixed, ('z',))
