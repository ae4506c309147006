"""Compares stores for the vectors of an index: recall, time, room on disk.

  python -m benchmarks.vector_stores --count=200000 lancedb usearch faiss

Vectors are made up and clustered, as those of videos are: unit length, around centres
that lie around fewer centres. Exact search with numpy gives the truth. Seconds of
building are of all threads together; queries run one at a time, after a warm-up.
usearch and faiss keep vectors alone; facts would lie in SQLite beside them. Each store
has a process of its own: its memory is what it holds after the queries, less what the
vectors and numpy take there.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import psutil


def make(count: int, width: int, queries: int, seed: int = 0):
  """Returns unit vectors float32[count, width] and as many queries near some of them."""
  rng = np.random.default_rng(seed)
  topics = rng.normal(size=(64, width))
  centres = topics[rng.integers(64, size=2_000)] + 0.7 * rng.normal(size=(2_000, width))

  def around(points, spread):
    found = points + spread * rng.normal(size=points.shape)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

  vectors = np.empty((count, width), np.float32)  # Filled piece by piece: it may be 10 GB.
  for first in range(0, count, 50_000):
    size = min(50_000, count - first)
    vectors[first : first + size] = around(centres[rng.integers(2_000, size=size)], 0.5)
  scale = float(np.linalg.norm(centres, axis=1).mean())
  return vectors, around(vectors[rng.integers(count, size=queries)] * scale, 0.5)


def exact(vectors, queries, k):
  """Returns int[queries, k], the nearest of each, by blocks."""
  best = []
  for query in queries:
    similarity = vectors @ query
    near = np.argpartition(-similarity, k)[:k]
    best.append(near[np.argsort(-similarity[near])])
  return np.array(best)


class Numpy:
  """Exact; nothing is built."""

  def __init__(self, folder, vectors):
    self.vectors = vectors
    np.save(folder / 'vectors.npy', vectors)

  def search(self, query, k):
    return exact(self.vectors, [query], k)[0]

  def add(self, vectors):
    self.vectors = np.concatenate([self.vectors, vectors])


class LanceDB:
  """IVF_PQ on disk; the best of it are compared by their vectors."""

  probes, refine = 20, 10

  def __init__(self, folder, vectors):
    import lancedb
    from lancedb.index import IvfPq

    self._table = lancedb.connect(folder).create_table('clips', self._rows(vectors, 0))
    self._table.create_index('vector', config=IvfPq(distance_type='cosine'))
    self.count = len(vectors)

  def _rows(self, vectors, first):
    import pyarrow as pa

    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    return pa.table({'id': np.arange(first, first + len(vectors)), 'vector': column})

  def search(self, query, k):
    asked = self._table.search(query).distance_type('cosine').limit(k)
    asked = asked.nprobes(self.probes).refine_factor(self.refine).select(['id', '_distance'])
    return asked.to_arrow()['id'].to_numpy()

  def add(self, vectors):
    self._table.add(self._rows(vectors, self.count))


class LanceDBWide(LanceDB):
  """The same, and it looks further."""

  probes, refine = 50, 20


class Usearch:
  """HNSW in memory, of float16, saved whole."""

  def __init__(self, folder, vectors):
    from usearch.index import Index

    self._index = Index(ndim=vectors.shape[1], metric='cos', dtype='f16')
    self._index.add(np.arange(len(vectors)), vectors)
    self._path = folder / 'vectors.usearch'
    self._index.save(str(self._path))

  def search(self, query, k):
    return self._index.search(query, k).keys

  def add(self, vectors):
    self._index.add(np.arange(len(vectors)) + len(self._index), vectors)
    self._index.save(str(self._path))


class Faiss:
  """IVF in memory, of 8 bits a number, saved whole."""

  def __init__(self, folder, vectors):
    import faiss

    cells = int(np.sqrt(len(vectors)))
    self._write, self._path = faiss.write_index, str(folder / 'vectors.faiss')
    self._index = faiss.index_factory(
      vectors.shape[1], f'IVF{cells},SQ8', faiss.METRIC_INNER_PRODUCT
    )
    self._index.train(vectors[:: max(len(vectors) // (50 * cells), 1)])
    self._index.add(vectors)
    self._index.nprobe = 20
    self._write(self._index, self._path)

  def search(self, query, k):
    return self._index.search(query[None], k)[1][0]

  def add(self, vectors):
    self._index.add(vectors)
    self._write(self._index, self._path)


STORES = {
  'numpy': Numpy,
  'lancedb': LanceDB,
  'lancedb_wide': LanceDBWide,
  'usearch': Usearch,
  'faiss': Faiss,
}


def measure(name: str, count: int, width: int, queries: int, folder: pathlib.Path, k: int = 10):
  """Returns the figures of one store."""
  vectors, asked = make(count, width, queries)
  truth = exact(vectors, asked, k)
  own = psutil.Process()
  before, start = sum(own.cpu_times()[:2]), time.monotonic()
  store = STORES[name](folder, vectors)
  built = time.monotonic() - start, sum(own.cpu_times()[:2]) - before
  for query in asked[:50]:
    store.search(query, k)
  found, seconds = [], []
  for query in asked:
    start = time.perf_counter()
    found.append(store.search(query, k))
    seconds.append(time.perf_counter() - start)
  held = own.memory_info().rss
  start = time.monotonic()
  store.add(vectors[:1_000])
  added = time.monotonic() - start
  hits = [len(set(map(int, a)) & set(map(int, b))) for a, b in zip(found, truth, strict=True)]
  return {
    'store': name,
    'recall@10': round(np.mean(hits) / k, 4),
    'p50_ms': round(1e3 * float(np.percentile(seconds, 50)), 2),
    'p99_ms': round(1e3 * float(np.percentile(seconds, 99)), 2),
    'build_s': round(built[0], 1),
    'build_cpu_s': round(built[1], 1),
    'disk_mb': round(sum(x.stat().st_size for x in folder.rglob('*') if x.is_file()) / 1e6),
    'memory_mb': round((held - vectors.nbytes) / 1e6),
    'add_1000_s': round(added, 2),
  }


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('stores', nargs='+', choices=STORES)
  parser.add_argument('--count', type=int, default=200_000)
  parser.add_argument('--width', type=int, default=256)
  parser.add_argument('--queries', type=int, default=200)
  args = parser.parse_args()
  if len(args.stores) > 1:
    options = [f'--{x}={getattr(args, x)}' for x in ('count', 'width', 'queries')]
    for name in args.stores:
      subprocess.run([sys.executable, '-m', 'benchmarks.vector_stores', name, *options], check=True)
    return
  with tempfile.TemporaryDirectory(dir=os.environ.get('TMPDIR')) as folder:
    own = measure(args.stores[0], args.count, args.width, args.queries, pathlib.Path(folder))
  print(json.dumps({'count': args.count, 'width': args.width, **own}), flush=True)


if __name__ == '__main__':
  main()
