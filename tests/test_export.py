"""launch/export.py: programs, loader and small checkpoints."""

import contextlib
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import sentencepiece
import tensorflow as tf

import alpro_jax
from alpro_jax import sharding
from alpro_jax.data import augment, frames, tokens, tower_tokens
from alpro_jax.evaluation.trained import TrainedModel, load
from alpro_jax.serving import alpro_loader, check, export, programs, saved_model
from alpro_jax.tasks.base import TextInfo
from alpro_jax.tasks.registry import get_task
from alpro_jax.train import checkpoints, identity
from alpro_jax.train.state import TrainState
from tests import launched, small_task, small_towers

VOCAB = [
  *tokens.PIECES,
  'a',
  'dog',
  'run',
  '##s',
  ',',
  '!',
  'cafe',
  '[',
  ']',
  'mask',
  'σ',
  '##σ',
  'disc',
  'ring',
  'is',
  'it',
  '?',
  'what',
  '中',
  'i',
]


def make(path, task):
  """A model of random weights, (TrainedModel, its task, file of its tokenizer)."""
  file = path / 'vocab.txt'
  file.write_text('\n'.join(VOCAB) + '\n')
  config = small_task.small_config(path, task)
  (path / 'answers.txt').write_text('disc\nring\n')
  config.data.update(
    {
      'tokenizer': str(file),
      'answers': str(path / 'answers.txt'),
      'text': 'questions' if task == 'question_answering' else 'captions',
      'resize': 24,
      'max_text_tokens': 10,
    }
  )
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  tokenizer = tokens.load_tokenizer(file)
  own = get_task(config, TextInfo(tokenizer.special, len(VOCAB)), mesh)
  params = sharding.create(own.init, jax.random.key(0), mesh)
  return TrainedModel(own.model, params, config, tokenizer, mesh, tuple(own.answers)), own, file


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
  return make(tmp_path_factory.mktemp('pretrained'), 'pretrain')


@pytest.fixture(scope='module')
def exported(pretrained, tmp_path_factory):
  """The folder of an export."""
  trained, _, file = pretrained
  path = tmp_path_factory.mktemp('exported') / 'model'
  export.write(trained, path, say=lambda line: None)
  return path


# In the place of an environment that has only what is named: what was installed
# beside that, or for it, cannot be imported.
ONLY = """
import contextlib
import importlib.metadata
import re
import sys

allowed, left = set(), sys.argv.pop(1).split(',')
while left:
  package = re.match('[A-Za-z0-9_-]+', left.pop())[0].lower().replace('_', '-')
  if package not in allowed:
    allowed.add(package)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # Of other platforms.
      left += [
          name for name in importlib.metadata.requires(package) or ()
          if 'extra ==' not in name]
others = {
    module for module, packages in
    importlib.metadata.packages_distributions().items()
    if not any(p.lower().replace('_', '-') in allowed for p in packages)}

class Refuse:
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] in others | {'alpro_jax'}:
      raise ModuleNotFoundError(f'No module named {name!r}')

sys.meta_path.insert(0, Refuse())
"""
SERVE = (
  ONLY
  + """
import numpy as np
from alpro_loader import load

model = load(sys.argv[1])
video = model.encode_video(np.load(sys.argv[2]))
text = model.encode_text(*model.tokenize(
    ['a dog runs', 'A Café!', 'what is it?']))
match = model.match(text, video)
np.savez(sys.argv[3], tokens=video.tokens, feature=video.feature,
         ids=model.tokenize(['a dog runs'])[0], text=text.tokens,
         text_feature=text.feature, margin=match.margin,
         probability=match.probability)
"""
)


