"""Google Cloud Storage on loopback: as much of its JSON API as our libraries use.

gcsfs, TensorStore, and the C++ client in array_record read and write here. Objects live in
memory. It can be slow, and fail now and then, as the true one does:

  server = Server(latency=0.05, failing=0.05)
  server.environment()     # What tells the libraries of it.
  server.requests          # [(method, path, range, bytes received, bytes sent)]
"""

import base64
import hashlib
import itertools
import json
import random
import re
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlparse

_OBJECT = re.compile(r'/storage/v1/b/([^/]+)/o/(.+)$')
_COPY = re.compile(r'/storage/v1/b/([^/]+)/o/([^/]+)/(rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)$')
_MOVE = re.compile(r'/storage/v1/b/([^/]+)/o/([^/]+)/moveTo/o/([^/]+)$')
_LIST = re.compile(r'/storage/v1/b/([^/]+)/o/?$')
_BUCKET = re.compile(r'/storage/v1/b/([^/]+)/?$')
_UPLOAD = re.compile(r'/(?:resumable/)?upload/storage/v1/b/([^/]+)/o')
_PLAIN = re.compile(r'/([^/]+)/(.+)$')  # The XML API, which reads whole objects.


class Stored(NamedTuple):
  """An object: its bytes, its generation, and when it was made, in seconds."""

  data: bytes
  generation: int
  made: float


class Server(ThreadingHTTPServer):
  """Serves from its making until `close`.

  Args:
    latency: seconds that every request takes longer.
    failing: share of the requests that are answered 503.
    seed: of the draw of these.
  """

  daemon_threads = True
  request_queue_size = 256

  def __init__(self, *, latency=0.0, failing=0.0, seed=0):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.latency, self.failing = latency, failing
    self.objects: dict[tuple[str, str], Stored] = {}
    self.requests: list[tuple[str, str, str, int, int]] = []
    self.uploads: dict[str, tuple[bytearray, str, str, dict]] = {}
    self.lock = threading.RLock()
    self._generations = itertools.count(int(time.time() * 1e6))
    self._draw = random.Random(seed)
    self.url = f'http://127.0.0.1:{self.server_port}'
    threading.Thread(target=self.serve_forever, daemon=True).start()

  def environment(self) -> dict[str, str]:
    """What gcsfs, TensorStore and array_record read."""
    return {
      'STORAGE_EMULATOR_HOST': self.url,
      'TENSORSTORE_GCS_HTTP_URL': self.url,
      'CLOUD_STORAGE_EMULATOR_ENDPOINT': self.url,
      'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'none',
    }

  def handle_error(self, *_):
    """A client that goes is no error of ours; what else went wrong, it was answered."""

  def close(self):
    self.shutdown()
    self.server_close()

  def fails(self) -> bool:
    with self.lock:
      return self._draw.random() < self.failing

  def put(self, bucket, name, data, query) -> dict | None:
    """Returns what is said of the new object; None where another generation was expected."""
    with self.lock:
      old = self.objects.get((bucket, name))
      expected = query.get('ifGenerationMatch')
      if expected and int(expected[0]) != (old.generation if old else 0):
        return None
      self.objects[bucket, name] = Stored(data, next(self._generations), time.time())
      return self.describe(bucket, name)

  def describe(self, bucket, name) -> dict:
    data, generation, made = self.objects[bucket, name]
    when = time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(made))
    return {
      'kind': 'storage#object',
      'id': f'{bucket}/{name}/{generation}',
      'name': name,
      'bucket': bucket,
      'generation': str(generation),
      'metageneration': '1',
      'size': str(len(data)),
      **dict.fromkeys(('timeCreated', 'updated', 'timeStorageClassUpdated'), when),
      'storageClass': 'STANDARD',
      'contentType': 'application/octet-stream',
      'md5Hash': base64.b64encode(hashlib.md5(data).digest()).decode(),
      'etag': str(generation),
    }

  def names(self, bucket, query):
    """Returns a page of names and prefixes: all."""

    def first(key):
      return query.get(key, [''])[0]

    prefix, delimiter = first('prefix'), first('delimiter')
    start, end = first('startOffset'), first('endOffset')
    items, prefixes = [], set()
    with self.lock:
      for owner, name in sorted(self.objects):
        if owner != bucket or not name.startswith(prefix) or name < start or (end and name >= end):
          continue
        rest = name[len(prefix) :]
        if delimiter and delimiter in rest:
          prefixes.add(prefix + rest.split(delimiter)[0] + delimiter)
        else:
          items.append(self.describe(bucket, name))
    return {'kind': 'storage#objects', 'items': items, 'prefixes': sorted(prefixes)}


