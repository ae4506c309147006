"""A polite end: SIGTERM, as sent by schedulers before they take a machine."""

import contextlib
import faulthandler
import os
import signal
import threading

import jax
from absl import logging
from jax.experimental import multihost_utils

# 128 + SIGTERM, as shells say it.
STOPPED = 143


class _Interrupted(BaseException):
  """Not an Exception: whatever is interrupted must not handle it."""


class StopRequest:
  """Notices SIGTERM and the first Ctrl-C, so that the run saves and ends.

  With several processes jax carries the notice to all of them and names one
  step at which they stop together.
  """

  def __init__(self, seconds: float):
    """`seconds` after the request the process ends, saved or not; 0: never."""
    self._seconds = seconds
    self._asked = False
    self._interrupts = False
    self._limit = None
    self._previous = {}

  def __enter__(self):
    if jax.process_count() == 1:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    if self._limit:
      self._limit.cancel()

  def requested(self, step: int) -> bool:
    """Whether to stop after this step; all processes answer alike."""
    if jax.process_count() > 1 and not self._asked:
      self._asked = multihost_utils.reached_preemption_sync_point(step)
      if self._asked:
        self._start_limit()
    return self._asked

  @contextlib.contextmanager
  def interrupts(self):
    """Breaks off what is inside, silently, when a stop is asked for.

    For work that may be left undone and takes longer than a scheduler waits.
    One process alone: several must break off at the same place.
    """
    self._interrupts = True
    try:
      if self._asked and jax.process_count() == 1:
        raise _Interrupted
      yield
      self._interrupts = False  # Inside: from here on nothing is raised.
    except _Interrupted:
      pass
    finally:
      self._interrupts = False

  def _ask(self, number, _):
    # No logging here: the signal may come in the middle of a line of it.
    self._asked = True
    signal.signal(number, self._previous[number])  # The second one kills.
    self._start_limit()
    if self._interrupts:
      self._interrupts = False
      raise _Interrupted

  def _start_limit(self):
    if self._seconds > 0:
      self._limit = threading.Timer(self._seconds, self._give_up)
      self._limit.daemon = True
      self._limit.start()

  def _give_up(self):
    logging.error(
      'asked to stop %g s ago (config.train.stop_seconds) and not done yet; '
      'process %d ends here. Start again: the run goes on from its last '
      'whole checkpoint. The stacks of its threads follow on stderr.',
      self._seconds,
      jax.process_index(),
    )
    faulthandler.dump_traceback()
    os._exit(STOPPED)
