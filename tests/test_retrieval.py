"""Retrieval: features once, uneven batches, several devices, full precision.

Ranks are compared with loops over single pairs, on made-up features and a
made-up matcher; only the tests of Scorer compile a model.
"""

import dataclasses
import errno
import json
import os
import pathlib
import tracemalloc
import types

import jax
import numpy as np
import pytest
from absl import logging

from alpro_jax import metrics, sharding
from alpro_jax.data import progress as progress_lines
from alpro_jax.evaluation import candidates, retrieval
from alpro_jax.evaluation import scorer as scoring_on_devices
from alpro_jax.models.alpro import Alpro, AlproConfig
from configs import models
from tests.processes import run_two
from tests.small_task import fresh_params

CAPTIONS = [
  ['a red disc'],
  ['a disc', 'a ring'],
  ['a red disc'],
  [],
  ['up', 'down', 'a ring'],
  ['left'],
  ['right'],
]


def encode(texts, max_tokens):
  """A tokenizer by letters: CLS is 1, SEP 2, PAD 0."""
  ids = np.zeros((len(texts), max_tokens), np.int32)
  for row, text in zip(ids, texts, strict=True):
    letters = [ord(c) % 40 + 5 for c in text][: max_tokens - 2]
    row[: len(letters) + 2] = [1, *letters, 2]
  return ids, ids > 0


def small_config():
  values = models.tiny().to_dict()
  values['video'] |= {
    'image_size': 24,
    'frames': 2,
    'depth': 1,
    'width': 16,
    'mlp_size': 32,
    'position_std': 1.0,
    'matrix_std': 0.2,
  }
  values['text'] |= {
    'vocab_size': 50,
    'width': 16,
    'mlp_size': 32,
    'depth': 2,
    'fusion_layer': 1,
    'word_std': 1.0,
    'matrix_std': 0.3,
  }
  values['embed_size'] = 8
  return AlproConfig.from_dict(values)


def make_model():
  module = Alpro(small_config())
  return module, fresh_params(module)


@pytest.fixture(scope='module')
def model():
  return make_model()


def clips(seed=0):
  return np.random.default_rng(seed).integers(0, 256, (len(CAPTIONS), 2, 24, 24, 3), np.uint8)


def batches(size, videos, order=None):
  """Batches of `size` in some order, the last one padded with valid=False."""
  order = np.arange(len(videos)) if order is None else order
  for start in range(0, len(order), size):
    record = order[start : start + size]
    valid = np.arange(size) < len(record)
    record = np.resize(record, size)
    yield {'video': videos[record], 'record': record, 'valid': valid}


def scorer(model, devices=1, pairs_per_call=6):
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  params = jax.device_put(model[1], sharding.replicated(mesh))
  return retrieval.Scorer(
    model[0],
    params,
    mesh,
    encode=encode,
    max_text_tokens=12,
    batch_size=4,
    pairs_per_call=pairs_per_call,
  )


def plain_scores(model, text, video):
  """One pair alone, straight from the model."""
  ids, mask = encode([text], 12)

  @jax.jit
  def score(params, video):
    module = model[0].bind({'params': params})
    text = module.encode_text(ids, mask, train=False)
    video = module.encode_video(video[None], train=False)
    fused = module.fuse(text.tokens, mask, video.tokens, train=False)
    logits = module.match_logits(fused[:, 0])[0]
    similarity = (text.feature @ video.feature.T)[0, 0]
    return similarity, logits[1] - logits[0]

  return map(float, score(model[1], video))


def test_lists_every_caption_once():
  texts, pairs = retrieval.list_pairs([['b', 'a', 'b'], [], ['a']])
  assert texts == ('b', 'a')
  assert pairs.tolist() == [[0, 0], [1, 0], [1, 2]]


