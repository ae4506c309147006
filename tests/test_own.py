"""One's own set: its parts and lists, and the sizes that are chosen for a machine."""

import json
from types import SimpleNamespace

import pytest

from alpro_jax import memory
from alpro_jax.data import dataset, manifest, tokens, tower_tokens
from alpro_jax.data import own as own_set
from alpro_jax.machine import Machine
from alpro_jax.train import checkpoints
from configs import (
  common,
  finetune_msrvtt_retrieval,
  finetune_qa,
  finetune_retrieval,
  image_text,
  own,
  pretrain,
  pretrain_prompter,
)
from launch import command, settle
from tests import small_sets, small_towers

GIB = 2**30
FILES = (pretrain, pretrain_prompter, finetune_retrieval, finetune_qa)


def names(chosen):
  micro = chosen['data.batch_size'] // chosen['optimizer.accumulation']
  return chosen['model'], micro, chosen['optimizer.accumulation'], chosen['model.remat']


@pytest.mark.parametrize(
  'kind, gib, expected',
  [
    ('cpu', 3, ('tiny', 64, 1, 'none')),
    ('cpu', 8, ('small', 32, 2, 'none')),
    ('cpu', 24, ('small', 64, 1, 'none')),
    ('cpu', 64, ('small', 64, 1, 'none')),
    ('gpu', 4, ('small', 64, 1, 'none')),
    ('gpu', 8, ('base', 32, 2, 'blocks')),
    ('gpu', 24, ('base', 64, 1, 'blocks')),
    ('gpu', 80, ('base', 64, 1, 'none')),
    ('tpu', 16, ('base', 64, 1, 'blocks')),
  ],
)
def test_pre_training_is_sized_to_a_machine(kind, gib, expected):
  config, machine = pretrain.get_config('own'), Machine(kind, gib * GIB)
  chosen = own.choose(config, machine)
  assert names(chosen) == expected
  assert chosen['model.dtype'] == ('float32' if kind == 'cpu' else 'bfloat16')
  sized = own.applied(config, chosen)
  assert sized.data.batch_size == own.BATCH
  assert sized.data.image_size == sized.data.resize == sized.model.video.image_size
  assert memory.of_step(sized, kind=kind).total <= own.FITS * machine.memory
  assert own.check(sized, machine).total <= machine.memory


@pytest.mark.parametrize('file', FILES)
@pytest.mark.parametrize('scale', own.SCALES)
@pytest.mark.parametrize('kind', own.MODELS)
@pytest.mark.parametrize('devices', [1, 8])
def test_every_choice_fits_and_more_memory_never_gives_less(file, scale, kind, devices):
  config, before = file.get_config(scale), 0
  for gib in (4, 8, 16, 24, 64, 200):
    sized = own.applied(config, own.choose(config, Machine(kind, gib * GIB, devices)))
    need = memory.of_step(sized, kind=kind, devices=devices)
    assert need.total <= own.FITS * gib * GIB
    assert sized.data.batch_size % (devices * sized.optimizer.accumulation) == 0
    count = memory.parameters(sized.model, 8000)
    assert count >= before
    before = count


def test_what_cannot_fit_is_refused_in_a_sentence():
  with pytest.raises(ValueError, match='nothing fits cpu, 1.0 GiB.*needs about 2.* GiB'):
    own.choose(pretrain.get_config('own'), Machine('cpu', GIB))
  machine = Machine('cpu', 24 * GIB)
  with pytest.raises(ValueError, match='needs about .* there is less') as caught:
    own.check(pretrain.get_config('large'), machine)
  assert 'The preset :own fits, with: ' in str(caught.value)
  with pytest.raises(ValueError, match='there is less.* Nothing fits'):
    own.check(pretrain.get_config('large'), Machine('cpu', GIB))
  # Where a smaller batch would fit, it is named, and it does.
  with pytest.raises(ValueError, match='This fits: ') as caught:
    own.check(pretrain.get_config('base'), Machine('gpu', 40 * GIB))
  advice = dict(
    word.removeprefix('--config.').split('=')
    for word in str(caught.value).rstrip('.').split('This fits: ')[1].split()
  )
  config = pretrain.get_config('base')
  config.model.remat = advice['model.remat']
  config.data.batch_size = int(advice['data.batch_size'])
  config.optimizer.accumulation = int(advice['optimizer.accumulation'])
  own.check(config, Machine('gpu', 40 * GIB))


