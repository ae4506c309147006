"""Measures how long a run takes to its first batch, early and late in it.

A set of millions of records is made in a minute: its shards are one file under
many names, with the counts and digests that launch/prepare.py would write, and
an index of made-up names and captions. What is in a record does not change how
long a start takes, but for the few records of the first batch.

Every measurement is a process of its own: what one has loaded, and the most
memory that it used, is no matter to the next.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

from absl import logging
from ml_collections import config_dict

from alpro_jax.data import workers
from alpro_jax.train.progress import peak_memory_gib

ROUNDS = 3  # The median counts.
_SHARD = 1000  # Records; as launch/prepare.py makes them.
_WORDS = (
  'a the young woman man dog walks along beach sunset aerial view of city '
  'slow motion hands river in on mountain drone footage with'
).split()


def measure(config, *, records: int, start_step: int) -> dict:
  """Returns seconds and GiB to open a set, and to its first batches.

  Args:
    config: config.data; its batch is read by one host.
    records: of the set.
    start_step: the late step; the early one is 10.
  """
  config = config.copy_and_resolve_references().to_json()
  with tempfile.TemporaryDirectory() as folder:
    logging.info('Making a set of %d records.', records)
    make_set(pathlib.Path(folder), records)
    figures = {
      'records': records,
      'shards': -(-records // _SHARD),
      'index_mb': os.path.getsize(f'{folder}/index-train.jsonl') / 1e6,
    }
    _in_a_process(folder, 10, config)  # Fills the page cache.
    # By turns, so that whatever else runs here meets both.
    steps = (10, start_step)
    done = [(step, _in_a_process(folder, step, config)) for _ in range(ROUNDS) for step in steps]
  for step in steps:
    mine = [found for at, found in done if at == step]
    for name in mine[0]:
      figures[f'step {step}/{name}'] = statistics.median(found[name] for found in mine)
  return figures


def make_set(folder: pathlib.Path, records: int) -> None:
  """Writes a set of photos in the format of launch/prepare.py; see above."""
  from PIL import Image

  from alpro_jax.data import annotations, manifest, record

  Image.new('RGB', (64, 48), 'grey').save(folder / 'photo.png')
  made = record.make_record(
    annotations.Clip('photo.png', ('photo.png',), ('x',), ('',), True),
    root=str(folder),
    fps=1,
    short_side=256,
    quality=85,
    max_frames=0,
    max_seconds=0,
    on_partial='skip',
  )
  shards, files = [], {}
  for start in range(0, records, _SHARD):
    count = min(_SHARD, records - start)
    file = f'set-train.array_record-{len(shards):05}-of-{-(-records // _SHARD):05}'
    if count not in files:
      files[count] = _write_shard(folder / f'shard-{count}', [made] * count)
    os.link(folder / f'shard-{count}.array_record', folder / file)
    shards.append({'file': file, **files[count]})
  index = folder / 'index-train.jsonl'
  sha, rng = hashlib.sha256(), random.Random(0)
  with open(index, 'wb') as lines:
    for number in range(records):
      line = (
        json.dumps(
          {
            'video': f'{number // 1000:06}/{rng.getrandbits(40)}.mp4',
            'captions': [' '.join(rng.choices(_WORDS, k=12))],
            'styles': [''],
            'questions': [],
            'answers': [],
            'kinds': [],
            'still': True,
            'frames': 1,
          }
        ).encode()
        + b'\n'
      )
      sha.update(line)
      lines.write(line)
  manifest.write_whole(
    str(folder / manifest.MANIFEST),
    {
      'format': manifest.FORMAT,
      'name': 'set',
      'others': [],
      'splits': {
        'train': {
          'examples': records,
          'captions': records,
          'questions': 0,
          'bytes': sum(shard['bytes'] for shard in shards),
          'digest': sha.hexdigest(),
          'index': {'file': index.name, 'bytes': index.stat().st_size, 'sha256': sha.hexdigest()},
          'shards': shards,
          'plan': {},
        }
      },
    },
  )


def _write_shard(stem, made):
  """Writes records to a file; returns what the manifest says of it."""
  from alpro_jax.data import parts, progress

  silent = progress.Progress(len(made), log=lambda text: None)
  part = parts.write_part(str(stem), ({} for _ in made), iter(made), silent)
  return {key: part[key] for key in ('examples', 'bytes', 'sha256')}


def _in_a_process(folder, step, config):
  done = subprocess.run(
    [sys.executable, __file__, folder, str(step)],
    input=config,
    env=workers.environment(),
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    raise RuntimeError(f'{__file__} failed:\n{done.stderr}')
  return json.loads(done.stdout.splitlines()[-1])


def start(folder: str, step: int, config) -> dict:
  """Returns what the first batch at a step costs this process."""
  from alpro_jax.data import dataset, pipeline, tokens
  from alpro_jax.data.mixture import Source

  with tempfile.TemporaryDirectory() as place:
    tokenizer = tokens.train_sentencepiece([' '.join(_WORDS)], f'{place}/tokenizer.model', 100)
  before = peak_memory_gib()
  clock, cpu = time.perf_counter(), time.process_time()
  seconds = {}

  def lap(name):
    nonlocal clock
    seconds[name], clock = time.perf_counter() - clock, time.perf_counter()

  # Without the shards' digests: a real set of this size is above the limit.
  prepared = dataset.open_dataset(folder, verify=False)
  lap('open_s')
  source = Source(prepared, 0)
  lap('source_s')
  batches = pipeline.train_batches(
    config,
    [source],
    tokenizer,
    seed=0,
    start_step=step,
    batch_size=config.batch_size,
    rows=slice(0, config.batch_size),
  )
  next(batches)
  lap('first_batch_s')
  seconds['total_s'] = sum(seconds.values())
  # Other programs make this grow a little, not several times.
  seconds['total_cpu_s'] = time.process_time() - cpu
  batches.close()
  return {**seconds, 'libraries_gib': before, 'peak_gib': peak_memory_gib()}


def main():
  parser = argparse.ArgumentParser(
    description='One process of `launch/benchmark.py start`. It reads config.data, as JSON, on '
    'standard input.'
  )
  parser.add_argument('folder')
  parser.add_argument('step', type=int)
  args = parser.parse_args()
  options = config_dict.ConfigDict(json.load(sys.stdin))
  print(json.dumps(start(args.folder, args.step, options)))


if __name__ == '__main__':
  main()
