"""The loop with a toy task: a linear model and batches from the step."""

import dataclasses
import functools
import io
import json
import os
import shutil
import signal
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from alpro_jax import files, sharding
from alpro_jax.batch import SpecialTokens
from alpro_jax.data import feed, mixture, pipeline, tokens
from alpro_jax.tasks.base import Task
from alpro_jax.train import checkpoints, digests, goodput, loop, run_folder, supervision
from alpro_jax.train.progress import NonFiniteError, Progress, SpikeAlarm, duration
from configs import common
from tests.processes import run_two


@dataclasses.dataclass(frozen=True)
class ToyModelConfig:
  width: int = 4
  temperature_range = 0.001, 0.5

  def to_dict(self):
    return dataclasses.asdict(self)


class ToyTask(Task):
  """Linear regression; from `bad_step` on, `bad_steps` have a loss of NaN."""

  model = SimpleNamespace(config=ToyModelConfig())
  weights = {'loss/toy': 1.0}

  def __init__(self, bad_step=99, head='head'):
    self.bad_step, self.bad_steps, self.head = bad_step, 1, head

  def init(self, key):
    kernel = jax.random.normal(key, (4, 4))
    return {'body': {'kernel': kernel}, self.head: {'bias': jnp.zeros((4,))}}

  def make_targets(self, frozen, batch, key, *, parts=1):
    return None, {'loss/toy': 1.0}

  def terms(self, params, targets, batch, key, step, *, train):
    noise = jax.random.normal(key, (4,))
    out = batch @ params['body']['kernel'] + params[self.head]['bias'] + noise
    loss = jnp.mean(jnp.square(out))
    since = step - self.bad_step
    loss = jnp.where((since >= 0) & (since < self.bad_steps), jnp.nan, loss)
    return {'loss/toy': (loss, 1.0), 'share': (jnp.ones((2,)), 1.0)}

  def describe(self, metrics):
    return f'shares {metrics["share"][0]:.0f}'


class ToyBatches:
  """Batch k is a function of k; calls `at[k]` before it is given."""

  wait_seconds = 0.0

  def __init__(self, mesh, step, size, at):
    self.mesh, self.step, self.size, self.at = mesh, step, size, at

  def __next__(self):
    self.at.pop(self.step, lambda: None)()
    rows = np.random.default_rng(self.step).normal(size=(self.size, 4))
    self.step += 1
    return jax.make_array_from_process_local_data(
      sharding.batch_sharding(self.mesh), rows.astype(np.float32)
    )

  def close(self):
    pass


@pytest.fixture
def toy(monkeypatch):
  """Puts the toy in place of tasks and data; returns what tests may set."""
  parts = SimpleNamespace(task=ToyTask(), at={}, after={}, digest='d1', measured=[])
  tokenizer = SimpleNamespace(
    special=SpecialTokens(0, 1, 2, 3, 4),
    vocab_size=9,
    digest='t1',
    encode=None,
    kind='wordpiece',
    content=b'pieces',
  )
  monkeypatch.setattr(loop, 'get_task', lambda *_: parts.task)
  monkeypatch.setattr(tokens, 'load_tokenizer', lambda path: tokenizer)
  monkeypatch.setattr(
    mixture,
    'open_sources',
    lambda config: [SimpleNamespace(digest=parts.digest, broken={}, num_records=1, report=dict)],
  )
  monkeypatch.setattr(mixture, 'check_schedule', lambda sources, steps: None)
  monkeypatch.setattr(
    mixture, 'measure_texts', lambda sources, encoder, most: parts.measured.append(most)
  )
  monkeypatch.setattr(
    pipeline,
    'train_batches',
    lambda config, s, t, *, start_step, batch_size, **_: (start_step, batch_size),
  )
  monkeypatch.setattr(feed, 'Feed', lambda where, mesh: ToyBatches(mesh, *where, parts.at))
  add = Progress.add

  def add_then(self, step, metrics):
    add(self, step, metrics)
    parts.after.pop(step, lambda: None)()

  monkeypatch.setattr(Progress, 'add', add_then)
  before = logging.get_verbosity()
  logging.set_verbosity(logging.INFO)
  yield parts
  logging.set_verbosity(before)


