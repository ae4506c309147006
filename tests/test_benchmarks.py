"""Made-up inputs have the shapes of real ones; mistakes are one line."""

import os
import subprocess
import sys

import jax
import pytest

from alpro_jax import sharding
from alpro_jax.benchmarks import made_up
from alpro_jax.benchmarks.chips import CHIPS
from tests import small_task, tiny_run


@pytest.fixture
def config(tmp_path):
  return small_task.small_config(tmp_path)


def shapes(tree):
  return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def test_shapes_to_compile_are_those_of_the_noise_to_time(config):
  program = made_up.program(config, sharding.make_mesh())
  assert shapes(made_up.batch(config)) == shapes(program.batch)
  spec = program.batch.video.sharding.spec
  assert spec[0] == sharding.BATCH_AXES


def test_the_teacher_is_cut_as_the_parameters_are(config):
  program = made_up.program(config, sharding.make_mesh(4, 2))
  mine = program.frozen.params['video_encoder']
  student = program.state.params['video_encoder']
  same = jax.tree.map(lambda a, b: a.sharding == b.sharding, mine, student)
  assert all(jax.tree.leaves(same))
  assert program.frozen.bank.video.sharding.is_fully_replicated


def test_a_batch_that_does_not_divide_is_refused(config):
  config.data.batch_size = 12
  with pytest.raises(ValueError, match='cannot be cut over 8 shards'):
    made_up.program(config, sharding.make_mesh())


def test_published_rates():
  assert CHIPS['v5e'].send_bytes_per_s == 200e9
  assert CHIPS['v4'].flops == 275e12


@pytest.mark.parametrize('command, message', [
    (['benchmark.py', 'speed'], "['speed'] is not what to measure; give one"),
    (['benchmark.py', 'step'], '--config is needed'),
    (['compile_for.py', '--config=configs/pretrain.py:demo'],
     '--topology and --config are needed'),
    (['compile_for.py', '--config=configs/pretrain.py:demo',
      '--topology=v9:2x2'], "--topology='v9:2x2' is not known"),
    (['compile_for.py', '--config=configs/pretrain.py:demo',
      '--topology=gpu'], '--topology=gpu needs a GPU'),
], ids=lambda value: value if isinstance(value, str) else ' '.join(value)[:40])
def test_a_mistake_is_one_line(command, message):
  done = subprocess.run(
      [sys.executable, f'launch/{command[0]}', *command[1:]],
      cwd=tiny_run.ROOT, capture_output=True, text=True,
      env={**os.environ, 'JAX_PLATFORMS': ''},
  )
  assert done.returncode == 2, done.stderr
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith('error: ') and message in last
  assert 'Traceback' not in done.stderr
