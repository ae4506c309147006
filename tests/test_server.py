"""The server of an index: what it answers, and what it refuses."""

import contextlib
import csv
import dataclasses
import http.client
import io
import json
import os
import re
import resource
import socket
import threading
import time
import urllib.parse

import numpy as np
import pytest

from alpro_jax.data.cut import CutVideo, Segment
from alpro_jax.evaluation.encoder import Answers
from alpro_jax.search import guard, server
from alpro_jax.search.store import REPORT, Store, key
from tests import patience, small_videos
from tests.test_search import ABOUT, NumpyEncoder, put, row

TOKEN = 'a' * 20
NAMES = (b'a.mp4', b'sub/b "<i>&\'x.mp4', b'c.avi')


@pytest.fixture(scope='module')
def service(tmp_path_factory):
  """Three videos, one with a link beside them to what is not for others."""
  work = tmp_path_factory.mktemp('served')
  root = work / 'videos'
  (root / 'sub').mkdir(parents=True)
  (work / 'secret.mp4').write_text('secret')
  store = Store.create(work / 'index', ABOUT | {'folders': [os.fsencode(root).hex()]})
  for number, name in enumerate(NAMES):
    codec = 'mpeg4' if name.endswith(b'avi') else 'libx264'
    path = root / os.fsdecode(name)
    small_videos.write_video(path, frames=32, codec=codec)
    rows = [row(float(i), number) for i in range(3)]
    put(store, name, rows, size=path.stat().st_size, mtime_ns=(number + 1) * 10**18)
  (root / 'link.mp4').symlink_to(work / 'secret.mp4')
  put(store, b'link.mp4', [row(0.0)])
  put(store, b'../secret.mp4', [row(0.0)])
  (work / 'index' / REPORT).write_text(
    json.dumps({'left': 2, 'problems': [{'video': '<b>', 'reason': 'broken', 'detail': ''}]})
  )
  encoder = NumpyEncoder()
  encoder.trained.answers = ('red', 'blue')
  encoder.trained.config.data.frames = 2
  encoder.pixels = lambda clips: np.zeros((len(clips), 2, 8, 8, 3), np.uint8)
  made = server.Service(store, encoder, encoder)
  made.work = work
  yield made
  made.close()


def serve(app):
  """Returns (port, a function that ends it)."""
  listening = server.bind('127.0.0.1', 0)
  running = server.make_server(app)
  thread = threading.Thread(target=running.run, kwargs={'sockets': [listening]}, daemon=True)
  thread.start()

  def end():
    running.should_exit = True
    thread.join(patience.seconds(30))

  return listening.getsockname()[1], end


@pytest.fixture(scope='module')
def port(service):
  port, end = serve(server.make_app(service))
  yield port
  end()


def ask(port, path, *, method='GET', headers=(), body=None):
  connection = http.client.HTTPConnection('127.0.0.1', port, timeout=patience.seconds(60))
  connection.putrequest(method, path, skip_host='Host' in dict(headers))
  for name, value in dict(headers).items():
    connection.putheader(name, value)
  if body is not None:
    connection.putheader('Content-Length', str(len(body)))
  connection.endheaders(body)
  answer = connection.getresponse()
  content = answer.read()
  connection.close()
  if answer.headers.get_content_type() == 'application/json':
    content = json.loads(content)
  return answer.status, content, answer.headers


def clip_of(service, name):
  clips = service.store.clips()
  return int(clips.id[clips.name.index(name)])


def search(port, **asked):
  status, content, _ = ask(port, '/search?' + urllib.parse.urlencode(asked))
  assert status == 200, content
  return content


def test_hits_come_by_video_and_as_files(port, service):
  found = search(port, q='x', k=4, rerank=0)
  assert [video['name'] for video in found['videos'][:1]] and found['text'] == 'x'
  hits = [hit for video in found['videos'] for hit in video['hits']]
  assert len(hits) == 4 and hits[0]['start'] == 2 and hits[0]['match'] is None
  assert found['videos'][0]['seconds'] == 3
  # The fusion encoder orders the other way round.
  assert search(port, q='x', rerank=9)['videos'][0]['hits'][0]['start'] == 0
  status, text, _ = ask(port, '/search?q=x&k=4&rerank=0&form=csv')
  lines = list(csv.DictReader(io.StringIO(text.decode())))
  assert status == 200 and len(lines) == 4 and lines[0]['start'] == '2.0'
  _, text, headers = ask(port, '/search?q=x&k=4&rerank=0&form=otio')
  (track,) = json.loads(text)['tracks']['children']
  assert len(track['children']) == 4 and 'hits.otio' in headers['content-disposition']
  span = track['children'][0]['source_range']
  assert (span['start_time']['value'], span['duration']['value']) == (2000, 1000)
  like = search(port, clip=hits[0]['clip'], k=3)
  assert like['videos'][0]['hits'][0]['start'] == 2 and not like['read']


