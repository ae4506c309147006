"""Reads the annotations of MSRVTT, DiDeMo and MSVD into clips.

Each data set is read as it is published and as the original ALPRO has it, in
JSON lines. The two differ little but in the names of the columns,
so one reader knows all names. Captions and questions may come together: then
a video is stored once, whatever the number of its texts.
"""

from alpro_jax.data import annotations, checksum

# A column has the first of these names that a row has.
_COLUMNS = {
  'video': ('clip_name', 'video', 'video_id'),
  'caption': ('caption', 'description', 'sentence'),
  'question': ('question',),
  'answer': ('answer',),
}
_LANGUAGE = ' language'  # Added to rows of MSVD; no column begins like this.
# By what MSRVTT's videos say of themselves. 7k is the training set of those
# who test on the 1k-A list.
SUBSETS = {
  '7k': ('train', 'validate'),
  'train': ('train',),
  'validate': ('validate',),
  'test': ('test',),
}


def read_msrvtt(captions='', questions='', *, subset='', ids='', except_ids='', root=''):
  """Reads captions of MSRVTT, questions of MSRVTT-QA, or both.

  Args:
    captions: videodatainfo .json, {"videos": [{"video_id", "split"}],
      "sentences": [{"video_id", "caption"}]}; the .csv file of the 1k-A list
      (video_id, sentence); or .jsonl rows of clip_name and caption.
    questions: .json list of {"video_id", "question", "answer"}, where
      video_id is a number, or .jsonl rows of video_id (a name), question,
      answer and answer_type.
    subset: a key of SUBSETS; '' is all videos. Needs videodatainfo.
    ids, except_ids: files that list videos to read, and videos to leave out.
    root: folder of videos. An absolute path counts when it lies in it.
  Returns:
    Annotations.
  """
  source = _Source('.mp4', 'video{}', ids=ids, except_ids=except_ids, root=root)
  splits = None
  if captions:
    splits, entries = _msrvtt_captions(captions)
    if subset:
      source.keep_subset(subset, splits, captions)
    source.add_captions(entries)
  elif subset:
    raise ValueError(
      f'--subset={subset} needs --captions, the videodatainfo file: its videos name their split.'
    )
  if questions:
    source.add_questions(questions)
  return source.result()


def _msrvtt_captions(path):
  """Returns ({video: split} or None, rows of the captions)."""
  path = annotations.check_file(path, '--captions')
  if not path.lower().endswith('.json'):
    return None, _entries(path, '--captions')
  info = annotations.read_json(path)
  if not isinstance(info, dict):
    return None, annotations.list_rows(path, info, '{"video_id", "caption"}')
  splits = {}
  for _, video, _ in annotations.list_rows(
    f'{path}: "videos"', info.get('videos', []), '{"video_id", "split"}'
  ):
    if isinstance(video.get('video_id'), str):
      splits[video['video_id']] = video.get('split')
  if 'sentences' not in info:
    raise ValueError(f'{path} has {sorted(info)}, but no "sentences".')
  return splits, annotations.list_rows(
    path, info['sentences'], '{"video_id", "caption"}', 'sentence'
  )


def read_didemo(captions, *, ids='', except_ids='', root=''):
  """Reads DiDeMo; the sentences of a video become one paragraph, in order.

  The times of the sentences are not used: as in the original, a paragraph is
  about all of its video.

  Args:
    captions: .json list of {"video", "description"}, or .jsonl rows of
      clip_name and caption.
    ids, except_ids, root: as for read_msrvtt.
  Returns:
    Annotations.
  """
  source = _Source('.mp4', ids=ids, except_ids=except_ids, root=root)
  source.add_captions(_entries(captions, '--captions'), join=True)
  return source.result()


def read_msvd(captions='', questions='', *, mapping='', ids='', except_ids='', root=''):
  """Reads questions of MSVD-QA, captions of MSVD, or both.

  Args:
    captions: the published .csv (VideoID, Start, End, Language, Description),
      of which the English rows are read, or AllVideoDescriptions.txt, lines of
      '<VideoID>_<Start>_<End> caption'; or .jsonl rows of clip_name and
      caption.
    questions: .json list of {"video_id", "question", "answer"}, where
      video_id is a number n, or .jsonl rows of video_id (a name), question,
      answer and answer_type.
    mapping: youtube_mapping.txt, lines of '<name of a clip> vid<n>'. Without
      it the videos must be called vid<n>.
    ids, except_ids, root: as for read_msrvtt.
  Returns:
    Annotations.
  """
  source = _Source('.avi', 'vid{}', mapping=mapping, ids=ids, except_ids=except_ids, root=root)
  if captions:
    source.add_captions(_msvd_captions(captions))
  if questions:
    source.add_questions(questions)
  return source.result()


