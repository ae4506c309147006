"""From folders of videos to an index: only what is new or changed is decoded.

Worker processes decode (a video that hangs or crashes one is named and left
out), this process encodes. Videos are stored together, every few seconds, when all
their clips are encoded: a run that is killed loses at most these seconds.
"""

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from alpro_jax import files
from alpro_jax.data import annotations, listing, workers
from alpro_jax.data.containers import UnreadableVideo
from alpro_jax.data.cut import Cutting, CutVideo, decode
from alpro_jax.data.listing import File, look_at
from alpro_jax.data.progress import Progress
from alpro_jax.evaluation.encoder import Encoder, encode
from alpro_jax.search.store import REPORT, Indexed, Row, Store, key, show_name
from alpro_jax.train import digests, identity

# What is stored at once: seconds of work, or bytes.
_SECONDS, _BYTES = 10.0, 1 << 26
_TIDY = 100  # Times that it is stored, after which small pieces are joined.


class Folder(NamedTuple):
  """What lies below a folder; names are relative to it, or as in an index."""

  root: bytes  # Where it lies, as the file system has it.
  files: list[File]  # Its videos.
  problems: list[tuple[bytes, str]]  # (name, reason) of what could not be looked at.
  passed_over: list[tuple[bytes, str]] = []  # And of what only looks like a video.
  part: tuple[int, int] = (1, 1)  # Which of how many parts of the folder this is.
  prefix: bytes = b''  # Of all names.

  def may_hold(self, name: bytes) -> bool:
    """Whether a video could be there, in what could not be looked at."""
    whole = self.prefix + b'.'
    return any(x in (name, whole) or name.startswith(x + b'/') for x, _ in self.problems)

  def covers(self, name: bytes) -> bool:
    """Whether a video of an index is looked for in this part of this folder."""
    own = name.startswith(self.prefix) if self.prefix else not name.startswith(b'//')
    return own and _in_part(name[len(self.prefix) :], self.part)

  def as_number(self, number: int) -> 'Folder':
    """With the names that an index has for those of its folder of this number."""
    prefix = b'//%d/' % number if number else b''
    rest = ([(prefix + name, *x) for name, *x in y] for y in (self.problems, self.passed_over))
    named = [file._replace(name=prefix + file.name) for file in self.files]
    return Folder(self.root, named, *rest, self.part, prefix)


def _in_part(name, part):
  """By a digest: a video stays in its part, whatever comes and goes beside it."""
  return key(name) % part[1] == part[0] - 1


def list_videos(root, part: tuple[int, int] = (1, 1)) -> Folder:
  """Finds all videos below a folder; see data/listing.py.

  Args:
    root: the folder.
    part: (i, n): only those of the i-th of n parts, to be indexed apart and merged.

  Raises:
    FileNotFoundError: if there is no such folder.
    ValueError: if there is no such part.
  """
  if not 1 <= part[0] <= part[1]:
    raise ValueError(f'--part={part[0]}/{part[1]} must be 1/n to n/n, n parts of a folder.')
  root = os.fsencode(os.path.abspath(root))
  if not os.path.isdir(root):
    raise FileNotFoundError(f'{show_name(root)} is not a folder.')
  found = listing.list_videos(root, lambda name: not _in_part(name, part))
  videos, problems = [], found.problems
  for name in found.videos:
    try:
      videos.append(look_at(os.path.join(root, name), name))
    except OSError as error:
      problems.append((name, error.strerror))
  return Folder(root, videos, sorted(problems), found.passed_over, part)


def made_with(trained) -> dict[str, Any]:
  """Says where a model comes from, and as `content` what it computes."""
  content = identity.digest(trained.meta, digests.of_arrays(trained.params))
  return trained.origin._asdict() | {'content': content}