def toy_config(**train):
  config = common.get_config('tiny')
  config.data.batch_size = 8
  config.optimizer.learning_rate = 1e-2
  config.train.update({'steps': 12, 'log_every_steps': 4, 'checkpoint_every_steps': 3, **train})
  return config


def params_of(folder):
  task = ToyTask()
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  return jax.device_get(checkpoints.find(folder).load_params(shapes))


def assert_same_params(first, second):
  jax.tree.map(np.testing.assert_array_equal, params_of(first), params_of(second))


def raise_(error):
  raise error


def log_of(folder):
  return (folder / 'log.txt').read_text()


def test_a_whole_run(toy, tmp_path):
  seen = []

  def evaluation(plan, params, step):
    seen.append((step, plan.config.data.batch_size))
    return {'eval/r1': float(step), 'eval/searches': np.full((2, 4, 5, 3), step, np.uint8)}

  config = toy_config(eval_every_steps=6, best_metric='eval/r1')
  outcome = loop.train(config, tmp_path, evaluations=[evaluation])
  assert outcome == (12, True, {'eval/r1': 12.0}, 12)
  assert seen == [(6, 8), (12, 8)]
  assert toy.measured == [config.data.max_text_tokens]
  report = json.loads((tmp_path / 'report.json').read_text())
  assert report['step'] == 12 and report['finished']
  assert report['evaluation'] == {'eval/r1': 12.0}
  assert report['best_step'] == 12
  assert set(report['metrics']) == {
    'loss',
    'loss/toy',
    'grad_norm',
    'grad_norm/body',
    'grad_norm/head',
    'learning_rate',
  }
  assert report['clips_per_second'] > 0
  stored = json.loads((tmp_path / 'config.json').read_text())
  assert stored['train']['steps'] == 12
  log = log_of(tmp_path)
  for text in (
    'global batch 8',
    'parameters are trained, listed in',
    'from scratch, seed 42',
    'step 8 of 12  loss',
    'waiting for data 0%',
    'shares 1',
    'step 12: eval/r1 12',
    'finished 12 steps',
  ):
    assert text in log
  events = EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
  shown = {e.step: e.tensor_proto.string_val for e in events.Tensors('eval/searches')}
  assert set(shown) == {6, 12}
  (width, height, *pngs) = shown[12]
  assert (width, height, len(pngs)) == (b'5', b'4', 2)
  assert (np.asarray(Image.open(io.BytesIO(pngs[1]))) == 12).all()
  assert 'body/kernel' in (tmp_path / 'parameters.txt').read_text()
  meta = checkpoints.load_meta(tmp_path)
  assert meta['model'] == {'width': 4} and meta['step'] == 12
  assert meta['tokenizer']['special']['mask'] == 4
  for step in checkpoints.step_folders(tmp_path / checkpoints.FOLDER):
    assert (step / checkpoints.WORDS / 'vocab.txt').read_bytes() == b'pieces'

  # A finished run says so and does nothing.
  assert loop.train(config, tmp_path) == outcome
  assert 'already finished: step 12 of 12' in log_of(tmp_path)
  assert len(seen) == 2


class Foretold:
  """An evaluation that says its names beforehand."""

  def __init__(self, *names):
    self.given, self.steps = names, []

  def names(self, plan):
    assert plan.config.data.batch_size == 8
    return list(self.given)

  def __call__(self, plan, params, step):
    self.steps.append(step)
    return {name: float(step) for name in self.given}


def test_a_wrong_best_metric_ends_before_step_1(toy, tmp_path):
  evaluation = Foretold('eval/r1', 'eval/r5')
  toy.at[0] = lambda: raise_(AssertionError('a batch was read'))
  for name in ('eval/r10', '-eval/r10'):
    with pytest.raises(
      ValueError,
      match=r"names 'eval/r10', which .* closest "
      r"of its 2 names are \['eval/r1', 'eval/r5'\]",
    ):
      loop.train(toy_config(best_metric=name), tmp_path, evaluations=[evaluation])
  assert not evaluation.steps
  toy.at.clear()
  outcome = loop.train(
    toy_config(best_metric='-eval/r5', eval_every_steps=3), tmp_path, evaluations=[evaluation]
  )
  assert outcome.finished
  report = json.loads((tmp_path / 'report.json').read_text())
  assert report['best_step'] == 3


