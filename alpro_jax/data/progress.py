"""One line that says how far a long work is, how fast it goes, and how long it will take."""

import sys
import time
from collections.abc import Callable

_NAMED = 100  # Skipped items that are said; all of them are in the report.


class Progress:
  """Counts what is done; at most one line in `every_s` seconds, and one at the end.

  Args:
    total: how much there is to do.
    unit: what is counted.
    log: takes each line, as logging.info does; without it they go to stderr, where on a
      terminal each is written over the last.
    every_s: seconds from line to line; on a terminal 0.2.
    describe: seconds spent -> more to say in the line.
  """

  def __init__(
    self,
    total: int,
    unit: str = 'clips',
    *,
    log: Callable[[str], None] | None = None,
    every_s: float = 10.0,
    describe: Callable[[float], str] = lambda spent: '',
  ):
    self._total, self._unit, self._describe = total, unit, describe
    self._out, self._log = sys.stderr, log
    self._live = not log and self._out.isatty()
    self._every = 0.2 if self._live else every_s
    self._start = self._last = time.monotonic()
    self._earlier = self._shown = self._skipped = self._named = 0
    self.done = 0

  def found(self, count: int, skipped: int = 0) -> None:
    """Counts what an earlier run did."""
    self.done += count
    self._earlier += count
    self._skipped += skipped

  def add(self, count: int = 1, skipped=None) -> None:
    """Counts what was done now; one item may be skipped, an annotations.Skipped."""
    self.done += count
    if skipped is not None:
      self._skipped += 1
      self.name(skipped)
    now = time.monotonic()
    if self.done >= self._total or now - self._last > self._every:
      self._line(now)

  def name(self, skipped) -> None:
    """Says which item is skipped and why, for the first hundred."""
    self._named += 1
    if self._named <= _NAMED:
      detail = f' ({skipped.detail})' if skipped.detail else ''
      self.say(f'skipped {skipped.item!r}: {skipped.reason}{detail}')
    elif self._named == _NAMED + 1:
      self.say('more are skipped; all are named in the report')

  def say(self, text: str) -> None:
    """Writes a line of its own."""
    self._write(text, '\n')

  def close(self) -> None:
    if self._shown != self.done:
      self._line(time.monotonic())
    if self._live and self._shown:
      self._out.write('\n')

  def _line(self, now):
    self._last, self._shown = now, self.done
    spent = max(now - self._start, 1e-6)
    rate = (self.done - self._earlier) / spent
    left = int(max(self._total - self.done, 0) / rate) if rate else 0
    parts = [f'{self.done}/{self._total} {self._unit}', f'{rate:.1f}/s', self._describe(spent)]
    if self._skipped:
      parts.append(f'{self._skipped} skipped')
    parts.append(f'{left // 60} min {left % 60:02} s left')
    self._write(', '.join(filter(None, parts)), '' if self._live else '\n')

  def _write(self, text, end):
    if self._log:
      self._log(text)
      return
    self._out.write(f'\r\x1b[K{text}{end}' if self._live else f'{text}{end}')
    self._out.flush()
