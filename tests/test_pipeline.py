"""The pipeline: order, resumption, hosts, captions, pixels, broken records."""

import collections
import gc
import json
import shutil
import subprocess
import sys
import time
import types
import weakref

import numpy as np
import pytest
import tensorflow as tf

from alpro_jax import sharding
from alpro_jax.data import dataset, feed, pipeline, prepare, sources, tokens
from alpro_jax.data.annotations import Question
from alpro_jax.data.mixture import (
  Source,
  TooManyBroken,
  check_schedule,
  measure_texts,
  open_sources,
)
from alpro_jax.data.order import BLOCK, Order, caption_ids, hash64, video_ids
from configs import common
from launch import command
from tests import patience, small_towers
from tests.small_sets import SIZE, Letters, MemorySet, jpeg, parse, who


def options(**changes):
  config = common.get_config().data
  config.update(
    {
      'image_size': SIZE,
      'resize': SIZE,
      'max_text_tokens': 12,
      'threads': 2,
      'randaugment': {'enabled': False},
    }
  )
  config.update(changes)
  return config


def train(sources, *, tokenizer=None, seed=1, start=0, size=6, rows=None, **changes):
  if isinstance(sources, MemorySet):
    sources = [Source(sources, 0)]
  return pipeline.train_batches(
    options(**changes),
    sources,
    tokenizer or Letters(),
    seed=seed,
    start_step=start,
    batch_size=size,
    rows=rows or slice(0, size),
  )


def take(batches, count):
  got = [next(batches) for _ in range(count)]
  batches.close()
  return got


def records(batches, count):
  return [who(batch['video'])[0].tolist() for batch in take(batches, count)]


def check_equal(left, right):
  assert left.keys() == right.keys()
  for name, value in left.items():
    np.testing.assert_array_equal(value, right[name], name)


# --- Order ------------------------------------------------------------------


def test_hash_does_not_change():
  """Runs must resume under a newer version; the numbers are fixed."""
  np.testing.assert_array_equal(hash64(1, 2, np.arange(2)) >> np.uint64(40), [15109743, 12064036])
  np.testing.assert_array_equal(
    caption_ids(np.array([[2, 7, 3], [2, 9, 3]], np.int32)), [1047546106, 548021585]
  )
  np.testing.assert_array_equal(video_ids(MemorySet(2), [0, 1]), [1740036965, 418368552])


def test_fields_and_types():
  (batch,) = take(train(MemorySet(), frames=3), 1)
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
    'video': ((6, 3, SIZE, SIZE, 3), np.uint8),
    'text_ids': ((6, 12), np.int32),
    'text_mask': ((6, 12), bool),
    'tower_ids': ((6, 0), np.int32),
    'video_id': ((6,), np.int32),
    'caption_id': ((6,), np.int32),
    'answer': ((6,), np.int32),
    'still': ((6,), bool),
    'valid': ((6,), bool),
  }
  assert batch['valid'].all()
  assert (batch['video_id'] >= 0).all() and (batch['caption_id'] >= 0).all()


def test_a_tower_reads_the_same_texts(tmp_path):
  (tmp_path / 'vocab.txt').write_text('\n'.join([*tokens.PIECES, 'clip', *'0123456789']) + '\n')
  text = tokens.load_tokenizer(tmp_path / 'vocab.txt')
  tower = tokens.load_tokenizer(small_towers.write(tmp_path))
  (batch,) = take(train(MemorySet(), tokenizer=tokens.Pair(text, tower, 8)), 1)
  (alone,) = take(train(MemorySet(), tokenizer=text), 1)
  said = [f'clip {i}' for i in who(batch['video'])[0]]
  np.testing.assert_array_equal(batch['tower_ids'], tower.encode(said, 8)[0])
  assert alone['tower_ids'].shape == (6, 0)
  check_equal(*({name: x for name, x in y.items() if name != 'tower_ids'} for y in (batch, alone)))


def test_each_epoch_reads_all_once_in_an_order_of_its_own():
  read = np.concatenate(records(train(MemorySet(12)), 6)).reshape(3, 12)
  for epoch in read:
    assert sorted(epoch) == list(range(12))
  assert len({tuple(epoch) for epoch in read}) == 3
  other = np.concatenate(records(train(MemorySet(12), seed=2), 2))
  assert (other != read[0]).any()