@pytest.mark.parametrize(
  ('metric', 'right'),
  [
    ('eval/loss', '-eval/loss'),
    ('eval/loss/vtc', '-eval/loss/vtc'),
    ('eval/t2v_mean_rank', '-eval/t2v_mean_rank'),
    ('-eval/t2v_r1', 'eval/t2v_r1'),
    ('-eval/accuracy_what', 'eval/accuracy_what'),
  ],
)
def test_the_worst_step_is_not_kept(toy, tmp_path, metric, right):
  evaluation = Foretold(metric.removeprefix('-'))
  with pytest.raises(ValueError, match=f"would keep the worst step; write '{right}'"):
    loop.train(toy_config(best_metric=metric), tmp_path, evaluations=[evaluation])
  assert loop.train(toy_config(best_metric=right), tmp_path, evaluations=[evaluation]).finished


def test_a_best_metric_without_evaluations_is_said(toy, tmp_path):
  loop.train(toy_config(best_metric='eval/r1', steps=1), tmp_path)
  assert 'best_metric=eval/r1 is never measured' in log_of(tmp_path)


def test_what_was_learned_is_saved_before_a_metric_is_refused(toy, tmp_path):
  def evaluation(plan, params, step):
    return {'eval/r1': float(step)}

  config = toy_config(best_metric='eval/r5', eval_every_steps=5, checkpoint_every_steps=100)
  with pytest.raises(
    ValueError,
    match=r"'eval/r5', which no evaluation gave; "
    r"there are \['eval/r1'\]. Step 5 is saved",
  ):
    loop.train(config, tmp_path, evaluations=[evaluation])
  assert checkpoints.load_meta(tmp_path)['step'] == 5
  config.train.best_metric = 'eval/r1'
  assert loop.train(config, tmp_path, evaluations=[evaluation]).finished
  assert 'going on with this run from step 5' in log_of(tmp_path)


def test_what_was_learned_is_saved_if_the_evaluation_fails(toy, tmp_path):
  seen = []

  def evaluation(plan, params, step):
    seen.append(step)
    if len(seen) == 1:
      raise ValueError('record 3 cannot be read')
    return {'eval/r1': float(step)}

  config = toy_config(eval_every_steps=5, checkpoint_every_steps=100)
  with pytest.raises(ValueError, match='record 3 cannot be read'):
    loop.train(config, tmp_path, evaluations=[evaluation])
  meta = checkpoints.load_meta(tmp_path)
  assert meta['step'] == 5 and meta['evaluation_due']
  assert loop.train(config, tmp_path, evaluations=[evaluation]).finished
  assert seen == [5, 5, 10, 12]
  loop.train(toy_config(), tmp_path / 'straight')
  assert_same_params(tmp_path / 'straight', tmp_path)


def test_a_report_lost_by_a_kill_is_written_again(toy, tmp_path):
  loop.train(toy_config(), tmp_path)
  (tmp_path / 'report.json').unlink()
  loop.train(toy_config(), tmp_path)
  assert json.loads((tmp_path / 'report.json').read_text())['finished']


def test_a_report_does_not_outlive_the_end_of_a_longer_run(toy, tmp_path):
  def evaluation(plan, params, step):
    return {'eval/r1': float(-step)}

  def train(steps):
    config = toy_config(steps=steps, best_metric='eval/r1', eval_every_steps=3)
    return loop.train(config, tmp_path, evaluations=[evaluation])

  report = tmp_path / 'report.json'
  train(3)
  shorter = report.read_text()
  toy.at[3] = lambda: os.kill(os.getpid(), signal.SIGTERM)
  assert train(6)[:2] == (3, False)
  assert report.read_text() == shorter  # It went no further.
  toy.after[4] = lambda: os.kill(os.getpid(), signal.SIGTERM)
  assert train(6)[:2] == (4, False)
  assert not report.exists()
  ended = train(6)
  assert ended == (6, True, {'eval/r1': -6.0}, 3)
  for left in (shorter, '{"step"'):  # As of a kill between the last save and the report.
    report.write_text(left)
    assert train(6) == ended
    assert json.loads(report.read_text())['step'] == 6


