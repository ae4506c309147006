"""One line that says how far a long work is."""

import sys
import time

from alpro_jax.data.manifest import REPORT


class Progress:
  """One line: done, rate, skipped, time left. And the first skipped items."""

  def __init__(self, total, out=None, named=100, every_s=None, unit='clips'):
    self._unit = unit
    self._total = total
    self._out = out or sys.stderr
    self._live = self._out.isatty()
    self._every = every_s or (0.2 if self._live else 10.0)
    self._named = named
    self._start = self._last = time.monotonic()
    self._made = self._done = self._skipped = 0

  def found(self, items, skipped):
    """Counts items that an earlier run did."""
    self._done += items
    self._skipped += skipped

  def item(self, skipped=None):
    self._done += 1
    self._made += 1
    if skipped is not None:
      self._skipped += 1
      self.name(skipped)
    if time.monotonic() - self._last > self._every:
      self.line()

  def name(self, skipped):
    """Says which item is skipped and why, for the first hundred."""
    self._named -= 1
    if self._named >= 0:
      self._say(
        f'skipped {skipped.item!r}: {skipped.reason}'
        + (f' ({skipped.detail})' if skipped.detail else '')
      )
    elif self._named == -1:
      self._say(f'more are skipped; all are named in {REPORT}')

  def line(self):
    self._last = time.monotonic()
    rate = self._made / max(self._last - self._start, 1e-9)
    left = (self._total - self._done) / rate if rate else 0
    text = (
      f'{self._done}/{self._total} {self._unit}, {rate:.1f}/s, '
      f'{self._skipped} skipped, {int(left // 60)} min '
      f'{int(left % 60):02} s left'
    )
    if self._live:
      self._out.write(f'\r{text}\x1b[K')
      self._out.flush()
    else:
      self._say(text)

  def _say(self, text):
    start, end = ('\r\x1b[K', '\n') if self._live else ('', '\n')
    self._out.write(f'{start}{text}{end}')
    self._out.flush()

  def close(self):
    self.line()
    if self._live:
      self._out.write('\n')
