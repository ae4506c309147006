"""Asks a server of a search from many clients while its index grows.

  python -m benchmarks.search_load --clients=32 --seconds=60

Copies of the clips that come with the model `shapes` are indexed and served; one client
asks for a while, then many do, and another process indexes more copies meanwhile. An answer
is wrong if it is no 200, if hits are not in the order of their similarity, if one is not of
the index as it is in the end, or if a better one was left out that was there at the start.
"""

import argparse
import http.client
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

import numpy as np
import psutil

from alpro_jax import api
from alpro_jax.search.store import Store

ROOT = pathlib.Path(__file__).parents[1]
TEXTS = [
  f'a {x} {y} drifts {z}'
  for x in ('red', 'blue')
  for y in ('ring', 'disc', 'bar')
  for z in ('left', 'right', 'up')
]
_K = 10


def copy(folder: pathlib.Path, first: int, count: int) -> None:
  """Writes copies of the shipped clips, numbered from `first` on."""
  clips = sorted((api.SHIPPED / 'shapes' / 'clips').glob('*.mp4'))
  folder.mkdir(parents=True, exist_ok=True)
  for number in range(first, first + count):
    shutil.copy(clips[number % len(clips)], folder / f'{number:05}.mp4')


def index(work: pathlib.Path) -> None:
  """Brings the index up to date, by the command."""
  command = ['launch/search.py', 'index', work / 'videos', '--checkpoint=shapes']
  subprocess.run(
    [sys.executable, *command, '--span=1', f'--index={work / "index"}'],
    cwd=ROOT,
    check=True,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )


class Client(threading.Thread):
  """Asks one text after the other on one connection, and keeps what it is told."""

  def __init__(self, port, end, seed, rerank):
    super().__init__(daemon=True)
    self._port, self._end, self._rerank = port, end, rerank
    self._random = random.Random(seed)
    self.seconds, self.answers, self.errors = [], [], []

  def run(self):
    connection = http.client.HTTPConnection('127.0.0.1', self._port, timeout=120)
    while time.monotonic() < self._end:
      text = self._random.choice(TEXTS)
      asked = urllib.parse.urlencode({'q': text, 'k': _K, 'rerank': self._rerank})
      start = time.perf_counter()
      try:
        connection.request('GET', f'/search?{asked}')
        answer = connection.getresponse()
        content = answer.read()
        if answer.status == 200:
          self.answers.append((text, json.loads(content)))
        else:
          self.errors.append((answer.status, content[:200]))
      except (OSError, ValueError, http.client.HTTPException) as error:
        self.errors.append(repr(error))
        connection.close()
      self.seconds.append(time.perf_counter() - start)


def ask(port: int, clients: int, seconds: float, rerank: int = 0):
  """Returns clients that have asked."""
  started = [Client(port, time.monotonic() + seconds, seed, rerank) for seed in range(clients)]
  for client in started:
    client.start()
  for client in started:
    client.join()
  return started


def wrong(answers, store: Store, features, least) -> list[str]:
  """Says what is wrong with answers; see the module.

  Args:
    answers: (text, what was answered).
    store: the index in the end.
    features: float32[E] of each text.
    least: the similarity of the last hit at the start, of each text.
  """
  clips, said = store.clips(), []
  place = {int(clip): i for i, clip in enumerate(clips.id)}
  for text, answer in answers:
    hits = sorted(
      (hit for video in answer['videos'] for hit in video['hits']),
      key=lambda hit: -hit['similarity'],
    )
    found = [place.get(int(hit['clip']), -1) for hit in hits]
    if len(set(found)) != _K or -1 in found:
      said.append(f'{text}: clips {found}')
      continue
    true = clips.vector[found] @ features[text]
    if np.abs(true - [hit['similarity'] for hit in hits]).max() > 1e-4:
      said.append(f'{text}: similarities of other clips')
    if [hit['start'] for hit in hits] != clips.start[found].tolist():
      said.append(f'{text}: spans of other clips')
    if true.min() < least[text] - 1e-4:
      said.append(f'{text}: nearer clips were left out')
  return said


def figures(name, clients, seconds):
  taken = np.concatenate([client.seconds for client in clients])
  return {
    f'{name}/requests_per_s': len(taken) / seconds,
    f'{name}/p50_ms': 1e3 * float(np.percentile(taken, 50)),
    f'{name}/p99_ms': 1e3 * float(np.percentile(taken, 99)),
    f'{name}/errors': sum(len(client.errors) for client in clients),
  }


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--clients', type=int, default=32)
  parser.add_argument('--seconds', type=float, default=60.0)
  parser.add_argument('--rerank', type=int, default=0)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    copy(work / 'videos', 0, 60)
    index(work)
    model = api.load('shapes')
    features = dict(zip(TEXTS, model.embed_texts(TEXTS).feature, strict=True))
    vectors = Store.open(work / 'index').clips().vector
    least = {x: float(np.sort(vectors @ y)[-_K]) for x, y in features.items()}
    server = subprocess.Popen(
      [sys.executable, 'launch/search.py', 'serve', '--port=0', f'--index={work / "index"}'],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      text=True,
    )
    try:
      port = urllib.parse.urlparse(server.stdout.readline().strip()).port
      ask(port, 4, 5, args.rerank)
      alone = ask(port, 1, args.seconds / 3, args.rerank)
      ended, memory = threading.Event(), []

      def grow():
        number = 60
        while not ended.is_set():
          copy(work / 'videos', number, 30)
          index(work)
          number += 30

      def watch():
        while not ended.wait(1):
          memory.append(psutil.Process(server.pid).memory_info().rss / 1e6)

      beside = [threading.Thread(target=x) for x in (grow, watch)]
      for thread in beside:
        thread.start()
      many = ask(port, args.clients, args.seconds, args.rerank)
      ended.set()
      for thread in beside:
        thread.join()
      server.send_signal(signal.SIGTERM)
      status = server.wait(60)
    finally:
      server.kill()
    store = Store.open(work / 'index')
    answers = [x for client in [*alone, *many] for x in client.answers]
    found = wrong(answers, store, features, least)
    tenth = max(len(memory) // 10, 1)
    said = figures('one client', alone, args.seconds / 3)
    said |= figures(f'{args.clients} clients', many, args.seconds)
    said |= {
      'wrong answers': len(found),
      'clips at the start': len(vectors),
      'clips in the end': store.counts()[1],
      'server MB after a tenth': memory[tenth],
      'server MB in the end': memory[-1],
      'server ended with': status,
    }
  for name, value in said.items():
    print(f'{name:30} {value:,.6g}')
  for line in [*found[:5], *(x for client in many for x in client.errors[:1])][:10]:
    print(line)


if __name__ == '__main__':
  main()