@pytest.mark.slow
@pytest.mark.parametrize('bucket', ['s3'], indirect=True)
def test_a_report_in_a_bucket_goes_when_the_run_goes_on(toy, bucket):
  place = f'{bucket}/run'
  loop.train(toy_config(steps=1), place)
  assert json.loads(files.read(f'{place}/report.json'))['step'] == 1
  toy.after[2] = lambda: os.kill(os.getpid(), signal.SIGTERM)
  assert loop.train(toy_config(steps=3), place)[:2] == (2, False)
  assert not files.exists(f'{place}/report.json')
  loop.train(toy_config(steps=3), place)
  assert json.loads(files.read(f'{place}/report.json'))['step'] == 3


def test_broken_off_and_resumed_equals_straight(toy, tmp_path):
  loop.train(toy_config(), tmp_path / 'straight')
  for step in (1, 5, 9):
    toy.at[step] = lambda: raise_(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
      loop.train(toy_config(checkpoint_every_seconds=1e-3), tmp_path / 'broken')
  outcome = loop.train(toy_config(), tmp_path / 'broken')
  assert outcome[:2] == (12, True)
  assert 'going on with this run from step 9' in log_of(tmp_path / 'broken')
  assert_same_params(tmp_path / 'straight', tmp_path / 'broken')


def test_time_goes_to_phases_over_all_starts(toy, tmp_path, monkeypatch):
  clock = [0.0]
  time_ = SimpleNamespace(monotonic=lambda: clock[0], time=lambda: clock[0])
  monkeypatch.setattr(goodput, 'time', time_)
  monkeypatch.setattr(goodput, 'WRITE_EVERY', -1.0)

  def spend(seconds):
    clock[0] += seconds

  def evaluation(plan, params, step):
    spend(7)
    return {'eval/r1': 1.0}

  toy.at |= {1: lambda: spend(2), 4: lambda: spend(100), 5: lambda: raise_(KeyboardInterrupt())}
  train = functools.partial(
    loop.train, toy_config(log_every_steps=1), tmp_path, evaluations=[evaluation]
  )
  with pytest.raises(KeyboardInterrupt):
    train()
  spend(1000)
  toy.at[6] = lambda: spend(30)
  assert train().finished
  report = json.loads((tmp_path / 'report.json').read_text())['goodput']
  # Steps 4 and 5 were done again: the 100 s that they had waited are lost.
  none = dict.fromkeys(goodput.PHASES, 0)
  expected = none | {'input': 32 / 139, 'evaluation': 7 / 139, 'restart': 100 / 139}
  assert report.pop('shares') == pytest.approx(expected)
  assert report == {'seconds': 139, 'starts': 2, 'between_starts_seconds': 1000}
  log = log_of(tmp_path)
  assert 'waiting for data 0%  goodput 0%' in log
  assert 'of 139 s in 2 starts restart 71.9%, input 23.0%, evaluation 5.0%' in log
  every = {'tensors': 0}
  events = EventAccumulator(str(tmp_path / 'tensorboard'), size_guidance=every).Reload()
  assert {e.step for e in events.Tensors('goodput/restart')} == set(range(1, 13))


@pytest.mark.parametrize(
  'known, saved, left, restart',
  [
    ({'steps': 90, 'compile': 8, 'restart': 5}, {'steps': 60, 'compile': 8}, 60, 35),
    ({'steps': 90, 'restart': 5}, {}, 0, 95),  # No checkpoint yet.
    ({}, {'steps': 60, 'restart': 5}, 60, 5),  # The file was lost.
    ({'steps': 50}, {'steps': 60}, 60, 0),  # Or is older than the checkpoint.
  ],
)
def test_what_a_kill_undid_is_restart(known, saved, left, restart):
  seconds = goodput.undone(known, saved)
  assert (seconds['steps'], seconds['restart']) == (left, restart)
  assert sum(seconds.values()) == max(sum(known.values()), sum(saved.values()))
  assert sum(goodput.shares(seconds).values()) == pytest.approx(1)


def test_resumes_on_one_device(toy, tmp_path, monkeypatch):
  toy.at[5] = lambda: raise_(KeyboardInterrupt())
  with pytest.raises(KeyboardInterrupt):
    loop.train(toy_config(), tmp_path)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  monkeypatch.setattr(sharding, 'mesh_from_config', lambda config: mesh)
  assert loop.train(toy_config(), tmp_path).finished
  assert '1 devices' in log_of(tmp_path)
  assert 'going on with this run from step 3' in log_of(tmp_path)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('waiting', [False, True])
def test_a_signal_saves_and_stops(toy, tmp_path, number, waiting):
  before = signal.getsignal(number)

  def stop():
    os.kill(os.getpid(), number)
    if waiting:
      time.sleep(60)  # The data of step 8 does not come.

  (toy.at if waiting else toy.after)[7] = stop
  outcome = loop.train(toy_config(checkpoint_every_steps=100), tmp_path)
  assert outcome[:2] == (7, False)
  assert signal.getsignal(number) is before
  assert checkpoints.load_meta(tmp_path)['step'] == 7
  assert not (tmp_path / 'report.json').exists()
  loop.train(toy_config(), tmp_path / 'straight')
  assert loop.train(toy_config(), tmp_path).finished
  assert_same_params(tmp_path / 'straight', tmp_path)


def test_a_signal_before_it_waits_is_not_lost(toy, tmp_path, monkeypatch):
  wait = loop._Trainer._wait_for

  def asked_before(trainer, batches):
    if trainer.step == 7:
      os.kill(os.getpid(), signal.SIGTERM)
    return wait(trainer, batches)

  monkeypatch.setattr(loop._Trainer, '_wait_for', asked_before)
  assert loop.train(toy_config(checkpoint_every_steps=100), tmp_path)[:2] == (7, False)
  assert checkpoints.load_meta(tmp_path)['step'] == 7


def test_a_signal_before_the_first_batch_saves_nothing(toy, tmp_path):
  toy.at[0] = lambda: os.kill(os.getpid(), signal.SIGTERM)
  assert loop.train(toy_config(), tmp_path)[:2] == (0, False)
  with pytest.raises(FileNotFoundError):
    checkpoints.load_meta(tmp_path)
  assert loop.train(toy_config(), tmp_path).finished


@pytest.mark.parametrize('step', [6, 12])
def test_a_signal_breaks_off_an_evaluation_that_is_made_up_for(toy, tmp_path, step):
  seen, signals = [], [step]

  def evaluation(plan, params, at):
    if at in signals:
      signals.clear()
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(60)  # Python notices signals when it is called.
    seen.append(at)
    return {'eval/r1': float(-at)}

  config = toy_config(eval_every_steps=6, best_metric='eval/r1', checkpoint_every_steps=100)
  train = functools.partial(loop.train, config, tmp_path, evaluations=[evaluation])
  assert train()[:2] == (step, False)
  assert f'step {step} of 12, before it was evaluated' in log_of(tmp_path)
  meta = checkpoints.load_meta(tmp_path)
  assert meta['step'] == step and meta['evaluation_due']
  assert not (tmp_path / 'report.json').exists()
  assert train() == (12, True, {'eval/r1': -12.0}, 6)
  assert seen == [6, 12]
  report = json.loads((tmp_path / 'report.json').read_text())
  assert report['evaluation'] == {'eval/r1': -12.0}
  assert report['best_step'] == 6
  assert checkpoints.load_meta(tmp_path)['evaluation'] == {'eval/r1': -12.0}
  loop.train(toy_config(), tmp_path / 'straight')
  assert_same_params(tmp_path / 'straight', tmp_path)


def test_a_stop_that_takes_too_long_ends(toy, tmp_path, monkeypatch, capfd):
  codes = []
  monkeypatch.setattr(supervision.os, '_exit', codes.append)

  def stuck():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)

  toy.after[6], over = stuck, threading.Event()
  # More threads than faulthandler tells of.
  others = [threading.Thread(target=over.wait) for _ in range(120)]
  for thread in others:
    thread.start()
  loop.train(toy_config(stop_seconds=0.2), tmp_path)
  over.set()
  for thread in others:
    thread.join()
  assert codes == [143]
  assert 'asked to stop 0.2 s ago' in log_of(tmp_path)
  assert 'in stuck' in capfd.readouterr().err
  # One that does not leaves no clock behind.
  toy.after[10] = lambda: os.kill(os.getpid(), signal.SIGTERM)
  loop.train(toy_config(stop_seconds=600), tmp_path)
  clocks = [
    t
    for t in threading.enumerate()
    if isinstance(t, threading.Timer) and t.function.__module__ == supervision.__name__
  ]
  for clock in clocks:
    clock.join(10)
    assert not clock.is_alive()


