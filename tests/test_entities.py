"""Entities: counting, plurals, the file and the two launchers."""

import json

import pytest

from alpro_jax.data import entities, tokens
from tests import launched

CAPTIONS = [
  'A dog runs after two dogs',
  'Dogs in New York',
  'a woman in a dress',
  'two dresses and 4k footage',
  'Cats, cats! http://x.com/a <person>',
  'the footage of a dog',
]


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
  assert path.read_text() == 'dog\t4\ndress\t2\ncat\t1\n'
  assert entities.read_entities(path, 2) == ['dog', 'dress']


@pytest.mark.parametrize(
  ('text', 'names'),
  [
    ('fire truck\nred ball\ndog\n', ['fire truck', 'red ball', 'dog']),
    ('fire truck\t12\nred ball\t7\ndog\n', ['fire truck', 'red ball', 'dog']),
    ('dog 12\ncat 7\n', ['dog', 'cat']),
    ('fire truck 12\nred  ball 7\n', ['fire truck', 'red ball']),
    ('dog 12 0.5\ncat 7 1e-3\n', ['dog', 'cat']),
    ('boeing 747 12\ndog 7\n', ['boeing 747', 'dog']),
    ('boeing 747\t\ndog\n', ['boeing 747', 'dog']),
    ('\ufefffire truck\r\nice\u2028cream\r\n', ['fire truck', 'ice cream']),
    ("  dog  \n7 up\nman's hat\n", ['dog', '7 up', "man's hat"]),
  ],
)
def test_an_entity_is_the_line_without_its_count(tmp_path, caplog, text, names):
  path = tmp_path / 'entities.txt'
  path.write_bytes(text.encode())
  with caplog.at_level('INFO'):
    assert entities.read_entities(path, 0) == names
  several = sum(' ' in name for name in names)
  assert f'{several} of them of several words' in caplog.text


def test_a_file_that_can_be_read_in_two_ways_is_refused(tmp_path):
  path = tmp_path / 'entities.txt'
  path.write_text('dog 4\nzebra\ncat 3\n')
  with pytest.raises(ValueError, match=r'txt:1 ends in a number and line 2 '):
    entities.read_entities(path, 3)
  assert entities.read_entities(path, 1) == ['dog']
  path.write_text('   412 dog\n    13 fire truck\n')  # From uniq -c.
  with pytest.raises(ValueError, match='every line begins with a number'):
    entities.read_entities(path, 2)
  path.write_text('fire truck 4\nfire\ttruck\n')
  assert entities.read_entities(path, 0) == ['fire truck 4', 'fire']
  path.write_text('red ball\nred  ball\t3\n')
  with pytest.raises(ValueError, match="txt:2 repeats 'red ball' of line 1"):
    entities.read_entities(path, 0)


def test_things_count_and_what_they_do_does_not():
  said = [
    'a key lies on the table',
    'the small key turns',
    'a key moves',
    'the disc moves left',
    'a ball moves and jumps',
    'it moves up',
    'dance moves of a man',
    'a boy drives a fire truck',
    'a stick moves',
    'a red stick',
    'the leaves fall',
    'she drinks tea',
    'cold drinks',
    'the truck slowly turns',
    'the key is big, red and black',
  ]
  counted = dict(entities.count_entities(said, 99))
  assert counted['key'] == 4 and counted['stick'] == 2
  assert counted['leaves'] == 1 and counted['drinks'] == 2
  assert counted['truck'] == 2 and counted['disc'] == counted['ball'] == 1
  assert not {
    'moves',
    'move',
    'jumps',
    'turns',
    'drives',
    'lies',
    'red',
    'small',
    'black',
    'big',
  } & set(counted)


@pytest.mark.parametrize(
  'said, counted',
  [
    ('a small red ball', {'red ball': 1}),
    ('a red ball moves to two red balls', {'red ball': 2}),
    ('two fire trucks and a fire truck', {'fire truck': 2}),
    ('a grey key and a red ball', {'grey key': 1, 'red ball': 1}),
    ('with a key, it takes a green key, then a box', {'key': 1, 'green key': 1, 'box': 1}),
    ('a big, red ball', {'red ball': 1}),
    ('the other ball', {'ball': 1}),
    ('dogs run', {'dogs': 1}),
  ],
)
def test_a_phrase_is_a_noun_with_the_word_before_it(said, counted):
  assert dict(entities.count_entities([said], 9, phrases=True)) == counted


