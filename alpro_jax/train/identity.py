"""What a model or a run depends on, by content: paths say nothing.

`describe` lists it, and the list is stored with every checkpoint. Whatever
resumes a run, starts from a checkpoint, or uses one asks here whether the
files that it found are the ones that were meant. The same content in another
place is accepted, and the log says so; other content is refused.

  data        the digest of every prepared set
  tokenizer   the digest of its file, the number of ids, the special tokens
  tower_tokenizer   the same of the text tower's, if that is another
  answers     the names of the labels of question answering, in order
  entities    the names of the labels of PEM, in order
  templates   the prompts that the entities are put into
  negative_blocks  of a batch, among whose rows VTM draws; may follow from the devices
  prompter    the checkpoint that makes the pseudo-labels: see `of_checkpoint`
  start       the checkpoint that the weights came from at first
  config      every option that decides what is learned
"""

import contextlib
import hashlib
import importlib.metadata
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from alpro_jax import files
from alpro_jax.data import tokens
from alpro_jax.data.answers import canonical
from alpro_jax.models import alpro, prompter
from alpro_jax.train import checkpoints

_LIBRARIES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
# What no shape of a parameter tells, and decides what the weights mean. Options that
# encoders of one kind alone have are compared where both sides have them.
MEANING = {
  'video': ('heads', 'activation', 'pooling', 'pool_heads', 'positions', 'pixel_mean', 'pixel_std'),
  'text': ('heads',),
  'text_tower': ('heads', 'activation', 'causal', 'pooling'),
}
# And what decides the shapes of a model's parameters, and is not known from the data.
SIZES = {
  'video': ('patch_size', 'width', 'depth', 'mlp_size', 'attention', *MEANING['video']),
  'text': ('width', 'depth', 'fusion_layer', 'mlp_size', 'max_positions', *MEANING['text']),
  'text_tower': ('width', 'depth', 'mlp_size', 'max_positions', *MEANING['text_tower']),
}
TOKENIZERS = ('tokenizer', 'tower_tokenizer')  # The second of models that have two.
# Heads whose rows are labels, by the name of those.
LABELLED = {'answers': 'answer_head', 'entities': 'entity_head'}
CHECKPOINTS = ('prompter', 'start')  # What `of_checkpoint` describes, or None.


def describe(config, task, tokenizer, sources: Sequence = ()) -> dict[str, Any]:
  """Returns the JSON that is stored with every checkpoint.

  Args:
    config: see configs/common.py.
    task: entities of None are not known, as those of weights from elsewhere.
    tokenizer: from tokens.load_tokenizers.
    sources: the sets that batches come from.
  Raises:
    ValueError: if the prompter belongs to another tokenizer, or has no
      features to compare a crop with a prompt.
    FileNotFoundError: if a prompter is named that is not there.
  """
  meta = {
    'task': config.task,
    'model': task.model.config.to_dict(),
    **{
      name: {'digest': one.digest, 'vocab_size': one.vocab_size, 'special': one.special._asdict()}
      for name, one in zip(TOKENIZERS, tokens.parts(tokenizer), strict=False)
    },
    'data': [source.digest for source in sources],
    'answers': list(task.answers),
    'negative_blocks': task.negative_blocks,
    'start': _start(config.train.init_from),
    'config': json.loads(config.to_json()),
    'versions': versions(),
  }
  if task.entities is not None:
    options = config.prompter
    used = task.entities and options.checkpoint
    templates = {
      'video': list(options.video_templates or prompter.VIDEO_TEMPLATES),
      'image': list(options.image_templates or prompter.IMAGE_TEMPLATES),
    }
    of = _prompter(options.checkpoint, meta) if used else None
    if used and options.prompts:
      prompter.read_prompts(options.prompts, task.entities, of['digest'])
      templates = {'prompts': files.sha256(options.prompts)}
    meta |= {
      'entities': list(task.entities),
      'templates': templates if task.entities else {},
      'prompter': of,
    }
  return meta


def versions() -> dict[str, str]:
  """Returns the versions of Python and of what decides how arrays are computed."""
  return {'python': sys.version.split()[0]} | {
    name: importlib.metadata.version(name) for name in _LIBRARIES
  }


def words(meta: Mapping[str, Any], tokenizer) -> dict[str, bytes]:
  """Returns the files that travel in every checkpoint, by name.

  vocab.txt or tokenizer.model, byte for byte, and tower.json; entities.txt and answers.txt
  where the model has such labels: the names that it was trained with, as
  data/entities.py and data/answers.py read them.

  Args:
    meta: what `describe` gave.
    tokenizer: from tokens.load_tokenizers.
  """
  # The tab says that a number at the end of a name is no count.
  ends = {'entities': '\t\n', 'answers': '\n'}
  lists = {
    f'{label}.txt': ''.join(f'{name}{end}' for name in meta[label]).encode()
    for label, end in ends.items()
    if meta.get(label)
  }
  return {tokens.NAMES[one.kind]: one.content for one in tokens.parts(tokenizer)} | lists


