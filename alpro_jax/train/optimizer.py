"""AdamW with a decay mask, warm-up, clipping, and rates by parameter.

See docs/specification.md, Optimisation, and defects 1, 19 and 20.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from alpro_jax.train import trainable
from alpro_jax.train.trees import leaf_name

SCHEDULES = ('linear', 'cosine', 'constant')
# The original never lets a falling learning rate reach zero.
_SMALLEST_RATE = 1e-8
# Towers of numbered layers, by the parts of each in the order in which they are run: BERT's
# first layers read text, its last ones fuse.
_TOWERS = (
  ('video_encoder/block',),
  ('text_tower/block',),
  ('text_encoder/layer', 'fusion_encoder/layer'),
)
# What such a tower reads, by the name of its first part: below its layers, not above.
_BELOW = {
  'video_encoder/block': r'video_encoder/(?!block|norm/|pool/).*',
  'text_tower/block': r'text_tower/(?!block|norm/|pool/|projection).*',
  'text_encoder/layer': r'text_embedding/.*',
}

Schedule = Callable[[jax.Array], jax.Array]


def from_config(
  config, steps: int, names: Iterable[str] = ()
) -> tuple[optax.GradientTransformation, Schedule]:
  """Returns (optimizer, schedule) for `config.optimizer` and a run's steps.

  `names` are of all parameters of the model and of those that are trained: rates that
  differ between them need them.
  """
  options = config.to_dict()
  of_schedule = ('learning_rate', 'schedule', 'warmup_steps', 'final_fraction')
  schedule = make_schedule(steps=steps, **{name: options.pop(name) for name in of_schedule})
  for name in ('accumulation', 'accumulation_negatives', 'clip_per_loss', 'lora'):
    options.pop(name, None)  # Of the step.
  rates = rate_factors(names, options.pop('groups'), options.pop('layer_decay'))
  options['holds'] = bool(options.pop('freeze'))
  return make_optimizer(schedule, rates=rates, **options), schedule


def make_schedule(
  *, learning_rate: float, schedule: str, steps: int, warmup_steps: int, final_fraction: float
) -> Schedule:
  """Returns the learning rate as a function of the steps done before.

  Steps whose update is left out count as well, so that the schedule ends with
  the run. Step k = 1..steps uses the rate * k / warmup while k < warmup, and
  from then on falls from 1 to `final_fraction` of it: linearly, as the paper
  does, or on a half cosine.
  """
  if not 0 <= learning_rate < math.inf:
    raise ValueError(f'config.optimizer.{learning_rate=} must be 0 or more, and finite.')
  if schedule not in SCHEDULES:
    raise ValueError(f'config.optimizer.{schedule=} is unknown; choose one of {SCHEDULES}.')
  if not 0 <= warmup_steps <= steps:
    raise ValueError(
      f'{warmup_steps=} must lie between 0 and the {steps=} of the run; set '
      'config.optimizer.warmup_steps.'
    )

  def rate(count):
    k = jnp.asarray(count, jnp.float32) + 1
    left = jnp.clip((steps - k) / max(steps - warmup_steps, 1), 0, 1)
    shape = {
      'linear': left,
      'cosine': 0.5 * (1 - jnp.cos(jnp.pi * left)),
      'constant': jnp.ones_like(left),
    }[schedule]
    fall = final_fraction + (1 - final_fraction) * shape
    rise = k / max(warmup_steps, 1)
    value = learning_rate * jnp.where(k < warmup_steps, rise, fall)
    return jnp.maximum(value, min(_SMALLEST_RATE, learning_rate))

  return rate


def make_optimizer(
  schedule: Schedule,
  *,
  b1: float,
  b2: float,
  eps: float,
  eps_rule: str,
  weight_decay: float,
  clip_norm: float,
  rates: Mapping[str, float] | None = None,
  holds: bool = False,
) -> optax.GradientTransformation:
  """Returns clipping, AdamW and the learning rate as one transformation.

  Args:
    schedule: learning rate by number of steps done; see `at_step`.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    eps_rule: 'standard' adds eps to the bias-corrected root; 'original' to the
      uncorrected one, as the PyTorch system did.
    weight_decay: decoupled, scaled by the learning rate, on matrices alone.
    clip_norm: largest global norm of the gradients; 0 does not clip.
    rates: factors of the learning rate, by the names of the parameters.
    holds: whether parts of the model are frozen, which the optimizer never
      sees: its state has one part more then, as the first checkpoints have.
  """
  if eps_rule == 'standard':
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
  elif eps_rule == 'original':
    adam = optax.inject_hyperparams(optax.scale_by_adam)(
      b1=b1, b2=b2, eps=lambda count: eps / jnp.sqrt(1 - b2 ** (count + 1.0))
    )
  else:
    raise ValueError(f"config.optimizer.{eps_rule=} must be 'standard' or 'original'.")
  parts = [
    *([optax.identity()] if holds else []),
    optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
    adam,
    optax.add_decayed_weights(weight_decay, mask=decay_mask),
    optax.scale_by_learning_rate(schedule),
  ]
  if rates:
    parts.append(optax.stateless(lambda updates, _: _scaled(updates, rates)))
  return optax.chain(*parts)


def rate_factors(
  names: Iterable[str], groups: str = '', layer_decay: float = 1.0
) -> dict[str, float]:
  """Returns the factor of the learning rate of every parameter; {} if all are 1.

  Layers are counted as in BEiT (Bao et al. 2021, arXiv 2106.08254) and timm, in each tower
  by itself: a head has factor 1, the last of L layers `layer_decay`, the first one
  `layer_decay`^L, and what is below it `layer_decay`^(L + 1).

  Args:
    names: of all parameters of the model, and of those that are trained.
    groups: 'pattern=factor, ...', see `trainable.matching`; the last one that matches a
      parameter counts, beside the decay of its layer.
    layer_decay: factor from a layer to the one below; 1 is none.
  Raises:
    ValueError: for factors that are no rates, and for patterns that match nothing.
  """
  if not 0 < layer_decay <= 1:
    raise ValueError(f'config.optimizer.{layer_decay=} must be above 0 and at most 1, for none.')
  pairs = [group.rpartition('=') for group in trainable.listed(groups)]
  if layer_decay == 1 and not pairs:
    return {}
  names, grouped = list(names), {}
  for pattern, _, factor in pairs:
    try:
      value = float(factor)
    except ValueError:
      value = math.nan
    if not pattern or not 0 < value < math.inf:
      raise ValueError(
        f'config.optimizer.groups has {pattern}={factor}; expected PATTERN=FACTOR with a factor '
        'above 0, several with commas between; config.optimizer.freeze holds parts still.'
      )
    grouped |= dict.fromkeys(trainable.matching('config.optimizer.groups', [pattern], names), value)
  above = _layers_above(names)
  return {name: layer_decay ** above.get(name, 0) * grouped.get(name, 1.0) for name in names}


def _layers_above(names):
  """Returns {name: layers from there to the head}, for all that lies in a tower."""
  found = {}
  for tower in _TOWERS:
    layers = {}
    for name in names:
      for order, part in enumerate(tower):
        if match := re.match(rf'{part}(\d+)/', name):
          layers[name] = order, int(match[1])
    numbers = sorted(set(layers.values()))
    found |= {name: len(numbers) - numbers.index(layer) for name, layer in layers.items()}
    below = _BELOW[tower[0]]
    found |= {name: len(numbers) + 1 for name in names if re.fullmatch(below, name)}
  return found


def _scaled(updates, rates):
  return jax.tree_util.tree_map_with_path(lambda path, x: rates[leaf_name(path)] * x, updates)


def decay_mask(params: Any) -> Any:
  """True for the matrices: not biases, norms, embeddings, positions, scalars.

  Matrices are the leaves that linen names `kernel`, and the factors of these.
  """
  return _match(r'(.*/)?kernel(/[ab])?', params)


def at_step(opt_state: Any, step: jax.Array) -> Any:
  """Lets the schedule go by the steps of the run, int32[].

  The optimizer counts the updates that were made, which are fewer where some
  were skipped: Adam's correction of its moments goes by those.
  """

  def is_schedule(node):
    return isinstance(node, optax.ScaleByScheduleState)

  return jax.tree.map(
    lambda node: node._replace(count=step) if is_schedule(node) else node,
    opt_state,
    is_leaf=is_schedule,
  )


def _match(pattern, params):
  """True for leaves of this name; a parameter in its box of logical axes is one."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: re.fullmatch(pattern, leaf_name(path)) is not None,
    params,
    is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata),
  )