def test_a_noun_that_the_lexicon_does_not_know_counts_before_a_comma_too():
  said = ['a key, a box and a ball', 'a small key and a key', 'a big, red and old ball']
  assert dict(entities.count_entities(said, 9)) == {'key': 3, 'ball': 2, 'box': 1}


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
  path.write_text(
    ''.join(
      json.dumps({'video': f'{i}.mp4', 'caption': text}) + '\n' for i, text in enumerate(texts)
    )
  )


def test_launchers(tmp_path, capsys):
  write_jsonl(tmp_path / 'a.jsonl', CAPTIONS * 3)
  assert not launched.run(
    'entities',
    f'--captions={tmp_path}/a.jsonl',
    f'--output={tmp_path}/e.txt',
    '--limit=3',
    '--stop_words=footage',
  )
  assert entities.read_entities(tmp_path / 'e.txt', 3)[0] == 'dog'
  write_jsonl(tmp_path / 'b.jsonl', ['a red ball', 'two red balls'])
  assert not launched.run(
    'entities', f'--captions={tmp_path}/b.jsonl', f'--output={tmp_path}/p.txt', '--phrases'
  )
  assert entities.read_entities(tmp_path / 'p.txt', 0) == ['red ball']
  write_jsonl(tmp_path / 'c.jsonl', ['a red ball', 'a fire truck', 'a blue box'])
  (tmp_path / 'stop.txt').write_text('red ball\n fire truck\n\n')
  given = f'--captions={tmp_path}/c.jsonl', f'--output={tmp_path}/s.txt', '--phrases'
  assert not launched.run('entities', *given, f'--stop_words={tmp_path}/stop.txt')
  assert entities.read_entities(tmp_path / 's.txt', 0) == ['blue box']
  assert launched.run('entities', *given, '--stop_words=stopp.txt') == 2
  assert '--stop_words=stopp.txt is not a file' in capsys.readouterr().err
  assert not launched.run(
    'tokenizer', f'--captions={tmp_path}/a.jsonl', f'--output={tmp_path}/t.model'
  )
  model = tokens.load_tokenizer(tmp_path / 't.model')
  said = capsys.readouterr().out
  assert f'{model.vocab_size} pieces from 18 texts' in said
  longest = model.encode(CAPTIONS, 99)[1].sum(1).max()
  assert f'the longest {longest}; what is longer' in said
  write_jsonl(tmp_path / 'long.jsonl', ['dog ' * 5000])
  assert not launched.run(
    'tokenizer', f'--captions={tmp_path}/long.jsonl', f'--output={tmp_path}/l.model'
  )
  assert 'the longest 512 or more; what' in capsys.readouterr().out
  assert (
    launched.run('tokenizer', f'--captions={tmp_path}/none.csv', f'--output={tmp_path}/t.model')
    == 2
  )
  assert 'is not a file' in capsys.readouterr().err


@pytest.mark.parametrize(
  'options, message',
  [
    (['--lmit=3'], "Unknown command line flag 'lmit'"),
    (['--limit=many'], '--limit=many'),
    (['--limit=3'], '--captions must have a value'),
    (['--captions=a', '--output=b', 'c', 'd'], 'unexpected c d; every option starts with --'),
  ],
)
def test_mistakes_in_flags_are_one_line(options, message, capsys):
  assert launched.run('entities', *options) == 2
  said = capsys.readouterr().err
  assert message in said and said.startswith('error: ')
  assert said.count('\n') == 1


def test_a_negative_limit_is_refused(tmp_path):
  (tmp_path / 'entities.txt').write_text('dog\nball\n')
  with pytest.raises(ValueError, match='-1 entities are wanted'):
    entities.read_entities(tmp_path / 'entities.txt', -1)


def test_limit_zero_reads_every_line(tmp_path):
  path = tmp_path / 'entities.txt'
  path.write_text('dog 3\ncat 1\n')
  assert entities.read_entities(path, 0) == ['dog', 'cat']
  path.write_text('')
  with pytest.raises(ValueError, match='is empty'):
    entities.read_entities(path, 0)
