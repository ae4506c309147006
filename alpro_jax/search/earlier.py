"""Converts an index of an earlier version, one SQLite file, into LanceDB."""

import contextlib
import json
import pathlib
import sqlite3

import numpy as np

from alpro_jax.data.listing import File, look_at
from alpro_jax.search.store import EARLIER, Indexed, Row, Store

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
      about = json.loads(db.execute('SELECT value FROM about').fetchone()[0])
      about['folders'] = [about.pop('root_bytes')]
      about['cutting']['spans'] = [about['cutting'].pop('span')]
      about.pop('root', None)
      store = Store.create(folder, about)
      ends = 'ends' in [column[1] for column in db.execute('PRAGMA table_info(videos)')]
      columns = f'id, name, size, mtime_ns, {"ends" if ends else "NULL"}, reason, detail'
      videos = db.execute(f'SELECT {columns} FROM videos ORDER BY id')
      while some := videos.fetchmany(_AT_ONCE):
        store.put(*(_video(db, store, *row) for row in some))
  except (sqlite3.Error, KeyError, IndexError) as error:
    raise ValueError(f'{path} is no index, or a damaged one ({error}); index again.') from error
  store.tidy()
  return store


def _video(db, store, number, name, size, mtime_ns, ends, reason, detail):
  if ends is None:  # Before digests were kept, size and time told that a video is the same.
    with contextlib.suppress(OSError):
      now = look_at(store.path(name), name)
      ends = now.ends if now[:3] == (name, size, mtime_ns) else None
  clips = db.execute(
    'SELECT start, stop, vector, tokens, strip FROM clips JOIN kept ON clip = id WHERE video = ?',
    (number,),
  )
  rows = [
    Row(start, stop, np.frombuffer(vector, '<f4'), tokens and np.frombuffer(tokens, '<f2'), strip)
    for start, stop, vector, tokens, strip in clips
  ]
  return Indexed(File(name, size, mtime_ns, ends), rows, reason, detail)
