"""Downloads: what is wanted arrives whole, what does not is named."""

import asyncio
import gzip
import http.server
import json
import pathlib
import socket
import ssl
import threading
import time
from asyncio.selector_events import BaseSelectorEventLoop
from collections import Counter

import pytest

from alpro_jax.data import fetch, sources, web
from alpro_jax.data.names import file_of
from tests.test_verify import launch_prepare

BODY = b'\0\0\0\x08ftyp\0\0\x46\x58mdat' + b'not really a video' * 1000


CERTIFICATE = pathlib.Path(__file__).with_name('video_test.pem')


class _Handler(http.server.BaseHTTPRequestHandler):
  """Answers by the first part of the path, and counts."""

  def do_GET(self):
    what = self.path.split('/')[1]
    self.server.seen[self.path] += 1
    first = self.server.seen[self.path] == 1
    if what == 'gone':
      return self.send_error(404, 'gone \x1b[2J\x9b2J\x07')
    if what == 'shaky' and first:
      return self.send_error(500)
    if (what == 'busy' and first) or what == 'never':
      self.send_response(429)
      self.send_header('Retry-After', '1')
      self.send_header('Content-Length', '0')
      return self.end_headers()
    if what in ('away', 'moved', 'inside', 'round'):
      self.send_response(302)
      self.send_header(
        'Location',
        {
          'away': 'file:///etc/passwd',
          'moved': '/ok/moved.mp4',
          'round': self.path,
          'inside': f'http://127.0.0.1:{self.server.server_port}/ok/secret',
        }[what],
      )
      self.send_header('Content-Length', '0')
      return self.end_headers()
    if what == 'slow':
      time.sleep(1.5)
    if what == 'drip':
      return self.drip()
    body, headers = self.server.pages.get(what, (BODY, {}))
    self.send_response(206 if what == 'range' else 200)
    for name, value in headers.items():
      self.send_header(name, value)
    if what in ('chunked', 'unfinished'):
      self.send_header('Transfer-Encoding', 'chunked')
      self.end_headers()
      end = b'0\r\n\r\n' if what == 'chunked' else b''
      return self.wfile.write(b'%x\r\n%b\r\n' % (len(body), body) + end)
    if what not in ('unsized', 'snapped'):
      self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    if what in ('cut', 'snapped') or (what == 'torn' and first):
      body = body[:100]
    try:
      self.wfile.write(body)
    except OSError:
      pass  # The other side left.

  def do_CONNECT(self):
    """Is the proxy of video.test, and that as well."""
    self.server.seen[self.path] += 1
    if self.path != 'video.test:443':
      return self.send_error(403)
    self.server.told.append(self.headers['Proxy-Authorization'])
    self.send_response(200)
    self.end_headers()
    with certified().wrap_socket(self.connection, server_side=True) as secure:
      self.server.told.append(secure.recv(9999))
      secure.sendall(b'HTTP/1.0 200 OK\r\n\r\n' + BODY)

  def drip(self):
    """Sends a header that never ends, or would not for ten seconds."""
    try:
      self.wfile.write(b'HTTP/1.0 200 OK\r\nX: ')
      for _ in range(200):
        self.wfile.write(b'x')
        time.sleep(0.05)
    except OSError:
      self.server.seen['left'] += 1

  def log_message(self, *args):
    pass


def certified():
  """The TLS context of a server called video.test."""
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  context.load_cert_chain(CERTIFICATE)
  return context


def page(body, kind=None, **headers):
  """An answer as _Handler.pages has it."""
  return body, {**({'Content-Type': kind} if kind else {}), **headers}


PAGES = {
  'html': page(b'<!DOCTYPE html><h1>Not found</h1>', 'text/html'),
  'liar': page(b'<html>' + b' ' * 9999, 'video/mp4'),
  'json': page(b'{"error": "expired"}', 'application/json'),
  'gzip': page(gzip.compress(BODY), 'video/mp4', **{'Content-Encoding': 'gzip'}),
  'brotli': page(b'\x8b\0\x80' + bytes(99), 'video/mp4', **{'Content-Encoding': 'br'}),
  'bytes': page(bytes(999), 'application/octet-stream\x1b[2J'),
  'nothing': page(b''),
}
GOOD = {
  'wrong': page(BODY, 'text/html'),  # The bytes say it, not the header.
  'rare': page(bytes(999), 'video/x-rare'),
  'photo': page(b'\xff\xd8\xff\xe0' + bytes(999), 'image/jpeg'),
}


