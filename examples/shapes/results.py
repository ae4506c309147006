"""Writes docs/results.md from the reports of finished demos.

  PJRT_NPROC=2 make demo SEED=1 OUTPUT=runs/seed1
  cp runs/seed1/report.json docs/results/seed1.json
  python -m examples.shapes.results

The page has a column for each report.json in docs/results/. The first report of a seed,
by the names of the files, stands for it; another one of the same seed, from another
machine say, stands beside it, with how far it differs, and does not count in the means.
All wording is in templates/results.md, all figures are from the reports.
"""

import json
import pathlib
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from alpro_jax import files
from alpro_jax.evaluation import page
from examples.shapes.report import TEMPLATES
from examples.shapes.stages import ROOT
from launch import command

# Of (value, low, high) of two figures; without an interval all three are the value.
TESTS = {
  'more': lambda a, b: a[0] > b[0],
  'apart': lambda a, b: a[1] > b[2],
  'within': lambda a, b: b[1] <= a[0] <= b[2],
}


class Run(NamedTuple):
  """A demo: its name on the page, how it was made, its figures, whether its seed was met before."""

  title: str
  made: Mapping[str, Any]
  figures: Mapping[str, float]
  repeats: bool

  @property
  def minutes(self) -> float:
    """All stages of the demo, by the clock."""
    return sum(v for k, v in self.figures.items() if k.startswith('seconds.')) / 60


def read(folder) -> list[Run]:
  """Reads the reports of a folder, in the order of seeds and names.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if one was made with --quick, or does not say how it was made.
  """
  reports = []
  for path in sorted(pathlib.Path(folder).glob('*.json')):
    figures = json.loads(path.read_text())
    made = figures.pop('made', None)
    if made is None:
      raise ValueError(
        f'{path} does not say how it was made (`made`): it is of an older demo, or of none. '
        'Make the demo again with the present code.'
      )
    if made['quick']:
      raise ValueError(f'{path} was made with --quick: its figures mean nothing; take it away.')
    reports.append((made, figures))
  if not reports:
    raise FileNotFoundError(
      f'{folder} has no reports (*.json); copy report.json of finished demos there.'
    )
  runs, met = [], []
  for made, figures in sorted(reports, key=lambda report: report[0]['seed']):
    times = met.count(seed := made['seed'])
    title = f'seed {seed}' + (' again' if times else '') + (f' ({times})' if times > 1 else '')
    runs.append(Run(title, made, figures, bool(times)))
    met.append(seed)
  return runs


def render(runs: Sequence[Run]) -> str:
  """Returns the page, as Markdown."""
  template = page.environment(TEMPLATES).overlay(autoescape=False).get_template('results.md')
  text = template.render(of=Figures(runs), runs=runs, median=statistics.median)
  return re.sub('\n{3,}', '\n\n', text).strip() + '\n'


