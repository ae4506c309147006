"""Watches over the loop from outside: requests to stop, and standstills.

SIGTERM, as sent by schedulers before they take a machine, and the first Ctrl-C
let the run save and end. A run of many hosts stands still as one: each host
waits for the others, and only the one that waits for something else is the
cause. So every host says what it was doing, once for each standstill.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

import jax
from absl import logging
from jax.experimental import multihost_utils

T = TypeVar('T')
# 128 + SIGTERM, as shells say it.
STOPPED = 143


class _Interrupted(BaseException):
  """Not an Exception: whatever is interrupted must not handle it."""


class Supervisor:
  """Notices requests to stop and standstills, while its block runs.

  With several processes jax carries a request to all of them and names one
  step at which they stop together.
  """

  def __init__(self, *, stop_seconds: float, standstill_seconds: float):
    """Sets the limits, 0 for none.

    Args:
      stop_seconds: after a request, before the process ends, saved or not.
      standstill_seconds: without a word from the loop before its stacks are printed.
    """
    self._stop_seconds, self._standstill_seconds = stop_seconds, standstill_seconds
    self._asked = self._now = None  # (What, and) when, by the monotonic clock.
    self._interrupts, self._previous = False, {}
    self._over = threading.Event()

  def __enter__(self):
    if jax.process_count() == 1:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._ask)
    if limits := [s for s in (self._stop_seconds, self._standstill_seconds) if s > 0]:
      threading.Thread(target=self._watch, args=[min(10, *limits) / 4], daemon=True).start()
    return self

  def __exit__(self, *_):
    self._over.set()
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def doing(self, what: str) -> None:
    """The loop begins something."""
    # One assignment: the thread sees both or neither.
    self._now = what, time.monotonic()

  def stop_requested(self, step: int) -> bool:
    """Whether to stop after this step; all processes answer alike."""
    if jax.process_count() > 1 and not self._asked:
      if multihost_utils.reached_preemption_sync_point(step):
        self._asked = time.monotonic()
    return self._asked is not None

  def interruptible(self, call: Callable[[], T]) -> T | None:
    """Returns the result of `call`; None, and at once, if a stop is or was asked for.

    For work that may be left undone and takes longer than a scheduler waits.
    One process alone: several must break off at the same place.
    """
    try:
      self._interrupts = True
      if self._asked and jax.process_count() == 1:
        raise _Interrupted
      result = call()
      self._interrupts = False  # Inside: from here on nothing is raised.
      return result
    except _Interrupted:
      return None
    finally:
      self._interrupts = False

  def _ask(self, number, _):
    # No logging here: the signal may come in the middle of a line of it.
    self._asked = time.monotonic()
    signal.signal(number, self._previous[number])  # The second one kills.
    if self._interrupts:
      self._interrupts = False
      raise _Interrupted

  def _watch(self, interval):
    said = None
    while not self._over.wait(interval):
      now = time.monotonic()
      if self._asked and 0 < self._stop_seconds < now - self._asked:
        break
      what, since = self._now or ('', now)
      if 0 < self._standstill_seconds < now - since and since != said:
        said = since
        logging.warning(
          f'standstill: process {jax.process_index()} of {jax.process_count()} has been '
          f'{what} for {now - since:.0f} s. The stacks of its threads follow on stderr.'
        )
        _write_stacks()
    else:
      return
    logging.error(
      f'asked to stop {self._stop_seconds:g} s ago (config.train.stop_seconds) and not done '
      f'yet; process {jax.process_index()} ends here. Start again: the run goes on from its '
      'last whole checkpoint. The stacks of its threads follow on stderr.'
    )
    _write_stacks()
    os._exit(STOPPED)


def _write_stacks():
  # Of a hundred threads faulthandler leaves out the oldest: the main one, which says the most.
  main = sys._current_frames()[threading.main_thread().ident]
  sys.stderr.write(f'Main thread:\n{"".join(traceback.format_stack(main))}')
  sys.stderr.flush()
  faulthandler.dump_traceback(sys.stderr)
