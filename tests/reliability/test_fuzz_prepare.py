"""Preparation fed damaged files: it ends, and accounts for every item.

A seed says all of a case. Those that found a defect are in FOUND, each with a
direct test where the mended code is tested.
"""

import contextlib
import csv
import io
import json
import random
import signal
from typing import NamedTuple

import pytest
import tensorflow as tf
from PIL import Image

from alpro_jax.data import dataset, prepare
from alpro_jax.data import parts as set_parts
from tests import small_videos
from tests.reliability import mutations
from tests.small_sets import parse
from tests.test_verify import launch_prepare

# Container and codec; several demuxers and decoders meet damage here.
VIDEOS = (
  ('.mp4', 'libx264'),
  ('.mov', 'mpeg4'),
  ('.mkv', 'ffv1'),
  ('.avi', 'mpeg4'),
  ('.ts', 'mpeg2video'),
  ('.webm', 'libvpx'),
  ('.flv', 'flv'),
  ('.m4v', 'mpeg4'),
  ('.mpg', 'mpeg1video'),
)
PHOTOS = ('.jpg', '.png', '.gif', '.webp', '.bmp', '.tiff')
INTACT = 8  # Every eighth file is not damaged, and must come out as it is.
# An open quote of a csv file hid rows.
FOUND = (1288, 2041, 2777, 2848, 2955)


@contextlib.contextmanager
def limit(seconds):
  """Fails a test that hangs."""

  def late(*_):
    pytest.fail(f'no end after {seconds} s')  # No Exception: none catches it.

  before = signal.signal(signal.SIGALRM, late)
  signal.alarm(seconds)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def run(*args):
  """Returns the exit code of launch/prepare.py, run in this process."""
  handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    return launch_prepare()([str(arg) for arg in args])
  except SystemExit as error:
    return error.code
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)


def opened(output):
  """Returns the report, and the set with every digest checked."""
  report = json.loads((output / 'report.json').read_text())['splits']['train']
  return report, dataset.open_dataset(output, verify=True)


# --- Videos and photos ------------------------------------------------------


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """{suffix: bytes} of a small video or photo of each kind."""
  folder = tmp_path_factory.mktemp('whole')
  for suffix, codec in VIDEOS:
    small_videos.write_video(folder / f'a{suffix}', codec=codec, rate=25, size=(64, 48))
  picture = Image.effect_noise((40, 30), 60).convert('RGB')
  for suffix in PHOTOS:
    picture.save(folder / f'b{suffix}')
  return {path.suffix: path.read_bytes() for path in sorted(folder.iterdir())}


def write_damaged(folder, whole, suffixes, seed, count):
  """Returns the names of files of which all but every eighth are damaged."""
  rng = random.Random(seed)
  folder.mkdir()
  names = []
  for number in range(count):
    suffix = rng.choice(suffixes)
    data = whole[suffix]
    if number % INTACT:
      for _ in range(rng.choice((1, 1, 2))):
        data = mutations.bend(rng, data, whole[rng.choice(sorted(whole))])
    # A name may lie about what is in the file.
    if not rng.randrange(12) and number % INTACT:
      suffix = rng.choice(suffixes)
    names.append(f'{number:04}{suffix}')
    (folder / names[-1]).write_bytes(data)
  return names


