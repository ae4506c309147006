"""What a run writes to disk goes on into a bucket."""

import contextlib
import pathlib
import threading
from collections.abc import Callable

from absl import logging

from alpro_jax import buckets
from alpro_jax.lease import Lease, LeaseLost

_EVERY = 10.0  # Seconds between uploads.


class Mirror:
  """A folder of this machine whose files are uploaded while they are written; a context.

  Leaving it uploads what is left. An upload that fails is logged and tried again; the last
  one raises.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    address: str,
    lease: Lease,
    stays: Callable[[pathlib.PurePath], bool],
  ):
    """`stays` says which relative paths are not uploaded, nor removed there."""
    self._folder, self._address, self._lease, self._stays = folder, address, lease, stays
    self._sent: dict[str, tuple[int, int]] = {}
    self._stop, self._lock = threading.Event(), threading.Lock()
    self._thread = threading.Thread(target=self._run, name='mirror', daemon=True)

  def __enter__(self):
    self._sent = self._here()
    self._thread.start()
    return self

  def __exit__(self, *_):
    self._stop.set()
    self._thread.join()
    self.send()

  def send(self) -> None:
    """Uploads what has changed, and removes what is gone.

    Raises:
      LeaseLost: if another process writes at the address by now.
      buckets.BucketError: if the bucket refuses.
    """
    with self._lock:
      self._lease.check()
      here = self._here()
      gone, changed = self._sent.keys() - here.keys(), dict(here.items() - self._sent.items())
      # What says that others are there goes first, and comes last.
      for name in sorted(gone, key=buckets.is_last, reverse=True):
        buckets.remove(self._address, [name])
        del self._sent[name]
      for name in sorted(changed, key=buckets.is_last):
        with contextlib.suppress(FileNotFoundError):  # Gone already.
          buckets.upload(self._folder / name, f'{self._address}/{name}')
          self._sent[name] = changed[name]

  def _here(self):
    found = {}
    for path in self._folder.rglob('*'):
      with contextlib.suppress(FileNotFoundError):
        if path.is_file() and not self._stays(relative := path.relative_to(self._folder)):
          status = path.stat()
          found[str(relative)] = status.st_mtime_ns, status.st_size
    return found

  def _run(self):
    while not self._stop.wait(_EVERY):
      try:
        self.send()
      except LeaseLost:
        return
      except OSError as error:
        logging.warning('%s; it is tried again', error)
