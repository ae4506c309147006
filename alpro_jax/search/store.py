"""The index of folders of videos: three LanceDB tables, and index.json, which describes it.

  videos   the file as it was seen, and why it is not whole
  clips    vector and span of every clip, and what filters ask for
  kept     a strip of thumbnails, about 10 kB, statistics of pixels and, if asked for, 2 S D
           bytes of float16 for the fusion encoder (ALPRO base at 224: 197 * 768 * 2 = 303 kB)

Every change of a table is a version of it that is there whole or not at all. New clips are
written, then old ones of the same video removed, then the video written: a run that is
killed leaves clips without a video, or beside those of the video as it was, and the next run
removes them. One process writes; any number read, each the versions that it opened or last
refreshed.
Without tokens a search decodes the videos of its candidates again, which takes seconds
instead of milliseconds and needs the files.

Names are bytes, as the file system has them: they need not be text. They are relative to
the first folder; in folder n they begin with //n/, which no relative name does. A video is
the same as long as its size, its time and its first and last blocks are.
"""

import contextlib
import datetime
import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from alpro_jax import files
from alpro_jax.data.annotations import printable
from alpro_jax.data.cut import Cutting
from alpro_jax.data.listing import File

FORMAT = 2
_TABLES = {
  'videos': 'video name path mtime_ns size ends reason detail clips',
  'clips': 'video name path mtime_ns clip start stop seconds vector',
  'kept': 'video clip strip tokens look',
}
FILE, REPORT = 'index.json', 'report.json'
EARLIER = 'index.sqlite'
# Below, all vectors are compared; above, those that IVF_SQ (cells, 8 bits a number) finds.
EXACT = 50_000
_PROBES, _REFINE = 20, 5
_GROWN = 4  # Times as many clips as when the index of the vectors was made: it is made anew.
_KEEP = datetime.timedelta(hours=1)  # Old versions stay that long for those who read them.
_FRAGMENTS = 500  # Of thumbnails and tokens, which are rewritten only when there are as many.


class Row(NamedTuple):
  """A clip to store."""

  start: float  # In seconds.
  stop: float
  vector: np.ndarray  # float32[E]
  tokens: np.ndarray | None  # f[S, D], stored as float16.
  strip: bytes  # JPEG
  look: np.ndarray | None = None  # f[T, looks.WIDTH], stored as float16.


class Indexed(NamedTuple):
  """A video to store."""

  file: File
  rows: Sequence[Row]
  reason: str = ''  # Why it is not whole.
  detail: str = ''


class Clips(NamedTuple):
  """Clips of an index."""

  id: np.ndarray  # int64[n]
  name: list[bytes]  # Of the video of each.
  start: np.ndarray  # float64[n], seconds.
  stop: np.ndarray
  seconds: np.ndarray  # Length of the video of each.
  vector: np.ndarray  # float32[n, E], unit length.


_OF_CLIPS = ('clip', *Clips._fields[1:])


def key(*parts) -> int:
  """A number for a video, by its name, and for a clip."""
  text = b'\0'.join(x if isinstance(x, bytes) else str(x).encode() for x in parts)
  return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), 'big') >> 1


def among(column: str, keys: Iterable[int]) -> str:
  """A condition in SQL."""
  return f'{column} IN ({", ".join(str(int(x)) for x in keys)})'


def _split(name):
  """Number of the folder of a video, and its path below."""
  number, _, below = name[2:].partition(b'/') if name[:2] == b'//' else (0, b'', name)
  return int(number), below


def show_name(name: bytes) -> str:
  """A name on one line, whatever is in it."""
  return printable(name.decode('utf-8', 'backslashreplace'))


