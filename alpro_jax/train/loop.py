"""The training loop: when to step, log, evaluate, save and stop.

What happens in a step is train/step.py's, what is learned is the task's.
Everything that decides the result is a function of the config and the step,
so a run may be stopped anywhere, in any way, and go on as if it had not been.
"""

import difflib
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from clu import parameter_overview
from jax.experimental import multihost_utils

from alpro_jax import sharding
from alpro_jax.models import timesformer
from alpro_jax.tasks.base import Task, TextInfo
from alpro_jax.tasks.registry import get_task
from alpro_jax.train import checkpoints, identity, optimizer, resume, run_folder
from alpro_jax.train.frozen import load_frozen
from alpro_jax.train.progress import Progress
from alpro_jax.train.state import TrainState, abstract_state, create_state
from alpro_jax.train.step import check_negatives, make_train_step
from alpro_jax.train.supervision import Supervisor


class Setting(NamedTuple):
  """What an evaluation may need beside the parameters."""

  config: Any
  task: Task
  tokenizer: Any
  mesh: jax.sharding.Mesh


# (setting, params, step) -> figures by name, such as 'eval/t2v_r1'. One that
# knows beforehand what it will give has a method names(setting) -> the names.
Evaluation = Callable[[Setting, Any, int], dict[str, float]]


class Outcome(NamedTuple):
  """How a run ended: the last step done, and if that was all there is to do."""

  step: int
  finished: bool


def train(config, folder, *, evaluations: Sequence[Evaluation] = ()) -> Outcome:
  """Trains what a config says in a workdir, from where it was left.

  Args:
    config: see configs/common.py.
    folder: of the run; made if it is not there.
    evaluations: called every `train.eval_every_steps` and at the end.
  Raises:
    ValueError: for options that contradict each other, the devices, or the
      run in the workdir, and for parameters that do not fit.
    NonFiniteError: if a loss is not finite; the checkpoints stay as they are.
  """
  with (
    run_folder.claim(folder) as folder,
    Supervisor(
      stop_seconds=config.train.stop_seconds, standstill_seconds=config.train.standstill_seconds
    ) as supervisor,
  ):
    return _train(config, folder, evaluations, supervisor)


def check_evaluations(setting: Setting, evaluations: Sequence[Evaluation]) -> list[str]:
  """Checks, before a step is taken, that a run can be evaluated as it asks.

  Args:
    setting: what the evaluations will be given.
    evaluations: of the run.
  Returns:
    the names of the figures, of those evaluations that can say them.
  Raises:
    ValueError: if config.train.best_metric is none of the names, or a held-out
      set has nothing to ask.
    FileNotFoundError: if a held-out set is not there.
  """
  best = setting.config.train.best_metric.removeprefix('-')
  names, known = [], True
  for evaluation in evaluations:
    if hasattr(evaluation, 'names'):
      names += evaluation.names(setting)
    else:
      known = False
  if best and not evaluations:
    logging.warning(
      'config.train.best_metric=%s is never measured, since there is nothing '
      'to evaluate on (config.eval.sources): only the newest checkpoints are '
      'kept.',
      best,
    )
  elif best and known and best not in names:
    near = difflib.get_close_matches(best, names, n=6, cutoff=0)
    raise ValueError(
      f'config.train.best_metric names {best!r}, which the evaluation of '
      f'config.eval.sources does not give. The closest of its {len(names)} '
      f"names are {near}. Choose one, with a '-' in front if small is good, "
      "or '' to keep the newest checkpoints alone."
    )
  return names


class Plan(NamedTuple):
  """What a run is made of, opened and checked.

  Attributes:
    mesh: of devices.
    tokenizer: see data/tokens.py.
    sources: the sets that batches come from.
    task: see tasks/base.py.
    optimizer: its transformation.
    schedule: the learning rate by the number of steps.
    abstract: shapes, types and places of the state.
    meta: what the run depends on; see identity.describe.
  """

  mesh: jax.sharding.Mesh
  tokenizer: Any
  sources: list
  task: Task
  optimizer: Any
  schedule: Callable
  abstract: TrainState
  meta: dict[str, Any]


