"""One batch whose loss is not a number, in a real run."""

import json
import subprocess
import sys

import pytest

from alpro_jax.train import checkpoints
from tests import patience, tiny_run

pytestmark = [
  pytest.mark.reliability,
  pytest.mark.filterwarnings('ignore:Sharding info not provided'),
]


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('inputs')
  tiny_run.make_inputs(folder)
  return folder


def run_with_nan(folder, step, *options):
  return subprocess.run(
    [
      sys.executable,
      '-m',
      'tests.reliability.nan_run',
      str(step),
      f'--config={folder}/tiny.py',
      '--config.train.checkpoint_every_steps=5',
      *options,
    ],
    capture_output=True,
    text=True,
    timeout=patience.seconds(300),
    cwd=tiny_run.ROOT,
    env=tiny_run.environment(folder),
  )


def test_it_stops_the_run_before_anything_is_saved_from_it(inputs, tmp_path):
  straight, broken = tmp_path / 'straight', tmp_path / 'broken'
  code, messages = tiny_run.finish(tiny_run.start(inputs, f'--workdir={straight}'))
  assert code == 0, messages
  ended = run_with_nan(inputs, 15, f'--workdir={broken}')
  assert ended.returncode == 1, ended.stderr
  assert 'error: step 15 is not finite: ' in ended.stderr
  assert 'Traceback' not in ended.stderr
  assert checkpoints.load_meta(broken)['step'] == 10
  # What made it a NaN is mended: the run goes on as if nothing had been.
  code, messages = tiny_run.finish(tiny_run.start(inputs, f'--workdir={broken}'))
  assert code == 0, messages
  tiny_run.assert_same_end(straight, broken)


def test_it_is_left_out_where_that_is_wanted(inputs, tmp_path):
  ended = run_with_nan(
    inputs,
    15,
    f'--workdir={tmp_path}',
    '--config.train.non_finite=skip',
    '--config.train.keep_newest=50',
    '--config.train.checkpoint_every_steps=1',
  )
  assert ended.returncode == 0, ended.stderr
  assert 'step 15 is not finite and was skipped (1 so far)' in ended.stderr
  report = json.loads((tmp_path / 'report.json').read_text())
  assert report['finished'] and report['skipped_steps'] == 1
  arrays = [
    checkpoints.load_meta(tmp_path / 'checkpoints' / str(step))['arrays'] for step in (14, 15, 16)
  ]
  same = [
    {name for name in arrays[0] if one[name] == other[name]}
    for one, other in zip(arrays, arrays[1:], strict=False)
  ]
  assert set(arrays[0]) - same[0] == {'train/step'}
  assert len(same[1]) < len(arrays[0]) / 2
