"""One page about a model: report.html for people, report.json for programs.

The page stands alone: style, curves and pictures are inside the file, nothing
is fetched, every text is escaped. A part without content is left out.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from alpro_jax import files
from alpro_jax.evaluation import page
from alpro_jax.evaluation.page import Table, film_strip, format_figure, image
from alpro_jax.evaluation.page import escape as _


class Headline(NamedTuple):
  """One figure that answers a question.

  Attributes:
    key: its name among the figures.
    question: in plain words.
    meaning: one or two sentences: what it says and what would be nothing.
    target: what the figure should reach, None without one.
    nothing: what knowing nothing would give, None if that is unclear.
    percent: whether it is a percentage.
  """

  key: str
  question: str
  meaning: str
  target: float | None = None
  nothing: float | None = None
  percent: bool = True


class Clip(NamedTuple):
  """A clip to show: uint8[T, H, W, 3] and a line about it."""

  frames: np.ndarray
  note: str


class Search(NamedTuple):
  """A text, the rank of its video, and clips: its own, then the top ones."""

  text: str
  rank: int
  clips: Sequence[Clip]


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


class Curve(NamedTuple):
  """A scalar over the steps of a run; `level` is drawn as a dashed line."""

  name: str
  steps: Sequence[float]
  values: Sequence[float]
  level: float | None = None


class Stage(NamedTuple):
  """A part of the work: what, how long, by which command ('' if by none)."""

  name: str
  seconds: float
  command: str
  kept: bool


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
  curves: Mapping[str, Sequence[Curve]] = dataclasses.field(
      default_factory=dict)
  stages: Sequence[Stage] = ()
  files: Mapping[str, str] = dataclasses.field(default_factory=dict)


def write(report: Report, folder) -> pathlib.Path:
  """Writes report.html and report.json; returns the path of the page.

  Raises:
    ValueError: if a figure is not a finite number.
  """
  bad = {k: v for k, v in report.figures.items() if not math.isfinite(v)}
  if bad:
    raise ValueError(
        f'figures {bad} are not finite; leave out what was not measured.')
  folder = pathlib.Path(folder)
  figures = {k: float(report.figures[k]) for k in sorted(report.figures)}
  files.write_text(
      folder / 'report.json', json.dumps(figures, indent=1) + '\n')
  files.write_text(folder / 'report.html', render(report))
  return folder / 'report.html'


def render(report: Report) -> str:
  """Returns the page."""
  parts = [
      ('Figures', _headlines(report)),
      ('What it finds', _searches(
          report.best, 'Texts whose video came first. The first strip is the '
          'video that belongs to the text.')),
      ('What it misses', _searches(
          report.worst, 'The texts whose video came latest. The strip below '
          'it is what the model preferred.')),
      ('What it names', _regions(report.regions)),
      ('Entities', _entities(report.entities)),
      ('Four losses against contrast alone', _comparison(report.comparison)),
      *((name, page.table(table)) for name, table in report.details.items()),
      *((f'Training: {run}', _curves(curves))
        for run, curves in report.curves.items()),
      ('Time', _stages(report.stages)),
      ('Files', _files(report.files)),
  ]
  warning = f'<p class="warning">{_(report.warning)}</p>'
  notes = ''.join(f'<p>{_(note)}</p>' for note in report.notes)
  top = (warning if report.warning else '') + notes
  return page.document(report.title, top, parts)


def read_curves(
    folder, names: Sequence[str], levels: Mapping[str, float] | None = None,
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
      Curve(name, *zip(*sorted(found.items()), strict=True),
            level=(levels or {}).get(name))
      for name, found in points.items() if found]


def dim_outside(frames: np.ndarray, region: np.ndarray) -> np.ndarray:
  """Fades what lies outside a region bool[rows, columns] and frames it."""
  _, h, w, _ = frames.shape
  inside = np.repeat(np.repeat(
      region, h // region.shape[0], 0), w // region.shape[1], 1)
  inside = np.pad(inside, ((0, h - inside.shape[0]), (0, w - inside.shape[1])))
  near = np.pad(inside, 1)
  core = (near[:-2, 1:-1] & near[2:, 1:-1] & near[1:-1, :-2] & near[1:-1, 2:])
  shown = np.where(inside[:, :, None], frames, frames // 3 + 150)
  shown[:, inside & ~core] = (214, 69, 0)
  return shown.astype(np.uint8)


def _headlines(report):
  rows = []
  for line in report.headlines:
    if line.key not in report.figures:
      continue
    value = report.figures[line.key]
    reached = line.target is None or value >= line.target
    mark = '' if line.target is None else (
        f'<span class="{"good" if reached else "bad"}">'
        f'{"reached" if reached else "missed"}</span>')
    bar = ''
    if line.percent:
      bar = page.bar(value, wide=True, marks=(
          ('nothing', line.nothing), ('target', line.target)))
    goals = [
        f'{name} {_(format_figure(at, line.percent))}'
        for name, at in (
            ('target', line.target), ('knowing nothing', line.nothing))
        if at is not None]
    rows.append(page.figure(
        format_figure(value, line.percent), f'{_(line.question)}{mark}',
        f'{bar}<p class="goal">{", ".join(goals)}</p>'
        f'<p>{_(line.meaning)}</p>'))
  if not rows:
    return ''
  legend = (
      '<p class="legend">In the bars, <i class="nothing"></i> is what knowing '
      'nothing would give and <i class="target"></i> is the target.</p>')
  return legend + ''.join(rows)


def _searches(searches, introduction):
  blocks = []
  for search in searches:
    clips = ''.join(
        f'<figure>{image(film_strip(clip.frames))}<figcaption>'
        f'{_(clip.note)}</figcaption></figure>' for clip in search.clips)
    blocks.append(f'<div class="search"><h3>“{_(search.text)}”'
                  f'<span class="rank">rank {search.rank}</span></h3>'
                  f'{clips}</div>')
  return blocks and f'<p>{_(introduction)}</p>' + ''.join(blocks)


def _regions(regions):
  if not regions:
    return ''
  blocks = []
  for item in regions:
    bars = ''.join(
        f'<tr{_true(name, item.truth)}><td>{_(name)}</td><td>'
        f'{page.bar(100 * share)}</td>'
        f'<td class="number">{100 * share:.0f} %</td></tr>'
        for name, share in item.labels)
    answer, share = item.answer
    truth = f'<p>Shown: {_(", ".join(item.truth))}.</p>' if item.truth else ''
    ignored = '' if item.kept else '<p>Not sure enough: ignored.</p>'
    blocks.append(
        f'<div class="region"><div>'
        f'{image(film_strip(dim_outside(item.frames, item.region)))}'
        f'<p class="caption">“{_(item.caption)}”</p></div>'
        f'<div><table class="bars">{bars}</table>{ignored}'
        f'<p>The model answers <em{_true(answer, item.truth)}>{_(answer)}</em> '
        f'({100 * share:.0f} %).</p>{truth}</div></div>')
  return (
      '<p>The prompter sees only the outlined region of a clip and names it: '
      'the bars are its pseudo-label. The model sees the whole clip and its '
      'caption and is asked what the region shows. True names are green.</p>'
      + ''.join(blocks))


def _true(name, truth):
  return ' class="true"' if name in truth else ''


def _entities(entities):
  if not entities:
    return ''
  total, top = sum(n for _, n in entities), entities[0][1]
  rows = ''.join(
      f'<tr><td>{_(name)}</td><td><div class="bar"><b style="width:'
      f'{100 * count / top:.1f}%"></b></div></td>'
      f'<td class="number">{count}</td></tr>'
      for name, count in entities[:20])
  more = f', the {len(entities[:20])} most frequent below' if len(
      entities) > 20 else ''
  return (
      f'<p>{len(entities)} entities were the label of {total} crops{more}. '
      'One that takes nearly all of them would be a sign of a prompter that '
      f'sees nothing.</p><table class="bars">{rows}</table>')


def _comparison(table):
  return page.table(table) and (
      '<p>Both go on from the prompter\'s weights, with the same data, for the '
      'same number of steps.</p>' + page.table(table))


def _curves(curves):
  return curves and (
      '<div class="curves">' + ''.join(map(_curve, curves)) + '</div>')


def _curve(curve):
  width, height, left, bottom, top = 270, 150, 40, 20, 8
  steps, values = np.asarray(curve.steps), np.asarray(curve.values)
  shown = np.append(values, [] if curve.level is None else curve.level)
  low, high = float(shown.min()), float(shown.max())
  if high - low < 1e-9:
    low, high = low - 0.5, high + 0.5
  first, last = float(steps.min()), float(max(steps.max(), steps.min() + 1))

  def across(step):
    return left + (step - first) / (last - first) * (width - left - 6)

  def up(value):
    return height - bottom - (value - low) / (high - low) * (
        height - bottom - top)

  points = ' '.join(
      f'{across(step):.1f},{up(value):.1f}'
      for step, value in zip(steps, values, strict=True))
  marks = ''.join(
      f'<line x1="{left}" x2="{width - 6}" y1="{up(v):.1f}" y2="{up(v):.1f}" '
      f'class="grid"/><text x="{left - 4}" y="{up(v) + 3:.1f}" '
      f'text-anchor="end">{v:.3g}</text>' for v in (low, high))
  ends = (
      f'<text x="{left}" y="{height - 6}">{first:.0f}</text>'
      f'<text x="{width - 6}" y="{height - 6}" text-anchor="end">'
      f'step {last:.0f}</text>')
  level = '' if curve.level is None else (
      f'<line x1="{left}" x2="{width - 6}" y1="{up(curve.level):.1f}" '
      f'y2="{up(curve.level):.1f}" class="level"/>')
  name = curve.name.removeprefix('train/')
  return (
      f'<figure class="curve"><figcaption>{_(name)} '
      f'<b>{values[-1]:.3g}</b></figcaption>'
      f'<svg viewBox="0 0 {width} {height}" role="img" '
      f'aria-label="{_(name)}">{marks}{level}'
      f'<polyline points="{points}"/>{ends}</svg></figure>')


def _stages(stages):
  if not stages:
    return ''
  longest = max(max(stage.seconds for stage in stages), 1e-9)
  rows = ''.join(
      f'<tr><td>{_(stage.name)}{" (kept)" if stage.kept else ""}</td><td>'
      f'<div class="bar"><b style="width:{100 * stage.seconds / longest:.1f}%">'
      f'</b></div></td><td class="number">{stage.seconds:.0f} s</td></tr>'
      for stage in stages)
  total = sum(stage.seconds for stage in stages)
  commands = '\n'.join(s.command for s in stages if s.command)
  shown = f'<p>The commands:</p><pre>{_(commands)}</pre>' if commands else ''
  return (f'<table class="bars">{rows}</table>'
          f'<p>Together {total / 60:.1f} minutes.</p>{shown}')


def _files(files):
  rows = ''.join(f'<tr><td>{_(what)}</td><td><code>{_(where)}</code></td></tr>'
                 for what, where in files.items())
  return rows and f'<table class="plain">{rows}</table>'
