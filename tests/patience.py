"""Time limits of tests, which grow with the load of the machine."""

import os


def seconds(limit: float) -> float:
  """Returns a limit for an idle machine, longer while others use its cores."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  return limit * max(1.0, os.getloadavg()[0] / cores)
