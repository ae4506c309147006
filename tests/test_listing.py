"""Videos are found by what they hold; what only looks like one is named."""

import os
import shutil

import pytest

from alpro_jax.data import listing
from alpro_jax.search import indexing
from tests import small_videos

TYPESCRIPT = b'export const frames: number[] = [];\n'
APPLE_DOUBLE = b'\0\x05\x16\x07\0\x02\0\0Mac OS X        ' + bytes(40)


@pytest.fixture
def folder(tmp_path):
  """Videos of many kinds, and much that is none."""
  root = tmp_path / 'videos'
  (root / 'deep/er').mkdir(parents=True)
  write = small_videos.write_video
  write(tmp_path / 'a.mp4')
  write(tmp_path / 'a.ts', codec='mpeg2video', rate=25)
  write(tmp_path / 'a.vob', codec='mpeg2video', rate=25)
  write(tmp_path / 'a.asf', codec='mpeg4')
  for kind, names in {
    'mp4': [
      'a.mp4',
      'b.F4V',
      'deep/no_suffix',
      'c.mp4.partial',
      'd.m4a',
      '.hidden.mp4',
      '.e.mp4.Xy3w',
    ],
    'ts': ['00001.MTS', 'deep/00002.m2ts', 'f.ts', 'g.bin'],
    'vob': ['VTS_01_1.VOB', 'h.dat'],
    'asf': ['i.asf', 'j.wma'],
  }.items():
    for name in names:
      shutil.copy(tmp_path / f'a.{kind}', root / name)
  for name, data in {
    'code.ts': TYPESCRIPT,
    'code.mts': TYPESCRIPT,
    '._a.mp4': APPLE_DOUBLE,
    'deep/._00002.m2ts': APPLE_DOUBLE,
    'lost.mp4': b'<html>gone</html>',
    'empty.mov': b'',
    'zeros.avi': bytes(900),
    'notes.txt': b'a.mp4',
    'deep/er/captions.srt': b'1\n',
    'x.txt': b'',
    'blob': bytes(900),
  }.items():
    (root / name).write_bytes(data)
  os.mkfifo(root / 'pipe.mp4')
  (root / 'dead.mp4').symlink_to('nowhere')
  return root


def test_videos_are_found_by_content(folder):
  found = listing.list_videos(folder)
  assert [os.fsdecode(name) for name in found.videos] == sorted(
    [
      'a.mp4',
      'b.F4V',
      'deep/no_suffix',
      '.hidden.mp4',
      '00001.MTS',
      'deep/00002.m2ts',
      'f.ts',
      'g.bin',
      'VTS_01_1.VOB',
      'h.dat',
      'i.asf',
      # The decoder says what these are.
      'lost.mp4',
      'empty.mov',
      'zeros.avi',
    ]
  )
  assert dict(found.passed_over) == {
    b'code.ts': 'text, no video',
    b'code.mts': 'text, no video',
    b'._a.mp4': 'AppleDouble file, no video',
    b'deep/._00002.m2ts': 'AppleDouble file, no video',
    b'c.mp4.partial': 'unfinished, by its name',
    b'.e.mp4.Xy3w': 'hidden, and no name of a video',
    b'pipe.mp4': 'no regular file',
  }
  assert found.problems == [(b'dead.mp4', 'No such file or directory')]
  assert found.others == {'.txt': 2, '.srt': 1, '': 1, '.m4a': 1, '.wma': 1}
  few = listing.list_videos(folder, (b'a.mp4', b'code.ts').__contains__)
  assert len(few.videos) == len(found.videos) - 1
  assert len(few.passed_over) == len(found.passed_over) - 1


def test_an_index_lists_the_same(folder):
  found, listed = listing.list_videos(folder), indexing.list_videos(folder)
  assert [file.name for file in listed.files] == found.videos
  assert listed.problems == found.problems
  assert listed.passed_over == found.passed_over
