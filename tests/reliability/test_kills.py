"""A run that is killed again and again ends as one that is left alone."""

import random
import signal
import time

import numpy as np
import pytest

from alpro_jax.evaluation import familiarity
from tests import patience, tiny_run

pytestmark = pytest.mark.filterwarnings('ignore:Sharding info not provided')


def wait_for_save(workdir):
  deadline = time.monotonic() + patience.seconds(60)
  while not list((workdir / 'checkpoints').glob('*-tmp*')):
    assert time.monotonic() < deadline
    time.sleep(0.002)


def kill(process, workdir, moment, chance):
  """Kills a run that has just been started at a random time of some kind."""
  if moment == 'starting':
    time.sleep(chance.uniform(0, 12))
  else:
    tiny_run.wait_for(process, 'first step done')
    if moment == 'saving':
      wait_for_save(workdir)
    if moment == 'evaluating':
      tiny_run.wait_for(process, ': evaluating')
    time.sleep(chance.uniform(0, 0.3 if moment == 'any time' else 0.05))
  process.kill()
  process.communicate()
  assert process.returncode == -signal.SIGKILL, moment
  assert not (workdir / 'report.json').exists()


@pytest.mark.parametrize(
  'steps, moments',
  [
    pytest.param(40, ['training', 'saving'], marks=pytest.mark.slow),
    pytest.param(
      600,
      5 * ['starting', 'saving', 'evaluating', 'any time'],
      marks=(pytest.mark.reliability, pytest.mark.timeout(3000)),
    ),
  ],
)
def test_killed_runs_end_bit_for_bit_like_an_undisturbed_one(tmp_path, steps, moments):
  tiny_run.make_inputs(tmp_path, clips=24)
  straight, killed = tmp_path / 'straight', tmp_path / 'killed'
  every = (
    f'--config.train.steps={steps}',
    '--config.train.eval_every_steps=20',
    f'--config.data.path={tmp_path}/set',
  )
  code, messages = tiny_run.finish(tiny_run.start(tmp_path, f'--workdir={straight}', *every))
  assert code == 0, messages
  assert f'step {steps}: eval/' in messages

  # Another cadence of checkpoints; it must not matter.
  often = (
    f'--workdir={killed}',
    *every,
    '--config.train.checkpoint_every_steps=2',
    '--config.train.checkpoint_every_seconds=0.2',
  )
  chance = random.Random(5)
  chance.shuffle(moments)
  for moment in moments:
    kill(tiny_run.start(tmp_path, *often), killed, moment, chance)

  process = tiny_run.start(tmp_path, *often)
  tiny_run.wait_for(process, 'first step done')
  process.send_signal(signal.SIGTERM)
  code, messages = tiny_run.finish(process)
  assert code == 143, messages
  assert 'stopped on request at step' in messages

  code, messages = tiny_run.finish(tiny_run.start(tmp_path, *often))
  assert code == 0, messages
  assert 'going on with this run from step' in messages
  assert (killed / 'report.json').exists()
  tiny_run.assert_same_end(straight, killed)

  # What it was trained on is summarised behind the last step; a kill there is made up for.
  summaries = [run / 'checkpoints' / str(steps) / familiarity.FILE for run in (straight, killed)]
  summaries[1].unlink()
  code, messages = tiny_run.finish(tiny_run.start(tmp_path, *often))
  assert code == 0 and 'already finished' in messages, messages
  want, got = (dict(np.load(path)) for path in summaries)
  assert want['counts'].tolist()[0::2] == [20, 4]
  for name, array in want.items():
    np.testing.assert_array_equal(got[name], array, err_msg=name)
