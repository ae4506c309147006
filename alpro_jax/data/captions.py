"""Captions and questions alone, of prepared sets or of captions files."""

import os

from absl import logging

from alpro_jax import buckets, files
from alpro_jax.data import checksum, dataset, sources

_TABLES = ('.txt', '.csv', '.json', '.jsonl')


def read_all(paths, split: str = 'train', *, questions: bool = False) -> list[str]:
  """Returns the captions of all paths, in order.

  Args:
    paths: folders made by launch/prepare.py, the .csv or .jsonl files they were made from,
      or .txt files with one caption a line.
    split: of sets, or of rows that name one.
    questions: return questions and answers of sets too.
  Raises:
    ValueError: there is no text at all.
  """
  texts = []
  for path in map(os.fspath, paths):
    remote = buckets.is_address(path)
    if os.path.isdir(path) or (remote and not path.lower().endswith(_TABLES)):
      # Frames are not looked at, so their digests need no check.
      records = dataset.open_dataset(path, split, verify=False).metadata()
      texts += (text for record in records for text in record.captions)
      asked = (question for record in records for question in record.questions)
      texts += (text for question in asked if questions for text in question[:2])
    elif path.lower().endswith('.txt'):
      texts += filter(None, map(str.strip, checksum.read_lines(path)))
    else:
      # No video is opened, so any folder will do.
      found = sources.read_folder(str(files.local(path)), split=split, root='/')
      for skipped in found.skipped[:5]:
        logging.warning('%s: %s (%s)', skipped.item, skipped.reason, skipped.detail)
      if len(found.skipped) > 5:
        logging.warning('%d rows of %s are left out.', len(found.skipped), path)
      texts += (text for clip in found.clips for text in clip.captions)
  if not texts:
    raise ValueError(f'{", ".join(map(str, paths))}: no caption in split {split!r}.')
  return texts
