"""What a file holds shows at its first bytes, not in its name."""

import gzip
import io

import pytest
from PIL import Image

from alpro_jax.data import sniff
from tests import small_videos


@pytest.mark.parametrize(
  'suffix, codec',
  [
    ('mp4', 'libx264'),
    ('mov', 'libx264'),
    ('mkv', 'libx264'),
    ('webm', 'libvpx'),
    ('avi', 'mpeg4'),
    ('flv', 'libx264'),
    ('f4v', 'libx264'),
    ('ts', 'libx264'),
    ('mpg', 'mpeg1video'),
    ('vob', 'mpeg2video'),
    ('asf', 'mpeg4'),
    ('h264', 'libx264'),
  ],
)
def test_a_video(tmp_path, suffix, codec):
  path = small_videos.write_video(tmp_path / f'a.{suffix}', frames=3, rate=25, codec=codec)
  assert sniff.what_file(path) == 'video'


@pytest.mark.parametrize('before, size, after', [(0, 188, 0), (4, 188, 0), (0, 188, 16)])
def test_transport_streams_from_the_middle_of_a_packet(before, size, after):
  """Of broadcasts, of cameras (.MTS, .m2ts), and with error correction."""
  packet = bytes(before) + b'\x47' + bytes(size - 1 + after)
  for start in (0, 1, 100, len(packet) - 1):
    assert sniff.what((packet * 30)[start:][: sniff.HEAD]) == 'video'
  assert sniff.what(packet[:1] + bytes(4000)) == ''


@pytest.mark.parametrize('format', ['JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF', 'PPM', 'ICO'])
def test_a_picture(format):
  file = io.BytesIO()
  Image.new('RGB', (16, 16), 'red').save(file, format)
  assert sniff.what(file.getvalue()) == 'picture'


@pytest.mark.parametrize(
  'head, kind',
  [
    (b'', 'empty file'),
    (bytes(100), ''),
    (bytes(range(1, 256)), ''),
    (b'<!DOCTYPE html><title>Not found</title>', 'HTML page'),
    (b'\xef\xbb\xbf\r\n <HTML>', 'HTML page'),
    (b'{"error": "gone"}', 'JSON text'),
    (b'[]', 'JSON text'),
    (b'export const GIF89a = 1;\n', 'text'),  # TypeScript, also called .ts.
    ('<p>Gr\xfc\xdfe'.encode('utf-16'), 'text'),
    (b'Gr\xfc\xdfe', 'text'),
    (gzip.compress(b'<html>', mtime=0), 'gzip'),
    (b'PK\x03\x04\x14\0', 'zip'),
    (b'\0\x05\x16\x07\0\x02\0\0Mac OS X', 'AppleDouble file'),
    (b'%PDF-1.7\n%\xe2\xe3\0', 'PDF'),
  ],
)
def test_something_else(head, kind):
  assert sniff.what(head) == kind


@pytest.mark.parametrize('suffix', ['mp4', 'mov', 'mkv'])
def test_where_a_file_is_cut(tmp_path, suffix):
  path = small_videos.write_video(tmp_path / f'a.{suffix}', frames=3)
  whole = path.read_bytes()
  assert not sniff.is_cut(path)
  for end in (len(whole) - 1, len(whole) // 2, 100):
    path.write_bytes(whole[:end])
    assert sniff.is_cut(path) == (suffix != 'mkv')  # Which says no sizes.


@pytest.mark.parametrize('size, cut', [(0, False), (107, False), (108, True)])
def test_sizes_of_boxes(tmp_path, size, cut):
  """0 is up to the end, wherever that is."""
  path = tmp_path / 'a.mp4'
  for box in (
    size.to_bytes(4) + b'mdat' + bytes(99),
    b'\0\0\0\x01mdat' + size.to_bytes(8) + bytes(91),
  ):
    path.write_bytes(b'\0\0\0\x08ftyp' + box)
    assert sniff.is_cut(path) == cut
  path.write_bytes(b'\0\0\0\x08ftyp\0\0\0')
  assert sniff.is_cut(path)
