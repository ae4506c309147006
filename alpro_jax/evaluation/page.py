"""Pages of HTML from templates; each file stands alone.

Style and pictures are inside the page and nothing is fetched. Every text that
a template prints is escaped.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jinja2
import numpy as np

from alpro_jax.evaluation import pictures

TEMPLATES = pathlib.Path(__file__).parent / 'templates'


class Table(NamedTuple):
  """Rows of text and numbers; the first column is text."""

  columns: Sequence[str]
  rows: Sequence[Sequence]


class ShownClip(NamedTuple):
  """A clip: uint8[T, H, W, 3], lines about it, whether it is the right one."""

  frames: np.ndarray
  note: str
  label: str = ''
  right: bool = False


class Search(NamedTuple):
  """A text, the rank of its own video, and clips that were found for it."""

  text: str
  rank: int
  clips: Sequence[ShownClip]


def render(template: str, *, folders: Sequence[pathlib.Path] = (), **content) -> str:
  """Returns a page: a file of templates/, or of other folders, with this content.

  Raises:
    jinja2.UndefinedError: if the template prints what is not there, e.g. `title`.
  """
  return environment(*folders).get_template(template).render(content)


@functools.cache
def environment(*folders: pathlib.Path) -> jinja2.Environment:
  """Returns the templates of these folders and templates/, with their filters."""
  made = jinja2.Environment(
    loader=jinja2.FileSystemLoader([*folders, TEMPLATES]),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=_keep_together,
  )
  made.filters.update(
    figure=format_figure, film_strip=pictures.encode_strip, fmt=format, time=format_time
  )
  return made


def format_figure(value: float, percent: bool = True) -> str:
  """97.46 -> '97.5 %'; 3.0 without percent -> '3'."""
  if percent:
    return f'{value:.1f} %'
  return f'{value:.0f}' if value == round(value) else f'{value:.2f}'


def format_time(seconds: float) -> str:
  """3723.4 -> '1:02:03', 63.4 -> '1:03.4'; tenths below ten minutes."""
  if seconds < 600:
    tenths = round(10 * seconds)
    return f'{tenths // 600}:{tenths // 10 % 60:02}.{tenths % 10}'
  minutes, seconds = divmod(round(seconds), 60)
  hours, rest = divmod(minutes, 60)
  return f'{hours}:{rest:02}:{seconds:02}' if hours else f'{rest}:{seconds:02}'


def _keep_together(value):
  """A number and its sign stay on one line."""
  return value.replace(' %', '\N{NO-BREAK SPACE}%') if isinstance(value, str) else value
