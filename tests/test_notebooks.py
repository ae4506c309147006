"""The notebooks, from top to bottom, on what is made here in seconds."""

import base64
import html
import importlib.metadata
import json
import pathlib
import re
import runpy

import jax
import nbformat
import optax
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import alpro_jax
from alpro_jax import sharding
from alpro_jax.data import tokens
from alpro_jax.serving.export import write_params
from alpro_jax.tasks.base import TextInfo
from alpro_jax.tasks.registry import get_task
from alpro_jax.train import checkpoints, identity
from alpro_jax.train.state import create_state
from colab import notebook, store_outputs
from tests import patience, test_image_text, tiny_run

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


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """A set, videos, and random weights that eight devices wrote in parts."""
  folder = tmp_path_factory.mktemp('notebooks')
  tiny_run.make_inputs(folder, clips=24)
  config = runpy.run_path(folder / 'tiny.py')['get_config']()
  config.task = 'retrieval'
  config.loss.mlm = config.loss.pem = 0.0
  config.eval.scoring = 'auto'
  tokenizer = tokens.load_tokenizer(config.data.tokenizer)
  mesh = sharding.make_mesh(2, 4)
  text = TextInfo(tokenizer.special, tokenizer.vocab_size)
  task = get_task(config, text, mesh)
  state = create_state(task.init, optax.scale_by_adam(), mesh, seed=0)
  assert mesh.size == 8 and not all(
    x.sharding.is_fully_replicated for x in jax.tree.leaves(state.params)
  )
  store = checkpoints.Checkpoints(folder / 'run')
  store.save(state, identity.describe(config, task, tokenizer, []))
  store.close()
  write_params(folder / 'run', folder / 'taken', tokenizer=config.data.tokenizer)
  return folder


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


def page(cell):
  """The page that a cell shows in its frame."""
  (out,) = [out.data['text/html'] for out in cell.outputs if 'text/html' in out.get('data', {})]
  return html.unescape(re.search(r'srcdoc="(.*?)" onload', out, re.S)[1])


def test_a_cell_that_fails_says_why(tmp_path):
  with pytest.raises(CellExecutionError, match='REPOSITORY is empty'):
    execute('evaluate', tmp_path, where=tmp_path)


@pytest.mark.slow
def test_evaluate(tiny):
  videos = tiny / 'world' / 'train' / 'videos'
  cells = execute(
    'evaluate',
    tiny,
    CHECKPOINT=tiny / 'taken',
    DATA=tiny / 'set',
    SPLIT='train',
    VIDEOS=videos,
    OUTPUT=tiny / 'shown',
    STYLE='full',
  )
  assert 'on cpu 0\n' in said(cells['load'])
  assert 'taken, step 0' in said(cells['load'])
  figures = dict(re.findall(r'^(\S+) +([\d.]+) +[\d.]+ to [\d.]+$', said(cells['evaluate']), re.M))
  card = json.loads((tiny / 'shown' / 'card' / 'card.json').read_text())
  for name in ('t2v_r1', 'v2t_r10', 'similarity/t2v_r1'):
    value = card['metrics'][name]
    assert float(figures[name]) == pytest.approx(value['value'], abs=0.051)
    assert value['low'] <= value['value'] <= value['high']
  ((width, height),) = pictures(cells['recall'])
  assert width > 500 and height > 300
  assert 'data:image/png' in page(cells['card'])
  assert '24 of 24 videos' in said(cells['index'])
  gallery = page(cells['search'])
  assert gallery.count('data:image/jpeg') == 3 * 6
  explained = page(cells['explain'])
  assert 'What each word rests on' in explained
  assert explained.count('heat map of') >= 3


@pytest.mark.slow
def test_evaluate_of_image_text_weights(tiny):
  """Converted and not trained, so that nothing fuses."""
  weights = test_image_text.write(tiny / 'clip', test_image_text.make_params()[1])
  test_image_text.run(weights, tiny / 'towers', frames=2)
  cells = execute(
    'evaluate',
    tiny,
    CHECKPOINT=tiny / 'towers',
    DATA=tiny / 'set',
    SPLIT='train',
    VIDEOS=tiny / 'world' / 'train' / 'videos',
    OUTPUT=tiny / 'shown_towers',
  )
  assert 'similarity/t2v_r1' in said(cells['evaluate'])
  assert 'By similarity' in said(cells['search'])
  assert 'a similarity of' in said(cells['explain'])
  assert 'is left out of the text' in page(cells['explain'])


@pytest.mark.slow
def test_your_own_videos(tiny):
  videos = tiny / 'world' / 'train' / 'videos'
  (videos / 'broken.mp4').write_text('no video')
  captions = (tiny / 'world' / 'train' / 'captions.jsonl').read_text()
  (tiny / 'captions.jsonl').write_text(
    captions
    + ''.join(
      json.dumps({'video': name, 'caption': 'a red disc'}) + '\n'
      for name in ('broken.mp4', 'nowhere.mp4')
    )
  )
  cells = execute(
    'your_own_videos',
    tiny,
    VIDEOS=videos,
    CAPTIONS=tiny / 'captions.jsonl',
    START=tiny / 'run',
    STEPS=40,
    OUTPUT=tiny / 'own',
  )
  assert len(re.findall(r'^ *0\.\d{3} .*\.mp4$', said(cells['first']), re.M)) == 3
  left_out = said(cells['prepare'])
  assert 'broken.mp4' in left_out and 'nowhere.mp4' in left_out
  assert 'step 40 of 40' in said(cells['train'])
  assert 'held out: of 4 videos' in said(cells['train'])
  ((width, height),) = pictures(cells['measure'])
  assert width > 500 and height > 250
  card = json.loads((tiny / 'own' / 'card' / 'card.json').read_text())
  assert card['checkpoint']['step'] == 40 and card['items']['videos'] == 4
  assert 'data:image/png' in page(cells['card'])
  assert '24 videos below' in said(cells['index'])
  assert 'left out: broken.mp4: unreadable' in said(cells['index'])
  assert len(pictures(cells['search'])) == 1
  assert page(cells['page']).count('data:image/jpeg') == 6
  # Of 20 clips, with a tokenizer of letters, a text is far if most of its letters are new.
  assert 'far from training: ' in said(cells['page'])
  (far,) = alpro_jax.load(tiny / 'own' / 'run').embed_texts(['yyyy']).far
  assert 'never occurred in training' in far
  assert 'What each word rests on' in page(cells['explain'])
  same = re.search(r'\[\[ *(\S+)\]\] as before: (\S+)', said(cells['save']))
  assert float(same[1]) == pytest.approx(float(same[2]), abs=0.02)
