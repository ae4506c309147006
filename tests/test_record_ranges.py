"""Records of an ArrayRecord file are found by their bytes."""

import numpy as np
import pytest
from array_record.python import array_record_module

from alpro_jax.data import record_ranges


@pytest.mark.parametrize('sizes', [[], [0], [70_000, 3, 0, 200_000], [50] * 1000, [9] * 9000])
def test_every_record_lies_between_two_starts(tmp_path, sizes):
  rng = np.random.default_rng(0)
  records = [rng.bytes(size) for size in sizes]
  path = str(tmp_path / 'shard')
  writer = array_record_module.ArrayRecordWriter(path, 'group_size:1,uncompressed')
  for record in records:
    writer.write(record)
  writer.close()
  data = (tmp_path / 'shard').read_bytes()
  start = record_ranges.footer_start(data[-record_ranges.BLOCK :])
  found = record_ranges.starts(data[start : -record_ranges.BLOCK], start)
  assert len(found) == len(records) + 1
  # A file of nothing but the footer and the bytes of one record gives that record.
  for i in {0, len(records) // 2, len(records) - 1} if records else ():
    part = bytearray(len(data))
    part[start:] = data[start:]
    part[found[i] : found[i + 1]] = data[found[i] : found[i + 1]]
    (tmp_path / 'part').write_bytes(part)
    reader = array_record_module.ArrayRecordReader(str(tmp_path / 'part'))
    assert reader.read([i]) == [records[i]]


@pytest.mark.parametrize('end', [b'', b'\0' * record_ranges.BLOCK, b'x' * record_ranges.BLOCK])
def test_another_file_is_refused(end):
  with pytest.raises(ValueError, match='ArrayRecord file'):
    record_ranges.footer_start(end)
