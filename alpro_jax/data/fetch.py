"""Downloads the videos that a captions file names by address.

Each address gets a file name. The file is written aside, in a hidden folder of
our own, and gets its name when it is whole and holds a video or a picture. What
became of each is one line of fetched.jsonl, so that a second call does only
what is missing.
"""

import asyncio
import contextlib
import errno
import fcntl
import itertools
import json
import os
import time
import urllib.parse
from collections import defaultdict, deque
from typing import Annotated, NamedTuple

from alpro_jax import files
from alpro_jax.data import annotations, listing, names, sniff, tables, web
from alpro_jax.data.progress import Progress

RESUME = 'fetched.jsonl'
_NAME_COLUMNS = ('video', 'image')  # Files, or addresses.
_SUFFIXES = {*listing.SUFFIXES, *names.PHOTO_SUFFIXES}
# web.LONGEST_WAIT is at once and in all; more for each video that a host gave.
_WAIT_PER_VIDEO = 10.0
# Errors of one name; any other of the disk ends the whole run.
_OF_A_NAME = {
  getattr(errno, name)
  for name in 'ENAMETOOLONG ENOTDIR EISDIR EEXIST ENOTEMPTY ELOOP EINVAL EILSEQ EACCES EPERM EXDEV '
  'ENOENT'.split()
}


class Video(NamedTuple):
  """What to fetch: address, and name relative to the folder of videos."""

  url: str
  name: str


class Limits(NamedTuple):
  """How to fetch: type, meaning and default of each."""

  threads: Annotated[int, 'downloads at a time.'] = 8
  per_host: Annotated[int, 'of one host.'] = 4
  tries: Annotated[int, 'of one address.'] = 4
  wait_s: Annotated[
    float, 'seconds before the second try, doubled for each further one, or what the host asks for.'
  ] = 1.0
  timeout_s: Annotated[float, 'seconds without a byte.'] = 30.0
  max_seconds: Annotated[float, 'seconds for one try in all, redirects and headers included.'] = (
    600.0
  )
  max_bytes: Annotated[int, 'bytes of one video.'] = 1 << 30


# --- What to fetch ----------------------------------------------------------


def read_videos(path, *, url_column=''):
  """Reads the addresses of a captions file.

  Args:
    path: .csv with a header, one JSON object per line (.jsonl), a JSON list of
      them, or CC3M's .tsv.
    url_column: its name; '' takes contentUrl, url, or a `video` or `image`
      that is an http(s) address.
  Returns:
    (list of Video, each address and each name once; list of Skipped; rows)
  """
  columns = [(url_column,) if url_column else (*names.ADDRESSES, 'video')]
  source = tables.read(path, '--captions', {**tables.TEXTS, '.tsv': tables.cc3m_rows}, columns)
  videos, skipped, rows = {}, [], 0
  for where, row, problem in source:
    rows += 1
    url = _address(row, url_column)
    if not url and not problem and not url_column and any(map(row.get, _NAME_COLUMNS)):
      continue  # A file that is there already.
    try:
      if problem or not url:
        raise ValueError(problem or 'no address')
      video = Video(url, _name_of(row, url))
    except ValueError as e:
      skipped.append(annotations.Skipped(url or where, 'bad row', f'{where}: {e}'))
      continue
    first = videos.setdefault(video.name, video)
    if first.url != url:
      detail = f'{where}: {video.name} is of {first.url}'
      skipped.append(annotations.Skipped(url, 'same name', detail))
  return list(videos.values()), skipped, rows


def _address(row, url_column):
  for key in (url_column,) if url_column else (*names.ADDRESSES, *_NAME_COLUMNS):
    value = row.get(key)
    value = value.strip() if isinstance(value, str) else ''
    if value and (key not in _NAME_COLUMNS or names.is_address(value)):
      return value
  return ''


def _name_of(row, url):
  """Returns the file of a row, which is where launch/prepare.py looks for it.

  <page_dir>/<id>.mp4 of WebVid; else `video` or `image` if it is a name, else
  names.file_of(url). Raises ValueError if it would not be in the folder.
  """
  still = not row.get('video')
  name = row.get('image') if still else row['video']
  video_id = annotations.present(row.get('videoid')) or annotations.present(row.get('video_id'))
  if isinstance(name, str) and name.strip():
    if names.is_address(name):
      name = names.file_of(name.strip(), still=still)
  elif video_id:
    page = annotations.present(row.get('page_dir'))
    name = f'{page}/{video_id}.mp4' if page else f'{video_id}.mp4'
  else:
    name = names.file_of(url)
  if problem := names.name_problem(name):
    raise ValueError(f'{name!r}: {problem}')
  name = names.canonical(name)
  suffix = os.path.splitext(name)[1]
  if suffix.lower() not in _SUFFIXES:
    expected = 'expected a suffix of videos or pictures, such as .mp4 or .jpg'
    raise ValueError(f'{name!r} ends in {suffix!r}, {expected}')
  if name.startswith(f'.{RESUME}') or annotations.printable(name) != name:
    raise ValueError(f'{name!r} may not be a name here')
  if any(len(part.encode()) > 255 for part in name.split('/')):
    raise ValueError(f'{name!r} is longer than a file name may be, 255 bytes')
  return name


