"""Processes that may hang or crash, and a parent that outlives them.

A decoder in C can loop for ever or take the process down. So every worker is
a process of its own with one pipe; the parent knows which item each works on,
kills a worker that is late, starts another, and names the item.
"""

import contextlib
import ctypes
import dataclasses
import importlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import deque
from multiprocessing import connection

_QUEUE_ITEMS = 16
_QUEUE_BYTES = 1 << 15  # Below a pipe's buffer, so that sending never waits.
_START_SECONDS = 120


def environment():
  """Returns the environment of a Python process that imports our code alone.

  Python looks for modules in the current folder first, which may be a folder
  of videos: a file in it called av.py would run. So neither Python itself nor
  PYTHONPATH may name that folder; what else PYTHONPATH has is kept.

  Returns:
    dict, for subprocess; alpro_jax can be imported in it.
  """
  root = os.path.dirname(os.path.dirname(os.path.dirname(
      os.path.abspath(__file__))))
  given = os.environ.get('PYTHONPATH', '').split(os.pathsep)
  paths = [root] + [
      path for path in given if os.path.isabs(path) and os.path.exists(path)
      and not os.path.samefile(path, os.curdir)]
  return {**os.environ, 'PYTHONSAFEPATH': '1',
          'PYTHONPATH': os.pathsep.join(paths)}


@contextlib.contextmanager
def environment_of_children():
  """Gives it to every process that is started within, by any library."""
  ours = environment()
  names = 'PYTHONSAFEPATH', 'PYTHONPATH'
  before = {name: os.environ[name] for name in names if name in os.environ}
  os.environ.update({name: ours[name] for name in names})
  try:
    yield
  finally:
    for name in names:
      del os.environ[name]
    os.environ.update(before)


@dataclasses.dataclass(frozen=True)
class Lost:
  """An item that gave no result: 'time-out' or 'decoder crashed'."""
  reason: str
  detail: str


class _Worker:
  """One process; `queue` holds the (index, message) it has not answered."""

  def __init__(self, target, settings):
    self.pipe, theirs = connection.Pipe()
    self.process = subprocess.Popen(
        [sys.executable, '-c', f'import {__name__} as w; w.work()',
         str(theirs.fileno()), str(os.getpid())],
        env={**environment(), 'OMP_NUM_THREADS': '1'},
        pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
        start_new_session=True)  # Ctrl-C is for the parent alone.
    theirs.close()
    self.pipe.send((target, settings))
    self.ready = False
    self.queue = deque()
    self.queued_bytes = 0
    self.since = time.monotonic()

  def has_room(self, message):
    return self.ready and len(self.queue) < _QUEUE_ITEMS and (
        not self.queue or self.queued_bytes + len(message) < _QUEUE_BYTES)

  def send(self, index, message):
    if not self.queue:
      self.since = time.monotonic()
    self.pipe.send_bytes(message)
    self.queue.append((index, message))
    self.queued_bytes += len(message)

  def receive(self):
    """Returns (index, result) of the item at the head of the queue."""
    result = self.pipe.recv()
    index, message = self.queue.popleft()
    self.queued_bytes -= len(message)
    self.since = time.monotonic()
    return index, result

  def stop(self):
    self.pipe.close()
    self.process.kill()
    return self.process.wait()


def run_in_order(target, settings, items, *, workers, timeout_s,
                 window=64, max_bytes=1 << 29):
  """Maps items through a function in worker processes.

  Args:
    target: 'package.module:function', called as function(item, **settings)
      in the worker; item, settings and result are pickled.
    settings: dict.
    items: list.
    workers: number of processes.
    timeout_s: longest time for one item, in seconds.
    window: how many items per worker may be finished before their turn.
    max_bytes: about how many bytes of such results are held in memory.
  Yields:
    The result or a Lost for each item, in the order of the items.
  """
  total = len(items)
  if not total:
    return
  pool = [_Worker(target, settings) for _ in range(min(workers, total))]
  try:
    yield from _run(pool, target, settings, items, timeout_s,
                    window * len(pool), max_bytes)
  finally:
    for worker in pool:
      worker.stop()


