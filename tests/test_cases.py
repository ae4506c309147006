"""Choosing what a page shows: clear finds, far misses, sure answers."""

import numpy as np

from alpro_jax import metrics
from alpro_jax.evaluation import candidates, cases, retrieval
from alpro_jax.evaluation.question_answering import AnswerResult, AskedQuestion
from configs import common
from tests import small_sets


def searched(scores, pairs=None):
  """A Retrieval of hand-made scores, text i of video i without pairs."""
  scores = np.asarray(scores, np.float32)
  if pairs is None:
    pairs = np.stack([np.arange(len(scores))] * 2, 1)
  top = np.argsort(-scores, axis=1, kind='stable')[:, :10]
  return retrieval.Retrieval(
    tuple(f'text {i}' for i in range(len(scores))),
    pairs,
    scores,
    None,
    {},
    {},
    candidates.Order(
      (candidates.TopK(top, np.take_along_axis(scores, top, 1)), None),
      (metrics.rank_matrix(scores, pairs)['t2v'][1], None, None),
    ),
  )


def test_clear_finds_and_far_misses():
  scores = np.diag([5.0, 9.0, 1.0, 1.0])
  scores[2] = [3, 2, 1, 0]  # Rank 3.
  scores[3, 0] = 2  # Rank 2.
  best, worst = cases.choose_searches(searched(scores))
  assert best == [(1, 1, 1), (0, 0, 1)]
  assert worst == [(2, 2, 3), (3, 3, 2)]


def test_a_text_counts_by_the_best_of_its_videos():
  scores = np.array([[1.0, 3.0, 2.0, 0.0]])
  best, worst = cases.choose_searches(searched(scores, np.array([[0, 0], [0, 2]])))
  assert best == [] and worst == [(0, 2, 2)]
  # With all first places its own, it leads by the first that is not.
  best, _ = cases.choose_searches(searched(scores, np.array([[0, 1], [0, 2]])))
  assert best == [(0, 1, 1)]
  best, worst = cases.choose_searches(searched([[1.0]], np.array([[0, 0]])))
  assert best == [(0, 0, 1)] and worst == []


def test_groups_take_turns():
  assert cases.take_turns('abcd', 'xxyx') == ['a', 'c', 'b', 'd']


def test_the_surest_answers_of_every_kind():
  asked = [
    AskedQuestion(0, 'who?', 'a', 'who'),
    AskedQuestion(1, 'who?', 'a', 'who'),
    AskedQuestion(2, 'what?', 'a', 'what'),
    AskedQuestion(3, 'whose?', 'a', 'who'),
    AskedQuestion(4, 'how?', 'b', 'how'),
    AskedQuestion(5, 'how?', 'c', 'how'),
  ]
  logits = np.array([[9, 0], [8, 0], [5, 0], [1, 0], [2, 0], [4, 0]], np.float32)
  answered = AnswerResult(tuple(asked), ('a', 'b'), logits, {}, {}, {})
  right, wrong = cases.choose_answers(answered, 3)
  # The same words again come last of their kind.
  assert right == [0, 2, 3]
  assert wrong == [5, 4]
  assert cases.choose_answers(answered, 9)[0] == [0, 2, 3, 1]


def test_reads_clips_as_the_model_sees_them():
  prepared = small_sets.MemorySet(5)
  config = common.get_config('tiny').data
  config.update({'frames': 2, 'image_size': 16, 'resize': 16})
  clips = cases.read_clips(config, prepared, [3, 1, 3])
  assert prepared.fetched == [3, 1]
  records, frames = small_sets.who(np.stack(clips))
  assert records.tolist() == [3, 1, 3]
  assert frames[0].tolist() == [0, 4]
