"""The comparison with PyTorch: turns, medians, ratios, refusals."""

import pytest

from benchmarks import child, compare_torch


def test_ratios_of_medians_by_turns(monkeypatch):
  seconds = {'jax': [3, 4], 'torch': [4, 6], 'torch.compile': [7, 7]}
  order = []

  def run(kind, batch_size, arguments):
    assert (batch_size, arguments) == (2, ['--steps=1'])
    order.append(kind)
    value = seconds[kind].pop(0)
    return {'cpu_s': value, 'step_s': value / 2, 'parameters': 5}

  monkeypatch.setattr(compare_torch, '_run', run)
  figures = compare_torch.compare(['--steps=1'], [2], rounds=2)
  assert order == list(compare_torch.KINDS) * 2
  assert figures['cpu_s/jax over torch/2'] == 0.7
  assert figures['step_s/jax over torch.compile/2'] == 0.5
  assert figures['parameters'] == 5


def test_models_of_other_sizes_are_refused(monkeypatch):
  def run(kind, *unused):
    return {'cpu_s': 1, 'step_s': 1, 'parameters': len(kind)}

  monkeypatch.setattr(compare_torch, '_run', run)
  with pytest.raises(RuntimeError, match='The models differ'):
    compare_torch.compare([], [2], rounds=1)


def test_a_process_that_fails_says_why(monkeypatch):
  monkeypatch.setattr(child, 'PROGRAM', 'no_such_file.py')
  with pytest.raises(RuntimeError, match="can't open file"):
    compare_torch.compare([], [2], rounds=1)
