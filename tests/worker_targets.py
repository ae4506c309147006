"""What the worker processes of test_prepare.py run."""

import os
import signal
import subprocess
import tempfile
import time

from alpro_jax.data import workers


def compute(seconds):
  """Computes so long by the clock of this process, however busy others are."""
  end = time.process_time() + seconds
  while time.process_time() < end:
    pass


def ask_for(allowed, seconds):
  workers.allow(allowed)
  time.sleep(seconds)
  return seconds


def stop(seconds):
  """Stands still so long, as on a machine that sleeps."""
  subprocess.Popen(['sh', '-c', f'sleep {seconds}; kill -CONT {os.getpid()}'])
  os.kill(os.getpid(), signal.SIGSTOP)
  return 'woken'


def busy(folder):
  mark = tempfile.mkstemp(dir=folder, prefix='busy')[1]
  time.sleep(0.05)
  os.unlink(mark)
  return 'done'


def killed(folder, times):
  """Is killed so often, as by the kernel; then says how many are busy."""
  tempfile.mkstemp(dir=folder, prefix='try')
  time.sleep(0.05)
  names = os.listdir(folder)
  if sum(name.startswith('try') for name in names) <= times:
    os.kill(os.getpid(), signal.SIGKILL)
  return sum(name.startswith('busy') for name in names)


ACTIONS = {'compute': compute, 'ask for': ask_for, 'stop': stop, 'busy': busy, 'killed': killed}


def act(item, factor):
  if item == 'hang':
    time.sleep(1000)
  if item == 'crash':
    os.kill(os.getpid(), signal.SIGSEGV)
  if item == 'exit':
    os._exit(3)
  if isinstance(item, str) and item.startswith('crash once '):
    path = item.removeprefix('crash once ')
    if not os.path.exists(path):
      open(path, 'w').close()
      os._exit(4)
    return 'recovered'
  if isinstance(item, tuple):
    return ACTIONS[item[0]](*item[1:])
  if isinstance(item, float):
    time.sleep(item)
    return item
  if isinstance(item, bytes):
    return item
  return item * factor
