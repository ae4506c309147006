"""Published rates; mistakes on the command line are one line."""

import os
import subprocess
import sys

import pytest

from benchmarks.chips import CHIPS
from tests import tiny_run


def test_published_rates():
  assert CHIPS['v5e'].send_bytes_per_s == 200e9
  assert CHIPS['v4'].flops == 275e12


@pytest.mark.parametrize(
  'command, message',
  [
    (['benchmark.py', 'speed'], "['speed'] is not what to measure; give one"),
    (['benchmark.py', 'step'], '--config is needed'),
    (['benchmark.py', 'search'], '--folder is needed'),
    (['compile_for.py', '--config=configs/pretrain.py:demo'], '--topology and --config are needed'),
    (
      ['compile_for.py', '--config=configs/pretrain.py:demo', '--topology=v9:2x2'],
      "--topology='v9:2x2' is not known",
    ),
    (
      ['compile_for.py', '--config=configs/pretrain.py:demo', '--topology=gpu'],
      '--topology=gpu needs a GPU',
    ),
  ],
  ids=lambda value: value if isinstance(value, str) else ' '.join(value)[:40],
)
def test_a_mistake_is_one_line(command, message):
  done = subprocess.run(
    [sys.executable, f'launch/{command[0]}', *command[1:]],
    cwd=tiny_run.ROOT,
    capture_output=True,
    text=True,
    env={**os.environ, 'JAX_PLATFORMS': ''},
  )
  assert done.returncode == 2, done.stderr
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith('error: ') and message in last
  assert 'Traceback' not in done.stderr
