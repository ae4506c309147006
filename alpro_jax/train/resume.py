"""May a run begin with what it found, and may it go on with it?

A run that goes on must train as if it had never stopped, on every host: all
that train/identity.py lists is compared with what was stored. A run that
begins from another one's weights must read the same words and mean the same
labels.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from alpro_jax.data.answers import canonical
from alpro_jax.train import checkpoints, identity
from alpro_jax.train.workdir import plain

# Options that may differ when a run goes on: they decide what is shown, kept
# or measured, or where things run and lie, but not what is learned.
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
  'model.implementation',
  'model.attention_impl',
  'model.scan_layers',
  'model.remat',
  'loss.vtc_chunk',
  'eval.',
  'mesh.',
  'data.threads',
  'data.verify',
  # What lies there is compared by content.
  'data.tokenizer',
  'data.answers',
)
# Options whose meaning is stored as content, under this name.
_BY_CONTENT = {
  'prompter.entities': 'entities',
  'prompter.num_entities': 'entities',
  'prompter.video_templates': 'templates',
  'prompter.image_templates': 'templates',
  'prompter.checkpoint': 'prompter',
  'train.init_from': 'start',
}
# Options that name a place, beside those of `data.sources`.
_PLACES = (
  'data.tokenizer',
  'data.answers',
  'prompter.entities',
  'prompter.checkpoint',
  'train.init_from',
)


def check_beginning(
  meta: dict[str, Any], stored: Mapping[str, Any] | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Refuses to begin a run, or to go on with it, on what was not meant.

  Args:
    meta: what would be stored now.
    stored: with the newest checkpoint of the run; None if it has none yet.
  Returns:
    what to store, and the heads that begin afresh: see `check_same_run` and
    `check_start`.
  Raises:
    ValueError: with what differs, and what would help.
    FileNotFoundError: if there is nothing to start from.
  """
  if stored is not None:
    return check_same_run(stored, meta), ()
  if not meta['start']:
    return meta, ()
  train = meta['config']['train']
  # The step that was described: a run that is at work there may save others.
  path = meta['start']['path']
  if 'digest' not in meta['start']:
    path = checkpoints.find(path).folder  # Says what is wrong with it.
  start = checkpoints.Checkpoint(pathlib.Path(path)).meta
  return meta, check_start(train['init_from'], start, meta, train['new_parameters'])


def check_same_run(stored: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
  """Refuses to go on with a run on anything else than it began with.

  Args:
    stored: what was stored with the checkpoint.
    meta: what would be stored now.
  Returns:
    `meta` with the start of the run as it was stored: the weights are those of
    the run by now, so what they came from need not be there any more.
  Raises:
    ValueError: with everything that differs, and what would help.
  """
  meta = dict(meta)
  refused = _check_start(stored, meta)
  # The digests may come in another order of folders, not of sources.
  old, new = _options(stored, stored), _options(meta, stored)
  later = {
    name: new.pop(name)
    for name in sorted(set(new) - set(old))
    if name.startswith('config.') and '.sources.' not in name
  }
  if later:
    logging.warning('options that did not exist when this run began: %s', later)
  lines = [
    f'{name}: was {old.get(name, "absent")!r}, is {new.get(name, "absent")!r}'
    for name in sorted(set(old) | set(new))
    if old.get(name) != new.get(name)
  ] + refused
  for name in identity.LABELLED:
    if name in stored and (different := identity.different_labels(stored[name], meta[name])):
      lines.append(f'{name}: {different}')
  several = [name for name in meta['entities'] or () if ' ' in name]
  if 'entities' not in stored and several:
    # Who stored no names read the first word of a line.
    lines.append(
      f'entities: {several[0]!r} was read as {several[0].split()[0]!r} when '
      'this run began; leave the first word alone on each line of the list'
    )
  if 'prompter' in stored and (
    different := identity.different_checkpoints(
      'config.prompter.checkpoint', stored['prompter'], meta['prompter']
    )
  ):
    lines.append(different)
  old_steps, steps = stored['config']['train']['steps'], meta['config']['train']['steps']
  if steps < old_steps:
    lines.append(f'config.train.steps: was {old_steps}, is {steps}; may grow')
  if lines:
    raise ValueError(
      'this workdir holds a run with other options; use them again, or '
      'another --workdir (with --config.train.init_from to start from this '
      'run). They differ in ' + '; '.join(lines) + '.'
    )
  _log_moved(stored, meta)
  if steps > old_steps:
    logging.warning(
      'train.steps grew from %d to %d; the learning rate now follows the longer schedule.',
      old_steps,
      steps,
    )
  if stored['versions'] != meta['versions']:
    logging.warning(
      'library versions changed since the checkpoint (%s -> %s); the run '
      'may not repeat bit for bit.',
      stored['versions'],
      meta['versions'],
    )
  return meta


def check_start(
  path, stored: Mapping[str, Any], meta: Mapping[str, Any], new: Sequence[str]
) -> tuple[str, ...]:
  """Refuses to start from weights that mean something else here.

  Args:
    path: of the checkpoint, as the user gave it.
    stored: what was stored with it.
    meta: of the run that starts from it.
    new: config.train.new_parameters.
  Returns:
    the heads to begin afresh, because their rows stand for other labels.
  Raises:
    ValueError: if the tokenizer or the number of heads is another one, or a
      head has other labels and is not among the new parameters.
  """
  name = f'--config.train.init_from={path}'
  identity.check_tokenizer(name, stored, meta)
  different = [
    f'model.{part}.heads is {stored["model"][part]["heads"]}, --config says '
    f'{meta["model"][part]["heads"]}'
    for part in identity.SIZES
    if stored['model'].get(part, {}).get('heads') != meta['model'].get(part, {}).get('heads')
  ]
  if different:
    raise ValueError(
      f'{name} is another model than --config: {"; ".join(different)}. The '
      'shapes of the weights would fit and mean something else; set '
      '--config.model to the values of the checkpoint.'
    )
  fresh = []
  for labels, head in identity.LABELLED.items():
    if not meta[labels] or not stored['model'].get(labels):
      continue  # One of the two has no such head.
    if labels not in stored:
      logging.warning(
        '%s does not say what the rows of its %s stand for; if they are '
        'other %s, or in another order, than those of this run, its head '
        'must learn them anew.',
        name,
        head,
        labels,
      )
    elif what := identity.different_labels(stored[labels], meta[labels]):
      if not head.startswith(tuple(new)):
        raise ValueError(
          f'{name} has other {labels}: {what}. Give this run the same list, '
          f"or let it learn that head afresh with '{head}' in "
          '--config.train.new_parameters.'
        )
      logging.warning('%s begins afresh: %s has other %s (%s).', head, name, labels, what)
      fresh.append(head)
  return tuple(fresh)


def check_same_everywhere(meta: Mapping[str, Any]) -> None:
  """Refuses hosts that would train on different things.

  Args:
    meta: what this process would store.
  Raises:
    ValueError: on every process, with the names that differ from process 0's.
  """
  if jax.process_count() == 1:
    return
  mine = json.dumps({**_options(meta, meta), **_contents(meta)}, sort_keys=True).encode()
  sizes = multihost_utils.process_allgather(np.int32(len(mine)))
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: len(mine)] = np.frombuffer(mine, np.uint8)
  everyone = [
    json.loads(row[:size].tobytes())
    for row, size in zip(multihost_utils.process_allgather(padded), sizes, strict=True)
  ]
  lines = [
    f'process {number} has {name}={theirs.get(name, "absent")!r}, process 0 '
    f'{everyone[0].get(name, "absent")!r}'
    for number, theirs in enumerate(everyone)
    for name in sorted(set(theirs) | set(everyone[0]))
    if theirs.get(name) != everyone[0].get(name)
  ]
  if lines:
    raise ValueError(
      'the processes would not train the same: '
      + '; '.join(lines[:10])
      + '. Start all with the same options, and give all the same data.'
    )


