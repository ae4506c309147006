"""Checkpoints: what is stored, what is checked, what is kept.

One folder for each step, with three items: `params`, the model as it is used,
averaged if an average is kept and LoRA merged, so that another run can start
from it alone; `train`, what else the state has; `meta`, JSON that train/identity.py
describes, and the digests of the arrays. `words` has copies of the small files
without which parameters mean nothing: tokenizer, entities, answers. These and
the digests of all files are written before the folder gets its final name, so a
folder with a number for a name is complete, and may be copied anywhere.
"""

import contextlib
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from alpro_jax import buckets
from alpro_jax.train import digests
from alpro_jax.train.checkpoint import WORDS, DamagedCheckpointError
from alpro_jax.train.checkpoint import Checkpoint as Checkpoint
from alpro_jax.train.state import TrainState

FOLDER = 'checkpoints'
_COMMITTED = 'commit_success.txt'  # Orbax's last file of a step in a bucket.
_UNFINISHED = ocp.utils.TMP_DIR_SUFFIX  # In the name of a step that is being saved.


class SaveError(OSError):
  """A checkpoint could not be written; those before it are as they were."""


def find(path) -> Checkpoint:
  """Returns an intact checkpoint: all its files have the digests of what was written.

  A save that was not finished, because the run was killed meanwhile or is at work,
  is no damage: the log says which step is used in its place.

  Args:
    path: a workdir or its checkpoints, for the newest one that is intact; the
      folder of one step, e.g. `runs/a/checkpoints/300`; or a Checkpoint.
  Raises:
    FileNotFoundError: if there is none.
    DamagedCheckpointError: if a file is not what was written.
  """
  if isinstance(path, Checkpoint):
    return path
  path = local(path).absolute()
  if _UNFINISHED in path.name:
    raise FileNotFoundError(
      f'{path} is a save that was not finished: its run was stopped meanwhile, or is '
      f'at work. Pass {path.parent.parent}, for the newest step that is whole.'
    )
  folder = path if path.name == FOLDER else path / FOLDER
  steps = [path] if (path / 'params').is_dir() else step_folders(folder)
  begun = {int(p.name.split('.')[0]) for p in folder.glob(f'[0-9]*{_UNFINISHED}*')}
  if not steps and (begun or (path / 'log.txt').is_file()):
    when = f'while it saved its first, step {max(begun)}' if begun else 'before it saved one'
    raise FileNotFoundError(
      f'the run in {path} has no checkpoint yet: it was stopped {when}, or is at work. '
      'Give its command again and wait for one (config.train.checkpoint_every_steps).'
    )
  if not steps:
    raise FileNotFoundError(
      f'no checkpoint in {path}; expected the workdir of a run of '
      'launch/main.py or the folder of one of its steps.'
    )
  for step in reversed(steps):
    if not (damage := digests.damage(step)):
      if begun and step != path and max(begun) > int(step.name):
        logging.warning(
          'the save of step %d in %s was not finished: the run was stopped meanwhile, or is '
          'at work. Step %s, which is whole, is used.',
          max(begun),
          folder.parent,
          step.name,
        )
      return Checkpoint(step)
    if step != steps[0]:
      logging.warning('%s The one before is used.', damage)
  raise DamagedCheckpointError(damage)


def local(path) -> pathlib.Path:
  """Returns a path of this machine; of a run in a bucket the newest step is fetched."""
  return buckets.fetch(os.fspath(path), _newest) if buckets.is_address(path) else pathlib.Path(path)


def _newest(there):
  """Returns which of the files of a run, of its checkpoints or of a step are to be read.

  Digests are written when all else is there.
  """
  whole = re.compile(rf'((?:{FOLDER}/)?(\d+)/){re.escape(digests.FILE)}')
  steps = {int(found[2]): found[1] for name in there if (found := whole.fullmatch(name))}
  newest = steps[max(steps)] if steps else None
  return [
    name
    for name in there
    if (newest and name.startswith(newest))
    or not (name.startswith(f'{FOLDER}/') or name.split('/')[0].isdigit())
  ]


def load_meta(path) -> dict[str, Any]:
  """Returns what was stored with a checkpoint; `path` as in `find`."""
  return find(path).meta