class Store:
  """An open index.

  Attributes:
    folder: where it lies; to be read, that may be an address such as s3://bucket/index.
    about: what it is an index of, and how it was made.
  """

  def __init__(self, folder, about: dict[str, Any], tables):
    self.folder, self.about = str(folder), about
    self._videos, self._clips, self._kept = tables
    self._known = None  # Keys of all videos, as soon as one is written.

  @classmethod
  def create(cls, folder, about: dict[str, Any]) -> 'Store':
    """Makes an empty index.

    Raises:
      ImportError: without LanceDB.
    """
    lancedb, pa = _lancedb()
    types = dict.fromkeys(('video', 'mtime_ns', 'size', 'clips', 'clip'), pa.int64())
    types |= dict.fromkeys(('path', 'reason', 'detail'), pa.string())
    types |= dict.fromkeys(('start', 'stop', 'seconds'), pa.float64())
    types |= dict.fromkeys(('name', 'ends', 'strip', 'look'), pa.binary())
    types |= {'vector': pa.list_(pa.float32(), about['vector']), 'tokens': pa.large_binary()}
    files.on_disk(folder).mkdir(parents=True, exist_ok=True)
    with _in_words(folder):
      made = lancedb.connect(str(folder))
      made.drop_all_tables()  # Of a run that was killed here.
      for table, columns in _TABLES.items():
        made.create_table(table, schema=pa.schema([(x, types[x]) for x in columns.split()]))
    # Last: without it there is no index.
    about = about | {'format': FORMAT, 'cells_of': 0}
    files.write_text(f'{folder}/{FILE}', json.dumps(about))
    return cls.open(folder)

  @classmethod
  def open(cls, folder) -> 'Store':
    """Opens an index.

    Raises:
      FileNotFoundError: if there is none.
      OSError: if it cannot be read.
      ValueError: if it is none of ours, or of an earlier version.
      ImportError: without LanceDB.
    """
    path = f'{folder}/{FILE}'
    if not cls.exists(folder):
      if pathlib.Path(folder, EARLIER).is_file():
        raise ValueError(
          f'{folder} is an index of an earlier version; `search.py convert --index={folder}` '
          'converts it to LanceDB, without decoding anything.'
        )
      raise FileNotFoundError(
        f'{folder} holds no {FILE}; make one with `search.py index DIR --checkpoint=... '
        '--index=...`, or model.index(DIR, ...).'
      )
    try:
      about = json.loads(files.read(path))
      found = about['format']
    except (KeyError, TypeError, ValueError) as error:
      raise ValueError(f'{path} is no index ({error}); remove it and index again.') from error
    if found != FORMAT:
      raise ValueError(f'{path} has format {found}, this is {FORMAT}; index into another folder.')
    with _in_words(folder):
      database = _lancedb()[0].connect(str(folder))
      return cls(folder, about, [database.open_table(x) for x in _TABLES])

  @staticmethod
  def exists(folder) -> bool:
    return files.exists(f'{folder}/{FILE}')

  def close(self) -> None:
    """Lets go of its files."""
    self._videos = self._clips = self._kept = None

  def refresh(self) -> None:
    """Goes on to what was written since it was opened."""
    with _in_words(self.folder):
      # Thumbnails last: what is found then has its own.
      for table in self._tables():
        table.checkout_latest()
    self.about = json.loads(files.read(f'{self.folder}/{FILE}'))

  def report(self) -> dict[str, Any]:
    """What the last run of indexing wrote, {} without any."""
    path = f'{self.folder}/{REPORT}'
    return json.loads(files.read(path)) if files.exists(path) else {}

  @property
  def folders(self) -> list[bytes]:
    """The folders of videos, as the file system has them."""
    return [bytes.fromhex(folder) for folder in self.about['folders']]

  @property
  def shown_folders(self) -> str:
    return ', '.join(map(show_name, self.folders))

  @property
  def cutting(self) -> Cutting:
    own = self.about['cutting']
    return Cutting(**own | {'spans': tuple(own['spans'])})

  def path(self, name: bytes) -> bytes:
    """Where a video lies."""
    number, below = _split(name)
    return os.path.join(self.folders[number], below)

  def shown(self, name: bytes) -> str:
    """The name of a video for people: with its folder's, where there are several."""
    number, below = _split(name)
    above = os.path.basename(self.folders[number]) if len(self.folders) > 1 else b''
    return show_name(os.path.join(above, below))

  def change(self, **values) -> None:
    """Changes what it says about itself."""
    self.about |= values
    files.write_text(f'{self.folder}/{FILE}', json.dumps(self.about))

  def _read(self, table, columns, where='', limit=None, vector=None):
    """Returns rows as Arrow, the nearest to a vector first."""
    with _in_words(self.folder):
      asked = table.search(vector, 'vector').select(columns)
      if vector is not None:
        asked = asked.distance_type('cosine').refine_factor(_REFINE)
        # Where `where` leaves too few of these cells' clips, it goes on to further cells.
        asked = asked.minimum_nprobes(_PROBES).maximum_nprobes(0)
      asked = asked.where(where) if where else asked
      return (asked.limit(limit) if limit else asked).to_arrow()

  def files(self, where: str = '') -> dict[bytes, File]:
    """All videos, those without clips as well."""
    rows = self._read(self._videos, list(File._fields), where).to_pylist()
    return {row['name']: File(**row) for row in rows}

  def problems(self) -> list[tuple[bytes, str, str, int]]:
    """(name, reason, detail, clips that are there) of what is not whole."""
    found = self._read(self._videos, ['name', 'reason', 'detail', 'clips'], "reason != ''")
    return sorted(tuple(row.values()) for row in found.to_pylist())

  def counts(self) -> tuple[int, int]:
    """Videos that have clips, and clips."""
    with _in_words(self.folder):
      return self._videos.count_rows('clips > 0'), self._clips.count_rows()

  def put(self, *done: Indexed) -> None:
    """Writes videos, in place of what was known of them."""
    videos, clips = [], []
    for file, rows, reason, detail in done:
      own = file._asdict() | {'video': key(file.name), 'path': show_name(_split(file.name)[1])}
      videos.append(own | {'reason': reason, 'detail': detail, 'clips': len(rows)})
      own['seconds'] = max((row.stop for row in rows), default=0.0)
      for row in rows:
        arrays = {'tokens': row.tokens, 'look': row.look}
        blobs = {k: x if x is None else x.astype('<f2').tobytes() for k, x in arrays.items()}
        clip = row._asdict() | blobs | {'clip': key(*file, row.start, row.stop)}
        clips.append(own | clip | {'vector': row.vector.astype(np.float32)})
    known = self._clean()
    changed = [x['video'] for x in videos if x['video'] in known]
    known.update(x['video'] for x in videos)
    with _in_words(self.folder):
      _write(self._kept, 'clip', clips, changed)
      _write(self._clips, 'clip', clips, changed)
      if changed:
        new = [-1, *(x['clip'] for x in clips)]  # SQL has no empty list.
        old = f'{among("video", changed)} AND NOT {among("clip", new)}'
        self._clips.delete(old)
        self._kept.delete(old)
      _write(self._videos, 'video', videos, changed)

  def _clean(self):
    """Forgets clips without a video, once; returns the keys of all videos."""
    if self._known is None:
      each = [set(self._read(x, ['video'])['video'].to_pylist()) for x in self._tables()]
      self._known = each[0]
      self._remove(sorted(set.union(*each) - each[0]))
    return self._known

  def drop(self, names: Iterable[bytes]) -> None:
    """Forgets videos."""
    self._remove([key(name) for name in names])

  def _remove(self, keys):
    with _in_words(self.folder):
      for first in range(0, len(keys), 1000):
        for table in self._tables()[::-1]:  # As long as there is a video, it is known.
          table.delete(among('video', keys[first : first + 1000]))

  def tidy(self) -> None:
    """Joins small pieces, and brings the index of the vectors up to date."""
    from lancedb.index import BTree, IvfSq

    with _in_words(self.folder):
      count = self._clips.count_rows()
      # The cells of the index are those of the vectors when it was made.
      if count >= max(EXACT, _GROWN * self.about.get('cells_of', 0)):
        self._clips.create_index('vector', config=IvfSq(distance_type='cosine'), replace=True)
        self.change(cells_of=count)
      self._clips.optimize(cleanup_older_than=_KEEP)
      self._videos.optimize(cleanup_older_than=_KEEP)
      if self._kept.stats()['fragment_stats']['num_small_fragments'] > _FRAGMENTS:
        self._kept.optimize(cleanup_older_than=_KEEP)
      if count >= EXACT:
        self._kept.create_index('clip', config=BTree())

  def merge(self, other: 'Store') -> None:
    """Takes over the videos of another part of the same folders that are not here."""
    pa = _lancedb()[1]
    new = {key(name) for name in set(other.files()) - set(self.files())}
    here = pa.array(sorted(new), pa.int64())
    self._clean()
    with _in_words(self.folder):  # As `put`: the videos last.
      for mine, its in zip(self._tables()[::-1], other._tables()[::-1], strict=True):
        for batch in its.search().to_batches(1024):
          rows = pa.table(batch.filter(pa.compute.is_in(batch['video'], here)))
          if len(rows):  # An older part may lack columns.
            mine.add(rows.select([x for x in mine.schema.names if x in rows.schema.names]))
    self._known = None

  def _tables(self):
    return self._videos, self._clips, self._kept

  def nearest(self, vector: np.ndarray, count: int, where: str = '') -> Clips:
    """The clips nearest to float32[E], at most `count`, the nearest first; `where` is SQL."""
    return self._as_clips(self._read(self._clips, [*_OF_CLIPS, '_distance'], where, count, vector))

  def clips(self, where: str = '') -> Clips:
    """Reads all clips, or those of a condition in SQL, in the order of names and time."""
    found = self._read(self._clips, list(_OF_CLIPS), where)
    return self._as_clips(found.sort_by([('name', 'ascending'), ('start', 'ascending')]))

  def _as_clips(self, found):
    number, start, stop, seconds = (found[x].to_numpy() for x in 'clip start stop seconds'.split())
    vector = found['vector'].combine_chunks().flatten().to_numpy().reshape(-1, self.about['vector'])
    return Clips(number, found['name'].to_pylist(), start, stop, seconds, vector)

  def _kept_of(self, column, clips):
    """Returns what is kept of clips, in their order."""
    rows = self._read(self._kept, ['clip', column], among('clip', clips), len(clips))
    found = dict(zip(rows['clip'].to_pylist(), rows[column].to_pylist(), strict=True))
    try:
      return [found[int(clip)] for clip in clips]
    except KeyError as error:
      raise ValueError(
        f'{self.folder} was changed by another run while it was searched; repeat the command.'
      ) from error

  def tokens(self, ids: Sequence[int]) -> np.ndarray:
    """float16[n, S, D]."""
    found = b''.join(self._kept_of('tokens', ids))
    return np.frombuffer(found, '<f2').reshape(len(ids), *self.about['tokens'])

  def looks(self, ids: Sequence[int]) -> np.ndarray | None:
    """float16[n, T * looks.WIDTH]; None in an index that was begun without."""
    found = self._kept_of('look', ids) if 'look' in self._kept.schema.names else [None]
    return None if None in found else np.stack([np.frombuffer(x, '<f2') for x in found])

  def strips(self, ids: Sequence[int]) -> list[bytes]:
    """JPEGs of the clips' thumbnails."""
    return self._kept_of('strip', ids)


