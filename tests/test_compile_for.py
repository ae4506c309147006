"""The step compiles for TPUs that are not here; without libtpu, one line.

Run by `make test-tpu` in an environment with requirements-tpu.txt alone.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests import tiny_run

LIBTPU = importlib.util.find_spec('libtpu') is not None
# The demo's model with as few layers as it can have: a minute to compile.
SMALL = (
    '--config=configs/pretrain.py:demo', '--config.model.dtype=bfloat16',
    '--config.model.video.depth=1', '--config.model.text.depth=2',
    '--config.model.text.fusion_layer=1', '--config.data.batch_size=16',
)


def compile_for(topology, *options):
  return subprocess.run(
      [sys.executable, 'launch/compile_for.py', f'--topology={topology}',
       *SMALL, *options],
      cwd=tiny_run.ROOT, capture_output=True, text=True,
      env={**os.environ, 'XLA_FLAGS': ''},
  )


@pytest.mark.skipif(LIBTPU, reason='libtpu is installed')
def test_without_libtpu_one_line_says_what_to_install():
  done = compile_for('v5e:2x2')
  assert done.returncode == 2
  assert '-r requirements-tpu.txt' in done.stderr.strip().splitlines()[-1]
  assert 'Traceback' not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason='libtpu is not installed')
def test_the_step_compiles_for_four_chips(tmp_path):
  output = tmp_path / 'figures.json'
  done = compile_for('v5e:2x2', f'--output={output}', '--config.mesh.fsdp=2')
  assert done.returncode == 0, done.stderr
  figures = json.loads(output.read_text())
  assert figures['mesh'].items() >= {'data': 2, 'fsdp': 2}.items()
  assert figures['memory']['fits'] is True
  memory = figures['memory']
  assert 0 < memory['total_gib'] < memory['chip_gib'] == 16e9 / 2**30
  # Parameters and both moments, cut in two, replace the old ones.
  assert memory['aliased_gib'] > 0.9 * memory['output_gib'] > 0
  assert {'all-reduce', 'all-gather', 'collective-permute'} <= set(
      figures['communication']['collectives'])
  assert figures['computation']['compute_s'] > 0
  assert figures['bound'] in ('compute', 'communication')
  assert 'sent_bytes' in done.stdout


@pytest.mark.skipif(not LIBTPU, reason='libtpu is not installed')
def test_a_shape_that_does_not_exist_is_one_line():
  done = compile_for('v5e:3x5')
  assert done.returncode == 2
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith("error: --topology='v5e:3x5' is no shape of v5e")
