"""Where the records of an ArrayRecord file lie, so that they can be asked for by their bytes.

A file is a sequence of chunks, cut through by a header at the start of each block of 64 KiB
(https://github.com/google/riegeli/blob/master/doc/riegeli_records_file_format.md). The last
block begins with a chunk that says where the footer starts, and the footer is a chunk that
says where all others do. launch/prepare.py writes one record in a chunk, and nothing
compressed. What is read by this is decoded and checked by the library.
"""

import itertools
import struct

BLOCK = 1 << 16  # Bytes.
_BLOCK_HEADER, _CHUNK_HEADER = 24, struct.Struct('<QQQQQ')


def footer_start(last_block: bytes) -> int:
  """Returns where the footer starts, given the last BLOCK bytes of a file.

  Raises:
    ValueError: if that is no file of ours.
  """
  for record in _records(last_block[_BLOCK_HEADER:]):
    return _first_number(record)
  raise ValueError('its end is not that of an ArrayRecord file.')


def starts(footer: bytes, start: int) -> list[int]:
  """Returns where each record starts, and where the last one ends.

  Args:
    footer: the bytes from `start` to the last block.
    start: where that is.
  Raises:
    ValueError: if that is no footer of ours.
  """
  # The rest of the block that it starts in, then blocks without their headers.
  first = -start % BLOCK
  cuts = [_BLOCK_HEADER if first == 0 else 0, *range(first or BLOCK, len(footer), BLOCK)]
  pieces = [footer[cuts[0] : cuts[1] if len(cuts) > 1 else None]]
  for cut, end in itertools.pairwise([*cuts[1:], len(footer)]):
    pieces.append(footer[cut + _BLOCK_HEADER : end])
  _, *records = _records(b''.join(pieces))  # The first one has the options.
  return [*map(_first_number, records), start]


def _records(chunk):
  """Yields the records of an uncompressed chunk, of which the bytes may go on."""
  try:
    _, size, _, kind, _ = _CHUNK_HEADER.unpack_from(chunk)
    data = chunk[_CHUNK_HEADER.size : _CHUNK_HEADER.size + size]
    if kind & 255 != ord('r') or len(data) < size or data[0] != 0:
      raise ValueError('it is not an uncompressed ArrayRecord file.')
    length, at = _varint(data, 1)
    end, sizes = at + length, []
    while at < end:
      size, at = _varint(data, at)
      sizes.append(size)
  except (IndexError, struct.error) as error:
    raise ValueError('it is not an ArrayRecord file, or broken.') from error
  for size in sizes:
    yield data[at : at + size]
    at += size


def _first_number(message):
  """Returns field 1 of a protocol buffer, a number; 0 is not written."""
  return _varint(message, 1)[0] if message[:1] == b'\x08' else 0


def _varint(data, at):
  value = 0
  for shift in itertools.count(0, 7):
    byte = data[at + shift // 7]
    value |= (byte & 127) << shift
    if byte < 128:
      return value, at + shift // 7 + 1
  raise AssertionError('not reached')
