"""Processes that may hang or crash, and a parent that outlives them.

A decoder in C can loop for ever or take the process down. So every worker is a
process of its own with one pipe, and a thread of the parent gives it items one
by one, kills it when it is late, starts another, and names the item.

Late is who worked too long, not who began long ago: a machine that sleeps, a
process that is stopped, and cores that are busy with others cost no item. That
is why this is no pool of a library.
"""

import contextlib
import ctypes
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from multiprocessing import connection
from typing import NamedTuple

import psutil

_START_SECONDS = 120
_USUAL_SECONDS = 120  # For an item; for more it has to ask, see `allow`.
_LOOK_SECONDS = 0.25
_MAX_BYTES = 1 << 29  # Of results that wait for their turn, by their `size`; about.
# How often the worker of an item may die while it starts, crash, and be killed.
_STARTS, _CRASHES, _KILLS = 3, 2, 4
_WAITING = (psutil.STATUS_SLEEPING, psutil.STATUS_DISK_SLEEP)
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

MACHINE = 'lost by this machine'  # Reason of what is no fault of the item.

_pipe = None  # In a worker, to its parent.


def machine_problem(path, error):
  """Returns why this machine is to blame for an error in reading a file; '' if it is not."""
  while error is not None:
    if isinstance(error, MemoryError):
      return 'out of memory, or the file asks for more than there is'
    error = error.__cause__
  if os.path.isfile(path):
    try:
      with open(path, 'rb') as file:
        while file.read(1 << 22):
          pass
    except OSError as e:
      return str(e.strerror)
  return ''


def environment():
  """Returns the environment of a Python process that imports nothing of the current folder.

  That may be a folder of videos: a file in it called av.py would run. What else
  PYTHONPATH has is kept.
  """
  root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
  paths = [root] + [
    path
    for path in os.environ.get('PYTHONPATH', '').split(os.pathsep)
    if os.path.isabs(path) and os.path.exists(path) and not os.path.samefile(path, os.curdir)
  ]
  return {**os.environ, 'PYTHONSAFEPATH': '1', 'PYTHONPATH': os.pathsep.join(paths)}


@contextlib.contextmanager
def environment_of_children():
  """Gives it to every process that is started within, by any library."""
  before, ours = dict(os.environ), environment()
  os.environ.update(ours)
  try:
    yield
  finally:
    for name in ours.keys() - before.keys():
      del os.environ[name]
    os.environ.update(before)


class Lost(NamedTuple):
  """An item that gave no result."""

  reason: str  # 'time-out', 'decoder crashed' or MACHINE.
  detail: str  # How long, or how it ended.


def allow(seconds):
  """Lets the item that this worker is at take longer, unless the user has set a limit."""
  if _pipe is not None:
    _pipe.send(('allow', seconds))


def run_in_order(target, settings, items, *, workers, timeout_s=None):
  """Maps items through a function in worker processes.

  Args:
    target: 'package.module:function', called as function(item, **settings)
      in the worker; item, settings and result are pickled.
    settings: dict.
    items: list.
    workers: number of processes.
    timeout_s: longest time for one item, in seconds that its worker computes
      or waits; None is 120, and what the item asks for by `allow`.
  Yields:
    The result or a Lost for each item, in the order of the items.
  """
  workers = min(workers, len(items))
  run = _Run((target, settings), items, workers, timeout_s)
  threads = [threading.Thread(target=run.serve, daemon=True) for _ in range(workers)]
  for thread in threads:
    thread.start()
  try:
    for index in range(len(items)):
      yield run.take(index)
  finally:
    with run.changed:
      run.closed = True
      run.changed.notify_all()
    for thread in threads:
      thread.join()


