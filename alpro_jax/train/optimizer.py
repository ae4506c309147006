"""AdamW with a decay mask, warm-up and clipping (SPEC 8, defects 1, 19, 20)."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ('linear', 'cosine', 'constant')
# The original never lets the learning rate reach zero.
_SMALLEST_RATE = 1e-8
# What config.optimizer.freeze may hold still, by the names of parameters.
FROZEN = {
    'video_attention_and_mlp': (
        r'video_encoder/block\d+/(temporal_attention|attention|mlp)/'
    ),
}


def make_schedule(
    *,
    learning_rate: float,
    schedule: str,
    steps: int,
    warmup_steps: int,
    final_fraction: float,
) -> Callable[[jax.Array], jax.Array]:
  """Returns the learning rate as a function of the updates done before.

  Update k = 1..steps uses the rate * k / warmup while k < warmup, and from
  then on falls from 1 to `final_fraction` of it: on a line, as the paper does,
  or on a half cosine.

  Raises:
    ValueError: for an unknown schedule or a warm-up longer than the run.
  """
  if schedule not in SCHEDULES:
    raise ValueError(
        f'config.optimizer.{schedule=} is unknown; choose one of {SCHEDULES}.'
    )
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
    return jnp.maximum(value, _SMALLEST_RATE)

  return rate


def decay_mask(params: Any) -> Any:
  """True for the matrices: not biases, norms, embeddings, positions, scalars.

  Matrices are the leaves that linen names `kernel`.
  """
  return jax.tree_util.tree_map_with_path(
      lambda path, _: _leaf_name(path) == 'kernel', params
  )


def frozen_mask(params: Any, *, freeze: str) -> Any:
  """True for the parameters that a name of FROZEN holds."""
  pattern = re.compile(FROZEN[freeze])
  return jax.tree_util.tree_map_with_path(
      lambda path, _: bool(pattern.match('/'.join(_names(path)))), params
  )


def _leaf_name(path) -> str:
  return _names(path)[-1]


def _names(path) -> list[str]:
  # Boxed parameters have the attribute `value` below their name.
  names = [str(getattr(p, 'key', getattr(p, 'name', p))) for p in path]
  return [n for n in names if n != 'value']


def make_optimizer(
    schedule: Callable[[jax.Array], jax.Array],
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
    schedule: learning rate by number of updates done.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    eps_rule: 'standard' adds eps to the bias-corrected root; 'original' to the
      uncorrected one, as the PyTorch system did (SPEC 8).
    weight_decay: decoupled, scaled by the learning rate, on matrices alone.
    clip_norm: largest global norm of the gradients; 0 does not clip.
    freeze: '' or a name of FROZEN; those parameters stay as they are, and do
      not count in the norm that is clipped.
  Raises:
    ValueError: for an unknown `eps_rule` or `freeze`.
  """
  if eps_rule == 'standard':
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
  elif eps_rule == 'original':
    adam = optax.inject_hyperparams(optax.scale_by_adam)(
        b1=b1, b2=b2, eps=lambda count: eps / jnp.sqrt(1 - b2 ** (count + 1.0))
    )
  else:
    raise ValueError(
        f"config.optimizer.{eps_rule=} must be 'standard' or 'original'."
    )
  if freeze and freeze not in FROZEN:
    raise ValueError(
        f"config.optimizer.{freeze=} must be '' or one of {sorted(FROZEN)}."
    )
  parts = [
      optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
      adam,
      optax.add_decayed_weights(weight_decay, mask=decay_mask),
      optax.scale_by_learning_rate(schedule),
  ]
  if freeze:
    hold = optax.masked(
        optax.set_to_zero(), functools.partial(frozen_mask, freeze=freeze)
    )
    # Before clipping, which must not count them, and after the decay.
    parts = [hold, *parts, hold]
  return optax.chain(*parts)


def from_config(config, steps: int):
  """Returns (optimizer, schedule) for `config.optimizer` and a run's steps."""
  schedule = make_schedule(
      learning_rate=config.learning_rate,
      schedule=config.schedule,
      steps=steps,
      warmup_steps=config.warmup_steps,
      final_fraction=config.final_fraction,
  )
  optimizer = make_optimizer(
      schedule,
      b1=config.b1,
      b2=config.b2,
      eps=config.eps,
      eps_rule=config.eps_rule,
      weight_decay=config.weight_decay,
      clip_norm=config.clip_norm,
      freeze=config.freeze,
  )
  return optimizer, schedule
