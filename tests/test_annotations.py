"""Captions files: what is read, and how what cannot be is named."""

import json
import sys
import types

import pytest

from alpro_jax.data import annotations, clips, fetch, sources
from alpro_jax.data.names import file_of, find_file


def _write(tmp_path, name, text):
  path = tmp_path / name
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  return path


def _reasons(source):
  return [(skip.item, skip.reason) for skip in source.skipped]


def test_captions_of_a_video_come_together(tmp_path):
  path = _write(
    tmp_path,
    'c.jsonl',
    '\n'.join(
      [
        '\ufeff{"video": "a.mp4", "caption": " one ", "style": "full"}',
        '{"video": "b.mp4", "caption": ["two", "three"]}',
        '',
        '{"video": "./a.mp4", "caption": "four", "style": null}',
      ]
    ),
  )
  source = sources.read_folder(path)
  a, b = source.clips
  assert (a.video, a.captions, a.styles) == ('a.mp4', ('one', 'four'), ('full', ''))
  assert (b.captions, b.styles) == (('two', 'three'), ('', ''))
  assert source.rows == 3 and not source.skipped
  assert not a.still


def test_questions_with_captions_and_alone(tmp_path):
  captions = _write(tmp_path, 'c.jsonl', '{"video": "a.mp4", "caption": "x"}')
  questions = _write(
    tmp_path,
    'q.csv',
    (
      'video,question,answer,type,split\n'
      'b.mp4,Is it?,yes,,\n'
      './a.mp4, what colour , red ,colour,train\n'
      'a.mp4,who,dog,,test\n'
    ),
  )
  source = sources.read_folder(captions, questions)
  a, b = source.clips
  assert (a.video, a.captions, a.questions) == (
    'a.mp4',
    ('x',),
    (annotations.Question('what colour', 'red', 'colour'),),
  )
  assert (b.captions, b.styles) == ((), ())
  assert b.questions == (annotations.Question('Is it?', 'yes', 'other'),)
  assert (source.rows, source.other_splits) == (4, 1)
  alone = sources.read_folder(questions=questions)
  assert [clip.video for clip in alone.clips] == ['b.mp4', 'a.mp4']
  assert len({alone.digest(), source.digest(), sources.read_folder(captions).digest()}) == 3


@pytest.mark.parametrize(
  ('question', 'kind'),
  [
    ('What is it?', 'what'),
    ("who's there", 'who'),
    ('whose hat', 'who'),
    (' "How many', 'how'),
    ('where', 'where'),
    ('When', 'when'),
    ('whatever', 'other'),
    ('is it', 'other'),
    ('3 what', 'other'),
    ('', 'other'),
    ('было', 'other'),
  ],
)
def test_kinds_follow_the_first_word(question, kind):
  assert clips.kind_of(question) == kind


def test_bad_questions_are_named_with_their_line(tmp_path):
  path = _write(
    tmp_path,
    'q.jsonl',
    '\n'.join(
      json.dumps(row)
      for row in [
        {'video': 'a.mp4', 'question': 'who', 'answer': 'dog'},
        {'video': 'b.mp4', 'question': '', 'answer': 'dog'},
        {'video': 'c.mp4', 'question': 'who', 'answer': ' '},
        {'video': 'd.mp4', 'question': 'who'},
        {'video': 'e.mp4', 'question': 'who', 'answer': 2},
        {'video': 'f.mp4', 'question': ['who'], 'answer': 'dog'},
        {'video': 'g.mp4', 'question': 'who', 'answer': 'dog', 'type': 1},
        {'video': 'h.mp4', 'question': 'who', 'answer': '\ud800'},
        {'video': '../a.mp4', 'question': 'who', 'answer': 'dog'},
      ]
    ),
  )
  source = sources.read_folder(questions=path)
  assert [clip.video for clip in source.clips] == ['a.mp4']
  assert _reasons(source) == [
    ('b.mp4', 'empty question'),
    ('c.mp4', 'empty answer'),
    ('d.mp4', 'bad row'),
    ('e.mp4', 'bad row'),
    ('f.mp4', 'bad row'),
    ('g.mp4', 'bad row'),
    ('h.mp4', 'bad row'),
    ('../a.mp4', 'outside the folder of videos'),
  ]
  assert all(f'{path}:' in skip.detail for skip in source.skipped)
  with pytest.raises(ValueError, match='--questions=.*.txt must end in'):
    sources.read_folder(questions=_write(tmp_path, 'q.txt', 'x'))
  with pytest.raises(ValueError, match='but not answer'):
    sources.read_folder(questions=_write(tmp_path, 'q.csv', 'video,question\n'))


