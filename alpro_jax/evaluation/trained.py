"""A model as it was trained: from a checkpoint, or in the middle of training.

The sizes of the model always come from where it was trained. Frames, size of
the image and everything else that decides how it is evaluated may be others:
the model fits its positions to what it is shown.
"""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
from absl import logging

from alpro_jax import sharding
from alpro_jax.data import tokens
from alpro_jax.models.alpro import Alpro, AlproConfig
from alpro_jax.tasks.base import TextInfo, get_task
from alpro_jax.tasks.prompter import abstract_params
from alpro_jax.train import checkpoints

# What decides the shapes of a model's parameters, or how they are used, and is
# not known from the data.
_SIZES = {
    'video': ('patch_size', 'width', 'depth', 'heads', 'mlp_size', 'attention'),
    'text': ('width', 'depth', 'fusion_layer', 'heads', 'mlp_size',
             'max_positions'),
}


class Origin(NamedTuple):
  """Which checkpoint a model comes from.

  Attributes:
    path: of its folder.
    step: at which it was saved.
    digest: hex sha256 of the digests of all its files.
  """

  path: str
  step: int
  digest: str


class Trained(NamedTuple):
  """A model, and all that is needed to ask it something.

  Attributes:
    model: an Alpro.
    params: its parameters, on the devices of `mesh`.
    config: the options of its run; data and eval say how it is evaluated.
    tokenizer: of its run.
    mesh: of devices.
    answers: that it chooses from, most frequent first; () unless it answers
      questions.
    origin: None in the middle of training.
  """

  model: Alpro
  params: Any
  config: Any
  tokenizer: Any
  mesh: jax.sharding.Mesh
  answers: tuple[str, ...] = ()
  origin: Origin | None = None

  @property
  def answers_questions(self) -> bool:
    """Whether it was trained to answer questions, and else to match texts."""
    return self.config.task == 'question_answering'

  @property
  def knows_matching(self) -> bool:
    """Whether the head that says match or no match was trained."""
    return (self.config.task in ('pretrain', 'retrieval')
            and self.config.loss.vtm > 0)


def load(checkpoint, *, tokenizer: str = '', config=None, mesh=None) -> Trained:
  """Loads a model from a workdir or checkpoint, with its options.

  Args:
    checkpoint: what checkpoints.find takes.
    tokenizer: its file, if it is neither where it was in training nor beside
      the parameters.
    config: options to use instead of those of the run, complete; None is
      those of the run.
    mesh: of devices; None is all of them.
  Raises:
    ValueError: if the tokenizer is not the one of training, or the checkpoint
      answers questions and does not say which answers there are.
    FileNotFoundError: if there is no checkpoint or tokenizer.
  """
  mesh = mesh or sharding.make_mesh()
  folder = checkpoints.find(checkpoint)
  meta = checkpoints.load_meta(folder)
  config = config or ml_collections.ConfigDict(meta['config'])
  path = tokenizer or _find_tokenizer(folder, config.data.tokenizer)
  loaded = tokens.load_tokenizer(path)
  if loaded.digest != meta['tokenizer']['digest']:
    raise ValueError(
        f'{path} has digest {loaded.digest}, but {checkpoint} was trained '
        f'with {meta["tokenizer"]["digest"]}; pass the file of that run as '
        '--tokenizer.')
  model = Alpro(AlproConfig.from_dict(meta['model']))
  answers = tuple(meta.get('answers', ()))
  if len(answers) != model.config.answers:
    raise ValueError(
        f'{checkpoint} chooses from {model.config.answers} answers and names '
        f'{len(answers)}; it cannot be read out. Train it again.')
  params = checkpoints.load_params(folder, abstract_params(model, mesh))
  digest = hashlib.sha256((folder / 'digests.json').read_bytes()).hexdigest()
  origin = Origin(str(folder), int(meta['step']), digest)
  return Trained(model, params, config, loaded, mesh, answers, origin)


def _find_tokenizer(folder, name):
  """Where it was in training, or beside the parameters it belongs to."""
  beside = pathlib.Path(folder) / pathlib.Path(name).name
  if not pathlib.Path(name).is_file() and beside.is_file():
    return str(beside)
  return name


def load_teacher(trained: Trained):
  """Returns the frozen prompter of a pre-training, and its entities.

  Where both lie stands in trained.config.prompter.

  Raises:
    FileNotFoundError: if the prompter or the list of entities is not there.
  """
  text = TextInfo(trained.tokenizer.special, trained.tokenizer.vocab_size)
  task = get_task(trained.config, text, trained.mesh)
  logging.info('prompter: %s', trained.config.prompter.checkpoint)
  teacher = task.load_frozen(
      trained.tokenizer.encode, checkpoints.load_meta, checkpoints.load_params)
  return teacher, task.entities


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
      for part, names in _SIZES.items() for name in names
      if stored['model'][part][name] != asked.model[part][name]
  ]
  if lines:
    raise ValueError(
        f'{checkpoint} is of another size than --config: {"; ".join(lines)}. '
        'Pass the config that it was trained with, or none.')