@pytest.mark.slow
def test_another_process_gets_the_same_numbers(exported, pretrained, tmp_path):
  """With what requirements.txt names, and what that needs, alone."""
  trained, _, _ = pretrained
  videos = np.random.default_rng(1).integers(0, 256, (3, 2, 24, 24, 3), dtype=np.uint8)
  np.save(tmp_path / 'videos.npy', videos)
  needs = (exported / 'requirements.txt').read_text().split()
  assert needs == [f'jax>={jax.__version__}', 'numpy', 'flatbuffers']
  subprocess.run(
    [
      sys.executable,
      '-c',
      SERVE,
      ','.join(needs),
      exported,
      tmp_path / 'videos.npy',
      tmp_path / 'found.npz',
    ],
    check=True,
    cwd=exported,
  )
  found = np.load(tmp_path / 'found.npz')

  model = trained.model.bind({'params': trained.params})
  ids, mask = trained.tokenizer.encode(['a dog runs', 'A Café!', 'what is it?'], 10)
  video = model.encode_video(videos, train=False)
  text = model.encode_text(ids, mask, train=False)
  fused = model.fuse(text.tokens, mask, video.tokens, train=False)
  logits = np.asarray(model.match_logits(fused[:, 0]))
  np.testing.assert_array_equal(found['ids'], ids[:1])
  for name, right in {
    'tokens': video.tokens,
    'feature': video.feature,
    'text': text.tokens,
    'text_feature': text.feature,
    'margin': logits[:, 1] - logits[:, 0],
    'probability': jax.nn.softmax(logits)[:, 1],
  }.items():
    np.testing.assert_allclose(found[name], right, atol=1e-5, err_msg=name)


def test_a_missing_package_is_named(exported):
  """jax says that another jax is needed, or nothing at all."""
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      ONLY + '\nfrom alpro_loader import load\nload(sys.argv[1])',
      'jax,numpy',
      exported,
    ],
    cwd=exported,
    capture_output=True,
    text=True,
  )
  last = done.stderr.splitlines()[-1]
  assert last.startswith('ImportError: this export needs jax'), done.stderr
  assert f"pip install 'jax>={jax.__version__}' flatbuffers" in last


def test_an_older_jax_is_named(exported, monkeypatch):
  """It has no jax.export, or cannot read a program, or cannot run it."""
  wanted = f"pip install 'jax>={jax.__version__}'"

  def fail(*_):
    raise RuntimeError('unsupported version 3')

  # Some are read by an older one, and some fail when they are first used.
  program = types.SimpleNamespace(call=fail)
  monkeypatch.setattr(jax.export, 'deserialize', lambda _: program)
  alpro_loader.load(exported)
  right = jax.__version__
  monkeypatch.setattr(jax, '__version__', '0.4.38')
  with pytest.raises(ValueError, match=f'by jax 0.4.38: {wanted}.*version 3'):
    alpro_loader.load(exported)
  monkeypatch.setattr(jax.export, 'deserialize', fail)
  with pytest.raises(ValueError, match=f'by jax 0.4.38: {wanted}.*version 3'):
    alpro_loader.load(exported)
  monkeypatch.setattr(jax, '__version__', right)
  with pytest.raises(RuntimeError, match='unsupported version 3'):
    alpro_loader.load(exported)  # That is no older one.
  monkeypatch.setattr(jax, '__version__', '0.4.38')
  monkeypatch.setitem(sys.modules, 'jax.export', None)
  monkeypatch.delattr(jax, 'export')
  with pytest.raises(ImportError, match=f'{wanted} flatbuffers.*0.4.38'):
    alpro_loader.load(exported)


def test_manifest(exported, pretrained):
  trained, _, _ = pretrained
  manifest = json.loads((exported / 'manifest.json').read_text())
  assert list(manifest['programs']) == ['encode_video', 'encode_text', 'match']
  assert manifest['platforms'] == ['cpu', 'cuda', 'tpu']
  (video,) = manifest['programs']['encode_video']['inputs']
  assert video == {'name': 'video', 'shape': ['b', 2, 24, 24, 3], 'dtype': 'uint8'}
  outputs = manifest['programs']['match']['outputs']
  assert [x['name'] for x in outputs] == ['margin', 'probability']
  assert manifest['check']['tolerance'] == 1e-5
  assert max(manifest['check']['difference'].values()) < 1e-5
  assert set(manifest['check']['difference']) == set(check.live(trained))
  assert manifest['preprocessing']['frames'] == 2
  assert manifest['text']['special'] == {'pad': 0, 'unk': 1, 'cls': 2, 'sep': 3, 'mask': 4}
  assert manifest['temperature'] == pytest.approx(0.07)
  assert manifest['model'] == trained.model.config.to_dict()
  with np.load(exported / 'params.npz') as stored:
    assert sum(stored[n].size for n in stored.files) == (manifest['parameters']['count'])
    assert not any(n.startswith(('mlm_head', 'entity_head')) for n in stored)