def test_a_run_without_negatives_is_refused_before_anything_is_written(toy, tmp_path):
  toy.task.weights = {'loss/vtc': 1.0}
  toy.task.terms = None  # Is not reached.
  with pytest.raises(ValueError, match='VTC among 1 pairs'):
    loop.train(toy_config(), tmp_path)
  assert not (tmp_path / 'checkpoints').exists()


def test_a_loss_that_is_not_finite_stops_before_a_save(toy, tmp_path):
  toy.task = ToyTask(bad_step=5)  # The sixth: a checkpoint is due after it.
  with pytest.raises(NonFiniteError, match=r'step 6 .*loss/toy=nan'):
    loop.train(toy_config(), tmp_path)
  assert checkpoints.load_meta(tmp_path)['step'] == 3
  toy.task = ToyTask()
  assert loop.train(toy_config(), tmp_path).finished


def test_a_loss_that_is_not_finite_is_skipped_on_request(toy, tmp_path):
  toy.task = ToyTask(bad_step=5)
  loop.train(toy_config(non_finite='skip', checkpoint_every_steps=1, keep_newest=12), tmp_path)
  report = json.loads((tmp_path / 'report.json').read_text())
  assert report['finished'] and report['skipped_steps'] == 1
  log = log_of(tmp_path)
  assert 'step 6 is not finite and was skipped (1 so far): grad_norm=0' in log
  assert 'left  1 skipped steps' in log
  states = [tmp_path / 'checkpoints' / str(step) for step in (5, 6, 7)]
  assert_same_params(*states[:2])
  with pytest.raises(AssertionError):
    assert_same_params(*states[1:])


