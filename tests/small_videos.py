"""Small videos with a known look, made on the fly."""

import json
from fractions import Fraction

import av
import numpy as np

from alpro_jax.data import prepare, sources
from alpro_jax.data.video import iterate_frames

# How a picture may be stored, as (a, b, c, d) of the display matrix, which
# shows the stored place (x, y) at (a x + c y, b x + d y).
MATRICES = {
  'upright': (1, 0, 0, 1),
  'turned_90': (0, 1, -1, 0),
  'turned_180': (-1, 0, 0, -1),
  'turned_270': (0, -1, 1, 0),
  'mirrored': (-1, 0, 0, 1),
  'upside_down': (1, 0, 0, -1),
  'transposed': (0, 1, 1, 0),
  'transversed': (0, -1, -1, 0),
}
CORNERS = np.array([[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255,) * 3]])


def write_video(
  path, *, frames=8, rate=8, size=(48, 32), rotation=0, codec='libx264', colours=None
):
  """Writes frames of one colour each, red above blue at the left edge.

  Args:
    path: where to.
    frames, rate: count, and frames per second.
    size: width, height.
    rotation: degrees in the display matrix.
    codec: of the video.
    colours: list of RGB, one per frame; grey levels rise by default.
  """
  width, height = size
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=rate)
    stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
    stream.codec_context.thread_count = 1
    if rotation:
      stream.set_display_rotation(rotation)
    for number in range(frames):
      colour = colours[number] if colours else (number * 20,) * 3
      image = np.full((height, width, 3), colour, np.uint8)
      image[: height // 2, : width // 4] = 255, 0, 0
      image[height // 2 :, : width // 4] = 0, 0, 255
      for packet in stream.encode(av.VideoFrame.from_ndarray(image, 'rgb24')):
        container.mux(packet)
    for packet in stream.encode():
      container.mux(packet)
  return path


def read_frames(path, **options):
  """Returns lists of frames and seconds; see iterate_frames."""
  frames, seconds = zip(*iterate_frames(path, **options), strict=True)
  return list(frames), list(seconds)


def numbered(number, width=96, height=64):
  """uint8[H, W, 3] that tells its number; see CORNERS and `numbers_of`."""
  image = np.empty((height, width, 3), np.uint8)
  image[:] = _colour_of(number)
  for y, x in np.ndindex(2, 2):
    image[y * (height - 16) :][:16, x * (width - 16) :][:, :16] = CORNERS[y, x]
  for bit in range(8):
    image[24:32, 16 + 8 * bit : 24 + 8 * bit] = 255 * (number >> bit & 1)
  return image


def _colour_of(number):
  return [60 + number * step % 140 for step in (37, 83, 59)]


def numbers_of(frames):
  """Reads the numbers of frames made by `numbered`, and checks their looks."""
  numbers = []
  for frame in frames:
    assert frame.shape == (64, 96, 3) and frame.dtype == np.uint8
    numbers.append(sum(int(frame[28, 20 + 8 * bit].mean() > 128) << bit for bit in range(8)))
    np.testing.assert_allclose(frame[[[6], [-7]], [6, -7]], CORNERS, atol=30)
    np.testing.assert_allclose(frame[50, 48], _colour_of(numbers[-1]), atol=12)
  return numbers


def write_numbered(
  path,
  *,
  numbers=range(12),
  rate=10,
  codec='libx264',
  streams='v',
  matrix='upright',
  times=None,
  start=0,
  timecode=False,
  chapters=False,
  container=None,
):
  """Writes frames made by `numbered`.

  Args:
    path: where to.
    numbers: of the frames.
    rate: frames per second.
    codec: of the video.
    streams: in their order: v video, a sound, d data, t a font.
    matrix: one of MATRICES.
    times: of the frames, in units of 1 / rate; 0, 1, ... if there are none.
    start: second of the first frame.
    timecode, chapters: whether there are such tracks.
    container: options of the container.
  """
  a, b, c, d = MATRICES[matrix]
  made = {}
  with av.open(str(path), 'w', container_options=container or {}) as file:
    for kind in streams:
      if kind == 'v':
        video = made[kind] = file.add_stream(codec, rate=rate)
        video.width, video.height = (64, 96) if b else (96, 64)
        video.pix_fmt = 'yuv420p'
        video.codec_context.thread_count = 1
        video.codec_context.gop_size = 6
        video.codec_context.max_b_frames = 0 if 'vp' in codec else 2
        video.options = {'crf': '4'} if 'x264' in codec else {'qmax': '4'}
        video.bit_rate = 4_000_000
        if matrix != 'upright':
          video.set_display_matrix([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30])
        if timecode:
          video.metadata['timecode'] = '01:00:00:00'
      elif kind == 'a':
        made[kind] = file.add_stream(
          'libopus' if 'vp' in codec else 'libmp3lame', rate=48000, layout='mono'
        )
      elif kind == 'd':
        made[kind] = file.add_data_stream('klv')
      else:
        file.add_attachment('a.ttf', 'font/ttf', b'letters')
    if chapters:
      file.set_chapters(
        [
          {
            'id': k,
            'start': 500 * k,
            'end': 500 * k + 500,
            'time_base': Fraction(1, 1000),
            'metadata': {'title': f'{k}'},
          }
          for k in range(2)
        ]
      )
    for k, number in enumerate(numbers):
      at = Fraction(times[k] if times else k, rate) + start
      image = numbered(number)[:: d or b, :: a or c]
      if b:
        image = image.swapaxes(0, 1)
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), 'rgb24')
      frame.time_base = video.codec_context.time_base or Fraction(1, rate)
      frame.pts = round(at / frame.time_base)
      file.mux(made['v'].encode(frame))
      if 'a' in made:
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 48000 // rate), np.int16), 's16', 'mono')
        sound.sample_rate, sound.time_base = 48000, Fraction(1, 48000)
        sound.pts = round(at * 48000)
        file.mux(made['a'].encode(sound))
      if 'd' in made:
        packet = av.Packet(bytes.fromhex('060e2b34') + bytes(16))
        packet.stream, packet.time_base = made['d'], Fraction(1, 90000)
        packet.pts = packet.dts = round(at * 90000)
        file.mux(packet)
    for kind in 'va':
      if kind in made:
        file.mux(made[kind].encode())
  return path


