"""Every broken file and record is named, and what is intact is saved."""

import json
import pathlib
import shutil

import pytest

from alpro_jax import files
from alpro_jax.data import dataset, prepare, sources, verify
from tests import launched, small_videos

ROOT = pathlib.Path(__file__).resolve().parents[1]


def launch_prepare():
  return lambda argv: launched.run('prepare', *argv)


@pytest.fixture(scope='module')
def original(tmp_path_factory):
  """Seven clips in shards of three, three and one."""
  return small_videos.prepare_seven(tmp_path_factory.mktemp('seven'))


@pytest.fixture
def path(original, tmp_path):
  return shutil.copytree(original, tmp_path / 'set')


def shard(path, number):
  return sorted(path.glob('*.array_record-*'))[number]


def flip(file, near):
  data = bytearray(file.read_bytes())
  data[data.index(near)] ^= 4
  file.write_bytes(data)


def videos(path):
  return [record.video for record in dataset.open_dataset(path).metadata()]


def test_an_intact_set_has_no_problem(path, tmp_path):
  found = verify.verify(path)
  assert found == (8, 7, [])  # 3 shards, 1 index, 4 files about all.
  # And its repair is the same set.
  verify.repair(path, tmp_path / 'again')
  digests = [dataset.open_dataset(p).digest for p in (path, tmp_path / 'again')]
  assert digests[0] == digests[1]


def test_a_flipped_bit_costs_one_record(original, path, tmp_path):
  flip(shard(path, 0), b'001.mp4')
  problems = verify.verify(path).problems
  assert [(p.number, p.video) for p in problems] == [(None, ''), (1, '001.mp4')]
  assert 'sha256' in problems[0].reason
  report = verify.repair(path, tmp_path / 'saved')['train']
  assert report['counts']['prepared'] == 6
  assert report['skipped'][0]['item'] == '001.mp4'
  assert videos(tmp_path / 'saved') == [f'{i:03}.mp4' for i in (0, 2, 3, 4, 5, 6)]
  intact = dataset.open_dataset(original).fetch([0, 2, 3, 4, 5, 6])
  saved = dataset.open_dataset(tmp_path / 'saved')
  assert saved.fetch(range(6)) == intact
  assert verify.verify(tmp_path / 'saved').problems == []


@pytest.mark.parametrize(
  'harm, reason',
  [
    (lambda file: file.unlink(), 'missing'),
    (lambda file: file.write_bytes(file.read_bytes()[:-900]), 'expected'),
  ],
)
def test_a_lost_shard_is_named_with_its_records(path, tmp_path, harm, reason):
  harm(shard(path, 1))
  problems = verify.verify(path).problems
  assert reason in problems[0].reason
  assert [p.video for p in problems[1:]] == ['003.mp4', '004.mp4', '005.mp4']
  verify.repair(path, tmp_path / 'saved')
  assert videos(tmp_path / 'saved') == [f'{i:03}.mp4' for i in (0, 1, 2, 6)]


@pytest.mark.parametrize('name', ('report.json', 'dataset_info.json', 'features.json'))
def test_files_about_the_set_are_checked_and_made_again(path, tmp_path, name):
  data = (path / name).read_bytes()
  for broken in (data[:-9], data.replace(b'e', b'E', 1)):
    (path / name).write_bytes(broken)
    (problem,) = verify.verify(path).problems
    assert (problem.split, problem.file) == (verify.ALL, name)
    dataset.open_dataset(path)  # Training needs none of them.
  (path / name).unlink()
  assert len(verify.verify(path).problems) == 1
  verify.repair(path, tmp_path / 'saved')
  assert verify.verify(tmp_path / 'saved').problems == []


def test_sets_of_before_have_no_digests_of_such_files(path):
  manifest = json.loads((path / 'manifest.json').read_text())
  for later in ('others', 'sha256'):
    del manifest[later]
  (path / 'manifest.json').write_text(json.dumps(manifest))
  report = json.loads((path / 'report.json').read_text())
  for later in ('format', 'sha256'):
    del report[later]
  (path / 'report.json').write_text(json.dumps(report))
  assert verify.verify(path) == (6, 7, [])


def test_nothing_left_to_save_is_said(path, tmp_path):
  for file in path.glob('*.array_record-*'):
    file.unlink()
  with pytest.raises(ValueError, match='no record of .*set can be read'):
    verify.repair(path, tmp_path / 'saved')
  assert {file.name for file in (tmp_path / 'saved').iterdir()} == {'report.json'}


def test_a_broken_index_is_made_again(path, tmp_path):
  want = list(dataset.open_dataset(path).metadata())
  flip(path / 'index-train.jsonl', b'clip 3')
  problems = verify.verify(path).problems
  assert [p.file for p in problems] == ['index-train.jsonl']
  verify.repair(path, tmp_path / 'saved')
  assert list(dataset.open_dataset(tmp_path / 'saved').metadata()) == want


@pytest.fixture
def two_splits(path, tmp_path):
  source = sources.read_folder(small_videos.write_folder(tmp_path / 'videos', 2))
  prepare.prepare(source, tmp_path / 'videos', path, split='val', num_workers=1)
  return path


def test_a_repair_that_is_killed_leaves_no_half_set(two_splits, tmp_path, monkeypatch):
  saved, finished, real = tmp_path / 'saved', [], verify.finish

  def finish(*args):
    finished.append(args[2])
    if len(finished) == 2:
      raise KeyboardInterrupt
    return real(*args)

  monkeypatch.setattr(verify, 'finish', finish)
  with pytest.raises(KeyboardInterrupt):
    verify.repair(two_splits, saved)
  assert finished == ['train', 'val'] and not saved.exists()
  verify.repair(two_splits, saved)
  assert verify.verify(saved).problems == []
  for split in finished[:2]:
    assert dataset.open_dataset(saved, split).digest == (
      dataset.open_dataset(two_splits, split).digest
    )


def test_two_repairs_to_one_place(path, tmp_path):
  with files.folder(tmp_path / 'saved'), pytest.raises(ValueError, match='is writing .*saved'):
    verify.repair(path, tmp_path / 'saved')


def test_a_set_that_changes_while_it_is_saved(path, tmp_path, monkeypatch):
  real = shutil.copyfile

  def copyfile(source, target):
    flip(shard(path, 0), b'001.mp4')
    return real(source, target)

  monkeypatch.setattr(shutil, 'copyfile', copyfile)
  with pytest.raises(ValueError, match='was changed while it was read'):
    verify.repair(path, tmp_path / 'saved')
  assert not (tmp_path / 'saved').exists()


def test_the_command(path, tmp_path, capsys):
  main = launch_prepare()
  assert main(['verify', str(path)]) == 0
  assert 'all as they were written' in capsys.readouterr().out
  flip(shard(path, 2), b'006.mp4')
  saved = tmp_path / 'saved'
  assert main(['verify', str(path), f'--output={saved}']) == 1
  out = capsys.readouterr().out
  assert "record 6 '006.mp4'" in out and '1 broken records' in out
  assert '6 of 7 records saved' in out
  assert main(['verify', str(saved)]) == 0
  assert main(['verify', str(path), f'--output={saved}']) == 2
  assert 'is not empty' in capsys.readouterr().err
  assert main(['verify', str(tmp_path)]) == 2
  assert 'no manifest' in capsys.readouterr().err
