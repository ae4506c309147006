"""Measurements by launch/benchmark.py in processes of their own.

Each has the whole machine and its memory, and leaves nothing to the next.
"""

import json
import os
import pathlib
import subprocess
import sys

PROGRAM = pathlib.Path(__file__).parents[1] / 'launch/benchmark.py'


def measure(
  word: str,
  arguments: list[str],
  output: pathlib.Path,
  environment: dict[str, str] | None = None,
  limit_s: float | None = None,
) -> dict:
  """Runs `launch/benchmark.py WORD` and returns its figures.

  Args:
    word: what to measure.
    arguments: its flags but for --output.
    output: the JSON file to write; beside it goes NAME.log.
    environment: variables to add to those of this process.
    limit_s: seconds after which it is ended.
  Raises:
    RuntimeError: with the line of the log that says why it failed.
  """
  log = output.with_suffix('.log')
  with log.open('w') as file:
    try:
      done = subprocess.run(
        [sys.executable, str(PROGRAM), word, *arguments, f'--output={output}'],
        stdout=file,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(environment or {})},
        timeout=limit_s,
      )
    except subprocess.TimeoutExpired as error:
      raise RuntimeError(f'was ended after {limit_s:.0f} s') from error
  if done.returncode:
    lines = [line for line in log.read_text().splitlines() if line.strip()] or ['']
    why = next((line for line in lines if 'RESOURCE_EXHAUSTED' in line), lines[-1])
    raise RuntimeError(f'ended with {done.returncode}: {why[:500]}')
  return json.loads(output.read_text())
