"""Retrieval: features once, uneven batches, several devices, full precision."""

import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import linen as nn

from alpro_jax import sharding
from alpro_jax.evaluation import retrieval
from alpro_jax.models.alpro import Alpro, AlproConfig
from configs import models

CAPTIONS = [['a red disc'], ['a disc', 'a ring'], ['a red disc'], [],
            ['up', 'down', 'a ring'], ['left'], ['right']]


def encode(texts, max_tokens):
  """A tokenizer by letters: CLS is 1, SEP 2, PAD 0."""
  ids = np.zeros((len(texts), max_tokens), np.int32)
  for row, text in zip(ids, texts, strict=True):
    letters = [ord(c) % 40 + 5 for c in text][:max_tokens - 2]
    row[:len(letters) + 2] = [1, *letters, 2]
  return ids, ids > 0


def small_config():
  values = models.tiny().to_dict()
  values['video'] |= {'image_size': 24, 'frames': 2, 'depth': 1, 'width': 16,
                      'mlp_size': 32, 'position_std': 1., 'matrix_std': .2}
  values['text'] |= {'vocab_size': 50, 'width': 16, 'mlp_size': 32, 'depth': 2,
                     'fusion_layer': 1, 'word_std': 1., 'matrix_std': .3}
  values['embed_size'] = 8
  return AlproConfig.from_dict(values)


def make_model():
  module = Alpro(small_config())
  init = jax.jit(lambda key: nn.unbox(module.init(
      key, np.zeros((1, 2, 24, 24, 3), np.uint8), np.ones((1, 12), np.int32),
      np.ones((1, 12), bool), method='init_all')['params']))
  return module, init(jax.random.key(0))


@pytest.fixture(scope='module')
def model():
  return make_model()


def clips(seed=0):
  return np.random.default_rng(seed).integers(
      0, 256, (len(CAPTIONS), 2, 24, 24, 3), np.uint8)


def batches(size, videos, order=None):
  """Batches of `size` in some order, the last one padded with valid=False."""
  order = np.arange(len(videos)) if order is None else order
  for start in range(0, len(order), size):
    record = order[start:start + size]
    valid = np.arange(size) < len(record)
    record = np.resize(record, size)
    yield {'video': videos[record], 'record': record, 'valid': valid}


def scorer(model, devices=1, pairs_per_call=6):
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  params = jax.device_put(model[1], sharding.replicated(mesh))
  return retrieval.Scorer(
      model[0], params, mesh, encode=encode, max_text_tokens=12, batch_size=4,
      pairs_per_call=pairs_per_call)


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
  found, _, _ = retrieval.retrieve(
      scorer(model), batches(3, videos), CAPTIONS)
  assert found.similarity.shape == found.matching.shape == (7, 7)
  for text, video in ((2, 6), (6, 3)):
    similarity, margin = plain_scores(
        model, found.texts[text], videos[video])
    assert found.similarity[text, video] == pytest.approx(similarity, abs=1e-5)
    assert found.matching[text, video] == pytest.approx(margin, abs=1e-4)
  # Not a matrix of one number: the test would be empty.
  assert found.matching.std() > 1e-3


@pytest.mark.parametrize('devices', [1, 4])
def test_batches_order_and_devices_do_not_matter(model, devices):
  videos = clips()
  want, _, _ = retrieval.retrieve(scorer(model), batches(7, videos), CAPTIONS)
  order = np.random.default_rng(1).permutation(len(videos))
  got, _, _ = retrieval.retrieve(
      scorer(model, devices, pairs_per_call=20), batches(4, videos, order),
      CAPTIONS)
  np.testing.assert_allclose(got.similarity, want.similarity, atol=1e-5)
  np.testing.assert_allclose(got.matching, want.matching, atol=1e-4)
  np.testing.assert_array_equal(got.pairs, want.pairs)


@pytest.mark.slow
def test_two_processes_agree_with_one(model, tmp_path):
  want, _, _ = retrieval.retrieve(
      scorer(model), batches(7, clips()), CAPTIONS)
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  files = [tmp_path / f'{index}.npz' for index in range(2)]
  processes = [
      subprocess.Popen(
          [sys.executable, '-m', 'tests.two_processes_retrieve', str(port),
           str(index), str(file)], cwd=pathlib.Path(__file__).parents[1],
          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
      for index, file in enumerate(files)]
  for process in processes:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-2000:]
  for file in files:
    with np.load(file) as got:
      np.testing.assert_allclose(got['similarity'], want.similarity, atol=1e-5)
      np.testing.assert_allclose(got['matching'], want.matching, atol=1e-4)


def test_chosen_pairs_score_as_in_the_matrix(model):
  score = scorer(model, 2, pairs_per_call=8)
  found, texts, videos = retrieval.retrieve(
      score, batches(4, clips()), CAPTIONS)
  pairs = np.array([[0, 1], [3, 2], [6, 6], [0, 0], [2, 5]] * 3)
  np.testing.assert_allclose(
      score.matching_of(texts, videos, pairs),
      found.matching[pairs[:, 0], pairs[:, 1]], atol=1e-4)
  assert score.matching_of(texts, videos, np.zeros((0, 2), int)).shape == (0,)


def test_an_equal_clip_finds_its_text_by_similarity_of_features(model):
  # Columns follow the records, not the order of arrival.
  videos = clips()
  videos[5] = videos[0]
  found, _, features = retrieval.retrieve(
      scorer(model), batches(3, videos, np.arange(7)[::-1]), CAPTIONS,
      retrieval.Scoring('similarity'))
  np.testing.assert_array_equal(features.record, np.arange(7))
  np.testing.assert_allclose(
      found.similarity[:, 5], found.similarity[:, 0], atol=1e-6)
  assert found.matching is None and found.scores is found.similarity
  assert found.metrics['t2v_r1'] == found.metrics['similarity/t2v_r1']


def test_margins_do_not_saturate(model):
  # With a head 1000 times as steep, the probability is 0 or 1 in float32 for
  # every pair; the margin still tells all of them apart.
  params = jax.tree.map(lambda x: x, model[1])
  params['match_head'] = jax.tree.map(
      lambda x: 1e3 * x, params['match_head'])
  found, _, _ = retrieval.retrieve(
      scorer((model[0], params)), batches(7, clips()), CAPTIONS)
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
  monkeypatch.setattr(retrieval.time, 'monotonic', lambda: next(clock))
  with caplog.at_level('INFO', logger='absl'):
    progress = retrieval.Progress('pairs', 100)
    progress.add(10)
    progress.add(30)
    progress.add(60)
  assert [r.getMessage() for r in caplog.records] == [
      'pairs: 40 of 100, 2/s, 30 s left', 'pairs: 100 of 100, 5/s, 0 s left']


