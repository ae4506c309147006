"""Preparation: nothing is lost in silence, and the result is always one."""

import contextlib
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from PIL import Image

from alpro_jax import files
from alpro_jax.data import annotations, dataset, prepare, sources, video, workers
from alpro_jax.data import finish as finishing
from alpro_jax.data import manifest as manifests
from tests import launched, patience, small_videos

ROOT = pathlib.Path(__file__).resolve().parents[1]
CLIPS = os.environ.get('ALPRO_CLIPS', '')
ALL_FRAMES = {'fps': 0, 'short_side': 0}


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
  folder = tmp_path_factory.mktemp('clips')
  small_videos.write_folder(folder, 12)
  return folder


def _prepare(
  folder, output, *, captions=None, num_workers=1, timeout_s=60.0, follow_links=False, **changes
):
  source = sources.read_folder(captions or folder / 'captions.jsonl')
  return prepare.prepare(
    source,
    folder,
    output,
    num_workers=num_workers,
    timeout_s=timeout_s,
    options=prepare.Options(**{**ALL_FRAMES, **changes}),
    list_unnamed=True,
    follow_links=follow_links,
  )


def _content(output):
  """Every byte that training reads, by name without the name of the set."""
  return {
    path.name.removeprefix(output.name): path.read_bytes()
    for path in output.iterdir()
    if 'array_record' in path.name or path.name.startswith('index')
  }


def _manifest(output):
  return json.loads((output / 'manifest.json').read_text())


