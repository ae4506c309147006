"""The right to write at a place in a bucket, where no file can be locked."""

import json
import os
import socket
import threading
import time
import uuid

import psutil
from absl import logging

from alpro_jax import buckets

_SECONDS = 60.0  # Not renewed for so long, it is a dead process's.


class LeaseLost(buckets.BucketError):
  """Another process took the lease over: this one must write no more."""


class Lease:
  """The right to write below an address, held by one process at a time; a context.

  An object that is made only where there is none. Its owner rewrites it; one that has not
  been for some time, as seen by whoever waits, is a dead process's and is taken over. No
  two clocks are compared.
  """

  def __init__(self, address: str, refusal: str, *, seconds: float = 0.0):
    """Takes the lease, or waits until a dead one has run out.

    Args:
      address: of the object.
      refusal: the end of the ValueError if another process holds it, after 'process 7 on
        HOST '.
      seconds: without a sign of life after which its owner is dead; 0 is 60.
    Raises:
      ValueError: if it is renewed meanwhile.
    """
    self.address, self._seconds = address, seconds or _SECONDS
    self._mine = {'id': uuid.uuid4().hex, 'host': socket.gethostname(), 'process': os.getpid()}
    self._lost = ''
    while not self._take():
      self._wait_for_death(refusal)
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._renew, name='lease', daemon=True)
    self._thread.start()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._stop.set()
    self._thread.join()
    if self._owner() == self._mine['id']:
      buckets.remove(self.address)

  def check(self) -> None:
    """Raises LeaseLost if another process has taken the lease."""
    if self._lost:
      raise LeaseLost(self._lost)

  def _take(self):
    try:
      buckets.write(self.address, self._content(), new=True)
    except FileExistsError:
      return self._owner() == self._mine['id']  # A first try that did arrive.
    return True

  def _wait_for_death(self, refusal):
    seen, since = self._read(), time.monotonic()
    if seen is None:
      return
    told = json.loads(seen)
    if told['host'] != self._mine['host'] or psutil.pid_exists(told['process']):
      logging.warning(
        f'{self.address} is held by process {told["process"]} on {told["host"]}; if that gives '
        f'no sign of life for {self._seconds:.0f} s, it is taken over'
      )
      while time.monotonic() - since < self._seconds:
        time.sleep(min(self._seconds / 10, 2.0))
        if (now := self._read()) is None:
          return
        if now != seen:
          raise ValueError(f'process {told["process"]} on {told["host"]} {refusal}')
    buckets.remove(self.address)

  def _renew(self):
    renewed = time.monotonic()
    while not self._stop.wait(self._seconds / 4):
      try:
        if self._owner() != self._mine['id']:
          self._lost = (
            f'{self.address} is held by another process now: this one did not renew it for '
            f'{time.monotonic() - renewed:.0f} s, as of a machine that stood still. It writes '
            'nothing more there.'
          )
          logging.warning(self._lost)
          return
        buckets.write(self.address, self._content())
        renewed = time.monotonic()
      except OSError as error:
        logging.warning('%s; it is tried again', error)

  def _content(self):
    return json.dumps(self._mine | {'renewed': time.time()}).encode()

  def _read(self):
    try:
      return buckets.read(self.address)
    except FileNotFoundError:
      return None

  def _owner(self):
    return json.loads(self._read() or b'{}').get('id')
