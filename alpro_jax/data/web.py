"""Asks the web servers of strangers for files, and no other machine.

Addresses come from captions files that others wrote, so those of private
networks, of this machine and of its cloud are refused. Each host is looked up
once for each request, also after a redirect, and the connection goes to an
address that was checked. A proxy of the environment connects for itself; what
can be looked up here is checked all the same.

That, and a time limit that holds while headers come, need the socket itself,
so this is http.client and no larger library.
"""

import base64
import contextlib
import functools
import http.client
import ipaddress
import socket
import ssl
import string
import threading
import time
import urllib.parse
import urllib.request

from alpro_jax.data import names

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 10
# Where clouds tell a machine its secrets, beside 169.254.169.254, which is
# refused as a link-local one.
_METADATA = {
  ipaddress.ip_address(address)
  for address in (
    'fd00:ec2::254',
    'fd20:ce::254',
    '100.100.100.200',
    '168.63.129.16',
    '192.0.0.192',
  )
}
_NAT64 = ipaddress.ip_network('64:ff9b::/96')  # Holds an IPv4 address.


class Failed(Exception):
  """Why not.

  Attributes:
    reason, detail: what the report says.
    again: whether another try may help: 'now', in a 'later' run, or 'never'.
    wait: seconds for which the host wants to be left alone.
  """

  def __init__(self, reason, detail='', again='never', wait=0.0):
    super().__init__(reason)
    self.reason = reason
    self.detail = str(detail)[:500]
    self.again = again
    self.wait = wait


def may_ask(address, allow_local):
  """Says whether an IP address, as str, may be connected to."""
  ip = ipaddress.ip_address(address.partition('%')[0])
  if ip in _NAT64:
    ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
  if ip.is_link_local or ip.is_multicast or ip.is_unspecified or (ip in _METADATA):
    return False
  if ip.version == 6 and (ip.ipv4_mapped or ip.sixtofour or ip.teredo):
    return False  # Each leads to another address, of version 4.
  return (
    allow_local
    or ip.is_global
    and not (  # Not all of these are local.
      ip.version == 6 and (ip.is_reserved or ip.is_site_local)
    )
  )


class Client:
  """Opens http and https addresses.

  Args:
    timeout_s: seconds without a byte.
    allow_local: also ask hosts with private and loopback addresses; never
      link-local or multicast ones, or a cloud's metadata.
  """

  def __init__(self, timeout_s, *, allow_local=False):
    self._timeout_s = timeout_s
    self._allow_local = allow_local
    self._tls = ssl.create_default_context()
    self._tls.set_alpn_protocols(['http/1.1'])

  @contextlib.contextmanager
  def get(self, url, end):
    """Asks for a file and follows redirects.

    Args:
      url: http or https.
      end: of time.monotonic(), when the connection is cut.
    Yields:
      http.client.HTTPResponse, to be read under `waiting`.
    Raises:
      Failed
    """
    for _ in range(_MOST_REDIRECTS + 1):
      with self._ask(url, end) as answer:
        target = answer.headers.get('Location')
        if answer.status not in _REDIRECTS or target is None:
          yield answer
          return
      with self.waiting(end):
        # http.client reads headers as Latin-1; these give their bytes back.
        url = urllib.parse.urljoin(
          url, urllib.parse.quote(target, safe=string.punctuation, encoding='latin-1')
        )
      if not names.is_address(url):
        raise Failed('redirect refused', url)
    raise Failed('redirect refused', f'more than {_MOST_REDIRECTS}')

  @contextlib.contextmanager
  def waiting(self, end):
    """Gives what fails while the other side is waited for as Failed."""
    try:
      yield
    except http.client.InvalidURL as e:
      raise Failed('bad address', e) from e
    except (OSError, http.client.HTTPException) as e:
      if time.monotonic() >= end:
        raise Failed('too slow', again='now') from e
      if isinstance(e, TimeoutError):
        raise Failed('time-out', f'{self._timeout_s:g} s', 'now') from e
      if isinstance(e, http.client.IncompleteRead):
        raise Failed('truncated', e, 'now') from e
      again = 'later' if isinstance(e, ssl.SSLCertVerificationError) else 'now'
      raise Failed('no connection', f'{type(e).__name__}: {e}', again) from e
    except ValueError as e:
      raise Failed('bad address', e) from e

  @contextlib.contextmanager
  def _ask(self, url, end):
    """Yields the answer to one request."""
    with contextlib.ExitStack() as stack:
      with self.waiting(end):
        connection, target, headers = self._connect(url, end)
        stack.callback(connection.close)
        timer = threading.Timer(max(0.0, end - time.monotonic()), _cut, [connection.sock])
        timer.daemon = True
        timer.start()
        stack.callback(timer.cancel)
        connection.request('GET', target, headers={'User-Agent': 'alpro_jax', **headers})
        answer = stack.enter_context(connection.getresponse())
      yield answer

  def _connect(self, url, end):
    """Returns an open connection, what to ask it for, and further headers."""
    parts = urllib.parse.urlsplit(url)
    if not parts.hostname:
      raise Failed('bad address', url)
    secure = parts.scheme == 'https'
    port = parts.port or (443 if secure else 80)
    there = parts.hostname, port
    target = (parts.path or '/') + (f'?{parts.query}' if parts.query else '')
    target = urllib.parse.quote(target, safe="%/:=&?~+!$,;'@()*[]")
    kind = http.client.HTTPConnection
    if secure:
      kind = functools.partial(http.client.HTTPSConnection, context=self._tls)
    proxy = None
    if not urllib.request.proxy_bypass(parts.hostname):
      proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy:
      connection = kind(*there)
      connection.sock = self._socket(*there, end)
      if secure:
        connection.sock.settimeout(self._patience(end))
        connection.sock = self._tls.wrap_socket(connection.sock, server_hostname=parts.hostname)
      return connection, target, {}
    with contextlib.suppress(socket.gaierror):  # The proxy may know it.
      self._addresses(*there)
    via = urllib.parse.urlsplit(proxy if '://' in proxy else f'http://{proxy}')
    if via.scheme != 'http':
      raise Failed('no connection', 'its proxy is not http://', 'later')
    headers = {}
    if via.username:
      word = urllib.parse.unquote(f'{via.username}:{via.password or ""}')
      headers['Proxy-Authorization'] = f'Basic {base64.b64encode(word.encode()).decode()}'
    connection = kind(via.hostname, via.port or 80, timeout=self._patience(end))
    if secure:
      connection.set_tunnel(*there, headers=headers)
      headers = {}
    else:
      target = f'http://{parts.netloc.rpartition("@")[2]}{target}'
    connection.connect()
    return connection, target, headers

  def _socket(self, host, port, end):
    for address in self._addresses(host, port):
      try:
        return socket.create_connection((address, port), self._patience(end))
      except OSError as e:
        error = e
    raise error

  def _addresses(self, host, port):
    """Returns the IP addresses of a host that may be asked."""
    found = [address[0] for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    allowed = [x for x in found if may_ask(x, self._allow_local)]
    if not allowed:
      raise Failed('local address refused', f'{host} is {found[0]}', 'later')
    return allowed

  def _patience(self, end):
    """Returns the seconds to wait for the next answer."""
    left = end - time.monotonic()
    if left <= 0:
      raise TimeoutError
    return min(left, self._timeout_s)


def _cut(sock):
  """Ends a connection under whoever is reading from it."""
  with contextlib.suppress(OSError):
    # An SSLSocket's own shutdown is not for two threads at once.
    socket.socket.shutdown(sock, socket.SHUT_RDWR)
