"""Files, leases and sets of gs:// and s3:// in place of folders, against servers on loopback."""

import json
import pathlib
import sys
import time

import pytest
from fsspec.registry import _registry
from PIL import Image

import alpro_jax
from alpro_jax import buckets, files, lease
from alpro_jax.data import bucket_shards, checksum, dataset, prepare, publish, sources, workers
from tests import buckets_on_loopback, launched

CLIPS = pathlib.Path(alpro_jax.__file__).parent / 'shipped' / 'shapes' / 'clips'


def test_a_lease_is_held_by_one_process_and_taken_over_from_a_dead_one(bucket, monkeypatch):
  place = f'{bucket}/run/lock'
  refused = pytest.raises(ValueError, match='process .* is at work in run')
  with lease.Lease(place, 'is at work in run', seconds=2):
    with refused:
      lease.Lease(place, 'is at work in run', seconds=2)
  assert not files.exists(place)
  dead = {'id': 'a', 'host': 'another', 'process': 1, 'renewed': 0}
  buckets.write(place, json.dumps(dead).encode())
  with lease.Lease(place, 'is at work in run', seconds=1) as held:
    buckets.write(place, json.dumps(dead).encode())  # It was not dead but slow.
    deadline = time.monotonic() + 60
    while not held._lost and time.monotonic() < deadline:
      time.sleep(0.05)
    with pytest.raises(lease.LeaseLost, match='held by another process now'):
      held.check()
  assert json.loads(files.read(place)) == dead  # It is not removed by who lost it.


def test_what_changed_is_fetched_anew_and_what_did_not_is_kept(bucket):
  for content in (b'one', b'two'):
    buckets.write(f'{bucket}/a.txt', content)
    first = files.local(f'{bucket}/a.txt')
    assert first.read_bytes() == content and files.local(f'{bucket}/a.txt') == first
  for content in (b'', b'\r', b'\n', b'a\r\n'):  # Not a byte is lost on the way.
    buckets.write(f'{bucket}/ends', content)
    assert files.read(f'{bucket}/ends') == content
  with pytest.raises(FileNotFoundError, match='nothing is at .*/none'):
    files.local(f'{bucket}/none')
  checksum.write_text(f'{bucket}/list.txt', 'dog\n')
  assert checksum.read_lines(f'{bucket}/list.txt') == ['dog']
  buckets.write(f'{bucket}/list.txt', b'fog\n')
  with pytest.raises(ValueError, match='is damaged'):
    checksum.read_lines(f'{bucket}/list.txt')


def test_a_name_that_no_bucket_has_is_refused_at_once():
  with pytest.raises(ValueError, match='gs://b/set: the name of a bucket has 3 letters'):
    files.exists('gs://b/set')


