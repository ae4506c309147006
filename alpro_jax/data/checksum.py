"""A digest beside a small file: a flipped bit can turn one word into another.

answers.txt.sha256 is what `sha256sum answers.txt` prints. Files that come from elsewhere,
such as a vocab.txt, have none and are read as they are.
"""

import hashlib
import json
import os
from typing import Any

from alpro_jax import buckets, files


def write_text(path, text: str) -> None:
  """Writes a UTF-8 file, into a folder that may be new, and its digest beside it."""
  write_bytes(path, text.encode())


def write_bytes(path, content: bytes) -> None:
  """Writes a file and its digest beside it."""
  with files.file(path, wait=True) as made:
    made.write_bytes(content)
  name = os.fspath(path).rpartition('/')[2]
  digest = hashlib.sha256(content).hexdigest()
  files.write_text(f'{os.fspath(path)}{buckets.DIGEST}', f'{digest}  {name}\n')


def read_bytes(path) -> bytes:
  """Returns what a file holds.

  Raises:
    ValueError: it is not what its digest says.
  """
  path = files.local(path)
  data, beside = path.read_bytes(), path.with_name(f'{path.name}{buckets.DIGEST}')
  if beside.is_file():
    expected = beside.read_text(errors='replace').split(' ')[0]
    got = hashlib.sha256(data).hexdigest()
    if got != expected:
      raise ValueError(
        f'{path} is damaged: its sha256 is {got[:12]}..., and {beside} says {expected[:12]}...; '
        f'make or copy it again. If you changed it yourself, remove {beside.name}.'
      )
  return data


def read_text(path) -> str:
  """Returns the text of a file without its byte order mark; see read_bytes."""
  try:
    return read_bytes(path).decode('utf-8-sig')
  except UnicodeDecodeError as e:
    raise ValueError(f'{path} is not UTF-8: {e}.') from e


def read_lines(path) -> list[str]:
  r"""Returns the lines of a text file without their ends; see read_text.

  Only \n and \r\n end a line. str.splitlines also cuts at U+0085, U+2028 and others,
  which are pieces of some vocabularies: all ids behind one would shift.
  """
  lines = read_text(path).split('\n')
  if not lines[-1]:
    lines.pop()
  return [line.removesuffix('\r') for line in lines]


def read_json(path) -> dict[str, Any]:
  """Returns the JSON object that a file from elsewhere holds; see read_text.

  Raises:
    ValueError: it holds something else.
  """
  text = read_text(path)
  try:
    return dict(json.loads(text))
  except (ValueError, TypeError) as e:
    raise ValueError(f'{path} is damaged, or no JSON object: {e}; get it again.') from e
