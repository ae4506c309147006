"""What stands before the server of a search: who is answered, how much is taken."""

import functools
import hmac
import time

import fastapi
import prometheus_client
from fastapi import responses

MOST_BYTES = 64 << 20  # Of an upload.
_MOST_IN_FLIGHT = 64


class Guard:
  """Refuses, before anything is read, what no user of this server asks; counts the rest."""

  def __init__(self, app, *, hosts: frozenset[str], token: str):
    self._app, self._hosts, self._token = app, hosts, token
    self.in_flight, self._registry = 0, prometheus_client.CollectorRegistry()
    self._seconds = prometheus_client.Histogram(
      'search_request_seconds', 'To the end.', ('route', 'status'), registry=self._registry
    )
    flying = prometheus_client.Gauge(
      'search_requests_in_flight', 'At work.', registry=self._registry
    )
    flying.set_function(lambda: self.in_flight)

  async def __call__(self, scope, receive, send):
    if scope['type'] != 'http':
      return await self._app(scope, receive, send)
    request, start = fastapi.Request(scope), time.monotonic()
    read, status = 0, 500

    async def limited():
      nonlocal read
      message = await receive()
      read += len(message.get('body', b''))
      if read > MOST_BYTES:
        raise fastapi.HTTPException(413, _TOO_LARGE)
      return message

    async def watched(message):
      nonlocal status
      if message['type'] == 'http.response.start':
        status = message['status']
        message = message | {'headers': [*message['headers'], *_HEADERS]}
      await send(message)

    refusal = self._refuse(request)
    self.in_flight += 1
    try:
      await (refusal or self._app)(scope, limited, watched)
    finally:
      self.in_flight -= 1
      route = getattr(scope.get('route'), 'path', 'none')
      self._seconds.labels(route, status).observe(time.monotonic() - start)

  def _refuse(self, request):
    """Returns a response, or None."""
    asked, head = request.headers, functools.partial(responses.JSONResponse, status_code=403)
    if self._hosts and asked.get('host', '') not in self._hosts:
      return head({'detail': f'this server is not {asked.get("host")!r}.'})
    origin = asked.get('origin')
    # The scheme is another where TLS ends before this server.
    if origin and origin.partition('://')[2] != asked.get('host'):
      return head({'detail': f'requests of {origin[:200]!r} are refused.'})
    if asked.get('sec-fetch-site', 'none') in ('cross-site', 'same-site') and not (
      request.url.path == '/' and asked.get('sec-fetch-mode') == 'navigate'
    ):
      return head({'detail': 'requests of other sites are refused.'})
    if self._token:
      given = asked.get('authorization', '').removeprefix('Bearer ')
      given = given or request.cookies.get('token', '')
      by_link = request.query_params.get('token', '')
      if request.url.path == '/' and _same(by_link, self._token):
        response = responses.RedirectResponse('/', 303)
        response.set_cookie('token', self._token, httponly=True, samesite='strict')
        return response
      if not _same(given, self._token):
        return head({'detail': 'a token is needed: Authorization: Bearer ...'}, status_code=401)
    if int(asked.get('content-length', '0') or 0) > MOST_BYTES:
      return head({'detail': _TOO_LARGE}, status_code=413)
    if self.in_flight >= _MOST_IN_FLIGHT:
      return head(
        {'detail': 'too many requests at once; ask again.'},
        status_code=503,
        headers={'retry-after': '1'},
      )
    return None

  def metrics(self):
    """What it did, as Prometheus reads it."""
    return responses.PlainTextResponse(prometheus_client.generate_latest(self._registry))


_TOO_LARGE = f'more than {MOST_BYTES >> 20} MB are not taken.'
_HEADERS = [
  (b'x-content-type-options', b'nosniff'),
  (b'referrer-policy', b'no-referrer'),
  (b'cross-origin-resource-policy', b'same-origin'),
]


def _same(given, wanted):
  return hmac.compare_digest(given.encode(), wanted.encode())
