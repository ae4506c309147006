"""Turns clips into a TensorFlow Datasets data set on disk.

The list of clips is cut into parts of `part_size`. A part becomes one shard:

  out/.preparing-train/plan.json                options, digest of the list
  out/.preparing-train/part-00000.array_record  its records
  out/.preparing-train/part-00000.json          written last: the part is done

A run that was killed finds the parts that are done and makes the others. What
a part holds depends on the list and the options alone, so the set is the same
to the last byte however often it was interrupted and whatever the number of
workers. When all parts are there they get their TFDS names, and manifest.json
is written last of all: a folder without it is not a set.

A clip that was lost through no fault of its own, for lack of memory or a disk
that failed, is tried again when the same command is given for a finished set.
"""

import contextlib
import dataclasses
import fcntl
import functools
import glob
import os
import re
import shutil
import tempfile
import time
import typing
from collections import Counter
from typing import Annotated, Any, Literal

from alpro_jax import files
from alpro_jax.data import annotations, listing, names
from alpro_jax.data.manifest import (
  FORMAT,
  MANIFEST,
  REPORT,
  PrepareError,
  damaged,
  dump,
  finish,
  load,
  read_manifest,
  read_reports,
  write_atomic,
)
from alpro_jax.data.parts import cut, make_here, make_parts, read_part
from alpro_jax.data.record import make_record as make_record
from alpro_jax.data.retry import Finished, reopen, to_try_again, try_again