def test_python_loads_it_as_the_same_model(exported, pretrained, tmp_path):
  live, again = alpro_jax.Model(pretrained[0]), alpro_jax.load(exported)
  video = [np.random.default_rng(1).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)]
  texts = ['a dog runs', 'disc']
  # On eight devices, and on one.
  for name in ('similarity', 'match'):
    found, right = (getattr(model, name)(texts, video) for model in (again, live))
    np.testing.assert_allclose(found, right, atol=1e-6, err_msg=name)
  found, right = (
    {choice.name: choice.probability for choice in x.entities(video, names=['disc', 'ring'])[0]}
    for x in (again, live)
  )
  assert found == pytest.approx(right, abs=1e-5)
  with pytest.raises(ValueError, match='is an export, which does not say what it was trained on'):
    again.save_pretrained(tmp_path / 'saved')
  copy = shutil.copytree(exported, tmp_path / 'copy')
  (copy / 'vocab.txt').write_text('a\n')
  with pytest.raises(ValueError, match='copy the export again'):
    alpro_jax.load(copy)


def test_loader_says_what_is_wrong(exported, tmp_path):
  model = alpro_loader.load(exported)
  with pytest.raises(ValueError, match=r'uint8\[2, 2, 20, 24, 3\].*prepare'):
    model.encode_video(np.zeros((2, 2, 20, 24, 3), np.uint8))
  with pytest.raises(ValueError, match='ids is int64.*expected int32'):
    model.encode_text(np.zeros((1, 10), np.int64), np.ones((1, 10), bool))
  with pytest.raises(ValueError, match="no 'answer'.*'pretrain'"):
    model.answer(alpro_loader.Text(0, 0, 0), alpro_loader.Video(0, 0))
  with pytest.raises(ValueError, match='list of texts'):
    model.tokenize('a dog')
  with pytest.raises(ValueError, match='float64'):
    model.prepare(np.zeros((3, 8, 8, 3)))
  with pytest.raises(ValueError, match='one size'):
    model.prepare([np.zeros((8, x, 3), np.uint8) for x in (8, 9)])
  with pytest.raises(FileNotFoundError, match='no manifest.json'):
    alpro_loader.load(tmp_path)


def test_a_changed_file_is_found(exported, tmp_path):
  copy = shutil.copytree(exported, tmp_path / 'copy')
  (copy / 'vocab.txt').write_text('a\n')
  with pytest.raises(ValueError, match='vocab.txt has digest'):
    alpro_loader.load(copy)
  manifest = json.loads((copy / 'manifest.json').read_text())
  (copy / 'manifest.json').write_text(json.dumps(manifest | {'format': 9}))
  with pytest.raises(ValueError, match='format 9'):
    alpro_loader.load(copy, verify=False)


def test_a_manifest_that_leads_elsewhere_is_refused(exported, tmp_path):
  """Whether digests are compared or not."""
  copy = shutil.copytree(exported, tmp_path / 'copy')
  secret = tmp_path / 'vocab.txt'
  shutil.copy(exported / 'vocab.txt', secret)
  (copy / 'link.txt').symlink_to(secret)
  manifest = json.loads((copy / 'manifest.json').read_text())
  digest = manifest['files']['vocab.txt']

  def check(message, **changes):
    (copy / 'manifest.json').write_text(json.dumps(manifest | changes))
    for verify in (True, False):
      with pytest.raises(ValueError, match=message):
        alpro_loader.load(copy, verify=verify)

  check('gives no digest of vocab.txt', files={})
  without = {n: x for n, x in manifest.items() if n != 'files'}
  (copy / 'manifest.json').write_text(json.dumps(without))
  with pytest.raises(ValueError, match='gives no digest of vocab.txt'):
    alpro_loader.load(copy)
  for name in manifest['files']:
    check(
      f'gives no digest of {name}', files={n: x for n, x in manifest['files'].items() if n != name}
    )
  for name in (str(secret), '../vocab.txt', 'programs/../../vocab.txt', 'link.txt'):
    check(
      'not in that folder',
      text=manifest['text'] | {'file': name},
      files=manifest['files'] | {name: digest},
    )
  (copy / 'manifest.json').write_text(json.dumps(manifest))
  alpro_loader.load(copy)


