"""What a run carries from step to step, and how it is laid out."""

from typing import Any

import flax
import jax
import jax.numpy as jnp

from alpro_jax import sharding

# Folded into the seed's key for the initial values, as the number of a step is
# for that step. It decides the numbers of every run from scratch.
_INITIAL_VALUES = 6_679


@flax.struct.dataclass
class TrainState:
  """Nothing random is in here: keys come from the seed and the step.

  Attributes:
    step: int32[], updates done.
    params: float32 tree, the trained parameters alone; a frozen teacher
      travels beside the state.
    opt_state: moments of the optimizer, shaped and sharded as `params`.
  """

  step: jax.Array
  params: Any
  opt_state: Any


def abstract_state(init, optimizer, mesh) -> TrainState:
  """Returns the state as ShapeDtypeStructs that carry their sharding."""
  return sharding.abstract(jax.eval_shape(_create(init, optimizer), jax.random.key(0)), mesh)


def create_state(init, optimizer, mesh, seed: int) -> TrainState:
  """Allocates a fresh state, each device its own part, from the seed."""
  key = jax.random.fold_in(jax.random.key(seed), _INITIAL_VALUES)
  return sharding.create(_create(init, optimizer), key, mesh)


def _create(init, optimizer):
  """Returns `key -> TrainState`, boxes of logical axes still on."""

  def create(key):
    params = init(key)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

  return create
