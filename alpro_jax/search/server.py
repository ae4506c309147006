"""An index over HTTP: JSON for programs (`/docs`), a page for people (`/`).

Only videos of the index can be fetched, by their number, and only if they lie below its
folders when links are followed. Requests that another site's page makes are refused by
their Host and Origin. Texts that wait at the same time are encoded together.
"""

import asyncio
import collections
import dataclasses
import datetime
import functools
import mimetypes
import os
import secrets
import shutil
import socket
import tempfile
import threading
from concurrent import futures
from typing import Annotated, NamedTuple

import fastapi
import numpy as np
import uvicorn
from absl import logging
from fastapi import HTTPException, exceptions, responses
from fastapi_offline import FastAPIOffline
from uvicorn.protocols.http.h11_impl import H11Protocol

from alpro_jax.data import playing
from alpro_jax.data.cut import CutVideo, decode
from alpro_jax.evaluation import explain, page
from alpro_jax.evaluation.encoder import TEXTS, Encoder
from alpro_jax.evaluation.scorer import TextFeatures
from alpro_jax.search import exchange, querying
from alpro_jax.search.guard import Guard
from alpro_jax.search.store import Store, key, show_name

_HEAVY_AT_ONCE = 2
_REFRESH_S, _SILENT_S, _DECODE_S = 3.0, 10.0, 60.0
# A user's file that a browser takes for a page runs no script, and cannot reach this server.
_SANDBOX = {'content-security-policy': "sandbox; default-src 'none'; media-src 'self'"}

Text = Annotated[str, fastapi.Query(max_length=1000)]
Asked = Annotated[str, fastapi.Query(max_length=1000, pattern=r'\S')]
Seconds = Annotated[float | None, fastapi.Query(ge=0, le=1e9, allow_inf_nan=False)]
Day = Annotated[
  datetime.date | None, fastapi.Query(ge=datetime.date(1900, 1, 1), le=datetime.date(2200, 1, 1))
]
Upload = Annotated[fastapi.UploadFile, fastapi.File()]
Top = Annotated[int, fastapi.Query(ge=1, le=500)]
Rerank = Annotated[int, fastapi.Query(ge=0, le=500)]
Form = Annotated[str, fastapi.Query(pattern=f'^({"|".join(exchange.FORMS)})$')]


class Only(NamedTuple):
  """Which clips a search looks at; the defaults are all."""

  below: Text = ''  # Beginning of the path of a video below its folder, as it is shown.
  min_seconds: Seconds = None  # Length of its video.
  max_seconds: Seconds = None
  after: Day = None  # Day of the file, here.
  before: Day = None
  video: int | None = None  # See `key`.

  @property
  def where(self) -> str:
    """As SQL."""

    def nanoseconds(day):
      return day and round(datetime.datetime.combine(day, datetime.time()).timestamp()) * 10**9

    asked = {
      "starts_with(path, '{}')": self.below.replace("'", "''"),
      'seconds >= {}': self.min_seconds,
      'seconds <= {}': self.max_seconds,
      'mtime_ns >= {}': nanoseconds(self.after),
      'mtime_ns < {}': nanoseconds(self.before),
      'video = {}': self.video,
    }
    return ' AND '.join(text.format(x) for text, x in asked.items() if x not in (None, ''))


Where = Annotated[Only, fastapi.Depends()]