class _Handler(BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  server: Server

  def log_message(self, *_):
    pass

  def _go(self):
    time.sleep(self.server.latency)
    data, self._sent = self._body(), 0
    address = urlparse(self.path)
    try:
      if self.server.fails():
        self._say(503, {'error': {'code': 503, 'message': 'try again'}})
      else:
        self._answer(data, address.path, parse_qs(address.query, keep_blank_values=True))
    except OSError:
      self.close_connection = True  # Whoever asked is gone.
    finally:
      asked = self.command, self.path, self.headers.get('Range') or ''
      self.server.requests.append((*asked, len(data), self._sent))

  do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _go

  def _answer(self, data, path, query):
    server = self.server
    path = re.sub(r'^/download(?=/)', '', path)
    if found := _UPLOAD.match(path):
      return self._upload(data, found[1], query)
    if path.startswith('/batch'):
      return self._batch(data)
    if found := _COPY.match(path):
      bucket, name, how, to, new = map(unquote, found.groups())
      if (bucket, name) not in server.objects:
        return self._missing(name)
      made = server.put(to, new, server.objects[bucket, name].data, {})
      rewritten = {'done': True, 'totalBytesRewritten': made['size'], 'objectSize': made['size']}
      return self._say(200, rewritten | {'resource': made} if how == 'rewriteTo' else made)
    if found := _MOVE.match(path):
      bucket, name, new = map(unquote, found.groups())
      with server.lock:
        if (bucket, name) not in server.objects:
          return self._missing(name)
        made = server.put(bucket, new, server.objects[bucket, name].data, {})
        del server.objects[bucket, name]
      return self._say(200, made)
    if found := _OBJECT.match(path):
      return self._object(*map(unquote, found.groups()), query, query.get('alt') == ['media'])
    if found := _LIST.match(path):
      return self._say(200, server.names(found[1], query))
    if found := _BUCKET.match(path):
      when = dict.fromkeys(('timeCreated', 'updated'), '2026-01-01T00:00:00.000Z')
      told = {'kind': 'storage#bucket', 'id': found[1], 'name': found[1], 'projectNumber': '1'}
      place = {'location': 'US', 'locationType': 'region', 'storageClass': 'STANDARD'}
      return self._say(200, told | when | place | {'metageneration': '1'})
    if found := _PLAIN.match(path):
      return self._object(*map(unquote, found.groups()), query, True)
    return self._missing(path)

  def _object(self, bucket, name, query, media):
    server = self.server
    with server.lock:
      stored = server.objects.get((bucket, name))
      if not stored:
        return self._missing(name)
      if self.command == 'DELETE':
        expected = query.get('ifGenerationMatch')
        if expected and int(expected[0]) != stored.generation:
          return self._say(412, {})
        del server.objects[bucket, name]
        return self._say(204)
      if self.command in ('PATCH', 'PUT') or not media:
        return self._say(200, server.describe(bucket, name))
    if int(query.get('generation', [stored.generation])[0]) != stored.generation:
      return self._missing(name)
    data, headers = stored.data, [('x-goog-generation', str(stored.generation))]
    headers += [('Last-Modified', formatdate(stored.made, usegmt=True))]
    headers += [('ETag', str(stored.generation)), ('x-goog-stored-content-length', str(len(data)))]
    unless = query.get('ifGenerationNotMatch')
    if unless and int(unless[0]) == stored.generation:
      return self._say(304, b'', headers)
    wanted = re.match(r'bytes=(\d*)-(\d*)', self.headers.get('Range') or '')
    if not wanted:
      return self._say(200, data, headers)
    first, last = wanted.groups()
    start = int(first) if first else max(0, len(data) - int(last))
    stop = min(len(data), int(last) + 1) if first and last else len(data)
    if start >= len(data):
      return self._say(416, b'', [('Content-Range', f'bytes */{len(data)}')])
    span = ('Content-Range', f'bytes {start}-{stop - 1}/{len(data)}')
    return self._say(206, data[start:stop], [*headers, span])

  def _upload(self, data, bucket, query):
    server = self.server
    if 'upload_id' in query:
      return self._go_on_with_upload(data, query['upload_id'][0])
    kind = query.get('uploadType', ['media'])[0]
    if kind == 'resumable':
      name = query.get('name', [None])[0] or json.loads(data)['name']
      with server.lock:
        number = str(len(server.uploads) + 1)
        server.uploads[number] = bytearray(), bucket, name, query
      place = f'{server.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={number}'
      return self._say(200, b'', [('Location', place)])
    if kind == 'multipart':
      bound = re.search(r'boundary="?([^";]+)', self.headers['Content-Type'])[1].strip("'")
      parts = data.split(b'--' + bound.encode())[1:3]
      # Lines end as the first one does; what ends in a \r of its own keeps that.
      end = b'\r\n' if parts[0].startswith(b'\r\n') else b'\n'
      told, data = (part.split(2 * end, 1)[1].removesuffix(end) for part in parts)
      return self._made(server.put(bucket, json.loads(told)['name'], data, query))
    return self._made(server.put(bucket, query['name'][0], data, query))

  def _go_on_with_upload(self, data, number):
    """Bytes FIRST-LAST of TOTAL, or of '*' when more will come."""
    held, bucket, name, query = self.server.uploads[number]
    span = re.match(r'bytes (?:(\d+)-\d+|\*)/(\d+|\*)', self.headers.get('Content-Range') or '')
    if span and span[1]:
      del held[int(span[1]) :]  # Sent again after a failure.
    held += data
    if not span or (span[2] != '*' and len(held) >= int(span[2])):
      return self._made(self.server.put(bucket, name, bytes(held), query))
    return self._say(308, b'', [('Range', f'bytes=0-{len(held) - 1}')] if held else ())

  def _batch(self, data):
    bound = re.search(r'boundary="?([^";]+)', self.headers['Content-Type'])[1].strip("'")
    answer = ''
    for part in data.decode().split(f'--{bound}')[1:-1]:
      path = urlparse(re.search(r'DELETE (\S+) HTTP', part)[1]).path
      key = tuple(map(unquote, _OBJECT.match(path).groups()))
      number = re.search(r'Content-ID: <?([^>\r\n]+)', part, re.IGNORECASE)
      with self.server.lock:
        status = '204 No Content' if self.server.objects.pop(key, None) else '404 Not Found'
      answer += (
        '--answer\r\nContent-Type: application/http\r\n'
        f'Content-ID: <response-{number[1] if number else ""}>\r\n\r\n'
        f'HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n\r\n'
      )
    kind = ('Content-Type', 'multipart/mixed; boundary=answer')
    return self._say(200, f'{answer}--answer--'.encode(), [kind])

  def _made(self, described):
    return self._say(200, described) if described else self._say(412, {})

  def _missing(self, name):
    return self._say(404, {'error': {'code': 404, 'message': f'No such object: {name}'}})

  def _body(self):
    if length := self.headers.get('Content-Length'):
      return self.rfile.read(int(length))
    whole = b''
    if 'chunked' in (self.headers.get('Transfer-Encoding') or ''):
      while size := int(self.rfile.readline().split(b';')[0], 16):
        whole += self.rfile.read(size)
        self.rfile.readline()
      self.rfile.readline()
    return whole

  def _say(self, status, body=b'', headers=()):
    if isinstance(body, dict):
      body, headers = json.dumps(body).encode(), (*headers, ('Content-Type', 'application/json'))
    self.send_response(status)
    for name, value in headers:
      self.send_header(name, value)
    if status != 204:
      self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    if self.command != 'HEAD' and status not in (204, 304):
      self.wfile.write(body)
      self._sent = len(body)
