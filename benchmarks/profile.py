"""Which kernels of a step take the time, measured, beside what they move."""

import collections
import pathlib
import re
from collections.abc import Callable

import jax

from benchmarks import kernels


def measure(
  run: Callable[[], object],
  found: list[kernels.Kernel],
  folder: pathlib.Path,
  *,
  steps: int,
  step_s: float,
) -> str:
  """Runs a compiled step under JAX's profiler.

  Args:
    run: runs one step and returns what to wait for.
    found: the kernels of its program, where they are known: on a GPU.
    folder: for the trace, which XProf and Perfetto show too.
    steps: to run.
    step_s: seconds of a step without the profiler.
  Returns:
    a table in Markdown, the longest kernels first: milliseconds of a step, and
    the rates at which bytes move and products are made.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with jax.profiler.trace(str(folder)):
    for _ in range(steps):
      last = run()
    jax.block_until_ready(last)
  newest = max(folder.glob('**/*.xplane.pb'), key=lambda path: path.stat().st_mtime)
  seconds = by_instruction(jax.profiler.ProfileData.from_file(str(newest)))
  return table(seconds, found, steps, step_s)


def by_instruction(data) -> dict[str, float]:
  """Returns the seconds of all runs of each instruction of the program.

  Args:
    data: jax.profiler.ProfileData. Of a device only its streams count: other
      lines tell the same again. A CPU has no plane of its own.
  """
  found = collections.Counter()
  planes = list(data.planes)
  devices = [plane for plane in planes if plane.name.startswith('/device:')]
  for plane in devices or planes:
    for line in plane.lines:
      if devices and not line.name.startswith('Stream'):
        continue
      for event in line.events:
        name = dict(event.stats).get('hlo_op')
        if name:
          found[name] += event.duration_ns / 1e9
  return dict(found)


def table(
  seconds: dict[str, float], found: list[kernels.Kernel], steps: int, step_s: float, rows: int = 40
) -> str:
  """Returns kernels that are alike in one row each, the longest first."""
  groups = collections.defaultdict(collections.Counter)
  known = {one.name: one for one in found}
  for name, spent in seconds.items():
    one = known.get(name)
    # Without a number at its end: dot.3 and dot.14 are alike.
    group = groups[one.alike if one else ('', re.sub(r'[\d.]+$', '', name), '')]
    group['seconds'] += spent / steps
    if one:
      group['runs'] += one.runs
      group['bytes'] += one.runs * one.moved_bytes
      group['flops'] += one.runs * one.flops
  total = sum(seconds.values()) / steps
  lines = [
    f'{total * 1e3:.2f} ms of kernels in a step of {step_s * 1e3:.2f} ms.',
    '',
    '| ms | runs | GB/s | TFLOP/s | kernel | writes | made from |',
    '|---|---|---|---|---|---|---|',
  ]
  for key, group in sorted(groups.items(), key=lambda item: -item[1]['seconds'])[:rows]:
    spent = group['seconds']
    cells = [f'{spent * 1e3:.3f}', '', '', '']
    if group['runs'] and spent:
      rates = f'{group["bytes"] / spent / 1e9:.0f}', f'{group["flops"] / spent / 1e12:.1f}'
      cells[1:] = [str(group['runs']), *rates]
    kind, source, result = key
    lines.append(f'| {" | ".join(cells)} | {kind} | {result[:60]} | {source[-80:]} |')
  return '\n'.join(lines) + '\n'
