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
import errno
import fcntl
import functools
import glob
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections import Counter
from typing import NamedTuple

from alpro_jax import files
from alpro_jax.data import annotations, listing, video, workers

FORMAT = 2
_READABLE = (1, 2)  # Sets of format 1 have no questions.
MANIFEST = 'manifest.json'
REPORT = 'report.json'
LOOKED_AT = 1000  # Videos of which a set remembers what they were.
_MAX_RECORD_BYTES = 1 << 30  # Protobuf ends at 2 GiB.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class PrepareError(ValueError):
  """Something the user can mend; the message is one clear sentence."""


@dataclasses.dataclass(frozen=True)
class Options:
  """What decides the content of a set.

  Attributes:
    fps: frames to keep per second; 0 keeps all.
    short_side: longest allowed shorter side in pixels; 0 keeps the size.
      Videos are never enlarged.
    quality: of the JPEG files, 1 to 95.
    max_frames: frames to keep of one clip; 0 is no limit.
    max_seconds: seconds to read of one clip; 0 is no limit.
    on_partial: 'skip' or 'keep' a video that breaks off after some frames.
    part_size: clips per part, that is per shard.
  """
  fps: float = 1.0
  short_side: int = 256
  quality: int = 85
  max_frames: int = 0
  max_seconds: float = 0.0
  on_partial: str = 'skip'
  part_size: int = 1000

  def __post_init__(self):
    for name, low, high in [
        ('fps', 0, 1000), ('short_side', 0, 8192), ('quality', 1, 95),
        ('max_frames', 0, 10**9), ('max_seconds', 0, 10**9),
        ('part_size', 1, 10**6)]:
      value = getattr(self, name)
      if not low <= value <= high:
        raise PrepareError(f'--{name}={value} must be {low} to {high}.')
    if self.on_partial not in ('skip', 'keep'):
      raise PrepareError(
          f"--on_partial={self.on_partial} must be 'skip' or 'keep'.")
    # 1 and 1.0 are one option, and their sets are to have one digest.
    object.__setattr__(self, 'fps', float(self.fps))
    object.__setattr__(self, 'max_seconds', float(self.max_seconds))


# --- In the workers ---------------------------------------------------------


def _varint(number):
  out = bytearray()
  while number > 127:
    out.append(number & 127 | 128)
    number >>= 7
  out.append(number)
  return bytes(out)


def _field(number, payload):
  return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _bytes_list(values):
  return _field(1, b''.join(_field(1, value) for value in values))


def _example(features):
  """Returns a tf.train.Example in its wire format, keys in sorted order.

  Written out here because workers must not pay for importing TensorFlow, and
  because protobuf promises no order of map keys, so no digests.
  """
  entries = b''.join(
      _field(1, _field(1, key.encode()) + _field(2, feature))
      for key, feature in sorted(features.items()))
  return _field(1, entries)


@dataclasses.dataclass(frozen=True)
class Record:
  """What a worker makes of a clip: a serialised example, or why not."""
  example: bytes = b''
  frames: int = 0
  reason: str = ''
  detail: str = ''

  @property
  def size(self):
    return len(self.example)


def _is_file(path):
  try:
    return stat.S_ISREG(os.stat(path).st_mode)
  except OSError as e:
    if e.errno not in _NOT_THERE:
      raise video.UnreadableVideo(workers.MACHINE, e.strerror) from e
    return False


def _find(clip, root, follow_links):
  """Returns the path of the first file of a clip that is there."""
  try:
    path = annotations.find_file(root, clip.files, _is_file)
  except ValueError as e:
    raise video.UnreadableVideo('ambiguous name', str(e)) from e
  if path is None:
    raise video.UnreadableVideo('missing file')
  real, root = os.path.realpath(path), os.path.realpath(root)
  if not follow_links and os.path.commonpath([root, real]) != root:
    raise video.UnreadableVideo(
        'outside the folder of videos',
        f'a link to {real}; --follow_links allows it')
  return path


