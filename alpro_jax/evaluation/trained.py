"""A model as it was trained: from a checkpoint, or in the middle of training.

The sizes of the model always come from where it was trained. Frames, size of
the image and everything else that decides how it is evaluated may be others:
the model fits its positions to what it is shown.
"""

import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import logging

from alpro_jax import files, sharding
from alpro_jax.data import tokens
from alpro_jax.evaluation import familiarity as familiar
from alpro_jax.models import prompter
from alpro_jax.models.alpro import Alpro, AlproConfig
from alpro_jax.tasks.base import TextInfo
from alpro_jax.tasks.registry import get_task
from alpro_jax.tasks.shared import abstract_params
from alpro_jax.train import checkpoints, identity
from alpro_jax.train.checkpoints import Checkpoint
from alpro_jax.train.frozen import load_frozen


class CheckpointInfo(NamedTuple):
  """Which checkpoint a model comes from."""

  path: str  # Of its folder.
  step: int  # At which it was saved.
  digest: str  # Hex sha256 of the digests of all its files; with averaged=False another.


class TrainedModel(NamedTuple):
  """A model, and all that is needed to ask it something."""

  model: Alpro
  params: Any  # On the devices of `mesh`.
  config: Any  # Options of its run; data and eval say how it is evaluated.
  tokenizer: Any
  mesh: jax.sharding.Mesh
  answers: tuple[str, ...] = ()  # To choose from, most frequent first.
  origin: CheckpointInfo | None = None  # None in the middle of training.
  meta: Mapping[str, Any] | None = None  # Of the checkpoint; see train/identity.py.
  familiarity: familiar.Familiarity | None = None  # What it was trained on, if stored.

  @property
  def answers_questions(self) -> bool:
    """Whether it was trained to answer questions, and else to match texts."""
    return self.config.task == 'question_answering'

  @property
  def entity_templates(self) -> Sequence[str]:
    """The prompts for videos that it was pre-trained with."""
    return (self.meta or {}).get('templates', {}).get('video') or prompter.VIDEO_TEMPLATES

  @property
  def knows_matching(self) -> bool:
    """Whether the head that says match or no match was trained."""
    return not self.why_no_matching

  @property
  def why_no_matching(self) -> str:
    """Why the head for match or no match is of no use, '' if it is of use.

    Where nobody could say what converted weights were trained for, the head
    itself tells: its bias begins at 0 and does not stay there.
    """
    if not self.model.config.match and not self.model.config.text:
      return 'the model has no fusion encoder (launch/convert.py --bert adds one, to be trained)'
    if self.config.task not in ('pretrain', 'retrieval'):
      return f'the matching head is not trained by task {self.config.task!r}'
    if not self.config.loss.vtm > 0:
      return 'the matching head was not trained, with loss.vtm=0'
    converted = 'converted' in (self.meta or {}) and self.model.config.match
    if converted and not np.any(jax.device_get(self.params['match_head']['bias'])):
      return 'the matching head of these converted weights was never trained: its bias is exactly 0'
    return ''

  @property
  def why_no_similarity(self) -> str:
    """Why the similarity of a text and a video is of no use, '' if it may be of use."""
    config = self.config
    if config.task in ('pretrain', 'retrieval') and not (
      config.loss.vtc > 0 or config.train.init_from or 'converted' in (self.meta or {})
    ):
      return 'it was not trained, with loss.vtc=0 from random weights'
    return ''


def load(
  checkpoint, *, tokenizer: str = '', config=None, mesh=None, averaged: bool = True
) -> TrainedModel:
  """Loads a model from a workdir or checkpoint, with its options.

  Args:
    checkpoint: what checkpoints.find takes, or what api.find gave.
    tokenizer: see find_tokenizer.
    config: all options, instead of those of the run.
    mesh: None is all devices.
    averaged: False takes the parameters of the last step of a run that averaged them.
  Returns:
    the model; its options name the lists that the checkpoint brings along.
  Raises:
    ValueError: if the tokenizer is not the one of training, or the answers are
      not stored, or nothing was averaged.
    FileNotFoundError: if there is no checkpoint or tokenizer.
  """
  mesh = mesh or sharding.make_mesh()
  found = checkpoints.find(checkpoint)
  meta = found.meta
  config = (config or ml_collections.ConfigDict(meta['config'])).copy_and_resolve_references()
  loaded = find_tokenizer(found, tokenizer)
  _name_own_lists(config, found.words)
  model = Alpro(AlproConfig.from_dict(meta['model']))
  answers = tuple(meta.get('answers', ()))
  if len(answers) != model.config.answers:
    raise ValueError(
      f'{checkpoint} chooses from {model.config.answers} answers and names '
      f'{len(answers)}; it cannot be read out. Train it again.'
    )
  params = found.load_params(abstract_params(model, mesh), averaged=averaged)
  digest, known = found.digest, familiar.load(found.folder)
  if not averaged:  # Another model than the checkpoint's, which the summary is about.
    digest, known = hashlib.sha256(f'{digest}, last step'.encode()).hexdigest(), None
  origin = CheckpointInfo(str(found.folder), int(meta['step']), digest)
  return TrainedModel(model, params, config, loaded, mesh, answers, origin, meta, known)


