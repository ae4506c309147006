"""Frames come upright, evenly, never enlarged, and failures say why."""

import fractions
import io
import os
import pathlib

import av
import numpy as np
import pytest
from PIL import Image

from alpro_jax.data import video
from tests import small_videos

CLIPS = os.environ.get('ALPRO_CLIPS', '')
needs_clips = pytest.mark.skipif(
  not os.path.isdir(CLIPS), reason='set ALPRO_CLIPS to the folder of clips'
)


def _is(pixel, *, red=False, blue=False):
  r, g, b = pixel.astype(int)
  return (r > 150) == red and (b > 150) == blue and g < 100


def test_all_frames_in_order(tmp_path):
  path = small_videos.write_video(tmp_path / 'a.mp4')
  frames, seconds = small_videos.read_frames(path)
  np.testing.assert_allclose(seconds, np.arange(8) / 8, atol=1e-6)
  assert {frame.shape for frame in frames} == {(32, 48, 3)}
  assert frames[0].dtype == np.uint8
  grey = [frame[16, 40].mean() for frame in frames]
  np.testing.assert_allclose(grey, np.arange(8) * 20, atol=4)
  assert _is(frames[3][4, 4], red=True) and _is(frames[3][28, 4], blue=True)


@pytest.mark.parametrize(
  ('rate', 'fps', 'kept'),
  [
    (8, 4, [0, 2, 4, 6, 8, 10, 12, 14]),
    (8, 3, [0, 3, 6, 8, 11, 14]),  # The first at or after 0, 1/3, 2/3, ...
    (8, 8, list(range(16))),
    (8, 100, list(range(16))),  # A frame is never kept twice.
    (8, 0.5, [0]),
  ],
)
@pytest.mark.parametrize('suffix', ['mp4', 'mkv', 'avi'])
def test_fps(tmp_path, rate, fps, kept, suffix):
  path = small_videos.write_video(
    tmp_path / f'a.{suffix}', frames=16, rate=rate, codec='mpeg4' if suffix == 'avi' else 'libx264'
  )
  _, seconds = small_videos.read_frames(path, fps=fps)
  np.testing.assert_allclose(seconds, np.array(kept) / rate, atol=2e-3)


def test_rounded_times_lose_no_frame(tmp_path):
  # Matroska rounds 1 / 30 s to 33 ms, a little early.
  path = small_videos.write_video(tmp_path / 'a.mkv', frames=30, rate=30)
  assert len(small_videos.read_frames(path, fps=30)[0]) == 30
  assert len(small_videos.read_frames(path, fps=10)[0]) == 10


def test_limits(tmp_path):
  path = small_videos.write_video(tmp_path / 'a.mp4')
  assert len(small_videos.read_frames(path, max_frames=3)[0]) == 3
  assert len(small_videos.read_frames(path, max_seconds=0.5)[0]) == 4
  assert len(small_videos.read_frames(path, fps=2, max_seconds=0.75)[0]) == 2


def test_sizes():
  assert video.target_size(340, 256, short_side=128) == (170, 128)
  assert video.target_size(256, 340, short_side=128) == (128, 170)
  assert video.target_size(48, 32, short_side=256) == (48, 32)
  assert video.target_size(48, 32) == (48, 32)
  assert video.target_size(720, 576, pixel_aspect=2) == (720, 288)
  assert video.target_size(720, 576, pixel_aspect=0.5) == (360, 576)
  assert video.target_size(720, 576, pixel_aspect=0) == (720, 576)
  assert video.target_size(4000, 2, short_side=1) == (2000, 1)


def test_short_side(tmp_path):
  path = small_videos.write_video(tmp_path / 'a.mp4')
  assert small_videos.read_frames(path, short_side=16)[0][0].shape == (16, 24, 3)
  assert small_videos.read_frames(path, short_side=99)[0][0].shape == (32, 48, 3)


@pytest.mark.parametrize('rotation', [0, 90, 180, -90])
def test_rotation(tmp_path, rotation):
  path = small_videos.write_video(tmp_path / 'a.mp4', size=(64, 32), rotation=rotation)
  frame = small_videos.read_frames(path, short_side=16)[0][2]
  # Counter-clockwise, as FFmpeg's display matrix counts. Stored, red is the
  # upper left corner and blue the lower left one.
  red, blue = {
    0: ((2, 2), (-3, 2)),
    90: ((-3, 2), (-3, -3)),
    180: ((-3, -3), (2, -3)),
    -90: ((2, -3), (2, 2)),
  }[rotation]
  assert frame.shape == ((32, 16, 3) if rotation in (90, -90) else (16, 32, 3))
  assert _is(frame[red], red=True)
  assert _is(frame[blue], blue=True)