def test_bad_rows_are_named_with_their_line(tmp_path):
  path = _write(
    tmp_path,
    'c.jsonl',
    b'\n'.join(
      [
        b'{"video": "a.mp4", "caption": "fine"}',
        b'{"video": "a.mp4", "caption": "fine"}',
        b'{"video": "b.mp4", "caption": "  "}',
        b'not json',
        b'[1, 2]',
        b'{"video": "c.mp4"}',
        b'{"video": "d.mp4", "caption": 3}',
        b'{"video": 4, "caption": "x"}',
        b'{"video": "e.mp4", "caption": "\xff"}',
        b'{"video": "f.mp4", "caption": "\\ud800"}',
        b'{"video": "g.mp4", "caption": []}',
        b'{"video": "", "caption": "x"}',
        b'{"video": "h.mp4", "caption": "x", "style": 5}',
        b'{"video": [], "caption": "x", "split": "val"}',
        b'[' * 100000,
      ]
    ),
  )
  source = sources.read_folder(path)
  assert [clip.video for clip in source.clips] == ['a.mp4']
  assert _reasons(source) == [
    ('a.mp4', 'duplicate row'),
    ('b.mp4', 'empty caption'),
    (f'{path}:4', 'bad row'),
    (f'{path}:5', 'bad row'),
    ('c.mp4', 'bad row'),
    ('d.mp4', 'bad row'),
    ('4', 'bad row'),
    (f'{path}:9', 'bad row'),
    ('f.mp4', 'bad row'),
    ('g.mp4', 'empty caption'),
    ('', 'no video name'),
    ('h.mp4', 'bad row'),
    ('[]', 'bad row'),
    (f'{path}:15', 'bad row'),
  ]
  assert all(f'{path}:' in skip.detail for skip in source.skipped)


def test_csv_with_quotes_newlines_and_wrong_columns(tmp_path):
  path = _write(
    tmp_path,
    'c.csv',
    (
      'video,caption,style\r\n'
      'a.mp4,"one, with ""quotes""\nand a new line",full\r\n'
      'b.mp4,two,a,b\r\n'
      'c.mp4,three\r\n'
      '"d é\n.mp4",four,\r\n'
    ).encode()
    + b'e.mp4,\xff,\r\n',
  )
  source = sources.read_folder(path)
  assert [clip.video for clip in source.clips] == ['a.mp4', 'd é\n.mp4']
  assert source.clips[0].captions == ('one, with "quotes"\nand a new line',)
  assert [(s.item, s.detail.removeprefix(f'{path}:')) for s in source.skipped] == [
    ('b.mp4', '4: 4 columns, expected 3; quote fields that hold a comma'),
    ('c.mp4', '5: 2 columns, expected 3'),
    ('e.mp4', '8: not UTF-8'),
  ]