def test_too_many_skips_in_a_row_stop(toy, tmp_path):
  toy.task = ToyTask(bad_step=4)
  toy.task.bad_steps = 3
  with pytest.raises(NonFiniteError, match='3 steps in a row .*skip_limit=2 '):
    loop.train(toy_config(non_finite='skip', skip_limit=2), tmp_path)
  loop.train(toy_config(non_finite='skip', skip_limit=3), tmp_path / 'more')


def test_a_standstill_is_reported(toy, tmp_path, capfd):
  toy.at[8] = lambda: time.sleep(1)
  loop.train(toy_config(standstill_seconds=0.3), tmp_path)
  assert (
    log_of(tmp_path).count('standstill: process 0 of 1 has been waiting for the data of step 9')
    == 1
  )
  assert '__next__' in capfd.readouterr().err  # Its stack.


def test_a_loss_spike_is_noticed_once():
  alarm = SpikeAlarm(8.0)
  noise = np.random.default_rng(0).normal(size=1000)
  said = [alarm.add(1 + 0.1 * value) for value in noise]
  assert not any(said)
  # A shift for good is an alarm at its beginning, not at every step.
  said = [alarm.add(3 + 0.1 * value) for value in noise[:90]]
  assert '1.' in said[0] and not any(said[1:])
  silent = SpikeAlarm(0.0)
  assert not any(silent.add(value) for value in [1.0] * 200 + [1e9])


