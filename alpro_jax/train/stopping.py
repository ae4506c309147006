"""A polite end: SIGTERM, as sent by schedulers before they take a machine."""

import signal

import jax
from jax.experimental import multihost_utils


class StopRequest:
  """Notices SIGTERM and the first Ctrl-C, so that the run saves and ends.

  With several processes jax carries the notice to all of them and names one
  step at which they stop together.
  """

  def __enter__(self):
    self._asked = False
    self._previous = {}
    if jax.process_count() == 1:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def requested(self, step: int) -> bool:
    if jax.process_count() == 1:
      return self._asked
    return multihost_utils.reached_preemption_sync_point(step)

  def _ask(self, number, _):
    # No logging here: the signal may come in the middle of a line of it.
    self._asked = True
    signal.signal(number, self._previous[number])  # The second one kills.
