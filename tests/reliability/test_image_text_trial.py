"""The trial of image-text weights, small: trained, written, converted, fine-tuned, measured."""

import json
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.reliability

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_trial_runs_and_goes_on_where_it_was(tmp_path):
  page, results = tmp_path / 'page.md', tmp_path / 'results'
  line = [sys.executable, '-m', 'examples.shapes.image_text', f'--output={tmp_path / "runs"}']
  line += [f'--results={results}', f'--page={page}', '--seeds=0', '--quick']
  first = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
  assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-2000:]
  found = json.loads((results / 'seed0.json').read_text())
  assert found['made']['quick'] and len(found['rows']) == 9
  assert all(0 <= value <= 100 for row in found['rows'].values() for value in row.values())
  assert page.read_text().count('half way from the start') == 3
  # One row is lost: its run is there, and is asked again.
  lost = found['rows'].pop('lora')
  (results / 'seed0.json').write_text(json.dumps(found))
  again = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
  assert again.returncode == 0, again.stderr[-2000:]
  assert json.loads((results / 'seed0.json').read_text())['rows']['lora'] == lost
  assert 'first step done' not in again.stderr
