"""Converts an index of an earlier version, one SQLite file, into LanceDB."""

import contextlib
import json
import pathlib
import sqlite3

import numpy as np

from alpro_jax.search.store import EARLIER, File, Indexed, Row, Store

_AT_ONCE = 64  # Videos.


def convert(folder) -> Store:
  """Writes the index beside the file, which stays as it is.

  Raises:
    FileNotFoundError: if there is no such file.
    FileExistsError: if there is an index in LanceDB.
    ValueError: if it is none of ours.
  """
  path = pathlib.Path(folder) / EARLIER
  if not path.is_file():
    raise FileNotFoundError(f'{folder} holds no {EARLIER}, and so no index of an earlier version.')
  if Store.exists(folder):
    raise FileExistsError(
      f'{folder} holds an index in LanceDB already; nothing is to be converted.'
    )
  try:
    with contextlib.closing(sqlite3.connect(f'{path.absolute().as_uri()}?mode=ro', uri=True)) as db:
      return _copy(db, folder)
  except (sqlite3.Error, KeyError, IndexError) as error:
    raise ValueError(f'{path} is no index, or a damaged one ({error}); index again.') from error


def _copy(db, folder):
  about = json.loads(db.execute('SELECT value FROM about').fetchall()[0][0])
  about.pop('format'), about.pop('root')
  about['folders'] = [about.pop('root_bytes')]
  about['cutting']['spans'] = [about['cutting'].pop('span')]
  store = Store.create(folder, about)
  ends = 'ends' in [column[1] for column in db.execute('PRAGMA table_info(videos)')]
  columns = f'id, name, size, mtime_ns, {"ends" if ends else "NULL"}, reason, detail'
  videos = db.execute(f'SELECT {columns} FROM videos ORDER BY id')
  while some := videos.fetchmany(_AT_ONCE):
    store.put(
      *(Indexed(File(*row[1:5]), _rows(db, row[0], about['tokens']), *row[5:]) for row in some)
    )
  store.tidy()
  return store


def _rows(db, video, shape):
  asked = 'SELECT start, stop, vector, tokens, strip FROM clips JOIN kept ON clip = id'
  return [
    Row(
      start,
      stop,
      np.frombuffer(vector, '<f4'),
      np.frombuffer(tokens, '<f2').reshape(shape) if tokens else None,
      strip,
    )
    for start, stop, vector, tokens, strip in db.execute(
      f'{asked} WHERE video = ? ORDER BY start', (video,)
    )
  ]
