"""The doctor finds what is wrong, and says how to mend it."""

import pathlib
import subprocess
import sys

import pytest

from tests import tiny_run

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('doctor')
  tiny_run.make_inputs(folder)
  return folder


def examine(folder, *options):
  """Returns the exit code and what was printed."""
  done = subprocess.run(
      [sys.executable, ROOT / 'launch' / 'doctor.py',
       f'--config={folder / "tiny.py"}', *options], cwd=ROOT, text=True,
      capture_output=True, check=False, timeout=300,
      env=tiny_run.environment(folder))
  assert 'Traceback' not in done.stderr, done.stderr[-2000:]
  return done.returncode, done.stdout


@pytest.mark.slow
def test_a_run_that_can_start(folder):
  code, out = examine(folder, f'--workdir={folder / "run"}')
  assert code == 0 and out.endswith('Ready.\n'), out
  for line in ('ok       tokenizer:', 'ok       data: set/train: 16 records',
               'ok       held-out data:', 'ok       workdir:',
               'ok       step: batch 8 on 1 devices'):
    assert line in out


@pytest.mark.slow
def test_what_would_stop_a_run(folder):
  shard = next((folder / 'set').glob('*.array_record-*'))
  content = shard.read_bytes()
  shard.write_bytes(content[:-100])
  try:
    code, out = examine(
        folder, '--nostep', '--config.data.tokenizer=gone.model',
        f'--config.train.init_from={folder}')
  finally:
    shard.write_bytes(content)
  assert code == 1
  assert "ERROR    tokenizer: No tokenizer at 'gone.model'" in out
  assert 'mend it: python launch/tokenizer.py' in out
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