def test_an_open_quote_hides_no_row(tmp_path):
  path = _write(
    tmp_path,
    'c.csv',
    (
      'video,caption\na.mp4,one\nb.mp4,"two\nc.mp4,three\nd.mp4,"four"\n'
      'e.mp4,"five" six\nf.mp4,seven\ng.mp4,"eight\n'
    ),
  )
  source = sources.read_folder(path)
  assert [clip.video for clip in source.clips] == ['a.mp4', 'f.mp4']
  assert [skip.item.removeprefix(f'{path}:') for skip in source.skipped] == ['3-5', '6', '8']
  assert all('is a quote not closed' in s.detail for s in source.skipped)


def test_a_column_named_twice_is_refused(tmp_path):
  path = _write(tmp_path, 'c.csv', 'video,caption,caption\na.mp4,x,y\n')
  with pytest.raises(ValueError, match="names its column 'caption' twice"):
    sources.read_folder(path)
  # As pandas names that of its index.
  path = _write(tmp_path, 'd.csv', ',,video,caption\n0,0,a.mp4,x\n')
  assert len(sources.read_folder(path).clips) == 1


def test_a_first_line_without_end_is_refused(tmp_path):
  path = _write(tmp_path, 'c.csv', 'video,"caption\na.mp4,x\n')
  with pytest.raises(ValueError, match='is not CSV: its first line'):
    sources.read_folder(path)


def test_what_is_named_can_be_shown():
  nested = []
  for _ in range(100_000):
    nested = [nested]
  assert annotations.printable(nested) == 'nested list'
  assert annotations.printable('a\udcff' * 9) == r'a\udcff' * 9
  shown = annotations.printable({'a': 'x' * 99_999})
  assert len(shown) < 6000 and shown.endswith('xxx...')
  while nested:  # One by one, or its end would be deep as well.
    nested = nested[0]


@pytest.mark.parametrize('name', ['../a.mp4', 'x/../../a.mp4', '/etc/passwd', 'a\0.mp4', '.', ' '])
def test_names_stay_in_the_folder(tmp_path, name):
  path = _write(
    tmp_path,
    'c.jsonl',
    '\n'.join(json.dumps({'video': video, 'caption': 'x'}) for video in (name, 'ok.mp4')),
  )
  source = sources.read_folder(path)
  assert [clip.video for clip in source.clips] == ['ok.mp4']
  assert source.skipped[0].reason in (
    'outside the folder of videos',
    'bad video name',
    'no video name',
  )


def test_rows_of_other_splits_are_counted(tmp_path):
  path = _write(tmp_path, 'c.csv', 'video,caption,split\na.mp4,x,train\n./b.mp4,y,val\nc.mp4,z,\n')
  assert [c.video for c in sources.read_folder(path).clips] == ['a.mp4', 'c.mp4']
  source = sources.read_folder(path, split='val')
  assert [c.video for c in source.clips] == ['b.mp4', 'c.mp4']
  assert source.other_splits == 1
  assert source.named == {'a.mp4', 'b.mp4', 'c.mp4'}


def test_digest_follows_the_list(tmp_path):
  def digest(*captions):
    path = _write(
      tmp_path,
      'c.jsonl',
      '\n'.join(json.dumps({'video': f'{c}.mp4', 'caption': c}) for c in captions),
    )
    return sources.read_folder(path).digest()

  assert digest('a', 'b') == digest('a', 'b')
  assert len({digest('a', 'b'), digest('b', 'a'), digest('a')}) == 3


def test_webvid_csv(tmp_path):
  path = _write(
    tmp_path, 'w.csv', 'video_id,txt_len,text\n1,79,short\n2,80,long\n3,many,odd\n../4,5,bad\n'
  )
  source = sources.read_webvid(path)
  assert [clip.files for clip in source.clips] == [('1.mp4',), ('2.mp4',), ('3.mp4',)]
  source = sources.read_webvid(path, txt_len_below=80)
  assert [clip.video for clip in source.clips] == ['1.mp4']
  assert _reasons(source) == [
    ('2.mp4', 'text too long'),
    ('3', 'bad row'),
    ('../4.mp4', 'outside the folder of videos'),
  ]


