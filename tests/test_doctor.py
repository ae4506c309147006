"""The doctor finds what is wrong, and prints how to fix it."""

import pathlib
import subprocess
import sys

import pytest

from tests import launched, patience, tiny_run

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('doctor')
  tiny_run.make_inputs(folder)
  return folder


def examine(folder, *options):
  """Returns the exit code and what was printed."""
  # The devices of tests would share what is free.
  given = f'--config={folder / "tiny.py"}', '--config.machine.memory_gib=4', *options
  code, out, errors = launched.said('doctor', *given)
  assert 'Traceback' not in errors, errors[-2000:]
  return code, out


def examine_alone(folder, *options):
  """As `examine`, in a process of its own that has one device."""
  done = subprocess.run(
    [sys.executable, ROOT / 'launch' / 'doctor.py', f'--config={folder / "tiny.py"}', *options],
    cwd=ROOT,
    text=True,
    capture_output=True,
    check=False,
    timeout=patience.seconds(300),
    env=tiny_run.environment(folder),
  )
  assert 'Traceback' not in done.stderr, done.stderr[-2000:]
  return done.returncode, done.stdout


def test_no_error_is_a_bare_key():
  code = 'from launch.doctor import Doctor; Doctor().check("data", lambda: {}["pixels"], "a set")'
  said = subprocess.check_output([sys.executable, '-c', code], cwd=ROOT, text=True)
  assert "ERROR    data: KeyError: 'pixels'. No input should end like this" in said
  assert 'fix: a set' in said


def test_only_packages_that_a_run_needs_stop_it():
  code = """
from importlib import metadata
from launch import doctor
version = metadata.version
def without(name):
  if name in ('pytest', 'av'):
    raise metadata.PackageNotFoundError(name)
  return version(name)
metadata.version = without
asked = doctor.Doctor()
doctor.check_versions(asked)
print(asked.errors)
"""
  said = subprocess.check_output([sys.executable, '-c', code], cwd=ROOT, text=True)
  assert 'ERROR    packages: not installed: av\n' in said and said.endswith('1\n')
  assert 'warning  packages: not installed, for tests and extras alone: pytest\n' in said


@pytest.mark.slow
def test_a_run_that_can_start(folder):
  code, out = examine_alone(folder, f'--workdir={folder / "run"}')
  assert code == 0 and out.endswith('Ready.\n'), out
  for line in (
    'ok       tokenizer:',
    'ok       data: set/train: 16 records',
    'ok       held-out data:',
    'ok       workdir:',
    'ok       step: batch 8 on 1 devices',
  ):
    assert line in out


@pytest.mark.slow
def test_what_main_refuses_for_memory_the_doctor_says(folder):
  given = (f'--workdir={folder / "large"}', '--config.machine.memory_gib=1')
  code, messages = tiny_run.finish(tiny_run.start(folder, *given))
  refused = messages.strip().splitlines()[-1].removeprefix('error: ')
  assert code == 2 and refused.startswith('this run needs about')
  assert not (folder / 'large').exists()
  code, out = examine(folder, '--nostep', *given)
  assert code == 1 and f'ERROR    choice: {refused}' in out


@pytest.mark.slow
def test_pairs_without_negatives(folder):
  code, out = examine_alone(folder, '--nostep', '--config.data.batch_size=4')
  assert code == 0 and 'warning  negatives: A pair finds its negatives' in out
  code, out = examine_alone(folder, '--nostep', '--config.data.batch_size=1')
  assert code == 1 and 'ERROR    run: A pair finds its negatives' in out


@pytest.mark.slow
def test_what_would_stop_a_run(folder):
  shard = next((folder / 'set').glob('*.array_record-*'))
  content = shard.read_bytes()
  shard.write_bytes(content[:-100])
  try:
    code, out = examine(
      folder, '--nostep', '--config.data.tokenizer=gone.model', f'--config.train.init_from={folder}'
    )
  finally:
    shard.write_bytes(content)
  assert code == 1
  assert "ERROR    tokenizer: No tokenizer at 'gone.model'" in out
  assert 'fix: python launch/tokenizer.py' in out
  assert f'expected {len(content)}; copy or prepare it again' in out
  assert 'prepare.py verify' in out
  assert 'ERROR    start: no checkpoint in' in out
  # The set is named twice, for training and as held-out data.
  assert '4 found that would stop a run' in out


@pytest.mark.slow
def test_a_batch_that_cannot_be_cut(folder):
  done, out = examine(folder, '--config.mesh.data=3')
  assert done == 1
  assert 'ERROR    step: mesh data=3' in out


@pytest.mark.slow
def test_a_run_that_would_not_go_on(folder):
  work = folder / 'goes_on'
  code, messages = tiny_run.finish(
    tiny_run.start(
      folder, f'--workdir={work}', '--config.train.steps=2', '--config.eval.sources=()'
    )
  )
  assert code == 0, messages[-2000:]
  same = (f'--workdir={work}', '--nostep', '--config.train.steps=4')
  code, out = examine(folder, *same)
  assert code == 0 and 'ok       run: goes on from step 2 of 4' in out, out
  code, out = examine(folder, *same, '--config.seed=7')
  assert code == 1
  assert 'ERROR    run: this workdir holds a run with other options' in out
  assert 'config.seed: was 42, is 7' in out
  # Another tokenizer of the same size is another run's.
  swapped = folder / 'swapped'
  swapped.mkdir()
  code, out = examine(
    folder,
    '--nostep',
    f'--config.train.init_from={work}',
    f'--config.data.tokenizer={other_tokenizer(folder, swapped)}',
  )
  assert code == 1
  assert 'was trained with another tokenizer' in out


def other_tokenizer(folder, where):
  """The tokenizer of the folder with two pieces changed for each other."""
  from sentencepiece import sentencepiece_model_pb2

  model = sentencepiece_model_pb2.ModelProto()
  model.ParseFromString((folder / 'tokenizer.model').read_bytes())
  first, second = model.pieces[-1], model.pieces[-2]
  first.piece, second.piece = second.piece, first.piece
  path = where / 'tokenizer.model'
  path.write_bytes(model.SerializeToString())
  return path