def make_record(clip, *, root, fps, short_side, quality, max_frames,
                max_seconds, on_partial, follow_links=False):
  """Decodes one clip; never raises."""
  import numpy as np  # noqa: PLC0415

  path, detail, jpegs, seconds, size = '', '', [], [], 0
  try:
    path = _find(clip, root, follow_links)
    if clip.still:
      frames = [(video.read_still(path, short_side=short_side), 0.0)]
    else:
      frames = video.iterate_frames(
          path, fps=fps, short_side=short_side, max_frames=max_frames,
          max_seconds=max_seconds)
    try:
      for frame, second in frames:
        jpegs.append(video.encode_jpeg(frame, quality))
        seconds.append(second)
        size += len(jpegs[-1])
        if size > _MAX_RECORD_BYTES:
          raise video.UnreadableVideo(
              'too long', f'{len(jpegs)} frames are over {size >> 20} MiB; '
              'lower --fps or set --max_frames')
    except video.PartlyReadable as e:
      # A header that promises more may also be wrong: named, not left out.
      if on_partial == 'skip' and not isinstance(
          e, video.EndsEarly) or workers.machine_problem(path, e):
        raise
      detail = e.detail
  except Exception as e:
    if path and (problem := workers.machine_problem(path, e)):
      return Record(reason=workers.MACHINE, detail=problem)
    if isinstance(e, video.UnreadableVideo):
      return Record(reason=e.reason, detail=e.detail)
    return Record(reason='unreadable', detail=f'{type(e).__name__}: {e}')
  example = _example({
      'video': _bytes_list([clip.video.encode()]),
      'frames': _bytes_list(jpegs),
      'seconds': _field(2, _field(1, np.asarray(seconds, '<f4').tobytes())),
      'captions': _bytes_list([text.encode() for text in clip.captions]),
      'styles': _bytes_list([text.encode() for text in clip.styles]),
      'questions': _bytes_list([q.text.encode() for q in clip.questions]),
      'answers': _bytes_list([q.answer.encode() for q in clip.questions]),
      'kinds': _bytes_list([q.kind.encode() for q in clip.questions]),
      'still': _field(3, _field(1, _varint(int(clip.still)))),
  })
  return Record(example, len(jpegs), '', detail)


# --- In the parent ----------------------------------------------------------


def sha256_file(path):
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _write_atomic(path, texts):
  """The file has its old content or the new, whatever happens."""
  # The path of a report may not be UTF-8; JSON reads it back as it was.
  with open(f'{path}.tmp', 'w', encoding='utf-8',
            errors='backslashreplace') as file:
    file.writelines(texts)
    file.flush()
    os.fsync(file.fileno())
  os.replace(f'{path}.tmp', path)


def _dump(value):
  return [json.dumps(value, indent=1, ensure_ascii=False), '\n']


def _load(path, then):
  """Returns what a .json file of ours holds; `then` mends a damaged one."""
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except (ValueError, RecursionError) as e:
    raise PrepareError(f'{path} is damaged: {e}; {then}.') from e


def write_whole(path, value):
  """Writes a JSON object with the sha256 of all the rest of it."""
  value = {**value, 'sha256': _digest_of(value)}
  _write_atomic(path, _dump(value))


def _check_whole(path, value, then, *, old):
  """Raises PrepareError if such an object is not as it was written.

  Args:
    path: of the file.
    value: what it holds.
    then: what mends it.
    old: it may be of an earlier version, which wrote no sha256.
  """
  if not isinstance(value, dict) or not (
      old and 'sha256' not in value
      or value.get('sha256') == _digest_of(value)):
    raise PrepareError(
        f'{path} is damaged: its sha256 is not that of what it says; {then}.')


def _digest_of(value):
  rest = {key: item for key, item in value.items() if key != 'sha256'}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


