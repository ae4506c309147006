"""Checkpoints: what is stored, what is checked, what is kept.

One folder for each step, with three items: `params`, so that another run can
start from them alone; `train`, the step and the optimizer's moments; `meta`,
JSON about the model, tokenizer, data and versions. `digests.json` beside them
is written before the folder gets its final name, so a folder with a number for
a name is complete, and later damage to any of its files is found. The meta
hold a digest of every array as well, which is compared with what came back.
"""

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from alpro_jax.train import digests
from alpro_jax.train.digests import by_name, leaf_name
from alpro_jax.train.state import TrainState

FOLDER = 'checkpoints'


class DamagedCheckpointError(ValueError):
  """A file or an array of a checkpoint is not what was written."""


class SaveError(OSError):
  """A checkpoint could not be written; those before it are as they were."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """One step of a run, its files found as they were written; see `find`."""

  folder: pathlib.Path

  @functools.cached_property
  def meta(self) -> dict[str, Any]:
    """The JSON that was stored with it."""
    return json.loads((self.folder / 'meta' / 'metadata').read_text())

  def params_digests(self) -> dict[str, str]:
    """Returns the digest of every parameter; see `digests.of_arrays`."""
    stored = self.meta.get('arrays')
    if not stored:  # An older checkpoint.
      return digests.of_arrays(self.load('params', {}, unused=lambda name: True)[0])
    items = (name.partition('/') for name in stored)
    return {name: stored[f'{item}/{name}'] for item, _, name in items if item == 'params'}

  def load_params(
    self,
    abstract: Any,
    *,
    initial: Any = None,
    new: Sequence[str] = (),
    fresh: Sequence[str] = (),
    unused: Sequence[str] = (),
    resize: Mapping[str, Callable[[jax.Array, int], jax.Array]] | None = None,
  ) -> Any:
    """Returns the parameters, by name.

    Args:
      abstract: the wanted tree of ShapeDtypeStructs, with sharding or without
        (then on the first local device).
      initial: values of the parameters that may be missing.
      new: names that start with one of these may be missing.
      fresh: those that start with one of these are taken from `initial` in any case.
      unused: names that start with one of these may be left over.
      resize: for tables that may have another number of rows, by name: (stored
        table, wanted rows) -> table.
    Raises:
      ValueError: with all names that are missing, left over, or of another
        shape or type.
      DamagedCheckpointError: if an array is not what was written.
    """
    wanted = by_name(abstract)
    afresh = {name for name in wanted if name.startswith(tuple(fresh))}
    restored, missing = self.load(
      'params',
      {name: leaf for name, leaf in wanted.items() if name not in afresh},
      new=new,
      unused=lambda name: name.startswith((*unused, *fresh)),
      resize=resize or {},
    )
    missing |= afresh
    if missing and initial is None:
      raise ValueError(
        f'{self.folder}: {_listed(missing)} missing and no initial values were given.'
      )
    if missing:
      logging.info('new parameters, initialised: %s', _listed(missing))
      restored |= {name: leaf for name, leaf in by_name(initial).items() if name in missing}
    return _tree(abstract, restored)

  def load(self, item, wanted, *, new=(), unused=lambda name: False, resize=()):
    """Reads 'params' or 'train', by name.

    Args:
      item: which of them.
      wanted: {name: ShapeDtypeStruct}.
      new: as `load_params` has it.
      unused: name -> whether it may be left over.
      resize: as `load_params` has it.
    Returns:
      {name: array} of all that is stored, and the wanted names that are missing.
    """
    folder, reader = epath.Path(self.folder / item), ocp.StandardCheckpointHandler()
    tree = reader.metadata(folder).tree
    found = by_name(tree)
    resized = {
      name: wanted[name]
      for name in set(resize) & set(wanted) & set(found)
      if wanted[name].shape[0] != found[name].shape[0]
      and wanted[name].shape[1:] == tuple(found[name].shape[1:])
    }
    expected = {name: leaf for name, leaf in wanted.items() if name not in resized}
    missing = _check_names(folder, expected, found, new, lambda n: n in resized or unused(n))
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def target(path, leaf):
      where = getattr(expected.get(leaf_name(path)), 'sharding', None) or here
      return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    # Those left over are read as well: orbax restores whole trees only.
    targets = jax.tree_util.tree_map_with_path(target, tree)
    restored = by_name(reader.restore(folder, args=ocp.args.StandardRestore(targets)))
    self._check_arrays({item: restored})
    for name, leaf in resized.items():
      rows = leaf.shape[0]
      logging.info('resized: %s from %d to %d rows', name, found[name].shape[0], rows)
      table = np.asarray(resize[name](restored[name], rows), leaf.dtype)
      restored[name] = jax.make_array_from_callback(
        table.shape,
        getattr(leaf, 'sharding', None) or here,
        lambda index, table=table: table[index],
      )
    if wanted and (left := set(found) - set(wanted)):
      logging.info('%s of the checkpoint not used: %s', item, _listed(left))
    return restored, missing

  def _check_arrays(self, items):
    """Compares arrays with the digests that were taken when they were saved."""
    expected = self.meta.get('arrays')  # Older checkpoints have none.
    wrong = expected and [
      name for name, digest in digests.of_arrays(items).items() if digest != expected.get(name)
    ]
    if wrong:
      raise DamagedCheckpointError(
        f'checkpoint {self.folder} is damaged: {_listed(wrong[:5])} ({len(wrong)} of '
        f'{len(expected)} arrays) came back other than they were saved, though the files are whole.'
      )


def find(path) -> Checkpoint:
  """Returns an intact checkpoint: all its files have the digests of what was written.

  Args:
    path: a workdir or its checkpoints, for the newest one that is intact; or
      the folder of one step, e.g. `runs/a/checkpoints/300`; or a Checkpoint,
      which is returned.
  Raises:
    FileNotFoundError: if there is none.
    DamagedCheckpointError: if a file is not what was written.
  """
  if isinstance(path, Checkpoint):
    return path
  path = pathlib.Path(path).absolute()
  folder = path if path.name == FOLDER else path / FOLDER
  steps = [path] if (path / 'params').is_dir() else step_folders(folder)
  if not steps:
    raise FileNotFoundError(
      f'no checkpoint in {path}; expected the workdir of a run of '
      'launch/main.py or the folder of one of its steps.'
    )
  for step in reversed(steps):
    damage = digests.damage(step)
    if not damage:
      return Checkpoint(step)
    if step != steps[0]:
      logging.warning('%s The one before is used.', damage)
  raise DamagedCheckpointError(damage)


def load_meta(path) -> dict[str, Any]:
  """Returns what was stored with a checkpoint; `path` as in `find`."""
  return find(path).meta


def step_folders(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the folders of the steps below FOLDER, the oldest first."""
  if not folder.is_dir():
    return []
  return sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


