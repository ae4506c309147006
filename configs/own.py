"""Presets for one's own set, and the choice of sizes by what a machine has.

`:own` has the largest model that learns in reasonable time on a device of this
kind, in the batches that its memory holds; `:tiny_own` a small one that learns
in minutes on two cores. The choice is made when a run begins, by launch/main.py,
and stays: a run that resumes keeps its sizes. One that starts from another has the
model of that, with the rates of configs/image_text.py where it has a text tower.
"""

import contextlib
import functools
from collections.abc import Collection, Mapping
from typing import Any

from alpro_jax import memory
from alpro_jax.machine import Machine
from configs import common, image_text, models

SCALES = ('own', 'tiny_own')
# What is chosen; with choose='batch' neither model nor steps. `model` is all of it but how it
# is computed.
CHOSEN = (
  'model',
  'model.dtype',
  'model.remat',
  'data.image_size',
  'data.resize',
  'data.batch_size',
  'optimizer.accumulation',
  'train.steps',
)
OF_MODEL = ('model', 'data.image_size', 'data.resize')  # What fits a model's weights.
# What a model with a text tower brings along, and what is set for it.
SHOWN = ('data.frames', 'data.resize_mode', 'data.max_tower_tokens', 'loss.vtc_form')
OF_TOWERS = (*SHOWN, 'data.max_text_tokens', 'data.randaugment.enabled', 'eval.scoring')
OF_TOWERS += ('loss.vtm', 'optimizer.groups', 'optimizer.learning_rate')
_SIZES = ('video', 'text', 'embed_size')  # Of a preset.
_COMPUTED = ('dtype', 'remat', 'implementation', 'attention_impl', 'scan_layers')
# Models by kind of device, the first that fits: `base` would take weeks on a CPU.
MODELS = {'cpu': ('small', 'tiny'), 'gpu': ('base', 'small'), 'tpu': ('base', 'small')}
EPOCHS, STEPS = 100, (1_000, 10_000)  # Passes over the videos, within these steps.
BATCH = 64  # Pairs of an update, as far as the set has videos.
# (pairs of a micro-batch on a device, remat), the best first: more pairs find more
# negatives, and `blocks` computes a quarter more. On a CPU it saves nothing.
MICRO = ((64, 'none'), (32, 'none'), (64, 'blocks'), (16, 'none'), (32, 'blocks'))
MICRO += ((16, 'blocks'), (8, 'none'), (8, 'blocks'))
FITS = 0.85  # Share of the memory that a choice fills: the formula is a few percent off.


def get_config(scale):
  """Returns the pre-training of one's own set: 'own' or 'tiny_own'.

  Its sizes are those of the smallest choice, until `choose` was asked.

  Raises:
    ValueError: for another scale.
  """
  if scale not in SCALES:
    raise ValueError(f"unknown {scale=} after ':' in --config; choose one of {SCALES}.")
  config = common.get_config('tiny')
  models.from_random_weights(config.model)
  config.machine.choose = 'model' if scale == 'own' else 'batch'
  config.data.update(
    {
      'path': 'sets/clips',
      'batch_size': BATCH,
      'image_size': config.model.video.image_size,
      'resize': config.model.video.image_size,
    }
  )
  config.data.randaugment.update({'enabled': scale == 'own', 'exclude': ('horizontal_flip',)})
  # Of random weights hard negatives are hard too soon.
  config.loss.update({'uniform_negative_steps': 200, 'negative_ramp_steps': 800})
  config.eval.rerank_k = 64  # All pairs of a large set would take longer than the training.
  config.prompter.num_entities = 0  # As many as the captions gave.
  config.optimizer.update({'schedule': 'cosine', 'final_fraction': 0.05, 'clip_norm': 1.0})
  if scale == 'own':
    config.optimizer.update({'learning_rate': 3e-4, 'warmup_steps': 500})
    config.train.steps = STEPS[1]
  else:
    config.optimizer.update({'learning_rate': 2e-3, 'warmup_steps': 40})
    config.train.steps = 1_000
  return config


