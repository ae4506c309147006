"""Seconds of each step of a device that works behind its queue."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np


def time_steps(
  run: Callable[[], Any], wait: Callable[[Any], object], steps: int
) -> dict[str, float]:
  """Runs steps, the next one always queued, so that the device has no gaps.

  Two steps more than asked for are run, before and after those that count.

  Args:
    run: queues a step and returns what to wait for; or does it, where nothing queues.
    wait: waits for what `run` has returned.
    steps: at least 1.
  Returns:
    `step_s`, the median of the seconds from the end of a step to the end of the
    next; `step_s_least` and `step_s_most`; `cpu_s`, the CPU seconds of this
    process a step, a mean.
  """
  first, ahead = run(), run()
  wait(first)
  seconds, cpu_begin, begin = [], time.process_time(), time.perf_counter()
  for _ in range(steps):
    current, ahead = ahead, run()
    wait(current)
    now = time.perf_counter()
    seconds.append(now - begin)
    begin = now
  cpu_s = (time.process_time() - cpu_begin) / steps
  wait(ahead)
  return {
    'step_s': float(np.median(seconds)),
    'step_s_least': min(seconds),
    'step_s_most': max(seconds),
    'cpu_s': cpu_s,
  }
