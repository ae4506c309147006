"""Ranks and recall: drawn cases, a brute force, the original's figures."""

import json
import pathlib

import numpy as np
import pytest

from alpro_jax import metrics

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'retrieval_metrics.json'


def ranks_of(direction, scores, pairs, ties='pessimistic'):
  return metrics.rank_matrix(scores, pairs)[direction][1].resolve(ties)


def test_drawn_case_of_the_docstring():
  scores = np.array([[0.9, 0.1], [0.4, 0.4], [0.2, 0.8]])
  pairs = np.array([[0, 0], [1, 0], [2, 1]])
  np.testing.assert_array_equal(ranks_of('t2v', scores, pairs), [1, 2, 1])
  np.testing.assert_array_equal(ranks_of('t2v', scores, pairs, 'optimistic'), [1, 1, 1])
  np.testing.assert_array_equal(ranks_of('t2v', scores, pairs, 'expected'), [1, 1.5, 1])
  np.testing.assert_array_equal(ranks_of('v2t', scores, pairs), [1, 1])


def test_video_to_text_takes_the_best_of_all_captions():
  # Video 0 has texts 0 (first) and 2 (last): counting the last alone, as the
  # original does, would give rank 3.
  scores = np.array([[0.9, 0.0], [0.5, 0.0], [0.1, 0.0]])
  pairs = np.array([[0, 0], [2, 0]])
  np.testing.assert_array_equal(ranks_of('v2t', scores, pairs), [1])


def test_own_captions_do_not_compete_with_each_other():
  scores = np.array([[0.9], [0.9], [0.1]])
  np.testing.assert_array_equal(ranks_of('v2t', scores, [[0, 0], [1, 0]]), [1])


# Three videos with the captions (0, 1, 2), (3) and (4, 5).
CAPTIONS_OF = np.array([[0, 0], [1, 0], [2, 0], [3, 1], [4, 2], [5, 2]])


def test_both_rules_of_video_to_text_by_hand():
  scores = np.array(
    [
      # video 0, 1, 2
      [0.9, 0.8, 0.1],
      [0.2, 0.7, 0.2],
      [0.1, 0.6, 0.3],
      [0.3, 0.5, 0.9],
      [0.4, 0.1, 0.5],
      [0.5, 0.0, 0.8],
    ]
  )
  # Video 0: its .9 is first. Video 1: three captions of video 0 are ahead of
  # its .5, which is one group. Video 2: one caption is ahead of its .8.
  np.testing.assert_array_equal(ranks_of('v2t', scores, CAPTIONS_OF), [1, 4, 2])
  np.testing.assert_array_equal(ranks_of('v2t_grouped', scores, CAPTIONS_OF), [1, 2, 2])
  figures = metrics.retrieval_metrics(scores, CAPTIONS_OF)
  assert figures['v2t_r1'] == figures['v2t_grouped_r1'] == pytest.approx(100 / 3)
  assert figures['v2t_mean_rank'] == pytest.approx(7 / 3)
  assert figures['v2t_grouped_mean_rank'] == pytest.approx(5 / 3)
  assert (figures['v2t_median_rank'], figures['v2t_grouped_median_rank']) == (2, 2)
  # As CLIP4Clip has it: the best caption of every group, then a square matrix.
  square = np.stack([scores[CAPTIONS_OF[CAPTIONS_OF[:, 1] == v, 0]].max(0) for v in range(3)])
  np.testing.assert_array_equal(1 + (square.T > np.diag(square)[:, None]).sum(1), [1, 2, 2])


def test_grouped_ranks_follow_the_tie_rule():
  # Two captions of video 0 are as good as the only one of video 1.
  scores, pairs = np.full((3, 2), 0.5), np.array([[0, 0], [1, 0], [2, 1]])
  for ties, plain, grouped in (
    ('pessimistic', [2, 3], [2, 2]),
    ('optimistic', [1, 1], [1, 1]),
    ('expected', [1.5, 2], [1.5, 1.5]),
  ):
    np.testing.assert_array_equal(ranks_of('v2t', scores, pairs, ties), plain)
    np.testing.assert_array_equal(ranks_of('v2t_grouped', scores, pairs, ties), grouped)


def test_a_caption_of_two_videos_ties_their_groups():
  scores = np.array([[0.9, 0.9], [0.1, 0.2], [0.3, 0.1]])
  pairs = np.array([[0, 0], [0, 1], [1, 0], [2, 1]])
  np.testing.assert_array_equal(ranks_of('v2t', scores, pairs), [1, 1])
  np.testing.assert_array_equal(ranks_of('v2t_grouped', scores, pairs), [2, 2])


def test_one_caption_each_has_no_groups():
  figures = metrics.retrieval_metrics(np.eye(2), [[0, 0], [1, 1]])
  assert not [name for name in figures if 'grouped' in name]