def test_what_is_not_known_refuses_nothing():
  own.check(pretrain.get_config('large'), Machine('gpu', 0))


def test_options_that_were_given_stay():
  config, machine = pretrain.get_config('own'), Machine('cpu', 24 * GIB)
  config.data.batch_size = 24
  chosen = own.choose(config, machine, given={'data.batch_size', 'train.steps'})
  assert 'data.batch_size' not in chosen and chosen['model'] == 'small'
  # One size of the model: all of it is the user's.
  chosen = own.choose(config, machine, given={'model.video.width'})
  assert 'model' not in chosen and 'data.batch_size' in chosen


def test_a_batch_has_no_more_pairs_than_there_are_videos():
  chosen = own.choose(pretrain.get_config('own'), Machine('cpu', 24 * GIB), videos=7)
  assert chosen['data.batch_size'] == 7 and chosen['train.steps'] == 1000
  chosen = own.choose(pretrain.get_config('own'), Machine('cpu', 24 * GIB), videos=1920)
  assert chosen['data.batch_size'] == 64 and chosen['train.steps'] == 3000


def make_set(monkeypatch, tmp_path, splits, records=25):
  """A set that lies in memory, its manifest in a folder."""
  entries = {name: {'examples': records} for name in splits}
  monkeypatch.setattr(own_set, 'read_manifest', lambda _: {'splits': entries})
  prepared = small_sets.MemorySet(records, captions=[(f'a dog swims {i}',) for i in range(records)])
  monkeypatch.setattr(dataset, 'open_dataset', lambda *_, **__: prepared)
  return str(tmp_path)


def splits_of(monkeypatch, splits):
  """Makes 'set' one with these splits: {name: {video: content, '' where none is known}}."""
  entries = {
    split: {
      'examples': len(videos),
      'plan': {'videos': {video: content for video, content in videos.items() if content}},
    }
    for split, videos in splits.items()
  }
  monkeypatch.setattr(own_set, 'read_manifest', lambda _: {'splits': entries})

  def open_dataset(path, split, **_):
    whole, _, part = split.partition('[')
    records = [dataset.RecordInfo(x, ('a',), ('',), False, 1) for x in splits[whole]]
    if part:
      ends = [end.removeprefix('-') or None for end in part.removesuffix(']').split(':')]
      records = [records[i] for i in dataset._choose(records, *ends)]
    return SimpleNamespace(metadata=lambda: records)

  monkeypatch.setattr(dataset, 'open_dataset', open_dataset)


def numbered(*numbers, content='{}'):
  return {f'{i}.mp4': content.format(i) for i in numbers}


@pytest.mark.parametrize(
  'train, test, count',
  [
    (numbered(*range(25)), numbered(*range(30)), 25),  # Rows without a split.
    (numbered(*range(25), content=''), numbered(*range(30), content=''), 25),
    (numbered(*range(25)), numbered(*range(25, 30)), 0),
    # Of two folders, whose names begin anew; of not all it is known what they hold.
    (numbered(*range(25)), numbered(*range(5), content='test {}'), 0),
    (
      numbered(*range(24)) | {'24.mp4': ''},
      numbered(*range(5), content='test {}') | {'24.mp4': ''},
      0,
    ),
    (numbered(*range(25)), {'a.mp4': '3', 'b.mp4': 'b'}, 1),  # Another name, the same video.
    (numbered(*range(25)), numbered(0, 1) | {'2.mp4': 'another', '30.mp4': '30'}, 2),
  ],
)
def test_videos_of_two_splits_are_known_by_name_and_content(monkeypatch, train, test, count):
  splits_of(monkeypatch, {'train': train, 'test': test})
  both = own_set.shared(('set', 'train'), ('set', 'test'))
  assert len(both) == count and both == [video for video in test if video in both]
  # In another set a name alone says nothing.
  contents = sum(bool(test[video]) and test[video] in train.values() for video in test)
  assert len(own_set.shared(('set', 'train'), ('other', 'test'))) == contents