class Progress:
  """One line: done, rate, skipped, time left. And the first skipped items."""

  def __init__(self, total, out=None, named=100, every_s=None, unit='clips'):
    self._unit = unit
    self._total = total
    self._out = out or sys.stderr
    self._live = self._out.isatty()
    self._every = every_s or (.2 if self._live else 10.)
    self._named = named
    self._start = self._last = time.monotonic()
    self._made = self._done = self._skipped = 0

  def found(self, items, skipped):
    """Counts items that an earlier run did."""
    self._done += items
    self._skipped += skipped

  def item(self, skipped=None):
    self._done += 1
    self._made += 1
    if skipped is not None:
      self._skipped += 1
      self.name(skipped)
    if time.monotonic() - self._last > self._every:
      self.line()

  def name(self, skipped):
    """Says which item is skipped and why, for the first hundred."""
    self._named -= 1
    if self._named >= 0:
      self._say(f'skipped {skipped.item!r}: {skipped.reason}'
                + (f' ({skipped.detail})' if skipped.detail else ''))
    elif self._named == -1:
      self._say(f'more are skipped; all are named in {REPORT}')

  def line(self):
    self._last = time.monotonic()
    rate = self._made / max(self._last - self._start, 1e-9)
    left = (self._total - self._done) / rate if rate else 0
    text = (f'{self._done}/{self._total} {self._unit}, {rate:.1f}/s, '
            f'{self._skipped} skipped, {int(left // 60)} min '
            f'{int(left % 60):02} s left')
    if self._live:
      self._out.write(f'\r{text}\x1b[K')
      self._out.flush()
    else:
      self._say(text)

  def _say(self, text):
    start, end = ('\r\x1b[K', '\n') if self._live else ('', '\n')
    self._out.write(f'{start}{text}{end}')
    self._out.flush()

  def close(self):
    self.line()
    if self._live:
      self._out.write('\n')


def prepare(source, root, output, *, split='train', options=None,
            num_workers=0, timeout_s=None, list_unnamed=False,
            follow_links=False, make=None, out=None):
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
    raise PrepareError(f'--split={split} must be lower-case letters, digits '
                       'and _, as in train or val_2.')
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
          f'not added to; this is format {FORMAT}. Give another --output.')
    settings = {
        'root': root, 'follow_links': follow_links,
        **dataclasses.asdict(options)}
    parts = _cut(source.clips, work, settings.pop('part_size'))
    limits = {'num_workers': num_workers, 'timeout_s': timeout_s}
    finished = split in manifest['splits']
    if finished:
      _check_plan(manifest['splits'][split]['plan'], plan,
                  f'{output} has a finished split {split!r}')
      _check_files(output, manifest['splits'][split])
      shutil.rmtree(work, ignore_errors=True)
      report = read_reports(output)[split]
    else:
      report = _make_split(source, root, work, plan, parts, settings, limits,
                           manifest, list_unnamed, make, out)
      if report['clips_made_in_this_run'] == len(source.clips):
        return report
      manifest = read_manifest(output)
    # What an earlier run lost.
    old = _Finished(output, manifest, split, report, parts)
    tried, gained = _try_again(old, settings, limits, out)
    if gained:
      manifest = _reopen(old, work, plan)
      report = _make_split(source, root, work, plan, parts, settings, limits,
                           manifest, list_unnamed, make, out, tried)
    else:
      shutil.rmtree(work, ignore_errors=True)
  return {**report, 'already_prepared': finished and not gained,
          'tried_again': tried}


