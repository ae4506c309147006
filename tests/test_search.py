"""Search: cutting, the index and what is found, with an encoder of numpy."""

import contextlib
import datetime
import errno
import functools
import json
import os
import pathlib
import sqlite3
import subprocess
import sys
import types

import ml_collections
import numpy as np
import opentimelineio as otio
import pytest
from pyarrow import parquet

from alpro_jax import buckets, files
from alpro_jax.data import cut, frames, listing
from alpro_jax.data.cut import Cutting, Segment
from alpro_jax.evaluation import encoder as encoding
from alpro_jax.evaluation import page
from alpro_jax.evaluation.scorer import Matching, TextFeatures, VideoFeatures
from alpro_jax.evaluation.trained import CheckpointInfo
from alpro_jax.search import earlier, exchange, gallery, indexing, querying
from alpro_jax.search import store as storing
from alpro_jax.search.server import Only
from alpro_jax.search.store import File, Indexed, Row, Store, key, show_name
from launch import command
from tests import buckets_on_loopback, launched, patience, small_videos
from tests.test_report import readable

ROOT = pathlib.Path(__file__).resolve().parents[1]
ABOUT = {
  'folders': [os.fsencode('/v').hex()],
  'checkpoint': {'path': 'runs/a', 'step': 7, 'digest': 'd' * 64, 'content': 'c'},
  'cutting': {
    'frames': 2,
    'spans': [10.0],
    'stride': 10.0,
    'fps': 8.0,
    'short_side': 256,
    'begin': 0.0,
  },
  'shown': {},
  'vector': 2,
  'tokens': [3, 4],
}
ODD = [b'a "b" <c>.mp4', b'new\nline.mp4', 'ü ß.mp4'.encode(), b'bad\xff.mp4']


def pointing(start):
  """A unit vector."""
  return np.array([start, 1.0]) / np.hypot(start, 1.0)


class NumpyEncoder:
  """Stands for an Encoder; the vector of a clip is nearer to (1, 0) the later it starts."""

  batch_size = 3

  def __init__(self):
    self.encoded, self.fail_after = 0, None
    config = types.SimpleNamespace(
      embed_size=2,
      dtype='float32',
      token_width=4,
      video=types.SimpleNamespace(width=4, patch_size=8),
    )
    self.trained = types.SimpleNamespace(
      model=types.SimpleNamespace(config=config),
      answers_questions=False,
      knows_matching=True,
      familiarity=None,
      origin=CheckpointInfo('runs/a', 7, 'd' * 64),
      meta={'model': {}, 'tokenizer': {'digest': 't'}},
      params={'x': np.zeros(1, np.float32)},
      config=ml_collections.ConfigDict(
        {'task': 'retrieval', 'data': {'image_size': 8, 'resize': 8, 'resize_mode': 'squash'}}
      ),
    )
    self.scorer = self

  def videos(self, clips):
    if self.fail_after is not None and self.encoded >= self.fail_after:
      raise KeyboardInterrupt
    self.encoded += len(clips)
    feature = np.array([pointing(clip.start) for clip in clips], np.float32)
    tokens = np.zeros((len(clips), 3, 4), np.float32)
    tokens[:, 0, 0] = [clip.start for clip in clips]
    return VideoFeatures(tokens, feature, tokens[:, :2, :2])

  def texts(self, texts):
    return TextFeatures(None, None, np.array([[1, 0]] * len(texts), np.float32))

  def far_clips(self, videos):
    # The store gives back flat what it was given; it has no looks of earlier clips.
    looks = (
      videos.tokens[:, 0] if videos.look is None else videos.look.reshape(len(videos.look), -1)
    )
    return tuple(f'{x:.0f} away' if x > 5 else '' for x in looks[:, 0])

  def far_text(self, text, features):
    return 'none of its pieces is known' if text == 'zzz' else ''

  def matching_by_video(self, texts, videos, text, video):
    # The other way round than the similarity.
    margin = -videos.tokens[video, 0, 0]
    return Matching(margin, margin)


@pytest.fixture
def encoder():
  return NumpyEncoder()


def numbered(seconds, rate=1):
  """Frames that are their own number, at even times."""
  return [(i, i / rate) for i in range(int(seconds * rate))]


@pytest.mark.parametrize(
  'seconds, stride, wanted',
  [
    (24, 10, [(0, 10), (10, 24)]),
    (26, 10, [(0, 10), (10, 20), (20, 26)]),
    (3, 10, [(0, 3)]),
    (17, 5, [(0, 10), (5, 17)]),
    (19, 5, [(0, 10), (5, 15), (10, 19)]),
  ],
)
def test_a_video_is_cut_into_spans(seconds, stride, wanted):
  cutting = Cutting(frames=2, spans=(10,), stride=stride, fps=1)
  found = list(cut.spans(iter(numbered(seconds)), cutting))
  assert [x[:2] for x in found] == wanted
  for start, stop, held in found:
    assert held == list(range(int(start), int(stop)))


def test_a_clip_may_begin_late_and_frames_may_be_missing():
  cutting = Cutting(frames=2, spans=(2,), stride=2, fps=1, begin=3)
  assert [x[:2] for x in cut.spans(iter(numbered(8)), cutting)] == [(3, 5), (5, 8)]
  # Nothing is shown between 1 and 20 s.
  gap = iter([(0, 0.0), (1, 1.0), (2, 20.0)])
  cutting = Cutting(frames=2, spans=(2,), stride=2, fps=0)
  assert [x[2] for x in cut.spans(gap, cutting)] == [[0, 1], [2]]
  assert not list(cut.spans(iter([]), cutting))


@pytest.mark.parametrize('stride', (10, 5, 2.5))
def test_a_gap_costs_nothing_however_long(stride):
  """And the clips behind it begin where they would have begun anyway."""
  cutting = Cutting(frames=2, spans=(10,), stride=stride, fps=1)
  seconds = [0, 1, 2, 12, 3_000_000_001, 3_000_000_002, 3_000_000_019]
  found = list(cut.spans(((at, float(at)) for at in seconds), cutting))
  starts = [x[0] for x in found]
  assert starts == sorted(set(starts)) and not any(x % stride for x in starts)
  assert set().union(*(x[2] for x in found)) == set(seconds)
  for start, stop, held in found:
    assert all(start <= at < stop for at in held)
  # Over a short gap as in single steps.
  short = [(at, float(at)) for at in (0, 1, 43, 44, 80)]
  wanted = {10: [0, 40, 70], 5: [0, 35, 40, 70], 2.5: [0, 35, 37.5, 40, 42.5, 70]}
  assert [x[0] for x in cut.spans(iter(short), cutting)] == wanted[stride]


