"""The rows of annotation files, whatever their format.

Each reader yields (where, row, problem): 'file:line' for the report, a dict, and what is
wrong with the row, '' if nothing is. A bad row is never raised, so that one typing error
does not cost a night; what makes the whole file useless is a ValueError.
"""

import csv
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from alpro_jax.data import annotations, checksum
from alpro_jax.data.names import is_address

Rows = Iterator[tuple[str, dict, str]]
_BOM = b'\xef\xbb\xbf'


def read(path, flag: str, formats: Mapping[str, Callable], columns=()) -> Rows:
  """Returns the rows of a file.

  Args:
    path, flag: the file, and what named it.
    formats: {suffix: reader(path, columns)}; '' is for all other suffixes.
    columns: which a table must have, each as a tuple of the names that it may have.
  Raises:
    FileNotFoundError, ValueError: there is no such file, or it has another suffix.
  """
  path = check_file(path, flag)
  reader = formats.get(os.path.splitext(path)[1].lower(), formats.get(''))
  if reader is None:
    *most, last = formats
    raise ValueError(f'{flag}={path} must end in {", ".join(most)} or {last}.')
  return reader(path, columns)


def check_file(path, flag: str) -> str:
  path = os.fspath(path)
  if not os.path.isfile(path):
    raise FileNotFoundError(f'{flag}={path} is not a file.')
  return path


def csv_rows(path, columns=()) -> Rows:
  """Reads a table whose first line names its columns.

  Quotes are taken strictly: one that is never closed would else swallow all rows up to
  the next quote, without a word.
  """
  csv.field_size_limit(1 << 24)
  # Bytes that are not UTF-8 become surrogates and are found row by row.
  with open(path, encoding='utf-8-sig', errors='surrogateescape', newline='') as file:
    reader = csv.reader(file, strict=True)
    try:
      header = next(reader, [])
    except csv.Error as e:
      raise ValueError(f'{path} is not CSV: its first line: {e}.') from e
    _check_columns(path, header, columns)
    while True:
      first = reader.line_num + 1
      cells, problem = [], ''
      try:
        if not (cells := next(reader)):
          continue  # A blank line.
      except StopIteration:
        return
      except csv.Error as e:
        problem = f'{e}; is a quote not closed, or not doubled?'
      if cells and len(cells) != len(header):
        problem = f'{len(cells)} columns, expected {len(header)}'
        if len(cells) > len(header):
          problem += '; quote fields that hold a comma'
      elif not all(map(annotations.encodable, cells)):
        problem = 'not UTF-8'
      last = reader.line_num
      where = f'{path}:{first}-{last}' if last > first else f'{path}:{first}'
      yield where, dict(zip(header, cells, strict=False)), problem


def jsonl_rows(path, columns=()) -> Rows:
  """Reads one JSON object a line, or a JSON list of them.

  A file that begins with [ is a list, unless its first line is JSON of its own and more follow.
  """
  _, first, _ = next(_lines(path), ('', '', ''))
  if first.lstrip().startswith('['):
    try:
      return json_rows(path)
    except ValueError:
      if _parsed('', first, '')[2].startswith('not JSON'):
        raise
  return itertools.starmap(_parsed, _lines(path))


def json_rows(path, columns=()) -> Rows:
  """Reads a JSON list of objects."""
  return list_rows(path, read_json(path))


def list_rows(path, entries, word: str = 'entry') -> Rows:
  """Returns the rows of a list that a JSON file holds."""
  if not isinstance(entries, list):
    raise ValueError(
      f'{path} holds a JSON {type(entries).__name__}, expected a list of one object for each text.'
    )
  return ((f'{path}:{word} {number}', *_object(entry)) for number, entry in enumerate(entries))


def read_json(path):
  try:
    with open(path, encoding='utf-8-sig') as file:
      return json.load(file, object_pairs_hook=_Row.of)
  except (ValueError, RecursionError) as e:
    raise ValueError(f'{path} is not JSON: {e}') from e


def cc3m_rows(path, columns=()) -> Rows:
  """Reads CC3M's .tsv: caption, tab, address.

  The published files have no header; one that names these columns is passed over. A row
  has `caption` and, the address, `image`.
  """
  for number, (where, line, problem) in enumerate(_lines(path)):
    if number == 0 and line.strip() == 'caption\turl':
      continue
    cells = line.rstrip('\r\n').split('\t')
    if not problem and not (len(cells) == 2 and is_address(cells[1])):
      problem = 'expected a caption, a tab and an http(s) address'
    yield where, dict(zip(('caption', 'image'), cells, strict=False)), problem


def msvd_rows(path, columns=()) -> Rows:
  """Reads MSVD's AllVideoDescriptions.txt: lines of '<VideoID>_<Start>_<End> caption'."""
  for number, line in enumerate(checksum.read_lines(path), 1):
    if line.strip() and not line.startswith('#'):
      video, *caption = line.split(None, 1)
      yield f'{path}:{number}', {'video': video, 'caption': ''.join(caption)}, ''


def pickle_rows(path, columns=()) -> Rows:
  """Reads a pickled pandas DataFrame, which can run any code when it is opened."""
  try:
    import pandas  # noqa: PLC0415  Only this format needs it.
  except ImportError as e:
    raise ValueError(
      f'{path} is a pandas pickle, and pandas is not installed; '
      'pip install pandas, or give a csv file.'
    ) from e
  try:
    table = pandas.read_pickle(path)
    header = [str(column) for column in table.columns]
  except Exception as e:
    raise ValueError(f'{path} holds no pandas DataFrame: {e}') from e
  _check_columns(path, header, columns)
  for number, values in enumerate(table.itertuples(index=False)):
    yield f'{path}:row {number}', dict(zip(header, values, strict=True)), ''


# What is read as captions or questions unless a data set has formats of its own.
TEXTS = {'.csv': csv_rows, '.jsonl': jsonl_rows, '.json': jsonl_rows, '.ndjson': jsonl_rows}


def _lines(path):
  """Yields (where, text, problem) of the lines that are not blank."""
  with open(path, 'rb') as file:
    for number, line in enumerate(file, 1):
      line = line.removeprefix(_BOM) if number == 1 else line
      try:
        text, problem = line.decode('utf-8'), ''
      except UnicodeDecodeError:
        text, problem = '', 'not UTF-8'
      if line.strip():
        yield f'{path}:{number}', text, problem


def _parsed(where, line, problem):
  """Returns the row of a line of JSON."""
  try:
    if problem:
      return where, {}, problem
    return where, *_object(json.loads(line, object_pairs_hook=_Row.of))
  except (ValueError, RecursionError) as e:
    return where, {}, f'not JSON: {e}'


class _Row(dict):
  """An object of JSON, which may name a key twice; Python would keep the last value."""

  twice = ''

  @classmethod
  def of(cls, pairs):
    row = cls(pairs)
    if len(row) < len(pairs):
      row.twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
    return row


def _object(value):
  """Returns (dict, problem)."""
  if isinstance(value, _Row):
    return value, f'{value.twice!r} occurs twice' if value.twice else ''
  return {}, f'{type(value).__name__}, expected an object'


def _check_columns(path, got: Sequence[str], columns) -> None:
  twice = [name for name, count in Counter(got).items() if name and count > 1]
  if twice:
    raise ValueError(f'{path} names its column {twice[0]!r} twice.')
  missing = [' or '.join(names) for names in columns if not any(name in got for name in names)]
  if missing:
    raise ValueError(
      f'{path} has the columns {list(got)}, but not {", ".join(missing)}; '
      'the first line of a csv file must name its columns.'
    )