def _run(*args, wait=True):
  process = subprocess.Popen(
    [sys.executable, str(ROOT / 'launch/prepare.py'), *map(str, args)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  if not wait:
    return process
  out, err = process.communicate(timeout=patience.seconds(120))
  return process.returncode, out, err


# --- Workers ----------------------------------------------------------------


def _map(items, num_workers=2, timeout_s=60.0):
  return list(
    workers.run_in_order(
      'tests.worker_targets:act', {'factor': 2}, items, workers=num_workers, timeout_s=timeout_s
    )
  )


def test_results_keep_their_order(monkeypatch):
  assert _map([]) == []
  assert _map(list(range(300))) == [2 * i for i in range(300)]
  monkeypatch.setattr(workers, '_MAX_BYTES', 1)
  assert _map([0.2, 1, 0.1, 2, 3]) == [0.2, 2, 0.1, 4, 6]


def test_messages_larger_than_a_pipe(monkeypatch):
  monkeypatch.setattr(workers, '_MAX_BYTES', 1)
  items = [bytes([i]) * 300_000 for i in range(12)]
  assert _map(items) == items


def test_hanging_and_crashing_items_are_named(tmp_path):
  results = _map(
    [1, 'hang', 2, 'crash', 3, 'exit', 4, 5, f'crash once {tmp_path / "flag"}', 6], timeout_s=3.0
  )
  assert results[1] == workers.Lost('time-out', 'more than 3 s; --timeout_s allows more')
  assert results[3] == workers.Lost('decoder crashed', 'signal 11')
  assert results[5] == workers.Lost('decoder crashed', 'exit code 3')
  assert results[8] == 'recovered'
  assert [r for i, r in enumerate(results) if i not in (1, 3, 5, 8)] == [2, 4, 6, 8, 10, 12]


def test_a_slow_reader_is_no_time_out():
  results = workers.run_in_order(
    'tests.worker_targets:act', {'factor': 2}, list(range(40)), workers=1, timeout_s=1.5
  )
  got = []
  for result in results:
    got.append(result)
    if len(got) == 2:
      time.sleep(2.0)  # As if a disk were slow.
  assert got == [2 * i for i in range(40)]


def test_time_in_which_a_worker_is_stopped_does_not_count():
  assert _map([('stop', 2)], timeout_s=1.0) == ['woken']


def test_time_in_which_the_machine_sleeps_does_not_count(monkeypatch):
  waits, real = [], workers.connection.wait

  def wait(*args, **options):
    waits.append(1)
    return real(*args, **options)

  # An hour passes after each wait for the worker's answer.
  monkeypatch.setattr(workers.connection, 'wait', wait)
  monkeypatch.setattr(
    workers, 'time', types.SimpleNamespace(monotonic=lambda: time.monotonic() + 3600 * len(waits))
  )
  assert _map([0.4, 0.8], timeout_s=30.0) == [0.4, 0.8]


def test_the_usual_limit_grows_where_an_item_asks_for_it(monkeypatch):
  monkeypatch.setattr(workers, '_USUAL_SECONDS', 0.6)
  items = [1.3, ('ask for', 60, 1.3), 7]
  late = workers.Lost('time-out', 'more than 0.6 s; --timeout_s allows more')
  assert _map(items, timeout_s=None) == [late, 1.3, 14]
  assert _map(items, timeout_s=0.6) == [late, late, 14]
  assert _map([('compute', 99)], timeout_s=0.6) == [late]


def test_an_item_whose_worker_is_killed_is_tried_again_alone(tmp_path):
  folders = [tmp_path / name for name in 'ab']
  for folder in folders:
    folder.mkdir()
  results = _map(
    [
      ('busy', str(folders[0])),
      ('killed', str(folders[0]), 3),
      *[('busy', str(folders[0]))] * 20,
      ('killed', str(folders[1]), 99),
      4,
    ],
    num_workers=3,
  )
  (lost,) = set(results) - {'done', 0, 8}
  assert results[1] == 0, 'so many others were at work beside it'
  assert lost == results[-2] and lost.reason == workers.MACHINE
  assert 'killed 4 times (signal 9)' in lost.detail
  assert (results.count('done'), results[-1]) == (21, 8)


def test_workers_that_cannot_start_say_why():
  with pytest.raises(RuntimeError, match='No module named'):
    list(workers.run_in_order('no.module:f', {}, [1], workers=1, timeout_s=9))


@pytest.fixture
def planted(tmp_path, monkeypatch):
  """The current folder, with modules that say so in `ran` if they run."""
  ran = tmp_path / 'ran'
  (tmp_path / 'here').mkdir()
  for name in ('av', 'numpy', 'PIL', 'ctypes', 'pickle', 'multiprocessing'):
    (tmp_path / f'here/{name}.py').write_text(f'open({str(ran)!r}, "a").write("{name}\\n")\n')
  monkeypatch.chdir(tmp_path / 'here')
  return ran


@pytest.mark.parametrize('path', [None, '', ':/none', '.', 'here'])
def test_workers_run_nothing_of_the_current_folder(clips, planted, monkeypatch, path):
  if path is None:
    monkeypatch.delenv('PYTHONPATH', raising=False)
  else:
    monkeypatch.setenv('PYTHONPATH', os.path.abspath('.') if (path == 'here') else path)
  clip = annotations.Clip('000.mp4', ('000.mp4',), ('x',), ('',), False)
  (record,) = workers.run_in_order(
    'alpro_jax.data.record:make_record',
    {
      'root': str(clips),
      'fps': 0,
      'short_side': 0,
      'quality': 85,
      'max_frames': 0,
      'max_seconds': 0,
      'on_partial': 'skip',
    },
    [clip],
    workers=1,
    timeout_s=60,
  )
  assert not planted.exists(), planted.read_text()
  assert record.frames == 8


def test_processes_of_libraries_run_nothing_of_it_either(planted, tmp_path, monkeypatch):
  other = tmp_path / 'other'
  other.mkdir()
  (other / 'mine.py').write_text('')
  monkeypatch.setenv('PYTHONPATH', f':{other}:.')
  before = dict(os.environ)
  with workers.environment_of_children():
    subprocess.run([sys.executable, '-c', 'import av, ctypes, pickle, alpro_jax, mine'], check=True)
  assert not planted.exists(), planted.read_text()
  assert dict(os.environ) == before


def test_workers_end_with_their_parent():
  code = (
    'from alpro_jax.data import workers\n'
    'pids = []\n'
    'popen = workers.subprocess.Popen\n'
    'def start(*args, **options):\n'
    '  process = popen(*args, **options)\n'
    '  print(process.pid, flush=True)\n'
    '  return process\n'
    'workers.subprocess.Popen = start\n'
    'list(workers.run_in_order("tests.worker_targets:act", {"factor": 1},\n'
    '                          ["hang"], workers=1, timeout_s=99))\n'
  )
  parent = subprocess.Popen(
    [sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, text=True
  )
  worker = int(parent.stdout.readline())
  time.sleep(1)  # Let it hang.
  parent.kill()
  parent.wait()
  for _ in range(100):
    status = pathlib.Path(f'/proc/{worker}/stat')
    if not status.exists() or ') Z ' in status.read_text():
      return
    time.sleep(0.05)
  pytest.fail('the worker outlived its parent')


# --- The result -------------------------------------------------------------


def test_same_content_whatever_the_workers(clips, tmp_path):
  _prepare(clips, tmp_path / 'one', part_size=5)
  _prepare(clips, tmp_path / 'two', part_size=5, num_workers=3)
  one, two = _content(tmp_path / 'one'), _content(tmp_path / 'two')
  assert one == two and len(one) == 4
  assert (
    _manifest(tmp_path / 'one')['splits']['train']['digest']
    == _manifest(tmp_path / 'two')['splits']['train']['digest']
  )
  assert not list((tmp_path / 'one').glob('.preparing*'))


@pytest.mark.slow
def test_killed_again_and_again(clips, tmp_path):
  _prepare(clips, tmp_path / 'whole', part_size=2)
  output = tmp_path / 'set'
  args = [
    '--source=folder',
    f'--videos={clips}',
    f'--captions={clips / "captions.jsonl"}',
    f'--output={output}',
    '--fps=0',
    '--short_side=0',
    '--part_size=2',
    '--workers=1',
  ]
  work = output / '.preparing-train'
  for parts in (1, 3):
    process = _run(*args, wait=False)
    while process.poll() is None and (len(list(work.glob('part-*.json'))) < parts):
      time.sleep(0.002)
    process.kill()
    process.communicate()
  kept = {path.name: path.stat().st_mtime_ns for path in work.glob('part-*.json')}
  assert 3 <= len(kept) < 6
  with pytest.raises(FileNotFoundError, match='is not finished'):
    dataset.open_dataset(output)
  code, out, _ = _run(*args)
  assert code == 0, out
  report = json.loads((output / 'report.json').read_text())
  assert report['splits']['train']['clips_made_in_this_run'] == 12 - 2 * len(kept)
  assert _content(output) == {name: data for name, data in _content(tmp_path / 'whole').items()}
  assert (
    _manifest(output)['splits']['train']['digest']
    == _manifest(tmp_path / 'whole')['splits']['train']['digest']
  )


@pytest.mark.parametrize('where', ['_write_dataset_info', 'write_atomic'])
def test_killed_while_finishing(clips, tmp_path, monkeypatch, where):
  _prepare(clips, tmp_path / 'whole', part_size=5)
  module = manifests if where == 'write_atomic' else finishing
  real = getattr(module, where)

  def die(*args):
    if where == 'write_atomic' and 'report' not in str(args[0]):
      return real(*args)
    raise KeyboardInterrupt

  monkeypatch.setattr(module, where, die)
  with pytest.raises(KeyboardInterrupt):
    _prepare(clips, tmp_path / 'set', part_size=5)
  monkeypatch.undo()
  report = _prepare(clips, tmp_path / 'set', part_size=5)
  assert report['clips_made_in_this_run'] == 0
  assert _content(tmp_path / 'set') == _content(tmp_path / 'whole')
  dataset.open_dataset(tmp_path / 'set', verify=True)


def test_other_options_or_clips_are_refused(clips, tmp_path):
  output = tmp_path / 'set'
  _prepare(clips, output, part_size=5)
  before = _content(output)
  assert _prepare(clips, output, part_size=5)['already_prepared']
  with pytest.raises(prepare.PrepareError, match='finished .* --quality was 85 and is now 50'):
    _prepare(clips, output, part_size=5, quality=50)
  (output / '.preparing-train').mkdir()
  manifest = output / 'manifest.json'
  plan = _manifest(output)['splits']['train']['plan']
  (output / '.preparing-train' / 'plan.json').write_text(json.dumps(plan))
  manifest.unlink()
  fewer = tmp_path / 'fewer.jsonl'
  fewer.write_text(''.join((clips / 'captions.jsonl').open().readlines()[:8]))
  with pytest.raises(
    prepare.PrepareError, match='unfinished .* list of clips changed .it had 12, now 4'
  ):
    _prepare(clips, output, part_size=5, captions=fewer)
  assert _content(output) == before


@pytest.mark.parametrize('finished', [True, False])
def test_other_videos_of_the_same_names_are_refused(clips, tmp_path, monkeypatch, finished):
  output, moved = tmp_path / 'set', tmp_path / 'moved'
  with monkeypatch.context() as patch:
    if not finished:
      patch.setattr(prepare, 'finish', lambda *args: 1 / 0)
    with contextlib.suppress(ZeroDivisionError):
      _prepare(clips, output, part_size=5)
  shutil.copytree(clips, moved)
  shutil.copy(moved / '001.mp4', moved / '000.mp4')
  state = 'finished' if finished else 'unfinished'
  with pytest.raises(
    prepare.PrepareError, match=f'{state} .*made of other videos: 000.mp4 .1 of 1'
  ):
    _prepare(moved, output, part_size=5)
  # The same videos may lie elsewhere, and need not all be there.
  shutil.copy(clips / '000.mp4', moved)
  (moved / '002.mp4').unlink()
  report = _prepare(moved, output, part_size=5)
  assert report['already_prepared'] == finished
  # What earlier versions began says nothing of its videos.
  manifest = _manifest(output)
  del manifest['splits']['train']['plan']['videos']
  del manifest['sha256']
  manifests.write_whole(str(output / 'manifest.json'), manifest)
  assert _prepare(clips, output, part_size=5)['already_prepared']


def test_damaged_files_of_a_preparation_are_named(clips, tmp_path, monkeypatch):
  monkeypatch.setattr(prepare, 'finish', lambda *args: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    _prepare(clips, tmp_path / 'set', part_size=5)
  monkeypatch.undo()
  work = tmp_path / 'set/.preparing-train'
  part = work / 'part-00001.json'
  whole = part.read_bytes()
  part.write_bytes(whole[:-9])
  with pytest.raises(
    prepare.PrepareError,
    match='part-00001.json is damaged: .*; remove it, and the same command makes it anew',
  ):
    _prepare(clips, tmp_path / 'set', part_size=5)
  part.unlink()
  plan = (work / 'plan.json').read_text()
  (work / 'plan.json').write_text(plan[:-9])
  with pytest.raises(prepare.PrepareError, match='plan.json is damaged'):
    _prepare(clips, tmp_path / 'set', part_size=5)
  (work / 'plan.json').write_text(plan)
  report = _prepare(clips, tmp_path / 'set', part_size=5)
  assert report['clips_made_in_this_run'] == 5
  _prepare(clips, tmp_path / 'whole', part_size=5)
  assert _content(tmp_path / 'set') == _content(tmp_path / 'whole')
  path = tmp_path / 'set/report.json'
  path.write_text(path.read_text().replace('"prepared": 12', '"prepared": 13'))
  with pytest.raises(
    prepare.PrepareError, match='report.json is damaged: its sha256 is not that of what it says'
  ):
    _prepare(clips, tmp_path / 'set', part_size=5)


def test_splits_share_a_folder(clips, tmp_path):
  output = tmp_path / 'Some Set'
  _prepare(clips, output)
  source = sources.read_folder(clips / 'captions.jsonl')
  val = annotations.Annotations(source.clips[:3], [], 3)
  prepare.prepare(
    val, clips, output, split='val', num_workers=1, options=prepare.Options(fps=2, quality=50)
  )
  train, val = (dataset.open_dataset(output, split, verify=True) for split in ('train', 'val'))
  assert (len(train), len(val)) == (12, 3)
  assert train.digest != val.digest
  assert set(json.loads((output / 'report.json').read_text())['splits']) == {'train', 'val'}
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(output)
  assert builder.info.splits['val'].num_examples == 3
  assert builder.info.splits['train'].num_examples == 12
  assert builder.info.name == 'some_set'


def test_every_skipped_item_is_named(clips, tmp_path, capsys):
  folder = tmp_path / 'videos'
  shutil.copytree(clips, folder)
  (folder / 'text.mp4').write_text('hello')
  rows = [json.loads(line) for line in (folder / 'captions.jsonl').open()]
  rows += [
    {'video': 'gone.mp4', 'caption': 'x'},
    {'video': 'text.mp4', 'caption': 'x'},
    {'video': '../clips/000.mp4', 'caption': 'x'},
    {'video': '000.mp4', 'caption': ' '},
    {'video': '000.mp4'},
  ]
  rows = [row for row in rows if row['video'] != '005.mp4']
  captions = small_videos.write_captions(folder, rows)
  report = _prepare(folder, tmp_path / 'set', captions=captions)
  assert report['skipped_by_reason'] == {
    'bad row': 1,
    'empty caption': 1,
    'missing file': 1,
    'outside the folder of videos': 1,
    'unreadable': 1,
  }
  assert {skip['item'] for skip in report['skipped']} == {
    'gone.mp4',
    'text.mp4',
    '../clips/000.mp4',
    '000.mp4',
  }
  assert report['not_named'] == ['005.mp4']
  counts = report['counts']
  assert (counts['prepared'], counts['captions'], counts['frames']) == (11, 22, 88)
  assert counts['prepared'] + 2 == counts['clips']  # gone and text.
  screen = capsys.readouterr().err
  for skip in report['skipped']:
    assert f'{skip["item"]!r}: {skip["reason"]}' in screen


def test_what_is_passed_over_is_named(clips, tmp_path):
  folder = tmp_path / 'videos'
  shutil.copytree(clips, folder)
  (folder / '005.mp4').rename(folder / '005.MTS')
  (folder / 'code.ts').write_text('const a = 1;\n')
  (folder / '._000.mp4').write_bytes(b'\0\x05\x16\x07' + bytes(60))
  report = _prepare(folder, tmp_path / 'set')
  assert report['not_named'] == ['005.MTS']
  assert {x['item']: x['reason'] for x in report['passed_over']} == {
    'code.ts': 'text, no video',
    '._000.mp4': 'AppleDouble file, no video',
  }
  assert report['other_files'] == {'.jsonl': 1}
  assert report['skipped_by_reason'] == {'missing file': 1}


def test_only_regular_files_are_opened(clips, tmp_path):
  folder = tmp_path / 'videos'
  shutil.copytree(clips, folder)
  os.mkfifo(folder / 'pipe.mp4')  # Opening it would wait for ever.
  rows = [{'video': 'pipe.mp4', 'caption': 'x'}, {'video': '000.mp4', 'caption': 'y'}]
  report = _prepare(folder, tmp_path / 'set', captions=small_videos.write_captions(folder, rows))
  assert report['skipped_by_reason'] == {'missing file': 1}


def test_links_out_of_the_folder(clips, tmp_path):
  folder = tmp_path / 'videos'
  folder.mkdir()
  shutil.copy(clips / '000.mp4', folder / 'own.mp4')
  (folder / 'inside.mp4').symlink_to('own.mp4')
  (folder / 'file.mp4').symlink_to(clips / '001.mp4')
  (folder / 'folder').symlink_to(clips)
  (folder / 'dead.mp4').symlink_to('none.mp4')
  captions = small_videos.write_captions(
    folder,
    [
      {'video': name, 'caption': 'x'}
      for name in (
        'own.mp4',
        'inside.mp4',
        'file.mp4',
        'folder/002.mp4',
        'dead.mp4',
        str(clips / '003.mp4'),
        '../videos/own.mp4',
      )
    ],
  )
  (tmp_path / 'link').symlink_to(folder)  # The folder itself may be one.
  report = _prepare(tmp_path / 'link', tmp_path / 'set', captions=captions)
  assert report['skipped_by_reason'] == {'missing file': 1, 'outside the folder of videos': 4}
  assert report['counts']['prepared'] == 2
  source = sources.read_folder(captions)
  report = prepare.prepare(source, folder, tmp_path / 'links', num_workers=1, follow_links=True)
  assert report['counts']['prepared'] == 4


def test_a_manifest_names_files_of_its_folder(clips, tmp_path):
  _prepare(clips, tmp_path / 'set')
  manifest = _manifest(tmp_path / 'set')
  shard = manifest['splits']['train']['shards'][0]
  for name in ('../other/' + shard['file'], '/etc/passwd'):
    shard['file'] = name
    (tmp_path / 'set/manifest.json').write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match='is damaged: .* not in its folder'):
      dataset.open_dataset(tmp_path / 'set')


def test_lost_items_reach_the_report(clips, tmp_path, monkeypatch):
  real = workers.run_in_order

  def lose_one(*args, **kwargs):
    for number, result in enumerate(real(*args, **kwargs)):
      yield workers.Lost('time-out', 'more than 1 s') if (number == 3) else result

  monkeypatch.setattr(workers, 'run_in_order', lose_one)
  report = _prepare(clips, tmp_path / 'set')
  assert report['skipped'] == [{'item': '003.mp4', 'reason': 'time-out', 'detail': 'more than 1 s'}]
  assert len(dataset.open_dataset(tmp_path / 'set')) == 11


# --- What is no fault of a video --------------------------------------------


@pytest.fixture
def lose(monkeypatch):
  """Decodes here; returns a dict {video: workers.Lost} of what it loses."""
  lost = {}

  def run(target, settings, items, **options):
    for clip in items:
      yield lost.get(clip.video) or prepare.make_record(clip, **settings)

  monkeypatch.setattr(workers, 'run_in_order', run)
  return lost


KILLED = workers.Lost(workers.MACHINE, 'killed')
LATE = workers.Lost('time-out', 'more than 120 s')


@pytest.mark.parametrize(
  'names, old',
  [
    (('003.mp4',), workers.Lost('decoder crashed', 'signal 9')),
    (('000.mp4', '003.mp4', 'new\nline.mp4'), KILLED),
    (('004.mp4', '005.mp4'), KILLED),
  ],
)  # All of a shard.
def test_what_this_machine_lost_is_tried_again(clips, tmp_path, lose, names, old):
  folder = tmp_path / 'videos'
  shutil.copytree(clips, folder)
  (folder / 'text.mp4').write_text('no video')
  (folder / '011.mp4').rename(folder / 'new\nline.mp4')
  captions = folder / 'captions.jsonl'
  captions.write_text(
    captions.read_text().replace('011.mp4', 'new\\nline.mp4')
    + '{"video": "text.mp4", "caption": "x"}\n'
  )
  whole = _prepare(folder, tmp_path / 'whole', part_size=2)
  lose |= dict.fromkeys(names, old)
  output = tmp_path / 'set'
  report = _prepare(folder, output, part_size=2)
  assert report['skipped_by_reason'] == {'unreadable': 1, old.reason: len(names)}
  before = _content(output)
  again = _prepare(folder, output, part_size=2)
  assert again['already_prepared'] and again['tried_again'] == len(names)
  assert _content(output) == before
  lose.clear()
  again = _prepare(folder, output, part_size=2)
  assert again['skipped'] == whole['skipped'] and again['counts'] == (whole['counts'])
  assert _content(output) == _content(tmp_path / 'whole')
  assert [file.name for file in output.iterdir() if file.name.startswith('.')] == ['.lock']
  assert not _prepare(folder, output, part_size=2)['tried_again']


def test_a_damaged_set_is_not_made_anew_from(clips, tmp_path, lose):
  lose['003.mp4'] = KILLED
  _prepare(clips, tmp_path / 'set', part_size=5)
  lose.clear()
  for pattern, near in [('index-train.jsonl', b'clip 7'), ('*record-00000*', b'clip 1')]:
    (file,) = (tmp_path / 'set').glob(pattern)
    whole = file.read_bytes()
    file.write_bytes(whole.replace(near, b'clip 8'))
    with pytest.raises(prepare.PrepareError, match='damaged: .* .sha256.. Remove'):
      _prepare(clips, tmp_path / 'set', part_size=5)
    file.write_bytes(whole)
  report = _prepare(clips, tmp_path / 'set', part_size=5)
  assert report['counts']['prepared'] == 12


def test_a_time_out_is_tried_again_with_another_limit(clips, tmp_path, lose):
  lose['003.mp4'] = LATE
  _prepare(clips, tmp_path / 'set', timeout_s=None)
  lose.clear()
  report = _prepare(clips, tmp_path / 'set', timeout_s=None)
  assert report['already_prepared'] and report['tried_again'] == 0
  report = _prepare(clips, tmp_path / 'set', timeout_s=600.0)
  assert report['counts']['prepared'] == 12 and not report['skipped']


def test_what_was_missing_is_taken_in_when_it_is_there(clips, tmp_path, lose):
  folder = tmp_path / 'videos'
  shutil.copytree(clips, folder)
  whole = _prepare(folder, tmp_path / 'whole', part_size=5)
  (folder / '003.mp4').rename(tmp_path / '003.mp4')
  shutil.copy(folder / '007.mp4', folder / '007.MP4')
  (folder / '007.mp4').rename(folder / '007.Mp4')  # Which of two is meant?
  report = _prepare(folder, tmp_path / 'set', part_size=5)
  assert report['skipped_by_reason'] == {'ambiguous name': 1, 'missing file': 1}
  # Nothing is read through for what is as it was.
  report = _prepare(folder, tmp_path / 'set', part_size=5)
  assert report['already_prepared'] and not report['tried_again']
  (tmp_path / '003.mp4').rename(folder / '003.mp4')
  report = _prepare(folder, tmp_path / 'set', part_size=5)
  assert report['tried_again'] == 1 and report['counts']['prepared'] == 11
  (folder / '007.MP4').unlink()
  report = _prepare(folder, tmp_path / 'set', part_size=5)
  assert report['counts'] == whole['counts'] and not report['skipped']
  assert _content(tmp_path / 'set') == _content(tmp_path / 'whole')


def test_links_are_followed_when_the_same_command_allows_it(clips, tmp_path, lose):
  folder = tmp_path / 'videos'
  shutil.copytree(clips, folder)
  (folder / '003.mp4').unlink()
  (folder / '003.mp4').symlink_to(clips / '003.mp4')
  report = _prepare(folder, tmp_path / 'set', part_size=5)
  assert report['skipped_by_reason'] == {'outside the folder of videos': 1}
  assert not _prepare(folder, tmp_path / 'set', part_size=5)['tried_again']
  report = _prepare(folder, tmp_path / 'set', part_size=5, follow_links=True)
  assert report['tried_again'] == 1 and report['counts']['prepared'] == 12
  _prepare(clips, tmp_path / 'whole', part_size=5)
  assert _content(tmp_path / 'set') == _content(tmp_path / 'whole')


def test_other_splits_stay_when_one_is_tried_again(clips, tmp_path, lose):
  source = sources.read_folder(clips / 'captions.jsonl')

  def both(output):
    for split in ('train', 'val'):
      prepare.prepare(source, clips, output, split=split, num_workers=1)
    return output

  whole = both(tmp_path / 'whole')
  lose['003.mp4'] = KILLED
  both(tmp_path / 'set')
  lose.clear()
  both(tmp_path / 'set')
  assert _content(tmp_path / 'set') == _content(whole)
  for split in ('train', 'val'):
    assert len(dataset.open_dataset(tmp_path / 'set', split)) == 12


def test_a_run_that_continues_tries_again_what_it_finds_lost(clips, tmp_path, lose, monkeypatch):
  _prepare(clips, tmp_path / 'whole', part_size=5)
  lose['003.mp4'] = KILLED
  with monkeypatch.context() as patch:
    patch.setattr(prepare, 'finish', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      _prepare(clips, tmp_path / 'set', part_size=5)
  lose.clear()
  report = _prepare(clips, tmp_path / 'set', part_size=5)
  assert (report['counts']['prepared'], report['tried_again']) == (12, 1)
  assert _content(tmp_path / 'set') == _content(tmp_path / 'whole')


def test_nothing_but_what_this_machine_lost(clips, tmp_path, lose):
  captions = small_videos.write_captions(tmp_path, [{'video': '000.mp4', 'caption': 'x'}])
  lose['000.mp4'] = KILLED
  for _ in range(2):
    with pytest.raises(prepare.PrepareError, match='1 lost by this machine'):
      _prepare(clips, tmp_path / 'set', captions=captions)
  lose.clear()
  report = _prepare(clips, tmp_path / 'set', captions=captions)
  assert report['counts']['prepared'] == 1


@pytest.mark.parametrize('lost', [(), (4, 5, 6, 7, 9)])
def test_killed_at_any_step(clips, tmp_path, lose, monkeypatch, lost):
  """Of the first run, and of one that tries again what was lost."""
  _prepare(clips, tmp_path / 'whole/set', part_size=4)
  if lost:
    lose |= dict.fromkeys([f'{i:03}.mp4' for i in lost], KILLED)
    _prepare(clips, tmp_path / 'lost/set', part_size=4)
    lose.clear()
  killed = 0
  while True:
    output = tmp_path / str(killed) / 'set'
    output.parent.mkdir()
    if lost:
      shutil.copytree(tmp_path / 'lost/set', output)
    left = killed

    def count(real):
      def call(*args, **options):
        nonlocal left
        left -= 1
        if left < 0:
          raise KeyboardInterrupt
        return real(*args, **options)

      return call

    with monkeypatch.context() as patch:
      for name in ('replace', 'rename', 'remove', 'link', 'makedirs'):
        patch.setattr(os, name, count(getattr(os, name)))
      try:
        _prepare(clips, output, part_size=4)
        break
      except KeyboardInterrupt:
        killed += 1
    _prepare(clips, output, part_size=4)
    assert _content(output) == _content(tmp_path / 'whole/set')
    dataset.open_dataset(output, verify=True)
  assert killed > 12


def test_a_disk_that_cannot_be_read_is_no_broken_video(clips, tmp_path, monkeypatch):
  settings = {
    'fps': 0,
    'short_side': 0,
    'quality': 85,
    'max_frames': 0,
    'max_seconds': 0,
    'on_partial': 'keep',
    'follow_links': True,
  }

  def make(name):
    return prepare.make_record(
      annotations.Clip(name, (name,), ('x',), ('',), False), root=str(tmp_path), **settings
    )

  (tmp_path / 'a.mp4').symlink_to('/proc/self/mem')  # Gives EIO.
  assert make('a.mp4').reason == workers.MACHINE
  (tmp_path / 'loop.mp4').symlink_to('loop.mp4')
  for name in ('none.mp4', 'loop.mp4', 'x' * 300, 'a.mp4/b.mp4'):
    assert make(name).reason == 'missing file'
  real = os.stat

  def no_stat(path, *args, **options):
    if str(path).endswith('b.mp4'):
      raise PermissionError(13, 'Permission denied')
    return real(path, *args, **options)

  monkeypatch.setattr(os, 'stat', no_stat)
  record = make('b.mp4')
  assert (record.reason, record.detail) == (workers.MACHINE, 'Permission denied')


def test_a_lack_of_memory_is_no_broken_video(clips, monkeypatch):
  def iterate(*args, **options):
    yield np.zeros((8, 8, 3), np.uint8), 0.0
    raise MemoryError

  def broken_off(*args, **options):
    try:
      yield from iterate()
    except MemoryError as e:
      raise video.PartlyReadable('1 frame') from e

  clip = annotations.Clip('000.mp4', ('000.mp4',), ('x',), ('',), False)
  for function in (iterate, broken_off):
    monkeypatch.setattr(video, 'iterate_frames', function)
    record = prepare.make_record(
      clip,
      root=str(clips),
      fps=0,
      short_side=0,
      quality=85,
      max_frames=0,
      max_seconds=0,
      on_partial='keep',
    )
    assert record.reason == workers.MACHINE and 'memory' in record.detail


def test_a_video_that_breaks_off(tmp_path):
  folder = tmp_path / 'videos'
  folder.mkdir()
  path = small_videos.write_video(folder / 'a.avi', frames=60, codec='mpeg4')
  data = bytearray(path.read_bytes())
  random = np.random.default_rng(3)
  captions = small_videos.write_captions(
    folder, [{'video': 'a.avi', 'caption': 'x'}, {'video': 'b.mp4', 'caption': 'y'}]
  )
  small_videos.write_video(folder / 'b.mp4')
  for _ in range(200):  # Damage it until it breaks off.
    broken = bytearray(data)
    for where in random.integers(6000, len(data), 30):
      broken[where] = random.integers(256)
    path.write_bytes(broken)
    try:
      small_videos.read_frames(path)
    except video.PartlyReadable:
      break
    except video.UnreadableVideo:
      pass
  skip = _prepare(folder, tmp_path / 'skip', captions=captions)
  assert skip['skipped_by_reason'] == {'breaks off': 1}
  keep = _prepare(folder, tmp_path / 'keep', captions=captions, on_partial='keep')
  assert keep['counts']['prepared'] == 2 and not keep['skipped']
  assert [item['item'] for item in keep['partial']] == ['a.avi']


def test_a_video_that_ends_early_is_kept_and_named(tmp_path):
  path = small_videos.write_video(tmp_path / 'a.mkv', frames=100, rate=25)
  path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
  report = _prepare(
    tmp_path,
    tmp_path / 'set',
    captions=(small_videos.write_captions(tmp_path, [{'video': 'a.mkv', 'caption': 'x'}])),
  )
  assert report['counts']['prepared'] == 1 and not report['skipped']
  assert report['partial'][0]['item'] == 'a.mkv'
  assert 'of 4.0 s' in report['partial'][0]['detail']


def test_strange_names(tmp_path):
  folder = tmp_path / 'videos'
  names = [
    'with space.mp4',
    'it\'s "quoted".mp4',
    'ünï/日本.mp4',
    'new\nline.mp4',
    '-rf.mp4',
    '%05d.mp4',
    'a:b.mp4',
    'x.MP4',
  ]
  (folder / 'ünï').mkdir(parents=True)
  for name in names:
    small_videos.write_video(tmp_path / 'any.mp4')
    shutil.copy(tmp_path / 'any.mp4', folder / name)
  captions = small_videos.write_captions(
    folder, [{'video': name, 'caption': name} for name in names]
  )
  report = _prepare(folder, tmp_path / 'sét', captions=captions)
  assert report['counts']['prepared'] == len(names), report['skipped']
  assert [record.video for record in dataset.open_dataset(tmp_path / 'sét').metadata()] == names


def test_a_folder_whose_name_is_not_utf8(tmp_path):
  folder = tmp_path / os.fsdecode(b'v\xff')
  folder.mkdir()
  small_videos.write_video(tmp_path / 'a.mp4').rename(folder / 'a.mp4')
  (folder / 'b.mp4').symlink_to(small_videos.write_video(tmp_path / 'b.mp4'))
  captions = small_videos.write_captions(
    folder, [{'video': name, 'caption': 'x'} for name in ('a.mp4', 'b.mp4', '')]
  )
  report = _prepare(folder, tmp_path / 'set', captions=captions)
  assert report['counts']['prepared'] == 1
  assert (
    report['skipped']
    == json.loads((tmp_path / 'set/report.json').read_text())['splits']['train']['skipped']
  )
  assert [skip['reason'] for skip in report['skipped']] == [
    'no video name',
    'outside the folder of videos',
  ]
  assert r'v\udcff' in report['skipped'][0]['detail']


def test_photos(tmp_path):
  images = tmp_path / 'images'
  images.mkdir()
  Image.new('RGB', (40, 20), 'red').save(images / 'a.jpg')
  Image.new('RGB', (400, 300), 'red').save(images / 'b.png')
  path = tmp_path / 'cc.json'
  path.write_text(
    json.dumps(
      [{'image': 'a.jpg', 'caption': 'one'}, {'image': 'b.png', 'caption': ['two', 'three']}]
    )
  )
  code, out, err = _run(
    '--source=cc3m', f'--images={images}', f'--captions={path}', f'--output={tmp_path / "set"}'
  )
  assert code == 0, err
  records = dataset.open_dataset(tmp_path / 'set').metadata()
  assert [(r.still, r.frames, len(r.captions)) for r in records] == [(True, 1, 1), (True, 1, 2)]


def test_webvid_layout(clips, tmp_path):
  folder = tmp_path / 'videos'
  (folder / '000_050').mkdir(parents=True)
  shutil.copy(clips / '000.mp4', folder / '000_050' / '12.mp4')
  shutil.copy(clips / '001.mp4', folder / '13.mp4')
  path = tmp_path / 'w.csv'
  path.write_text('videoid,page_dir,name\n12,000_050,one\n13,000_050,two\n')
  code, _, err = _run(
    '--source=webvid',
    f'--videos={folder}',
    f'--captions={path}',
    f'--output={tmp_path / "set"}',
    '--fps=0',
  )
  assert code == 0, err
  assert len(dataset.open_dataset(tmp_path / 'set')) == 2


def test_questions_of_the_command(clips, tmp_path):
  questions = small_videos.write_questions(tmp_path, [(7, 'who is it', 'dog')] * 2)
  questions.write_text(questions.read_text().replace('"video"', '"video_id"'))
  (tmp_path / 'map.txt').write_text('003 vid7\n')
  code, out, err = _run(
    '--source=msvd',
    f'--videos={clips}',
    f'--questions={questions}',
    f'--mapping={tmp_path / "map.txt"}',
    f'--output={tmp_path / "set"}',
    '--fps=0',
    '--workers=1',
  )
  assert code == 0, err
  assert re.search(r'questions +2\n', out)
  assert (f'launch/answers.py --data={tmp_path / "set"} --split=train --output=answers.txt') in out
  (record,) = dataset.open_dataset(tmp_path / 'set').metadata()
  assert (record.video, len(record.questions)) == ('003.avi', 2)


def test_what_comes_next_for_a_set_of_ones_own(clips, tmp_path, capsys):
  videos = [f'{number:03}.mp4' for number in range(12)]

  def said(split, output, rows):
    captions = small_videos.write_captions(tmp_path, rows)
    assert not launched.run(
      'prepare',
      '--source=folder',
      f'--videos={clips}',
      f'--captions={captions}',
      f'--output={output}',
      f'--split={split}',
      '--fps=0',
      '--workers=1',
    )
    return capsys.readouterr().out

  output = tmp_path / 'set'
  rows = [
    {'video': video, 'caption': f'a dog {video}', 'split': 'test' if video > '008' else 'train'}
    for video in videos
  ]
  # A tokenizer is never made of what is held out.
  assert "no split to train on, only ['test']" in said('test', output, rows)
  assert not (output / 'tokenizer.model').exists()
  out = said('train', output, rows)
  assert f'{output}: trains on 8 videos (train), measures on 4 others (test).' in out
  assert 'tokenizer.model: ' in out and f'--config.data.path={output}' in out
  out = said('test', output, rows)
  assert 'tokenizer.model: kept' in out and 'launch/tokenizer.py' not in out

  # Rows that name no split are of both.
  output = tmp_path / 'both'
  for row in rows[:8]:
    del row['split']
  assert 'trains on all 8 videos' in said('train', output, rows)
  out = said('test', output, rows)
  assert (
    f"\n{output}: of the 12 videos of split 'test', which would be measured on, 8 are trained on "
    'too: 000.mp4, 001.mp4, ... (\'train\'). Rows of a captions file without a "split" belong'
  ) in out
  assert 'others' not in out and 'launch/main.py' not in out
  out = said('val', output, rows)
  assert "of the 8 videos of split 'val', which would be measured on, 8 are trained on" in out
  assert "\n8 videos of split 'val' are in 'test' too, such as 000.mp4: rows without" in out


# --- Mistakes ---------------------------------------------------------------


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('fps', -1),
    ('fps', float('nan')),
    ('quality', 0),
    ('quality', 96),
    ('short_side', -5),
    ('part_size', 0),
    ('on_partial', 'perhaps'),
    ('max_frames', -1),
    ('max_seconds', -1.0),
  ],
)
def test_wrong_options(name, value):
  with pytest.raises(prepare.PrepareError, match=f'--.*={value} must be'):
    prepare.Options(**{name: value})


def test_wrong_arguments(clips, tmp_path):
  source = sources.read_folder(clips / 'captions.jsonl')
  for match, changes in [
    ('--split=Train must be', {'split': 'Train'}),
    ('--timeout_s=0 must be', {'timeout_s': 0}),
    ('--workers=-1 must not', {'num_workers': -1}),
  ]:
    with pytest.raises(prepare.PrepareError, match=match):
      prepare.prepare(source, clips, tmp_path / 'set', **changes)
  with pytest.raises(prepare.PrepareError, match='is not a folder'):
    prepare.prepare(source, tmp_path / 'none', tmp_path / 'set')


def test_no_caption_matches(clips, tmp_path):
  captions = small_videos.write_captions(
    tmp_path, [{'video': f'x{i}', 'caption': 'x'} for i in range(9)]
  )
  with pytest.raises(prepare.PrepareError) as e:
    _prepare(clips, tmp_path / 'set', captions=captions)
  assert 'None of the 9 annotated files is in' in str(e.value)
  assert "'x4'" in str(e.value) and "'x5'" not in str(e.value)
  assert "'003.mp4'" in str(e.value)
  assert not (tmp_path / 'set').exists()


def test_no_usable_row(clips, tmp_path):
  captions = small_videos.write_captions(tmp_path, [{'video': 'a'}])
  with pytest.raises(prepare.PrepareError, match='1 rows and no usable one'):
    _prepare(clips, tmp_path / 'set', captions=captions)


def test_no_clip_prepared(tmp_path):
  (tmp_path / 'a.mp4').write_text('x')
  captions = small_videos.write_captions(tmp_path, [{'video': 'a.mp4', 'caption': 'x'}])
  with pytest.raises(prepare.PrepareError, match='No clip of 1 could be prepared: 1 unreadable'):
    _prepare(tmp_path, tmp_path / 'set', captions=captions)


def test_output_of_others_is_left_alone(clips, tmp_path):
  output = tmp_path / 'set'
  output.mkdir()
  (output / 'thesis.txt').write_text('x')
  with pytest.raises(prepare.PrepareError, match='holds other files .thesis.txt'):
    _prepare(clips, output)
  (tmp_path / 'file').write_text('x')
  with pytest.raises(prepare.PrepareError, match='cannot be written'):
    _prepare(clips, tmp_path / 'file')
  with pytest.raises(prepare.PrepareError, match='cannot be written'):
    _prepare(clips, '/proc/set')


def test_one_run_at_a_time(clips, tmp_path):
  output = tmp_path / 'set'
  output.mkdir()
  with (
    files.lock(output / '.lock', 'is preparing it.'),
    pytest.raises(ValueError, match=r'process \d+ is preparing .*; wait for it'),
  ):
    _prepare(clips, output)


def test_a_full_disk_is_said_and_what_is_done_is_kept(clips, tmp_path):
  _prepare(clips, tmp_path / 'whole', part_size=4)
  sizes = [part['bytes'] for part in _manifest(tmp_path / 'whole')['splits']['train']['shards']]
  limit = min(sizes) - 1
  _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
  try:
    with pytest.raises(
      OSError, match='part-0000.* cannot be written: .*the same command continues'
    ):
      _prepare(clips, tmp_path / 'set', part_size=4)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
  _prepare(clips, tmp_path / 'set', part_size=4)
  assert _content(tmp_path / 'set') == _content(tmp_path / 'whole')


@pytest.mark.parametrize(
  'harm, said',
  [
    (lambda file: file.unlink(), 'is missing'),
    (lambda file: file.write_bytes(b'x'), 'is damaged: 1 bytes, expected'),
  ],
)
def test_a_finished_set_that_is_damaged_is_not_called_done(clips, tmp_path, harm, said):
  _prepare(clips, tmp_path / 'set')
  harm(next((tmp_path / 'set').glob('*.array_record*')))
  with pytest.raises(prepare.PrepareError, match=f'{said}.*verify .*set --out'):
    _prepare(clips, tmp_path / 'set')


def test_a_lost_part_is_noticed(clips, tmp_path, monkeypatch):
  monkeypatch.setattr(prepare, 'finish', lambda *args: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    _prepare(clips, tmp_path / 'set')
  monkeypatch.undo()
  (tmp_path / 'set/.preparing-train/part-00000.array_record').unlink()
  with pytest.raises(prepare.PrepareError, match='lost part 0'):
    _prepare(clips, tmp_path / 'set')


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--fps=x'], "--fps=x: could not convert string to float: 'x'"),
    (['--source=disc'], '--source=disc: value should be one of <folder'),
    (['--qualtiy=9'], "Unknown command line flag 'qualtiy'"),
    (['--tries=9'], 'a set has no --tries'),
    (['clips'], "unexpected ['clips']"),
    (['--output='], '--source and --output are needed'),
    (['--quality=100'], '--quality=100 must be 1 to 95'),
    (['--videos=/none'], '--videos=/none is not a folder'),
    (['--videos='], '--source=folder needs --videos'),
    (['--captions='], '--source=folder needs --captions, --questions, or'),
    (
      ['--source=didemo', '--questions=q.json'],
      '--source=didemo has no --questions; it is for folder, msrvtt, msvd',
    ),
    (['--mapping=m.txt'], '--source=folder has no --mapping; it is for msvd'),
    (['--source=msrvtt', '--subset=8k'], '--subset=8k: value should be one of'),
    (['--captions=/none.csv'], '--captions=/none.csv is not a file'),
  ],
)
def test_mistakes_are_one_sentence(clips, tmp_path, capsys, monkeypatch, args, message):
  base = [
    '--source=folder',
    f'--videos={clips}',
    f'--captions={clips / "captions.jsonl"}',
    f'--output={tmp_path / "set"}',
  ]
  monkeypatch.setattr(signal, 'signal', lambda *args: None)
  assert launched.run('prepare', *base, *args) == 2
  err = capsys.readouterr().err.strip()
  assert message in err and err.count('\n') == 0 and err.startswith('error: ')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_interrupt_says_how_to_continue(clips, tmp_path, number):
  process = _run(
    '--source=folder',
    f'--videos={clips}',
    f'--captions={clips / "captions.jsonl"}',
    f'--output={tmp_path / "set"}',
    wait=False,
  )
  while not (tmp_path / 'set/.preparing-train/plan.json').exists():
    assert process.poll() is None, process.communicate()
    time.sleep(0.002)
  process.send_signal(number)  # The workers are still starting.
  _, err = process.communicate(timeout=patience.seconds(60))
  assert process.returncode == 128 + number, err
  assert 'same command again to continue' in err and 'Traceback' not in err


def test_help_has_an_example_of_every_source():
  code, out, _ = _run('--help')
  assert code == 0
  for source in sources.SOURCES:
    assert re.search(rf'prepare.py --source={source} ', out)


@pytest.mark.skipif(not os.path.isdir(CLIPS), reason='set ALPRO_CLIPS to the folder of clips')
def test_real_clips_are_in_or_named(tmp_path):
  source = sources.read_folder(os.path.join(CLIPS, 'captions.jsonl'))
  report = prepare.prepare(source, CLIPS, tmp_path / 'set', num_workers=2)
  records = dataset.open_dataset(tmp_path / 'set').metadata()
  named = {skip['item']: skip['reason'] for skip in report['skipped']}
  assert named == {'corrupted.mp4': 'breaks off', 'not_there.mp4': 'missing file'}
  assert {r.video for r in records} | set(named) == {clip.video for clip in source.clips}


def test_other_spellings_of_a_name_are_found(tmp_path):
  videos = tmp_path / 'videos'
  videos.mkdir()
  small_videos.write_video(videos / 'cafe\u0301.MP4', frames=2)
  small_videos.write_video(videos / 'dog.mp4', frames=2)
  small_videos.write_video(videos / 'two.mp4', frames=1)
  small_videos.write_video(videos / 'two.MP4', frames=1)
  captions = small_videos.write_captions(
    tmp_path,
    [
      {'video': 'caf\u00e9.mp4', 'caption': 'a'},
      {'video': str(videos / 'dog.MP4'), 'caption': 'b'},
      {'video': 'two.Mp4', 'caption': 'c'},
    ],
  )
  source = sources.read_folder(captions, root=videos)
  report = prepare.prepare(
    source,
    videos,
    tmp_path / 'set',
    num_workers=1,
    list_unnamed=True,
    options=prepare.Options(fps=0),
  )
  assert report['counts']['prepared'] == 2
  assert report['skipped_by_reason'] == {'ambiguous name': 1}
  assert report['not_named'] == []


@pytest.mark.parametrize(
  ('source', 'row'),
  [
    ('folder', {'video': '{}/a.mp4', 'caption': 'x'}),
    ('cc3m', {'image': '{}/a.mp4', 'caption': 'x'}),
    ('msrvtt', {'video_id': '{}/a.mp4', 'caption': 'x'}),
    ('didemo', {'video': '{}/a.mp4', 'description': 'x'}),
  ],
)
def test_each_source_takes_absolute_paths_inside_the_folder(tmp_path, source, row, monkeypatch):
  captions = tmp_path / 'captions.json'
  captions.write_text(json.dumps([{key: text.format(tmp_path) for key, text in row.items()}]))
  monkeypatch.setattr(signal, 'signal', lambda *args: None)

  def check(found, root, *_, **__):
    assert root == str(tmp_path)
    assert [clip.video for clip in found.clips] == ['a.mp4']
    raise SystemExit(9)

  monkeypatch.setattr(prepare, 'prepare', check)
  assert (
    launched.run(
      'prepare',
      f'--source={source}',
      f'--videos={tmp_path}',
      f'--captions={captions}',
      f'--output={tmp_path}/set',
    )
    == 9
  )
