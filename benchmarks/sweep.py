"""Measures the step in all its forms, each in a process of its own.

First the forms and a profile at the smallest batch, then larger batches as long as
the device has room for them. What has its figures in the folder already is not
measured again, so that a sweep that was stopped goes on.
"""

import json
import os
import pathlib
import time

from benchmarks import child

BATCH_SIZES = (64, 128, 192, 256, 384, 512)
# At the smallest batch.
VARIANTS = {
  'fused': '--config.model.implementation=fused',
  'attention_xla': '--config.model.attention_impl=xla',
  'attention_elementwise': '--config.model.attention_impl=elementwise',
  'remat_dots': '--config.model.remat=dots',
  'remat_blocks': '--config.model.remat=blocks',
  'scanned': '--config.model.scan_layers=True',
}
_COLUMNS = {
  'batch': 'batch_size',
  'clips/s': 'clips_per_s',
  's/step': 'step_s',
  'least': 'step_s_least',
  'most': 'step_s_most',
  'TFLOP/s': 'model_tflop_per_s',
  'share of peak': 'share_of_peak',
  'as the original counts': 'share_of_peak_as_original',
  'GiB in use': 'peak_in_use_gib',
  'GiB planned': 'planned_temporary_gib',
  'set-up s': 'setup_s',
  'compiling s': 'compile_s',
}


class _TimeIsOver(Exception):
  pass


def run(
  arguments: list[str],
  folder: pathlib.Path,
  batch_sizes: list[int],
  minutes: float = 0.0,
  minutes_each: float = 10.0,
) -> str:
  """Measures what the folder lacks and returns a table in Markdown.

  Writes NAME.json and NAME.log for each, what failed as NAME.log alone,
  profile/kernels.md, and table.md anew after each.

  Args:
    arguments: flags of launch/benchmark.py that all of them get.
    folder: made if it is not there.
    batch_sizes: in ascending order.
    minutes: after which none is begun any more; 0 is without end.
    minutes_each: after which a measurement is given up.
  Raises:
    ValueError: if the smallest batch fails.
  """
  folder.mkdir(parents=True, exist_ok=True)
  begin = time.monotonic()
  first, *larger = batch_sizes
  variants = {**VARIANTS, 'profile': f'--profile={folder / "profile"}'}
  count, number = len(batch_sizes) + len(variants), 0

  def measure(name, batch_size, *options):
    """Whether it could be measured, now or before."""
    nonlocal number
    number += 1
    output = folder / f'{name}.json'
    if output.exists():
      print(f'{number} of {count}: {name}: measured before', flush=True)
      return True
    gone = time.monotonic() - begin
    if minutes and gone > 60 * minutes:
      raise _TimeIsOver
    print(f'{number} of {count}: {name}, after {gone:.0f} s', flush=True)
    size = f'--config.data.batch_size={batch_size}'
    done = _measure(output, [*arguments, size, *options], 60 * minutes_each)
    (folder / 'table.md').write_text(table(folder))
    return done

  try:
    if not measure(f'batch_{first}', first):
      raise ValueError(f'batch {first} failed; see {folder}/*.log.')
    figures = json.loads((folder / f'batch_{first}.json').read_text())
    for name, option in variants.items():
      measure(name, first, option)
    for batch_size in larger:
      needed = needed_gib(figures, batch_size)
      if needed > (figures.get('memory_gib') or needed):
        print(
          f'batch {batch_size} and more are left out: {needed:.0f} GiB planned, '
          f'{figures["memory_gib"]:.0f} there'
        )
        break
      if not measure(f'batch_{batch_size}', batch_size):
        break
  except _TimeIsOver:
    print(f'{minutes:g} minutes are over; call this again for the rest.')
  text = table(folder)
  (folder / 'table.md').write_text(text)
  return text


def needed_gib(figures: dict, batch_size: int) -> float:
  """Estimates a step's memory in GiB at a batch, from its plan at another one."""
  per_clip = (figures.get('planned_temporary_gib') or 0) / figures['batch_size']
  return (figures.get('planned_argument_gib') or 0) + per_clip * batch_size


def _measure(output, arguments, limit_s):
  environment = {
    # Or a quarter of a GPU's memory is never used.
    'XLA_PYTHON_CLIENT_MEM_FRACTION': os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.95'),
    # Where XLA keeps which form of a kernel was fastest, too.
    'JAX_COMPILATION_CACHE_DIR': os.environ.get(
      'JAX_COMPILATION_CACHE_DIR', str(output.parent / 'cache')
    ),
  }
  if output.stem == 'profile':
    # In CUDA's graphs kernels have no names.
    given = os.environ.get('XLA_FLAGS', '')
    environment['XLA_FLAGS'] = f'{given} --xla_gpu_enable_command_buffer='
  try:
    figures = child.measure('step', arguments, output, environment, limit_s)
  except RuntimeError as error:
    print(f'  failed: {error}', flush=True)
    return False
  print(f'  {figures["clips_per_s"]:.4g} clips/s', flush=True)
  return True


def table(folder: pathlib.Path) -> str:
  """Returns the figures of a folder, one row for each file, oldest first."""
  found = sorted(folder.glob('*.json'), key=lambda path: path.stat().st_mtime)
  rows = {path.stem: json.loads(path.read_text()) for path in found}
  if not rows:
    return 'Nothing was measured.\n'
  one = next(iter(rows.values()))
  lines = [
    f'{one["devices"]} x {one["device"]}, jax {one["jax"]}, {one["dtype"]}, '
    f'{one["model_tflop_per_clip"]:.4g} TFLOP for a clip, of which the '
    f'original makes {one["original_tflop_per_clip"]:.4g}.',
    '',
    '| | ' + ' | '.join(_COLUMNS) + ' |',
    '|---' * (len(_COLUMNS) + 1) + '|',
  ]
  for name, figures in rows.items():
    cells = [figures.get(column) for column in _COLUMNS.values()]
    shown = ['' if x is None else f'{x:.4g}' for x in cells]
    lines.append(f'| {name} | ' + ' | '.join(shown) + ' |')
  failed = sorted(path.stem for path in folder.glob('*.log') if path.stem not in rows)
  if failed:
    lines += ['', f'Failed: {", ".join(failed)}.']
  return '\n'.join(lines) + '\n'
