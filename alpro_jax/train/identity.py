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
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from alpro_jax.data.answers import canonical
from alpro_jax.models import alpro, prompter
from alpro_jax.train import checkpoints
from alpro_jax.train.workdir import plain

_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
# What decides the shapes of a model's parameters, or how they are used, and is
# not known from the data.
SIZES = {
  'video': ('patch_size', 'width', 'depth', 'heads', 'mlp_size', 'attention'),
  'text': ('width', 'depth', 'fusion_layer', 'heads', 'mlp_size', 'max_positions'),
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
      'prompter': _prompter(config.prompter.checkpoint, meta) if used else None,
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
  found = checkpoints.find(path)
  meta = found.meta
  return {
    'path': str(found.folder),
    'step': int(meta['step']),
    'task': meta['config']['task'],
    'tokenizer': meta['tokenizer']['digest'],
    'digest': digest(meta, found.params_digests()),
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
      name: value
      for name, value in meta['model'].items()
      if name not in alpro.COMPUTE and name != 'remat'
    },
    'tokenizer': meta['tokenizer']['digest'],
    **{name: [*map(canonical, meta.get(name, []))] for name in LABELLED},
  }
  text = json.dumps(content, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


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
      'it was pre-trained with; those at the given paths are used.'
    )
    return
  found = prompter_path and _prompter(prompter_path, stored)
  if different := different_labels(stored['entities'], entities):
    lines.append(f'entities: {different}')
  if different := different_checkpoints('prompter', stored['prompter'], found):
    lines.append(different)
  if lines:
    raise ValueError(
      f'the model was pre-trained with others. {"; ".join(lines)}. Pass '
      'those that it was trained with, as --prompter and --entities or in '
      'its config.'
    )


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
    for part, names in SIZES.items()
    for name in names
    if stored['model'][part][name] != asked.model[part][name]
  ]
  if lines:
    raise ValueError(
      f'{checkpoint} is of another size than --config: {"; ".join(lines)}. '
      'Pass the config that it was trained with, or none.'
    )


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


def _prompter(path, meta):
  found = of_checkpoint(path)
  name = f'the prompter {path}'
  stored = checkpoints.Checkpoint(pathlib.Path(found['path'])).meta
  if not stored['model'].get('embed_size'):
    raise ValueError(
      f'{name} (task={found["task"]!r}) has no features to compare a crop '
      'with a prompt; pass a run of configs/pretrain_prompter.py as '
      '--config.prompter.checkpoint.'
    )
  check_tokenizer(name, stored, meta)
  return found


def check_tokenizer(name: str, stored: Mapping, meta: Mapping) -> None:
  """Refuses a checkpoint of another tokenizer than a run has.

  Args:
    name: of the checkpoint, for the message.
    stored: what was stored with it.
    meta: of the run.
  Raises:
    ValueError: that names both.
  """
  theirs, ours = stored['tokenizer'], meta['tokenizer']
  if theirs['digest'] != ours['digest']:
    raise ValueError(
      f'{name} was trained with another tokenizer (digest '
      f'{theirs["digest"][:12]}, {theirs["vocab_size"]} ids) than this run '
      f'has ({ours["digest"][:12]}, {ours["vocab_size"]} ids): the same id '
      'is another word. Pass the file of that run as '
      f'--config.data.tokenizer; its config says '
      f'{stored["config"]["data"]["tokenizer"]!r}.'
    )


def _templates(options):
  return {
    'video': list(options.video_templates or prompter.VIDEO_TEMPLATES),
    'image': list(options.image_templates or prompter.IMAGE_TEMPLATES),
  }


def known_digest(found: Mapping[str, Any] | None) -> str | None:
  """Returns the digest of what `of_checkpoint` says, if it is known."""
  return found and found.get('digest')


def different_labels(old: Sequence[str], new: Sequence[str]) -> str:
  """Says how two lists of labels differ; '' if they mean the same."""
  # A list may be written in another spelling of the same names.
  was, now = [*map(canonical, old)], [*map(canonical, new)]
  if was == now:
    return ''
  if len(was) != len(now):
    return f'were {len(was)}, are {len(now)}'
  wrong = [i for i in range(len(was)) if was[i] != now[i]]
  return (
    f'label {wrong[0]} was {old[wrong[0]]!r}, is {new[wrong[0]]!r}, and '
    f'{len(wrong)} of {len(was)} differ'
  )


def different_checkpoints(name: str, old, new) -> str:
  """Says how two results of `of_checkpoint` differ; '' if they are the same.

  Args:
    name: of the option that names the checkpoint.
    old: as stored; None for no checkpoint.
    new: as found; without `digest` where there is no intact checkpoint.
  """

  def shown(found):
    if not found:
      return 'none'
    if 'digest' not in found:
      return f'{found["path"]}, which is no intact checkpoint'
    return f'{found["path"]} (step {found["step"]}, digest {found["digest"][:12]})'

  if known_digest(old) == known_digest(new):
    return ''
  return f'{name}: was {shown(old)}, is {shown(new)}'
