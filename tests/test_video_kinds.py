"""Files of cameras, phones and recorders: every frame against the truth.

The truth is what was written: the number, the corners and the colour of each
frame, and its time. Where there is an ffmpeg program, its output is compared
too.
"""

import io
import math
import os
import shutil
import subprocess
import types
from fractions import Fraction

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from PIL import Image

from alpro_jax.data import annotations, prepare, video
from tests import small_videos

_CODECS = {
  'webm': 'libvpx',
  'avi': 'mpeg4',
  'mpg': 'mpeg2video',
  'vob': 'mpeg2video',
  'asf': 'mpeg4',
  'mxf': 'mpeg2video',
}
_CLIPS = {}


def _add(suffix, streams='v', *, starts=(0,), **options):
  """A clip for each of the starts, joined to one file."""
  name = '-'.join(
    [
      suffix,
      streams,
      *map(str, starts),
      *(str(key if value is True else value) for key, value in options.items()),
    ]
  )
  _CLIPS[name] = (suffix, starts, {'streams': streams, **options})


for _suffix in (
  'mp4',
  'mov',
  'mkv',
  'webm',
  'avi',
  'ts',
  'm2ts',
  'mpg',
  'vob',
  'flv',
  'f4v',
  '3gp',
  'asf',
  'mxf',
):
  _add(_suffix)
  if _suffix not in ('3gp', 'mxf'):
    _add(_suffix, 'av')
for _number, _matrix in enumerate(small_videos.MATRICES):
  for _suffix in ('mp4', 'mov', 'mkv', 'webm'):
    _add(_suffix, ('v', 'av', 'va')[_number % 3], matrix=_matrix)
_add('mov', timecode=True)
_add('mov', 'av', timecode=True, chapters=True)
_add('mov', 'va', timecode=True, matrix='mirrored', starts=(7,))
_add('mkv', 'tav', chapters=True)
_add('mkv', 'vt')
_add('ts', 'dv')
_add('ts', 'dav', starts=(3600,))
_add('avi', codec='libx264')
_add('avi', 'av', codec='libx264')
for _suffix in ('mp4', 'mov', 'mkv', 'webm', 'ts', 'mpg', 'flv', 'asf'):
  _add(_suffix, 'av', starts=(3600,))
for _suffix in ('ts', 'm2ts', 'mpg', 'vob', 'mkv', 'webm', 'avi', 'mp4', 'mov', 'flv'):
  _add(_suffix, starts=(0, 0))
for _suffix in ('ts', 'm2ts', 'mpg', 'vob'):
  _add(_suffix, 'av', starts=(3600, 0))
  _add(_suffix, 'dav' if _suffix == 'ts' else 'va', starts=(0, 3600, 5))
for _suffix in ('mkv', 'webm', 'mp4', 'mov', 'flv'):
  _add(
    _suffix, 'va', starts=(3600, 0, 20), **({} if _suffix == 'flv' else {'matrix': 'transposed'})
  )


def _write(folder, name):
  """Returns (path, numbers, seconds) of one of the clips."""
  suffix, starts, options = _CLIPS[name]
  rate = 25 if suffix in ('mpg', 'vob', 'mxf') else 10
  options = {'codec': _CODECS.get(suffix, 'libx264'), 'rate': rate, **options}
  path = folder / f'a.{suffix}'
  recordings = []
  for k, start in enumerate(starts):
    small_videos.write_numbered(path, numbers=range(12 * k, 12 * k + 12), start=start, **options)
    recordings.append(path.read_bytes())
  path.write_bytes(b''.join(recordings))
  numbers = list(range(12 * len(starts)))
  return path, numbers, [number / rate for number in numbers]