def test_a_parameter_that_is_no_number_is_named(pretrained, tmp_path):
  trained, _, file = pretrained
  params = jax.tree.map(np.array, trained.params)
  params['match_head']['bias'][1] = np.nan
  with pytest.raises(ValueError, match='1 parameters hold NaN.*match_head/bia'):
    export.write(trained._replace(params=params), tmp_path / 'model')
  assert not list(tmp_path.iterdir())


@pytest.fixture(scope='module')
def made(pretrained):
  return programs.make(pretrained[0], ('cpu',))


@contextlib.contextmanager
def full_disk(size):
  """As on a disk where files may have this many bytes."""
  _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


@pytest.mark.parametrize('size', [1000, 20_000, 200_000])
def test_on_a_full_disk_the_file_is_named(pretrained, made, tmp_path, monkeypatch, size):
  """Tokenizer, loader, parameters: all are too large for one of the sizes."""
  trained, _, file = pretrained
  monkeypatch.setattr(programs, 'make', lambda *_: made)
  with full_disk(size), pytest.raises(OSError, match=f'File too large: .*{tmp_path}/.*model'):
    export.write(trained, tmp_path / 'model')
  assert not list(tmp_path.iterdir())


def test_tensorflow_names_the_file_on_a_full_disk(made, pretrained, tmp_path):
  params = export._used(made, pretrained[0])
  with (
    full_disk(1000),
    pytest.raises(OSError, match=f'not be written.*{tmp_path}/.*File too large'),
  ):
    saved_model.write(made, params, tmp_path / 'saved_model')


@pytest.mark.parametrize('wrong', [1.0, np.nan])
def test_other_numbers_are_refused(pretrained, made, tmp_path, monkeypatch, wrong):
  trained, _, file = pretrained
  monkeypatch.setattr(programs, 'make', lambda *_: made)
  monkeypatch.setattr(check, 'live', lambda _: {})
  monkeypatch.setattr(
    check, 'differences', lambda *_: {'match/margin': wrong, 'encode_video/tokens': 0.0}
  )
  with pytest.raises(ValueError, match='match/margin differ'):
    export.write(trained, tmp_path / 'model')
  assert not list(tmp_path.iterdir())


def test_what_a_check_counts(pretrained):
  """Shares of the largest value above 1, the worst of all batches."""
  trained, _, _ = pretrained
  right = {
    'encode_video/tokens': np.full((5, 2), 4.0),
    'encode_text/tokens': np.full((5, 2), 0.5),
    'match/margin': np.zeros(5),
  }

  def call(name, *arrays):
    rows = len(arrays[0])
    if name == 'match':
      return {'margin': np.full(rows, np.nan if rows == 2 else 0.0)}
    value = 4.4 if name == 'encode_video' else 0.5 + 0.1 * (rows == 5)
    return {'tokens': np.full((rows, 2), value)}

  found = check.differences(trained, call, right)
  assert found['encode_video/tokens'] == pytest.approx(0.1)
  assert found['encode_text/tokens'] == pytest.approx(0.1)
  assert np.isnan(found['match/margin'])


def test_random_frames_cannot_be_exported(pretrained, tmp_path):
  trained, _, file = pretrained
  config = trained.config.copy_and_resolve_references()
  config.data.eval_sampling = 'rand'
  with pytest.raises(ValueError, match='--uniform'):
    export.write(trained._replace(config=config), tmp_path / 'model')


