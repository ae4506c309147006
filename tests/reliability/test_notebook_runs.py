"""The notebooks, from top to bottom, on what is made here in seconds."""

import html
import json
import re
import runpy

import jax
import optax
import pytest

import alpro_jax
from alpro_jax import sharding
from alpro_jax.data import tokens
from alpro_jax.serving.export import write_params
from alpro_jax.tasks.base import TextInfo
from alpro_jax.tasks.registry import get_task
from alpro_jax.train import checkpoints, identity
from alpro_jax.train.state import create_state
from tests import test_image_text, tiny_run
from tests.test_notebooks import execute, pictures, said


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


def page(cell):
  """The page that a cell shows in its frame."""
  (out,) = [out.data['text/html'] for out in cell.outputs if 'text/html' in out.get('data', {})]
  return html.unescape(re.search(r'srcdoc="(.*?)" onload', out, re.S)[1])


def evaluate(tiny, **settings):
  """Runs evaluate.ipynb on the set and the videos."""
  data = {'DATA': tiny / 'set', 'SPLIT': 'train', 'VIDEOS': tiny / 'world' / 'train' / 'videos'}
  return execute('evaluate', tiny, **data, **settings)


@pytest.mark.slow
def test_evaluate(tiny):
  cells = evaluate(tiny, CHECKPOINT=tiny / 'taken', OUTPUT=tiny / 'shown', STYLE='full')
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


@pytest.mark.reliability
def test_evaluate_of_image_text_weights(tiny):
  """Converted and not trained, so that nothing fuses."""
  weights = test_image_text.write(tiny / 'clip', test_image_text.make_params()[1])
  test_image_text.run(weights, tiny / 'towers', frames=2)
  cells = evaluate(tiny, CHECKPOINT=tiny / 'towers', OUTPUT=tiny / 'shown_towers')
  assert 'similarity/t2v_r1' in said(cells['evaluate'])
  assert 'By similarity' in said(cells['search'])
  assert 'a similarity of' in said(cells['explain'])
  assert 'is left out of the text' in page(cells['explain'])


@pytest.mark.reliability
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
