"""Players: of the file where browsers can, else of a small copy of the clip."""

import io

import av
import pytest

from alpro_jax.data import playing
from tests import small_videos


@pytest.mark.parametrize(
  'name, codec, plays',
  [
    ('a.mp4', 'libx264', True),
    ('a.webm', 'libvpx-vp9', True),
    ('a.mkv', 'libx264', False),
    ('a.mp4', 'mpeg4', False),
  ],
)
def test_what_browsers_play(tmp_path, name, codec, plays):
  path = str(small_videos.write_video(tmp_path / name, codec=codec))
  assert playing.plays(path) == plays
  found = playing.look((path, 0.0, 1.0), copy=False)
  assert not found.why_not and bool(found.copy) != plays and found.size == len(found.copy)


def test_a_copy_is_the_clip_in_small_h264(tmp_path):
  path = small_videos.write_video(tmp_path / 'a.avi', codec='mpeg4', frames=32, size=(642, 362))
  (found,) = playing.prepare([(str(path), 1.0, 3.0)])
  copy = tmp_path / 'copy.mp4'
  copy.write_bytes(found.copy)
  assert playing.plays(str(copy)) and not found.why_not
  frames, seconds = small_videos.read_frames(copy)
  assert len(frames) == 16 and frames[0].shape == (180, 318, 3)
  assert seconds[0] == 0 and seconds[-1] == pytest.approx(15 / 8, abs=0.01)
  # Frame 8, the first after a second, is of grey 160; black before it.
  assert abs(int(frames[0][90, 200].mean()) - 160) < 12
  with av.open(io.BytesIO(found.copy)) as container:
    assert not container.streams.audio


def test_a_page_that_is_shown_elsewhere_has_copies(tmp_path):
  path = str(small_videos.write_video(tmp_path / 'a.mp4'))
  assert [bool(x.copy) for x in playing.prepare([(path, 0.0, 1.0)], copy_all=True)] == [True]


def test_what_has_no_player_says_why(tmp_path, monkeypatch):
  broken = tmp_path / 'a.mp4'
  broken.write_text('no video')
  path = str(small_videos.write_video(tmp_path / 'a.avi', codec='mpeg4'))
  for clip, why in (
    ((str(tmp_path / 'none.mp4'), 0.0, 1.0), 'No such file'),
    ((str(broken), 0.0, 1.0), 'Invalid data'),
    ((path, 5.0, 9.0), 'no frames'),
    ((path, 700.0, 710.0), 'more than 10 minutes'),
  ):
    found = playing.look(clip, copy=False)
    assert why in found.why_not and not found.copy
  monkeypatch.setattr(playing.av, 'codecs_available', {'mpeg4'})
  assert 'libx264' in playing.look((path, 0.0, 1.0), copy=False).why_not