@pytest.mark.slow
def test_answers_and_saved_model(tmp_path):
  """A model without contrast; check.differences has compared the rest."""
  trained, _, _ = make(tmp_path, 'question_answering')
  manifest = export.write(trained, tmp_path / 'model', with_saved_model=True)
  assert list(manifest['programs']) == ['encode_video', 'encode_text', 'answer']
  assert {'answer/logits', 'saved_model/answer/logits'} <= set(manifest['check']['difference'])
  model = alpro_loader.load(tmp_path / 'model')
  assert model.answers == ('disc', 'ring')
  video = model.encode_video(model.prepare(np.zeros((5, 30, 40, 3), np.uint8))[None])
  text = model.encode_text(*model.tokenize(['what is it?']))
  assert video.feature is None and text.feature is None
  logits = model.answer(text, video)
  assert logits.shape == (1, 2)
  again = alpro_jax.load(tmp_path / 'model')
  (said,) = again.answer('what is it?', [np.zeros((5, 30, 40, 3), np.uint8)])
  right = dict(zip(model.answers, np.asarray(jax.nn.softmax(logits))[0], strict=True))
  assert {choice.name: choice.probability for choice in said} == pytest.approx(right, abs=1e-6)


# --- What the loader does again ---------------------------------------------


def test_frames_are_chosen_as_in_evaluation():
  for available in range(1, 40):
    for wanted in (1, 2, 4, 16):
      np.testing.assert_array_equal(
        alpro_loader.choose_frames(available, wanted),
        frames.choose_frames('uniform', available, wanted, None),
      )


@pytest.mark.parametrize('mode', ['squash', 'short_side'])
@pytest.mark.parametrize('size, resize', [(48, 48), (56, 64)])
@pytest.mark.parametrize('shape', [(48, 48), (60, 70), (97, 41), (33, 30), (240, 320)])
def test_pixels_are_those_of_evaluation(mode, size, resize, shape):
  """At most one level off, on at most one value in 500 (rounding)."""
  rng = np.random.default_rng(0)
  # Whole colours: at the border of a crop, half ones are decoded otherwise.
  stored = [
    tf.io.encode_jpeg(x, quality=90, chroma_downsampling=False)
    for x in rng.integers(0, 256, (2, *shape, 3), dtype=np.uint8)
  ]
  right = augment.decode_clip(
    tf.stack(stored),
    tf.constant([0.5, 0.5]),
    types.SimpleNamespace(image_size=size, resize=resize, resize_mode=mode),
  ).numpy()
  clip = np.stack([tf.io.decode_jpeg(x, channels=3, dct_method='INTEGER_ACCURATE') for x in stored])
  found = alpro_loader.crop_and_scale(clip, image_size=size, resize=resize, resize_mode=mode)
  assert found.dtype == np.uint8 and found.shape == (2, size, size, 3)
  difference = np.abs(found.astype(int) - right)
  assert difference.max() <= 1 and (difference > 0).mean() < 0.002


def test_a_photo_is_repeated(exported):
  model = alpro_loader.load(exported)
  photo = np.random.default_rng(0).integers(0, 256, (1, 24, 24, 3), dtype=np.uint8)
  np.testing.assert_array_equal(model.prepare(photo), np.repeat(photo, 2, axis=0))


TEXTS = [
  '',
  'A dog runs!',
  'Café\u0301, cafe',
  '[MASK] a',
  'ΣΑΣ ΣΣ',
  'a' * 101,
  'a\tdog\n\x00run\u200bs\x0b!',
  '中a中',
  'İi ıI',
  '$a+dog^~',
  'ﬁ ß',
  'dog ' * 20,
  '\ufffd?',
  'a\u00a0dog\u2028it',
]


@pytest.mark.parametrize('cased', [False, True])
def test_wordpiece_is_that_of_training(tmp_path, cased):
  path = tmp_path / 'vocab.txt'
  extra = ['Dog', 'A', 'Σ', '##Σ', 'é', 'caf', '##é'] if cased else []
  path.write_text('\n'.join([*VOCAB, *extra]) + '\n')
  right = tokens.load_tokenizer(path)
  described = {'kind': 'wordpiece', 'max_tokens': 12, 'special': right.special._asdict()}
  encode = alpro_loader.read_tokenizer(path, described)
  for mine, theirs in zip(encode(TEXTS), right.encode(TEXTS, 12), strict=True):
    np.testing.assert_array_equal(mine, theirs)
    assert mine.dtype == theirs.dtype