@pytest.mark.parametrize('name', _CLIPS)
def test_every_frame(tmp_path, name):
  path, numbers, times = _write(tmp_path, name)
  frames, seconds = small_videos.read_frames(path)
  assert small_videos.numbers_of(frames) == numbers
  np.testing.assert_allclose(seconds, times, atol=2e-3)
  # And thinned out: the first frame at or after each third of a second.
  first = {}
  for number, time in zip(numbers, times, strict=True):
    first.setdefault(math.floor(time * 3 + 1e-6), number)
  frames, seconds = small_videos.read_frames(path, fps=3)
  assert small_videos.numbers_of(frames) == list(first.values())
  np.testing.assert_allclose(seconds, [times[number] for number in first.values()], atol=2e-3)


@pytest.mark.skipif(not shutil.which('ffmpeg'), reason='has no ffmpeg program')
@pytest.mark.parametrize('name', _CLIPS)
def test_as_the_ffmpeg_program_has_it(tmp_path, name):
  path, _, _ = _write(tmp_path, name)
  each = ['-fps_mode', 'passthrough', '-map', '0:v']
  subprocess.run(
    [
      'ffmpeg',
      '-v',
      'fatal',
      '-i',
      path,
      *each,
      '-f',
      'framecrc',
      tmp_path / 'times',
      *each,
      '-pix_fmt',
      'rgb24',
      '-f',
      'rawvideo',
      tmp_path / 'pixels',
    ],
    check=True,
  )
  theirs = np.fromfile(tmp_path / 'pixels', np.uint8).reshape(-1, 64, 96, 3)
  lines = (tmp_path / 'times').read_text().splitlines()
  unit = next(Fraction(x[7:]) for x in lines if x.startswith('#tb 0: '))
  stamps = [int(x.split(',')[2]) for x in lines if x[0] != '#']
  frames, seconds = small_videos.read_frames(path)
  if path.suffix in ('.mkv', '.webm', '.mp4', '.mov', '.flv'):
    # Of joined recordings it has the first, and of others parts at one time.
    frames, seconds = frames[:12], seconds[:12]
    theirs, stamps = theirs[:12], stamps[:12]
  assert small_videos.numbers_of(theirs) == small_videos.numbers_of(frames)
  np.testing.assert_allclose(frames, theirs, atol=6)
  np.testing.assert_allclose(
    seconds, [float((x - stamps[0]) * unit) for x in stamps], atol=float(unit / 2)
  )


@pytest.mark.parametrize('suffix', ['mp4', 'mov', 'mkv', 'ts', 'flv', 'avi'])
def test_a_single_frame_behind_its_sound(tmp_path, suffix):
  path = small_videos.write_numbered(
    tmp_path / f'a.{suffix}', numbers=[7], streams='av', codec=_CODECS.get(suffix, 'libx264')
  )
  frames, seconds = small_videos.read_frames(path)
  assert small_videos.numbers_of(frames) == [7] and seconds == [0]


def test_single_frames_that_were_joined(tmp_path):
  path = tmp_path / 'a.ts'
  parts = [small_videos.write_numbered(path, numbers=[k]).read_bytes() for k in range(3)]
  path.write_bytes(b''.join(parts))
  frames, seconds = small_videos.read_frames(path)
  assert small_videos.numbers_of(frames) == [0, 1, 2]
  np.testing.assert_allclose(seconds, [0, 0.1, 0.2])


def test_recordings_of_unknown_length(tmp_path):
  path = tmp_path / 'a.mkv'
  parts = [
    small_videos.write_numbered(
      path, numbers=range(12 * k, 12 * k + 12), container={'live': '1'}
    ).read_bytes()
    for k in range(2)
  ]
  path.write_bytes(b''.join(parts))
  frames, seconds = small_videos.read_frames(path)
  assert small_videos.numbers_of(frames) == list(range(24))
  np.testing.assert_allclose(seconds, np.arange(24) / 10, atol=2e-3)