def check_media(tmp_path, whole, seed, count, still):
  """Prepares damaged files by the command, with its worker processes."""
  suffixes = PHOTOS if still else [suffix for suffix, _ in VIDEOS]
  files, output = tmp_path / 'files', tmp_path / 'set'
  names = write_damaged(files, whole, suffixes, seed, count)
  captions = tmp_path / 'captions.json'
  rows = [{'image' if still else 'video': name, 'caption': f'it is {name}'} for name in names]
  if still:
    captions.write_text(json.dumps(rows))
  else:
    captions = small_videos.write_captions(tmp_path, rows)
  with limit(60 + 2 * count):
    code = run(
      '--source=cc3m' if still else '--source=folder',
      f'--videos={files}',
      f'--captions={captions}',
      f'--output={output}',
      '--fps=0',
      '--short_side=64',
      '--max_frames=40',
      '--part_size=50',
      '--workers=1',
      '--timeout_s=20',
    )
  assert code == 0
  report, prepared = opened(output)
  records = [info.video for info in prepared.metadata()]
  skipped = [skip['item'] for skip in report['skipped']]
  # Each item is in the set or in the report, and never in both.
  assert sorted(records + skipped) == names
  assert all(skip['reason'] for skip in report['skipped'])
  assert report['counts']['prepared'] == len(records)
  assert report['counts']['skipped'] == len(skipped)
  assert set(names[::INTACT]) <= set(records)
  settings = {**report['options'], 'root': files}
  del settings['part_size']
  for info, data in zip(prepared.metadata(), prepared.fetch(range(len(records))), strict=True):
    record = parse(tf.constant(data))
    assert record['video'].numpy().decode() == info.video
    assert record['captions'].numpy().tolist() == [f'it is {info.video}'.encode()]
    assert len(record['seconds']) == info.frames > 0
    (size,) = {Image.open(io.BytesIO(frame)).size for frame in record['frames'].numpy()}
    assert min(size) <= 64
    if not int(info.video[:4]) % INTACT:
      clip = prepare.annotations.Clip(info.video, (info.video,), info.captions, info.styles, still)
      assert prepare.make_record(clip, **settings).example == data


def test_damaged_videos_and_photos(tmp_path, whole, capfd):
  for still in (False, True):
    folder = tmp_path / str(still)
    folder.mkdir()
    check_media(folder, whole, seed=1, count=24, still=still)
  assert 'Traceback' not in capfd.readouterr().err


@pytest.mark.reliability
@pytest.mark.parametrize(
  'still, seed, count', [(False, 11, 300), (False, 12, 300), (True, 13, 300)]
)
def test_many_damaged_videos_and_photos(tmp_path, whole, capfd, still, seed, count):
  check_media(tmp_path, whole, seed, count, still)
  assert 'Traceback' not in capfd.readouterr().err


# --- Annotations ------------------------------------------------------------


class Format(NamedTuple):
  """A kind of annotation file.

  Attributes:
    name: of the file; its suffix says how rows are written.
    args: of launch/prepare.py, with {} for the path of the file.
    row: number -> a row.
    says: row -> (the video that it is about, its text).
    wrap: name of the list in a JSON object that holds the rows.
  """

  name: str
  args: tuple[str, ...]
  row: object
  says: object
  wrap: str = ''


def _video(number):
  return f'video{number % 6}'


def _caption(number):
  return f'text {number}, "quoted".'


def _asked(key, name):
  return lambda n: {key: name(n), 'question': f'what is {n}?', 'answer': 'disc'}


