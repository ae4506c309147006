"""The sweep over batches and variants: order, failures, going on, the table."""

import json

import pytest

from benchmarks import child, sweep

# Stands in for launch/benchmark.py: batches above 32 do not fit.
PROGRAM = """
import json, pathlib, sys
word, *flags = sys.argv[1:]
given = dict(flag.split('=') for flag in flags)
batch = int(given['--config.data.batch_size'])
assert word == 'step' and given['--steps'] == '2'
if batch > 32 or given.get('--config.model.attention_impl') == 'xla':
  print('RESOURCE_EXHAUSTED: out of memory')
  sys.exit('and a trace')
figures = {
    'devices': 1, 'device': 'NVIDIA H200', 'jax': '0.11.2',
    'dtype': 'bfloat16', 'model_tflop_per_clip': 1.02, 'batch_size': batch,
    'original_tflop_per_clip': 1.0456,
    'clips_per_s': 10.0 * batch, 'peak_in_use_gib': None,
}
pathlib.Path(given['--output']).write_text(json.dumps(figures))
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
  path = tmp_path / 'program.py'
  path.write_text(PROGRAM)
  monkeypatch.setattr(child, 'PROGRAM', path)
  return path


def measured(folder):
  return {path.stem for path in folder.glob('*.json')}


def test_forms_first_then_batches_until_one_does_not_fit(program, tmp_path, capsys):
  folder = tmp_path / 'new' / 'h200'
  table = sweep.run(['--steps=2'], folder, [16, 32, 64, 128])
  assert measured(folder) == {'batch_16', 'batch_32', 'profile', *sweep.VARIANTS} - {
    'attention_xla'
  }
  figures = json.loads((folder / 'scanned.json').read_text())
  assert figures['batch_size'] == 16
  assert (folder / 'table.md').read_text() == table
  assert table.startswith(
    '1 x NVIDIA H200, jax 0.11.2, bfloat16, 1.02 TFLOP for a clip, of which '
    'the original makes 1.046.\n'
  )
  assert '| batch_16 | 16 | 160 |  |' in table
  assert table.endswith('Failed: attention_xla, batch_64.\n')
  said = capsys.readouterr().out
  assert 'RESOURCE_EXHAUSTED: out of memory' in said
  assert '1 of 11: batch_16, after 0 s' in said and '160 clips/s' in said
  assert said.index('profile,') < said.index('batch_32,')


def test_batches_without_room_are_not_tried(program, tmp_path, capsys):
  """0.5 GiB a clip and 2 of weights, of 20."""
  plan = "'planned_temporary_gib': 8, 'planned_argument_gib': 2, 'memory_gib': 20,"
  program.write_text(PROGRAM.replace("'devices': 1,", f"'devices': 1, {plan}"))
  sweep.run(['--steps=2'], tmp_path, [16, 32, 48])
  assert 'batch_32' in measured(tmp_path) and not list(tmp_path.glob('batch_48*'))
  said = capsys.readouterr().out
  assert 'batch 48 and more are left out: 26 GiB planned, 20 there' in said


def test_a_measurement_that_takes_too_long_is_given_up(program, tmp_path, capsys):
  program.write_text('import time\ntime.sleep(60)')
  with pytest.raises(ValueError, match='batch 16 failed'):
    sweep.run(['--steps=2'], tmp_path, [16], minutes_each=0.005)
  assert 'was ended after 0 s' in capsys.readouterr().out


def test_what_was_measured_is_kept_and_the_rest_goes_on(program, tmp_path, capsys):
  sweep.run(['--steps=2'], tmp_path, [16])
  times = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob('*.json')}
  program.write_text('raise SystemExit("must not run again")')
  (tmp_path / 'scanned.json').unlink()
  table = sweep.run(['--steps=2'], tmp_path, [16])
  assert table.endswith('Failed: attention_xla, scanned.\n')
  for path in tmp_path.glob('*.json'):
    assert path.stat().st_mtime_ns == times[path.name]
  assert 'batch_16: measured before' in capsys.readouterr().out


def test_no_measurement_begins_when_the_time_is_over(program, tmp_path, capsys):
  table = sweep.run(['--steps=2'], tmp_path, [16, 32], minutes=1e-9)
  assert not measured(tmp_path) and table == 'Nothing was measured.\n'
  assert 'call this again for the rest' in capsys.readouterr().out


def test_a_first_batch_that_fails_ends_it(program, tmp_path):
  with pytest.raises(ValueError, match='batch 64 failed; see'):
    sweep.run(['--steps=2'], tmp_path, [64, 128])