@pytest.mark.parametrize('end', ['\n', '\r\n'])
@pytest.mark.parametrize('mark', ['', '\ufeff'])
def test_only_newlines_end_a_piece_of_wordpiece(tmp_path, end, mark):
  path = tmp_path / 'vocab.txt'
  path.write_bytes((mark + end.join([*VOCAB, '\u2028', '\x85', 'zebra']) + end).encode())
  encode, right = alpro_loader.WordPiece(path), tokens.load_tokenizer(path)
  assert encode('a zebra') == [VOCAB.index('a'), len(VOCAB) + 2]
  assert right.encode(['a zebra'], 4)[0].tolist() == [
    [right.special.cls, *encode('a zebra'), right.special.sep]
  ]


def test_sentencepiece_is_that_of_training(exported, tmp_path):
  captions = [f'a {x} {y}' for x in ('red', 'blue') for y in ('disc', 'ring')]
  right = tokens.train_sentencepiece(captions, tmp_path / 'a.model', 40)
  manifest = json.loads((exported / 'manifest.json').read_text())
  manifest['text'] |= {
    'file': str(tmp_path / 'a.model'),
    'kind': 'sentencepiece',
    'special': right.special._asdict(),
  }
  model = alpro_loader.Model(exported, manifest)
  for mine, theirs in zip(
    model.tokenize([*captions, 'A RED zebra', '']),
    right.encode([*captions, 'A RED zebra', ''], 10),
    strict=True,
  ):
    np.testing.assert_array_equal(mine, theirs)


def towers(folder):
  """Tokenizers of text towers by byte pairs and by SentencePiece, under every rule of cleaning."""
  pairs = tower_tokens.load(small_towers.write(folder / 'pairs'), family='clip')
  with open(folder / 'spiece.model', 'wb') as file:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(['a dog runs', 'a café is it ?', 'what disc , ring']),
      model_writer=file,
      vocab_size=40,
      hard_vocab_limit=False,
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      minloglevel=2,
    )
  pieces = tower_tokens.load(folder / 'spiece.model', family='siglip')
  for one in (pairs, pieces):
    stored = json.loads(one.content)
    for rule in tower_tokens.CLEAN:
      content = json.dumps(stored | {'rules': stored['rules'] | {'clean': rule}})
      yield tower_tokens.TowerTokenizer(folder / tower_tokens.FILE, content.encode())


def test_tokenizers_of_towers_are_those_of_training(tmp_path):
  texts = [*TEXTS, ' A &amp;amp;  DOG', '\u2581_a_dog\u2581', 'cafÃ© ΑΣ,Α', '<|startoftext|> ru']
  seen = set()
  for right in towers(tmp_path):
    right.path.write_bytes(right.content)
    ids, mask = right.encode(texts, 12)
    described = {
      'kind': 'tower', 'max_tokens': ids.shape[1], 'special': right.special._asdict()
    }  # fmt: skip
    found = alpro_loader.read_tokenizer(right.path, described)(texts)
    for mine, theirs in zip(found, (ids, mask), strict=True):
      np.testing.assert_array_equal(mine, theirs, err_msg=f'{right.packages} {right.rules}')
      assert mine.dtype == theirs.dtype
    seen.add(ids.tobytes())
  assert len(seen) > 6  # The rules do differ.


# --- A checkpoint without the optimizer -------------------------------------


@pytest.fixture(scope='module')
def run(pretrained, tmp_path_factory):
  """The workdir of a run that saved the model."""
  trained, task, _ = pretrained
  path = tmp_path_factory.mktemp('run')
  store = checkpoints.Checkpoints(path)
  store.save(
    TrainState(
      step=np.int32(7),
      params=trained.params,
      opt_state={'mu': trained.params, 'nu': trained.params},
    ),
    identity.describe(trained.config, task, trained.tokenizer, []),
  )
  store.close()
  return path