def test_scores_are_those_of_the_model(model):
  videos = clips()
  found, _, _ = retrieval.retrieve(scorer(model), batches(3, videos), CAPTIONS)
  assert found.similarity.shape == found.matching.shape == (7, 7)
  for text, video in ((2, 6), (6, 3)):
    similarity, margin = plain_scores(model, found.texts[text], videos[video])
    assert found.similarity[text, video] == pytest.approx(similarity, abs=1e-5)
    assert found.matching[text, video] == pytest.approx(margin, abs=1e-4)
  # Not a matrix of one number: the test would be empty.
  assert found.matching.std() > 1e-3


# Everything that is scored, in ways that do not divide evenly.
WAYS = {
  'all': retrieval.Scoring(dual_softmax=True),
  'near': retrieval.Scoring('matching+similarity', 2, dual_softmax=True),
}
ONE = [['a red disc']]


def figures_of(make, batches_of):
  """{name: figures} of all WAYS on CAPTIONS, and on a split of one video."""
  found = {}
  for name, scoring in WAYS.items():
    for captions in (CAPTIONS, ONE):
      result, _, _ = retrieval.retrieve(make, batches_of(len(captions)), captions, scoring)
      found[f'{name} {len(captions)}'] = {
        **result.metrics,
        **result.cost,
        'top': result.order.top[0].item[0].tolist(),
        **{f'{k} interval': list(v) for k, v in result.intervals.items()},
      }
  return found


@pytest.fixture(scope='module')
def want(model):
  """What one device finds, one video at a time in the fusion encoder."""
  return figures_of(scorer(model, pairs_per_call=1), lambda n: batches(n, clips()[:n]))


def test_eight_devices_agree_with_one(model, want):
  order = np.random.default_rng(1).permutation(7)
  got = figures_of(
    scorer(model, 8, pairs_per_call=20), lambda n: batches(8, clips()[:n], order[order < n])
  )
  assert got == want
  assert want['all 1']['t2v_r1'] == want['near 1']['v2t_r1'] == 100
  assert want['near 7']['pairs'] < 49 == want['all 7']['pairs']


@pytest.mark.slow
def test_two_processes_agree_with_one(want, tmp_path):
  files = [tmp_path / f'{index}.json' for index in range(2)]
  run_two('two_processes_retrieve', files)
  for file in files:
    assert json.loads(file.read_text()) == want


def test_chosen_pairs_score_as_in_the_matrix(model):
  score = scorer(model, 2, pairs_per_call=8)
  found, texts, videos = retrieval.retrieve(score, batches(4, clips()), CAPTIONS)
  text, video = np.array([[0, 0], [0, 1], [3, 2], [2, 5], [6, 6]]).repeat(3, 0).T
  np.testing.assert_allclose(
    score.matching_by_video(texts, videos, text, video).margin,
    found.matching[text, video],
    atol=1e-4,
  )
  assert score.matching_by_video(texts, videos, text[:0], video[:0]).margin.shape == (0,)
  # The rule of LAVIS adds the bare logit of a match and the cosine.
  both, _, _ = retrieval.retrieve(
    score, batches(4, clips()), CAPTIONS, retrieval.Scoring('matching+similarity')
  )
  logit = score.matching(texts, videos).logit
  np.testing.assert_array_equal(both.scores, logit + found.similarity)
  assert np.abs(logit - found.matching).max() > 0.1


def test_an_equal_clip_finds_its_text_by_similarity_of_features(model):
  # Columns follow the records, not the order of arrival.
  videos = clips()
  videos[5] = videos[0]
  found, _, _ = retrieval.retrieve(
    scorer(model), batches(3, videos, np.arange(7)[::-1]), CAPTIONS, retrieval.Scoring('similarity')
  )
  np.testing.assert_allclose(found.similarity[:, 5], found.similarity[:, 0], atol=1e-6)
  assert found.matching is None and found.scores is found.similarity
  assert found.metrics['t2v_r1'] == found.metrics['similarity/t2v_r1']


