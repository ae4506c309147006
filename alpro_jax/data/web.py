"""Asks the web servers of strangers for files, and no other machine.

Addresses come from captions files that others wrote, so those of private
networks, of this machine and of its cloud are refused. Each host is looked up
once for each request, also after a redirect, and the connection goes to an
address that was checked. A proxy of the environment connects for itself; what
can be looked up here is checked all the same.
"""

import asyncio
import contextlib
import contextvars
import email.utils
import functools
import ipaddress
import socket
import ssl
import string
import time
import urllib.parse
import urllib.request

import aiohttp
import yarl

LONGEST_WAIT = 600.0  # Seconds for which a host may ask not to be asked.
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 10
# Where clouds tell a machine its secrets, beside 169.254.169.254, which is
# refused as a link-local one.
_METADATA = ['fd00:ec2::254', 'fd20:ce::254', '100.100.100.200', '168.63.129.16', '192.0.0.192']
_METADATA = set(map(ipaddress.ip_address, _METADATA))
_NAT64 = ipaddress.ip_network('64:ff9b::/96')  # Holds an IPv4 address.
# The first that an error is one of counts: its reason, and whether to try again.
_ERRORS = [
  (aiohttp.InvalidURL, 'bad address', 'never'),
  (aiohttp.ClientPayloadError, 'truncated', 'now'),
  (aiohttp.ServerTimeoutError, 'time-out', 'now'),
  (TimeoutError, 'too slow', 'now'),
  (aiohttp.ClientConnectorCertificateError, 'no connection', 'later'),
  ((aiohttp.ClientError, socket.gaierror), 'no connection', 'now'),
]
# Of the host that is being asked; None if a proxy is.
_addresses = contextvars.ContextVar('addresses', default=None)


class Failed(Exception):
  """Why not.

  Attributes:
    reason, detail: what the report says.
    again: whether another try may help: 'now', in a 'later' run, or 'never'.
    wait: seconds for which the host wants to be left alone.
  """

  def __init__(self, reason, detail='', again='never', wait=0.0):
    super().__init__(reason)
    self.reason, self.detail = reason, str(detail)[:500]
    self.again, self.wait = again, wait


def failure(error):
  """Returns the Failed of an error of the network, None of any other."""
  for kind, reason, again in _ERRORS:
    if isinstance(error, kind):
      return Failed(reason, f'{type(error).__name__}: {error}', again)
  return None


def refusal(answer):
  """Returns the Failed of an answer whose status is not the one that was wanted."""
  again = 'now' if answer.status in _AGAIN else 'never'
  wait = _retry_after(answer.headers.get('Retry-After'))
  return Failed(f'HTTP {answer.status}', answer.reason, again, wait)


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


def may_ask(address, allow_local):
  """Says whether an IP address, as str, may be connected to."""
  ip = ipaddress.ip_address(address.partition('%')[0])
  if ip in _NAT64:
    ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
  if ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip in _METADATA:
    return False
  if ip.version == 6 and (ip.ipv4_mapped or ip.sixtofour or ip.teredo):
    return False  # Each leads to another address, of version 4.
  # Not all reserved ones are local.
  reserved = ip.version == 6 and (ip.is_reserved or ip.is_site_local)
  return allow_local or ip.is_global and not reserved


@contextlib.asynccontextmanager
async def client(timeout_s, allow_local):
  """Opens http and https addresses, and no body of an answer.

  Args:
    timeout_s: seconds without a byte.
    allow_local: also ask hosts with private and loopback addresses; never
      link-local or multicast ones, or a cloud's metadata.
  Yields:
    get(url, headers={}), the context of an aiohttp.ClientResponse. It follows
    redirects, and raises Failed or what `failure` knows.
  """
  connector = aiohttp.TCPConnector(
    ssl=ssl.create_default_context(),
    resolver=_Resolver(),
    use_dns_cache=False,
    limit=0,
    force_close=True,
  )
  async with aiohttp.ClientSession(
    connector=connector,
    headers={'User-Agent': 'alpro_jax', 'Accept-Encoding': 'identity'},
    timeout=aiohttp.ClientTimeout(sock_connect=timeout_s, sock_read=timeout_s),
    cookie_jar=aiohttp.DummyCookieJar(),
    auto_decompress=False,
    max_line_size=1 << 16,
    max_field_size=1 << 16,
  ) as session:
    yield functools.partial(_get, session, allow_local)


@contextlib.asynccontextmanager
async def _get(session, allow_local, url, headers=None):
  for _ in range(_MOST_REDIRECTS + 1):
    try:
      url = yarl.URL(url)
      proxy = await _check(url, allow_local)
    except ValueError as e:
      raise Failed('bad address', e) from e
    async with session.get(url, headers=headers, proxy=proxy, allow_redirects=False) as answer:
      target = answer.headers.get('Location')
      if answer.status not in _REDIRECTS or target is None:
        yield answer
        return
    # Bytes that are not ASCII stay what they are.
    target = target.encode('utf-8', 'surrogateescape')
    url = urllib.parse.urljoin(str(url), urllib.parse.quote(target, safe=string.punctuation))
    if urllib.parse.urlsplit(url).scheme not in ('http', 'https'):
      raise Failed('redirect refused', url)
  raise Failed('redirect refused', f'more than {_MOST_REDIRECTS}')


async def _check(url, allow_local):
  """Refuses a host without an address that may be asked; returns its proxy, or None."""
  if not url.raw_host:
    raise Failed('bad address', url)
  proxy = None
  if not urllib.request.proxy_bypass(url.raw_host):
    proxy = urllib.request.getproxies().get(url.scheme)
  loop, found = asyncio.get_running_loop(), []
  try:
    found = await loop.getaddrinfo(url.raw_host, url.port, type=socket.SOCK_STREAM)
  except socket.gaierror:
    if not proxy:  # Which may know it.
      raise
  allowed = [entry for entry in found if may_ask(entry[4][0], allow_local)]
  if found and not allowed:
    raise Failed('local address refused', f'{url.host} is {found[0][4][0]}', 'later')
  _addresses.set(None if proxy else allowed)
  return proxy and (proxy if '://' in proxy else f'http://{proxy}')


class _Resolver(aiohttp.ThreadedResolver):
  """Knows the addresses that were checked, and looks up none but proxies."""

  async def resolve(self, host, port=0, family=socket.AF_UNSPEC):
    if _addresses.get() is None:
      return await super().resolve(host, port, family)
    return [
      {
        'hostname': host,
        'host': address[0],
        'port': port,
        'family': family,
        'proto': proto,
        'flags': socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
      }
      for family, _, proto, _, address in _addresses.get()
    ]
