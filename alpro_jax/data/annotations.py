"""Reads the annotation files of the sources into one list of clips.

A clip is one video or photo with all of its captions and questions. Nothing
here opens a video: a bad row is reported with its file and line, never raised,
so that one typing error does not cost a night of preparation.
"""

import csv
import dataclasses
import hashlib
import json
import os
import re
import unicodedata
import urllib.parse
from collections import Counter
from typing import NamedTuple

SOURCES = ('folder', 'webvid', 'cc3m', 'msrvtt', 'didemo', 'msvd')
VIDEO_SUFFIXES = (
  '.mp4',
  '.avi',
  '.mov',
  '.m4v',
  '.mkv',
  '.webm',
  '.mpg',
  '.mpeg',
  '.ts',
  '.wmv',
  '.flv',
  '.3gp',
  '.gif',
  '.ogv',
)
PHOTO_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.gif', '.bmp', '.tif', '.tiff', '.avif')
# What pandas and JSON write where there is no value.
MISSING = frozenset(
  ('', 'nan', 'NaN', 'NaT', '<NA>', 'NA', 'N/A', 'n/a', '#N/A', 'None', 'null', 'NULL')
)

_LONGEST = 5000  # Letters of a report's entry; a path has 4,096 at most.
_CONTROLS = re.compile('[\0-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]')
_KINDS = {
  'what': 'what',
  'who': 'who',
  'whose': 'who',
  'whom': 'who',
  'how': 'how',
  'where': 'where',
  'when': 'when',
}


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
    captions: each pair of caption and style once.
    styles: one per caption, '' where there is none.
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

  def digest(self):
    """Returns the sha256 of all clips, in order, as hex."""
    sha = hashlib.sha256()
    for clip in self.clips:
      sha.update(
        json.dumps(
          [clip.video, clip.files, clip.captions, clip.styles, clip.still, clip.questions]
        ).encode()
      )
      sha.update(b'\n')
    return sha.hexdigest()


def kind_of(question):
  """Returns 'what', 'who', 'how', 'where', 'when' or 'other', as str."""
  first = re.match(r'\W*([a-z]+)', question.lower())
  return _KINDS.get(first and first[1], 'other')


class Rows:
  """Gathers rows into clips; says no to what cannot be used.

  Args:
    root: folder of videos, which absolute paths may lie in; '' is none.
  """

  def __init__(self, root=''):
    # As it is given, and as others may write it if links lead there.
    self._roots = [
      os.path.join(path(root), '') for path in (os.path.abspath, os.path.realpath) if root
    ]
    self._spelled = {}
    self.rows = 0
    self.other_splits = 0
    self.not_found = 0
    self.named = set()
    self._clips = {}
    self._skipped = []

  def skip(self, item, reason, detail=''):
    self._skipped.append(Skipped(item, reason, detail))

  def bad(self, item, where, problem):
    """Names a row that is not as it should be; item may be '' or None."""
    self.skip(where if item in ('', None) else item, 'bad row', f'{where}: {problem}')

  def add_captions(self, where, files, captions, style='', still=False):
    """Adds the captions of one row.

    Args:
      where: 'file:line', for the report.
      files: candidate paths relative to the folder of videos; the first is
        the name of the clip.
      captions: list of str.
      style: str, for all of these captions.
      still: bool.
    """
    known = self._clip(where, files, still)
    if known is None:
      return
    video = known['files'][0]
    if not captions:
      return self.skip(video, 'empty caption', where)
    for caption in captions:
      if problem := text_problem('caption', caption):
        return self.bad(video, where, problem)
    for caption in captions:
      caption = caption.strip()
      if caption in MISSING:
        self.skip(video, 'empty caption', missing(where, caption))
      elif (caption, style) in known['captions']:
        self.skip(video, 'duplicate row', where)
      else:
        known['captions'][caption, style] = True

  def add_question(self, where, files, question, answer, kind=''):
    """Adds one question.

    The same question may come twice: the sizes of the published test sets,
    and so their accuracies, count both.

    Args:
      where, files: as for captions.
      question, answer: str.
      kind: str; '' takes it from the first word of the question.
    """
    known = self._clip(where, files, still=False)
    if known is None:
      return
    video = known['files'][0]
    for name, text in [('question', question), ('answer', answer), ('type', kind)]:
      if problem := text_problem(name, text):
        return self.bad(video, where, problem)
    question, answer = question.strip(), answer.strip()
    if question in MISSING:
      return self.skip(video, 'empty question', missing(where, question))
    if answer in MISSING:
      return self.skip(video, 'empty answer', missing(where, answer))
    known['questions'].append(Question(question, answer, present(kind) or kind_of(question)))

  def _clip(self, where, files, still):
    """Returns what is known of a clip, or None if its name is no good."""
    files = [self.relative(name) for name in files]
    video = files[0]
    if not name_problem(video) and canonical(video) in self._clips:
      return self._clips[canonical(video)]
    for name in files:
      if problem := name_problem(name):
        return self.skip(video, problem, where)
    files = tuple(canonical(name) for name in files)
    self.named.update(files)
    # a.mp4 and a.MP4 are one clip, unless there are two such files.
    first = self._spelled.setdefault(folded(files[0]), files[0])
    if (
      first != files[0]
      and self._roots
      and not all(os.path.isfile(os.path.join(self._roots[0], name)) for name in (first, files[0]))
    ):
      files = self._clips[first]['files']
    return self._clips.setdefault(
      files[0], {'files': files, 'captions': {}, 'questions': [], 'still': still}
    )

  def relative(self, name):
    """Returns a path inside the folder of videos relative to it.

    Everything else stays as it is, names that are no text too.
    """
    if (
      self._roots
      and isinstance(name, str)
      and name.startswith('/')
      and ('\0' not in name and _encodable(name))
    ):
      folder, file = os.path.split(os.path.normpath(name))
      for place in (folder, os.path.realpath(folder)):
        path = os.path.join(place, file)
        for root in self._roots:
          if path.startswith(root):
            return path.removeprefix(root)
    return name

  def result(self):
    """Returns Annotations."""
    clips = []
    for video, known in self._clips.items():
      pairs, questions = tuple(known['captions']), tuple(known['questions'])
      if pairs or questions:  # Empty rows are named already.
        clips.append(
          Clip(
            video,
            known['files'],
            tuple(caption for caption, _ in pairs),
            tuple(style for _, style in pairs),
            known['still'],
            questions,
          )
        )
    return Annotations(
      clips, self._skipped, self.rows, self.other_splits, frozenset(self.named), self.not_found
    )


