"""From the files of finished rows to a page: means, and differences paired by seed."""

import json
import math
import pathlib
import statistics
from collections.abc import Callable, Mapping
from typing import NamedTuple

from scipy import stats

from examples.study import plan


class Interval(NamedTuple):
  """A mean over seeds and its 95 % interval, by Student's t; infinite for one seed."""

  mean: float
  half: float
  seeds: int

  @property
  def clear(self) -> bool:
    """Whether it leaves 0 out."""
    return abs(self.mean) > self.half


def interval(values) -> Interval:
  """Returns mean and 95 % interval of independent values."""
  values = list(values)
  if len(values) < 2:
    return Interval(values[0], math.inf, 1)
  error = statistics.stdev(values) / math.sqrt(len(values))
  return Interval(
    statistics.fmean(values), float(stats.t.ppf(0.975, len(values) - 1)) * error, len(values)
  )


def read(
  folder, world: str, digest: Callable[[str], str], *, quick: bool = False
) -> dict[str, dict[int, dict[str, float]]]:
  """Returns {row: {seed: figures}} of the finished rows of a world.

  Args:
    folder: of the results.
    world: its name.
    digest: row -> that of the present plan.
    quick: those of --quick may be among them.
  Raises:
    ValueError: if one was made by another plan, or with --quick.
  """
  found: dict[str, dict[int, dict[str, float]]] = {}
  for path in sorted(pathlib.Path(folder, world).glob('*.json')):
    made = json.loads(path.read_text())
    row = made['row']
    if made['made'].get('quick') and not quick:
      raise ValueError(f'{path} was made with --quick: its figures mean nothing; take it away.')
    if row not in plan.ROWS or made['plan'] != digest(row):
      raise ValueError(
        f'{path} was made by another plan; remove it, or undo what was changed in '
        'examples/study/plan.py.'
      )
    found.setdefault(row, {})[made['made']['seed']] = made['figures']
  return found


def differences(found: Mapping[str, Mapping[int, Mapping[str, float]]]) -> dict:
  """Returns {(row, metric): Interval} of the difference to the row that it is compared with."""
  result = {}
  for row, by_seed in found.items():
    beside = found.get(plan.BESIDE.get(row, 'alpro'), {})
    for metric in plan.METRICS:
      pairs = [
        figures[metric] - beside[seed][metric]
        for seed, figures in by_seed.items()
        if metric in figures and metric in beside.get(seed, {})
      ]
      if pairs and row != plan.BESIDE.get(row, 'alpro'):
        result[row, metric] = interval(pairs)
  return result


def write(found: Mapping, world: str) -> str:
  """Returns the page of a world, in Markdown."""
  rows = [row for row in plan.ROWS if row in found]
  differ = differences(found)
  lines = [
    f'## {world}',
    '',
    'In %, mean over seeds. Below it the difference to the row that it is compared with, paired '
    "by seed, with its 95 % interval (Student's t); bold where that leaves 0 out.",
    '',
  ]
  for start in range(0, len(rows), 4):
    shown = rows[start : start + 4]
    titles = [f'{plan.ROWS[row].title} ({len(found[row])})' for row in shown]
    lines += [f'| | {" | ".join(titles)} |', '|---|' + '---|' * len(shown)]
    for metric, title in plan.METRICS.items():
      cells = [_cell(found[row], metric, differ.get((row, metric))) for row in shown]
      if any(cells):
        lines.append(f'| {title} | {" | ".join(cells)} |')
    lines.append('')
  return '\n'.join(lines)


def _cell(by_seed, metric, difference):
  values = [figures[metric] for figures in by_seed.values() if metric in figures]
  if not values:
    return ''
  text = f'{statistics.fmean(values):.1f}'
  if difference is None:
    return text
  if difference.seeds < 2:
    return f'{text}<br>{difference.mean:+.1f} (one seed)'
  low, high = difference.mean - difference.half, difference.mean + difference.half
  apart = f'{difference.mean:+.1f} ({low:+.1f} to {high:+.1f})'
  return f'{text}<br>{f"**{apart}**" if difference.clear else apart}'
