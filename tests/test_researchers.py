"""The worked examples of docs/research.md, run as they stand on the page."""

import pathlib
import re

from alpro_jax.tasks import registry

PAGE = pathlib.Path(__file__).parents[1] / 'docs/research.md'


def run_section(title, names):
  """Runs the Python of one section; `names` are given to it and taken from it."""
  section = PAGE.read_text().split(f'\n## {title}\n')[1].split('\n## ')[0]
  code = re.findall(r'```python\n(.*?)```', section, re.S)
  assert code, f'{PAGE} has no Python under {title!r}'
  for block in code:
    exec(compile(block, f'{PAGE}: {title}', 'exec'), names)
  return names


def test_a_loss_and_a_task_of_ones_own(monkeypatch):
  monkeypatch.setattr(registry, 'TASKS', dict(registry.TASKS))
  names = run_section('A task', run_section('A loss', {'__name__': 'triplet'}))
  assert int(names['now'].step) == 10