def plan(config, evaluations: Sequence[Evaluation] = ()) -> Plan:
  """Opens what a config names, and refuses what could not be trained.

  It writes nothing: launch/doctor.py asks it as well.

  Args:
    config: see configs/common.py.
    evaluations: of the run.
  Raises:
    ValueError: for options that contradict each other or the data.
    FileNotFoundError: for what is not there.
  """
  # Here, not at the top: the input side imports TensorFlow.
  from alpro_jax.data import tokens
  from alpro_jax.data.mixture import measure_texts, open_sources

  _check_positive(config)
  mesh = sharding.mesh_from_config(config.mesh)
  sharding.check_batch_size(
    config.data.batch_size, mesh, accumulation=config.optimizer.accumulation
  )
  logging.info(
    '%d devices (%s) in %d processes, mesh %s, global batch %d',
    mesh.size,
    mesh.devices.flat[0].device_kind,
    jax.process_count(),
    dict(mesh.shape),
    config.data.batch_size,
  )
  tokenizer = tokens.load_tokenizer(config.data.tokenizer)
  sources = open_sources(config.data)
  measure_texts(sources, tokenizer, config.data.max_text_tokens)

  text = TextInfo(tokenizer.special, tokenizer.vocab_size)
  task = get_task(config, text, mesh)
  if 'loss/vtc' in task.weights or 'loss/vtm' in task.weights:
    counts = [source.num_records for source in sources]
    if said := check_negatives(config, task, counts):
      logging.warning('%s', said)
  tx, schedule = optimizer.from_config(config.optimizer, config.train.steps)
  check_evaluations(Setting(config, task, tokenizer, mesh), evaluations)
  meta = identity.describe(config, task, tokenizer, sources)
  return Plan(
    mesh, tokenizer, sources, task, tx, schedule, abstract_state(task.init, tx, mesh), meta
  )


def _train(config, folder, evaluations, supervisor):
  from alpro_jax.data import feed, pipeline
  from alpro_jax.data.mixture import report_sources

  steps = config.train.steps
  mesh, tokenizer, sources, task, tx, schedule, abstract, meta = plan(config, evaluations)
  logging.info(
    '\n%s', parameter_overview.get_parameter_overview(abstract.params, include_stats=False)
  )
  resume.check_same_everywhere(meta)

  # What this workdir holds already.
  store = checkpoints.Checkpoints(
    folder, keep_newest=config.train.keep_newest, best_metric=config.train.best_metric
  )
  newest = store.newest()
  stored = None if newest is None else store.meta(newest)
  meta, fresh = resume.check_beginning(meta, stored)
  if stored and newest >= steps and not stored.get('evaluation_due'):
    return _already_finished(folder, store, newest, steps)
  setting = Setting(config, task, tokenizer, mesh)
  run_folder.write_json(folder / 'config.json', meta['config'])

  # The state, the step, and what flows into it.
  prompter = (meta['prompter'] or {}).get('path', '')
  frozen = load_frozen(task, prompter, tokenizer.encode)
  state = _first_state(config, task, tx, mesh, abstract, store, meta['start'], fresh)
  step = int(state.step)
  train_step = make_train_step(
    task,
    tx,
    schedule,
    mesh,
    jax.tree.map(lambda leaf: leaf.sharding, abstract),
    seed=config.seed,
    accumulation=config.optimizer.accumulation,
    negatives=config.optimizer.accumulation_negatives,
    non_finite=config.train.non_finite,
    freeze=config.optimizer.freeze,
  )
  batches = feed.Feed(
    pipeline.train_batches(
      config.data,
      sources,
      tokenizer,
      seed=config.seed,
      start_step=step,
      batch_size=config.data.batch_size,
      rows=feed.host_rows(config.data.batch_size),
    ),
    mesh,
  )
  progress = Progress(
    folder / 'tensorboard',
    steps=steps,
    describe=task.describe,
    batch_size=config.data.batch_size,
    skip_limit=config.train.skip_limit,
    spike_deviations=config.train.spike_deviations,
  )
  saved_at, first, results = time.monotonic(), step + 1, None
  # A stop came before the evaluation of the step that is gone on from.
  due = bool(step and evaluations and store.meta(step).get('evaluation_due'))

  def evaluate():
    """Returns the figures of this step; None if a stop came before them."""
    nonlocal due
    figures = None
    supervisor.doing(f'evaluating step {step}')
    logging.info('step %d: evaluating', step)
    try:
      with progress.paused(), supervisor.interrupts():
        figures = _evaluate(evaluations, setting, state.params, step)
        progress.write(step, figures)
    except Exception:
      # What was learned since the last save is not lost with the evaluation.
      # Several processes need not all have failed, and save only together.
      if jax.process_count() == 1:
        due = True
        save(None)
      raise
    return figures

  def save(figures, replace=False):
    # Save nothing that was computed from a loss that is not finite.
    progress.fetch()
    supervisor.doing(f'saving step {step}')
    extra = {'evaluation': results, 'evaluation_due': due}
    store.save(state, {**meta, **extra}, figures, replace=replace)

  try:
    if due and (fresh := evaluate()) is not None:
      due, results = False, fresh
      save(fresh, replace=True)
    while step < steps and not due:
      # No implicit uploads in the loop: a Python number that slips into the
      # step would stall every device for it.
      with jax.transfer_guard_host_to_device('disallow'):
        supervisor.doing(f'waiting for the data of step {step + 1}')
        batch = next(batches)
        supervisor.doing(f'at step {step + 1}, or at the end of the one before')
        state, metrics = train_step(state, frozen, batch)
      step += 1
      progress.add(step, metrics)
      if step == first:
        progress.skip_compilation(batches.wait_seconds)

      last, stopping = step == steps, supervisor.stop_requested(step)
      if last or stopping or _every(config.train.log_every_steps, step):
        progress.report(batches.wait_seconds, sum(len(s.broken) for s in sources))
      fresh = None
      if evaluations and (last or _every(config.train.eval_every_steps, step)):
        fresh = None if stopping else evaluate()
        due = fresh is None
        results = results if due else fresh
      if last or stopping or fresh or due or _is_time(config.train, step, saved_at):
        save(fresh)
        saved_at = time.monotonic()
      if stopping:
        break
    if step < steps or due:
      logging.warning(
        'stopped on request at step %d of %d%s',
        step,
        steps,
        ', before it was evaluated: that comes first next time' if due else '',
      )
  finally:
    # Whatever ended the loop: a save that has begun is finished.
    supervisor.doing('finishing the last save')
    batches.close()
    try:
      best = store.best()
      store.close()
    finally:
      progress.close()
  finished = step == steps and not due
  report = {
    **progress.summary(),
    'step': step,
    'finished': finished,
    'evaluation': results,
    'best_step': best,
    'data': report_sources(sources),
  }
  if finished:
    run_folder.write_json(folder / 'report.json', report)
    logging.info(
      'finished %d steps: %.1f clips/s, waiting for data %.1f%%',
      step,
      report['clips_per_second'],
      100 * report['waiting_share'],
    )
  return Outcome(step, finished)