def describe(
  encoder: Encoder, folders: Sequence[bytes], cutting: Cutting, keep_tokens: bool
) -> dict[str, Any]:
  """What an index says about itself."""
  trained = encoder.trained
  config, data = trained.model.config, trained.config.data
  if trained.answers_questions or not config.embed_size:
    raise ValueError(
      f'{trained.origin.path} has no vectors to search by (task={trained.config.task!r}); '
      'index with a pre-trained or a retrieval checkpoint.'
    )
  patches = (data.image_size // config.video.patch_size) ** 2
  return {
    'folders': [folder.hex() for folder in folders],
    'checkpoint': made_with(trained),
    'cutting': dataclasses.asdict(cutting),
    'shown': {name: data[name] for name in ('image_size', 'resize', 'resize_mode')},
    'vector': config.embed_size,
    'tokens': [1 + patches, config.token_width] if keep_tokens else None,
  }


def choose_cutting(encoder: Encoder, store: Store | None, given: Mapping[str, Any]) -> Cutting:
  """How to cut: what is given and not None, else as in an index, else the defaults.

  `span` may be one number, or several.
  """
  given = {name: value for name, value in given.items() if value is not None}
  if 'span' in given:
    given['spans'] = tuple(float(x) for x in np.atleast_1d(given.pop('span')))
    if not (store and given['spans'] == store.cutting.spans):
      given.setdefault('stride', max(given['spans'], default=0.0))
  if store:
    return dataclasses.replace(store.cutting, **given)
  return Cutting(frames=encoder.trained.config.data.frames, **given)


def update(
  encoder: Encoder,
  listed: Folder,
  output,
  *,
  cutting: Mapping[str, Any],
  keep_tokens: bool | None = None,
  **options,
) -> dict[str, Any]:
  """Makes an index of a folder, brings one up to date, or adds a folder to one.

  A folder of an index that is no longer there has moved if half of its videos are in this
  one, by name and content.

  Args:
    encoder: with the model.
    listed: the folder, from list_videos.
    output: folder of the index.
    cutting: see choose_cutting.
    keep_tokens: store what the fusion encoder reads; None is as before, or yes.
    options: see index.
  Returns:
    the report.
  Raises:
    NotADirectoryError: if the output is a file.
    OSError: if it cannot be written.
    UnreadableVideo: see index.
    ValueError: if the folder holds no video, or the index was made otherwise.
  """
  if not listed.files:
    seen = [f' {show_name(name)} cannot be looked at: {why}.' for name, why in listed.problems[:5]]
    raise ValueError(f'no video lies below {show_name(listed.root)}.{"".join(seen)}')
  if os.path.exists(output) and not os.path.isdir(output):
    raise NotADirectoryError(f'{output} is a file; expected a folder for the index.')
  with locked(output):
    store = Store.open(output) if Store.exists(output) else None
    if keep_tokens is None:
      keep_tokens = store is None or store.about['tokens'] is not None
    folders, number = place(store, listed)
    about = describe(encoder, folders, choose_cutting(encoder, store, cutting), keep_tokens)
    if store:
      check_same(store, about)
      # Folder and model may have moved.
      store.change(**{name: about[name] for name in ('folders', 'checkpoint')})
    else:
      store = Store.create(output, about)
    with contextlib.closing(store):
      return index(encoder, store, listed.as_number(number), **options)


def place(store: Store | None, listed: Folder) -> tuple[list[bytes], int]:
  """Returns the folders of an index with this one, and its number among them."""
  folders = store.folders if store else []
  if listed.root in folders:
    return folders, folders.index(listed.root)
  known = store.files() if store else {}
  for number, folder in enumerate(folders):
    own = listed.as_number(number)
    was = [file for name, file in known.items() if own.covers(name)]
    if os.path.isdir(folder) or not was:
      continue
    here = {file.name: file for file in own.files}
    same = sum(file.name in here and _same_content(file, here[file.name]) for file in was)
    if same >= len(was) / 2:
      return [*folders[:number], listed.root, *folders[number + 1 :]], number
    logging.warning(
      '%s is not there; what the index holds of it stays. %s is another folder: %d of the '
      '%d videos are in it.',
      *(show_name(folder), show_name(listed.root), same, len(was)),
    )
  return [*folders, listed.root], len(folders)


def _same_content(was: File, now: File) -> bool:
  """Whether two videos of one name are one: cameras name theirs alike, and copies change times."""
  if was.ends is None:  # Indexed before the ends of files were looked at.
    return (was.size, was.mtime_ns) == (now.size, now.mtime_ns)
  return (was.size, was.ends) == (now.size, now.ends)


def check_same(store: Store, about: dict[str, Any]) -> None:
  """Refuses to add to an index what was made otherwise.

  Raises:
    ValueError: that says what differs.
  """
  check_checkpoint(store, about['checkpoint'])
  was, now = (json.loads(json.dumps(x)) for x in (store.about, about))  # Tuples as lists.
  each = [(f'--{name}', was['cutting'][name], x) for name, x in now['cutting'].items()]
  each += [(name, was[name], now[name]) for name in ('shown', 'tokens')]
  changed = [f'{name.replace("spans", "span")} was {x}, now {y}' for name, x, y in each if x != y]
  if changed:
    raise ValueError(
      f'{store.folder} was made otherwise: {"; ".join(changed)}. Leave '
      'these out to go on with it, or index into another folder.'
    )


def check_checkpoint(store: Store, given: dict[str, Any]) -> None:
  """Refuses another model than the index was made with; see made_with."""
  own = store.about['checkpoint']
  if not any(own.get(name, '') == given[name] for name in ('digest', 'content')):
    was, now = (f'(step {x["step"]}, digest {x["digest"][:12]})' for x in (own, given))
    raise ValueError(
      f'{store.folder} was made with {own["path"]} {was}, but {given["path"]} is another '
      f'checkpoint {now}, whose vectors do not compare; use that one, or index into another folder.'
    )
  if own['path'] != given['path']:
    made = f'{store.folder} was made with {own["path"]}'
    logging.warning('%s; %s holds the same model and is used.', made, given['path'])


def locked(folder) -> contextlib.AbstractContextManager[None]:
  """One run at a time may write an index."""
  path = files.on_disk(folder) / '.lock'
  path.parent.mkdir(parents=True, exist_ok=True)
  return files.lock(path, f'is writing {folder}; wait for it.')


def problem(file: File, result: CutVideo) -> str:
  """What is wrong with a video, in one line."""
  detail = f' ({result.detail})' if result.detail else ''
  kept = ', kept what there is' if result.clips else ''
  return annotations.printable(f'{show_name(file.name)}: {result.reason}{detail}{kept}')


def index(
  encoder: Encoder,
  store: Store,
  folder: Folder,
  *,
  num_workers: int = 0,
  timeout_s: float | None = None,
  retry: bool = False,
  skip_unreadable: bool = True,
  log: Callable[[str], None] | None = None,
) -> dict[str, Any]:
  """Brings an index up to date with its folder.

  Args:
    encoder: with the model.
    store: the index.
    folder: what is there.
    num_workers: processes that decode; 0 is one per core.
    timeout_s: longest time for one video; see workers.run_in_order.
    retry: try again what could not be read; what only this machine was to
      blame for is tried again in any case.
    skip_unreadable: leave out what cannot be read; else it ends the work, and what was
      indexed before stays.
    log: takes the lines about progress; None is stderr.
  Returns:
    the report, which is also written into the folder of the index.
  Raises:
    UnreadableVideo: unless such are skipped; a video that breaks off gives its clips.
  """
  known = store.files()
  missing = known.keys() - {file.name for file in folder.files}
  # What cannot be looked at is kept: that may be the fault of a disk.
  gone = sorted(name for name in missing if folder.covers(name) and not folder.may_hold(name))
  store.drop(gone)
  failed = {name for name, reason, _, _ in store.problems() if retry or reason == workers.MACHINE}
  done = {file.name for file in folder.files if known.get(file.name) == file} - failed
  todo = [file for file in folder.files if file.name not in done]
  clips, seconds, keep_tokens = 0, 0.0, store.about['tokens'] is not None

  def so_far(spent):
    return f'{clips} clips, {seconds / spent:.0f} times real time'

  progress = Progress(len(todo), 'videos', log=log, every_s=5.0, describe=so_far)
  unseen = [(name, 'cannot be looked at', why, 0) for name, why in folder.problems]
  waiting: list[Indexed] = []  # To be stored.
  stored_at, times = time.monotonic(), 0  # When last, and how often.

  def keep():
    nonlocal stored_at, times
    store.put(*waiting)
    waiting.clear()
    stored_at, times = time.monotonic(), times + 1
    if times % _TIDY == 0:
      store.tidy()
    indexed, stored = store.counts()
    report = {
      'videos': len(folder.files),
      'already_there': len(done),
      'dropped': [show_name(name) for name in gone],
      'passed_over': [{'file': show_name(name), 'reason': why} for name, why in folder.passed_over],
      'done_in_this_run': progress.done,
      'left': len(todo) - progress.done,
      'indexed': indexed,
      'clips': stored,
      'problems': [
        {'video': show_name(name), 'reason': reason, 'detail': detail, 'clips': kept}
        for name, reason, detail, kept in [*store.problems(), *unseen]
      ],
    }
    text = json.dumps(report, indent=1, ensure_ascii=False)
    files.write_text(f'{store.folder}/{REPORT}', f'{text}\n')
    return report

  def refuse(name, reason, detail, kept):
    if not (skip_unreadable or kept):
      path = show_name(store.path(name)) + (f' ({detail})' if detail else '')
      raise UnreadableVideo(reason, f'{path}; skip_unreadable=True leaves it out')

  for entry in [*(x for x in store.problems() if x[0] in done), *unseen]:
    refuse(*entry)
  items = [(os.fsdecode(store.path(file.name)), None) for file in todo]
  cut = decode(items, store.cutting, num_workers=num_workers, timeout_s=timeout_s)
  try:
    for file, (result, encoded) in zip(todo, encode(encoder, cut), strict=True):
      rows = [
        Row(clip.start, clip.stop, vector, tokens if keep_tokens else None, clip.strip, look)
        for clip, (tokens, vector, look) in zip(result.clips, encoded, strict=True)
      ]
      waiting.append(Indexed(file, rows, result.reason, result.detail))
      clips += len(result.clips)
      seconds += max((clip.stop for clip in result.clips), default=0.0)
      progress.add()
      # The first at once: who looks on sees that it works, and a full disk is known early.
      if not times or time.monotonic() - stored_at > _SECONDS or _size(waiting) > _BYTES:
        keep()
      if result.reason:
        progress.say(problem(file, result))
        refuse(file.name, result.reason, result.detail, len(result.clips))
    report = keep()
  except BaseException:
    # What ended the run is what is said, even if the rest fails as well.
    with contextlib.suppress(OSError, ValueError):
      keep()
    raise
  finally:
    progress.close()
  store.tidy()
  return report


def _size(waiting):
  """Bytes of what is to be stored."""
  rows = (row for one in waiting for row in one.rows)
  return sum(len(row.strip) + (0 if row.tokens is None else row.tokens.nbytes) for row in rows)
