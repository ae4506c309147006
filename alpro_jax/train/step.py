"""One update: a pure function of (state, frozen, batch), compiled once."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from alpro_jax import sharding
from alpro_jax.batch import VideoTextBatch
from alpro_jax.train.state import TrainState


def step_key(seed: int, step: jax.Array) -> jax.Array:
  """Returns the key of a step: the same after any number of restarts."""
  return jax.random.fold_in(jax.random.key(seed), step)


def make_gradients(task, mesh, *, accumulation: int = 1):
  """Returns (params, frozen, batch, key, step) -> (metrics, gradients).

  With accumulation the batch is cut into micro-batches of every
  accumulation-th row, so that each is spread over all devices. Losses and
  gradients are averages over them (defect 20); in-batch negatives come from
  the micro-batch.
  """

  def of_batch(params, frozen, batch, key, step):
    gradient = jax.value_and_grad(task.loss, has_aux=True)
    (loss, parts), grads = gradient(
        params, frozen, batch, key, step, train=True
    )
    return {'loss': loss, **parts}, grads

  if accumulation == 1:
    return of_batch

  def split(leaf):
    rows = leaf.shape[0] // accumulation
    leaf = leaf.reshape(rows, accumulation, *leaf.shape[1:])
    return sharding.constrain_batch(jnp.moveaxis(leaf, 1, 0), mesh, axis=1)

  def of_micro_batches(params, frozen, batch, key, step):
    def add(total, part):
      micro, index = part
      out = of_batch(
          params, frozen, micro, jax.random.fold_in(key, index), step
      )
      return jax.tree.map(jnp.add, total, out), None

    shapes = jax.eval_shape(
        of_batch, params, frozen, jax.tree.map(lambda x: split(x)[0], batch),
        key, step,
    )
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    parts = (jax.tree.map(split, batch), jnp.arange(accumulation))
    total, _ = jax.lax.scan(add, zero, parts)
    return jax.tree.map(lambda x: x / accumulation, total)

  return of_micro_batches


def make_train_step(
    task,
    optimizer: optax.GradientTransformation,
    schedule,
    mesh,
    state_sharding: TrainState,
    *,
    seed: int,
    accumulation: int = 1,
):
  """Returns the jitted (state, frozen, batch) -> (state, metrics).

  Args:
    task: see tasks/base.py; gives the loss.
    optimizer: from train/optimizer.py.
    schedule: the learning rate by number of updates, for the log.
    mesh: devices that the batch is cut over.
    state_sharding: NamedSharding of every leaf of the state.
    seed: of the run.
    accumulation: micro-batches of one update.
  Returns:
    A function that consumes (donates) its state. Metrics are float32 scalars:
    'loss', the task's parts, 'grad_norm' before clipping, 'learning_rate'.
  """
  gradients = make_gradients(task, mesh, accumulation=accumulation)
  everywhere = sharding.replicated(mesh)

  @jax.jit(
      donate_argnames=('state',), out_shardings=(state_sharding, everywhere)
  )
  def train_step(
      state: TrainState, frozen: Any, batch: VideoTextBatch
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    key = step_key(seed, state.step)
    metrics, grads = gradients(state.params, frozen, batch, key, state.step)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics['grad_norm'] = optax.tree.norm(grads)
    metrics['learning_rate'] = schedule(state.step)
    return (
        TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
        ),
        metrics,
    )

  return train_step
