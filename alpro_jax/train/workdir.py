"""The folder of a run: one owner at a time, one config, one log.

  config.json   the options the run was started with
  log.txt       what was logged, all starts one after another
  checkpoints/  see checkpoints.py        tensorboard/  curves
  report.json   the end: final metrics, clips/s, share of waiting
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import logging as python_logging
import os
import pathlib
import sys

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

# Options that may differ when a run goes on: they decide what is shown, kept
# or measured, or where things run and lie, but not what is learned. Data and
# tokenizer are known by their digests, answers by themselves: their paths may
# change.
FREE = (
    'train.log_every_steps',
    'train.checkpoint_every_steps',
    'train.checkpoint_every_seconds',
    'train.keep_newest',
    'train.eval_every_steps',
    'train.best_metric',
    'train.non_finite',
    'train.skip_limit',
    'train.spike_deviations',
    'train.standstill_seconds',
    'train.stop_seconds',
    # As `mesh`, these change rounding alone.
    'model.attention_impl',
    'model.scan_layers',
    'model.remat',
    'loss.vtc_chunk',
    'eval.',
    'mesh.',
    'data.threads',
    'data.verify',
    'data.tokenizer',
    'data.answers',
)
_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


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
  draft = path.with_name(path.name + '.draft')
  draft.write_text(json.dumps(value, indent=2, default=_number) + '\n')
  draft.replace(path)


def _number(value):
  return np.asarray(value).tolist()


def describe(config, task, tokenizer, sources):
  """Returns the JSON that is stored with every checkpoint."""
  return {
      'task': config.task,
      'model': dataclasses.asdict(task.model.config),
      'tokenizer': {
          'digest': tokenizer.digest,
          'vocab_size': tokenizer.vocab_size,
          'special': tokenizer.special._asdict(),
      },
      'data': [source.digest for source in sources],
      'answers': list(task.answers),
      'config': plain(config),
      'versions': {
          'python': sys.version.split()[0],
          **{name: importlib.metadata.version(name) for name in _LIBRARIES},
      },
  }


def check_same_everywhere(meta: dict) -> None:
  """Refuses hosts that would train on different things.

  Args:
    meta: what this process would store.
  Raises:
    ValueError: on every process, with the names that differ from process 0's.
  """
  if jax.process_count() == 1:
    return
  mine = json.dumps(_identity(meta), sort_keys=True).encode()
  sizes = multihost_utils.process_allgather(np.int32(len(mine)))
  padded = np.zeros(sizes.max(), np.uint8)
  padded[:len(mine)] = np.frombuffer(mine, np.uint8)
  everyone = [
      json.loads(row[:size].tobytes()) for row, size in zip(
          multihost_utils.process_allgather(padded), sizes, strict=True)]
  lines = [
      f'process {number} has {name}={theirs.get(name, "absent")!r}, process 0 '
      f'{everyone[0].get(name, "absent")!r}'
      for number, theirs in enumerate(everyone)
      for name in sorted(set(theirs) | set(everyone[0]))
      if theirs.get(name) != everyone[0].get(name)]
  if lines:
    raise ValueError(
        'the processes would not train the same: ' + '; '.join(lines[:10])
        + '. Start all with the same options, and give all the same data.')


def check_same_run(stored: dict, meta: dict) -> None:
  """Refuses to go on with a run under options that would change it.

  Args:
    stored: what was stored with the checkpoint.
    meta: what would be stored now.
  Raises:
    ValueError: with every name that differs and both values.
  """
  # The digests may come in another order of folders, not of sources.
  old, new = _identity(stored), _identity(meta)
  later = {
      name: new.pop(name) for name in sorted(set(new) - set(old))
      if name.startswith('config.') and '.sources.' not in name
  }
  if later:
    logging.warning('options that did not exist when this run began: %s', later)
  lines = [
      f'{name}: was {old.get(name, "absent")!r}, is {new.get(name, "absent")!r}'
      for name in sorted(set(old) | set(new))
      if old.get(name) != new.get(name)
  ]
  old_steps, steps = stored['config']['train']['steps'], meta['config'][
      'train']['steps']
  if steps < old_steps:
    lines.append(f'config.train.steps: was {old_steps}, is {steps}; may grow')
  if lines:
    raise ValueError(
        'this workdir holds a run with other options; use them again, or '
        'another --workdir (with --config.train.init_from to start from this '
        'run). They differ in ' + '; '.join(lines) + '.'
    )
  if steps > old_steps:
    logging.warning(
        'train.steps grew from %d to %d; the learning rate now follows the '
        'longer schedule.', old_steps, steps)
  if stored['versions'] != meta['versions']:
    logging.warning(
        'library versions changed since the checkpoint (%s -> %s); the run '
        'may not repeat bit for bit.', stored['versions'], meta['versions'])


def _identity(meta):
  """Returns {dotted name: value} of what must not change during a run."""
  flat = {}

  def visit(name, value):
    if isinstance(value, dict):
      for key, item in value.items():
        visit(f'{name}.{key}', item)
    elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
      for index, item in enumerate(value):
        visit(f'{name}.{index}', item)
    else:
      flat[name] = value

  names = ('config', 'model', 'tokenizer', 'data')
  visit('', {name: plain(meta[name]) for name in names})
  # Thousands of answers would hide what differs.
  answers = '\n'.join(meta.get('answers', ())).encode()
  flat['.answers'] = hashlib.sha256(answers).hexdigest()[:12]
  flat = {name[1:]: value for name, value in flat.items()}
  free = tuple(f'config.{name}' for name in (*FREE, 'train.steps'))
  # The sizes of the model are there twice, as options and as built.
  free += tuple(name for name in FREE if name.startswith('model.'))
  return {
      name: value for name, value in flat.items()
      if not name.startswith(free)
      and not (name.startswith('config.data.sources') and
               name.endswith('.path'))
  }