def test_margins_do_not_saturate(model):
  # With a head 1000 times as steep, the probability is 0 or 1 in float32 for
  # every pair; the margin still tells all of them apart.
  params = jax.tree.map(lambda x: x, model[1])
  params['match_head'] = jax.tree.map(lambda x: 1e3 * x, params['match_head'])
  found, _, _ = retrieval.retrieve(scorer((model[0], params)), batches(7, clips()), CAPTIONS)
  probability = np.asarray(jax.nn.sigmoid(found.matching))
  assert len(np.unique(probability)) < len(np.unique(found.matching))
  assert len(np.unique(found.matching)) == found.matching.size


def test_refuses_missing_and_repeated_records(model):
  videos = clips()
  score = scorer(model)
  with pytest.raises(ValueError, match='saw 6 videos, 6 of them distinct'):
    score.embed_videos(batches(3, videos, np.arange(6)), 7)
  with pytest.raises(ValueError, match='saw 7 videos, 6 of them'):
    score.embed_videos(batches(7, videos, np.array([0, 1, 2, 3, 4, 5, 5])), 7)
  with pytest.raises(ValueError, match='saw no batch'):
    score.embed_videos([], 7)
  with pytest.raises(ValueError, match='no text to encode'):
    score.embed_texts([])


def test_progress_says_rate_and_time_left(caplog, monkeypatch):
  clock = iter([0.0, 5.0, 20.0, 21.0])
  monkeypatch.setattr(progress_lines.time, 'monotonic', lambda: next(clock))
  with caplog.at_level('INFO', logger='absl'):
    progress = progress_lines.Progress(100, 'pairs', log=logging.info)
    progress.add(10)
    progress.add(30)
    progress.add(60)
  assert [r.getMessage() for r in caplog.records] == [
    '40/100 pairs, 2.0/s, 0 min 30 s left',
    '100/100 pairs, 4.8/s, 0 min 00 s left',
  ]


def test_rows_of_one_video_each():
  width, first, count = scoring_on_devices._rows_of(np.repeat([0, 2, 3], [17, 2, 8]), 64)
  assert width == 2
  assert first.tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16, 17, 19, 21, 23, 25]
  assert count.tolist() == [2] * 8 + [1] + [2] * 5
  assert scoring_on_devices._rows_of(np.zeros(100, int), 3)[0] == 2
  assert scoring_on_devices._rows_of(np.array([5]), 8)[0] == 1


def test_large_tokens_go_to_a_file(model, tmp_path):
  score = scorer(model)
  score._folder, score._memory_limit = str(tmp_path), 7 * 12 * 16 * 4
  videos = score.embed_videos(batches(3, clips()), 7)
  texts = score.embed_texts([f'text {i}' for i in range(7)])
  # 5 tokens a video, 12 a text: only the texts reach the limit.
  assert type(videos.tokens) is np.ndarray
  score._memory_limit -= 1
  on_disk = score.embed_texts([f'text {i}' for i in range(7)])
  assert isinstance(on_disk.tokens, np.memmap)
  np.testing.assert_array_equal(on_disk.tokens, texts.tokens)
  assert not list(tmp_path.iterdir())


def test_a_folder_without_room_for_the_tokens_is_named(model, tmp_path, monkeypatch):
  score = scorer(model)
  score._memory_limit = 0
  score._folder = str(tmp_path / 'gone')
  texts = ['a', 'b']
  with pytest.raises(
    OSError,
    match=r"config\.eval\.folder='.*/gone' cannot "
    'take 0 MiB of tokens: No such file',
  ):
    score.embed_texts(texts)

  # Room is asked for as a whole, before anything is written into it.
  def full(file, start, size):
    assert (start, size) == (0, 2 * 12 * 16 * 4)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, 'posix_fallocate', full)
  score._folder = str(tmp_path)
  with pytest.raises(OSError, match='tokens: No space left on device. Name a '):
    score.embed_texts(texts)
  assert not list(tmp_path.iterdir())


