"""Large files by address: what broke off goes on where it stopped, and what came is checked.

  released/.model.pt.1f0c2a9b71d4.partial   what has come of one version of the file
  released/model.pt                         when all of it is there, and right

A version is known by its address and by what the server calls it (ETag), so that pieces of
two are never put together.
"""

import asyncio
import base64
import contextlib
import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from alpro_jax import files
from alpro_jax.data import names, web
from alpro_jax.data.progress import Progress

_MB = 10**6


class Wanted(NamedTuple):
  """A file to download.

  Attributes:
    url: its http or https address.
    path: where it goes.
    sha256: of it, in hex; '' is not known.
  """

  url: str
  path: pathlib.Path
  sha256: str = ''


class Missing(NamedTuple):
  """A file that is not there yet, as its server describes it.

  Attributes:
    wanted: the file.
    size: bytes of it; None if the server does not say.
    version: what the server calls this version, '' if nothing.
    md5: of it, in hex; '' if the server does not say.
  """

  wanted: Wanted
  size: int | None
  version: str
  md5: str

  @property
  def partial(self) -> pathlib.Path:
    """Where its bytes gather."""
    known = hashlib.sha256(f'{self.wanted.url}\n{self.version}'.encode()).hexdigest()
    return self.wanted.path.with_name(f'.{self.wanted.path.name}.{known[:12]}.partial')

  @property
  def present(self) -> int:
    """Bytes that an earlier run left."""
    if not self.version or not self.partial.is_file():
      return 0
    return self.partial.stat().st_size


def download(
  wanted: Sequence[Wanted],
  *,
  begin: Callable[[Sequence[Missing]], None] = lambda missing: None,
  log: Callable[[str], None] = lambda line: None,
  tries: int = 5,
  wait_s: float = 1.0,
  timeout_s: float = 30.0,
  allow_local: bool = False,
) -> None:
  """Downloads the files that are not there, the smallest first.

  Args:
    wanted: all of one folder.
    begin: is called once with what is missing, before anything is written; it
      may refuse by raising.
    log: takes a line about every try that failed, if there is another.
    tries: without a new byte between them.
    wait_s: seconds before the second try, doubled for each further one.
    timeout_s: seconds without a byte.
    allow_local: also ask hosts with private and loopback addresses.
  Raises:
    ValueError: a file does not come, or is not what it should be; or another
      process downloads into the folder.
    OSError: a file cannot be written.
  """
  folder = wanted[0].path.parent
  folder.mkdir(parents=True, exist_ok=True)
  refusal = f'downloads into {folder} at this moment; wait for its end, or choose another folder.'
  with files.lock(folder / '.lock', refusal):
    for one in wanted:
      if one.path.is_file():
        _check(one.path, one.path, 'sha256', one.sha256)

    async def run():
      async with web.client(timeout_s, allow_local) as get:
        missing = [
          await _persist(one, lambda one=one: _ask(get, one), tries, wait_s, log)
          for one in wanted
          if not one.path.is_file()
        ]
        begin(missing)
        for one in sorted(missing, key=lambda one: one.size or 0):
          await _download(get, one, tries, wait_s, log)

    try:
      asyncio.run(run())
    except OSError as error:
      if error.errno is not None and error.filename is None:  # As of a full disk.
        error.filename = str(folder)
      raise


async def _persist(wanted, attempt, tries, wait_s, log, present=lambda: 0):
  """Awaits attempt() until it succeeds, or fails `tries` times without a new byte."""
  failed, last = 0, present()
  while True:
    try:
      return await attempt()
    except Exception as error:
      failure = error if isinstance(error, web.Failed) else web.failure(error)
      if failure is None:
        raise
    failed, last = (failed + 1 if present() == last else 1), present()
    wait = max(wait_s * 2 ** (failed - 1), failure.wait)
    said = f'{failure.reason} ({failure.detail})' if failure.detail else failure.reason
    if failure.again != 'now' or failed >= tries or wait > web.LONGEST_WAIT:
      kept = f'; {last:,} bytes are kept, and the same command goes on from there' if last else ''
      raise ValueError(
        f'{wanted.url} did not come: {said}{kept}. If you get it in another way, put it to '
        f'{wanted.path}.'
      )
    log(f'{wanted.url}: {said}; trying again in {wait:.0f} s')
    await asyncio.sleep(wait)


