"""What a run says while it trains: averages, rates, time left, curves."""

import contextlib
import math
import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from alpro_jax.train import curves

# Steps, after the one that compiles, that tell how long a run takes; fewer do not.
_FEW = 5


class NonFiniteError(ArithmeticError):
  """The loss or a part of it is not a number any more."""


class SpikeAlarm:
  """Notices a loss far above what it has lately been.

  Mean and variance are running ones over about a hundred steps. A loss that is
  called a spike does not raise them much: it counts as the bound.
  """

  _DECAY = 0.98
  _QUIET_STEPS = 100  # At the start the loss moves fast, and after an alarm.

  def __init__(self, deviations: float):
    """`deviations` above the mean is a spike; 0 is never."""
    self._deviations = deviations
    self._mean, self._variance, self._quiet = None, 0.0, self._QUIET_STEPS

  def add(self, loss: float) -> str:
    """Returns what is to be said of the loss of a step, '' as a rule."""
    mean = loss if self._mean is None else self._mean
    bound = mean + self._deviations * math.sqrt(self._variance)
    spike = self._deviations > 0 and loss > bound and self._quiet <= 0
    off = (bound if spike else loss) - mean
    self._mean = mean + (1 - self._DECAY) * off
    self._variance = self._DECAY * (self._variance + (1 - self._DECAY) * off * off)
    self._quiet = self._QUIET_STEPS if spike else self._quiet - 1
    if not spike:
      return ''
    return (
      f'{loss:.4f}, above {bound:.4f} = mean {mean:.4f} + {self._deviations:g} standard deviations'
    )