def test_boxes_between_recordings(tmp_path):
  """One whose length takes 64 bits, and a second ftyp before the index."""
  path = small_videos.write_numbered(
    tmp_path / 'a.mp4', container={'movflags': 'frag_keyframe+empty_moov+default_base_moof'}
  )
  whole = path.read_bytes()
  first = whole[: int.from_bytes(whole[:4], 'big')]
  assert first[4:8] == b'ftyp'
  large = b'\0\0\0\1free' + (20).to_bytes(8, 'big') + b'full'
  path.write_bytes(first + whole + large + whole)
  frames, _ = small_videos.read_frames(path)
  assert small_videos.numbers_of(frames) == [*range(12), *range(12)]


def test_zeros_behind_a_recording_are_not_searched(tmp_path, monkeypatch):
  """As in a download that was given its size first."""
  path = small_videos.write_numbered(tmp_path / 'a.flv')
  path.write_bytes(path.read_bytes() + bytes(1 << 20))
  reads = []

  def read(*arguments, pread=os.pread):
    reads.append(arguments)
    return pread(*arguments)

  monkeypatch.setattr(os, 'pread', read)
  frames, _ = small_videos.read_frames(path)
  assert small_videos.numbers_of(frames) == list(range(12))
  assert len(reads) < 500


def test_joined_recordings_ask_for_the_time_of_all(tmp_path, monkeypatch):
  asked = []
  monkeypatch.setattr(video.workers, 'allow', asked.append)
  path, _, _ = _write(tmp_path, 'mp4-va-3600-0-20-transposed')
  small_videos.read_frames(path)
  np.testing.assert_allclose(asked, asked[0] * np.array([1, 2, 3]), rtol=0.2)


@pytest.mark.parametrize('suffix', ['ts', 'mkv', 'mp4'])
def test_recordings_of_two_sizes_get_one(tmp_path, suffix):
  parts = [
    small_videos.write_video(tmp_path / f'{size}.{suffix}', size=size, rate=25).read_bytes()
    for size in ((64, 48), (48, 64))
  ]
  path = tmp_path / f'a.{suffix}'
  path.write_bytes(b''.join(parts))
  frames, seconds = small_videos.read_frames(path)
  assert [frame.shape for frame in frames] == [(48, 64, 3)] * 16
  np.testing.assert_allclose(seconds, np.arange(16) / 25, atol=2e-3)


def _record(path, **options):
  return prepare.make_record(
    annotations.Clip(path.name, (path.name,), ('x',), ('',), False, ()),
    root=str(path.parent),
    short_side=0,
    quality=90,
    max_frames=0,
    on_partial='skip',
    **{'fps': 0, 'max_seconds': 0, **options},
  )


@pytest.mark.parametrize(
  ('suffix', 'fps', 'kept'),
  [
    ('ts', 0, 24),
    ('ts', 5, 12),
    ('mkv', 0, 24),
    ('mkv', 5, 12),
    ('mp4', 0, 24),
    ('mp4', 5, 12),
    ('flv', 0, 24),
    ('flv', 5, 12),
  ],
)
def test_what_the_report_says_of_joined_recordings(tmp_path, suffix, fps, kept):
  path, _, _ = _write(tmp_path, f'{suffix}-v-0-0')
  record = _record(path, fps=fps)
  assert (record.frames, record.reason, record.detail) == (kept, '', '')


@pytest.mark.parametrize(
  'flags',
  ['frag_keyframe+empty_moov', 'frag_keyframe+empty_moov+default_base_moof', 'dash', 'faststart'],
)
def test_joined_mp4_of_other_kinds(tmp_path, flags):
  path = tmp_path / 'a.mp4'
  parts = [
    small_videos.write_numbered(
      path, numbers=range(12 * k, 12 * k + 12), matrix=matrix, container={'movflags': flags}
    ).read_bytes()
    for k, matrix in enumerate(('turned_90', 'mirrored'))
  ]
  path.write_bytes(b''.join(parts))
  frames, seconds = small_videos.read_frames(path)
  assert {frame.shape for frame in frames} == {(64, 96, 3)}
  assert small_videos.numbers_of(frames) == list(range(24))
  np.testing.assert_allclose(seconds, np.arange(24) / 10)


