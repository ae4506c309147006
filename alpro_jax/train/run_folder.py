"""The folder of a run: one owner at a time, one config, one log.

config.json   the options the run was started with
parameters.txt  names, shapes and sizes of what is trained
log.txt       what was logged, all starts one after another
checkpoints/  see checkpoints.py        tensorboard/  curves
report.json   the end: final metrics, clips/s, share of waiting; gone while a longer run trains
"""

import contextlib
import json
import logging as python_logging
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from alpro_jax import buckets, files
from alpro_jax.lease import Lease
from alpro_jax.train import checkpoints, digests
from alpro_jax.train.mirror import Mirror


class Claimed(NamedTuple):
  """Where the owner of a workdir writes.

  Attributes:
    folder: of this machine; of a workdir in a bucket a copy, which is uploaded now and then.
    checkpoints: what checkpoints.Checkpoints takes: the folder, or gs://, to which all hosts
      write.
    check: raises LeaseLost if another process is the owner by now.
  """

  folder: pathlib.Path
  checkpoints: str | pathlib.Path
  check: Callable[[], None]


@contextlib.contextmanager
def claim(workdir) -> Iterator[Claimed]:
  """Makes this process the owner of a workdir and logs to its log.txt.

  Raises:
    ValueError: if another run is at work there.
  """
  at_work = f'is at work in {workdir}; wait for its end or choose another --workdir.'
  lock = files.join(workdir, 'lock')
  if buckets.is_address(workdir):
    with _in_bucket(os.fspath(workdir), lock, at_work) as claimed, _logged(claimed.folder):
      yield claimed
    return
  workdir = pathlib.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  claimed = Claimed(workdir, workdir, lambda: None)
  if jax.process_index() != 0:
    yield claimed
    return
  with files.lock(lock, at_work), _logged(workdir):
    yield claimed


@contextlib.contextmanager
def _in_bucket(address, lock, at_work):
  """Yields what `claim` does. Checkpoints at s3:// go the way of the other files.

  Orbax writes to gs:// from all hosts, and not to s3://.
  """
  by_orbax = address.startswith('gs://')
  if not by_orbax and jax.process_count() > 1:
    raise ValueError(
      f'--workdir={address}: checkpoints of {jax.process_count()} processes can be written to '
      'gs:// or a shared folder; with s3:// train in one process.'
    )

  def stays(path):
    return path.parts[0] == checkpoints.FOLDER and (by_orbax or not path.parts[1].isdigit())

  with contextlib.ExitStack() as held:
    place = held.enter_context(tempfile.TemporaryDirectory(prefix='alpro_jax-'))
    folder = pathlib.Path(place, address.rstrip('/').rpartition('/')[2])
    folder.mkdir()
    if jax.process_index() != 0:
      yield Claimed(folder, address, lambda: None)
      return
    lease = held.enter_context(Lease(lock, at_work))
    there = buckets.listing(address)
    wanted = [name for name in there if name != 'lock' and not stays(pathlib.PurePath(name))]
    # A step whose upload or removal was broken off lacks its digests.
    steps = {name.rpartition('/')[0] for name in wanted if name.endswith(f'/{digests.FILE}')}
    broken = [
      name
      for name in wanted
      if name.startswith(f'{checkpoints.FOLDER}/') and '/'.join(name.split('/')[:2]) not in steps
    ]
    buckets.remove(address, broken)
    kept = {name: folder / name for name in wanted if name not in broken}
    buckets.download(address, kept, there)
    held.enter_context(Mirror(folder, address, lease, stays))
    yield Claimed(folder, address if by_orbax else folder, lease.check)


@contextlib.contextmanager
def _logged(folder):
  if jax.process_index() != 0:
    yield
    return
  handler = python_logging.FileHandler(folder / 'log.txt')
  handler.setFormatter(logging.PythonFormatter())
  python_logging.getLogger('absl').addHandler(handler)
  try:
    yield
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


def remove(path: pathlib.Path) -> None:
  """Removes a file if it is there, on one host."""
  if jax.process_index() == 0:
    path.unlink(missing_ok=True)