def test_webvid_csv_as_published(tmp_path):
  path = _write(
    tmp_path, 'w.csv', 'videoid,contentUrl,duration,page_dir,name\n12,http://x,PT1S,000_050,A dog\n'
  )
  (clip,) = sources.read_webvid(path).clips
  assert clip.files == ('000_050/12.mp4', '12.mp4')
  with pytest.raises(ValueError, match='not txt_len'):
    sources.read_webvid(path, txt_len_below=80)


def test_webvid_pickle_only_with_the_flag(tmp_path, monkeypatch):
  path = _write(tmp_path, 'w.pkl', b'')
  with pytest.raises(ValueError, match='pass --allow_pickle'):
    sources.read_webvid(path)
  table = types.SimpleNamespace(
    columns=['video_id', 'txt_len', 'text'],
    itertuples=lambda index: [(1, 9, 'a'), (2, 9, float('nan'))],
  )
  monkeypatch.setitem(sys.modules, 'pandas', types.SimpleNamespace(read_pickle=lambda path: table))
  source = sources.read_webvid(path, allow_pickle=True)
  assert [clip.video for clip in source.clips] == ['1.mp4']
  assert _reasons(source) == [('2.mp4', 'bad row')]
  monkeypatch.setitem(sys.modules, 'pandas', None)
  with pytest.raises(ValueError, match='pandas is not installed'):
    sources.read_webvid(path, allow_pickle=True)


def test_real_pickle(tmp_path):
  pandas = pytest.importorskip('pandas')
  path = tmp_path / 'w.pkl'
  pandas.DataFrame({'video_id': [1, 2], 'txt_len': [5, 90], 'text': ['a', 'b']}).to_pickle(path)
  source = sources.read_webvid(path, allow_pickle=True, txt_len_below=80)
  assert [clip.video for clip in source.clips] == ['1.mp4']


def test_cc3m(tmp_path):
  images = tmp_path / 'images'
  path = _write(
    tmp_path,
    'cc.json',
    json.dumps(
      [
        {'image': 'a.jpg', 'caption': 'one'},
        {'image': str(images / 'sub' / 'b.jpg'), 'caption': ['two', 'three']},
        {'image': '/etc/passwd', 'caption': 'no'},
        {'image': f'{images}/../x.jpg', 'caption': 'no'},
        {'image': 'c.jpg'},
        'text',
      ]
    ),
  )
  source = sources.read_cc3m(path, images)
  assert [(c.video, c.captions, c.still) for c in source.clips] == [
    ('a.jpg', ('one',), True),
    ('sub/b.jpg', ('two', 'three'), True),
  ]
  assert [reason for _, reason in _reasons(source)] == ['outside the folder of videos'] * 2 + [
    'bad row'
  ] * 2


