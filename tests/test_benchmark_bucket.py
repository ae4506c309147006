"""Reading from a bucket is measured whole."""

import os

import pytest

from benchmarks import bucket
from benchmarks import input as reading
from configs import pretrain


@pytest.mark.slow
def test_measures_what_a_bucket_costs(monkeypatch):
  monkeypatch.setattr(reading, 'WINDOWS', 1)
  monkeypatch.setattr(reading, 'CLIPS', 2)
  for name in ('STORAGE_EMULATOR_HOST', 'TENSORSTORE_GCS_HTTP_URL'):
    monkeypatch.setenv(name, '')  # What is set here is unset after.
  cores = os.sched_getaffinity(0)
  config = pretrain.get_config('demo')
  try:
    figures = bucket.measure(config, clips=4, records=3000, latency=0.0)
  finally:
    os.sched_setaffinity(0, cores)
  assert figures['requests_per_clip'] == 1
  # Not a byte more than the record.
  assert figures['record_kb'] <= figures['kb_per_clip'] < 1.01 * figures['record_kb']
  assert figures['shards'] == 3 and figures['requests_per_shard'] == 1
  assert figures['bucket_of_disk/plain'] > 0
