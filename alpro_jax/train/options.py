"""Options by their dotted names, such as train.steps, and those that were renamed."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

# Old name -> new name, and what its values became where they changed too.
RENAMED = {
  'eval.rerank': ('eval.scoring', {True: 'auto', False: 'similarity'}),
  'loss.mask_equal_captions': ('loss.same_caption', {True: 'neutral', False: 'negative'}),
}


def values(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """Yields dotted name and value of every option and section; lists have no index."""
  for name, value in config.items():
    yield name, value
    for part in value if isinstance(value, (list, tuple)) else (value,):
      if hasattr(part, 'items'):
        yield from ((f'{name}.{below}', inner) for below, inner in values(part))


def names(config: Mapping[str, Any]) -> Iterator[str]:
  """Yields the dotted name of every option and section; lists have no index."""
  return (name for name, _ in values(config))


def flat(value: Any) -> dict[str, Any]:
  """Returns {dotted name: value} of nested dicts and lists of dicts, as JSON has them."""
  import jax  # noqa: PLC0415  Commands that only read names need not wait for it.

  def is_leaf(node):
    return node is None or isinstance(node, list) and not any(isinstance(x, dict) for x in node)

  leaves = jax.tree_util.tree_leaves_with_path(json.loads(json.dumps(value)), is_leaf)
  return {jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in leaves}


def with_new_names(config: dict[str, Any]) -> dict[str, Any]:
  """Returns the options of an older run, nested, with those of RENAMED renamed."""
  for old, (new, values) in RENAMED.items():
    section, old = old.split('.')
    section_now, new = new.split('.')
    if old in config.get(section, {}):
      value = config[section].pop(old)
      config.setdefault(section_now, {}).setdefault(new, values.get(value, value))
  return config
