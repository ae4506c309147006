"""Texts of files and of prepared sets, for tokenizers and entity lists."""

import json

import pytest

from alpro_jax.data import captions, prepare, sources
from tests import small_videos


def test_files(tmp_path):
  jsonl, csv, txt = (tmp_path / f'a.{end}' for end in ('jsonl', 'csv', 'txt'))
  jsonl.write_text(
    ''.join(json.dumps({'video': f'{i}.mp4', 'caption': f'clip {i}'}) + '\n' for i in range(3))
  )
  csv.write_text('video,caption,split\na,one,\nb,two,test\n')
  txt.write_text('one\n\n two \n')
  assert captions.read_all([jsonl]) == ['clip 0', 'clip 1', 'clip 2']
  assert captions.read_all([csv]) == ['one']
  assert captions.read_all([csv, txt], 'test') == ['one', 'two', 'one', 'two']
  txt.write_text('\n')
  with pytest.raises(ValueError, match="a.txt: no caption in split 'train'"):
    captions.read_all([txt])


def test_a_tokenizer_reads_questions_and_an_entity_list_does_not(tmp_path):
  small_videos.write_video(tmp_path / 'a.mp4', frames=1)
  source = sources.read_folder(
    small_videos.write_captions(tmp_path, [{'video': 'a.mp4', 'caption': 'a dog'}]),
    small_videos.write_questions(tmp_path, [('a.mp4', 'what is it', 'dog')]),
  )
  prepare.prepare(source, tmp_path, tmp_path / 'set', num_workers=1, options=prepare.Options(fps=0))
  assert captions.read_all([tmp_path / 'set']) == ['a dog']
  assert captions.read_all([tmp_path / 'set'], questions=True) == ['a dog', 'what is it', 'dog']


def test_only_newlines_end_a_caption(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_bytes('\ufeffa dog\u2028swims\r\na\rcat\x0bruns\n'.encode())
  assert captions.read_all([path]) == ['a dog\u2028swims', 'a\rcat\x0bruns']
  path.write_bytes(b'\xff')
  with pytest.raises(ValueError, match='a.txt is not UTF-8'):
    captions.read_all([path])
