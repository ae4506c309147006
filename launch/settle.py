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
from alpro_jax.train import checkpoints
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
  its sizes.

  Args:
    config: see configs/common.py.
    workdir: of the run; '' is none.
    given: dotted names of the options that the command line sets: they stay.
  Raises:
    ValueError: if the memory that is there does not suffice, or options are wrong.
    FileNotFoundError: if there is no prepared set.
  """
  said, videos, held_out, copies, chooses = [], 0, 0, 0, config.machine.choose
  if chooses not in ('', 'batch', 'model'):
    raise ValueError(f"config.machine.choose={chooses!r} must be 'model', 'batch' or ''.")
  begun = workdir and checkpoints.have_begun(workdir)
  start = config.train.init_from if chooses and not begun else ''
  if start:
    stored = checkpoints.load_meta(start)['config']
    # Of its model alone; batch and steps are this run's.
    others = {name for name in own.CHOSEN if name not in own.OF_MODEL}
    config = own.as_before(config, stored, given={*given, *others})
    said.append(f'the sizes of the model are those of {start}')
    if not config.data.tokenizer and files.exists(stored['data']['tokenizer']):
      config.data.tokenizer = stored['data']['tokenizer']
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
  if chooses and begun:
    config = own.as_before(config, checkpoints.load_meta(workdir)['config'], given=given)
    said.append('the sizes are those that this run began with')
  elif chooses:
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
