"""Checks a prepared set, names what is broken, and saves what is not.

A file whose digest is right is as it was written. Only where it is not, each
record is read: ArrayRecord has a sum of its own for every record, so a flipped
bit costs one; of a shard that was cut off nothing can be read.
"""

import json
import os
import shutil
from typing import NamedTuple

from alpro_jax import files
from alpro_jax.data.manifest import MANIFEST, REPORT, finish, read_manifest, read_reports
from alpro_jax.data.parts import write_part
from alpro_jax.data.progress import Progress
from alpro_jax.data.record import Record

ALL = 'all splits'


class Problem(NamedTuple):
  """A broken file or record.

  Attributes:
    split: of the set, or ALL.
    file: in the folder of the set.
    reason: what is wrong with the file, or with the record in it.
    number: of the record in its split; None for a whole file.
    video: its name, '' where it is not known.
  """

  split: str
  file: str
  reason: str
  number: int | None = None
  video: str = ''


class Verified(NamedTuple):
  """What was found out about a set.

  Attributes:
    files: number of files that were checked.
    records: number of records that should be there.
    problems: all of them, files before their records.
  """

  files: int
  records: int
  problems: list[Problem]

  @property
  def broken_records(self) -> int:
    return sum(problem.number is not None for problem in self.problems)


def verify(path, *, out=None) -> Verified:
  """Compares counts and digests of all files with the manifest.

  Args:
    path: folder made by launch/prepare.py.
    out: file for progress lines (stderr).
  Raises:
    FileNotFoundError: if there is no finished set.
    ValueError: if its manifest is damaged.
  """
  manifest = read_manifest(path)
  splits = manifest['splits']
  listed = [
    (split, entry, file)
    for split, entry in splits.items()
    for file in (entry['index'], *entry['shards'])
  ]
  # Sets of earlier versions do not list these.
  listed += [(ALL, None, file) for file in manifest.get('others', ())]
  progress = Progress(len(listed), 'files', out=out)
  problems = []
  for split, entry, file in listed:
    reason = _check_file(path, file)
    if reason:
      problems.append(Problem(split, file['file'], reason))
      if entry and file is not entry['index']:
        problems += _broken_records(path, split, entry, file, reason)
    progress.add()
  progress.close()
  try:
    read_reports(path)
  except (ValueError, OSError) as error:
    problems.append(Problem(ALL, REPORT, str(error)))
  for split, entry in splits.items():
    shards = sum(shard['examples'] for shard in entry['shards'])
    if shards != entry['examples']:
      problems.append(
        Problem(split, MANIFEST, f'its shards have {shards} records, the split {entry["examples"]}')
      )
  records = sum(entry['examples'] for entry in splits.values())
  return Verified(len(listed) + 2, records, problems)  # Manifest and report.


def repair(path, output, *, out=None) -> dict[str, dict]:
  """Writes a set of all records that can be read, whole or not at all.

  Shards that are intact are copied as they are. Where the index is broken, it
  is made again from the records, which hold their texts.

  Args:
    path: folder of the broken set.
    output: folder to make.
    out: file for progress lines (stderr).
  Returns:
    report by split, as launch/prepare.py writes it.
  Raises:
    ValueError: if the output is there already, or another process makes it.
  """
  path, output = os.path.abspath(path), os.path.abspath(output)
  if os.path.exists(output) and os.listdir(output):
    raise ValueError(f'{output} is not empty; give a new folder.')
  old = read_manifest(path)
  total = sum(entry['examples'] for entry in old['splits'].values())
  progress = Progress(total, 'records', out=out)
  with files.folder(output) as made:
    reports = {
      split: _save_split(path, split, entry, str(made), progress)
      for split, entry in old['splits'].items()
    }
  progress.close()
  if not any(report['counts']['prepared'] for report in reports.values()):
    raise ValueError(f'no record of {path} can be read; {output} holds only the report.')
  return reports


