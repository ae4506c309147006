"""From a folder of videos to an index: only what is new or changed is decoded.

Worker processes decode (a video that hangs or crashes one is named and left
out), this process encodes. A video is stored when all its clips are encoded:
an interrupted run loses at most what is in flight.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from alpro_jax import files
from alpro_jax.data import annotations, listing, workers
from alpro_jax.data.containers import UnreadableVideo
from alpro_jax.data.progress import Progress
from alpro_jax.search.cut import Cutting, CutVideo, decode
from alpro_jax.search.encoder import Encoder
from alpro_jax.search.store import File, Row, Store, look_at, show_name
from alpro_jax.train import digests, identity

REPORT = 'report.json'


class Folder(NamedTuple):
  """What lies below a folder; names are relative to it."""

  root: bytes  # Where it lies, as the file system has it.
  files: list[File]  # Its videos.
  problems: list[tuple[bytes, str]]  # (name, reason) of what could not be looked at.
  passed_over: list[tuple[bytes, str]] = []  # And of what only looks like a video.

  def may_hold(self, name: bytes) -> bool:
    """Whether a video could be there, in what could not be looked at."""
    return any(path in (name, b'.') or name.startswith(path + b'/') for path, _ in self.problems)


def list_videos(root) -> Folder:
  """Finds all videos below a folder; see data/listing.py.

  Raises:
    FileNotFoundError: if there is no such folder.
  """
  root = os.fsencode(os.path.abspath(root))
  if not os.path.isdir(root):
    raise FileNotFoundError(f'{show_name(root)} is not a folder.')
  found = listing.list_videos(root)
  videos, problems = [], found.problems
  for name in found.videos:
    try:
      videos.append(look_at(root, name))
    except OSError as error:
      problems.append((name, error.strerror))
  return Folder(root, videos, sorted(problems), found.passed_over)


def made_with(trained) -> dict[str, Any]:
  """Says where a model comes from, and as `content` what it computes."""
  content = identity.digest(trained.meta, digests.of_arrays(trained.params))
  return trained.origin._asdict() | {'content': content}


def describe(encoder: Encoder, root, cutting: Cutting, keep_tokens: bool) -> dict[str, Any]:
  """What an index says about itself."""
  trained, root = encoder.trained, os.fsencode(os.path.abspath(root))
  config, data = trained.model.config, trained.config.data
  if trained.answers_questions or not config.embed_size:
    raise ValueError(
      f'{trained.origin.path} has no vectors to search by '
      f'(task={trained.config.task!r}); index with a pre-trained or a '
      'retrieval checkpoint.'
    )
  patches = (data.image_size // config.video.patch_size) ** 2
  return {
    'root': show_name(root),
    'root_bytes': root.hex(),
    'checkpoint': made_with(trained),
    'cutting': dataclasses.asdict(cutting),
    'shown': {name: data[name] for name in ('image_size', 'resize', 'resize_mode')},
    'vector': config.embed_size,
    'tokens': [1 + patches, config.token_width] if keep_tokens else None,
  }


def choose_cutting(
  encoder: Encoder, store: Store | None, given: Mapping[str, float | None]
) -> Cutting:
  """How to cut: what is given and not None, else as in an index, else the defaults."""
  given = {name: value for name, value in given.items() if value is not None}
  if 'span' in given and not (store and given['span'] == store.cutting.span):
    given.setdefault('stride', given['span'])
  if store:
    return dataclasses.replace(store.cutting, **given)
  return Cutting(frames=encoder.trained.config.data.frames, **given)


def update(
  encoder: Encoder,
  listed: Folder,
  output,
  *,
  cutting: Mapping[str, float | None],
  keep_tokens: bool | None = None,
  **options,
) -> dict[str, Any]:
  """Makes an index of a folder, or brings one up to date.

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
    problems = ''.join(
      f' {show_name(name)} cannot be looked at: {detail}.' for name, detail in listed.problems[:5]
    )
    raise ValueError(f'no video lies below {show_name(listed.root)}.{problems}')
  if os.path.exists(output) and not os.path.isdir(output):
    raise NotADirectoryError(f'{output} is a file; expected a folder for the index.')
  with contextlib.ExitStack() as opened:
    opened.enter_context(locked(output))
    store = Store.open(output) if Store.exists(output) else None
    if keep_tokens is None:
      keep_tokens = store is None or store.about['tokens'] is not None
    about = describe(encoder, listed.root, choose_cutting(encoder, store, cutting), keep_tokens)
    if store:
      opened.callback(store.close)
      check_same(store, about)
      # Both may have moved; names below the folder count.
      store.change(**{name: about[name] for name in ('root', 'root_bytes', 'checkpoint')})
    else:
      store = opened.enter_context(contextlib.closing(Store.create(output, about)))
    return index(encoder, store, listed, **options)


def check_same(store: Store, about: dict[str, Any]) -> None:
  """Refuses to add to an index what was made otherwise.

  Raises:
    ValueError: that says what differs.
  """
  old = store.about
  check_checkpoint(store, about['checkpoint'])
  if old['root_bytes'] != about['root_bytes'] and os.path.isdir(store.root):
    raise ValueError(
      f'{store.folder} is an index of {old["root"]}, not of {about["root"]}; '
      'index into another folder.'
    )
  was = {f'--{name}': value for name, value in old['cutting'].items()} | old
  now = {f'--{name}': value for name, value in about['cutting'].items()} | about
  names = [name for name in now if name.startswith('--')] + ['shown', 'tokens']
  changed = [f'{name} was {was[name]}, now {now[name]}' for name in names if was[name] != now[name]]
  if changed:
    raise ValueError(
      f'{store.folder} was made otherwise: {"; ".join(changed)}. Leave '
      'these out to go on with it, or index into another folder.'
    )


