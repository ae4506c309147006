"""One of two processes dies or is asked to stop: both end, and both go on."""

import json
import re
import signal
import socket

import pytest

from alpro_jax import buckets, files
from alpro_jax.train import checkpoints
from tests import buckets_on_loopback, tiny_run

pytestmark = [
  pytest.mark.reliability,
  pytest.mark.timeout(1200),
  pytest.mark.filterwarnings('ignore:Sharding info not provided'),
]


def start_two(folder, *options):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  return [
    tiny_run.start(
      folder,
      *options,
      f'--coordinator_address=localhost:{port}',
      '--num_processes=2',
      f'--process_id={index}',
    )
    for index in range(2)
  ]


def finish_both(processes, want):
  for process in processes:
    code, messages = tiny_run.finish(process)
    assert code == want, messages[-3000:]


@pytest.mark.parametrize('victim', [0, 1])
def test_one_of_two_processes_is_killed(tmp_path, victim):
  tiny_run.make_inputs(tmp_path)
  straight, killed = tmp_path / 'straight', tmp_path / 'killed'
  every = '--config.train.steps=40', '--config.train.eval_every_steps=20'
  finish_both(start_two(tmp_path, f'--workdir={straight}', *every), 0)

  often = (f'--workdir={killed}', *every, '--config.train.checkpoint_every_steps=5')
  processes = start_two(tmp_path, *often)
  tiny_run.wait_for(processes[0], 'step 10 of 40')
  processes[victim].kill()
  code, messages = tiny_run.finish(processes[1 - victim])
  # jax notices after a minute without a word from the other.
  assert code == -signal.SIGABRT, messages[-3000:]
  assert 'another task died' in messages
  assert not (killed / 'report.json').exists()
  processes[victim].communicate()
  assert processes[victim].returncode == -signal.SIGKILL

  finish_both(start_two(tmp_path, *often), 0)
  assert 'going on with this run from step' in (killed / 'log.txt').read_text()
  tiny_run.assert_same_end(straight, killed)


def test_a_stop_that_one_is_asked_for_stops_both_at_one_step(tmp_path):
  tiny_run.make_inputs(tmp_path)
  run = tmp_path / 'run'
  options = f'--workdir={run}', '--config.train.steps=2000'
  processes = start_two(tmp_path, *options)
  tiny_run.wait_for(processes[0], 'step 10 of 2000')
  processes[1].send_signal(signal.SIGTERM)
  finish_both(processes, 143)
  log = (run / 'log.txt').read_text()
  step = re.search('stopped on request at step ([0-9]+) of 2000', log)[1]
  processes = start_two(tmp_path, *options)
  tiny_run.wait_for(processes[0], f'going on with this run from step {step}')
  for process in processes:
    process.kill()
    process.communicate()


@pytest.mark.parametrize('in_bucket', [False, True])
def test_two_end_alike_with_a_part_held_out(tmp_path, monkeypatch, in_bucket):
  """What comes after the last step needs both, and process 0 alone has the report."""
  tiny_run.make_inputs(tmp_path, clips=24)
  monkeypatch.setenv('ALPRO_CACHE', str(tmp_path / 'cache'))
  with buckets_on_loopback.gcs() as (_, bucket):
    run = f'{bucket}/run' if in_bucket else str(tmp_path / 'run')
    options = f'--workdir={run}', f'--config.data.path={tmp_path}/set'
    for steps in (2, 4, 4):  # The report of two steps is there when the next run ends.
      said = []
      for process in start_two(tmp_path, *options, f'--config.train.steps={steps}'):
        said.append(tiny_run.finish(process))
        assert said[-1][0] == 0, said[-1][1][-3000:]
      found = ['held out: of 4 videos' in messages for _, messages in said]
      assert found == [True, False]
    assert json.loads(files.read(f'{run}/report.json'))['step'] == 4


def test_two_that_share_nothing_but_a_bucket(tmp_path, monkeypatch):
  """They stop on SIGTERM, go on, and end as two did on disk."""
  tiny_run.make_inputs(tmp_path)
  monkeypatch.setenv('ALPRO_CACHE', str(tmp_path / 'cache'))
  steps = '--config.train.steps=300'
  finish_both(start_two(tmp_path, f'--workdir={tmp_path}/straight', steps), 0)
  with buckets_on_loopback.gcs() as (_, bucket):
    buckets.upload(tmp_path / 'set', f'{bucket}/set')
    run = f'{bucket}/run'
    options = (steps, f'--workdir={run}', f'--config.data.path={bucket}/set')
    processes = start_two(tmp_path, *options)
    tiny_run.wait_for(processes[0], 'step 10 of 300')
    processes[1].send_signal(signal.SIGTERM)
    finish_both(processes, 143)
    assert 0 < checkpoints.find(run).meta['step'] < 300
    finish_both(start_two(tmp_path, *options), 0)
    assert 'going on with this run from step' in files.read(f'{run}/log.txt').decode()
    here, there = checkpoints.find(tmp_path / 'straight').meta, checkpoints.find(run).meta
    assert there['step'] == here['step'] == 300
    assert there['arrays'] == here['arrays']
