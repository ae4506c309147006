"""Runs the step and the same step in PyTorch by turns, in processes."""

import pathlib
import statistics
import tempfile

from benchmarks import child

KINDS = ('jax', 'torch', 'torch.compile')


def compare(arguments: list[str], batch_sizes: list[int], rounds: int) -> dict:
  """Returns CPU and wall seconds of a step of each kind, and their ratios.

  They are run by turns, so that a machine that grows slower hits all alike.

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
  word, only = ('step', []) if kind == 'jax' else ('torch', [f'--only={kind}'])
  size = [f'--config.data.batch_size={batch_size}']
  if not any(x.startswith('--config.model.dtype') for x in arguments):
    # What a CPU computes in, unless bfloat16 is asked for.
    size.append('--config.model.dtype=float32')
  with tempfile.TemporaryDirectory() as folder:
    try:
      output = pathlib.Path(folder, 'figures.json')
      figures = child.measure(word, [*only, *arguments, *size], output)
    except RuntimeError as error:
      raise RuntimeError(f'{kind} at {batch_size=} {error}') from error
  print(
    f'{kind:14} batch {batch_size}: {figures["cpu_s"]:.2f} CPU s, {figures["step_s"]:.2f} s',
    flush=True,
  )
  return figures