def printable(value):
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


def printable_lines(value):
  """Returns the same of each line of a text."""
  return '\n'.join(map(printable, str(value).split('\n')))


def _encodable(text):
  try:
    text.encode('utf-8')
  except UnicodeEncodeError:
    return False
  return True


def text_problem(name, value):
  """Returns why a value is no text, or ''."""
  if not isinstance(value, str):
    return f'{name} is {type(value).__name__}, expected text'
  return '' if _encodable(value) else f'{name} is not UTF-8'


def present(value):
  """Returns a text without blanks around it; '' if it stands for no value."""
  text = '' if value is None else str(value).strip()
  return '' if text in MISSING else text


def missing(where, text):
  """Returns the detail of a value that is not there."""
  return f'{where}: {text!r} stands for no value' if text else where


def name_problem(name):
  """Returns why a name may not be opened, or ''."""
  if not isinstance(name, str) or name.strip() in MISSING:
    return 'no video name'
  if '\0' in name or not _encodable(name):
    return 'bad video name'
  if name.startswith('/') or '..' in name.split('/'):
    return 'outside the folder of videos'
  if not canonical(name):  # '.' names the folder itself.
    return 'no video name'
  return ''


def canonical(name):
  """Returns a name in Unicode's form NFC, without '.' and empty parts."""
  parts = unicodedata.normalize('NFC', name).split('/')
  return '/'.join(part for part in parts if part not in ('', '.'))


def folded(name):
  """Returns what is equal for names that `find_file` finds one file for."""
  stem, suffix = os.path.splitext(canonical(name))
  return stem + suffix.lower()


def find_file(root, names, is_file=os.path.isfile):
  """Finds the first of some files, in whatever spelling it is there.

  macOS takes accents apart (NFD) where others write one character (NFC), and
  cameras write suffixes in capitals.

  Args:
    root: folder.
    names: relative to it.
    is_file: asked of each path that it may have.
  Returns:
    path of the file; None if there is none.
  Raises:
    ValueError: two files are meant by one name.
  """

  def there(stem, suffixes):
    found = {}
    for form in {unicodedata.normalize(form, stem) for form in ('NFC', 'NFD')}:
      for suffix in suffixes:
        path = os.path.join(root, form + suffix)
        if is_file(path):
          found.setdefault(os.path.realpath(path), path)
    if len(found) > 1:
      raise ValueError(f'one name, two files: {sorted(found.values())}')
    return next(iter(found.values()), None)

  parts = [os.path.splitext(name) for name in names]
  for stem, suffix in parts:
    if path := there(stem, [suffix]):
      return path
  for stem, suffix in parts:
    if path := there(stem, [suffix.lower(), suffix.upper(), suffix.title()]):
      return path
  return None