def test_captions_and_pixels_belong_together():
  for batch in take(train(MemorySet(9)), 3):
    said = [Letters().decode(ids) for ids in batch['text_ids']]
    assert said == [f'clip {i}' for i in who(batch['video'])[0]]


def test_any_step_can_be_the_first():
  straight = take(train(MemorySet(), sampling='rand'), 7)
  resumed = take(train(MemorySet(), sampling='rand', start=4), 3)
  for left, right in zip(straight[4:], resumed, strict=True):
    check_equal(left, right)


def test_a_late_step_costs_what_an_early_one_does():
  sources = [Source(MemorySet(1000), i, weight=i + 1.0) for i in range(3)]
  start = time.perf_counter()
  plan = Order(sources, 0, 64).plan(100_000, slice(0, 64))
  assert len(plan.records) == 64
  assert time.perf_counter() - start < 1.0


def test_the_number_of_hosts_changes_nothing():
  whole = take(train(MemorySet()), 3)
  sets = MemorySet(), MemorySet()
  parts = [
    take(train(data, rows=rows), 3)
    for data, rows in zip(sets, (slice(0, 2), slice(2, 6)), strict=True)
  ]
  for batch, *pieces in zip(whole, *parts, strict=True):
    check_equal(batch, {name: np.concatenate([piece[name] for piece in pieces]) for name in batch})
  # Two rows of six: a host reads nothing for the others.
  assert len(sets[0].fetched) % 2 == 0
  assert set(sets[0].fetched[:2]).isdisjoint(sets[1].fetched[:4])


def test_batches_larger_than_the_set():
  read = records(train(MemorySet(4), size=10), 2)
  count = collections.Counter(read[0] + read[1])
  assert set(count.values()) == {5}


# --- Questions --------------------------------------------------------------


def asked():
  """Five videos; video i has i + 1 questions, answered by 'a' or 'b'."""
  return MemorySet(
    5,
    questions=[
      [Question(f'q{i} {n}', 'ab'[n % 2], 'what') for n in range(i + 1)] for i in range(5)
    ],
  )


def test_an_epoch_of_texts_asks_every_question_once():
  source = Source(asked(), 0, text='questions', examples='texts', answers=('b',))
  assert len(source) == 15
  read = take(train([source], size=5), 6)
  for epoch in (read[:3], read[3:]):
    said = {
      Letters().decode(ids): (int(label), int(who(video[None])[0][0]))
      for batch in epoch
      for ids, label, video in zip(batch['text_ids'], batch['answer'], batch['video'], strict=True)
    }
    # 'b' is the list; 'a' is not in it.
    assert said == {f'q{i} {n}': (0 if n % 2 else -1, i) for i in range(5) for n in range(i + 1)}
  assert source.report() == {
    'source': 'set/train',
    'style': '',
    'digest': 'set',
    'records': 5,
    'questions': 15,
    'unknown_answers': 9,
    'replaced': {},
  }


def test_an_epoch_of_videos_asks_one_question_of_each():
  source = Source(asked(), 0, text='questions', answers=('a', 'b'))
  for batch in take(train([source], size=5), 4):
    assert sorted(who(batch['video'])[0]) == [0, 1, 2, 3, 4]
    assert (batch['answer'] >= 0).all()


def test_answers_that_match_nothing_are_refused(tmp_path, monkeypatch, caplog):
  there = {'sets/a': asked()}
  monkeypatch.setattr(dataset, 'open_dataset', lambda path, name, **_: there[path])
  path = tmp_path / 'answers.txt'
  config = options(text='questions', answers=str(path), sources=(common.source('sets/a'),))
  path.write_text('x\ny\n')
  with pytest.raises(ValueError) as error:
    open_sources(config)
  for part in (
    'not one of its 15 questions',
    str(path),
    "'a' (9), 'b' (6)",
    "begins with ['x', 'y']",
    'launch/answers.py --data=sets/set',
  ):
    assert part in str(error.value)
  # In capitals they are the same answers.
  path.write_text('A\nx\n')
  with caplog.at_level('INFO', logger='absl'):
    (source,) = open_sources(config)
  assert (source.labels >= 0).sum() == 9
  assert '60.0 % of 15 questions have an answer' in caplog.text
  assert "such as 'b' (6)" in caplog.text


