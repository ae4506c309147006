"""The training loop: when to step, log, evaluate, save and stop.

What happens in a step is train/step.py's, what is learned is the task's.
Everything that decides the result is a function of the config and the step,
so a run may be stopped anywhere, in any way, and go on as if it had not been.
"""

import contextlib
import difflib
import functools
import json
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from clu import parameter_overview
from jax.experimental import multihost_utils

from alpro_jax import sharding
from alpro_jax.tasks.base import Task, TextInfo
from alpro_jax.tasks.registry import get_task
from alpro_jax.tasks.shared import resized_tables
from alpro_jax.train import checkpoints, features, identity, ranges, resume, run_folder
from alpro_jax.train.frozen import load_frozen
from alpro_jax.train.goodput import Goodput, shares
from alpro_jax.train.progress import Progress
from alpro_jax.train.state import TrainState
from alpro_jax.train.step import Update, check_negatives, make_update
from alpro_jax.train.supervision import Supervisor

REPORT = 'report.json'


class Plan(NamedTuple):
  """What a run is made of, opened and checked; searches need the first four."""

  config: Any
  task: Task
  tokenizer: Any
  mesh: jax.sharding.Mesh
  sources: Sequence[Any] = ()  # The sets that batches come from.
  update: Update | None = None
  meta: dict[str, Any] | None = None  # See identity.describe.
  frozen: Any = None  # What is not trained; see tasks/base.py.
  features: Any = None  # What sources are read from in place of clips; see train/features.py.


# (plan, params, step) -> figures by name, such as 'eval/t2v_r1', and pictures uint8[n, H, W, 3].
# One that knows beforehand which figures it will give has a method names(plan) -> the names.
Evaluation = Callable[[Plan, Any, int], dict[str, float | np.ndarray]]


class Outcome(NamedTuple):
  """How a run ended; every process has the same.

  Attributes:
    step: the last one done.
    finished: whether that was all there is to do.
    figures: of the last evaluation, None if there was none; of a finished run that of `step`.
    best_step: of the checkpoint that is best by train.best_metric, None without one.
  """

  step: int
  finished: bool
  figures: dict[str, float] | None = None
  best_step: int | None = None


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
  options, goodput = config.train, Goodput()
  supervisor = Supervisor(
    stop_seconds=options.stop_seconds, standstill_seconds=options.standstill_seconds
  )
  with run_folder.claim(folder) as claimed, supervisor:
    folder = claimed.folder
    plan = make_plan(config, evaluations)
    resume.check_same_everywhere(plan.meta)
    store = checkpoints.Checkpoints(
      claimed.checkpoints,
      keep_newest=options.keep_newest,
      best_metric=options.best_metric,
      words=identity.words(plan.meta, plan.tokenizer),
      check=claimed.check,
    )
    newest = store.newest()
    stored = None if newest is None else store.meta(newest)
    meta, fresh = resume.check_beginning(plan.meta, stored)
    plan = plan._replace(meta=meta)
    if stored and newest >= options.steps and not stored.get('evaluation_due'):
      logging.info('already finished: step %d of %d', newest, options.steps)
      best = store.best()
      if _reported(folder) != newest:
        # The last start was killed between its last save and its report.
        _write_report(folder, newest, stored['evaluation'], best)
      store.close()
      return Outcome(newest, True, stored['evaluation'], best)
    run_folder.write_json(folder / 'config.json', meta['config'])
    _write_parameters(folder / 'parameters.txt', plan.update.state)
    prompter = meta['prompter'] and identity.opened(meta['prompter'])
    frozen = load_frozen(plan.task, prompter, plan.tokenizer)
    state = _first_state(plan, store, fresh)
    at = {} if store.newest() is None else store.meta(int(state.step))
    due = bool(evaluations and at.get('evaluation_due'))
    goodput.resume(folder, at.get('seconds', {}))
    plan = plan._replace(frozen=frozen)
    if config.data.features:
      goodput.enter('input')
      prepare = functools.partial(features.prepare, plan, state, supervisor.doing)
      plan = plan._replace(features=supervisor.interruptible(prepare))
      if not plan.features:
        logging.warning('stopped on request; what is made of %s stays', features.OPTION)
        store.close()
        return Outcome(int(state.step), finished=False)
      goodput.enter('restart')
    return _Trainer(folder, plan, evaluations, store, supervisor, goodput, state, due).run()