def write_folder(folder, count, **options):
  """Writes count videos and captions.jsonl; returns its path."""
  folder.mkdir(parents=True, exist_ok=True)
  rows = []
  for number in range(count):
    write_video(folder / f'{number:03}.mp4', colours=[(number * 7 % 256, 90, 40)] * 8, **options)
    rows.append({'video': f'{number:03}.mp4', 'caption': f'clip {number}', 'style': 'full'})
    rows.append({'video': f'{number:03}.mp4', 'caption': 'a clip', 'style': 'short'})
  return write_captions(folder, rows)


def write_captions(folder, rows):
  path = folder / 'captions.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def write_questions(folder, rows):
  """Writes (video, question, answer) to questions.jsonl; returns its path."""
  path = folder / 'questions.jsonl'
  path.write_text(
    ''.join(
      json.dumps(dict(zip(('video', 'question', 'answer'), row, strict=True))) + '\n'
      for row in rows
    )
  )
  return path


def prepare_seven(folder):
  """Returns a prepared set of seven clips, in shards of 3, 3 and 1."""
  videos = folder / 'videos'
  videos.mkdir()
  captions = write_folder(videos, 7)
  prepare.prepare(
    sources.read_folder(captions),
    videos,
    folder / 'set',
    num_workers=1,
    options=prepare.Options(fps=0, short_side=0, part_size=3, quality=95),
  )
  return folder / 'set'
