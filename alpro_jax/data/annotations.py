"""The clips that annotations name, each a video or photo with all of its texts."""

import dataclasses
import hashlib
import json
import re
from typing import NamedTuple

# What pandas and JSON write where there is no value.
MISSING = frozenset(('', *'nan NaN NaT <NA> NA N/A n/a #N/A None null NULL'.split()))

_LONGEST = 5000  # Letters of a report's entry; a path has 4,096 at most.
_CONTROLS = re.compile('[\0-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]')


class Question(NamedTuple):
  """A question about a video, its answer, and the kind it is counted in."""

  text: str
  answer: str
  kind: str


@dataclasses.dataclass(frozen=True, slots=True)
class Clip:
  """One future record, with a caption or a question at least.

  Attributes:
    video: name in the set, relative to the folder of videos.
    files: where it may lie below that folder; the first that exists counts.
    captions, styles: each pair once; the style is '' where there is none.
    still: True for a photo.
    questions: as often as the file has them.
  """

  video: str
  files: tuple[str, ...]
  captions: tuple[str, ...]
  styles: tuple[str, ...]
  still: bool
  questions: tuple[Question, ...] = ()


@dataclasses.dataclass(frozen=True)
class Skipped:
  """Something that is not in the set, and why; its texts are printable."""

  item: str
  reason: str
  detail: str = ''

  def __post_init__(self):
    for name in ('item', 'reason', 'detail'):
      object.__setattr__(self, name, printable(getattr(self, name)))


@dataclasses.dataclass(frozen=True)
class Annotations:
  """What annotation files say.

  Attributes:
    clips: in the order in which the file first names them.
    skipped: rows that cannot be used.
    rows: rows read.
    other_splits: rows left out because they belong to another split.
    named: every video that a row names, whether it can be used or not.
    not_found: videos that were to be left out and that no row names: all of
      them, and a test set may be trained on.
  """

  clips: list[Clip]
  skipped: list[Skipped]
  rows: int
  other_splits: int = 0
  named: frozenset[str] = frozenset()
  not_found: int = 0

  def digest(self) -> str:
    """Returns the sha256 of all clips, in order, as hex."""
    sha = hashlib.sha256()
    for clip in self.clips:
      fields = [getattr(clip, name) for name in clip.__slots__]
      sha.update(json.dumps(fields).encode() + b'\n')
    return sha.hexdigest()


def printable(value) -> str:
  """Returns what may be any value as one line of text: UTF-8, not endless.

  What would move a terminal's cursor, end the line or turn the direction of
  reading becomes an escape such as \\x1b.
  """
  try:
    text = str(value)
  except RecursionError:  # JSON may be nested deeper than can be shown.
    text = f'nested {type(value).__name__}'
  text = text.encode('utf-8', 'backslashreplace').decode()
  text = _CONTROLS.sub(lambda found: found[0].encode('unicode_escape').decode(), text)
  return text if len(text) <= _LONGEST else f'{text[:_LONGEST]}...'


def printable_lines(value) -> str:
  """Returns the same of each line of a text."""
  return '\n'.join(map(printable, str(value).split('\n')))


def encodable(text: str) -> bool:
  """Whether a text can be written as UTF-8."""
  try:
    text.encode('utf-8')
  except UnicodeEncodeError:
    return False
  return True


def check_text(name: str, value) -> None:
  """Raises ValueError unless a value is text that can be written as UTF-8."""
  if not isinstance(value, str):
    raise ValueError(f'{name} is {type(value).__name__}, expected text')
  if not encodable(value):
    raise ValueError(f'{name} is not UTF-8')


def present(value) -> str:
  """Returns a text without blanks around it; '' if it stands for no value."""
  text = '' if value is None else str(value).strip()
  return '' if text in MISSING else text