def test_filters(port):
  def names(**asked):
    return {video['name'] for video in search(port, q='x', rerank=0, **asked)['videos']}

  assert names(below='sub/') == {NAMES[1].decode()}
  assert names(after='2033-01-01') == {NAMES[1].decode(), NAMES[2].decode()}
  assert names(after='2033-01-01', before='2034-01-01') == {NAMES[1].decode()}
  assert names(min_seconds=2.5, max_seconds=3.5) == {name.decode() for name in NAMES}
  assert names(min_seconds=99) == set()


def test_an_example_is_searched_by(port, service, monkeypatch):
  seen = []

  def decode(items, cutting, **options):
    seen.extend(open(path, 'rb').read() for path, _ in items)
    yield (
      CutVideo((Segment(2.0, 3.0, (), b''),))
      if b'good' in seen[-1]
      else CutVideo((), 'unreadable', 'why')
    )

  monkeypatch.setattr(server, 'decode', decode)

  def send(content):
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="../x.mp4"\r\n\r\n'
    headers = {'Content-Type': 'multipart/form-data; boundary=b'}
    return ask(port, '/search?k=3', method='POST', headers=headers, body=body + content)

  status, found, _ = send(b'good\r\n--b--\r\n')
  assert status == 200 and seen == [b'good'] and found['videos'][0]['hits'][0]['start'] == 2
  assert send(b'bad\r\n--b--\r\n')[:2] == (422, {'detail': 'it cannot be read: unreadable why'})
  # Breaks off; and no form at all.
  assert send(b'half of it')[0] in (400, 422)
  assert ask(port, '/search', method='POST', body=b'x')[0] == 422
  headers = {'Content-Length': str(guard.MOST_BYTES + 1)}
  assert ask(port, '/search', method='POST', headers=headers)[0] == 413


def test_videos_are_sent_by_ranges_and_copied(port, service):
  path = service.work / 'videos' / 'a.mp4'
  url = f'/videos/{key(b"a.mp4")}'
  status, content, headers = ask(port, url)
  assert (status, content) == (200, path.read_bytes()) and headers['accept-ranges'] == 'bytes'
  status, content, headers = ask(port, url, headers={'Range': 'bytes=5-9'})
  assert (status, content) == (206, path.read_bytes()[5:10])
  assert headers['content-range'] == f'bytes 5-9/{path.stat().st_size}'
  assert ask(port, url, headers={'Range': 'bytes=999999999-'})[0] == 416
  clip = clip_of(service, b'c.avi')
  status, content, headers = ask(port, f'/clips/{clip}.mp4')
  assert (status, headers['content-type'], content[4:8]) == (200, 'video/mp4', b'ftyp')
  assert ask(port, f'/clips/{clip}.jpg')[:2] == (200, b'strip')


def test_a_video_named_as_a_page_is_none(port, service):
  path = service.work / 'videos' / 'x.html'
  small_videos.write_video(path.with_suffix('.mp4'), frames=2)
  path.with_suffix('.mp4').rename(path)
  put(service.store, b'x.html', [row(9.0)])
  _, _, headers = ask(port, f'/videos/{key(b"x.html")}')
  assert headers['content-type'] == 'application/octet-stream'
  assert headers['content-security-policy'].startswith("sandbox; default-src 'none'")
  assert ask(port, f'/videos/{key(b"a.mp4")}')[2]['content-type'] == 'video/mp4'
  service.store.drop([b'x.html'])


@pytest.mark.parametrize(
  'path',
  [
    '/videos/..',
    '/videos/../secret.mp4',
    '/videos/%2e%2e%2fsecret.mp4',
    '/videos/%2Fetc%2Fpasswd',
    '//etc/passwd',
    '/videos//etc/passwd',
    '/videos/a.mp4',
    '/videos/1',
    '/clips/../index.json',
    '/clips/1.mp4',
    f'/videos/{key(b"link.mp4")}',
    f'/videos/{key(b"../secret.mp4")}',
    '/videos/999999999999999999999999',
  ],
)
def test_no_other_file_is_sent(port, path):
  status, content, _ = ask(port, path)
  assert status in (400, 403, 404, 422) and content['detail'] and 'secret' not in content