class Checkpoints:
  """The checkpoints of one run.

  Saving is asynchronous: `save` returns once the arrays are copied to the
  host. The newest ones are kept and, if `best_metric` is set, the best one.
  """

  def __init__(self, workdir, *, keep_newest: int = 2, best_metric: str = ''):
    """Opens the folder and moves damaged checkpoints out of the way.

    Args:
      workdir: of the run.
      keep_newest: number of checkpoints kept to resume from, at least 1; with 2
        a damaged newest one costs little.
      best_metric: name in the metrics given to `save`; large is good, or small
        with a '-' in front. '' keeps the newest alone.
    Raises:
      DamagedCheckpointError: if there are checkpoints and none is intact.
    """
    if keep_newest < 1:
      raise ValueError(f'config.train.{keep_newest=} must be at least 1.')
    self.folder = pathlib.Path(workdir).absolute() / FOLDER
    if jax.process_index() == 0:
      self._set_aside({step: digests.damage(step) for step in step_folders(self.folder)})
    _meet('damaged checkpoints are out of the way')
    self._best_metric = best_metric.removeprefix('-')
    self._sign = -1.0 if best_metric.startswith('-') else 1.0
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
    self._saving = None

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
      ValueError: if the metrics do not hold `best_metric`; it is saved even so.
    """
    step = int(jax.device_get(state.step))
    self._wait()
    if step in self._manager.all_steps():
      if not replace:
        return False
      self._manager.delete(step)
    self._saving = step
    items = _items(state)
    meta = {**meta, 'step': step, 'arrays': digests.of_arrays(items)}
    with self._saving_may_fail():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
          meta=ocp.args.JsonSave(meta),
        ),
        metrics=metrics,
        force=True,
      )
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
    """Returns the stored state of a step.

    Args:
      step: as given by `newest`.
      abstract: ShapeDtypeStructs that carry the wanted sharding; the number of
        devices may differ from that of the run that saved.
    Raises:
      ValueError: if names, shapes or types differ from what is stored. Moments
        of frozen parameters, which the optimizer once kept, are left out.
      DamagedCheckpointError: if an array is not what was given to `save`.
    """
    items = _items(abstract)
    names = by_name(items['params'])

    def of_frozen(name):
      moment = re.fullmatch(r'opt_state/(?:.*/)?[mn]u/(.*)', name)
      return moment and moment[1] in names

    stored = Checkpoint(self.folder / str(step))
    params, _ = stored.load('params', names)
    train, _ = stored.load('train', by_name(items['train']), unused=of_frozen)
    train = _tree(items['train'], train)
    return TrainState(train['step'], _tree(abstract.params, params), train['opt_state'])

  def set_aside(self, step: int, error: DamagedCheckpointError) -> None:
    """Moves a checkpoint out of the way that turned out to be damaged.

    Raises:
      DamagedCheckpointError: if there is no other to resume from.
    """
    damages = {
      self.folder / str(other): str(error) if other == step else ''
      for other in self._manager.all_steps()
    }
    self._set_aside(damages)
    _meet('a damaged checkpoint is out of the way')
    self._manager.reload()

  def close(self) -> None:
    """Waits until everything is on disk.

    Raises:
      SaveError: if it cannot be written.
    """
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
      # A save that was broken off keeps its suffix.
      whole = step_folders(self.folder)
      left = 'There is no other to go on from.'
      if whole:
        left = f'Step {whole[-1].name} is whole, and is where it goes on.'
      free = shutil.disk_usage(self.folder).free
      reason = str(error).strip().splitlines() or [type(error).__name__]
      raise SaveError(
        f'the checkpoint of step {self._saving} could not be written to '
        f'{self.folder} ({free / 2**20:.0f} MiB are free there): '
        f'{reason[-1][-200:]}. If that is for lack of space, free some; then '
        f'give the same command again. {left}'
      ) from error

  def _seal(self):
    """Called in the saving thread when all files are written, before the rename."""
    if jax.process_index() == 0:
      for folder in self.folder.glob(f'{self._saving}.*'):
        digests.write(folder)

  def _rank(self, metrics) -> float:
    """Largest of the best; earlier starts may have evaluated on other sets."""
    return self._sign * float(metrics.get(self._best_metric, -self._sign * math.inf))

  def _set_aside(self, damages):
    """Renames damaged checkpoints to `damaged/STEP`, so that none is loaded.

    Args:
      damages: {folder of every step: what is wrong with it, or ''}.
    """
    damaged = {step: what for step, what in damages.items() if what}
    if damaged and len(damaged) == len(damages):
      raise DamagedCheckpointError(
        f'{[*damaged.values()][-1]} No other checkpoint is intact; to start over, '
        f'delete {self.folder}.'
      )
    if jax.process_index() != 0:
      return
    place = self.folder.parent / 'damaged'
    for step, what in damaged.items():
      place.mkdir(exist_ok=True)
      names = (step.name, *(f'{step.name}.{number}' for number in range(1, 1000)))
      aside = next(place / name for name in names if not (place / name).exists())
      step.rename(aside)
      logging.warning('%s Moved to %s; another one is used.', what, aside)


def _items(state):
  """Returns what is stored of a state, as the trees of two items."""
  return {'params': state.params, 'train': {'step': state.step, 'opt_state': state.opt_state}}


def _meet(what):
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


def _tree(like, leaves):
  return jax.tree_util.tree_map_with_path(lambda path, _: leaves[leaf_name(path)], like)


def _listed(names):
  return ', '.join(sorted(names))


def _check_names(where, wanted, found, new, unused):
  """Compares leaves by name, shape and type; returns the allowed missing ones.

  Orbax names no path for a wrong shape and casts a wrong type silently.
  """
  missing = set(wanted) - set(found)
  lines = []
  if refused := [name for name in missing if not name.startswith(tuple(new))]:
    lines.append(
      f'missing from it: {_listed(refused)} (allow them with config.train.new_parameters)'
    )
  if extra := [name for name in set(found) - set(wanted) if not unused(name)]:
    lines.append(
      f'unknown to the model: {_listed(extra)} (allow them with config.train.unused_parameters)'
    )
  for name in sorted(set(wanted) & set(found)):
    got, expected = (
      f'{np.dtype(leaf.dtype)}[{", ".join(map(str, leaf.shape))}]'
      for leaf in (found[name], wanted[name])
    )
    if got != expected:
      lines.append(f'{name} is {got}, expected {expected}')
  if lines:
    raise ValueError(f'{where} does not fit the model. ' + '; '.join(lines) + '.')
  return missing