def test_options_of_later_code_do_not_end_a_run(toy, tmp_path):
  toy.at[5] = lambda: raise_(KeyboardInterrupt())
  with pytest.raises(KeyboardInterrupt):
    loop.train(toy_config(), tmp_path)
  config = toy_config()
  config.loss.new_option = 3
  assert loop.train(config, tmp_path).finished
  assert "did not exist when this run began: {'config.loss.new_option': 3}" in log_of(tmp_path)


def test_a_damaged_newest_changes_nothing(toy, tmp_path):
  loop.train(toy_config(), tmp_path / 'straight')
  toy.at[10] = lambda: raise_(KeyboardInterrupt())
  with pytest.raises(KeyboardInterrupt):
    loop.train(toy_config(), tmp_path / 'damaged')
  for file in (tmp_path / 'damaged/checkpoints/9/params').glob('**/d/*'):
    file.write_bytes(file.read_bytes()[:-7])
  assert loop.train(toy_config(), tmp_path / 'damaged').finished
  log = log_of(tmp_path / 'damaged')
  assert 'checkpoints/9 is damaged' in log and 'from step 6' in log
  assert_same_params(tmp_path / 'straight', tmp_path / 'damaged')


def test_an_array_that_is_not_what_was_saved_changes_nothing(toy, tmp_path):
  loop.train(toy_config(), tmp_path / 'straight')
  toy.at[10] = lambda: raise_(KeyboardInterrupt())
  with pytest.raises(KeyboardInterrupt):
    loop.train(toy_config(), tmp_path / 'mixed')
  steps = tmp_path / 'mixed' / 'checkpoints'
  shutil.rmtree(steps / '9' / 'params')
  shutil.copytree(steps / '6' / 'params', steps / '9' / 'params')
  digests.write(steps / '9')
  assert loop.train(toy_config(), tmp_path / 'mixed').finished
  log = log_of(tmp_path / 'mixed')
  assert 'params/body/kernel, params/head/bias (2 of ' in log
  assert 'going on with this run from step 6' in log
  assert_same_params(tmp_path / 'straight', tmp_path / 'mixed')


def test_processes_that_differ_are_refused(tmp_path):
  files = [tmp_path / str(index) for index in range(2)]
  run_two('two_processes_differ', files)
  said = {file.read_text() for file in files}
  assert len(said) == 1
  for part in (
    'process 1 has config.seed=2, process 0 1',
    "config.loss.pem=0.5, process 0 'absent'",
    "data=['d2'], process 0 ['d1']",
  ):
    assert part in said.copy().pop()


def test_other_options_are_refused_by_name(toy, tmp_path):
  loop.train(toy_config(steps=3), tmp_path)
  config = toy_config(steps=2)
  config.optimizer.learning_rate = 0.5
  config.loss.vtm = 2.0
  toy.digest = 'd2'
  with pytest.raises(ValueError) as error:
    loop.train(config, tmp_path)
  for text in (
    'config.optimizer.learning_rate: was 0.01, is 0.5',
    'config.loss.vtm: was 1.0, is 2.0',
    "data: was ['d1'], is ['d2']",
    'config.train.steps: was 3, is 2; may grow',
  ):
    assert text in str(error.value)


def test_more_steps_and_other_intervals_are_allowed(toy, tmp_path):
  loop.train(toy_config(steps=3), tmp_path)
  config = toy_config(steps=5, log_every_steps=1, keep_newest=1)
  config.data.tokenizer = 'moved'
  assert loop.train(config, tmp_path)[:2] == (5, True)
  assert 'train.steps grew from 3 to 5' in log_of(tmp_path)


