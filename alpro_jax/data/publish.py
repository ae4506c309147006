"""Sets that are made on this machine and lie in a bucket.

They are made in a folder of their own, as any set is, so that a killed run finds its parts
there, and uploaded once: shards and index, what describes them, and manifest.json last. They
stay until all is there: an upload that broke off is begun again, and nothing is decoded anew.
"""

import hashlib
import json
import pathlib
import shutil

from absl import logging

from alpro_jax import buckets, files
from alpro_jax.data import manifest as manifests


def working_folder(address: str, split: str) -> str:
  """Returns the folder of this machine in which a split of a set for a bucket is made."""
  # One for each: to publish a split takes nothing from another that is not finished.
  key = hashlib.sha256(f'{address.rstrip("/")} {split}'.encode()).hexdigest()[:16]
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


def finished_here(folder: str, split: str) -> tuple[dict, dict] | None:
  """Returns entry and report of a split that was finished and not wholly uploaded, or None."""
  entry = manifests.read_manifest(folder, missing_ok=True)['splits'].get(split)
  listed = (entry['index'], *entry['shards']) if entry else ()
  # What was made elsewhere never was here.
  if not entry or any(manifests.problem(folder, file, content=False) for file in listed):
    return None
  report = manifests.read_reports(folder).get(split)
  return (entry, report) if report else None


def publish(folder: str, address: str, split: str) -> None:
  """Uploads a split that is finished, and removes the folder.

  A set that is there can be read until all that is new lies beside it. Then its manifest goes
  for as long as files are renamed: it never names files that are not those it means. Killed
  anywhere, `.preparing-SPLIT` is there until the end, and says whose the files are.

  Args:
    folder: in which it was made.
    address: of the set; other splits stay.
    split: its name.
  """
  here, place = pathlib.Path(folder), files.join(address, manifests.MANIFEST)
  if not (here / manifests.MANIFEST).exists():
    # Nothing could be read: the report says why, and the parts stay to be tried again.
    buckets.upload(here, address, [manifests.REPORT])
    return
  manifest = json.loads((here / manifests.MANIFEST).read_text(encoding='utf-8'))
  published, there = manifests.read_manifest(address, missing_ok=True), buckets.listing(address)
  old, new = published['splits'].pop(split, None), manifest['splits'][split]
  before, now = (
    {file['file']: file['sha256'] for file in (entry['index'], *entry['shards'])} if entry else {}
    for entry in (old, new)
  )
  # Those that were made elsewhere are there.
  changed = [name for name in now if now[name] != before.get(name) and (here / name).exists()]
  size = sum((here / name).stat().st_size for name in changed)
  logging.info('uploading %d files, %.1f MiB, to %s', len(changed), size / 2**20, address)
  work = f'.preparing-{split}/'
  aside = [name for name in changed if name in before]
  buckets.upload(here, address, [name for name in changed if name not in before])
  buckets.upload(here, files.join(address, work.rstrip('/')), aside)
  if old:
    withdraw(published, place)
  for name in aside:
    buckets.move(files.join(address, f'{work}{name}'), files.join(address, name))
  others = [file['file'] for file in manifest['others']]
  buckets.upload(here, address, [manifests.REPORT, *others])
  # The split had others, or was made elsewhere.
  shards, mark = f'{manifest["name"]}-{split}.array_record-', f'{work}plan.json'
  gone = [name for name in there if name.startswith((shards, work)) and name not in now]
  buckets.remove(address, [name for name in gone if name != mark])
  buckets.upload(here / manifests.MANIFEST, place)
  buckets.remove(address, [mark])
  shutil.rmtree(folder)


def withdraw(manifest, path) -> None:
  """Writes a manifest from which a split was taken; none if no other is left."""
  if manifest['splits']:
    manifests.write_whole(path, manifest)
  else:
    files.remove(path)
