"""AdamW with a decay mask, warm-up and clipping.

See docs/specification.md, Optimisation, and defects 1, 19 and 20.
"""

import math
import operator
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from alpro_jax.train.trees import leaf_name

SCHEDULES = ('linear', 'cosine', 'constant')
# The original never lets a falling learning rate reach zero.
_SMALLEST_RATE = 1e-8
# What config.optimizer.freeze may hold still, by the names of parameters.
FROZEN = {
  'video_attention_and_mlp': r'video_encoder/block\d+/(temporal_attention|attention|mlp)/.*'
}

Schedule = Callable[[jax.Array], jax.Array]


def from_config(config, steps: int) -> tuple[optax.GradientTransformation, Schedule]:
  """Returns (optimizer, schedule) for `config.optimizer` and a run's steps."""
  options = config.to_dict()
  of_schedule = ('learning_rate', 'schedule', 'warmup_steps', 'final_fraction')
  schedule = make_schedule(steps=steps, **{name: options.pop(name) for name in of_schedule})
  for name in ('accumulation', 'accumulation_negatives'):  # Of the step.
    del options[name]
  return make_optimizer(schedule, **options), schedule


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
  freeze: str = '',
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
    freeze: '' or a name of FROZEN; those parameters stay as they are, have no
      moments, and do not count in the norm that is clipped.
  """
  if eps_rule == 'standard':
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
  elif eps_rule == 'original':
    adam = optax.inject_hyperparams(optax.scale_by_adam)(
      b1=b1, b2=b2, eps=lambda count: eps / jnp.sqrt(1 - b2 ** (count + 1.0))
    )
  else:
    raise ValueError(f"config.optimizer.{eps_rule=} must be 'standard' or 'original'.")
  if freeze and freeze not in FROZEN:
    raise ValueError(f"config.optimizer.{freeze=} must be '' or one of {sorted(FROZEN)}.")
  still = optax.stateless(lambda updates, _: hold(updates, freeze=freeze))
  parts = [
    optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
    _without_moments(adam, freeze) if freeze else adam,
    optax.add_decayed_weights(weight_decay, mask=decay_mask),
    optax.scale_by_learning_rate(schedule),
  ]
  # Before clipping, which must not count what is frozen, and after the decay.
  return optax.chain(*([still, *parts, still] if freeze else parts))


def decay_mask(params: Any) -> Any:
  """True for the matrices: not biases, norms, embeddings, positions, scalars.

  Matrices are the leaves that linen names `kernel`.
  """
  return _match(r'(.*/)?kernel', params)


def frozen_mask(params: Any, *, freeze: str) -> Any:
  """True for the parameters that a name of FROZEN holds; '' holds none."""
  return _match(FROZEN.get(freeze, ''), params)


def hold(gradients: Any, *, freeze: str) -> Any:
  """Returns gradients that are 0 where the parameters stay as they are."""
  mask = frozen_mask(gradients, freeze=freeze)
  return jax.tree.map(lambda still, g: jnp.zeros_like(g) if still else g, mask, gradients)


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


def _without_moments(adam, freeze):
  """Adam that leaves frozen parameters out.

  Its state has the names that it has with all of them, so that checkpoints
  which hold their moments still fit; see train/checkpoints.py.
  """
  masked = optax.masked(
    adam, lambda params: jax.tree.map(operator.not_, frozen_mask(params, freeze=freeze))
  )

  def update(updates, inner, params=None):
    updates, outer = masked.update(updates, optax.MaskedState(inner_state=inner), params)
    return updates, outer.inner_state

  return optax.GradientTransformation(lambda params: masked.init(params).inner_state, update)
