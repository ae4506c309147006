"""Says which host waits for what, when a run stands still."""

import faulthandler
import sys
import threading
import time

import jax
from absl import logging


class Watchdog:
  """Warns from a thread of its own when nothing has happened for a while.

  A run of many hosts stands still as one: each host waits for the others, and
  only the one that waits for something else is the cause. So every host says
  what it was doing, once for each standstill.
  """

  def __init__(self, seconds: float, dump=None):
    """Starts to watch.

    Args:
      seconds: without a word from the loop before it is a standstill; 0 never.
      dump: file for the stacks of all threads (stderr).
    """
    self._seconds = seconds
    self._dump = sys.stderr if dump is None else dump
    self._now = 'starting', time.monotonic()
    self._over = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    if seconds > 0:
      self._thread.start()

  def doing(self, what: str) -> None:
    """The loop begins something."""
    # One assignment: the thread sees both or neither.
    self._now = what, time.monotonic()

  def close(self) -> None:
    self._over.set()

  def _watch(self):
    said = None
    while not self._over.wait(min(self._seconds / 4, 10)):
      what, since = self._now
      waited = time.monotonic() - since
      if waited > self._seconds and since != said:
        said = since
        logging.warning(
          'standstill: process %d of %d has been %s for %.0f s. The stacks '
          'of its threads follow on stderr.',
          jax.process_index(),
          jax.process_count(),
          what,
          waited,
        )
        faulthandler.dump_traceback(self._dump)