@pytest.fixture(scope='module')
def running():
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Handler) as server:
    server.seen = Counter()
    server.pages = {}
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()


@pytest.fixture
def server(running, monkeypatch):
  monkeypatch.setenv('no_proxy', '127.0.0.1')
  running.seen.clear()
  running.pages = {**PAGES, **GOOD}
  return running


def url(server, path):
  return f'http://127.0.0.1:{server.server_port}/{path}'


def write(tmp_path, rows):
  path = tmp_path / 'captions.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def get(server, tmp_path, paths, **limits):
  """Fetches into 0.mp4, 1.mp4 and so on; returns reasons by path."""
  videos = [fetch.Video(url(server, path), f'{i}.mp4') for i, path in enumerate(paths)]
  found = fetch.fetch(
    videos,
    tmp_path / 'videos',
    limits=fetch.Limits(**{'wait_s': 0.01, 'tries': 3, 'timeout_s': 5.0, **limits}),
    allow_local=True,
  )
  assert not list((tmp_path / 'videos').glob('**/*unfinished*'))
  return {path: found[video] for path, video in zip(paths, videos, strict=True)}


def test_what_fails_is_tried_again_if_that_may_help(server, tmp_path):
  found = get(
    server,
    tmp_path,
    [
      'ok/a',
      'unsized/a',
      'shaky/a',
      'torn/a',
      'moved/a',
      'gone/a',
      'cut/a',
      'away/a',
      'öl/ü b.mp4?q=ä',
      'snapped/a',
      'chunked/a',
      'unfinished/a',
    ],
  )
  assert found == {
    'ok/a': '',
    'unsized/a': '',
    'shaky/a': '',
    'torn/a': '',
    'moved/a': '',
    'gone/a': 'HTTP 404',
    'cut/a': 'truncated',
    'away/a': 'redirect refused',
    'öl/ü b.mp4?q=ä': '',
    'snapped/a': 'truncated',
    'chunked/a': '',
    'unfinished/a': 'truncated',
  }
  assert (
    server.seen['/gone/a'],
    server.seen['/cut/a'],
    server.seen['/torn/a'],
    server.seen['/away/a'],
  ) == (1, 3, 2, 1)
  folder = tmp_path / 'videos'
  there = sorted(path.name for path in folder.glob('*.mp4'))
  assert there == [f'{i}.mp4' for i in (0, 1, 10, 2, 3, 4, 8)]
  assert all((folder / name).read_bytes() == BODY for name in there)


def test_limits(server, tmp_path):
  assert get(server, tmp_path, ['slow/a'], timeout_s=0.2, tries=2) == {'slow/a': 'time-out'}
  assert get(server, tmp_path, ['ok/a', 'unsized/b'], max_bytes=1000) == {
    'ok/a': 'too large',
    'unsized/b': 'too large',
  }
  start = time.monotonic()
  assert get(server, tmp_path, ['slow/a', 'busy/b']) == {'slow/a': '', 'busy/b': ''}
  assert time.monotonic() - start > 1  # Retry-After.
  for address in ('file:///etc/passwd', 'ftp://127.0.0.1/x'):
    video = fetch.Video(address, 'x.mp4')
    assert fetch.fetch([video], tmp_path / 'videos') == {video: 'not http or https'}
  nobody = fetch.Video('http://127.0.0.1:1/x', 'y.mp4')
  assert fetch.fetch(
    [nobody], tmp_path / 'videos', limits=fetch.Limits(tries=2, wait_s=0.01), allow_local=True
  ) == {nobody: 'no connection'}


