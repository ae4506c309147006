"""One update: a pure function of (state, frozen, batch), compiled once."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from alpro_jax import losses, sharding
from alpro_jax.batch import VideoTextBatch
from alpro_jax.models import alpro
from alpro_jax.tasks.base import Task, weighted_loss
from alpro_jax.train import optimizer as optimizers
from alpro_jax.train import trainable
from alpro_jax.train.state import TrainState, abstract_state, create_state

NEGATIVES = ('micro', 'global')
NON_FINITE = ('stop', 'skip')
# As many as a device of the original had in its smallest run; see
# `check_negatives`.
FEW_PAIRS = 8


def step_key(seed: int, step: jax.Array) -> jax.Array:
  """Returns the key of a step: the same after any number of restarts."""
  return jax.random.fold_in(jax.random.key(seed), step)


class Update(NamedTuple):
  """The update of a run, ready to be compiled."""

  task: Task
  step: Callable  # See `make_train_step`.
  optimizer: optax.GradientTransformation
  state: TrainState  # Of ShapeDtypeStructs with sharding.
  first: Callable[[int], TrainState]  # Seed -> a fresh state.


def make_update(config, task: Task, mesh) -> Update:
  """Makes the update of a config; nothing is computed or allocated."""
  ema_decay = config.train.ema_decay
  if not 0 <= ema_decay < 1:
    raise ValueError(f'config.train.{ema_decay=} must be at least 0, which is none, and below 1.')
  options = {
    'trainable': trainable.Trainable.from_config(config.optimizer),
    'averaged': ema_decay > 0,
  }
  parts = jax.eval_shape(
    lambda key: options['trainable'].split(task.init(key), key), jax.random.key(0)
  )
  names = {name for part in parts for name in trainable.named(part)}
  optimizer, schedule = optimizers.from_config(config.optimizer, config.train.steps, names)
  state = abstract_state(task.init, optimizer, mesh, **options)
  layout = jax.tree.map(lambda leaf: leaf.sharding, state)
  step = make_train_step(config, task, optimizer, schedule, mesh, layout)
  first = functools.partial(create_state, task.init, optimizer, mesh, **options)
  return Update(task, step, optimizer, state, first)


def check_negatives(config, task: Task, records: Iterable[int] = ()) -> str:
  """Warns of a run whose VTC or VTM has less than FEW_PAIRS to tell a pair from.

  With one pair alone, which is a ValueError, both losses fall to 0 at once, and
  that looks like success. `records` are the videos of each source: a batch
  comes from one. Returns the warning, or ''.
  """
  batch, parts = config.data.batch_size, config.optimizer.accumulation
  micro, smallest = batch // parts, min(records, default=batch)
  pools, facts = {}, [f'config.data.batch_size={batch}', f'config.optimizer.accumulation={parts}']
  if 'loss/vtc' in task.weights:
    whole = config.optimizer.accumulation_negatives == 'global'
    pools['VTC'] = min(batch if whole else micro, smallest)
  if 'loss/vtm' in task.weights:
    pools['VTM'] = min(micro // task.negative_blocks, smallest)
    facts.append(f'blocks of config.loss.negatives: {task.negative_blocks}')
  few = min(pools.values(), default=FEW_PAIRS)
  if few >= FEW_PAIRS:
    return ''
  if smallest < batch:
    facts.append(f'videos of the smallest source: {smallest}')
  said = ', '.join(f'{loss} among {pairs}' for loss, pairs in pools.items())
  said = f'A pair finds its negatives for {said} pairs ({", ".join(facts)}). '
  advice = (
    'Give a batch more pairs, or less accumulation or fewer blocks; '
    'config.model.remat=blocks saves memory and takes no negatives away, '
    'config.optimizer.accumulation_negatives=global gives VTC those of all '
    'micro-batches.'
  )
  if few < 2:
    raise ValueError(
      f'{said}One pair alone has none: the loss is 0 from the start and teaches nothing. {advice}'
    )
  return f'{said}Fewer than {FEW_PAIRS} teach little. {advice}'


def make_gradients(
  task: Task, mesh, *, accumulation: int = 1, negatives: str = 'micro', clip_per_loss: float = 0.0
):
  """Returns (params, frozen, batch, key, step, whole=...) -> (metrics, gradients).

  `whole` makes the parameters of the model of those that the gradients are by, where these
  are not all; see train/trainable.py.

  With accumulation the batch is split into micro-batches of every
  accumulation-th row, so that each is spread over all devices. Their sums of
  losses and gradients add up and are divided by the counts of the whole batch
  (defect 20): what is masked, labelled and kept is what it would be in one
  batch, and so is each loss but for dropout and for the rows that VTC and VTM
  find their negatives in.

  Args:
    task: see tasks/base.py.
    mesh: devices that the batch is sharded over.
    accumulation: number of micro-batches.
    negatives: of VTC: 'micro', the pairs of the micro-batch; 'global', those
      of the batch. Then a first pass embeds all micro-batches, VTC and its
      gradient by the features are taken of the whole, and the second pass
      carries that gradient on, with the same dropout. VTC is then that of one
      large batch; hard negatives of VTM come from the micro-batch.
    clip_per_loss: largest norm of the gradient of each loss, before its weight; 0 is any.
      Each loss goes backward by itself: a step of four takes up to three times as long.
  """
  if negatives not in NEGATIVES:
    raise ValueError(
      f'config.optimizer.accumulation_negatives={negatives!r} is unknown; '
      f'choose one of {NEGATIVES}.'
    )
  if negatives == 'global' and not task.contrasts:
    raise ValueError(
      "config.optimizer.accumulation_negatives='global' needs a task that "
      "contrasts videos and texts; this one does not: use 'micro'."
    )

  if not 0 <= clip_per_loss < math.inf:
    raise ValueError(f'config.optimizer.{clip_per_loss=} must be 0, for none, or above.')
  if clip_per_loss and accumulation > 1:
    raise ValueError(
      f'config.optimizer.{clip_per_loss=} needs the gradient of the whole batch at once, and '
      f'config.optimizer.{accumulation=}: set one of them to 0 and 1.'
    )

  def of_each_loss(whole, params, counts, step, rows):
    def parts(params):
      terms = task.terms(whole(params), step=step, train=True, **rows)
      return [weighted_loss({name: 1.0}, terms, counts) for name in task.weights], terms

    _, backward, terms = jax.vjp(parts, params, has_aux=True)
    clip = optax.clip_by_global_norm(clip_per_loss)

    def add(total, chosen):
      gradient, _ = clip.update(*backward(list(chosen)), clip.init(None))
      weight = jnp.dot(chosen, jnp.array([*task.weights.values()]))
      return jax.tree.map(lambda x, new: x + weight * new, total, gradient), None

    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), jnp.eye(len(task.weights)))
    return terms, total

  def of_rows(whole, params, counts, step, rows):
    """Terms of some rows, and the gradient of their share of the loss."""
    if clip_per_loss:
      return of_each_loss(whole, params, counts, step, rows)

    def loss(params):
      terms = task.terms(whole(params), step=step, train=True, **rows)
      return weighted_loss(task.weights, terms, counts), terms

    gradient, terms = jax.grad(loss, has_aux=True)(params)
    return terms, gradient

  def of_micro_batches(whole, params, counts, step, rows):
    keys = jax.vmap(lambda i: jax.random.fold_in(rows['key'], i))(jnp.arange(accumulation))
    batch = rows['batch']
    micro = {'targets': rows['targets'], 'batch': batch}
    micro = {**sharding.split_parts(micro, accumulation, mesh), 'key': keys}
    of_batch = None
    if negatives == 'global' and 'loss/vtc' in task.weights:
      features = sharding.join_parts(
        jax.lax.map(lambda part: task.embed(whole(params), **part, train=True), micro), mesh
      )

      def contrast(params, features):
        terms = task.contrast(whole(params), features, batch)
        return terms['loss/vtc'][0], terms

      (direct, cotangent), terms = jax.grad(contrast, argnums=(0, 1), has_aux=True)(
        params, features
      )
      share = task.weights['loss/vtc'] / counts['loss/vtc']
      of_batch = terms, jax.tree.map(lambda x: share * x, direct)
      micro['cotangent'] = sharding.split_parts(cotangent, accumulation, mesh)

    def of_part(part):
      return of_rows(whole, params, counts, step, part)

    def add(total, part):
      return jax.tree.map(jnp.add, total, of_part(part)), None

    shapes = jax.eval_shape(of_part, jax.tree.map(lambda x: x[0], micro))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (terms, grads), _ = jax.lax.scan(add, zero, micro)
    if of_batch is not None:
      terms |= of_batch[0]
      grads = jax.tree.map(jnp.add, of_batch[1], grads)
    return terms, grads

  def gradients(params, frozen, batch, key, step, whole=lambda params: params):
    targets, counts = task.make_targets(frozen, batch, key, parts=accumulation)
    rows = {'targets': targets, 'batch': batch, 'key': key}
    run = of_rows if accumulation == 1 else of_micro_batches
    terms, grads = run(whole, params, counts, step, rows)
    metrics = {name: losses.mean(*pair) for name, pair in terms.items()}
    return {'loss': weighted_loss(task.weights, terms, counts), **metrics}, grads

  return gradients


def make_train_step(
  config,
  task: Task,
  optimizer: optax.GradientTransformation,
  schedule,
  mesh,
  state_sharding: TrainState,
):
  """Returns the jitted (state, frozen, batch) -> (state, metrics).

  Where config.train.non_finite is 'stop', every update is taken, and whoever
  reads the metrics must stop. With 'skip', parameters, moments and averages stay
  as they are where the loss or a gradient is not finite; 'skipped' = 1 says so.

  Args:
    config: see configs/common.py; its seed, `optimizer` and `train` count here.
    task: gives the loss.
    optimizer: from train/optimizer.py.
    schedule: the learning rate by number of steps, for the log.
    mesh: devices that the batch is sharded over.
    state_sharding: NamedSharding of every leaf of the state.
  Returns:
    A function that consumes (donates) its state. Metrics are float32 scalars:
    'loss', the task's parts, 'grad_norm' before clipping, the same of each part
    of the model as 'grad_norm/PART', 'learning_rate'.
  """
  options, seed = config.optimizer, config.seed
  non_finite, ema_decay = config.train.non_finite, config.train.ema_decay
  if non_finite not in NON_FINITE:
    raise ValueError(f'config.train.{non_finite=} is unknown; choose one of {NON_FINITE}.')
  gradients = make_gradients(
    task,
    mesh,
    accumulation=options.accumulation,
    negatives=options.accumulation_negatives,
    clip_per_loss=options.get('clip_per_loss', 0.0),  # Older runs have none.
  )
  everywhere = sharding.replicated(mesh)
  bounds = task.model.config.temperature_range

  @functools.partial(
    jax.jit, donate_argnames=('state',), out_shardings=(state_sharding, everywhere)
  )
  def train_step(
    state: TrainState, frozen: Any, batch: VideoTextBatch
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    key = step_key(seed, state.step)
    # Parameters that the run starts from may lie outside.
    before = alpro.in_range(state.params, bounds)
    whole = functools.partial(trainable.merge, held=state.held, scale=state.scale)
    metrics, grads = gradients(before, frozen, batch, key, state.step, whole)
    updates, opt_state = optimizer.update(
      grads, optimizers.at_step(state.opt_state, state.step), before
    )
    params = alpro.in_range(optax.apply_updates(before, updates), bounds)
    average = state.average
    if average is not None:
      average = jax.tree.map(lambda mean, x: mean + (1 - ema_decay) * (x - mean), average, params)
    norms = {part: optax.tree.norm(leaves) for part, leaves in grads.items()}
    metrics['grad_norm'] = optax.tree.norm(norms)
    metrics |= {f'grad_norm/{part}': norm for part, norm in norms.items()}
    metrics['learning_rate'] = schedule(state.step)
    if non_finite == 'skip':
      good = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['grad_norm'])
      params, opt_state, average = jax.tree.map(
        lambda new, old: jnp.where(good, new, old),
        (params, opt_state, average),
        (before, state.opt_state, state.average),
      )
      metrics['skipped'] = 1.0 - good.astype(jnp.float32)
    step = state.step + 1
    return state.replace(step=step, params=params, opt_state=opt_state, average=average), metrics

  return train_step