def test_tokens_keep_the_compute_type(model):
  config = dataclasses.replace(small_config(), dtype='bfloat16')
  score = scorer((Alpro(config), model[1]))
  tokens, feature = jax.eval_shape(
    score._call.text, score.params, np.ones((4, 12), np.int32), np.ones((4, 12), bool)
  )
  stored = score._store(9, np.zeros(tokens.shape, tokens.dtype))
  assert stored.dtype == tokens.dtype == jax.numpy.bfloat16
  assert stored.shape == (9, 12, 16) and feature.dtype == np.float32


class Matcher:
  """Stands for a Scorer: scores of pairs from a table."""

  def __init__(self, margin, logit):
    self.table = scoring_on_devices.Matching(margin, logit)
    self.read = []

  def matching(self, texts, videos):
    return self.table

  def matching_by_video(self, texts, videos, text, video):
    assert (np.diff(video) >= 0).all()
    self.read = list(zip(text.tolist(), video.tolist(), strict=True))
    return scoring_on_devices.Matching(*(x[text, video] for x in self.table))

  def temperature(self):
    return 0.5


@pytest.fixture
def few_draws(monkeypatch):
  """Intervals of 20 samples, for tests that do not look at them."""
  draws = metrics._draws
  monkeypatch.setattr(metrics, '_draws', lambda groups, _, seed: draws(groups, 20, seed))


def made_up(seed, texts=13, videos=9):
  """Features, scores and pairs with many ties; whole numbers, so exact."""
  generator = np.random.default_rng(seed)
  text, video = (generator.integers(-1, 2, (n, 3)).astype(np.float32) for n in (texts, videos))
  margin, logit = generator.integers(0, 6, (2, texts, videos)).astype(np.float32)
  # Several captions a video, one caption for several, some without any.
  pairs = np.stack([generator.integers(0, texts, 16), generator.integers(0, videos, 16)], 1)
  return (
    Matcher(margin, logit),
    retrieval.TextFeatures(np.ones((texts, 1), bool), None, text),
    retrieval.VideoFeatures(None, video),
    list(map(str, range(texts))),
    pairs,
  )


def brute_force(similarity, scores, pairs, k, ties):
  """Ranks of texts and of videos, one comparison at a time."""

  def rank(near, score, own, groups=()):
    first = sorted(range(len(near)), key=lambda i: (-near[i], i))[:k]
    key = [(0, -score[i]) if i in first else (1, -near[i]) for i in range(len(near))]
    best = min(key[i] for i in own)
    others = [key[i] for i in range(len(near)) if i not in own]
    if groups:
      others = [min(key[i] for i in group) for group in groups]
    level = sum(x == best for x in others)
    share = {'pessimistic': 1, 'optimistic': 0, 'expected': 0.5}[ties]
    return 1 + sum(x < best for x in others) + share * level

  pairs = sorted({tuple(map(int, pair)) for pair in pairs})
  groups = {video: {t for t, u in pairs if u == video} for video in sorted({v for _, v in pairs})}
  sides = [(similarity[:, v], scores[:, v], own) for v, own in groups.items()]
  return (
    [rank(similarity[t], scores[t], {v}) for t, v in pairs],
    [rank(*side) for side in sides],
    [
      rank(*side, [own for other, own in groups.items() if other != video])
      for video, side in zip(groups, sides, strict=True)
    ],
  )


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('rule', retrieval.RULES)
@pytest.mark.parametrize('dense', [True, False])
def test_ranks_agree_with_a_brute_force(seed, rule, dense, few_draws, monkeypatch):
  monkeypatch.setattr(metrics, 'CELLS', 30)
  monkeypatch.setattr(retrieval, 'DENSE_PAIRS', 10**6 if dense else 0)
  matcher, texts, videos, names, pairs = made_up(seed)
  similarity = texts.feature @ videos.feature.T
  scores = {
    'matching': matcher.table.margin,
    'similarity': similarity,
    'matching+similarity': matcher.table.logit + similarity,
  }[rule]
  ks = (0, 1, 3, 9, 11, 13, 50) if dense else (1, 3, 9, 11, 13, 50)
  for k in (0, 5) if rule == 'similarity' else ks:
    found = retrieval.score(matcher, texts, videos, names, pairs, retrieval.Scoring(rule, k))
    reads = k if found.scoring.reads else 0
    for ties in metrics.TIES:
      wanted = brute_force(similarity, scores, pairs, reads or 50, ties)
      for ranks, want in zip(found.order.ranks, wanted, strict=True):
        np.testing.assert_array_equal(ranks.resolve(ties), want)
      if ties != 'pessimistic':
        continue
      np.testing.assert_array_equal(found.ranks, wanted[0])
      figures = {}
      for name, want in zip(('t2v', 'v2t', 'v2t_grouped'), wanted, strict=True):
        figures |= metrics.summarize_ranks(want, name)
      assert {name: found.metrics[name] for name in figures} == figures
      assert found.intervals.keys() == {
        prefix + name for prefix in ('', 'similarity/') for name in figures
      }
    near = metrics.retrieval_metrics(similarity, pairs)
    assert {f'similarity/{name}': value for name, value in near.items()} == {
      name: value for name, value in found.metrics.items() if name.startswith('similarity/')
    }
    assert (found.similarity is not None) == dense
    assert sorted(found.intervals) == sorted(retrieval.figure_names(found.scoring, pairs))