LOOKED_AT = 1000  # Videos of which a set remembers what they were.


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

  @classmethod
  def flags(cls) -> dict[str, tuple[Any, Any, str]]:
    """Returns {name: (type, default, help)}."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {
      field.name: (kind, field.default, text)
      for field in dataclasses.fields(cls)
      for kind, text, *_ in [typing.get_args(hints[field.name])]
    }

  def __post_init__(self):
    for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
      value, (kind, _, *limits) = getattr(self, name), typing.get_args(hint)
      if limits and not limits[0] <= value <= limits[1]:
        raise PrepareError(f'--{name}={value} must be {limits[0]} to {limits[1]}.')
      if kind is float:  # 1 and 1.0 are one option, and their sets are to have one digest.
        object.__setattr__(self, name, float(value))
    if self.on_partial not in ('skip', 'keep'):
      raise PrepareError(f"--on_partial={self.on_partial} must be 'skip' or 'keep'.")


def prepare(
  source,
  root,
  output,
  *,
  split='train',
  options=None,
  num_workers=0,
  timeout_s=None,
  list_unnamed=False,
  follow_links=False,
  make=None,
  out=None,
):
  """Prepares one split, or continues with it.

  Args:
    source: Annotations.
    root: folder that the names in `source` are relative to.
    output: folder of the set; other splits may be there already.
    split: name of the split.
    options: Options.
    num_workers: processes; 0 is one per core.
    timeout_s: longest time for one clip, in seconds; see workers.run_in_order.
    list_unnamed: name the videos below root that no row names, and what is
      passed over since it is no video.
    follow_links: read videos that are links to files outside of root.
    make: what makes the parts that are missing; called as make_here is.
    out: file for progress lines (stderr).
  Returns:
    dict, the report of this split.
  Raises:
    PrepareError: with one sentence that says what to do.
  """
  options = options or Options()
  root, output = os.path.abspath(root), os.path.abspath(output)
  if not re.fullmatch(r'[a-z][a-z0-9_]*', split):
    raise PrepareError(
      f'--split={split} must be lower-case letters, digits and _, as in train or val_2.'
    )
  if timeout_s is not None and not timeout_s > 0:
    raise PrepareError(f'--timeout_s={timeout_s} must be more than 0.')
  if num_workers < 0:
    raise PrepareError(f'--workers={num_workers} must not be negative.')
  _check_source(source, root)
  work = os.path.join(output, f'.preparing-{split}')
  _check_output(output)
  plan = {
    'format': FORMAT,
    'split': split,
    'options': dataclasses.asdict(options),
    'clips': len(source.clips),
    'source_digest': source.digest(),
    'videos': _looked_at(source.clips, root),
  }
  with _lock(output):
    manifest = read_manifest(output, missing_ok=True)
    if manifest['format'] != FORMAT:
      raise PrepareError(
        f'{output} has format {manifest["format"]}, which can be read but '
        f'not added to; this is format {FORMAT}. Give another --output.'
      )
    settings = {'root': root, 'follow_links': follow_links, **dataclasses.asdict(options)}
    parts = cut(source.clips, work, settings.pop('part_size'))
    limits = {'num_workers': num_workers, 'timeout_s': timeout_s}
    finished = split in manifest['splits']
    if finished:
      _check_plan(
        manifest['splits'][split]['plan'], plan, f'{output} has a finished split {split!r}'
      )
      _check_files(output, manifest['splits'][split])
      shutil.rmtree(work, ignore_errors=True)
      report = read_reports(output)[split]
    else:
      report = _make_split(
        source, root, work, plan, parts, settings, limits, manifest, list_unnamed, make, out
      )
      if report['clips_made_in_this_run'] == len(source.clips):
        return report
      manifest = read_manifest(output)
    # What an earlier run lost.
    old = Finished(output, manifest, split, report, parts)
    tried, gained = try_again(old, settings, limits, out)
    if gained:
      manifest = reopen(old, work, plan)
      report = _make_split(
        source, root, work, plan, parts, settings, limits, manifest, list_unnamed, make, out, tried
      )
    else:
      shutil.rmtree(work, ignore_errors=True)
  return {**report, 'already_prepared': finished and not gained, 'tried_again': tried}


def _make_split(
  source, root, work, plan, parts, settings, limits, manifest, list_unnamed, make, out, tried=0
):
  """Makes the parts that are not there, and of all of them the split.

  Returns:
    its report.
  """
  output, split = os.path.dirname(work), plan['split']
  plan_path = os.path.join(work, 'plan.json')
  if os.path.exists(plan_path):
    old = load(plan_path, f'remove {work}')
    _check_plan(old, plan, f'{output} has an unfinished split {split!r}')
    # Some may be gone that were there.
    plan = plan | {'videos': old.get('videos', {}) | plan['videos']}
  else:
    os.makedirs(work, exist_ok=True)
    write_atomic(plan_path, dump(plan))
  start = time.monotonic()
  done, made = make_parts(
    source, parts, settings, functools.partial(make or make_here, **limits), out
  )
  report = _report(source, root, plan, done, list_unnamed)
  report['seconds'] = round(time.monotonic() - start, 3)
  report['clips_made_in_this_run'] = made + tried
  finish(output, work, split, plan, done, report, manifest)
  if not report['counts']['prepared']:
    for part in parts:  # So that the same command tries again.
      if to_try_again(read_part(part.stem)['skipped'], limits['timeout_s']):
        for path in glob.glob(f'{glob.escape(part.stem)}.*'):
          os.remove(path)
    raise PrepareError(
      f'No clip of {len(source.clips)} could be prepared: '
      + ', '.join(f'{n} {reason}' for reason, n in report['skipped_by_reason'].items())
      + f'; every one is named in {os.path.join(output, REPORT)}. '
      f'Remove {output} to start again.'
    )
  return report


def _check_source(source, root):
  """Says so at once when annotations and videos do not belong together."""
  if not os.path.isdir(root):
    raise PrepareError(f'{root} is not a folder.')
  if not source.clips:
    first = '; '.join(f'{s.item!r}: {s.reason} ({s.detail})' for s in source.skipped[:5])
    raise PrepareError(
      f'The annotations have {source.rows} rows and no usable one'
      + (
        f' for this split ({source.other_splits} are of others or not asked for)'
        if source.other_splits
        else ''
      )
      + (f': {first}.' if first else '.')
    )
  if any(_is_there(root, clip.files) for clip in source.clips):
    return
  wanted = [clip.video for clip in source.clips[:5]]
  there = []
  for folder, _, found in os.walk(root):
    there += [os.path.relpath(os.path.join(folder, name), root) for name in found]
    if len(there) > 1000:
      break
  raise PrepareError(
    f'None of the {len(source.clips)} annotated files is in {root}: the '
    f'annotations name {wanted}, the folder holds {sorted(there)[:5]}; '
    'names must be relative to the folder and have their suffix.'
  )


def _is_there(root, files):
  try:
    return names.find_file(root, files) is not None
  except ValueError:
    return True  # More than once, which is said of the clip.


def _check_output(output):
  try:
    os.makedirs(output, exist_ok=True)
    with tempfile.TemporaryFile(dir=output):
      pass
  except OSError as e:
    raise PrepareError(f'--output={output} cannot be written: {e.strerror}.') from e
  there = [name for name in sorted(os.listdir(output)) if name != '.lock']
  ours = MANIFEST in there or any(name.startswith('.preparing-') for name in there)
  if there and not ours:
    raise PrepareError(
      f'--output={output} holds other files ({", ".join(there[:5])}); '
      'give a folder that is new or empty.'
    )


def _looked_at(clips, root):
  """Returns {video: size and digest of its ends} of some that are there.

  The same command with other videos of the same names must not go on: those of
  a small set are all looked at, of a large one LOOKED_AT, evenly spread.
  """
  number = min(len(clips), LOOKED_AT)
  found = {}
  for i in range(number):
    clip = clips[i * len(clips) // number]
    with contextlib.suppress(OSError, ValueError):
      path = names.find_file(root, clip.files)
      if path is None:
        continue
      with open(path, 'rb') as stream:
        size = os.fstat(stream.fileno()).st_size
        found[clip.video] = f'{size} {files.ends_digest(stream).hex()[:16]}'
  return found


def _check_plan(old, new, where):
  """Refuses to go on with what was begun otherwise."""
  known = old.get('videos', {})
  replaced = [video for video, now in new['videos'].items() if known.get(video, now) != now]
  if replaced:
    raise PrepareError(
      f'{where} made of other videos: {", ".join(replaced[:5])}'
      f'{" ..." if replaced[5:] else ""} ({len(replaced)} of '
      f'{len(new["videos"])} looked at) had another content. Use the same '
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
  if not changed:
    return
  raise PrepareError(
    f'{where} made otherwise: {"; ".join(changed)}. Use the same again, or another --output.'
  )


def _check_files(output, entry):
  """Says so when a split that was finished is no longer whole."""
  for file in (entry['index'], *entry['shards']):
    path = os.path.join(output, file['file'])
    size = os.path.getsize(path) if os.path.isfile(path) else None
    if size != file['bytes']:
      raise PrepareError(
        damaged(
          path,
          'is missing' if size is None else (f'is damaged: {size} bytes, expected {file["bytes"]}'),
        )
      )


@contextlib.contextmanager
def _lock(output):
  with open(os.path.join(output, '.lock'), 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise PrepareError(f'Another run is preparing {output}; wait for it.') from None
    yield


def _report(source, root, plan, parts, list_unnamed):
  skipped = [dataclasses.asdict(skip) for skip in source.skipped]
  skipped += [skip for part in parts for skip in part['skipped']]
  known = set(map(names.folded, source.named))
  found = list_unnamed and listing.list_videos(
    root, lambda name: names.folded(os.fsdecode(name)) in known
  )
  kept = Counter()
  for part in parts:
    for row in part['index']:
      kept.update(
        prepared=1,
        captions=len(row['captions']),
        questions=len(row['questions']),
        frames=row['frames'],
      )
  return {
    'split': plan['split'],
    'options': plan['options'],
    'counts': {
      'rows': source.rows,
      'rows_of_other_splits': source.other_splits,
      'to_leave_out_but_not_found': source.not_found,
      'clips': plan['clips'],
      **{name: kept[name] for name in ('prepared', 'captions', 'questions', 'frames')},
      'bytes': sum(part['bytes'] for part in parts if part['examples']),
      'skipped': len(skipped),
      'videos_not_named': len(found.videos) if found else 0,
    },
    'skipped_by_reason': dict(sorted(Counter(skip['reason'] for skip in skipped).items())),
    'skipped': skipped,
    'partial': [item for part in parts for item in part['partial']],
    'not_named': [*map(_show, found.videos)] if found else [],
    'passed_over': [
      {'item': _show(name), 'reason': reason} for name, reason in found.passed_over + found.problems
    ]
    if found
    else [],
    'other_files': dict(sorted(found.others.items())) if found else {},
  }


def _show(name):
  return annotations.printable(os.fsdecode(name))
