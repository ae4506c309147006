"""Probes: hand-made answers, and one run of a small model through all."""

import json

import jax
import numpy as np
import pytest

from alpro_jax.evaluation import retrieval
from alpro_jax.models import prompter
from alpro_jax.models.alpro import Alpro
from alpro_jax.tasks.teacher import Teacher
from examples.shapes import entity_probes, probes
from tests import test_retrieval as small
from tests.small_task import fresh_params


def row(
  colour='red',
  shape='disc',
  motion='left',
  family='move',
  trained=True,
  video='a.mp4',
  other='right',
):
  return {
    'video': video,
    'colour': colour,
    'shape': shape,
    'motion': motion,
    'family': family,
    'trained': trained,
    'caption': f'a {colour} {shape} {motion}',
    'reversed_caption': f'a {colour} {shape} {other}' if other else '',
    'boxes': [[0.25, 0.25, 0.75, 0.75]] * 4,
  }


def test_right_caption_by_group():
  pairs = np.array([[0, 0], [1, 1], [2, 2], [2, 3]])
  scores = np.array([[9, 0, 0, 0], [0, 9, 9, 0], [0, 0, 1, 0.0]])
  truth = [row(), row(), row(trained=False), row(family='turn')]
  figures = probes.right_caption(scores, pairs, truth)
  # Video 2 prefers text 1, video 3 scores all texts 0: a tie is wrong.
  assert figures == {
    'all': 50,
    'trained': pytest.approx(200 / 3),
    'never_trained': 0,
    'move': pytest.approx(200 / 3),
    'turn': 0,
    'chance': pytest.approx(100 / 3),
  }


def _retrieval(matching, similarity=None):
  n = len(matching)
  similarity = np.eye(n) if similarity is None else similarity
  return retrieval.Retrieval(
    tuple(map(str, range(n))), np.stack([np.arange(n)] * 2, 1), similarity, matching, {}, {}
  )


def test_matching_accuracy_of_a_perfect_and_of_a_refusing_model():
  perfect = probes.matching_accuracy(_retrieval(2.0 * np.eye(10) - 1), temperature=0.1)
  assert perfect['random'] == perfect['hard'] == 100
  refusing = probes.matching_accuracy(_retrieval(-np.ones((10, 10))), temperature=0.1)
  assert refusing['random'] == pytest.approx(refusing['prior'])
  assert refusing['hard/matched'] == 0
  assert refusing['hard/wrong_text'] == 100


def test_hard_negatives_are_the_similar_ones():
  # Everything is told apart but neighbours, which look nearly the same.
  n = 40
  far = np.abs(np.arange(n)[:, None] - np.arange(n))
  figures = probes.matching_accuracy(
    _retrieval(np.where(far <= 1, 1.0, -1.0), -far.astype(float)), temperature=0.1, batch_size=n
  )
  assert figures['hard'] == pytest.approx(100 / 3)
  assert figures['random'] > 90


def test_equal_captions_are_no_negatives():
  # One text describes all videos: there is no wrong pair to draw.
  found = retrieval.Retrieval(
    ('a',), np.array([[0, 0], [0, 1]]), np.ones((1, 2)), np.ones((1, 2)), {}, {}
  )
  figures = probes.matching_accuracy(found, temperature=1.0)
  assert figures['hard'] == 100 and 'hard/wrong_text' not in figures


def test_held_share():
  region = np.zeros((4, 4), bool)
  region[1:3, 1:3] = True
  assert entity_probes.held_share([[0.25, 0.25, 0.75, 0.75]], region) == 1
  assert entity_probes.held_share([[0, 0.25, 0.5, 0.75]], region) == pytest.approx(0.5)
  assert entity_probes.held_share(
    [[0.25, 0.25, 0.75, 0.75], [0, 0, 0.25, 0.25]], region
  ) == pytest.approx(0.5)
  # In a crop of half the side, the box fills everything.
  assert entity_probes.held_share([[0.25, 0.25, 0.75, 0.75]], region, 0.5) == pytest.approx(0.25)


def _one_hot(index, size=4):
  return np.eye(size, dtype=np.float32)[index]


