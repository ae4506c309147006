"""What a model or a run depends on, by content: paths say nothing.

`describe` lists it, and the list is stored with every checkpoint. Whatever
goes on with a run, starts from a checkpoint, or uses one asks here whether the
files that it found are the ones that were meant. The same content in another
place is accepted, and the log says so; other content is refused.

  data        the digest of every prepared set
  tokenizer   the digest of its file, the number of ids, the special tokens
  answers     the names of the labels of question answering, in order
  entities    the names of the labels of PEM, in order
  templates   the prompts that the entities are put into
  prompter    the checkpoint that makes the pseudo-labels: see `of_checkpoint`
  start       the checkpoint that the weights came from at first
  config      every option that decides what is learned
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from alpro_jax.data.answers import canonical
from alpro_jax.models import alpro, prompter
from alpro_jax.train import checkpoints
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
    'data.tokenizer', 'data.answers', 'prompter.entities',
    'prompter.checkpoint', 'train.init_from',
)
_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
# What decides the shapes of a model's parameters, or how they are used, and is
# not known from the data.
SIZES = {
    'video': ('patch_size', 'width', 'depth', 'heads', 'mlp_size', 'attention'),
    'text': ('width', 'depth', 'fusion_layer', 'heads', 'mlp_size',
             'max_positions'),
}
# Heads whose rows are labels, by the name of those.
LABELLED = {'answers': 'answer_head', 'entities': 'entity_head'}


def describe(config, task, tokenizer, sources: Sequence = ()) -> dict[str, Any]:
  """Returns the JSON that is stored with every checkpoint.

  Args:
    config: see configs/common.py.
    task: its model, answers and entities are described; entities of None are
      not known, as those of weights from elsewhere.
    tokenizer: see data/tokens.py.
    sources: the sets that batches come from.
  Raises:
    ValueError: if the prompter belongs to another tokenizer, or has no
      features to compare a crop with a prompt.
    FileNotFoundError: if a prompter is named that is not there.
  """
  meta = {
      'task': config.task,
      'model': dataclasses.asdict(task.model.config),
      'tokenizer': {
          'digest': tokenizer.digest,
          'vocab_size': tokenizer.vocab_size,
          'special': tokenizer.special._asdict(),
      },
      'data': [source.digest for source in sources],
      'answers': list(task.answers),
      'start': _start(config.train.init_from),
      'config': plain(config),
      'versions': {
          'python': sys.version.split()[0],
          **{name: importlib.metadata.version(name) for name in _LIBRARIES},
      },
  }
  if task.entities is not None:
    used = task.entities and config.prompter.checkpoint
    meta |= {
        'entities': list(task.entities),
        'templates': _templates(config.prompter) if task.entities else {},
        'prompter': _prompter(config.prompter.checkpoint, meta)
                    if used else None,
    }
  return meta


def of_checkpoint(path) -> dict[str, Any]:
  """Says of a checkpoint where it lies, and by content what it is.

  Args:
    path: what checkpoints.find takes.
  Returns:
    `path` of the step's folder, `step`, `task`, the `tokenizer`'s digest, and
    `digest`, hex sha256 of everything that decides what the model computes:
    parameters, sizes, tokenizer and the names of its labels. A checkpoint that
    was copied, or written again without its optimizer, has the same one.
  """
  folder = checkpoints.find(path)
  meta = checkpoints.read_meta(folder)
  return {
      'path': str(folder), 'step': int(meta['step']),
      'task': meta['config']['task'],
      'tokenizer': meta['tokenizer']['digest'],
      'digest': digest(meta, checkpoints.params_digests(folder, meta)),
  }


def digest(meta: Mapping[str, Any], params: Mapping[str, str]) -> str:
  """Returns the digest that `of_checkpoint` explains, of its stored JSON.

  Args:
    meta: what was stored with a checkpoint.
    params: the digest of every parameter, by name.
  """
  content = {
      'params': dict(params),
      'model': {
          name: value for name, value in meta['model'].items()
          if name not in alpro.FORM and name != 'remat'},
      'tokenizer': meta['tokenizer']['digest'],
      **{name: [*map(canonical, meta.get(name, []))] for name in LABELLED},
  }
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def check_same_everywhere(meta: Mapping[str, Any]) -> None:
  """Refuses hosts that would train on different things.

  Args:
    meta: what this process would store.
  Raises:
    ValueError: on every process, with the names that differ from process 0's.
  """
  if jax.process_count() == 1:
    return
  mine = json.dumps(
      {**_options(meta, meta), **_contents(meta)}, sort_keys=True).encode()
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
  start = checkpoints.load_meta(meta['start']['path'])
  return meta, check_start(
      train['init_from'], start, meta, train['new_parameters'])


def check_same_run(
    stored: Mapping[str, Any], meta: Mapping[str, Any]
) -> dict[str, Any]:
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
      name: new.pop(name) for name in sorted(set(new) - set(old))
      if name.startswith('config.') and '.sources.' not in name
  }
  if later:
    logging.warning('options that did not exist when this run began: %s', later)
  lines = [
      f'{name}: was {old.get(name, "absent")!r}, is {new.get(name, "absent")!r}'
      for name in sorted(set(old) | set(new))
      if old.get(name) != new.get(name)
  ] + refused
  for name in LABELLED:
    if name in stored and not _same_labels(stored[name], meta[name]):
      lines.append(f'{name}: {_first_difference(stored[name], meta[name])}')
  several = [name for name in meta['entities'] or () if ' ' in name]
  if 'entities' not in stored and several:
    # Who stored no names read the first word of a line.
    lines.append(
        f'entities: {several[0]!r} was read as {several[0].split()[0]!r} when '
        'this run began; leave the first word alone on each line of the list')
  if 'prompter' in stored and _digest(stored['prompter']) != _digest(
      meta['prompter']):
    lines.append(_other_checkpoint(
        'config.prompter.checkpoint', stored['prompter'], meta['prompter']))
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
  _log_moved(stored, meta)
  if steps > old_steps:
    logging.warning(
        'train.steps grew from %d to %d; the learning rate now follows the '
        'longer schedule.', old_steps, steps)
  if stored['versions'] != meta['versions']:
    logging.warning(
        'library versions changed since the checkpoint (%s -> %s); the run '
        'may not repeat bit for bit.', stored['versions'], meta['versions'])
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
  _check_tokenizer(name, stored, meta)
  different = [
      f'model.{part}.heads is {stored["model"][part]["heads"]}, --config says '
      f'{meta["model"][part]["heads"]}'
      for part in SIZES
      if stored['model'].get(part, {}).get('heads') != meta['model'].get(
          part, {}).get('heads')]
  if different:
    raise ValueError(
        f'{name} is another model than --config: {"; ".join(different)}. The '
        'shapes of the weights would fit and mean something else; set '
        '--config.model to the values of the checkpoint.')
  fresh = []
  for labels, head in LABELLED.items():
    if not meta[labels] or not stored['model'].get(labels):
      continue  # One of the two has no such head.
    if labels not in stored:
      logging.warning(
          '%s does not say what the rows of its %s stand for; if they are '
          'other %s, or in another order, than those of this run, its head '
          'must learn them anew.', name, head, labels)
    elif not _same_labels(stored[labels], meta[labels]):
      what = _first_difference(stored[labels], meta[labels])
      if not head.startswith(tuple(new)):
        raise ValueError(
            f'{name} has other {labels}: {what}. Give this run the same list, '
            f"or let it learn that head afresh with '{head}' in "
            '--config.train.new_parameters.')
      logging.warning(
          '%s begins afresh: %s has other %s (%s).', head, name, labels, what)
      fresh.append(head)
  return tuple(fresh)


def check_teacher(stored: Mapping[str, Any], prompter_path, entities) -> None:
  """Refuses another prompter or list than a model was pre-trained with.

  Args:
    stored: what was stored with the pre-trained checkpoint.
    prompter_path: checkpoint of the prompter that would be used.
    entities: the names that would be used.
  Raises:
    ValueError: that says what differs.
  """
  lines = []
  if 'entities' not in stored:
    logging.warning(
        'this checkpoint does not say by content which prompter and entities '
        'it was pre-trained with; those at the given paths are used.')
    return
  found = prompter_path and _prompter(prompter_path, stored)
  if not _same_labels(stored['entities'], entities):
    lines.append(
        f'entities: {_first_difference(stored["entities"], entities)}')
  if _digest(stored['prompter']) != _digest(found):
    lines.append(_other_checkpoint('prompter', stored['prompter'], found))
  if lines:
    raise ValueError(
        f'the model was pre-trained with others. {"; ".join(lines)}. Pass '
        'those that it was trained with, as --prompter and --entities or in '
        'its config.')


def check_sizes(checkpoint, stored: Mapping, asked) -> None:
  """Refuses a checkpoint of another size than a config says.

  Args:
    checkpoint: to name it.
    stored: what was stored with it.
    asked: a config.
  Raises:
    ValueError: with every size that differs.
  """
  lines = [
      f'model.{part}.{name} is {stored["model"][part][name]!r}, --config says '
      f'{asked.model[part][name]!r}'
      for part, names in SIZES.items() for name in names
      if stored['model'][part][name] != asked.model[part][name]
  ]
  if lines:
    raise ValueError(
        f'{checkpoint} is of another size than --config: {"; ".join(lines)}. '
        'Pass the config that it was trained with, or none.')


def _start(path):
  """What a run starts from; its path alone if that cannot be read."""
  if not path:
    return None
  given = {'given': str(path)}
  try:
    return of_checkpoint(path) | given
  except (FileNotFoundError, checkpoints.DamagedCheckpointError):
    # A run that goes on needs it no more; one that begins says what is wrong.
    return {'path': str(path)} | given


def _check_start(stored, meta):
  """Returns what is wrong with `start`, and sets it to the stored one."""
  if 'start' not in stored:
    return []  # Then the paths are compared.
  old, new = stored['start'], meta['start']
  meta['start'] = old
  if _digest(old) == _digest(new):
    return []
  given = meta['config']['train']['init_from']
  if old and not given:
    logging.warning(
        'this run started from %s (step %s); nothing is loaded from there now.',
        old['path'], old.get('step'))
    return []
  if old and 'digest' not in new and given == old['given']:
    logging.warning(
        '%s, which this run started from, cannot be read any more; the run '
        'goes on without it.', given)
    return []
  return [_other_checkpoint('config.train.init_from', old, new)
          + ' (or --config.train.init_from= to go on whatever lies there)']


def _prompter(path, meta):
  found = of_checkpoint(path)
  name = f'the prompter {path}'
  stored = checkpoints.read_meta(found['path'])
  if not stored['model'].get('embed_size'):
    raise ValueError(
        f'{name} (task={found["task"]!r}) has no features to compare a crop '
        'with a prompt; pass a run of configs/pretrain_prompter.py as '
        '--config.prompter.checkpoint.')
  _check_tokenizer(name, stored, meta)
  return found


def _check_tokenizer(name, stored, meta):
  theirs, ours = stored['tokenizer'], meta['tokenizer']
  if theirs['digest'] != ours['digest']:
    raise ValueError(
        f'{name} was trained with another tokenizer (digest '
        f'{theirs["digest"][:12]}, {theirs["vocab_size"]} ids) than this run '
        f'has ({ours["digest"][:12]}, {ours["vocab_size"]} ids): the same id '
        'is another word. Pass the file of that run as '
        f'--config.data.tokenizer; its config says '
        f'{stored["config"]["data"]["tokenizer"]!r}.')


def _templates(options):
  return {
      'video': list(options.video_templates or prompter.VIDEO_TEMPLATES),
      'image': list(options.image_templates or prompter.IMAGE_TEMPLATES),
  }


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
      name: value for name, value in flat.items()
      if not name.startswith(free)
      and not (name.startswith('config.data.sources') and
               name.endswith('.path'))
  }


def _contents(meta):
  """Returns {name: digest} of what `_options` leaves out."""
  texts = {
      name: json.dumps([canonical(label) for label in meta.get(name, [])])
      for name in LABELLED}
  return {
      **{name: hashlib.sha256(text.encode()).hexdigest()[:12]
         for name, text in texts.items()},
      **{name: _digest(meta.get(name)) for name in ('prompter', 'start')},
  }


def _digest(found):
  return found and found.get('digest')


def _same_labels(old, new):
  # A list may be written in another spelling of the same names.
  return [*map(canonical, old)] == [*map(canonical, new)]


def _first_difference(old, new):
  if len(old) != len(new):
    return f'were {len(old)}, are {len(new)}'
  wrong = [i for i, pair in enumerate(zip(old, new, strict=True))
           if not _same_labels(pair[:1], pair[1:])]
  return (f'label {wrong[0]} was {old[wrong[0]]!r}, is {new[wrong[0]]!r}, and '
          f'{len(wrong)} of {len(old)} differ')


def _other_checkpoint(name, old, new):
  def shown(found):
    if not found:
      return 'none'
    if 'digest' not in found:
      return f'{found["path"]}, which is no intact checkpoint'
    return (f'{found["path"]} (step {found["step"]}, digest '
            f'{found["digest"][:12]})')

  return f'{name}: was {shown(old)}, is {shown(new)}'


def _log_moved(stored, meta):
  """Says which places are others though what lies there is the same."""
  old, new = stored['config'], meta['config']
  pairs = []
  for name in _PLACES:
    group, _, option = name.partition('.')
    pairs.append(
        (name, old.get(group, {}).get(option), new[group][option]))
  pairs += [
      (f'data.sources.{i}.path', was['path'], now['path'])
      for i, (was, now) in enumerate(
          zip(old['data']['sources'], new['data']['sources'], strict=True))]
  for name, was, now in pairs:
    if was != now and was and now:
      logging.info(
          'config.%s moved from %s to %s; what lies there is the same.',
          name, was, now)