def test_candidates_give_the_figures_of_the_original():
  golden = json.loads(
    (pathlib.Path(__file__).parent / 'golden' / 'retrieval_metrics.json').read_text()
  )
  scores = np.array(golden['score_txt_by_vid'], np.float32)
  _, texts, videos, names, _ = made_up(0, *scores.shape)
  found = retrieval.score(
    Matcher(scores, scores),
    texts,
    videos,
    names,
    np.stack([np.arange(len(scores))] * 2, 1),
    retrieval.Scoring(rerank_k=50),
  )
  for direction, prefix in (('text2video', 't2v'), ('video2text', 'v2t')):
    theirs = golden['metrics'][direction]
    for name in ('r1', 'r5', 'r10', 'meanR', 'medianR'):
      ours = name.replace('meanR', 'mean_rank').replace('medianR', 'median_rank')
      assert found.metrics[f'{prefix}_{ours}'] == pytest.approx(theirs[name])


def test_all_candidates_are_as_all_pairs():
  matcher, texts, videos, names, pairs = made_up(7)
  for rule in retrieval.RULES[:2]:
    every, near = (
      retrieval.score(
        matcher, texts, videos, names, pairs, retrieval.Scoring(rule, k, dual_softmax=True)
      )
      for k in (0, 13)
    )
    assert every.metrics == near.metrics and every.cost == near.cost
    assert every.intervals == near.intervals
    assert every.metrics['dual_softmax/t2v_r1'] >= 0
    for name in ('matching', 'ranks'):
      np.testing.assert_array_equal(getattr(every, name), getattr(near, name))
    np.testing.assert_array_equal(every.order.top[0].score, near.order.top[0].score)
    assert near.scores is None and every.scores is not None


def test_candidates_are_read_once_and_come_first():
  matcher, texts, videos, names, pairs = made_up(2)
  found = retrieval.score(matcher, texts, videos, names, pairs, retrieval.Scoring(rerank_k=2))
  similarity = texts.feature @ videos.feature.T
  by_text = np.argsort(-similarity, axis=1, kind='stable')
  by_video = np.argsort(-similarity.T, axis=1, kind='stable')
  wanted = {(t, v) for t in range(13) for v in by_text[t, :2].tolist()}
  wanted |= {(t, v) for v in range(9) for t in by_video[v, :2].tolist()}
  assert len(matcher.read) == len(wanted) == found.cost['pairs']
  assert set(matcher.read) == wanted
  assert found.cost['share'] == len(wanted) / (13 * 9)
  assert found.matching is None and found.similarity is not None
  margin = matcher.table.margin
  for t in range(13):
    first = sorted(by_text[t, :2], key=lambda v, t=t: -margin[t, v])
    best = found.order.top[0]
    assert best.item[t].tolist() == [*first, *by_text[t, 2:]]
    assert best.score[t].tolist() == [*margin[t, first], *similarity[t, by_text[t, 2:]]]


