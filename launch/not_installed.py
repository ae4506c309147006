"""Ends a command in one sentence where this project is not installed.

Imported by a command that could not import `launch`: this file lies beside it.
"""

import pathlib
import sys

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PROBLEM = sys.exc_info()[1] or 'a package that alpro_jax needs is missing'

print(
  f'error: alpro_jax is not installed for {sys.executable} ({_PROBLEM}); run `make install` in '
  f'{_ROOT} and start the command by .venv/bin/python, or run `pip install -e {_ROOT}`.',
  file=sys.stderr,
)
sys.exit(2)