def test_what_is_trained_on_is_not_measured_on(monkeypatch):
  config = finetune_retrieval.get_config('tiny_own')
  config.data.update({'path': 'set', 'tokenizer': 'mine.model'})
  config.machine.memory_gib = 24.0
  splits_of(monkeypatch, {'train': numbered(*range(25)), 'test': numbered(*range(30))})
  with pytest.raises(ValueError) as caught:
    settle.settle(config)
  assert str(caught.value) == (
    "set: of the 30 videos of split 'test', which would be measured on, 25 are trained on too: "
    '0.mp4, 1.mp4, ... (\'train\'). Rows of a captions file without a "split" belong to every '
    'split: give each row one, and prepare both splits again into another --output; or train '
    'without a measure by --config.eval.sources="()"; or measure on them all the same by '
    "--config.eval.sources=\"({'path': 'set', 'split': 'test'},)\"."
  )
  # Whoever names what is measured on is warned.
  config.eval.sources = (common.source('set', split='test'),)
  settled = settle.settle(config, given={'eval.sources'})
  assert settled.said[0].endswith('25 videos (train), measures on what config.eval.sources names')
  assert settled.said[1].startswith('warning: what is measured on set (test) is not of new')
  assert ': 25 of them are trained on (train), such as 0.mp4, 1.mp4' in settled.said[1]
  config.eval.sources = ()
  assert 'warning' not in ''.join(settle.settle(config, given={'eval.sources'}).said)
  splits_of(monkeypatch, {'train': numbered(*range(25)), 'test': numbered(*range(25, 30))})
  settled = settle.settle(config)
  assert settled.held_out == 5 and settled.said[0].endswith('measures on 5 others (test)')


def test_a_run_measures_on_val_and_leaves_test(monkeypatch):
  splits_of(
    monkeypatch,
    {
      'train': numbered(*range(25)),
      'test': numbered(*range(25, 30)),
      'val': numbered(*range(30, 33)),
    },
  )
  found = own_set.parts('set')
  assert (found.held_out, found.held_out_videos, found.left) == ('val', 3, ('test',))
  said = own_set.say(found, 'set')
  assert said.endswith('on 3 others (val), and leaves test for launch/evaluate.py --split=test')


def test_pretraining_without_entities_needs_no_list(monkeypatch):
  config = pretrain.get_config('tiny_own')
  config.data.update({'path': 'set', 'tokenizer': 'mine.model'})
  splits_of(monkeypatch, {'train': numbered(*range(25)), 'test': numbered(*range(25, 30))})
  monkeypatch.setattr(own_set.files, 'exists', lambda path: False)
  with pytest.raises(FileNotFoundError, match='entities.txt is not there'):
    own_set.use(config, source=common.source)
  config.loss.pem = 0.0
  assert own_set.use(config, source=common.source).prompter.entities == ''


def test_copies_in_the_part_that_is_held_out_are_said(monkeypatch):
  videos = numbered(*range(30))
  splits_of(monkeypatch, {'train': videos})
  names = [x.video for x in dataset.open_dataset('set', 'train[-6:]').metadata()]
  config = finetune_retrieval.get_config('tiny_own')
  config.data.update({'path': 'set', 'tokenizer': 'mine.model'})
  config.machine.memory_gib = 24.0
  settled = settle.settle(config)
  assert (settled.held_out, settled.copies) == (6, 0)
  other = next(video for video in videos if video not in names)
  splits_of(monkeypatch, {'train': videos | {names[0]: videos[other]}})
  settled = settle.settle(config)
  assert (settled.held_out, settled.copies) == (6, 1)
  assert settled.said[0].endswith(f'of which 1 is trained on too: {names[0]}')


