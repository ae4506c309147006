"""The worked examples of docs/research.md, run as they stand on the page."""

import json
import pathlib
import re
import signal
import types

import jax
import numpy as np
import pytest

from alpro_jax import sharding
from alpro_jax.data import dataset, sources
from alpro_jax.models import encoders
from alpro_jax.tasks import registry
from alpro_jax.train import state
from benchmarks import dry_run
from tests import launched, small_videos

PAGE = pathlib.Path(__file__).parents[1] / 'docs/research.md'


def run_section(title, names):
  """Runs the Python of one section; `names` are given to it and taken from it."""
  section = PAGE.read_text().split(f'\n## {title}\n')[1].split('\n## ')[0]
  code = re.findall(r'```python\n(.*?)```', section, re.S)
  assert code, f'{PAGE} has no Python under {title!r}'
  for block in code:
    exec(compile(block, f'{PAGE}: {title}', 'exec'), names)
  return names


@pytest.mark.slow
def test_a_loss_and_a_task_of_ones_own(monkeypatch):
  monkeypatch.setattr(registry, 'TASKS', dict(registry.TASKS))
  names = run_section('A task', run_section('A loss', {'__name__': 'triplet'}))
  assert int(names['now'].step) == 10


def test_which_contrast():
  run_section('Which contrast', {})


def test_an_encoder_of_ones_own(monkeypatch):
  file = types.ModuleType('averaged')
  monkeypatch.setitem(encoders.VIDEO, 'averaged', file)
  config = run_section('An encoder', file.__dict__)['config']
  config.task = 'prompter'
  config.data.update({'batch_size': 8, 'frames': 4, 'image_size': 48})
  config.model.text.update({'depth': 2, 'fusion_layer': 1, 'width': config.model.video.width})
  program = dry_run.program(config, sharding.make_mesh(devices=jax.devices()[:1]))
  made = jax.eval_shape(program.task.init, jax.random.key(0))
  assert set(made['video_encoder']) == {'patches'}
  batch = dry_run.noise(config)
  now = state.create_state(program.task.init, program.optimizer, program.task.mesh, 0)
  _, metrics = program.step(now, None, jax.device_put(batch, jax.devices()[0]))
  assert np.isfinite(metrics['loss/vtc'])


def test_a_data_set_of_ones_own(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sources, 'SOURCES', dict(sources.SOURCES))
  monkeypatch.setattr(signal, 'signal', lambda *args: None)
  run_section('A data set', {'__name__': 'kitchen'})
  for name in ('a.mp4', 'b.webm'):
    small_videos.write_video(tmp_path / 'c.mp4').rename(tmp_path / name)
  path = tmp_path / 'kitchen.csv'
  path.write_text(
    'clip,sentence,language\na,a pot,en\nb,ein Topf,de\nc,eine Pfanne,de\nb,,de\nb,ein\n'
  )
  base = [f'--videos={tmp_path}', f'--captions={path}', f'--output={tmp_path / "set"}']
  assert launched.run('prepare', '--source=folder', *base, '--language=de') == 2
  assert '--source=folder has no --language; it is for kitchen.' in capsys.readouterr().err
  assert launched.run('prepare', '--source=kitchen', *base, '--language=de', '--workers=1') == 0
  (record,) = dataset.open_dataset(tmp_path / 'set').metadata()
  assert (record.video, record.captions) == ('b.mp4', ('ein Topf',))
  report = json.loads((tmp_path / 'set/report.json').read_text())['splits']['train']
  assert report['counts']['rows_of_other_splits'] == 1
  assert report['skipped_by_reason'] == {'bad row': 1, 'empty caption': 1, 'missing file': 1}
