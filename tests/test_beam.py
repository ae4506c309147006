"""The same set from a Beam pipeline as from one machine."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from alpro_jax import buckets, files
from alpro_jax.data import dataset, own, parts, prepare, sources, workers
from tests import buckets_on_loopback, patience, small_videos
from tests.test_verify import launch_prepare

ROOT = pathlib.Path(__file__).resolve().parents[1]
INSTALLED = importlib.util.find_spec('apache_beam') is not None
needs_beam = pytest.mark.skipif(not INSTALLED, reason='pip install -r requirements-beam.txt')
# Beam's own, while it is imported and run.
pytestmark = [
  pytest.mark.filterwarnings('ignore::DeprecationWarning'),
  pytest.mark.filterwarnings('ignore::PendingDeprecationWarning'),
]
LISTS = (own.TOKENIZER, own.ENTITIES, own.ANSWERS)
LISTS += tuple(f'{name}.sha256' for name in LISTS)
OPTIONS = prepare.Options(fps=0, short_side=0, part_size=3)
TWO_WORKERS = ['--direct_running_mode=multi_processing', '--direct_num_workers=2']


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
  """Ten videos, one that is none, one that is missing, rows of every kind."""
  folder = tmp_path_factory.mktemp('clips')
  path = small_videos.write_folder(folder, 10)
  (folder / 'text.mp4').write_text('hello')
  rows = [json.loads(line) for line in path.open()]
  rows[5:5] = [{'video': 'text.mp4', 'caption': 'x'}]
  rows += [
    {'video': 'gone.mp4', 'caption': 'x'},
    {'video': '../000.mp4', 'caption': 'x'},
    {'video': '000.mp4', 'caption': ' '},
    {'video': '000.mp4', 'caption': 'ünï "quoted"\n', 'style': 'é'},
  ]
  small_videos.write_captions(folder, rows)
  small_videos.write_questions(folder, [('001.mp4', 'who is it', 'dog')])
  return folder


def _arguments(clips, output):
  return [
    f'--videos={clips}',
    '--source=folder',
    '--fps=0',
    '--short_side=0',
    '--part_size=3',
    f'--captions={clips}/captions.jsonl',
    f'--questions={clips}/questions.jsonl',
    f'--output={output}',
  ]


def run_two_workers(clips, output, *, seconds=120, cwd=None):
  command = [sys.executable, ROOT / 'launch/prepare.py', '--runner=beam']
  return subprocess.run(
    [*command, *_arguments(clips, output), '--', *TWO_WORKERS],
    capture_output=True,
    text=True,
    timeout=patience.seconds(seconds),
    cwd=cwd,
  )


def _source(clips):
  return sources.read_folder(clips / 'captions.jsonl', clips / 'questions.jsonl')


def _prepare(clips, output, **changes):
  return prepare.prepare(
    _source(clips),
    clips,
    output,
    options=OPTIONS,
    list_unnamed=True,
    **{'num_workers': 1, 'timeout_s': 60.0, **changes},
  )


@pytest.fixture(scope='module')
def local(clips, tmp_path_factory):
  output = tmp_path_factory.mktemp('local') / 'set'
  _prepare(clips, output)
  return output


def _content(output):
  """All that the set holds; of the report all but the time that it took.

  TFDS's two files are compared as JSON: protobuf promises no order of keys. Lists of
  words are the command's, which `local` is made without.
  """
  report = json.loads((output / 'report.json').read_text())
  del report['sha256']  # Of the time, too.
  for split in report['splits'].values():
    del split['seconds']
  return report, {
    path.name: json.loads(path.read_text()) if path.suffix == '.json' else path.read_bytes()
    for path in sorted(output.iterdir())
    if path.name not in ('report.json', '.lock', *LISTS)
  }


@needs_beam
@pytest.mark.slow
def test_two_workers_make_the_same_set(clips, local, tmp_path):
  output = tmp_path / 'set'
  run = run_two_workers(clips, output)
  assert run.returncode == 0, run.stderr
  assert _content(output) == _content(local)
  assert all((output / name).exists() for name in (own.TOKENIZER, own.ANSWERS))
  report = json.loads((output / 'report.json').read_text())['splits']['train']
  assert report['skipped_by_reason'] == {
    'empty caption': 1,
    'missing file': 1,
    'outside the folder of videos': 1,
    'unreadable': 1,
  }
  assert "skipped 'text.mp4': unreadable" in run.stderr
  assert dataset.open_dataset(output, verify=True).digest == (dataset.open_dataset(local).digest)


@needs_beam
def test_a_killed_pipeline_continues(clips, local, tmp_path):
  output = tmp_path / 'set'
  command = [sys.executable, ROOT / 'launch/prepare.py', *_arguments(clips, output)]
  process = subprocess.Popen(
    [*command, '--runner=beam'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
  )
  work = output / '.preparing-train'
  end = time.monotonic() + patience.seconds(60)
  while not list(work.glob('part-*.json')):
    assert process.poll() is None and time.monotonic() < end
    time.sleep(0.002)
  process.kill()
  process.wait()
  kept = len({path.name.split('.')[0] for path in work.glob('part-*.json')})
  assert 1 <= kept < 4, 'it was too late'
  # Whole attempts count for the pipeline that continues, and for it alone.
  main = launch_prepare()
  assert main([*command[2:], '--runner=beam']) == 0
  report, files = _content(output)
  made = report['splits']['train'].pop('clips_made_in_this_run')
  assert made <= 12 - 3 * kept
  want_report, want_files = _content(local)
  del want_report['splits']['train']['clips_made_in_this_run']
  assert (report, files) == (want_report, want_files)


def hang_on_one(clip, **settings):
  """Stands for a decoder that never ends."""
  if clip.video == '004.mp4':
    time.sleep(1000)
  return prepare.make_record(clip, **settings)


@needs_beam
@pytest.mark.slow
def test_a_hanging_decoder_costs_one_clip(clips, tmp_path, monkeypatch):
  from alpro_jax.data import beam

  real = workers.run_in_order
  monkeypatch.setattr(
    workers,
    'run_in_order',
    lambda target, *args, **options: real('tests.test_beam:hang_on_one', *args, **options),
  )
  reports = [
    _prepare(clips, tmp_path / name / 'set', timeout_s=4.0, make=make)
    for name, make in [('local', None), ('beam', beam.maker([]))]
  ]
  assert {
    'item': '004.mp4',
    'reason': 'time-out',
    'detail': 'more than 4 s; --timeout_s allows more',
  } in (reports[1]['skipped'])
  assert reports[1]['counts']['prepared'] == 9
  assert _content(tmp_path / 'beam/set') == _content(tmp_path / 'local/set')


@needs_beam
def test_attempts_of_other_workers(clips, local, tmp_path, monkeypatch):
  """Whole ones count once, whoever made them; unfinished ones do not."""
  from alpro_jax.data import beam

  output = tmp_path / 'set'
  with monkeypatch.context() as patch:
    patch.setattr(prepare, 'finish', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      _prepare(clips, output)
  work = output / '.preparing-train'

  def make_attempt(number, name):
    for suffix in ('json', 'array_record'):
      os.rename(work / f'part-{number:05}.{suffix}', work / f'part-{number:05}.try-{name}.{suffix}')

  make_attempt(0, 'a')
  make_attempt(1, 'a')  # Killed while it was given its name.
  os.rename(work / 'part-00001.try-a.array_record', work / 'part-00001.array_record')
  make_attempt(2, 'a')  # Killed before it was whole.
  (work / 'part-00002.try-a.json').unlink()
  (work / 'part-00002.try-a.array_record').write_bytes(b'half')
  report = _prepare(clips, output, make=beam.maker([]))
  assert report['clips_made_in_this_run'] == 3
  assert _content(output)[1] == _content(local)[1]


@needs_beam
def test_a_pipeline_that_fails(clips, tmp_path, monkeypatch):
  from alpro_jax.data import beam

  def no_space(*args):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(parts, 'write_part', no_space)
  with pytest.raises(RuntimeError, match='failed, .*No space left.*\n.*command continues'):
    _prepare(clips, tmp_path / 'set', make=beam.maker([]))
  monkeypatch.setattr(beam, 'make_here', lambda *args, **options: None)
  with pytest.raises(RuntimeError, match='ended without 4 of 4 parts'):
    _prepare(clips, tmp_path / 'set', make=beam.maker([]))


@needs_beam
def test_options_of_beam(clips, tmp_path, capsys):
  main = launch_prepare()
  base = _arguments(clips, tmp_path / 'set')
  assert main([*base, '--runner=beam', '--', '--direct_num_wrokers=2']) == 2
  assert 'no option --direct_num_wrokers' in capsys.readouterr().err
  assert main([*base, '--runner=beam', '--', '--direct_num_workers=x']) == 2
  assert 'direct_num_workers' in capsys.readouterr().err
  assert not (tmp_path / 'set').exists()


@pytest.mark.skipif(INSTALLED, reason='is about when it is not')
def test_without_beam(clips, tmp_path, capsys):
  assert launch_prepare()([*_arguments(clips, tmp_path / 'set'), '--runner=beam']) == 2
  assert capsys.readouterr().err.strip() == (
    'error: --runner=beam needs Apache Beam: pip install -r requirements-beam.txt'
  )


def test_options_after_two_dashes_are_for_beam_alone(clips, tmp_path, capsys):
  assert launch_prepare()([*_arguments(clips, tmp_path / 'set'), '--', '--x']) == 2
  assert 'Only --runner=beam takes' in capsys.readouterr().err


@pytest.fixture
def bucket(clips, tmp_path, monkeypatch):
  """Yields (server, address of a bucket with the folder clips/)."""
  monkeypatch.setenv('ALPRO_CACHE', str(tmp_path / 'cache'))
  with buckets_on_loopback.gcs() as (server, address):
    buckets.upload(clips, f'{address}/clips')
    yield server, address


@needs_beam
@pytest.mark.slow
def test_two_workers_that_see_only_a_bucket(bucket, local, tmp_path):
  """Records go from them to the bucket, and not by the process that starts them."""
  server, address = bucket
  server.requests.clear()
  run = run_two_workers(f'{address}/clips', f'{address}/set', seconds=240, cwd=tmp_path)
  assert run.returncode == 0, run.stderr
  read = [path for method, path, *_ in server.requests if method == 'GET' and 'alt=media' in path]
  assert sum(path.count('.clips') for path in read) == 4
  assert not [path for path in read if '.array_record' in path]
  assert not [name for name in files.names(f'{address}/set') if name.startswith('.')]
  assert dataset.open_dataset(f'{address}/set', verify=True).digest == (
    dataset.open_dataset(local).digest
  )
  (report, there), (own_report, here) = map(_content, (files.local(f'{address}/set'), local))
  assert there == here
  for split in (report, own_report):  # Paths of the file of captions differ.
    del split['splits']['train']['skipped']
  assert report == own_report


@needs_beam
def test_another_machine_continues_in_a_bucket(clips, bucket, local, tmp_path, monkeypatch):
  from alpro_jax.data import beam

  _, address = bucket

  def prepare_there(options=OPTIONS):
    return prepare.prepare(
      _source(clips),
      f'{address}/clips',
      f'{address}/set',
      options=options,
      list_unnamed=True,
      num_workers=1,
      timeout_s=60.0,
      make=beam.maker([]),
    )

  with monkeypatch.context() as patch:
    patch.setattr(prepare, 'finish', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      prepare_there()
  monkeypatch.setenv('ALPRO_CACHE', str(tmp_path / 'another'))
  with pytest.raises(
    prepare.PrepareError, match='unfinished split .* --quality was 85 and is now 80'
  ):
    prepare_there(dataclasses.replace(OPTIONS, quality=80))
  monkeypatch.setenv('ALPRO_CACHE', str(tmp_path / 'a third'))
  # What could not be read is looked at again, in the bucket.
  assert prepare_there()['clips_made_in_this_run'] == 0
  assert _content(files.local(f'{address}/set'))[1] == _content(local)[1]