@pytest.mark.parametrize(
  'splits, records, expected',
  [
    (['train'], 25, ('train[:-5]', 'train[-5:]', 20, 5)),
    (['train'], 19, ('train', '', 19, 0)),
    (['train'], 100_000, ('train[:-1000]', 'train[-1000:]', 99_000, 1000)),
    (['train', 'val'], 25, ('train', 'val', 25, 25)),
    (['mine'], 25, ('mine[:-5]', 'mine[-5:]', 20, 5)),
  ],
)
def test_a_fifth_is_held_out_or_a_split_of_its_own(
  monkeypatch, tmp_path, splits, records, expected
):
  entries = {name: {'examples': records} for name in splits}
  monkeypatch.setattr(own_set, 'read_manifest', lambda _: {'splits': entries})
  assert own_set.parts('set')[:4] == expected
  said = own_set.say(own_set.parts('set'), 'set')
  assert f'{expected[2]} videos' in said


def test_a_set_without_a_training_split(monkeypatch):
  monkeypatch.setattr(own_set, 'read_manifest', lambda _: {'splits': {'test': {'examples': 3}}})
  with pytest.raises(ValueError, match='no split to train on'):
    own_set.parts('set')


def test_the_lists_are_written_once_and_used(monkeypatch, tmp_path):
  path = make_set(monkeypatch, tmp_path, ['train'])
  config = pretrain.get_config('own')
  config.data.path = path
  with pytest.raises(FileNotFoundError, match='launch/tokenizer.py --captions='):
    own_set.use(config, source=common.source)
  first = own_set.write_lists(path)
  assert any('tokenizer.model' in line for line in first)
  digest = tokens.load_tokenizer(f'{path}/tokenizer.model').digest
  assert all('kept' in line for line in own_set.write_lists(path))
  used = own_set.use(config, source=common.source)
  assert used.data.path == '' and config.data.path == path
  assert [dict(source)['split'] for source in used.data.sources] == ['train[:-5]']
  assert [dict(source)['split'] for source in used.eval.sources] == ['train[-5:]']
  kept = own_set.use(config, source=common.source, given={'eval.sources'})
  assert not kept.eval.sources and kept.data.sources and not kept.train.best_metric
  assert tokens.load_tokenizer(used.data.tokenizer).digest == digest
  assert used.prompter.entities == f'{path}/entities.txt'
  # What is named stays.
  config.data.tokenizer = 'mine.model'
  assert own_set.use(config, source=common.source).data.tokenizer == 'mine.model'


def test_sets_that_the_command_line_names_take_the_place_of_the_path():
  config = finetune_retrieval.get_config('own')
  config.data.sources = (common.source('sets/a', weight=2), common.source('sets/b'))
  config.machine.memory_gib = 24.0
  for given in ({'data.sources'}, {'data.sources[1].path'}):
    settled = settle.settle(config, given=given)
    used = settled.config.data
    assert [(x.path, x.weight) for x in used.sources] == [('sets/a', 2.0), ('sets/b', 1.0)]
    assert used.path == used.tokenizer == settled.path == '' and not settled.held_out
  with pytest.raises(ValueError, match='path=sets/clips and .*sources both say .*; give one'):
    settle.settle(config, given={'data.sources', 'data.path'})
  with pytest.raises(FileNotFoundError, match='sets/clips has no manifest.json'):
    settle.settle(config)


def test_parts_of_a_split_have_all_records_once_whatever_their_order():
  def videos(names, *part):
    records = [dataset.RecordInfo(name, (), (), False, 1) for name in names]
    return {names[i] for i in dataset._choose(records, *part)}

  names = [f'{i}.mp4' for i in range(10)]
  held_out, rest = videos(names, '3', None), videos(names, None, '3')
  assert len(held_out) == 3 and held_out | rest == set(names) and not held_out & rest
  assert videos(names[::-1], '3', None) == held_out
  between = videos(names, '5', '3')
  assert len(between) == 2 and between | held_out == videos(names, '5', None)
  assert videos(names, '30', '3') == rest