def _first_state(config, task, tx, mesh, abstract, store, start, fresh) -> TrainState:
  """Decides where the run starts, and says so."""
  # 1. This run has a checkpoint: go on from the newest intact one.
  while (step := store.newest()) is not None:
    logging.info('restore: going on with this run from step %d', step)
    try:
      return store.restore(step, abstract)
    except checkpoints.DamagedCheckpointError as error:
      store.set_aside(step, error)
  state = create_state(task.init, tx, mesh, config.seed)
  # 2. Another run is named: take its parameters, with a fresh optimizer.
  if start:
    params = identity.opened(start).load_params(
      abstract.params,
      initial=state.params,
      new=config.train.new_parameters,
      fresh=fresh,
      unused=config.train.unused_parameters,
      resize={
        f'video_encoder/{name}': functools.partial(timesformer.fit_table, name)
        for name in ('positions', 'times')
      },
    )
    logging.info('restore: parameters from %s, optimizer from scratch', start['path'])
    return state.replace(params=params)
  # 3. Neither: random weights from the seed.
  logging.info(
    'restore: nothing to restore; from scratch, seed %d: all weights are '
    'random. To start from a ViT and a BERT, as the paper does, see '
    'launch/convert.py --help and --config.train.init_from',
    config.seed,
  )
  return state


def _already_finished(folder, store, step, steps):
  logging.info('already finished: step %d of %d', step, steps)
  if not (folder / 'report.json').exists():
    # The last start was killed between its last save and its report.
    run_folder.write_json(
      folder / 'report.json',
      {
        'step': step,
        'finished': True,
        'best_step': store.best(),
        'evaluation': store.meta(step)['evaluation'],
      },
    )
  store.close()
  return Outcome(step, finished=True)


def _evaluate(evaluations, setting, params, step):
  results = {}
  for evaluation in evaluations:
    results |= evaluation(setting, params, step)
  logging.info('step %d: %s', step, '  '.join(f'{k} {v:.4g}' for k, v in sorted(results.items())))
  return results


def _every(interval, step):
  return interval > 0 and step % interval == 0


def _is_time(train, step, saved_at):
  """Whether a checkpoint is due; all processes answer alike."""
  if _every(train.checkpoint_every_steps, step):
    return True
  seconds = train.checkpoint_every_seconds
  late = 0 < seconds <= time.monotonic() - saved_at
  if jax.process_count() == 1:
    return late
  # Clocks differ: ask process 0, but not at every step.
  if not seconds or not _every(train.log_every_steps, step):
    return False
  return bool(multihost_utils.broadcast_one_to_all(np.int32(late)))


def _check_positive(config):
  for name in ('steps', 'log_every_steps', 'checkpoint_every_steps'):
    if config.train[name] < 1:
      raise ValueError(f'config.train.{name}={config.train[name]} must be at least 1.')