def make_plan(config, evaluations: Sequence[Evaluation] = ()) -> Plan:
  """Opens what a config names, and refuses what could not be trained.

  It writes nothing: launch/doctor.py asks it as well.

  Raises:
    ValueError: for options that contradict each other or the data.
    FileNotFoundError: for what is not there.
  """
  # Here, not at the top: the input side imports TensorFlow.
  from alpro_jax.data import mixture, tokens

  ranges.check(config)
  mesh = sharding.mesh_from_config(config.mesh)
  sharding.check_batch_size(
    config.data.batch_size, mesh, accumulation=config.optimizer.accumulation
  )
  logging.info(
    f'{mesh.size} devices ({mesh.devices.flat[0].device_kind}) in {jax.process_count()} '
    f'processes, mesh {dict(mesh.shape)}, global batch {config.data.batch_size}'
  )
  tokenizer = tokens.load_tokenizers(config)
  task = get_task(config, TextInfo(tokenizer.special, tokenizer.vocab_size), mesh)
  update = make_update(config, task, mesh)
  features.check(config, task, update.state.params)
  sources = mixture.open_sources(config.data)
  mixture.check_schedule(sources, config.train.steps)
  mixture.measure_texts(sources, tokenizer, config.data.max_text_tokens)
  if said := check_negatives(config, task, [source.num_records for source in sources]):
    logging.warning('%s', said)
  plan = Plan(config, task, tokenizer, mesh, sources, update)
  check_evaluations(plan, evaluations)
  return plan._replace(meta=identity.describe(config, task, tokenizer, sources))


def check_evaluations(plan: Plan, evaluations: Sequence[Evaluation]) -> list[str]:
  """Checks, before a step is taken, that a run can be evaluated as it asks.

  Returns:
    the names of the figures, of those evaluations that can say them.
  Raises:
    ValueError: if config.train.best_metric is none of the names, or a held-out
      set has nothing to ask.
    FileNotFoundError: if a held-out set is not there.
  """
  best = plan.config.train.best_metric.removeprefix('-')
  known = [evaluation for evaluation in evaluations if hasattr(evaluation, 'names')]
  names = [name for evaluation in known for name in evaluation.names(plan)]
  if best and not evaluations:
    logging.warning(
      f'config.train.best_metric={best} is never measured, since there is nothing to '
      'evaluate on (config.eval.sources): only the newest checkpoints are kept.'
    )
  elif best and len(known) == len(evaluations) and best not in names:
    near = difflib.get_close_matches(best, names, n=6, cutoff=0)
    raise ValueError(
      f'config.train.best_metric names {best!r}, which the evaluation of '
      f'config.eval.sources does not give. The closest of its {len(names)} '
      f"names are {near}. Choose one, with a '-' in front if small is good, "
      "or '' to keep the newest checkpoints alone."
    )
  if best and _small_is_good(best) == (plan.config.train.best_metric == best):
    right = f'-{best}' if _small_is_good(best) else best
    raise ValueError(
      f'config.train.best_metric={plan.config.train.best_metric!r} would keep the worst step; '
      f'write {right!r}.'
    )
  return names


def _small_is_good(figure):
  """Whether a figure is better the smaller it is; None of one that only its task knows."""
  *_, last = parts = figure.split('/')
  if 'loss' in parts or last.endswith('_rank'):
    return True
  return False if re.search(r'_r\d+$|^accuracy', last) else None


def _write_parameters(path, state):
  """Lists what is trained in a file, and says how many parameters that and the rest are."""
  overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
  run_folder.write_text(path, overview + '\n')
  trained, held = (
    sum(x.size for x in jax.tree.leaves(tree)) for tree in (state.params, state.held)
  )
  rest = f'; {held:,} others stay as they are' if held else ''
  logging.info(f'{trained:,} parameters are trained, listed in {path}{rest}')


