"""One step of a run: its JSON, and its arrays by name, checked as they are read."""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from alpro_jax import files
from alpro_jax.train import digests, options, trees
from alpro_jax.train.state import TrainState
from alpro_jax.train.trainable import merge, nested

WORDS = 'words'  # In the folder of a step; see identity.words.


class DamagedCheckpointError(ValueError):
  """A file or an array of a checkpoint is not what was written."""


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


def _place(leaf):
  """Returns where a ShapeDtypeStruct lies; without sharding, on the first local device."""
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return getattr(leaf, 'sharding', None) or here