def test_a_second_call_does_what_is_missing(server, tmp_path):
  paths = ['ok/a', 'gone/a', 'cut/a']
  first = get(server, tmp_path, paths, tries=1)
  resume = tmp_path / 'videos' / fetch.RESUME
  resume.write_text(resume.read_text() + '{"url": "cut o')  # By a kill.
  assert get(server, tmp_path, paths, tries=1) == first
  assert server.seen == {'/ok/a': 1, '/gone/a': 1, '/cut/a': 2}
  (tmp_path / 'videos/0.mp4').unlink()
  get(server, tmp_path, paths, tries=1)
  assert server.seen == {'/ok/a': 2, '/gone/a': 1, '/cut/a': 3}
  fetch.fetch(
    [fetch.Video(url(server, 'gone/a'), '1.mp4')],
    tmp_path / 'videos',
    retry_failed=True,
    allow_local=True,
  )
  assert server.seen['/gone/a'] == 2


def test_a_file_of_another_address_is_not_taken_for_it(server, tmp_path):
  def ask(path):
    return fetch.fetch(
      [fetch.Video(url(server, path), 'x.mp4')], tmp_path / 'videos', allow_local=True
    )

  assert list(ask('ok/one').values()) == ['']
  for _ in range(2):
    assert list(ask('ok/two').values()) == ['same name']
  assert list(ask('ok/one').values()) == [''] and server.seen == {'/ok/one': 1}
  (tmp_path / 'videos/x.mp4').unlink()
  assert list(ask('ok/two').values()) == ['']
  assert list(ask('ok/one').values()) == ['same name']
  (tmp_path / 'videos' / fetch.RESUME).unlink()  # Then it may be the user's own.
  assert list(ask('ok/one').values()) == ['']


def test_so_many_at_once_from_one_host(server, tmp_path, monkeypatch):
  active, most = [], []

  async def download(client, address, limits, partial, path):
    active.append(path)
    most.append(len(active))
    await asyncio.sleep(0.05)
    active.remove(path)
    return 1

  monkeypatch.setattr(fetch, '_download', download)
  get(server, tmp_path, [f'ok/{i}' for i in range(8)], threads=6, per_host=2)
  assert max(most) == 2 and len(most) == 8
  assert fetch._host('http://me:a@H.test:80/a') == fetch._host('http://h.test')


def test_a_full_disk_stops_all(server, tmp_path, monkeypatch):
  def no_space(*args):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(fetch.os, 'replace', no_space)
  with pytest.raises(OSError, match='No space'):
    get(server, tmp_path, [f'ok/{i}' for i in range(99)], threads=2)
  assert sum(server.seen.values()) < 9
  monkeypatch.undo()
  assert not any(get(server, tmp_path, ['ok/0', 'ok/1']).values())


def test_an_error_that_nobody_thought_of_is_named(server, tmp_path, monkeypatch, capsys):
  download = fetch._download

  async def odd(client, address, *args):
    if address.endswith('1'):
      raise LookupError('odd')
    return await download(client, address, *args)

  monkeypatch.setattr(fetch, '_download', odd)
  assert get(server, tmp_path, ['ok/0', 'ok/1', 'ok/2'], threads=1) == {
    'ok/0': '',
    'ok/1': 'failed',
    'ok/2': '',
  }
  assert 'failed (LookupError: odd)' in capsys.readouterr().err


def test_names_stay_in_the_folder(tmp_path):
  path = write(
    tmp_path,
    [
      {'video': 'https://h/a/..%2F..%2Fetc%2Fpasswd', 'caption': 'x'},
      {'video': 'https://h/%00/日本 語.webm', 'caption': 'x'},
      {'video': 'https://h/..', 'caption': 'x'},
      {'video': 'https://h/..', 'caption': 'again'},
      {'video': 'https://h/' + 'y' * 999 + '.mp4?x=/z.avi', 'caption': 'x'},
      {'video': '../a.mp4', 'url': 'https://h/1', 'caption': 'x'},
      {'video': '/a.mp4', 'url': 'https://h/2', 'caption': 'x'},
      {'videoid': '../12', 'contentUrl': 'https://h/3', 'caption': 'x'},
      {'videoid': 12, 'page_dir': '00_05', 'contentUrl': 'https://h/4'},
      {'video': 'b.mp4', 'url': 'https://h/5', 'caption': 'x'},
      {'video': 'b.mp4', 'url': 'https://h/6', 'caption': 'x'},
      {'video': 'fetched.jsonl', 'url': 'https://h/7', 'caption': 'x'},
      {'video': 'there.mp4', 'caption': 'x'},
      {'video': 'https://h/8', 'video_id': 'x'},
    ],
  )
  videos, skipped, rows = fetch.read_videos(path)
  names = [video.name for video in videos]
  assert rows == 14 and [row.reason for row in skipped] == [
    'bad row',
    'bad row',
    'bad row',
    'same name',
    'bad row',
  ]
  assert names[4:6] == ['00_05/12.mp4', 'b.mp4']
  assert names[6:] == [file_of('https://h/8')]
  assert names[0].startswith('passwd-') and names[1].startswith('日本_語-')
  assert names[1].endswith('.webm') and names[2].startswith('video-')
  assert all('/' not in name and len(name.encode()) < 200 for name in names[:4])
  # Preparing looks for the same files.
  clips = sources.read_folder(
    write(tmp_path, [{'video': video.url, 'caption': 'x'} for video in videos[:4]])
  ).clips
  assert [clip.video for clip in clips] == names[:4]