def test_texts_that_are_cut_are_counted(caplog, monkeypatch):
  # Of 12 tokens two are marks.
  said = [('a' * 10,), ('a' * 11, 'b'), ('c',), ('d' * 12,)]
  source = Source(MemorySet(4, captions=said), 0)
  assert 'texts_cut' not in source.report()
  measure_texts([source], Letters(), 12)
  assert source.cut == (2, 5)
  assert source.report()['texts_cut'] == 2
  assert source.report()['texts_measured'] == 5
  assert 'set/train: 2 of 5 captions have more than' in caplog.text
  # Of many an even spread is counted: here the first, third and fifth half.
  monkeypatch.setattr('alpro_jax.data.mixture.MEASURED', 3)
  measure_texts([source], Letters(), 12)
  assert source.cut == (1, 3)


def test_captions_have_no_answer():
  (batch,) = take(train(MemorySet()), 1)
  assert (batch['answer'] == -1).all()


def test_a_set_without_questions_says_so():
  with pytest.raises(ValueError, match='has no questions'):
    Source(MemorySet(), 0, text='questions')
  with pytest.raises(ValueError, match=r"style='why', only \['what'\]"):
    Source(asked(), 0, text='questions', style='why')
  with pytest.raises(ValueError, match='must be one of'):
    Source(asked(), 0, text='words')


def test_single_frames_and_pictures_alone_in_one_batch_with_clips():
  data = MemorySet(20)
  whole = take(train(data, size=20, frames=4, sampling='rand'), 12)
  changes = {'frames': 4, 'sampling': 'rand', 'single_frames': 0.4, 'without_text': 0.5}
  mixed = take(train(data, size=20, **changes), 12)
  shown = collections.Counter()
  for before, batch in zip(whole, mixed, strict=True):
    # The same clips and texts as without.
    records, numbers = who(batch['video'])
    np.testing.assert_array_equal(records, who(before['video'])[0])
    still, alone = batch['still'], batch['caption_id'] < 0
    assert not (alone & ~still).any() and not before['still'].any()
    assert (numbers == numbers[:, :1]).all(1)[still].all()
    shown.update(numbers[still, 0].tolist())
    for name in ('text_ids', 'text_mask', 'caption_id'):
      np.testing.assert_array_equal(batch[name][~alone], before[name][~alone])
    np.testing.assert_array_equal(batch['video'][~still], before['video'][~still])
    assert (batch['text_mask'][alone].sum(1) == 2).all()  # Marks alone.
    shown['still'] += still.sum()
    shown['alone'] += alone.sum()
  # Four standard deviations.
  assert abs(shown.pop('still') - 96) < 31 and abs(shown.pop('alone') - 48) < 25
  assert len(shown) == 8  # Any frame of the clip.
  (again,) = take(train(data, size=20, start=7, **changes), 1)
  check_equal(mixed[7], again)
  (photos,) = take(train(MemorySet(6, stills=(0, 3)), without_text=1.0), 1)
  np.testing.assert_array_equal(photos['caption_id'] < 0, photos['still'])
  with pytest.raises(
    ValueError, match='config.data.single_frames=2.0 must be a share, from 0 to 1'
  ):
    train(data, single_frames=2)


# --- Sources ----------------------------------------------------------------


def test_a_batch_has_one_source_drawn_by_weight():
  sources = [
    Source(MemorySet(50, name='a'), 0, weight=3.0),
    Source(MemorySet(7, name='b'), 1, weight=1.0),
  ]
  order = Order(sources, 5, 4)
  names = [order.plan(k, slice(0, 4)).source.name for k in range(400)]
  assert 270 < names.count('a/train') < 330
  # A small set starts anew on its own; the large one does not.
  last = order.plan(4000, slice(0, 4))
  assert last.epoch.min() > 50
  # The weights of a third are a share of all as well.
  sources.append(Source(MemorySet(9, name='c'), 2, weight=4.0))
  order = Order(sources, 5, 4)
  names = [order.plan(k, slice(0, 4)).source.name for k in range(400)]
  found = [names.count(f'{name}/train') / 400 for name in 'abc']
  np.testing.assert_allclose(found, [3 / 8, 1 / 8, 4 / 8], atol=0.06)


