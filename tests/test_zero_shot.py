"""Choosing what a page shows, and refusing a wrong tokenizer."""

import types

import numpy as np
import pytest

from alpro_jax.evaluation import probes, retrieval, zero_shot
from configs import common


class Prepared:
  """A split of clips by name, each with one caption."""

  def __init__(self, captions):
    self._captions = captions

  def metadata(self):
    return [types.SimpleNamespace(captions=(text,), styles=('',))
            for text in self._captions]


def _result(scores, families=None):
  captions = [f'text {i}' for i in range(len(scores))]
  pairs = np.stack([np.arange(len(scores))] * 2, 1)
  truth = families and [{'family': family} for family in families]
  return zero_shot.Result(
      {}, None, Prepared(captions), retrieval.Retrieval(
          tuple(captions), pairs, scores, None, {}, {}), truth, None, ())


@pytest.fixture
def clips(monkeypatch):
  monkeypatch.setattr(
      zero_shot, 'read_clips',
      lambda result, records: [int(record) for record in records])


def test_shows_clear_finds_and_far_misses(clips):
  scores = np.diag([5., 9., 1., 1.])
  scores[2] = [3, 2, 1, 0]  # Rank 3, clip 0 first.
  scores[3, 0] = 2  # Rank 2.
  best, worst = zero_shot.searches(_result(scores), count=2)
  assert [(s.text, s.rank) for s in best] == [('text 1', 1), ('text 0', 1)]
  assert [(s.text, s.rank) for s in worst] == [('text 2', 3), ('text 3', 2)]
  own, first = worst[0].clips
  assert (own.frames, first.frames) == (2, 0)
  assert first.note == 'came first: “text 0”'
  assert len(best[0].clips) == 1


def test_finds_of_different_families_come_first(clips):
  scores = np.diag([9., 8., 1.])
  best, _ = zero_shot.searches(
      _result(scores, ['move', 'move', 'turn']), count=2)
  assert [s.text for s in best] == ['text 0', 'text 2']


def test_tables_of_what_was_asked():
  tables = zero_shot.detail_tables({
      'probes.order.similarity.left_right': 90.0,
      'probes.order.matching.left_right': 95.0,
      'probes.vtm.random': 80.0, 'probes.vtm.hard': 70.0, 'other': 1.0})
  assert tables['Order of frames'].rows == [('left right', 90.0, 95.0)]
  assert tables['Match or no match'].rows[-1] == (
      'always no', probes.MATCHING_PRIOR, probes.MATCHING_PRIOR)
  assert len(tables) == 2
  assert zero_shot.detail_tables({}) == {}


def test_matching_decides_only_where_it_was_trained():
  config = common.get_config('tiny')
  assert zero_shot.knows_matching(config)
  config.loss.vtm = 0.0
  assert not zero_shot.knows_matching(config)
  config = common.get_config('tiny')
  config.task = 'prompter'
  assert not zero_shot.knows_matching(config)


def test_another_tokenizer_is_refused(monkeypatch):
  config = common.get_config('tiny')
  config.data.tokenizer = 'there.model'
  monkeypatch.setattr(zero_shot.checkpoints, 'load_meta', lambda path: {
      'config': config.to_dict(), 'tokenizer': {'digest': 'abc'}})
  monkeypatch.setattr(
      zero_shot.tokens, 'load_tokenizer',
      lambda path: types.SimpleNamespace(digest='xyz'))
  with pytest.raises(ValueError, match='there.model has digest xyz'):
    zero_shot.load('run')