def test_links_do_not_lead_out(server, tmp_path):
  (tmp_path / 'videos').mkdir()
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'videos/page').symlink_to(tmp_path / 'elsewhere')
  video = fetch.Video(url(server, 'ok/a'), 'page/a.mp4')
  assert fetch.fetch([video], tmp_path / 'videos') == {video: 'outside the folder of videos'}
  assert not list((tmp_path / 'elsewhere').iterdir())


def test_what_is_no_video_is_not_kept(server, tmp_path):
  paths = [*PAGES, 'range', *GOOD]
  reasons = (
    {path: 'not a video' for path in PAGES}
    | {'nothing': 'empty', 'range': 'truncated'}
    | dict.fromkeys(GOOD, '')
  )
  assert get(server, tmp_path, paths, tries=1) == reasons
  folder = tmp_path / 'videos'
  assert {path.name for path in folder.glob('*.mp4')} == {
    f'{paths.index(path)}.mp4' for path in GOOD
  }
  log = (folder / fetch.RESUME).read_text()
  assert 'HTML page, Content-Type: text/html' in log
  server.pages = {}  # All is well the next time.
  found = get(server, tmp_path, paths, tries=1)
  assert found == {**dict.fromkeys(paths, ''), 'range': 'truncated'}
  assert [server.seen[f'/{path}'] for path in paths] == ([2] * (len(PAGES) + 1) + [1] * len(GOOD))


def test_pages_that_were_kept_are_fetched_again(server, tmp_path):
  folder = tmp_path / 'videos'
  folder.mkdir()
  paths = [f'ok/{i}' for i in range(5)]
  own = bytes(99)  # Of no known kind, and perhaps the user's.
  bodies = [body for body, _ in PAGES.values()][:4] + [own]
  with open(folder / fetch.RESUME, 'w') as log:
    for i, body in enumerate(bodies):
      (folder / f'{i}.mp4').write_bytes(body)
      log.write(
        json.dumps({'url': url(server, paths[i]), 'name': f'{i}.mp4', 'bytes': len(body)}) + '\n'
      )
  assert not any(get(server, tmp_path, paths).values())
  assert [(folder / f'{i}.mp4').read_bytes() for i in range(5)] == ([BODY] * 4 + [own])


@pytest.mark.parametrize(
  'host',
  [
    '127.0.0.1',
    '127.1',
    '2130706433',
    'localhost',
    '10.1.2.3',
    '172.16.0.1',
    '192.168.0.1',
    '100.64.0.1',
    '169.254.169.254',
    '100.100.100.200',
    '168.63.129.16',
    '0.0.0.0',
    '224.0.0.1',
    '255.255.255.255',
    '[::1]',
    '[::]',
    '[::ffff:127.0.0.1]',
    '[::ffff:8.8.8.8]',
    '[::127.0.0.1]',
    '[fe80::1]',
    '[fd00:ec2::254]',
    '[fc00::1]',
    '[fec0::1]',
    '[ff02::1]',
    '[64:ff9b::10.0.0.1]',
    '[64:ff9b::169.254.169.254]',
    '[2002:7f00:1::]',
  ],
)
def test_local_addresses_are_refused(tmp_path, monkeypatch, host):
  asked = []
  monkeypatch.setattr(BaseSelectorEventLoop, 'sock_connect', lambda *args: asked.append(args))
  video = fetch.Video(f'http://{host}:8080/a', 'a.mp4')
  assert fetch.fetch([video], tmp_path) == {video: 'local address refused'}
  assert not asked
  # Whoever asks for it then gets it from the next run.
  assert '"again": true' in (tmp_path / fetch.RESUME).read_text()