def test_constant_scores_earn_nothing():
  scores = np.zeros((20, 20))
  pairs = np.stack([np.arange(20)] * 2, 1)
  figures = metrics.retrieval_metrics(scores, pairs)
  assert figures['t2v_r10'] == figures['v2t_r10'] == 0
  assert figures['t2v_mean_rank'] == 20
  assert figures['t2v_r1_optimistic'] == 100
  expected = metrics.retrieval_metrics(scores, pairs, 'expected')
  assert expected['t2v_mean_rank'] == 10.5


def test_one_text_on_four_videos_has_a_ceiling_of_a_quarter():
  pairs = np.array([[v // 4, v] for v in range(8)])
  scores = np.where(np.arange(8)[None] // 4 == np.arange(2)[:, None], 1.0, 0.0)
  scores = scores + np.linspace(0, 0.1, 8)
  figures = metrics.retrieval_metrics(scores, pairs)
  assert figures['t2v_r1_ceiling'] == figures['t2v_r1'] == 25
  assert figures['v2t_r1'] == 100
  assert figures['t2v_r1_chance'] == 12.5


def _brute_force(scores, pairs, ties):
  """Both lists of ranks by sorting, one query at a time."""
  texts, videos = scores.shape
  pairs = sorted(set(map(tuple, pairs)))
  # Ties: competitors are placed before (or after) the right one by the key.
  side = {'pessimistic': 1, 'optimistic': -1}[ties]
  t2v = []
  for text, video in pairs:
    order = sorted(
      range(videos), key=lambda v, t=text, own=video: (-scores[t, v], side * (v == own))
    )
    t2v.append(1 + order.index(video))
  v2t = []
  for video in range(videos):
    own = {t for t, v in pairs if v == video}
    if not own:
      continue
    order = sorted(range(texts), key=lambda t, v=video, own=own: (-scores[t, v], side * (t in own)))
    order = [t for t in order if t not in own or t == next(x for x in order if x in own)]
    v2t.append(1 + next(i for i, t in enumerate(order) if t in own))
  return t2v, v2t


def _grouped_brute_force(scores, pairs, ties):
  """CLIP4Clip's ranks, one video and one group at a time."""
  groups = {}
  for text, video in pairs:
    groups.setdefault(video, set()).add(text)
  ranks = []
  for video in sorted(groups):
    best = {other: max(scores[t, video] for t in own) for other, own in groups.items()}
    own = best.pop(video)
    ranks.append(1 + sum(x > own or (ties == 'pessimistic' and x == own) for x in best.values()))
  return ranks


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('ties', ['pessimistic', 'optimistic'])
def test_agrees_with_a_brute_force_on_matrices_with_ties(seed, ties, monkeypatch):
  monkeypatch.setattr(metrics, 'CELLS', 40)
  generator = np.random.default_rng(seed)
  texts, videos = generator.integers(3, 16, 2)
  scores = generator.integers(0, 5, (texts, videos)).astype(np.float32)
  pairs = np.stack([generator.integers(0, texts, 20), generator.integers(0, videos, 20)], 1)
  t2v, v2t = _brute_force(scores, pairs, ties)
  np.testing.assert_array_equal(ranks_of('t2v', scores, pairs, ties), t2v)
  np.testing.assert_array_equal(ranks_of('v2t', scores, pairs, ties), v2t)
  np.testing.assert_array_equal(
    ranks_of('v2t_grouped', scores, pairs, ties), _grouped_brute_force(scores, pairs, ties)
  )


@pytest.mark.parametrize('ties', metrics.TIES)
def test_equals_the_figures_of_the_original(ties):
  # Scores of the original on 50 pairs, rounded to 4 decimals as it does. No
  # right answer is tied in them, so that every tie rule gives its figures.
  golden = json.loads(GOLDEN.read_text())
  scores = np.array(golden['score_txt_by_vid'])
  pairs = np.stack([np.arange(len(scores))] * 2, 1)
  ours = metrics.retrieval_metrics(scores, pairs, ties)
  for direction, prefix in (('text2video', 't2v'), ('video2text', 'v2t')):
    theirs = golden['metrics'][direction]
    for name, original in (
      ('r1', 'r1'),
      ('r5', 'r5'),
      ('r10', 'r10'),
      ('median_rank', 'medianR'),
      ('mean_rank', 'meanR'),
    ):
      assert ours[f'{prefix}_{name}'] == pytest.approx(theirs[original])


def test_figures_of_another_tie_rule_stand_beside_where_they_differ():
  scores = np.array([[1.0, 1.0], [0.0, 1.0]])
  pairs = [[0, 0], [1, 1]]
  figures = metrics.retrieval_metrics(scores, pairs)
  assert (figures['t2v_r1'], figures['t2v_r1_optimistic']) == (50, 100)
  assert (figures['v2t_mean_rank'], figures['v2t_mean_rank_optimistic']) == (1.5, 1)
  assert 't2v_r1_pessimistic' not in figures
  figures = metrics.retrieval_metrics(scores, pairs, 'expected')
  assert [figures[f't2v_mean_rank{rule}'] for rule in ('', '_optimistic', '_pessimistic')] == [
    1.25,
    1,
    1.5,
  ]
  assert not any(name.endswith('mistic') for name in metrics.retrieval_metrics(np.eye(2), pairs))


def test_dual_softmax_is_the_product_of_both(monkeypatch):
  monkeypatch.setattr(metrics, 'CELLS', 12)
  scores = np.random.default_rng(3).normal(size=(7, 5)).astype(np.float32)
  pairs = np.array([[0, 0], [1, 0], [2, 1], [6, 4], [3, 3], [3, 2]])
  odds = np.exp(4 * scores.astype(np.float64))
  product = odds / odds.sum(0) * odds / odds.sum(1, keepdims=True)
  for matrix, both, queries in (
    (scores, product, metrics.text_queries(pairs)),
    (scores.T, product.T, metrics.video_queries(pairs)),
  ):
    penalty = metrics.dual_softmax_penalty(matrix.T, 4.0)
    np.testing.assert_allclose(penalty, np.log(np.exp(4 * matrix.T.astype(np.float64)).sum(1)) / 8)
    got = metrics.rank_blocks(metrics.row_blocks(matrix), queries, penalty)
    want = metrics.rank_blocks(metrics.row_blocks(both), queries)
    np.testing.assert_array_equal(got.resolve(), want.resolve())
    assert (
      got.resolve() != metrics.rank_blocks(metrics.row_blocks(matrix), queries).resolve()
    ).any()


def test_intervals_of_ranks_are_those_of_plain_resampling():
  generator = np.random.default_rng(0)
  groups = generator.integers(0, 30, 80)
  ranks = generator.geometric(0.1, 80).astype(float)
  got = metrics.rank_intervals(ranks, groups, 't2v', samples=200)
  names, members = np.unique(groups), []
  draws = np.random.default_rng(0)
  for _ in range(200):
    drawn = draws.integers(0, len(names), len(names))
    rows = np.concatenate([ranks[groups == names[i]] for i in drawn])
    members.append(metrics.summarize_ranks(rows, 't2v'))
  assert got.keys() == members[0].keys()
  for name, interval in got.items():
    assert interval == pytest.approx(
      tuple(np.quantile([figures[name] for figures in members], [0.025, 0.975]))
    )
  assert got['t2v_r5'] == pytest.approx(
    metrics.bootstrap_interval(100.0 * (ranks <= 5), groups=groups, samples=200)
  )


def test_interval_holds_the_mean_and_repeats():
  values = np.random.default_rng(0).random(200)
  low, high = metrics.bootstrap_interval(values)
  assert low < values.mean() < high
  assert (low, high) == metrics.bootstrap_interval(values)
  # 200 copies of one group say nothing about the spread over groups.
  assert metrics.bootstrap_interval(values, groups=np.zeros(200)) == (
    pytest.approx(values.mean()),
    pytest.approx(values.mean()),
  )


def test_interval_width_is_that_of_theory():
  values = np.random.default_rng(1).normal(size=4000)
  low, high = metrics.bootstrap_interval(values)
  assert high - low == pytest.approx(2 * 1.96 / np.sqrt(4000), rel=0.1)


def test_blocks_hold_whole_rows_and_no_more_scores_than_allowed(monkeypatch):
  monkeypatch.setattr(metrics, 'CELLS', 12)
  assert [*metrics.row_spans(7, 5)] == [(0, 2), (2, 4), (4, 6), (6, 7)]
  assert [*metrics.row_spans(2, 13)] == [(0, 1), (1, 2)]


def test_refuses_what_has_no_rank():
  good = np.zeros((2, 2))
  with pytest.raises(ValueError, match='1 of 4 scores are NaN'):
    ranks_of('t2v', [[0, np.nan], [0, 0]], [[0, 0]])
  with pytest.raises(ValueError, match='is none of'):
    ranks_of('t2v', good, [[0, 0]], ties='lucky')
  for pair in ([0, 2], [2, 0], [-1, 0], [0, -1]):
    with pytest.raises(ValueError, match='index rows and columns'):
      ranks_of('v2t', good, [[1, 1], pair])
  for pairs in (np.zeros((0, 2), int), [0, 0], [[0, 0, 0]]):
    with pytest.raises(ValueError, match='at least one row'):
      ranks_of('v2t', good, pairs)
  with pytest.raises(ValueError, match='must be \\[texts, videos\\]'):
    ranks_of('t2v', np.zeros(3), [[0, 0]])
  with pytest.raises(ValueError, match='at least one query'):
    metrics.bootstrap_interval([])
