"""The folder of a run: one owner at a time, one config, one log.

config.json   the options the run was started with
parameters.txt  names, shapes and sizes of what is trained
log.txt       what was logged, all starts one after another
checkpoints/  see checkpoints.py        tensorboard/  curves
report.json   the end: final metrics, clips/s, share of waiting
"""

import contextlib
import json
import logging as python_logging
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
  workdir = files.local(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  if jax.process_index() != 0:
    yield workdir
    return
  at_work = f'is at work in {workdir}; wait for its end or choose another --workdir.'
  with files.lock(workdir / 'lock', at_work):
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


def write_json(path: pathlib.Path, value) -> None:
  """Writes a JSON file that is never seen half written, on one host."""
  text = json.dumps(value, indent=2, default=lambda number: np.asarray(number).tolist())
  write_text(path, text + '\n')


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file that is never seen half written, on one host."""
  if jax.process_index() == 0:
    files.write_text(path, text)
