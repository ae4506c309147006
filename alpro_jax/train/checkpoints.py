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

from alpro_jax import files
from alpro_jax.train import digests, options, trees
from alpro_jax.train.state import TrainState
from alpro_jax.train.trainable import merge, nested

FOLDER = 'checkpoints'
_UNFINISHED = ocp.utils.TMP_DIR_SUFFIX  # In the name of a step that is being saved.
WORDS = 'words'  # In the folder of a step; see identity.words.


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
    """The JSON that was stored with it, its options by their present names."""
    meta = json.loads((self.folder / 'meta' / 'metadata').read_text())
    if 'config' in meta:
      meta['config'] = options.with_new_names(meta['config'])
    return meta

  @property
  def words(self) -> pathlib.Path:
    """Where its tokenizer and lists lie; see identity.words."""
    return self.folder / WORDS

  @property
  def digest(self) -> str:
    """Hex sha256 of the digests of all its files."""
    return files.sha256(self.folder / digests.FILE)

  def params_digests(self) -> dict[str, str]:
    """Returns the digest of every parameter; see `digests.of_arrays`."""
    stored = self.meta.get('arrays')
    if not stored:  # An older checkpoint.
      return digests.of_arrays(self._whole('params'))
    items = (name.partition('/') for name in stored)
    return {name: stored[f'{item}/{name}'] for item, _, name in items if item == 'params'}

  @property
  def averaged(self) -> bool:
    """Whether its parameters are averages of those that were trained."""
    return self.meta.get('config', {}).get('train', {}).get('ema_decay', 0) > 0

  def load_params(
    self,
    abstract: Any,
    *,
    averaged: bool = True,
    initial: Any = None,
    new: Sequence[str] = (),
    fresh: Sequence[str] = (),
    unused: Sequence[str] = (),
    resize: Mapping[str, Callable[[jax.Array, int], jax.Array]] | None = None,
  ) -> Any:
    """Returns the parameters, by name.

    Args:
      abstract: the wanted ShapeDtypeStructs; without sharding, on the first local device.
      averaged: of a run that averaged its parameters; False takes those of its last step.
      initial: values of the parameters that may be missing.
      new: names that start with one of these may be missing.
      fresh: those that start with one of these are taken from `initial` in any case.
      unused: names that start with one of these may be left over.
      resize: {name: (stored table, wanted rows) -> table} where rows may differ.
    Raises:
      ValueError: with all names that are missing, left over, or do not fit; without an average.
      DamagedCheckpointError: if an array is not what was written.
    """
    wanted = trees.by_name(abstract)
    afresh = {name for name in wanted if name.startswith(tuple(fresh))}
    restored, missing = self._load(
      'params',
      {name: leaf for name, leaf in wanted.items() if name not in afresh},
      new=new,
      unused=lambda name: name.startswith((*unused, *fresh)),
      resizable=resize or (),
    )
    if not averaged:
      latest = {name: leaf for name, leaf in self._latest().items() if name in restored}
      restored |= {name: jax.device_put(x, _place(wanted.get(name))) for name, x in latest.items()}
    for name in set(resize or ()) & set(wanted) & set(restored):
      leaf, rows, stored = wanted[name], wanted[name].shape[0], restored[name]
      if stored.shape[0] != rows:
        logging.info('resized: %s from %d to %d rows', name, stored.shape[0], rows)
        table = np.asarray(resize[name](stored, rows), leaf.dtype)
        restored[name] = jax.make_array_from_callback(
          table.shape, _place(leaf), lambda index, table=table: table[index]
        )
    if missing := missing | afresh:
      if initial is None:
        raise ValueError(
          f'{self.folder}: {trees.listed(missing)} missing and no initial values were given.'
        )
      logging.info('new parameters, initialised: %s', trees.listed(missing))
      restored |= {name: leaf for name, leaf in trees.by_name(initial).items() if name in missing}
    return trees.like(abstract, restored)

  def restore(self, abstract: TrainState) -> TrainState:
    """Returns the stored state, laid out as `abstract`; raises as `load_params`.

    Moments of frozen parameters, which the optimizer once kept, are left out.
    """
    apart, held = abstract.apart(), trees.by_name(abstract.held)
    leaves = trees.by_name(abstract).items()
    model = {name.partition('/')[2]: leaf for name, leaf in leaves if name not in apart}

    def of_frozen(name):
      moment = re.fullmatch(r'opt_state/(?:.*/)?[mn]u/(.*)', name)
      return moment and moment[1] in held

    params, _ = self._load('params', held | model)
    train, _ = self._load('train', apart, unused=of_frozen)

    def stored(path, _):
      name = trees.leaf_name(path)
      return train[name] if name in apart else params[name.partition('/')[2]]

    return jax.tree_util.tree_map_with_path(stored, abstract)

  def _latest(self):
    """Returns {name: array} of what was averaged, as the last step left it."""
    train = nested(self._whole('train')) if (self.folder / 'train').is_dir() else {}
    if 'params' not in train or not self.averaged:
      why = 'it is a copy, or its run kept no average (config.train.ema_decay)'
      raise ValueError(f'{self.folder} has no others: {why}; leave averaged=False out.')
    lora = self.meta['config']['optimizer']['lora']
    scale = lora['alpha'] / max(lora['rank'], 1)
    return trees.by_name(merge(train['params'], train.get('held'), scale))

  def _whole(self, item):
    """Returns {name: array} of all that an item holds."""
    return self._load(item, {}, unused=lambda name: True)[0]

  def _load(self, item, wanted, *, new=(), unused=lambda name: False, resizable=()):
    """Returns {name: array} of an item, checked, and the wanted names that are missing."""
    folder, reader = epath.Path(self.folder / item), ocp.StandardCheckpointHandler()
    tree = reader.metadata(folder).tree
    missing = trees.check_fits(folder, trees.by_name(tree), wanted, new, unused, resizable)

    def target(path, leaf):
      like = wanted.get(trees.leaf_name(path))
      where = _place(like if getattr(like, 'shape', None) == tuple(leaf.shape) else None)
      return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    # Those left over are read as well: orbax restores whole trees only.
    targets = jax.tree_util.tree_map_with_path(target, tree)
    restored = trees.by_name(reader.restore(folder, args=ocp.args.StandardRestore(targets)))
    if expected := self.meta.get('arrays'):  # Older checkpoints have none.
      got = digests.of_arrays({item: restored})
      if wrong := [name for name in got if got[name] != expected.get(name)]:
        raise DamagedCheckpointError(
          f'checkpoint {self.folder} is damaged: {trees.listed(wrong[:5])} ({len(wrong)} of '
          f'{len(expected)} arrays) came back other than they were saved, though the '
          'files are whole.'
        )
    if wanted and (left := set(restored) - set(wanted)):
      logging.info('%s of the checkpoint not used: %s', item, trees.listed(left))
    return restored, missing


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
  path = files.local(path).absolute()
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


