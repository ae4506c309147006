"""A prepared set is readable, and a damaged one is not opened."""

import io
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from alpro_jax import files
from alpro_jax.data import annotations, dataset, prepare, sources
from alpro_jax.data import manifest as manifests
from tests import small_videos
from tests.small_sets import parse


@pytest.fixture(scope='module')
def original(tmp_path_factory):
  return small_videos.prepare_seven(tmp_path_factory.mktemp('seven'))


@pytest.fixture
def path(original, tmp_path):
  return shutil.copytree(original, tmp_path / 'set')


def test_records_hold_what_was_prepared(path):
  data = dataset.open_dataset(path)
  assert len(data) == 7 and len(data.digest) == 64
  for index, serialized in enumerate(data.fetch(range(7))):
    record = parse(tf.constant(serialized))
    assert record['video'].numpy() == f'{index:03}.mp4'.encode()
    assert record['captions'].numpy().tolist() == [f'clip {index}'.encode(), b'a clip']
    assert record['styles'].numpy().tolist() == [b'full', b'short']
    assert not record['still'].numpy()
    np.testing.assert_allclose(record['seconds'], np.arange(8) / 8, atol=1e-6)
    assert record['frames'].shape == (8,)
    frame = np.asarray(Image.open(io.BytesIO(record['frames'].numpy()[0])))
    assert frame.shape == (32, 48, 3)
    np.testing.assert_allclose(frame[16, 40], [index * 7, 90, 40], atol=9)


def test_parse_inside_tf_data(path):
  data = dataset.open_dataset(path)
  records = tf.data.Dataset.from_tensor_slices(data.fetch([5, 2])).map(
    lambda s: tf.io.decode_jpeg(parse(s)['frames'][0])
  )
  assert [record.shape for record in records] == [(32, 48, 3)] * 2


def test_metadata_needs_no_frames(path):
  data = dataset.open_dataset(path)
  assert data.metadata()[3] == dataset.RecordInfo(
    '003.mp4', ('clip 3', 'a clip'), ('full', 'short'), False, 8
  )


def test_questions_are_kept(path, tmp_path):
  source = sources.read_folder(
    questions=small_videos.write_questions(
      tmp_path, [('a.mp4', 'what is it', 'grey'), ('a.mp4', 'is it', 'yes')]
    )
  )
  small_videos.write_video(tmp_path / 'a.mp4')
  prepare.prepare(
    source, tmp_path, path, split='test', num_workers=1, options=prepare.Options(fps=0)
  )
  data = dataset.open_dataset(path, 'test')
  assert list(data.metadata()) == [
    dataset.RecordInfo(
      'a.mp4',
      (),
      (),
      False,
      8,
      (
        annotations.Question('what is it', 'grey', 'what'),
        annotations.Question('is it', 'yes', 'other'),
      ),
    )
  ]
  record = parse(tf.constant(data.fetch([0])[0]))
  assert record['captions'].shape == (0,)
  assert record['questions'].numpy().tolist() == [b'what is it', b'is it']
  assert record['answers'].numpy().tolist() == [b'grey', b'yes']
  assert record['kinds'].numpy().tolist() == [b'what', b'other']


def test_sets_of_format_1_have_no_questions(path, tmp_path):
  manifest = json.loads((path / 'manifest.json').read_text())
  index = path / 'index-train.jsonl'
  rows = [json.loads(line) for line in index.open()]
  for row in rows:
    for key in ('questions', 'answers', 'kinds'):
      assert row.pop(key) == []
  index.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  manifest['splits']['train']['index'].update(
    bytes=index.stat().st_size, sha256=files.sha256(index)
  )
  for later in ('others', 'sha256'):
    del manifest[later]
  (path / 'manifest.json').write_text(json.dumps({**manifest, 'format': 1}))
  data = dataset.open_dataset(path, verify=False)
  assert data.metadata()[3].questions == ()
  example = tf.train.Example.FromString(data.fetch([3])[0])
  for key in ('questions', 'answers', 'kinds'):
    del example.features.feature[key]
  record = parse(tf.constant(example.SerializeToString()))
  assert record['captions'].shape == (2,)
  assert record['questions'].shape == (0,)
  with pytest.raises(prepare.PrepareError, match='has format 1, which can be'):
    prepare.prepare(
      annotations.Annotations([annotations.Clip('a.mp4', ('a.mp4',), ('x',), ('',), False)], [], 1),
      small_videos.write_video(tmp_path / 'a.mp4').parent,
      path,
    )


def test_fetch_in_any_order(path):
  data = dataset.open_dataset(path)
  everything = data.fetch(range(7))
  assert data.fetch(np.array([6, 0, 3, 3])) == [everything[i] for i in (6, 0, 3, 3)]
  assert data.fetch([]) == []
  for index in (-1, 7):
    with pytest.raises(IndexError, match=f'index={index} is not in 0..6'):
      data.fetch([index])


