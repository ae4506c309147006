"""Who may import whom: data flows one way, and TensorFlow only reads data."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# A module may import its own folder and whatever stands in an earlier line.
RANKS = (
  ('buckets',),
  ('lease',),
  ('batch', 'sharding', 'files', 'machine', 'encoded'),
  ('models', 'losses', 'contrastive', 'masking', 'metrics', 'data', 'flops'),
  ('tasks',),
  ('train',),
  ('evaluation', 'weights', 'memory'),
  ('serving', 'search'),
  ('api',),
)
# In the repository, but not in the wheel.
OUTSIDE = ('benchmarks', 'configs', 'examples', 'launch', 'tests')
# Within the second line nobody knows another, but for these.
FRIENDS = {'flops': {'models'}}
RANK = {name: i for i, names in enumerate(RANKS) for name in names}


def imported(path):
  """Yields (line, module) of every import in a file, nested ones too."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield from ((node.lineno, f'{node.module}.{alias.name}') for alias in node.names)


def files():
  return sorted((ROOT / 'alpro_jax').rglob('*.py'))


@pytest.mark.parametrize('path', files(), ids=lambda p: p.name)
def test_imports_go_one_way(path):
  own = path.relative_to(ROOT / 'alpro_jax').with_suffix('').parts[0]
  if own == '__init__':
    return
  for line, module in imported(path):
    assert module.split('.')[0] not in OUTSIDE, f'{path}:{line}: {module}'
    if not module.startswith('alpro_jax.'):
      continue
    other = module.split('.')[1]
    allowed = other == own or RANK[other] < RANK[own] or other in FRIENDS.get(own, ())
    assert allowed, f'{path}:{line}: {own} must not import {other}'


def modules(name):
  """Returns the modules of a file or folder of the library, dotted."""
  return [
    '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    for path in files()
    if path.relative_to(ROOT / 'alpro_jax').with_suffix('').parts[0] == name
  ]


def test_no_module_imports_itself_by_way_of_others():
  paths = {'.'.join(path.relative_to(ROOT).with_suffix('').parts): path for path in files()}
  graph = {
    name: {
      other
      for _, module in imported(path)
      for other in (module, module.rpartition('.')[0])
      if other in paths
    }
    for name, path in paths.items()
  }
  graphlib.TopologicalSorter(graph).prepare()  # Raises CycleError with the circle.


def import_without(missing, names):
  code = (
    f'import importlib, sys\n'
    f'sys.modules.update(dict.fromkeys({missing}))\n'
    f'for name in {names}: importlib.import_module(name)\n'
  )
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


def test_what_reads_no_frames_needs_neither_tensorflow_nor_pyav():
  names = [
    name
    for folder in (
      'models',
      'losses',
      'contrastive',
      'masking',
      'metrics',
      'tasks',
      'train',
      'weights',
      'serving',
    )
    for name in modules(folder)
  ]
  assert len(names) > 30
  import_without(
    ('tensorflow', 'tensorflow_datasets', 'array_record', 'av'),
    ['alpro_jax', *names, 'alpro_jax.evaluation.trained'],
  )


def test_texts_are_searched_for_without_tensorflow():
  import_without(
    ('tensorflow', 'tensorflow_datasets', 'array_record'), ['alpro_jax.api', *modules('search')]
  )


def test_a_step_without_what_only_a_run_needs():
  """Models, losses, tasks, the step and benchmarks need no clu either."""
  import_without(
    ('tensorflow', 'tensorflow_datasets', 'array_record', 'clu'),
    [
      *modules('models'),
      *modules('tasks'),
      'alpro_jax.train.step',
      'alpro_jax.train.state',
      'alpro_jax.train.optimizer',
      'benchmarks.step',
      'benchmarks.retrieval',
      'launch.benchmark',
    ],
  )