async def _ask(get, wanted):
  """Asks for a file, and reads nothing of it."""
  if not names.is_address(wanted.url):
    raise web.Failed('not http or https')
  async with get(wanted.url) as answer:
    if answer.status != 200:
      raise web.refusal(answer)
    return Missing(wanted, answer.content_length, _version(answer), _md5(answer.headers))


def _version(answer):
  return answer.headers.get('ETag') or answer.headers.get('Last-Modified', '')


def _md5(headers):
  """Returns what Google's storage says of a file: x-goog-hash: crc32c=...,md5=BASE64."""
  said = ','.join(headers.getall('x-goog-hash', []))
  for part in said.split(','):
    name, _, value = part.strip().partition('=')
    if name == 'md5':
      with contextlib.suppress(ValueError):
        return base64.b64decode(value).hex()
  return ''


async def _download(get, one, tries, wait_s, log):
  path, partial = one.wanted.path, one.partial
  for other in path.parent.glob(f'.{path.name}.*.partial'):
    if other != partial or not one.version:
      other.unlink()  # Of a version that is not published any more.
  progress = Progress((one.size or 0) // _MB, f'MB of {path.name}')
  progress.found(one.present // _MB)
  await _persist(
    one.wanted, lambda: _append(get, one, progress), tries, wait_s, log, lambda: one.present
  )
  progress.close()
  await asyncio.to_thread(_check, partial, path, 'md5', one.md5)
  await asyncio.to_thread(_check, partial, path, 'sha256', one.wanted.sha256)
  os.replace(partial, path)


async def _append(get, one, progress):
  """Tries once to get the bytes that are missing."""
  if one.size is not None and one.present == one.size:
    return
  headers = {}
  if one.present and one.present < (one.size or one.present + 1):
    headers = {'Range': f'bytes={one.present}-', 'If-Range': one.version}
  async with get(one.wanted.url, headers) as answer:
    # 200: the server gives no parts, or has another version by now.
    if answer.status not in (200, 206) or (answer.status == 206 and not headers):
      raise web.refusal(answer)
    if _version(answer) != one.version:
      raise web.Failed('changed at the server meanwhile', 'repeat the command')
    first = answer.headers.get('Content-Range', '').removeprefix('bytes ').partition('-')[0]
    if answer.status == 206 and first != str(one.present):
      raise web.Failed('wrong part', f'asked for byte {one.present}, got {first or "-"}')
    with open(one.partial, 'ab' if answer.status == 206 else 'wb') as file:
      while block := await answer.content.readany():
        file.write(block)
        if (more := file.tell() // _MB - progress.done) > 0:
          progress.add(more)
      file.flush()
      await asyncio.to_thread(os.fsync, file.fileno())
  got = one.partial.stat().st_size
  if one.size is not None and got != one.size:
    one.partial.unlink()
    raise web.Failed('wrong size', f'{got:,} bytes, and the server said {one.size:,}')


def _check(path, name, kind, expected):
  """Raises ValueError if a file is not what its digest says; '' is any."""
  if not expected:
    return
  with open(path, 'rb') as stream:
    digest = hashlib.file_digest(stream, kind).hexdigest()
  if digest != expected:
    if path != name:
      path.unlink()
    raise ValueError(
      f'{name} is not the file that is expected: its {kind} is {digest}, not {expected}. '
      + ('Delete it and r' if path == name else 'It was removed; r')
      + 'epeat the command, which downloads it again.'
    )