FORMATS = (
  Format(
    'c.jsonl',
    ('--source=folder', '--captions={}'),
    lambda n: {'video': f'{_video(n)}.mp4', 'caption': _caption(n), 'style': 'full'},
    lambda row: (row['video'], row['caption']),
  ),
  Format(
    'c.csv',
    ('--source=folder', '--captions={}'),
    lambda n: {'video': f'{_video(n)}.mp4', 'caption': _caption(n), 'style': 'full'},
    lambda row: (row['video'], row['caption']),
  ),
  Format(
    'q.jsonl',
    ('--source=folder', '--questions={}'),
    _asked('video', lambda n: f'{_video(n)}.mp4'),
    lambda row: (row['video'], row['question']),
  ),
  Format(
    'q.csv',
    ('--source=folder', '--questions={}'),
    _asked('video', lambda n: f'{_video(n)}.mp4'),
    lambda row: (row['video'], row['question']),
  ),
  Format(
    'w.csv',
    ('--source=webvid', '--captions={}', '--txt_len_below=80'),
    lambda n: {'video_id': _video(n), 'text': _caption(n), 'txt_len': '20'},
    lambda row: (f'{row["video_id"]}.mp4', row['text']),
  ),
  Format(
    'w2.csv',
    ('--source=webvid', '--captions={}'),
    lambda n: {'videoid': _video(n), 'contentUrl': 'http://x', 'page_dir': '', 'name': _caption(n)},
    lambda row: (f'{row["videoid"]}.mp4', row['name']),
  ),
  Format(
    'cc.json',
    ('--source=cc3m', '--captions={}'),
    lambda n: {'image': f'{n % 6}.png', 'caption': _caption(n)},
    lambda row: (row['image'], row['caption']),
  ),
  Format(
    'm.json',
    ('--source=msrvtt', '--captions={}'),
    lambda n: {'video_id': _video(n), 'caption': _caption(n), 'sen_id': n},
    lambda row: (f'{row["video_id"]}.mp4', row['caption']),
    'sentences',
  ),
  Format(
    'm7k.json',
    ('--source=msrvtt', '--captions={}', '--subset=7k'),
    lambda n: {'video_id': _video(n), 'caption': _caption(n)},
    lambda row: (f'{row["video_id"]}.mp4', row['caption']),
    'sentences',
  ),
  Format(
    'm.csv',
    ('--source=msrvtt', '--captions={}'),
    lambda n: {'key': f'ret{n}', 'video_id': _video(n), 'sentence': _caption(n)},
    lambda row: (f'{row["video_id"]}.mp4', row['sentence']),
  ),
  Format(
    'm.jsonl',
    ('--source=msrvtt', '--captions={}'),
    lambda n: {'clip_name': _video(n), 'caption': _caption(n)},
    lambda row: (f'{row["clip_name"]}.mp4', row['caption']),
  ),
  Format(
    'mq.json',
    ('--source=msrvtt', '--questions={}'),
    _asked('video_id', lambda n: n % 6),
    lambda row: (f'video{row["video_id"]}.mp4', row['question']),
  ),
  Format(
    'mq.jsonl',
    ('--source=msrvtt', '--questions={}'),
    _asked('video_id', _video),
    lambda row: (f'{row["video_id"]}.mp4', row['question']),
  ),
  Format(
    'd.json',
    ('--source=didemo', '--captions={}'),
    lambda n: {'video': f'{_video(n)}.mp4', 'description': _caption(n), 'times': [[0, 1]]},
    lambda row: (row['video'], row['description']),
  ),
  Format(
    'd.jsonl',
    ('--source=didemo', '--captions={}'),
    lambda n: {'clip_name': _video(n), 'caption': _caption(n)},
    lambda row: (f'{row["clip_name"]}.mp4', row['caption']),
  ),
  Format(
    'v.json',
    ('--source=msvd', '--questions={}'),
    _asked('video_id', lambda n: n % 6),
    lambda row: (f'vid{row["video_id"]}.avi', row['question']),
  ),
  Format(
    'v.jsonl',
    ('--source=msvd', '--questions={}'),
    _asked('video_id', lambda n: f'vid{n % 6}'),
    lambda row: (f'{row["video_id"]}.avi', row['question']),
  ),
)


def write_rows(format, rows):
  """Returns the bytes of an annotation file; rows may be damaged."""
  if format.name.endswith('.csv'):
    text = io.StringIO()
    columns = list(format.row(0))
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(columns)
    for row in rows:
      if isinstance(row, dict):
        extra = [key for key in row if key not in columns]
        writer.writerow([row.get(key, '') for key in columns] + [row[key] for key in extra])
      else:
        text.write(f'{row}\n')
    return text.getvalue().encode('utf-8', 'surrogatepass')
  if format.name.endswith('.jsonl'):
    return b''.join(json.dumps(row).encode() + b'\n' for row in rows)
  value = rows
  if format.wrap:
    value = {
      'info': {},
      'videos': [{'video_id': _video(n), 'split': 'train'} for n in range(6)],
      format.wrap: rows,
    }
  return json.dumps(value, indent=0).encode()


