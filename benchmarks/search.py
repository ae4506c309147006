"""Measures an index of many made-up clips: building, size, memory, time and recall.

Vectors are those of vector_stores.py; a video has 20 clips of ten seconds; thumbnails are
1 kB of noise instead of 10, and tokens those of the model `shapes`, 2.2 kB a clip. Each
part has a process of its own, whose memory and CPU seconds are counted.
"""

import argparse
import datetime
import json
import pathlib
import subprocess
import sys
import time

import numpy as np
import psutil

from alpro_jax.search import store as storing
from alpro_jax.search.store import File, Indexed, Row, Store
from benchmarks.vector_stores import exact, make

ROOT = pathlib.Path(__file__).parents[1]
_WIDTH, _QUERIES, _NEAREST = 256, 200, 10
_CLIPS, _AT_ONCE = 20, 50  # Of a video; videos that are stored together.
_TOKENS = 17, 64
_ADDED = 1_000


def measure(folder: pathlib.Path, clips: int) -> dict[str, float]:
  """Returns the figures of an index, which is made unless it is in the folder already."""
  figures = {}
  for part in ('build', 'answer', 'start', 'rescore', 'extend'):
    if part != 'build' or not Store.exists(folder / 'index'):
      command = [sys.executable, '-m', 'benchmarks.search', part, folder.absolute(), str(clips)]
      done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
      print(part, done.stdout.splitlines()[-1], file=sys.stderr, flush=True)
      figures |= json.loads(done.stdout.splitlines()[-1])
  return figures


def _build(folder, count):
  """Makes an index as indexing.py does, but of vectors instead of videos."""
  vectors, asked = make(count, _WIDTH, _QUERIES)
  folder.mkdir(parents=True, exist_ok=True)
  np.savez(folder / 'asked.npz', asked=asked, truth=exact(vectors, asked, _NEAREST))
  cutting = {'frames': 4, 'spans': [10.0], 'stride': 10.0, 'fps': 8.0}
  about = {
    'folders': [b'/videos'.hex()],
    'checkpoint': {'path': 'shapes', 'step': 0, 'digest': ''},
    'cutting': cutting | {'short_side': 256, 'begin': 0.0},
    'shown': {},
    'vector': _WIDTH,
    'tokens': list(_TOKENS),
  }
  storing._KEEP = datetime.timedelta(0)  # Nobody reads meanwhile.
  before, start = _cpu(), time.monotonic()
  store = Store.create(folder / 'index', about)
  _put(store, vectors)
  store.tidy()
  return {'build_s': time.monotonic() - start, 'build_cpu_s': _cpu() - before}


def _put(store, vectors, first=0):
  """Stores vectors as the clips of videos numbered from `first` on."""
  rng = np.random.default_rng(first)
  noise, tokens = rng.bytes(1 << 20), rng.normal(size=_TOKENS).astype(np.float16)
  waiting, times = [], 0
  for at in range(0, len(vectors), _CLIPS):
    number = first + at // _CLIPS
    rows = [
      Row(10.0 * k, 10.0 * (k + 1), vector, tokens, noise[(at + k) % 99_991 :][:1000])
      for k, vector in enumerate(vectors[at : at + _CLIPS])
    ]
    name = b'%02d/%07d.mp4' % (number % 100, number)
    waiting.append(Indexed(File(name, number, number * 10**9, b'ends'), rows))
    if len(waiting) == _AT_ONCE or at + _CLIPS >= len(vectors):
      store.put(*waiting)
      waiting, times = [], times + 1
      if times % 100 == 0:
        store.tidy()
        print(f'{at + _CLIPS} of {len(vectors)} clips', file=sys.stderr, flush=True)


def _numbers(clips):
  """Which vectors were found."""
  videos = np.array([int(name.split(b'/')[1][:7]) for name in clips.name])
  return videos * _CLIPS + (clips.start / 10).round().astype(int)


