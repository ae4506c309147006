"""The folder of a run: one owner at a time, one config, one log.

config.json   the options the run was started with
log.txt       what was logged, all starts one after another
checkpoints/  see checkpoints.py        tensorboard/  curves
report.json   the end: final metrics, clips/s, share of waiting
"""

import contextlib
import fcntl
import json
import logging as python_logging
import os
import pathlib

import jax
import numpy as np
from absl import logging

from alpro_jax import files


@contextlib.contextmanager
def claim(workdir):
  """Makes this process the owner of a workdir and logs to its log.txt.

  Raises:
    ValueError: if another run is at work there.
  """
  workdir = pathlib.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  if jax.process_index() != 0:
    yield workdir
    return
  # The lock goes with the process, however that ends.
  with open(workdir / 'lock', 'a+') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      lock.seek(0)
      raise ValueError(
        f'another run (process {lock.read().strip()}) is at work in '
        f'{workdir}; wait for its end or choose another --workdir.'
      ) from error
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    handler = python_logging.FileHandler(workdir / 'log.txt')
    handler.setFormatter(logging.PythonFormatter())
    python_logging.getLogger('absl').addHandler(handler)
    try:
      yield workdir
    finally:
      python_logging.getLogger('absl').removeHandler(handler)
      # A full disk: its last line may be lost, what ended the run may not.
      with contextlib.suppress(OSError):
        handler.close()


def plain(value):
  """Returns a config as JSON has it: dicts, lists, numbers, text."""
  if hasattr(value, 'items'):
    return {key: plain(item) for key, item in value.items()}
  if isinstance(value, (tuple, list)):
    return [plain(item) for item in value]
  return value


def write_json(path: pathlib.Path, value) -> None:
  """Writes a JSON file that is never seen half written."""
  if jax.process_index() != 0:
    return
  files.write_text(path, json.dumps(value, indent=2, default=_number) + '\n')


def _number(value):
  return np.asarray(value).tolist()
