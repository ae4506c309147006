"""The data sets that launch/prepare.py reads, in one table.

A reader is a function (captions, root, ...) -> Annotations. Its other arguments are flags
of the command: `questions` and `split` for those who ask for them, and its own options,
whose annotations say type and help. So a new data set is one function and one line of
SOURCES; docs/research.md has an example.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from alpro_jax.data import checksum, tables
from alpro_jax.data.annotations import Annotations, check_text, encodable, present
from alpro_jax.data.clips import Clips
from alpro_jax.data.names import ADDRESSES, VIDEO_SUFFIXES, canonical, file_of, is_address
from alpro_jax.data.options import options_of

Questions = Annotated[str, 'questions file, with or without captions.']
TextLength = Annotated[int, 'keep rows with a smaller txt_len, the original used 80; 0 keeps all.']
AllowPickle = Annotated[bool, 'open a pandas pickle, which can run any code.']
Subset = Annotated[
  Literal['', '7k', 'train', 'validate', 'test'],
  "videos of this split, as the videodatainfo file has it; 7k is 'train' and 'validate' (all).",
]
Names = Annotated[str, 'youtube_mapping.txt; without it the videos must be called vid<number>.']
Ids = Annotated[
  str, 'keep only the videos of this list, a .csv file with video_id or a .txt with one a line.'
]
ExceptIds = Annotated[str, 'leave out the videos of this list.']


def read_folder(captions='', questions: Questions = '', *, split='train', root='') -> Annotations:
  """Reads captions, questions, or both, of videos named by their files.

  Args:
    captions: rows of `video` (a file, also of a photo, or the address that it was fetched
      from, which may also be called `url` or `contentUrl`), `caption` (in JSON also a list)
      and, optional, `style` and `split`.
    questions: rows of `video` as above, `question`, `answer` and, optional, `type` (or
      `answer_type`) and `split`.
    split: rows that name another split are left out.
    root: folder of videos. An absolute path counts when it lies in it.
  """

  def locate(row, video):
    for name in row:
      if (meant := name.strip().lower()) != name and meant in known and meant not in row:
        raise ValueError(f'there is a {name!r}, which is not read; call it {meant!r}')
    if not present(video):  # It was fetched by another column.
      video = next((x for x in map(row.get, ADDRESSES) if is_address(x)), video)
    video = file_of(video.strip()) if is_address(video) else video
    if present(row.get('split')) in ('', split):
      return (video,)
    clips.named.add(canonical(video or ''))

  clips = Clips(root, locate)
  texts = ('video', 'style', 'split', 'type', 'answer_type')
  known = (*texts, 'caption', 'question', 'answer')
  video = ('video', *ADDRESSES)
  columns = [video, ('caption',)]
  for where, row, *caption in clips.read(captions, '--captions', *columns, texts=texts):
    clips.add_captions(where, *caption, present(row.get('style')))
  columns = [video, ('question',), ('answer',)]
  for where, row, *asked in clips.read(questions, '--questions', *columns, texts=texts):
    kind = present(row.get('type')) or present(row.get('answer_type'))
    clips.add_question(where, *asked, kind)
  return clips.result()


def read_webvid(
  captions, *, root='', txt_len_below: TextLength = 0, allow_pickle: AllowPickle = False
) -> Annotations:
  """Reads WebVid's rows: video_id, text and, optional, txt_len and page_dir.

  The names of the published csv files (videoid, name, page_dir) count too. Videos are
  <page_dir>/<id>.mp4 or <id>.mp4. The original's pandas pickle is read as well.
  """
  if str(captions).lower().endswith(('.pkl', '.pickle')) and not allow_pickle:
    raise ValueError(
      f'--captions={captions} is a pickle, which can run any code when it is '
      'opened; pass --allow_pickle if you trust it, or give a csv file.'
    )

  def locate(row, video):
    video, page = present(video), present(row.get('page_dir'))
    if not video:
      raise ValueError('the id of the video is empty')
    if txt_len_below:
      try:
        row['txt_len'] = int(row['txt_len'])
      except (TypeError, ValueError, OverflowError):
        raise ValueError(f'txt_len is {row["txt_len"]!r}, expected a whole number') from None
    return (f'{page}/{video}.mp4', f'{video}.mp4') if page else (f'{video}.mp4',)

  clips = Clips(root, locate)
  formats = {'.csv': tables.csv_rows, '.pkl': tables.pickle_rows, '.pickle': tables.pickle_rows}
  columns = [('video_id', 'videoid'), ('text', 'name')] + [('txt_len',)] * bool(txt_len_below)
  rows = clips.read(captions, '--captions', *columns, formats=formats)
  for where, _, files, text, *length in rows:
    if length and length[0] >= txt_len_below:
      clips.skip(files[-1], 'text too long', f'{where}: length={length[0]}')
    else:
      clips.add_captions(where, files, text)
  return clips.result()


def read_cc3m(captions, root='') -> Annotations:
  """Reads captions of photos.

  Args:
    captions: a JSON list of {"image": path, "caption": text or list of texts}, or the
      published .tsv. An address is the file that `launch/prepare.py fetch` makes of it.
    root: folder of photos. An absolute path counts when it lies in it.
  """

  def locate(row, image):
    return (file_of(image.strip(), still=True) if is_address(image) else image,)

  clips = Clips(root, locate)
  formats = {'.tsv': tables.cc3m_rows, '': tables.json_rows}
  columns = [('image',), ('caption',)]
  rows = clips.read(captions, '--captions', *columns, formats=formats, texts=('image',))
  for where, _, files, caption in rows:
    clips.add_captions(where, files, caption, still=True)
  return clips.result()


def read_msrvtt(
  captions='',
  questions: Questions = '',
  *,
  root='',
  subset: Subset = '',
  ids: Ids = '',
  except_ids: ExceptIds = '',
) -> Annotations:
  """Reads captions of MSRVTT, questions of MSRVTT-QA, or both.

  Args:
    captions: videodatainfo .json, {"videos": [{"video_id", "split"}], "sentences":
      [{"video_id", "caption"}]}; or the .csv file of the 1k-A list (video_id, sentence).
    questions: .json list of {"video_id", "question", "answer"}; video_id is a number.
    root: folder of videos. An absolute path counts when it lies in it.
    subset: needs videodatainfo. 7k is for those who test on the 1k-A list.
    ids, except_ids: files that list videos to read, and videos to leave out.
  """
  if subset and not captions:
    raise ValueError(
      f'--subset={subset} needs --captions, the videodatainfo file: its videos name their split.'
    )
  clips = _Published('.mp4', root, ids, except_ids, numbered='video{}')
  clips.wanted_splits = ('train', 'validate') if subset == '7k' else (subset,)

  def videodatainfo(path, columns):
    info = tables.read_json(path)
    if not isinstance(info, dict):
      return tables.list_rows(path, info)
    for _, row, _ in tables.list_rows(f'{path}: "videos"', info.get('videos', [])):
      if subset and isinstance(row.get('video_id'), str):
        clips.splits[_stem(row['video_id'])] = row.get('split')
    if 'sentences' not in info:
      raise ValueError(f'{path} has {sorted(info)}, but no "sentences".')
    return tables.list_rows(path, info['sentences'], 'sentence')

  clips.add_captions_of(captions, {'.json': videodatainfo})
  if subset and not clips.splits:
    raise ValueError(
      f'--subset={subset} needs a videodatainfo file, whose videos name '
      f'their split; {captions} has none. --ids takes a list of videos.'
    )
  clips.add_questions_of(questions)
  return clips.result()


def read_didemo(captions, *, root='', ids: Ids = '', except_ids: ExceptIds = '') -> Annotations:
  """Reads DiDeMo, a .json list of {"video", "description"}.

  The sentences of a video become one paragraph, in order. Their times are not used: as in
  the original, a paragraph is about all of its video.
  """
  clips = _Published('.mp4', root, ids, except_ids)
  clips.add_captions_of(captions, join=True)
  return clips.result()


def read_msvd(
  captions='',
  questions: Questions = '',
  *,
  root='',
  mapping: Names = '',
  ids: Ids = '',
  except_ids: ExceptIds = '',
) -> Annotations:
  """Reads questions of MSVD-QA, captions of MSVD, or both.

  Args:
    captions: the published .csv (VideoID, Start, End, Language, Description), of which
      the English rows are read, or AllVideoDescriptions.txt.
    questions: .json list of {"video_id", "question", "answer"}; video_id is a number n.
    mapping: youtube_mapping.txt, lines of '<name of a clip> vid<n>'.
    root, ids, except_ids: as for read_msrvtt.
  """
  clips = _Published('.avi', root, ids, except_ids, numbered='vid{}', mapping=mapping)
  clips.add_captions_of(captions, {'.csv': _msvd_table, '.txt': tables.msvd_rows})
  clips.add_questions_of(questions)
  return clips.result()


class Source(NamedTuple):
  """A data set."""

  read: Callable[..., Annotations]  # See above.
  folder: str = 'videos'  # Flag of the folder of its videos or photos.
  whole: bool = False  # Its files name all videos of that folder; the report lists others.


SOURCES = {
  'folder': Source(read_folder, whole=True),
  'webvid': Source(read_webvid),
  'cc3m': Source(read_cc3m, folder='images'),
  'msrvtt': Source(read_msrvtt),
  'didemo': Source(read_didemo),
  'msvd': Source(read_msvd),
}


def options() -> dict[str, tuple[Any, Any, str, list[str]]]:
  """Returns {name: (type, default, help, sources)} of what only some sources have."""
  found = {}
  for source, (reader, *_) in SOURCES.items():
    for name, (kind, default, text) in options_of(reader).items():
      found.setdefault(name, (kind, default, text, []))[3].append(source)
  return found


def read(source: str, given: Mapping[str, Any]) -> Annotations:
  """Reads the annotations of a source, given values of captions, root, split and options.

  Raises:
    ValueError, FileNotFoundError: one is missing, is not for this source, or is wrong.
  """
  reader = SOURCES[source].read
  wanted = inspect.signature(reader).parameters
  for option, (*_, sources) in options().items():
    if given.get(option) and option not in wanted:
      raise ValueError(f'--source={source} has no --{option}; it is for {", ".join(sources)}.')
  if not (given['captions'] or given.get('questions')):
    both = ', --questions, or both' if 'questions' in wanted else ''
    raise ValueError(f'--source={source} needs --captions{both}.')
  return reader(**{name: given[name] for name in wanted if name in given})


# --- MSRVTT, DiDeMo and MSVD: as published, and as the original ALPRO has them ---

_FORMATS = {'.json': tables.json_rows, '.jsonl': tables.jsonl_rows, '.csv': tables.csv_rows}
_VIDEO = ('clip_name', 'video', 'video_id')


class _Published(Clips):
  """The clips of a data set of which lists and splits are known.

  A video that is only a number is called `numbered`, with the number for {}; `mapping` is a
  file that gives such names others. `suffix` is that of the videos, as published.
  """

  def __init__(self, suffix, root, ids, except_ids, numbered='', mapping=''):
    super().__init__(root, self._files)
    self._suffixes = (suffix, *VIDEO_SUFFIXES)
    self._numbered, self._mapping_path, self._ids_path = numbered, mapping, ids
    self._mapping = _read_mapping(mapping) if mapping else {}
    # Whether each was found.
    self._ids = _read_ids(ids, '--ids') if ids else {}
    self._except = _read_ids(except_ids, '--except_ids') if except_ids else {}
    self.splits, self.wanted_splits = {}, ()

  def add_captions_of(self, path, formats=(), join=False):
    """Adds a file's captions; join makes one paragraph of each video's."""
    columns = [_VIDEO, ('caption', 'description', 'sentence')]
    formats, paragraphs = _FORMATS | dict(formats), {}
    for where, _, files, caption in self.read(path, '--captions', *columns, formats=formats):
      texts = caption if isinstance(caption, list) else [caption]
      sound = join and all(isinstance(text, str) and encodable(text) for text in texts)
      if sound and (texts := [*filter(None, map(present, texts))]):
        paragraphs.setdefault(files[0], (where, files, []))[2].extend(texts)
      else:
        self.add_captions(where, files, caption)
    for where, files, texts in paragraphs.values():
      self.add_captions(where, files, ' '.join(texts))

  def add_questions_of(self, path):
    columns = [_VIDEO, ('question',), ('answer',)]
    for where, row, *asked in self.read(path, '--questions', *columns, formats=_FORMATS):
      self.add_question(where, *asked, row.get('answer_type') or row.get('type') or '')

  def _files(self, row, video):
    if self._numbered and (type(video) is int or str(video).isdecimal()):
      video = self._numbered.format(video)
      if self._mapping and video not in self._mapping:
        raise ValueError(f'{video} is not in {self._mapping_path}')
    check_text('the name of the video', video)
    name = self._mapping.get(video, _stem(video))
    # Questions may be of more videos than the file of the captions.
    if self.splits and name not in self.splits and 'question' not in row:
      raise ValueError(f'"videos" does not name the split of {name!r}')
    if name in self._except:
      self._except[name] = True
      return None
    if self._ids and name not in self._ids:
      return None
    if 'VideoID' in row and present(row.get('Language')) not in ('', 'English'):  # MSVD.
      return None
    if self.splits and self.splits.get(name) not in self.wanted_splits:
      return None
    if name in self._ids:
      self._ids[name] = True
    if not name:
      return ('',)
    files = [name + suffix for suffix in self._suffixes]
    if _stem(video) == name != video:
      files += [video, f'{video}.mp4']  # DiDeMo's download script adds a second suffix.
    return tuple(dict.fromkeys(files))

  def result(self):
    for name, found in self._ids.items():
      if not found:
        self.skip(name, 'not annotated', f'{self._ids_path} lists it')
    self.not_found = list(self._except.values()).count(False)
    return super().result()


def _msvd_table(path, columns):
  """Reads MSVD's .csv: a video's name has its times."""
  for where, row, problem in tables.csv_rows(path):
    if not problem and 'VideoID' in row:
      parts = [present(row.get(key)) for key in ('VideoID', 'Start', 'End')]
      if not all(parts) or 'Description' not in row:
        problem = 'expected VideoID, Start, End and Description'
      row |= {'video': '_'.join(parts), 'caption': row.get('Description')}
    yield where, row, problem


def _stem(name):
  name = name.strip()
  suffix = next((suffix for suffix in VIDEO_SUFFIXES if name.lower().endswith(suffix)), '')
  return name[: len(name) - len(suffix)]


def _read_ids(path, flag):
  """Returns {name: False}: a .csv file's video_id, or the lines of a .txt."""
  if tables.check_file(path, flag).lower().endswith('.csv'):
    names = []
    for where, row, problem in tables.csv_rows(path, [('video_id',)]):
      if problem:
        raise ValueError(f'{where}: {problem}.')
      names.append(row['video_id'])
  else:
    names = checksum.read_lines(path)
  names = {_stem(name): False for name in names if name.strip()}
  if not names:
    raise ValueError(f'{flag}={path} lists no video.')
  return names


def _read_mapping(path):
  """Returns {'vid<n>': name of the clip}."""
  mapping = {}
  for number, line in enumerate(checksum.read_lines(tables.check_file(path, '--mapping')), 1):
    words = line.split()
    if len(words) not in (0, 2):
      raise ValueError(
        f'{path}:{number}: {line.strip()!r}, expected the name of a clip, a blank, and vid<n>.'
      )
    if words and mapping.setdefault(words[1], words[0]) != words[0]:
      raise ValueError(
        f'{path}:{number}: {words[1]} is {words[0]!r} here and {mapping[words[1]]!r} before.'
      )
  if not mapping:
    raise ValueError(f'--mapping={path} is empty.')
  return mapping
