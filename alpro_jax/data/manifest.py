"""The files that describe a prepared set: manifest.json, report.json, and their digests.

manifest.json is written last of all: a folder without it is not a set.
"""

import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from alpro_jax import files
from alpro_jax.data.names import VIDEO_SUFFIXES

FORMAT = 2
_READABLE = (1, 2)  # Sets of format 1 have no questions.
MANIFEST = 'manifest.json'
REPORT = 'report.json'
ALL = 'all splits'


class PrepareError(ValueError):
  """A mistake that the user can fix; the message is one clear sentence."""


def read_manifest(output, *, missing_ok: bool = False) -> dict[str, Any]:
  """Returns manifest.json; with missing_ok an empty one if there is none."""
  path = files.join(output, MANIFEST)
  if not files.exists(path):
    if missing_ok:
      return {'format': FORMAT, 'splits': {}}
    names = files.names(output)
    if any(name.startswith('.preparing-') for name in names):
      raise FileNotFoundError(
        f'{output} is not finished; run launch/prepare.py again with the '
        'same options and it continues.'
      )
    raise FileNotFoundError(_no_set(output))
  then = 'copy or prepare the set again'
  manifest = load(path, then)
  try:
    known = manifest['format']
    for _, entry, file in list_files(manifest) if known in _READABLE else ():
      _ = file['bytes'], file['sha256']
      if file['file'] != os.path.basename(file['file']):
        raise ValueError(f'{file["file"]!r} is not in its folder')
      if entry:
        _ = entry['digest'], entry['bytes']
        _ = entry['examples'] + sum(shard['examples'] for shard in entry['shards'])
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise ValueError(f'{path} is damaged: {type(e).__name__}: {e}; {then}.') from e
  if known not in _READABLE:
    raise ValueError(f'{path} has format {known}, expected {FORMAT}; prepare it again.')
  _check_whole(path, manifest, then, old='others' not in manifest)
  return manifest


def _no_set(folder) -> str:
  """Says of a folder that is no set which command makes one."""
  folder = os.fspath(folder)
  names = files.names(folder)
  videos, output = 'VIDEOS', folder
  there = f'{folder} has no {MANIFEST}, so it is not a prepared set'
  if any(name.lower().endswith(VIDEO_SUFFIXES) for name in names):
    videos, output = folder, f'{folder.rstrip("/")}_set'
    there += ' but a folder of videos'
  tables = ('.jsonl', '.csv', '.json')
  found = next((name for name in names if 'caption' in name and name.endswith(tables)), '')
  texts = files.join(folder, found) if found else 'CAPTIONS.jsonl'
  command = ' '.join(
    shlex.quote(word)
    for word in (
      'python',
      'launch/prepare.py',
      '--source=folder',
      f'--videos={videos}',
      f'--captions={texts}',
      f'--output={output}',
    )
  )
  return f'{there}; make a set with: {command}'


def list_files(manifest) -> Iterator[tuple[str, dict | None, dict]]:
  """Yields (split or ALL, entry of the split or None, entry of the file)."""
  for split, entry in manifest['splits'].items():
    yield from ((split, entry, file) for file in (entry['index'], *entry['shards']))
  # Sets of earlier versions do not list these.
  yield from ((ALL, None, file) for file in manifest.get('others', ()))


def read_reports(output) -> dict[str, Any]:
  """Returns {split: what was prepared and skipped} of a set."""
  path = files.join(output, REPORT)
  then = 'copy it again, or remove it'
  reports = load(path, then)
  _check_whole(path, reports, then, old='format' not in reports)
  return reports['splits']


def write_whole(path, value) -> None:
  """Writes a JSON object with the sha256 of all the rest of it."""
  write_json(path, {**value, 'sha256': _digest_of(value)})


def write_json(path, value) -> None:
  write_atomic(path, [json.dumps(value, indent=1, ensure_ascii=False), '\n'])


def write_atomic(path, texts: Iterable[str]) -> None:
  """Writes a file of text; see files.file."""
  with files.file(path) as made:
    # The path of a report may not be UTF-8; JSON reads it back as it was.
    with open(made, 'w', encoding='utf-8', errors='backslashreplace') as file:
      file.writelines(texts)


def load(path, then: str):
  """Returns what a .json file of ours holds; `then` says how to fix a damaged one."""
  try:
    return json.loads(files.read(path))
  except (ValueError, RecursionError) as e:
    raise PrepareError(f'{path} is damaged: {e}; {then}.') from e


def check_size(path, entry: dict[str, Any], size: int | None) -> None:
  """Raises FileNotFoundError or ValueError unless a listed file has the size of its entry."""
  if size is None:
    raise FileNotFoundError(f'{path} is missing; the manifest lists it.')
  if size != entry['bytes']:
    raise ValueError(
      f'{path} has {size} bytes, expected {entry["bytes"]}; copy or prepare it again.'
    )


def check_digest(path, entry: dict[str, Any], sha256: str) -> None:
  """Raises ValueError unless the sha256 of a listed file, in hex, is that of its entry."""
  if sha256 != entry['sha256']:
    raise ValueError(
      f'{path} is damaged: its sha256 is {sha256[:12]}..., expected '
      f'{entry["sha256"][:12]}...; copy or prepare it again.'
    )


def problem(output, entry: dict[str, Any], *, content: bool = True) -> str:
  """Returns what is wrong with a file that a manifest lists, '' if nothing is.

  Without `content` its size is compared alone.
  """
  path = files.join(output, entry['file'])
  if (size := files.size(path)) is None:
    return 'missing'
  if size != entry['bytes']:
    return f'{size} bytes, expected {entry["bytes"]}'
  intact = not content or files.sha256(path) == entry['sha256']
  return '' if intact else 'other content than was written (sha256)'


def check_file(output, entry: dict[str, Any], *, content: bool = True) -> str:
  """Returns the path of such a file; raises PrepareError if something is wrong with it."""
  path = files.join(output, entry['file'])
  if wrong := problem(output, entry, content=content):
    raise PrepareError(
      f'{path} is {wrong if wrong == "missing" else f"damaged: {wrong}"}. Remove {output} to '
      'prepare it again, or save what is intact: python launch/prepare.py verify '
      f'{output} --output=NEW.'
    )
  return path


def _check_whole(path, value, then, *, old):
  """Raises PrepareError if such an object is not as it was written.

  An `old` one may be of an earlier version, which wrote no sha256.
  """
  whole = isinstance(value, dict) and (
    old and 'sha256' not in value or value.get('sha256') == _digest_of(value)
  )
  if not whole:
    raise PrepareError(f'{path} is damaged: its sha256 is not that of what it says; {then}.')


def _digest_of(value):
  rest = {key: item for key, item in value.items() if key != 'sha256'}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
