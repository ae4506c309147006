"""Options that were renamed: what says their new names, and what loads by them."""

import json
import pathlib
import shutil

import numpy as np
import pytest

import alpro_jax
from alpro_jax.serving import layouts
from alpro_jax.train import checkpoints, options
from alpro_jax.train.state import TrainState
from configs import common, pretrain
from tests import tiny_run


def test_every_new_name_is_an_option():
  known = set(options.names(common.get_config()))
  for old, (new, _) in options.RENAMED.items():
    assert new in known and old not in known


def test_names_look_into_sections_and_lists():
  found = set(options.names({'a': {'b': 1}, 'c': [{'d': 2}], 'e': (1, 2)}))
  assert found == {'a', 'a.b', 'c', 'c.d', 'e'}


@pytest.mark.parametrize(
  'old, new',
  [
    (('eval', 'rerank', True), ('eval', 'scoring', 'auto')),
    (('eval', 'rerank', False), ('eval', 'scoring', 'similarity')),
    (('loss', 'mask_equal_captions', True), ('loss', 'same_caption', 'neutral')),
    (('loss', 'mask_equal_captions', False), ('loss', 'same_caption', 'negative')),
  ],
)
def test_an_old_checkpoint_loads_by_the_new_names(tmp_path, old, new):
  store = checkpoints.Checkpoints(tmp_path)
  state = TrainState(step=np.int32(3), params={'a': np.zeros(2)}, opt_state={'n': np.int32(0)})
  part, name, value = old
  store.save(state, {'config': {'task': 'retrieval', part: {name: value}}})
  store.close()
  now_part, now_name, now = new
  meta = checkpoints.load_meta(tmp_path)
  assert meta['config'] == {'task': 'retrieval', now_part: {now_name: now}}
  # Whoever has both keeps the new one.
  both = {part: {name: value, now_name: 'mine'}}
  assert options.with_new_names(both) == {now_part: {now_name: 'mine'}}


def test_an_old_folder_for_the_hub_loads_by_the_new_names(tmp_path):
  folder = tmp_path / 'shapes'
  shutil.copytree(pathlib.Path(alpro_jax.__file__).parent / 'shipped' / 'shapes', folder)
  stored = json.loads((folder / layouts.CONFIG).read_text())
  loss = stored['meta']['config']['loss']
  del loss['same_caption']
  loss['mask_equal_captions'] = False
  (folder / layouts.CONFIG).write_text(json.dumps(stored))
  found = layouts.find(folder).meta['config']['loss']
  assert found == {x: loss[x] for x in loss if x != 'mask_equal_captions'} | {
    'same_caption': 'negative'
  }


def test_a_config_file_that_invents_an_option_is_refused(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from configs import pretrain\n'
    'def get_config():\n'
    "  config = pretrain.get_config('demo')\n"
    '  config.optimizer.lr = 1.0\n'
    '  return config\n'
  )
  code, said = tiny_run.finish(tiny_run.start(tmp_path, '--workdir=none', config=path))
  assert code == 2
  assert said.endswith(
    f'error: {path}: unknown option optimizer.lr; did you mean --config.optimizer.learning_rate?\n'
  )


@pytest.mark.parametrize('scale', pretrain.SCALES)
def test_no_config_invents_an_option(scale):
  assert set(options.names(pretrain.get_config(scale))) <= common.option_names()