def test_unreadable_files(tmp_path):
  with pytest.raises(video.UnreadableVideo, match='missing file'):
    small_videos.read_frames(tmp_path / 'none.mp4')
  (tmp_path / 'empty.mp4').write_bytes(b'')
  (tmp_path / 'text.mp4').write_text('not a video\n' * 100)
  for name in ('empty.mp4', 'text.mp4'):
    with pytest.raises(video.UnreadableVideo, match='unreadable'):
      small_videos.read_frames(tmp_path / name)


def test_sound_alone_is_no_video(tmp_path):
  import av

  path = str(tmp_path / 'a.wav')
  with av.open(path, 'w') as container:
    stream = container.add_stream('pcm_s16le', rate=8000, layout='mono')
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format='s16', layout='mono')
    frame.sample_rate = 8000
    for packet in [*stream.encode(frame), *stream.encode()]:
      container.mux(packet)
  with pytest.raises(video.UnreadableVideo, match='no video stream'):
    small_videos.read_frames(path)


def test_playlists_are_not_followed(tmp_path):
  secret = small_videos.write_video(tmp_path / 'secret.ts', codec='mpeg2video', rate=25)
  path = tmp_path / 'a.m3u8'
  path.write_text(f'#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n')
  with pytest.raises(video.UnreadableVideo):
    small_videos.read_frames(path)


def test_damage_gives_no_silent_half(tmp_path):
  # Whatever a decoder makes of it, the call ends and the reason has words.
  path = small_videos.write_video(tmp_path / 'a.mp4', frames=60)
  good = path.read_bytes()
  random = np.random.default_rng(0)
  for _ in range(20):
    data = bytearray(good)
    for where in random.integers(0, len(data), 40):
      data[where] = random.integers(256)
    path.write_bytes(data)
    try:
      frames, _ = small_videos.read_frames(path)
      assert frames
    except video.UnreadableVideo as e:
      assert e.reason in ('unreadable', 'breaks off', 'no frames', 'no video stream', 'too large')