def _first_state(plan, store, fresh) -> TrainState:
  """Decides where the run starts, and says so."""
  abstract, options = plan.update.state, plan.config.train
  # 1. This run has a checkpoint: go on from the newest intact one.
  while (step := store.newest()) is not None:
    logging.info('restore: going on with this run from step %d', step)
    try:
      return store.restore(step, abstract)
    except checkpoints.DamagedCheckpointError as error:
      store.set_aside(step, error)
  state = plan.update.first(plan.config.seed)
  # 2. Another run is named: take its parameters, with a fresh optimizer.
  if plan.meta['start']:
    start = identity.opened(plan.meta['start'])
    model = start.load_params(
      sharding.abstract(jax.eval_shape(plan.task.init, jax.random.key(0)), plan.mesh),
      initial=state.model,
      new=options.new_parameters,
      fresh=fresh,
      unused=options.unused_parameters,
      resize=resized_tables(),
    )
    mean = ', averaged there (train.ema_decay)' if start.averaged else ''
    logging.info('restore: parameters from %s%s, optimizer from scratch', start.folder, mean)
    return state.start_from(model)
  # 3. Neither: random weights from the seed.
  logging.info(
    f'restore: nothing to restore; from scratch, seed {plan.config.seed}: all weights are '
    'random. To start from a ViT and a BERT, as the paper does, see '
    'launch/convert.py --help and --config.train.init_from'
  )
  return state


def _reader(plan):
  """Returns what batches come from: videos, or what was made of them."""
  if plan.features:
    from alpro_jax.data import features as on_disk

    return functools.partial(on_disk.train_batches, plan.features)
  from alpro_jax.data import pipeline

  return pipeline.train_batches