def _make_split(source, root, work, plan, parts, settings, limits, manifest,
                list_unnamed, make, out, tried=0):
  """Makes the parts that are not there, and of all of them the split.

  Returns:
    its report.
  """
  output, split = os.path.dirname(work), plan['split']
  plan_path = os.path.join(work, 'plan.json')
  if os.path.exists(plan_path):
    old = _load(plan_path, f'remove {work}')
    _check_plan(old, plan, f'{output} has an unfinished split {split!r}')
    # Some may be gone that were there.
    plan = plan | {'videos': old.get('videos', {}) | plan['videos']}
  else:
    os.makedirs(work, exist_ok=True)
    _write_atomic(plan_path, _dump(plan))
  start = time.monotonic()
  done, made = _make_parts(
      source, parts, settings,
      functools.partial(make or make_here, **limits), out)
  report = _report(source, root, plan, done, list_unnamed)
  report['seconds'] = round(time.monotonic() - start, 3)
  report['clips_made_in_this_run'] = made + tried
  finish(output, work, split, plan, done, report, manifest)
  if not report['counts']['prepared']:
    for part in parts:  # So that the same command tries again.
      if _to_try_again(read_part(part.stem)['skipped'], limits['timeout_s']):
        for path in glob.glob(f'{glob.escape(part.stem)}.*'):
          os.remove(path)
    raise PrepareError(
        f'No clip of {len(source.clips)} could be prepared: '
        + ', '.join(f'{n} {reason}' for reason, n in
                    report['skipped_by_reason'].items())
        + f'; every one is named in {os.path.join(output, REPORT)}. '
        f'Remove {output} to start again.')
  return report


def _to_try_again(skipped, timeout_s):
  """Returns the videos of a report that another run may well read, as a set.

  A time-out is the video's own, but a run with another limit may read it.
  """
  return {skip['item'] for skip in skipped if (
      skip['reason'] == workers.MACHINE
      # What earlier versions wrote of a lack of memory.
      or (skip['reason'], skip['detail']) == ('decoder crashed', 'signal 9')
      or skip['reason'] == 'time-out' and timeout_s is not None)}


@dataclasses.dataclass(frozen=True)
class _Finished:
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
    with open(os.path.join(self.output, self.entry['index']['file']),
              encoding='utf-8') as lines:
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
        shard = next(shards) if kept else {
            'examples': 0, 'bytes': 0, 'sha256': ''}
        yield part, shard.get('file') and os.path.join(
            self.output, shard['file']), {
                **{key: shard[key] for key in ('examples', 'bytes', 'sha256')},
                'skipped': lost, 'index': kept,
                'partial': [partial[row['video']] for row in kept
                            if row['video'] in partial]}


def _try_again(old, settings, limits, out):
  """Makes parts of a finished split anew, with clips that were lost.

  Args:
    old: _Finished.
    settings: keyword arguments of make_record.
    limits: of make_here.
    out: file for progress lines.
  Returns:
    (clips that were tried, whether any could be read)
  """
  again = _to_try_again(old.report['skipped'], limits['timeout_s'])
  again = {clip.video for part in old.parts for clip in part.clips
           if annotations.printable(clip.video) in again}
  if not again:
    return 0, False
  index = os.path.join(old.output, old.entry['index']['file'])
  if sha256_file(index) != old.entry['index']['sha256']:
    raise PrepareError(_damaged(index, 'is damaged (sha256)'))
  progress = Progress(sum(
      len(part.clips) for part in old.parts if again.intersection(
          clip.video for clip in part.clips)), out)
  gained = False
  # Few, so here and with one pool, whatever makes the others.
  results = _records([clip for part in old.parts for clip in part.clips
                      if clip.video in again], settings, **limits)
  with contextlib.closing(results):
    for part, shard, done in old:
      if again.intersection(clip.video for clip in part.clips):
        os.makedirs(os.path.dirname(part.stem), exist_ok=True)
        new = write_part(part.stem, map(_index_row, part.clips), _merge(
            part, shard, done, again, results), progress)
        gained = gained or new['examples'] > done['examples']
  progress.close()
  return len(again), gained


def _merge(part, shard, done, again, results):
  """Yields the Record of every clip: a new one if it is in `again`."""
  from array_record.python import array_record_module  # noqa: PLC0415

  if shard and sha256_file(shard) != done['sha256']:
    raise PrepareError(_damaged(shard, 'is damaged (sha256)'))
  reader = shard and array_record_module.ArrayRecordReader(
      shard, 'readahead_buffer_size:0')
  skipped = {skip['item']: skip for skip in done['skipped']}
  partial = {item['item']: item['detail'] for item in done['partial']}
  kept = {row['video']: (number, row['frames'])
          for number, row in enumerate(done['index'])}
  for clip in part.clips:
    if clip.video in again:
      yield next(results)
    elif clip.video in kept:
      number, frames = kept[clip.video]
      yield Record(reader.read([number])[0], frames,
                   detail=partial.get(clip.video, ''))
    else:
      skip = skipped[annotations.printable(clip.video)]
      yield Record(reason=skip['reason'], detail=skip['detail'])