def is_address(text):
  """Is this an http(s) address?"""
  return isinstance(text, str) and bool(re.match(r'(?i)https?://', text))


def file_of(url, *, still=False):
  """Returns the file that an address is fetched into, as str.

  Letters and digits of the last part of its path, the first of the address's
  sha256, for others may end alike, and the suffix.
  """
  path = url.split('?')[0].split('#')[0]
  stem, suffix = os.path.splitext(urllib.parse.unquote(path).rsplit('/', 1)[-1])
  if suffix.lower() not in (PHOTO_SUFFIXES if still else VIDEO_SUFFIXES):
    suffix = '.jpg' if still else '.mp4'
  stem = re.sub(r'[^\w-]+', '_', stem)[:40].strip('_')
  stem = stem.encode('utf-8', 'ignore').decode()
  digest = hashlib.sha256(url.encode('utf-8', 'surrogatepass')).hexdigest()
  return f'{stem or "video"}-{digest[:12]}{suffix}'


def check_file(path, flag):
  """Returns path as str, or raises FileNotFoundError."""
  path = os.fspath(path)
  if not os.path.isfile(path):
    raise FileNotFoundError(f'{flag}={path} is not a file.')
  return path


def csv_rows(path):
  """Yields (where, row dict, problem); the first row is the columns.

  Quotes are taken strictly: one that is never closed would else swallow all
  rows up to the next quote, without a word.
  """
  csv.field_size_limit(1 << 24)
  # Bytes that are not UTF-8 become surrogates and are found row by row.
  with open(path, encoding='utf-8-sig', errors='surrogateescape', newline='') as file:
    reader = csv.DictReader(file, strict=True)
    try:
      columns = reader.fieldnames or []
    except csv.Error as e:
      raise ValueError(f'{path} is not CSV: its first line: {e}.') from e
    twice = [name for name, count in Counter(columns).items() if name and count > 1]
    if twice:
      raise ValueError(f'{path} names its column {twice[0]!r} twice.')
    yield f'{path}:1', columns, None
    while True:
      first = reader.reader.line_num + 1  # Its own stays behind errors.
      row, problem = {}, ''
      try:
        row = next(reader)
      except StopIteration:
        return
      except csv.Error as e:
        problem = f'{e}; is a quote not closed, or not doubled?'
      where = f'{path}:{first}'
      last = reader.reader.line_num
      if last > first:
        where += f'-{last}'
      if problem:
        yield where, {}, problem
        continue
      if None in row:
        problem = (
          f'{len(columns) + len(row[None])} columns, expected '
          f'{len(columns)}; quote fields that hold a comma'
        )
      elif None in row.values():
        got = sum(value is not None for value in row.values())
        problem = f'{got} columns, expected {len(columns)}'
      elif not all(_encodable(value) for value in row.values()):
        problem = 'not UTF-8'
      yield where, row, problem


def jsonl_rows(path):
  """Yields (where, row dict, problem) of JSON lines, or of a JSON list.

  A file that begins with [ is a list, unless its first line is JSON of its own
  and more follow. Blank lines are passed over.

  Raises:
    ValueError: a list is not JSON.
  """
  with open(path, 'rb') as file:
    start = file.readline().removeprefix(b'\xef\xbb\xbf').strip()
    while not start and (line := file.readline()):
      start = line.strip()
    if start.startswith(b'[') and not (_is_json(start) and file.read().strip()):
      yield from list_rows(path, read_json(path), 'one object for each text')
      return
    file.seek(0)
    for number, line in enumerate(file, 1):
      where = f'{path}:{number}'
      if number == 1:
        line = line.removeprefix(b'\xef\xbb\xbf')
      if not line.strip():
        continue
      try:
        row = json.loads(line.decode('utf-8'))
      except UnicodeDecodeError:
        yield where, {}, 'not UTF-8'
      except (ValueError, RecursionError) as e:
        yield where, {}, f'not JSON: {e}'
      else:
        if isinstance(row, dict):
          yield where, row, ''
        else:
          yield where, {}, f'{type(row).__name__}, expected an object'


