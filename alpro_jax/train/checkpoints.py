"""Checkpoints: what is stored, what is checked, what is kept.

One folder for each step, with three items: `params`, so that another run can
start from them alone; `train`, the step and the optimizer's moments; `meta`,
JSON about the model, tokenizer, data and versions. `digests.json` beside them
is written before the folder gets its final name, so a folder with a number for
a name is complete, and later damage to any of its files is found. The meta
hold a digest of every array as well, which is compared with what came back.
"""

import contextlib
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

from alpro_jax import files
from alpro_jax.train.array_digests import array_digests, leaf_name
from alpro_jax.train.state import TrainState

FOLDER = 'checkpoints'
_DIGESTS = 'digests.json'
# Orbax rewrites its own record of times after the digests are taken.
_UNSEALED = (_DIGESTS, '_CHECKPOINT_METADATA', 'commit_success.txt')


class DamagedCheckpointError(ValueError):
  """A file or an array of a checkpoint is not what was written."""


class SaveError(OSError):
  """A checkpoint could not be written; those before it are as they were."""


class Checkpoints:
  """The checkpoints of one run.

  Saving is asynchronous: `save` returns once the arrays are copied to the
  host. The newest ones are kept and, if `best_metric` is set, the best one.
  """

  def __init__(self, workdir, *, keep_newest: int = 2, best_metric: str = ''):
    """Opens the folder and moves damaged checkpoints out of the way.

    Args:
      workdir: of the run.
      keep_newest: number of checkpoints kept for going on, at least 1; with 2
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
      _set_aside_damaged(self.folder)
    _meet('damaged checkpoints are out of the way')
    policies = ocp.checkpoint_managers
    keep = [policies.LatestN(keep_newest)]
    score = None
    if best_metric:
      score = functools.partial(_rank, name=best_metric)
      keep.append(policies.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False))
    self._manager = ocp.CheckpointManager(
      self.folder,
      item_handlers={
        'params': ocp.StandardCheckpointHandler(),
        'train': ocp.StandardCheckpointHandler(),
        'meta': ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        best_fn=score,
        preservation_policy=policies.AnyPreservationPolicy(keep),
        cleanup_tmp_directories=True,
        async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
      ),
    )
    self._best_metric = best_metric
    self._saving = None

  def newest(self) -> int | None:
    """Returns the step of the newest checkpoint."""
    return self._manager.latest_step()

  def best(self) -> int | None:
    """Returns the step of the best checkpoint that has metrics."""
    if not self._best_metric:
      return None
    with self._saving_may_fail():
      self._manager.wait_until_finished()
    metrics = {s: self._manager.metrics(s) for s in self._manager.all_steps()}
    scores = {
      step: _rank(given, self._best_metric)
      for step, given in metrics.items()
      if self._best_metric.removeprefix('-') in (given or ())
    }
    return max(scores, key=scores.get, default=None)

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
    with self._saving_may_fail():
      self._manager.wait_until_finished()
    if step in self._manager.all_steps():
      if not replace:
        return False
      self._manager.delete(step)
    self._saving = step
    items = _items(state)
    meta = {**meta, 'step': step, 'arrays': array_digests(items)}
    with self._saving_may_fail():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          params=ocp.args.StandardSave(items['params']),
          train=ocp.args.StandardSave(items['train']),
          meta=ocp.args.JsonSave(meta),
        ),
        metrics=metrics,
        force=True,
      )
    best = self._best_metric.removeprefix('-')
    if best and metrics is not None and best not in metrics:
      raise ValueError(
        f'config.train.best_metric names {best!r}, which no evaluation gave; '
        f'there are {sorted(metrics)}. Step {step} is saved: start again '
        'with one of these, and it goes on from there.'
      )
    return True

  def meta(self, step: int) -> dict:
    args = ocp.args.Composite(meta=ocp.args.JsonRestore())
    return self._manager.restore(step, args=args).meta

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
    stored = self._manager.item_metadata(step)
    wanted = _items(abstract)
    _check_same(wanted['params'], stored.params, f'parameters of step {step}')
    unused = _moments_not_kept(wanted, stored.train)
    _check_same(wanted['train'], stored.train, f'optimizer state of step {step}', unused)
    train = wanted['train']
    if unused:
      # Orbax restores whole trees only.
      targets = unused | _by_name(train)
      train = jax.tree_util.tree_map_with_path(
        lambda path, _: targets[leaf_name(path)], _tree(stored.train)
      )
    items = self._manager.restore(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardRestore(wanted['params']), train=ocp.args.StandardRestore(train)
      ),
    )
    _check_arrays(
      self.folder / str(step), self.meta(step), {'params': items.params, 'train': items.train}
    )
    restored = _by_name(items.train)
    opt_state = jax.tree_util.tree_map_with_path(
      lambda path, _: restored[f'opt_state/{leaf_name(path)}'], abstract.opt_state
    )
    return TrainState(step=items.train['step'], params=items.params, opt_state=opt_state)

  def set_aside(self, step: int, error: DamagedCheckpointError) -> None:
    """Moves a checkpoint out of the way that turned out to be damaged.

    Raises:
      DamagedCheckpointError: if there is no other to go on from.
    """
    if list(self._manager.all_steps()) == [step]:
      raise _nothing_left(self.folder, error) from error
    if jax.process_index() == 0:
      _move_aside(self.folder / str(step), error)
    _meet('a damaged checkpoint is out of the way')
    self._manager.reload()

  def close(self) -> None:
    """Waits until everything is on disk.

    Raises:
      SaveError: if it cannot be written.
    """
    with self._saving_may_fail():
      self._manager.close()

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
    # Called in the saving thread when all files are written, before the rename.
    if jax.process_index() == 0:
      for folder in self.folder.glob(f'{self._saving}.*'):
        write_digests(folder)


def find(path) -> pathlib.Path:
  """Returns the folder of one intact checkpoint.

  Args:
    path: a workdir or its checkpoints, for the newest one that is intact; or
      the folder of one step, e.g. `runs/a/checkpoints/300`.
  Raises:
    FileNotFoundError: if there is none.
    DamagedCheckpointError: if a file is not what was written.
  """
  path = pathlib.Path(path).absolute()
  if (path / 'params').is_dir():
    check_digests(path)
    return path
  folder = path if path.name == FOLDER else path / FOLDER
  steps = step_folders(folder)
  if not steps:
    raise FileNotFoundError(
      f'no checkpoint in {path}; expected the workdir of a run of '
      'launch/main.py or the folder of one of its steps.'
    )
  for step in reversed(steps):
    try:
      check_digests(step)
      return step
    except DamagedCheckpointError as error:
      if step == steps[0]:
        raise
      logging.warning('%s The one before is used.', error)
  raise AssertionError('not reached')


def load_meta(path) -> dict:
  """Returns what was stored with a checkpoint; `path` as in `find`."""
  return read_meta(find(path))


def read_meta(step) -> dict:
  """Returns what was stored with the checkpoint that `find` returned."""
  return json.loads((pathlib.Path(step) / 'meta' / 'metadata').read_text())


def params_digests(step, meta: Mapping[str, Any]) -> dict[str, str]:
  """Returns the digest of every parameter; see array_digests.

  Args:
    step: folder that `find` returned.
    meta: what was stored with it.
  """
  prefix = 'params/'
  stored = {
    name.removeprefix(prefix): value
    for name, value in meta.get('arrays', {}).items()
    if name.startswith(prefix)
  }
  if stored:
    return stored
  # Written by a version that did not store them.
  folder = epath.Path(step) / 'params'
  reader = ocp.StandardCheckpointHandler()
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  target = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
    reader.metadata(folder).tree,
  )
  return array_digests(reader.restore(folder, args=ocp.args.StandardRestore(target)))


def load_params(
  path,
  abstract: Any,
  *,
  initial: Any = None,
  new: Sequence[str] = (),
  fresh: Sequence[str] = (),
  unused: Sequence[str] = (),
  resize: Mapping[str, Callable[[jax.Array, int], jax.Array]] | None = None,
) -> Any:
  """Returns the parameters of a checkpoint, by name.

  Args:
    path: as in `find`.
    abstract: the wanted tree of ShapeDtypeStructs, with sharding or without
      (then on the first local device).
    initial: values of the parameters that may be missing.
    new: names that start with one of these may be missing.
    fresh: names that start with one of these are taken from `initial`, whatever
      is stored under them.
    unused: names that start with one of these may be left over.
    resize: for tables that may have another number of rows, by name: (stored
      table, wanted rows) -> table.
  Raises:
    ValueError: with all names that are missing, left over, or of another shape
      or type.
    DamagedCheckpointError: if a file or an array is not what was written.
  """
  step = find(path)
  folder = epath.Path(step / 'params')
  reader = ocp.StandardCheckpointHandler()
  stored = reader.metadata(folder).tree
  wanted, found = _by_name(abstract), _by_name(stored)
  usable = {name: leaf for name, leaf in found.items() if not name.startswith(tuple(fresh))}
  resized = {
    name: function
    for name, function in (resize or {}).items()
    if name in wanted
    and name in usable
    and wanted[name].shape[0] != found[name].shape[0]
    and wanted[name].shape[1:] == tuple(found[name].shape[1:])
  }
  missing = _check_names(
    wanted, usable, f'parameters in {path}', (*new, *fresh), unused, set(resized)
  )
  if missing and initial is None:
    raise ValueError(
      f'parameters in {path}: {_listed(missing)} missing and no initial values were given.'
    )
  # Leftover leaves are read as well: orbax restores whole trees only.
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  targets = {
    name: jax.ShapeDtypeStruct(
      leaf.shape,
      leaf.dtype,
      sharding=(
        None
        if name in resized or name not in usable
        else getattr(wanted.get(name), 'sharding', None)
      )
      or here,
    )
    for name, leaf in found.items()
  }
  target = jax.tree_util.tree_map_with_path(lambda path, _: targets[leaf_name(path)], stored)
  restored = _by_name(reader.restore(folder, args=ocp.args.StandardRestore(target)))
  _check_arrays(step, read_meta(step), {'params': restored})
  for name, function in resized.items():
    rows = wanted[name].shape[0]
    logging.info('resized: %s from %d to %d rows', name, found[name].shape[0], rows)
    table = np.asarray(function(restored[name], rows), wanted[name].dtype)
    restored[name] = jax.make_array_from_callback(
      table.shape,
      getattr(wanted[name], 'sharding', None) or here,
      lambda index, table=table: table[index],
    )
  first = _by_name(initial) if missing else {}
  if missing:
    logging.info('new parameters, initialised: %s', _listed(missing))
  if left := sorted(set(found) - set(wanted)):
    logging.info('parameters of the checkpoint not used: %s', _listed(left))
  return jax.tree_util.tree_map_with_path(
    lambda path, _: (first if leaf_name(path) in missing else restored)[leaf_name(path)], abstract
  )


def write_digests(folder: pathlib.Path) -> None:
  """Stores the size and SHA-256 of every file in a checkpoint's folder."""
  found = sorted(p for p in folder.rglob('*') if p.is_file())
  digests = {
    str(file.relative_to(folder)): {'bytes': file.stat().st_size, 'sha256': files.sha256(file)}
    for file in found
    if file.name not in _UNSEALED
  }
  (folder / _DIGESTS).write_text(json.dumps(digests, indent=1))


