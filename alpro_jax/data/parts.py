"""Parts of a set: each is made by itself, and becomes one shard.

.preparing-train/part-00000.array_record  its records
.preparing-train/part-00000.json          written last: the part is done
"""

import contextlib
import dataclasses
import json
import os
from typing import NamedTuple

from alpro_jax import files
from alpro_jax.data import annotations, workers
from alpro_jax.data.manifest import load, write_atomic
from alpro_jax.data.progress import Progress
from alpro_jax.data.record import make_record


class Part(NamedTuple):
  """A shard to be made.

  Attributes:
    stem: path of its two files, without .array_record and .json.
    clips: in their order.
  """

  stem: str
  clips: list[annotations.Clip]


def cut(clips, work, size):
  """Returns list of Part."""
  return [
    Part(os.path.join(work, f'part-{start // size:05}'), clips[start : start + size])
    for start in range(0, len(clips), size)
  ]


def make_parts(source, parts, settings, make, out):
  """Makes the parts that are not there.

  Returns:
    (what write_part returned for each part, in order, but for the rows of the
    index, which are read when they are wanted; clips made now)
  """
  progress = Progress(len(source.clips), out=out)
  for skipped in source.skipped:
    progress.name(skipped)
  missing = []
  for part in parts:
    if os.path.exists(f'{part.stem}.json'):
      progress.found(len(part.clips), len(read_part(part.stem)['skipped']))
    else:
      missing.append(part)
  made = make(missing, settings, progress) if missing else 0
  progress.close()
  return [{**read_part(part.stem), 'index': _Rows(part.stem)} for part in parts], made


def make_here(parts, settings, progress, *, num_workers, timeout_s):
  """Makes parts with worker processes on this machine.

  Args:
    parts: list of Part.
    settings: keyword arguments of make_record.
    progress: Progress.
    num_workers: processes; 0 is one per core.
    timeout_s: longest time for one clip, in seconds; None is as usual.
  Returns:
    int, how many clips were read.
  """
  clips = [clip for part in parts for clip in part.clips]
  results = make_records(clips, settings, num_workers, timeout_s)
  with contextlib.closing(results):
    for part in parts:
      write_part(part.stem, map(index_row, part.clips), results, progress)
  return len(clips)


def read_part(stem):
  """Returns what write_part did."""
  return load(f'{stem}.json', 'remove it, and the same command makes it anew')


def write_part(stem, rows, results, progress):
  """Writes the records of a part, and what is known of them.

  Args:
    stem: of its two files; the .json is there only when both are whole.
    rows: of the index, one per record.
    results: iterator of Record, in the same order.
    progress: Progress.
  Returns:
    dict, as in the .json file.
  """
  from array_record.python import array_record_module  # noqa: PLC0415

  path = f'{stem}.array_record'
  index, skipped, partial = [], [], []
  # JPEG does not compress further.
  writer = array_record_module.ArrayRecordWriter(path, 'group_size:1,uncompressed')
  for row in rows:
    record = next(results)
    if record.reason:
      skip = annotations.Skipped(row['video'], record.reason, record.detail)
      skipped.append(dataclasses.asdict(skip))
      progress.add(skipped=skip)
      continue
    writer.write(record.example)
    if record.detail:
      partial.append({'item': row['video'], 'detail': record.detail})
    index.append({**row, 'frames': record.frames})
    progress.add()
  try:
    writer.close()  # What could not be written is said here, or not at all.
  except Exception as e:
    raise OSError(
      f'{path} cannot be written: {e}. When there is room, the same command '
      'continues; shards that are done are kept.'
    ) from e
  with open(path, 'rb') as file:
    os.fsync(file.fileno())
  part = {
    'examples': len(index),
    'bytes': os.path.getsize(path),
    'sha256': files.sha256(path),
    'skipped': skipped,
    'partial': partial,
    'index': index,
  }
  write_atomic(f'{stem}.json', [json.dumps(part, ensure_ascii=False)])
  return part


def make_records(clips, settings, num_workers, timeout_s):
  return workers.run_in_order(
    f'{make_record.__module__}:{make_record.__name__}',
    settings,
    clips,
    workers=num_workers or os.cpu_count() or 1,
    timeout_s=timeout_s,
  )


class _Rows:
  """The rows of a part's index; those of all parts might not fit in memory."""

  def __init__(self, stem):
    self._stem = stem

  def __iter__(self):
    return iter(read_part(self._stem)['index'])


def index_row(clip):
  """What the index says of a clip; how many frames it has is found later."""
  return {
    'video': clip.video,
    'captions': clip.captions,
    'styles': clip.styles,
    'questions': [question.text for question in clip.questions],
    'answers': [question.answer for question in clip.questions],
    'kinds': [question.kind for question in clip.questions],
    'still': clip.still,
  }