def _lancedb():
  """LanceDB and PyArrow, which a search alone needs."""
  # It warns, line by line, of how it brings an index up to date, which is as it should be.
  os.environ.setdefault('LANCEDB_LOG', 'error')
  try:
    import lancedb
    import pyarrow.compute
  except ImportError as error:
    raise ImportError(
      f'an index needs LanceDB ({error}); pip install "alpro_jax[search]", or lancedb.'
    ) from error
  return lancedb, pyarrow


def _write(table, column, rows, changed):
  """Adds rows, or has them take the place of those with the same key."""
  if rows:  # The columns of each are picked by its schema.
    rows = _lancedb()[1].Table.from_pylist(rows, schema=table.schema)
    if changed:
      upsert = table.merge_insert(column).when_matched_update_all()
      upsert.when_not_matched_insert_all().execute(rows)
    else:
      table.add(rows)


@contextlib.contextmanager
def _in_words(folder) -> Iterator[None]:
  """Raises what LanceDB says as an OSError or a ValueError that helps."""
  try:
    yield
  except (RuntimeError, OSError, ValueError) as error:
    text = ' '.join(str(error).split())
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
      if os.strerror(code) in text:
        raise OSError(code, os.strerror(code), str(folder)) from error
    raise ValueError(
      f'{folder} is no index, or a damaged one (LanceDB: {text[:300]}); index into another folder.'
    ) from error