def test_sources_come_and_go():
  sources = [
    Source(MemorySet(5, name='early'), 0, until_step=10),
    Source(MemorySet(5, name='late'), 1, from_step=10),
    Source(MemorySet(5, name='never'), 2, until_step=0),
  ]
  order = Order(sources, 5, 4)
  names = [order.plan(k, slice(0, 4)).source.name for k in range(20)]
  assert names == ['early/train'] * 10 + ['late/train'] * 10
  np.testing.assert_array_equal(order.plan(10, slice(0, 4)).epoch, [0] * 4)


def test_a_step_without_a_source_is_refused():
  sources = [Source(MemorySet(), 0, until_step=2)]
  assert len(records(train(sources), 2)) == 2
  with pytest.raises(ValueError, match='No source is active at step=2'):
    train(sources, start=2)
  batches = train(sources, start=1)
  next(batches)
  with pytest.raises(ValueError, match='No source is active at step=2'):
    next(batches)


def test_a_gap_between_sources_is_known_before_it_comes():
  early, late = (Source(MemorySet(5), 0, until_step=10), Source(MemorySet(5), 1, from_step=20))
  with pytest.raises(ValueError, match='No source is active at step=10 of 100'):
    check_schedule([early, late], 100)
  check_schedule([early, late], 10)
  check_schedule([early, late, Source(MemorySet(5), 2)], 100)
  with pytest.raises(ValueError, match='at step=0'):
    check_schedule([Source(MemorySet(5), 0, weight=0.0)], 100)
  with pytest.raises(ValueError, match='weight=inf must not be negative or infinite'):
    Source(MemorySet(5), 0, weight=float('inf'))


def test_earlier_counts_are_exact_across_blocks():
  sources = [Source(MemorySet(10_000, name=name), i) for i, name in enumerate('ab')]
  order = Order(sources, 3, 1)
  step = 2 * BLOCK + 5
  before = np.concatenate([order._draw(i) for i in range(3)])[:step]
  choice, count = order._choice(step)
  assert count == (before == choice).sum()


def test_styles():
  data = MemorySet(
    4,
    captions=[('one', 'move'), ('two',), ('three', 'trip', 'go'), ('x',)],
    styles=[('', 'motion'), ('',), ('', 'motion', 'motion'), ('other',)],
  )
  source = Source(data, 0, style='motion')
  assert source.records.tolist() == [0, 2]
  said = collections.Counter()
  for batch in take(train([source], size=8), 5):
    for record, ids in zip(who(batch['video'])[0], batch['text_ids'], strict=True):
      said[record, Letters().decode(ids)] += 1
  assert set(said) == {(0, 'move'), (2, 'trip'), (2, 'go')}
  assert said[2, 'trip'] > 2 and said[2, 'go'] > 2
  every = Source(data, 0)
  assert len(every) == 4 and every.num_texts == 7
  with pytest.raises(ValueError, match=r"style='verb', only \['', 'motion'"):
    Source(data, 0, style='verb')


def test_ids_say_same_video_and_same_caption():
  data = MemorySet(3, captions=[('same', 'other'), ('same',), ('third',)])
  seen = collections.defaultdict(set)
  for batch in take(train(data, size=8), 4):
    for row in range(8):
      said = Letters().decode(batch['text_ids'][row])
      seen['caption', said].add(int(batch['caption_id'][row]))
      seen['video', int(who(batch['video'])[0][row])].add(int(batch['video_id'][row]))
  assert all(len(ids) == 1 for ids in seen.values())
  assert len(set.union(*seen.values())) == 6
  # The same set under another style or key is still the same videos.
  (again,) = take(train([Source(data, 7)]), 1)
  assert set(again['video_id'].tolist()) <= set.union(*seen.values())


