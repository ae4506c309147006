"""Downloads: what is wanted arrives whole, what does not is named."""

import http.server
import json
import threading
import time
from collections import Counter

import pytest

from alpro_jax.data import annotations, fetch
from tests.test_verify import launch_prepare

BODY = b'not really a video' * 1000


class _Handler(http.server.BaseHTTPRequestHandler):
  """Answers by the first part of the path, and counts."""

  def do_GET(self):
    what = self.path.split('/')[1]
    self.server.seen[self.path] += 1
    first = self.server.seen[self.path] == 1
    if what == 'gone':
      return self.send_error(404)
    if what == 'shaky' and first:
      return self.send_error(500)
    if what == 'busy' and first:
      self.send_response(429)
      self.send_header('Retry-After', '1')
      self.send_header('Content-Length', '0')
      return self.end_headers()
    if what in ('away', 'moved'):
      self.send_response(302)
      self.send_header('Location', 'file:///etc/passwd' if (
          what == 'away') else '/ok/moved.mp4')
      self.send_header('Content-Length', '0')
      return self.end_headers()
    if what == 'slow':
      time.sleep(1.5)
    self.send_response(200)
    if what != 'unsized':
      self.send_header('Content-Length', str(len(BODY)))
    self.end_headers()
    body = BODY[:100] if what == 'cut' or (what == 'torn' and first) else BODY
    try:
      self.wfile.write(body)
    except OSError:
      pass  # The other side left.

  def log_message(self, *args):
    pass


@pytest.fixture(scope='module')
def running():
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Handler) as server:
    server.seen = Counter()
    thread = threading.Thread(target=server.serve_forever, args=(.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()


@pytest.fixture
def server(running, monkeypatch):
  monkeypatch.setenv('no_proxy', '127.0.0.1')
  running.seen.clear()
  return running


def url(server, path):
  return f'http://127.0.0.1:{server.server_port}/{path}'


def write(tmp_path, rows):
  path = tmp_path / 'captions.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def get(server, tmp_path, paths, **limits):
  """Fetches; returns reasons by path."""
  videos = [fetch.Video(url(server, path), f'{i}.mp4')
            for i, path in enumerate(paths)]
  found = fetch.fetch(videos, tmp_path / 'videos', limits=fetch.Limits(**{
      'wait_s': .01, 'tries': 3, 'timeout_s': 5., **limits}))
  assert not list((tmp_path / 'videos').glob('**/*.partial'))
  return {path: found[video]
          for path, video in zip(paths, videos, strict=True)}


def test_what_fails_is_tried_again_if_that_may_help(server, tmp_path):
  found = get(server, tmp_path, [
      'ok/a', 'unsized/a', 'shaky/a', 'torn/a', 'moved/a', 'gone/a', 'cut/a',
      'away/a', 'öl/ü b.mp4?q=ä'])
  assert found == {
      'ok/a': '', 'unsized/a': '', 'shaky/a': '', 'torn/a': '', 'moved/a': '',
      'gone/a': 'HTTP 404', 'cut/a': 'truncated',
      'away/a': 'redirect refused', 'öl/ü b.mp4?q=ä': ''}
  assert (server.seen['/gone/a'], server.seen['/cut/a'],
          server.seen['/torn/a'], server.seen['/away/a']) == (1, 3, 2, 1)
  folder = tmp_path / 'videos'
  there = sorted(path.name for path in folder.glob('*.mp4'))
  assert there == [f'{i}.mp4' for i in (0, 1, 2, 3, 4, 8)]
  assert all((folder / name).read_bytes() == BODY for name in there)


def test_limits(server, tmp_path):
  assert get(server, tmp_path, ['slow/a'], timeout_s=.2, tries=2) == {
      'slow/a': 'time-out'}
  assert get(server, tmp_path, ['ok/a', 'unsized/b'], max_bytes=1000) == {
      'ok/a': 'too large', 'unsized/b': 'too large'}
  start = time.monotonic()
  assert get(server, tmp_path, ['slow/a', 'busy/b']) == {
      'slow/a': '', 'busy/b': ''}
  assert time.monotonic() - start > 1  # Retry-After.
  for address in ('file:///etc/passwd', 'ftp://127.0.0.1/x'):
    video = fetch.Video(address, 'x.mp4')
    assert fetch.fetch([video], tmp_path / 'videos') == {
        video: 'not http or https'}
  nobody = fetch.Video('http://127.0.0.1:1/x', 'y.mp4')
  assert fetch.fetch([nobody], tmp_path / 'videos', limits=fetch.Limits(
      tries=2, wait_s=.01)) == {nobody: 'no connection'}


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
  fetch.fetch([fetch.Video(url(server, 'gone/a'), '1.mp4')],
              tmp_path / 'videos', retry_failed=True)
  assert server.seen['/gone/a'] == 2


def test_so_many_at_once_from_one_host(server, tmp_path, monkeypatch):
  active, most, lock = [], [], threading.Lock()

  def download(opener, address, path, limits):
    with lock:
      active.append(path)
      most.append(len(active))
    time.sleep(.05)
    with lock:
      active.remove(path)
    return 1

  monkeypatch.setattr(fetch, '_download', download)
  get(server, tmp_path, [f'ok/{i}' for i in range(8)], threads=6, per_host=2)
  assert max(most) == 2 and len(most) == 8


def test_a_full_disk_stops_all(server, tmp_path, monkeypatch):
  def no_space(*args):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(fetch.os, 'replace', no_space)
  with pytest.raises(OSError, match='No space'):
    get(server, tmp_path, [f'ok/{i}' for i in range(99)], threads=2)
  assert sum(server.seen.values()) < 9
  monkeypatch.undo()
  assert not any(get(server, tmp_path, ['ok/0', 'ok/1']).values())


def test_names_stay_in_the_folder(tmp_path):
  path = write(tmp_path, [
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
      {'video': 'https://h/8', 'video_id': 'x'}])
  videos, skipped, rows = fetch.read_videos(path)
  names = [video.name for video in videos]
  assert rows == 14 and [row.reason for row in skipped] == [
      'bad row', 'bad row', 'bad row', 'same name', 'bad row']
  assert names[4:6] == ['00_05/12.mp4', 'b.mp4']
  assert names[6:] == [annotations.file_of('https://h/8')]
  assert names[0].startswith('passwd-') and names[1].startswith('日本_語-')
  assert names[1].endswith('.webm') and names[2].startswith('video-')
  assert all('/' not in name and len(name.encode()) < 200
             for name in names[:4])
  # Preparing looks for the same files.
  clips = annotations.read_folder(write(tmp_path, [
      {'video': video.url, 'caption': 'x'} for video in videos[:4]])).clips
  assert [clip.video for clip in clips] == names[:4]


def test_links_do_not_lead_out(server, tmp_path):
  (tmp_path / 'videos').mkdir()
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'videos/page').symlink_to(tmp_path / 'elsewhere')
  video = fetch.Video(url(server, 'ok/a'), 'page/a.mp4')
  assert fetch.fetch([video], tmp_path / 'videos') == {
      video: 'outside the folder of videos'}
  assert not list((tmp_path / 'elsewhere').iterdir())


def test_the_command(server, tmp_path, capsys):
  main = launch_prepare()
  path = tmp_path / 'w.csv'
  path.write_text('videoid,name,page_dir,contentUrl\n'
                  f'12,one,a,{url(server, "ok/1")}\n'
                  f'13,two,b,{url(server, "gone/2")}\n')
  command = ['fetch', f'--captions={path}', f'--videos={tmp_path / "videos"}']
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