def test_metadata_is_a_sequence(path):
  infos = dataset.open_dataset(path).metadata()
  everything = list(infos)
  assert len(infos) == 7 and [infos[i] for i in range(7)] == everything
  assert infos[np.int64(2)] == infos[-5] == everything[2]
  assert infos[1:7:2] == everything[1:7:2]
  chosen = dataset.open_dataset(path).select(lambda info: info != infos[3])
  assert list(chosen.metadata()) == everything[:3] + everything[4:]
  for wrong in (7, -8):
    with pytest.raises(IndexError, match=f'index {wrong} is out of bounds'):
      infos[wrong]


def test_line_starts():
  for text in (b'', b'\n', b'ab\n\ncd\n'):
    ends = [i + 1 for i, code in enumerate(text) if code == 10]
    assert dataset._line_starts(text, block=2).tolist() == [0, *ends]


def test_open_files(path, monkeypatch):
  limits = []
  monkeypatch.setattr(dataset.resource, 'getrlimit', lambda _: (256, 1000))
  monkeypatch.setattr(dataset.resource, 'setrlimit', lambda _, both: limits.append(both))
  dataset._allow_open_files(path, 3)
  assert limits == []
  dataset._allow_open_files(path, 700)
  assert limits == [(1000, 1000)]
  with pytest.raises(OSError, match='set has 900 shards, .* only 1000 files'):
    dataset._allow_open_files(path, 900)
  # No record is damaged, and none may be replaced.
  monkeypatch.setattr(dataset.resource, 'getrlimit', lambda _: (64, 64))
  with pytest.raises(OSError, match='has 3 shards'):
    dataset.open_dataset(path).fetch([0])


def test_a_selection_is_numbered_anew(path):
  data = dataset.open_dataset(path)
  odd = data.select(lambda record: int(record.video[:3]) % 2)
  last = odd.select(lambda record: record.video == '005.mp4')
  assert [len(x) for x in (data, odd, last)] == [7, 3, 1]
  assert [record.video for record in odd.metadata()] == ['001.mp4', '003.mp4', '005.mp4']
  assert odd.fetch([2, 0]) == data.fetch([5, 1])
  assert last.fetch([0]) == data.fetch([5])
  with pytest.raises(IndexError):
    odd.fetch([3])


@pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='Linux says what is open')
def test_selections_share_the_open_files(path):
  def count():
    return sum(
      os.path.realpath(f'/proc/self/fd/{name}').startswith(str(path))
      for name in os.listdir('/proc/self/fd')
    )

  data = dataset.open_dataset(path)
  views = [data.select(lambda record: True) for _ in range(3)]
  for view in views:
    view.fetch(range(len(view)))
  assert count() == 3, 'one for each shard'


def _swap_shards(path):
  """Returns the bytes that the shards have in a set of another order."""
  files = sorted(path.glob('*array_record*'))
  first, second = (file.read_bytes() for file in files[:2])
  assert len(first) == len(second) and first != second
  return {files[0]: second, files[1]: first}


def _names(data):
  return [
    parse(tf.constant(record))['video'].numpy().decode() for record in data.fetch(range(len(data)))
  ]


@pytest.mark.parametrize('verify', [True, False])
@pytest.mark.parametrize('before', [[], [0]])
def test_a_set_that_is_replaced_while_open(path, verify, before):
  data = dataset.open_dataset(path, verify=verify)
  data.fetch(before)
  for file, others in _swap_shards(path).items():
    (path / 'new').write_bytes(others)
    os.replace(path / 'new', file)
  assert _names(data) == [info.video for info in data.metadata()]
  shutil.rmtree(path)
  assert _names(data) == [info.video for info in data.metadata()]


@pytest.mark.parametrize('before', [[], [0]])
def test_a_file_that_is_written_to_while_open(path, before):
  file, others = next(iter(_swap_shards(path).items()))
  os.utime(file, ns=(0, 0))  # However coarse the clock of the disk is.
  data = dataset.open_dataset(path)
  data.fetch(before)
  file.write_bytes(others)
  with pytest.raises(ValueError, match='was written to while it was open'):
    data.fetch([0, 3])


def test_a_set_that_is_replaced_while_it_is_opened(path, monkeypatch):
  real = dataset._read_index

  def read_index(*args):
    manifest = json.loads((path / 'manifest.json').read_text())
    manifests.write_whole(path / 'manifest.json', {**manifest, 'name': 'other'})
    return real(*args)

  monkeypatch.setattr(dataset, '_read_index', read_index)
  with pytest.raises(ValueError, match='replaced while it was opened'):
    dataset.open_dataset(path)


def test_tfds_reads_it(path):
  builder = tfds.builder_from_directory(path)
  assert builder.info.splits['train'].num_examples == 7
  assert builder.info.splits['train'].shard_lengths == [3, 3, 1]
  assert builder.info.features.keys() == dataset.features().keys()
  source = builder.as_data_source('train')
  assert len(source) == 7
  assert source[4]['frames'][0].shape == (32, 48, 3)
  assert list(source[4]['captions']) == [b'clip 4', b'a clip']