def _save_split(path, split, entry, output, progress):
  """Adds what can be read of a split to a set; returns its report."""
  work = os.path.join(output, f'.preparing-{split}')
  os.makedirs(work, exist_ok=True)
  rows = _index_rows(path, entry)
  parts, first = [], 0
  for number, shard in enumerate(entry['shards']):
    stem = os.path.join(work, f'part-{number:05}')
    here = rows and rows[first : first + shard['examples']]
    parts.append(_save_shard(path, shard, stem, here, progress))
    first += shard['examples']
  skipped = [item for part in parts for item in part['skipped']]
  kept = [row for part in parts for row in part['index']]
  report = {
    'split': split,
    'repaired_from': {'path': path, 'digest': entry['digest']},
    'counts': {
      'clips': first,
      'prepared': len(kept),
      'captions': sum(len(row['captions']) for row in kept),
      'questions': sum(len(row['questions']) for row in kept),
      'skipped': len(skipped),
    },
    'skipped': skipped,
  }
  finish(output, work, split, entry['plan'], parts, report, read_manifest(output, missing_ok=True))
  shutil.rmtree(work, ignore_errors=True)  # It stays when nothing is saved.
  return report


def _check_file(path, entry):
  """Returns what is wrong with a file of the manifest, '' if nothing is."""
  file = os.path.join(path, entry['file'])
  if not os.path.isfile(file):
    return 'missing'
  size = os.path.getsize(file)
  if size != entry['bytes']:
    return f'{size} bytes, expected {entry["bytes"]}'
  if files.sha256(file) != entry['sha256']:
    return 'other content than was written (sha256)'
  return ''


def _broken_records(path, split, entry, shard, reason):
  """Returns a Problem for every record of a shard that cannot be read."""
  rows = _index_rows(path, entry)
  first = 0
  for other in entry['shards']:
    if other is shard:
      break
    first += other['examples']
  return [
    Problem(split, shard['file'], wrong, first + i, rows[first + i]['video'] if rows else '')
    for i, (_, wrong) in enumerate(_read_records(path, shard, reason))
    if wrong
  ]


def _read_records(path, shard, reason):
  """Yields (bytes or None, what is wrong with it) for every record."""
  from array_record.python import array_record_data_source  # noqa: PLC0415

  file = os.path.join(path, shard['file'])
  count = shard['examples']
  if not os.path.isfile(file):
    yield from [(None, reason)] * count
    return
  # Not as a context: leaving it raises for a file that is damaged.
  source = array_record_data_source.ArrayRecordDataSource([f'{file}[0:{count}]'])
  for i in range(count):
    try:
      record = source[i]
    except MemoryError:
      raise  # The record is not to blame.
    except Exception as error:
      yield None, f'{type(error).__name__}: {error}'.splitlines()[0]
    else:
      yield record, ''


def _index_rows(path, entry):
  """Returns the rows of the index, None if they are not what was written."""
  if _check_file(path, entry['index']):
    return None
  with open(os.path.join(path, entry['index']['file']), encoding='utf-8') as lines:
    return [json.loads(line) for line in lines]


def _save_shard(path, shard, stem, rows, progress):
  """Copies a shard, or its records that can be read; returns its part."""
  reason = _check_file(path, shard)
  copy = f'{stem}.array_record'
  if not reason and rows is not None:
    shutil.copyfile(os.path.join(path, shard['file']), copy)
    if files.sha256(copy) != shard['sha256']:
      raise ValueError(f'{path} was changed while it was read; start again.')
    for _ in rows:
      progress.add()
    return {
      **{key: shard[key] for key in ('examples', 'bytes', 'sha256')},
      'skipped': [],
      'partial': [],
      'index': rows,
    }
  infos, records = [], []
  for i, (data, wrong) in enumerate(_read_records(path, shard, reason)):
    # What the record says of itself; of one that is lost, what the index says.
    row = (
      _row_of(data)
      if data is not None
      else (rows[i] if rows else {'video': f'record {i} of {shard["file"]}'})
    )
    infos.append(row)
    records.append(
      Record(
        example=data or b'',
        frames=row.get('frames', 0),
        reason='damaged' if wrong else '',
        detail=wrong,
      )
    )
  return write_part(stem, infos, iter(records), progress)


def _row_of(data):
  """Returns a row of the index from a serialised record."""
  import tensorflow as tf  # noqa: PLC0415

  feature = tf.train.Example.FromString(data).features.feature

  def texts(name):
    return [value.decode() for value in feature[name].bytes_list.value]

  return {
    'video': texts('video')[0],
    'captions': texts('captions'),
    'styles': texts('styles'),
    'questions': texts('questions'),
    'answers': texts('answers'),
    'kinds': texts('kinds'),
    'still': bool(feature['still'].int64_list.value[0]),
    'frames': len(feature['frames'].bytes_list.value),
  }
