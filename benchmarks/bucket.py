"""Measures what it costs to read a set from a bucket that answers slowly.

The bucket is a small server of Google Cloud Storage in a process of its own, on a core of its
own where there are two: this process has one in all measurements, so that clips/s are of one
core, from the bucket and from disk.
"""

import contextlib
import multiprocessing
import os
import pathlib
import tempfile

from absl import logging

from alpro_jax.data import dataset
from alpro_jax.data.mixture import Source
from benchmarks import input as reading
from benchmarks import start

_BATCHES = 4  # Whose requests are counted.
_PAGE = 1000  # Files that the true bucket lists at once; this one lists all.


def measure(config, *, clips: int, records: int, latency: float) -> dict:
  """Returns requests and bytes per clip, clips/s beside local files, and what a start takes.

  Args:
    config: see configs/common.py.
    clips: of a made-up set whose clips are read and decoded.
    records: of a made-up set of photos, of 1,000 in a shard, that is opened.
    latency: seconds that the server adds to each request.
  """
  cores = sorted(os.sched_getaffinity(0))
  os.sched_setaffinity(0, cores[:1])
  figures = {'latency_ms': 1e3 * latency, 'cores': 1}
  with contextlib.ExitStack() as stack:
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    (folder / 'small').mkdir()
    (folder / 'large').mkdir()
    logging.info('Making up %d clips, and a set of %d records.', clips, records)
    # A batch seldom has two clips of one of many shards.
    reading.make_set(folder / 'small', clips, part_size=1)
    start.make_set(folder / 'large', records)
    counted = stack.enter_context(_server(folder, latency, cores[-1:]))

    here, there = str(folder / 'small/set'), 'gs://bucket/small/set'
    prepared = dataset.open_dataset(there)
    prepared.fetch(range(len(prepared)))  # Opens the shards.
    counted()
    batch = min(len(prepared), reading.CLIPS)
    for _ in range(_BATCHES):
      prepared.fetch(range(batch))
    requests, sent = counted()
    figures['record_kb'] = sum(map(len, prepared.fetch(range(batch)))) / batch / 1e3
    figures['requests_per_clip'] = requests / (_BATCHES * batch)
    figures['kb_per_clip'] = sent / (_BATCHES * batch) / 1e3
    for augmented in (False, True):
      kind, found = 'augmented' if augmented else 'plain', {}
      for name, path in (('disk', here), ('bucket', there)):
        source = Source(dataset.open_dataset(path), 0)
        tokenizer = reading._tokenizer(config.data.tokenizer, source)
        cpu, wall = reading._whole(config.data, source, tokenizer, augmented=augmented, threads=0)
        found[name] = figures[f'clips_per_s/{kind}/{name}'] = 1 / wall
        figures[f'cpu_ms_per_clip/{kind}/{name}'] = 1e3 * cpu
      figures[f'bucket_of_disk/{kind}'] = found['bucket'] / found['disk']

    counted()
    lap = start.start('gs://bucket/large', 10, config.data)
    requests, sent = counted()
    figures |= {
      'shards': -(-records // 1000),
      'open_s': lap['open_s'],
      'first_batch_s': lap['first_batch_s'],
      'start_requests': requests,
      'start_mb': sent / 1e6,
    }
    prepared = dataset.open_dataset('gs://bucket/large', verify=False)
    opening, _ = counted()
    prepared.fetch(range(0, records, 1000))  # One of each shard.
    each, sent = counted()
    shards = figures['shards']
    figures['requests_to_open'] = opening + shards // _PAGE
    figures['requests_per_shard'] = (each - shards) / shards
    figures['kb_per_shard'] = sent / shards / 1e3
  return figures


@contextlib.contextmanager
def _server(folder, latency, cores):
  """Serves a folder as gs://bucket; yields what returns (requests, bytes sent) since last."""
  ours, theirs = multiprocessing.Pipe()
  spawn = multiprocessing.get_context('spawn')
  process = spawn.Process(target=_serve, args=(theirs, folder, latency, cores), daemon=True)
  process.start()
  environment = ours.recv()
  os.environ.update(environment)

  def counted():
    ours.send('count')
    return ours.recv()

  try:
    yield counted
  finally:
    ours.send('end')
    process.join()


def _serve(pipe, folder, latency, cores):
  """Body of the server's process."""
  from tests import gcs_server

  os.sched_setaffinity(0, cores)
  server = gcs_server.Server(latency=latency)
  known = {}  # Names of one file have its bytes once.
  for path in folder.rglob('*'):
    if path.is_file():
      inode = path.stat().st_ino
      if inode not in known:
        known[inode] = path.read_bytes()
      server.put('bucket', path.relative_to(folder).as_posix(), known[inode], {})
  pipe.send(server.environment())
  while pipe.recv() == 'count':
    told, server.requests = server.requests, []
    pipe.send((len(told), sum(sent for *_, sent in told)))
  server.close()