def of_checkpoint(path) -> dict[str, Any]:
  """Says of a checkpoint where it lies, and by content what it is.

  `path` is what checkpoints.find takes. `digest` is the sha256 of everything
  that decides what the model computes: parameters, sizes, tokenizer and the
  names of its labels. A checkpoint that was copied, or written again without
  its optimizer, has the same one.
  """
  found = checkpoints.find(path)
  return {
    'path': str(found.folder),
    'step': int(found.meta['step']),
    'task': found.meta['config']['task'],
    'tokenizer': found.meta['tokenizer']['digest'],
    'digest': digest(found.meta, found.params_digests()),
  }


def opened(described: Mapping[str, Any]) -> checkpoints.Checkpoint:
  """Returns the checkpoint that `of_checkpoint` described: its files are checked."""
  return checkpoints.Checkpoint(pathlib.Path(described['path']))


def named(described: Mapping[str, Any]) -> str:
  """Returns what messages call a checkpoint that `of_checkpoint` described."""
  # A folder in the Hub's layout does not say where things lay.
  place = described.get('path', 'a checkpoint')
  return f'{place} (step {described["step"]}, digest {described["digest"][:12]})'


def digest(meta: Mapping[str, Any], params: Mapping[str, str]) -> str:
  """Returns the digest that `of_checkpoint` explains, of `meta` and every parameter's."""
  content = {
    'params': dict(params),
    'model': {
      name: value
      for name, value in meta['model'].items()
      if name not in alpro.COMPUTE and name != 'remat'
    },
    **{name: meta[name]['digest'] for name in TOKENIZERS if name in meta},
    **{name: [*map(canonical, meta.get(name, []))] for name in LABELLED},
  }
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def essence(name: str, value: Any) -> Any:
  """Returns what of a part of a description is compared: JSON."""
  if name in CHECKPOINTS:
    return value and value.get('digest')
  if name in LABELLED:  # In one spelling of the same names.
    return hashlib.sha256(json.dumps([*map(canonical, value)]).encode()).hexdigest()[:12]
  return value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
  """Says of all parts that differ how they do, by name.

  Args:
    old: as stored, {name: value}.
    new: as found; a checkpoint without `digest` could not be read.
  """

  def shown(name, parts):
    value = parts.get(name, 'absent')
    if name not in CHECKPOINTS:
      return repr(value)
    if not value:
      return 'none'
    if 'digest' not in value:
      return f'{value["path"]}, which is no intact checkpoint'
    return named(value)

  def how(name):
    if name not in LABELLED:
      return f'was {shown(name, old)}, is {shown(name, new)}'
    if len(old[name]) != len(new[name]):
      return f'were {len(old[name])}, are {len(new[name])}'
    pairs = enumerate(zip(old[name], new[name], strict=True))
    wrong = [(i, *pair) for i, pair in pairs if len({*map(canonical, pair)}) == 2]
    index, was, now = wrong[0]
    return f'label {index} was {was!r}, is {now!r}, and {len(wrong)} of {len(old[name])} differ'

  return {
    name: how(name)
    for name in sorted({*old, *new})
    if (name in old) != (name in new) or essence(name, old[name]) != essence(name, new[name])
  }


def check_teacher(
  stored: Mapping[str, Any], path, entities: Sequence[str]
) -> checkpoints.Checkpoint | None:
  """Checks that prompter and list are those that a model was pre-trained with.

  Args:
    stored: what was stored with the pre-trained checkpoint.
    path: checkpoint of the prompter that would be used; '' for none.
    entities: the names that would be used.
  Returns:
    the prompter's checkpoint.
  Raises:
    FileNotFoundError: if there is no prompter.
    ValueError: if it is another one, or the list is another.
  """
  if 'entities' not in stored:
    logging.warning(
      'this checkpoint does not say by content which prompter and entities '
      'it was pre-trained with; those at the given paths are used.'
    )
    return checkpoints.find(path) if path else None
  found = None
  with contextlib.suppress(FileNotFoundError):
    found = _prompter(path, stored) if path else None
  if stored['prompter'] and not found:
    raise FileNotFoundError(
      f'the prompter that the model was pre-trained with, {named(stored["prompter"])}, is not at '
      f'{str(path)!r}. It is a checkpoint of its own, which does not travel with the model: '
      'copy it as well and pass its folder as --prompter or in its config.'
    )
  different = differences(
    {'entities': stored['entities'], 'prompter': stored['prompter']},
    {'entities': entities, 'prompter': found},
  )
  if different:
    lines = '; '.join(f'{name}: {how}' for name, how in different.items())
    raise ValueError(
      f'the model was pre-trained with others. {lines}. Pass '
      'those that it was trained with, as --prompter and --entities or in '
      'its config.'
    )
  return found and opened(found)


