"""What a run's config becomes before it begins: its own set, sizes that fit this machine.

launch/main.py trains what this returns, and launch/doctor.py says what it says.
"""

import contextlib
from collections.abc import Collection
from typing import Any, NamedTuple

from alpro_jax import files
from alpro_jax import machine as machines
from alpro_jax.data import own as own_set
from alpro_jax.data import tokens
from alpro_jax.train import checkpoints, ranges
from configs import common, own


class Settled(NamedTuple):
  """What a run begins with.

  Attributes:
    config: with sets and sizes in place.
    said: sentences about what was chosen.
    path: of one's own set; '' for other sets.
    held_out: videos of one's own set that are measured on; 0 for other sets.
    copies: of these, those that are trained on under another name.
    pretended: why nothing can be trained here, where config.machine pretends another
      device; '' as a rule.
  """

  config: Any
  said: list[str]
  path: str
  held_out: int
  copies: int
  pretended: str


def settle(config: Any, workdir: str = '', *, given: Collection[str] = ()) -> Settled:
  """Puts config.data.path in place, chooses sizes, and refuses what cannot fit.

  Nothing is compiled or allocated. A run that goes on, or starts from another, keeps
  its sizes, and reads texts with its tokenizers.

  Args:
    config: see configs/common.py.
    workdir: of the run; '' is none.
    given: dotted names of the options that the command line sets: they stay.
  Raises:
    ValueError: if the memory that is there does not suffice, or options are wrong.
    FileNotFoundError: if there is no prepared set.
  """
  ranges.check(config)
  said, videos, held_out, copies, chooses = [], 0, 0, 0, config.machine.choose
  if chooses not in ('', 'batch', 'model'):
    raise ValueError(f"config.machine.choose={chooses!r} must be 'model', 'batch' or ''.")
  begun = bool(workdir) and checkpoints.have_begun(workdir)
  before = workdir if begun else config.train.init_from
  reads_otherwise = config.model.get('text_tower') and not config.data.tower_tokenizer
  if before and (chooses or reads_otherwise):
    found = checkpoints.find(before)
    stored, asked = found.meta['config'], config
    if chooses and begun:
      config = own.as_before(config, stored, given=given)
      said.append('the sizes are those that this run began with')
    elif chooses:
      config = own.started(config, stored, given=given)
      said.append(f'the sizes of the model are those of {before}')
      said += _of_towers(asked, config)
    _name_tokenizers(config, found, begun)
  if path := own_set.path_of(config, given):
    parts = own_set.parts(path)
    measured, videos = 'eval.sources' not in given, parts.videos
    both = []
    if measured and parts.held_out:
      both = own_set.shared((path, parts.train), (path, parts.held_out))
      if refusal := own_set.refusal(parts, path, both):
        raise ValueError(f'{refusal}.')
      held_out, copies = parts.held_out_videos, len(both)
    said.append(own_set.say(parts, path, both, measured=measured))
    if not measured:
      said += _shared_with_named(config.eval.sources, (path, parts.train))
  config = own_set.use(config, source=common.source, given=given)
  vocab_size = 0
  with contextlib.suppress(ValueError, OSError):  # Whoever opens it to use it says why.
    vocab_size = tokens.load_tokenizers(config).vocab_size
  machine = machines.ask(config.machine)
  if chooses and not begun:
    chosen = own.choose(config, machine, videos=videos, vocab_size=vocab_size, given=given)
    config = own.applied(config, chosen)
    listed = ', '.join(f'{name}={value}' for name, value in chosen.items())
    said.append(f'chosen for {machine}: {listed}; give --config.NAME=VALUE to change one')
  need = own.check(config, machine, vocab_size=vocab_size)
  said.append(f'a step needs about {need}; there is {machine}')
  real, pretended = machines.ask().kind, ''
  if machine.kind != real:
    pretended = (
      f'config.machine.device={machine.kind!r} is pretended: this machine has a {real}, and '
      'nothing is trained on it'
    )
  return Settled(config, said, path, held_out, copies, pretended)


def _shared_with_named(sources, trained):
  """Says of each set that the user names to be measured on what of it is trained on."""
  said = []
  for source in sources:
    both = ()
    with contextlib.suppress(ValueError, OSError):  # Whoever opens it to use it says why.
      both = own_set.shared(trained, (source.path, source.split))
    if both:
      said.append(
        f'warning: what is measured on {source.path} ({source.split}) is not of new videos alone: '
        f'{len(both)} of them are trained on ({trained[1]}), such as {", ".join(both[:2])}'
      )
  return said


def _of_towers(asked, config):
  """Says what own.started set for a text tower, in a list of one sentence or none."""
  if asked.model.get('text_tower') or not config.model.get('text_tower'):
    return []
  values = {name: own.option(config, name) for name in own.OF_TOWERS}
  changed = [f'{x}={value}' for x, value in values.items() if value != own.option(asked, x)]
  alone = '' if config.model.get('text') else ', and it has no BERT to match pairs with'
  return [f'its towers learned from images and texts{alone}: {", ".join(changed)}']


def _name_tokenizers(config, found, begun):
  """Names the tokenizers of a checkpoint where the config names none."""
  recorded = found.meta['config']['data']

  def copies(*kinds):
    return [str(found.words / tokens.NAMES[kind]) for kind in kinds]

  # Where they lay, then the copies in the checkpoint. Of converted weights the copy alone says
  # by which rules a tower reads; those of the run itself go when it saves the next step.
  text = [recorded['tokenizer']] + ([] if begun else copies('wordpiece', 'sentencepiece'))
  tower = ([recorded.get('tower_tokenizer', '')] if begun else []) + copies('tower')
  for part, name, places in (('text', 'tokenizer', text), ('text_tower', 'tower_tokenizer', tower)):
    if config.model.get(part) and not config.data[name]:
      config.data[name] = next(filter(files.exists, places), '')