def step_folders(folder) -> list[pathlib.Path | epath.Path]:
  """Returns the folders of the steps below FOLDER, here or in a bucket, the oldest first."""
  if buckets.is_address(folder):
    numbers = {
      int(name.split('/')[0])
      for name in buckets.listing(os.fspath(folder))
      if name.endswith(f'/{_COMMITTED}') and name.split('/')[0].isdigit()
    }
    return [epath.Path(folder) / str(number) for number in sorted(numbers)]
  steps = folder.iterdir() if folder.is_dir() else ()
  return sorted((p for p in steps if p.name.isdigit()), key=lambda p: int(p.name))


def have_begun(workdir) -> bool:
  """Whether a run, here or in a bucket, has a whole checkpoint."""
  if buckets.is_address(workdir):
    end = f'/{digests.FILE}'
    there = buckets.listing(os.fspath(workdir))
    return any(name.startswith(f'{FOLDER}/') and name.endswith(end) for name in there)
  return bool(step_folders(pathlib.Path(workdir, FOLDER)))


def write_words(folder, words: Mapping[str, bytes]) -> None:
  """Writes what `identity.words` gave into the folder of a step."""
  (folder / WORDS).mkdir(exist_ok=True)
  for name, content in words.items():
    (folder / WORDS / name).write_bytes(content)