def other_sizes(
  stored: Mapping, asked: Mapping, sizes: Mapping[str, Sequence[str]] = SIZES
) -> dict[str, tuple[Any, Any]]:
  """Returns what differs of two models, by its name: one's and the other's.

  A part that one of them lacks, as a BERT beside image-text towers, is not compared: whoever
  loads parameters names those that are missing.
  """
  both = {part: (stored.get(part), asked.get(part)) for part in sizes}
  found = {
    f'model.{part}.{size}': (theirs[size], ours[size])
    for part, (theirs, ours) in both.items()
    if theirs and ours
    for size in sizes[part]
    if size in theirs and size in ours
  }
  return {
    name: pair
    for name, pair in found.items()
    if json.dumps(pair[0], default=list) != json.dumps(pair[1], default=list)
  }


def check_sizes(
  name: str, stored: Mapping, asked: Mapping, sizes: Mapping[str, Sequence[str]] = SIZES
) -> None:
  """Raises ValueError for a checkpoint of another size than a config says; see `other_sizes`.

  Args:
    name: of the checkpoint, for the message.
    stored: `model` of what was stored with it.
    asked: the same of the config or the run.
    sizes: what is compared, by the part of the model.
  """
  lines = [
    f'{what} is {theirs!r}, --config says {ours!r}'
    for what, (theirs, ours) in other_sizes(stored, asked, sizes).items()
  ]
  if lines:
    raise ValueError(
      f'{name} is another model than --config: {"; ".join(lines)}. Pass the config that it '
      'was trained with, or set --config.model to its values: even where the shapes of the '
      'weights fit, they would mean something else.'
    )


def check_tokenizer(name: str, stored: Mapping, meta: Mapping) -> None:
  """Raises ValueError for a checkpoint, `stored`, of another tokenizer than a run has.

  Of two tokenizers one may be missing on one side, as where image-text weights get a BERT.
  """
  both = [{x[part]['digest'] for part in TOKENIZERS if part in x} for x in (stored, meta)]
  if not (both[0] <= both[1] or both[0] >= both[1]):
    pairs = [
      (part, stored[part], meta[part]) for part in TOKENIZERS if part in stored and part in meta
    ]
    part, theirs, ours = next(x for x in pairs if x[1]['digest'] != x[2]['digest'])
    raise ValueError(
      f'{name} was trained with another tokenizer (digest '
      f'{theirs["digest"][:12]}, {theirs["vocab_size"]} ids) than this run '
      f'has ({ours["digest"][:12]}, {ours["vocab_size"]} ids): the same id '
      'is another word. Pass the file of that run as '
      f'--config.data.{part}; its config says '
      f'{stored["config"]["data"][part]!r}.'
    )


def tokenizer_of(stored: Mapping, tokenizer: Any) -> Any:
  """Returns what of a run's tokenizer the model of a checkpoint, `stored`, reads texts with.

  Raises:
    ValueError: if the run does not have all of it.
  """
  wanted = [stored[name]['digest'] for name in TOKENIZERS if name in stored]
  for one in {id(x): x for x in (tokenizer, *tokens.parts(tokenizer))}.values():
    if [x.digest for x in tokens.parts(one)] == wanted:
      return one
  raise ValueError(
    f'the prompter reads texts with tokenizers of the digests {[x[:12] for x in wanted]}, this run '
    f'has {[x.digest[:12] for x in tokens.parts(tokenizer)]}; train both with the same.'
  )


def _start(path):
  """What a run starts from; its path alone if that cannot be read."""
  if not path:
    return None
  try:
    found = of_checkpoint(path)
  except (FileNotFoundError, checkpoints.DamagedCheckpointError):
    # A run that resumes needs it no more; one that begins says what is wrong.
    found = {'path': str(path)}
  return found | {'given': str(path)}


def _prompter(path, meta):
  try:
    found = of_checkpoint(path)
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f'the prompter is not there: {error} If it has moved, pass its folder as '
      '--config.prompter.checkpoint; it is compared by content.'
    ) from error
  name, stored = f'the prompter {path}', opened(found).meta
  if not stored['model'].get('embed_size'):
    raise ValueError(
      f'{name} (task={found["task"]!r}) has no features to compare a crop '
      'with a prompt; pass a run of configs/pretrain_prompter.py as '
      '--config.prompter.checkpoint.'
    )
  check_tokenizer(name, stored, meta)
  return found
