"""Commands of launch/ run in this process, each with flags of its own."""

import contextlib
import io
import pathlib
import runpy
import sys
import warnings
from unittest import mock

from absl import flags

from launch import command

ROOT = pathlib.Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def _flags_of_its_own(script):
  """Sets aside the flags of programs that a test has imported."""
  known = flags.FLAGS
  aside = [
    (module, flag)
    for module, its in known.flags_by_module_dict().items()
    if module.startswith(('launch.', 'examples.')) and module != command.__name__
    for flag in list(its)
  ]
  for _, flag in aside:
    delattr(known, flag.name)
  values = {name: (known[name].value, known[name].present) for name in known}
  try:
    yield
  finally:
    for flag in list(known.flags_by_module_dict().get(script, ())):
      delattr(known, flag.name)
    for name in [name for name in known if name not in values]:
      delattr(known, name)  # Such as --config.train.steps, which --config has defined.
    for name, (value, present) in values.items():
      known[name].value, known[name].present = value, present
    for module, flag in aside:
      known[flag.name] = flag
      known.register_flag_by_module(module, flag)


def run(name: str, *options) -> int:
  """Runs launch/NAME.py to its end; returns the exit code."""
  script = str(ROOT / 'launch' / f'{name}.py')
  with (
    _flags_of_its_own(script),
    mock.patch.object(sys, 'argv', [script, *map(str, options)]),
    warnings.catch_warnings(),
  ):
    # So ml_collections reads a config that is a file's path.
    warnings.filterwarnings('ignore', 'the load_module', DeprecationWarning)
    try:
      runpy.run_path(script, run_name='__main__')
    except SystemExit as end:
      return end.code or 0
  raise AssertionError(f'{script} did not end by sys.exit')


def said(name: str, *options) -> tuple[int, str, str]:
  """Runs launch/NAME.py to its end; returns the exit code, stdout and stderr."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = run(name, *options)
  return code, out.getvalue(), err.getvalue()