def test_a_folder_may_hold_photos_beside_videos(tmp_path):
  rows = [{'video': name, 'caption': 'one'} for name in ('a.mp4', 'b.JPG', 'c.gif', 'd.png')]
  (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  clips = sources.read_folder(tmp_path / 'rows.jsonl').clips
  assert [clip.still for clip in clips] == [False, True, False, True]


def test_an_address_of_a_photo_is_a_photo_and_may_stand_in_its_own_column(tmp_path):
  photo, clip = 'https://a.org/photo.JPG?size=1', 'https://a.org/clip.mov'
  rows = [
    {'video': photo, 'caption': 'one'},
    {'url': photo, 'caption': 'two'},
    {'video': '', 'contentUrl': clip, 'url': photo, 'caption': 'three'},
  ]
  path = _write(tmp_path, 'rows.jsonl', ''.join(json.dumps(row) + '\n' for row in rows))
  found = sources.read_folder(path)
  assert not found.skipped
  assert [(x.video, x.still, x.captions) for x in found.clips] == [
    (file_of(photo), True, ('one', 'two')),
    (file_of(clip), False, ('three',)),
  ]
  assert file_of(photo).endswith('.JPG') and file_of(clip).endswith('.mov')
  fetched, _, _ = fetch.read_videos(path)
  assert [x.name for x in fetched] == [x.video for x in found.clips]


@pytest.mark.parametrize('name', ['c.csv', 'c.jsonl'])
def test_a_column_in_capitals_is_not_passed_over(tmp_path, name):
  text = 'video,caption,Split\na.mp4,one,test\n'
  if name == 'c.jsonl':
    text = '{"video": "a.mp4", "caption": "one", " Split": "test"}\n'
  found = sources.read_folder(_write(tmp_path, name, text))
  assert not found.clips
  assert "which is not read; call it 'split'" in found.skipped[0].detail


def test_a_key_that_occurs_twice_makes_a_bad_row(tmp_path):
  good, bad = '{"video": "a.mp4", "caption": "one"}', '{"video": "b.mp4", "video": "c.mp4"}'
  for name, text in (('c.jsonl', f'{good}\n{bad}\n'), ('c.json', f'[{good}, {bad}]')):
    found = sources.read_folder(_write(tmp_path, name, text))
    assert [clip.video for clip in found.clips] == ['a.mp4']
    assert "'video' occurs twice" in found.skipped[0].detail


def test_spellings_of_one_object_of_a_bucket_are_one_clip(tmp_path, monkeypatch):
  there = {'gs://b/v/a.mp4', 'gs://b/v/c.mp4', 'gs://b/v/c.MP4'}
  monkeypatch.setattr(clips, 'exists', lambda path: path in there)
  rows = [{'video': x, 'caption': x} for x in ('a.mp4', 'a.MP4', 'c.mp4', 'c.MP4')]
  path = _write(tmp_path, 'rows.jsonl', ''.join(json.dumps(row) + '\n' for row in rows))
  found = sources.read_folder(path, root='gs://b/v').clips
  assert [(x.video, x.captions) for x in found] == [
    ('a.mp4', ('a.mp4', 'a.MP4')),
    ('c.mp4', ('c.mp4',)),
    ('c.MP4', ('c.MP4',)),
  ]


@pytest.mark.parametrize(
  ('name', 'text', 'match'),
  [
    ('c.csv', 'file,caption\n', 'but not video'),
    ('c.csv', '', 'but not video or contentUrl or url, caption'),
    ('c.txt', 'x', 'must end in .csv, .jsonl, .json or .ndjson'),
  ],
)
def test_wrong_files(tmp_path, name, text, match):
  with pytest.raises(ValueError, match=match):
    sources.read_folder(_write(tmp_path, name, text))


def test_wrong_files_of_the_other_sources(tmp_path):
  with pytest.raises(FileNotFoundError, match='--captions=.* is not a file'):
    sources.read_folder(tmp_path / 'none.csv')
  with pytest.raises(ValueError, match='expected a list'):
    sources.read_cc3m(_write(tmp_path, 'a.json', '{}'), tmp_path)
  with pytest.raises(ValueError, match='is not JSON'):
    sources.read_cc3m(_write(tmp_path, 'a.json', 'x'), tmp_path)
  with pytest.raises(ValueError, match='must end in .csv'):
    sources.read_webvid(_write(tmp_path, 'a.json', 'x'))
  with pytest.raises(ValueError, match='holds no pandas DataFrame|pandas is'):
    sources.read_webvid(_write(tmp_path, 'a.pkl', 'x'), allow_pickle=True)


@pytest.mark.parametrize('name', ['c.json', 'c.jsonl'])
@pytest.mark.parametrize('indent', [None, 1])
def test_a_json_list_is_read_as_lines_are(tmp_path, name, indent):
  rows = [
    {'video': 'a.mp4', 'caption': 'a\u2028dog'},
    {'video': 'b.mp4', 'caption': ['two', 'three']},
    7,
  ]
  text = json.dumps(rows, indent=indent, ensure_ascii=False)
  source = sources.read_folder(_write(tmp_path, name, f'\ufeff\n{text}\n'))
  assert [(clip.video, clip.captions) for clip in source.clips] == [
    ('a.mp4', ('a\u2028dog',)),
    ('b.mp4', ('two', 'three')),
  ]
  assert source.rows == 3
  assert source.skipped[0].detail.endswith('entry 2: int, expected an object')
  questions = _write(
    tmp_path,
    f'q{name}',
    json.dumps([{'video': 'a.mp4', 'question': 'who', 'answer': 'dog'}], indent=indent),
  )
  (clip,) = sources.read_folder(questions=questions).clips
  assert clip.questions == (annotations.Question('who', 'dog', 'who'),)


def test_a_damaged_json_list_is_refused(tmp_path):
  # Its last line alone would be a row.
  path = _write(
    tmp_path,
    'c.json',
    '[\n{"video": "a.mp4", "caption": "x"},\n'
    '{"video": "b.mp4" "caption": "y"},\n'
    '{"video": "c.mp4", "caption": "z"}\n]\n',
  )
  with pytest.raises(ValueError, match='c.json is not JSON'):
    sources.read_folder(path)
  # A list among lines is a bad row, also the first.
  path = _write(tmp_path, 'd.jsonl', '[1]\n{"video": "a.mp4", "caption": "x"}')
  source = sources.read_folder(path)
  assert [clip.video for clip in source.clips] == ['a.mp4']
  assert _reasons(source) == [(f'{path}:1', 'bad row')]


def test_absolute_paths_inside_the_folder(tmp_path):
  root, link = tmp_path / 'videos', tmp_path / 'link'
  (root / 'sub').mkdir(parents=True)
  link.symlink_to(root)
  path = _write(
    tmp_path,
    'c.csv',
    'video,caption,split\n'
    + ''.join(
      f'{video},x{i},{split}\n'
      for i, (video, split) in enumerate(
        [
          (root / 'a.mp4', ''),
          (f'{link}/./sub//b.mp4', ''),
          (f'{root}/../a.mp4', ''),
          (f'{root}2/a.mp4', ''),
          (root, ''),
          ('/etc/passwd', ''),
          ('a.mp4', ''),
          (root / 'c.mp4', 'val'),
        ]
      )
    ),
  )
  for given in (root, f'{root}/', link):
    source = sources.read_folder(path, root=given)
    assert [clip.video for clip in source.clips] == ['a.mp4', 'sub/b.mp4']
    assert source.clips[0].captions == ('x0', 'x6')
    assert 'c.mp4' in source.named
  assert [reason for _, reason in _reasons(source)] == ['outside the folder of videos'] * 4
  assert len(sources.read_folder(path).clips) == 1


@pytest.mark.parametrize('text', ['nan', 'NaN', 'None', 'null', 'NULL', '<NA>', ' nan ', 'N/A'])
def test_text_that_stands_for_no_value_is_none(tmp_path, text):
  captions = _write(
    tmp_path,
    'c.csv',
    (f'video,caption,style,split\na.mp4,{text},,\na.mp4,none of us,{text},{text}\n{text},x,,\n'),
  )
  questions = _write(
    tmp_path,
    'q.csv',
    (f'video,question,answer,type\na.mp4,{text},dog,\na.mp4,who,{text},\na.mp4,who,dog,{text}\n'),
  )
  source = sources.read_folder(captions, questions)
  (clip,) = source.clips
  assert (clip.captions, clip.styles) == (('none of us',), ('',))
  assert clip.questions == (annotations.Question('who', 'dog', 'who'),)
  assert _reasons(source) == [
    ('a.mp4', 'empty caption'),
    (text, 'no video name'),
    ('a.mp4', 'empty question'),
    ('a.mp4', 'empty answer'),
  ]
  assert source.skipped[0].detail == (f'{captions}:2: {text.strip()!r} stands for no value')
  webvid = _write(
    tmp_path, 'w.csv', (f'videoid,page_dir,name\n1,{text},a dog\n2,p,{text}\n{text},p,x\n')
  )
  source = sources.read_webvid(webvid)
  assert [clip.files for clip in source.clips] == [('1.mp4',)]
  assert [reason for _, reason in _reasons(source)] == ['empty caption', 'bad row']


def test_names_in_other_forms_of_unicode_and_suffix(tmp_path):
  nfc, nfd = 'caf\u00e9.mp4', 'cafe\u0301.mp4'
  path = _write(
    tmp_path,
    'c.jsonl',
    '\n'.join(
      json.dumps({'video': name, 'caption': f'x{i}'})
      for i, name in enumerate([nfd, nfc, 'a.mp4', 'a.MP4', 'b.mp4', 'b.MP4', 'A.mp4'])
    ),
  )
  for name in (nfd, 'a.MP4', 'b.mp4', 'b.MP4'):
    (tmp_path / name).write_bytes(b'x')
  source = sources.read_folder(path, root=tmp_path)
  assert [(clip.video, clip.captions) for clip in source.clips] == [
    (nfc, ('x0', 'x1')),
    ('a.mp4', ('x2', 'x3')),
    ('b.mp4', ('x4',)),
    ('b.MP4', ('x5',)),
    ('A.mp4', ('x6',)),
  ]

  def find(*names):
    found = find_file(str(tmp_path), names)
    return found and found.removeprefix(f'{tmp_path}/')

  assert find(nfc) == find(nfd) == nfd
  assert find('a.mp4') == find('a.Mp4') == find('x.mp4', 'a.avi', 'a.mp4')
  assert find('a.mp4') == 'a.MP4' and find('b.mp4') == 'b.mp4'
  assert find('A.mp4') is None and find('a.avi') is None
  for names in (['b.Mp4'], [nfc]):
    (tmp_path / nfc).write_bytes(b'y')
    with pytest.raises(ValueError, match='one name, two files'):
      find(*names)


def test_cc3m_as_published(tmp_path):
  jpg, bare = 'http://a.example/x/dog.JPG?w=9', 'https://b.example/show'
  path = _write(
    tmp_path,
    'Train_GCC-training.tsv',
    (
      f'a "dog\u2028 swims , it \'s wet\t{jpg}\r\n'
      f'a cat\t{bare}\nno address\tdog.jpg\nthree\t{bare}\tcolumns\n\n'
      f'nan\thttp://c.example/c.png\n'
    ),
  )
  source = sources.read_cc3m(path, tmp_path)
  dog, cat = source.clips
  assert dog.captions == ('a "dog\u2028 swims , it \'s wet',)
  assert cat.captions == ('a cat',) and cat.still
  assert dog.video.startswith('dog-') and dog.video.endswith('.JPG')
  assert cat.video.startswith('show-') and cat.video.endswith('.jpg')
  assert source.rows == 5
  assert [reason for _, reason in _reasons(source)] == ['bad row', 'bad row', 'empty caption']
  assert source.skipped[0].detail.startswith(f'{path}:3: expected a caption')
  # What img2dataset asks for: a first line with the names of the columns.
  path.write_text(f'caption\turl\na cat\t{bare}\n')
  assert sources.read_cc3m(path, tmp_path).clips == [cat]
  # The same files are fetched.
  videos, _, rows = fetch.read_videos(path)
  assert (rows, [(v.url, v.name) for v in videos]) == (1, [(bare, cat.video)])
  as_json = _write(tmp_path, 'c.json', json.dumps([{'image': bare, 'caption': 'a cat'}]))
  assert sources.read_cc3m(as_json, tmp_path).clips == [cat]
  assert fetch.read_videos(as_json)[0] == videos
