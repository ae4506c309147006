"""Models of image-text weights through every command, without training."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from flax.traverse_util import flatten_dict

import alpro_jax
from alpro_jax import sharding
from alpro_jax.data import dataset, own
from alpro_jax.evaluation import attribution, explain, split, trained
from alpro_jax.serving import alpro_loader, export
from alpro_jax.weights import tensor_files
from configs import models, zero_shot
from launch import evaluate
from tests import launched, original_files, small_videos, test_image_text
from tests.test_export import ONLY

pytestmark = pytest.mark.slow

TEXTS = ['a dog runs', 'clip 3', 'A &amp; DOG', '']


@pytest.fixture(autouse=True)
def parsed_flags():
  """Flags can be read, whichever test of this file a process runs first."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(['evaluate'])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A set of seven clips, and two models: of towers alone, and with an untrained BERT beside."""
  folder = tmp_path_factory.mktemp('image_text')
  small_videos.prepare_seven(folder)
  weights = test_image_text.write(folder / 'clip', test_image_text.make_params()[1])
  test_image_text.run(weights, folder / 'alone', frames=2)
  (folder / 'bert').mkdir()
  original_files.write_vocabulary(folder / 'bert')
  tensor_files.write_tensors(folder / 'bert' / 'model.safetensors', original_files.bert())
  bert = {'bert': str(folder / 'bert'), 'heads': 4}
  test_image_text.run(weights, folder / 'fused', frames=2, **bert)
  return folder


@pytest.fixture(scope='module')
def alone(folder):
  return alpro_jax.load(folder / 'alone')


@pytest.fixture(scope='module')
def fused(folder):
  """A model whose fusion encoder looks as if it had been trained."""
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  found = trained.load(folder / 'fused', mesh=mesh)
  head = {'kernel': found.params['match_head']['kernel'], 'bias': np.array([0.1, -0.1], np.float32)}
  config = found.config.copy_and_resolve_references()
  config.task = 'retrieval'
  return found._replace(params=found.params | {'match_head': head}, config=config)


@pytest.fixture
def clip():
  return np.random.default_rng(0).integers(0, 256, (5, 50, 70, 3), dtype=np.uint8)


def run(capsys, name, *options):
  """Runs a command; returns what it printed."""
  code = launched.run(name, *options)
  said = capsys.readouterr()
  assert code == 0, said.err
  return said.out


def test_evaluation_ranks_by_similarity(folder, alone, capsys):
  """By the options of the checkpoint, and by those of a config with a BERT that it has not."""
  prepared = dataset.open_dataset(folder / 'set', 'train')
  names = [record.captions[0] for record in prepared.metadata()]
  shown = np.concatenate([batch['video'] for batch in split.batches(alone.trained, prepared)])
  score = alone.similarity(names, shown[: len(names)])
  right = [(row >= row[i]).sum() for i, row in enumerate(score)]
  given = {'checkpoint': f'{folder}/alone', 'data': f'{folder}/set', 'split': 'train'}
  words = [f'--{name}={value}' for name, value in given.items()]
  given |= {'style': 'full', 'output': f'{folder}/card'}

  def check(said):
    assert 'All pairs are scored by the similarity of the contrastive features alone' in said
    rows = [json.loads(line) for line in (folder / 'card' / 'ranks.jsonl').read_text().splitlines()]
    ranks = {row['text']: row['rank'] for row in rows}
    assert [ranks[name] for name in names] == right

  check(run(capsys, 'evaluate', *(f'--{name}={value}' for name, value in given.items())))
  config = zero_shot.get_config()
  config.model = models.PRESETS['tiny_clip']()
  config.model.text_tower.max_positions = test_image_text.LENGTH
  config.data.update({'image_size': 48, 'resize': 48, 'frames': 2, 'max_text_tokens': 8})
  with flagsaver.flagsaver(config=config, **given):
    evaluate.evaluate()
    check(capsys.readouterr().out)
    config.model = models.PRESETS['tiny_siglip2']()
    with pytest.raises(ValueError, match="text_tower.pooling is 'end', --config says 'last'"):
      evaluate.evaluate()
  assert launched.run('evaluate', *words, '--familiarity') == 2
  assert 'converted from weights of others' in capsys.readouterr().err