def test_how_to_cut_is_checked():
  with pytest.raises(ValueError, match='leave no gaps'):
    Cutting(frames=2, spans=(2,), stride=3)
  for spans in ((), (5, 2), (2, 2), (0, 2)):
    with pytest.raises(ValueError, match='in ascending order'):
      Cutting(frames=2, spans=spans)
  with pytest.raises(ValueError, match='--fps=-1'):
    Cutting(frames=2, fps=-1)
  with pytest.raises(ValueError, match='no negative number'):
    Cutting(frames=0)


def test_a_clip_has_the_frames_of_evaluation(tmp_path, monkeypatch):
  path = small_videos.write_video(tmp_path / 'a b.mp4', frames=10, rate=10)
  seen = []
  monkeypatch.setattr(cut.video, 'encode_jpeg', lambda frame, _: bytes([frame[0, -1, 0] // 20]))
  monkeypatch.setattr(cut, '_strip', lambda chosen: seen.append(chosen))
  found = cut.cut_video((str(path), None), cutting=Cutting(frames=4, fps=0))
  (clip,) = found.clips
  assert (clip.start, round(clip.stop, 3)) == (0, 1)
  wanted = frames.choose_frames('uniform', 10, 4, None).numpy()
  assert [x[0] for x in clip.frames] == pytest.approx(wanted, abs=1)
  assert found.size == 4 and not found.reason


def test_several_spans_cut_the_same_video(tmp_path, monkeypatch):
  path = str(small_videos.write_video(tmp_path / 'a.mp4', frames=14, rate=2))
  monkeypatch.setattr(cut, '_make', lambda start, stop, pixels, count: (start, stop, len(pixels)))
  cutting = Cutting(frames=1, spans=(2, 4), stride=2, fps=0)
  wanted = [(0, 2, 4), (0, 4, 8), (1, 3, 4), (2, 4, 4), (2, 7, 10), (3, 5, 4), (4, 6, 4), (5, 7, 4)]
  assert list(cut.cut_video((path, None), cutting=cutting).clips) == wanted
  assert list(cut.cut_video((path, (2.0,)), cutting=cutting).clips) == [wanted[3], wanted[4]]
  # One that is shorter than both is one clip.
  path = str(small_videos.write_video(tmp_path / 'b.mp4', frames=4, rate=2))
  assert list(cut.cut_video((path, None), cutting=cutting).clips) == [(0, 2, 4)]
  assert cutting.overlaps and not Cutting(frames=1).overlaps
  for spans, stride in (((0.2,), 0.2), ((0.1, 0.2, 0.7), 0.7), ((0.7,), 0.1)):
    each = Cutting(frames=1, spans=spans, stride=stride).each()
    assert [x.span for x in each] == list(spans) and each[-1].stride == stride


def test_what_cannot_be_read_says_why(tmp_path):
  (tmp_path / 'a.mp4').write_text('no video')
  cutting = Cutting(frames=2)
  assert cut.cut_video((str(tmp_path / 'a.mp4'), None), cutting=cutting).reason == 'unreadable'
  assert cut.cut_video(('nowhere', None), cutting=cutting).reason == 'missing file'


@pytest.fixture
def store(tmp_path):
  store = Store.create(tmp_path / 'index', ABOUT)
  yield store
  store.close()


def row(start, value=0.0):
  tokens = np.full((3, 4), start + value)
  return Row(start, start + 1, pointing(start), tokens, b'strip', tokens[:2, :2])


def put(store, name, rows=(), *said, size=1, mtime_ns=1):
  store.put(Indexed(File(name, size, mtime_ns), rows, *said))


def test_the_index_keeps_any_name(store):
  store.put(*(Indexed(File(name, 5, i), [row(1.0), row(0.0)]) for i, name in enumerate(ODD)))
  put(store, ODD[0], [row(2.0)], size=6)
  put(store, b'broken.mp4', [], 'unreadable', 'why')
  clips = store.clips()
  assert clips.name == sorted([*ODD, *ODD[1:]])
  assert clips.start[clips.name.index(ODD[1])] == 0
  assert clips.vector.shape == (7, 2) and clips.vector.dtype == np.float32
  np.testing.assert_array_equal(clips.stop - clips.start, 1)
  assert clips.start.dtype == clips.stop.dtype == np.float64
  tokens = store.tokens(clips.id[[4, 0]])
  assert tokens.dtype == np.float16 and tokens.shape == (2, 3, 4)
  assert tokens[:, 0, 0].tolist() == clips.start[[4, 0]].tolist()
  assert store.strips(clips.id[:1]) == [b'strip']
  assert store.files()[ODD[0]].size == 6
  assert store.problems() == [(b'broken.mp4', 'unreadable', 'why', 0)]
  assert store.counts() == (4, 7)
  assert store.path(ODD[3]) == b'/v/bad\xff.mp4'
  store.drop(ODD)
  assert store.counts() == (0, 0) and not len(store.clips().id)
  assert [show_name(name) for name in ODD] == [
    'a "b" <c>.mp4',
    'new\\nline.mp4',
    'ü ß.mp4',
    'bad\\xff.mp4',
  ]


def test_a_search_looks_where_it_is_asked_to(store):
  put(store, b"it's/a.mp4", [row(1.0), row(2.0)], mtime_ns=10**18)
  put(store, b"it's/b.mp4", [row(9.0)], mtime_ns=2 * 10**18)
  put(store, b'c.mp4', [row(0.0)], mtime_ns=3 * 10**18)

  def found(**only):
    return store.nearest(np.array([1, 0], np.float32), 9, Only(**only).where).start.tolist()

  assert found() == [9, 2, 1, 0]
  assert found(below="it's/") == [9, 2, 1]
  assert found(below="it's/", max_seconds=5) == [2, 1]
  day = datetime.date.fromtimestamp(15 * 10**8)
  assert found(min_seconds=5) == [9] and found(after=day) == [9, 0] and found(before=day) == [2, 1]
  assert found(video=key(b'c.mp4')) == [0] and found(below="' OR 1=1 --") == []
  assert not Only().where and found(min_seconds=0, after=datetime.date(1900, 1, 1)) == [9, 2, 1, 0]


def test_where_there_is_nothing_nothing_is_found(store):
  with pytest.raises(ValueError, match='holds no clip; index a folder first'):
    querying.search(NumpyEncoder(), store, ['x'])
  put(store, b'a.mp4', [row(1.0)])
  (found,) = querying.search(NumpyEncoder(), store, ['x'], where='seconds > 99')
  assert not found.hits and not found.read


def test_above_some_size_vectors_are_found_by_their_neighbourhood(store, monkeypatch):
  monkeypatch.setattr(storing, 'EXACT', 300)
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(330, 2))
  vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
  rows = [Row(0.0, 1.0, x, None, bytes([i % 256])) for i, x in enumerate(vectors)]
  store.put(*(Indexed(File(b'%d' % i, 1, 1), [one]) for i, one in enumerate(rows[:320])))
  store.tidy()
  # Of those that come later all are compared.
  store.put(*(Indexed(File(b'%d' % i, 1, 1), [rows[i]]) for i in range(320, 330)))
  for query in (3, 325):
    exact = np.argsort(-(vectors @ vectors[query]))[:10]
    found = store.nearest(vectors[query].astype(np.float32), 10)
    assert {int(name) for name in found.name} >= set(exact[:8])
    assert store.strips(found.id) == [bytes([int(name) % 256]) for name in found.name]
  store.tidy()
  assert store.counts() == (330, 330) and store.about['cells_of'] == 320
  # Cells are made anew when there are several times as many vectors.
  monkeypatch.setattr(storing, '_GROWN', 1.03)
  store.tidy()
  assert store.about['cells_of'] == 330


def test_a_narrow_filter_finds_what_lies_far_away(store, monkeypatch):
  import lancedb.index

  monkeypatch.setattr(storing, 'EXACT', 300)
  monkeypatch.setattr(storing, '_PROBES', 1)
  many_cells = functools.partial(lancedb.index.IvfSq, num_partitions=8)
  monkeypatch.setattr(lancedb.index, 'IvfSq', many_cells)
  monkeypatch.setattr(lancedb.table.LanceTable, 'optimize', lambda *_, **__: None)  # Joins cells.
  angles = np.linspace(0, np.pi, 320)
  rows = [Row(0.0, 1.0, np.array([np.cos(x), np.sin(x)]), None, b'') for x in angles]
  store.put(*(Indexed(File(b'%03d' % i, 1, 1), [one]) for i, one in enumerate(rows)))
  store.tidy()
  found = store.nearest(np.array([1, 0], np.float32), 5, "path >= '300'")
  assert found.name == [b'300', b'301', b'302', b'303', b'304']


def test_a_reader_sees_a_change_when_it_asks(store):
  put(store, b'a', [row(0.0)])
  reader = Store.open(store.folder)
  put(store, b'b', [row(1.0)])
  assert reader.counts() == (1, 1)
  reader.refresh()
  assert reader.counts() == (2, 2)
  store.drop([b'b'])
  (clip,) = reader.nearest(np.array([1, 0], np.float32), 1).id
  reader.refresh()
  with pytest.raises(ValueError, match='was changed by another run'):
    reader.strips([clip])


def test_an_index_is_read_in_a_bucket(store, monkeypatch):
  put(store, b'a', [row(0.0)])
  files.write_text(f'{store.folder}/{storing.REPORT}', '{"left": 3}')
  with buckets_on_loopback.s3() as (_, bucket):
    monkeypatch.setenv('AWS_ENDPOINT', os.environ['AWS_ENDPOINT_URL'])  # LanceDB's name of it.
    monkeypatch.setenv('AWS_ALLOW_HTTP', 'true')
    address = f'{bucket}/a/index'
    buckets.upload(pathlib.Path(store.folder), address)
    assert Store.exists(address) and not Store.exists(f'{address}s')
    reader = Store.open(address)
    assert reader.counts() == (1, 1) and reader.report() == {'left': 3}
    assert reader.strips(reader.clips().id) == [b'strip']
    put(store, b'b', [row(1.0)])
    buckets.upload(pathlib.Path(store.folder), address)
    reader.refresh()
    assert reader.counts() == (2, 2)
    with pytest.raises(ValueError, match='is an address'):
      Store.create(address, ABOUT)
    with pytest.raises(ValueError, match='is an address'), indexing.locked(address):
      pass
    with pytest.raises(FileNotFoundError, match='holds no index.json'):
      Store.open(f'{bucket}/nowhere')


def test_clips_of_a_run_that_was_killed_are_replaced(store):
  put(store, b'a', [row(0.0), row(1.0)])
  store._videos.delete('true')  # It is written last.
  again = Store.open(store.folder)
  assert not again.files()
  put(again, b'a', [row(0.0), row(1.0)])
  assert again.counts() == (1, 2) and len(again.clips().id) == 2
  assert again._kept.count_rows() == 2


def test_a_kill_while_a_video_is_replaced_leaves_its_clips(store, monkeypatch):
  """Before each of the writes by turns, as a kill does."""
  for kill in range(9):
    fresh = Store.open(store.folder)
    put(fresh, b'a', [row(0.0), row(1.0)], mtime_ns=1)
    put(fresh, b'b', [row(5.0)])
    left = kill

    def step():
      nonlocal left
      left -= 1
      if left < 0:
        raise KeyboardInterrupt

    class Stopping:
      def __init__(self, table):
        self._table = table

      def __getattr__(self, name):
        if name in ('add', 'delete', 'merge_insert'):
          step()
        return getattr(self._table, name)

    for name in ('_videos', '_clips', '_kept'):
      monkeypatch.setattr(fresh, name, Stopping(getattr(fresh, name)))
    with contextlib.suppress(KeyboardInterrupt):
      put(fresh, b'a', [row(0.0), row(2.0)], mtime_ns=2)
    again = Store.open(store.folder)
    found = again.clips()
    starts = {x for x, name in zip(found.start, found.name, strict=True) if name == b'a'}
    assert {0.0} <= starts <= {0.0, 1.0, 2.0} and set(again.files()) == {b'a', b'b'}
    assert len(again.strips(found.id)) == len(found.id)
    put(again, b'a', [row(0.0), row(2.0)], mtime_ns=2)
    assert again.clips().start.tolist() == [0, 2, 5] and again._kept.count_rows() == 3
  assert left > 0  # There are no more writes.


def test_clips_without_a_video_are_forgotten(store):
  put(store, b'a', [row(0.0)])
  put(store, b'b', [row(1.0)])
  store._videos.delete(f'video = {key(b"a")}')
  again = Store.open(store.folder)
  again.put()
  assert again.clips().name == [b'b'] and again._kept.count_rows() == 1


def test_parts_are_merged(store, tmp_path):
  # How many clips an index of vectors is of is not handed down.
  parts = [Store.create(tmp_path / f'{i}', ABOUT | {'cells_of': 9}) for i in range(2)]
  assert not parts[0].about['cells_of']
  put(parts[0], b'a', [row(0.0), row(1.0)])
  put(parts[1], b'b', [row(2.0)])
  put(parts[1], b'broken', [], 'unreadable', 'why')
  parts[1]._kept.drop_columns(['look'])  # As of a part that was made before there were any.
  for _ in range(2):  # Twice changes nothing.
    for part in parts:
      store.merge(part)
  assert store.counts() == (2, 3) and list(store.files()) == [b'a', b'b', b'broken']
  clips = store.clips()
  np.testing.assert_array_equal(store.tokens(clips.id)[:, 0, 0], clips.start)


def test_parts_of_a_folder_are_all_of_it(byte_videos, tmp_path):
  for name in 'abcdefgh':
    put_bytes(byte_videos / f'{name}.mp4', name)
  whole = {file.name for file in indexing.list_videos(byte_videos).files}
  parts = [indexing.list_videos(byte_videos, (i, 3)) for i in (1, 2, 3)]
  names = [file.name for part in parts for file in part.files]
  assert len(names) == 8 and set(names) == whole and all(len(part.files) < 8 for part in parts)
  with pytest.raises(ValueError, match='--part=4/3 must be'):
    indexing.list_videos(byte_videos, (4, 3))
  # A part forgets nothing of another.
  store = Store.create(tmp_path / 'x', ABOUT | {'folders': [os.fsencode(byte_videos).hex()]})
  for part in parts:
    indexing.index(NumpyEncoder(), store, part)
  assert store.counts()[0] == 8


def test_what_is_no_index_is_refused(tmp_path):
  assert not Store.exists(tmp_path)
  with pytest.raises(FileNotFoundError, match='holds no index.json'):
    Store.open(tmp_path)
  (tmp_path / 'index.json').write_text('something else')
  with pytest.raises(ValueError, match='is no index'):
    Store.open(tmp_path)
  (tmp_path / 'index.json').write_text('{"format": 0}')
  with pytest.raises(ValueError, match='has format 0'):
    Store.open(tmp_path)
  (tmp_path / 'index.json').write_text(json.dumps({'format': storing.FORMAT, **ABOUT}))
  with pytest.raises(ValueError, match='is no index, or a damaged one .LanceDB: '):
    Store.open(tmp_path)


def test_an_index_needs_lancedb(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'lancedb', None)
  with pytest.raises(ImportError, match='pip install "alpro_jax.search.", or lancedb'):
    Store.create(tmp_path / 'x', ABOUT)


@pytest.mark.parametrize('code', (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS))
def test_what_the_disk_refuses_is_a_sentence(store, code, monkeypatch):
  said = os.strerror(code)

  def refuse(*_, **__):
    raise RuntimeError(f'lance error: LanceError(IO): {said} (os error 28)')

  monkeypatch.setattr(store._videos, 'count_rows', refuse)
  # A sound index is never called damaged.
  with pytest.raises(OSError) as caught:
    store.counts()
  assert caught.value.errno == code and 'damaged' not in str(caught.value)
  assert f"{said}: '{store.folder}': " in command.describe(caught.value)  # And what helps.


def test_what_ends_a_run_is_what_is_said(store, tmp_path, monkeypatch):
  def full(*_, **__):
    raise RuntimeError('No space left on device')

  def write_text(path, text):
    raise OSError(errno.ENOSPC, 'full', 'report.json')

  # The report does not fit either.
  for write in ('add', 'merge_insert'):
    monkeypatch.setattr(store._clips, write, full)
  cut_video = cut.CutVideo((Segment(0.0, 1.0, (), b'strip'),))
  monkeypatch.setattr(indexing, 'decode', lambda *_, **__: [cut_video])
  monkeypatch.setattr(indexing.files, 'write_text', write_text)
  folder = indexing.Folder(bytes(tmp_path), [File(b'b', 1, 1)], [])
  with pytest.raises(OSError, match='No space left on device: .*index'):
    indexing.index(NumpyEncoder(), store, folder)
  assert store.counts() == (0, 0) and not store.files()
  monkeypatch.undo()
  put(store, b'b', [row(1.0)])
  assert store.counts() == (1, 1) and store._kept.count_rows() == 1


def test_what_the_system_refuses_comes_with_advice():
  said = command.describe(OSError(errno.ENOSPC, 'No space left', '/a/b'))
  assert "'/a/b': free space there and repeat the command." in said
  assert command.describe(OSError('a sentence.')) == 'a sentence.'
  # A name alone says nothing.
  assert "KeyError: 'config'. No input" in command.describe(KeyError('config'))


def test_a_model_is_known_by_its_content(store, encoder, caplog):
  trained = encoder.trained
  made = indexing.made_with(trained)
  assert made.items() >= {'path': 'runs/a', 'digest': 'd' * 64}.items()
  assert len(made['content']) == 64
  trained.params['x'] += 1
  assert indexing.made_with(trained)['content'] != made['content']
  store.change(checkpoint=made)
  # Written again without its optimizer, in another place.
  copy = made | {'path': 'runs/copy', 'digest': 'e' * 64}
  indexing.check_checkpoint(store, copy)
  assert 'runs/copy holds the same model' in caplog.text
  for other in (copy | {'content': 'f'}, {**copy, 'content': None}):
    with pytest.raises(ValueError, match='runs/copy is another checkpoint'):
      indexing.check_checkpoint(store, other)
  # An index of earlier knows the digest of the files alone.
  old = {name: made[name] for name in ('path', 'step', 'digest')}
  store.change(checkpoint=old)
  indexing.check_checkpoint(store, made)
  with pytest.raises(ValueError, match='another checkpoint'):
    indexing.check_checkpoint(store, copy)


def test_an_index_is_not_mixed(store):
  indexing.check_same(store, dict(ABOUT))
  other = ABOUT | {'checkpoint': {'path': 'runs/b', 'step': 8, 'digest': 'e', 'content': 'f'}}
  with pytest.raises(ValueError, match='another checkpoint .step 8'):
    indexing.check_same(store, other)
  other = ABOUT | {'cutting': ABOUT['cutting'] | {'spans': (5.0,)}}
  with pytest.raises(ValueError, match=r'--span was .10.0., now .5.0.'):
    indexing.check_same(store, other)


def test_only_what_is_missing_is_done(tmp_path, encoder, capfd):
  root = tmp_path / 'my videos'
  small_videos.write_folder(root, 4)
  (root / 'broken.avi').write_text('no video')
  cutting = Cutting(frames=2, spans=(0.5,), stride=0.5)
  about = indexing.describe(encoder, [os.fsencode(root)], cutting, True)
  assert about['tokens'] == [2, 4]
  store = Store.create(tmp_path / 'index', about | {'tokens': [3, 4]})

  def run():
    before = encoder.encoded
    report = indexing.index(encoder, store, indexing.list_videos(root), num_workers=1)
    return report, encoder.encoded - before

  # Two clips a video, three a call: interrupted in the second call.
  encoder.fail_after = 3
  with pytest.raises(KeyboardInterrupt):
    run()
  assert store.counts() == (1, 2)
  report = json.loads((tmp_path / 'index' / 'report.json').read_text())
  assert (report['done_in_this_run'], report['left']) == (1, 4)
  encoder.fail_after = None
  report, encoded = run()
  assert (report['indexed'], report['clips'], encoded) == (4, 8, 6)
  assert report['already_there'] == 1
  clips = store.clips()
  np.testing.assert_array_equal(store.tokens(clips.id)[:, 0, 0], clips.start)
  (problem,) = json.loads((tmp_path / 'index' / 'report.json').read_text())['problems']
  assert (problem['video'], problem['reason']) == ('broken.avi', 'unreadable')
  assert 'broken.avi: unreadable' in capfd.readouterr().err

  assert run()[1] == 0
  os.utime(root / '000.mp4', (1, 1))
  (root / '001.mp4').unlink()
  report, encoded = run()
  assert encoded == 2 and report['dropped'] == ['001.mp4']
  assert store.counts() == (3, 6)
  store.close()


@pytest.fixture
def byte_videos(tmp_path, monkeypatch):
  """A folder of files that stand for videos: clip k starts at byte k."""

  def run_in_order(target, settings, items, workers, **unused):
    assert workers == (os.cpu_count() or 1)
    for path, _ in items:
      yield cut.CutVideo(
        tuple(
          Segment(float(byte), byte + 1.0, (), b'')
          for byte in sorted(set(pathlib.Path(path).read_bytes()) - {ord('.')})
        )
      )

  monkeypatch.setattr(indexing.workers, 'run_in_order', run_in_order)
  root = tmp_path / 'videos'
  root.mkdir()
  return root


def put_bytes(path, text):
  """Writes 200 kB that end in a text, always at the same time."""
  path.write_bytes(text.encode().rjust(200_000, b'.'))
  os.utime(path, ns=(10**18, 10**18))


def bring_up_to_date(store, root):
  store.change(folders=[os.fsencode(root).hex()])
  return indexing.index(NumpyEncoder(), store, indexing.list_videos(root))


def test_a_video_replaced_at_the_same_size_and_time_is_noticed(store, byte_videos):
  put_bytes(byte_videos / 'a.mp4', 'x')
  put_bytes(byte_videos / 'b.mp4', 'y')
  assert bring_up_to_date(store, byte_videos)['done_in_this_run'] == 2
  assert bring_up_to_date(store, byte_videos)['done_in_this_run'] == 0
  put_bytes(byte_videos / 'a.mp4', 'z')
  report = bring_up_to_date(store, byte_videos)
  assert (report['done_in_this_run'], report['already_there']) == (1, 1)
  assert store.clips().start.tolist() == [ord('z'), ord('y')]
  # Its beginning counts as its end does, 64 KiB of both.
  for place in (0, 65_535, 200_000 - 65_536):
    with open(byte_videos / 'b.mp4', 'r+b') as file:
      file.seek(place)
      file.write(b'q')
    os.utime(byte_videos / 'b.mp4', ns=(10**18, 10**18))
    report = bring_up_to_date(store, byte_videos)
    assert (report['done_in_this_run'], report['left']) == (1, 0)


# What index.sqlite was.
TABLES = """
CREATE TABLE about (value TEXT NOT NULL);
CREATE TABLE videos (
  id INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, size INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL);
CREATE TABLE clips (
  id INTEGER PRIMARY KEY, video INTEGER NOT NULL, start REAL NOT NULL,
  stop REAL NOT NULL, vector BLOB NOT NULL);
CREATE TABLE kept (clip INTEGER PRIMARY KEY, strip BLOB NOT NULL, tokens BLOB);
"""


@pytest.mark.parametrize('ends', (None, b'ends'))
def test_an_index_of_earlier_is_converted(tmp_path, byte_videos, ends):
  folder = tmp_path / 'old'
  folder.mkdir()
  cutting = {name: x for name, x in ABOUT['cutting'].items() if name != 'spans'} | {'span': 10.0}
  about = {'root': 'x', 'root_bytes': os.fsencode(byte_videos).hex(), 'cutting': cutting}
  about |= {name: ABOUT[name] for name in ('checkpoint', 'shown', 'vector', 'tokens')}
  with sqlite3.connect(folder / 'index.sqlite') as old:
    old.executescript(TABLES)
    old.execute('INSERT INTO about VALUES (?)', (json.dumps({'format': 1, **about}),))
    for number, (name, size, reason) in enumerate([('a.mp4', 200000, ''), ('b.mp4', 3, 'broken')]):
      values = number, name.encode(), size, 10**18, reason
      old.execute("INSERT INTO videos VALUES (?, ?, ?, ?, ?, 'why')", values)
    vector, tokens = np.array([0.6, 0.8], '<f4'), np.full((3, 4), 7, '<f2')
    old.execute('INSERT INTO clips VALUES (1, 0, 7, 8, ?)', (vector.tobytes(),))
    old.execute('INSERT INTO kept VALUES (1, ?, ?)', (b'strip', tokens.tobytes()))
    if ends:
      old.execute('ALTER TABLE videos ADD COLUMN ends BLOB')
      old.execute('UPDATE videos SET ends = ?', (ends,))
  old.close()
  with pytest.raises(ValueError, match='of an earlier version; `search.py convert --index='):
    Store.open(folder)
  put_bytes(byte_videos / 'a.mp4', 'x')
  store = earlier.convert(folder)
  clips = store.clips()
  assert clips.start.tolist() == [7] and clips.name == [b'a.mp4']
  np.testing.assert_array_equal(clips.vector, vector[None])
  np.testing.assert_array_equal(store.tokens(clips.id), tokens[None])
  assert store.strips(clips.id) == [b'strip']
  # What has its size and time gets a digest where there was none.
  now = listing.look_at(os.fsencode(byte_videos / 'a.mp4'), b'a.mp4')
  assert store.files()[b'a.mp4'] == now._replace(ends=ends or now.ends)
  assert store.problems() == [(b'b.mp4', 'broken', 'why', 0)]
  indexing.check_same(store, ABOUT)
  with pytest.raises(FileExistsError, match='nothing is to be converted'):
    earlier.convert(folder)
  with pytest.raises(FileNotFoundError, match='holds no index.sqlite'):
    earlier.convert(byte_videos)
  (byte_videos / 'index.sqlite').write_text('something else, long enough')
  with pytest.raises(ValueError, match='is no index, or a damaged one'):
    earlier.convert(byte_videos)
  if ends:
    return
  report = bring_up_to_date(store, byte_videos)
  assert (report['already_there'], report['dropped']) == (1, ['b.mp4'])
  put_bytes(byte_videos / 'a.mp4', 'z')
  assert bring_up_to_date(store, byte_videos)['done_in_this_run'] == 1
  assert store.clips().start.tolist() == [ord('z')]


def test_folders_are_added_and_may_move(tmp_path, byte_videos, encoder):
  """Of several, each keeps its own videos."""
  encoder.trained.config.data.frames = 2
  output, other, moved = (tmp_path / name for name in ('index', 'other', 'moved'))
  other.mkdir()
  put_bytes(byte_videos / 'a.mp4', 'a')
  put_bytes(other / 'a.mp4', 'b')
  put_bytes(other / 'c.mp4', 'c')

  def update(folder):
    listed = indexing.list_videos(folder)
    options = {'cutting': {}, 'keep_tokens': False, 'log': lambda line: None}
    report = indexing.update(encoder, listed, output, **options)
    return report['done_in_this_run'], len(report['dropped'])

  assert update(byte_videos) == (1, 0) and update(other) == (2, 0) and update(byte_videos) == (0, 0)
  store = Store.open(output)
  assert store.folders == [os.fsencode(x) for x in (byte_videos, other)]
  paths = {os.fsencode(x) for x in (byte_videos / 'a.mp4', other / 'a.mp4', other / 'c.mp4')}
  assert {store.path(name) for name in store.files()} == paths
  # Of one that is gone nothing is forgotten, unless it is found elsewhere.
  other.rename(moved)
  (moved / 'c.mp4').unlink()
  assert update(byte_videos) == (0, 0) and update(moved) == (0, 1)
  store = Store.open(output)
  assert store.folders == [os.fsencode(x) for x in (byte_videos, moved)]
  assert store.counts() == (2, 2)
  (found,) = querying.search(encoder, store, ['x'], top=1, rerank_k=0)
  assert found[0].path == str(moved / 'a.mp4')
  assert {store.shown(name) for name in store.files()} == {'videos/a.mp4', 'moved/a.mp4'}


def test_a_name_alone_moves_no_folder(tmp_path, byte_videos, encoder, caplog):
  """Two cards of a camera hold files of the same names."""
  encoder.trained.config.data.frames = 2
  other, output = tmp_path / 'other', tmp_path / 'index'
  other.mkdir()
  for name in 'abc':
    put_bytes(byte_videos / f'{name}.mp4', name)
  put_bytes(other / 'a.mp4', 'z')
  put_bytes(other / 'b.mp4', 'b')

  def update(folder):
    options = {'cutting': {}, 'keep_tokens': False, 'log': lambda line: None}
    return len(indexing.update(encoder, indexing.list_videos(folder), output, **options)['dropped'])

  assert update(byte_videos) == 0
  byte_videos.rename(tmp_path / 'unplugged')
  assert update(other) == 0
  assert f'{byte_videos} is not there; what the index holds of it stays.' in caplog.text
  store = Store.open(output)
  assert store.folders == [os.fsencode(x) for x in (byte_videos, other)]
  assert store.counts()[0] == 5
  # Plugged in elsewhere, with other times, as a copy has.
  again = tmp_path / 'again'
  (tmp_path / 'unplugged').rename(again)
  for path in again.iterdir():
    os.utime(path, (1, 1))
  assert update(again) == 0
  assert Store.open(output).folders == [os.fsencode(x) for x in (again, other)]


def test_find_searches_no_folder_of_the_same_name(
  tmp_path, byte_videos, encoder, monkeypatch, capsys
):
  encoder.trained.config.data.frames = 2
  other = tmp_path / 'other' / 'videos'
  other.mkdir(parents=True)
  put_bytes(byte_videos / 'a.mp4', 'a')
  put_bytes(other / 'a.mp4', 'b')
  monkeypatch.chdir(tmp_path)
  options = {'cutting': {}, 'keep_tokens': False, 'log': lambda line: None}
  indexing.update(encoder, indexing.list_videos(byte_videos), 'videos.index', **options)
  assert launched.run('search', 'find', str(other), 'a dog', '--checkpoint=shapes') == 2
  said = capsys.readouterr().err
  assert f'videos.index is the index of {byte_videos}, not of {other}; name another' in said


def test_of_overlapping_hits_the_best_stays(tmp_path, encoder):
  cutting = ABOUT['cutting'] | {'spans': [2.0, 4.0], 'stride': 4.0}
  about = ABOUT | {'cutting': cutting, 'tokens': None}
  store = Store.create(tmp_path / 'x', about)
  spans = [(0, 4), (3, 5), (4, 8), (5, 8)]
  rows = [row(float(start))._replace(stop=float(stop), tokens=None) for start, stop in spans]
  store.put(*(Indexed(File(name, 1, 1), rows) for name in (b'a', b'b')))
  (found,) = querying.search(encoder, store, ['x'], top=9, rerank_k=0)
  # 3 of the 4 seconds of 4-8 are 5-8.
  assert [(hit.start, hit.end) for hit in found.by_video['/v/a']] == [(5, 8), (3, 5), (0, 4)]
  assert sorted(found.by_video) == ['/v/a', '/v/b'] and len(found) == 6
  (few,) = querying.search(encoder, store, ['x'], top=3, rerank_k=0)
  assert list(few) == list(found)[:3]


def test_what_cannot_be_looked_at_is_not_forgotten(store, byte_videos):
  for name in 'ab':
    put_bytes(byte_videos / f'{name}.mp4', name)
  bring_up_to_date(store, byte_videos)
  for name in 'ab':
    (byte_videos / f'{name}.mp4').unlink()
  # As when the disk behind a link is not there.
  (byte_videos / 'b.mp4').symlink_to('/nowhere/b.mp4')
  report = bring_up_to_date(store, byte_videos)
  assert report['dropped'] == ['a.mp4'] and store.counts() == (1, 1)
  (problem,) = report['problems']
  assert problem['reason'] == 'cannot be looked at'
  folder = indexing.Folder(b'/v', [], [(b'sub', 'denied')])
  assert folder.may_hold(b'sub/a.mp4') and not folder.may_hold(b'subs/a.mp4')
  assert indexing.Folder(b'/v', [], [(b'.', 'denied')]).may_hold(b'x.mp4')


def test_one_run_at_a_time(tmp_path):
  with (
    indexing.locked(tmp_path),
    pytest.raises(ValueError, match='is writing'),
    indexing.locked(tmp_path),
  ):
    pass


def test_a_disk_without_locks_is_named(tmp_path, monkeypatch):
  def flock(*_):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(files.fcntl, 'flock', flock)
  with (
    pytest.raises(OSError, match=r'No locks available: .*\.lock') as caught,
    indexing.locked(tmp_path),
  ):
    pass
  assert 'on a disk that has locks' in command.describe(caught.value)


def test_fusion_orders_the_nearest(store):
  put(store, b'a', [row(float(i)) for i in range(5)])
  encoder = NumpyEncoder()
  (found,) = querying.search(encoder, store, ['x'], top=4, rerank_k=0)
  assert [hit.start for hit in found.hits] == [4, 3, 2, 1]
  assert found.read == 0 and found.hits[0].match is None
  (found,) = querying.search(encoder, store, ['x'], top=4, rerank_k=2)
  assert [hit.start for hit in found.hits] == [3, 4, 2, 1]
  assert found.read == 2 and found.hits[2].match is None
  assert found.hits[0].match == pytest.approx(1 / (1 + np.exp(3)))


def test_fusion_reads_more_than_are_shown_and_orders_by_score(store):
  # Similarity is the start; the margin of a match is -(start + value).
  put(store, b'a', [row(float(i), value) for i, value in enumerate([0, 0, 5, -9, 5])])
  encoder = NumpyEncoder()
  (found,) = querying.search(encoder, store, ['x'], top=1, rerank_k=3)
  assert [hit.start for hit in found.hits] == [3] and found.read == 3
  assert found.hits[0].match == pytest.approx(1 / (1 + np.exp(-6)))
  assert found.hits[0].similarity == pytest.approx(pointing(3)[0])
  (found,) = querying.search(encoder, store, ['x'], top=4, rerank_k=3)
  assert [hit.start for hit in found.hits] == [3, 2, 4, 1]
  (found,) = querying.search(encoder, store, ['x'], top=9, rerank_k=9)
  assert [hit.start for hit in found.hits] == [3, 0, 1, 2, 4]


def test_a_video_that_has_changed_is_not_decoded_for_its_old_clips(
  tmp_path, byte_videos, monkeypatch, caplog
):
  for name in 'ab':
    put_bytes(byte_videos / f'{name}.mp4', name)
  store = Store.create(
    tmp_path / 'index', ABOUT | {'tokens': None, 'folders': [os.fsencode(byte_videos).hex()]}
  )
  bring_up_to_date(store, byte_videos)
  assert store._kept.to_arrow()['tokens'].to_pylist() == [None, None]
  put_bytes(byte_videos / 'b.mp4', 'c')
  monkeypatch.setattr(
    querying,
    'decode',
    lambda items, cutting: [
      cut.CutVideo(tuple(Segment(start, start + 1, (), b'') for start in starts))
      for _, starts in items
    ],
  )
  (found,) = querying.search(NumpyEncoder(), store, ['x'], rerank_k=2)
  assert [(hit.name, hit.match is None) for hit in found.hits] == [
    (b'a.mp4', False),
    (b'b.mp4', True),
  ]
  assert 'b.mp4 has changed since it was indexed' in caplog.text
  store.close()


def test_without_tokens_candidates_are_decoded_again(tmp_path, monkeypatch, caplog):
  store = Store.create(tmp_path, ABOUT | {'tokens': None})
  bare = [row(float(i))._replace(tokens=None) for i in range(3)]
  put(store, b'a.mp4', bare)
  put(store, b'gone.mp4', [bare[2]])
  asked = []

  def decode(items, cutting):
    asked.extend(items)
    for path, starts in items:
      there = (
        () if 'gone' in path else tuple(Segment(start, start + 1, (), b'') for start in starts)
      )
      yield cut.CutVideo(there, '' if there else 'missing file')

  monkeypatch.setattr(querying, 'decode', decode)
  (found,) = querying.search(NumpyEncoder(), store, ['x'], top=4, rerank_k=3)
  assert dict(asked) == {'/v/a.mp4': (2.0, 1.0), '/v/gone.mp4': (2.0,)}
  assert found.read == 2
  assert [(hit.name, hit.start) for hit in found.hits] == [
    (b'a.mp4', 1),
    (b'a.mp4', 2),
    (b'gone.mp4', 2),
    (b'a.mp4', 0),
  ]
  (warned,) = (record.getMessage() for record in caplog.records)
  assert warned == 'gone.mp4 cannot be read again: missing file'
  store.close()


def test_each_span_answers_and_all_are_averaged(monkeypatch):
  encoder, seen = NumpyEncoder(), []
  encoder.trained.answers_questions = True
  encoder.trained.answers = 'red', 'blue', 'two'
  encoder.pixels = lambda clips: np.array([clip.start for clip in clips])
  share = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])

  def answer(scorer, batches, questions, answers):
    seen.extend(batches)
    assert questions == [[('what?', '', 'other')]] * 4
    assert answers == encoder.trained.answers
    return types.SimpleNamespace(logits=np.log(share))

  monkeypatch.setattr(encoding.question_answering, 'answer', answer)
  spans = [(2.0, 4.0), (4.0, 6.0), (6.0, 8.0), (8.0, 9.5)]
  whole, each = encoding.Encoder.ask(
    encoder, cut.CutVideo(tuple(Segment(start, stop, (), b'') for start, stop in spans)), 'what?'
  )
  # The last call is filled up with the last clip.
  assert [batch['video'].tolist() for batch in seen] == [[2, 4, 6], [8] * 3]
  assert [batch['record'].tolist() for batch in seen] == [[0, 1, 2], [3] * 3]
  assert [batch['valid'].tolist() for batch in seen] == [[True] * 3, [True, False, False]]
  assert [found[:2] for found in each] == spans and whole[:2] == (2.0, 9.5)
  assert [found.top[0][0] for found in each] == ['red', 'red', 'blue', 'two']
  assert [text for text, _ in whole.top] == ['red', 'blue', 'two']
  assert [share for _, share in whole.top] == pytest.approx([0.4, 0.375, 0.225])
  encoder.trained.answers_questions = False
  with pytest.raises(ValueError, match='answers no questions'):
    encoding.Encoder.ask(encoder, cut.CutVideo(), 'what?')


