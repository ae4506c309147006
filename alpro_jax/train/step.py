"""One update: a pure function of (state, frozen, batch), compiled once."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from alpro_jax import sharding
from alpro_jax.batch import VideoTextBatch
from alpro_jax.train.state import TrainState

NEGATIVES = ('micro', 'global')
NON_FINITE = ('stop', 'skip')


def step_key(seed: int, step: jax.Array) -> jax.Array:
  """Returns the key of a step: the same after any number of restarts."""
  return jax.random.fold_in(jax.random.key(seed), step)


def make_gradients(
    task, mesh, *, accumulation: int = 1, negatives: str = 'micro'
):
  """Returns (params, frozen, batch, key, step) -> (metrics, gradients).

  With accumulation the batch is cut into micro-batches of every
  accumulation-th row, so that each is spread over all devices. Losses and
  gradients are averages over them (defect 20).

  Args:
    task: see tasks/base.py.
    mesh: devices that the batch is cut over.
    accumulation: number of micro-batches.
    negatives: of VTC: 'micro', the pairs of the micro-batch; 'global', those
      of the batch. Then a first pass embeds all micro-batches, VTC and its
      gradient by the features are taken of the whole, and the second pass
      carries that gradient on, with the same dropout. VTC is then that of one
      large batch; hard negatives of VTM come from the micro-batch.
  Raises:
    ValueError: for unknown negatives, or a task without VTC.
  """
  if negatives not in NEGATIVES:
    raise ValueError(
        f'config.optimizer.accumulation_negatives={negatives!r} is unknown; '
        f'choose one of {NEGATIVES}.'
    )
  if negatives == 'global' and not hasattr(task, 'contrast'):
    raise ValueError(
        "config.optimizer.accumulation_negatives='global' needs a task that "
        "contrasts videos and texts; this one does not: use 'micro'."
    )

  def of_batch(params, frozen, batch, key, step, **pull):
    gradient = jax.value_and_grad(task.loss, has_aux=True)
    (loss, parts), grads = gradient(
        params, frozen, batch, key, step, train=True, **pull
    )
    return {'loss': loss, **parts}, grads

  if accumulation == 1:
    return of_batch

  def split(leaf):
    rows = leaf.shape[0] // accumulation
    leaf = leaf.reshape(rows, accumulation, *leaf.shape[1:])
    return sharding.constrain_batch(jnp.moveaxis(leaf, 1, 0), mesh, axis=1)

  def join(leaf):
    leaf = jnp.moveaxis(leaf, 0, 1)
    leaf = leaf.reshape(leaf.shape[0] * accumulation, *leaf.shape[2:])
    return sharding.constrain_batch(leaf, mesh)

  def of_micro_batches(params, frozen, batch, key, step):
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(
        jnp.arange(accumulation)
    )
    micro = {'batch': jax.tree.map(split, batch), 'key': keys}
    whole = None
    if negatives == 'global':
      features = jax.lax.map(
          lambda part: task.embed(params, **part, train=True), micro
      )
      contrast = jax.value_and_grad(
          task.contrast, argnums=(0, 1), has_aux=True
      )
      (loss, parts), (direct, pull) = contrast(
          params, jax.tree.map(join, features), batch
      )
      whole = {'loss': loss, **parts}, direct
      # Summed over the micro-batches, not averaged.
      pull = jax.tree.map(lambda x: accumulation * split(x), pull)
      micro['pull'] = pull

    def of_part(part):
      return of_batch(params, frozen, step=step, **part)

    def add(total, part):
      return jax.tree.map(jnp.add, total, of_part(part)), None

    shapes = jax.eval_shape(of_part, jax.tree.map(lambda x: x[0], micro))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(add, zero, micro)
    metrics, grads = jax.tree.map(lambda x: x / accumulation, total)
    if whole is not None:
      loss = whole[0]['loss'] + metrics['loss']
      metrics = whole[0] | metrics | {'loss': loss}
      grads = jax.tree.map(jnp.add, whole[1], grads)
    return metrics, grads

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
    negatives: str = 'micro',
    non_finite: str = 'stop',
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
    negatives: of VTC then; see `make_gradients`.
    non_finite: 'stop' takes every update, and whoever reads the metrics must
      stop; 'skip' leaves parameters and moments as they are where the loss or
      a gradient is not finite, and says so by 'skipped' = 1.
  Returns:
    A function that consumes (donates) its state. Metrics are float32 scalars:
    'loss', the task's parts, 'grad_norm' before clipping, the same of each part
    of the model as 'grad_norm/PART', 'learning_rate'.
  Raises:
    ValueError: for unknown `non_finite` or `negatives`.
  """
  if non_finite not in NON_FINITE:
    raise ValueError(
        f'config.train.{non_finite=} is unknown; choose one of {NON_FINITE}.'
    )
  gradients = make_gradients(
      task, mesh, accumulation=accumulation, negatives=negatives
  )
  everywhere = sharding.replicated(mesh)

  @functools.partial(
      jax.jit,
      donate_argnames=('state',),
      out_shardings=(state_sharding, everywhere),
  )
  def train_step(
      state: TrainState, frozen: Any, batch: VideoTextBatch
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    key = step_key(seed, state.step)
    metrics, grads = gradients(state.params, frozen, batch, key, state.step)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norms = {part: optax.tree.norm(leaves) for part, leaves in grads.items()}
    metrics['grad_norm'] = optax.tree.norm(norms)
    metrics |= {f'grad_norm/{part}': norm for part, norm in norms.items()}
    metrics['learning_rate'] = schedule(state.step)
    if non_finite == 'skip':
      good = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['grad_norm'])
      params, opt_state = jax.tree.map(
          lambda new, old: jnp.where(good, new, old),
          (params, opt_state), (state.params, state.opt_state),
      )
      metrics['skipped'] = 1.0 - good.astype(jnp.float32)
    return TrainState(state.step + 1, params, opt_state), metrics

  return train_step