def test_a_folder_of_videos_is_told_how_to_become_a_set(tmp_path):
  (tmp_path / 'dog.MP4').touch()
  (tmp_path / 'captions.csv').touch()
  with pytest.raises(FileNotFoundError) as caught:
    manifest.read_manifest(tmp_path)
  assert str(caught.value).endswith(
    f'make a set with: python launch/prepare.py --source=folder --videos={tmp_path} '
    f'--captions={tmp_path}/captions.csv --output={tmp_path}_set'
  )
  with pytest.raises(FileNotFoundError, match='--videos=VIDEOS .* --output=none'):
    manifest.read_manifest('none')


def begun(workdir, config, words=None):
  """A workdir with a checkpoint of a run of a config."""
  from alpro_jax.train.state import TrainState

  store = checkpoints.Checkpoints(workdir, words=words or {})
  state = TrainState(step=1, params={'a': [1.0]}, opt_state={})
  store.save(state, {'config': json.loads(config.to_json())})
  store.close()


def test_a_run_keeps_its_sizes_on_another_machine(monkeypatch, tmp_path):
  config = pretrain.get_config('own')
  config.data.path, config.machine.memory_gib = '', 24.0
  first = settle.settle(config)
  assert first.config.model.video.width == 256 and first.config.data.batch_size == 64
  begun(tmp_path, first.config)
  config.machine.memory_gib = 3.5  # Would be `tiny`.
  config.data.batch_size = 4
  config.optimizer.accumulation = 1
  given = {'data.batch_size', 'optimizer.accumulation'}
  again = settle.settle(config, str(tmp_path), given=given).config
  assert again.model.video.width == 256 and again.data.image_size == 112
  assert again.data.batch_size == 4  # As given: train/resume.py refuses it.


def test_a_run_that_starts_from_another_has_its_sizes(tmp_path):
  config = finetune_retrieval.get_config('own')
  config.data.path, config.machine.memory_gib = '', 24.0
  start = own.applied(config, {'model': 'base', 'data.image_size': 224, 'data.resize': 224})
  begun(tmp_path, start)
  config.train.init_from = str(tmp_path)
  settled = settle.settle(config)
  assert settled.config.model.video.width == 768 and settled.config.data.image_size == 224
  assert str(tmp_path) in settled.said[0]
  assert settled.config.model.dtype == 'float32'
  config.machine.device = 'gpu'
  assert settle.settle(config).config.model.dtype == 'bfloat16'
  assert settle.settle(config, given={'model.dtype'}).config.model.dtype == 'float32'


@pytest.mark.parametrize('bert', [True, False])
def test_a_run_that_starts_from_image_text_weights_has_all_of_their_model(tmp_path, bert):
  """Its towers, tokenizers and pictures, and rates that keep what they know; and resumes so."""
  tower = tower_tokens.load(small_towers.write(tmp_path / 'words', context=32))
  start = common.get_config('tiny_siglip2')
  start.data.update({'frames': 2, 'max_tower_tokens': 32, 'max_text_tokens': 32})
  start.data.update({'image_size': 48, 'resize': 56, 'resize_mode': 'short_side'})
  start.data.tokenizer, start.loss.vtc_form = 'not/there', 'sigmoid'
  if not bert:
    with start.unlocked():
      del start.model['text']
  words = {'tower.json': tower.content} | ({'vocab.txt': b'[PAD]'} if bert else {})
  begun(tmp_path / 'start', start, words)
  config = finetune_retrieval.get_config('own')
  config.data.path, config.machine.memory_gib = '', 24.0
  config.train.init_from = str(tmp_path / 'start')
  config.model.temperature_range = (0.01, 0.5)
  settled = settle.settle(config, str(tmp_path / 'run'), given={'model.temperature_range'})
  made, copies = settled.config, tmp_path / 'start' / 'checkpoints' / '1' / 'words'
  wanted = start.model.to_dict() | {'temperature_range': (0.01, 0.5)}
  assert json.loads(made.model.to_json()) == json.loads(json.dumps(wanted))
  assert made.data.tower_tokenizer == f'{copies}/tower.json'
  assert made.data.tokenizer == (f'{copies}/vocab.txt' if bert else '')
  assert (made.data.resize_mode, made.data.resize, made.data.frames) == ('short_side', 56, 2)
  assert made.data.max_tower_tokens == 32 and made.loss.vtc_form == 'sigmoid'
  assert made.optimizer.learning_rate == image_text.RATE
  assert 'text_tower=0.001' in made.optimizer.groups and made.data.batch_size == own.BATCH
  assert (made.loss.vtm, made.eval.scoring) == ((1.0, 'auto') if bert else (0.0, 'similarity'))
  assert made.data.max_text_tokens == (30 if bert else 32)
  assert ('has no BERT' in settled.said[1]) != bert and 'vtc_form=sigmoid' in settled.said[1]
  begun(tmp_path / 'run', made)
  again = settle.settle(config, str(tmp_path / 'run'), given={'model.temperature_range'})
  assert again.config.to_json() == made.to_json()
  # What the command line says stays, and so do the rates of who pre-trains.
  config = pretrain.get_config('own')
  config.data.path, config.machine.memory_gib = '', 24.0
  config.train.init_from, config.data.frames = str(tmp_path / 'start'), 4
  made = settle.settle(config, given={'data.frames'}).config
  assert made.data.frames == 4 and not made.data.randaugment.enabled
  assert 'text_tower=0.05' in made.optimizer.groups and made.loss.vtm == 1


