"""Parameters from the tensors of files, strictly: nothing is guessed."""

from collections.abc import Mapping, Sequence

import numpy as np

from alpro_jax.models.timesformer import fit_table
from alpro_jax.weights.files import Tensor
from alpro_jax.weights.original import Row

RESIZE_RULES = ('2d', 'original')


def check(
  tensors: Mapping[str, Tensor],
  rows: Sequence[Row],
  shapes: Mapping[str, tuple[int, ...]],
  *,
  given: Sequence[str] = ('',),
  optional: Sequence[str] = (),
) -> list[str]:
  """Compares names and shapes; reads nothing.

  Args:
    tensors: by their names in the original.
    rows: rename_table of the model.
    shapes: of our parameters, by path.
    given: tensors whose name starts with one of these must be there.
    optional: tensors whose name contains one of these may be missing anyway.
  Returns:
    the paths of our parameters that no tensor is there for.
  Raises:
    ValueError: naming every tensor that is missing, unknown, of another shape
      or not of floating point.
  """
  missing, wrong, absent = [], [], []
  for row in rows:
    name = row.original
    if name not in tensors:
      absent += row.ours
      if name.startswith(tuple(given)) and not any(part in name for part in optional):
        missing.append(name)
      continue
    tensor = tensors[name]
    # Zeros without memory: only their shape counts.
    ours = [np.broadcast_to(np.float32(0), shapes[path]) for path in row.ours]
    expected = row.layout.to_original(*ours).shape
    if tensor.shape != expected:
      wrong.append(f'{_named(name, tensor)} has shape {tensor.shape}, expected {expected}')
    elif not _is_float(tensor.dtype):
      wrong.append(f'{_named(name, tensor)} is {tensor.dtype}, expected floating point')
  known = {row.original for row in rows}
  unknown = [_named(name, tensor) for name, tensor in tensors.items() if name not in known]
  lines = []
  if missing:
    lines.append(f'{len(missing)} missing: {", ".join(missing)}')
  if unknown:
    lines.append(f'{len(unknown)} not known: {", ".join(unknown)}')
  if wrong:
    lines.append(f'{len(wrong)} do not fit: {"; ".join(wrong)}')
  if lines:
    raise ValueError(
      f'the tensors are not those of the model. {". ".join(lines)}. Expected '
      f'the {len(rows)} tensors of the sizes that most of the file has.'
    )
  return absent


def read_params(tensors: Mapping[str, Tensor], rows: Sequence[Row]) -> dict[str, np.ndarray]:
  """Reads the tensors, one after another, into float32 arrays by our paths.

  Raises:
    ValueError: naming the tensors that hold NaN or infinity, in float32.
  """
  params, broken = {}, []
  for row in rows:
    if row.original in tensors:
      tensor = tensors[row.original]
      with np.errstate(over='ignore'):  # It is infinity then.
        array = tensor.read().astype(np.float32, copy=False)
      if not np.isfinite(array).all():
        broken.append(_named(row.original, tensor))
      for path, part in zip(row.ours, row.layout.to_ours(array), strict=True):
        params[path] = np.asarray(part, order='C')
  check_finite(broken)
  return params


def check_finite(broken: Sequence[str]) -> None:
  """Raises ValueError if there are names of tensors that are not finite."""
  if broken:
    raise ValueError(
      f'{len(broken)} tensors hold NaN or infinity: {", ".join(broken)}. A '
      'model with them computes nothing; take the weights of an earlier '
      'step.'
    )


def resize(
  params: Mapping[str, np.ndarray], *, positions: int, frames: int, rule: str = '2d'
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Makes a video encoder fit another image size or clip length.

  Args:
    params: by path; tables that are not there stay away.
    positions: patches of an image.
    frames: of a clip.
    rule: '2d' resizes positions as the grid they are; 'original' repeats or
      skips them in the order of reading, as the original does on loading
      (defect 15).
  Returns:
    the parameters, and a line about every table that changed.
  """
  if rule not in RESIZE_RULES:
    raise ValueError(f'{rule=} is not known; choose one of {RESIZE_RULES}.')
  resized, lines = dict(params), []
  for name, rows in (('positions', positions), ('times', frames)):
    path = f'video_encoder/{name}'
    if path not in params or len(params[path]) == rows:
      continue
    kind = 'times' if rule == 'original' else name
    resized[path] = np.asarray(fit_table(kind, params[path], rows))
    lines.append(f'{path}: {len(params[path])} to {rows} rows')
  return resized, lines


def _named(name, tensor):
  """A name in the original, with those in the file if they are others."""
  if tensor.names == (name,):
    return name
  return f'{name} (in the file: {", ".join(tensor.names)})'


def _is_float(dtype):
  # NumPy knows bfloat16 as a type of its own kind.
  return np.issubdtype(dtype, np.floating) or dtype.name == 'bfloat16'