def load_meta(path) -> dict[str, Any]:
  """Returns what was stored with a checkpoint; `path` as in `find`."""
  return find(path).meta


def step_folders(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the folders of the steps below FOLDER, the oldest first."""
  steps = folder.iterdir() if folder.is_dir() else ()
  return sorted((p for p in steps if p.name.isdigit()), key=lambda p: int(p.name))


def write_words(folder: pathlib.Path, words: Mapping[str, bytes]) -> None:
  """Writes what `identity.words` gave into the folder of a step."""
  (folder / WORDS).mkdir()
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
  ):
    """Opens the folder and moves damaged checkpoints out of the way.

    Args:
      workdir: of the run.
      keep_newest: how many are kept; with 2 a damaged newest one costs little.
      best_metric: name in the metrics given to `save`; large is good, or small
        with a '-' in front. '' keeps the newest alone.
      words: files that go into every checkpoint, by name; see identity.words.
    Raises:
      DamagedCheckpointError: if there are checkpoints and none is intact.
    """
    if keep_newest < 1:
      raise ValueError(f'config.train.{keep_newest=} must be at least 1.')
    self.folder = pathlib.Path(workdir).absolute() / FOLDER
    self._best_metric, self._saving = best_metric.removeprefix('-'), None
    self._words = dict(words or {})
    self._sign = -1.0 if best_metric.startswith('-') else 1.0
    if jax.process_index() == 0:
      self._move_damaged({step: digests.damage(step) for step in step_folders(self.folder)})
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
      step.rename(aside)
      logging.warning('%s Moved to %s; another one is used.', what, aside)


def _place(leaf):
  """Returns where a ShapeDtypeStruct lies; without sharding, on the first local device."""
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return getattr(leaf, 'sharding', None) or here


def _meet(what):
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)