# --- One download -----------------------------------------------------------


async def _download(get, url, limits, partial, path):
  """Tries once to write what an address gives, first to `partial`; returns the bytes."""
  if not names.is_address(url):
    raise web.Failed('not http or https', url)
  async with asyncio.timeout(limits.max_seconds), get(url) as answer:
    headers = answer.headers
    if answer.status == 206:  # Of a range that was not asked for.
      raise web.Failed('truncated', headers.get('Content-Range', ''), 'now')
    if answer.status != 200:
      raise web.refusal(answer)
    size = answer.content_length
    if size is not None and size > limits.max_bytes:
      raise web.Failed('too large', f'{size} bytes')
    done = 0
    with open(partial, 'xb') as file:
      block = await _head(answer)
      while block:
        done += len(block)
        if done > limits.max_bytes:
          raise web.Failed('too large', f'more than {limits.max_bytes} bytes')
        file.write(block)
        block = await answer.content.readany()
      file.flush()
      await asyncio.to_thread(os.fsync, file.fileno())
  if size is None and sniff.is_cut(partial):  # The server did not say.
    raise web.Failed('truncated', f'{done} bytes of an MP4', 'now')
  os.replace(partial, path)
  return done


async def _head(answer):
  """Returns how a body begins if it is that of a video or picture, or raises web.Failed."""
  head = b''
  while len(head) < sniff.HEAD and (block := await answer.content.readany()):
    head += block
  if not head:
    raise web.Failed('empty', again='now')
  kind = sniff.what(head[: sniff.HEAD])
  said = answer.headers.get('Content-Type', '')
  encoding = answer.headers.get('Content-Encoding', 'identity').strip().lower()
  # A rare kind of video, if the server stands by it.
  rare = not kind and encoding == 'identity' and said.lower().startswith(('video/', 'image/'))
  if kind not in ('video', 'picture') and not rare:
    detail = f'{kind or "unknown bytes"}, Content-Type: {said or "-"}'
    if encoding != 'identity':
      detail += f', Content-Encoding: {encoding}'
    raise web.Failed('not a video', detail, 'later')
  return head


def _place(folder, name):
  """Returns the path of a file; no link may lead it out of the folder."""
  path = os.path.join(folder, name)
  root, real = os.path.realpath(folder), os.path.realpath(path)
  if os.path.commonpath([root, real]) != root:
    raise web.Failed('outside the folder of videos', real, 'later')
  if os.path.isdir(path):
    raise web.Failed('cannot be written', f'{path} is a folder', 'later')
  os.makedirs(os.path.dirname(path), exist_ok=True)
  return path


# --- All of them ------------------------------------------------------------


def fetch(videos, folder, *, limits=None, retry_failed=False, allow_local=False):
  """Downloads what is missing.

  Args:
    videos: list of Video.
    folder: of the videos; made if it is not there.
    limits: Limits.
    retry_failed: also try what an earlier call found to be hopeless, such as
      HTTP 404 or a video that is too large.
    allow_local: also ask hosts with private and loopback addresses; see
      web.client.
  Returns:
    {Video: ''} for those that are there, {Video: reason} for the others.
  Raises:
    OSError: a file cannot be written.
    ValueError: another run writes to this folder.
  """
  os.makedirs(folder, exist_ok=True)
  resume = os.path.join(folder, RESUME)
  with _open_resume(resume) as log, files.scratch(resume) as work:
    hopeless, fetched = _read_log(log)
    found = {} if retry_failed else {x: hopeless[x] for x in videos if x in hopeless}
    # A file has its name only when it is whole.
    there = [x for x in videos if _is_there(os.path.join(folder, x.name))]
    found |= {x: '' for x in there}
    others = [x for x in there if fetched.get(x.name, x.url) != x.url]
    progress = Progress(len(videos), 'videos')
    progress.found(len(found) - len(others), sum(map(bool, found.values())))
    run = _Run(folder, work, limits or Limits(), log, progress, found)
    for video in others:
      run.refuse(video, fetched[video.name])
    asyncio.run(run.fetch([video for video in videos if video not in found], allow_local))
    progress.close()
  return found


def _open_resume(path):
  """Opens and locks the resume file, and never one that a link leads to."""

  def opener(path, flags):
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)

  try:
    log = open(path, 'a+', encoding='utf-8', errors='replace', opener=opener)
  except OSError as e:
    if e.errno in (errno.ELOOP, errno.EISDIR):
      raise ValueError(f'{path} is a link or no file; remove it.') from e
    raise
  try:
    fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise ValueError(f'Another run fetches into {os.path.dirname(path)}.') from None
  return log