def check_checkpoint(store: Store, given: dict[str, Any]) -> None:
  """Refuses another model than the index was made with; see made_with."""
  own = store.about['checkpoint']
  if not any(own.get(name, '') == given[name] for name in ('digest', 'content')):
    raise ValueError(
      f'{store.folder} was made with {own["path"]} (step {own["step"]}, '
      f'digest {own["digest"][:12]}), but {given["path"]} is another '
      f'checkpoint (step {given["step"]}, digest {given["digest"][:12]}), '
      'whose vectors do not compare; use that one, or index into another folder.'
    )
  if own['path'] != given['path']:
    logging.warning(
      '%s was made with %s; %s holds the same model and is used.',
      store.folder,
      own['path'],
      given['path'],
    )


@contextlib.contextmanager
def locked(folder):
  """One run at a time may write an index."""
  path = pathlib.Path(folder) / '.lock'
  path.parent.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as held:
    try:
      held.enter_context(files.lock(path, f'is writing {folder}; wait for it.'))
    except OSError as error:
      raise OSError(
        f'{path} cannot be locked ({error.strerror}), and two runs at once '
        'would spoil the index; put --index on a disk that has locks.'
      ) from error
    yield


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
  there = {file.name for file in folder.files}
  # What cannot be looked at is kept: that may be the fault of a disk.
  gone = sorted(name for name in set(known) - there if not folder.may_hold(name))
  store.drop(gone)
  failed = {name for name, reason, _, _ in store.problems() if retry or reason == workers.MACHINE}
  same = [file for file in folder.files if file.name in known and known[file.name].is_now(file)]
  without_ends = [file for file in same if known[file.name].ends is None]
  store.add_ends(without_ends)
  done = {file.name for file in same} - failed
  todo = [file for file in folder.files if file.name not in done]
  clips, seconds = 0, 0.0
  progress = Progress(
    len(todo),
    'videos',
    log=log,
    every_s=5.0,
    describe=lambda spent: f'{clips} clips, {seconds / spent:.0f} times real time',
  )

  def write_report():
    indexed, stored = store.counts()
    problems = [
      *store.problems(),
      *((name, 'cannot be looked at', why, 0) for name, why in folder.problems),
    ]
    report = {
      'videos': len(folder.files),
      'already_there': len(done),
      'taken_as_unchanged': len(without_ends),
      'dropped': [show_name(name) for name in gone],
      'passed_over': [
        {'file': show_name(name), 'reason': reason} for name, reason in folder.passed_over
      ],
      'done_in_this_run': progress.done,
      'left': len(todo) - progress.done,
      'indexed': indexed,
      'clips': stored,
      'problems': [
        {'video': show_name(name), 'reason': reason, 'detail': detail, 'clips': kept}
        for name, reason, detail, kept in problems
      ],
    }
    files.write_text(store.folder / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + '\n')
    return report

  items = [(os.fsdecode(os.path.join(folder.root, file.name)), None) for file in todo]

  def refuse(name, reason, detail, kept):
    if not (skip_unreadable or kept):
      detail = f' ({detail})' if detail else ''
      path = show_name(os.path.join(folder.root, name))
      raise UnreadableVideo(reason, f'{path}{detail}; skip_unreadable=True leaves it out')

  for entry in store.problems():
    if entry[0] in done:
      refuse(*entry)
  for name, why in folder.problems:
    refuse(name, 'cannot be looked at', why, 0)
  cut = decode(items, store.cutting, num_workers=num_workers, timeout_s=timeout_s)
  try:
    for file, result, rows in _encode(encoder, zip(todo, cut, strict=True), store.about['tokens']):
      store.put(file, rows, result.reason, result.detail)
      clips += len(result.clips)
      seconds += max((clip.stop for clip in result.clips), default=0.0)
      progress.add()
      if result.reason:
        progress.say(problem(file, result))
        refuse(file.name, result.reason, result.detail, len(result.clips))
  except BaseException:
    progress.close()
    # What ended the run is what is said, even if the report fails as well.
    with contextlib.suppress(OSError, ValueError):
      write_report()
    raise
  progress.close()
  return write_report()


def _encode(
  encoder: Encoder, videos: Iterable[tuple[File, CutVideo]], keep_tokens
) -> Iterator[tuple[File, CutVideo, list[Row]]]:
  """Encodes clips in full batches, over the ends of videos."""
  unfinished = []  # (file, result, rows so far), in order.
  waiting = []  # (rows, clip): where the row of a clip goes.

  def encode_first(count):
    part = waiting[:count]
    del waiting[:count]
    features = encoder.videos([clip for _, clip in part])
    for (rows, clip), vector, tokens in zip(part, features.feature, features.tokens, strict=True):
      kept = tokens.astype(np.float16) if keep_tokens else None
      rows.append(Row(clip.start, clip.stop, vector, kept, clip.strip))

  for file, result in videos:
    rows = []
    unfinished.append((file, result, rows))
    waiting += [(rows, clip) for clip in result.clips]
    while len(waiting) >= encoder.batch_size:
      encode_first(encoder.batch_size)
    while unfinished and len(unfinished[0][2]) == len(unfinished[0][1].clips):
      yield unfinished.pop(0)
  if waiting:
    encode_first(len(waiting))
  yield from unfinished
