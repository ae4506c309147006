"""Processes that may hang or crash, and a parent that outlives them.

A decoder in C can loop for ever or take the process down. So every worker is
a process of its own with one pipe; the parent knows which item each works on,
kills a worker that is late, starts another, and names the item.

Late is who worked too long, not who began long ago: a machine that sleeps, a
process that is stopped, and cores that are busy with others cost no item.
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
from collections import Counter, deque
from multiprocessing import connection

_QUEUE_ITEMS = 16
_QUEUE_BYTES = 1 << 15  # Below a pipe's buffer, so that sending never waits.
_START_SECONDS = 120
_USUAL_SECONDS = 120  # For an item; for more it has to ask, see `allow`.
_LOOK_SECONDS = 0.25
_KILLS = 4  # So often the worker of an item may be killed.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

MACHINE = 'lost by this machine'  # Reason of what is no fault of the item.

_pipe = None  # In a worker, to its parent.


def machine_problem(path, error):
  """Returns why this machine, not a file, is to blame for an error, or ''.

  Args:
    path: of the file that was read.
    error: the exception that ended it.
  """
  while error is not None:
    if isinstance(error, MemoryError):
      return 'out of memory, or the file asks for more than there is'
    error = error.__cause__
  if not os.path.isfile(path):
    return ''
  try:
    with open(path, 'rb') as file:
      while file.read(1 << 22):
        pass
  except OSError as e:
    return str(e.strerror)
  return ''


def environment():
  """Returns the environment of a Python process that imports our code alone.

  Python looks for modules in the current folder first, which may be a folder
  of videos: a file in it called av.py would run. So neither Python itself nor
  PYTHONPATH may name that folder; what else PYTHONPATH has is kept.

  Returns:
    dict, for subprocess; alpro_jax can be imported in it.
  """
  root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
  given = os.environ.get('PYTHONPATH', '').split(os.pathsep)
  paths = [root] + [
    path
    for path in given
    if os.path.isabs(path) and os.path.exists(path) and not os.path.samefile(path, os.curdir)
  ]
  return {**os.environ, 'PYTHONSAFEPATH': '1', 'PYTHONPATH': os.pathsep.join(paths)}


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
  """An item that gave no result.

  Attributes:
    reason: 'time-out', 'decoder crashed' or MACHINE.
    detail: how long, or how it ended.
  """

  reason: str
  detail: str


@dataclasses.dataclass(frozen=True)
class _Allowance:
  seconds: float


def allow(seconds):
  """Lets the item at hand take so much longer than usual.

  Called by what runs in a worker. Elsewhere, and where the user has set a
  limit, it changes nothing.
  """
  if _pipe is not None:
    _pipe.send(_Allowance(seconds))


class _Worker:
  """One process; `queue` holds the (index, message) it has not answered."""

  def __init__(self, target, settings):
    self.pipe, theirs = connection.Pipe()
    self.process = subprocess.Popen(
      [
        sys.executable,
        '-c',
        f'import {__name__} as w; w.work()',
        str(theirs.fileno()),
        str(os.getpid()),
      ],
      env={**environment(), 'OMP_NUM_THREADS': '1'},
      pass_fds=[theirs.fileno()],
      stdin=subprocess.DEVNULL,
      start_new_session=True,
    )  # Ctrl-C is for the parent alone.
    theirs.close()
    self.pipe.send((target, settings))
    self.ready = False
    self.queue = deque()
    self.queued_bytes = 0
    self.begin(_START_SECONDS)

  def begin(self, limit):
    """Begins an item, which may take `limit` seconds."""
    self.limit, self.worked = limit, 0.0
    self._looked = time.monotonic()
    self._cpu, _ = _cpu_and_state(self.process.pid)

  def is_late(self):
    """Adds what it worked since the last look: does that pass the limit?

    A worker that computes is charged what it computed. One that waits, for a
    disk or for ever, is charged the time; but not for longer than there is
    between two looks: if nobody looked, the machine slept, or the parent.
    """
    passed = time.monotonic() - self._looked
    if passed >= _LOOK_SECONDS:
      before, self._looked = self._cpu, time.monotonic()
      self._cpu, state = _cpu_and_state(self.process.pid)
      waited = min(passed, 2 * _LOOK_SECONDS) if state in 'SD' else 0.0
      self.worked += max(waited, self._cpu - before)
    return self.worked > self.limit

  def has_room(self, message):
    return (
      self.ready
      and len(self.queue) < _QUEUE_ITEMS
      and (not self.queue or self.queued_bytes + len(message) < _QUEUE_BYTES)
    )

  def send(self, index, message, limit):
    if not self.queue:
      self.begin(limit)
    self.pipe.send_bytes(message)
    self.queue.append((index, message))
    self.queued_bytes += len(message)

  def receive(self, limit):
    """Returns (index, result) of the item at the head of the queue."""
    result = self.pipe.recv()
    if isinstance(result, _Allowance):
      return self.queue[0][0], result
    index, message = self.queue.popleft()
    self.queued_bytes -= len(message)
    self.begin(limit)
    return index, result

  def stop(self):
    self.pipe.close()
    self.process.kill()
    return self.process.wait()


def _cpu_and_state(pid):
  """Returns a process's seconds of CPU and its state, 'S' where it waits."""
  try:
    with open(f'/proc/{pid}/stat', 'rb') as file:
      fields = file.read().rpartition(b')')[2].split()
  except FileNotFoundError:  # No Linux; or it is gone, which is seen soon.
    return 0.0, 'S'
  ticks = int(fields[11]) + int(fields[12])
  return ticks / os.sysconf('SC_CLK_TCK'), fields[0].decode()


