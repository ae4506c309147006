"""A checkpoint's folder is enough: copied, with everything else of the run gone."""

import json
import pathlib
import re
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import alpro_jax
from alpro_jax.data import dataset, tokens
from alpro_jax.data.answers import read_answers
from alpro_jax.data.entities import read_entities
from alpro_jax.evaluation import trained
from alpro_jax.search import indexing
from alpro_jax.serving import export, hub
from alpro_jax.train import checkpoints, digests, identity
from alpro_jax.train.state import TrainState
from tests import launched, small_sets, small_towers, small_videos, test_export

COLOURS = [(200, 30, 60)] * 8


def run_of(folder, task, prompter=''):
  """A run that was stopped at step 7."""
  folder.mkdir()
  made, own, _ = test_export.make(folder, task)
  made.config.prompter.checkpoint = str(prompter)
  meta = identity.describe(made.config, own, made.tokenizer)
  store = checkpoints.Checkpoints(folder, words=identity.words(meta, made.tokenizer))
  store.save(TrainState(np.int32(7), made.params, {'mu': made.params}), meta)
  store.close()


def copy_of(root, task, prompter=''):
  """The folder of a step of a run that is gone."""
  run_of(root / 'run', task, prompter)
  shutil.copytree(root / 'run' / 'checkpoints' / '7', root / 'another place')
  shutil.rmtree(root / 'run')
  return root / 'another place'


@pytest.fixture(scope='module')
def copied(tmp_path_factory):
  """A pre-training, of which the prompter stayed behind: see `moved_prompter`."""
  root = tmp_path_factory.mktemp('pretrained')
  run_of(root / 'prompter', 'prompter')
  step = copy_of(root, 'pretrain', root / 'prompter')
  (root / 'prompter').rename(root / 'moved')
  return step


@pytest.fixture(scope='module')
def moved_prompter(copied):
  return copied.parent / 'moved'


@pytest.fixture(scope='module')
def saved(copied):
  """The same model in the layout of the Hugging Face Hub."""
  folder = copied.parent / 'saved'
  alpro_jax.load(copied).save_pretrained(folder)
  return folder


@pytest.fixture(params=['copied', 'saved'])
def place(request):
  return request.getfixturevalue(request.param)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'clips').mkdir()
  small_videos.write_video(tmp_path / 'clips' / 'a.mp4', colours=COLOURS)


def test_python(copied):
  model = alpro_jax.load(copied)
  assert model.similarity(['a dog'], ['clips/a.mp4']).shape == (1, 1)
  assert model.entity_names == ('disc', 'ring', 'cross')


def test_lists_travel_in_both_layouts(place):
  own = alpro_jax.load(place).trained.config.prompter.entities
  assert own.startswith(f'{place}/')
  assert read_entities(own, 0) == ['disc', 'ring', 'cross']


def test_search(copied, saved, capsys):
  index = ('index', 'clips', f'--checkpoint={copied}', '--index=index')
  assert launched.run('search', *index) == 0
  query = ('query', 'a dog', '--index=index')
  assert launched.run('search', *query) == 0
  first = capsys.readouterr().out
  assert 'a.mp4' in first
  # In one command, with an index of the folder's name.
  assert launched.run('search', 'find', 'clips', 'a dog', f'--checkpoint={saved}') == 0
  assert pathlib.Path('clips.index', 'gallery.html').exists()
  # In another layout it is the same model.
  assert launched.run('search', *query, f'--checkpoint={saved}') == 0
  assert 'a.mp4' in capsys.readouterr().out


def test_evaluate(place, monkeypatch):
  monkeypatch.setattr(dataset, 'open_dataset', lambda *_, **__: small_sets.MemorySet(3))
  options = (f'--checkpoint={place}', '--data=sets/a', '--split=test', '--output=card')
  assert launched.run('evaluate', *options) == 0
  with open('card/card.json') as file:
    assert json.load(file)['checkpoint']['path'] == str(place)


EXPLAIN = ('clips/a.mp4', 'a dog', '--steps=2', '--layer=1', '--fps=0', '--seconds=0.2')


def test_explain_says_that_the_prompter_is_missing(place, tmp_path, capsys):
  assert launched.run('explain', place, *EXPLAIN) == 0
  said = capsys.readouterr().out
  assert re.search(
    r'Regions are not named: the prompter that the model was pre-trained with, .*\(step 7, digest '
    r'\w{12}\), is not at .*prompter.* pass its folder as --prompter',
    said,
  )
  page = (tmp_path / 'explained.html').read_text()
  assert 'What regions are called' not in page and 'is not at' in page


