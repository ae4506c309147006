"""What the worker processes of test_prepare.py run."""

import os
import signal
import time


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
  if isinstance(item, float):
    time.sleep(item)
    return item
  if isinstance(item, bytes):
    return item
  return item * factor
