"""Downloads the videos that a captions file names by address.

Each address gets a file name. The file is written aside, in a hidden folder of
our own, and gets its name when it is whole and holds a video or a picture. What
became of each is one line of fetched.jsonl, so that a second call does only
what is missing.
"""

import email.utils
import errno
import fcntl
import heapq
import json
import os
import threading
import time
import urllib.parse
from collections import Counter, defaultdict, deque
from typing import NamedTuple

from alpro_jax import files
from alpro_jax.data import annotations, listing, names, sniff, tables, web
from alpro_jax.data.progress import Progress

RESUME = 'fetched.jsonl'
_URL_COLUMNS = ('contentUrl', 'url')
_NAME_COLUMNS = ('video', 'image')  # Files, or addresses.
_SUFFIXES = {*listing.SUFFIXES, *names.PHOTO_SUFFIXES}
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
# Seconds for which a host may ask not to be asked: at once and in all, and
# for each video that it gave.
_LONGEST_WAIT = 600.0
_WAIT_PER_VIDEO = 10.0
_BLOCK = 1 << 16
# Of one name; any other error of the disk ends the whole run.
_OF_A_NAME = {
  errno.ENAMETOOLONG,
  errno.ENOTDIR,
  errno.EISDIR,
  errno.EEXIST,
  errno.ENOTEMPTY,
  errno.ELOOP,
  errno.EINVAL,
  errno.EILSEQ,
  errno.EACCES,
  errno.EPERM,
  errno.EXDEV,
  errno.ENOENT,
}


class Video(NamedTuple):
  """What to fetch: address, and name relative to the folder of videos."""

  url: str
  name: str


class Limits(NamedTuple):
  """How to fetch.

  Attributes:
    threads: downloads at a time.
    per_host: of these, from one host.
    tries: of an address, within one call.
    wait_s: before the second try; doubles with each, and Retry-After counts
      when it asks for more.
    timeout_s: without a byte.
    max_seconds: for one try in all, redirects and headers included.
    max_bytes: of one video.
  """

  threads: int = 8
  per_host: int = 4
  tries: int = 4
  wait_s: float = 1.0
  timeout_s: float = 30.0
  max_seconds: float = 600.0
  max_bytes: int = 1 << 30


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
  columns = [(url_column,) if url_column else (*_URL_COLUMNS, 'video')]
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
      video = Video(url, name_of(row, url))
    except ValueError as e:
      skipped.append(annotations.Skipped(url or where, 'bad row', f'{where}: {e}'))
      continue
    other = videos.setdefault(video.name, video)
    if other.url != url:
      skipped.append(
        annotations.Skipped(url, 'same name', f'{where}: {video.name} is of {other.url}')
      )
  return list(videos.values()), skipped, rows


def _address(row, url_column):
  keys = (url_column,) if url_column else (*_URL_COLUMNS, *_NAME_COLUMNS)
  for key in keys:
    value = row.get(key)
    if (
      isinstance(value, str)
      and value.strip()
      and (key not in _NAME_COLUMNS or names.is_address(value))
    ):
      return value.strip()
  return ''


def name_of(row, url):
  """Returns the file of a row below the folder of videos.

  That is where launch/prepare.py looks for it: <page_dir>/<id>.mp4 of WebVid;
  else `video` or `image` if it is a name, else names.file_of(url).

  Raises:
    ValueError: it would not be in the folder.
  """
  still = not row.get('video')
  name = row.get('image') if still else row['video']
  if isinstance(name, str) and name.strip():
    if names.is_address(name):
      name = names.file_of(name.strip(), still=still)
  elif video_id := annotations.present(row.get('videoid')) or annotations.present(
    row.get('video_id')
  ):
    page = annotations.present(row.get('page_dir'))
    name = f'{page}/{video_id}.mp4' if page else f'{video_id}.mp4'
  else:
    name = names.file_of(url)
  if problem := names.name_problem(name):
    raise ValueError(f'{name!r}: {problem}')
  name = names.canonical(name)
  suffix = os.path.splitext(name)[1]
  if suffix.lower() not in _SUFFIXES:
    raise ValueError(
      f'{name!r} ends in {suffix!r}, expected a suffix of videos or pictures, such as .mp4 or .jpg'
    )
  if name.startswith(f'.{RESUME}') or annotations.printable(name) != name:
    raise ValueError(f'{name!r} may not be a name here')
  if any(len(part.encode()) > 255 for part in name.split('/')):
    raise ValueError(f'{name!r} is longer than a file name may be, 255 bytes')
  return name


