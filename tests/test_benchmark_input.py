"""What is made up to read has the look of a set, and is measured whole."""

import json

import numpy as np
import pytest

from benchmarks import input as reading
from configs import pretrain


@pytest.mark.slow
def test_measures_every_part(monkeypatch):
  monkeypatch.setattr(reading, 'WINDOWS', 1)
  monkeypatch.setattr(reading, 'CLIPS', 2)
  config = pretrain.get_config('demo')
  figures = reading.measure(config, data='', clips=2, needed=1e9)
  assert figures['clips'] == 2
  assert figures['what_limits'] == 'input'
  assert figures['needed_cores'] > 1000
  assert 250 < figures['record_kb'] < 400
  parts = [name for name in figures if name.startswith('cpu_ms/part/')]
  assert len(parts) == 8
  for threads in ('one thread', 'all threads'):
    for kind in ('plain', 'augmented'):
      assert figures[f'clips_per_s_and_core/{kind}/{threads}'] > 0


def test_made_up_clips_move_and_have_detail():
  clip = reading.make_clip(np.random.default_rng(0)).astype(float)
  assert clip.shape == (20, 256, 340, 3)
  assert 40 < clip.std() < 70
  # The picture moves by 6 and 3 pixels a frame, and is no noise.
  np.testing.assert_array_equal(clip[1, :-3, :-6], clip[0, 3:, 6:])
  assert np.abs(np.diff(clip[0], axis=1)).mean() < 8


def test_reads_what_a_step_takes(tmp_path):
  path = tmp_path / 'step.json'
  path.write_text(json.dumps({'clips_per_s': 380.5}))
  assert reading.read_needed(path) == 380.5
  path.write_text('{}')
  with pytest.raises(ValueError, match='has no clips_per_s'):
    reading.read_needed(path)
