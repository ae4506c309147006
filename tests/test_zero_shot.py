"""The page about zero-shot retrieval: what it shows."""

import types

import numpy as np
import pytest

from alpro_jax.data.dataset import RecordInfo
from alpro_jax.evaluation import cases
from examples.shapes import probes, zero_shot
from tests.test_cases import searched


class Prepared:
  """A split of clips by name, each with one caption."""

  def __init__(self, captions):
    self._captions = captions

  def metadata(self):
    return [RecordInfo('', (text,), ('',), False, 4) for text in self._captions]

  def captions(self):
    return [[text] for text in self._captions]


def _result(scores, families=None):
  found = searched(scores)
  truth = families and [{'family': family} for family in families]
  trained = types.SimpleNamespace(config=types.SimpleNamespace(data=None))
  return zero_shot.Result({}, trained, Prepared(found.texts), found, truth, None, ())


@pytest.fixture
def clips(monkeypatch):
  monkeypatch.setattr(
    cases, 'read_clips', lambda config, prepared, records: [int(record) for record in records]
  )


def test_shows_clear_finds_and_far_misses(clips):
  scores = np.diag([5.0, 9.0, 1.0, 1.0])
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
  scores = np.diag([9.0, 8.0, 1.0])
  best, _ = zero_shot.searches(_result(scores, ['move', 'move', 'turn']), count=2)
  assert [s.text for s in best] == ['text 0', 'text 2']


def test_tables_of_what_was_asked():
  tables = zero_shot.detail_tables(
    {
      'probes.order.similarity.left_right': 90.0,
      'probes.order.matching.left_right': 95.0,
      'probes.vtm.random': 80.0,
      'probes.vtm.hard': 70.0,
      'other': 1.0,
    }
  )
  assert tables['Order of frames'].rows == [('left right', 90.0, 95.0)]
  assert tables['Match or no match'].rows[-1] == (
    'always no',
    probes.MATCHING_PRIOR,
    probes.MATCHING_PRIOR,
  )
  assert len(tables) == 2
  assert zero_shot.detail_tables({}) == {}