class Progress:
  """Collects the metrics of every step, one step late.

  Fetching the metrics of step n - 1 after step n was dispatched keeps the
  devices busy: the host never waits for the step it has just started.
  """

  def __init__(
    self,
    folder,
    *,
    steps: int,
    batch_size: int,
    describe,
    skip_limit: int = 0,
    spike_deviations: float = 0.0,
    config=None,
  ):
    """Opens the curves.

    Args:
      folder: for TensorBoard's files.
      steps: of the whole run.
      batch_size: clips per step, over all devices.
      describe: averaged metrics -> a line for the log, or ''.
      skip_limit: steps in a row that may be skipped for not being finite.
      spike_deviations: see SpikeAlarm.
      config: written beside the curves.
    """
    self._writer = curves.open_writer(folder)
    if config is not None:
      with _curves_may_fail():
        curves.describe(folder, config)
    self._steps, self._batch_size, self._describe = steps, batch_size, describe
    self._alarm, self._skip_limit = SpikeAlarm(spike_deviations), skip_limit
    self._step, self._pending, self._averages = 0, None, {}
    self._sums, self._count = {}, 0
    self._trouble, self._skipped_in_a_row = {'skipped_steps': 0, 'loss_spikes': 0}, 0
    self._total = {'steps': 0, 'seconds': 0.0, 'waiting': 0.0}
    self._restart(0.0)

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of a step that was just dispatched."""
    self.fetch()
    self._pending = step, metrics

  def fetch(self) -> None:
    """Waits for the newest metrics.

    Raises:
      NonFiniteError: with the step and the parts.
    """
    if self._pending is None:
      return
    (self._step, metrics), self._pending = self._pending, None
    metrics = dict(jax.device_get(metrics))
    skipped = metrics.pop('skipped', 0.0)
    parts = ', '.join(f'{name}={value:.6g}' for name, value in _scalars(metrics).items())
    self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
    self._timed += 1
    if not self._total['steps'] and self._timed <= _FEW:
      self._ends.append(time.monotonic())
      if self._timed == _FEW:
        self._say_how_long()
    if skipped:
      self._trouble['skipped_steps'] += 1
      count = self._trouble['skipped_steps']
      logging.warning(
        'step %d is not finite and was skipped (%d so far): %s', self._step, count, parts
      )
      if self._skipped_in_a_row > self._skip_limit:
        raise NonFiniteError(
          f'{self._skipped_in_a_row} steps in a row were not finite, '
          f'config.train.skip_limit={self._skip_limit} allow no more; the last '
          f'is step {self._step}: {parts}. Lower config.optimizer.learning_rate '
          'and start again.'
        )
      return
    if not all(np.isfinite(value).all() for value in metrics.values()):
      raise NonFiniteError(
        f'step {self._step} is not finite: {parts}. Nothing was '
        'saved from it; lower config.optimizer.learning_rate or look at the '
        'data of this step, then start again.'
      )
    for name, value in metrics.items():
      self._sums[name] = self._sums.get(name, 0.0) + np.asarray(value)
    self._count += 1
    if said := self._alarm.add(float(metrics['loss'])):
      self._trouble['loss_spikes'] += 1
      logging.warning('loss spike at step %d: %s', self._step, said)

  def skip_compilation(self, waiting: float) -> None:
    """Starts the clock after the first step, which compiled the program."""
    self.fetch()
    seconds = time.monotonic() - self._start
    logging.info('first step done after %.1f s, compilation included', seconds)
    self._restart(waiting)

  def _say_how_long(self):
    # The median: one of them may have waited for something else.
    each = float(np.median(np.diff([self._start, *self._ends])))
    left = self._steps - self._step
    if left > _FEW:
      logging.info(
        f'{each:.3g} s a step, measured on {_FEW}: {duration(each * left)} for the {left:,} '
        'that are left, evaluations not included'
      )

  @contextlib.contextmanager
  def paused(self):
    """Keeps what happens inside (an evaluation) out of the rates."""
    start = time.monotonic()
    yield
    self._start += time.monotonic() - start

  def report(
    self, waiting: float, replaced: int = 0, shares: Mapping[str, float] | None = None
  ) -> None:
    """Logs one line and writes the averages since the last one.

    `waiting` are the seconds that the loop has waited for data since it started,
    `replaced` the records that could not be read, `shares` of the run's time those of
    goodput.py.
    """
    self.fetch()
    if not self._count:
      return
    self._averages = {name: value / self._count for name, value in self._sums.items()}
    seconds = max(time.monotonic() - self._start, 1e-9)
    since = {'steps': self._timed, 'seconds': seconds, 'waiting': waiting - self._waiting}
    self._total = {name: value + since[name] for name, value in self._total.items()}
    scalars, times = _scalars(self._averages), self._rates(since)
    parts = (name.removeprefix('loss/') for name in sorted(scalars) if name.startswith('loss/'))
    trouble = self._trouble | {'replaced_records': replaced}
    losses = ' '.join(f'{name} {scalars[f"loss/{name}"]:.4f}' for name in parts)
    wrong = ''.join(f'  {n} {name.replace("_", " ")}' for name, n in trouble.items() if n)
    logging.info(
      f'step {self._step} of {self._steps}  loss {scalars["loss"]:.4f} ({losses})'
      f'{self._speed(since, times, shares)}{wrong}'
    )
    if line := self._describe(self._averages):
      logging.info('%s', line)
    memory = {'host_peak_gib': peak_memory_gib()}
    if peak := (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use'):
      memory['device_peak_gib'] = peak / 2**30
    curves = {'train': scalars, 'trouble': trouble, 'memory': memory, 'goodput': shares or {}}
    curves['time'] = times if self._timed else {}
    named = {f'{part}/{name}': n for part, found in curves.items() for name, n in found.items()}
    self.write(self._step, named)
    self._sums, self._count = {}, 0
    self._restart(waiting)

  def _speed(self, since, times, shares) -> str:
    """Rates since the last report and the time left; '' of what was not measured."""
    if not self._timed:
      return ''
    waited = f'waiting for data {times["waiting_share"]:.0%}'
    said = f'  {times["clips_per_second"]:.1f} clips/s  {waited}'
    if shares:
      said += f'  goodput {shares["steps"]:.0%}'
    # A few steps, beside a save, tell little; of this start there may be more.
    known = since if since['steps'] >= _FEW else self._total
    if known['steps'] < _FEW:
      return said
    left = (self._steps - self._step) * known['seconds'] / known['steps']
    return f'{said}  {duration(left)} left'

  def write(self, step: int, found: Mapping[str, float | np.ndarray]) -> None:
    """Writes scalars, and pictures uint8[n, H, W, 3], under their names."""
    pictures = {name: value for name, value in found.items() if np.ndim(value)}
    scalars = {k: v for k, v in found.items() if k not in pictures and math.isfinite(v)}
    with _curves_may_fail():
      self._writer.write_scalars(step, scalars)
      if pictures:
        self._writer.write_images(step, pictures)

  def summary(self) -> dict[str, Any]:
    """Returns rates of this start, and the last averages."""
    return {
      'step': self._step,
      'metrics': _scalars(self._averages),
      **self._rates(self._total),
      'seconds': self._total['seconds'],
      'steps_timed': self._total['steps'],
      **self._trouble,
    }

  def close(self) -> None:
    with _curves_may_fail():
      self._writer.flush()
      self._writer.close()

  def _rates(self, total):
    seconds = max(total['seconds'], 1e-9)
    return {
      'clips_per_second': total['steps'] * self._batch_size / seconds,
      'waiting_share': total['waiting'] / seconds,
    }

  def _restart(self, waiting):
    self._start, self._waiting, self._timed, self._ends = time.monotonic(), waiting, 0, []


@contextlib.contextmanager
def _curves_may_fail():
  """A full disk: curves are no reason to end a run, or to hide what did."""
  try:
    yield
  except OSError as error:
    logging.warning('the curves could not be written: %s', error)


def _scalars(metrics):
  return {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0}


def peak_memory_gib() -> float:
  """Returns the most that this process has held of the host's memory."""
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def duration(seconds: float) -> str:
  """Returns 75 as '1:15' and 3,700 as '1:01:40'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'