def _check_start(stored, meta):
  """Returns what is wrong with `start`, and sets it to the stored one."""
  if 'start' not in stored:
    return []  # Then the paths are compared.
  old, new = stored['start'], meta['start']
  meta['start'] = old
  different = identity.different_checkpoints('config.train.init_from', old, new)
  if not different:
    return []
  given = meta['config']['train']['init_from']
  if old and not given:
    logging.warning(
      'this run started from %s (step %s); nothing is loaded from there now.',
      old['path'],
      old.get('step'),
    )
    return []
  if old and 'digest' not in new and given == old['given']:
    logging.warning(
      '%s, which this run started from, cannot be read any more; the run goes on without it.', given
    )
    return []
  return [f'{different} (or --config.train.init_from= to go on whatever is there)']


def _options(meta, stored):
  """Returns {dotted name: value} of what must not change during a run.

  Args:
    meta: to be flattened.
    stored: what this has by content is not compared by its path.
  """
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

  for name in ('config', 'model', 'tokenizer', 'data', 'templates'):
    if name in meta and name in stored:
      visit(name, plain(meta[name]))
  known = [option for option, name in _BY_CONTENT.items() if name in stored]
  free = tuple(f'config.{name}' for name in (*FREE, *known, 'train.steps'))
  # The sizes of the model are there twice, as options and as built.
  free += tuple(name for name in FREE if name.startswith('model.'))
  return {
    name: value
    for name, value in flat.items()
    if not name.startswith(free)
    and not (name.startswith('config.data.sources') and name.endswith('.path'))
  }


def _contents(meta):
  """Returns {name: digest} of what `_options` leaves out."""
  texts = {
    name: json.dumps([canonical(label) for label in meta.get(name, [])])
    for name in identity.LABELLED
  }
  return {
    **{name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in texts.items()},
    **{name: identity.known_digest(meta.get(name)) for name in ('prompter', 'start')},
  }


def _log_moved(stored, meta):
  """Says which places are others though what lies there is the same."""
  old, new = stored['config'], meta['config']
  pairs = []
  for name in _PLACES:
    group, _, option = name.partition('.')
    pairs.append((name, old.get(group, {}).get(option), new[group][option]))
  pairs += [
    (f'data.sources.{i}.path', was['path'], now['path'])
    for i, (was, now) in enumerate(zip(old['data']['sources'], new['data']['sources'], strict=True))
  ]
  for name, was, now in pairs:
    if was != now and was and now:
      logging.info('config.%s moved from %s to %s; what lies there is the same.', name, was, now)
