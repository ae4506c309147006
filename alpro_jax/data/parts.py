"""Parts of a set: each is made by itself, and becomes one shard.

.preparing-train/part-00000.array_record  its records
.preparing-train/part-00000.json          written last: the part is done
"""

import contextlib
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from alpro_jax import buckets, files
from alpro_jax.data import annotations, workers
from alpro_jax.data.manifest import load, write_atomic
from alpro_jax.data.progress import Progress
from alpro_jax.data.record import Record, make_record


class Part(NamedTuple):
  """A shard to be made.

  Attributes:
    stem: path of its two files without their suffixes.
    clips: its clips.
    elsewhere: the same in a bucket, where workers of other machines put its records; '' is
      nowhere.
  """

  stem: str
  clips: list[annotations.Clip]
  elsewhere: str = ''


def cut(clips, work, size: int, elsewhere: str = '') -> list[Part]:
  """Returns the parts; `elsewhere` is the address of a folder, or ''."""
  names = [(f'part-{start // size:05}', start) for start in range(0, len(clips), size)]
  return [
    Part(
      os.path.join(work, name),
      clips[start : start + size],
      elsewhere and files.join(elsewhere, name),
    )
    for name, start in names
  ]


def make_here(parts, settings, progress: Progress, *, num_workers: int, timeout_s) -> int:
  """Makes parts with worker processes on this machine; returns how many clips were read.

  `settings` are keyword arguments of make_record; 0 workers is one per core, and a timeout
  of None, in seconds per clip, is as usual.
  """
  clips = [clip for part in parts for clip in part.clips]
  with contextlib.closing(make_records(clips, settings, num_workers, timeout_s)) as records:
    for part in parts:
      write_part(part.stem, map(index_row, part.clips), records, progress)
  return len(clips)


def make_records(clips, settings, num_workers, timeout_s) -> Iterator[Record]:
  return workers.run_in_order(
    f'{make_record.__module__}:{make_record.__name__}',
    settings,
    clips,
    workers=num_workers or os.cpu_count() or 1,
    timeout_s=timeout_s,
  )


def index_row(clip) -> dict[str, Any]:
  """Returns what the index says of a clip, but for the number of its frames."""
  return {
    'video': clip.video,
    'captions': clip.captions,
    'styles': clip.styles,
    'questions': [question.text for question in clip.questions],
    'answers': [question.answer for question in clip.questions],
    'kinds': [question.kind for question in clip.questions],
    'still': clip.still,
  }


def write_part(stem: str, rows: Iterable[dict], records: Iterator[Record], progress: Progress):
  """Writes the two files of a part; returns what the .json file holds.

  Of `records` as many are taken as there are `rows` of the index, in the same order.
  """
  from array_record.python import array_record_module  # noqa: PLC0415

  path = f'{stem}.array_record'
  index, skipped, partial = [], [], []
  # JPEG does not compress further.
  writer = array_record_module.ArrayRecordWriter(path, 'group_size:1,uncompressed')
  for row in rows:
    record = next(records)
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
  size = {'examples': len(index), 'bytes': os.path.getsize(path), 'sha256': files.sha256(path)}
  return save_part(stem, {**size, 'skipped': skipped, 'partial': partial, 'index': index})


def save_part(stem: str, done: dict[str, Any]) -> dict[str, Any]:
  """Says of a part that it is done."""
  write_atomic(f'{stem}.json', [json.dumps(done, ensure_ascii=False)])
  return done


def is_done(stem: str) -> bool:
  return os.path.exists(f'{stem}.json')


def read_part(stem: str) -> dict[str, Any]:
  """Returns what write_part did."""
  return load(f'{stem}.json', 'remove it, and the same command makes it anew')


def bring_here(part: Part) -> str:
  """Returns the path of the records of a part; those made elsewhere are copied here."""
  path = f'{part.stem}.array_record'
  if part.elsewhere and not os.path.exists(path):
    with files.file(path) as made:
      buckets.copy_here(f'{part.elsewhere}.array_record', made)
  return path


def name_shard(part: Part, folder: str, address: str, file: str, size: int) -> bool:
  """Makes the records of a part a shard of the set; returns whether it is there, and whole.

  What was made elsewhere is renamed there and never comes here.

  Args:
    folder, address: of the set, here and, if it is to lie in a bucket, there.
    file: name of the shard; it may have it already, of a run that was killed.
    size: its bytes.
  """
  path = os.path.join(folder, file)
  with contextlib.suppress(FileNotFoundError):
    os.rename(f'{part.stem}.array_record', path)
  if os.path.exists(path) or not part.elsewhere:
    return files.size(path) == size
  target = files.join(address, file)
  with contextlib.suppress(FileNotFoundError):
    buckets.move(f'{part.elsewhere}.array_record', target)
  return files.size(target) == size


def count(stems: Iterable[str]) -> tuple[Counter, list[dict], list[dict]]:
  """Returns (counts, skipped, partial) of all parts."""
  counts, skipped, partial = Counter(prepared=0, captions=0, questions=0, frames=0, bytes=0), [], []
  for part in map(read_part, stems):
    skipped += part['skipped']
    partial += part['partial']
    counts['bytes'] += part['bytes'] if part['examples'] else 0
    for row in part['index']:
      texts = {name: len(row.get(name, ())) for name in ('captions', 'questions')}
      counts.update(prepared=1, frames=row.get('frames', 0), **texts)
  return counts, skipped, partial


def read_records(path, examples: int) -> Iterator[tuple[bytes | None, str]]:
  """Yields (record or None, what is wrong with it) for each record of a shard."""
  from array_record.python import array_record_data_source  # noqa: PLC0415

  # Not as a context: leaving it raises for a file that is damaged.
  source = array_record_data_source.ArrayRecordDataSource([f'{path}[0:{examples}]'])
  for i in range(examples):
    try:
      record = source[i]
    except MemoryError:
      raise  # The record is not to blame.
    except Exception as error:
      yield None, f'{type(error).__name__}: {error}'.splitlines()[0]
    else:
      yield record, ''