def test_local_addresses_for_who_wants_them():
  assert [
    web.may_ask(address, True)
    for address in ('127.0.0.1', '10.1.2.3', '::1', 'fc00::1', '100.64.0.1', '8.8.8.8')
  ] == ([True] * 6)
  assert not any(
    web.may_ask(address, True)
    for address in (
      '169.254.169.254',
      '100.100.100.200',
      'fd00:ec2::254',
      'fe80::1%eth0',
      '0.0.0.0',
      '::',
      '224.0.0.1',
      'ff02::1',
      '::ffff:127.0.0.1',
    )
  )
  assert all(
    web.may_ask(address, False) for address in ('8.8.8.8', '2606:4700::1111', '64:ff9b::8.8.8.8')
  )


@pytest.fixture
def outside(server, monkeypatch):
  """Makes the server one of the internet, called video.test, too.

  Its name has a public address when it is looked up first, then a local one.
  """
  look_up, connect = socket.getaddrinfo, BaseSelectorEventLoop.sock_connect
  server.looked_up = []

  def getaddrinfo(host, *args, **options):
    if host == 'video.test':
      host = '127.0.0.1' if server.looked_up else '8.8.8.8'
      server.looked_up.append(host)
    return look_up(host, *args, **options)

  async def sock_connect(loop, sock, address):
    if address[0] == '8.8.8.8':
      address = '127.0.0.1', address[1]
    return await connect(loop, sock, address)

  monkeypatch.setattr(socket, 'getaddrinfo', getaddrinfo)
  monkeypatch.setattr(BaseSelectorEventLoop, 'sock_connect', sock_connect)
  monkeypatch.setenv('no_proxy', '127.0.0.1,video.test')
  return server


def test_what_is_checked_is_connected_to(outside, tmp_path):
  """And not what a second look at the name's address would give."""
  video = fetch.Video(f'http://video.test:{outside.server_port}/ok/a', 'a.mp4')
  assert fetch.fetch([video], tmp_path) == {video: ''}
  assert outside.looked_up == ['8.8.8.8']
  again = fetch.Video(f'http://video.test:{outside.server_port}/ok/b', 'b.mp4')
  assert fetch.fetch([again], tmp_path) == {again: 'local address refused'}
  assert outside.seen['/ok/b'] == 0


def test_redirects_do_not_lead_inside(outside, tmp_path):
  videos = [
    fetch.Video(f'http://video.test:{outside.server_port}/{path}/a', 'a.mp4')
    for path in ('inside', 'round')
  ]
  assert fetch.fetch(videos[:1], tmp_path) == {videos[0]: 'local address refused'}
  assert outside.seen == {'/inside/a': 1}
  assert fetch.fetch(videos[1:], tmp_path, allow_local=True) == {videos[1]: 'redirect refused'}


def test_certificates_are_checked(outside, tmp_path, monkeypatch):
  context, names = certified(), []
  context.sni_callback = lambda sock, name, context: names.append(name)
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Handler) as secure:
    secure.seen, secure.pages = Counter(), {}
    secure.socket = context.wrap_socket(secure.socket, server_side=True)
    secure.handle_error = lambda *args: None  # Of a client that left.
    thread = threading.Thread(target=secure.serve_forever, args=(0.05,))
    thread.start()
    port, limits = secure.server_port, fetch.Limits(tries=1, timeout_s=5)
    video = fetch.Video(f'https://video.test:{port}/ok/a', 'a.mp4')
    other = fetch.Video(f'https://127.0.0.1:{port}/ok/b', 'b.mp4')
    strange = fetch.fetch([video], tmp_path, limits=limits)
    monkeypatch.setenv('SSL_CERT_FILE', str(CERTIFICATE))
    found = fetch.fetch([video, other], tmp_path, limits=limits, allow_local=True)
    secure.shutdown()
    thread.join()
  assert strange == {video: 'no connection'}
  assert found == {video: '', other: 'no connection'}
  assert secure.seen == {'/ok/a': 1} and 'video.test' in names