def test_other_sites_are_refused(service):
  app = server.make_app(service, hosts=frozenset({'127.0.0.1:1', 'localhost:1'}))
  port, end = serve(app)

  def status(path='/search?q=x', **headers):
    named = {'Host': '127.0.0.1:1'} | {x.replace('_', '-'): y for x, y in headers.items()}
    return ask(port, path, headers=named)[0]

  assert status() == 200 and status(Host='localhost:1') == 200
  assert status(Host='evil.example') == 403 and status(Host=f'127.0.0.1:{port}') == 403
  assert status(Origin='http://evil.example') == 403 and status(Origin='null') == 403
  assert status(Origin='http://127.0.0.1:1') == 200
  for site, wanted in (('cross-site', 403), ('same-site', 403), ('same-origin', 200)):
    assert status(Sec_Fetch_Site=site) == wanted
  assert status('/', Sec_Fetch_Site='cross-site', Sec_Fetch_Mode='navigate') == 200
  end()


def test_a_token_is_asked_for(service):
  port, end = serve(server.make_app(service, token=TOKEN))
  status, content, _ = ask(port, '/search?q=x')
  assert status == 401 and 'token is needed' in content['detail']
  assert ask(port, '/search?q=x', headers={'Authorization': 'Bearer wrong'})[0] == 401
  assert ask(port, '/search?q=x&token=' + TOKEN)[0] == 401
  assert ask(port, '/search?q=x', headers={'Authorization': f'Bearer {TOKEN}'})[0] == 200
  status, _, headers = ask(port, '/?token=' + TOKEN)
  assert status == 303 and 'HttpOnly' in headers['set-cookie']
  cookie = headers['set-cookie'].split(';')[0]
  assert ask(port, '/', headers={'Cookie': cookie})[0] == 200
  end()


def test_what_is_too_much_or_wrong_is_a_sentence(port, service):
  def detail(path):
    status, content, _ = ask(port, path)
    return status, content['detail']

  status, said = detail('/search?q=' + 'x' * 2000)
  assert status == 422 and said.startswith('q: String should have at most 1000')
  assert detail('/ask?video=1&question=%20')[0] == detail('/explain?clip=1&q=')[0] == 422
  assert detail('/search?q=%20') == (422, 'q: expected a text to search by.')
  assert detail('/search?q=x&min_seconds=nan')[0] == 422
  assert detail('/search?q=x&after=9999-12-31')[0] == 422
  assert detail('/search?q=x&form=exe')[0] == 422 and detail('/search?q=x&k=0')[0] == 422
  assert detail('/search?clip=1') == (404, 'the index has no clip 1.')
  assert detail('/explain?clip=1&q=x')[0] == 404 and detail('/nowhere')[0] == 404
  # Of a line of a megabyte not even the end is read.
  with contextlib.suppress(ConnectionError):
    assert ask(port, '/search?q=' + 'x' * (1 << 20))[0] == 400
  assert search(port, q='<script>alert(1)</script>\'"', rerank=0)['videos']


def test_connections_that_say_nothing_harm_nobody(service, monkeypatch):
  monkeypatch.setattr(server, '_SILENT_S', 0.5)
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # Both ends are in this process.
  resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
  port, end = serve(server.make_app(service))
  silent = [socket.create_connection(('127.0.0.1', port)) for _ in range(1000)]
  silent[0].sendall(b'GET / HT')
  assert ask(port, '/health')[0] == 200
  for one in silent:
    one.settimeout(patience.seconds(30))
    assert one.recv(1) == b''  # It was ended.
    one.close()
  end()
  resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_texts_that_wait_are_encoded_together(service, monkeypatch):
  calls, began, go = [], threading.Event(), threading.Event()

  def texts(texts):
    began.set()
    go.wait(patience.seconds(30))
    calls.append(len(texts))
    return NumpyEncoder.texts(service.encoder, texts)

  monkeypatch.setattr(service.encoder, 'texts', texts)
  threads = [threading.Thread(target=service.text, args=(str(i),)) for i in range(9)]
  threads[0].start()
  assert began.wait(patience.seconds(30))
  for thread in threads[1:]:  # While the first is encoded.
    thread.start()
  while len(service._waiting) < 8:
    time.sleep(0.01)
  go.set()
  for thread in threads:
    thread.join()
  assert calls == [1, 8]

  def fail(texts):
    raise ValueError('too much')

  monkeypatch.setattr(service.encoder, 'texts', fail)
  with pytest.raises(ValueError, match='too much'):
    service.text('x')


