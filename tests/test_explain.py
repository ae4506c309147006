"""What a page of explanations shows, and that looking changes nothing."""

import types

import jax
import numpy as np
import pytest

from alpro_jax import sharding
from alpro_jax.evaluation import attribution, explain
from alpro_jax.evaluation.attribution import Texts
from alpro_jax.evaluation.trained import CheckpointInfo, TrainedModel
from tests import small_sets, small_task
from tests.test_report import readable


class Tokenizer(small_sets.Letters):
  special = small_task.TEXT.special

  def encode(self, texts, max_tokens):
    ids, mask = super().encode([text.replace(' ', '') for text in texts], max_tokens)
    return np.where(ids > 3, ids % 30 + 5, ids).astype(np.int32), mask


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  config = small_task.small_config(tmp_path_factory.mktemp('explain'))
  config.data.update({'max_text_tokens': 12, 'resize': 24})
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  task = small_task.small_task(config, mesh)
  params = sharding.create(task.init, jax.random.key(0), mesh)
  return TrainedModel(
    task.model, params, config, Tokenizer(), mesh, origin=CheckpointInfo('runs/<a>', 7, 'd')
  )


@pytest.fixture(scope='module')
def frames():
  return np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3)).astype(np.uint8)


@pytest.fixture(scope='module')
def shown(trained, frames):
  return explain.explain(trained, 'a <b>.mp4', frames, (0.0, 1.0), 'a red disc', steps=4)


def pair_score(trained, frames, texts):
  """float32[R], by the model itself."""

  def run(params):
    model = trained.model.bind({'params': params})
    video = model.encode_video(frames[None], train=False).tokens
    text = model.encode_text(texts.ids, texts.mask, train=False).tokens
    fused = model.fuse(text, texts.mask, video.repeat(len(texts.ids), 0), train=False)
    logits = jax.nn.log_softmax(model.mlm_logits(fused[:, :12]))
    known = np.take_along_axis(np.asarray(logits), texts.labels[..., None], -1)[..., 0]
    return (known * texts.wanted).sum(1)

  return run(trained.params)


@pytest.mark.slow
def test_looking_changes_nothing(trained, frames, shown):
  words = shown.words
  assert [word.text for word in words] == ['a', 'red', 'disc']
  assert [(word.first, word.stop) for word in words] == [(1, 2), (2, 5), (5, 9)]
  ids, mask = Tokenizer().encode(['a red disc'], 12)
  wanted = np.zeros((3, 12), bool)
  for row, word in enumerate(words):
    wanted[row, word.first : word.stop] = True
  labels, mask = ids.repeat(3, 0), mask.repeat(3, 0)
  texts = Texts(np.where(wanted, Tokenizer.special.mask, labels), mask, wanted, labels)
  np.testing.assert_allclose(shown.maps.target, pair_score(trained, frames, texts), atol=1e-4)
  # Rows of attention, to patches alone, are shares; gradients weigh them.
  assert shown.layer == 1 and set(shown.maps.weights) == {1}
  weights, cam = shown.maps.weights[1], shown.maps.gradcam[1]
  assert weights.shape == cam.shape == (3, 12, 4)
  assert (weights >= 0).all() and (weights.sum(-1) < 1).all()
  assert (cam >= 0).all() and cam.any()
  assert shown.maps.space.shape == (2, 4)
  np.testing.assert_allclose(shown.maps.time.sum(1), 1, rtol=1e-5)

  # What all places add is what the clip adds to a plain one of its colour.
  fine = attribution.evidence(
    trained.model, trained.params, frames, texts, 'word', cell=6, steps=32
  )
  assert fine.shape == (3, 2, 4, 4)
  plain = np.broadcast_to(np.median(frames, (0, 1, 2)), frames.shape).round().astype(np.uint8)
  added = shown.maps.target - pair_score(trained, plain, texts)
  np.testing.assert_allclose(fine.sum((1, 2, 3)), added, atol=0.05)


def test_the_page_stands_alone(shown):
  region = np.array([[True, False], [True, False]])
  shown.regions.append(
    explain.Region(region, [('disc', 0.9), ('<i>', 0.1)], [('ring', 1.0)], False)
  )
  shown.notes.append('a <note>')
  page = explain.render(shown)
  readable(page)
  for text in (
    'a &lt;b&gt;.mp4',
    'runs/&lt;a&gt;',
    '&lt;i&gt;',
    'a &lt;note&gt;',
    'a match with',
    'Training would ignore',
  ):
    assert text in page
  assert 'http' not in page and '<i>' not in page
  # Frames, words, attention of each, a region, and space.
  assert page.count('data:image/png') == 1 + 3 + 3 + 1 + 1


def test_joined_words_are_shown_token_by_token(trained):
  class Joining(Tokenizer):
    def encode(self, texts, max_tokens):
      ids, mask = super().encode(texts, max_tokens)
      if len(texts[0].split()) > 1:
        ids[:, 1] = 39  # As no word alone is read.
      return ids, mask

    def decode(self, ids):
      return str(int(ids[0]))

  words = explain.split_words(trained._replace(tokenizer=Joining()), 'a b')
  assert [word.text for word in words][0] == '39' and len(words) == 2
  with pytest.raises(ValueError, match='has no word'):
    explain.split_words(trained, ' ')


def test_what_was_trained_is_explained(trained):
  assert explain.choose_target(trained) == 'word'
  config = trained.config.copy_and_resolve_references()
  config.task = 'retrieval'
  assert explain.choose_target(trained._replace(config=config)) == 'match'
  config.task = 'prompter'
  assert explain.choose_target(trained._replace(config=config)) == 'similarity'
  sizes = types.SimpleNamespace(text=types.SimpleNamespace(fusion_layer=6, depth=12))
  assert explain.choose_layer(sizes) == 8
  with pytest.raises(ValueError, match='they are 6 to 11'):
    explain.choose_layer(sizes, 12)
