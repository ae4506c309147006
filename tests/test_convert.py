"""launch/convert.py as a user runs it, on files of the recorded model."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from alpro_jax.data import tokens
from alpro_jax.evaluation import trained
from alpro_jax.train import checkpoints
from alpro_jax.weights import files, original
from tests import original_files, tiny_run


def convert(*options, fails=False):
  """Runs the command; returns what it printed."""
  done = subprocess.run(
      [sys.executable, tiny_run.ROOT / 'launch' / 'convert.py', *options],
      capture_output=True, text=True, timeout=300,
      env={**os.environ, 'PYTHONPATH': str(tiny_run.ROOT)})
  assert done.returncode == (2 if fails else 0), done.stdout + done.stderr
  return done.stderr if fails else done.stdout


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('convert')
  words = len(original_files.student()[
      'text_encoder.bert.embeddings.word_embeddings.weight'])
  pieces = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
  pieces += [f'w{i}' for i in range(words - len(pieces))]
  (folder / 'vocab.txt').write_text('\n'.join(pieces) + '\n')
  return folder


def write(path, state):
  files.write_tensors(path, state)
  return path


def check_equal(path, expected):
  found = {n: t.read() for n, t in files.open_tensors(path).items()}
  assert list(found) == list(expected)
  for name, array in found.items():
    assert array.dtype == expected[name].dtype, name
    np.testing.assert_array_equal(array, expected[name], err_msg=name)


def stored(workdir):
  """(meta, config of the model, flat parameters) of a checkpoint."""
  model = trained.load(workdir)
  params = flatten_dict(jax.device_get(model.params), sep='/')
  return checkpoints.load_meta(workdir), model, params


def test_a_pretrained_file_there_and_back(folder):
  """Two checkpoints that need no flags, and from them the same file."""
  state = original_files.pretrain()
  source = write(folder / 'pretrain.safetensors', state)
  said = convert(
      f'--original={source}', f'--tokenizer={folder}/vocab.txt', '--heads=4',
      f'--output={folder}/alpro')
  assert 'visual_encoder.model.head.weight: classes of Kinetics' in said
  meta, model, params = stored(folder / 'alpro')
  assert meta['task'] == 'pretrain' and meta['step'] == 0
  assert model.config.prompter.checkpoint == f'{folder}/alpro_prompter'
  assert model.config.data.frames == model.model.config.video.frames == 4
  assert model.config.data.image_size == 64
  assert model.model.config.entities == original_files.ENTITIES
  assert meta['tokenizer']['digest'] == tokens.load_tokenizer(
      folder / 'vocab.txt').digest
  # What tests/test_parity.py computes with.
  expected = flatten_dict(original.from_original(
      original_files.student(), model.model.config), sep='/')
  assert set(params) == set(expected)
  for path, array in params.items():
    np.testing.assert_array_equal(array, expected[path], err_msg=path)

  meta, prompter, params = stored(folder / 'alpro_prompter')
  assert meta['task'] == 'prompter' and prompter.model.config.entities == 0
  np.testing.assert_array_equal(
      params['temperature'], state['prompter.temp'])

  convert(
      f'--checkpoint={folder}/alpro', f'--prompter={folder}/alpro_prompter',
      f'--output={folder}/back.safetensors')
  check_equal(folder / 'back.safetensors', state)
  said = convert(
      f'--checkpoint={folder}/alpro', f'--output={folder}/student.safetensors')
  assert 'pass --prompter' in said
  check_equal(folder / 'student.safetensors', {
      n: a for n, a in state.items() if not n.startswith('prompter.')})
  error = convert(
      f'--original={source}', f'--tokenizer={folder}/vocab.txt', '--heads=4',
      f'--output={folder}/alpro', fails=True)
  assert 'holds checkpoints already' in error


def test_question_answering_there_and_back(folder):
  """With fewer answers than labels, names of LAVIS and half precision."""
  state = {
      name: array.astype(np.float16) if array.dtype == np.float32 else array
      for name, array in original_files.lavis(
          original_files.question_answering()).items()}
  source = write(folder / 'qa.safetensors', state)
  (folder / 'ans2label.json').write_text(
      json.dumps({f'answer {i}': i for i in range(12)}))
  said = convert(
      f'--original={source}', f'--tokenizer={folder}/vocab.txt', '--heads=4',
      f'--answers={folder}/ans2label.json', f'--output={folder}/qa')
  assert 'the last 3 of 15 labels' in said
  meta, model, params = stored(folder / 'qa')
  assert model.answers_questions and len(model.answers) == 12
  assert params['answer_head/out/kernel'].shape[1] == 12
  assert meta['config']['data']['text'] == 'questions'
  convert(f'--checkpoint={folder}/qa', f'--output={folder}/qa2.safetensors')
  check_equal(folder / 'qa2.safetensors', state)


def test_backbones_make_a_start(folder):
  vit = folder / 'vit.npz'
  np.savez(vit, **original_files.vit_npz())
  bert = folder / 'bert'
  bert.mkdir()
  write(bert / 'model.safetensors', original_files.bert())
  (bert / 'vocab.txt').write_text((folder / 'vocab.txt').read_text())
  (bert / 'config.json').write_text('{"num_attention_heads": 4}')
  said = convert(
      f'--vit={vit}', f'--bert={bert}', '--frames=2', '--image_size=96',
      f'--output={folder}/start')
  assert 'video_projection: all 2' in said
  assert 'positions: 16 to 36 rows' in said
  meta, model, params = stored(folder / 'start')
  assert model.model.config.video.heads == model.model.config.text.heads == 4
  assert model.config.data.image_size == 96 and model.config.data.frames == 2
  assert params['video_encoder/positions'].shape == (36, 64)
  assert not params['video_encoder/block0/temporal_fc/kernel'].any()
  for part in ('query/kernel', 'out/bias'):
    np.testing.assert_array_equal(
        params[f'video_encoder/block1/temporal_attention/{part}'],
        params[f'video_encoder/block1/attention/{part}'])
  student = original_files.student()
  np.testing.assert_array_equal(
      params['fusion_encoder/layer3/mlp/fc2/bias'],
      student['text_encoder.bert.encoder.layer.3.output.dense.bias'])
  listed = meta['converted']['from the seed']
  assert 'match_head: all 2' in listed and 'temperature ()' in listed


def test_mistakes_are_one_line(folder):
  state = original_files.retrieval()
  name = 'text_encoder.bert.encoder.layer.2.output.dense.bias'
  state['surprise'] = state.pop(name)
  source = write(folder / 'wrong.safetensors', state)
  for options, message in (
      ((f'--original={source}', f'--tokenizer={folder}/vocab.txt', '--heads=4'),
       f'1 missing: {name}. 1 not known: surprise'),
      ((f'--original={source}',), '--tokenizer is needed'),
      ((), 'exactly one of --original'),
  ):
    error = convert(*options, f'--output={folder}/wrong', fails=True)
    assert message in error and error.count('\n') == 1, error
  assert not (folder / 'wrong').exists()