@pytest.mark.parametrize(('fps', 'kept'), [(0, 72), (5, 36)])
def test_an_end_that_is_missing_is_reported_wherever(tmp_path, fps, kept):
  """Of three recordings the second was cut off; its length had said so."""
  path = tmp_path / 'a.mkv'
  whole = small_videos.write_numbered(path, numbers=range(30)).read_bytes()
  with av.open(str(path)) as file:
    half = [packet.pos for packet in file.demux(video=0) if packet.pos][12]
  # The length of the segment behind its ID, made that of what is left of it.
  place = whole.index(b'\x18\x53\x80\x67') + 4
  cut = whole[:place] + (1 << 56 | half - place - 8).to_bytes(8, 'big') + whole[place + 8 : half]
  path.write_bytes(whole + cut + whole)
  record = _record(path, fps=fps)
  assert (record.frames, record.reason) == (kept, '')
  assert record.detail == 'its data end at 1.2 of 3.0 s'
  # What was not wanted is not missed.
  assert not _record(path, fps=fps, max_seconds=4).detail


@pytest.mark.parametrize('suffix', ['mkv', 'webm'])
def test_a_late_start_hides_no_loss(tmp_path, suffix):
  path = small_videos.write_numbered(
    tmp_path / f'a.{suffix}', numbers=range(60), start=3600, codec=_CODECS.get(suffix, 'libx264')
  )
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  with pytest.raises(video.EndsEarly, match=r'data end at [23]\.\d of 6\.\d s'):
    small_videos.read_frames(path)


def test_subtitles_may_go_on(tmp_path):
  """Then the header gives their length."""
  path = small_videos.write_numbered(tmp_path / 'a.mkv')
  with av.open(str(path)) as file, av.open(str(tmp_path / 'b.mkv'), 'w') as out:
    source = file.streams.video[0]
    target = out.add_stream_from_template(source)
    texts = out.add_mux_stream('subrip')
    out.start_encoding()
    line = av.Packet(b'a line')
    line.stream, line.time_base = texts, Fraction(1, 1000)
    line.pts, line.dts, line.duration = 0, 0, 60_000
    out.mux(line)
    for packet in file.demux(source):
      if packet.size:
        packet.stream = target
        out.mux(packet)
  with av.open(str(tmp_path / 'b.mkv')) as file:
    assert file.duration == 60_000_000
  frames, _ = small_videos.read_frames(tmp_path / 'b.mkv')
  assert small_videos.numbers_of(frames) == list(range(12))


def test_gaps_in_avi(tmp_path):
  """They are stored as packets of no bytes."""
  path = small_videos.write_numbered(
    tmp_path / 'a.avi', codec='ffv1', times=[0, 1, 2, 7, 8, 12], numbers=range(6)
  )
  frames, seconds = small_videos.read_frames(path)
  assert small_videos.numbers_of(frames) == list(range(6))
  np.testing.assert_allclose(seconds, [0, 0.1, 0.2, 0.7, 0.8, 1.2])


def test_gaps_in_avi_among_b_frames(tmp_path):
  """The two frames that wait where the gap is take the times before it."""
  times = np.array([0, 1, 2, 3, 7, 8, 9, 10, 11, 12, 13, 14])
  path = small_videos.write_numbered(tmp_path / 'a.avi', times=times.tolist())
  frames, seconds = small_videos.read_frames(path)
  assert small_videos.numbers_of(frames) == list(range(12))
  times[4:6] = 4, 5
  np.testing.assert_allclose(seconds, times / 10)


def test_sound_without_its_pictures_is_no_video(tmp_path):
  path = small_videos.write_numbered(tmp_path / 'a.mkv', numbers=range(30), streams='av')
  with av.open(str(path)) as file:
    place = next(packet.pos for packet in file.demux(video=0))
  path.write_bytes(path.read_bytes()[:place])
  with pytest.raises(video.UnreadableVideo, match='no frames'):
    small_videos.read_frames(path)