def _reopen(old, work, plan):
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
      _write_atomic(f'{part.stem}.json', [json.dumps(done, ensure_ascii=False)])
  _write_atomic(os.path.join(work, 'plan.json'), _dump(plan))
  path = os.path.join(old.output, MANIFEST)
  splits = {name: entry for name, entry in old.manifest['splits'].items()
            if name != old.split}
  if splits:
    write_whole(path, {**old.manifest, 'splits': splits})
  else:
    os.remove(path)
  return read_manifest(old.output, missing_ok=True)


def _link(path, other):
  try:
    os.link(path, other)
  except OSError:  # Not every file system has links.
    shutil.copyfile(path, other)


def _check_source(source, root):
  """Says so at once when annotations and videos do not belong together."""
  if not os.path.isdir(root):
    raise PrepareError(f'{root} is not a folder.')
  if not source.clips:
    first = '; '.join(f'{s.item!r}: {s.reason} ({s.detail})'
                      for s in source.skipped[:5])
    raise PrepareError(
        f'The annotations have {source.rows} rows and no usable one'
        + (f' for this split ({source.other_splits} are of others or not '
              'asked for)'
           if source.other_splits else '') + (f': {first}.' if first else '.'))
  if any(_is_there(root, clip.files) for clip in source.clips):
    return
  wanted = [clip.video for clip in source.clips[:5]]
  there = []
  for folder, _, names in os.walk(root):
    there += [os.path.relpath(os.path.join(folder, n), root) for n in names]
    if len(there) > 1000:
      break
  raise PrepareError(
      f'None of the {len(source.clips)} annotated files is in {root}: the '
      f'annotations name {wanted}, the folder holds {sorted(there)[:5]}; '
      'names must be relative to the folder and have their suffix.')


def _is_there(root, files):
  try:
    return annotations.find_file(root, files) is not None
  except ValueError:
    return True  # More than once, which is said of the clip.


def _check_output(output):
  try:
    os.makedirs(output, exist_ok=True)
    with tempfile.TemporaryFile(dir=output):
      pass
  except OSError as e:
    raise PrepareError(
        f'--output={output} cannot be written: {e.strerror}.') from e
  names = [name for name in sorted(os.listdir(output)) if name != '.lock']
  ours = MANIFEST in names or any(n.startswith('.preparing-') for n in names)
  if names and not ours:
    raise PrepareError(
        f'--output={output} holds other files ({", ".join(names[:5])}); '
        'give a folder that is new or empty.')


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
      path = annotations.find_file(root, clip.files)
      if path is None:
        continue
      with open(path, 'rb') as stream:
        size = os.fstat(stream.fileno()).st_size
        found[clip.video] = f'{size} {files.ends_digest(stream).hex()[:16]}'
  return found


def _check_plan(old, new, where):
  """Refuses to go on with what was begun otherwise."""
  known = old.get('videos', {})
  replaced = [video for video, now in new['videos'].items()
              if known.get(video, now) != now]
  if replaced:
    raise PrepareError(
        f'{where} made of other videos: {", ".join(replaced[:5])}'
        f'{" ..." if replaced[5:] else ""} ({len(replaced)} of '
        f'{len(new["videos"])} looked at) had another content. Use the same '
        'again, or another --output.')
  changed = [f'--{key} was {old["options"].get(key)!r} and is now {value!r}'
             for key, value in new['options'].items()
             if old['options'].get(key) != value]
  if old['source_digest'] != new['source_digest']:
    changed.append(f'the list of clips changed (it had {old["clips"]}, now '
                   f'{new["clips"]})')
  if old['format'] != new['format']:
    changed.append(f'format {old["format"]}, now {new["format"]}')
  if not changed:
    return
  raise PrepareError(
      f'{where} made otherwise: {"; ".join(changed)}. Use the same again, or '
      'another --output.')