def damage(rng, format, rows):
  """Returns a damaged annotation file, and whether only rows are damaged."""
  kind = rng.choice(('rows', 'rows', 'rows', 'lines', 'lines', 'bytes'))
  if kind == 'rows':
    rows = list(rows)
    for _ in range(rng.choice((1, 2, 4))):
      place = rng.randrange(len(rows))
      if rng.randrange(5):
        original = format.row(place)
        rows[place] = mutations.bend_row(rng, original)
      else:
        rows.insert(place, rows[rng.randrange(len(rows))])
    return write_rows(format, rows), True
  data = write_rows(format, rows)
  if kind == 'bytes':
    other = rng.choice(FORMATS)
    return mutations.bend(rng, data, write_rows(other, [other.row(n) for n in range(9)])), False
  for _ in range(rng.choice((1, 1, 3))):
    data = mutations.bend_lines(rng, data)
  return data, False


def intact(format, rows, data):
  """Yields (number of the line or entry, row) of rows that are as they were."""
  if format.name.endswith('.json'):
    try:
      value = json.loads(data.decode('utf-8-sig'))
    except (ValueError, RecursionError):
      return
    if format.wrap:
      value = value.get(format.wrap) if isinstance(value, dict) else None
    if isinstance(value, list):
      yield from ((number, row) for number, row in enumerate(value) if row in rows)
    return
  lines = {}
  for row in rows:
    lines[write_rows(format, [row]).splitlines()[-1]] = row
  found = data.split(b'\n')
  head = write_rows(format, []).splitlines()
  if head and found[0].removeprefix(b'\xef\xbb\xbf') != head[0]:
    return  # Other columns: what its rows say is another thing.
  # A lone \r ends a line of csv too.
  number = 1
  for line in found:
    if line in lines and not (number == 1 and head):
      yield number, lines[line]
    number += 1
    if head:
      number += line.removesuffix(b'\r').count(b'\r')


def covers(detail, path, number):
  """Does a reason in the report name this line, or entry, of the file?"""
  where = detail.removeprefix(f'{path}:').split(':')[0].split(' ')[-1]
  first, _, last = where.partition('-')
  return first.isdigit() and int(first) <= number <= int(last or first)


@pytest.fixture
def here(tmp_path, monkeypatch):
  """Folder of six small videos, read in this process: that is not tested."""

  def make(parts, settings, progress, *, num_workers, timeout_s):
    for part in parts:
      set_parts.write_part(
        part.stem,
        map(set_parts.index_row, part.clips),
        (prepare.make_record(clip, **settings) for clip in part.clips),
        progress,
      )
    return sum(len(part.clips) for part in parts)

  monkeypatch.setattr(set_parts, 'make_here', make)
  folder = tmp_path / 'videos'
  folder.mkdir()
  data = small_videos.write_video(tmp_path / 'a.mp4', frames=2, size=(16, 16)).read_bytes()
  for number in range(6):
    for name in (f'video{number}.mp4', f'vid{number}.avi'):
      (folder / name).write_bytes(data)
    Image.new('RGB', (8, 8)).save(folder / f'{number}.png')
  return folder


def check_one_sentence(said):
  errors = [line for line in said.splitlines() if line.startswith('error: ')]
  assert len(errors) == 1 and 'Traceback' not in said, said


