"""May a run begin with what it found, and may it go on with it?

A run that resumes must train as if it had never stopped, on every host: all
that train/identity.py lists is compared. One that begins from another one's
weights must read the same words and mean the same labels.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from alpro_jax.train import checkpoints, identity, options

# Options that may differ when a run resumes: they decide what is shown, kept
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
  'data.features',
  'data.threads',
  'data.verify',
  'data.cache_dir',
  'data.cache_gb',
  # Empty, or what they chose is compared.
  'data.path',
  'machine.',
  # Compared by content in any case.
  'data.tokenizer',
  'data.tower_tokenizer',
  'data.answers',
)
# Options whose meaning is stored as content, under this name.
_BY_CONTENT = {
  'data.tokenizer': 'tokenizer',
  'data.tower_tokenizer': 'tokenizer',
  'data.answers': 'answers',
  'prompter.entities': 'entities',
  'prompter.num_entities': 'entities',
  'prompter.video_templates': 'templates',
  'prompter.image_templates': 'templates',
  'prompter.prompts': 'templates',
  'prompter.checkpoint': 'prompter',
  'train.init_from': 'start',
}
# Options that are compared by what follows from them and the devices.
_BY_EFFECT = {'loss.negatives': 'negative_blocks', 'loss.negative_blocks': 'negative_blocks'}
_STEPS = 'config.train.steps'
# Options of parts that are called otherwise.
_OPTIONS = {'prompter': 'config.prompter.checkpoint', 'start': 'config.train.init_from'}
# What may be done about a difference, beside undoing it.
_CURES = {
  _STEPS: '; may grow',
  'start': f' (or --{_OPTIONS["start"]}= to go on whatever is there)',
  'negative_blocks': ' (by config.loss.negatives=local, .negative_blocks sets it for any devices)',
}


def check_beginning(
  meta: dict[str, Any], stored: Mapping[str, Any] | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Refuses to begin a run, or to resume it, on what was not meant.

  Args:
    meta: what would be stored now.
    stored: with the newest checkpoint of the run; None if it has none yet.
  Returns:
    what to store: of a run that resumes, with its start as it was stored, since
    the weights are those of the run by now; and the heads to begin afresh,
    because their rows stand for other labels than in the start.
  Raises:
    ValueError: with everything that differs, and what would help.
    FileNotFoundError: if there is nothing to start from.
  """
  if stored is not None:
    _check_same_run(stored, meta)
    return {**meta, 'start': stored['start']} if 'start' in stored else meta, ()
  if not meta['start']:
    return meta, ()
  if 'digest' not in meta['start']:
    checkpoints.find(meta['start']['path'])  # Says what is wrong with it.
  # The step that was described: a run that is at work there may save others.
  return meta, _check_start(identity.opened(meta['start']).meta, meta)


