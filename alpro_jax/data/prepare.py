"""Turns clips into a TensorFlow Datasets data set on disk.

The list of clips is cut into parts of `part_size`, see parts.py; a part becomes one shard.
A run that was killed finds the parts that are done and makes the others. What a part holds
depends on the list and the options alone, so the set is the same to the last byte however
often it was interrupted and whatever the number of workers.

A clip that was lost through no fault of its own, for lack of memory or a disk that failed,
is tried again when the same command is given for a finished set; so is one whose file was
missing and is there now, or that the command allows by now (--timeout_s, --follow_links).
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import re
import shutil
import tempfile
import time
from collections import Counter
from typing import Annotated, Any, Literal

from alpro_jax import buckets, files
from alpro_jax.data import annotations, listing, names, parts, publish, retry, video_folder
from alpro_jax.data import manifest as manifests
from alpro_jax.data.annotations import Annotations
from alpro_jax.data.finish import finish
from alpro_jax.data.manifest import MANIFEST, REPORT, PrepareError
from alpro_jax.data.options import options_of
from alpro_jax.data.progress import Progress
from alpro_jax.data.record import make_record as make_record

_LOOKED_AT = 1000  # Videos of which a set remembers what they were.


@dataclasses.dataclass(frozen=True)
class Options:
  """What decides the content of a set: type, meaning and limits of each, and its default."""

  fps: Annotated[float, 'Frames to keep per second; 0 keeps all.', 0, 1000] = 1.0
  short_side: Annotated[
    int, 'Pixels of the shorter side; 0 keeps the size, and nothing is ever enlarged.', 0, 8192
  ] = 256
  quality: Annotated[int, 'Of the JPEG frames, 1 to 95.', 1, 95] = 85
  max_frames: Annotated[int, 'Keep no more frames of a clip; 0 is no limit.', 0, 10**9] = 0
  max_seconds: Annotated[
    float,
    'Read no further into a clip; 0 is no limit. For fetch: seconds for one try in all (600).',
    0,
    10**9,
  ] = 0.0
  on_partial: Annotated[
    Literal['skip', 'keep'],
    'What to do with a video that breaks off after some frames; it is named in the report '
    'either way.',
  ] = 'skip'
  part_size: Annotated[
    int, 'Clips per shard; also the most that an interruption costs.', 1, 10**6
  ] = 1000

  def __post_init__(self):
    for name, (kind, _, _, *limits) in options_of(Options).items():
      value = getattr(self, name)
      if limits and not limits[0] <= value <= limits[1]:
        raise PrepareError(f'--{name}={value} must be {limits[0]} to {limits[1]}.')
      if kind is float:  # 1 and 1.0 are one option, and their sets are to have one digest.
        object.__setattr__(self, name, float(value))
    if self.on_partial not in ('skip', 'keep'):
      raise PrepareError(f"--on_partial={self.on_partial} must be 'skip' or 'keep'.")


def prepare(
  source: Annotations,
  root,
  output,
  *,
  split: str = 'train',
  options: Options | None = None,
  num_workers: int = 0,
  timeout_s: float | None = None,
  list_unnamed: bool = False,
  follow_links: bool = False,
  make=None,
) -> dict[str, Any]:
  """Prepares one split, or continues with it; returns its report.

  Args:
    source: the clips.
    root: folder that their names are relative to, here or in a bucket.
    output: folder of the set; other splits may be there already.
    split, options: its name, and what decides its content.
    num_workers: processes; 0 is one per core.
    timeout_s: longest time for one clip, in seconds; see workers.run_in_order.
    list_unnamed: name the videos below root that no row names, and what is passed over
      since it is no video.
    follow_links: read videos that are links to files outside of root.
    make: what makes the parts that are missing, called as parts.make_here is; of a set in a
      bucket it leaves their records there (parts.Part.elsewhere).
  Raises:
    PrepareError: with one sentence that says what to do.
    ValueError: another process is preparing the same set.
  """
  start = time.monotonic()
  values = dataclasses.asdict(options or Options())
  videos, place = video_folder.open_folder(root), files.absolute(output)
  # What is to lie in a bucket is made here, and stays here until it is uploaded.
  output = publish.working_folder(place, split) if buckets.is_address(place) else place
  work = os.path.join(output, f'.preparing-{split}')
  mark = files.join(place, f'.preparing-{split}')  # In a bucket it says whose its files are.
  elsewhere = mark if make and place != output else ''
  limits = {'num_workers': num_workers, 'timeout_s': timeout_s}
  _check_arguments(split, **limits)
  _check_source(source, videos)
  _check_output(place, output)
  plan = {
    'format': manifests.FORMAT,
    'split': split,
    'options': values,
    'clips': len(source.clips),
    'source_digest': source.digest(),
    'videos': _looked_at(source.clips, videos),
  }
  pieces = parts.cut(source.clips, work, values['part_size'], elsewhere)
  settings = {'root': videos.path, 'follow_links': follow_links, **values}
  del settings['part_size']
  with contextlib.ExitStack() as held:
    for lock in sorted({files.join(folder, '.lock') for folder in (place, output)}):
      held.enter_context(files.lock(lock, f'is preparing {place}; wait for it.'))
    manifest = manifests.read_manifest(place, missing_ok=True)
    if manifest['format'] != manifests.FORMAT:
      raise PrepareError(
        f'{place} has format {manifest["format"]}, which can be read but '
        f'not added to; this is format {manifests.FORMAT}. Give another --output.'
      )
    entry = manifest['splits'].pop(split, None)
    unfinished = f'{place} has an unfinished split {split!r}'
    made = tried = 0
    gained = False
    if place != output:
      here = publish.finished_here(output, split)
      if here and (not entry or here[0]['examples'] > entry['examples']):
        # Its upload broke off: it becomes parts again, and then the set, whatever lies there now.
        _check_plan(here[0]['plan'], plan, f'{unfinished} (kept in {output})')
        _reopen(output, work, plan, *here, pieces)
        entry = None
      # Killed from here on, the same command continues with the parts.
      pathlib.Path(output, MANIFEST).unlink(missing_ok=True)
    if entry:
      _check_plan(entry['plan'], plan, f'{place} has a finished split {split!r}')
      for file in (entry['index'], *entry['shards']):
        manifests.check_file(place, file, content=False)
      report = manifests.read_reports(place)[split]
      if lost := retry.to_try_again(
        source.clips, report['skipped'], videos, timeout_s=timeout_s, follow_links=follow_links
      ):
        if place != output:
          publish.fetch_split(place, output, entry)
        _reopen(output, work, plan, entry, report, pieces, lost)
        tried, gained = retry.try_again(pieces, videos, settings, limits)
      if not gained:
        shutil.rmtree(work if place == output else output, ignore_errors=True)
        if place != output:  # Of a run that was killed when all was there.
          files.remove(files.join(mark, 'plan.json'))
        return {**report, 'already_prepared': True, 'tried_again': tried}
      if place != output:  # It can be read until it is uploaded.
        manifests.write_json(files.join(mark, 'plan.json'), plan)
      else:  # Killed from here on, the same command continues with the parts.
        publish.withdraw(manifest, files.join(place, MANIFEST))
    else:
      os.makedirs(work, exist_ok=True)
      for folder in dict.fromkeys((work, mark)):
        plan = _begin(folder, plan, unfinished)
      make_parts = functools.partial(make or parts.make_here, **limits)
      made = _make_missing(source, pieces, settings, make_parts)
      if made < len(source.clips):  # What an earlier run lost.
        tried, gained = retry.try_again(pieces, videos, settings, limits)
    report = _report(source, videos, plan, [part.stem for part in pieces], list_unnamed)
    report |= {
      'seconds': round(time.monotonic() - start, 3),
      'clips_made_in_this_run': made + tried,
    }
    if place != output:
      publish.fetch_report(place, output)
    finish(output, work, split, plan, pieces, report, manifest, elsewhere and place)
    if place != output:
      publish.publish(output, place, split)
  if not report['counts']['prepared']:
    reasons = ', '.join(f'{n} {reason}' for reason, n in report['skipped_by_reason'].items())
    folders = ' and '.join(dict.fromkeys((place, output)))
    raise PrepareError(
      f'No clip of {len(source.clips)} could be prepared: {reasons}; every one is named in '
      f'{files.join(place, REPORT)}. Remove {folders} to start again.'
    )
  return {**report, 'already_prepared': False, 'tried_again': tried}


def _reopen(output, work, plan, entry, report, pieces, lost=()):
  """Makes a finished split parts again; see retry.reopen."""
  shutil.rmtree(work, ignore_errors=True)
  os.mkdir(work)
  retry.reopen(output, entry, report, pieces, lost)
  manifests.write_json(os.path.join(work, 'plan.json'), plan)


def _begin(work, plan, where):
  """Writes the plan of a split, or checks that of an earlier run; returns it."""
  path = files.join(work, 'plan.json')
  if not files.exists(path):
    manifests.write_json(path, plan)
    return plan
  old = manifests.load(path, f'remove {work}')
  _check_plan(old, plan, where)
  # Some videos may be gone that were there.
  return plan | {'videos': old.get('videos', {}) | plan['videos']}


def _make_missing(source, pieces, settings, make):
  """Makes the parts that are not there; returns how many clips were read."""
  progress = Progress(len(source.clips))
  for skipped in source.skipped:
    progress.name(skipped)
  missing = []
  for part in pieces:
    if parts.is_done(part.stem):
      progress.found(len(part.clips), len(parts.read_part(part.stem)['skipped']))
    else:
      missing.append(part)
  made = make(missing, settings, progress) if missing else 0
  progress.close()
  return made


def _check_arguments(split, num_workers, timeout_s):
  if not re.fullmatch(r'[a-z][a-z0-9_]*', split):
    raise PrepareError(
      f'--split={split} must be lower-case letters, digits and _, as in train or val_2.'
    )
  if timeout_s is not None and not timeout_s > 0:
    raise PrepareError(f'--timeout_s={timeout_s} must be more than 0.')
  if num_workers < 0:
    raise PrepareError(f'--workers={num_workers} must not be negative.')


def _check_source(source, videos):
  """Says so at once when annotations and videos do not belong together."""
  if not source.clips:
    first = '; '.join(f'{s.item!r}: {s.reason} ({s.detail})' for s in source.skipped[:5])
    others = f' for this split ({source.other_splits} are of others or not asked for)'
    raise PrepareError(
      f'The annotations have {source.rows} rows and no usable one'
      + (others if source.other_splits else '')
      + (f': {first}.' if first else '.')
    )
  if not any(clip in videos for clip in source.clips):
    wanted = [clip.video for clip in source.clips[:5]]
    raise PrepareError(
      f'None of the {len(source.clips)} annotated files is in {videos.path}: the '
      f'annotations name {wanted}, the folder holds {videos.some_names()}; '
      'names must be relative to the folder and have their suffix.'
    )


def _check_output(place, output):
  """`output` is where a set for a bucket is made; else both are the same."""
  try:
    os.makedirs(output, exist_ok=True)
    with tempfile.TemporaryFile(dir=output):
      pass
  except OSError as e:
    raise PrepareError(f'--output={output} cannot be written: {e.strerror}.') from e
  there = [name for name in files.names(place) if name != '.lock']
  ours = MANIFEST in there or any(name.startswith('.preparing-') for name in there)
  if there and not ours:
    raise PrepareError(
      f'--output={place} holds other files ({", ".join(there[:5])}); '
      'give a folder that is new or empty.'
    )


def _looked_at(clips, videos):
  """Returns {video: size and digest of its ends} of up to 1,000 that are there, evenly spread.

  The same command with other videos of the same names must not go on.
  """
  number = min(len(clips), _LOOKED_AT)
  return videos.ends(clips[i * len(clips) // number] for i in range(number))


def _check_plan(old, new, where):
  """Refuses to go on with what was begun otherwise."""
  known = old.get('videos', {})
  replaced = [video for video, now in new['videos'].items() if known.get(video, now) != now]
  if replaced:
    raise PrepareError(
      f'{where} made of other videos: {", ".join(replaced[:5])}{" ..." if replaced[5:] else ""} '
      f'({len(replaced)} of {len(new["videos"])} looked at) had another content. Use the same '
      'again, or another --output.'
    )
  changed = [
    f'--{key} was {old["options"].get(key)!r} and is now {value!r}'
    for key, value in new['options'].items()
    if old['options'].get(key) != value
  ]
  if old['source_digest'] != new['source_digest']:
    changed.append(f'the list of clips changed (it had {old["clips"]}, now {new["clips"]})')
  if old['format'] != new['format']:
    changed.append(f'format {old["format"]}, now {new["format"]}')
  if changed:
    raise PrepareError(
      f'{where} made otherwise: {"; ".join(changed)}. Use the same again, or another --output.'
    )


def _report(source, videos, plan, stems, list_unnamed):
  counts, skipped, partial = parts.count(stems)
  skipped = [dataclasses.asdict(skip) for skip in source.skipped] + skipped
  found = listing.Listing([], [], [], Counter())
  if list_unnamed:
    known = set(map(names.folded, source.named))
    found = videos.list_videos(lambda name: names.folded(os.fsdecode(name)) in known)

  def show(name):
    return annotations.printable(os.fsdecode(name))

  return {
    'split': plan['split'],
    'options': plan['options'],
    'counts': {
      'rows': source.rows,
      'rows_of_other_splits': source.other_splits,
      'to_leave_out_but_not_found': source.not_found,
      'clips': plan['clips'],
      **counts,
      'skipped': len(skipped),
      'videos_not_named': len(found.videos),
    },
    'skipped_by_reason': dict(sorted(Counter(skip['reason'] for skip in skipped).items())),
    'skipped': skipped,
    'partial': partial,
    'not_named': [*map(show, found.videos)],
    'passed_over': [
      {'item': show(name), 'reason': reason} for name, reason in found.passed_over + found.problems
    ],
    'other_files': dict(sorted(found.others.items())),
  }
