"""For other programs: what was found as JSON, CSV, OpenTimelineIO; all vectors."""

import csv
import io
import json
import pathlib

import numpy as np

from alpro_jax import files
from alpro_jax.search.querying import Hit, SearchResult
from alpro_jax.search.store import Store, key, show_name


def as_json(store: Store, found: SearchResult) -> str:
  """The hits by video, that of the best one first. Numbers of 63 bits are texts."""
  videos = [
    {
      'video': str(key(hits[0].name)),
      'name': store.shown(hits[0].name),
      'path': _printable(path),
      'seconds': hits[0].seconds,
      'hits': [
        {'clip': str(hit.clip), 'start': hit.start, 'stop': hit.end}
        | {name: getattr(hit, name) for name in ('similarity', 'match', 'far')}
        for hit in hits
      ],
    }
    for path, hits in found.by_video.items()
  ]
  said = {name: getattr(found, name) for name in ('text', 'read', 'seconds', 'far', 'calibrated')}
  return json.dumps(said | {'videos': videos})


def as_csv(store: Store, found: SearchResult) -> str:
  """A line for each hit."""
  file = io.StringIO()
  lines = csv.writer(file)
  lines.writerow(('rank', 'path', 'start', 'stop', 'similarity', 'match'))
  for rank, hit in enumerate(found.hits, 1):
    path = _printable(hit.path)
    lines.writerow((rank, path, hit.start, hit.end, hit.similarity, hit.match))
  return file.getvalue()


def as_otio(store: Store, found: SearchResult) -> str:
  """A track of the hits in their order, as editors open it."""
  import opentimelineio as otio  # Of the extra `serve`, with the server that asks for it.

  def clip(hit: Hit):
    path = pathlib.Path(hit.path)
    start, stop = (otio.opentime.RationalTime(round(1000 * x), 1000) for x in (hit.start, hit.end))
    return otio.schema.Clip(
      name=_printable(path.name),
      media_reference=otio.schema.ExternalReference(path.as_uri()),
      source_range=otio.opentime.TimeRange.range_from_start_end_time(start, stop),
      metadata={'alpro_jax': {'similarity': hit.similarity, 'match': hit.match}},
    )

  track = otio.schema.Track('hits', [clip(hit) for hit in found.hits])
  return otio.schema.Timeline(found.text, [track]).to_json_string(indent=1)


def _printable(path):
  """Paths may hold bytes that are no text."""
  return path.encode('utf-8', 'surrogateescape').decode('utf-8', 'backslashreplace')


FORMS = {
  'json': ('application/json', as_json),
  'csv': ('text/csv; charset=utf-8', as_csv),
  'otio': ('application/vnd.opentimelineio+json', as_otio),
}


def write_vectors(path, store: Store) -> int:
  """Writes video, start, stop and vector of every clip to a file; returns their number.

  Args:
    path: ending in .npz or .parquet.
    store: the index, whose origin is stored beside.

  Raises:
    ValueError: for another ending.
  """
  kind = pathlib.Path(path).suffix.lower()
  if kind not in ('.npz', '.parquet'):
    raise ValueError(f'--output={path} must end in .npz or .parquet.')
  clips = store.clips()
  columns = {'video': np.array([show_name(name) for name in clips.name], str)}
  columns |= {'start': clips.start, 'stop': clips.stop, 'vector': clips.vector}
  note = json.dumps({x: store.about[x] for x in ('folders', 'checkpoint', 'cutting', 'shown')})
  with files.file(path) as made, open(made, 'wb') as file:
    if kind == '.npz':
      np.savez(file, **columns, about=note)
    else:
      import pyarrow as pa
      from pyarrow import parquet

      width = store.about['vector']
      columns['vector'] = pa.FixedSizeListArray.from_arrays(clips.vector.ravel(), width)
      parquet.write_table(pa.table(columns, metadata={'alpro': note}), file)
  return len(clips.id)
