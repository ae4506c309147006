"""Clips of a finished split that the machine lost are tried again.

Lost for lack of memory or a disk that failed, not through a fault of the video.
"""

import contextlib
import dataclasses
import json
import os
import shutil

from alpro_jax import files
from alpro_jax.data import annotations, workers
from alpro_jax.data.manifest import (
  MANIFEST,
  PrepareError,
  damaged,
  dump,
  read_manifest,
  write_atomic,
  write_whole,
)
from alpro_jax.data.parts import index_row, make_records, write_part
from alpro_jax.data.progress import Progress
from alpro_jax.data.record import Record


@dataclasses.dataclass(frozen=True)
class Finished:
  """A split that is finished, and the parts that it was made of.

  Attributes:
    output: folder of the set.
    manifest: of all splits.
    split: its name.
    report: of the split.
    parts: list of Part.
  """

  output: str
  manifest: dict
  split: str
  report: dict
  parts: list

  @property
  def entry(self):
    return self.manifest['splits'][self.split]

  def __iter__(self):
    """Yields (Part, path of its shard or '', what write_part returned)."""
    skipped = {skip['item']: skip for skip in self.report['skipped']}
    partial = {item['item']: item for item in self.report['partial']}
    shards = iter(self.entry['shards'])
    with open(os.path.join(self.output, self.entry['index']['file']), encoding='utf-8') as lines:
      rows = map(json.loads, lines)
      row = next(rows, None)
      for part in self.parts:
        kept, lost = [], []
        for clip in part.clips:
          if row and row['video'] == clip.video:
            kept.append(row)
            row = next(rows, None)
          else:
            lost.append(skipped[annotations.printable(clip.video)])
        shard = next(shards) if kept else {'examples': 0, 'bytes': 0, 'sha256': ''}
        yield (
          part,
          shard.get('file') and os.path.join(self.output, shard['file']),
          {
            **{key: shard[key] for key in ('examples', 'bytes', 'sha256')},
            'skipped': lost,
            'index': kept,
            'partial': [partial[row['video']] for row in kept if row['video'] in partial],
          },
        )


def try_again(old, settings, limits, out):
  """Makes parts of a finished split anew, with clips that were lost.

  Args:
    old: Finished.
    settings: keyword arguments of make_record.
    limits: of make_here.
    out: file for progress lines.
  Returns:
    (clips that were tried, whether any could be read)
  """
  again = to_try_again(old.report['skipped'], limits['timeout_s'])
  again = {
    clip.video
    for part in old.parts
    for clip in part.clips
    if annotations.printable(clip.video) in again
  }
  if not again:
    return 0, False
  index = os.path.join(old.output, old.entry['index']['file'])
  if files.sha256(index) != old.entry['index']['sha256']:
    raise PrepareError(damaged(index, 'is damaged (sha256)'))
  progress = Progress(
    sum(
      len(part.clips) for part in old.parts if again.intersection(clip.video for clip in part.clips)
    ),
    out=out,
  )
  gained = False
  # Few, so here and with one pool, whatever makes the others.
  results = make_records(
    [clip for part in old.parts for clip in part.clips if clip.video in again], settings, **limits
  )
  with contextlib.closing(results):
    for part, shard, done in old:
      if again.intersection(clip.video for clip in part.clips):
        os.makedirs(os.path.dirname(part.stem), exist_ok=True)
        new = write_part(
          part.stem, map(index_row, part.clips), _merge(part, shard, done, again, results), progress
        )
        gained = gained or new['examples'] > done['examples']
  progress.close()
  return len(again), gained


def to_try_again(skipped, timeout_s):
  """Returns the videos of a report that another run may well read, as a set.

  A time-out is the video's own, but a run with another limit may read it.
  """
  return {
    skip['item']
    for skip in skipped
    if (
      skip['reason'] == workers.MACHINE
      # What earlier versions wrote of a lack of memory.
      or (skip['reason'], skip['detail']) == ('decoder crashed', 'signal 9')
      or skip['reason'] == 'time-out'
      and timeout_s is not None
    )
  }


def reopen(old, work, plan):
  """Makes a finished split one whose parts are made and wait for their names.

  Killed before the manifest is written it leaves the set as it was, killed
  after that one that the same command continues.

  Returns:
    the manifest without the split.
  """
  for part, shard, done in old:
    if not os.path.exists(f'{part.stem}.json'):
      if shard:
        _link(shard, f'{part.stem}.array_record')
      write_atomic(f'{part.stem}.json', [json.dumps(done, ensure_ascii=False)])
  write_atomic(os.path.join(work, 'plan.json'), dump(plan))
  path = os.path.join(old.output, MANIFEST)
  splits = {name: entry for name, entry in old.manifest['splits'].items() if name != old.split}
  if splits:
    write_whole(path, {**old.manifest, 'splits': splits})
  else:
    os.remove(path)
  return read_manifest(old.output, missing_ok=True)


def _merge(part, shard, done, again, results):
  """Yields the Record of every clip: a new one if it is in `again`."""
  from array_record.python import array_record_module  # noqa: PLC0415

  if shard and files.sha256(shard) != done['sha256']:
    raise PrepareError(damaged(shard, 'is damaged (sha256)'))
  reader = shard and array_record_module.ArrayRecordReader(shard, 'readahead_buffer_size:0')
  skipped = {skip['item']: skip for skip in done['skipped']}
  partial = {item['item']: item['detail'] for item in done['partial']}
  kept = {row['video']: (number, row['frames']) for number, row in enumerate(done['index'])}
  for clip in part.clips:
    if clip.video in again:
      yield next(results)
    elif clip.video in kept:
      number, frames = kept[clip.video]
      yield Record(reader.read([number])[0], frames, detail=partial.get(clip.video, ''))
    else:
      skip = skipped[annotations.printable(clip.video)]
      yield Record(reason=skip['reason'], detail=skip['detail'])


def _link(path, other):
  try:
    os.link(path, other)
  except OSError:  # Not every file system has links.
    shutil.copyfile(path, other)
