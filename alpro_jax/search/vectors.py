"""The vectors of an index for other tools."""

import json
import pathlib

import numpy as np

from alpro_jax import files
from alpro_jax.search.store import Clips, show_name


def write(path, clips: Clips, about) -> None:
  """Writes video, start, stop and vector of every clip.

  Args:
    path: ending in .npz, or in .parquet, which needs pyarrow.
    clips: all of an index.
    about: of the index; stored beside.
  Raises:
    ValueError: for another ending, or without pyarrow.
  """
  path = pathlib.Path(path)
  write_columns = {'.npz': _npz, '.parquet': _parquet}.get(path.suffix.lower())
  if write_columns is None:
    raise ValueError(f'--output={path} must end in .npz or .parquet.')
  names = [show_name(name) for name in clips.name]
  columns = {'video': names, 'start': clips.start, 'stop': clips.stop, 'vector': clips.vector}
  note = json.dumps({name: about[name] for name in ('folders', 'checkpoint', 'cutting', 'shown')})
  with files.file(path) as made:
    write_columns(made, columns, note)


def _npz(path, columns, note):
  with open(path, 'wb') as file:
    np.savez(file, **columns, about=note)


def _parquet(path, columns, note):
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError as error:
    raise ValueError(
      '.parquet needs pyarrow, which is not installed; pip install pyarrow, '
      'or give an --output that ends in .npz.'
    ) from error
  vector = columns['vector']
  rows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vector.ravel()), vector.shape[1])
  names = pyarrow.array(columns['video'], pyarrow.string())
  table = pyarrow.table(columns | {'video': names, 'vector': rows})
  parquet.write_table(table.replace_schema_metadata({'alpro': note}), path)
