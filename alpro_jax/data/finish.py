"""Parts that are all made become a split: they get their names, and all describe it."""

import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence

from alpro_jax import files
from alpro_jax.data import manifest as manifests
from alpro_jax.data.manifest import PrepareError
from alpro_jax.data.parts import Part, name_shard, read_part


def finish(
  output, work, split: str, plan, pieces: Sequence[Part], report, manifest, address: str = ''
) -> None:
  """Names the shards and writes report, index, TFDS files and manifest, in this order.

  Args:
    output: folder of the set.
    work: folder in it with the parts; removed when all is done.
    split, plan, report: its name, how it was made, and what became of its clips.
    pieces: the parts, in order.
    manifest: of the splits that are there, from read_manifest.
    address: of the set, if it will lie in a bucket.
  """
  name = re.sub(r'[^a-z0-9_]', '_', os.path.basename(output).lower())
  name = manifest.get('name', name if name[0].isalpha() else f'set_{name}')
  full = [
    (part, {key: made[key] for key in ('examples', 'bytes', 'sha256')})
    for part in pieces
    if (made := read_part(part.stem))['examples']
  ]
  shards = []
  for number, (part, made) in enumerate(full):
    file = f'{name}-{split}.array_record-{number:05}-of-{len(full):05}'
    if not name_shard(part, output, address, file, made['bytes']):
      raise PrepareError(
        f'{work} lost part {pieces.index(part)}; remove {output} and prepare it again.'
      )
    shards.append({'file': file, **made})
  named = {shard['file'] for shard in shards}
  for path in glob.glob(os.path.join(glob.escape(output), f'{name}-{split}.array_record-*')):
    if os.path.basename(path) not in named:  # The split had others.
      os.remove(path)
  report_path = os.path.join(output, manifests.REPORT)
  reports = manifests.read_reports(output) if os.path.exists(report_path) else {}
  manifests.write_whole(
    report_path, {'format': manifests.FORMAT, 'splits': {**reports, split: report}}
  )
  if not full:
    return
  index = os.path.join(output, f'index-{split}.jsonl')
  rows = (row for part in pieces for row in read_part(part.stem)['index'])
  manifests.write_atomic(index, (json.dumps(row, ensure_ascii=False) + '\n' for row in rows))
  index = _listed(index)
  digest = json.dumps([manifests.FORMAT, index['sha256'], [shard['sha256'] for shard in shards]])
  entry = {
    'examples': report['counts']['prepared'],
    'captions': report['counts']['captions'],
    'questions': report['counts']['questions'],
    'bytes': sum(shard['bytes'] for shard in shards),
    'digest': hashlib.sha256(digest.encode()).hexdigest(),
    'index': index,
    'shards': shards,
    'plan': plan,
  }
  splits = {**manifest['splits'], split: entry}
  others = _write_dataset_info(output, work, name, splits)
  manifests.write_whole(
    os.path.join(output, manifests.MANIFEST),
    {'format': manifests.FORMAT, 'name': name, 'splits': splits, 'others': [*map(_listed, others)]},
  )
  shutil.rmtree(work)


def _listed(path):
  """Returns what the manifest says of a file."""
  size = os.path.getsize(path)
  return {'file': os.path.basename(path), 'bytes': size, 'sha256': files.sha256(path)}


def _write_dataset_info(output, work, name, splits):
  """Writes what TFDS needs to open the folder; returns the paths of its files."""
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
  split_infos = [
    tfds.core.SplitInfo(
      name=split,
      num_bytes=entry['bytes'],
      shard_lengths=[shard['examples'] for shard in entry['shards']],
      filename_template=template.replace(split=split),
    )
    for split, entry in sorted(splits.items())
  ]
  info.set_splits(tfds.core.splits.SplitDict(split_infos))
  with tempfile.TemporaryDirectory(dir=work) as folder:
    info.write_to_directory(folder)
    made = sorted(os.listdir(folder))
    for file in made:
      os.replace(os.path.join(folder, file), os.path.join(output, file))
  return [os.path.join(output, file) for file in made]
