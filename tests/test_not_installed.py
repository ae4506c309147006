"""A command of a clone that is not installed says how to install it."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = ('__init__', 'command', 'not_installed', 'settle')
COMMANDS = sorted(p.stem for p in (ROOT / 'launch').glob('*.py') if p.stem not in SHARED)


def end(*arguments, cwd):
  """Runs Python without any package; returns the exit code and what it says."""
  done = subprocess.run(
    [sys.executable, '-S', '-E', *arguments], cwd=cwd, capture_output=True, text=True, timeout=60
  )
  return done.returncode, done.stderr


@pytest.mark.parametrize('name', COMMANDS)
def test_a_file_is_run(name, tmp_path):
  code, said = end(ROOT / 'launch' / f'{name}.py', '--help', cwd=tmp_path)
  assert code == 2 and said.count('\n') == 1
  assert 'alpro_jax is not installed for' in said and "No module named 'launch'" in said
  assert f'`make install` in {ROOT}' in said and f'`pip install -e {ROOT}`' in said


def test_a_module_is_run():
  code, said = end('-m', 'launch.main', cwd=ROOT)
  assert code == 2 and said.count('\n') == 1
  assert 'a package that alpro_jax needs is missing' in said and '`make install`' in said
