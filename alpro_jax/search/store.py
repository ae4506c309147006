"""The index of a folder of videos: one SQLite file.

Whatever happens, a video is in it whole or not at all: its rows are written in
one transaction. Bytes of a clip: its vector, 4 E; a strip of thumbnails, about
10 kB; and, unless tokens are not kept, 2 S D of float16 for the fusion encoder
(ALPRO base at 224: 197 * 768 * 2 = 303 kB). Without tokens a search decodes
the videos of its candidates again, which takes seconds instead of
milliseconds and needs the files.

Names are bytes, as the file system has them: they need not be text. A video is
the same as long as its size, its time and its first and last blocks are.
"""

import contextlib
import json
import os
import pathlib
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from alpro_jax import files
from alpro_jax.data.annotations import printable
from alpro_jax.search.cut import Cutting

FORMAT = 1
FILE = 'index.sqlite'

_TABLES = """
CREATE TABLE about (value TEXT NOT NULL);
CREATE TABLE videos (
  id INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, size INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
  ends BLOB);
CREATE TABLE clips (
  id INTEGER PRIMARY KEY, video INTEGER NOT NULL, start REAL NOT NULL,
  stop REAL NOT NULL, vector BLOB NOT NULL);
CREATE TABLE kept (clip INTEGER PRIMARY KEY, strip BLOB NOT NULL, tokens BLOB);
CREATE INDEX clips_of_video ON clips (video);
"""

# What SQLite says, by the beginning of its name for it, and what would help.
_REPEAT = 'repeat the command, which goes on from what is stored'
_MOVE = 'change that or copy the folder to another place'
_SAID = {
  'SQLITE_FULL': f'the disk is full; free space there and {_REPEAT}',
  'SQLITE_IOERR': f'the disk failed or is full; look after it and {_REPEAT}',
  'SQLITE_BUSY': 'another program holds it; wait for that and repeat the command',
  'SQLITE_READONLY': f'it, or its folder, may not be written to; {_MOVE}',
  'SQLITE_CANTOPEN': f'it, or its folder, may not be read or written to; {_MOVE}',
  'SQLITE_PERM': 'it may not be read; change that',
}


class File(NamedTuple):
  """A video file as it was seen."""

  name: bytes  # Below the folder.
  size: int
  mtime_ns: int
  ends: bytes | None = None  # See files.ends_digest; older indexes have none.

  def is_now(self, other: 'File') -> bool:
    """Whether a video that was seen again is still the same."""
    return self[:3] == other[:3] and self.ends in (None, other.ends)


def look_at(root: bytes, name: bytes) -> File:
  """Looks at a video below a folder; raises OSError if it cannot be read."""
  with open(os.path.join(root, name), 'rb') as file:
    about = os.fstat(file.fileno())
    return File(name, about.st_size, about.st_mtime_ns, files.ends_digest(file))


class Row(NamedTuple):
  """A clip to store."""

  start: float  # In seconds.
  stop: float
  vector: np.ndarray  # float32[E]
  tokens: np.ndarray | None  # float16[S, D]
  strip: bytes  # JPEG


class Clips(NamedTuple):
  """All clips of an index."""

  id: np.ndarray  # int64[n]
  name: list[bytes]  # Of the video of each.
  start: np.ndarray  # float64[n], seconds.
  stop: np.ndarray
  vector: np.ndarray  # float32[n, E], unit length.


def show_name(name: bytes) -> str:
  """A name on one line, whatever is in it."""
  return printable(name.decode('utf-8', 'backslashreplace'))