def test_starts_from_another_run(toy, tmp_path):
  loop.train(toy_config(), tmp_path / 'first')
  config = toy_config(init_from=str(tmp_path / 'first'), steps=1)
  toy.task = ToyTask(head='entity_head')
  with pytest.raises(ValueError, match='unknown to the model: head/bias'):
    loop.train(config, tmp_path / 'second')
  config.train.unused_parameters = ('head',)
  loop.train(config, tmp_path / 'second')
  log = log_of(tmp_path / 'second')
  assert 'new parameters, initialised: entity_head/bias' in log
  assert 'not used: head/bias' in log
  assert 'restore: parameters from' in log
  config.train.new_parameters = ()
  with pytest.raises(ValueError, match='missing from it: entity_head/bias'):
    loop.train(config, tmp_path / 'third')


def test_two_runs_in_one_workdir_are_refused(toy, tmp_path):
  with run_folder.claim(tmp_path):
    with pytest.raises(ValueError, match=f'process {os.getpid()}'):
      loop.train(toy_config(), tmp_path)
  assert loop.train(toy_config(), tmp_path).finished


def test_a_batch_that_does_not_divide_is_refused(toy, tmp_path):
  config = toy_config()
  config.data.batch_size = 12
  with pytest.raises(ValueError, match='set config.data.batch_size to a mult'):
    loop.train(config, tmp_path)


def test_intervals_must_be_positive(toy, tmp_path):
  with pytest.raises(ValueError, match='log_every_steps=0 must be 1 or more'):
    loop.train(toy_config(log_every_steps=0), tmp_path)


def test_rates_count_timed_steps_and_waiting(tmp_path, monkeypatch):
  clock = [100.0]
  monkeypatch.setattr('time.monotonic', lambda: clock[0])
  progress = Progress(tmp_path, steps=10, batch_size=6, describe=lambda _: '')
  clock[0] += 50  # Compilation.
  progress.add(1, {'loss': jnp.float32(9.0)})
  progress.skip_compilation(1.0)
  for step in (2, 3):
    progress.add(step, {'loss': jnp.float32(step)})
    clock[0] += 2
  with progress.paused():
    clock[0] += 1000
  progress.report(waiting=2.0)
  summary = progress.summary()
  progress.close()
  assert summary['clips_per_second'] == pytest.approx(12 / 4)
  assert summary['waiting_share'] == pytest.approx(1 / 4)
  assert summary['metrics']['loss'] == pytest.approx((9 + 2 + 3) / 3)


def test_time_left_is_said_when_it_was_measured(tmp_path, monkeypatch, caplog):
  clock = [0.0]
  monkeypatch.setattr('time.monotonic', lambda: clock[0])
  progress = Progress(tmp_path, steps=101, batch_size=6, describe=lambda _: '')
  lines = {}
  with caplog.at_level('INFO', logger='absl'):
    for step in range(1, 15):
      progress.add(step, {'loss': jnp.float32(1.0)})
      clock[0] += 40 if step == 3 else 2  # The third waits for something else.
      progress.fetch()
      if step == 1:
        progress.skip_compilation(0.0)
      if step in (1, 3, 8, 14):
        caplog.clear()
        progress.report(waiting=0.0)
        lines[step] = caplog.messages[-1].partition(')')[2]
  progress.close()
  assert lines[1] == ''  # Nothing is timed.
  assert lines[3] == '  0.3 clips/s  waiting for data 0%'  # Of two steps, 42 s.
  assert lines[8] == '  3.0 clips/s  waiting for data 0%  3:06 left'  # 93 steps of 2 s.
  assert lines[14].endswith('2:54 left')


def test_the_first_guess_is_a_median(tmp_path, monkeypatch, caplog):
  clock = [0.0]
  monkeypatch.setattr('time.monotonic', lambda: clock[0])
  progress = Progress(tmp_path, steps=101, batch_size=6, describe=lambda _: '')
  with caplog.at_level('INFO', logger='absl'):
    for step in range(1, 8):
      progress.add(step, {'loss': jnp.float32(1.0)})
      clock[0] += 40 if step == 3 else 2
      progress.fetch()
      if step == 1:
        progress.skip_compilation(0.0)
  progress.close()
  assert '2 s a step, measured on 5: 3:10 for the 95 that are left' in caplog.text


def test_durations():
  assert [duration(s) for s in (5, 75, 3700)] == ['0:05', '1:15', '1:01:40']