def _read_log(log):
  """Returns {Video: reason} of what need not be tried again, and {name: address it is of}."""
  log.seek(0)
  last, fetched = {}, {}
  for line in log:
    with contextlib.suppress(ValueError, KeyError, TypeError):  # One that a kill cut off.
      row = json.loads(line)
      last[Video(row['url'], row['name'])] = row
      if not row.get('failed'):
        fetched[row['name']] = row['url']
  log.write('\n')  # After such a line, if it is the last one.
  hopeless = {
    video: annotations.printable(row['failed'])
    for video, row in last.items()
    if row.get('failed') and not row.get('again')
  }
  return hopeless, fetched


def _is_there(path):
  """Says whether a file needs no download; an error page or a compressed body does."""
  try:  # What is not known stays: it may be the user's own.
    return os.path.isfile(path) and sniff.what_file(path) in ('video', 'picture', '')
  except OSError:
    return False


def _host(url):
  try:
    return urllib.parse.urlsplit(url).hostname or ''
  except ValueError:
    return ''


class _Host:
  """What is to be asked of a host, and how it wants to be asked."""

  def __init__(self):
    self.videos = deque()
    self.paused_until = 0.0
    self.may_pause = web.LONGEST_WAIT  # Seconds, in all.
    self.given_up = None  # The failure for which it is not asked any more.

  def pause(self, failure, seconds):
    """It wants to be left alone: none of its videos is asked for."""
    now = time.monotonic()
    # What it says to those under way already is one wish, not several.
    self.may_pause -= max(0.0, now + seconds - max(now, self.paused_until))
    self.paused_until = max(now + seconds, self.paused_until)
    if seconds > web.LONGEST_WAIT or self.may_pause < 0:
      self.given_up = failure


class _Run:
  """Downloads that run beside each other."""

  def __init__(self, folder, work, limits, log, progress, found):
    self._folder, self._work, self._limits = folder, work, limits
    self._log, self._progress, self._found = log, progress, found
    self._slots, self._numbers = asyncio.Semaphore(limits.threads), itertools.count()

  async def fetch(self, videos, allow_local):
    hosts = defaultdict(_Host)
    for video in videos:
      hosts[_host(video.url)].videos.append(video)
    try:
      async with (
        web.client(self._limits.timeout_s, allow_local) as get,
        asyncio.TaskGroup() as group,
      ):
        for host in hosts.values():
          for _ in range(min(self._limits.per_host, len(host.videos))):
            group.create_task(self._serve(host, get))
    except BaseExceptionGroup as e:  # Such as a full disk: it stops all.
      raise e.exceptions[0] from None

  def refuse(self, video, url):
    """Notes that a file is there which came from another address."""
    detail = (
      f'{video.name} is of {url}; remove it to fetch it from this address, or {RESUME} if both '
      'are one video'
    )
    self._note(video, web.Failed('same name', detail, 'later'), 0)

  async def _serve(self, host, get):
    """Downloads one video of a host after the other."""
    while host.videos:
      video = host.videos.popleft()
      wait = 0.0
      for number in range(self._limits.tries):
        await asyncio.sleep(wait)
        async with self._slot(host):
          failure, size = host.given_up, 0
          if not failure:
            failure, size = await self._try(video, get)
        if not failure or failure is host.given_up:
          break
        wait = max(self._limits.wait_s * 2**number, failure.wait)
        if failure.wait:
          host.pause(failure, wait)
        if failure.again != 'now' or wait > web.LONGEST_WAIT:
          break
      if not failure:
        host.may_pause += _WAIT_PER_VIDEO
      self._note(video, failure, size)

  @contextlib.asynccontextmanager
  async def _slot(self, host):
    """Waits for the end of a host's pauses, and until there are few enough downloads."""
    while True:
      async with self._slots:
        pause = host.paused_until - time.monotonic()
        if pause <= 0 or host.given_up:
          yield
          return
      await asyncio.sleep(pause)

  async def _try(self, video, get):
    """Returns (why a video is not there, or None; its bytes)."""
    partial = self._work / str(next(self._numbers))
    try:
      path = _place(self._folder, video.name)
      return None, await _download(get, video.url, self._limits, partial, path)
    except web.Failed as e:
      return e, 0
    except Exception as e:
      failure = web.failure(e)
      if not failure and isinstance(e, OSError):
        if e.errno not in _OF_A_NAME:
          raise
        failure = web.Failed('cannot be written', e, 'later')
      # One odd row must not stop all others.
      return failure or web.Failed('failed', f'{type(e).__name__}: {e}', 'later'), 0
    finally:
      partial.unlink(missing_ok=True)

  def _note(self, video, failure, size):
    row, skipped = {'url': video.url, 'name': video.name, 'bytes': size}, None
    if failure:
      again = failure.again != 'never'
      row |= {'failed': failure.reason, 'detail': failure.detail, 'again': again}
      skipped = annotations.Skipped(video.url, failure.reason, failure.detail)
    self._log.write(json.dumps(row) + '\n')
    self._log.flush()
    self._found[video] = failure.reason if failure else ''
    self._progress.add(skipped=skipped)