class Service:
  """What is asked: an index with its model, and one that answers questions.

  What `make_app` lists is an endpoint: its docstring and its arguments are shown at /docs.

  Attributes:
    store: the index; what is written to it is seen after some seconds.
    encoder: with the model of the index; None until `begin`, and requests wait.
    answering: with one that answers, or None.
  """

  def __init__(
    self, store: Store, encoder: Encoder | None = None, answering: Encoder | None = None
  ):
    self.store, self.encoder, self.answering = store, encoder, answering
    self._waiting: collections.deque = collections.deque()  # Texts, and who waits for each.
    self._encoding = threading.Lock()
    self._heavy = threading.Semaphore(_HEAVY_AT_ONCE)
    self._copies = functools.lru_cache(maxsize=64)(self._make_copy)
    self._ended = threading.Event()
    threading.Thread(target=self._refresh, daemon=True).start()

  def begin(self, encoder: Encoder, answering: Encoder | None) -> None:
    """Compiles what a search needs; from then on requests are answered."""
    for count in TEXTS:
      encoder.texts(['a'] * count)
    if self.store.counts()[1]:
      querying.search(encoder, self.store, ['a'])
    self.encoder, self.answering = encoder, answering

  async def wait(self) -> None:
    """Until there is a model."""
    while not self.encoder:
      await asyncio.sleep(0.05)

  def close(self) -> None:
    """Ends its thread."""
    self._ended.set()

  def _refresh(self):
    while not self._ended.wait(_REFRESH_S):
      try:
        self.store.refresh()
      except (OSError, ValueError) as error:
        logging.warning('The index cannot be read again: %s', error)

  def text(self, text: str) -> TextFeatures:
    """Encodes one text: whoever gets the encoder encodes for all that wait."""
    mine: futures.Future = futures.Future()
    self._waiting.append((text, mine))
    with self._encoding:
      while not mine.done():
        waiting = [self._waiting.popleft() for _ in range(min(len(self._waiting), TEXTS[-1]))]
        try:
          rows = querying.rows(self.encoder.texts([text for text, _ in waiting]))
          for (_, future), row in zip(waiting, rows, strict=True):
            future.set_result(row)
        except Exception as error:  # Each of them is told.
          for _, future in waiting:
            future.set_exception(error)
    return mine.result()

  def search(
    self,
    only: Where,
    q: Text = '',
    clip: int | None = None,
    k: Top = 50,
    rerank: Rerank = 64,
    form: Form = 'json',
  ):
    """Finds clips by a text `q`, or those like a `clip`; `form` is json, csv or otio."""
    if clip is not None:
      return self._find(form, self._clip(clip)[-1], k, only)
    if not q.strip():
      raise HTTPException(422, 'q: expected a text to search by.')
    by = self.text(q)
    return self._find(form, by.feature[0], k, only, text=q, by=by, rerank_k=rerank)

  def search_by_example(self, file: Upload, only: Where, k: Top = 50, form: Form = 'json'):
    """Finds clips like a video or a picture."""
    with tempfile.NamedTemporaryFile() as copy:
      shutil.copyfileobj(file.file, copy)
      copy.flush()
      clips = self._cut(copy.name).clips[:16]
    with self._heavy:
      vector = self.encoder.videos(list(clips)).feature.mean(0)
    vector /= max(float(np.linalg.norm(vector)), 1e-6)
    return self._find(form, vector, k, only)

  def _find(self, form, vector, k, only, **asked):
    found = querying.find(self.encoder, self.store, vector, top=k, where=only.where, **asked)
    kind, text = exchange.FORMS[form]
    headers = {} if form == 'json' else {'content-disposition': f'attachment; filename=hits.{form}'}
    return responses.Response(text(self.store, found), media_type=kind, headers=headers)

  def _cut(self, path, starts=None, **other) -> CutVideo:
    cutting = dataclasses.replace(self.store.cutting, **other)
    with self._heavy:
      (cut,) = decode([(path, starts)], cutting, num_workers=1, timeout_s=_DECODE_S)
    if not cut.clips:
      raise HTTPException(422, f'it cannot be read: {cut.reason} {cut.detail}'.strip())
    return cut

  def _clip(self, clip):
    """Name of its video, (start, stop) and vector."""
    found = self.store.clips(f'clip = {clip}')
    if not len(found.id):
      raise HTTPException(404, f'the index has no clip {clip}.')
    return found.name[0], (float(found.start[0]), float(found.stop[0])), found.vector[0]

  def path(self, video: int) -> str:
    """Where a video of the index lies, if that is below its folders."""
    for name in self.store.files(f'video = {video}'):
      path = os.path.realpath(self.store.path(name))
      below = (os.path.join(os.path.realpath(folder), b'') for folder in self.store.folders)
      if not any(path.startswith(folder) for folder in below):
        raise HTTPException(403, f'{show_name(name)} is a link to outside of the indexed folders.')
      if not os.path.isfile(path):
        raise HTTPException(404, f'{show_name(name)} is no longer there.')
      return os.fsdecode(path)
    raise HTTPException(404, f'the index has no video {video}.')

  def video(self, video: int):
    """A video, or a range of its bytes."""
    path = self.path(video)
    kind = mimetypes.guess_type(path)[0] or ''
    if not kind.startswith(('video/', 'image/')):  # What is a video may be named x.html.
      kind = 'application/octet-stream'
    return responses.FileResponse(path, media_type=kind, headers=_SANDBOX)

  def copy(self, clip: int):
    """A small MP4 of a clip, without sound, for what browsers do not play."""
    return responses.Response(self._copies(clip), media_type='video/mp4')

  def thumbnails(self, clip: int):
    """The thumbnails of a clip, side by side."""
    return responses.Response(self.store.strips([clip])[0], media_type='image/jpeg')

  def _make_copy(self, clip):
    name, span, _ = self._clip(clip)
    with self._heavy:
      (made,) = playing.prepare([(self.path(key(name)), *span)], copy_all=True)
    if not made.copy:
      raise HTTPException(422, f'no copy can be made: {made.why_not}')
    return made.copy

  def explain(self, clip: int, q: Asked):
    """Shows which places of a clip each word rests on."""
    name, span, _ = self._clip(clip)
    cut = self._cut(self.path(key(name)), span[:1])
    (segment, *_) = [x for x in cut.clips if x.stop == span[1]] or cut.clips
    pixels = self.encoder.pixels([segment])[0]
    with self._heavy:
      shown = explain.explain(self.encoder.trained, self.store.shown(name), pixels, span, q)
    return _page(explain.render(shown))

  def ask(self, video: int, question: Asked) -> dict:
    """Answers about a whole video and each of its clips."""
    if not self.answering:
      raise HTTPException(
        409, 'no model that answers questions is loaded; start the server with --answers=...'
      )
    # Another model than that of the index, which may see another number of frames.
    cut = self._cut(self.path(video), frames=self.answering.trained.config.data.frames)
    with self._heavy:
      whole, each = self.answering.ask(cut, question)

    def said(one):
      top = [{'answer': x, 'share': p, 'shown': one.show(p).strip()} for x, p in one.top]
      return {'start': one.start, 'stop': one.stop, 'answers': top, 'far': one.far}

    return said(whole) | {'question': question, 'spans': [said(one) for one in each]}

  def health(self) -> dict:
    """Whether it answers, or what it waits for."""
    status = 'ok' if self.encoder else 'loading the model'
    return {'status': status, 'clips': self.store.counts()[1]}

  def home(self):
    """The page for people."""
    nonce = secrets.token_urlsafe(16)
    shown = page.render('search.html', title='Search', status=self.status(), nonce=nonce)
    return _page(shown, nonce)

  def status(self) -> dict:
    """What the index holds, and how far the indexing is."""
    videos, clips = self.store.counts()
    progress = self.store.report()
    trained = self.encoder.trained
    return {
      'videos': videos,
      'clips': clips,
      'folders': [show_name(folder) for folder in self.store.folders],
      'model': self.store.about['checkpoint']['path'],
      'matches': trained.knows_matching,
      'explains': trained.knows_matching or trained.answers_questions,
      'answers': self.answering is not None,
      'left': progress.get('left', 0),
      'problems': progress.get('problems', [])[:100],
    }


