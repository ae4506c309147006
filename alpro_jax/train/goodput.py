"""Where the wall time of a run goes, over all its starts: the share in steps is its goodput.

  steps       training, until the metrics of the last step are there
  input       waiting for a batch
  compile     making the program of the step
  checkpoint  the loop waiting for a save; what is written beside it costs nothing
  evaluation  with its own programs
  restart     from the start of the process to its first batch, and work that a kill
              undid: what was done after the checkpoint that the run goes on from

Between two starts the run held no machines, or lost them: that time is told apart.
"""

import json
import time
from collections.abc import Mapping

from absl import logging

from alpro_jax.train import run_folder

PHASES = ('steps', 'input', 'compile', 'checkpoint', 'evaluation', 'restart')
# What is done again from the last checkpoint on.
REPEATED = ('steps', 'input', 'evaluation')
FILE = 'goodput.json'
# Seconds between writes, but at each save: in a bucket one costs a request.
WRITE_EVERY = 30.0


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
  """Returns the share of each phase; they add up to 1."""
  total = max(sum(seconds.values()), 1e-9)
  return {name: value / total for name, value in seconds.items()}


def undone(known: Mapping[str, float], saved: Mapping[str, float]) -> dict[str, float]:
  """Returns the seconds of a run that goes on from a checkpoint.

      known  steps 90  restart 5     saved  steps 60     ->  steps 60  restart 35

  Args:
    known: by phase, when the last start was heard of.
    saved: the same at the checkpoint; empty if there is none.
  """
  seconds = {name: max(known.get(name, 0.0), saved.get(name, 0.0)) for name in PHASES}
  for name in REPEATED:
    seconds['restart'] += seconds[name] - saved.get(name, 0.0)
    seconds[name] = saved.get(name, 0.0)
  return seconds


class Goodput:
  """Charges the time of this start, on top of that of earlier ones."""

  def __init__(self):
    self._seconds, self._starts, self._between = dict.fromkeys(PHASES, 0.0), 1, 0.0
    self._phase, self._since, self._began = 'restart', time.monotonic(), time.time()
    self._path, self._written = None, 0.0

  def resume(self, folder, saved: Mapping[str, float]) -> None:
    """Adds what is known of earlier starts; `saved` is what the checkpoint says."""
    self._path = folder / FILE
    try:
      known = json.loads(self._path.read_text())
    except (OSError, ValueError):  # Not there, or not whole.
      known = {}
    for name, value in undone(known.get('seconds', {}), saved).items():
      self._seconds[name] += value
    if known:
      self._starts += known['starts']
      self._between = known['between_starts'] + max(self._began - known['written'], 0.0)

  def enter(self, phase: str) -> None:
    """From now on time goes to this phase."""
    now = time.monotonic()
    self._seconds[self._phase] += now - self._since
    self._phase, self._since = phase, now

  def seconds(self) -> dict[str, float]:
    """Returns the seconds of each phase until now."""
    self.enter(self._phase)
    return dict(self._seconds)

  def write(self, *, now: bool = False) -> None:
    """Keeps what is known for the next start; only now and then, but when it must be `now`."""
    if self._path is None or not (now or time.monotonic() - self._written > WRITE_EVERY):
      return
    self._written = time.monotonic()
    said = {'starts': self._starts, 'between_starts': self._between, 'written': time.time()}
    try:
      run_folder.write_json(self._path, {'seconds': self.seconds(), **said})
    except OSError as error:  # As of the curves: no reason to end a run.
      logging.warning('%s could not be written: %s', self._path, error)

  def summary(self) -> dict:
    """Returns what report.json says."""
    seconds = self.seconds()
    return {
      'shares': shares(seconds),
      'seconds': sum(seconds.values()),
      'starts': self._starts,
      'between_starts_seconds': self._between,
    }
