"""Hosts whose shards hold unequal counts take equal steps and lose nothing.

Shards are a way to store, not to deal out: a host reads its rows of every
batch, from whatever shard they lie in. Here from real ones, of 3, 3 and 1.
"""

import json

import numpy as np
import pytest

from alpro_jax.data import dataset, pipeline
from alpro_jax.data.mixture import open_sources
from configs import common
from tests import small_videos
from tests.small_sets import SIZE, Letters

BATCH = 4
STEPS = 7  # Four epochs of seven clips.


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  path = small_videos.prepare_seven(tmp_path_factory.mktemp('seven'))
  manifest = json.loads((path / 'manifest.json').read_text())
  assert [shard['examples'] for shard in manifest['splits']['train']['shards']] == [3, 3, 1]
  return path


def options(path):
  config = common.get_config().data
  config.update(
    {
      'image_size': SIZE,
      'resize': SIZE,
      'max_text_tokens': 12,
      'threads': 1,
      'frames': 2,
      'randaugment': {'enabled': False},
      'sampling': 'rand',
      'sources': (common.source(str(path)),),
    }
  )
  return config


def rows_of(hosts):
  share = BATCH // hosts
  return [slice(host * share, (host + 1) * share) for host in range(hosts)]


def train(path, rows):
  config = options(path)
  batches = pipeline.train_batches(
    config, open_sources(config), Letters(), seed=3, start_step=0, batch_size=BATCH, rows=rows
  )
  got = [next(batches) for _ in range(STEPS)]
  batches.close()
  return got


def evaluate(path, rows):
  return list(
    pipeline.eval_batches(options(path), dataset.open_dataset(path), batch_size=BATCH, rows=rows)
  )


@pytest.mark.parametrize('run, steps', [(train, STEPS), (evaluate, 2)])
@pytest.mark.parametrize('hosts', (2, 4))
def test_hosts_take_equal_steps_and_make_one_batch(path, run, steps, hosts):
  whole = run(path, slice(0, BATCH))
  parts = [run(path, rows) for rows in rows_of(hosts)]
  assert [len(part) for part in (whole, *parts)] == [steps] * (hosts + 1)
  for batch, *pieces in zip(whole, *parts, strict=True):
    for name, value in batch.items():
      np.testing.assert_array_equal(value, np.concatenate([piece[name] for piece in pieces]), name)
  # Every clip as often as any other, whatever its shard.
  name = 'video_id' if run is train else 'record'
  videos = np.concatenate([batch[name] for batch in whole])
  valid = np.concatenate([batch['valid'] for batch in whole])
  _, counts = np.unique(videos[valid], return_counts=True)
  assert counts.tolist() == [4 if run is train else 1] * 7
