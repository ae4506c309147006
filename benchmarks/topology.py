"""Devices to compile for, of this machine or of machines that are not here."""

import importlib.util
import os
import re

import jax
from jax.experimental import topologies

from benchmarks.chips import CHIPS, MULTIPROCESSORS, Chip, gpu_target, of_kind


def devices(topology: str) -> tuple[list[jax.Device], Chip | None]:
  """Returns the devices of a topology, and their figures where published.

  Args:
    topology: 'v5e:16x16' for TPUs, '2xv5e:16x16' for two slices of them, 'h200:8' for
      GPUs of one machine, 'gpu' for the GPUs of this one.
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
    return found, of_kind(found[0].device_kind)
  _use_no_devices()
  several = re.fullmatch(r'(\d+)x(\w+:.*)', topology)
  slices, one = (int(several[1]), several[2]) if several else (1, topology)
  name, _, shape = one.partition(':')
  if name not in CHIPS or (slices > 1 and name in MULTIPROCESSORS):
    raise ValueError(
      f'--{topology=} is not known; give gpu or a chip and its shape, such '
      'as v4:4x4x4, v5e:16x16, 2xv5e:16x16, v5p:4x4x8, v6e:16x16 or h200:8.'
    )
  if name in MULTIPROCESSORS:
    return _absent_gpus(topology, name, shape), CHIPS[name]
  if not importlib.util.find_spec('libtpu'):
    raise _no_compiler(topology, 'tpu')
  # The two cores of a v4 chip are one device, as on Cloud TPU; those of a v5p
  # are without being told.
  options = {'chip_config_name': 'megacore'} if name == 'v4' else {}
  if slices > 1:
    options['num_slices'] = slices
  try:
    found = topologies.get_topology_desc(platform='tpu', topology_name=one, **options).devices
  except jax.errors.JaxRuntimeError as error:
    reason, *_ = str(error).split('\n')
    raise ValueError(f'--{topology=} is no shape of {name}: {reason}') from error
  return found, CHIPS[name]


def _use_no_devices():
  """Looks for no TPU or GPU, so that many may compile at once."""
  jax.config.update('jax_platforms', 'cpu')
  os.environ['TPU_SKIP_MDS_QUERY'] = '1'
  os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'
  # Or it warns that this machine is no part of a pod.
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')


def _absent_gpus(topology, name, shape):
  if shape not in map(str, range(1, 9)):
    raise ValueError(
      f'--{topology=} is not known; give the GPUs of one machine, {name}:1 to {name}:8.'
    )
  # Of CUDA 12 or 13, whichever is there.
  if not any(importlib.util.find_spec(f'jax_cuda{n}_plugin') for n in (12, 13)):
    raise _no_compiler(topology, 'gpu')
  return topologies.get_topology_desc(
    platform='cuda', target_config=gpu_target(name), topology=f'1x1x{shape}'
  ).devices


def _no_compiler(topology, kind):
  return ValueError(
    f'--{topology=} needs the {kind.upper()} compiler; install it in an '
    f'environment of its own: python -m venv .venv-{kind} && '
    f'.venv-{kind}/bin/pip install -r requirements-{kind}.txt'
  )
