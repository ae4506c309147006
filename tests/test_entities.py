"""Entities: counting, plurals, the file and the two launchers."""

import json
import runpy
import sys

import pytest

from alpro_jax.data import entities, tokens

CAPTIONS = [
    'A dog runs after two dogs', 'Dogs in New York', 'a woman in a dress',
    'two dresses and 4k footage', 'Cats, cats! http://x.com/a <person>',
    'the footage of a dog']


def test_counts_by_hand():
  counted = entities.count_entities(CAPTIONS, 20)
  assert counted[0] == ('dog', 4)
  assert dict(counted)['dress'] == 2
  assert dict(counted)['cats'] == 2  # No singular here to join.
  assert dict(counted)['footage'] == 2
  names = [name for name, _ in counted]
  assert not {'dres', 'glas', '4k', 'person', 'http'} & set(names)
  counts = [(-count, name) for name, count in counted]
  assert counts == sorted(counts)


def test_stop_words_and_limit():
  counted = entities.count_entities(CAPTIONS, 2, stop_words=['Footage', 'cats'])
  assert counted == [('dog', 4), ('dress', 2)]
  with pytest.raises(ValueError, match='must be at least 1'):
    entities.count_entities(CAPTIONS, 0)


def test_the_file_goes_there_and_back(tmp_path):
  path = tmp_path / 'new' / 'entities.txt'
  entities.write_entities([('dog', 4), ('dress', 2), ('cat', 1)], path)
  assert path.read_text() == 'dog 4\ndress 2\ncat 1\n'
  assert entities.read_entities(path, 2) == ['dog', 'dress']


def test_refuses_files_that_would_corrupt_the_prompts(tmp_path):
  path = tmp_path / 'entities.txt'
  with pytest.raises(FileNotFoundError, match='set prompter.entities'):
    entities.read_entities(path, 2)
  path.write_text('dog 4\ndress 2\n')
  with pytest.raises(ValueError, match='has 2 lines, 3 entities are wanted'):
    entities.read_entities(path, 3)
  path.write_text('dog 4\n\ndress 2\n')
  with pytest.raises(ValueError, match='entities.txt:2 is blank'):
    entities.read_entities(path, 3)
  path.write_text('dog 4\ncat 3\ndog 2\n')
  with pytest.raises(ValueError, match="txt:3 repeats 'dog' of line 1"):
    entities.read_entities(path, 3)


def write_jsonl(path, texts):
  path.write_text(''.join(
      json.dumps({'video': f'{i}.mp4', 'caption': text}) + '\n'
      for i, text in enumerate(texts)))


def launch(monkeypatch, script, *flags):
  monkeypatch.setattr(sys, 'argv', [script, *map(str, flags)])
  runpy.run_path(script, run_name='__main__')


def test_launchers(tmp_path, monkeypatch, capsys):
  write_jsonl(tmp_path / 'a.jsonl', CAPTIONS * 3)
  launch(monkeypatch, 'launch/entities.py',
         f'--captions={tmp_path}/a.jsonl', f'--output={tmp_path}/e.txt',
         '--limit=3', '--stop_words=footage')
  assert entities.read_entities(tmp_path / 'e.txt', 3)[0] == 'dog'
  launch(monkeypatch, 'launch/tokenizer.py',
         f'--captions={tmp_path}/a.jsonl', f'--output={tmp_path}/t.model')
  model = tokens.load_tokenizer(tmp_path / 't.model')
  said = capsys.readouterr().out
  assert f'{model.vocab_size} pieces from 18 texts' in said
  longest = model.encode(CAPTIONS, 99)[1].sum(1).max()
  assert f'the longest {longest}; what is longer' in said
  write_jsonl(tmp_path / 'long.jsonl', ['dog ' * 5000])
  launch(monkeypatch, 'launch/tokenizer.py',
         f'--captions={tmp_path}/long.jsonl', f'--output={tmp_path}/l.model')
  assert 'the longest 512 or more; what' in capsys.readouterr().out
  with pytest.raises(SystemExit, match='is not a file'):
    launch(monkeypatch, 'launch/tokenizer.py',
           f'--captions={tmp_path}/none.csv', f'--output={tmp_path}/t.model')


def test_limit_zero_reads_every_line(tmp_path):
  path = tmp_path / 'entities.txt'
  path.write_text('dog 3\ncat 1\n')
  assert entities.read_entities(path, 0) == ['dog', 'cat']
  path.write_text('')
  with pytest.raises(ValueError, match='is empty'):
    entities.read_entities(path, 0)
