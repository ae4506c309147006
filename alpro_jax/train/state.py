"""What a run carries from step to step, and how it is laid out."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from alpro_jax import sharding


@flax.struct.dataclass
class TrainState:
  """Nothing random is in here: keys come from the seed and the step.

  Attributes:
    step: int32[], updates done.
    params: float32 tree, the trained parameters alone; a frozen teacher
      travels beside the state.
    opt_state: moments of the optimizer, shaped and cut as `params`.
  """

  step: jax.Array
  params: Any
  opt_state: Any


def make_create(init, optimizer: optax.GradientTransformation):
  """Returns `key -> TrainState`, boxes of logical axes still on."""

  def create(key):
    params = init(key)
    return TrainState(
      step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params)
    )

  return create


def abstract_state(init, optimizer, mesh) -> TrainState:
  """Returns the state as ShapeDtypeStructs that carry their sharding."""
  boxed = jax.eval_shape(make_create(init, optimizer), jax.random.key(0))
  return sharding.abstract(boxed, mesh)


def create_state(init, optimizer, mesh, seed: int) -> TrainState:
  """Allocates a fresh state, each device its own part, from the seed."""
  key = jax.random.fold_in(jax.random.key(seed), _INIT_STREAM)
  return sharding.create(make_create(init, optimizer), key, mesh)


# Folded into the seed's key so that initial values and step 0 never share one.
_INIT_STREAM = 0x1A17
