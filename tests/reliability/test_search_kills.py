"""SIGKILL of whoever writes or serves an index, at random moments: what was stored is there."""

import http.client
import os
import pathlib
import random
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse

import numpy as np
import pytest

from alpro_jax.search.store import Store
from tests import patience
from tests.test_search import ABOUT

pytestmark = pytest.mark.reliability
ROOT = pathlib.Path(__file__).resolve().parents[2]
WRITER = """
import sys
import numpy as np
from alpro_jax.search.store import File, Indexed, Row, Store

store, first = Store.open(sys.argv[1]), int(sys.argv[2])
print('opened', flush=True)
for number in range(first, first + 100_000):
  value = np.array([number % 7, 1.0]) / np.hypot(number % 7, 1)
  tokens = np.full((3, 4), number % 1000, np.float16)
  rows = [Row(float(k), k + 1.0, value, tokens, b'%d' % number) for k in range(3)]
  store.put(Indexed(File(b'%d' % number, 1, 1), rows), Indexed(File(b'a', number, 1), rows))
  if number % 5 == 4:
    store.tidy()
  print(number, flush=True)
"""


def test_what_was_stored_outlives_kills(tmp_path):
  Store.create(tmp_path / 'index', ABOUT)
  last, draw = -1, random.Random(0)
  for _ in range(10):
    command = [sys.executable, '-c', WRITER, tmp_path / 'index', str(last + 1)]
    writer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == 'opened\n'
    time.sleep(draw.uniform(0.05, 1.5))
    writer.kill()
    said = writer.stdout.read().split()
    writer.wait()
    # The end of what it says may be half a number.
    last = max([last, *map(int, said[:-1])])
    store = Store.open(tmp_path / 'index')
    names = {file.name for file in store.files().values()}
    assert names >= {b'%d' % number for number in range(last + 1)}
    clips = store.clips()
    for number in {0, last // 2, last} - {-1}:
      own = [i for i, name in enumerate(clips.name) if name == b'%d' % number]
      assert clips.start[own].tolist() == [0, 1, 2]
      assert store.strips(clips.id[own]) == [b'%d' % number] * 3
      np.testing.assert_array_equal(store.tokens(clips.id[own]), number % 1000)
    last = max([last, *(int(name) for name in names - {b'a'})])
  assert last > 20


def start(*words):
  command = [sys.executable, 'launch/search.py', *map(str, words)]
  return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_the_commands_outlive_kills(tmp_path):
  """The real indexer ten times, at work; then the server, while it is asked."""
  clips = sorted((ROOT / 'alpro_jax' / 'shipped' / 'shapes' / 'clips').glob('*.mp4'))
  videos, folder = tmp_path / 'videos', tmp_path / 'index'
  videos.mkdir()
  count, stored, draw = 300, {}, random.Random(0)
  for number in range(count):
    shutil.copy(clips[number % 3], videos / f'{number:04}.mp4')
  options = '--checkpoint=shapes', f'--index={folder}', '--span=1', '--workers=1'
  report, kills = folder / 'report.json', 0
  while kills < 10:
    before = os.stat(report).st_mtime_ns if report.is_file() else 0
    indexer = start('index', videos, *options)
    end = time.monotonic() + patience.seconds(300)
    # The first report comes with the first videos that are stored.
    while not report.is_file() or os.stat(report).st_mtime_ns == before:
      assert indexer.poll() is None, indexer.communicate()
      assert time.monotonic() < end
      time.sleep(0.01)
    time.sleep(draw.uniform(0, 2))
    indexer.kill()
    indexer.wait()
    kills += 1
    store = Store.open(folder)
    now = store.files()
    assert now.items() >= stored.items() and len(now) > len(stored)
    stored = now
    whole = store.clips()
    store.tokens(whole.id), store.strips(whole.id)
    if len(stored) == count:  # There must be work to be killed at.
      for number in range(count, count + 100):
        shutil.copy(clips[number % 3], videos / f'{number:04}.mp4')
      count += 100
  _, said = (indexer := start('index', videos, *options)).communicate()
  assert not indexer.returncode, said
  store = Store.open(folder)
  assert len(store.files()) == count and not store.problems()
  assert store.files().items() >= stored.items()
  clips = store.clips()
  assert len(set(zip(clips.name, clips.start.tolist(), strict=True))) == len(clips.id)

  server = start('serve', f'--index={folder}', '--port=0')
  port = urllib.parse.urlparse(server.stdout.readline().decode().strip()).port

  def ask():
    connection = http.client.HTTPConnection('127.0.0.1', port)
    try:
      while True:
        connection.request('GET', '/search?q=a+ring&rerank=4')
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
      pass  # It was killed.

  threads = [threading.Thread(target=ask) for _ in range(4)]
  for thread in threads:
    thread.start()
  time.sleep(1)
  server.kill()
  server.wait()
  for thread in threads:
    thread.join(patience.seconds(60))
  again = Store.open(folder)
  assert again.files() == store.files() and again.counts() == store.counts()