def _page(text, nonce=''):
  """A page may fetch and run nothing but what this server sends."""
  script = f"'nonce-{nonce}'" if nonce else "'none'"
  policy = (
    f"default-src 'self'; script-src {script}; style-src 'unsafe-inline'; img-src 'self' "
    "data:; media-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
  )
  return responses.HTMLResponse(text, headers={'content-security-policy': policy})


def make_app(service: Service, *, hosts: frozenset[str] = frozenset(), token: str = ''):
  """Returns the ASGI application.

  Args:
    service: what is asked.
    hosts: values of Host that are answered, all if empty.
    token: that every request must carry, '' for none.
  """
  app = FastAPIOffline(title='Search of videos', redoc_url=None)
  guard = Guard(app, hosts=hosts, token=token)
  wait = [fastapi.Depends(service.wait)]
  for path, answer in {
    '/search': service.search,
    '/videos/{video}': service.video,
    '/clips/{clip}.mp4': service.copy,
    '/clips/{clip}.jpg': service.thumbnails,
    '/ask': service.ask,
    '/explain': service.explain,
    '/status': service.status,
    '/': service.home,
  }.items():
    app.get(path, dependencies=wait)(answer)
  app.post('/search', dependencies=wait)(service.search_by_example)
  app.get('/health')(service.health)
  app.get('/metrics')(guard.metrics)

  def problem(status, error):
    return responses.JSONResponse({'detail': str(error)}, status)

  @app.exception_handler(exceptions.RequestValidationError)
  async def invalid(_, error):
    said = (f'{".".join(map(str, x["loc"][1:]))}: {x["msg"]}' for x in error.errors())
    return problem(422, '; '.join(said))

  app.exception_handler(ValueError)(lambda _, error: problem(400, error))
  app.exception_handler(OSError)(lambda _, error: problem(503, error))

  return guard


class _Protocol(H11Protocol):
  """Ends connections that ask nothing."""

  def connection_made(self, transport):
    super().connection_made(transport)
    self.loop.call_later(_SILENT_S, lambda: self.cycle or transport.close())


def bind(host: str, port: int) -> socket.socket:
  """Takes the address.

  Raises:
    OSError: if another program has it, or it is none of this machine.
  """
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  try:
    return socket.create_server((host, port), family=family)
  except OSError as error:
    raise OSError(
      f'port {port} of {host} cannot be taken ({error.strerror}); another program may have '
      'it: choose another with --port.'
    ) from error


def hosts_of(host: str, port: int) -> frozenset[str]:
  """Values of Host for an address of this machine alone."""
  names = (host, '127.0.0.1', 'localhost', '[::1]')
  # Browsers leave the port of http out.
  return frozenset((*(f'{name}:{port}' for name in names), *(names if port == 80 else ())))


def make_server(app) -> uvicorn.Server:
  """What serves, by `.run(sockets=[...])`, until SIGTERM or SIGINT and its last answer."""
  return uvicorn.Server(
    uvicorn.Config(
      app,
      http=_Protocol,
      ws='none',
      log_level='warning',
      access_log=False,
      server_header=False,
      timeout_graceful_shutdown=10,
    )
  )
