"""The list of answers: counted, written, read back, given labels."""

import numpy as np
import pytest

from alpro_jax.data import answers


def test_counts_by_frequency_then_alphabet():
  counted = answers.count_answers(['b', 'a', ' dog  show', 'b', 'dog show'])
  assert counted == [('b', 2), ('dog show', 2), ('a', 1)]
  assert answers.count_answers(['b', 'a', 'b'], limit=1) == [('b', 2)]
  with pytest.raises(ValueError, match='no questions'):
    answers.count_answers([])


SPELLINGS = ('two red', ' Two  RED', 'two\N{NO-BREAK SPACE}red', 'TWO\tred\n')


def test_a_negative_limit_is_refused():
  with pytest.raises(ValueError, match='limit=-2 must be 0'):
    answers.count_answers(['a', 'b'], -2)


def test_spellings_of_one_answer_are_one_answer():
  assert {answers.canonical(text) for text in SPELLINGS} == {'two red'}
  # Composed, decomposed, full width, and a case that is two letters.
  for one, other in (
    ('caf\u00e9', 'CAFE\u0301'),
    ('\uff12 discs', '2 Discs'),
    ('Stra\u00dfe', 'STRASSE'),
    ('\ufb01sh', 'fish'),
  ):
    assert answers.canonical(one) == answers.canonical(other)
  for one, other in (('red', 'read'), ('10', '1 0'), ("it's", 'its')):
    assert answers.canonical(one) != answers.canonical(other)
  assert answers.count_answers([*SPELLINGS, 'b']) == [('two red', 4), ('b', 1)]


def test_spellings_have_one_label():
  np.testing.assert_array_equal(
    answers.label_answers([*SPELLINGS, 'no'], ['blue', 'Two Red']), [1, 1, 1, 1, -1]
  )


def test_a_list_with_two_spellings_of_an_answer_trains_nothing(tmp_path):
  path = tmp_path / 'answers.txt'
  path.write_text('red\nblue\nRED\n')
  # It is read as it stands: a checkpoint may have a label for each.
  known = answers.read_answers(path)
  assert known == ('red', 'blue', 'RED')
  assert answers.equal_entries(known) == [('red', 'RED')]
  with pytest.raises(ValueError, match=r"spelling, such as \['red', 'RED'\]"):
    answers.label_answers(['blue'], known)


def test_only_line_ends_separate_answers(tmp_path):
  path = tmp_path / 'answers.txt'
  path.write_bytes('\ufeffred\r\na\u2028b\r\nc\x85d\n'.encode())
  assert answers.read_answers(path) == ('red', 'a b', 'c d')
  path = tmp_path / 'ans2label.json'
  path.write_text('\ufeff{"Man": 0}', encoding='utf-8')
  assert answers.read_answers(path) == ('Man',)


def test_a_list_survives_its_file(tmp_path):
  path = tmp_path / 'new' / 'answers.txt'
  answers.write_answers(['red', 'at first'], path)
  assert answers.read_answers(path) == ('red', 'at first')


def test_the_originals_labels_are_read(tmp_path):
  path = tmp_path / 'ans2label.json'
  path.write_text('{"guitar": 1, "man": 0}')
  assert answers.read_answers(path) == ('man', 'guitar')
  for text in ('{"man": 0, "guitar": 2}', '["man"]', '{"man": "0"}', 'man'):
    path.write_text(text)
    with pytest.raises(ValueError, match='labels 0, 1, 2'):
      answers.read_answers(path)


def test_a_list_that_cannot_be_used_is_said(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'launch/answers\.py'):
    answers.read_answers('')
  path = tmp_path / 'answers.txt'
  for text, said in (
    ('', 'has 0 answers'),
    ('a\n\nb\n', r'lines \[2\]'),
    ('a\nb\na\n', r"\['a'\] occur"),
  ):
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
      answers.read_answers(path)


def test_an_answer_outside_the_list_has_no_label():
  np.testing.assert_array_equal(
    answers.label_answers(['dog', ' at  first', 'cat'], ['at first', 'dog']), [1, 0, -1]
  )


def test_only_newlines_end_an_answer(tmp_path):
  path = tmp_path / 'answers.txt'
  path.write_bytes('\ufeffred\u2028ball\r\nat\x85first\ndog'.encode())
  assert answers.read_answers(path) == ('red ball', 'at first', 'dog')
  path = tmp_path / 'ans2label.json'
  path.write_bytes('\ufeff{"man": 0}'.encode())
  assert answers.read_answers(path) == ('man',)
