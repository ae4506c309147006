"""What is started as python -m MODULE says how, and does nothing else, when it is asked to."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
STARTED = sorted(
  path.relative_to(ROOT)
  for folder in ('benchmarks', 'colab', 'examples')
  for path in (ROOT / folder).rglob('*.py')
  if "if __name__ == '__main__':" in path.read_text()
)


@pytest.mark.slow
@pytest.mark.parametrize('path', STARTED, ids=str)
def test_a_module_explains_itself(path):
  module = '.'.join(path.with_suffix('').parts).removesuffix('.__main__')
  done = subprocess.run(
    [sys.executable, '-m', module, '--help'],
    cwd=ROOT,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0 and not done.stderr
  # By argparse, or by absl with the options of the module itself.
  assert f'usage: {path.name}' in done.stdout or module in done.stdout