@pytest.mark.parametrize('dense', [True, False])
def test_dual_softmax_of_similarity_uses_the_temperature(dense, monkeypatch):
  monkeypatch.setattr(metrics, 'CELLS', 30)
  monkeypatch.setattr(retrieval, 'DENSE_PAIRS', 10**6 if dense else 0)
  matcher, texts, videos, names, pairs = made_up(3)
  texts = texts._replace(
    feature=np.random.default_rng(0).normal(size=texts.feature.shape).astype(np.float32)
  )
  found = retrieval.score(
    matcher, texts, videos, names, pairs, retrieval.Scoring('similarity', dual_softmax=True)
  )
  odds = np.exp(2 * (texts.feature @ videos.feature.T).astype(np.float64))
  product = odds / odds.sum(0) * odds / odds.sum(1, keepdims=True)
  want = metrics.retrieval_metrics(product, pairs)
  for name in ('t2v_mean_rank', 'v2t_mean_rank', 't2v_r1'):
    assert found.metrics[f'dual_softmax/{name}'] == want[name]
  assert found.metrics['similarity/t2v_r1'] == found.metrics['t2v_r1']
  assert sorted(found.intervals) == sorted(retrieval.figure_names(found.scoring, pairs))


def test_dual_softmax_of_candidates_sums_over_what_was_read():
  _, texts, videos, names, pairs = made_up(5)
  matcher = Matcher(*np.random.default_rng(0).normal(size=(2, 13, 9)))
  found = retrieval.score(
    matcher, texts, videos, names, pairs, retrieval.Scoring(rerank_k=4, dual_softmax=True)
  )
  odds = np.zeros((13, 9))
  for t, v in matcher.read:
    odds[t, v] = np.exp(matcher.table.margin[t, v])
  product = odds / odds.sum(0) * odds / odds.sum(1, keepdims=True)
  t2v, v2t, _ = brute_force(texts.feature @ videos.feature.T, product, pairs, 4, 'pessimistic')
  for name, value in {
    **metrics.summarize_ranks(t2v, 't2v'),
    **metrics.summarize_ranks(v2t, 'v2t'),
  }.items():
    assert found.metrics[f'dual_softmax/{name}'] == value


@pytest.mark.parametrize('rule', retrieval.RULES[:2])
def test_recall_against_k_is_that_of_smaller_k(rule, few_draws):
  matcher, texts, videos, names, pairs = made_up(4)
  args = matcher, texts, videos, names, pairs
  every = retrieval.score(*args, retrieval.Scoring(rule))
  eight = retrieval.score(*args, retrieval.Scoring(rule, 8))
  rows = retrieval.recall_against_k(every, flops=lambda pairs: 10.0 * pairs)
  assert [row.k for row in rows] == [1, 2, 4, 8, 0]
  for k, row in zip((1, 2, 4, 8, 0), rows, strict=True):
    alone = retrieval.score(*args, retrieval.Scoring(rule, k))
    assert row == (
      k,
      *(alone.metrics[x] for x in ('t2v_r1', 't2v_r5', 't2v_r10', 'v2t_r1')),
      alone.cost['pairs'],
      alone.cost['share'],
      10 * alone.cost['pairs'],
    )
  from_eight = retrieval.recall_against_k(eight)
  assert [row[:-1] for row in from_eight] == [row[:-1] for row in rows[:4]]
  short = retrieval.recall_against_k(every, largest=3)
  assert [row.k for row in short] == [1, 2, 0]
  with pytest.raises(ValueError, match='read no pairs'):
    retrieval.recall_against_k(retrieval.score(*args, retrieval.Scoring('similarity')))


def test_the_best_columns_prefer_the_smaller_index():
  block = np.array([[1, 3, 1, 2, 1], [0, 0, 0, 0, 0], [5, 4, 3, 2, 1.0]])
  assert candidates.top_k(block, 3).item.tolist() == [[1, 3, 0], [0, 1, 2], [0, 1, 2]]
  assert candidates.top_k(block, 9).item.shape == (3, 5)


