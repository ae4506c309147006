"""Runs notebooks from top to bottom and stores what they show.

  python -m colab.store_outputs evaluate

Whole pages, which hold pictures by the hundred, are left out, and so is where the code
lies on this machine.
"""

import argparse
import os
import pathlib
import tempfile

import nbformat
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).resolve().parent
_LONGEST = 100_000  # Of one output, in characters.


def store(name: str, output: str) -> None:
  """Runs a notebook of this folder and writes it with its outputs.

  Args:
    name: without the suffix.
    output: folder for what it writes.
  """
  path = FOLDER / f'{name}.ipynb'
  content = nbformat.read(path, as_version=4)
  client = NotebookClient(
    content,
    kernel_name='python3',
    record_timing=False,
    coalesce_streams=True,
    resources={'metadata': {'path': FOLDER}},
  )
  client.execute(env={**os.environ, 'ALPRO_OUTPUT': output})
  shorten(content, {f'{FOLDER.parent}/': '', output: 'runs/notebook'})
  nbformat.write(content, path)


def shorten(content, words: dict[str, str]) -> None:
  """Replaces words in all outputs, and long pages by a line that says so."""
  for cell in content.cells:
    for out in cell.get('outputs', ()):
      if 'text' in out:
        out.text = _replace(out.text, words)
      data = out.get('data', {})
      for kind in [kind for kind in data if kind.startswith('text/')]:
        data[kind] = _replace(data[kind], words)
        if len(data[kind]) > _LONGEST:
          del data[kind]
          data['text/plain'] = 'A page, which is shown when the cell runs.'


def _replace(text, words):
  for old, new in words.items():
    text = text.replace(old, new)
  return text


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  names = sorted(path.stem for path in FOLDER.glob('*.ipynb'))
  parser.add_argument('notebooks', nargs='+', choices=names)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    for chosen in args.notebooks:
      store(chosen, folder)


if __name__ == '__main__':
  main()