# --- One download -----------------------------------------------------------


def _download(client, url, limits, partial, path):
  """Tries once; returns the number of bytes.

  Args:
    client: web.Client.
    url: address.
    limits: Limits.
    partial: where to write, in a folder of ours; nothing is there.
    path: where the file belongs.
  Raises:
    web.Failed
    OSError: of the disk.
  """
  if not names.is_address(url):
    raise web.Failed('not http or https', url)
  end = time.monotonic() + min(limits.max_seconds, 1e6)
  with client.get(url, end) as answer:
    headers = answer.headers
    if answer.status == 206:  # Of a range that was not asked for.
      raise web.Failed('truncated', headers.get('Content-Range', ''), 'now')
    if answer.status != 200:
      again = 'now' if answer.status in _AGAIN else 'never'
      raise web.Failed(
        f'HTTP {answer.status}', answer.reason, again, _retry_after(headers.get('Retry-After'))
      )
    size = headers.get('Content-Length', '')
    size = int(size) if size.isdecimal() else None
    if size is not None and size > limits.max_bytes:
      raise web.Failed('too large', f'{size} bytes')
    with open(partial, 'xb') as file:
      done = _copy(client, answer, limits, file, end)
      file.flush()
      os.fsync(file.fileno())
    if size is not None and done != size:
      raise web.Failed('truncated', f'{done} of {size} bytes', 'now')
    if size is None and sniff.is_cut(partial):  # The server did not say.
      raise web.Failed('truncated', f'{done} bytes of an MP4', 'now')
  os.replace(partial, path)
  return done


def _copy(client, answer, limits, file, end):
  head, done, block = b'', 0, True
  while block:
    with client.waiting(end):
      block = answer.read1(_BLOCK)
    if time.monotonic() >= end:
      raise web.Failed('too slow', f'{done} bytes', 'now')
    done += len(block)
    if done > limits.max_bytes:
      raise web.Failed('too large', f'more than {limits.max_bytes} bytes')
    if not done:
      raise web.Failed('empty', again='now')
    if len(head) < sniff.HEAD:
      head += block
      if len(head) >= sniff.HEAD or not block:
        _check_kind(head[: sniff.HEAD], answer.headers)
    file.write(block)
  return done


def _check_kind(head, headers):
  """Raises web.Failed if a body that begins so is neither video nor picture."""
  kind = sniff.what(head)
  said = headers.get('Content-Type', '')
  encoding = headers.get('Content-Encoding', 'identity').strip().lower()
  if kind in ('video', 'picture') or (
    # A rare kind of video, if the server stands by it.
    not kind and encoding == 'identity' and said.lower().startswith(('video/', 'image/'))
  ):
    return
  raise web.Failed(
    'not a video',
    f'{kind or "unknown bytes"}, Content-Type: {said or "-"}'
    + (f', Content-Encoding: {encoding}' if encoding != 'identity' else ''),
    'later',
  )


def _is_there(path):
  """Says whether a file needs no download.

  An error page or a compressed body under the name of a video does. What is
  not known stays: it may be the user's own.
  """
  try:
    return os.path.isfile(path) and sniff.what_file(path) in ('video', 'picture', '')
  except OSError:
    return False