@pytest.mark.slow
def test_explain_with_the_prompter_given(copied, moved_prompter, tmp_path, capsys):
  given = f'--prompter={moved_prompter}'
  assert launched.run('explain', copied, *EXPLAIN, given, '--regions=2') == 0
  page = (tmp_path / 'explained.html').read_text()
  assert page.count('frames with region') == 2 and 'not named' not in page
  # What is given is used, or refused.
  assert launched.run('explain', copied, *EXPLAIN, '--prompter=nowhere') == 2
  assert launched.run('explain', copied, *EXPLAIN, f'--prompter={copied}') == 2
  assert 'pre-trained with others' in capsys.readouterr().err


def test_a_file_of_the_original_s_format_says_what_it_lacks(copied, moved_prompter, capsys):
  options = f'--checkpoint={copied}', '--output=out.safetensors'
  assert launched.run('convert', *options) == 0
  said = capsys.readouterr().out
  assert re.search(r'The prompter, .* digest \w{12}\), is not in the file; pass --prompter', said)
  assert launched.run('convert', *options, f'--prompter={moved_prompter}') == 0
  assert 'is not in the file' not in capsys.readouterr().out


def test_exports(copied, saved, capsys):
  assert launched.run('export', f'--checkpoint={saved}', '--output=out', '--platforms=cpu') == 0
  assert launched.run('export', f'--checkpoint={saved}', '--output=b', '--params_only') == 2
  assert 'has no optimizer to leave out' in capsys.readouterr().err
  assert launched.run('export', f'--checkpoint={copied}', '--output=small', '--params_only') == 0
  assert alpro_jax.load('out').entity_names == ('disc', 'ring', 'cross')
  assert alpro_jax.load('small').entity_names == ('disc', 'ring', 'cross')


@pytest.mark.slow
def test_an_export_is_measured_and_audited(saved, tmp_path):
  """It has no options of a run: those of evaluation are today's, of training none is stated."""
  data = small_videos.prepare_seven(tmp_path)
  assert launched.run('export', f'--checkpoint={saved}', '--output=out', '--platforms=cpu') == 0
  of = '--checkpoint=out', f'--data={data}'
  assert launched.run('evaluate', *of, '--split=train', '--output=card') == 0
  run = json.loads((tmp_path / 'card' / 'card.json').read_text())['run']
  assert run['task'] == 'pretrain' and not {'seed', 'train.steps', 'data.sources'} & run.keys()
  assert launched.run('audit', *of, '--splits=train', '--output=audit') == 0


def test_answers(tmp_path_factory):
  copied = copy_of(tmp_path_factory.mktemp('answers'), 'question_answering')
  model = alpro_jax.load(copied)
  assert len(model.answer('what is it ?', ['clips/a.mp4'])[0]) == 2
  assert model.trained.config.data.answers == str(copied / 'words' / 'answers.txt')
  assert read_answers(model.trained.config.data.answers) == ('disc', 'ring')


def test_another_tokenizer_is_refused_and_the_same_one_is_not_needed(copied, capsys):
  own = copied / 'words' / 'vocab.txt'
  shutil.copy(own, 'mine.txt')
  for name, code in (('mine.txt', 0), ('other.txt', 2), ('none.txt', 2)):
    index = ('index', 'clips', f'--checkpoint={copied}', f'--index={name}.index')
    assert launched.run('search', *index, f'--tokenizer={name}') == code, name
    with open('other.txt', 'w') as file:
      file.write('\n'.join(reversed(own.read_text().splitlines())) + '\n')
  said = capsys.readouterr().err
  assert 'other.txt has digest' in said and f'name none: {own} is it.' in said
  assert f'no tokenizer at none.txt; name none: {own} is it.' in said


