"""What stands before the server of a search: who is answered, how much is taken."""

import hmac
import time

import fastapi
from fastapi import HTTPException, responses
from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest

MOST_BYTES = 64 << 20  # Of an upload.
_MOST_IN_FLIGHT = 64
_OTHERS = ('cross-site', 'same-site')


class Guard:
  """Refuses, before anything is read, what no user of this server asks; counts the rest."""

  def __init__(self, app, *, hosts: frozenset[str], token: str):
    self._app, self._hosts, self._token = app, hosts, token
    self.in_flight, self._registry = 0, CollectorRegistry()
    self._seconds = Histogram(
      'search_request_seconds', 'To the end.', ('route', 'status'), registry=self._registry
    )
    flying = Gauge('search_requests_in_flight', 'At work.', registry=self._registry)
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
        raise HTTPException(413, _TOO_LARGE)
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
    asked, path = request.headers, request.url.path
    host, origin, site = (asked.get(x, '') for x in ('host', 'origin', 'sec-fetch-site'))
    # The scheme is another where TLS ends before this server.
    strange = origin and origin.partition('://')[2] != host
    visit = path == '/' and asked.get('sec-fetch-mode') == 'navigate'
    linked = path == '/' and self._knows(request.query_params.get('token', ''))
    given = asked.get('authorization', '').removeprefix('Bearer ')
    given = given or request.cookies.get('token', '')
    for status, why, wrong in (
      (403, f'this server is not {host!r}.', self._hosts and host not in self._hosts),
      (403, f'requests of {origin[:200]!r} are refused.', strange),
      (403, 'requests of other sites are refused.', site in _OTHERS and not visit),
      (401, 'a token is needed: Authorization: Bearer ...', not (linked or self._knows(given))),
      (413, _TOO_LARGE, int(asked.get('content-length') or 0) > MOST_BYTES),
      (503, 'too many requests at once; ask again.', self.in_flight >= _MOST_IN_FLIGHT),
    ):
      if wrong:
        headers = {'retry-after': '1'} if status == 503 else None
        return responses.JSONResponse({'detail': why}, status, headers)
    if self._token and linked:
      response = responses.RedirectResponse('/', 303)
      response.set_cookie('token', self._token, httponly=True, samesite='strict')
      return response
    return None

  def _knows(self, token):
    return not self._token or hmac.compare_digest(token.encode(), self._token.encode())

  def metrics(self):
    """What it did, as Prometheus reads it."""
    return responses.PlainTextResponse(generate_latest(self._registry))


_TOO_LARGE = f'more than {MOST_BYTES >> 20} MB are not taken.'
_HEADERS = [
  (b'x-content-type-options', b'nosniff'),
  (b'referrer-policy', b'no-referrer'),
  (b'cross-origin-resource-policy', b'same-origin'),
]