def _is_json(line):
  try:
    json.loads(line)
  except (ValueError, RecursionError):
    return False
  return True


def read_json(path):
  """Returns what a .json file holds."""
  try:
    with open(path, encoding='utf-8-sig') as file:
      return json.load(file)
  except (ValueError, RecursionError) as e:
    raise ValueError(f'{path} is not JSON: {e}') from e


def list_rows(path, entries, expected, word='entry'):
  """Yields (where, row dict, problem) for each entry of a JSON list."""
  if not isinstance(entries, list):
    raise ValueError(
      f'{path} holds a JSON {type(entries).__name__}, expected a list of {expected}.'
    )
  for number, entry in enumerate(entries):
    where = f'{path}:{word} {number}'
    if isinstance(entry, dict):
      yield where, entry, ''
    else:
      yield where, {}, f'{type(entry).__name__}, expected an object'


def need_columns(path, got, wanted):
  """Raises ValueError unless one name of each tuple in wanted is there."""
  missing = [' or '.join(names) for names in wanted if not any(name in got for name in names)]
  if missing:
    raise ValueError(
      f'{path} has the columns {list(got)}, but not {", ".join(missing)}; '
      'the first line of a csv file must name its columns.'
    )


def read_folder(captions=None, questions=None, *, split='train', root=''):
  """Reads captions, questions, or both, of videos named by their files.

  Args:
    captions: a .csv file with a header, or one JSON object per line (.jsonl),
      or a JSON list of them, with `video` (a file, or the address that it was
      fetched from), `caption` and, optional, `style` and `split`. In JSON
      `caption` may be a list.
    questions: such a file with `video`, `question`, `answer` and, optional,
      `type` (or `answer_type`) and `split`.
    split: rows that name another split are left out.
    root: folder of videos. An absolute path counts when it lies in it.
  Returns:
    Annotations.
  """
  rows = Rows(root)
  if captions:
    for where, row in _folder_rows(rows, captions, '--captions', ('video', 'caption'), split):
      caption = row['caption']
      rows.add_captions(
        where,
        (row['video'],),
        caption if isinstance(caption, list) else [caption],
        present(row.get('style')),
      )
  if questions:
    for where, row in _folder_rows(
      rows, questions, '--questions', ('video', 'question', 'answer'), split
    ):
      rows.add_question(
        where,
        (row['video'],),
        row['question'],
        row['answer'],
        present(row.get('type')) or present(row.get('answer_type')),
      )
  return rows.result()


def _folder_rows(rows, path, flag, keys, split):
  """Yields (where, row) of what can be used; counts and names the rest."""
  path = check_file(path, flag)
  if path.lower().endswith('.csv'):
    source = csv_rows(path)
    _, columns, _ = next(source)
    need_columns(path, columns, [(key,) for key in keys])
  elif path.lower().endswith(('.jsonl', '.json', '.ndjson')):
    source = jsonl_rows(path)
  else:
    raise ValueError(f'{flag}={path} must end in .csv, .jsonl or .json.')
  for where, row, problem in source:
    rows.rows += 1
    problem = problem or _folder_problem(row, keys)
    if not problem and is_address(row['video']):
      row = {**row, 'video': file_of(row['video'].strip())}
    if problem:
      rows.bad(row.get('video'), where, problem)
    elif present(row.get('split')) not in ('', split):
      rows.other_splits += 1
      rows.named.add(canonical(rows.relative(row['video'] or '')))
    else:
      yield where, row


def _folder_problem(row, keys):
  for key in keys:
    if key not in row:
      return f'no {key!r}, only {sorted(row)}'
  for key in ('video', 'style', 'split', 'type', 'answer_type'):
    if not isinstance(row.get(key), str | None):
      return f'{key} is {type(row[key]).__name__}, expected text'
  if not _encodable(row.get('style') or ''):
    return 'style is not UTF-8'
  return ''


