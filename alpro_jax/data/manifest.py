"""The files that make a folder a prepared set: manifest, index, report, TFDS.

manifest.json is written last of all: a folder without it is not a set.
"""

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile

from alpro_jax import files

FORMAT = 2
_READABLE = (1, 2)  # Sets of format 1 have no questions.
MANIFEST = 'manifest.json'
REPORT = 'report.json'


class PrepareError(ValueError):
  """Something the user can mend; the message is one clear sentence."""


def read_manifest(output, *, missing_ok=False):
  """Returns manifest.json; with missing_ok an empty one if there is none."""
  path = os.path.join(output, MANIFEST)
  if not os.path.exists(path):
    if missing_ok:
      return {'format': FORMAT, 'splits': {}}
    unfinished = os.path.isdir(output) and any(
      name.startswith('.preparing-') for name in os.listdir(output)
    )
    if unfinished:
      raise FileNotFoundError(
        f'{output} is not finished; run launch/prepare.py again with the '
        'same options and it continues.'
      )
    raise FileNotFoundError(f'{output} has no {MANIFEST}; make a set with launch/prepare.py.')
  then = 'copy or prepare the set again'
  manifest = load(path, then)
  try:
    known = manifest['format']
    files = []
    if known in _READABLE:
      files += manifest.get('others', ())
      for entry in manifest['splits'].values():
        files += [entry['index'], *entry['shards']]
        _ = (
          entry['digest'],
          entry['bytes'],
          entry['examples'] + sum(shard['examples'] for shard in entry['shards']),
        )
    for file in files:
      _ = file['bytes'], file['sha256']
      if file['file'] != os.path.basename(file['file']):
        raise ValueError(f'{file["file"]!r} is not in its folder')
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise ValueError(f'{path} is damaged: {type(e).__name__}: {e}; {then}.') from e
  if known not in _READABLE:
    raise ValueError(f'{path} has format {known}, expected {FORMAT}; prepare it again.')
  _check_whole(path, manifest, then, old='others' not in manifest)
  return manifest


def read_reports(output):
  """Returns {split: what was prepared and skipped} of a set."""
  path = os.path.join(output, REPORT)
  then = 'copy it again, or remove it'
  reports = load(path, then)
  _check_whole(path, reports, then, old='format' not in reports)
  return reports['splits']


def write_whole(path, value):
  """Writes a JSON object with the sha256 of all the rest of it."""
  value = {**value, 'sha256': _digest_of(value)}
  write_atomic(path, dump(value))


def finish(output, work, split, plan, parts, report, manifest):
  """Names the shards and writes index, TFDS files, report, manifest.

  Args:
    output: folder of the set.
    work: folder in it with the parts; removed when all is done.
    split: name of the split.
    plan: how it was made.
    parts: from write_part, in order.
    report: of the split.
    manifest: of the splits that are there, from read_manifest.
  """
  full = [number for number, part in enumerate(parts) if part['examples']]
  name = re.sub(r'[^a-z0-9_]', '_', os.path.basename(output).lower())
  name = name if name[0].isalpha() else f'set_{name}'
  if manifest['splits']:
    name = manifest['name']
  shards = []
  for number, part_number in enumerate(full):
    part = parts[part_number]
    file = f'{name}-{split}.array_record-{number:05}-of-{len(full):05}'
    target = os.path.join(output, file)
    with contextlib.suppress(FileNotFoundError):  # Moved before a kill.
      os.rename(os.path.join(work, f'part-{part_number:05}.array_record'), target)
    if not os.path.exists(target) or os.path.getsize(target) != part['bytes']:
      raise PrepareError(f'{work} lost part {part_number}; remove {output} and prepare it again.')
    shards.append({'file': file, **{key: part[key] for key in ('examples', 'bytes', 'sha256')}})
  named = {shard['file'] for shard in shards}
  for path in glob.glob(os.path.join(glob.escape(output), f'{name}-{split}.array_record-*')):
    if os.path.basename(path) not in named:  # The split had others.
      os.remove(path)
  report_path = os.path.join(output, REPORT)
  reports = read_reports(output) if os.path.exists(report_path) else {}
  write_whole(report_path, {'format': FORMAT, 'splits': {**reports, split: report}})
  if not full:
    return
  index_file = f'index-{split}.jsonl'
  index_path = os.path.join(output, index_file)
  write_atomic(
    index_path,
    (json.dumps(row, ensure_ascii=False) + '\n' for part in parts for row in part['index']),
  )
  index_sha = files.sha256(index_path)
  digest = hashlib.sha256(
    json.dumps([FORMAT, index_sha, [shard['sha256'] for shard in shards]]).encode()
  )
  splits = {
    **manifest['splits'],
    split: {
      'examples': report['counts']['prepared'],
      'captions': report['counts']['captions'],
      'questions': report['counts']['questions'],
      'bytes': sum(shard['bytes'] for shard in shards),
      'digest': digest.hexdigest(),
      'index': {'file': index_file, 'bytes': os.path.getsize(index_path), 'sha256': index_sha},
      'shards': shards,
      'plan': plan,
    },
  }
  others = [
    {'file': file, 'bytes': os.path.getsize(path), 'sha256': files.sha256(path)}
    for file in _write_dataset_info(output, work, name, splits)
    for path in [os.path.join(output, file)]
  ]
  write_whole(
    os.path.join(output, MANIFEST),
    {'format': FORMAT, 'name': name, 'splits': splits, 'others': others},
  )
  shutil.rmtree(work)


