"""Sets that are made on this machine and lie in a bucket.

They are made in a folder of their own, as any set is, so that a killed run finds its parts
there, and uploaded once: shards and index, what describes them, and manifest.json last.
"""

import hashlib
import json
import os
import pathlib
import shutil

from absl import logging

from alpro_jax import buckets, files
from alpro_jax.data import manifest as manifests


def working_folder(address: str) -> str:
  """Returns the folder of this machine in which a set for a bucket is made."""
  key = hashlib.sha256(address.rstrip('/').encode()).hexdigest()[:16]
  return str(buckets.cache_folder() / 'preparing' / key / address.rstrip('/').rpartition('/')[2])


def fetch_report(address: str, folder: str) -> None:
  """Copies the report on the splits that are there, if there is one."""
  if files.exists(report := files.join(address, manifests.REPORT)):
    pathlib.Path(folder, manifests.REPORT).write_bytes(files.read(report))


def fetch_split(address: str, folder: str, entry: dict) -> None:
  """Copies the index and the shards of a split."""
  there = buckets.listing(address)
  names = [file['file'] for file in (entry['index'], *entry['shards'])]
  buckets.download(address, {name: pathlib.Path(folder, name) for name in names}, there)


def publish(folder: str, address: str, split: str) -> None:
  """Uploads a split that is finished, and removes the folder.

  Args:
    folder: in which it was made.
    address: of the set; other splits stay.
    split: its name.
  """
  named = {manifests.REPORT}
  last = pathlib.Path(folder, manifests.MANIFEST)
  if last.exists():
    manifest = json.loads(last.read_text(encoding='utf-8'))
    entry = manifest['splits'][split]
    named |= {file['file'] for file in (entry['index'], *entry['shards'], *manifest['others'])}
    there = buckets.listing(address)
    # Those that were made elsewhere are there.
    here = [name for name in named if os.path.exists(os.path.join(folder, name))]
    size = sum(os.path.getsize(os.path.join(folder, name)) for name in here)
    logging.info('uploading %d files, %.1f MiB, to %s', len(here), size / 2**20, address)
    buckets.upload(pathlib.Path(folder), address, here)
    # The split had others, or was made elsewhere.
    old = f'{manifest["name"]}-{split}.array_record-', f'.preparing-{split}/'
    buckets.remove(address, [x for x in there if x.startswith(old) and x not in named])
    buckets.upload(last, files.join(address, manifests.MANIFEST))
  else:  # Nothing could be read: the report says why.
    buckets.upload(pathlib.Path(folder), address, named)
  shutil.rmtree(folder)