def _retry_after(value):
  """Returns the seconds that the header asks for, 0 if it asks for nothing."""
  if not value:
    return 0.0
  if value.strip().isdecimal():
    return float(value)
  try:
    return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
  except (TypeError, ValueError, OverflowError):
    return 0.0


# --- All of them ------------------------------------------------------------


class _Queue:
  """Gives out videos: so many per host, and none before its time."""

  def __init__(self, videos, limits):
    self._limits = limits
    self._changed = threading.Condition()
    self._waiting = defaultdict(deque)
    self._delayed = []  # Heap of (when, number, host, video, tries).
    self._active = Counter()
    self._pause = defaultdict(float)  # Hosts that asked for it, until when.
    self._may_pause = defaultdict(lambda: _LONGEST_WAIT)  # Hosts, how long.
    self._given_up = {}  # Hosts that asked for more, and their last failure.
    self._number = 0
    self._closed = False
    for video in videos:
      self._waiting[_host(video.url)].append((video, 1))

  def take(self):
    """Returns (Video, number of the try, None or web.Failed); None at the end.

    With a web.Failed its host is not to be asked any more.
    """
    with self._changed:
      while not self._closed:
        now = time.monotonic()
        while self._delayed and self._delayed[0][0] <= now:
          _, _, host, video, tries = heapq.heappop(self._delayed)
          self._waiting[host].appendleft((video, tries))
        due = [when for when, *_ in self._delayed[:1]]
        for host, videos in self._waiting.items():
          failure = self._given_up.get(host)
          if not videos or (not failure and self._active[host] >= self._limits.per_host):
            continue
          if not failure and self._pause[host] > now:
            due.append(self._pause[host])
            continue
          self._active[host] += 1
          return *videos.popleft(), failure
        if not (self._delayed or any(self._waiting.values()) or any(self._active.values())):
          return None
        self._changed.wait(max(0.0, min(due) - now) if due else None)
      return None

  def done(self, video, fetched):
    """A try is over."""
    with self._changed:
      host = _host(video.url)
      self._active[host] -= 1
      self._may_pause[host] += _WAIT_PER_VIDEO * fetched
      self._changed.notify_all()

  def again(self, video, tries, wait_s):
    with self._changed:
      self._number += 1
      heapq.heappush(
        self._delayed, (time.monotonic() + wait_s, self._number, _host(video.url), video, tries)
      )

  def pause(self, video, failure, wait_s):
    """A host wants to be left alone: none of its videos is asked for."""
    host = _host(video.url)
    with self._changed:
      now = time.monotonic()
      # What it says to those under way already is one wish, not several.
      longer = max(0.0, now + wait_s - max(now, self._pause[host]))
      self._pause[host] = max(now + wait_s, self._pause[host])
      self._may_pause[host] -= longer
      if wait_s > _LONGEST_WAIT or self._may_pause[host] < 0:
        self._given_up[host] = failure

  def close(self):
    with self._changed:
      self._closed = True
      self._changed.notify_all()


def _host(url):
  try:
    return urllib.parse.urlsplit(url).hostname or ''
  except ValueError:
    return ''


def fetch(videos, folder, *, limits=None, retry_failed=False, allow_local=False, out=None):
  """Downloads what is missing.

  Args:
    videos: list of Video.
    folder: of the videos; made if it is not there.
    limits: Limits.
    retry_failed: also try what an earlier call found to be hopeless, such as
      HTTP 404 or a video that is too large.
    allow_local: also ask hosts with private and loopback addresses; never
      those of one link, of groups, or of a cloud's metadata.
    out: file for progress lines (stderr).
  Returns:
    {Video: ''} for those that are there, {Video: reason} for the others.
  Raises:
    OSError: a file cannot be written.
    ValueError: another run writes to this folder.
  """
  limits = limits or Limits()
  os.makedirs(folder, exist_ok=True)
  resume = os.path.join(folder, RESUME)
  with _open_resume(resume) as log:
    try:
      fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(f'Another run fetches into {folder}.') from None
    hopeless = {} if retry_failed else _hopeless(log)
    found = {}
    for video in videos:
      if _is_there(os.path.join(folder, video.name)):
        found[video] = ''  # It has this name only when it is whole.
      elif video in hopeless:
        found[video] = hopeless[video]
    progress = Progress(len(videos), 'videos', out=out)
    progress.found(len(found), sum(map(bool, found.values())))
    with files.scratch(resume) as work:
      _fetch_missing(
        [video for video in videos if video not in found],
        folder,
        work,
        web.Client(limits.timeout_s, allow_local=allow_local),
        limits,
        log,
        progress,
        found,
      )
    progress.close()
  return found