def test_times_never_run_backwards():
  """Of a file whose times are wrong, and of one that has few."""
  recording = types.SimpleNamespace(
    stream=types.SimpleNamespace(average_rate=Fraction(10)),
    container=types.SimpleNamespace(format=types.SimpleNamespace(flags=0)),
  )
  key = types.SimpleNamespace(key_frame=True, duration=0, time_base=None)
  other = types.SimpleNamespace(key_frame=False, duration=0, time_base=None)

  def read(frames):
    clock = video.containers.Clock()
    clock.start(recording)
    return [float(clock.read(frame, stamp and Fraction(stamp, 10))) for frame, stamp in frames]

  np.testing.assert_allclose(
    read([(key, 50), (other, 52), (other, 51), (other, 53), (key, 54)]), [0, 0.2, 0.2, 0.3, 0.4]
  )
  np.testing.assert_allclose(
    read([(key, None), (other, None), (other, 52), (other, None)]), [0, 0.1, 0.2, 0.3]
  )
  np.testing.assert_allclose(  # The second recording begins in its middle.
    read([(key, 50), (other, 51), (other, 20), (other, 21)]), [0, 0.1, 0.2, 0.3]
  )


@pytest.mark.parametrize('suffix', ['ts', 'mp4', 'mkv'])
@pytest.mark.parametrize(
  ('arguments', 'shape', 'red'),
  [
    ('rotate=90', (96, 64), (-7, 6)),
    ('rotate=270', (96, 64), (6, -7)),
    ('flip=vertical', (64, 96), (-7, 6)),
    ('flip=horizontal', (64, 96), (6, -7)),
    ('rotate=90:flip=vertical', (96, 64), (-7, -7)),
    ('rotate=270:flip=vertical', (96, 64), (6, 6)),
  ],
)
def test_orientation_in_key_frames_alone(tmp_path, suffix, arguments, shape, red):
  """As encoders of H.264 can write it: all frames are turned alike."""
  plain = small_videos.write_numbered(tmp_path / 'plain.ts')
  told = tmp_path / 'told.ts'
  with av.open(str(plain)) as file, av.open(str(told), 'w') as out:
    source = file.streams.video[0]
    target = out.add_stream_from_template(source)
    tell = BitStreamFilterContext(
      f'h264_metadata=display_orientation=insert:{arguments}', source, target
    )
    for packet in file.demux(source):
      for changed in tell.filter(packet if packet.size else None):
        changed.stream = target
        out.mux(changed)
  path = tmp_path / f'a.{suffix}'
  with av.open(str(told)) as file, av.open(str(path), 'w') as out:
    target = out.add_stream_from_template(file.streams.video[0])
    for packet in file.demux(video=0):
      if packet.dts is not None:
        packet.stream = target
        out.mux(packet)
  with av.open(str(path)) as file:
    told = [bool(frame.side_data.get('DISPLAYMATRIX')) for frame in file.decode(video=0)]
  assert told[0] and not all(told)
  frames, _ = small_videos.read_frames(path)
  assert len(frames) == len(told)
  for frame in frames:
    assert frame.shape == (*shape, 3)
    np.testing.assert_allclose(frame[red], (255, 0, 0), atol=30)


