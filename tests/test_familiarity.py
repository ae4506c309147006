"""What is marked as far from training, and whether probabilities are worth what they say."""

import dataclasses
import itertools
import shutil
import types

import numpy as np
import pytest

import alpro_jax
from alpro_jax.data import dataset
from alpro_jax.evaluation import explain, familiarity, looks, split
from alpro_jax.serving import export
from configs import common
from examples.shapes import files, scenes
from tests import launched, small_sets, test_api, test_copied

FOREIGN = [
  'a man plays the guitar on a stage',
  'two dogs run along the beach',
  'someone is cooking pasta in a kitchen',
  'a woman talks to the camera',
  'a car drives down the street at night',
  'people are dancing at a wedding',
  'how to tie a tie',
  'the president gives a speech',
  'a boy kicks a ball',
  'blue sky over a green field',
  'a red car drives left',
  'the white wall of a house',
  'green tea in a cup',
  'a ring on her finger',
  'a pole vaulter jumps over the bar',
  'a triangle drifts left',
  'left right up down',
  'who is it?',
  '12345',
  '猫が走る',
]


def foreign_videos():
  """60 videos uint8[8, 48, 48, 3] that nobody would call a moving shape."""
  rng = np.random.default_rng(0)
  row, column = np.mgrid[:48, :48]
  colour = lambda: rng.integers(0, 256, 3)  # noqa: E731
  still = lambda frame: np.broadcast_to(frame, (8, 48, 48, 3)).astype(np.uint8)  # noqa: E731

  def mosaic():
    frame = still(colour()).copy()
    for _ in range(12):
      top, left, height, width = *rng.integers(0, 40, 2), *rng.integers(3, 20, 2)
      frame[:, top : top + height, left : left + width] = colour()
    return frame

  for n in range(10):
    yield rng.integers(0, 256, (8, 48, 48, 3)).astype(np.uint8)
    yield np.clip(128 + 30 * rng.standard_normal((8, 48, 48, 1)) * np.ones(3), 0, 255).astype('u1')
    yield still(colour())
    yield still(((row // (n + 2) + column // (n + 2)) % 2 * 255)[..., None])
    yield still(row[..., None] / 47 * colour())
    yield mosaic()


@pytest.fixture(scope='module')
def shapes():
  return alpro_jax.Model(alpro_jax.load('shapes').trained, progress=False)


@pytest.fixture(scope='module')
def world():
  """A world that neither training nor the thresholds of the model have seen."""
  return files.make_arrays(scenes.World(seed=77, renderings=1), 'test')


def test_foreign_clips_are_marked_and_held_out_ones_are_not(shapes, world):
  assert np.mean(shapes.embed_videos(list(world['frames'])).familiar) >= 0.95
  found = shapes.embed_videos(list(foreign_videos()))
  assert len(found) == 60 and np.mean(found.familiar) <= 0.1
  assert all('times as far from the clips of training' in why for why in found.far if why)


def scene(rng, steepness):
  """float[3, 96, 96], as uneven as what is filmed: amplitudes fall with the frequency."""
  frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(96), np.fft.fftfreq(96)))
  noise = rng.standard_normal((3, 96, 96)) + rng.standard_normal((96, 96))
  found = np.fft.ifft2(np.fft.fft2(noise) / (frequency + 0.01) ** steepness).real
  return rng.uniform(60, 190, (3, 1, 1)) + rng.uniform(20, 50) * found / found.std()


def cut(rng, whole):
  """A clip uint8[4, 48, 48, 3] of a camera that moves over a scene."""
  y, x, dy, dx = *rng.integers(12, 36, 2), *rng.integers(-4, 5, 2)
  frames = [whole[:, y + t * dy : y + t * dy + 48, x + t * dx :][..., :48] for t in range(4)]
  return np.clip(np.stack(frames).transpose(0, 2, 3, 1), 0, 255).astype(np.uint8)


@pytest.mark.slow
def test_few_clips_tell_what_is_foreign_by_their_looks(world):
  """Of 24 scenes that differ as much as any."""
  rng = np.random.default_rng(0)
  scenes_ = [scene(rng, steepness) for steepness in rng.uniform(1, 1.6, 24)]
  own = [cut(rng, x) for x in scenes_]
  own[3][0] = 0  # A fade: a black frame makes nothing else familiar.
  looked = looks.describe(np.stack(own))
  assert np.isnan(looked[3, 0]).all() and not np.isnan(looked[3, 1:]).any()
  known = looks.fit(np.asarray(looked))
  far = lambda clips: known.distance(looks.describe(np.stack(clips))) > known.limit  # noqa: E731
  assert np.mean(far([cut(rng, x) for x in scenes_ for _ in range(5)])) <= 0.05
  assert np.mean(far(list(foreign_videos()))) >= 0.9
  assert np.mean(far(list(world['frames'][:60]))) >= 0.9


@pytest.mark.slow
def test_few_drawn_clips_take_others_of_their_kind_for_familiar(world):
  """Though they differ from each other: other parts of the kind are left out of the fit."""
  own, foreign = (
    np.asarray(looks.describe(np.stack(list(x)))) for x in (world['frames'], foreign_videos())
  )
  rng, far = np.random.default_rng(0), []
  for count in [25] * 10 + [50] * 6:
    order = rng.permutation(len(own))
    known = looks.fit(own[order[:count]])
    far.append([np.mean(known.distance(x) > known.limit) for x in (own[order[count:]], foreign)])
  assert np.mean(far, 0)[0] <= 0.05 and np.mean(far, 0)[1] >= 0.9


def test_the_limit_by_hand():
  distances = np.arange(1.0, 25)[::-1]  # 24: of rank ceil(25 * 0.96) is the largest.
  assert looks.conformal(distances, 0.96) == 24 and looks.conformal(distances, 0.5) == 13
  assert looks.conformal(distances, 0.97) == np.inf  # They are too few to say it.
  # Clips that all look the same are near to each other, and nothing else is.
  same = np.broadcast_to(np.float32(0.5), (20, 2, looks.WIDTH))
  known = looks.fit(same)
  assert known.distance(np.stack([same[0], same[0] + 0.1])).tolist() < [known.limit, np.inf]
  assert known.distance(same[:1] + 0.1) > known.limit


def test_a_look_by_hand_does_not_depend_on_size():
  stripes = np.zeros((1, 2, 48, 48, 3), np.uint8)
  stripes[:, 0, :, ::2] = 255
  first, plain = looks.describe(stripes)[0]
  assert first.shape == (looks.WIDTH,) and np.isnan(plain).all()
  # Grey 0.5 on average and in spread, no colour; edges at each pixel across, none down.
  assert np.allclose(first[:6], [1, 0, 0, 1, 0, 0], atol=2e-3)
  assert np.allclose(first[12:20:7], [1, 0], atol=1e-6)
  larger = np.repeat(np.repeat(stripes, 4, 2), 4, 3)
  np.testing.assert_allclose(looks.describe(larger)[0, 0], first, atol=1e-4)


def test_foreign_texts_are_marked_and_held_out_ones_are_not(shapes, world):
  own = sorted({row['caption'] for row in world['truth']})
  assert len(own) > 100 and np.mean(shapes.embed_texts(own).familiar) >= 0.95
  found = shapes.embed_texts(FOREIGN)
  assert np.mean(found.familiar) <= 0.1
  assert found.far[10].endswith('pieces never occurred in training (car, drives)')
  (words,) = shapes.embed_texts(['left right up down']).far  # Known words, in no known order.
  assert 'times as far from the texts of training' in words


def test_a_text_of_mostly_new_pieces_is_far_whatever_was_held_out(shapes):
  # Held-out captions of a small set may be of other words than its training.
  known = dataclasses.replace(shapes.trained.familiarity, unseen_limit=0.9)
  model = alpro_jax.Model(shapes.trained._replace(familiarity=known), progress=False)
  (new,) = model.embed_texts(['someone is cooking pasta in a kitchen']).far
  assert 'pieces never occurred' in new


def test_an_entity_of_a_foreign_clip_is_no_percentage(shapes, world, caplog):
  own, (foreign,) = list(world['frames'][:1]), [next(foreign_videos())]
  (known,), (unknown,) = (shapes.entities([clip], top=1) for clip in (own[0], foreign))
  assert known[0].familiar and known[0].calibrated and known[0].probability > 0.5
  assert unknown[0].familiar is False and not unknown[0].calibrated
  assert '1 of 1 videos are far from what the model was trained on' in caplog.text
  (named,) = shapes.entities(own, names=['a disc', 'basketball'], top=1)
  assert not named[0].calibrated and 'basketball' in named[0].far


@pytest.mark.slow
def test_matches_are_calibrated_on_worlds_of_their_kind(shapes, world):
  captions = [row['caption'] for row in world['truth']]
  videos, names = shapes.embed_videos(list(world['frames'])), sorted(set(captions))
  texts, place = shapes.embed_texts(names), [names.index(caption) for caption in captions]
  near, row = shapes.similarity(texts, videos), np.arange(len(captions))
  near[place, row] = -1
  raw = alpro_jax.Model(shapes.trained._replace(familiarity=None), progress=False)

  def loss(match):
    right, wrong = match[place, row], match[near.argmax(0), row]
    return -np.log(np.r_[right, 1 - wrong].clip(1e-7)).mean()

  assert loss(shapes.match(texts, videos)) < 0.95 * loss(raw.match(texts, videos))


def test_without_a_summary_nothing_is_marked_and_that_is_said_once(shapes, world, caplog):
  model = alpro_jax.Model(shapes.trained._replace(familiarity=None), progress=False)
  videos = model.embed_videos(list(world['frames'][:1]))
  assert videos.familiar is videos.far is None and model.embed_texts(FOREIGN).familiar is None
  for _ in range(2):
    (choices,) = model.entities(videos)
    assert choices[0].familiar is None and not choices[0].calibrated
  assert caplog.text.count(familiarity.NO_SUMMARY) == 1


def test_the_page_about_a_clip_says_what_is_far(shapes, world):
  own, foreign = world['frames'][0, ::2], next(foreign_videos())[:4]
  caption, trained = world['truth'][0]['caption'], shapes.trained
  assert explain.strangeness(trained, own, caption) == ([], False)
  notes, far = explain.strangeness(trained, foreign, 'a red dog')
  assert [note[:16] for note in notes] == ['The clip is far ', 'The text is far '] and far
  assert 'dog' in notes[1]


@pytest.mark.slow
def test_a_command_makes_the_summary_of_a_checkpoint(tmp_path, monkeypatch, capsys):
  copied = test_copied.copy_of(tmp_path, 'pretrain')
  captions = [('a dog runs', f'clip {n}') for n in range(20)]
  styles = [('full', 'full')] * 20  # As the run is told to read.
  opened = {
    x: small_sets.MemorySet(20, name=x, captions=captions, styles=styles) for x in ('train', 'test')
  }
  monkeypatch.setattr(dataset, 'open_dataset', lambda path, split, **_: opened[split])
  ask = ('evaluate', f'--checkpoint={copied}', '--data=sets/a', '--familiarity')
  assert launched.run(*ask, '--split=train') != 0
  assert 'train/train is what the model was trained on' in capsys.readouterr().err
  assert launched.run(*ask, '--split=test', '--frames=1') != 0
  assert 'neither --config nor --frames' in capsys.readouterr().err
  assert launched.run(*ask, '--split=test') == 0
  said = capsys.readouterr().out
  assert f'Written: {copied}/familiarity.npz, of 20 clips and 40 texts of training, 20 and' in said
  model = alpro_jax.load(copied)
  known = model.trained.familiarity
  assert np.isfinite(known.match).all() and known.seen.any()
  assert known.videos.limit == np.inf and known.frames and np.isfinite(known.unseen_limit)
  assert not known.seen[model.trained.tokenizer.special.unk]
  model.save_pretrained(tmp_path / 'saved')
  again = alpro_jax.load(tmp_path / 'saved').trained.familiarity
  np.testing.assert_array_equal(again.frames.frames, known.frames.frames)
  np.testing.assert_array_equal(again.videos.directions, known.videos.directions)
  export.write_params(copied, tmp_path / 'small')
  assert familiarity.load(tmp_path / 'small').seen.any()
  (tmp_path / 'saved' / familiarity.FILE).write_bytes(b'x')
  with pytest.raises(ValueError, match='get the folder again'):
    alpro_jax.load(tmp_path / 'saved')


@pytest.mark.slow
def test_a_run_summarises_what_it_was_trained_on(tmp_path, monkeypatch, caplog):
  """Its newest and its best checkpoint, once, and without it where that is not possible."""
  workdir = test_api.run_of(tmp_path, 'pretrain')
  whole, number = (
    small_sets.MemorySet(40, captions=[('a dog runs',)] * 40, styles=[('full',)] * 40),
    itertools.count(),
  )
  training = whole.select(lambda record: next(number) < 20)  # Parts of one split.
  opened = {'test': whole.select(lambda record: next(number) >= 60)}
  monkeypatch.setattr(dataset, 'open_dataset', lambda path, split, **_: opened[split])
  config = alpro_jax.load(workdir).trained.config
  config.eval.sources = (common.source('sets/a', split='test'),)
  newest, best = (workdir / 'checkpoints' / step for step in '73')
  shutil.copytree(newest, best)
  opened['train'] = training.select(lambda record: record.video < '18')
  split.summarise_run(workdir, config, 7, 3)
  assert f'nothing will be marked as far from training: {len(opened["train"])} clips' in caplog.text
  assert not (newest / familiarity.FILE).exists()
  opened['train'] = training
  split.summarise_run(workdir, config, 7, 3)
  # Too few held-out clips calibrate nothing.
  few = split.familiarity(
    alpro_jax.load(workdir).trained,
    [(training, ('',))],
    opened['test'].select(lambda x: x.video < '30'),
  )
  assert 0 < few.counts[2] < 16 and np.isnan(few.match).all() and few.unseen_limit == np.inf
  # Nor do they limit features: what is foreign is so by its looks.
  model = alpro_jax.Model(alpro_jax.load(workdir).trained._replace(familiarity=few))
  found = model.embed_videos(list(foreign_videos()))  # Plain colours may be like its own.
  assert few.videos.limit == np.inf and np.mean(found.familiar) <= 0.1
  # It is part of what is copied, and damages nothing.
  moved = shutil.copytree(newest, tmp_path / 'moved')
  assert alpro_jax.load(moved).trained.familiarity.counts.tolist() == [20, 20, 20, 20]
  assert alpro_jax.load(workdir).embed_texts(['中 中 中']).far[0].startswith('3 of its 3 pieces')
  # Made once: what is there stays.
  before = (best / familiarity.FILE).stat().st_mtime_ns
  (newest / familiarity.FILE).unlink()
  split.summarise_run(workdir, config, 7, 3)
  assert (newest / familiarity.FILE).exists()
  assert (best / familiarity.FILE).stat().st_mtime_ns == before


def test_answers_are_calibrated(tmp_path):
  trained = alpro_jax.load(test_api.run_of(tmp_path, 'question_answering')).trained
  known = types.SimpleNamespace(
    answer_temperature=2.0, far_videos=lambda x: ('',), far_texts=lambda *x: ('why',)
  )
  video = [np.zeros((4, 32, 32, 3), np.uint8)]
  raw, cooler = (
    alpro_jax.Model(trained._replace(familiarity=x), progress=False).answer('what ?', video)[0]
    for x in (None, known)
  )
  assert cooler[0].far == 'why' and raw[0].far is None
  ratio = [np.log(row[0].probability / row[1].probability) for row in (raw, cooler)]
  assert ratio[0] == pytest.approx(2 * ratio[1], abs=1e-5)


def test_distances_by_hand():
  cloud = familiarity.Cloud(
    np.array([1.0, 0, 0, 0]), np.array([[1.0, 0, 0, 0]]), np.array([4.0]), np.array(0.25), 1.0
  )
  # 2 of 2 along the direction; 1 of 0.5 beside it; over sqrt(4).
  assert cloud.distance(np.array([[3.0, 0, 0, 0], [1, 1, 0, 0]])).tolist() == [0.5, 1.0]


def test_most_of_what_is_held_out_is_near():
  rng = np.random.default_rng(0)
  clips, held_out, foreign = rng.standard_normal((3, 400, 8)) * [9, 9, 1, 1, 1, 1, 1, 0]
  cloud = familiarity.fit_cloud(clips, held_out, 2)
  assert np.mean(cloud.distance(held_out) > cloud.limit) <= 0.01
  foreign[:, 7] = 9  # Where nothing ever varied.
  assert (cloud.distance(foreign) > cloud.limit).all()
  with pytest.raises(ValueError, match='19 clips or texts of training and 400 held-out'):
    familiarity.fit_cloud(clips[:19], held_out, 2)


def test_temperature_and_match_find_what_logits_were_scaled_by():
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((4000, 5)) * 2
  share = familiarity.probabilities(logits, None)[0]
  label = (share.cumsum(1) < rng.random((4000, 1))).sum(1)
  assert familiarity.fit_temperature(3 * logits, label) == pytest.approx(3, rel=0.1)
  margin = rng.standard_normal(4000) * 3
  matches = rng.random(4000) < 1 / (1 + np.exp(-(0.5 * margin + 1)))
  assert familiarity.fit_match(margin, matches) == pytest.approx([0.5, 1], abs=0.1)
  # Where held-out margins are no sign of a match, the best one is not called the least likely.
  known = types.SimpleNamespace(match=familiarity.fit_match(-margin, matches))
  share, calibrated = familiarity.match_probability(known, np.array([3.0, -3.0]))
  assert not calibrated and share[0] > share[1]
  # Always right is not infinitely sure.
  assert 0 < familiarity.fit_match(np.array([5.0, -5.0]), np.array([True, False]))[0] < 1


def test_a_damaged_summary_is_said(shapes, tmp_path):
  assert familiarity.load(tmp_path) is None
  known = dataclasses.replace(shapes.trained.familiarity, answer_temperature=1.5)
  assert known.frames is None and np.isfinite(known.videos.limit)  # 240 clips were held out.
  known.save(tmp_path)
  assert familiarity.load(tmp_path).answer_temperature == 1.5
  (tmp_path / familiarity.FILE).write_bytes(b'x')
  with pytest.raises(ValueError, match='damaged .* make it again'):
    familiarity.load(tmp_path)


def test_percentages_are_shown_only_if_they_are_worth_it():
  assert familiarity.show(0.873, True) == ' 87.3 %' and familiarity.show(0.873, False) == '   0.87'