def test_parameters_alone(run, pretrained, tmp_path, capsys):
  trained, _, file = pretrained
  output = tmp_path / 'small'
  options = [f'--checkpoint={run}', f'--output={output}', '--params_only']
  assert launched.run('export', *options) == 0
  assert 'Written' in capsys.readouterr().out
  # Elsewhere, the tokenizer is found in its words.
  away = file.rename(file.with_suffix('.away'))
  try:
    again = load(output, mesh=trained.mesh)
  finally:
    away.rename(file)
  assert again.model.config == trained.model.config
  jax.tree.map(np.testing.assert_array_equal, again.params, trained.params)
  total, small = (
    sum(p.stat().st_size for p in path.rglob('*') if p.is_file())
    for path in (run / 'checkpoints' / '7', output)
  )
  assert small < 0.6 * total
  assert launched.run('export', *options) == 2
  assert 'exists' in capsys.readouterr().err
  for flag in ('--frames=3', '--uniform', '--platforms=cpu'):
    assert launched.run('export', *options, flag) == 2
    assert f'{flag.partition("=")[0]} is about programs' in capsys.readouterr().err
  file = tmp_path / 'other.txt'
  file.write_text('\n'.join([*VOCAB, 'more']) + '\n')
  assert (
    launched.run(
      'export', options[0], f'--output={tmp_path}/b', '--params_only', f'--tokenizer={file}'
    )
    == 2
  )
  assert 'was trained with' in capsys.readouterr().err
  assert not (tmp_path / 'b').exists()


def test_the_tokenizer_is_known_by_its_digest(run, pretrained, tmp_path, capsys):
  """A checkpoint of an earlier version gets its words, wherever they lie."""
  file, right = pretrained[2], pretrained[2].read_text()
  small = tmp_path / 'small'
  assert launched.run('export', f'--checkpoint={run}', f'--output={small}', '--params_only') == 0

  def again(name, *options, checkpoint=small):
    return launched.run(
      'export',
      f'--checkpoint={checkpoint}',
      f'--output={tmp_path / name}',
      '--params_only',
      *options,
    )

  away = file.rename(file.with_suffix('.away'))
  try:
    file.write_text('\n'.join(reversed(right.splitlines())) + '\n')
    assert again('a') == 0
    assert (tmp_path / 'a' / 'words' / 'vocab.txt').read_text() == right
    assert again('b', checkpoint=run) == 2  # No words are in that one.
    assert 'pass the file of that run as --tokenizer' in capsys.readouterr().err
    file.unlink()
    # Under another name it is taken, and travels from then on.
    shutil.copy(away, tmp_path / 'renamed.txt')
    assert again('c', f'--tokenizer={tmp_path}/renamed.txt') == 0
    assert (tmp_path / 'c' / 'words' / 'vocab.txt').read_text() == right
    load(tmp_path / 'c')
  finally:
    away.rename(file)


def test_nothing_of_the_users_is_deleted(run, tmp_path, capsys):
  """What was left of an export that was killed is."""
  for name in ('small.partial', '.small.unfinished-1'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'precious').write_text(name)
  left = tmp_path / '.small.unfinished-2'
  (left / 'small').mkdir(parents=True)
  (left / 'made-by-alpro_jax').write_text('1')
  options = [f'--checkpoint={run}', f'--output={tmp_path}/small', '--params_only']
  with full_disk(2000):
    assert launched.run('export', *options) == 2
  error = capsys.readouterr().err
  assert 'File too large' in error and f'{tmp_path}/' in error
  assert launched.run('export', *options) == 0
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    '.small.unfinished-1',
    'small',
    'small.partial',
  ]
  for name in ('small.partial', '.small.unfinished-1'):
    assert (tmp_path / name / 'precious').read_text() == name


def test_command_changes_what_is_shown(run, monkeypatch, tmp_path):
  given = {}
  monkeypatch.setattr(
    export,
    'write',
    lambda trained, output, **options: (
      given.update(options, data=trained.config.data, origin=trained.origin)
      or pathlib.Path(output).mkdir()
    ),
  )
  assert (
    launched.run(
      'export',
      f'--checkpoint={run}',
      f'--output={tmp_path}/a',
      '--frames=4',
      '--image_size=48',
      '--max_text_tokens=8',
      '--platforms=cpu,tpu',
      '--tolerance=0.5',
    )
    == 0
  )
  data = given['data']
  assert (data.frames, data.image_size, data.resize, data.max_text_tokens) == (4, 48, 48, 8)
  assert given['platforms'] == ('cpu', 'tpu') and given['tolerance'] == 0.5
  assert given['origin'].step == 7
