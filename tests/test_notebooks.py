"""What is committed of the notebooks; tests/reliability/ runs them."""

import base64
import importlib.metadata
import pathlib
import re

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from colab import notebook, store_outputs
from tests import patience, tiny_run

FOLDER = tiny_run.ROOT / 'colab'
NAMES = ('evaluate', 'your_own_videos')


def read(name):
  return nbformat.read(FOLDER / f'{name}.ipynb', as_version=4)


@pytest.mark.parametrize('name', NAMES)
def test_what_is_committed(name):
  content = read(name)
  nbformat.validate(content)
  assert 'colab-badge.svg' in content.cells[0].source
  source = ''.join(cell.source for cell in content.cells)
  assert source.count("'ALPRO_REPOSITORY'") == 1
  text = (FOLDER / f'{name}.ipynb').read_text()
  # No path of a machine but Colab's.
  assert not re.search(r"""["'\s=(`]/(?!content/)\w+/""", text)
  for cell in content.cells:
    if cell.cell_type == 'code':
      assert not cell.metadata.get('execution')
      assert not any(out.output_type == 'error' for out in cell.outputs)
  tagged = [cell for cell in content.cells if 'parameters' in cell.metadata.get('tags', ())]
  assert len(tagged) == 1 and 'ALPRO_' in tagged[0].source


@pytest.mark.parametrize('name', NAMES)
def test_outputs_are_stored_and_the_first_comes_before_the_settings(name):
  cells = {cell.id: cell for cell in read(name).cells}
  ids = list(cells)
  assert ids.index('first') < ids.index('settings')
  without = {'code', 'settings', 'data', 'clips'}  # What they say depends on what is there.
  for cell in cells.values():
    assert cell.cell_type == 'markdown' or cell.id in without or cell.outputs, cell.id
  drawn = {'evaluate': ('first', 'recall'), 'your_own_videos': ('measure', 'search')}
  for cell in drawn[name]:
    assert len(pictures(cells[cell])) == 1
  figures = {'evaluate': ('evaluate', 't2v_r1'), 'your_own_videos': ('train', 'held out: of ')}
  cell, words = figures[name]
  assert words in said(cells[cell])


def test_a_notebook_needs_nothing_from_within_the_packages():
  """Names of the API, commands, and what draws."""
  source = '\n'.join(cell.source for cell in read('your_own_videos').cells)
  used = set(re.findall(r'^ *(?:import|from) +([\w.]+)', source, re.M))
  ours = {name for name in used if name.split('.')[0] in ('alpro_jax', 'configs', 'examples')}
  assert ours == {'alpro_jax'}


def test_stored_outputs_are_short_and_name_no_folder_of_this_machine():
  out = nbformat.v4.new_output
  cell = nbformat.v4.new_code_cell(
    outputs=[
      out('stream', text='Written: /here/there/x'),
      out('display_data', data={'text/html': 'x' * 200_000, 'text/plain': '<HTML>'}),
      out('display_data', data={'image/png': 'x' * 200_000}),
    ]
  )
  store_outputs.shorten(nbformat.v4.new_notebook(cells=[cell]), {'/here/': ''})
  stream, page, picture = cell.outputs
  assert stream.text == 'Written: there/x'
  assert page.data == {'text/plain': 'A page, which is shown when the cell runs.'}
  assert len(picture.data['image/png']) == 200_000


def test_only_what_is_missing_is_installed(monkeypatch):
  assert notebook.install() == []
  commands = []
  monkeypatch.setattr(
    notebook.importlib.util, 'find_spec', lambda name: None if name in ('av', 'clu') else name
  )

  def pip(command):
    (kept,) = [part.partition('=')[2] for part in command if part.startswith('--constraint=')]
    commands.append((command, pathlib.Path(kept).read_text().splitlines()))

  monkeypatch.setattr(notebook, '_stream', pip)
  assert notebook.install() == ['clu', 'av']
  ((command, kept),) = commands
  assert command[-2:] == ['clu', 'av']
  # Nothing that is there may change.
  for name in ('jax', 'jaxlib', 'numpy'):
    assert f'{name}=={importlib.metadata.version(name)}' in kept


def test_a_command_that_fails_says_why():
  with pytest.raises(RuntimeError, match='(?s)code 2.*--checkpoint is needed'):
    notebook.run('evaluate')


def execute(name, folder, where=FOLDER, **settings):
  """Runs a notebook on one device; returns its code cells by their ids."""
  environment = tiny_run.environment(folder) | {
    f'ALPRO_{name}': str(value) for name, value in settings.items()
  }
  content = read(name)
  NotebookClient(
    content,
    timeout=int(patience.seconds(600)),
    kernel_name='python3',
    resources={'metadata': {'path': str(where)}},
  ).execute(env=environment)
  return {cell.id: cell for cell in content.cells if cell.cell_type == 'code'}


def said(cell):
  return ''.join(out.text for out in cell.outputs if out.output_type == 'stream')


def pictures(cell):
  """Sizes (width, height) of the PNGs that a cell shows."""
  found = []
  for out in cell.outputs:
    if png := out.get('data', {}).get('image/png'):
      data = base64.b64decode(png)
      assert data.startswith(b'\x89PNG')
      found.append(tuple(int.from_bytes(data[at : at + 4], 'big') for at in (16, 20)))
  return found


def test_a_cell_that_fails_says_why(tmp_path):
  with pytest.raises(CellExecutionError, match='REPOSITORY is empty'):
    execute('evaluate', tmp_path, where=tmp_path)