class Store:
  """An open index.

  Attributes:
    about: what it is an index of, and how it was made.
  """

  def __init__(self, folder, connection):
    self.folder = pathlib.Path(folder)
    self._connection = connection
    about = self._ask('SELECT value FROM about')
    try:
      self.about = json.loads(about[0][0])
    except (IndexError, TypeError, ValueError) as error:
      raise ValueError(
        f'{self.folder / FILE} is no index ({error}); remove it and index again.'
      ) from error
    self._has_ends = 'ends' in [column[1] for column in self._ask('PRAGMA table_info(videos)')]

  @classmethod
  def create(cls, folder, about: dict[str, Any]) -> 'Store':
    """Makes an empty index."""
    path = pathlib.Path(folder) / FILE
    # Written aside and renamed, so that an index is never half made.
    with (
      files.file(path) as made,
      _in_words(path),
      contextlib.closing(sqlite3.connect(made)) as connection,
    ):
      connection.executescript(_TABLES)
      connection.execute('INSERT INTO about VALUES (?)', (json.dumps({'format': FORMAT, **about}),))
      connection.commit()
    return cls.open(folder)

  @classmethod
  def open(cls, folder) -> 'Store':
    """Opens an index.

    Raises:
      FileNotFoundError: if there is none.
      OSError: if it cannot be read.
      ValueError: if it is none of ours.
    """
    path = pathlib.Path(folder) / FILE
    if not cls.exists(folder):
      raise FileNotFoundError(
        f'{folder} holds no {FILE}; make one with `search.py index DIR --checkpoint=... '
        '--index=...`, or model.index(DIR, ...).'
      )
    with contextlib.ExitStack() as opened, _in_words(path):
      connection = opened.enter_context(contextlib.closing(sqlite3.connect(path, timeout=60)))
      store = cls(folder, connection)
      if store.about.get('format') != FORMAT:
        raise ValueError(
          f'{path} has format {store.about.get("format")}, this is {FORMAT}; '
          'index into another folder.'
        )
      opened.pop_all()
    return store

  @staticmethod
  def exists(folder) -> bool:
    return (pathlib.Path(folder) / FILE).is_file()

  def close(self) -> None:
    self._connection.close()

  @property
  def root(self) -> bytes:
    """The folder of videos, as the file system has it."""
    return bytes.fromhex(self.about['root_bytes'])

  @property
  def cutting(self) -> Cutting:
    return Cutting(**self.about['cutting'])

  def _ask(self, command, *values):
    """Returns all rows."""
    with _in_words(self.folder / FILE):
      return self._connection.execute(command, values).fetchall()

  def _ask_clip(self, column, clip):
    """Returns what is kept of a clip."""
    found = self._ask(f'SELECT {column} FROM kept WHERE clip = ?', int(clip))
    if not found:
      raise ValueError(
        f'{self.folder} was changed by another run while it was searched; repeat the command.'
      )
    return found[0][0]

  @contextlib.contextmanager
  def _change(self):
    """Writes all of a block, or nothing."""
    with _in_words(self.folder / FILE), self._connection as connection:
      if not self._has_ends:
        connection.execute('ALTER TABLE videos ADD COLUMN ends BLOB')
        self._has_ends = True
      yield connection

  def change(self, **values) -> None:
    """Changes what it says about itself."""
    self.about |= values
    with self._change() as connection:
      connection.execute('UPDATE about SET value = ?', (json.dumps(self.about),))

  def files(self) -> dict[bytes, File]:
    """All videos, those without clips as well."""
    ends = 'ends' if self._has_ends else 'NULL'
    found = self._ask(f'SELECT name, size, mtime_ns, {ends} FROM videos')
    return {row[0]: File(*row) for row in found}

  def problems(self) -> list[tuple[bytes, str, str, int]]:
    """(name, reason, detail, clips that are there) of what is not whole."""
    return self._ask(
      'SELECT name, reason, detail, (SELECT COUNT(*) FROM clips WHERE '
      "video = videos.id) FROM videos WHERE reason != '' ORDER BY name"
    )

  def counts(self) -> tuple[int, int]:
    """Videos that have clips, and clips."""
    return self._ask('SELECT COUNT(DISTINCT video), COUNT(*) FROM clips')[0]

  def put(self, file: File, rows: Iterable[Row], reason: str = '', detail: str = '') -> None:
    """Writes a video, in place of what was known of it."""
    with self._change() as connection:
      self._remove(file.name)
      video = connection.execute(
        'INSERT INTO videos (name, size, mtime_ns, ends, reason, detail) VALUES (?, ?, ?, ?, ?, ?)',
        (*file, reason, detail),
      ).lastrowid
      for row in rows:
        clip = connection.execute(
          'INSERT INTO clips VALUES (NULL, ?, ?, ?, ?)',
          (video, row.start, row.stop, row.vector.astype('<f4').tobytes()),
        ).lastrowid
        tokens = None if row.tokens is None else row.tokens.astype('<f2').tobytes()
        connection.execute('INSERT INTO kept VALUES (?, ?, ?)', (clip, row.strip, tokens))

  def add_ends(self, seen: Iterable[File]) -> None:
    """Adds the digests of videos that are there without."""
    ends = [(file.ends, file.name) for file in seen]
    with self._change() as connection:
      connection.executemany('UPDATE videos SET ends = ? WHERE name = ?', ends)

  def drop(self, names: Iterable[bytes]) -> None:
    """Forgets videos."""
    with self._change():
      for name in names:
        self._remove(name)

  def _remove(self, name):
    video = 'SELECT id FROM videos WHERE name = ?'
    for command in (
      f'DELETE FROM kept WHERE clip IN (SELECT id FROM clips WHERE video IN ({video}))',
      f'DELETE FROM clips WHERE video IN ({video})',
      'DELETE FROM videos WHERE name = ?',
    ):
      self._connection.execute(command, (name,))

  def clips(self) -> Clips:
    """Reads all vectors, in the order of names and time."""
    rows = self._ask(
      'SELECT clips.id, name, start, stop, vector FROM clips JOIN videos '
      'ON video = videos.id ORDER BY name, start'
    )
    ids, names, starts, stops, vectors = zip(*rows, strict=True) if rows else [()] * 5
    return Clips(
      np.array(ids, np.int64),
      list(names),
      np.array(starts, float),
      np.array(stops, float),
      np.frombuffer(b''.join(vectors), '<f4').reshape(len(rows), self.about['vector']),
    )

  def tokens(self, ids: Sequence[int]) -> np.ndarray:
    """float16[n, S, D]."""
    found = [self._ask_clip('tokens', i) for i in ids]
    return np.frombuffer(b''.join(found), '<f2').reshape(len(ids), *self.about['tokens'])

  def strip(self, clip: int) -> bytes:
    """JPEG of a clip's thumbnails."""
    return self._ask_clip('strip', clip)


@contextlib.contextmanager
def _in_words(path):
  """Raises what SQLite says as an OSError or a ValueError that helps."""
  try:
    yield
  except sqlite3.Error as error:
    name = getattr(error, 'sqlite_errorname', '')
    for start, said in _SAID.items():
      if name.startswith(start):
        raise OSError(f'{path}: {said} (SQLite: {error}).') from error
    raise ValueError(
      f'{path} is no index, or a damaged one (SQLite: {error}); remove it and index again.'
    ) from error