def find_tokenizer(checkpoint: Checkpoint, path: str = ''):
  """Opens the tokenizer of a checkpoint, which is known by its digest.

  It travels in the checkpoint. One of an earlier version has it where it was in
  training, or beside the parameters.

  Args:
    checkpoint: from checkpoints.find.
    path: of the file to use instead, which must be the same by content.
  Raises:
    FileNotFoundError: if there is no file in any of these places.
    ValueError: if none of them is the tokenizer of the checkpoint.
  """
  folder, wanted, others = checkpoint.folder, checkpoint.meta['tokenizer'], []
  recorded = str(checkpoint.meta['config']['data']['tokenizer'])
  second = identity.TOKENIZERS[1] in checkpoint.meta
  names = [name for kind, name in tokens.NAMES.items() if not (second and kind == 'tower')]
  own = [str(file) for name in names if (file := checkpoint.words / name).is_file()]
  places = own or [recorded, str(folder / pathlib.Path(recorded).name)]
  for file in [str(path)] if path else places:
    try:
      tokenizer = tokens.load_tokenizer(file)
    except FileNotFoundError:
      continue
    except ValueError as error:
      others.append(str(error))
      continue
    size = wanted.get('vocab_size', tokenizer.vocab_size)
    if tokenizer.digest != wanted['digest']:
      others.append(f'{file} has digest {tokenizer.digest}')
    elif tokenizer.vocab_size != size:
      # Its lines were cut at more than \n in training: an id meant another.
      others.append(f'{file} has {tokenizer.vocab_size} ids and had {size} in training')
    else:
      if others:
        logging.warning('%s is used, for %s.', file, '; '.join(others))
      return _with_tower(checkpoint, tokenizer) if second else tokenizer
  help = f'name none: {own[0]} is it' if own else 'pass the file of that run as --tokenizer'
  if others:
    raise ValueError(
      f'{"; ".join(others)}, but {folder} was trained with {wanted["digest"]}; {help}.'
    )
  where = f'at {path}' if path else f'at {recorded!r}, where it was in training, nor in {folder}'
  raise FileNotFoundError(f'no tokenizer {where}; {help}.')


def _with_tower(checkpoint, tokenizer):
  """Returns the Pair of a checkpoint; its second tokenizer has always travelled with it."""
  data, wanted = checkpoint.meta['config']['data'], checkpoint.meta[identity.TOKENIZERS[1]]
  tower = tokens.load_tokenizer(checkpoint.words / tokens.NAMES['tower'])
  if tower.digest != wanted['digest']:
    raise ValueError(
      f'{tower.path} has digest {tower.digest}, but {checkpoint.folder} was trained with '
      f'{wanted["digest"]}; copy the checkpoint again.'
    )
  return tokens.Pair(tokenizer, tower, data['max_tower_tokens'])


def _name_own_lists(config, words):
  """Makes options name the entities and answers that travel in a checkpoint."""
  with config.ignore_type(), config.unlocked():
    for part, name in (('prompter', 'entities'), ('data', 'answers')):
      if (file := words / f'{name}.txt').is_file():
        config[part][name] = str(file)


def load_teacher(trained: TrainedModel):
  """Returns the frozen prompter of a pre-training, and its entities.

  Raises:
    FileNotFoundError: if one of them is not where config.prompter says.
    ValueError: if they are not those that the model was pre-trained with.
  """
  path, prompts = trained.config.prompter.checkpoint, trained.config.prompter.get('prompts', '')
  logging.info('prompter: %s', path)
  if prompts and files.sha256(prompts) != trained.meta['templates']['prompts']:
    raise ValueError(f'{prompts} does not hold the prompts that the model was pre-trained with.')
  text = TextInfo(trained.tokenizer.special, trained.tokenizer.vocab_size)
  task = get_task(trained.config, text, trained.mesh)
  prompter = identity.check_teacher(trained.meta, path, task.entities)
  return load_frozen(task, prompter, trained.tokenizer), task.entities
