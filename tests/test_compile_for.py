"""The step compiles for chips that are not here; without a compiler, one line.

Run by `make test-tpu` and `make test-gpu` in environments with requirements-tpu
or requirements-gpu alone.
"""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from alpro_jax import sharding
from benchmarks import hlo, topology
from tests import tiny_run

CUDA = any(importlib.util.find_spec(f'jax_cuda{n}_plugin') for n in (12, 13))
LIBTPU = importlib.util.find_spec('libtpu') is not None
# The demo's model with as few layers as it can have: a minute to compile.
SMALL = (
  '--config=configs/pretrain.py:demo',
  '--config.model.dtype=bfloat16',
  '--config.model.video.depth=1',
  '--config.model.text.depth=2',
  '--config.model.text.fusion_layer=1',
  '--config.data.batch_size=16',
)


def compile_for(topology, *options, config=SMALL):
  return subprocess.run(
    [sys.executable, 'launch/compile_for.py', f'--topology={topology}', *config, *options],
    cwd=tiny_run.ROOT,
    capture_output=True,
    text=True,
    env={**os.environ, 'XLA_FLAGS': ''},
  )


def figures_of(tmp_path, topology, *options):
  """Compiles the step; returns what was written, and what was printed."""
  output = tmp_path / 'figures.json'
  done = compile_for(topology, f'--output={output}', *options)
  assert done.returncode == 0, done.stderr
  return json.loads(output.read_text()), done.stdout


@pytest.mark.parametrize(
  'topology, requirements',
  [
    pytest.param(
      'v5e:2x2',
      'requirements-tpu.txt',
      marks=pytest.mark.skipif(LIBTPU, reason='libtpu is installed'),
    ),
    pytest.param(
      'h200:1',
      'requirements-gpu.txt',
      marks=pytest.mark.skipif(CUDA, reason='the compiler for GPUs is installed'),
    ),
  ],
)
def test_without_a_compiler_one_line_says_what_to_install(topology, requirements):
  done = compile_for(topology)
  assert done.returncode == 2
  assert f'-r {requirements}' in done.stderr.strip().splitlines()[-1]
  assert 'Traceback' not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason='libtpu is not installed')
def test_the_step_compiles_for_four_chips(tmp_path):
  figures, said = figures_of(tmp_path, 'v5e:2x2', '--config.mesh.fsdp=2')
  assert figures['mesh'].items() >= {'data': 2, 'fsdp': 2}.items()
  assert figures['memory']['fits'] is True
  memory = figures['memory']
  assert 0 < memory['total_gib'] < memory['chip_gib'] == 16e9 / 2**30
  # Parameters and both moments, cut in two, replace the old ones.
  assert memory['aliased_gib'] > 0.9 * memory['output_gib'] > 0
  assert {'all-reduce', 'all-gather', 'collective-permute'} <= set(
    figures['communication']['collectives']
  )
  assert figures['computation']['compute_s'] > 0
  assert figures['bound'] in ('compute', 'communication')
  assert 'sent_bytes' in said


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason='libtpu is not installed')
def test_two_slices_reduce_inside_and_exchange_a_part(tmp_path):
  figures, _ = figures_of(tmp_path, '2xv5e:2x2')
  assert figures['mesh'].items() >= {'slice': 2, 'data': 4}.items()
  inside, between = (figures['communication'][n] for n in ('collectives', 'between_slices'))
  assert between['all-reduce']['operand_bytes'] < 0.6 * (
    inside['all-reduce']['operand_bytes'] + inside['reduce-scatter']['operand_bytes']
  )
  # Two turns of three hops in each slice, and one exchange between them.
  rings = inside['collective-permute'], between['collective-permute']
  assert rings[0]['operand_bytes'] >= 6 * rings[1]['operand_bytes'] > 0


@pytest.mark.skipif(not LIBTPU, reason='libtpu is not installed')
@pytest.mark.parametrize('name', ['v5e:4x4', '2xv5e:4x8', 'v4:4x4x4', 'v5p:4x4x8'])
def test_hosts_of_tpus_hold_neighbouring_rows(name):
  devices, _ = topology.devices(name)
  rows = [device.process_index for device in sharding.make_mesh(devices=devices).devices.flat]
  assert rows == [i // 4 for i in range(len(devices))]


@pytest.mark.skipif(not LIBTPU, reason='libtpu is not installed')
def test_a_shape_that_does_not_exist_is_one_line():
  done = compile_for('v5e:3x5')
  assert done.returncode == 2
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith("error: --topology='v5e:3x5' is no shape of v5e")


def test_more_gpus_than_a_machine_has_are_one_line():
  done = compile_for('h200:16')
  assert done.returncode == 2
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith("error: --topology='h200:16' is not known")
  assert 'h200:1 to h200:8' in last


@pytest.mark.slow
@pytest.mark.skipif(not CUDA, reason='the compiler for GPUs is not installed')
def test_the_step_compiles_for_eight_gpus(tmp_path):
  figures, _ = figures_of(tmp_path, 'h200:8')
  assert figures['chips'] == 8 and figures['memory']['fits'] is True
  found = figures['communication']['collectives']
  assert {'all-reduce', 'collective-permute'} <= set(found)
  assert found['all-reduce']['operand_bytes'] > 0


@pytest.fixture(scope='module')
def base_on_a_gpu(tmp_path_factory):
  """The base model's widths, four blocks deep, on one H200."""
  folder = tmp_path_factory.mktemp('base')
  done = compile_for(
    'h200:1',
    f'--output={folder}/figures.json',
    '--kernels=5',
    f'--program={folder}/program.txt',
    config=(
      '--config=configs/pretrain.py',
      '--config.data.batch_size=64',
      '--config.model.implementation=fused',
      '--config.model.video.depth=4',
      '--config.model.text.depth=2',
      '--config.model.text.fusion_layer=1',
      '--config.model.text.vocab_size=512',
    ),
  )
  assert done.returncode == 0, done.stderr
  figures = json.loads((folder / 'figures.json').read_text())
  module = hlo.parse((folder / 'program.txt').read_text())
  return figures, module, done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not CUDA, reason='the compiler for GPUs is not installed')
def test_the_roofline_of_a_gpu(base_on_a_gpu):
  figures, _, printed = base_on_a_gpu
  computation, roofline = figures['computation'], figures['roofline']
  # The products that are there are those of the formula.
  assert roofline['product_tflop'] == pytest.approx(computation['tflop'], rel=0.03)
  assert roofline['roofline_s'] > computation['compute_s'] > 0
  assert printed.count('cublas') >= 3


@pytest.mark.slow
@pytest.mark.skipif(not CUDA, reason='the compiler for GPUs is not installed')
def test_video_tokens_are_neither_turned_round_nor_added_up_again(base_on_a_gpu):
  """Two costs that the compiler brought in, see docs/experiments.md."""
  _, module, _ = base_on_a_gpu
  rows, width = 64, 768
  stream = rows * 4 * 196 * width * 2
  for one in module.computations[module.entry]:
    large = hlo.size_bytes(one.type) >= stream
    for _, sizes in hlo.shapes(one.type):
      # Tokens with the batch innermost must be transposed before each product.
      assert not (large and sizes[-1:] == (rows,) and width in sizes), one
    if one.opcode == 'fusion':
      read = sum(hlo.size_bytes(module.types[name]) >= stream for name in one.operand_names)
      # 13 where the gradient of the residual stream was never stored.
      assert read <= 6, one