def test_a_config_of_towers_reads_with_the_tokenizer_of_its_start(tmp_path):
  tower = tower_tokens.load(small_towers.write(tmp_path / 'words'))
  start = common.get_config('clip_b16')
  begun(tmp_path / 'start', start, {'tower.json': tower.content})
  config = finetune_msrvtt_retrieval.get_config('clip_b16')
  config.train.init_from, config.machine.memory_gib = str(tmp_path / 'start'), 1e4
  made = settle.settle(config, str(tmp_path / 'run')).config
  words = f'{tmp_path}/start/checkpoints/1/words/tower.json'
  assert made.data.tower_tokenizer == words and made.data.frames == image_text.FRAMES
  begun(tmp_path / 'run', made)
  assert settle.settle(config, str(tmp_path / 'run')).config.data.tower_tokenizer == words
  config.data.tower_tokenizer = 'mine'
  assert settle.settle(config).config.data.tower_tokenizer == 'mine'


def test_a_run_that_resumes_reads_with_the_tokenizer_of_its_start(monkeypatch, tmp_path):
  """Not with that of its set, which came after."""
  path = make_set(monkeypatch, tmp_path, ['train'])
  own_set.write_lists(path)
  words = tmp_path / 'words.model'
  words.write_bytes((tmp_path / 'tokenizer.model').read_bytes())
  start = pretrain.get_config('tiny_own')
  start.data.tokenizer = str(words)
  begun(tmp_path / 'start', start)
  config = finetune_retrieval.get_config('tiny_own')
  config.data.path, config.train.init_from = path, str(tmp_path / 'start')
  config.machine.memory_gib = 24.0
  made = settle.settle(config, str(tmp_path / 'run')).config
  assert made.data.tokenizer == str(words)
  begun(tmp_path / 'run', made)
  assert settle.settle(config, str(tmp_path / 'run')).config.data.tokenizer == str(words)


def test_a_pretended_device_trains_nothing():
  config = pretrain.get_config('own')
  config.data.path = ''
  config.machine.update({'device': 'gpu', 'memory_gib': 24.0})
  settled = settle.settle(config)
  assert 'nothing is trained' in settled.pretended and 'model=base' in settled.said[0]
  config.machine.choose = 'all'
  with pytest.raises(ValueError, match="must be 'model', 'batch'"):
    settle.settle(config)


def test_memory_that_runs_out_is_a_sentence(capsys):
  with pytest.raises(SystemExit) as caught, command.mistakes_in_one_line():
    raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory\nallocating 123 bytes')
  assert caught.value.code == command.MISTAKE
  said = capsys.readouterr().err
  assert said.startswith('error: memory ran out') and said.count('\n') == 1
  assert '--config.data.batch_size' in said
