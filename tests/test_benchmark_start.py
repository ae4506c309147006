"""A start late in a run of a large set costs what an early one does."""

import tensorflow as tf

from alpro_jax.data import dataset, order
from alpro_jax.data.mixture import Source
from benchmarks import start
from tests import test_pipeline
from tests.small_sets import Letters, MemorySet, parse


def test_the_made_up_set_is_one(tmp_path):
  start.make_set(tmp_path, 2100)
  prepared = dataset.open_dataset(tmp_path, verify=True)
  assert len(prepared) == len({x.video for x in prepared.metadata()}) == 2100
  records = prepared.fetch([0, 999, 1000, 2099])
  assert len(set(records)) == 1
  assert parse(tf.constant(records[0]))['frames'].shape == (1,)
  config = test_pipeline.options(batch_size=4)
  figures = start.start(str(tmp_path), 100_000, config)
  assert figures['total_s'] > figures['first_batch_s'] > 0
  assert figures['peak_gib'] >= figures['libraries_gib'] > 0


def test_a_late_step_does_no_more_work(monkeypatch):
  """Counted, not timed: what is read, and how many numbers are drawn."""
  real, drawn = order.hash64, []

  def hash64(*parts):
    mixed = real(*parts)
    drawn.append(mixed.size)
    return mixed

  monkeypatch.setattr(order, 'hash64', hash64)
  work = {}
  for step in (10, 100_000):
    data = MemorySet(100)
    asked = []
    monkeypatch.setattr(
      data, 'metadata', lambda data=data, asked=asked: asked.append(1) or data._records
    )
    rows = order.Order([Source(data, 0)], 1, 6)
    asked.clear()
    drawn.clear()
    plan = rows.plan(step, slice(0, 6))
    data.fetch(plan.records)
    order.texts(plan, Letters(), 12)
    work[step] = len(data.fetched), len(asked), sum(drawn)
  blocks = 100_000 // order.BLOCK
  # Six records, and the infos of six: once for the text, once by MemorySet.
  assert work[10][:2] == work[100_000][:2] == (6, 12)
  # But a number for each step before, in whole blocks: milliseconds in all.
  assert work[100_000][2] - work[10][2] <= (blocks + 1) * order.BLOCK