def choose(
  config: Any,
  machine: Machine,
  *,
  videos: int = 0,
  vocab_size: int = 0,
  given: Collection[str] = (),
) -> dict[str, Any]:
  """Chooses what config.machine.choose asks for; nothing is looked at but the arguments.

  Args:
    config: with all that was given.
    machine: its kind, memory and devices; memory 0 is not known and holds everything.
    videos: of the training set, of which a batch has no more; 0 is not known.
    vocab_size: of the tokenizer; 0 is not known.
    given: dotted names of the options that stay as they are.
  Returns:
    values by the names of CHOSEN, without those that were given.
  Raises:
    ValueError: if nothing fits.
  """
  fixed = {name for name in CHOSEN if any(_within(option, name) for option in given)}
  sizes = MODELS[machine.kind]
  if config.machine.choose == 'batch' or 'model' in fixed or config.train.init_from:
    sizes = (None,)
  batch = min(BATCH, videos) if videos else BATCH
  smallest = None
  for size in sizes:
    for micro, remat in MICRO:
      if machine.kind == 'cpu' and remat != 'none':
        continue
      options = _options(size, micro, remat, batch, machine)
      if config.machine.choose == 'model':  # That of a start, too.
        options['model.dtype'] = 'float32' if machine.kind == 'cpu' else 'bfloat16'
      if videos and config.machine.choose == 'model':
        steps = EPOCHS * videos // options['data.batch_size']
        options['train.steps'] = min(max(steps, STEPS[0]), STEPS[1])
      options = {name: value for name, value in options.items() if name not in fixed}
      need = memory.of_step(
        applied(config, options), kind=machine.kind, devices=machine.devices, vocab_size=vocab_size
      )
      if not machine.memory or need.total <= FITS * machine.memory:
        return options
      smallest = min(smallest or need, need, key=lambda need: need.total)
  raise ValueError(
    f'nothing fits {machine}: the smallest choice needs about {smallest}, and '
    f'{1 - FITS:.0%} must stay free. Close other programs or use a machine with more memory'
    + (f', or leave out {", ".join(sorted(fixed))}.' if fixed else '.')
  )


def applied(config: Any, options: Mapping[str, Any]) -> Any:
  """Returns a config with chosen values; `model` is the name of a preset, or all options."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    for name, value in options.items():
      if name != 'model':
        config.update_from_flattened_dict({name: value})
        continue
      if isinstance(value, str):
        preset = models.from_random_weights(models.PRESETS[value]())
        value = {part: preset[part] for part in _SIZES}
      for part in {'text', 'text_tower'} & set(config.model) - set(value):
        del config.model[part]
      for part in set(value) - set(_COMPUTED):
        config.model[part] = value[part]
  return config


def as_before(
  config: Any,
  stored: Mapping[str, Any],
  names: Collection[str] = CHOSEN,
  *,
  given: Collection[str] = (),
) -> Any:
  """Returns a config with the sizes of a run that goes on, and what goes with its towers.

  Args:
    config: as given.
    stored: options that are kept with a checkpoint.
    names: which of them; those of OF_TOWERS too, where `started` set them.
    given: dotted names of the options that stay as they are.
  """
  if names == CHOSEN and _gets_towers(config, stored):
    names = (*names, *OF_TOWERS)
  made = applied(config, {name: option(stored, name) for name in names})
  # Of the model one option may be given, too.
  stay = [name for name in given if name in names or name.startswith('model.')]
  return applied(made, {name: option(config, name) for name in stay})


def started(config: Any, stored: Mapping[str, Any], *, given: Collection[str] = ()) -> Any:
  """Returns a config with the model of a run that it starts from, whose batch and steps stay.

  Of a model with a text tower, which the config does not know of, also what that was shown,
  and the rates of image_text.own.

  Args:
    config, stored, given: see `as_before`.
  """
  made = as_before(config, stored, OF_MODEL, given=given)
  if not _gets_towers(config, stored):
    return made
  recipe = image_text.own(as_before(made, stored, SHOWN))
  return as_before(made, recipe, OF_TOWERS, given=given)


def option(config: Mapping[str, Any], name: str) -> Any:
  """Returns the value of a dotted name."""
  return functools.reduce(lambda part, key: part[key], name.split('.'), config)


def check(config: Any, machine: Machine, *, vocab_size: int = 0) -> memory.Need:
  """Returns what the step of a config needs.

  Raises:
    ValueError: if that is surely more than there is, with what would fit.
  """
  need = memory.of_step(config, kind=machine.kind, devices=machine.devices, vocab_size=vocab_size)
  # The formula is a few percent off, and free memory comes and goes.
  if not machine.memory or FITS * need.total <= machine.memory:
    return need
  asked, advice = config.copy_and_resolve_references(), 'Nothing fits'
  for chooses, words in (('batch', 'This fits'), ('model', 'The preset :own fits, with')):
    with contextlib.suppress(ValueError), asked.unlocked():
      asked.machine.choose = chooses
      fits = choose(asked, machine, vocab_size=vocab_size)
      advice = ' '.join(f'--config.{name}={value}' for name, value in sorted(fits.items()))
      advice = f'{words}: {advice}'
      break
  raise ValueError(f'this run needs about {need}, and there is less: {machine}. {advice}.')


def _options(size, micro, remat, batch, machine):
  """One choice, by the names of CHOSEN."""
  devices = machine.devices
  micro = min(micro, max(batch // devices, 1))
  accumulation = max(batch // (micro * devices), 1)
  options = {
    'model.remat': remat,
    'data.batch_size': micro * devices * accumulation,
    'optimizer.accumulation': accumulation,
  }
  if size:
    side = models.PRESETS[size]().video.image_size
    options |= {'model': size, 'data.image_size': side, 'data.resize': side}
  return options


def _gets_towers(config, stored):
  """Whether a text tower comes with a checkpoint alone."""
  return bool(stored['model'].get('text_tower') and not config.model.get('text_tower'))


def _within(option, name):
  """Whether a chosen value decides about an option that was given."""
  return option == name or (name == 'model' and option.startswith(('model.video', 'model.text')))
