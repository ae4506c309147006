"""Runs a module of the tests in two processes that find each other."""

import os
import pathlib
import socket
import subprocess
import sys

from tests import patience

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run_two(module: str, outputs) -> None:
  """Runs `python -m tests.MODULE PORT INDEX OUTPUT` twice, until both end.

  Args:
    module: its name below tests.
    outputs: what each process writes.
  """
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  processes = [
    subprocess.Popen(
      [sys.executable, '-m', f'tests.{module}', str(port), str(index), str(output)],
      cwd=ROOT,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index, output in enumerate(outputs)
  ]
  try:
    for process in processes:
      messages, _ = process.communicate(timeout=patience.seconds(300))
      assert process.returncode == 0, messages[-3000:]
  finally:
    for process in processes:
      process.kill()
