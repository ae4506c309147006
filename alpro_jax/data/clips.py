"""Gathers the rows of annotation files into clips, and names those that cannot be used.

Nothing here opens a video. A bad row is reported with its file and line, never raised.
"""

import os
import re
from collections.abc import Iterable, Sequence

from alpro_jax.data.annotations import (
  MISSING,
  Annotations,
  Clip,
  Question,
  Skipped,
  encodable,
  present,
  text_problem,
)
from alpro_jax.data.names import canonical, folded, name_problem


def kind_of(question: str) -> str:
  """Returns 'what', 'who', 'how', 'where', 'when' or 'other', by the first word."""
  first = re.match(r'\W*(what|who|how|where|when)(?:(?<=who)(?:se|m))?(?![a-z])', question.lower())
  return first[1] if first else 'other'


class Clips:
  """All clips of a data set; rows about one video come together.

  Args:
    root: folder of videos, which absolute paths may lie in; '' is none.
  """

  def __init__(self, root=''):
    # As it is given, and as others may write it if links lead there.
    self._roots = [
      os.path.join(path(root), '') for path in (os.path.abspath, os.path.realpath) if root
    ]
    self._clips = {}  # Name -> keyword arguments of Clip; captions as {(text, style): True}.
    self._spelled = {}
    self._skipped = []
    self.named = set()
    self.rows = self.other_splits = self.not_found = 0

  def read(self, rows: Iterable[tuple], *columns: Sequence[str], texts: Sequence[str] = ()):
    """Yields (where, row, values) of rows that have all columns, and names the others.

    Args:
      rows: (where, row, problem), see tables.py.
      columns: the names that each may have, the first that a row has counts. The first
        column is the video.
      texts: names of columns that hold text or nothing.
    """
    for where, row, problem in rows:
      self.rows += 1
      keys = [next((name for name in names if name in row), None) for names in columns]
      if not problem and None in keys:
        missing = ' or '.join(map(repr, columns[keys.index(None)]))
        problem = f'no {missing}, only {sorted(row)}'
      for name in texts:
        problem = problem or (row.get(name) is not None and text_problem(name, row[name]))
      if problem:
        self.bad(self.relative(row[keys[0]] if keys[0] else ''), where, problem)
      else:
        yield where, row, [row[key] for key in keys]

  def skip(self, item, reason: str, detail: str = '') -> None:
    self._skipped.append(Skipped(item, reason, detail))

  def bad(self, item, where: str, problem: str) -> None:
    """Names a row that is not as it should be; item may be '' or None."""
    self.skip(where if item in ('', None) else item, 'bad row', f'{where}: {problem}')

  def add_captions(
    self, where: str, files: Sequence[str], captions, style: str = '', still: bool = False
  ) -> None:
    """Adds the captions of one row.

    Args:
      where: 'file:line', for the report.
      files: candidate paths relative to the folder of videos; the first names the clip.
      captions: one or a list of them, of any type: what is no text is reported.
      style: of all these captions.
      still: whether the clip is a photo.
    """
    captions = captions if isinstance(captions, list) else [captions]
    clip = self._clip(where, files, still)
    if clip is None or self._reported(clip, where, [('caption', text) for text in captions]):
      return
    if not captions:
      self.skip(clip['video'], 'empty caption', where)
    for caption in map(str.strip, captions):
      if self._missing(clip, where, 'caption', caption):
        continue
      if (caption, style) in clip['captions']:
        self.skip(clip['video'], 'duplicate row', where)
      clip['captions'][caption, style] = True

  def add_question(self, where: str, files: Sequence[str], question, answer, kind='') -> None:
    """Adds one question.

    The same question may come twice: the sizes of the published test sets, and so their
    accuracies, count both. Without a kind, the question's first word says it.
    """
    clip = self._clip(where, files, still=False)
    texts = [('question', question), ('answer', answer), ('type', kind)]
    if clip is None or self._reported(clip, where, texts):
      return
    question, answer = question.strip(), answer.strip()
    if not (
      self._missing(clip, where, 'question', question)
      or self._missing(clip, where, 'answer', answer)
    ):
      clip['questions'].append(Question(question, answer, present(kind) or kind_of(question)))

  def relative(self, name):
    """Returns a path inside the folder of videos relative to it.

    Everything else stays as it is, names that are no text too.
    """
    if isinstance(name, str) and name.startswith('/') and '\0' not in name and encodable(name):
      folder, file = os.path.split(os.path.normpath(name))
      for path in (os.path.join(folder, file), os.path.join(os.path.realpath(folder), file)):
        for root in self._roots:
          if path.startswith(root):
            return path.removeprefix(root)
    return name

  def result(self) -> Annotations:
    clips = [
      Clip(
        **{
          **clip,
          'captions': tuple(text for text, _ in clip['captions']),
          'styles': tuple(style for _, style in clip['captions']),
          'questions': tuple(clip['questions']),
        }
      )
      for clip in self._clips.values()
      if clip['captions'] or clip['questions']  # Empty rows are named already.
    ]
    return Annotations(
      clips, self._skipped, self.rows, self.other_splits, frozenset(self.named), self.not_found
    )

  def _clip(self, where, files, still):
    """Returns what is known of a clip, or None if its name is no good."""
    files = [self.relative(name) for name in files]
    video = files[0]
    if not name_problem(video) and canonical(video) in self._clips:
      return self._clips[canonical(video)]
    for name in files:
      if problem := name_problem(name):
        return self.skip(video, problem, where)
    files = tuple(map(canonical, files))
    self.named.update(files)
    # a.mp4 and a.MP4 are one clip, unless there are two such files.
    first = self._spelled.setdefault(folded(files[0]), files[0])
    if first != files[0] and self._roots:
      paths = (os.path.join(self._roots[0], name) for name in (first, files[0]))
      files = files if all(map(os.path.isfile, paths)) else self._clips[first]['files']
    new = {'video': files[0], 'files': files, 'captions': {}, 'questions': [], 'still': still}
    return self._clips.setdefault(files[0], new)

  def _reported(self, clip, where, texts):
    """Reports the first of some named values that is no text."""
    problem = next(filter(None, (text_problem(*named) for named in texts)), '')
    if problem:
      self.bad(clip['video'], where, problem)
    return problem

  def _missing(self, clip, where, name, text):
    """Reports a text that stands for no value."""
    if text in MISSING:
      detail = f'{where}: {text!r} stands for no value' if text else where
      self.skip(clip['video'], f'empty {name}', detail)
    return text in MISSING