def test_records_are_what_tfds_would_write(path):
  # Workers write the protobuf by hand; TFDS must agree with every field.
  data = dataset.open_dataset(path)
  (serialized,) = data.fetch([1])
  record = {k: v.numpy() for k, v in parse(serialized).items()}
  frames = [io.BytesIO(frame) for frame in record['frames']]
  theirs = dataset.features().serialize_example({**record, 'frames': frames})
  ours, expected = tf.train.Example(), tf.train.Example()
  ours.ParseFromString(serialized)
  expected.ParseFromString(theirs)
  assert ours == expected


def test_truncated_shard(path):
  file = sorted(path.glob('*array_record*'))[1]
  file.write_bytes(file.read_bytes()[:-10])
  with pytest.raises(ValueError, match=f'{file.name} has .* bytes, expected'):
    dataset.open_dataset(path, verify=False)


def test_missing_shard(path):
  file = sorted(path.glob('*array_record*'))[1]
  file.unlink()
  with pytest.raises(FileNotFoundError, match=f'{file.name} is missing'):
    dataset.open_dataset(path, verify=False)


def _flip(file, where):
  data = bytearray(file.read_bytes())
  data[where] ^= 1
  file.write_bytes(data)


@pytest.mark.parametrize('pattern', ['*array_record-00002*', 'index-*'])
def test_flipped_bit(path, pattern):
  (file,) = path.glob(pattern)
  _flip(file, 100)
  with pytest.raises(ValueError, match=f'{file.name} is damaged: its sha256'):
    dataset.open_dataset(path)  # Verified without being asked: it is small.


def test_one_damaged_record(path):
  data = dataset.open_dataset(path)
  whole = data.fetch(range(7))
  (file,) = path.glob('*array_record-00000*')
  _flip(file, file.read_bytes().index(whole[1]) + len(whole[1]) // 2)
  data = dataset.open_dataset(path, verify=False)
  with pytest.raises(dataset.UnreadableRecord, match="Record 1 .'001.mp4'. .* is damaged") as e:
    data.fetch([0, 1, 2])
  assert e.value.index == 1
  assert data.fetch([0, 2, 3]) == [whole[i] for i in (0, 2, 3)]


def test_a_lack_of_memory_is_no_damage(path, monkeypatch):
  data = dataset.open_dataset(path)

  def read(self, positions):
    raise MemoryError

  monkeypatch.setattr(dataset._Shard, 'read', read)
  with pytest.raises(MemoryError):
    data.fetch([0])


class Flaky:
  """A reader of shards that fails for a while, or for ever."""

  def __init__(self, monkeypatch, failures):
    self.failures, self.waits = failures, []
    real = dataset._Shard.read

    def read(shard, positions):
      if self.failures:
        self.failures -= 1
        raise RuntimeError('pread() failed: Input/output error; reading set')
      return real(shard, positions)

    monkeypatch.setattr(dataset._Shard, 'read', read)
    monkeypatch.setattr(dataset.time, 'sleep', self.waits.append)


def test_a_failure_that_passes_is_no_damage(path, monkeypatch, caplog):
  data = dataset.open_dataset(path)
  whole = data.fetch(range(7))
  flaky = Flaky(monkeypatch, failures=4)
  assert data.fetch([0]) == whole[:1]
  assert flaky.waits == [1, 2, 4]
  assert 'Input/output error' in caplog.text


def test_a_disk_that_fails_for_good_is_named(path, monkeypatch):
  data = dataset.open_dataset(path)
  flaky = Flaky(monkeypatch, failures=1000)
  with pytest.raises(OSError, match='failed 7 times in 63 s: .*Input/output error.*not a record'):
    data.fetch([0])
  assert flaky.waits == [*dataset.RETRY_SECONDS, 0]
  # Nor is it damage if not even the file can be read through.
  flaky = Flaky(monkeypatch, failures=1000)
  monkeypatch.setattr(dataset._Shard, 'is_damaged', lambda _: open('/none/at/all'))
  with pytest.raises(OSError, match='No such file.*not a record'):
    data.fetch([0])


def test_a_damaged_file_is_not_read_again(path, monkeypatch):
  (file,) = path.glob('*array_record-00000*')
  _flip(file, 1000)
  data = dataset.open_dataset(path, verify=False)
  flaky = Flaky(monkeypatch, failures=1000)
  with pytest.raises(dataset.UnreadableRecord):
    data.fetch([0])
  assert not flaky.waits


def test_counts_must_agree(path):
  manifest = json.loads((path / 'manifest.json').read_text())
  manifest['splits']['train']['examples'] = 8
  manifests.write_whole(path / 'manifest.json', manifest)
  with pytest.raises(ValueError, match='disagrees on the number of records'):
    dataset.open_dataset(path)


def test_wrong_paths_and_manifests(path, tmp_path):
  with pytest.raises(FileNotFoundError, match='has no manifest.json'):
    dataset.open_dataset(tmp_path / 'none')
  with pytest.raises(ValueError, match=r"no split 'val', only \['train'\]"):
    dataset.open_dataset(path, 'val')
  (path / 'manifest.json').write_text('{"format": 99}')
  with pytest.raises(ValueError, match='has format 99, expected 2'):
    dataset.open_dataset(path)
  (path / 'manifest.json').write_text('{')
  with pytest.raises(ValueError, match='manifest.json is damaged'):
    dataset.open_dataset(path)