def run_in_order(target, settings, items, *, workers, timeout_s=None, window=64, max_bytes=1 << 29):
  """Maps items through a function in worker processes.

  Args:
    target: 'package.module:function', called as function(item, **settings)
      in the worker; item, settings and result are pickled.
    settings: dict.
    items: list.
    workers: number of processes.
    timeout_s: longest time for one item, in seconds that its worker computes
      or waits; None is 120, and what the item asks for by `allow`.
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
    yield from _run(pool, target, settings, items, timeout_s, window * len(pool), max_bytes)
  finally:
    for worker in pool:
      worker.stop()


def _run(pool, target, settings, items, timeout_s, window, max_bytes):
  again = deque()  # Items of a dead worker, before all new ones.
  crashes = Counter()
  killed = Counter()
  done = {}
  done_bytes = 0
  sent = 0
  turn = 0
  starts_failed = 0
  usual = _USUAL_SECONDS if timeout_s is None else timeout_s

  def replace(worker):
    """Puts a new worker in place; returns what the old one was given."""
    code = worker.stop()
    pool[pool.index(worker)] = _Worker(target, settings)
    return code, list(worker.queue)

  def must_wait():
    """What was killed is tried again with all memory: alone."""
    if not killed:
      return False
    at_work = {index for worker in pool for index, _ in worker.queue}
    return bool(at_work & killed.keys()) or bool(at_work and again and again[0][0] in killed)

  while turn < len(items):
    for worker in sorted(pool, key=lambda w: len(w.queue)):
      while not must_wait():
        if again:
          index, message = again[0]
        elif sent < len(items) and sent < turn + window and (done_bytes < max_bytes):
          index, message = sent, pickle.dumps(items[sent])
        else:
          break
        if not worker.has_room(message):
          break
        try:
          worker.send(index, message, usual)
        except OSError:
          break  # It died; seen below.
        if again:
          again.popleft()
        else:
          sent += 1

    ready = connection.wait([worker.pipe for worker in pool], timeout=_LOOK_SECONDS)
    for worker in list(pool):
      if worker.pipe in ready:
        try:
          if not worker.ready:
            failure = worker.pipe.recv()
            if failure:
              raise RuntimeError(f'A worker cannot start: {failure}')
            worker.ready = True
            starts_failed = 0
            worker.begin(usual)
            continue
          index, result = worker.receive(usual)
          if isinstance(result, _Allowance):
            if timeout_s is None:
              worker.limit = usual + result.seconds
            continue
        except (EOFError, OSError):
          was_ready = worker.ready
          code, queue = replace(worker)
          how = f'signal {-code}' if code < 0 else f'exit code {code}'
          if not was_ready:
            starts_failed += 1
            if starts_failed > 2:
              raise RuntimeError(f'Workers die while they start ({how}).') from None
          if not queue:
            continue
          # Only the head was worked on, and what struck may be no fault of it.
          index, message = queue[0]
          if -code in _FROM_OUTSIDE:
            killed[index] += 1
          else:
            crashes[index] += 1
          if killed[index] < _KILLS and crashes[index] < 2:
            again.extendleft(reversed(queue))
            continue
          again.extendleft(reversed(queue[1:]))
          result = Lost('decoder crashed', how)
          if crashes[index] < 2:
            result = Lost(
              MACHINE,
              (
                f'its process was killed {_KILLS} times ({how}), as is done '
                'when memory is short; --workers=1 needs least'
              ),
            )
        done[index] = result
        done_bytes += _size(result)
      elif (worker.queue or not worker.ready) and worker.is_late():
        if not worker.ready:
          raise RuntimeError(f'A worker did not start within {_START_SECONDS} s.')
        # The answer may have come while the parent was busy writing.
        if worker.pipe.poll():
          continue
        limit = f'{round(worker.limit, 1):g}'
        _, queue = replace(worker)
        index, _ = queue[0]
        again.extendleft(reversed(queue[1:]))
        done[index] = Lost('time-out', f'more than {limit} s; --timeout_s allows more')

    while turn in done:
      result = done.pop(turn)
      done_bytes -= _size(result)
      turn += 1
      yield result


def _size(result):
  return getattr(result, 'size', 0)


def work():
  """Body of a worker process: fd of the pipe, process id of the parent."""
  global _pipe
  fd, parent = int(sys.argv[1]), int(sys.argv[2])
  try:  # Die with the parent, even in the middle of a call into C.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
  except (OSError, AttributeError):
    pass
  if os.getppid() != parent:
    return
  pipe = _pipe = connection.Connection(fd)
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