class _Trainer:
  """Takes the steps of one start of a run."""

  def __init__(self, folder, plan, evaluations, store, supervisor, goodput, state, due):
    """`due` is an evaluation of the first state, before which a stop came."""
    self.goodput = goodput
    self.folder, self.plan, self.evaluations = folder, plan, evaluations
    self.store, self.supervisor, self.state, self.due = store, supervisor, state, due
    self.step, self.figures, self.saved_at = int(state.step), None, time.monotonic()
    self.options = options = plan.config.train
    self.progress = Progress(
      folder / 'tensorboard',
      steps=options.steps,
      describe=plan.task.describe,
      batch_size=plan.config.data.batch_size,
      skip_limit=options.skip_limit,
      spike_deviations=options.spike_deviations,
      config=plan.config,
    )

  def run(self) -> Outcome:
    """Takes all steps that are left, or those until a stop is asked for."""
    from alpro_jax.data import feed

    data, steps = self.plan.config.data, self.options.steps
    rows = _reader(self.plan)(
      data,
      self.plan.sources,
      self.plan.tokenizer,
      seed=self.plan.config.seed,
      start_step=self.step,
      batch_size=data.batch_size,
      rows=feed.host_rows(data.batch_size),
    )
    batches = feed.Feed(rows, self.plan.mesh)
    try:
      if self.due and (figures := self._evaluate()) is not None:
        self._save(figures, replace=True)
      if not self.due:
        self._take_steps(batches)
      if self.step < steps or self.due:
        due = ', before it was evaluated: that comes first next time' if self.due else ''
        logging.warning(f'stopped on request at step {self.step} of {steps}{due}')
    finally:
      # Whatever ended the loop: a save that has begun is finished, and first: what reads
      # the data may hang.
      self._begin('checkpoint', 'finishing the last save')
      try:
        best = self.store.best()
        self.store.close()
      finally:
        self.progress.close()
        self._begin('input', 'ending the reading of data')
        batches.close()
    self.goodput.write(now=True)
    if finished := self.step == steps and not self.due:
      rates = self.progress.summary()
      seen = {'data': [source.report() for source in self.plan.sources]}
      seen['goodput'] = self.goodput.summary()
      _write_report(self.folder, self.step, self.figures, best, rates | seen)
      parts = sorted(seen['goodput']['shares'].items(), key=lambda item: -item[1])
      logging.info(
        f'finished {self.step} steps: {rates["clips_per_second"]:.1f} clips/s, '
        f'waiting for data {rates["waiting_share"]:.1%}; of {seen["goodput"]["seconds"]:.0f} s '
        f'in {seen["goodput"]["starts"]} starts '
        + ', '.join(f'{name} {share:.1%}' for name, share in parts)
      )
    return Outcome(self.step, finished, self.figures, best)

  def _take_steps(self, batches):
    options, first = self.options, self.step + 1
    while self.step < options.steps and (batch := self._wait_for(batches)) is not None:
      self._begin(
        'compile' if self.step + 1 == first else 'steps',
        f'at step {self.step + 1}, or at the end of the one before',
      )
      # No implicit uploads in the loop: a Python number that slips into the
      # step would stall every device for it.
      with jax.transfer_guard_host_to_device('disallow'):
        self.state, metrics = self.plan.update.step(self.state, self.plan.frozen, batch)
        self.goodput.enter('steps')
      self.step += 1
      self.progress.add(self.step, metrics)
      if self.step == first:
        self.progress.skip_compilation(batches.wait_seconds)
        run_folder.remove(self.folder / REPORT)  # Of a shorter run: it is no longer the end.

      stopping, last = self.supervisor.stop_requested(self.step), self.step == options.steps
      if last or stopping or self._every(options.log_every_steps):
        replaced = sum(len(source.broken) for source in self.plan.sources)
        self.progress.report(batches.wait_seconds, replaced, shares(self.goodput.seconds()))
        self.goodput.write()
      figures = None
      if self.evaluations and (last or self._every(options.eval_every_steps)):
        self.due = True
        figures = None if stopping else self._evaluate()
      if last or stopping or figures or self.due or self._is_time_to_save():
        self._save(figures)
      if stopping or self.due:
        return
    # Asked to stop while it waited: data that does not come must not cost what was learned.
    if first <= self.step < options.steps:
      self._save(None)

  def _wait_for(self, batches):
    """Returns the next batch; None if a single process is asked to stop before it is there."""
    self._begin('input', f'waiting for the data of step {self.step + 1}')
    return self.supervisor.interruptible(lambda: next(batches))

  def _evaluate(self):
    """Returns the figures of this step; None if a stop came before them."""
    found = {}
    self._begin('evaluation', f'evaluating step {self.step}')
    logging.info('step %d: evaluating', self.step)

    def evaluate():
      for evaluation in self.evaluations:
        found.update(evaluation(self.plan, self.state.model, self.step))
      figures = {name: value for name, value in found.items() if not np.ndim(value)}
      said = '  '.join(f'{name} {value:.4g}' for name, value in sorted(figures.items()))
      logging.info('step %d: %s', self.step, said)
      self.progress.write(self.step, found)
      self.due, self.figures = False, figures

    try:
      with self.progress.paused():
        self.supervisor.interruptible(evaluate)
    except Exception:
      # What was learned since the last save is not lost with the evaluation.
      # Several processes need not all have failed, and save only together.
      if jax.process_count() == 1:
        self._save(None)
      raise
    self.goodput.enter('steps')
    return None if self.due else self.figures

  def _save(self, figures, replace=False):
    # Save nothing that was computed from a loss that is not finite.
    self.progress.fetch()
    self._begin('checkpoint', f'saving step {self.step}')
    meta = {**self.plan.meta, 'evaluation': self.figures, 'evaluation_due': self.due}
    meta['seconds'] = self.goodput.seconds()
    self.store.save(self.state, meta, figures, replace=replace)
    self.saved_at = time.monotonic()
    self.goodput.write(now=True)
    self.goodput.enter('steps')

  def _begin(self, phase, what):
    """Tells those that watch what the loop begins; phases are those of goodput.py."""
    self.goodput.enter(phase)
    self.supervisor.doing(what)

  def _is_time_to_save(self):
    """Whether a checkpoint is due; all processes answer alike."""
    if self._every(self.options.checkpoint_every_steps):
      return True
    seconds = self.options.checkpoint_every_seconds
    late = 0 < seconds <= time.monotonic() - self.saved_at
    if jax.process_count() == 1:
      return late
    # Clocks differ: ask process 0, but not at every step.
    if not seconds or not self._every(self.options.log_every_steps):
      return False
    return bool(multihost_utils.broadcast_one_to_all(np.int32(late)))

  def _every(self, interval):
    return interval > 0 and self.step % interval == 0


def _reported(folder):
  """Returns the step that the report is of; None if there is none, or a damaged one."""
  with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
    return json.loads((folder / REPORT).read_bytes())['step']
  return None


def _write_report(folder, step, figures, best, more=None):
  report = {'step': step, 'finished': True, 'evaluation': figures, 'best_step': best}
  run_folder.write_json(folder / REPORT, (more or {}) | report)
