"""A disk that fills up ends a run clearly, and costs no whole checkpoint."""

import resource
import subprocess
import sys

import jax
import numpy as np
import pytest

from alpro_jax.evaluation import card
from alpro_jax.train import checkpoints
from tests import test_card, tiny_run
from tests.test_checkpoints import META, make_state


def test_a_failed_save_is_said_and_the_last_whole_one_stays(tmp_path):
  store = checkpoints.Checkpoints(tmp_path)
  assert store.save(make_state(3), META)
  store.meta(3)
  store._manager.wait_until_finished()
  # Files may not grow: what a full disk does, without the rights to make one.
  _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (100, most))
  try:
    with pytest.raises(checkpoints.SaveError) as error:
      store.save(make_state(5), META)
      store.close()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
  for part in ('checkpoint of step 5', str(tmp_path), 'MiB are free', 'Step 3 is whole'):
    assert part in str(error.value)
  again = checkpoints.Checkpoints(tmp_path)
  assert again.newest() == 3
  jax.tree.map(np.testing.assert_array_equal, again.restore(3, make_state(0)), make_state(3))
  again.close()


# 4 MiB of tokens on a disk of 1 MiB.
_TOKENS = """
import sys, types
import numpy as np
from alpro_jax.evaluation.scorer import Scorer
where = types.SimpleNamespace(_folder=sys.argv[1], _memory_limit=0)
try:
  tokens = Scorer._store(where, 64, np.ones((1, 64, 256), np.float32))
except OSError as error:
  sys.exit(f'said: {error}')
tokens[:] = 1
"""


def test_tokens_on_a_full_disk_are_one_sentence(tmp_path):
  # A mount in a namespace of its own, which goes with the process.
  mount = [
    'unshare',
    '--map-root-user',
    '--mount',
    'sh',
    '-c',
    'mount -t tmpfs -o size=1m tmpfs "$1" && shift && exec "$@"',
    'sh',
    tmp_path,
  ]
  try:
    subprocess.run([*mount, 'true'], check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError):
    pytest.skip('file systems cannot be mounted here')
  done = subprocess.run(
    [*mount, sys.executable, '-c', _TOKENS, tmp_path],
    cwd=tiny_run.ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  # Without a word it would be -7, SIGBUS.
  assert done.returncode == 1, done.stderr
  assert (
    f'said: config.eval.folder={str(tmp_path)!r} cannot take 4 MiB of '
    'tokens: No space left on device.'
  ) in done.stderr


def test_a_card_that_cannot_be_written_is_named(tmp_path):
  content = card.make(test_card.search())
  _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
  try:
    with pytest.raises(OSError, match='card.json') as error:
      card.write(content, tmp_path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
  assert error.value.filename == str(tmp_path / 'card.json')
  assert not list(tmp_path.iterdir())


@pytest.mark.reliability
def test_a_run_on_a_full_disk_ends_and_goes_on(tmp_path):
  tiny_run.make_inputs(tmp_path)
  run = tmp_path / 'run'
  options = (f'--workdir={run}', '--config.train.checkpoint_every_steps=2')
  process = tiny_run.start(tmp_path, *options)
  for line in process.stderr:
    if 'first step done' in line:
      break
  resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2000, 2000))
  code, messages = tiny_run.finish(process)
  assert code == 2, messages[-2000:]
  said = [
    line for line in messages.splitlines() if line.startswith('error: the checkpoint of step ')
  ]
  assert len(said) == 1, messages[-3000:]
  assert 'could not be written' in said[0]
  assert not (run / 'report.json').exists()
  code, messages = tiny_run.finish(tiny_run.start(tmp_path, *options))
  assert code == 0, messages[-2000:]
  assert (run / 'report.json').exists()
