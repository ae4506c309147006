"""The trial of image-text weights: its stills, the folder of its stand-in, its runs, its page."""

import json
import math
import pathlib
import re
import types

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image

from alpro_jax import sharding
from alpro_jax.data import tower_tokens
from alpro_jax.models.alpro import Alpro, AlproConfig
from alpro_jax.tasks.shared import abstract_params, init_model
from alpro_jax.train import optimizer, trainable
from alpro_jax.weights import tables, tensor_files, towers
from alpro_jax.weights.towers import PREPROCESSOR, TRANSFORMERS
from examples.shapes import clip_folder, image_text, image_text_runs, scenes, stills

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'docs' / 'results' / 'image_text'
CAPTIONS = ['a red disc on the left', 'a blue ring at the top']


def test_stills_say_where_a_shape_is(tmp_path):
  world = stills.world(0, 8)
  counts = stills.write(world, tmp_path, scenes.World())
  # Five places of 4 x 4 things, and of the others of 6 x 7.
  assert counts == {'train': 24, 'shown': 80, 'other': 130}
  captions = {}
  for split in stills.SPLITS:
    rows = json.loads((tmp_path / split / 'captions.json').read_text())
    captions[split] = {row['caption']: tmp_path / split / 'images' / row['image'] for row in rows}
  assert not captions['shown'].keys() & captions['other'].keys()
  assert 'a white disc on the left' in captions['other']

  def middle(caption):
    """Where its pixels are reddest, as fractions of the side."""
    pixels = np.asarray(Image.open(captions['shown'][caption]), float)
    red = np.maximum(pixels[..., 0] - pixels[..., 1:].max(-1) - 40, 0)
    return [np.average(np.arange(48) / 48, weights=red.sum(axis)) for axis in (0, 1)]

  assert middle('a red disc on the left')[0] < 0.4 < 0.6 < middle('a red disc on the right')[0]
  assert middle('a red disc at the top')[1] < 0.4 < 0.6 < middle('a red disc at the bottom')[1]


def test_a_folder_is_read_as_the_model_that_it_was(tmp_path):
  end = clip_folder.write_vocabulary(tmp_path, CAPTIONS, 540)
  words = tower_tokens.load(tmp_path, context=16)
  ids, _ = words.encode(CAPTIONS, 16)
  assert words.vocab_size == end + 1 == ids.max() + 1
  assert [words.decode(row) for row in ids] == CAPTIONS
  config = image_text_runs.get_config('stand_in')
  config.model.text_tower.update({'vocab_size': end + 1, 'end_id': end})
  model = Alpro(AlproConfig.from_dict(config.model.to_dict()))
  shapes = flatten_dict(abstract_params(model, sharding.make_mesh()), sep='/')
  rng = np.random.default_rng(0)
  params = {path: rng.normal(size=x.shape).astype(np.float32) for path, x in shapes.items()}
  params['temperature'] = np.float32(0.07)
  clip_folder.write_weights(tmp_path, unflatten_dict(params, sep='/'), model.config)
  said = {name: json.loads((tmp_path / name).read_text()) for name in (TRANSFORMERS, PREPROCESSOR)}
  found = towers.find(tensor_files.open_tensors(tmp_path / 'model.safetensors'), said)
  again = tables.read_params(found.tensors, found.rows)
  again['temperature'] = np.exp(-again['temperature'])
  assert again.keys() == params.keys()
  for path, array in params.items():
    np.testing.assert_allclose(again[path], array, rtol=1e-6, err_msg=path)
  for part in ('video', 'text_tower'):
    options, made = getattr(found, part), vars(getattr(model.config, part))
    assert {name: made[name] for name in options if name in made and name != 'pool_heads'} == {
      name: value for name, value in options.items() if name in made and name != 'pool_heads'
    }
  assert not found.notes and found.tokenizer == 'clip' and found.resize_mode == 'short_side'


@pytest.mark.parametrize('name', ('stand_in', *image_text_runs.ROWS))
def test_runs_fit_the_model(name):
  config = image_text_runs.get_config(name).lock()
  model = AlproConfig.from_dict(config.model.to_dict())
  assert not model.text and model.video.frames == config.data.frames
  options, held = config.optimizer, {}

  def split(key):  # Patterns that match nothing are refused.
    trained, still = trainable.Trainable.from_config(options).split(
      init_model(Alpro(model), key), key
    )
    held.update(trainable.named(still or {}))
    return trained

  trained = trainable.named(jax.eval_shape(split, jax.random.key(0)))
  optimizer.rate_factors([*trained, *held], options.groups, options.layer_decay)
  if name == 'lora':  # Factors, and what reads time.
    assert all(re.search(r'/(a|b)$|/temporal_|/times$', path) for path in trained)
  else:
    assert not held


def test_an_interval_by_hand():
  found = image_text.interval([10.0, 12.0, 14.0])
  assert found.mean == 12 and math.isclose(found.half, 4.303 * 2 / math.sqrt(3))
  assert str(found) == '12.0 ± 5.0' and found.signed() == '**+12.0 ± 5.0**'
  assert image_text.interval([-1.0, 1.0]).signed() == '+0.0 ± 12.7'
  assert str(image_text.interval([50.0])) == '50.0'


def test_what_is_quick_stays_out_of_the_documentation(tmp_path, monkeypatch):
  given = types.SimpleNamespace(quick=True, output=tmp_path, results=None, page=None, seeds=['0'])
  monkeypatch.setattr(image_text, 'flags', types.SimpleNamespace(FLAGS=given))
  for flag, place in (('results', RESULTS), ('page', ROOT / 'docs' / 'starting-weights.md')):
    setattr(given, flag, str(place))
    with pytest.raises(ValueError, match=f'--{flag}=.* is in docs/, and what --quick measures'):
      image_text.main()
    setattr(given, flag, None)
  made = {'rows': {row: {} for row in image_text.ROWS}, 'made': {'quick': False}}
  results = tmp_path / 'results' / 'image_text'
  results.mkdir(parents=True)
  (results / 'seed0.json').write_text(json.dumps(made))
  with pytest.raises(ValueError, match='seed0.json was made without --quick'):
    image_text.main()


def test_the_page_is_made_of_the_figures():
  seeds = {int(x.stem[4:]): json.loads(x.read_text()) for x in sorted(RESULTS.glob('seed*.json'))}
  found = image_text.Found(seeds)
  assert (ROOT / 'docs' / 'starting-weights.md').read_text() == image_text.render(found)
  assert not any(made['quick'] for made in found.made)