def _run(pool, target, settings, items, timeout_s, window, max_bytes):
  again = deque()  # Items of a dead worker, before all new ones.
  crashes = {}
  done = {}
  done_bytes = 0
  sent = 0
  turn = 0
  starts_failed = 0

  def replace(worker):
    """Puts a new worker in place; returns what the old one was given."""
    code = worker.stop()
    pool[pool.index(worker)] = _Worker(target, settings)
    return code, list(worker.queue)

  while turn < len(items):
    for worker in sorted(pool, key=lambda w: len(w.queue)):
      while True:
        if again:
          index, message = again[0]
        elif sent < len(items) and sent < turn + window and (
            done_bytes < max_bytes):
          index, message = sent, pickle.dumps(items[sent])
        else:
          break
        if not worker.has_room(message):
          break
        try:
          worker.send(index, message)
        except OSError:
          break  # It died; seen below.
        if again:
          again.popleft()
        else:
          sent += 1

    now = time.monotonic()
    limits = [worker.since + (timeout_s if worker.ready else _START_SECONDS)
              for worker in pool if worker.queue or not worker.ready]
    patience = max(0.0, min(limits, default=now + 1) - now)
    ready = connection.wait([worker.pipe for worker in pool],
                            timeout=patience + .001)
    for worker in list(pool):
      if worker.pipe in ready:
        try:
          if not worker.ready:
            failure = worker.pipe.recv()
            if failure:
              raise RuntimeError(f'A worker cannot start: {failure}')
            worker.ready = True
            starts_failed = 0
            worker.since = time.monotonic()
            continue
          index, result = worker.receive()
        except (EOFError, OSError):
          was_ready = worker.ready
          code, queue = replace(worker)
          how = f'signal {-code}' if code < 0 else f'exit code {code}'
          if not was_ready:
            starts_failed += 1
            if starts_failed > 2:
              raise RuntimeError(
                  f'Workers die while they start ({how}).') from None
          if not queue:
            continue
          # Only the head was worked on. Out of memory can strike anyone,
          # so it gets a second chance.
          index, message = queue[0]
          crashes[index] = crashes.get(index, 0) + 1
          if crashes[index] < 2:
            again.extendleft(reversed(queue))
            continue
          again.extendleft(reversed(queue[1:]))
          result = Lost('decoder crashed', how)
        done[index] = result
        done_bytes += _size(result)
      elif time.monotonic() > worker.since + (
          timeout_s if worker.ready else _START_SECONDS):
        if not worker.ready:
          raise RuntimeError(
              f'A worker did not start within {_START_SECONDS} s.')
        # The answer may have come while the parent was busy writing.
        if not worker.queue or worker.pipe.poll():
          continue
        _, queue = replace(worker)
        index, _ = queue[0]
        again.extendleft(reversed(queue[1:]))
        done[index] = Lost('time-out', f'more than {timeout_s:g} s')

    while turn in done:
      result = done.pop(turn)
      done_bytes -= _size(result)
      turn += 1
      yield result


def _size(result):
  return getattr(result, 'size', 0)


def work():
  """Body of a worker process: fd of the pipe, process id of the parent."""
  fd, parent = int(sys.argv[1]), int(sys.argv[2])
  try:  # Die with the parent, even in the middle of a call into C.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
  except (OSError, AttributeError):
    pass
  if os.getppid() != parent:
    return
  pipe = connection.Connection(fd)
  try:
    target, settings = pipe.recv()
  except (EOFError, OSError):
    return
  try:
    module, name = target.split(':')
    function = getattr(importlib.import_module(module), name)
  except Exception as e:
    failure = f'{type(e).__name__}: {e}'
  else:
    failure = ''
  try:
    pipe.send(failure)
  except OSError:
    return
  while not failure:
    try:
      message = pipe.recv_bytes()
    except (EOFError, OSError):
      return
    result = function(pickle.loads(message), **settings)
    try:
      pipe.send(result)
    except OSError:
      return
