"""Compiles the training step for machines that are not here.

  python launch/compile_for.py --topology=v5e:16x16 \\
    --config=configs/pretrain.py --config.data.batch_size=8192

Nothing is computed and no weights are made, so one core and some GiB are
enough. Prints and, with --output, writes as JSON, for each chip: memory and
whether it fits, operations, what it sends to the others, and how long both
take at the chip's published rates. These times are lower bounds: no step runs
at the published rate, but what is sent may hide behind what is computed.

TPUs need libtpu and NVIDIA's GPUs their part of jax, each in an environment of
its own (requirements-tpu.txt, requirements-gpu.txt). --topology=h200:8 is eight
GPUs of one machine; also h100 and a100. Products are then left to cuBLAS: what
else there is must be tried out on the GPU. --topology=gpu compiles for the GPUs
of this machine. Of a GPU's program it also says what its kernels move between
memory and chip, and with --kernels=30 which take longest.
"""

import importlib.util
import json
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
_GPU = any(arg in ('--topology=gpu', '-topology=gpu') for arg in sys.argv)
if not _GPU:
  # Read when jax starts: no TPU or GPU is looked for, and none is needed, so
  # that many may compile at once.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['TPU_SKIP_MDS_QUERY'] = '1'
  os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'
  # Or it warns that this machine is no part of a pod.
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')

import jax  # noqa: E402
from absl import app, flags  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from alpro_jax import sharding  # noqa: E402
from alpro_jax.benchmarks import chips, compiled, kernels  # noqa: E402
from alpro_jax.benchmarks.chips import CHIPS, MULTIPROCESSORS  # noqa: E402
from launch import command  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Config file, e.g. configs/pretrain.py.', lock_config=True
)
_TOPOLOGY = flags.DEFINE_string(
    'topology', '', 'v4:4x4x4, v5e:16x16, v5p:4x4x8, v6e:16x16 or others of '
    'these chips; h200:8, h100:1, a100:4; gpu for the GPUs of this machine.')
_OUTPUT = flags.DEFINE_string('output', '', 'A JSON file to write.')
_PROGRAM = flags.DEFINE_string(
    'program', '', 'A file for the text of the compiled program.')
_KERNELS = flags.DEFINE_integer(
    'kernels', 0, "Prints so many of a GPU program's heaviest kernels.",
    lower_bound=0)


def devices(topology: str):
  """Returns (devices, published figures or None) of a topology.

  Raises:
    ValueError: if there is no such topology, or no compiler for it.
  """
  if topology == 'gpu':
    try:
      found = jax.devices('gpu')
    except RuntimeError as error:
      raise ValueError(
          '--topology=gpu needs a GPU and a jax that sees it; '
          "`pip install 'jax[cuda12]'` installs one."
      ) from error
    return found, chips.of_kind(found[0].device_kind)
  name, _, shape = topology.partition(':')
  if name not in CHIPS:
    raise ValueError(
        f'--{topology=} is not known; give gpu or a chip and its shape, such '
        'as v4:4x4x4, v5e:16x16, v5p:4x4x8, v6e:16x16 or h200:8.'
    )
  if name in MULTIPROCESSORS:
    return _absent_gpus(topology, name, shape), CHIPS[name]
  if not importlib.util.find_spec('libtpu'):
    raise _no_compiler(topology, 'tpu')
  # The two cores of a v4 chip are one device, as on Cloud TPU; those of a v5p
  # are without being told.
  options = {'chip_config_name': 'megacore'} if name == 'v4' else {}
  try:
    found = topologies.get_topology_desc(
        platform='tpu', topology_name=topology, **options
    ).devices
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(
        f'--{topology=} is no shape of {name}: {str(error).splitlines()[0]}'
    ) from error
  return found, CHIPS[name]


def _absent_gpus(topology, name, shape):
  if shape not in map(str, range(1, 9)):
    raise ValueError(
        f'--{topology=} is not known; give the GPUs of one machine, {name}:1 '
        f'to {name}:8.'
    )
  # Of CUDA 12 or 13, whichever is there.
  if not any(
      importlib.util.find_spec(f'jax_cuda{n}_plugin') for n in (12, 13)
  ):
    raise _no_compiler(topology, 'gpu')
  return topologies.get_topology_desc(
      platform='cuda', target_config=chips.gpu_target(name),
      topology=f'1x1x{shape}',
  ).devices


def _no_compiler(topology, kind):
  return ValueError(
      f'--{topology=} needs the {kind.upper()} compiler; install it in an '
      f'environment of its own: python -m venv .venv-{kind} && '
      f'.venv-{kind}/bin/pip install -r requirements-{kind}.txt'
  )


def show_kernels(found, chip, count: int) -> None:
  """Prints a table of the kernels that take longest by the roofline."""
  print('    ms      GB  runs  kernel, writes, made from')
  for one in kernels.totals(found, chip)[:count]:
    print(
        f'{one.seconds * 1e3:6.2f} {one.moved_bytes / 1e9:7.2f} {one.runs:5} '
        f' {one.kind:9} {one.result[:60]:60} {one.source[-80:]}'
    )


def show(figures: dict, indent: str = '') -> None:
  """Prints figures, groups of them indented."""
  for name, value in figures.items():
    if isinstance(value, dict) and name != 'mesh':
      print(f'{indent}{name}')
      show(value, indent + '  ')
    else:
      if isinstance(value, float):
        value = f'{value:,.4g}'
      elif isinstance(value, int) and not isinstance(value, bool):
        value = f'{value:,}'
      print(f'{indent}{name:{24 - len(indent)}}{value}')


def main(argv):
  with command.mistakes_in_one_line():
    if len(argv) > 1 or _CONFIG.value is None or not _TOPOLOGY.value:
      raise ValueError(
          '--topology and --config are needed, e.g. --topology=v5e:16x16 '
          f'--config=configs/pretrain.py; got {argv[1:]} beside options.'
      )
    config = _CONFIG.value
    found, chip = devices(_TOPOLOGY.value)
    mesh = sharding.mesh_from_config(config.mesh, found)
    begin = time.perf_counter()
    program, model = compiled.compile_step(config, mesh)
    compile_s = time.perf_counter() - begin
  text = program.as_text()
  if _PROGRAM.value:
    pathlib.Path(_PROGRAM.value).write_text(text)
  figures = {
      'topology': _TOPOLOGY.value,
      **compiled.figures(config, program, text, model, mesh, chip),
      'compile_s': compile_s,
  }
  of_gpu = kernels.parse(text) if found[0].platform == 'gpu' else []
  if of_gpu:
    figures['roofline'] = compiled.roofline(of_gpu, chip)
  show(figures)
  if _KERNELS.value and of_gpu and chip:
    show_kernels(of_gpu, chip, _KERNELS.value)
  if _OUTPUT.value:
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=2) + '\n')


if __name__ == '__main__':
  app.run(main, flags_parser=command.parse)