class Checkpoints:
  """The checkpoints of one run.

  Saving is asynchronous: `save` returns once the arrays are copied to the
  host. The newest ones are kept and, if `best_metric` is set, the best one.
  """

  def __init__(
    self,
    workdir,
    *,
    keep_newest: int = 2,
    best_metric: str = '',
    words: Mapping[str, bytes] | None = None,
    check: Callable[[], None] = lambda: None,
  ):
    """Opens the folder and moves damaged checkpoints out of the way.

    Args:
      workdir: of the run; a folder, or gs://.
      keep_newest: how many are kept; with 2 a damaged newest one costs little.
      best_metric: name in the metrics given to `save`; large is good, or small
        with a '-' in front. '' keeps the newest alone.
      words: files that go into every checkpoint, by name; see identity.words.
      check: called before a save; raises if the workdir is another process's by now.
    Raises:
      DamagedCheckpointError: if there are checkpoints and none is intact.
    """
    if keep_newest < 1:
      raise ValueError(f'config.train.{keep_newest=} must be at least 1.')
    in_bucket = buckets.is_address(workdir)
    self.folder = (epath.Path(workdir) if in_bucket else pathlib.Path(workdir).absolute()) / FOLDER
    self._check = check
    self._best_metric, self._saving = best_metric.removeprefix('-'), None
    self._words = dict(words or {})
    self._sign = -1.0 if best_metric.startswith('-') else 1.0
    if jax.process_index() == 0:
      steps = step_folders(self.folder)
      # What lies in a bucket is not read twice: arrays are compared when they are restored.
      self._move_damaged({step: digests.damage(step, content=not in_bucket) for step in steps})
    _meet('damaged checkpoints are out of the way')
    policies = ocp.checkpoint_managers
    keep = [policies.LatestN(keep_newest)]
    if best_metric:
      keep.append(
        policies.BestN(get_metric_fn=self._rank, n=1, keep_checkpoints_without_metrics=False)
      )
    self._manager = ocp.CheckpointManager(
      self.folder,
      options=ocp.CheckpointManagerOptions(
        best_fn=self._rank if best_metric else None,
        preservation_policy=policies.AnyPreservationPolicy(keep),
        cleanup_tmp_directories=True,
        async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
      ),
    )

  def newest(self) -> int | None:
    """Returns the step of the newest checkpoint."""
    return self._manager.latest_step()

  def best(self) -> int | None:
    """Returns the step of the best checkpoint that has the metric."""
    if not self._best_metric:
      return None
    self._wait()
    ranks = {s: self._rank(self._manager.metrics(s) or {}) for s in self._manager.all_steps()}
    ranks = {step: rank for step, rank in ranks.items() if rank > -math.inf}
    return max(ranks, key=ranks.get, default=None)

  def save(self, state: TrainState, meta: dict, metrics=None, *, replace: bool = False) -> bool:
    """Starts to save a state, unless its step is stored already.

    Args:
      state: may be donated to the next step at once.
      meta: JSON to store with it.
      metrics: evaluation results by name, None if there are none.
      replace: store it even then, in the place of what is there.
    Returns:
      whether there was anything to save.
    Raises:
      SaveError: if this checkpoint or the one before it cannot be written.
      ValueError: if the metrics lack `best_metric`; it is saved even so.
    """
    step = int(jax.device_get(state.step))
    self._wait()
    self._check()
    if step in self._manager.all_steps():
      if not replace:
        return False
      self._manager.delete(step)
    self._saving = step
    items = state.stored()
    meta = {**meta, 'step': step, 'arrays': digests.of_arrays(items)}
    args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    args = ocp.args.Composite(**args, meta=ocp.args.JsonSave(meta))
    with self._saving_may_fail():
      self._manager.save(step, args=args, metrics=metrics, force=True)
    if self._best_metric and metrics is not None and self._best_metric not in metrics:
      raise ValueError(
        f'config.train.best_metric names {self._best_metric!r}, which no evaluation gave; '
        f'there are {sorted(metrics)}. Step {step} is saved: start again '
        'with one of these, and it goes on from there.'
      )
    return True

  def meta(self, step: int) -> dict[str, Any]:
    """Returns what was stored with a step."""
    self._wait()
    return Checkpoint(self.folder / str(step)).meta

  def restore(self, step: int, abstract: TrainState) -> TrainState:
    """Returns the state of a step; see `Checkpoint.restore`."""
    return Checkpoint(self.folder / str(step)).restore(abstract)

  def set_aside(self, step: int, error: DamagedCheckpointError) -> None:
    """Moves a damaged checkpoint out of the way, or raises if there is no other."""
    damages = {s: str(error) if s == step else '' for s in self._manager.all_steps()}
    self._move_damaged({self.folder / str(s): damage for s, damage in damages.items()})
    _meet('a damaged checkpoint is out of the way')
    self._manager.reload()

  def close(self) -> None:
    """Waits until everything is on disk, or raises SaveError."""
    with self._saving_may_fail():
      self._manager.close()

  def _wait(self):
    with self._saving_may_fail():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _saving_may_fail(self):
    """Says of a failed save what is left; it may fail in a later call."""
    try:
      yield
    except Exception as error:  # Orbax and TensorStore have many.
      whole = step_folders(self.folder)  # A save that was broken off keeps its suffix.
      left = 'There is no other to go on from.'
      if whole:
        left = f'Step {whole[-1].name} is whole, and is where it goes on.'
      free = ''
      if not buckets.is_address(self.folder):
        free = f' ({shutil.disk_usage(self.folder).free / 2**20:.0f} MiB are free there)'
      reason = str(error).strip().splitlines() or [type(error).__name__]
      raise SaveError(
        f'the checkpoint of step {self._saving} could not be written to '
        f'{self.folder}{free}: '
        f'{reason[-1][-200:]}. If that is for lack of space, free some; then '
        f'give the same command again. {left}'
      ) from error

  def _seal(self):
    """Called in the saving thread when all files are written, before the rename."""
    if jax.process_index() == 0:
      # A bucket cannot rename: the step is written at its place, and then its marker.
      unfinished = self.folder.glob(f'{self._saving}.*')
      if buckets.is_address(self.folder):
        unfinished = [self.folder / str(self._saving)]
      for folder in unfinished:
        write_words(folder, self._words)
        digests.write(folder)

  def _rank(self, metrics) -> float:
    """Largest of the best; earlier starts may have evaluated on other sets."""
    return self._sign * float(metrics.get(self._best_metric, -self._sign * math.inf))

  def _move_damaged(self, damages):
    """Renames folders to `damaged/STEP`; `damages` says of every step's what is wrong, or ''."""
    damaged = {step: what for step, what in damages.items() if what}
    if damaged and len(damaged) == len(damages):
      raise DamagedCheckpointError(
        f'{[*damaged.values()][-1]} No other checkpoint is intact; to start over, '
        f'delete {self.folder}.'
      )
    for step, what in damaged.items() if jax.process_index() == 0 else ():
      place = self.folder.parent / 'damaged'
      place.mkdir(exist_ok=True)
      names = (step.name, *(f'{step.name}.{number}' for number in range(1, 1000)))
      aside = next(place / name for name in names if not (place / name).exists())
      if buckets.is_address(step):
        buckets.move(os.fspath(step), os.fspath(aside))
      else:
        step.rename(aside)
      logging.warning('%s Moved to %s; another one is used.', what, aside)


def _meet(what):
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)