def test_entity_figures_of_known_answers():
  entities = ['red', 'disc', 'ring', 'wall']
  truth = [row('red', 'disc'), row('blue', 'ring')]
  crops = entity_probes.Crops(
    video=np.array([0, 0, 1, 1, 1]),
    region=np.ones((5, 4), bool),
    labels=_one_hot([0, 3, 2, 2, 0]),
    keep=np.array([1, 1, 1, 1, 0], bool),
    answers=_one_hot([1, 3, 2, 1, 0]),
    misled=_one_hot([2, 2, 2, 2, 2]),
    holds=np.ones(5, bool),
  )
  figures = entity_probes.entity_figures(crops, entities, truth)
  assert figures['pseudo/kept'] == 80
  assert figures['pseudo/right'] == 75  # wall is not in clip 0.
  assert figures['pseudo/right_constant'] == 50
  assert figures['pem/agrees'] == 50
  assert figures['pem/agrees_constant'] == 50
  assert figures['pem/right'] == 50
  assert figures['pem/right_misled'] == figures['pem/agrees_misled'] == 50
  assert figures['pseudo/entropy'] == pytest.approx(0, abs=1e-6)
  assert figures['pseudo/entropy_limit'] == pytest.approx(np.log(4))
  assert entity_probes.top_entities(crops, entities) == [('ring', 2), ('red', 1), ('wall', 1)]


def test_entity_figures_without_a_held_object():
  crops = entity_probes.Crops(
    np.array([0]),
    np.ones((1, 4), bool),
    _one_hot([0]),
    np.array([True]),
    _one_hot([0]),
    _one_hot([0]),
    np.array([False]),
  )
  figures = entity_probes.entity_figures(crops, ['red', 'disc', 'ring', 'wall'], [row()])
  assert figures['crops_held'] == 0 and 'pem/agrees' not in figures


def test_truth_follows_the_order_of_the_videos(tmp_path):
  path = tmp_path / 'truth.jsonl'
  path.write_text('\n'.join(json.dumps({'video': name, 'family': name}) for name in ('a', 'b')))
  rows = probes.read_truth(path, ['b', 'a'])
  assert [r['family'] for r in rows] == ['b', 'a']
  with pytest.raises(ValueError, match='no row for 1 of 2 videos'):
    probes.read_truth(path, ['a', 'c'])


def test_truth_of_another_world_is_refused(tmp_path):
  path = tmp_path / 'truth.jsonl'
  path.write_text(
    '\n'.join(json.dumps({'video': name, 'caption': f'disc {name}'}) for name in 'ab')
  )
  captions = [('disc a', 'a disc'), ('disc b',)]
  assert len(probes.read_truth(path, ['a', 'b'], captions)) == 2
  with pytest.raises(
    ValueError,
    match=r"says 'disc b' of b, whose captions "
    r"are \['ring b'\], and differs in 1 of 2",
  ):
    probes.read_truth(path, ['a', 'b'], [captions[0], ('ring b',)])


def test_a_line_of_truth_may_hold_any_letter(tmp_path):
  path = tmp_path / 'truth.jsonl'
  path.write_bytes('\ufeff{"video": "a\u2028b"}\r\n{"video": "c"}'.encode())
  rows = probes.read_truth(path, ['c', 'a\u2028b'])
  assert [row['video'] for row in rows] == ['c', 'a\u2028b']


model = small.model


def test_a_small_model_through_all_probes(model):
  truth = [
    row(motion='left', other='right'),
    row(motion='up', other='down', shape='ring'),
    row(motion='grow', other='shrink', family='resize'),
    row(motion='left, then grow', other='shrink, then right', family='event', trained=False),
    row(motion='turn', other='', family='turn'),
  ]
  videos = small.clips()[:5]

  def batches():
    for batch in small.batches(4, videos):
      yield {**batch, 'still': np.zeros(4, bool)}

  student = Alpro(small.small_config())
  config = jax.tree.map(lambda x: x, student.config)
  object.__setattr__(config, 'entities', 3)
  student = Alpro(config)
  params = fresh_params(student, 1)
  score = small.scorer((student, params), 2)
  found, texts, features = retrieval.retrieve(score, batches(), [[r['caption']] for r in truth])
  figures = probes.ask_all(score, found, features, truth)
  for name in (
    'right_caption/similarity/all',
    'right_caption/matching/turn',
    'vtm/hard',
    'order/similarity/up_down',
    'order/matching/event_order',
    'order/matching/never_trained',
  ):
    assert 0 <= figures[name] <= 100

  bank = prompter.PromptBank(
    *(prompter.unit_length(jax.random.normal(jax.random.key(i), (3, 8))) for i in range(2))
  )
  teacher = Teacher(model[1], bank, small.small_config(), 'probability', 0.0)
  crops = entity_probes.label_crops(
    score, teacher, batches(), texts, features, found, truth, draws=3
  )
  assert sorted(crops.video) == sorted([0, 1, 2, 3, 4] * 3)
  np.testing.assert_allclose(crops.labels.sum(1), 1, rtol=1e-5)
  np.testing.assert_allclose(crops.answers.sum(1), 1, rtol=1e-5)
  assert crops.region.any(1).all()
  assert np.abs(crops.misled - crops.answers).max() > 0
  figures = entity_probes.entity_figures(crops, ['red', 'disc', 'wall'], truth)
  assert figures['pseudo/kept'] == 100 and figures['crops'] == 15
