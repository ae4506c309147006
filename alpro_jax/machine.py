"""What this machine has: the kind of its devices, how many, and the memory of each."""

import os
import pathlib
import re
import resource
from collections.abc import Mapping
from typing import NamedTuple

GIB = 2**30
KINDS = ('cpu', 'gpu', 'tpu')
_UNLIMITED = 1 << 60  # What the first control groups call no limit is more.


class Machine(NamedTuple):
  """Devices of one kind.

  Attributes:
    kind: one of KINDS.
    memory: bytes that a run may use on each device; 0 is not known.
    devices: how many there are, over all processes.
    limit: what the memory is, in words.
  """

  kind: str
  memory: int
  devices: int = 1
  limit: str = 'memory'

  def __str__(self):
    each = ' on each of its devices' if self.devices > 1 and self.kind != 'cpu' else ''
    return f'{self.kind}, {self.memory / GIB:.1f} GiB{each} ({self.limit})'


def ask(pretended: Mapping | None = None) -> Machine:
  """Asks jax and the system.

  Args:
    pretended: config.machine, whose `device` and `memory_gib` count where they are given.
  Raises:
    ValueError: if `device` is unknown or `memory_gib` negative.
  """
  import jax  # noqa: PLC0415  Whoever only reads memory needs no devices.

  kind = pretended['device'] if pretended else ''
  gib = pretended['memory_gib'] if pretended else 0.0
  if kind not in ('', *KINDS) or gib < 0:
    raise ValueError(
      f'config.machine.device={kind!r} must be one of {KINDS} or empty, and '
      f'config.machine.memory_gib={gib} at least 0.'
    )
  devices = jax.devices()
  kind = kind or {'cuda': 'gpu', 'rocm': 'gpu'}.get(devices[0].platform, devices[0].platform)
  if gib:
    return Machine(kind, int(gib * GIB), len(devices), 'config.machine.memory_gib')
  if kind != 'cpu':
    stats = jax.local_devices()[0].memory_stats() or {}
    return Machine(kind, stats.get('bytes_limit', 0), len(devices), 'memory of a device')
  bytes_, limit = host_memory()
  # Devices of a CPU share what there is.
  here = jax.local_device_count() if devices[0].platform == 'cpu' else 1
  return Machine('cpu', bytes_ // here, len(devices), limit)


def host_memory(proc='/proc', groups='/sys/fs/cgroup') -> tuple[int, str]:
  """Returns the bytes that this process may still use, and what limits them.

  The least of: memory that is available, what the control groups of the process
  leave, and its own limit (ulimit -v). 0 where the system does not tell.
  """
  proc, found = pathlib.Path(proc), []
  if available := _meminfo(proc).get('MemAvailable'):
    found.append((available, 'free memory'))
  found += [(left, 'limit of the control group') for left in _groups_leave(proc, groups)]
  soft, _ = resource.getrlimit(resource.RLIMIT_AS)
  if soft != resource.RLIM_INFINITY:
    used = int(_read(proc / 'self' / 'statm').split()[0] or 0) * os.sysconf('SC_PAGE_SIZE')
    found.append((max(soft - used, 0), 'limit of the process, ulimit -v'))
  return min(found, default=(0, 'unknown'))


def total_memory(proc='/proc') -> int:
  """Returns bytes in all; 0 where the system does not tell."""
  return _meminfo(pathlib.Path(proc)).get('MemTotal', 0)


def out_of_memory(error: BaseException) -> bool:
  """Whether an error says that memory could not be had: Python's, NumPy's,
  XLA's or TensorFlow's."""
  # XLA's and TensorFlow's are told by their text alone; a ValueError may quote it.
  said = f'{type(error).__name__} {error}'
  return isinstance(error, MemoryError) or (
    not isinstance(error, (ValueError, OSError, LookupError))
    and re.search('RESOURCE_EXHAUSTED|[Oo]ut of memory|bad_alloc|ResourceExhausted', said)
    is not None
  )


def _meminfo(proc):
  lines = _read(proc / 'meminfo').splitlines()
  rows = (line.split() for line in lines if re.fullmatch(r'\S+:\s+\d+ kB', line))
  return {name.rstrip(':'): int(kib) * 1024 for name, kib, _ in rows}


def _groups_leave(proc, groups):
  """Yields bytes that each control group above this process leaves, of either version."""
  for line in _read(proc / 'self' / 'cgroup').splitlines():
    _, controllers, path = line.split(':', 2)
    if controllers == 'memory':
      root, limit, usage = pathlib.Path(groups, 'memory'), 'memory.limit_in_bytes', 'usage_in_bytes'
      usage = f'memory.{usage}'
    elif not controllers:
      root, limit, usage = pathlib.Path(groups), 'memory.max', 'memory.current'
    else:
      continue
    # In a container the path may be one of the host's: then the root has the limit.
    folder = root / path.lstrip('/')
    for place in (folder, *folder.parents):
      most = _read(place / limit).strip()
      if most.isdigit() and int(most) < _UNLIMITED:
        used = _read(place / usage).strip()
        cached = re.search(r'(?m)^(?:total_)?inactive_file (\d+)$', _read(place / 'memory.stat'))
        held = int(used) - int(cached[1] if cached else 0) if used.isdigit() else 0
        yield max(int(most) - max(held, 0), 0)
      if place == root:
        break


def _read(path):
  try:
    return path.read_text()
  except OSError:
    return ''
