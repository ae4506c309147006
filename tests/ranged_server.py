"""A server of files on loopback that gives parts, as Google's storage and others do."""

import base64
import contextlib
import hashlib
import http.server
import threading


class _Handler(http.server.BaseHTTPRequestHandler):
  def do_GET(self):
    server, name = self.server, self.path.removeprefix('/')
    asked = self.headers.get('Range', '')
    server.asked.append((name, asked))
    if name not in server.files:
      return self.send_error(404)
    body = server.files[name]
    # Before the answer begins: who has read its headers may ask again.
    length = server.breaks_after.pop(0) if server.breaks_after else None
    tag = f'"{hashlib.sha1(body).hexdigest()}"'
    first = 0
    if asked and server.gives_parts and self.headers.get('If-Range') in (None, tag):
      first = int(asked.removeprefix('bytes=').removesuffix('-'))
    self.send_response(206 if first else 200)
    if first:
      self.send_header('Content-Range', f'bytes {first}-{len(body) - 1}/{len(body)}')
    self.send_header('Content-Length', str(len(body) - first))
    for header, value in server.headers(tag, body).items():
      self.send_header(header, value)
    self.end_headers()
    part = body[first:][:length]
    with contextlib.suppress(OSError):  # The other side left.
      self.wfile.write(part)

  def log_message(self, *args):
    pass


def _headers(tag, body):
  md5 = base64.b64encode(hashlib.md5(body).digest()).decode()
  return {'ETag': tag, 'x-goog-hash': f'crc32c=AAAAAA==,md5={md5}'}


@contextlib.contextmanager
def serve(files):
  """Yields the server of {name: bytes}.

  Its attributes may be changed: `files`; `gives_parts`; `breaks_after`, the bytes after
  which each of the next answers ends too early; `headers(tag, body)`. `asked` has what was
  asked for, as (name, Range).
  """
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Handler) as server:
    server.files, server.asked, server.breaks_after = dict(files), [], []
    server.gives_parts, server.headers = True, _headers
    server.address = f'http://127.0.0.1:{server.server_port}'
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