def _msvd_captions(path):
  """Returns (where, row, problem) of a file of MSVD's captions."""
  path = annotations.check_file(path, '--captions')
  if path.lower().endswith('.txt'):
    return _msvd_lines(path)
  rows = _entries(path, '--captions')
  return map(_named_by_times, rows) if path.lower().endswith('.csv') else rows


def _msvd_lines(path):
  for number, line in enumerate(checksum.read_lines(path), 1):
    if line.strip() and not line.startswith('#'):
      video, *caption = line.split(None, 1)
      yield f'{path}:{number}', {'video': video, 'caption': ''.join(caption)}, ''


def _named_by_times(entry):
  """Gives a row of MSVD's csv the names of other files; leaves others."""
  where, row, problem = entry
  if problem or 'VideoID' not in row:
    return entry
  parts = [annotations.present(row.get(key)) for key in ('VideoID', 'Start', 'End')]
  if not all(parts) or 'Description' not in row:
    problem = 'expected VideoID, Start, End and Description'
  return (
    where,
    {
      'video': '_'.join(parts),
      'caption': row.get('Description'),
      _LANGUAGE: annotations.present(row.get('Language')),
    },
    problem,
  )


class _Source:
  """One data set: which videos are wanted, and what they are called.

  Args:
    suffix: of the videos, as published.
    numbered: name of a video that is only a number, with {} for it; '' where
      there are none.
    mapping: file that gives such names others.
    ids, except_ids: files that list videos to read, and videos to leave out.
    root: folder of videos.
  """

  def __init__(self, suffix, numbered='', *, mapping='', ids='', except_ids='', root=''):
    self._rows = annotations.Rows(root)
    self._suffixes = (suffix, *annotations.VIDEO_SUFFIXES)
    self._numbered = numbered
    self._mapping = _read_mapping(mapping) if mapping else {}
    self._mapping_path = mapping
    self._ids = _read_ids(ids, '--ids') if ids else None
    self._ids_path = ids
    self._except = set(_read_ids(except_ids, '--except_ids') if except_ids else ())
    self._left_out = set()
    self._splits = self._subset = None
    self._annotated = set()

  def keep_subset(self, subset, splits, path):
    """Wants no video but those of a subset.

    Args:
      subset: a key of SUBSETS.
      splits: {video: its split}, or None.
      path: the file they are from.
    """
    if not splits:
      raise ValueError(
        f'--subset={subset} needs a videodatainfo file, whose videos name '
        f'their split; {path} has none. --ids takes a list of videos.'
      )
    self._splits = {_stem(video): split for video, split in splits.items()}
    self._subset = {video for video, split in self._splits.items() if split in SUBSETS[subset]}

  def add_captions(self, entries, join=False):
    """Adds rows of captions; join makes one paragraph of each video's."""
    paragraphs = {}
    for where, _, files, (caption,) in self._read(entries, 'caption'):
      captions = caption if isinstance(caption, list) else [caption]
      if join and not any(annotations.text_problem('caption', text) for text in captions):
        texts = list(filter(None, map(annotations.present, captions)))
        if texts:
          paragraphs.setdefault(files[0], (where, files, []))[2].extend(texts)
          continue
      self._rows.add_captions(where, files, captions)
    for where, files, texts in paragraphs.values():
      self._rows.add_captions(where, files, [' '.join(texts)])

  def add_questions(self, path):
    for where, row, files, (question, answer) in self._read(
      _entries(path, '--questions'), 'question', 'answer'
    ):
      self._rows.add_question(
        where, files, question, answer, row.get('answer_type') or row.get('type') or ''
      )

  def result(self):
    for name in self._ids or ():
      if name not in self._annotated:
        self._rows.skip(name, 'not annotated', f'{self._ids_path} lists it')
    self._rows.not_found = len(self._except - self._left_out)
    return self._rows.result()

  def _read(self, entries, *columns):
    """Yields (where, row, files, values of the columns) of wanted videos."""
    columns = ('video', *columns)
    for where, row, problem in entries:
      self._rows.rows += 1
      keys = [next((key for key in _COLUMNS[column] if key in row), None) for column in columns]
      video, name = row[keys[0]] if keys[0] else '', ''
      video = self._rows.relative(video)
      if not problem and None in keys:
        missing = _COLUMNS[columns[keys.index(None)]]
        problem = f'no {" or ".join(map(repr, missing))}, only {sorted(row)}'
      if not problem:
        name, problem = self._name(video)
      # Questions may be of more videos than the file of the captions.
      if not problem and self._splits and columns[1] == 'caption' and (name not in self._splits):
        problem = f'"videos" does not name the split of {name!r}'
      if problem:
        self._rows.bad(video, where, problem)
      elif not self._wants(name) or row.get(_LANGUAGE, '') not in ('', 'English'):
        self._rows.other_splits += 1
        self._left_out.update({name} & self._except)
      else:
        self._annotated.add(name)
        yield (where, row, self._files(name, video), [row[key] for key in keys[1:]])

  def _name(self, video):
    """Returns the name of a video without its suffix, and a problem or ''."""
    number = type(video) is int or isinstance(video, str) and video.isdecimal()
    if number and self._numbered:
      video = self._numbered.format(video)
      if self._mapping and video not in self._mapping:
        return '', f'{video} is not in {self._mapping_path}'
    problem = annotations.text_problem('the name of the video', video)
    return ('', problem) if problem else (self._mapping.get(video, _stem(video)), '')

  def _wants(self, name):
    return (
      (self._ids is None or name in self._ids)
      and name not in self._except
      and (self._subset is None or name in self._subset)
    )

  def _files(self, name, video):
    """Returns where a video may lie; the first path names the record."""
    if not name:
      return ('',)
    names = [name + suffix for suffix in self._suffixes]
    if isinstance(video, str) and _stem(video) == name != video:
      # DiDeMo's download script adds a second suffix.
      names += [video, f'{video}.mp4']
    return tuple(dict.fromkeys(names))


