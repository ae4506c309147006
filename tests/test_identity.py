"""What a run depends on is compared by content, not by path."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from alpro_jax import sharding
from alpro_jax.data import tokens
from alpro_jax.evaluation import trained
from alpro_jax.tasks.registry import get_task
from alpro_jax.train import checkpoints, digests, identity, loop
from configs import models
from tests import small_task, small_towers, test_loop

toy = test_loop.toy
toy_config = test_loop.toy_config


@dataclasses.dataclass(frozen=True)
class Config:
  embed_size: int = 4
  answers: int = 0
  entities: int = 0
  video: dict = dataclasses.field(default_factory=lambda: {'heads': 2})
  text: dict = dataclasses.field(default_factory=lambda: {'heads': 2})
  temperature_range = 0.001, 0.5

  def to_dict(self):
    return dataclasses.asdict(self)


class Task(test_loop.ToyTask):
  """The toy with labels, and a model that says what they are."""

  def __init__(self, *, entities=(), answers=(), head='head', **model):
    super().__init__(head=head)
    self.entities, self.answers = entities, answers
    self.model = SimpleNamespace(
      config=Config(entities=len(entities), answers=len(answers), **model)
    )


def train(folder, seed=1, **options):
  config = toy_config(steps=3, checkpoint_every_steps=3)
  config.seed = seed
  config.update_from_flattened_dict(options)
  assert loop.train(config, folder).finished
  return folder


def refused(match, *arguments, **options):
  with pytest.raises(ValueError, match=match):
    train(*arguments, **options)


def log_of(folder):
  return (folder / 'log.txt').read_text()


def forget(folder, *names):
  """Makes a checkpoint what a version wrote that did not store these."""
  step = checkpoints.find(folder).folder
  file = step / 'meta' / 'metadata'
  meta = json.loads(file.read_text())
  file.write_text(json.dumps({name: value for name, value in meta.items() if name not in names}))
  digests.write(step)


ENTITIES = ('bar', 'disc', 'wall')
PROMPTER, LIST = 'prompter.checkpoint', 'prompter.entities'


@pytest.fixture
def pretraining(toy, tmp_path):
  """(options, folder) of a run with a prompter and entities, 3 steps long."""
  toy.task = Task()
  options = {PROMPTER: str(train(tmp_path / 'prompter')), LIST: 'entities.txt'}
  toy.task = Task(entities=ENTITIES)
  return options, train(tmp_path / 'run', **options)


def test_another_order_of_entities_is_refused(pretraining, toy):
  options, run = pretraining
  toy.task = Task(entities=ENTITIES[::-1])
  refused(
    "entities: label 0 was 'bar', is 'wall', and 2 of 3 differ", run, **options | {'train.steps': 6}
  )
  toy.task = Task(entities=ENTITIES[:2])
  refused('entities: were 3, are 2', run, **options)


def test_other_templates_are_refused(pretraining):
  options, run = pretraining
  refused(
    r"templates.video: was \['A footage",
    run,
    **options,
    **{'prompter.video_templates': ('a {entity}',)},
  )


def test_another_prompter_in_the_same_place_is_refused(pretraining, toy):
  options, run = pretraining
  toy.task = Task()
  shutil.rmtree(options[PROMPTER])
  train(run.parent / 'prompter', seed=2)
  toy.task = Task(entities=ENTITIES)
  refused('config.prompter.checkpoint: was .*digest', run, **options)


def test_a_prompter_that_was_trained_on_is_refused(pretraining, toy):
  options, run = pretraining
  toy.task = Task()
  train(run.parent / 'prompter', **{'train.steps': 6})
  toy.task = Task(entities=ENTITIES)
  refused(r'was .*checkpoints/3 \(step 3.*is .*/6 \(step 6', run, **options)
  # Its earlier step is still there and can be named.
  options[PROMPTER] += '/checkpoints/3'
  train(run, **options)


def test_the_same_in_another_place_goes_on(pretraining, toy):
  options, run = pretraining
  moved = run.parent / 'moved'
  shutil.move(options[PROMPTER], moved)
  train(run, **{PROMPTER: str(moved), LIST: 'moved.txt', 'train.steps': 6})
  log = log_of(run)
  assert f'config.prompter.checkpoint moved from {options[PROMPTER]}' in log
  assert 'config.prompter.entities moved from entities.txt to moved.txt' in log


def test_the_teacher_must_be_the_one_of_the_training(pretraining, toy):
  options, run = pretraining
  stored = checkpoints.load_meta(run)
  identity.check_teacher(stored, options[PROMPTER], ENTITIES)
  with pytest.raises(ValueError, match="label 0 was 'bar', is 'wall'"):
    identity.check_teacher(stored, options[PROMPTER], ENTITIES[::-1])
  toy.task = Task()
  other = train(run.parent / 'other', seed=2)
  with pytest.raises(ValueError, match='pre-trained with others. prompter: '):
    identity.check_teacher(stored, other, ENTITIES)


def test_blocks_of_negatives_are_compared_whatever_made_them(toy, tmp_path):
  toy.task.negative_blocks = 2
  run = train(tmp_path / 'run', **{'loss.negatives': 'slice'})
  toy.task.negative_blocks = 1
  refused('negative_blocks: was 2, is 1 .by config.loss', run, **{'loss.negatives': 'slice'})
  toy.task.negative_blocks = 2
  train(run, **{'loss.negatives': 'local', 'loss.negative_blocks': 2, 'train.steps': 6})


def test_a_prompter_that_is_gone_is_named(pretraining):
  options, run = pretraining
  shutil.move(options[PROMPTER], run.parent / 'moved')
  with pytest.raises(FileNotFoundError, match='the prompter is not there: no checkpoint in .*pass'):
    train(run, **options, **{'train.steps': 6})
  stored = checkpoints.load_meta(run)
  for path in ('', options[PROMPTER]):
    with pytest.raises(FileNotFoundError, match=r'with, .*\(step 3, digest \w{12}\), is not at'):
      identity.check_teacher(stored, path, ENTITIES)
  # The Hub's layout keeps no places.
  del stored['prompter']['path']
  with pytest.raises(ValueError, match=r'prompter: was a checkpoint \(step 3, digest .*moved'):
    identity.check_teacher(
      {**stored, 'prompter': {**stored['prompter'], 'digest': 'x' * 64}},
      run.parent / 'moved',
      ENTITIES,
    )


def test_another_tokenizer_of_the_same_size_is_refused(toy, tmp_path):
  toy.task = Task()
  options = {'train.init_from': str(train(tmp_path / 'first'))}
  same = tokens.load_tokenizer('')
  train(tmp_path / 'same', **options)
  same.digest = 'another'
  refused('init_from=.*was trained with another tokenizer', tmp_path / 'second', **options)
  toy.task = Task(entities=ENTITIES)
  refused(
    'the prompter .* was trained with another tokenizer',
    tmp_path / 'third',
    **{PROMPTER: options['train.init_from']},
  )


def test_a_prompter_without_features_is_refused(toy, tmp_path):
  toy.task = Task(answers=('yes',), embed_size=0)
  answers = train(tmp_path / 'answers')
  toy.task = Task(entities=ENTITIES)
  refused(
    'no features to compare.*--config.prompter.checkpoint',
    tmp_path / 'run',
    **{PROMPTER: str(answers)},
  )


def test_another_number_of_heads_is_refused(toy, tmp_path):
  toy.task = Task()
  options = {'train.init_from': str(train(tmp_path / 'first'))}
  toy.task = Task(text={'heads': 4})
  refused('model.text.heads is 2, --config says 4', tmp_path / 'second', **options)


def test_weights_of_a_family_that_computes_otherwise_are_refused():
  """No shape tells; a part that one of both lacks is not compared, and tuples are lists there."""
  asked = models.PRESETS['tiny_clip']().to_dict()
  stored = json.loads(json.dumps(asked)) | {'text': None}
  identity.check_sizes('it', stored, asked)
  identity.check_sizes('it', asked, stored)
  for part, name, value in (
    ('video', 'activation', 'gelu'),
    ('video', 'pixel_std', [1, 1, 1]),
    ('text_tower', 'causal', False),
    ('text_tower', 'width', 32),
  ):
    other = stored | {part: stored[part] | {name: value}}
    with pytest.raises(ValueError, match=f'model.{part}.{name} is .*, --config says'):
      identity.check_sizes('it', other, asked)


def test_the_start_of_a_run_is_known_by_content(toy, tmp_path):
  toy.task = Task()
  first = tmp_path / 'first'
  options = {'train.init_from': str(train(first))}
  run = train(tmp_path / 'run', **options)
  shutil.copytree(first, tmp_path / 'copy')
  train(run, **{'train.init_from': str(tmp_path / 'copy')})
  assert 'config.train.init_from moved' in log_of(run)
  train(first, **{'train.steps': 6})
  refused('config.train.init_from: was .*step 3.* is .*step 6', run, **options)
  train(run, **{'train.init_from': '', 'train.steps': 4})
  assert 'nothing is loaded from there now' in log_of(run)
  # The weights are those of the run by now: their start may go.
  shutil.rmtree(first)
  train(run, **options | {'train.steps': 5})
  assert 'cannot be read any more' in log_of(run)
  refused('no intact checkpoint', run, **{'train.init_from': 'elsewhere', 'train.steps': 5})
  # What it was is still stored.
  assert checkpoints.load_meta(run)['start']['step'] == 3


def test_a_head_of_other_labels_begins_afresh_or_is_refused(toy, tmp_path):
  toy.task = Task(answers=('yes', 'no'), head='answer_head')
  options = {
    'train.init_from': str(train(tmp_path / 'first')),
    'train.steps': 1,
    'optimizer.learning_rate': 1e-9,
  }
  heads = {}
  for name, answers in (('same', ('yes', 'no')), ('other', ('no', 'yes'))):
    toy.task = Task(answers=answers, head='answer_head')
    folder = train(tmp_path / name, **options, **{'train.new_parameters': ('answer_head',)})
    step = checkpoints.find(folder)
    shapes = jax.eval_shape(toy.task.init, jax.random.key(0))
    heads[name] = step.load_params(shapes)['answer_head']['bias']
  assert np.abs(heads['same']).max() > 1e-3  # As it was trained.
  np.testing.assert_allclose(heads['other'], 0, atol=1e-6)
  assert "has other answers (label 0 was 'yes', is 'no'" in log_of(tmp_path / 'other')
  refused(
    "other answers: label 0 was 'yes', is 'no'.*answer_head",
    tmp_path / 'third',
    **options,
    **{'train.new_parameters': ()},
  )


def test_runs_of_versions_that_stored_paths_go_on(pretraining, toy):
  options, run = pretraining
  forget(run, 'entities', 'templates', 'prompter', 'start', 'arrays')
  refused(
    "config.prompter.entities: was 'entities.txt', is 'moved.txt'",
    run,
    **options | {LIST: 'moved.txt'},
  )
  # They read the first word of a line of the list.
  toy.task = Task(entities=('bar', 'disc', 'fire truck'))
  refused("entities: 'fire truck' was read as 'fire'", run, **options)
  toy.task = Task(entities=ENTITIES)
  train(run, **options | {'train.steps': 6})
  assert checkpoints.load_meta(run)['entities'] == list(ENTITIES)


def test_the_digest_of_a_checkpoint_is_that_of_its_content(pretraining, tmp_path):
  _, run = pretraining
  found = identity.of_checkpoint(run)
  assert (found['step'], found['task']) == (3, 'pretrain')
  # Without the stored digests of arrays, they are taken anew.
  meta = checkpoints.load_meta(run)
  forget(run, 'arrays')
  assert 'arrays' not in checkpoints.load_meta(run)
  assert identity.of_checkpoint(run)['digest'] == found['digest']
  params = checkpoints.find(run).params_digests()
  changes = (
    {'model': meta['model'] | {'text': {'heads': 1}}},
    {'tokenizer': meta['tokenizer'] | {'digest': 'other'}},
    {'entities': list(ENTITIES[::-1])},
    {'answers': ['yes']},
  )
  digests = {identity.digest(meta | change, params) for change in changes}
  digests.add(identity.digest(meta, params | {'head/bias': 'other'}))
  assert len(digests - {found['digest']}) == 5
  # How it is computed is not what it is.
  assert (
    identity.digest(meta | {'model': meta['model'] | {'remat': 'blocks'}}, params)
    == found['digest']
  )


def test_a_real_task_is_described(tmp_path):
  config = small_task.small_config(tmp_path)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  task = get_task(config, small_task.TEXT, mesh)
  tokenizer = SimpleNamespace(digest='t', vocab_size=40, special=small_task.TEXT.special)
  meta = identity.describe(config, task, tokenizer)
  assert meta['entities'] == ['disc', 'ring', 'cross']
  assert meta['templates']['video'][0] == 'a {entity}'
  assert len(meta['templates']['image']) == 12
  config.loss.pem = 0.0
  task = get_task(config, small_task.TEXT, mesh)
  assert identity.describe(config, task, tokenizer)['entities'] == []


def test_a_run_knows_the_tokenizer_of_its_tower(tmp_path):
  def described(**digests):
    return {name: {'digest': x, 'vocab_size': 9} for name, x in digests.items()} | {
      'config': {'data': {'tokenizer': 'a', 'tower_tokenizer': 'b'}}
    }

  both = described(tokenizer='bert', tower_tokenizer='clip')
  for one in (both, described(tokenizer='bert'), described(tokenizer='clip')):
    identity.check_tokenizer('x', one, both)
    identity.check_tokenizer('x', both, one)
  with pytest.raises(ValueError, match="--config.data.tower_tokenizer; its config says 'b'"):
    identity.check_tokenizer('x', described(tokenizer='bert', tower_tokenizer='other'), both)
  with pytest.raises(ValueError, match='--config.data.tokenizer;'):
    identity.check_tokenizer('x', described(tokenizer='siglip'), both)

  (tmp_path / 'vocab.txt').write_text('\n'.join(tokens.PIECES) + '\n')
  text = tokens.load_tokenizer(tmp_path / 'vocab.txt')
  tower = tokens.load_tokenizer(small_towers.write(tmp_path))
  pair = tokens.Pair(text, tower, 8)
  config = small_task.small_config(tmp_path)
  task = get_task(config, small_task.TEXT, sharding.make_mesh(devices=jax.devices()[:1]))
  stored = identity.describe(config, task, pair)
  assert stored['tokenizer']['digest'] == text.digest
  assert stored['tower_tokenizer']['digest'] == tower.digest
  assert identity.words(stored, pair)['tower.json'] == tower.content
  assert identity.digest(stored, {}) != identity.digest(identity.describe(config, task, text), {})
  # A prompter may be of one half of the model alone.
  for one in (pair, text, tower):
    assert identity.tokenizer_of(identity.describe(config, task, one), pair) is one
  with pytest.raises(ValueError, match='train both with the same'):
    identity.tokenizer_of(stored, text)


def test_the_tokenizer_is_found_by_its_digest(tmp_path):
  def vocabulary(folder, *words):
    folder.mkdir(exist_ok=True)
    path = folder / 'vocab.txt'
    path.write_text('\n'.join((*tokens.PIECES, *words)) + '\n')
    return str(path)

  recorded = vocabulary(tmp_path / 'elsewhere', 'disc', 'ring')
  digest = tokens.load_tokenizer(recorded).digest
  meta = {'tokenizer': {'digest': digest}, 'config': {'data': {'tokenizer': recorded}}}
  folder = tmp_path / 'checkpoint'
  folder.mkdir()

  def find(*arguments):
    found = SimpleNamespace(folder=folder, words=folder / 'words', meta=meta)
    return str(trained.find_tokenizer(found, *arguments).path)

  assert find() == recorded
  meta['tokenizer']['vocab_size'] = 8  # Of the same file, cut otherwise.
  with pytest.raises(ValueError, match='has 7 ids and had 8 in training'):
    find()
  meta['tokenizer']['vocab_size'] = 7
  # A foreign file at the recorded place does not win over the right one.
  vocabulary(tmp_path / 'elsewhere', 'ring', 'disc')
  with pytest.raises(ValueError, match='pass the file of that run'):
    find()
  beside = vocabulary(folder, 'disc', 'ring')
  assert find() == beside
  vocabulary(tmp_path / 'elsewhere', 'ring', 'ring')  # Not even a tokenizer.
  assert find() == beside
  (tmp_path / 'elsewhere' / 'vocab.txt').unlink()
  assert find() == beside
  (folder / 'vocab.txt').unlink()
  with pytest.raises(FileNotFoundError, match='pass the file of that run as --tokenizer'):
    find()
  # The one that is named is meant: nothing else is used in its place.
  other = vocabulary(tmp_path / 'elsewhere', 'ring', 'disc')
  own = vocabulary(folder / 'words', 'disc', 'ring')
  assert find() == own
  same = vocabulary(tmp_path / 'same', 'disc', 'ring')
  assert find(same) == same
  with pytest.raises(ValueError, match=f'{other} has digest .*name none: {own} is it'):
    find(other)
  with pytest.raises(FileNotFoundError, match=f'no tokenizer at {tmp_path}/none.txt; name none'):
    find(f'{tmp_path}/none.txt')


def test_sizes_are_compared_of_parts_that_both_have():
  """Towers alone have no BERT: what they lack is named where parameters are loaded."""
  tower = {'width': 64, 'heads': 2}
  stored = {'video': {'heads': 2}, 'text': None, 'text_tower': tower}
  identity.check_sizes('runs/a', stored, stored)
  identity.check_sizes('runs/a', stored, stored | {'text': {'heads': 12}})
  with pytest.raises(ValueError, match='model.text_tower.heads is 2, --config says 4'):
    identity.check_sizes('runs/a', stored, stored | {'text_tower': tower | {'heads': 4}})