def test_captions_that_the_model_reads_alike_have_one_id(tmp_path):
  path = tmp_path / 'vocab.txt'
  path.write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', 'cafe', 'dog']))
  said = [
    'a dog',
    'A  Dog',
    'a d\u00f3g',
    'a cafe',
    'a cafe\u0301',
    'dog a dog a cafe',
    'dog a dog a dog',
    'a zebra',
    'a xylophone',
    'dog a',
  ]
  alike = [0, 0, 0, 1, 1, 2, 2, 3, 3, 4]  # Of five tokens two are marks.
  data = MemorySet(10, captions=[(text,) for text in said])
  tokenizer = tokens.load_tokenizer(path)
  config = options(max_text_tokens=5)

  def read(rows):
    batches = pipeline.train_batches(
      config, [Source(data, 0)], tokenizer, seed=1, start_step=0, batch_size=10, rows=rows
    )
    return take(batches, 1)[0]

  whole = read(slice(0, 10))
  ids = dict(zip(who(whole['video'])[0].tolist(), whole['caption_id'].tolist(), strict=True))
  for i in range(10):
    for j in range(10):
      assert (ids[i] == ids[j]) == (alike[i] == alike[j]), (said[i], said[j])
  # Hosts that read parts of the batch agree.
  parts = [read(slice(i, i + 5))['caption_id'] for i in (0, 5)]
  np.testing.assert_array_equal(np.concatenate(parts), whole['caption_id'])


def test_refuses_options_that_cannot_work(tmp_path):
  with pytest.raises(ValueError, match='data.sources is empty'):
    open_sources(options())
  with pytest.raises(ValueError, match='must not be negative'):
    Source(MemorySet(), 0, weight=-1.0)
  with pytest.raises(ValueError, match='is no part of batch_size=6'):
    train(MemorySet(), rows=slice(4, 8))
  config = options()
  config.sources = (common.source(str(tmp_path / 'none')),)
  with pytest.raises((FileNotFoundError, ValueError), match='none'):
    open_sources(config)


# --- Pixels -----------------------------------------------------------------


def test_frames_are_the_chosen_ones():
  (batch,) = take(train(MemorySet(frames=8), sampling='uniform'), 1)
  np.testing.assert_array_equal(who(batch['video'])[1], [[0, 2, 4, 6]] * 6)


def test_photos_may_have_fewer_frames():
  """A source of photos alone; the same pixels, and no other source changes."""

  def sources():
    return [
      Source(MemorySet(6, name='a', stills=range(6)), 0),
      Source(MemorySet(6, name='b', stills=[0]), 1),
    ]

  whole = take(train(sources()), 8)
  few = take(train(sources(), still_frames=1), 8)
  counts = {batch['video'].shape[1] for batch in few}
  assert counts == {1, 4}
  for left, right in zip(whole, few, strict=True):
    left['video'] = left['video'][:, : right['video'].shape[1]]
    check_equal(left, right)


def test_a_photo_is_repeated_after_augmentation():
  data = MemorySet(6, stills=range(6), size=SIZE + 8)
  (batch,) = take(train(data, resize=SIZE + 8, randaugment={'enabled': True, 'level': 7}), 1)
  assert batch['still'].all()
  assert (batch['video'] == batch['video'][:, :1]).all()
  assert batch['video'].std((2, 3)).max() > 5  # Something was warped.


def test_pixels_depend_on_the_epoch_and_the_seed():
  def first(seed, start):
    (batch,) = take(
      train(MemorySet(6), seed=seed, start=start, sampling='rand', randaugment={'enabled': True}), 1
    )
    return batch['video'][np.argsort(batch['video_id'])]

  same = first(1, 0)
  np.testing.assert_array_equal(same, first(1, 0))
  assert (same != first(1, 1)).any() and (same != first(2, 0)).any()


def test_rows_do_not_share_their_randomness():
  (batch,) = take(train(MemorySet(12, frames=24), size=12, sampling='rand'), 1)
  assert len(np.unique(who(batch['video'])[1], axis=0)) > 9


def test_the_fast_parser_agrees_with_tfds():
  data = MemorySet(2, stills=(1,))
  for number, serialized in enumerate(data.fetch([0, 1])):
    slow = parse(tf.constant(serialized))
    fast = tf.io.parse_single_example(serialized, pipeline.FEATURES)
    assert slow['frames'].numpy().tolist() == fast['frames'].numpy().tolist()
    assert bool(slow['still']) == bool(fast['still']) == (number == 1)


