"""One of two processes dies: the other says so and ends, and both go on."""

import signal
import socket

import pytest

from tests import tiny_run

pytestmark = [
    pytest.mark.reliability, pytest.mark.timeout(1200),
    pytest.mark.filterwarnings('ignore:Sharding info not provided'),
]


def start_two(folder, *options):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  return [
      tiny_run.start(
          folder, *options, f'--coordinator_address=localhost:{port}',
          '--num_processes=2', f'--process_id={index}')
      for index in range(2)]


@pytest.mark.parametrize('victim', [0, 1])
def test_one_of_two_processes_is_killed(tmp_path, victim):
  tiny_run.make_inputs(tmp_path)
  straight, killed = tmp_path / 'straight', tmp_path / 'killed'
  every = '--config.train.steps=40', '--config.train.eval_every_steps=20'
  for process in start_two(tmp_path, f'--workdir={straight}', *every):
    code, messages = tiny_run.finish(process)
    assert code == 0, messages[-3000:]

  often = (
      f'--workdir={killed}', *every, '--config.train.checkpoint_every_steps=5')
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

  for process in start_two(tmp_path, *often):
    code, messages = tiny_run.finish(process)
    assert code == 0, messages[-3000:]
  assert 'going on with this run from step' in (
      killed / 'log.txt').read_text()
  tiny_run.assert_same_end(straight, killed)
