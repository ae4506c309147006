"""A run that is killed again and again ends as one that is left alone."""

import random
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from alpro_jax.train import checkpoints
from tests import tiny_run


def stored_state(workdir):
  """Returns every array of the newest checkpoint, the optimizer's too."""
  folder = checkpoints.find(workdir)
  assert folder.name == '40'
  with ocp.PyTreeCheckpointer() as reader:
    return {
        item: jax.tree.map(np.asarray, reader.restore(folder / item))
        for item in ('params', 'train')
    }


def wait_for_first_step(process):
  for line in process.stderr:
    if 'first step done' in line:
      return
  raise AssertionError(f'ended before the first step: {process.wait()}')


def wait_for_save(workdir):
  deadline = time.monotonic() + 60
  while not list((workdir / 'checkpoints').glob('*-tmp*')):
    assert time.monotonic() < deadline
    time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:Sharding info not provided')
def test_killed_runs_end_bit_for_bit_like_an_undisturbed_one(tmp_path):
  tiny_run.make_inputs(tmp_path)
  straight, killed = tmp_path / 'straight', tmp_path / 'killed'
  code, messages = tiny_run.finish(
      tiny_run.start(tmp_path, f'--workdir={straight}'))
  assert code == 0, messages
  assert 'step 40: eval/' in messages

  # Another cadence of checkpoints; it must not matter.
  often = (
      f'--workdir={killed}', '--config.train.checkpoint_every_steps=2',
      '--config.train.checkpoint_every_seconds=0.2',
  )
  moments = random.Random(5)
  for kill in ('early', 'while saving', 'any time'):
    process = tiny_run.start(tmp_path, *often)
    wait_for_first_step(process)
    if kill == 'while saving':
      wait_for_save(killed)
    time.sleep(moments.uniform(0, 0.3 if kill == 'any time' else 0.02))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, kill
    assert not (killed / 'report.json').exists()

  process = tiny_run.start(tmp_path, *often)
  wait_for_first_step(process)
  process.send_signal(signal.SIGTERM)
  code, messages = tiny_run.finish(process)
  assert code == 143, messages
  assert 'stopped on request at step' in messages

  code, messages = tiny_run.finish(tiny_run.start(tmp_path, *often))
  assert code == 0, messages
  assert 'going on with this run from step' in messages
  assert (killed / 'report.json').exists()
  jax.tree.map(
      np.testing.assert_array_equal, stored_state(straight),
      stored_state(killed))
