"""Downloads the videos that a captions file names by address.

Each address gets a file name, the file is written beside it as .partial and
renamed when it is whole. What became of each is one line of fetched.jsonl, so
that a second call does only what is missing.
"""

import email.utils
import fcntl
import heapq
import http.client
import json
import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter, defaultdict, deque
from typing import NamedTuple

from alpro_jax.data import annotations, prepare

RESUME = 'fetched.jsonl'
_URL_COLUMNS = ('contentUrl', 'url')
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_WAIT = 600.
_BLOCK = 1 << 16


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
    max_seconds: for one try in all.
    max_bytes: of one video.
  """
  threads: int = 8
  per_host: int = 4
  tries: int = 4
  wait_s: float = 1.
  timeout_s: float = 30.
  max_seconds: float = 600.
  max_bytes: int = 1 << 30


class _Failed(Exception):
  """Why not; `again` says whether another try may help, `wait` when."""

  def __init__(self, reason, detail='', *, again=False, wait=0.):
    super().__init__(reason)
    self.reason = reason
    self.detail = detail
    self.again = again
    self.wait = wait


# --- What to fetch ----------------------------------------------------------


def read_videos(path, *, url_column=''):
  """Reads the addresses of a captions file.

  Args:
    path: .csv with a header, or one JSON object per line (.jsonl).
    url_column: its name; '' takes contentUrl, url, or a `video` that is an
      http(s) address.
  Returns:
    (list of Video, each address and each name once; list of Skipped; rows)
  """
  path = annotations.check_file(path, '--captions')
  columns = None
  if path.lower().endswith('.csv'):
    source = annotations.csv_rows(path)
    _, columns, _ = next(source)
    annotations.need_columns(
        path, columns,
        [(url_column,) if url_column else (*_URL_COLUMNS, 'video')])
  elif path.lower().endswith(('.jsonl', '.json', '.ndjson')):
    source = annotations.jsonl_rows(path)
  else:
    raise ValueError(f'--captions={path} must end in .csv or .jsonl.')
  videos, skipped, rows = {}, [], 0
  for where, row, problem in source:
    rows += 1
    url = _address(row, url_column)
    if not url and not problem and not url_column and row.get('video'):
      continue  # A file that is there already.
    try:
      if problem or not url:
        raise ValueError(problem or 'no address')
      video = Video(url, name_of(row, url))
    except ValueError as e:
      skipped.append(annotations.Skipped(
          annotations.printable(url or where), 'bad row', f'{where}: {e}'))
      continue
    other = videos.setdefault(video.name, video)
    if other.url != url:
      skipped.append(annotations.Skipped(
          url, 'same name', f'{where}: {video.name} is of {other.url}'))
  return list(videos.values()), skipped, rows


def _address(row, url_column):
  keys = (url_column,) if url_column else (*_URL_COLUMNS, 'video')
  for key in keys:
    value = row.get(key)
    if isinstance(value, str) and value.strip() and (
        key != 'video' or annotations.is_address(value)):
      return value.strip()
  return ''


def name_of(row, url):
  """Returns the file of a row below the folder of videos.

  That is where launch/prepare.py looks for it: <page_dir>/<id>.mp4 of WebVid;
  else `video` if it is a name, else annotations.file_of(url).

  Raises:
    ValueError: it would not be in the folder.
  """
  name = row.get('video')
  if isinstance(name, str) and name.strip():
    if annotations.is_address(name):
      name = annotations.file_of(name.strip())
  elif video_id := str(
      row.get('videoid') or row.get('video_id') or '').strip():
    page = str(row.get('page_dir') or '').strip()
    name = f'{page}/{video_id}.mp4' if page else f'{video_id}.mp4'
  else:
    name = annotations.file_of(url)
  if problem := annotations.name_problem(name):
    raise ValueError(f'{name!r}: {problem}')
  if annotations.canonical(name) == RESUME:
    raise ValueError(f'{name!r} is the name of the resume file')
  return annotations.canonical(name)


# --- One download -----------------------------------------------------------


class _Redirects(urllib.request.HTTPRedirectHandler):
  """Follows to http and https alone, ten times at most."""

  max_redirections = 10

  def redirect_request(self, req, fp, code, msg, headers, newurl):
    if not annotations.is_address(newurl):
      raise _Failed('redirect refused', newurl)
    return super().redirect_request(req, fp, code, msg, headers, newurl)

  def http_error_302(self, req, fp, code, msg, headers):
    # The base class would refuse other schemes too, as an HTTP error.
    target = headers.get('location') or headers.get('uri') or ''
    if not annotations.is_address(urllib.parse.urljoin(req.full_url, target)):
      raise _Failed('redirect refused', target)
    return super().http_error_302(req, fp, code, msg, headers)

  http_error_301 = http_error_303 = http_error_302
  http_error_307 = http_error_308 = http_error_302


def _opener():
  """Returns what opens http and https, and no file: or ftp: address."""
  opener = urllib.request.OpenerDirector()
  for handler in (
      urllib.request.ProxyHandler, urllib.request.HTTPHandler,
      urllib.request.HTTPSHandler, urllib.request.HTTPErrorProcessor,
      urllib.request.HTTPDefaultErrorHandler, _Redirects):
    opener.add_handler(handler())
  return opener


def _download(opener, url, path, limits):
  """Tries once; returns the number of bytes. Raises _Failed."""
  if not annotations.is_address(url):
    raise _Failed('not http or https', url)
  end = time.monotonic() + limits.max_seconds
  partial = f'{path}.partial'
  try:
    request = urllib.request.Request(
        urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]"),
        headers={'User-Agent': 'alpro_jax', 'Accept-Encoding': 'identity'})
    with opener.open(request, timeout=limits.timeout_s) as answer:
      size = answer.headers.get('Content-Length', '')
      size = int(size) if size.isdecimal() else None
      if size is not None and size > limits.max_bytes:
        raise _Failed('too large', f'{size} bytes')
      done = _copy(answer, partial, end, limits)
    if size is not None and done != size:
      raise _Failed('truncated', f'{done} of {size} bytes', again=True)
    if not done:
      raise _Failed('empty', again=True)
  except urllib.error.HTTPError as e:
    e.close()
    raise _Failed(
        f'HTTP {e.code}', str(e.reason), again=e.code in _AGAIN,
        wait=_retry_after(e.headers.get('Retry-After'))) from e
  except http.client.IncompleteRead as e:
    raise _Failed('truncated', str(e), again=True) from e
  except TimeoutError as e:
    raise _Failed('time-out', f'{limits.timeout_s:g} s', again=True) from e
  except urllib.error.URLError as e:
    if isinstance(e.reason, TimeoutError):
      raise _Failed('time-out', f'{limits.timeout_s:g} s', again=True) from e
    raise _Failed('no connection', str(e.reason), again=not isinstance(
        e.reason, ssl.SSLCertVerificationError)) from e
  except (http.client.HTTPException, ConnectionError, ssl.SSLError,
          socket.gaierror) as e:
    raise _Failed('no connection', f'{type(e).__name__}: {e}',
                  again=True) from e
  except ValueError as e:  # Of urllib, about the address.
    raise _Failed('bad address', str(e)) from e
  os.replace(partial, path)
  return done


def _copy(answer, partial, end, limits):
  done = 0
  with open(partial, 'wb') as file:
    while block := answer.read1(_BLOCK):
      done += len(block)
      if done > limits.max_bytes:
        raise _Failed('too large', f'more than {limits.max_bytes} bytes')
      if time.monotonic() > end:
        raise _Failed('too slow', f'{done} bytes in {limits.max_seconds:g} s',
                      again=True)
      file.write(block)
    file.flush()
    os.fsync(file.fileno())
  return done


def _retry_after(value):
  """Returns the seconds that the header asks for, 0 if it asks for nothing."""
  if not value:
    return 0.
  if value.strip().isdecimal():
    return float(value)
  try:
    return max(
        0., email.utils.parsedate_to_datetime(value).timestamp() - time.time())
  except (TypeError, ValueError):
    return 0.


# --- All of them ------------------------------------------------------------


class _Queue:
  """Gives out videos: so many per host, and none before its time."""

  def __init__(self, videos, per_host):
    self._per_host = per_host
    self._changed = threading.Condition()
    self._waiting = defaultdict(deque)
    self._delayed = []  # Heap of (when, number, host, video, tries).
    self._active = Counter()
    self._pause = defaultdict(float)  # Hosts that asked for it, until when.
    self._number = 0
    self._closed = False
    for video in videos:
      self._waiting[_host(video.url)].append((video, 1))

  def take(self):
    """Returns (Video, number of the try); None when all is done."""
    with self._changed:
      while not self._closed:
        now = time.monotonic()
        while self._delayed and self._delayed[0][0] <= now:
          _, _, host, video, tries = heapq.heappop(self._delayed)
          self._waiting[host].appendleft((video, tries))
        due = [when for when, *_ in self._delayed[:1]]
        for host, videos in self._waiting.items():
          if not videos or self._active[host] >= self._per_host:
            continue
          if self._pause[host] > now:
            due.append(self._pause[host])
            continue
          self._active[host] += 1
          return videos.popleft()
        if not (self._delayed or any(self._waiting.values())
                or any(self._active.values())):
          return None
        self._changed.wait(max(0., min(due) - now) if due else None)
      return None

  def done(self, video):
    with self._changed:
      self._active[_host(video.url)] -= 1
      self._changed.notify_all()

  def again(self, video, tries, wait_s, *, whole_host):
    host = _host(video.url)
    with self._changed:
      when = time.monotonic() + wait_s
      if whole_host:
        self._pause[host] = max(self._pause[host], when)
      self._number += 1
      heapq.heappush(
          self._delayed, (when, self._number, host, video, tries))

  def close(self):
    with self._changed:
      self._closed = True
      self._changed.notify_all()


def _host(url):
  try:
    return urllib.parse.urlsplit(url).netloc.lower()
  except ValueError:
    return ''


def fetch(videos, folder, *, limits=None, retry_failed=False, out=None):
  """Downloads what is missing.

  Args:
    videos: list of Video.
    folder: of the videos; made if it is not there.
    limits: Limits.
    retry_failed: also try what an earlier call found to be hopeless, such as
      HTTP 404 or a video that is too large.
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
  with open(resume, 'a+', encoding='utf-8') as log:
    try:
      fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(f'Another run fetches into {folder}.') from None
    hopeless = {} if retry_failed else _hopeless(log)
    found = {}
    for video in videos:
      if os.path.isfile(os.path.join(folder, video.name)):
        found[video] = ''  # It has this name only when it is whole.
      elif video in hopeless:
        found[video] = hopeless[video]
    progress = prepare.Progress(len(videos), out, unit='videos')
    progress.found(len(found), sum(map(bool, found.values())))
    _fetch_missing([video for video in videos if video not in found], folder,
                   limits, log, progress, found)
    progress.close()
  return found