def check_digests(folder: pathlib.Path) -> None:
  """Raises DamagedCheckpointError if a file differs from its digest."""
  try:
    digests = json.loads((folder / _DIGESTS).read_text())
  except (FileNotFoundError, ValueError) as error:
    raise DamagedCheckpointError(
      f'checkpoint {folder} is damaged: {_DIGESTS} cannot be read ({error}).'
    ) from error
  for name, expected in digests.items():
    file = folder / name
    size = file.stat().st_size if file.is_file() else None
    if size != expected['bytes']:
      got = 'is missing' if size is None else f'has {size} bytes'
      raise DamagedCheckpointError(
        f'checkpoint {folder} is damaged: {name} {got}, expected {expected["bytes"]} bytes.'
      )
    if files.sha256(file) != expected['sha256']:
      raise DamagedCheckpointError(
        f'checkpoint {folder} is damaged: the contents of {name} changed after it was written.'
      )


def step_folders(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the folders of the steps below FOLDER, the oldest first."""
  if not folder.is_dir():
    return []
  return sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


def _set_aside_damaged(folder):
  """Renames damaged checkpoints to `damaged/STEP`, so that none is loaded."""
  damaged = []
  for step in (steps := step_folders(folder)):
    try:
      check_digests(step)
    except DamagedCheckpointError as error:
      damaged.append((step, error))
  if damaged and len(damaged) == len(steps):
    raise _nothing_left(folder, damaged[-1][1])
  for step, error in damaged:
    _move_aside(step, error)


def _move_aside(step, error):
  aside = step.parent.parent / 'damaged' / step.name
  for number in range(1, 1000):
    if not aside.exists():
      break
    aside = aside.with_name(f'{step.name}.{number}')
  aside.parent.mkdir(exist_ok=True)
  step.rename(aside)
  logging.warning('%s Moved to %s; another one is used.', error, aside)


def _nothing_left(folder, error):
  return DamagedCheckpointError(
    f'{error} No other checkpoint is intact; to start over, delete {folder}.'
  )


def _items(state):
  """Returns what is stored of a state, as the trees of two items."""
  return {'params': state.params, 'train': {'step': state.step, 'opt_state': state.opt_state}}


def _check_arrays(folder, meta, items):
  """Compares arrays with the digests that were taken when they were saved."""
  expected = meta.get('arrays', {})  # Older checkpoints have none.
  if not expected:
    return
  wrong = [name for name, digest in array_digests(items).items() if digest != expected.get(name)]
  if wrong:
    raise DamagedCheckpointError(
      f'checkpoint {folder} is damaged: {_listed(wrong[:5])} '
      f'({len(wrong)} of {len(expected)} arrays) came back other than they '
      'were saved, though the files are whole.'
    )


def _rank(metrics, name):
  """What is largest of the best; the last are those without the metric.

  Earlier starts of a run may have evaluated on other sets.
  """
  sign, name = (-1.0, name[1:]) if name.startswith('-') else (1.0, name)
  return sign * float(metrics[name]) if name in metrics else -math.inf


def _meet(what):
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


def _by_name(tree):
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {leaf_name(path): leaf for path, leaf in leaves}


def _listed(names):
  return ', '.join(sorted(names))


def _check_same(abstract, stored, what, unused=()):
  _check_names(_by_name(abstract), _by_name(_tree(stored)), what, unused=unused)


def _tree(stored):
  return getattr(stored, 'tree', stored)


def _moments_not_kept(wanted, stored):
  """Returns stored moments that the optimizer leaves out, by name.

  As ShapeDtypeStructs that lie where their parameters do.
  """
  kept, params = _by_name(wanted['train']), _by_name(wanted['params'])
  found = {}
  for name in _by_name(_tree(stored)):
    moment = re.fullmatch(r'opt_state/(?:.*/)?[mn]u/(.*)', name)
    if moment and name not in kept and moment[1] in params:
      found[name] = params[moment[1]]
  return found


def _check_names(wanted, found, what, new=(), unused=(), resized=()):
  """Compares trees by name, shape and type; returns the allowed missing ones.

  Orbax names no path for a wrong shape and casts a wrong type silently.
  """
  missing = sorted(set(wanted) - set(found))
  left = sorted(set(found) - set(wanted))
  refused = [n for n in missing if not n.startswith(tuple(new))]
  extra = [n for n in left if not n.startswith(tuple(unused))]
  lines = []
  if refused:
    lines.append(
      f'missing from it: {_listed(refused)} (allow them with config.train.new_parameters)'
    )
  if extra:
    lines.append(
      f'unknown to the model: {_listed(extra)} (allow them with config.train.unused_parameters)'
    )
  for name in sorted(set(wanted) & set(found) - set(resized)):
    got = (tuple(found[name].shape), np.dtype(found[name].dtype))
    expected = (tuple(wanted[name].shape), np.dtype(wanted[name].dtype))
    if got != expected:
      lines.append(f'{name} is {_typed(got)}, expected {_typed(expected)}')
  if lines:
    raise ValueError(f'{what} do not fit the model. ' + '; '.join(lines) + '.')
  return missing


def _typed(pair):
  return f'{pair[1]}[{", ".join(map(str, pair[0]))}]'
