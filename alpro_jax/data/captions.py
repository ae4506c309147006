"""Captions and questions alone, of prepared sets or of captions files."""

import os

from absl import logging

from alpro_jax.data import checksum, dataset, sources


def read_all(paths, split='train', *, questions=False):
  """Returns the captions of all paths, in order, as list of str.

  Args:
    paths: folders made by launch/prepare.py, the .csv or .jsonl files they
      were made from, or .txt files with one caption a line.
    split: of sets, or of rows that name one.
    questions: return questions and answers of sets too.
  Raises:
    ValueError: there is no text at all.
  """
  texts = []
  for path in map(os.fspath, paths):
    if os.path.isdir(path):
      texts += _of_set(path, split, questions)
    elif path.lower().endswith('.txt'):
      texts += filter(None, map(str.strip, checksum.read_lines(path)))
    else:
      texts += _of_rows(path, split)
  if not texts:
    raise ValueError(f'{", ".join(map(str, paths))}: no caption in split {split!r}.')
  return texts


def _of_set(path, split, questions):
  # Frames are not looked at, so their digests need no check.
  records = dataset.open_dataset(path, split, verify=False).metadata()
  texts = [caption for record in records for caption in record.captions]
  if questions:
    texts += [
      text
      for record in records
      for question in record.questions
      for text in (question.text, question.answer)
    ]
  return texts


def _of_rows(path, split):
  # No video is opened, so that any place will do.
  rows = sources.read_folder(path, split=split, root='/')
  for skipped in rows.skipped[:5]:
    logging.warning('%s: %s (%s)', skipped.item, skipped.reason, skipped.detail)
  if len(rows.skipped) > 5:
    logging.warning('%d rows of %s are left out.', len(rows.skipped), path)
  return [caption for clip in rows.clips for caption in clip.captions]
