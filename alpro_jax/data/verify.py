"""Checks a prepared set, names what is broken, and saves what is not.

A file whose digest is right is as it was written. Only where it is not, each record is
read: ArrayRecord has a sum of its own for every record, so a flipped bit costs one; of a
shard that was cut off nothing can be read.
"""

import json
import os
import shutil
from typing import NamedTuple

from alpro_jax import files
from alpro_jax.data import parts
from alpro_jax.data.finish import finish
from alpro_jax.data.manifest import (
  ALL,
  MANIFEST,
  REPORT,
  list_files,
  problem,
  read_manifest,
  read_reports,
)
from alpro_jax.data.progress import Progress
from alpro_jax.data.record import Record


class Problem(NamedTuple):
  """A broken file, or the record of that number in its split (None for a whole file).

  The split may be ALL; the video is '' where it is not known.
  """

  split: str
  file: str
  reason: str
  number: int | None = None
  video: str = ''


class Verified(NamedTuple):
  """How many files and records were checked, and all problems, files before their records."""

  files: int
  records: int
  problems: list[Problem]

  @property
  def broken_records(self) -> int:
    return sum(its.number is not None for its in self.problems)


def verify(path) -> Verified:
  """Compares counts and digests of all files of a set with its manifest.

  Raises:
    FileNotFoundError: if there is no finished set.
    ValueError: if its manifest is damaged.
  """
  manifest = read_manifest(path)
  listed = list(list_files(manifest))
  progress = Progress(len(listed), 'files')
  problems = []
  for split, entry, file in listed:
    if reason := problem(path, file):
      problems.append(Problem(split, file['file'], reason))
      if entry and file is not entry['index']:
        problems += _broken_records(path, split, entry, file, reason)
    progress.add()
  progress.close()
  try:
    read_reports(path)
  except (ValueError, OSError) as error:
    problems.append(Problem(ALL, REPORT, str(error)))
  records = 0
  for split, entry in manifest['splits'].items():
    records += entry['examples']
    if (shards := sum(shard['examples'] for shard in entry['shards'])) != entry['examples']:
      reason = f'its shards have {shards} records, the split {entry["examples"]}'
      problems.append(Problem(split, MANIFEST, reason))
  return Verified(len(listed) + 2, records, problems)  # Manifest and report.


def repair(path, output) -> dict[str, dict]:
  """Writes a set of all records that can be read; returns {split: its report}.

  Shards that are intact are copied as they are. Where the index is broken, it is made
  again from the records, which hold their texts.

  Raises:
    ValueError: if the output is there already, or another process makes it.
  """
  # All of it is read.
  path, output = os.path.abspath(files.local(path)), files.absolute(output)
  if files.names(output):
    raise ValueError(f'{output} is not empty; give a new folder.')
  splits = read_manifest(path)['splits']
  progress = Progress(sum(entry['examples'] for entry in splits.values()), 'records')
  with files.folder(output) as made:
    reports = {
      split: _save_split(path, split, entry, str(made), progress) for split, entry in splits.items()
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
  stems, first = [], 0
  for number, shard in enumerate(entry['shards']):
    stems.append(os.path.join(work, f'part-{number:05}'))
    here = rows and rows[first : first + shard['examples']]
    _save_shard(path, shard, stems[-1], here, progress)
    first += shard['examples']
  counts, skipped, _ = parts.count(stems)
  report = {
    'split': split,
    'repaired_from': {'path': path, 'digest': entry['digest']},
    'counts': {'clips': first, **counts, 'skipped': len(skipped)},
    'skipped': skipped,
  }
  pieces = [parts.Part(stem, []) for stem in stems]
  manifest = read_manifest(output, missing_ok=True)
  finish(output, work, split, entry['plan'], pieces, report, manifest)
  shutil.rmtree(work, ignore_errors=True)  # It stays when nothing is saved.
  return report


def _save_shard(path, shard, stem, rows, progress):
  """Copies a shard, or its records that can be read, into a part."""
  reason = problem(path, shard)
  if not reason and rows is not None:
    copy = f'{stem}.array_record'
    shutil.copyfile(os.path.join(path, shard['file']), copy)
    if files.sha256(copy) != shard['sha256']:
      raise ValueError(f'{path} was changed while it was read; start again.')
    size = {key: shard[key] for key in ('examples', 'bytes', 'sha256')}
    parts.save_part(stem, {**size, 'skipped': [], 'partial': [], 'index': rows})
    progress.add(len(rows))
    return
  infos, records = [], []
  for i, (data, wrong) in enumerate(_read_records(path, shard, reason)):
    # What the record says of itself; of one that is lost, what the index says.
    lost = rows[i] if rows else {'video': f'record {i} of {shard["file"]}'}
    infos.append(lost if data is None else _row_of(data))
    records.append(
      Record(data or b'', infos[-1].get('frames', 0), 'damaged' if wrong else '', wrong)
    )
  parts.write_part(stem, infos, iter(records), progress)


def _broken_records(path, split, entry, shard, reason):
  """Returns a Problem for every record of a shard that cannot be read."""
  rows = _index_rows(path, entry)
  before = entry['shards'][: entry['shards'].index(shard)]
  first = sum(other['examples'] for other in before)
  return [
    Problem(split, shard['file'], wrong, i, rows[i]['video'] if rows else '')
    for i, (_, wrong) in enumerate(_read_records(path, shard, reason), first)
    if wrong
  ]


def _read_records(path, shard, reason):
  """Yields (bytes or None, what is wrong with it) for every record."""
  file = files.join(path, shard['file'])
  if files.exists(file):
    return parts.read_records(files.local(file), shard['examples'])
  return [(None, reason)] * shard['examples']


def _index_rows(path, entry):
  """Returns the rows of the index, None if they are not what was written."""
  if problem(path, entry['index']):
    return None
  lines = files.read(files.join(path, entry['index']['file'])).splitlines()
  return [json.loads(line) for line in lines]


def _row_of(data):
  """Returns a row of the index from a serialised record."""
  import tensorflow as tf  # noqa: PLC0415

  feature = tf.train.Example.FromString(data).features.feature
  texts = {
    name: [value.decode() for value in feature[name].bytes_list.value]
    for name in ('video', 'captions', 'styles', 'questions', 'answers', 'kinds')
  }
  return {
    **texts,
    'video': texts['video'][0],
    'still': bool(feature['still'].int64_list.value[0]),
    'frames': len(feature['frames'].bytes_list.value),
  }