def _open_resume(path):
  """Opens the resume file, and never one that a link leads to."""

  def opener(path, flags):
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)

  try:
    return open(path, 'a+', encoding='utf-8', errors='replace', opener=opener)
  except OSError as e:
    if os.path.lexists(path) and (os.path.islink(path) or not os.path.isfile(path)):
      raise ValueError(f'{path} is a link or no file; remove it.') from e
    raise


def _hopeless(log):
  """Returns {Video: reason} of what need not be tried again."""
  log.seek(0)
  hopeless = {}
  for line in log:
    try:
      row = json.loads(line)
      video = Video(row['url'], row['name'])
      hopeless.pop(video, None)
    except (ValueError, KeyError, TypeError):
      continue  # A line that a kill cut off.
    if row.get('failed') and not row.get('again'):
      hopeless[video] = annotations.printable(row['failed'])
  log.write('\n')  # After such a line, if there is one.
  return hopeless


def _fetch_missing(videos, folder, work, client, limits, log, progress, found):
  queue = _Queue(videos, limits)
  lock = threading.Lock()
  errors = []

  def note(video, failure=None, size=0):
    row = {'url': video.url, 'name': video.name}
    if failure:
      row |= {'failed': failure.reason, 'detail': failure.detail, 'again': failure.again != 'never'}
      skipped = annotations.Skipped(video.url, failure.reason, failure.detail)
    else:
      row |= {'bytes': size}
      skipped = None
    with lock:
      log.write(json.dumps(row) + '\n')
      log.flush()
      found[video] = failure.reason if failure else ''
      progress.add(skipped=skipped)

  def one(video, tries, given_up, partial):
    """Tries once; returns whether the video is there now."""
    try:
      if given_up:
        raise given_up
      note(video, size=_download(client, video.url, limits, partial, _place(folder, video.name)))
      return True
    except web.Failed as e:
      wait = max(limits.wait_s * 2 ** (tries - 1), e.wait)
      if e.wait and not given_up:
        queue.pause(video, e, wait)
      if e.again == 'now' and not given_up and (tries < limits.tries and wait <= _LONGEST_WAIT):
        # A host that pauses holds the video back itself.
        queue.again(video, tries + 1, 0.0 if e.wait else wait)
      else:
        note(video, e)
    except OSError as e:
      if e.errno not in _OF_A_NAME:
        raise
      note(video, web.Failed('cannot be written', e, 'later'))
    except Exception as e:  # One odd row must not stop all others.
      note(video, web.Failed('failed', f'{type(e).__name__}: {e}', 'later'))
    finally:
      partial.unlink(missing_ok=True)
    return False

  def run(number):
    while job := queue.take():
      fetched = False
      try:
        fetched = one(*job, work / str(number))
      except BaseException as e:  # Such as a full disk: it stops all.
        errors.append(e)
        queue.close()
      finally:
        queue.done(job[0], fetched)

  threads = [
    threading.Thread(target=run, args=(number,), daemon=True)
    for number in range(min(limits.threads, len(videos)))
  ]
  for thread in threads:
    thread.start()
  try:
    for thread in threads:
      thread.join()
  finally:
    queue.close()
  if errors:
    raise errors[0]


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