def read_webvid(path, *, max_text_length=0, allow_pickle=False):
  """Reads WebVid's rows: video_id, text and, optional, txt_len and page_dir.

  The names of the published csv files (videoid, name, page_dir) count too.
  Videos are <page_dir>/<id>.mp4 or <id>.mp4.

  Args:
    path: a .csv file, or the original's pandas pickle.
    max_text_length: rows whose txt_len is this or more are left out, as the
      original does with 80. 0 keeps all.
    allow_pickle: a pickle can run any code when it is opened, so only with
      this.
  Returns:
    Annotations.
  """
  path = check_file(path, '--captions')
  if path.lower().endswith('.csv'):
    source = csv_rows(path)
    _, columns, _ = next(source)
  elif not path.lower().endswith(('.pkl', '.pickle')):
    raise ValueError(f'--captions={path} must end in .csv, .pkl or .pickle.')
  elif not allow_pickle:
    raise ValueError(
      f'--captions={path} is a pickle, which can run any code when it is '
      'opened; pass --allow_pickle if you trust it, or give a csv file.'
    )
  else:
    columns, source = _pickle_rows(path)
  ids, texts = ('video_id', 'videoid'), ('text', 'name')
  need_columns(path, columns, [ids, texts])
  if max_text_length:
    need_columns(path, columns, [('txt_len',)])
  id_key = next(key for key in ids if key in columns)
  text_key = next(key for key in texts if key in columns)
  rows = Rows()
  for where, row, problem in source:
    rows.rows += 1
    video_id = present(row.get(id_key))
    if not problem and not video_id:
      problem = f'{id_key} is empty'
    length = 0
    if not problem and max_text_length:
      try:
        length = int(row['txt_len'])
      except (TypeError, ValueError, OverflowError):
        problem = f'txt_len is {row["txt_len"]!r}, expected a whole number'
    if problem:
      rows.bad(video_id, where, problem)
      continue
    if max_text_length and length >= max_text_length:
      rows.skip(f'{video_id}.mp4', 'text too long', f'{where}: {length=}')
      continue
    files = (f'{video_id}.mp4',)
    if page := present(row.get('page_dir')):
      files = (f'{page}/{video_id}.mp4', *files)
    rows.add_captions(where, files, [row[text_key]])
  return rows.result()


def _pickle_rows(path):
  try:
    import pandas  # noqa: PLC0415  Only this format needs it.
  except ImportError as e:
    raise ValueError(
      f'{path} is a pandas pickle, and pandas is not installed; '
      'pip install pandas, or give a csv file.'
    ) from e
  try:
    table = pandas.read_pickle(path)
    columns = [str(column) for column in table.columns]
  except Exception as e:
    raise ValueError(f'{path} holds no pandas DataFrame: {e}') from e

  def rows():
    for number, values in enumerate(table.itertuples(index=False)):
      yield f'{path}:row {number}', dict(zip(columns, values, strict=True)), ''

  return columns, rows()


def cc3m_rows(path):
  """Yields (where, row dict, problem) of CC3M's .tsv: caption, tab, address.

  The published files have no header; one that names these columns is passed
  over. A row has `caption` and, the address, `image`.
  """
  with open(path, 'rb') as file:
    for number, line in enumerate(file, 1):
      where = f'{path}:{number}'
      if number == 1:
        line = line.removeprefix(b'\xef\xbb\xbf')
      if not line.strip() or (number == 1 and line.strip() == b'caption\turl'):
        continue
      try:
        columns = line.decode('utf-8').rstrip('\r\n').split('\t')
      except UnicodeDecodeError:
        yield where, {}, 'not UTF-8'
        continue
      row = dict(zip(('caption', 'image'), columns, strict=False))
      fits = len(columns) == 2 and is_address(columns[1])
      yield where, row, '' if fits else ('expected a caption, a tab and an http(s) address')


def read_cc3m(path, images):
  """Reads captions of photos.

  Args:
    path: a .json list of {"image": path, "caption": text or list of texts}, or
      the published .tsv, whose photos launch/prepare.py fetch downloads.
    images: folder that the paths are relative to. An absolute path counts
      when it lies in this folder, and an address is the file that it was
      fetched into.
  Returns:
    Annotations; every clip is still.
  """
  path = check_file(path, '--captions')
  rows = Rows(images)
  source = (
    cc3m_rows(path)
    if path.lower().endswith('.tsv')
    else list_rows(path, read_json(path), '{"image": path, "caption": text}')
  )
  for where, entry, problem in source:
    rows.rows += 1
    image = entry.get('image')
    if problem or not isinstance(image, str) or 'caption' not in entry:
      rows.bad(image, where, problem or 'expected "image" and "caption"')
      continue
    if is_address(image):
      image = file_of(image.strip(), still=True)
    caption = entry['caption']
    rows.add_captions(
      where, (image,), caption if isinstance(caption, list) else [caption], still=True
    )
  return rows.result()
