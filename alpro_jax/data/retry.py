"""Clips that another run may well read are tried again.

Those that the machine lost, for lack of memory or a disk that failed; those whose file is
there by now; and those that other options allow.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from typing import Any

from alpro_jax.data import annotations, parts, workers
from alpro_jax.data.annotations import printable
from alpro_jax.data.manifest import PrepareError, check_file
from alpro_jax.data.progress import Progress
from alpro_jax.data.record import Record


def to_try_again(clips, skipped, videos, *, timeout_s, follow_links) -> list[annotations.Clip]:
  """Returns the clips that another run may well read.

  Args:
    clips: of which some were skipped.
    skipped: what a report says of these, and of others.
    videos: the video_folder.Folder.
    timeout_s, follow_links: of this run. A time-out is the video's own, but a run with another
      limit may read it, and one that follows links what lies outside.
  """
  reasons = {skip['item']: (skip['reason'], skip['detail']) for skip in skipped}

  def may_be_read(clip):
    reason, detail = reasons.get(printable(clip.video), ('', ''))
    if reason in ('missing file', 'ambiguous name'):
      return videos.has_one(clip)
    return (
      reason == workers.MACHINE
      # What earlier versions wrote of a lack of memory.
      or (reason, detail) == ('decoder crashed', 'signal 9')
      or (reason == 'time-out' and timeout_s is not None)
      or (reason == 'outside the folder of videos' and follow_links)
    )

  return [clip for clip in clips if may_be_read(clip)] if reasons else []


def reopen(output, entry: dict[str, Any], report, pieces: Sequence[parts.Part], lost) -> None:
  """Makes the parts of a finished split from its shards; the split stays as it is.

  Args:
    output: folder of the set.
    entry, report: of the split, in the manifest and the report.
    pieces: its parts.
    lost: clips that will be tried again; the shards of their parts are checked.
  Raises:
    PrepareError: a file is not as it was written.
  """
  index = check_file(output, entry['index'])
  skipped = {skip['item']: skip for skip in report['skipped']}
  partial = {item['item']: item for item in report['partial']}
  shards, lost = iter(entry['shards']), {clip.video for clip in lost}
  with open(index, encoding='utf-8') as lines:
    rows = map(json.loads, lines)
    row = next(rows, None)
    for part in pieces:
      done = {'examples': 0, 'bytes': 0, 'sha256': '', 'skipped': [], 'partial': [], 'index': []}
      for clip in part.clips:
        if row and row['video'] == clip.video:
          done['index'].append(row)
          done['partial'] += [partial[clip.video]] if clip.video in partial else []
          row = next(rows, None)
        else:
          done['skipped'].append(skipped[printable(clip.video)])
      if done['index']:
        shard = next(shards)
        again = any(clip.video in lost for clip in part.clips)
        path = check_file(output, shard, content=again)
        done |= {key: shard[key] for key in ('examples', 'bytes', 'sha256')}
        _link(path, f'{part.stem}.array_record')
      parts.save_part(part.stem, done)


def try_again(pieces: Sequence[parts.Part], videos, settings, limits) -> tuple[int, bool]:
  """Makes those parts anew of which clips were lost, and decodes these clips alone.

  `videos` is their folder; settings and limits are those of parts.make_here.

  Returns:
    (clips that were tried, whether any could be read)
  """
  again = {}
  for part in pieces:
    if clips := to_try_again(
      part.clips,
      parts.read_part(part.stem)['skipped'],
      videos,
      timeout_s=limits['timeout_s'],
      follow_links=settings['follow_links'],
    ):
      again[part.stem] = clips
  if not again:
    return 0, False
  lost = sum(again.values(), [])
  chosen = [part for part in pieces if part.stem in again]
  progress = Progress(sum(len(part.clips) for part in chosen))
  gained = False
  # Few, so here and with one pool, whatever makes the others.
  with contextlib.closing(parts.make_records(lost, settings, **limits)) as results:
    for part in chosen:
      stem, clips = part.stem, part.clips
      old, new = parts.read_part(stem), f'{stem}.again'
      if old['examples']:
        parts.bring_here(part)
      records = _merge(stem, clips, old, {clip.video for clip in again[stem]}, results)
      made = parts.write_part(new, map(parts.index_row, clips), records, progress)
      gained = gained or made['examples'] > old['examples']
      os.remove(f'{stem}.json')  # Killed from here on, all of the part is made anew.
      os.replace(f'{new}.array_record', f'{stem}.array_record')
      os.replace(f'{new}.json', f'{stem}.json')
  progress.close()
  return len(lost), gained


def _merge(stem, clips, done, again, results):
  """Yields the Record of every clip of a part: a new one if its video is in `again`."""
  frames = {row['video']: row['frames'] for row in done['index']}
  skipped = {skip['item']: skip for skip in done['skipped']}
  partial = {item['item']: item['detail'] for item in done['partial']}
  records = parts.read_records(f'{stem}.array_record', done['examples'])
  for clip in clips:
    if clip.video in again:
      yield next(results)
    elif clip.video in frames:
      data, problem = next(records)
      if data is None:
        raise PrepareError(
          f'{stem}.array_record is damaged ({problem}); remove {stem}.json, and the same '
          'command makes it anew.'
        )
      yield Record(data, frames[clip.video], detail=partial.get(clip.video, ''))
    else:
      skip = skipped[printable(clip.video)]
      yield Record(reason=skip['reason'], detail=skip['detail'])


def _link(path, other):
  try:
    os.link(path, other)
  except OSError:  # Not every file system has links.
    shutil.copyfile(path, other)
