"""The index of a folder of videos: one SQLite file.

Whatever happens, a video is in it whole or not at all: its rows are written in
one transaction. Bytes of a clip: its vector, 4 E; a strip of thumbnails, about
10 kB; and, unless tokens are not kept, 2 S D of float16 for the fusion encoder
(ALPRO base at 224: 197 * 768 * 2 = 303 kB). Without tokens a search decodes
the videos of its candidates again, which takes seconds instead of
milliseconds and needs the files.

Names are bytes, as the file system has them: they need not be text.
"""

import contextlib
import json
import os
import pathlib
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

FORMAT = 1
FILE = 'index.sqlite'

_TABLES = '''
CREATE TABLE about (value TEXT NOT NULL);
CREATE TABLE videos (
  id INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, size INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL);
CREATE TABLE clips (
  id INTEGER PRIMARY KEY, video INTEGER NOT NULL, start REAL NOT NULL,
  stop REAL NOT NULL, vector BLOB NOT NULL);
CREATE TABLE kept (clip INTEGER PRIMARY KEY, strip BLOB NOT NULL, tokens BLOB);
CREATE INDEX clips_of_video ON clips (video);
'''


class File(NamedTuple):
  """A video file as it was seen: name below the folder, bytes, time."""

  name: bytes
  size: int
  mtime_ns: int


class Row(NamedTuple):
  """A clip to store: seconds, float32[E], float16[S, D] or None, JPEG."""

  start: float
  stop: float
  vector: np.ndarray
  tokens: np.ndarray | None
  strip: bytes


class Clips(NamedTuple):
  """All clips of an index.

  Attributes:
    id: int64[n].
    name: of the video of each, n bytes objects.
    start, stop: float64[n], seconds.
    vector: float32[n, E], unit length.
  """

  id: np.ndarray
  name: list[bytes]
  start: np.ndarray
  stop: np.ndarray
  vector: np.ndarray


def show_name(name: bytes) -> str:
  """A name on one line, whatever is in it."""
  text = name.decode('utf-8', 'backslashreplace')
  return ''.join(
      x if x.isprintable() else x.encode('unicode_escape').decode()
      for x in text)


class Store:
  """An open index.

  Attributes:
    about: what it is an index of, and how it was made.
  """

  def __init__(self, folder, connection):
    self.folder = pathlib.Path(folder)
    self._connection = connection
    self.about = json.loads(
        connection.execute('SELECT value FROM about').fetchone()[0])

  @classmethod
  def create(cls, folder, about: dict[str, Any]) -> 'Store':
    """Makes an empty index."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Made beside and renamed, so that an index is never half made.
    draft = folder / (FILE + '.draft')
    draft.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(draft)) as connection:
      connection.executescript(_TABLES)
      connection.execute('INSERT INTO about VALUES (?)', (
          json.dumps({'format': FORMAT, **about}),))
      connection.commit()
    os.replace(draft, folder / FILE)
    return cls.open(folder)

  @classmethod
  def open(cls, folder) -> 'Store':
    """Opens an index.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is none of ours.
    """
    path = pathlib.Path(folder) / FILE
    if not path.is_file():
      raise FileNotFoundError(
          f'--index={folder} holds no {FILE}; make one with `search.py index '
          'DIR --checkpoint=... --index=...`.')
    try:
      store = cls(folder, sqlite3.connect(path, timeout=60))
    except (sqlite3.DatabaseError, ValueError, TypeError) as error:
      raise ValueError(
          f'{path} is no index ({error}); remove it and index again.'
      ) from error
    if store.about.get('format') != FORMAT:
      raise ValueError(
          f'{path} has format {store.about.get("format")}, this is {FORMAT}; '
          'index into another --index.')
    return store

  @staticmethod
  def exists(folder) -> bool:
    return (pathlib.Path(folder) / FILE).is_file()

  def close(self) -> None:
    self._connection.close()

  def change(self, **values) -> None:
    """Changes what it says about itself."""
    self.about |= values
    with self._connection:
      self._connection.execute(
          'UPDATE about SET value = ?', (json.dumps(self.about),))

  def files(self) -> dict[bytes, File]:
    """All videos, those without clips as well."""
    return {name: File(name, size, mtime) for name, size, mtime in
            self._connection.execute(
                'SELECT name, size, mtime_ns FROM videos')}

  def problems(self) -> list[tuple[bytes, str, str, int]]:
    """(name, reason, detail, clips that are there) of what is not whole."""
    return self._connection.execute(
        'SELECT name, reason, detail, (SELECT COUNT(*) FROM clips WHERE '
        "video = videos.id) FROM videos WHERE reason != '' ORDER BY name"
    ).fetchall()

  def counts(self) -> tuple[int, int]:
    """Videos that have clips, and clips."""
    return self._connection.execute(
        'SELECT COUNT(DISTINCT video), COUNT(*) FROM clips').fetchone()

  def put(self, file: File, rows: Iterable[Row], reason: str = '',
          detail: str = '') -> None:
    """Writes a video, in place of what was known of it."""
    with self._connection as connection:
      self._remove(file.name)
      video = connection.execute(
          'INSERT INTO videos VALUES (NULL, ?, ?, ?, ?, ?)',
          (*file, reason, detail)).lastrowid
      for row in rows:
        clip = connection.execute(
            'INSERT INTO clips VALUES (NULL, ?, ?, ?, ?)',
            (video, row.start, row.stop,
             row.vector.astype('<f4').tobytes())).lastrowid
        tokens = row.tokens
        connection.execute('INSERT INTO kept VALUES (?, ?, ?)', (
            clip, row.strip,
            None if tokens is None else tokens.astype('<f2').tobytes()))

  def drop(self, names: Iterable[bytes]) -> None:
    """Forgets videos."""
    with self._connection:
      for name in names:
        self._remove(name)

  def _remove(self, name):
    video = 'SELECT id FROM videos WHERE name = ?'
    for command in (
        'DELETE FROM kept WHERE clip IN (SELECT id FROM clips WHERE video IN '
        f'({video}))', f'DELETE FROM clips WHERE video IN ({video})',
        'DELETE FROM videos WHERE name = ?'):
      self._connection.execute(command, (name,))

  def clips(self) -> Clips:
    """Reads all vectors, in the order of names and time."""
    rows = self._connection.execute(
        'SELECT clips.id, name, start, stop, vector FROM clips JOIN videos '
        'ON video = videos.id ORDER BY name, start').fetchall()
    size = self.about['vector']
    vector = np.frombuffer(b''.join(row[4] for row in rows), '<f4')
    return Clips(
        np.array([row[0] for row in rows], np.int64),
        [row[1] for row in rows],
        np.array([row[2] for row in rows], float),
        np.array([row[3] for row in rows], float),
        vector.reshape(len(rows), size))

  def tokens(self, ids: Sequence[int]) -> np.ndarray:
    """float16[n, S, D]."""
    found = [self._connection.execute(
        'SELECT tokens FROM kept WHERE clip = ?', (int(i),)).fetchone()[0]
        for i in ids]
    return np.frombuffer(b''.join(found), '<f2').reshape(
        len(ids), *self.about['tokens'])

  def strip(self, clip: int) -> bytes:
    """JPEG of a clip's thumbnails."""
    return self._connection.execute(
        'SELECT strip FROM kept WHERE clip = ?', (int(clip),)).fetchone()[0]
