"""Gathers the rows of annotation files into clips, and names those that cannot be used.

Nothing here opens a video. A bad row is reported with its file and line, never raised.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence

from alpro_jax import buckets
from alpro_jax.data import annotations, tables
from alpro_jax.data.annotations import Annotations, Clip, Question, present
from alpro_jax.data.names import canonical, folded, is_photo, name_problem
from alpro_jax.files import exists


def kind_of(question: str) -> str:
  """Returns 'what', 'who', 'how', 'where', 'when' or 'other', by the first word."""
  first = re.match(r'\W*(what|who|how|where|when)(?:(?<=who)(?:se|m))?(?![a-z])', question.lower())
  return first[1] if first else 'other'


class Clips:
  """All clips of a data set; rows about one video come together.

  Args:
    root: folder of videos, which absolute paths may lie in; '' is none.
    locate: (row, name of its video) -> where the video may lie below that folder; the
      first path that exists counts, and the first names the clip. None is a video that is
      not asked for. Raises ValueError for a row that is not as it should be.
  """

  def __init__(self, root='', locate: Callable = lambda row, video: (video,)):
    # As it is given, and as others may write it if links lead there.
    ways = (os.path.abspath, os.path.realpath) if root and not buckets.is_address(root) else ()
    self._roots = [os.path.join(path(root), '') for path in ways]
    self._address = f'{root.rstrip("/")}/' if root and not ways else ''
    self._locate = locate
    self._clips = {}  # Name -> keyword arguments of Clip; captions as {(text, style): True}.
    self._spelled = {}
    self._skipped = []
    self.named = set()
    self.rows = self.other_splits = self.not_found = 0

  def read(
    self, path, flag: str, *columns: Sequence[str], formats=tables.TEXTS, texts: Sequence[str] = ()
  ) -> Iterator[tuple]:
    """Yields (where, row, files, *values of the other columns) of rows that can be used.

    Counts rows that are not asked for, and names those that are not as they should be.

    Args:
      path: of the file; '' is none.
      flag: that named it.
      columns: that every row has, each as the names that it may have, of which the first
        counts. The first column is the video.
      formats: see tables.read.
      texts: names of columns that hold text or nothing.
    """
    for where, row, problem in tables.read(path, flag, formats, columns) if path else ():
      self.rows += 1
      keys = [next((name for name in names if name in row), None) for names in columns]
      video = self.relative(row[keys[0]] if keys[0] else '')
      try:
        if problem:
          raise ValueError(problem)
        if None in keys:
          missing = ' or '.join(map(repr, columns[keys.index(None)]))
          raise ValueError(f'no {missing}, only {sorted(row)}')
        for name in texts:
          annotations.check_text(name, '' if row.get(name) is None else row[name])
        files = self._locate(row, video)
      except ValueError as error:
        self.skip(video if present(video) else where, 'bad row', f'{where}: {error}')
        continue
      if files is None:
        self.other_splits += 1
      else:
        yield where, row, files, *(row[key] for key in keys[1:])

  def skip(self, item, reason: str, detail: str = '') -> None:
    self._skipped.append(annotations.Skipped(item, reason, detail))

  def add_captions(
    self, where: str, files: Sequence[str], captions, style: str = '', still: bool = False
  ) -> None:
    """Adds the captions of one row: one or a list of them, of any type.

    What is no text is reported, with `where`, 'file:line'. A still clip is a photo, and so
    is one that is named as such.
    """
    captions = captions if isinstance(captions, list) else [captions]
    clip = self._clip(where, files, [('caption', text) for text in captions], still)
    if clip is None:
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
    clip = self._clip(where, files, [('question', question), ('answer', answer), ('type', kind)])
    if clip is None:
      return
    question, answer = question.strip(), answer.strip()
    missing = self._missing(clip, where, 'question', question)
    if not missing and not self._missing(clip, where, 'answer', answer):
      clip['questions'].append(Question(question, answer, present(kind) or kind_of(question)))

  def relative(self, name):
    """Returns a path inside the folder of videos relative to it.

    Everything else stays as it is, names that are no text too.
    """
    if (
      isinstance(name, str)
      and name.startswith('/')
      and '\0' not in name
      and annotations.encodable(name)
    ):
      folder, file = os.path.split(os.path.normpath(name))
      for path in (os.path.join(folder, file), os.path.join(os.path.realpath(folder), file)):
        for root in self._roots:
          if path.startswith(root):
            return path.removeprefix(root)
    if self._address and isinstance(name, str):
      return name.removeprefix(self._address)
    return name

  def result(self) -> Annotations:
    clips = []
    for clip in self._clips.values():
      captions, styles = zip(*clip['captions'], strict=True) if clip['captions'] else ((), ())
      texts = {'captions': captions, 'styles': styles, 'questions': tuple(clip['questions'])}
      if captions or clip['questions']:  # Empty rows are named already.
        clips.append(Clip(**clip | texts))
    return Annotations(
      clips, self._skipped, self.rows, self.other_splits, frozenset(self.named), self.not_found
    )

  def _clip(self, where, files, texts, still=False):
    """Returns what is known of a clip, or None if its name or a text is not valid."""
    files = [self.relative(name) for name in files]
    video = canonical(files[0]) if not name_problem(files[0]) else None
    if video not in self._clips:
      for name in files:
        if problem := name_problem(name):
          return self.skip(files[0], problem, where)
      files = tuple(map(canonical, files))
      self.named.update(files)
      # a.mp4 and a.MP4 are one clip, unless there are two such files.
      first = self._spelled.setdefault(folded(video), video)
      if first != video and (root := self._address or ''.join(self._roots[:1])):
        both = all(exists(f'{root}{name}') for name in (first, video))
        files = files if both else self._clips[first]['files']
      video = files[0]
      new = {'video': video, 'files': files, 'captions': {}, 'questions': []}
      new['still'] = still or is_photo(video)
      self._clips.setdefault(video, new)
    try:
      for name, text in texts:
        annotations.check_text(name, text)
    except ValueError as error:
      return self.skip(video, 'bad row', f'{where}: {error}')
    return self._clips[video]

  def _missing(self, clip, where, name, text):
    """Reports a text that stands for no value."""
    if text in annotations.MISSING:
      detail = f'{where}: {text!r} stands for no value' if text else where
      self.skip(clip['video'], f'empty {name}', detail)
    return text in annotations.MISSING
