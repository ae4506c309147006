"""Captions alone, of a prepared set or of a captions file."""

import os

from absl import logging

from alpro_jax.data import annotations, dataset


def read_captions(path, split='train'):
  """Returns every caption, in order, as list of str.

  Args:
    path: folder made by launch/prepare.py, the .csv or .jsonl file it was
      made from, or a .txt file with one caption a line.
    split: of a set, or of rows that name one.
  """
  path = os.fspath(path)
  if os.path.isdir(path):
    # Frames are not looked at, so their digests need no check.
    records = dataset.open_dataset(path, split, verify=False).metadata()
    return [caption for record in records for caption in record.captions]
  if path.lower().endswith('.txt'):
    with open(path, encoding='utf-8') as lines:
      return [line.strip() for line in lines if line.strip()]
  rows = annotations.read_folder(path, split=split)
  for skipped in rows.skipped[:5]:
    logging.warning(
        '%s: %s (%s)', skipped.item, skipped.reason, skipped.detail)
  if len(rows.skipped) > 5:
    logging.warning('%d rows of %s are left out.', len(rows.skipped), path)
  return [caption for clip in rows.clips for caption in clip.captions]