def _stem(name):
  name = name.strip()
  for suffix in annotations.VIDEO_SUFFIXES:
    if name.lower().endswith(suffix):
      return name[: -len(suffix)]
  return name


def _entries(path, flag):
  """Returns (where, row, problem) of a .json list, .jsonl or .csv file."""
  path = annotations.check_file(path, flag)
  if path.lower().endswith('.json'):
    return annotations.list_rows(path, annotations.read_json(path), 'one object for each text')
  if path.lower().endswith('.jsonl'):
    return annotations.jsonl_rows(path)
  if not path.lower().endswith('.csv'):
    raise ValueError(f'{flag}={path} must end in .json, .jsonl or .csv.')
  rows = annotations.csv_rows(path)
  next(rows)  # The names of the columns.
  return rows


def _read_ids(path, flag):
  """Returns {name: True}: a .csv file's video_id, or the lines of a .txt."""
  path = annotations.check_file(path, flag)
  if path.lower().endswith('.csv'):
    rows = annotations.csv_rows(path)
    _, columns, _ = next(rows)
    annotations.need_columns(path, columns, [('video_id',)])
    names = []
    for where, row, problem in rows:
      if problem:
        raise ValueError(f'{where}: {problem}.')
      names.append(row['video_id'])
  else:
    names = checksum.read_lines(path)
  names = {_stem(name): True for name in names if name.strip()}
  if not names:
    raise ValueError(f'{flag}={path} lists no video.')
  return names


def _read_mapping(path):
  """Returns {'vid<n>': name of the clip}."""
  path = annotations.check_file(path, '--mapping')
  mapping = {}
  for number, line in enumerate(checksum.read_lines(path), 1):
    words = line.split()
    if len(words) == 2:
      if mapping.setdefault(words[1], words[0]) != words[0]:
        raise ValueError(
          f'{path}:{number}: {words[1]} is {words[0]!r} here and {mapping[words[1]]!r} before.'
        )
    elif words:
      raise ValueError(
        f'{path}:{number}: {line.strip()!r}, expected the name of a clip, a blank, and vid<n>.'
      )
  if not mapping:
    raise ValueError(f'--mapping={path} is empty.')
  return mapping
