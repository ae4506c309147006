"""What frozen encoders made of a prepared set, on disk, and batches of it.

Made by train/features.py, and read without TensorFlow or a model.
"""

import itertools
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from alpro_jax import files
from alpro_jax.data.manifest import load, write_json
from alpro_jax.data.order import Order, texts

ABOUT = 'features.json'
PART_BYTES = 64 << 20  # Of a file; what a process that is killed has to make again.


class Rows:
  """Rows of named arrays in a folder, by number.

      FOLDER/features.json       what they were made of
      FOLDER/00000.safetensors   the first `part` rows, and so on: whole, or not there

  Attributes:
    folder, count: where they are, and how many they will be.
    about: features.json: what is given, or, where there is one already, what it says.
    row: {name: (shape, dtype)} of one row.
    made: rows that are there, the first ones, up to a part that cannot be opened.
  """

  def __init__(self, folder, about: Mapping[str, Any], row: Mapping[str, tuple], count: int):
    self.folder, self.row, self.count = pathlib.Path(folder), dict(row), count
    self.part = max(1, PART_BYTES // self.row_bytes)
    path = self.folder / ABOUT
    if not path.exists():
      self.folder.mkdir(parents=True, exist_ok=True)
      write_json(path, about)
    self.about = load(path, f'delete {self.folder}, and it is made again')
    self._parts = [self._file(i) for i in range(-(-count // self.part))]
    there = itertools.takewhile(_is_whole, self._parts)
    self.made = min(len(list(there)) * self.part, count)
    self._opened: dict[int, dict[str, Any]] = {}

  def _file(self, number):
    return self.folder / f'{number:05}.safetensors'

  @property
  def row_bytes(self) -> int:
    return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self.row.values())

  def write(self, batches: Iterable[Mapping[str, np.ndarray]], done=lambda count: None) -> None:
    """Writes the rows from `made` on, part by part.

    Args:
      batches: {name: f[n, ...]}, any n, of all rows that are missing, in order.
      done: is told how many rows were made since the last call.
    """
    waiting = {name: np.zeros((0, *shape), dtype) for name, (shape, dtype) in self.row.items()}
    for batch in batches:
      waiting = {
        name: np.concatenate([rows, np.asarray(batch[name]).astype(rows.dtype)])
        for name, rows in waiting.items()
      }
      while 0 < (size := self._wanted) <= len(next(iter(waiting.values()))):
        with files.file(self._file(self.made // self.part)) as made:
          safetensors.numpy.save_file({name: x[:size] for name, x in waiting.items()}, made)
        waiting = {name: x[size:] for name, x in waiting.items()}
        self.made += size
      done(len(next(iter(batch.values()))))

  @property
  def _wanted(self):
    """Rows of the next part; 0 at the end."""
    return min(self.part, self.count - self.made)

  def read(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
    """Returns {name: f[n, ...]} of rows int[n].

    Raises:
      OSError: where the disk fails.
    """
    found: dict[str, list] = {name: [] for name in self.row}
    for part, place in zip(*np.divmod(numbers, self.part), strict=True):
      if part not in self._opened:
        opened = safetensors.safe_open(self._parts[part], 'np')
        self._opened[part] = {name: opened.get_slice(name) for name in self.row}
      for name, values in self._opened[part].items():
        found[name].append(values[int(place)])
    return {name: np.stack(values) for name, values in found.items()}


def _is_whole(path):
  """Whether a part is there, and as long as its first bytes say."""
  try:
    with safetensors.safe_open(path, 'np'):
      return True
  except (FileNotFoundError, safetensors.SafetensorError):
    return False


class Made(NamedTuple):
  """What a source is read from in place of its pixels, and of texts of a frozen text tower."""

  video: Rows  # By record: 'tokens', and 'frames' where the encoder gives them.
  text: Rows | None  # By text: 'text'.


def train_batches(made, config, sources, tokenizer, *, seed, start_step, batch_size, rows):
  """Yields the batches of pipeline.train_batches, with what frozen encoders made of them.

  Args:
    made: a Made for each of the sources.
    config, sources, tokenizer, seed, start_step, batch_size, rows: see pipeline.train_batches.
  """
  order = Order(sources, seed, batch_size)
  for step in itertools.count(start_step):
    plan = order.plan(step, rows)
    video, text = made[plan.source.key]
    records, known = video.read(plan.records), plan.source.dataset.metadata()
    batch = texts(plan, tokenizer, config.max_text_tokens) | {
      'video': (records.get('frames'), records['tokens']),
      'still': np.array([known[int(number)].still for number in plan.records]),
    }
    if text:
      batch['tower_ids'] = text.read(plan.texts)['text']
    yield batch