def test_questions_and_reasons(port, service, monkeypatch):
  clip = clip_of(service, b'a.mp4')
  cut = CutVideo((Segment(0.0, 1.0, (), b''), Segment(1.0, 2.0, (), b'')))
  monkeypatch.setattr(server, 'decode', lambda *_, **__: iter([cut]))
  monkeypatch.setattr(server.explain, 'explain', lambda trained, name, *rest: (name, *rest[1:]))
  monkeypatch.setattr(server.explain, 'render', str)
  status, content, headers = ask(port, f'/explain?clip={clip}&q=a+dog')
  assert status == 200 and b"('a.mp4', (0.0, 1.0), 'a dog')" in content
  assert "script-src 'none'" in headers['content-security-policy']
  top = Answers(0.0, 2.0, [('red', 0.75), ('blue', 0.25)], True)
  monkeypatch.setattr(service.answering, 'ask', lambda *_: (top, [top]), raising=False)
  # As many frames as the model that answers sees, whatever that of the index does.
  service.answering.trained.config.data.frames = 5

  def decode(items, cutting, **_):
    assert cutting == dataclasses.replace(service.store.cutting, frames=5)
    return iter([cut])

  monkeypatch.setattr(server, 'decode', decode)
  status, content, _ = ask(port, f'/ask?video={key(b"a.mp4")}&question=what')
  assert status == 200 and content['answers'][0] == {
    'answer': 'red',
    'share': 0.75,
    'shown': '75.0 %',
  }
  monkeypatch.setattr(service, 'answering', None)
  status, content, _ = ask(port, f'/ask?video={key(b"a.mp4")}&question=what')
  assert status == 409 and '--answers' in content['detail']


def test_it_listens_before_it_has_a_model(service):
  young = server.Service(service.store)
  port, end = serve(server.make_app(young))
  assert ask(port, '/health')[1]['status'] == 'loading the model'
  assert ask(port, '/metrics')[0] == 200
  answers = []
  asking = threading.Thread(target=lambda: answers.append(search(port, q='x', rerank=0)))
  asking.start()
  time.sleep(0.2)
  assert not answers  # It waits.
  young.begin(service.encoder, None)
  asking.join(patience.seconds(30))
  assert answers[0]['videos'] and ask(port, '/health')[1]['status'] == 'ok'
  young.close()
  end()


def test_it_says_how_it_is(port, service):
  status, content, _ = ask(port, '/status')
  assert status == 200 and content['left'] == 2 and content['problems'][0]['reason'] == 'broken'
  assert ask(port, '/health')[1]['status'] == 'ok'
  _, text, _ = ask(port, '/metrics')
  assert b'search_request_seconds_count{route="/status",status="200"}' in text
  assert b'search_requests_in_flight 1.0' in text
  assert '/search' in ask(port, '/openapi.json')[1]['paths']
  # Its page fetches nothing from elsewhere.
  status, text, _ = ask(port, '/docs')
  fetched = re.findall(rb'(?:src|href)="([^"]+)"', text)
  assert status == 200 and len(fetched) == 3
  assert all(ask(port, path.decode())[0] == 200 for path in fetched)


def test_what_is_written_meanwhile_is_found(port, service, monkeypatch):
  writer = Store.open(service.store.folder)
  put(writer, b'new.mp4', [row(50.0)])
  end = time.monotonic() + patience.seconds(60)
  while search(port, q='x', rerank=0)['videos'][0]['name'] != 'new.mp4':
    assert time.monotonic() < end
    time.sleep(0.1)
  writer.drop([b'new.mp4'])


def test_a_port_that_is_taken_is_named(port):
  with pytest.raises(OSError, match=f'port {port} of 127.0.0.1 cannot be taken .*--port'):
    server.bind('127.0.0.1', port)


def test_a_browser_names_no_port_where_it_is_that_of_http():
  assert {'127.0.0.1', 'localhost:80'} <= server.hosts_of('127.0.0.1', 80)
  assert 'localhost' not in server.hosts_of('127.0.0.1', 8000)
