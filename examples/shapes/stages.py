"""Runs the commands of this repository as the stages of one program."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from typing import NamedTuple

from absl import logging

from alpro_jax import files

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Stage(NamedTuple):
  """A part of the work: what, how long, by which command ('' if by none)."""

  name: str
  seconds: float
  command: str = ''
  kept: bool = False  # Done before.


class Stages:
  """Runs commands once, and remembers how long each took."""

  def __init__(self, output: pathlib.Path, total: int):
    self._file = output / 'stages.json'
    self._done = {}
    if self._file.exists():
      self._done = json.loads(self._file.read_text())
    self._number, self._total = 0, total
    self.shown: list[Stage] = []

  def run(self, name: str, *command: str) -> None:
    """Runs a Python command unless the same one is done already."""
    line = shlex.join(('python', *command))
    self._announce(name)
    print(f'$ {line}', flush=True)
    known = self._done.get(name)
    if not known or known['command'] != line:
      known = {'command': line, 'seconds': 0.0, 'done': False}
    if known['done']:
      print(f'done before, {known["seconds"]:.0f} s', flush=True)
      self.shown.append(Stage(name, known['seconds'], line, kept=True))
      return
    start = time.monotonic()
    code = _wait(command)
    seconds = time.monotonic() - start
    # An interrupted command goes on where it was: its time adds up.
    known['seconds'] += seconds
    known['done'] = not code
    self._done[name] = known
    files.write_text(self._file, json.dumps(self._done, indent=1) + '\n')
    if code:
      raise SystemExit(
        f'demo: "{name}" ended with code {code} after {seconds:.0f} s. Give '
        'the same command again to go on from here.'
      )
    self.finish(name, known['seconds'], line)

  def finish(self, name, seconds, line=''):
    print(f'{seconds:.0f} s', flush=True)
    self.shown.append(Stage(name, seconds, line))

  def _announce(self, name):
    self._number += 1
    print(f'\n[{self._number}/{self._total}] {name}', flush=True)

  def begin(self, name):
    self._announce(name)
    return time.monotonic()


def script(name: str) -> str:
  """The path of a command of this repository, from here."""
  return os.path.relpath(ROOT / 'launch' / f'{name}.py')


def claim(output: pathlib.Path, options: dict) -> None:
  """Notes the options in the folder.

  Raises:
    ValueError: if it was begun with other options.
  """
  file = output / 'options.json'
  known = json.loads(file.read_text()) if file.exists() else options
  if known != options:
    raise ValueError(
      f'{output} was begun with {known}, and this is {options}; choose '
      'another --output, or remove that folder.'
    )
  file.write_text(json.dumps(options) + '\n')


def keep_off_docs(**places: pathlib.Path) -> None:
  """Refuses to write what --quick makes beside the figures that are committed.

  Args:
    **places: paths, by the flags that give them.
  Raises:
    ValueError: if one is in docs/.
  """
  for flag, place in places.items():
    if place.resolve().is_relative_to(ROOT / 'docs'):
      raise ValueError(
        f'--{flag}={place} is in docs/, and what --quick measures means nothing: leave out '
        f'--{flag}, or name another place.'
      )


def log_to_console() -> None:
  """Shows progress lines, without the chatter of other libraries."""
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)

  def ours(record):
    return record.levelno > 30 or 'alpro_jax' in record.pathname

  logging.get_absl_handler().addFilter(ours)


def _wait(command):
  """Runs a command to its end; Ctrl-C lets it save first."""
  environment = dict(os.environ)
  environment['PYTHONPATH'] = os.pathsep.join(
    filter(None, (str(ROOT), environment.get('PYTHONPATH')))
  )
  process = subprocess.Popen((sys.executable, *command), env=environment)
  previous = signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGTERM))
  try:
    while True:
      try:
        return process.wait()
      except KeyboardInterrupt:
        pass  # The child got it as well, and saves.
  finally:
    signal.signal(signal.SIGTERM, previous)
