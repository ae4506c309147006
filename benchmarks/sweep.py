"""Measures the step in all its variants, each in a process of its own.

First growing batches, until one does not fit, then attention, rematerialisation
and scanned layers at the largest that did, and a profile of it. What has its
figures in the folder already is not measured again, so that a sweep that was
stopped goes on.
"""

import json
import os
import pathlib
import time

from benchmarks import child

BATCH_SIZES = (16, 32, 64, 96, 128, 160, 192, 224, 256, 320)
# At the largest batch that fits.
VARIANTS = {
  'fused': '--config.model.implementation=fused',
  'attention_xla': '--config.model.attention_impl=xla',
  'attention_elementwise': '--config.model.attention_impl=elementwise',
  'attention_cudnn': '--config.model.attention_impl=cudnn',
  'remat_dots': '--config.model.remat=dots',
  'remat_blocks': '--config.model.remat=blocks',
  'scanned': '--config.model.scan_layers=True',
}
_COLUMNS = {
  'batch': 'batch_size',
  'clips/s': 'clips_per_s',
  's/step': 'step_s',
  'TFLOP/s': 'model_tflop_per_s',
  'share of peak': 'share_of_peak',
  'as the original counts': 'share_of_peak_as_original',
  'GiB in use': 'peak_in_use_gib',
  'GiB planned': 'planned_temporary_gib',
  'compiling s': 'compile_s',
}


class _TimeIsOver(Exception):
  pass


def run(
  arguments: list[str], folder: pathlib.Path, batch_sizes: list[int], minutes: float = 0.0
) -> str:
  """Measures what the folder lacks and returns a table in Markdown.

  Writes NAME.json and NAME.log for each, what failed as NAME.log alone,
  table.md, and profile/kernels.md.

  Args:
    arguments: flags of launch/benchmark.py that all of them get.
    folder: made if it is not there.
    batch_sizes: in ascending order.
    minutes: after which none is begun any more; 0 is without end.
  Raises:
    ValueError: if the smallest batch fails.
  """
  folder.mkdir(parents=True, exist_ok=True)
  begin, largest = time.monotonic(), None
  variants = {**VARIANTS, 'profile': f'--profile={folder / "profile"}'}
  count = len(batch_sizes) + len(variants)

  def measure(number, name, *options):
    """Whether it could be measured, now or before."""
    output = folder / f'{name}.json'
    if output.exists():
      print(f'{number} of {count}: {name}: measured before', flush=True)
      return True
    gone = time.monotonic() - begin
    if minutes and gone > 60 * minutes:
      raise _TimeIsOver
    print(f'{number} of {count}: {name}, after {gone:.0f} s', flush=True)
    return _measure(output, [*arguments, *options])

  def at(batch_size):
    return f'--config.data.batch_size={batch_size}'

  try:
    for i, batch_size in enumerate(batch_sizes, 1):
      if not measure(i, f'batch_{batch_size}', at(batch_size)):
        break
      largest = batch_size
    if largest is None:
      raise ValueError(f'batch {batch_size} failed; see {folder}/*.log.')
    for i, (name, option) in enumerate(variants.items(), len(batch_sizes) + 1):
      measure(i, name, at(largest), option)
  except _TimeIsOver:
    print(f'{minutes:g} minutes are over; call this again for the rest.')
  text = table(folder)
  (folder / 'table.md').write_text(text)
  return text


def _measure(output, arguments):
  # Or a quarter of a GPU's memory is never used.
  fraction = os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.95')
  environment = {'XLA_PYTHON_CLIENT_MEM_FRACTION': fraction}
  if output.stem == 'profile':
    # In CUDA's graphs kernels have no names.
    given = os.environ.get('XLA_FLAGS', '')
    environment['XLA_FLAGS'] = f'{given} --xla_gpu_enable_command_buffer='
  try:
    figures = child.measure('step', arguments, output, environment)
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