def test_hits_are_played_from_the_file_or_a_copy(store, tmp_path):
  small_videos.write_video(tmp_path / 'a.mp4')
  small_videos.write_video(tmp_path / 'b.avi', codec='mpeg4')
  store.change(folders=[bytes(tmp_path).hex()])
  for name in (b'a.mp4', b'b.avi'):
    put(store, name, [row(0.0)])
  found = querying.search(NumpyEncoder(), store, ['x'], rerank_k=0)

  def played(**options):
    tags = readable(gallery.render(store, found, **options)).tags
    return sorted(attributes['src'][:22] for tag, attributes in tags if tag == 'video')

  assert played() == ['data:video/mp4;base64,', f'file://{tmp_path}'[:22]]
  assert played(copy_all=True) == ['data:video/mp4;base64,'] * 2


def test_the_page_is_escaped(store):
  put(store, ODD[0], [row(1.0)])
  found = querying.search(NumpyEncoder(), store, ['<script>'], rerank_k=1)
  shown = gallery.render(store, found)
  assert '&lt;script&gt;' in shown and '<script>' not in shown
  assert 'a &#34;b&#34; &lt;c&gt;.mp4' in shown and '<c>' not in shown
  assert 'file:///v/a%20%22b%22%20%3Cc%3E.mp4#t=1.00,2.00' in shown
  readable(shown)
  assert 'without a player: No such file or directory.' in shown and '<video' not in shown
  # The margin is -1.
  assert 'The 1 nearest' in shown and 'match 0.27' in shown and 'not calibrated' in shown
  assert 'similarity 0.71' in shown
  found = querying.search(NumpyEncoder(), store, ['x'], rerank_k=0)
  shown = gallery.render(store, found)
  assert 'was not asked' in shown and 'similarity 0.71' in shown
  assert 'match' not in shown.partition('class="score"')[2]