def make_stills(folder, clips):
  """Stills, each with a caption; returns (their source, their folder)."""
  videos = folder / 'videos'
  videos.mkdir(parents=True)
  rows = []
  for number in range(clips):
    Image.new('RGB', (32, 32), (40 * number, 9, 9)).save(videos / f'{number}.png')
    rows.append({'video': f'{number}.png', 'caption': f'picture {number}'})
  (folder / 'captions.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  table = str(folder / 'captions.jsonl')
  return sources.read_folder(table, split='train', root=str(videos)), videos


def make_set(folder, clips=6, part_size=2):
  """A small set of stills, each with a caption."""
  source, videos = make_stills(folder, clips)
  prepare.prepare(
    source, videos, folder / 'set', options=prepare.Options(part_size=part_size), num_workers=1
  )
  return folder / 'set'


def test_records_of_a_bucket_are_those_of_the_folder(bucket, tmp_path):
  here = make_set(tmp_path)
  buckets.upload(here, f'{bucket}/set')
  there, local = dataset.open_dataset(f'{bucket}/set', verify=True), dataset.open_dataset(here)
  order = [5, 0, 3, 3, 1]
  assert there.fetch(order) == local.fetch(order) and there.digest == local.digest
  # Shards that are kept on disk go when they are too many.
  kept = bucket_shards.Cache(tmp_path / 'kept', limit_gb=1e-6)
  assert dataset.open_dataset(f'{bucket}/set', cache=kept).fetch(order) == local.fetch(order)
  assert len(list((tmp_path / 'kept').glob('*.array_record'))) == 1
  shard = local._shards[1].entry['file']
  buckets.remove(f'{bucket}/set', [shard])
  with pytest.raises(FileNotFoundError, match=f'{shard} is missing'):
    dataset.open_dataset(f'{bucket}/set')


def test_a_record_is_damaged_only_if_its_file_is(tmp_path, monkeypatch):
  monkeypatch.setattr(dataset, 'RETRY_SECONDS', (0.01,) * 6)
  here = make_set(tmp_path)
  with buckets_on_loopback.gcs() as (server, bucket):
    buckets.upload(here, f'{bucket}/set')
    there = dataset.open_dataset(f'{bucket}/set')
    wanted = dataset.open_dataset(here).fetch(range(6))
    server.failing = 0.3  # Passing errors, many.
    assert there.fetch(range(6)) == wanted
    server.failing = 0.0
    entry = there._shards[1].entry
    name = bucket.removeprefix('gs://'), f'set/{entry["file"]}'
    stored = server.objects[name]
    where = stored.data.index(wanted[2][-40:])
    rotten = stored.data[:where] + b'x' * 40 + stored.data[where + 40 :]
    server.objects[name] = stored._replace(data=rotten)
    again = dataset.open_dataset(f'{bucket}/set')
    with pytest.raises(dataset.UnreadableRecord, match='Record 2 .* is damaged'):
      again.fetch([2])
    assert again.fetch([0, 4]) == [wanted[0], wanted[4]]
    # Another file in its place is no damage: the index may be of the old one.
    server.put(*name, rotten, {})
    with pytest.raises(ValueError, match='was replaced while it was in use'):
      again.fetch([2])


@pytest.fixture
def stills(tmp_path, monkeypatch):
  """Four stills that are decoded here: what prepares them, what is lost, what was decoded."""
  source, videos = make_stills(tmp_path, 4)
  lost, decoded = {}, []

  def run(target, settings, items, **options):
    for clip in items:
      decoded.append(clip.video)
      yield lost.get(clip.video) or prepare.make_record(clip, **settings)

  def make(output, split='train'):
    options = prepare.Options(part_size=2)
    return prepare.prepare(source, videos, output, split=split, options=options, num_workers=1)

  monkeypatch.setattr(workers, 'run_in_order', run)
  return make, lost, decoded


def broken_off(monkeypatch, make, *told, after=0):
  """Runs `make`, and breaks its upload off after some requests; returns whether it did."""
  publishing = publish.publish

  def publish_some(*args):
    left = after

    def count(real):
      def call(first, second=('',), names=None):
        nonlocal left
        if str(first).endswith('/.lock'):  # Else each run waits a minute for the one before.
          return real(first)
        left -= 1
        if left >= 0:
          return real(first, second) if names is None else real(first, second, names)
        for name in [*(names or ())][:1]:
          real(first, second, [name])
        raise KeyboardInterrupt

      return call

    for name in ('upload', 'move', 'remove'):
      patch.setattr(buckets, name, count(getattr(buckets, name)))
    publishing(*args)

  with monkeypatch.context() as patch:
    patch.setattr(publish, 'publish', publish_some)
    try:
      make(*told)
    except KeyboardInterrupt:
      return True
  return False


@pytest.mark.slow
@pytest.mark.parametrize('lost', [(), ('1.png',)])
def test_an_upload_that_broke_off_goes_on_wherever_it_did(
  stills, bucket, tmp_path, monkeypatch, lost
):
  """Of the first run, and of one that tries again what was lost; nothing is decoded anew."""
  make, losing, decoded = stills
  make(tmp_path / 'set')
  wanted = dataset.open_dataset(tmp_path / 'set').digest
  names = [name for name in files.names(tmp_path / 'set') if name != '.lock']
  requests = 0
  while True:
    place = f'{bucket}/{requests}/set'
    losing |= dict.fromkeys(lost, workers.Lost(workers.MACHINE, 'killed'))
    if lost:
      make(place)
    losing.clear()
    if not broken_off(monkeypatch, make, place, after=requests):
      break
    try:
      assert len(dataset.open_dataset(place, verify=True)) in (4 - len(lost), 4)
    except FileNotFoundError as error:
      assert 'is not finished; run launch/prepare.py again' in str(error)
    decoded.clear()
    make(place)
    assert not decoded
    assert dataset.open_dataset(place, verify=True).digest == wanted
    assert files.names(place) == names
    requests += 1
  assert requests > 5


def test_an_upload_that_broke_off_costs_nothing_if_another_split_is_made(
  stills, bucket, monkeypatch
):
  make, _, decoded = stills
  place = f'{bucket}/set'
  assert broken_off(monkeypatch, make, place, 'val')
  make(place)
  decoded.clear()
  make(place, 'val')
  assert not decoded
  for split in ('train', 'val'):
    assert len(dataset.open_dataset(place, split, verify=True)) == 4


def test_a_set_of_which_nothing_could_be_read_is_tried_again(stills, bucket):
  make, losing, _ = stills
  losing |= {f'{i}.png': workers.Lost(workers.MACHINE, 'killed') for i in range(4)}
  for _ in range(2):
    with pytest.raises(prepare.PrepareError, match='No clip of 4 .*: 4 lost by this machine'):
      make(f'{bucket}/set')
  losing.clear()
  assert make(f'{bucket}/set')['counts']['prepared'] == 4


@pytest.mark.parametrize(
  'scheme, name', [('gs', 'gcsfs'), ('s3', 's3fs'), ('gs', 'obstore'), ('s3', 'fsspec')]
)
def test_a_library_that_is_not_installed_is_named_in_one_line(scheme, name, monkeypatch, tmp_path):
  monkeypatch.chdir(launched.ROOT)
  monkeypatch.setitem(sys.modules, name, None)
  monkeypatch.delitem(_registry, scheme, raising=False)
  buckets._filesystem.cache_clear()
  place, own = f'{scheme}://bucket/set', 'configs/finetune_retrieval.py:tiny_own'
  for command, *options in (
    (
      'prepare',
      '--source=folder',
      f'--videos={tmp_path}',
      f'--captions={place}',
      f'--output={place}',
    ),
    ('main', f'--config={own}', f'--config.data.path={place}', f'--workdir={tmp_path / "run"}'),
  ):
    code, _, err = launched.said(command, *options)
    assert code == 2 and 'Traceback' not in err
    assert err.strip().splitlines()[-1] == (
      f"error: {scheme}:// needs {name}, which is not installed: pip install 'alpro_jax[cloud]'."
    )