@pytest.mark.parametrize('kind', ['alone', pytest.param('fused', marks=pytest.mark.reliability)])
def test_they_are_fine_tuned_on_ones_own_set_and_go_on(folder, kind, tmp_path):
  """The towers stay nearly as they are, and what reads time learns."""
  own.write_lists(folder / 'set')
  options = {
    'data.path': folder / 'set',
    'train.init_from': folder / kind,
    'optimizer.warmup_steps': 1,
    'machine.memory_gib': 24,
  }
  for steps in (2, 3):
    given = [f'--config.{name}={x}' for name, x in (options | {'train.steps': steps}).items()]
    config = '--config=configs/finetune_retrieval.py:tiny_own'
    assert launched.run('main', config, f'--workdir={tmp_path}/run', *given) == 0
  start, tuned = alpro_jax.load(folder / kind), alpro_jax.load(tmp_path / 'run')
  old, new = (flatten_dict(model.trained.params, sep='/') for model in (start, tuned))
  assert 'text_tower/words' in new and ('match_head/kernel' in new) == (kind == 'fused')
  for name, array in new.items():
    if name.startswith('text_tower/'):
      np.testing.assert_allclose(array, old[name], atol=1e-5, err_msg=name)
  assert tuned.trained.origin.step == 3 and tuned.trained.config.data.resize_mode == 'short_side'
  if kind == 'alone':
    assert (
      np.abs(new['video_encoder/times']).max() > 1e-5 > np.abs(old['video_encoder/times']).max()
    )


def test_search_finds_by_similarity(folder, alone, capsys):
  index = f'--index={folder}/index'
  said = run(capsys, 'search', 'index', f'{folder}/videos', f'--checkpoint={folder}/alone', index)
  assert '7 of 7 videos are indexed' in said
  said = run(capsys, 'search', 'query', 'clip 3', index, '--top=7')
  assert 'By similarity' in said
  found = re.findall(r'similarity +(-?[\d.]+) +(\S+)', said)
  score = alone.similarity(['clip 3'], [folder / 'videos' / name for _, name in found])[0]
  np.testing.assert_allclose([float(x) for x, _ in found], score, atol=0.011)
  hits = alone.index(folder / 'videos', folder / 'index').search('clip 3', k=7)
  assert [hit.name.decode() for hit in hits] == [name for _, name in found]
  assert {hit.match for hit in hits} == {None}


@pytest.mark.parametrize('kind', ['alone', 'fused'])
def test_the_api_gives_the_same_of_what_it_saved(folder, kind, clip):
  model = alpro_jax.load(folder / kind)
  with pytest.raises(ValueError, match='cannot match: the m.*; use similarity'):
    model.match(TEXTS, [clip])
  model.save_pretrained(folder / f'saved_{kind}')
  again = alpro_jax.load(folder / f'saved_{kind}')
  found = again.similarity(TEXTS, [clip])
  assert np.ptp(found) > 1e-3
  np.testing.assert_allclose(found, model.similarity(TEXTS, [clip]), atol=1e-6)
  card = (folder / f'saved_{kind}' / 'README.md').read_text()
  assert 'of towers that others trained on images and texts' in card
  assert '| can | similarity of texts and videos |' in card


SERVE = (
  ONLY
  + """
import numpy as np
from alpro_loader import load

model = load(sys.argv[1])
clips = np.load(sys.argv[2])
video = model.encode_video(np.stack([model.prepare(clip) for clip in clips]))
text = model.encode_text(*model.tokenize(sys.argv[4:]))
assert video.tokens is None and text.tokens is None
np.save(sys.argv[3], text.feature @ video.feature.T)
"""
)


@pytest.mark.parametrize('kind', ['alone', 'fused'])
def test_an_export_holds_both_encoders(folder, kind, clip, capsys, monkeypatch):
  """A BERT that nobody trained to fuse stays away; the loader needs no TensorFlow."""
  output = folder / f'export_{kind}'
  said = run(capsys, 'export', f'--checkpoint={folder}/{kind}', f'--output={output}')
  assert 'both encoders alone, to compare by similarity: the m' in said
  needs = (output / 'requirements.txt').read_text().split()
  assert needs == [f'jax>={jax.__version__}', 'numpy', 'flatbuffers', 'tokenizers']
  manifest = json.loads((output / 'manifest.json').read_text())
  assert [*manifest['programs']] == ['encode_video', 'encode_text']
  (ids, mask) = manifest['programs']['encode_text']['inputs']
  assert (ids['name'], ids['shape'], mask['shape']) == ('ids', ['b', 8], ['b', 8])
  right = alpro_jax.load(folder / kind).similarity(TEXTS, [clip])
  again = alpro_jax.load(output)
  np.testing.assert_allclose(again.similarity(TEXTS, [clip]), right, atol=1e-6)
  model = alpro_loader.load(output)
  with monkeypatch.context() as patch, pytest.raises(ImportError, match='pip install -r'):
    patch.setitem(sys.modules, 'tokenizers', None)
    model.tokenize(TEXTS)
  with pytest.raises(ValueError, match="no 'match', only"):
    model.match(alpro_loader.Text(None, None, None), alpro_loader.Video(None, None))
  if kind == 'alone':
    np.save(folder / 'clips.npy', clip[None])
    files = output, folder / 'clips.npy', folder / 'found.npy'
    subprocess.run(
      [sys.executable, '-c', SERVE, ','.join(needs), *files, *TEXTS], check=True, cwd=output
    )
    np.testing.assert_allclose(np.load(folder / 'found.npy'), right, atol=1e-6)