# --- Broken records ---------------------------------------------------------


@pytest.mark.parametrize('kind', ('damaged', 'rotten'))
def test_a_broken_record_is_replaced_by_the_next(kind, caplog):
  whole = np.concatenate(records(train(MemorySet(12)), 4)).reshape(2, 12)
  data = MemorySet(12)
  getattr(data, kind).add(4)
  sources = [Source(data, 0)]
  read = np.concatenate(records(train(sources), 4)).reshape(2, 12)
  for before, after in zip(whole, read, strict=True):
    place = np.flatnonzero(before == 4)[0]
    expected = before.copy()
    expected[place] = np.roll(before, -1)[place]
    np.testing.assert_array_equal(after, expected)
  # A run that resumes finds it out anew and replaces it the same way.
  fresh = MemorySet(12)
  getattr(fresh, kind).add(4)
  assert records(train(fresh, start=2), 2) == read[1].reshape(2, 6).tolist()
  named = sources[0].report()
  assert list(named['replaced']) == ['4.mp4']
  assert sum('Replacing' in x.message for x in caplog.records) == 2


@pytest.mark.slow
def test_too_many_broken_records_stop_the_run():
  data = MemorySet(12)
  data.rotten = {2, 3, 7}
  with pytest.raises(TooManyBroken, match='broken_share allows 1 of'):
    records(train(data), 4)
  assert len(records(train(data, broken_share=0.3), 4)) == 4
  data.rotten = set(range(12))
  with pytest.raises(TooManyBroken, match='set/train'):
    records(train(data, broken_share=1.0), 4)


def test_too_many_broken_records_end_a_command_in_one_line(monkeypatch, capsys):
  monkeypatch.setattr(command, '_DEBUG', types.SimpleNamespace(value=False))
  data = MemorySet(16)
  data.rotten = {2, 3, 7}
  with pytest.raises(SystemExit) as end, command.mistakes_in_one_line():
    with feed.Feed(train(data, size=8), sharding.make_mesh(8, 1)) as batches:
      for _ in range(4):
        next(batches)
  said = capsys.readouterr().err.splitlines()[-1]
  # Not 1, which says that a loss is not finite.
  assert end.value.code == command.MISTAKE
  assert said.startswith('error: ') and 'data.broken_share allows 1 of 16' in said


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """A set on disk: 12 photos in 3 files."""
  root = tmp_path_factory.mktemp('photos')
  for number in range(12):
    (root / f'{number}.jpg').write_bytes(jpeg(number, 5, SIZE))
  (root / 'captions.json').write_text(
    json.dumps([{'image': f'{number}.jpg', 'caption': f'clip {number}'} for number in range(12)])
  )
  prepare.prepare(
    sources.read_cc3m(root / 'captions.json', root),
    root,
    root / 'set',
    options=prepare.Options(part_size=4),
    num_workers=1,
  )
  return root / 'set'


def test_trains_from_a_set_on_disk(photos):
  config = options()
  config.sources = (common.source(str(photos)), common.source(str(photos), weight=2))
  sources = open_sources(config)
  assert sources[0].dataset is sources[1].dataset
  (batch,) = take(train(sources, size=12), 1)
  assert sorted(who(batch['video'])[0]) == list(range(12))
  assert batch['still'].all()


def test_a_flipped_bit_costs_a_record_and_says_so(photos, tmp_path):
  shutil.copytree(photos, tmp_path / 'set')
  file = sorted((tmp_path / 'set').glob('*array_record*'))[1]
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 4
  file.write_bytes(data)
  config = options(verify=False, broken_share=0.5)
  config.sources = (common.source(str(tmp_path / 'set')),)
  sources = open_sources(config)
  read = np.concatenate(records(train(sources, broken_share=0.5), 4))
  replaced = sources[0].report()['replaced']
  assert replaced and all('is damaged' in x for x in replaced.values())
  assert len(set(read)) == 12 - len(replaced)
  config.verify = True
  with pytest.raises(ValueError, match='sha256'):
    open_sources(config)


