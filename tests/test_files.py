"""Writers that fail, are killed, or meet others at the same place."""

import contextlib
import fcntl
import os
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import alpro_jax
from alpro_jax import files
from alpro_jax.data import dataset, features, manifest
from alpro_jax.train import checkpoints, run_folder
from tests import launched, tiny_run

# Writes a part of a result, says so, and then waits for its end.
_WRITER = """
import sys
import threading
import time
from alpro_jax import files
with getattr(files, sys.argv[1])(sys.argv[2]) as made:
  part = made / 'part' if made.is_dir() else made
  part.write_text('half')
  print('ready', flush=True)
  sys.stdin.read()
"""


@contextlib.contextmanager
def writer(kind, path):
  """A process in the middle of writing; it ends when its stdin is closed."""
  process = subprocess.Popen(
    [sys.executable, '-c', _WRITER, kind, path],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    cwd=tiny_run.ROOT,
  )
  try:
    assert process.stdout.readline() == 'ready\n'
    yield process
  finally:
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def names(folder):
  return sorted(os.listdir(folder))


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
  synced, sync, replace = [], os.fsync, os.replace

  def note(descriptor):
    synced.append(os.fstat(descriptor).st_ino)
    sync(descriptor)

  def check(made, path):
    assert os.stat(made).st_ino in synced
    replace(made, path)

  monkeypatch.setattr(os, 'fsync', note)
  monkeypatch.setattr(os, 'replace', check)
  files.write_text(tmp_path / 'a', 'one')
  manifest.write_json(tmp_path / 'a', [1])
  rows = features.Rows(tmp_path / 'rows', {}, {'x': ((2,), np.float32)}, count=1)
  rows.write([{'x': np.zeros((1, 2))}])
  assert rows.made == 1 and len(synced) == 4


def test_a_folder_gets_its_name_when_it_is_whole(tmp_path):
  (tmp_path / 'empty').mkdir()
  for path in (tmp_path / 'new' / 'a', tmp_path / 'empty'):
    with files.folder(path) as made:
      assert made.name == path.name and not os.listdir(made)
      (made / 'x').write_text('1')
      assert not path.exists() or not os.listdir(path)
    assert names(path) == ['x'] and (path / 'x').read_text() == '1'
    assert names(path.parent) in (['a'], ['empty', 'new'])


def test_nothing_stays_of_a_block_that_raises(tmp_path):
  (tmp_path / 'file').write_text('old')
  with pytest.raises(KeyError), files.folder(tmp_path / 'a') as made:
    (made / 'x').write_text('new')
    raise KeyError
  with pytest.raises(KeyError), files.file(tmp_path / 'file') as made:
    made.write_text('new')
    raise KeyError
  assert names(tmp_path) == ['file']
  assert (tmp_path / 'file').read_text() == 'old'


@pytest.mark.parametrize('kind', ['folder', 'file'])
def test_after_a_kill_the_same_again_works(tmp_path, kind):
  path = tmp_path / 'a'
  if kind == 'file':
    path.write_text('old')
  before = names(tmp_path)
  with writer(kind, path) as process:
    process.kill()
    process.wait()
  (left,) = set(names(tmp_path)) - set(before)
  assert left.startswith('.a.unfinished')
  if kind == 'file':
    assert path.read_text() == 'old'
    with files.file(path) as made:
      assert not made.exists()
      made.write_text('new')
    assert path.read_text() == 'new'
  else:
    with files.folder(path) as made:
      assert not os.listdir(made)
      (made / 'x').write_text('new')
    assert names(path) == ['x']
  assert names(tmp_path) == ['a']


@pytest.mark.parametrize('kind', ['folder', 'file'])
def test_the_second_at_the_same_place_is_told(tmp_path, kind):
  path = tmp_path / 'a'
  with writer(kind, path) as process:
    with pytest.raises(ValueError, match=f'process {process.pid} is writing .*a at this'):
      with getattr(files, kind)(path):
        raise AssertionError('the block was entered')
    with getattr(files, kind)(tmp_path / 'b') as made:  # Not in the way.
      made.mkdir(exist_ok=True) if kind == 'folder' else made.write_text('')
    process.stdin.close()
    assert process.wait() == 0
  found = path / 'part' if kind == 'folder' else path
  assert found.read_text() == 'half' and names(tmp_path) == ['a', 'b']


def test_a_text_waits_for_its_turn(tmp_path):
  path = tmp_path / 'a'
  with writer('file', path) as process:
    again = subprocess.Popen(
      [
        sys.executable,
        '-c',
        'import sys\nfrom alpro_jax import files\nfiles.write_text(sys.argv[1], "second")',
        path,
      ],
      cwd=tiny_run.ROOT,
    )
    process.stdin.close()
    assert process.wait() == 0 and again.wait() == 0
  assert path.read_text() in ('second', 'half')
  files.write_text(path, 'ü')
  assert path.read_bytes() == 'ü'.encode() and names(tmp_path) == ['a']


def test_what_has_no_mark_stays(tmp_path):
  """Folders of the user's, whatever they are called."""
  others = ['a.partial', 'a.tmp', 'a.draft', '.a.unfinished-1']
  for name in others:
    (tmp_path / name).mkdir()
    (tmp_path / name / 'precious').write_text(name)
  elsewhere = tmp_path / 'elsewhere'
  elsewhere.mkdir()
  (elsewhere / files.MARK).write_text('')
  (elsewhere / 'precious').write_text('elsewhere')
  (tmp_path / '.a.unfinished-2').symlink_to(elsewhere)
  with files.folder(tmp_path / 'a') as made:
    (made / 'x').write_text('1')
  assert names(tmp_path) == sorted([*others, '.a.unfinished-2', 'a', 'elsewhere'])
  for name in [*others, 'elsewhere']:
    assert (tmp_path / name / 'precious').read_text() == name


