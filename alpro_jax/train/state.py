"""What a run carries from step to step, and how it is laid out."""

from typing import Any

import flax
import jax
import jax.numpy as jnp

from alpro_jax import sharding
from alpro_jax.train import trees
from alpro_jax.train.trainable import ALL, FACTORS, Trainable, merge, nested

# Folded into the seed's key for the initial values, as the number of a step is
# for that step. It decides the numbers of every run from scratch.
_INITIAL_VALUES = 6_679
# Folded into that key for the factors of LoRA.
_FACTORS = 1


@flax.struct.dataclass
class TrainState:
  """Nothing random is in here: keys come from the seed and the step.

  Attributes:
    step: int32[], updates done.
    params: float32 tree, the trained parameters alone; a frozen teacher
      travels beside the state.
    opt_state: moments of the optimizer, shaped and sharded as `params`.
    held: float32 tree, the rest of the model, which stays as it is; None if all
      is trained. See train/trainable.py.
    average: running mean of `params`, or None.
    scale: of the product of LoRA's factors.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  held: Any = None
  average: Any = None
  scale: float = flax.struct.field(pytree_node=False, default=1.0)

  @property
  def model(self) -> Any:
    """The model's parameters, as it is used: averaged if there is an average, LoRA merged."""
    trained = self.params if self.average is None else self.average
    return merge(trained, self.held, self.scale)

  def apart(self) -> dict[str, Any]:
    """Returns {name: leaf} of what `model` does not tell: the other leaves are in it as they are.

    Names are those in the state, e.g. 'opt_state/1/mu/temperature'.
    """
    trained, held = trees.by_name(self.params), trees.by_name(self.held)

    def is_apart(name):
      part, _, own = name.partition('/')
      if part == 'held':
        return f'{own}/{FACTORS[0]}' in trained
      if part in ('params', 'average'):
        is_factor = own.rpartition('/')[0] in held
        return is_factor or (part == 'params' and self.average is not None)
      return True

    return {name: leaf for name, leaf in trees.by_name(self).items() if is_apart(name)}

  def stored(self) -> dict[str, Any]:
    """Returns the trees that a checkpoint holds: the model, and the rest to go on with."""
    rest = {name: x for name, x in self.apart().items() if not name.startswith('opt_state/')}
    return {'params': self.model, 'train': {'opt_state': self.opt_state, **nested(rest)}}

  def start_from(self, model: Any) -> 'TrainState':
    """Returns this state with the parameters of a model; LoRA's factors stay.

    The parameters are not copied but for the average, so that each may be donated.
    """
    given = trees.by_name(model)

    def replaced(tree):
      return trees.like(tree, trees.by_name(tree) | given)

    average = self.average
    if average is not None:
      average = jax.tree.map(jnp.copy, replaced(average))
    return self.replace(params=replaced(self.params), held=replaced(self.held), average=average)


def abstract_state(init, optimizer, mesh, **options) -> TrainState:
  """Returns the state as ShapeDtypeStructs that carry their sharding.

  Args:
    init: key -> parameters of a model, boxed.
    optimizer: of what is trained.
    mesh: to lay it out on.
    **options: of `create_state`.
  """
  create = _create(init, optimizer, **options)
  return sharding.abstract(jax.eval_shape(create, jax.random.key(0)), mesh)


def create_state(
  init, optimizer, mesh, seed: int, *, trainable: Trainable = ALL, averaged: bool = False
) -> TrainState:
  """Allocates a fresh state, each device its own part, from the seed.

  Args:
    init: key -> parameters of a model, boxed.
    optimizer: of what is trained.
    mesh: to lay it out on.
    seed: of the run.
    trainable: which parameters are trained.
    averaged: whether their average is kept as well.
  """
  key = jax.random.fold_in(jax.random.key(seed), _INITIAL_VALUES)
  create = _create(init, optimizer, trainable=trainable, averaged=averaged)
  return sharding.create(create, key, mesh)


def _create(init, optimizer, *, trainable=ALL, averaged=False):
  """Returns `key -> TrainState`, boxes of logical axes still on."""

  def create(key):
    params, held = trainable.split(init(key), jax.random.fold_in(key, _FACTORS))
    return TrainState(
      jnp.zeros((), jnp.int32),
      params,
      optimizer.init(params),
      held,
      params if averaged else None,
      trainable.scale,
    )

  return create
