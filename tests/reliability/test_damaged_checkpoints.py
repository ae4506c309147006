"""Every file of a checkpoint, damaged in every way: the one before is used."""

import shutil

import jax
import numpy as np
import pytest

from alpro_jax.train import checkpoints
from tests.test_checkpoints import META, abstract, make_state


def flip(file):
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 16
  file.write_bytes(data)


def truncate(file):
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def write_two(folder):
  store = checkpoints.Checkpoints(folder, best_metric='r1')
  for step in (1, 2):
    store.save(make_state(step), META, {'r1': float(step)})
  store.close()
  return folder / 'checkpoints' / '2'


@pytest.mark.parametrize('harm', [flip, truncate, lambda file: file.unlink()])
def test_no_damage_passes_for_a_checkpoint(tmp_path, harm):
  step = write_two(tmp_path / 'all')
  names = sorted(
    str(file.relative_to(step))
    for file in step.rglob('*')
    if file.is_file() and file.stat().st_size
  )
  # One of each kind: contents, index, tree, JSON, metrics, digests, times.
  for kind in (
    'params/d/',
    'params/manifest.ocdbt',
    'train/_METADATA',
    'meta/metadata',
    'metrics/metrics',
    'digests.json',
    '_CHECKPOINT_METADATA',
  ):
    assert any(name.startswith(kind) for name in names), (kind, names)
  used = {}
  for number, name in enumerate(names):
    folder = tmp_path / str(number)
    shutil.copytree(tmp_path / 'all', folder)
    harm(folder / 'checkpoints' / '2' / name)
    store = checkpoints.Checkpoints(folder, best_metric='r1')
    used[name] = store.newest()
    # Whichever it is, it is whole.
    got = store.restore(used[name], abstract(make_state()))
    jax.tree.map(np.testing.assert_array_equal, got, make_state(used[name]))
    assert store.meta(used[name])['step'] == used[name]
    assert store.best() == used[name]
    store.close()
    assert checkpoints.find(folder).folder.name == str(used[name])
  # Times and marks of object stores: nothing is read from them.
  harmless = {name.split('/')[-1] for name, step in used.items() if step == 2}
  assert harmless == {'_CHECKPOINT_METADATA', 'commit_success.txt'}