def test_links_in_what_was_left_are_not_followed(tmp_path):
  (tmp_path / 'precious').write_text('mine')
  left = tmp_path / '.a.unfinished-1'
  left.mkdir()
  (left / files.MARK).write_text('1')
  (left / 'a').symlink_to(tmp_path / 'precious')
  with files.file(tmp_path / 'a') as made:
    made.write_text('new')
  assert (tmp_path / 'precious').read_text() == 'mine'


def test_what_is_there_is_not_replaced_by_a_folder(tmp_path):
  (tmp_path / 'file').write_text('mine')
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'x').write_text('mine')
  for name in ('file', 'full'):
    with pytest.raises(FileExistsError, match=f'{name} exists already'):
      with files.folder(tmp_path / name):
        raise AssertionError('the block was entered')
  with pytest.raises(FileExistsError, match='late exists already'):
    with files.folder(tmp_path / 'late'):
      (tmp_path / 'late').mkdir()
      (tmp_path / 'late' / 'x').write_text('mine')
  assert (tmp_path / 'late' / 'x').read_text() == 'mine'
  assert names(tmp_path) == ['file', 'full', 'late']


def test_a_link_to_a_file_stays(tmp_path):
  (tmp_path / 'target').write_text('old')
  (tmp_path / 'link').symlink_to('target')
  files.write_text(tmp_path / 'link', 'new')
  assert (tmp_path / 'link').is_symlink()
  assert (tmp_path / 'target').read_text() == 'new'


def test_an_error_of_a_full_disk_names_the_result(tmp_path):
  path = tmp_path / 'a'
  with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
    with files.folder(path), open('/dev/full', 'w') as full:
      full.write('x')
  assert not names(tmp_path)


def test_sha256(tmp_path):
  (tmp_path / 'a').write_bytes(b'abc')
  assert files.sha256(tmp_path / 'a').startswith('ba7816bf8f01cfea')


def test_a_lock_says_who_holds_it_even_before_that_is_written(tmp_path):
  path, held = tmp_path / 'lock', threading.Event()

  def hold():
    mark = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(mark, fcntl.LOCK_EX)
    held.set()
    time.sleep(0.2)
    os.write(mark, b'7')
    released.wait()
    os.close(mark)

  released = threading.Event()
  holder = threading.Thread(target=hold)
  holder.start()
  held.wait()
  with pytest.raises(ValueError, match='^process 7 writes here$'), files.lock(path, 'writes here'):
    raise AssertionError('the block was entered')
  os.truncate(path, 0)  # As where the disk is full.
  with pytest.raises(ValueError, match='^another process writes here'):
    files.lock(path, 'writes here').__enter__()
  released.set()
  holder.join()
  with files.lock(path, 'writes here'):
    pass


@pytest.mark.parametrize('path', ['hdfs://b/set', 'file:///tmp/x', 'gs:/b/run', 'https://a/b'])
def test_addresses_are_refused_wherever_something_is_read_or_written(tmp_path, monkeypatch, path):
  monkeypatch.chdir(tmp_path)
  for use in (
    files.folder(path).__enter__,
    files.file(path).__enter__,
    files.lock(path, '').__enter__,
    run_folder.claim(path).__enter__,
    lambda: checkpoints.find(path),
    lambda: dataset.open_dataset(path),
    lambda: alpro_jax.load(pathlib.Path(path)),
  ):
    with pytest.raises(
      ValueError, match='is an address that cannot be read or written: give a path'
    ):
      use()
  assert not any(tmp_path.iterdir())
  assert files.local('data: 1/run') == pathlib.Path('data: 1/run')


@pytest.mark.parametrize(
  'command, options',
  [
    ('prepare', ['--source=folder', '--videos=v', '--output=hdfs://b/set']),
    ('tokenizer', ['--captions=a.csv', '--captions=az://b/x.csv', '--output=x.model']),
    ('search', ['find', 'gs://b/videos', 'a dog', '--checkpoint=shapes']),
    ('audit', ['--checkpoint=shapes', '--data=gs://b/set', '--output=x']),
    ('evaluate', ['--checkpoint=shapes', '--data=hdfs://b/set']),
  ],
)
def test_a_command_says_which_flag_holds_an_address(
  tmp_path, monkeypatch, capsys, command, options
):
  monkeypatch.chdir(tmp_path)
  assert launched.run(command, *options) == 2
  said = capsys.readouterr().err
  assert ('is an address' in said or 'is in a bucket' in said) and said.count('\n') == 1
  flag = next(o for o in options if '://' in o).partition('=')[0]
  assert f'error: {flag}: ' in said or command == 'search'
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('option', ['--workdir=file:///b/run', '--config.data.path=hdfs://b/set'])
def test_so_does_a_training(tmp_path, option):
  launch = launched.ROOT / 'launch/main.py'
  config = f'--config={launched.ROOT}/configs/pretrain.py:demo'
  ended = subprocess.run(
    [sys.executable, launch, config, option], cwd=tmp_path, capture_output=True, text=True
  )
  flag, _, address = option.partition('=')
  assert ended.returncode == 2
  assert ended.stderr.startswith(f'error: {flag}: {address} is an address')
  assert not any(tmp_path.iterdir())