def test_the_tokenizer_of_a_tower_travels_in_both_layouts(tmp_path):
  made, own, file = test_export.make(tmp_path, 'pretrain')
  tower = tokens.load_tokenizer(small_towers.write(tmp_path / 'weights'))
  pair = tokens.Pair(made.tokenizer, tower, 8)
  config = made.config
  config.data.update({'tower_tokenizer': str(tower.path), 'max_tower_tokens': 8})
  meta = identity.describe(config, own, pair)
  store = checkpoints.Checkpoints(tmp_path / 'run', words=identity.words(meta, pair))
  store.save(TrainState(np.int32(7), made.params, {'mu': made.params}), meta)
  store.close()
  shutil.rmtree(tmp_path / 'weights')
  file.unlink()
  alpro_jax.load(tmp_path / 'run').save_pretrained(tmp_path / 'saved')
  stored = json.loads((tmp_path / 'saved' / 'config.json').read_text())
  assert stored['meta']['config']['data']['tower_tokenizer'] == 'tower.json'
  assert str(tmp_path) not in json.dumps(stored)
  expected = pair.encode(['A dog runs', ''], 10)
  assert [x.shape for x in expected] == [(2, 10), (2, 10), (2, 8)]
  folder = tmp_path / 'run' / 'checkpoints' / '7'
  for place in (tmp_path / 'run', tmp_path / 'saved'):
    found = alpro_jax.load(place).trained.tokenizer
    for ours, theirs in zip(found.encode(['A dog runs', ''], 10), expected, strict=True):
      np.testing.assert_array_equal(ours, theirs)
  export.write_params(folder, tmp_path / 'slim')
  assert (tmp_path / 'slim' / 'words' / 'tower.json').read_bytes() == tower.content
  other = small_towers.write(tmp_path / 'other', context=9)
  (tmp_path / 'slim' / 'words' / 'tower.json').write_bytes(tokens.load_tokenizer(other).content)
  digests.write(tmp_path / 'slim')
  with pytest.raises(ValueError, match='tower.json has digest .*was trained with'):
    alpro_jax.load(tmp_path / 'slim')


def test_the_words_are_guarded(copied, tmp_path):
  damaged = shutil.copytree(copied, tmp_path / 'damaged')
  with open(damaged / 'words' / 'entities.txt', 'a') as file:
    file.write('dog\n')
  with pytest.raises(checkpoints.DamagedCheckpointError, match='words/entities.txt has'):
    alpro_jax.load(damaged)


def test_names_are_read_as_they_were(tmp_path):
  """A number that ends a name is no count; blanks and signs stay."""
  meta = {'entities': ['disc 3', 'fire truck', 'Σ # 2'], 'answers': ['2', 'a, b', 'No']}
  (tmp_path / 'vocab.txt').write_text('\n'.join(test_export.VOCAB) + '\n')
  tokenizer = tokens.load_tokenizer(tmp_path / 'vocab.txt')
  checkpoints.write_words(tmp_path, identity.words(meta, tokenizer))
  words = tmp_path / 'words'
  assert read_entities(words / 'entities.txt', 0) == meta['entities']
  assert list(read_answers(words / 'answers.txt')) == meta['answers']
  assert (words / 'vocab.txt').read_bytes() == (tmp_path / 'vocab.txt').read_bytes()
  digests.write(tmp_path)
  assert 'words/answers.txt' in json.loads((tmp_path / digests.FILE).read_text())


def test_the_last_step_of_an_average_is_another_model(tmp_path, monkeypatch):
  """For an index, a card and the summary of what is familiar."""
  folder = copy_of(tmp_path, 'pretrain')
  averaged = trained.load(folder)
  load_params = checkpoints.Checkpoint.load_params

  def of_last_step(self, *args, averaged=True, **given):
    params = load_params(self, *args, **given)
    return params if averaged else jax.tree.map(lambda x: x + 1, params)

  monkeypatch.setattr(checkpoints.Checkpoint, 'load_params', of_last_step)
  last = trained.load(folder, averaged=False)
  assert last.origin.digest != averaged.origin.digest and last.familiarity is None
  store = SimpleNamespace(folder='i', about={'checkpoint': indexing.made_with(averaged)})
  indexing.check_checkpoint(store, indexing.made_with(averaged))
  with pytest.raises(ValueError, match='is another checkpoint'):
    indexing.check_checkpoint(store, indexing.made_with(last))


def test_what_is_published_names_no_folder_of_this_machine(copied):
  stored = json.loads(json.dumps(dict(trained.load(copied).meta)))
  for part, name in (
    ('data', 'path'),
    ('data', 'features'),
    ('data', 'cache_dir'),
    ('prompter', 'prompts'),
    ('eval', 'folder'),
  ):
    stored['config'][part][name] = f'/home/anna/{name}'
  stored['interpolated'] = {'start': {'path': '/home/anna/a'}, 'tuned': {'path': '/home/anna/b'}}
  assert '/home/anna' not in json.dumps(hub._without_paths(stored, 'tokenizer.model'))
