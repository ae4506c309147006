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

try:
  from launch import command
except ModuleNotFoundError:
  import not_installed  # noqa: F401

import json
import pathlib
import time

from absl import flags

from alpro_jax import sharding
from benchmarks import compiled, kernels, topology

_CONFIG = command.config_flag('Config file, e.g. configs/pretrain.py.')
_TOPOLOGY = flags.DEFINE_string(
  'topology',
  '',
  'v4:4x4x4, v5e:16x16, v5p:4x4x8, v6e:16x16 or others of '
  'these chips, 2xv5e:16x16 for two slices; h200:8, h100:1, a100:4; gpu for the '
  'GPUs of this machine.',
)
_OUTPUT = flags.DEFINE_string('output', '', 'A JSON file to write.')
_PROGRAM = flags.DEFINE_string('program', '', 'A file for the text of the compiled program.')
_KERNELS = flags.DEFINE_integer(
  'kernels', 0, "Prints so many of a GPU program's heaviest kernels.", lower_bound=0
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


def main():
  if _CONFIG.value is None or not _TOPOLOGY.value:
    raise ValueError(
      '--topology and --config are needed, e.g. --topology=v5e:16x16 --config=configs/pretrain.py.'
    )
  config = _CONFIG.value
  found, chip = topology.devices(_TOPOLOGY.value)
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
    print(kernels.table(of_gpu, chip, _KERNELS.value))
  if _OUTPUT.value:
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=2) + '\n')


if __name__ == '__main__':
  command.run(main)
