"""Trees of arrays by the names of their leaves, e.g. `params/dense/bias`."""

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import jax
import numpy as np


def leaf_name(path) -> str:
  """Returns the words of a leaf's path, separated by slashes.

  A namedtuple comes back from a file as a dict: the words alone are the same.
  """
  return jax.tree_util.keystr(path, simple=True, separator='/')


def by_name(tree: Any) -> dict[str, Any]:
  """Returns {name: leaf}."""
  return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def like(tree: Any, leaves: Mapping[str, Any]) -> Any:
  """Returns a tree of the same structure, with the leaves of these names."""
  return jax.tree_util.tree_map_with_path(lambda path, _: leaves[leaf_name(path)], tree)


def listed(names: Iterable[str]) -> str:
  return ', '.join(sorted(names))


def check_fits(
  where,
  found: Mapping[str, Any],
  wanted: Mapping[str, Any],
  new: Iterable[str] = (),
  unused: Callable[[str], bool] = lambda name: False,
  resizable: Container[str] = (),
) -> set[str]:
  """Compares leaves by name, shape and type, and raises ValueError with all that differ.

  Orbax names no path for a wrong shape and casts a wrong type silently.

  Args:
    where: what was found lies, for the message.
    found: arrays or ShapeDtypeStructs, by name.
    wanted: likewise.
    new: names that start with one of these may be missing.
    unused: name -> whether it may be left over.
    resizable: names that may have another number of rows.
  Returns:
    the names that are missing.
  """

  def typed(name, leaf):
    rows = '*' if name in resizable else leaf.shape[:1]
    return f'{np.dtype(leaf.dtype)}[{", ".join(map(str, (*rows, *leaf.shape[1:])))}]'

  missing = set(wanted) - set(found)
  refused = [name for name in missing if not name.startswith(tuple(new))]
  extra = [name for name in set(found) - set(wanted) if not unused(name)]
  lines = [
    f'{what}: {listed(names)} (allow them with config.train.{option})'
    for what, names, option in (
      ('missing from it', refused, 'new_parameters'),
      ('unknown to the model', extra, 'unused_parameters'),
    )
    if names
  ] + [
    f'{name} is {was}, expected {now}'
    for name in sorted(set(wanted) & set(found))
    if (was := typed(name, found[name])) != (now := typed(name, wanted[name]))
  ]
  if lines:
    raise ValueError(f'{where} does not fit the model. ' + '; '.join(lines) + '.')
  return missing