@pytest.mark.parametrize(
  'seconds, text',
  [(0, '0:00.0'), (59.96, '1:00.0'), (63.4, '1:03.4'), (3723.4, '1:02:03'), (600, '10:00')],
)
def test_times_are_shown(seconds, text):
  assert page.format_time(seconds) == text


def test_hits_leave_whatever_their_names_are(store):
  put(store, ODD[3], [row(1.0)])
  (found,) = querying.search(NumpyEncoder(), store, ['x'], rerank_k=0)
  (clip,) = otio.adapters.read_from_string(exchange.as_otio(store, found), 'otio_json').find_clips()
  assert clip.name == 'bad\\xff.mp4' and clip.media_reference.target_url == 'file:///v/bad%FF.mp4'
  span = clip.source_range
  assert (span.start_time.to_seconds(), span.end_time_exclusive().to_seconds()) == (1, 2)
  assert clip.metadata['alpro_jax']['match'] is None
  assert '/v/bad\\xff.mp4,1.0,2.0,' in exchange.as_csv(store, found)
  (video,) = json.loads(exchange.as_json(store, found))['videos']
  assert video['path'] == '/v/bad\\xff.mp4' and video['hits'][0]['stop'] == 2


def test_vectors_leave(store, tmp_path):
  put(store, ODD[3], [row(1.0), row(2.0)])
  clips = store.clips()
  assert exchange.write_vectors(tmp_path / 'v.npz', store) == 2
  with np.load(tmp_path / 'v.npz') as found:
    assert found['video'].tolist() == ['bad\\xff.mp4'] * 2
    np.testing.assert_array_equal(found['vector'], clips.vector)
    assert json.loads(str(found['about']))['checkpoint']['step'] == 7
  with pytest.raises(ValueError, match='must end in .npz or .parquet'):
    exchange.write_vectors(tmp_path / 'v.csv', store)
  exchange.write_vectors(tmp_path / 'v.parquet', store)
  found = parquet.read_table(tmp_path / 'v.parquet')
  assert found['video'].to_pylist() == ['bad\\xff.mp4'] * 2
  np.testing.assert_array_equal(found['vector'].to_pylist(), clips.vector)
  assert json.loads(found.schema.metadata[b'alpro'])['checkpoint']['step'] == 7
  assert sorted(x.name for x in tmp_path.iterdir()) == ['index', 'v.npz', 'v.parquet']


