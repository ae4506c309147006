"""Runs the step and the same step in PyTorch by turns, in processes."""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

PROGRAM = pathlib.Path(__file__).parents[1] / 'launch/benchmark.py'
KINDS = ('jax', 'torch', 'torch.compile')


def compare(arguments: list[str], batch_sizes: list[int], rounds: int) -> dict:
  """Returns CPU and wall seconds of a step of each kind, and their ratios.

  A process of its own for each, one at a time: each has the whole machine and
  memory, and a machine that grows slower hits all alike.

  Args:
    arguments: flags of launch/benchmark.py that all of them get.
    batch_sizes: to measure.
    rounds: how often each is run; the median counts.
  Raises:
    RuntimeError: if a process fails, or if the models differ in size.
  """
  figures = {}
  for batch_size in batch_sizes:
    found = {kind: [] for kind in KINDS}
    for _ in range(rounds):
      for kind in KINDS:
        found[kind].append(_run(kind, batch_size, arguments))
    parameters = {run['parameters'] for runs in found.values() for run in runs}
    if len(parameters) > 1:
      raise RuntimeError(f'The models differ: {parameters=}.')
    (figures['parameters'],) = parameters
    for name in ('cpu_s', 'step_s'):
      median = {kind: statistics.median(run[name] for run in runs) for kind, runs in found.items()}
      for kind, value in median.items():
        figures[f'{name}/{kind}/{batch_size}'] = value
      for kind in KINDS[1:]:
        figures[f'{name}/jax over {kind}/{batch_size}'] = median['jax'] / median[kind]
  return figures


def _run(kind, batch_size, arguments):
  with tempfile.NamedTemporaryFile(suffix='.json') as file:
    word = ['step'] if kind == 'jax' else ['torch', f'--only={kind}']
    command = [
      sys.executable,
      str(PROGRAM),
      *word,
      *arguments,
      '--config.model.dtype=float32',
      f'--config.data.batch_size={batch_size}',
      f'--output={file.name}',
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
      raise RuntimeError(
        f'{kind} at {batch_size=} ended with {done.returncode}:\n{done.stderr[-2000:]}'
      )
    figures = json.loads(pathlib.Path(file.name).read_text())
  print(
    f'{kind:14} batch {batch_size}: {figures["cpu_s"]:.2f} CPU s, {figures["step_s"]:.2f} s',
    flush=True,
  )
  return figures
