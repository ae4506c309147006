"""Who may import whom: data flows one way, and TensorFlow only reads data."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# A module may import its own folder and whatever stands in an earlier line.
RANKS = (
    ('batch', 'sharding', 'files'),
    ('models', 'losses', 'contrastive', 'masking', 'metrics', 'data', 'flops'),
    ('tasks', 'weights'),
    ('train',),
    ('evaluation',),
    ('serving', 'search'),
)
# Within the second line nobody knows another, but for these.
FRIENDS = {'flops': {'models'}}
RANK = {name: i for i, names in enumerate(RANKS) for name in names}


def imported(path):
  """Yields (line, module) of every import in a file, nested ones too."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield from (
          (node.lineno, f'{node.module}.{alias.name}') for alias in node.names
      )


def files():
  return sorted((ROOT / 'alpro_jax').rglob('*.py'))


@pytest.mark.parametrize('path', files(), ids=lambda p: p.name)
def test_imports_go_one_way(path):
  own = path.relative_to(ROOT / 'alpro_jax').with_suffix('').parts[0]
  if own == '__init__':
    return
  for line, module in imported(path):
    if not module.startswith('alpro_jax.'):
      continue
    other = module.split('.')[1]
    allowed = (
        other == own
        or RANK[other] < RANK[own]
        or other in FRIENDS.get(own, ())
    )
    assert allowed, f'{path}:{line}: {own} must not import {other}'


def test_a_run_without_tensorflow():
  """Models, losses, tasks, the step and benchmarks never need it."""
  code = '''
import sys
for name in ('tensorflow', 'tensorflow_datasets', 'clu', 'array_record'):
  sys.modules[name] = None
import alpro_jax.tasks.pretrain, alpro_jax.tasks.prompter
import alpro_jax.train.step, alpro_jax.train.state, alpro_jax.train.optimizer
import benchmarks.step, benchmarks.retrieval
import launch.benchmark
'''
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)
