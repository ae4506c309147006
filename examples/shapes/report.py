"""One page about a model: report.html for people, report.json for programs.

A part of the page without content is left out.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from alpro_jax import files
from alpro_jax.evaluation import page, pictures
from alpro_jax.evaluation.page import Search, Table
from examples.shapes.stages import Stage

TEMPLATES = pathlib.Path(__file__).parent / 'templates'


class Headline(NamedTuple):
  """One figure that answers a question.

  Attributes:
    key: its name among the figures.
    question: in plain words.
    meaning: one or two sentences: what it says and what chance is.
    target: what the figure should reach, None without one.
    chance: what a model that has learned nothing reaches, None if unclear.
    percent: whether it is a percentage.
  """

  key: str
  question: str
  meaning: str
  target: float | None = None
  chance: float | None = None
  percent: bool = True


class Region(NamedTuple):
  """A crop that was labelled.

  Attributes:
    frames: uint8[T, H, W, 3].
    region: bool[rows, columns] of patches.
    caption: that the model saw.
    labels: (entity, probability) of the prompter, most probable first.
    kept: whether training would use the label.
    answer: (entity, probability) of the model's first choice.
    truth: entities that are true of the clip, () if unknown.
  """

  frames: np.ndarray
  region: np.ndarray
  caption: str
  labels: Sequence[tuple[str, float]]
  kept: bool
  answer: tuple[str, float]
  truth: Sequence[str]

  @property
  def shown(self) -> np.ndarray:
    """The frames, faded outside the region."""
    return pictures.outline(self.frames, self.region)


class Curve(NamedTuple):
  """A scalar over the steps of a run; `level` is drawn as a dashed line."""

  name: str
  steps: Sequence[float]
  values: Sequence[float]
  level: float | None = None


@dataclasses.dataclass(frozen=True)
class Report:
  """Everything a page shows.

  Attributes:
    title: of the page.
    notes: paragraphs below the title: what was run, on what.
    warning: shown in a box on top, '' for none.
    figures: all of them, by name; written to report.json as they are.
    headlines: the figures to show first.
    best: searches that went well.
    worst: searches that did not.
    regions: labelled crops.
    entities: (entity, crops it was given to), most frequent first.
    comparison: a table that sets two models side by side.
    details: title -> table.
    curves: run -> its curves.
    stages: of the work, in order.
    files: what -> where.
    made: how the figures came about, as JSON; beside them in report.json.
  """

  title: str
  notes: Sequence[str] = ()
  warning: str = ''
  figures: Mapping[str, float] = dataclasses.field(default_factory=dict)
  headlines: Sequence[Headline] = ()
  best: Sequence[Search] = ()
  worst: Sequence[Search] = ()
  regions: Sequence[Region] = ()
  entities: Sequence[tuple[str, int]] = ()
  comparison: Table | None = None
  details: Mapping[str, Table] = dataclasses.field(default_factory=dict)
  curves: Mapping[str, Sequence[Curve]] = dataclasses.field(default_factory=dict)
  stages: Sequence[Stage] = ()
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)
  made: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def write(report: Report, folder) -> pathlib.Path:
  """Writes report.html and report.json; returns the path of the page.

  Raises:
    ValueError: if a figure is not a finite number.
  """
  bad = {k: v for k, v in report.figures.items() if not math.isfinite(v)}
  if bad:
    raise ValueError(f'figures {bad} are not finite; leave out what was not measured.')
  folder = pathlib.Path(folder)
  figures = {k: float(report.figures[k]) for k in sorted(report.figures)}
  made = {'made': report.made} if report.made else {}
  files.write_text(folder / 'report.json', json.dumps(made | figures, indent=1) + '\n')
  files.write_text(folder / 'report.html', render(report))
  return folder / 'report.html'


def render(report: Report) -> str:
  """Returns the page."""
  headlines = [
    (line, report.figures[line.key]) for line in report.headlines if line.key in report.figures
  ]
  curves = {run: [_plot(curve) for curve in curves] for run, curves in report.curves.items()}
  return page.render(
    'report.html',
    folders=(TEMPLATES,),
    title=report.title,
    report=report,
    headlines=headlines,
    curves=curves,
  )


def read_curves(
  folder, names: Sequence[str], levels: Mapping[str, float] | None = None
) -> list[Curve]:
  """Reads scalars from TensorBoard's files; of a step twice, the later one.

  Args:
    folder: with the event files.
    names: of the scalars, in the order wanted; absent ones are left out.
    levels: dashed lines, by name.
  """
  # Slow to import, and only for reports.
  from tensorboard.backend.event_processing import event_file_loader
  from tensorboard.util import tensor_util

  points = {name: {} for name in names}
  for path in sorted(pathlib.Path(folder).glob('*tfevents*')):
    for event in event_file_loader.EventFileLoader(str(path)).Load():
      for value in event.summary.value if event.HasField('summary') else ():
        if value.tag in points and value.HasField('tensor'):
          number = tensor_util.make_ndarray(value.tensor)
          points[value.tag][event.step] = float(number)
  return [
    Curve(name, *zip(*sorted(found.items()), strict=True), level=(levels or {}).get(name))
    for name, found in points.items()
    if found
  ]


def _plot(curve):
  """Where a curve goes in a drawing of 270 x 150, and what stands beside.

  Both axes start at 0, the upper one lower if a value is.
  """
  steps, values = np.asarray(curve.steps), np.asarray(curve.values)
  shown = [0.0, *values, *([] if curve.level is None else [curve.level])]
  low, high = min(shown), max(shown)
  if high - low < 1e-9:
    high = low + 1
  first, last = 0, max(steps.max(), 1)

  def up(value):
    return f'{130 - 122 * (value - low) / (high - low):.1f}'

  across = 40 + 224 * (steps - first) / (last - first)
  return {
    'name': curve.name.removeprefix('train/'),
    'final': f'{values[-1]:.3g}',
    'points': ' '.join(f'{x:.1f},{up(y)}' for x, y in zip(across, values, strict=True)),
    'ends': [(up(value), f'{value:.3g}') for value in (low, high)],
    'level': None if curve.level is None else up(curve.level),
    'first': f'{first:.0f}',
    'last': f'{last:.0f}',
  }