@pytest.mark.slow
def test_an_export_matches_with_both_tokenizers(fused, folder, clip):
  """Of a fusion encoder that was trained; the tower reads ids of its own."""
  output = folder / 'export_match'
  manifest = export.write(fused, output, say=lambda line: None)
  assert [*manifest['programs']] == ['encode_video', 'encode_text', 'match']
  assert (manifest['text']['file'], manifest['tower']['file']) == ('vocab.txt', 'tower.json')
  model = alpro_loader.load(output)
  ids, mask, tower_ids = model.tokenize(TEXTS)
  most = fused.config.data.max_text_tokens
  for mine, right in zip((ids, mask, tower_ids), fused.tokenizer.encode(TEXTS, most), strict=True):
    np.testing.assert_array_equal(mine, right)
  with pytest.raises(ValueError, match='takes ids, mask, tower_ids, got 2 arrays'):
    model.encode_text(ids, mask)
  video = model.encode_video(np.repeat(model.prepare(clip)[None], len(TEXTS), 0))
  text = model.encode_text(ids, mask, tower_ids)
  live = alpro_jax.Model(fused)
  for again in (live, alpro_jax.load(output)):
    match = again.match(TEXTS, [clip])[:, 0]
    np.testing.assert_allclose(model.match(text, video).probability, match, atol=1e-5)
    similarity = again.similarity(TEXTS, [clip])[:, 0]
    np.testing.assert_allclose((text.feature * video.feature).sum(1), similarity, atol=1e-5)
  (output / 'tower.json').write_text('{}')
  with pytest.raises(ValueError, match='tower.json has digest'):
    alpro_loader.load(output)


def test_similarity_is_explained_without_fusion(folder, alone, capsys):
  video = folder / 'videos' / '003.mp4'
  page = folder / 'page.html'
  run(capsys, 'explain', f'{folder}/alone', str(video), 'a dog runs', f'--output={page}')
  page = page.read_text()
  assert 'is left out of the text' in page and 'heat map of dog' in page
  assert 'Where fusion looks' not in page and 'a similarity of ' in page
  frames = np.random.default_rng(1).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
  found = explain.explain(alone.trained, 'x', frames, None, 'a dog runs', steps=128)
  assert [word.text for word in found.words] == ['a', 'dog', 'runs']
  assert found.evidence.shape == (3, 2, 8, 8) and found.maps.space.shape == (2, 16)
  # A word adds what it changes; its places add that, less what a plain clip gives.
  plain = np.broadcast_to(np.median(frames, (0, 1, 2)), frames.shape).round().astype(np.uint8)
  texts = ['a dog runs', 'dog runs', 'a runs', 'a dog']
  score = alone.similarity(texts, [frames, plain])
  added = score[0] - score[1:]
  assert found.figures == [f'{x:+.3f}' for x in added[:, 0]]
  sums = found.evidence.sum((1, 2, 3))
  np.testing.assert_allclose(sums, added[:, 0] - added[:, 1], atol=1.5e-3)
  with pytest.raises(ValueError, match='--layer=1 is of the fusion encoder'):
    explain.explain(alone.trained, 'x', frames, None, 'a', layer=1)
  with pytest.raises(ValueError, match='has no word'):
    alone.explain(' ', frames)


def test_a_match_is_explained_beside_a_tower(fused):
  frames = np.random.default_rng(1).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8)
  found = explain.explain(fused, 'x', frames, None, 'a dog', steps=2)
  assert found.target == 'match' and found.maps.space.shape == (2, 16)
  ids, mask, _ = fused.tokenizer.encode(['a dog'], fused.config.data.max_text_tokens)
  texts = attribution.Texts(ids, mask, np.zeros_like(mask), ids)
  margin = attribution.score(fused.model, fused.params, frames, texts, 'match')
  match = alpro_jax.Model(fused).match(['a dog'], [frames])[0, 0]
  assert 1 / (1 + np.exp(-float(margin[0]))) == pytest.approx(match, abs=1e-5)
