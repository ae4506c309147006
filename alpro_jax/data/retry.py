"""Clips of a finished split that the machine lost are tried again.

Lost for lack of memory or a disk that failed, not through a fault of the video.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

from alpro_jax import files
from alpro_jax.data import parts, workers
from alpro_jax.data.annotations import printable
from alpro_jax.data.manifest import MANIFEST, damaged, read_manifest, write_json, write_whole
from alpro_jax.data.progress import Progress
from alpro_jax.data.record import Record


@dataclasses.dataclass(frozen=True)
class Finished:
  """A split that is finished, and the parts that it was made of."""

  output: str
  manifest: dict[str, Any]
  split: str
  report: dict[str, Any]
  parts: list[parts.Part]

  @property
  def index(self) -> dict[str, Any]:
    return self.manifest['splits'][self.split]['index']

  def __iter__(self) -> Iterator[tuple[parts.Part, str, dict[str, Any]]]:
    """Yields (part, path of its shard or '', what write_part returned)."""
    skipped = {skip['item']: skip for skip in self.report['skipped']}
    partial = {item['item']: item for item in self.report['partial']}
    shards = iter(self.manifest['splits'][self.split]['shards'])
    with open(os.path.join(self.output, self.index['file']), encoding='utf-8') as lines:
      rows = map(json.loads, lines)
      row = next(rows, None)
      for part in self.parts:
        kept, lost = [], []
        for clip in part.clips:
          if row and row['video'] == clip.video:
            kept.append(row)
            row = next(rows, None)
          else:
            lost.append(skipped[printable(clip.video)])
        shard = next(shards) if kept else {'examples': 0, 'bytes': 0, 'sha256': ''}
        done = {
          **{key: shard[key] for key in ('examples', 'bytes', 'sha256')},
          'skipped': lost,
          'partial': [partial[row['video']] for row in kept if row['video'] in partial],
          'index': kept,
        }
        yield part, os.path.join(self.output, shard['file']) if kept else '', done


def try_again(old: Finished, settings, limits, out) -> tuple[int, bool]:
  """Makes parts of a finished split anew, with clips that were lost.

  Args:
    old: the split.
    settings: keyword arguments of make_record.
    limits: of parts.make_here.
    out: file for progress lines.
  Returns:
    (clips that were tried, whether any could be read)
  """
  lost = to_try_again(old.report['skipped'], limits['timeout_s'])
  again = [clip for part in old.parts for clip in part.clips if printable(clip.video) in lost]
  if not again:
    return 0, False
  index = os.path.join(old.output, old.index['file'])
  if files.sha256(index) != old.index['sha256']:
    raise damaged(index, 'is damaged (sha256)')
  videos = {clip.video for clip in again}
  stems = {part.stem for part in old.parts if videos & {clip.video for clip in part.clips}}
  progress = Progress(sum(len(part.clips) for part in old.parts if part.stem in stems), out=out)
  gained = False
  # Few, so here and with one pool, whatever makes the others.
  with contextlib.closing(parts.make_records(again, settings, **limits)) as results:
    for part, shard, done in old:
      if part.stem in stems:
        os.makedirs(os.path.dirname(part.stem), exist_ok=True)
        records = _merge(part, shard, done, videos, results)
        new = parts.write_part(part.stem, map(parts.index_row, part.clips), records, progress)
        gained = gained or new['examples'] > done['examples']
  progress.close()
  return len(again), gained


def to_try_again(skipped, timeout_s) -> set[str]:
  """Returns the videos of a report that another run may well read.

  A time-out is the video's own, but a run with another limit may read it.
  """
  return {
    skip['item']
    for skip in skipped
    if skip['reason'] == workers.MACHINE
    # What earlier versions wrote of a lack of memory.
    or (skip['reason'], skip['detail']) == ('decoder crashed', 'signal 9')
    or (skip['reason'] == 'time-out' and timeout_s is not None)
  }


def reopen(old: Finished, work, plan) -> dict[str, Any]:
  """Makes a finished split one whose parts are made and wait for their names.

  Killed before the manifest is written it leaves the set as it was, killed after that one
  that the same command continues.

  Returns:
    the manifest without the split.
  """
  for part, shard, done in old:
    if not parts.is_done(part.stem):
      if shard:
        _link(shard, f'{part.stem}.array_record')
      parts.save_part(part.stem, done)
  write_json(os.path.join(work, 'plan.json'), plan)
  path = os.path.join(old.output, MANIFEST)
  splits = {name: entry for name, entry in old.manifest['splits'].items() if name != old.split}
  if splits:
    write_whole(path, {**old.manifest, 'splits': splits})
  else:
    os.remove(path)
  return read_manifest(old.output, missing_ok=True)


def _merge(part, shard, done, again, results):
  """Yields the Record of every clip: a new one if its video is in `again`."""
  if shard and files.sha256(shard) != done['sha256']:
    raise damaged(shard, 'is damaged (sha256)')
  known = {row['video']: row['frames'] for row in done['index']}
  skipped = {skip['item']: skip for skip in done['skipped']}
  partial = {item['item']: item['detail'] for item in done['partial']}
  records = parts.read_records(shard, done['examples']) if shard else iter(())
  for clip in part.clips:
    if clip.video in again:
      yield next(results)
    elif clip.video in known:
      data, problem = next(records)
      if data is None:
        raise damaged(shard, f'is damaged ({problem})')
      yield Record(data, known[clip.video], detail=partial.get(clip.video, ''))
    else:
      skip = skipped[printable(clip.video)]
      yield Record(reason=skip['reason'], detail=skip['detail'])


def _link(path, other):
  try:
    os.link(path, other)
  except OSError:  # Not every file system has links.
    shutil.copyfile(path, other)