def damaged(path, what):
  output = os.path.dirname(path)
  return (
    f'{path} {what}. Remove {output} to prepare it again, or save what '
    f'is intact: python launch/prepare.py verify {output} --output=NEW.'
  )


def _write_dataset_info(output, work, name, splits):
  """Writes what TFDS needs to open the folder; returns the names of files."""
  import tensorflow_datasets as tfds  # noqa: PLC0415  Slow, so only now.

  from alpro_jax.data import dataset  # noqa: PLC0415

  identity = tfds.core.dataset_info.DatasetIdentity(
    name=name, version=tfds.core.Version('1.0.0'), data_dir=output, module_name=''
  )
  info = tfds.core.DatasetInfo(
    builder=identity,
    features=dataset.features(),
    description='Clips as JPEG frames with their texts, by alpro_jax.',
  )
  info.set_file_format(tfds.core.file_adapters.FileFormat.ARRAY_RECORD)
  template = tfds.core.ShardedFileTemplate(
    data_dir=output,
    dataset_name=name,
    filetype_suffix='array_record',
    template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
  )
  info.set_splits(
    tfds.core.splits.SplitDict(
      [
        tfds.core.SplitInfo(
          name=split,
          num_bytes=entry['bytes'],
          shard_lengths=[shard['examples'] for shard in entry['shards']],
          filename_template=template.replace(split=split),
        )
        for split, entry in sorted(splits.items())
      ]
    )
  )
  with tempfile.TemporaryDirectory(dir=work) as folder:
    info.write_to_directory(folder)
    files = sorted(os.listdir(folder))
    for file in files:
      os.replace(os.path.join(folder, file), os.path.join(output, file))
  return files


def write_atomic(path, texts):
  """The file has its old content or the new, whatever happens."""
  # The path of a report may not be UTF-8; JSON reads it back as it was.
  with open(f'{path}.tmp', 'w', encoding='utf-8', errors='backslashreplace') as file:
    file.writelines(texts)
    file.flush()
    os.fsync(file.fileno())
  os.replace(f'{path}.tmp', path)


def dump(value):
  return [json.dumps(value, indent=1, ensure_ascii=False), '\n']


def load(path, then):
  """Returns what a .json file of ours holds; `then` mends a damaged one."""
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except (ValueError, RecursionError) as e:
    raise PrepareError(f'{path} is damaged: {e}; {then}.') from e


def _check_whole(path, value, then, *, old):
  """Raises PrepareError if such an object is not as it was written.

  Args:
    path: of the file.
    value: what it holds.
    then: what mends it.
    old: it may be of an earlier version, which wrote no sha256.
  """
  if not isinstance(value, dict) or not (
    old and 'sha256' not in value or value.get('sha256') == _digest_of(value)
  ):
    raise PrepareError(f'{path} is damaged: its sha256 is not that of what it says; {then}.')


def _digest_of(value):
  rest = {key: item for key, item in value.items() if key != 'sha256'}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