@pytest.mark.parametrize(
  ('suffix', 'codec'),
  [('.mkv', 'libx264'), ('.webm', 'libvpx'), ('.avi', 'mpeg4'), ('.flv', 'flv')],
)
def test_a_download_that_broke_off_is_said(tmp_path, suffix, codec):
  """These formats have no error at their end; only the header tells."""
  path = small_videos.write_video(tmp_path / f'a{suffix}', frames=100, rate=25, codec=codec)
  assert len(small_videos.read_frames(path)[0]) == 100
  data = path.read_bytes()
  path.write_bytes(data[: len(data) * 6 // 10])
  kept = []
  with pytest.raises(video.EndsEarly, match=r'data end at [12]\.\d of 4\.0 s'):
    kept.extend(video.iterate_frames(path))
  assert 40 < len(kept) < 70
  # What was not wanted is not missed.
  assert len(small_videos.read_frames(path, max_frames=9)[0]) == 9
  assert len(small_videos.read_frames(path, max_seconds=1)[0]) == 25


def test_stills(tmp_path):
  picture = np.zeros((20, 40, 3), np.uint8)
  picture[:, :20, 0] = 255
  exif = Image.Exif()
  exif[0x0112] = 6  # To be turned 90 degrees clockwise.
  Image.fromarray(picture).save(tmp_path / 'a.jpg', exif=exif, quality=95)
  frame = video.read_still(tmp_path / 'a.jpg')
  assert frame.shape == (40, 20, 3)
  assert _is(frame[5, 10], red=True) and not _is(frame[35, 10], red=True)
  assert video.read_still(tmp_path / 'a.jpg', short_side=10).shape == (20, 10, 3)
  Image.new('RGBA', (8, 8), (0, 0, 0, 0)).save(tmp_path / 'a.png')
  assert (video.read_still(tmp_path / 'a.png') == 255).all()
  Image.new('L', (8, 8), 7).save(tmp_path / 'l.png')
  assert (video.read_still(tmp_path / 'l.png') == 7).all()
  deep = np.array([[0, 0x1234, 0xFFFF]], np.uint16)
  for suffix in ('png', 'tiff'):
    Image.fromarray(deep).save(tmp_path / f'deep.{suffix}')
    assert video.read_still(tmp_path / f'deep.{suffix}')[0, :, 1].tolist() == [0, 0x12, 255]
  Image.fromarray(deep.astype(np.float32)).save(tmp_path / 'float.tiff')
  half = (tmp_path / 'a.jpg').read_bytes()
  (tmp_path / 'half.jpg').write_bytes(half[: len(half) * 3 // 4])
  for name in ('half.jpg', 'none.jpg', 'float.tiff'):
    with pytest.raises(video.UnreadableVideo):
      video.read_still(tmp_path / name)


def test_programs_in_postscript_are_no_photos(tmp_path):
  """Pillow would give them to Ghostscript, which runs them."""
  Image.new('RGB', (8, 8)).save(tmp_path / 'a.eps')
  (tmp_path / 'a.eps').rename(tmp_path / 'a.jpg')
  with pytest.raises(video.UnreadableVideo, match='cannot identify'):
    video.read_still(tmp_path / 'a.jpg')


@pytest.mark.parametrize(
  'suffix',
  ['.jpg', '.png', '.gif', '.webp', '.bmp', '.tiff', '.jp2', '.ppm', '.tga', '.ico', '.mpo'],
)
def test_kinds_of_photos(tmp_path, suffix):
  Image.new('RGB', (16, 16), 'red').save(tmp_path / f'a{suffix}')
  assert video.read_still(tmp_path / f'a{suffix}').shape == (16, 16, 3)


def test_frames_may_not_grow_too_large(tmp_path, monkeypatch):
  path = small_videos.write_video(tmp_path / 'a.mp4')
  monkeypatch.setattr(video.containers, '_MAX_PIXELS', 48 * 32 - 1)
  with pytest.raises(video.UnreadableVideo, match='too large: 48x32'):
    small_videos.read_frames(path)


def test_jpeg_quality():
  frame = np.random.default_rng(0).integers(0, 255, (32, 48, 3)).astype(np.uint8)
  low, high = video.encode_jpeg(frame, 30), video.encode_jpeg(frame, 95)
  assert len(low) < len(high)
  assert Image.open(io.BytesIO(high)).size == (48, 32)


@needs_clips
def test_real_clips():
  shapes = {}
  for path in sorted(pathlib.Path(CLIPS).glob('*.m*')):
    if path.suffix == '.md':
      continue
    try:
      frames, seconds = small_videos.read_frames(path, fps=1, short_side=256)
      shapes[path.name] = frames[0].shape
      assert len(frames) == len(seconds) and seconds == sorted(seconds)
    except video.PartlyReadable as e:
      assert path.name == 'corrupted.mp4' and 'frames kept' in e.detail
  assert shapes['keyboard_rotated_90.mov'][:2] == (454, 256)
  assert shapes['crane.mp4'] == (180, 320, 3)  # The default stream.
  assert shapes['test_pattern_av1.mkv'] == (256, 455, 3)


def test_long_and_large_videos_ask_for_more_time(tmp_path, monkeypatch):
  asked = []
  monkeypatch.setattr(video.workers, 'allow', asked.append)

  def ask(name, **options):
    path = small_videos.write_video(tmp_path / name, **options)
    small_videos.read_frames(path, fps=1)
    return path.stat().st_size

  ask('short.mp4', frames=10, rate=25, size=(640, 480))
  ask('long.mp4', frames=40, rate=25, size=(640, 480))
  ask('large.mp4', frames=10, rate=25, size=(1280, 960))
  # Its header says nothing of its length: its bytes count.
  size = ask('none.h264', frames=100, rate=25)
  # And one that says three billion seconds is not believed.
  path = tmp_path / 'far.mkv'
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('ffv1', rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 48, 'bgr0'
    stream.codec_context.time_base = fractions.Fraction(1, 1000)
    for second in (0, 3_000_000_000):
      frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), 'rgb24')
      frame.pts = second * 1000
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  small_videos.read_frames(path)
  short, long, large, unknown, far = asked
  np.testing.assert_allclose(short, 10 * 640 * 480 / 5e6, rtol=0.05)
  np.testing.assert_allclose([long, large], 4 * short, rtol=0.05)
  assert unknown >= size * 20 / 5e6
  assert far <= path.stat().st_size / 16 * 64 * 48 / 5e6


def test_of_a_rate_that_varies_frames_are_chosen_by_time(tmp_path):
  """As sets and indices choose them: of ten frames here, seven show the first second."""
  path = tmp_path / 'screen.mp4'
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('libx264', rate=10)
    stream.width, stream.height, stream.pix_fmt = 48, 32, 'yuv420p'
    stream.codec_context.time_base = fractions.Fraction(1, 10)
    for number, tenth in enumerate([0, 1, 2, 3, 4, 5, 6, 20, 30, 38]):
      frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), number * 20, np.uint8), 'rgb24')
      frame.pts, frame.time_base = tenth, fractions.Fraction(1, 10)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  found = [round(float(frame.mean()) / 20) for frame in video.read_evenly(str(path), 4)]
  assert found == [0, 6, 7, 8]
