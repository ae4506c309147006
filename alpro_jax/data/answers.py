"""The answers that question answering chooses from, most frequent first.

Two answers are the same if their canonical forms are. A list keeps the spelling it was
written in, which is what a model is shown to say; wherever answers are counted, labelled
or judged, their canonical forms are compared.
"""

import collections
import json
import os
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from alpro_jax import files
from alpro_jax.data import checksum


def canonical(answer: str) -> str:
  """Returns the form in which answers are compared.

  Case, white space and the ways in which Unicode writes the same character
  make no difference ('Two  RED' is 'two red'); every other sign does.
  """
  text = unicodedata.normalize('NFKC', answer).casefold()
  return ' '.join(unicodedata.normalize('NFKC', text).split())


def equal_entries(answers: Iterable[str]) -> list[tuple[str, ...]]:
  """Returns the groups of entries of a list that are the same answer."""
  groups = {}
  for answer in answers:
    groups.setdefault(canonical(answer), []).append(answer)
  return [tuple(group) for group in groups.values() if len(group) > 1]


def count_answers(answers: Iterable[str], limit: int = 0) -> list[tuple[str, int]]:
  """Returns [(canonical answer, count)], most frequent first, then by alphabet.

  A `limit` above 0 keeps that many, 0 all.

  Raises:
    ValueError: if there is no answer, or for a negative limit.
  """
  if limit < 0:
    raise ValueError(f'{limit=} must be 0, which keeps all answers, or more.')
  counted = collections.Counter(map(canonical, answers))
  if not counted:
    raise ValueError('there is no answer to count; the split has no questions.')
  ordered = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
  return ordered[: limit or None]


def write_answers(answers: Iterable[str], path) -> None:
  """Writes one answer a line."""
  checksum.write_text(path, ''.join(f'{answer}\n' for answer in answers))


def read_answers(path) -> tuple[str, ...]:
  """Reads a list of answers as they are spelled; the index is the label.

  Args:
    path: a text file, one answer a line; or the original's ans2label, a JSON object of
      answer -> label (.json).
  Raises:
    FileNotFoundError: if it is not there.
    ValueError: if it is damaged or empty, or lists an answer twice.
  """
  if not path or not files.exists(path):
    raise FileNotFoundError(
      f'config.data.answers={os.fspath(path)!r} is no file; question '
      'answering needs the answers to choose from. Make them with `python '
      'launch/answers.py --data=SET --split=train --output=answers.txt`.'
    )
  if os.fspath(path).endswith('.json'):
    lines = _of_labels(path, checksum.read_text(path))
  else:
    lines = checksum.read_lines(path)
  answers = [' '.join(line.split()) for line in lines]
  blank = [number for number, answer in enumerate(answers, 1) if not answer]
  twice = [answer for answer, n in collections.Counter(answers).items() if answer and n > 1]
  if not answers or blank or twice:
    raise ValueError(
      f'{path} has {len(answers)} answers, lines {blank[:5]} are blank and '
      f'{twice[:5]} occur twice; expected one answer a line, each once.'
    )
  return tuple(answers)


def _of_labels(path, text):
  """Returns the keys of a JSON object {answer: label} in the order of their labels."""
  try:
    labels = json.loads(text)
    ordered = sorted(labels, key=labels.get)
    if [labels[answer] for answer in ordered] == list(range(len(ordered))):
      return ordered
  except (ValueError, AttributeError, TypeError):
    pass
  raise ValueError(
    f'{path} is not a JSON object of answer -> label with the labels 0, 1, 2, ..., each once.'
  )


def label_answers(answers: Iterable[str], known: Sequence[str]) -> np.ndarray:
  """Returns int32[n], the index of each answer among the known ones, -1 for none.

  Raises:
    ValueError: if two of the known ones are the same answer, which would leave it to
      chance what is learned.
  """
  if twice := equal_entries(known):
    raise ValueError(
      f'config.data.answers lists {len(twice)} answers in more than one spelling, such as '
      f'{list(twice[0])}; case, white space and forms of Unicode make no difference. Make the '
      'list again with launch/answers.py, or keep one spelling of each.'
    )
  labels = {canonical(answer): label for label, answer in enumerate(known)}
  return np.array([labels.get(canonical(answer), -1) for answer in answers], np.int32)
