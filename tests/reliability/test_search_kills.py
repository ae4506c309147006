"""SIGKILL of whoever writes an index, at random moments: what was stored is there."""

import pathlib
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from alpro_jax.search.store import Store
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