def check_annotations(tmp_path, videos, seed, capsys):
  """Prepares from one damaged file; returns the exit code."""
  rng = random.Random(seed)
  format = rng.choice(FORMATS)
  rows = [format.row(n) for n in range(9)]
  data, only_rows = damage(rng, format, rows)
  folder = tmp_path / f'seed{seed}'
  folder.mkdir()
  path, output = folder / format.name, folder / 'set'
  path.write_bytes(data)
  args = [arg.format(path) for arg in format.args]
  with limit(60):
    code = run(*args, f'--videos={videos}', f'--output={output}')
  said = capsys.readouterr().err
  kept = list(intact(format, rows, data))
  if code == 2:
    check_one_sentence(said)
    assert not (only_rows and kept), (said, data)
    return code
  assert code == 0
  report, prepared = opened(output)
  counts, skipped = report['counts'], report['skipped']
  assert sum(report['skipped_by_reason'].values()) == len(skipped)
  texts = {}
  for info in prepared.metadata():
    texts[info.video] = '\n'.join([*info.captions, *(asked.text for asked in info.questions)])
  assert counts['prepared'] == len(prepared) == len(texts)
  lost = [skip for skip in skipped if not skip['detail'].startswith(f'{path}')]
  assert counts['clips'] == counts['prepared'] + len(lost)
  # No row without a consequence. A clip that is lost may be of several, and
  # so may be a paragraph of DiDeMo.
  if not lost and 'didemo' not in args[0]:
    assert (
      counts['captions'] + counts['questions'] + len(skipped) + counts['rows_of_other_splits']
      >= counts['rows']
    )
  everything = '\n'.join(texts.values())
  for number, row in kept:
    video, text = format.says(row)
    named = any(covers(skip['detail'], path, number) for skip in skipped)
    # An unclosed quote that another row closes makes one text of all between.
    assert (
      text in texts.get(video, '') or named or format.name.endswith('.csv') and text in everything
    ), (number, row, data, skipped)
  return code


LISTS = (
  ('ids.txt', '--ids', 'mq.json', [f'video{n}' for n in range(4)]),
  ('ids.csv', '--ids', 'm.jsonl', ['video_id', 'video1', 'video2']),
  ('not.txt', '--except_ids', 'd.json', [f'video{n}.mp4' for n in range(3)]),
  ('map.txt', '--mapping', 'v.json', [f'vid{n} vid{n}' for n in range(6)]),
)


def check_lists(tmp_path, videos, seed, capsys):
  """Prepares from whole annotations with a damaged list of videos."""
  rng = random.Random(seed)
  name, flag, of, lines = rng.choice(LISTS)
  (format,) = (format for format in FORMATS if format.name == of)
  rows = [format.row(n) for n in range(9)]
  folder = tmp_path / f'list{seed}'
  folder.mkdir()
  path, output = folder / format.name, folder / 'set'
  path.write_bytes(write_rows(format, rows))
  data = ('\n'.join(lines) + '\n').encode()
  bend = rng.choice((mutations.bend_lines, lambda rng, data: mutations.bend(rng, data, b'x')))
  (folder / name).write_bytes(bend(rng, data))
  with limit(60):
    code = run(
      *(arg.format(path) for arg in format.args),
      f'{flag}={folder / name}',
      f'--videos={videos}',
      f'--output={output}',
    )
  said = capsys.readouterr().err
  if code == 2:
    check_one_sentence(said)
    return code
  assert code == 0
  report, prepared = opened(output)
  texts = '\n'.join(
    text
    for info in prepared.metadata()
    for text in [*info.captions, *(asked.text for asked in info.questions)]
  )
  named = [skip for skip in report['skipped'] if str(path) in skip['detail']]
  found = sum(format.says(row)[1] in texts for row in rows)
  assert report['counts']['rows'] == len(rows)
  # A clip that is not there may be of several rows.
  assert 'missing file' in report['skipped_by_reason'] or (
    found + report['counts']['rows_of_other_splits'] + len(named) >= len(rows)
  )
  return code


def test_damaged_annotations(tmp_path, here, capsys):
  codes = [check_annotations(tmp_path, here, seed, capsys) for seed in (*range(24), *FOUND)]
  assert codes.count(0) > 12
  codes = [check_lists(tmp_path, here, seed, capsys) for seed in range(8)]
  assert 0 in codes


@pytest.mark.reliability
def test_many_damaged_lists(tmp_path, here, capsys):
  codes = [check_lists(tmp_path, here, seed, capsys) for seed in range(2000, 2100)]
  assert codes.count(0) > 30 and codes.count(2) > 5


@pytest.mark.reliability
@pytest.mark.parametrize('first', range(1000, 1500, 100))
def test_many_damaged_annotations(tmp_path, here, capsys, first):
  codes = [check_annotations(tmp_path, here, seed, capsys) for seed in range(first, first + 100)]
  assert codes.count(0) > 50 and codes.count(2) > 5