class _Run:
  """What the threads share: items to come, and results that wait for their turn."""

  def __init__(self, job, items, workers, timeout_s):
    self.job, self.timeout_s, self.closed = job, timeout_s, False
    self.changed = threading.Condition()
    self._items, self._workers = enumerate(items), workers
    self._results, self._bytes = {}, 0
    self._free, self._one_by_one = threading.Semaphore(workers), threading.Lock()

  def take(self, index):
    """Returns a result when it is there, or raises what ended the run."""
    with self.changed:
      self.changed.wait_for(lambda: index in self._results)
      result = self._results.pop(index)
      self._bytes -= getattr(result, 'size', 0)
      self.changed.notify_all()
    if isinstance(result, BaseException):
      raise result
    return result

  def serve(self):
    """Body of a thread."""
    worker = _Worker(self)
    for index, item in iter(self._next, None):
      try:
        result = self._try(worker, item)
      except BaseException as e:
        result = e
      with self.changed:
        self._results[index] = result
        self._bytes += getattr(result, 'size', 0)
        self.changed.notify_all()
    worker.close()

  def _next(self):
    """Returns (index, item) when there is room for a result; None at the end."""
    with self.changed:
      self.changed.wait_for(lambda: self.closed or self._bytes < _MAX_BYTES)
      return None if self.closed else next(self._items, None)

  def _try(self, worker, item):
    """Returns the result of an item, or Lost."""
    deaths = Counter()
    while not self.closed:
      try:
        # What was killed is tried again with all memory: alone.
        with self._at_work(self._workers if deaths['killed'] else 1):
          return worker.ask(item)
      except TimeoutError as e:
        worker.close()
        return Lost('time-out', f'more than {e} s; --timeout_s allows more')
      except (EOFError, OSError, psutil.Error):
        code = worker.close()
        if code is None:  # There are no more processes or files to be had.
          raise
      how = f'signal {-code}' if code < 0 else f'exit code {code}'
      death = 'crashed' if -code not in _FROM_OUTSIDE else 'killed'
      deaths[death if worker.ready else 'starting'] += 1
      # Not lost at once: what struck may be no fault of the item.
      if deaths['starting'] == _STARTS:
        raise RuntimeError(f'Workers die while they start ({how}).')
      if deaths['crashed'] == _CRASHES:
        return Lost('decoder crashed', how)
      if deaths['killed'] == _KILLS:
        why = f'its process was killed {_KILLS} times ({how}), as is done when memory is short'
        return Lost(MACHINE, f'{why}; --workers=1 needs least')

  @contextlib.contextmanager
  def _at_work(self, count):
    """Holds the right of so many workers to work."""
    with self._one_by_one:  # Else two who want all would wait for each other.
      for _ in range(count):
        self._free.acquire()
    try:
      yield
    finally:
      self._free.release(count)


class _Worker:
  """A process; when it has died, the next item gets another."""

  def __init__(self, run):
    self._run, self._process = run, None

  def ask(self, item):
    """Returns the result of an item; TimeoutError says its limit in seconds."""
    own = self._run.timeout_s
    usual = limit = _USUAL_SECONDS if own is None else own
    if not self._process:
      self._start()
      limit = _START_SECONDS
    self._pipe.send(item)
    worked, looked, cpu = 0.0, time.monotonic(), self._cpu_seconds()
    while True:
      if self._pipe.poll(_LOOK_SECONDS):
        kind, value = self._pipe.recv()
        if kind == 'result':
          return value
        if kind == 'failed':
          raise RuntimeError(f'A worker cannot start: {value}')
        if kind == 'ready':
          self.ready, limit, worked = True, usual, 0.0
        elif own is None:
          limit = max(limit, usual + value)
        continue
      if self._run.closed:
        raise EOFError
      # One that computes is charged what it computed. One that waits, for a
      # disk or for ever, is charged the time; but not for longer than there is
      # between two looks: if nobody looked, the machine slept, or the parent.
      now, before, cpu = time.monotonic(), cpu, self._cpu_seconds()
      waited = min(now - looked, 2 * _LOOK_SECONDS) if self._usage.status() in _WAITING else 0.0
      worked, looked = worked + max(waited, cpu - before), now
      if worked > limit:
        if not self.ready:
          raise RuntimeError(f'A worker did not start within {limit} s.')
        raise TimeoutError(f'{round(limit, 1):g}')

  def _cpu_seconds(self):
    return sum(self._usage.cpu_times()[:2])

  def _start(self):
    self.ready = False
    self._pipe, theirs = connection.Pipe()
    with theirs:
      self._process = subprocess.Popen(
        [sys.executable, '-c', f'import {__name__} as w; w.work({theirs.fileno()}, {os.getpid()})'],
        env={**environment(), 'OMP_NUM_THREADS': '1'},
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the parent alone.
      )
    self._usage = psutil.Process(self._process.pid)
    self._pipe.send(self._run.job)

  def close(self):
    """Ends the process, if there is one; returns its exit code."""
    process, self._process = self._process, None
    if process:
      self._pipe.close()
      process.kill()
      return process.wait()


def work(fd, parent):
  """Body of a worker process: file descriptor of its pipe, process id of its parent."""
  global _pipe
  with contextlib.suppress(OSError, AttributeError):
    # Die with the parent, even in the middle of a call into C.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
  if os.getppid() != parent:
    return
  _pipe = connection.Connection(fd)
  with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
    _serve(*_pipe.recv())  # Until the parent leaves.


def _serve(target, settings):
  """Gives the results of a function to the parent, for ever."""
  try:
    module, name = target.split(':')
    function = getattr(importlib.import_module(module), name)
  except Exception as e:
    return _pipe.send(('failed', f'{type(e).__name__}: {e}'))
  _pipe.send(('ready', None))
  while True:
    _pipe.send(('result', function(_pipe.recv(), **settings)))
