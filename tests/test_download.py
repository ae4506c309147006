"""Large files: they resume, and nothing that is cut, changed or damaged gets its name."""

import hashlib
import multiprocessing
import os

import pytest

from alpro_jax import files
from alpro_jax.data import download
from tests import ranged_server

BODY = bytes(range(256)) * 4000


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setenv('no_proxy', '127.0.0.1')
  with ranged_server.serve({'model.pt': BODY}) as server:
    yield server


def get(server, folder, *, sha256='', name='model.pt', **options):
  wanted = download.Wanted(f'{server.address}/{name}', folder / name, sha256)
  options = {'tries': 3, 'wait_s': 0.01, 'timeout_s': 5.0} | options
  download.download([wanted], allow_local=True, **options)
  return wanted.path


def partial(folder):
  (path,) = folder.glob('.*.partial')
  return path


def test_what_is_whole_gets_its_name_and_is_not_asked_for_again(server, tmp_path):
  said = []
  path = get(server, tmp_path / 'new', begin=said.extend, sha256=hashlib.sha256(BODY).hexdigest())
  assert path.read_bytes() == BODY
  assert [(one.size, one.present) for one in said] == [(len(BODY), 0)]
  assert said[0].md5 == hashlib.md5(BODY).hexdigest()
  server.asked.clear()
  get(server, tmp_path / 'new', begin=lambda missing: said.append(list(missing)))
  assert server.asked == [] and said[-1] == []
  assert sorted(os.listdir(tmp_path / 'new')) == ['.lock', 'model.pt']


def test_an_answer_that_breaks_off_goes_on(server, tmp_path):
  """In the same call as often as something new comes, and else in the next."""
  server.breaks_after = [10**9, 1000, 1000, 1000, 1000]
  assert get(server, tmp_path).read_bytes() == BODY
  firsts = ['', '', 'bytes=1000-', 'bytes=2000-', 'bytes=3000-', 'bytes=4000-']
  assert [asked for _, asked in server.asked] == firsts


def test_the_next_call_goes_on(server, tmp_path):
  server.breaks_after, lines = [10**9, 5000, 0, 0], []
  with pytest.raises(ValueError, match='truncated.*5,000 bytes are kept, and the same command'):
    get(server, tmp_path, log=lines.append)
  assert len(lines) == 2 and 'truncated' in lines[0] and 'trying again in 0 s' in lines[0]
  assert partial(tmp_path).read_bytes() == BODY[:5000]
  server.asked.clear()
  said = []
  path = get(server, tmp_path, begin=lambda missing: said.extend(x.present for x in missing))
  assert path.read_bytes() == BODY
  assert said == [5000]
  assert [asked for _, asked in server.asked] == ['', 'bytes=5000-']


def test_a_server_without_parts_begins_anew(server, tmp_path):
  server.gives_parts, server.breaks_after = False, [10**9, 5000, 7000]
  assert get(server, tmp_path).read_bytes() == BODY


def test_a_server_that_names_no_version_begins_anew(server, tmp_path):
  """Nobody could say whether both pieces are of one file."""
  server.headers, server.breaks_after = lambda tag, body: {}, [10**9, 5000]
  assert get(server, tmp_path).read_bytes() == BODY
  assert [asked for _, asked in server.asked] == ['', '', '']


def test_pieces_of_two_versions_are_not_joined(server, tmp_path):
  server.breaks_after = [10**9, 5000]
  with pytest.raises(ValueError, match='truncated'):
    get(server, tmp_path, tries=1)
  old = partial(tmp_path)
  server.files['model.pt'] = BODY[::-1]
  assert get(server, tmp_path).read_bytes() == BODY[::-1]
  assert not old.exists()


def test_a_version_that_changes_meanwhile_is_refused(server, tmp_path):
  def change(missing):
    server.files['model.pt'] = BODY[::-1]

  with pytest.raises(ValueError, match='changed at the server meanwhile'):
    get(server, tmp_path, begin=change)
  assert get(server, tmp_path).read_bytes() == BODY[::-1]


def test_a_wrong_digest_is_refused(server, tmp_path):
  """The server's own, ours, and that of a file that is there already."""
  honest = server.headers
  server.headers = lambda tag, body: honest(tag, b'another')
  with pytest.raises(ValueError, match='model.pt is not the file.*md5 is.*removed; repeat'):
    get(server, tmp_path)
  server.headers = honest
  with pytest.raises(ValueError, match=f'sha256 is {hashlib.sha256(BODY).hexdigest()}, not 00'):
    get(server, tmp_path, sha256='00' * 32)
  assert os.listdir(tmp_path) == ['.lock']
  (tmp_path / 'model.pt').write_bytes(b'mine')
  with pytest.raises(ValueError, match='Delete it and repeat'):
    get(server, tmp_path, sha256='00' * 32)
  assert (tmp_path / 'model.pt').read_bytes() == b'mine'


def test_a_wrong_size_is_refused(server, tmp_path):
  def shrink(missing):
    server.files['model.pt'] = BODY[:9000]

  server.headers = lambda tag, body: {'ETag': '"same"'}
  with pytest.raises(ValueError, match='wrong size .9,000 bytes, and the server said 1,024,000'):
    get(server, tmp_path, begin=shrink)
  assert os.listdir(tmp_path) == ['.lock']


def test_what_is_not_there_or_not_allowed(server, tmp_path):
  with pytest.raises(ValueError, match=r'/none.pt did not come: HTTP 404.*put it to .*none.pt\.'):
    get(server, tmp_path, name='none.pt')
  with pytest.raises(ValueError, match='did not come: not http or https'):
    download.download([download.Wanted('ftp://host/model.pt', tmp_path / 'model.pt')])
  with pytest.raises(ValueError, match='local address refused'):
    download.download([download.Wanted(f'{server.address}/model.pt', tmp_path / 'model.pt')])

  def refuse(missing):
    raise ValueError('no room')

  with pytest.raises(ValueError, match='no room'):
    get(server, tmp_path, begin=refuse)
  assert os.listdir(tmp_path) == ['.lock']


def _hold(path, held, done):
  with files.lock(path, ''):
    held.set()
    done.wait()


def test_two_processes_do_not_write_one_file(server, tmp_path):
  context = multiprocessing.get_context('spawn')
  held, done = context.Event(), context.Event()
  other = context.Process(target=_hold, args=(tmp_path / '.lock', held, done))
  other.start()
  held.wait()
  try:
    with pytest.raises(ValueError, match=f'process {other.pid} downloads into'):
      get(server, tmp_path)
  finally:
    done.set()
    other.join()


def test_a_full_disk_names_the_place(server, tmp_path, monkeypatch):
  def full(descriptor):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError, match=f'No space left on device: .*{tmp_path.name}'):
    get(server, tmp_path)
  monkeypatch.undo()
  monkeypatch.setenv('no_proxy', '127.0.0.1')
  assert get(server, tmp_path).read_bytes() == BODY