def test_through_a_proxy(outside, tmp_path, monkeypatch):
  server = outside
  monkeypatch.delenv('no_proxy')
  proxy = f'http://me:word@127.0.0.1:{server.server_port}'
  monkeypatch.setenv('http_proxy', proxy)
  monkeypatch.setenv('https_proxy', proxy)
  monkeypatch.setenv('SSL_CERT_FILE', str(CERTIFICATE))
  server.told = []
  videos = [
    fetch.Video(f'{address}/ok/a', f'{i}.mp4')
    for i, address in enumerate(
      ['http://8.8.8.8', 'https://8.8.8.8', 'http://192.168.0.1', 'https://video.test']
    )
  ]
  found = fetch.fetch(videos, tmp_path, limits=fetch.Limits(tries=1))
  assert [found[video] for video in videos] == ['', 'no connection', 'local address refused', '']
  assert server.seen == {'http://8.8.8.8/ok/a': 1, '8.8.8.8:443': 1, 'video.test:443': 1}
  told, request = server.told  # The password is for the proxy alone.
  assert told == 'Basic bWU6d29yZA==' and b'Authorization' not in request
  assert request.startswith(b'GET /ok/a HTTP/1.1\r\nHost: video.test\r\n')


def test_nothing_is_written_through_links(server, tmp_path):
  folder, outside = tmp_path / 'videos', tmp_path / 'outside'
  folder.mkdir()
  outside.write_bytes(b'mine')
  for name in ('0.mp4.partial', f'.{fetch.RESUME}.unfinished-1'):
    (folder / name).symlink_to(outside)
  assert not any(
    fetch.fetch([fetch.Video(url(server, 'ok/a'), '0.mp4')], folder, allow_local=True).values()
  )
  assert (folder / '0.mp4').read_bytes() == BODY
  assert outside.read_bytes() == b'mine'
  for target in (outside, tmp_path / 'new'):
    (folder / fetch.RESUME).unlink()
    (folder / fetch.RESUME).symlink_to(target)
    with pytest.raises(ValueError, match='is a link'):
      fetch.fetch([fetch.Video(url(server, 'ok/b'), 'b.mp4')], folder)
  assert outside.read_bytes() == b'mine' and not (tmp_path / 'new').exists()


def test_time_is_limited_while_headers_come(server, tmp_path):
  assert get(server, tmp_path, ['drip'], tries=1, max_seconds=0.3) == {'drip': 'too slow'}
  assert get(server, tmp_path, ['slow'], tries=1, max_seconds=0.2) == {'slow': 'too slow'}
  deadline = time.monotonic() + 5
  while not server.seen['left'] and time.monotonic() < deadline:
    time.sleep(0.02)
  assert server.seen['left'] == 1  # Long before the header's end.


def test_a_host_that_asks_for_pauses_is_asked_less(server, tmp_path, monkeypatch):
  monkeypatch.setattr(web, '_retry_after', lambda value: server.pause if value else 0.0)
  paths = [f'never/{i}' for i in range(40)]
  server.pause = 3600.0  # Longer than a run should wait.
  assert set(get(server, tmp_path, paths, per_host=2).values()) == {'HTTP 429'}
  assert sum(server.seen.values()) <= 2
  server.seen.clear()
  # In all, and not for each video: five pauses, two requests after each.
  server.pause = 0.02
  monkeypatch.setattr(web, 'LONGEST_WAIT', 0.1)
  assert set(get(server, tmp_path, paths, per_host=2).values()) == {'HTTP 429'}
  assert sum(server.seen.values()) <= 2 * 6
  # No single one is longer, whatever a host gave before.
  server.seen.clear()
  server.pause = 0.2
  monkeypatch.setattr(fetch, '_WAIT_PER_VIDEO', 1e6)
  found = get(server, tmp_path / 'c', ['ok', 'never/1', 'never/2'], threads=1)
  assert [*found.values()] == ['', 'HTTP 429', 'HTTP 429']
  assert server.seen == {'/ok': 1, '/never/1': 1}
  server.pause = 0.02
  # Nor when each gets through at its second try, unless that gives enough.
  paths = [f'busy/{i}' for i in range(40)]
  for allowed, given_up in [(0.001, True), (1.0, False)]:
    server.seen.clear()
    monkeypatch.setattr(fetch, '_WAIT_PER_VIDEO', allowed)
    found = get(server, tmp_path / f'{allowed}', paths, per_host=2)
    assert ('HTTP 429' in found.values()) == given_up
    assert '' in found.values()