def test_memory_does_not_grow_with_all_pairs(few_draws, monkeypatch):
  # One matrix of 3,000 x 3,000 would take 36 MB, in float64 72 MB.
  monkeypatch.setattr(metrics, 'CELLS', 2**16)
  monkeypatch.setattr(retrieval, 'DENSE_PAIRS', 10**6)
  n, k = 3000, 8
  generator = np.random.default_rng(0)
  text, video = generator.normal(size=(2, n, 16)).astype(np.float32)

  class Cheap(Matcher):
    def matching_by_video(self, texts, videos, text, video):
      margin = np.sin(text + 7.0 * video).astype(np.float32)
      return scoring_on_devices.Matching(margin, margin)

  texts = retrieval.TextFeatures(np.ones((n, 1), bool), None, text)
  videos = retrieval.VideoFeatures(None, video)
  names, pairs = ['text'] * n, np.stack([np.arange(n)] * 2, 1)
  blocks = candidates.similarity_blocks(text, video)
  candidates.rank_all(blocks, [metrics.text_queries(pairs)] * 2, 10)  # Compiles.
  tracemalloc.start()
  try:
    found = retrieval.score(
      Cheap(None, None),
      texts,
      videos,
      names,
      pairs,
      retrieval.Scoring('matching+similarity', k, dual_softmax=True),
    )
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  formula = (
    8 * 16 * n  # Features once more in float64.
    + 8 * 10 * 2 * n
    + 32 * found.cost['pairs']
    + 8 * k * 2 * n
    + 24 * metrics.CELLS
  )
  assert peak < formula
  assert found.similarity is None and found.order.top[0].item.shape == (n, 10)
  assert found.cost['share'] < 2 * k / n


def test_refuses_what_cannot_be_scored(monkeypatch):
  matcher, texts, videos, names, pairs = made_up(0)

  def score(texts=texts, pairs=pairs):
    return retrieval.score(matcher, texts, videos, names, pairs)

  with pytest.raises(ValueError, match='number of candidates'):
    retrieval.Scoring(rerank_k=-1)
  with pytest.raises(ValueError, match='at least one row'):
    score(pairs=np.zeros((0, 2), int))
  broken = texts._replace(feature=np.where(np.arange(3) == 1, np.nan, texts.feature))
  with pytest.raises(ValueError, match='13 of 39 text features are NaN'):
    score(texts=broken)
  matcher.table.margin[0, 0] = np.nan
  with pytest.raises(ValueError, match='1 of 117 scores are NaN'):
    score()
  monkeypatch.setattr(retrieval, 'DENSE_PAIRS', 100)
  with pytest.raises(ValueError, match='set config.eval.rerank_k'):
    score()
  # Said before anything is encoded.
  with pytest.raises(ValueError, match='all 121 pairs of 11 texts'):
    retrieval.retrieve(None, [], [[str(i)] for i in range(11)])


def test_a_model_without_contrast_is_ranked_by_matching_alone():
  matcher, texts, videos, names, pairs = made_up(1)
  texts, videos = (x._replace(feature=x.feature[:, :0]) for x in (texts, videos))
  found = retrieval.score(matcher, texts, videos, names, pairs)
  assert found.metrics['t2v_r5'] > 0
  assert not any(name.startswith('similarity/') for name in found.metrics)
  assert [row.k for row in retrieval.recall_against_k(found)] == [0]
  with pytest.raises(ValueError, match='no contrastive features'):
    retrieval.score(matcher, texts, videos, names, pairs, retrieval.Scoring(rerank_k=2))


def test_a_model_without_the_head_does_not_match(model):
  score = scorer(model)
  score.model = types.SimpleNamespace(config=types.SimpleNamespace(match=False))
  with pytest.raises(ValueError, match="score by 'similarity'"):
    score.matching_by_video(None, None, *np.zeros((2, 1), int))