def test_mistakes_are_one_clear_sentence():
  # In processes of their own: commands share names of flags.
  asked = {
    'frob': "'frob' is no step",
    'query': 'was given',
    'query x': '--index is needed',
    'ask v q': '--checkpoint',
    'find v': 'was given',
    'find v q --index=/tmp/none': '--checkpoint is needed',
    'find /nowhere q --checkpoint=/tmp/none': 'is not a folder',
    'index /nowhere --index=/tmp/none': 'is not a folder',
  }
  started = {
    words: subprocess.Popen(
      [sys.executable, ROOT / 'launch' / 'search.py', *words.split()],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for words in asked
  }
  for words, process in started.items():
    _, error = process.communicate(timeout=patience.seconds(300))
    assert process.returncode == 2, error
    last = error.strip().splitlines()[-1]
    assert asked[words] in last and 'Traceback' not in error


def test_the_model_sees_the_middle_of_each_frame_in_full_batches():
  from alpro_jax.evaluation.encoder import Encoder

  config = ml_collections.ConfigDict(
    {'data': {'image_size': 16, 'resize': 32, 'resize_mode': 'squash'}}
  )
  asked = types.SimpleNamespace(
    batch_size=3,
    trained=types.SimpleNamespace(config=config),
    scorer=types.SimpleNamespace(embed_videos=lambda batches, total, look: (list(batches), total)),
  )
  asked.pixels = lambda clips: Encoder.pixels(asked, clips)
  clips = []
  for level in (50, 100, 150, 200):
    frame = np.full((32, 32, 3), 250, np.uint8)
    frame[8:24, 8:24] = level
    clips.append(Segment(0.0, 1.0, (cut.video.encode_jpeg(frame, 95),) * 2, b''))
  batches, total = Encoder.videos(asked, clips)
  assert total == 4 and [batch['video'].shape for batch in batches] == [(3, 2, 16, 16, 3)] * 2
  seen = np.concatenate([batch['video'] for batch in batches]).astype(int)
  for row, level in zip(seen, (50, 100, 150, 200, 200, 200), strict=True):
    assert np.abs(row - level).max() < 8
  assert [batch['record'].tolist() for batch in batches] == [[0, 1, 2], [3] * 3]
  assert [batch['valid'].tolist() for batch in batches] == [[True] * 3, [True, False, False]]


def test_a_text_that_is_cut_is_named(caplog):
  from alpro_jax.evaluation.encoder import Encoder
  from tests.small_sets import Letters

  config = ml_collections.ConfigDict({'data': {'max_text_tokens': 8}})
  asked = types.SimpleNamespace(
    trained=types.SimpleNamespace(config=config, tokenizer=Letters()),
    scorer=types.SimpleNamespace(embed_texts=lambda texts, batch_size: texts),
  )
  assert Encoder.texts(asked, ['short']) == ['short']
  assert not caplog.records
  assert Encoder.texts(asked, ['a dog swims', 'a']) == ['a dog swims', 'a']
  assert '1 of 2 texts have more than 8 tokens' in caplog.text


def test_what_this_machine_lost_is_tried_again(store, byte_videos, monkeypatch):
  put_bytes(byte_videos / 'a.mp4', 'x')
  real = indexing.workers.run_in_order
  for reason, tried in [('unreadable', 0), (indexing.workers.MACHINE, 1)]:
    lost = indexing.workers.Lost(reason, 'why')
    monkeypatch.setattr(
      indexing.workers, 'run_in_order', lambda *args, lost=lost, **options: iter([lost])
    )
    os.utime(byte_videos / 'a.mp4')
    report = bring_up_to_date(store, byte_videos)
    assert report['problems'][0]['reason'] == reason
    monkeypatch.setattr(indexing.workers, 'run_in_order', real)
    report = bring_up_to_date(store, byte_videos)
    assert report['done_in_this_run'] == tried
  assert report['indexed'] == 1 and not report['problems']


def test_a_disk_that_cannot_be_read_is_no_broken_video():
  found = cut.cut_video(('/proc/self/mem', None), cutting=Cutting(frames=2))
  assert (found.clips, found.reason) == ((), indexing.workers.MACHINE)