def test_a_disk_that_fails_costs_no_record(monkeypatch):
  """A failure that passes goes unnoticed; one that stays ends the run."""
  whole = records(train(MemorySet(12)), 8)
  data = MemorySet(12)
  real, left = data.fetch, []

  def fetch(indices):
    if left:
      left.pop()
      raise OSError('reading the set failed 7 times')
    return real(indices)

  monkeypatch.setattr(data, 'fetch', fetch)
  source = Source(data, 0)
  batches = train([source])
  read = [next(batches)]
  left.append(1)
  read += [next(batches) for _ in range(7)]
  assert [who(batch['video'])[0].tolist() for batch in read] == whole
  left.extend([1] * 10_000)
  with pytest.raises(OSError, match='failed 7 times'):
    for _ in range(10):
      next(batches)
  assert not source.broken


@pytest.mark.slow
def test_a_script_that_never_closes_still_ends():
  script = """
from alpro_jax import sharding
from alpro_jax.data import feed
from tests import test_pipeline

batches = test_pipeline.train(test_pipeline.MemorySet())
next(batches)
ahead = feed.Feed(
    test_pipeline.train(test_pipeline.MemorySet()), sharding.make_mesh())
next(ahead)
print('done')
"""
  out = subprocess.run(
    [sys.executable, '-c', script],
    capture_output=True,
    text=True,
    timeout=patience.seconds(120),
    env={'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': '.'},
  )
  assert out.returncode == 0 and out.stdout == 'done\n', out.stderr


def test_other_errors_are_not_taken_for_broken_records():
  class Careless(Letters):
    def encode(self, texts, max_tokens):
      raise KeyError('the tokenizer is broken')

  batches = pipeline.train_batches(
    options(),
    [Source(MemorySet(), 0)],
    Careless(),
    seed=0,
    start_step=0,
    batch_size=2,
    rows=slice(0, 2),
  )
  with pytest.raises(KeyError, match='the tokenizer is broken'):
    next(batches)


# --- Evaluation -------------------------------------------------------------


def evaluate(data, **arguments):
  return list(pipeline.eval_batches(options(), data, **{'batch_size': 4, **arguments}))


def test_evaluation_reads_everything_once_and_pads():
  batches = evaluate(MemorySet(6))
  assert [b['valid'].tolist() for b in batches] == [[True] * 4, [True, True, False, False]]
  record = np.concatenate([b['record'] for b in batches])
  assert record.tolist() == [0, 1, 2, 3, 4, 5, 5, 5]
  video = np.concatenate([b['video'] for b in batches])
  shown, frames = who(video)
  assert shown.tolist() == record.tolist()
  assert (frames == [0, 2, 4, 6]).all()
  assert set(batches[0]) == {'video', 'still', 'record', 'valid'}


def test_evaluation_on_two_hosts_takes_equal_steps():
  whole = evaluate(MemorySet(5))
  parts = [evaluate(MemorySet(5), rows=rows) for rows in (slice(0, 2), slice(2, 4))]
  assert [len(part) for part in parts] == [len(whole)] * 2
  for batch, *pieces in zip(whole, *parts, strict=True):
    check_equal(batch, {name: np.concatenate([piece[name] for piece in pieces]) for name in batch})


def test_captions_by_style():
  data = MemorySet(
    3, captions=[('a', 'b'), ('c',), ('d', 'e')], styles=[('', 's'), ('s',), ('s', '')]
  )
  assert data.captions('s') == [['b'], ['c'], ['d']]
  assert data.captions() == [['a', 'b'], ['c'], ['d', 'e']]


def test_data_is_forgotten_after_its_last_batch():
  """A run evaluates a thousand times; each had left its files open."""

  def some(make, end):
    data = MemorySet(6)
    batches = make(data)
    next(batches)
    end(batches)
    return weakref.ref(data)

  def evaluation(data):
    return pipeline.eval_batches(options(), data, batch_size=3)

  ended = [
    some(train, lambda batches: batches.close()),
    some(evaluation, list),
    some(evaluation, lambda batches: None),
  ]
  gc.collect()
  assert [data() for data in ended] == [None] * 3


def test_evaluation_leaves_nothing_out():
  data = MemorySet(6)
  data.rotten = {5}
  with pytest.raises(ValueError, match='5.mp4.*Nothing is left out'):
    evaluate(data)
