"""A run from and into gs:// that is killed again and again ends as one on disk did."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from alpro_jax import buckets
from alpro_jax.train import checkpoints
from tests import buckets_on_loopback, launched
from tests.reliability.test_bucket_commands import SMALL
from tests.test_buckets import make_set

pytestmark = pytest.mark.reliability
STEPS, KILLS = 12, 10


def start(data, tokenizer, workdir, steps=STEPS):
  command = [
    sys.executable,
    launched.ROOT / 'launch' / 'main.py',
    '--config=configs/pretrain_prompter.py:demo',
    *SMALL,
    f'--config.data.path={data}',
    f'--config.data.tokenizer={tokenizer}',
    f'--config.train.steps={steps}',
    f'--workdir={workdir}',
  ]
  return subprocess.Popen(command, cwd=launched.ROOT, stderr=subprocess.PIPE, text=True)


def finish(process):
  said = process.communicate()[1]
  assert process.returncode == 0, said[-3000:]
  return said


@pytest.mark.parametrize('failing, latency', [(0.0, 0.0), (0.05, 0.2)])
def test_killed_at_random_moments(tmp_path, monkeypatch, failing, latency):
  monkeypatch.setenv('ALPRO_CACHE', str(tmp_path / 'cache'))
  here = make_set(tmp_path, clips=16, part_size=4)
  launched.run(
    'tokenizer', f'--captions={here}', '--vocab_size=60', f'--output={tmp_path}/words.model'
  )
  words = tmp_path / 'words.model'
  begin = time.monotonic()
  finish(start(here, words, tmp_path / 'run'))
  seconds = time.monotonic() - begin
  wanted = checkpoints.find(tmp_path / 'run').meta['arrays']
  draw = random.Random(0)
  with buckets_on_loopback.gcs(failing=failing, latency=latency) as (server, bucket):
    buckets.upload(here, f'{bucket}/set')
    kills = 0
    while kills < (KILLS if not failing else 2):
      process = start(f'{bucket}/set', words, f'{bucket}/run', STEPS)
      try:
        process.wait(timeout=draw.uniform(0.3, 1.2) * seconds)
        break  # It was faster.
      except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
    finish(start(f'{bucket}/set', words, f'{bucket}/run'))
    print(f'{kills} kills, {len(server.requests)} requests')
    found = checkpoints.find(f'{bucket}/run')
    assert found.meta['step'] == STEPS and found.meta['arrays'] == wanted