def _check_files(output, entry):
  """Says so when a split that was finished is no longer whole."""
  for file in (entry['index'], *entry['shards']):
    path = os.path.join(output, file['file'])
    size = os.path.getsize(path) if os.path.isfile(path) else None
    if size != file['bytes']:
      raise PrepareError(_damaged(path, 'is missing' if size is None else (
          f'is damaged: {size} bytes, expected {file["bytes"]}')))


def _damaged(path, what):
  output = os.path.dirname(path)
  return (f'{path} {what}. Remove {output} to prepare it again, or save what '
          f'is intact: python launch/prepare.py verify {output} --output=NEW.')


@contextlib.contextmanager
def _lock(output):
  with open(os.path.join(output, '.lock'), 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise PrepareError(
          f'Another run is preparing {output}; wait for it.') from None
    yield


class Part(NamedTuple):
  """A shard to be made.

  Attributes:
    stem: path of its two files, without .array_record and .json.
    clips: in their order.
  """
  stem: str
  clips: list[annotations.Clip]


def _cut(clips, work, size):
  """Returns list of Part."""
  return [Part(os.path.join(work, f'part-{start // size:05}'),
               clips[start:start + size])
          for start in range(0, len(clips), size)]


def _make_parts(source, parts, settings, make, out):
  """Makes the parts that are not there.

  Returns:
    (what write_part returned for each part, in order, but for the rows of the
    index, which are read when they are wanted; clips made now)
  """
  progress = Progress(len(source.clips), out)
  for skipped in source.skipped:
    progress.name(skipped)
  missing = []
  for part in parts:
    if os.path.exists(f'{part.stem}.json'):
      progress.found(len(part.clips), len(read_part(part.stem)['skipped']))
    else:
      missing.append(part)
  made = make(missing, settings, progress) if missing else 0
  progress.close()
  return [{**read_part(part.stem), 'index': _Rows(part.stem)}
          for part in parts], made


class _Rows:
  """The rows of a part's index; those of all parts might not fit in memory."""

  def __init__(self, stem):
    self._stem = stem

  def __iter__(self):
    return iter(read_part(self._stem)['index'])


def make_here(parts, settings, progress, *, num_workers, timeout_s):
  """Makes parts with worker processes on this machine.

  Args:
    parts: list of Part.
    settings: keyword arguments of make_record.
    progress: Progress.
    num_workers: processes; 0 is one per core.
    timeout_s: longest time for one clip, in seconds; None is as usual.
  Returns:
    int, how many clips were read.
  """
  clips = [clip for part in parts for clip in part.clips]
  results = _records(clips, settings, num_workers, timeout_s)
  with contextlib.closing(results):
    for part in parts:
      write_part(part.stem, map(_index_row, part.clips), results, progress)
  return len(clips)


def _records(clips, settings, num_workers, timeout_s):
  return workers.run_in_order(
      'alpro_jax.data.prepare:make_record', settings, clips,
      workers=num_workers or os.cpu_count() or 1, timeout_s=timeout_s)


def read_part(stem):
  """Returns what write_part did."""
  return _load(f'{stem}.json', 'remove it, and the same command makes it anew')


def _index_row(clip):
  """What the index says of a clip; how many frames it has is found later."""
  return {
      'video': clip.video, 'captions': clip.captions, 'styles': clip.styles,
      'questions': [question.text for question in clip.questions],
      'answers': [question.answer for question in clip.questions],
      'kinds': [question.kind for question in clip.questions],
      'still': clip.still}


def write_part(stem, rows, results, progress):
  """Writes the records of a part, and what is known of them.

  Args:
    stem: of its two files; the .json is there only when both are whole.
    rows: of the index, one per record.
    results: iterator of Record, in the same order.
    progress: Progress.
  Returns:
    dict, as in the .json file.
  """
  from array_record.python import array_record_module  # noqa: PLC0415

  path = f'{stem}.array_record'
  index, skipped, partial = [], [], []
  # JPEG does not compress further.
  writer = array_record_module.ArrayRecordWriter(
      path, 'group_size:1,uncompressed')
  for row in rows:
    record = next(results)
    if record.reason:
      skip = annotations.Skipped(row['video'], record.reason, record.detail)
      skipped.append(dataclasses.asdict(skip))
      progress.item(skip)
      continue
    writer.write(record.example)
    if record.detail:
      partial.append({'item': row['video'], 'detail': record.detail})
    index.append({**row, 'frames': record.frames})
    progress.item()
  try:
    writer.close()  # What could not be written is said here, or not at all.
  except Exception as e:
    raise OSError(
        f'{path} cannot be written: {e}. When there is room, the same command '
        'continues; shards that are done are kept.') from e
  with open(path, 'rb') as file:
    os.fsync(file.fileno())
  part = {'examples': len(index), 'bytes': os.path.getsize(path),
          'sha256': sha256_file(path), 'skipped': skipped,
          'partial': partial, 'index': index}
  _write_atomic(f'{stem}.json', [json.dumps(part, ensure_ascii=False)])
  return part


def _report(source, root, plan, parts, list_unnamed):
  skipped = [dataclasses.asdict(skip) for skip in source.skipped]
  skipped += [skip for part in parts for skip in part['skipped']]
  known = set(map(annotations.folded, source.named))
  found = list_unnamed and listing.list_videos(
      root, lambda name: annotations.folded(os.fsdecode(name)) in known)
  kept = Counter()
  for part in parts:
    for row in part['index']:
      kept.update(prepared=1, captions=len(row['captions']),
                  questions=len(row['questions']), frames=row['frames'])
  return {
      'split': plan['split'],
      'options': plan['options'],
      'counts': {
          'rows': source.rows,
          'rows_of_other_splits': source.other_splits,
          'to_leave_out_but_not_found': source.not_found,
          'clips': plan['clips'],
          **{name: kept[name] for name in (
              'prepared', 'captions', 'questions', 'frames')},
          'bytes': sum(part['bytes'] for part in parts if part['examples']),
          'skipped': len(skipped),
          'videos_not_named': len(found.videos) if found else 0,
      },
      'skipped_by_reason': dict(sorted(
          Counter(skip['reason'] for skip in skipped).items())),
      'skipped': skipped,
      'partial': [item for part in parts for item in part['partial']],
      'not_named': [*map(_show, found.videos)] if found else [],
      'passed_over': [
          {'item': _show(name), 'reason': reason}
          for name, reason in found.passed_over + found.problems
      ] if found else [],
      'other_files': dict(sorted(found.others.items())) if found else {},
  }


def _show(name):
  return annotations.printable(os.fsdecode(name))


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
      os.rename(os.path.join(work, f'part-{part_number:05}.array_record'),
                target)
    if not os.path.exists(target) or os.path.getsize(target) != part['bytes']:
      raise PrepareError(
          f'{work} lost part {part_number}; remove {output} and prepare it '
          'again.')
    shards.append({'file': file, **{key: part[key] for key in
                                    ('examples', 'bytes', 'sha256')}})
  named = {shard['file'] for shard in shards}
  for path in glob.glob(os.path.join(
      glob.escape(output), f'{name}-{split}.array_record-*')):
    if os.path.basename(path) not in named:  # The split had others.
      os.remove(path)
  report_path = os.path.join(output, REPORT)
  reports = read_reports(output) if os.path.exists(report_path) else {}
  write_whole(report_path, {
      'format': FORMAT, 'splits': {**reports, split: report}})
  if not full:
    return
  index_file = f'index-{split}.jsonl'
  index_path = os.path.join(output, index_file)
  _write_atomic(index_path, (
      json.dumps(row, ensure_ascii=False) + '\n'
      for part in parts for row in part['index']))
  index_sha = sha256_file(index_path)
  digest = hashlib.sha256(json.dumps(
      [FORMAT, index_sha, [shard['sha256'] for shard in shards]]).encode())
  splits = {
      **manifest['splits'],
      split: {
          'examples': report['counts']['prepared'],
          'captions': report['counts']['captions'],
          'questions': report['counts']['questions'],
          'bytes': sum(shard['bytes'] for shard in shards),
          'digest': digest.hexdigest(),
          'index': {'file': index_file, 'bytes': os.path.getsize(index_path),
                    'sha256': index_sha},
          'shards': shards,
          'plan': plan,
      }}
  others = [
      {'file': file, 'bytes': os.path.getsize(path),
       'sha256': sha256_file(path)}
      for file in _write_dataset_info(output, work, name, splits)
      for path in [os.path.join(output, file)]]
  write_whole(os.path.join(output, MANIFEST), {
      'format': FORMAT, 'name': name, 'splits': splits, 'others': others})
  shutil.rmtree(work)


def _write_dataset_info(output, work, name, splits):
  """Writes what TFDS needs to open the folder; returns the names of files."""
  import tensorflow_datasets as tfds  # noqa: PLC0415  Slow, so only now.

  from alpro_jax.data import dataset  # noqa: PLC0415

  identity = tfds.core.dataset_info.DatasetIdentity(
      name=name, version=tfds.core.Version('1.0.0'),
      data_dir=output, module_name='')
  info = tfds.core.DatasetInfo(
      builder=identity, features=dataset.features(),
      description='Clips as JPEG frames with their texts, by alpro_jax.')
  info.set_file_format(tfds.core.file_adapters.FileFormat.ARRAY_RECORD)
  template = tfds.core.ShardedFileTemplate(
      data_dir=output, dataset_name=name,
      filetype_suffix='array_record',
      template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}')
  info.set_splits(tfds.core.splits.SplitDict([
      tfds.core.SplitInfo(
          name=split, num_bytes=entry['bytes'],
          shard_lengths=[shard['examples'] for shard in entry['shards']],
          filename_template=template.replace(split=split))
      for split, entry in sorted(splits.items())]))
  with tempfile.TemporaryDirectory(dir=work) as folder:
    info.write_to_directory(folder)
    files = sorted(os.listdir(folder))
    for file in files:
      os.replace(os.path.join(folder, file), os.path.join(output, file))
  return files


def read_reports(output):
  """Returns {split: what was prepared and skipped} of a set."""
  path = os.path.join(output, REPORT)
  then = 'copy it again, or remove it'
  reports = _load(path, then)
  _check_whole(path, reports, then, old='format' not in reports)
  return reports['splits']


def read_manifest(output, *, missing_ok=False):
  """Returns manifest.json; with missing_ok an empty one if there is none."""
  path = os.path.join(output, MANIFEST)
  if not os.path.exists(path):
    if missing_ok:
      return {'format': FORMAT, 'splits': {}}
    unfinished = os.path.isdir(output) and any(
        name.startswith('.preparing-') for name in os.listdir(output))
    if unfinished:
      raise FileNotFoundError(
          f'{output} is not finished; run launch/prepare.py again with the '
          'same options and it continues.')
    raise FileNotFoundError(
        f'{output} has no {MANIFEST}; make a set with launch/prepare.py.')
  then = 'copy or prepare the set again'
  manifest = _load(path, then)
  try:
    known = manifest['format']
    files = []
    if known in _READABLE:
      files += manifest.get('others', ())
      for entry in manifest['splits'].values():
        files += [entry['index'], *entry['shards']]
        _ = entry['digest'], entry['bytes'], entry['examples'] + sum(
            shard['examples'] for shard in entry['shards'])
    for file in files:
      _ = file['bytes'], file['sha256']
      if file['file'] != os.path.basename(file['file']):
        raise ValueError(f'{file["file"]!r} is not in its folder')
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise ValueError(
        f'{path} is damaged: {type(e).__name__}: {e}; {then}.') from e
  if known not in _READABLE:
    raise ValueError(
        f'{path} has format {known}, expected {FORMAT}; prepare it again.')
  _check_whole(path, manifest, then, old='others' not in manifest)
  return manifest