def check_same_everywhere(meta: Mapping[str, Any]) -> None:
  """Refuses hosts that would train on different things.

  Args:
    meta: what this process would store.
  Raises:
    ValueError: on every process, with the names that differ from process 0's.
  """
  if jax.process_count() == 1:
    return
  essences = {name: identity.essence(name, part) for name, part in _compared(meta, meta).items()}
  mine = np.frombuffer(json.dumps(essences, sort_keys=True).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(len(mine)))
  rows = multihost_utils.process_allgather(np.pad(mine, (0, sizes.max() - len(mine))))
  everyone = [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
  lines = [
    f'process {number} has {name}={theirs.get(name, "absent")!r}, process 0 '
    f'{everyone[0].get(name, "absent")!r}'
    for number, theirs in enumerate(everyone)
    for name in sorted({*theirs, *everyone[0]})
    if theirs.get(name) != everyone[0].get(name)
  ]
  if lines:
    raise ValueError(
      f'the processes would not train the same: {"; ".join(lines[:10])}. '
      'Start all with the same options, and give all the same data.'
    )


def _check_same_run(stored, meta):
  """Compares what would be stored now with what was, and says what is harmless."""
  old = _compared(stored, stored)
  new = _compared({**meta, 'start': _start_to_compare(stored, meta)}, stored)
  later = {
    name: new.pop(name)
    for name in sorted(set(new) - set(old))
    if name.startswith('config.') and '.sources.' not in name
  }
  if later:
    logging.warning('options that did not exist when this run began: %s', later)
  if new[_STEPS] > old[_STEPS]:
    logging.warning(
      f'train.steps grew from {old.pop(_STEPS)} to {new.pop(_STEPS)}; the learning rate '
      'now follows the longer schedule.'
    )
  lines = [
    f'{_OPTIONS.get(name, name)}: {how}{_CURES.get(name, "")}'
    for name, how in identity.differences(old, new).items()
  ]
  several = [name for name in meta['entities'] or () if ' ' in name]
  if 'entities' not in stored and several:
    # Who stored no names read the first word of a line.
    lines.append(
      f'entities: {several[0]!r} was read as {several[0].split()[0]!r} when '
      'this run began; leave the first word alone on each line of the list'
    )
  if lines:
    raise ValueError(
      'this workdir holds a run with other options; use them again, or '
      'another --workdir (with --config.train.init_from to start from this '
      f'run). They differ in {"; ".join(lines)}.'
    )
  was, now = options.flat(stored['config']), options.flat(meta['config'])
  for name, place in now.items():
    is_path = name in _BY_CONTENT or (name.startswith('data.sources.') and name.endswith('.path'))
    if is_path and isinstance(place, str) and place and was.get(name) not in ('', None, place):
      logging.info(
        'config.%s moved from %s to %s; what lies there is the same.', name, was[name], place
      )
  if stored['versions'] != meta['versions']:
    logging.warning(
      f'library versions changed since the checkpoint ({stored["versions"]} -> '
      f'{meta["versions"]}); the run may not repeat bit for bit.'
    )


def _start_to_compare(stored, meta):
  """Returns `start` as found, or as stored where that is no reason to refuse."""
  old, new, given = stored.get('start'), meta['start'], meta['config']['train']['init_from']
  if old and not given:
    logging.warning('this run started from %s; nothing is loaded from there now.', old['path'])
    return old
  if old and new and 'digest' not in new and given == old['given']:
    logging.warning(
      '%s, which this run started from, cannot be read any more; the run goes on without it.', given
    )
    return old
  return new


def _check_start(stored, meta) -> tuple[str, ...]:
  """Refuses weights that mean something else here; returns the heads to begin afresh."""
  train = meta['config']['train']
  name = f'--{_OPTIONS["start"]}={train["init_from"]}'
  identity.check_tokenizer(name, stored, meta)
  meaning = identity.MEANING
  if all(x['config']['task'] == 'pretrain' and x['config']['loss']['mlm'] for x in (stored, meta)):
    meaning = meaning | {'text': (*meaning['text'], 'mlm_logit_scale')}  # Of the decoder.
  identity.check_sizes(name, stored['model'], meta['model'], meaning)
  fresh = []
  for labels, head in identity.LABELLED.items():
    if not meta[labels] or not stored['model'].get(labels):
      continue  # One of the two has no such head.
    if labels not in stored:
      logging.warning(
        f'{name} does not say what the rows of its {head} stand for; if they are other '
        f'{labels}, or in another order, than those of this run, its head must learn them anew.'
      )
      continue
    for how in identity.differences({labels: stored[labels]}, {labels: meta[labels]}).values():
      if not head.startswith(tuple(train['new_parameters'])):
        raise ValueError(
          f'{name} has other {labels}: {how}. Give this run the same list, '
          f"or let it learn that head afresh with '{head}' in "
          '--config.train.new_parameters.'
        )
      logging.warning('%s begins afresh: %s has other %s (%s).', head, name, labels, how)
      fresh.append(head)
  return tuple(fresh)


def _compared(meta, stored):
  """Returns {dotted name: value} of what must not change during a run.

  What `stored` has by content is not compared by its path.
  """
  parts = ('config', 'model', *identity.TOKENIZERS, 'data', 'templates')
  flat = options.flat({name: meta[name] for name in parts if name in meta and name in stored})
  known = [option for option, part in (_BY_CONTENT | _BY_EFFECT).items() if part in stored]
  # The sizes of the model are there twice, as options and as built. The digests
  # of sources may come in another order of folders.
  free = (*(f'config.{name}' for name in (*FREE, *known)), *FREE)
  whole = (*identity.LABELLED, *identity.CHECKPOINTS, 'negative_blocks')
  whole = [name for name in whole if name in stored]
  return {
    name: value
    for name, value in flat.items()
    if not name.startswith(free)
    and not (name.startswith('config.data.sources') and name.endswith('.path'))
  } | {name: meta.get(name) for name in whole}