class Figures:
  """What the template asks about the figures of all runs; `of` there."""

  def __init__(self, runs: Sequence[Run]):
    self.runs = runs
    self.first = [run for run in runs if not run.repeats]
    self.repeats = [run for run in runs if run.repeats]
    self.missing: list[str] = []  # What was asked for and is not there, in words.
    self._shown: dict[str, list[str]] = {}  # Table -> keys of its rows.

  def differing(self) -> list[str]:
    """Names what is not the same for all runs and should be."""
    return [
      name
      for name in ('code', 'versions')
      if any(run.made[name] != self.runs[0].made[name] for run in self.runs)
    ]

  def head(self, label: str) -> str:
    """Returns the first two lines of a table; `row` gives the others."""
    titles = [label]
    for run in self.runs:
      titles += [run.title, 'differs by'] if run.repeats else [run.title]
    if len(self.first) > 1:
      titles.append('mean of seeds (least–most)')
    return _line(titles) + '\n' + _line(['---', *['---:'] * (len(titles) - 1)])

  def row(self, table: str, label: str, key: str) -> str:
    """Returns a figure in all runs, with intervals where there are some, and its mean."""
    self._shown.setdefault(table, []).append(key)
    cells, own = [label], None
    for run in self.runs:
      value = run.figures.get(key)
      if value is None:
        self.missing.append(f'{label} ({run.title})')
      cells.append('–' if value is None else f'{value:.1f}{self._interval(run, key)}')
      if run.repeats:
        cells.append('–' if None in (value, own) else _signed(value - own))
      else:
        own = value
    if len(self.first) > 1:
      cells.append(self.mean(key, spread=True))
    return _line(cells)

  def mean(self, key: str, spread: bool = False, *, digits: int = 1, times: float = 1) -> str:
    """Returns the mean of the seeds, with the least and the most if these are asked for."""
    values = [times * value for value in self._values(key)]
    if not values:
      return '–'
    least, most = f'{min(values):.{digits}f}', f'{max(values):.{digits}f}'
    ends = f' ({least}–{most})' if spread and least != most else ''
    return f'{statistics.mean(values):.{digits}f}{ends}'

  def varies(self) -> list[tuple[str, list[float], list[float]]]:
    """Returns (table, spread of each of its figures over the seeds, differences of repeats)."""
    found = []
    for table, keys in self._shown.items():
      spreads = [max(x) - min(x) for x in map(self._values, keys) if len(x) > 1]
      found.append((table, spreads, [abs(x) for key in keys for x in self._differences(key)]))
    return found

  def says(self, test: str, a: str | float, b: str | float) -> str:
    """Says in how many runs a test of TESTS holds, of those that have both figures."""
    count, of = self._count(test, a, b)
    if not of:
      return 'not measured'
    everywhere = {1: 'in the one run', 2: 'in both runs'}.get(of, f'in all {of} runs')
    return everywhere if count == of else f'in {count or "none"} of {of} runs'

  def always(self, test: str, a: str | float, b: str | float) -> bool:
    """Whether it holds in all runs."""
    count, of = self._count(test, a, b)
    return count == of == len(self.runs)

  def _values(self, key):
    return [run.figures[key] for run in self.first if key in run.figures]

  def _differences(self, key):
    for run in self.repeats:
      own = next(x for x in self.first if x.made['seed'] == run.made['seed'])
      if key in run.figures and key in own.figures:
        yield run.figures[key] - own.figures[key]

  def _interval(self, run, key):
    ends = [run.figures.get(f'{key}_{end}') for end in ('low', 'high')]
    return '' if None in ends else f' ({ends[0]:.0f}–{ends[1]:.0f})'

  def _count(self, test, a, b):
    """Returns for how many runs a test holds, and how many have both figures."""

    def ends(run, key):
      if not isinstance(key, str):
        return (key,) * 3
      value = run.figures[key]
      return value, *(run.figures.get(f'{key}_{end}', value) for end in ('low', 'high'))

    keys = [key for key in (a, b) if isinstance(key, str)]
    asked = [run for run in self.runs if all(key in run.figures for key in keys)]
    return sum(TESTS[test](ends(run, a), ends(run, b)) for run in asked), len(asked)


def _line(cells):
  return '| ' + ' | '.join(cells) + ' |'


def _signed(value):
  text = f'{value:+.1f}'
  return '0.0' if text in ('+0.0', '-0.0') else text.replace('-', '−')


def main() -> None:
  runs, output = read(flags.FLAGS.reports), pathlib.Path(flags.FLAGS.output)
  files.write_text(output, render(runs))
  print(f'Written: {output}, of {len(runs)} reports.')


if __name__ == '__main__':
  # Here, so that tests may import this beside commands with flags of these names.
  flags.DEFINE_string(
    'reports', str(ROOT / 'docs' / 'results'), 'Folder of report.json of demos, by other names.'
  )
  flags.DEFINE_string('output', str(ROOT / 'docs' / 'results.md'), 'The page.')
  command.run(main)