def _answer(folder, _):
  """Opens the index and asks it for the nearest of vectors, one after the other."""
  with np.load(folder / 'asked.npz') as kept:
    asked, truth = kept['asked'], kept['truth']
  start = time.monotonic()
  store = Store.open(folder / 'index')
  store.counts()
  opened = time.monotonic() - start
  for query in asked[:50]:
    store.nearest(query, _NEAREST)
  seconds, found, before = [], [], _cpu()
  for query in asked:
    start = time.perf_counter()
    found.append(_numbers(store.nearest(query, _NEAREST)))
    seconds.append(time.perf_counter() - start)
  held, whole, spent = _memory(), [], _cpu() - before
  for query in asked[:5]:
    compared = store._clips.search(query, vector_column_name='vector').distance_type('cosine')
    start = time.perf_counter()
    compared.bypass_vector_index().limit(_NEAREST).select(['clip', '_distance']).to_arrow()
    whole.append(time.perf_counter() - start)
  hits = [len({*a} & {*b}) for a, b in zip(found, truth, strict=True)]
  return {
    'open_s': opened,
    'recall@10': float(np.mean(hits)) / _NEAREST,
    'p50_ms': 1e3 * float(np.percentile(seconds, 50)),
    'p99_ms': 1e3 * float(np.percentile(seconds, 99)),
    'query_cpu_ms': 1e3 * spent / len(asked),
    'exact_cpu_ms': 1e3 * (_cpu() - before - spent) / len(whole),
    'exact_ms': 1e3 * float(np.median(whole)),
    'query_memory_mb': held,
    'disk_mb': sum(x.stat().st_size for x in (folder / 'index').rglob('*') if x.is_file()) / 1e6,
  }


def _start(folder, _):
  """Starts a server without a model, until it says how it is."""
  start = psutil.Process().create_time()
  import threading
  import types
  import urllib.request

  from alpro_jax.search import server

  imported = time.time()
  trained = types.SimpleNamespace(knows_matching=False, answers_questions=False)
  service = server.Service(
    Store.open(folder / 'index'), types.SimpleNamespace(trained=trained), None
  )
  listening = server.bind('127.0.0.1', 0)
  running = server.make_server(server.make_app(service))
  threading.Thread(target=running.run, kwargs={'sockets': [listening]}, daemon=True).start()
  address = f'http://127.0.0.1:{listening.getsockname()[1]}/health'
  with urllib.request.urlopen(address) as answer:
    answer.read()
  end = time.time()
  return {
    'imports_s': imported - start,
    'start_s': end - imported,
    'start_cpu_s': _cpu(),
    'server_memory_mb': _memory(),
  }


def _rescore(folder, _):
  """What it takes longer that the fusion encoder of `shapes` reads the 64 nearest."""
  from alpro_jax import api
  from alpro_jax.evaluation.encoder import Encoder
  from alpro_jax.search import querying

  model = api.load('shapes').trained
  # The summary is one of features of another width.
  encoder = Encoder(model._replace(familiarity=None))
  store, by = Store.open(folder / 'index'), encoder.texts(['a red ring drifts left'])
  with np.load(folder / 'asked.npz') as kept:
    asked = kept['asked']
  taken = {0: [], 64: []}
  for query in asked[:40]:
    querying.find(encoder, store, query, rerank_k=64, by=by)  # Both find what is in memory then.
    for count, spent in taken.items():
      before = _cpu()
      found = querying.find(encoder, store, query, rerank_k=count, by=by)
      assert found.read == count
      spent.append((found.seconds, _cpu() - before))
  plain, rescored = (1e3 * np.median(x[5:], axis=0) for x in taken.values())
  return {
    'rescoring_64_ms': float(rescored[0] - plain[0]),
    'rescoring_64_cpu_ms': float(rescored[1] - plain[1]),
    'with_model_memory_mb': _memory(),
  }


def _extend(folder, count):
  """Adds clips to the index, as a run of indexing.py would."""
  vectors, _ = make(_ADDED, _WIDTH, 1, seed=time.time_ns() % 2**32)
  store = Store.open(folder / 'index')
  before, start, there = _cpu(), time.monotonic(), store.counts()[0]
  _put(store, vectors, there)
  added = time.monotonic() - start
  store.tidy()
  figures = {
    f'add_{_ADDED}_s': added,
    f'add_{_ADDED}_tidy_s': time.monotonic() - start - added,
    f'add_{_ADDED}_cpu_s': _cpu() - before,
  }
  (found,) = _numbers(store.nearest(vectors[7], 1))
  assert found == there * _CLIPS + 7
  return figures


def _cpu():
  return sum(psutil.Process().cpu_times()[:2])


def _memory():
  return psutil.Process().memory_info().rss / 1e6


_PARTS = {
  'build': _build,
  'answer': _answer,
  'start': _start,
  'rescore': _rescore,
  'extend': _extend,
}


def main():
  parser = argparse.ArgumentParser(description='One process of `launch/benchmark.py search`.')
  parser.add_argument('part', choices=_PARTS)
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('clips', type=int)
  args = parser.parse_args()
  print(json.dumps(_PARTS[args.part](args.folder, args.clips)))


if __name__ == '__main__':
  main()