def test_bad_rows_stop_no_others(server, tmp_path, capsys):
  rows = [
    ('x' * 256 + '.mp4', ''),
    ('av.py', ''),
    ('sitecustomize', ''),
    ('a\x1b[2J.mp4', ''),
    (f'.{fetch.RESUME}.unfinished-1/a.mp4', ''),
    ('a.MTS', ''),
    ('b.mp4', 'http://[::/x'),
    ('c.mp4', 'http://h:x/'),
    ('d.mp4', 'http://' + 'x' * 70 + '.test/'),
    ('e.mp4', 'http:///x'),
    ('f.mp4', 'http://a b/'),
    ('y/' * 3000 + 'z.mp4', ''),
    ('\udcff.mp4', ''),
    ('last.mp4', ''),
  ]
  path = write(
    tmp_path,
    [
      {'video': name, 'url': address or url(server, f'ok/{i}')}
      for i, (name, address) in enumerate(rows)
    ],
  )
  command = [
    'fetch',
    f'--captions={path}',
    f'--videos={tmp_path / "videos"}',
    '--allow_local',
    '--tries=1',
  ]
  assert launch_prepare()(command) == 1
  folder = tmp_path / 'videos'
  assert {path.name for path in folder.iterdir()} == {'a.MTS', 'last.mp4', fetch.RESUME}
  shown = capsys.readouterr()
  assert all(f'{name!r}' in shown.err for name, _ in rows[:5])
  assert 'expected a suffix of videos' in shown.err
  assert '\x1b' not in shown.err + shown.out
  # A file where a folder is wanted, and the other way round.
  (folder / 'page.mp4').mkdir()
  names = ['a.MTS/b.mp4', 'page.mp4', 'x' * 300 + '.mp4', 'good.mp4']
  videos = [fetch.Video(url(server, f'new/{i}'), name) for i, name in enumerate(names)]
  found = fetch.fetch(videos, folder, allow_local=True)
  assert [found[video] for video in videos] == ['cannot be written'] * 3 + ['']
  assert server.seen['/new/1'] == 0


def test_a_server_does_not_write_to_the_terminal(server, tmp_path, capsys):
  get(server, tmp_path, ['gone/a', 'bytes'], tries=1)
  shown = capsys.readouterr().err
  assert r'gone \x1b[2J\udc9b2J\x07' in shown and r'\x1b[2J' in shown
  assert not set(shown) & set('\x1b\x9b\x07')
  log = (tmp_path / 'videos' / fetch.RESUME).read_text()
  assert not set(log) & set('\x1b\x9b\x07')


def test_the_command(server, tmp_path, capsys):
  main = launch_prepare()
  path = tmp_path / 'w.csv'
  path.write_text(
    'videoid,name,page_dir,contentUrl\n'
    f'12,one,a,{url(server, "ok/1")}\n'
    f'13,two,b,{url(server, "gone/2")}\n'
  )
  command = ['fetch', f'--captions={path}', f'--videos={tmp_path / "videos"}', '--allow_local']
  assert main(command) == 1
  shown = capsys.readouterr()
  assert 'HTTP 404' in shown.out and '2/2 videos' in shown.err
  assert (tmp_path / 'videos/a/12.mp4').read_bytes() == BODY
  path.write_text('\n'.join(path.read_text().splitlines()[:2]))
  assert main(command) == 0
  assert main([*command, '--tries=0']) == 2
  assert '--tries=0 must be more than 0' in capsys.readouterr().err
  assert main([*command, '--url_column=none']) == 2
  assert 'but not none' in capsys.readouterr().err