@pytest.mark.parametrize(
  ('orientation', 'shape', 'red'),
  [(1, (64, 96), (6, 6)), (3, (64, 96), (-7, -7)), (6, (96, 64), (6, -7)), (8, (96, 64), (-7, 6))],
)
def test_side_data_that_pyav_does_not_know(tmp_path, orientation, shape, red):
  """EXIF in frames of MJPEG, as cameras write it, beside an orientation."""
  exif = Image.Exif()
  exif[0x0112] = orientation
  jpeg = io.BytesIO()
  Image.fromarray(small_videos.numbered(3)).save(jpeg, 'JPEG', quality=95, exif=exif)
  with av.open(str(tmp_path / 'a.avi'), 'w') as file:
    stream = file.add_stream('mjpeg', rate=10)
    stream.width, stream.height, stream.pix_fmt = 96, 64, 'yuvj420p'
    for k in range(3):
      packet = av.Packet(jpeg.getvalue())
      packet.stream, packet.time_base = stream, Fraction(1, 10)
      packet.pts = packet.dts = k
      file.mux(packet)
  frames, _ = small_videos.read_frames(tmp_path / 'a.avi')
  assert [frame.shape for frame in frames] == [(*shape, 3)] * 3
  np.testing.assert_allclose(frames[0][red], (255, 0, 0), atol=30)


def _pq(light):
  """Signal of SMPTE ST 2084 for light in cd/m2."""
  light = (np.asarray(light) / 10000) ** 0.1593017578125
  return ((0.8359375 + 18.8515625 * light) / (1 + 18.6875 * light)) ** 78.84375


def _hlg(scene):
  """Signal of hybrid log-gamma for light in the scene, 0 to 1."""
  scene = np.asarray(scene)
  return np.where(
    scene <= 1 / 12,
    np.sqrt(3 * scene),
    0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073,
  )