def _hopeless(log):
  """Returns {Video: reason} of what need not be tried again."""
  log.seek(0)
  hopeless = {}
  for line in log:
    try:
      row = json.loads(line)
      video = Video(row['url'], row['name'])
    except (ValueError, KeyError, TypeError):
      continue  # A line that a kill cut off.
    hopeless.pop(video, None)
    if row.get('failed') and not row.get('again'):
      hopeless[video] = row['failed']
  log.write('\n')  # After such a line, if there is one.
  return hopeless


def _fetch_missing(videos, folder, limits, log, progress, found):
  queue = _Queue(videos, limits.per_host)
  opener = _opener()
  lock = threading.Lock()
  errors = []

  def note(video, failure=None, size=0):
    row = {'url': video.url, 'name': video.name}
    if failure:
      row |= {'failed': failure.reason, 'detail': failure.detail,
              'again': failure.again}
      skipped = annotations.Skipped(
          video.url, failure.reason, failure.detail)
    else:
      row |= {'bytes': size}
      skipped = None
    with lock:
      log.write(json.dumps(row) + '\n')
      log.flush()
      found[video] = failure.reason if failure else ''
      progress.item(skipped)

  def work():
    while job := queue.take():
      video, tries = job
      try:
        note(video, size=_download(
            opener, video.url, _place(folder, video.name), limits))
      except _Failed as failure:
        wait = max(limits.wait_s * 2 ** (tries - 1), failure.wait)
        if failure.again and tries < limits.tries and wait <= _LONGEST_WAIT:
          queue.again(video, tries + 1, wait, whole_host=failure.wait > 0)
        else:
          note(video, failure)
          _remove(os.path.join(folder, f'{video.name}.partial'))
      except BaseException as e:  # Such as a full disk: it stops all.
        errors.append(e)
        queue.close()
      finally:
        queue.done(video)

  threads = [threading.Thread(target=work, daemon=True)
             for _ in range(min(limits.threads, len(videos)))]
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
    raise _Failed('outside the folder of videos', real)
  os.makedirs(os.path.dirname(path), exist_ok=True)
  return path


def _remove(path):
  if os.path.isfile(path):
    os.remove(path)