def _write_hdr(path, signals, transfer, matrix=9):
  """Writes a patch of 32 x 32 for each R'G'B' of BT.2020, in 10 bit."""
  signals = np.repeat(np.repeat(signals, 32, 0)[None], 32, 0)
  luma = signals @ [0.2627, 0.6780, 0.0593]
  planes = [
    luma * 876 + 64,
    (signals[..., 2] - luma)[::2, ::2] / 1.8814 * 896 + 512,
    (signals[..., 0] - luma)[::2, ::2] / 1.4746 * 896 + 512,
  ]
  width = signals.shape[1]
  with av.open(str(path), 'w') as file:
    stream = file.add_stream('libx264', rate=10, options={'crf': '1'})
    stream.width, stream.height = width, 32
    stream.pix_fmt = 'yuv420p10le'
    frame = av.VideoFrame(width, 32, 'yuv420p10le')
    for plane, values in zip(frame.planes, planes, strict=True):
      rows = np.zeros((plane.height, plane.line_size // 2), '<u2')
      rows[:, : values.shape[1]] = values.round()
      plane.update(rows.tobytes())
    for thing in (stream.codec_context, frame):
      thing.color_trc, thing.color_primaries = transfer, 9
      thing.colorspace, thing.color_range = matrix, 1
    file.mux([*stream.encode(frame), *stream.encode()])


def _patches(path):
  (frame,), _ = small_videos.read_frames(path)
  return frame[16, 16::32]


@pytest.mark.parametrize(
  ('suffix', 'matrix'), [('mp4', 9), ('mkv', 9), ('ts', 9), ('ts', 2)]
)  # 2 is left open.
def test_pq_becomes_what_standard_screens_show(tmp_path, suffix, matrix):
  light = np.array([0, 1, 10, 26, 58, 100, 203, 1000])
  to_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
  grey = np.repeat(light[:, None], 3, 1)
  colours = np.array([[203, 0, 0], [0, 203, 0], [0, 0, 203], [150, 60, 20]])
  path = tmp_path / f'a.{suffix}'
  _write_hdr(path, _pq(np.concatenate([grey, colours @ to_2020.T])), 16, matrix)
  wanted = np.minimum(np.concatenate([grey, colours]) / 203, 1) ** (1 / 2.4)
  found = _patches(path) / 255
  np.testing.assert_allclose(found[:8], wanted[:8], atol=0.012)
  # As light: beside so much of one colour, little of another is not exact.
  np.testing.assert_allclose(found[8:] ** 2.4, wanted[8:] ** 2.4, atol=0.03)
  # A white wall of 203 cd/m2 is white, and 255 for what shines.
  assert found[6].min() > 0.99 and found[7].min() == 1


def test_hlg_becomes_what_standard_screens_show(tmp_path):
  scene = np.array([0, 0.01, 0.05, 0.1, 0.18, 0.265, 1])
  signals = np.concatenate([_hlg(scene), [0.75]])
  _write_hdr(tmp_path / 'a.mp4', np.repeat(signals[:, None], 3, 1), 18)
  light = 1000 * scene**1.2
  wanted = np.minimum(np.append(light, 203) / 203, 1) ** (1 / 2.4)
  np.testing.assert_allclose(
    _patches(tmp_path / 'a.mp4') / 255, np.repeat(wanted[:, None], 3, 1), atol=0.012
  )


def test_standard_video_of_10_bit_is_left_alone(tmp_path):
  signals = np.repeat(np.linspace(0, 1, 6)[:, None], 3, 1)
  _write_hdr(tmp_path / 'a.mp4', signals, 1)
  np.testing.assert_allclose(_patches(tmp_path / 'a.mp4'), signals * 255, atol=2)


@pytest.mark.parametrize(
  'name',
  [
    'v%d.mp4',
    'v%03d.jpg',
    'v[0-9]*.jpg',
    '-',
    'pipe:0',
    'concat:a.mp4|b.mp4',
    'a:b.mp4',
    'subfile,,start,0,end,9,,:a',
    'ümläut \N{SNOWMAN}.mp4',
    '-i.mp4',
    'data:x,y',
    'a\nb.mp4',
    'clip',
    'a.m3u8',
    'a.gif',
    'a.txt',
  ],
)
def test_a_name_is_only_a_name(tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  small_videos.write_numbered(tmp_path / 'real.mp4')
  os.rename('real.mp4', name)
  for k in range(3):  # What the patterns would find.
    Image.new('RGB', (96, 64), 'red').save(f'v{k}.jpg')
    Image.new('RGB', (96, 64), 'red').save(f'v{k:03}.jpg')
  frames, _ = small_videos.read_frames(name)
  assert small_videos.numbers_of(frames) == list(range(12))


@pytest.mark.parametrize('name', ['v%d.jpg', 'v%03d.png', 'v*.jpg'])
def test_a_pattern_finds_no_pictures(tmp_path, name):
  for k in range(3):
    Image.new('RGB', (64, 48), 'red').save(tmp_path / f'v{k}.jpg')
    Image.new('RGB', (64, 48), 'red').save(tmp_path / f'v{k:03}.png')
  (tmp_path / name).write_bytes(b'not even a picture')
  with pytest.raises(video.UnreadableVideo, match='no video but text'):
    small_videos.read_frames(tmp_path / name)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF', 'ICO'])
def test_pictures_are_for_pillow(tmp_path, monkeypatch, kind):
  Image.new('RGB', (64, 48), (9, 200, 90)).save(tmp_path / 'a.mp4', kind)
  monkeypatch.setattr(av, 'open', None)
  (frame,), seconds = small_videos.read_frames(tmp_path / 'a.mp4')
  np.testing.assert_allclose(frame[24, 24], (9, 200, 90), atol=6)
  assert seconds == [0]


@pytest.mark.parametrize(
  'text',
  [
    'ffconcat version 1.0\nfile secret.ts\n',
    '#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n',
    'v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n'
    'm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n',
  ],
)
def test_lists_are_not_followed(tmp_path, monkeypatch, text):
  monkeypatch.chdir(tmp_path)
  small_videos.write_numbered(tmp_path / 'secret.ts')
  for name in ('a.mp4', 'a.m3u8', 'a.ffconcat', 'a.sdp'):
    (tmp_path / name).write_text(text)
    with pytest.raises(video.UnreadableVideo, match='no video but text'):
      small_videos.read_frames(name)
