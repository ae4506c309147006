"""MSRVTT, DiDeMo and MSVD, as published and as the original has them."""

import json

import pytest

from alpro_jax.data import sources
from alpro_jax.data.annotations import Question

VIDEOS = {
  'video0': 'train',
  'video1': 'train',
  'video2': 'validate',
  'video3': 'test',
  'video4': 'test',
}


def _write(folder, name, content):
  path = folder / name
  if name.endswith('.jsonl'):
    content = ''.join(json.dumps(row) + '\n' for row in content)
  elif name.endswith('.json'):
    content = json.dumps(content)
  path.write_text(content)
  return str(path)


def _captions(source):
  return {clip.video: clip.captions for clip in source.clips}


def _questions(source):
  return {clip.video: clip.questions for clip in source.clips}


def _reasons(source):
  return [(skip.item, skip.reason) for skip in source.skipped]


@pytest.fixture
def info(tmp_path):
  return _write(
    tmp_path,
    'MSRVTT_data.json',
    {
      'info': {},
      'videos': [
        {
          'id': i,
          'video_id': video,
          'split': split,
          'url': '',
          'category': 9,
          'start time': 1.5,
          'end time': 9.0,
        }
        for i, (video, split) in enumerate(VIDEOS.items())
      ],
      'sentences': [
        {'video_id': video, 'sen_id': 2 * i + j, 'caption': f'{text} of {video}'}
        for j, text in enumerate(['one', 'two'])
        for i, video in enumerate(VIDEOS)
      ],
    },
  )


# --- MSRVTT -----------------------------------------------------------------


def test_msrvtt_in_both_forms(tmp_path, info):
  published = sources.read_msrvtt(info, subset='7k')
  assert _captions(published) == {
    f'video{i}.mp4': (f'one of video{i}', f'two of video{i}') for i in range(3)
  }
  assert published.clips[0].files[:2] == ('video0.mp4', 'video0.avi')
  assert (published.rows, published.other_splits) == (10, 4)
  original = sources.read_msrvtt(
    _write(
      tmp_path,
      'train.jsonl',
      [
        {'caption': f'{text} of video{i}', 'clip_name': f'video{i}', 'sen_id': 3}
        for text in ('one', 'two')
        for i in range(3)
      ],
    )
  )
  assert original.clips == published.clips and not original.skipped


def test_msrvtt_test_list_and_9k(tmp_path, info):
  test = _write(
    tmp_path,
    'MSRVTT_JSFUSION_test.csv',
    'key,vid_key,video_id,sentence\nret0,msr3,video3,"one, and only"\n',
  )
  assert _captions(sources.read_msrvtt(test)) == {'video3.mp4': ('one, and only',)}
  train = sources.read_msrvtt(info, except_ids=test)
  assert set(_captions(train)) == {f'video{i}.mp4' for i in (0, 1, 2, 4)}
  assert train.not_found == 0
  other = _write(tmp_path, 'other.txt', 'msr3\nvideo3\nvideo9\n')
  assert sources.read_msrvtt(info, except_ids=other).not_found == 2
  ids = _write(
    tmp_path, 'MSRVTT_train.9k.csv', 'video_id\n' + ''.join(f'video{i}\n' for i in (0, 1, 2, 4, 5))
  )
  listed = sources.read_msrvtt(info, ids=ids)
  assert listed.clips == train.clips
  assert _reasons(listed) == [('video5', 'not annotated')]


@pytest.mark.parametrize(
  ('subset', 'videos'), [('', '01234'), ('train', '01'), ('validate', '2'), ('test', '34')]
)
def test_msrvtt_subsets(info, subset, videos):
  source = sources.read_msrvtt(info, subset=subset)
  assert list(_captions(source)) == [f'video{i}.mp4' for i in videos]


def test_a_sentence_whose_video_has_no_split_is_named(tmp_path):
  path = _write(
    tmp_path,
    'm.json',
    {
      'videos': [
        {'video_id': 'video0', 'split': 'train'},
        {'video_id': 1, 'split': 'train'},
        {'video_id': 'video2.mp4', 'split': 'test'},
      ],
      'sentences': [{'video_id': f'video{i}', 'caption': 'x'} for i in range(3)],
    },
  )
  questions = _write(
    tmp_path, 'q.jsonl', [{'video_id': 'video9', 'question': 'who', 'answer': 'dog'}]
  )
  source = sources.read_msrvtt(path, questions, subset='7k')
  assert list(_captions(source)) == ['video0.mp4']
  assert _reasons(source) == [('video1', 'bad row')]
  assert "does not name the split of 'video1'" in source.skipped[0].detail
  assert source.other_splits == 2


def test_msrvtt_questions_in_both_forms_and_with_captions(tmp_path, info):
  published = _write(
    tmp_path,
    'train_qa.json',
    [
      {
        'answer': 'couch',
        'category_id': 14,
        'id': 3,
        'video_id': 1,
        'question': 'what are people sitting on?',
      },
      {'answer': 'man', 'category_id': 14, 'id': 4, 'video_id': 0, 'question': 'who sits?'},
      {
        'answer': 'couch',
        'category_id': 14,
        'id': 5,
        'video_id': 1,
        'question': 'what are people sitting on?',
      },
    ],
  )
  original = _write(
    tmp_path,
    'train.jsonl',
    [
      {
        'answer': 'couch',
        'video_id': 'video1',
        'answer_type': 'what',
        'question': 'what are people sitting on?',
      },
      {'answer': 'man', 'video_id': 'video0', 'answer_type': 'who', 'question': 'who sits?'},
      {
        'answer': 'couch',
        'video_id': 'video1',
        'answer_type': 'what',
        'question': 'what are people sitting on?',
      },
    ],
  )
  source = sources.read_msrvtt(questions=published)
  # The same question twice stays twice: published accuracies count both.
  assert _questions(source) == {
    'video1.mp4': (Question('what are people sitting on?', 'couch', 'what'),) * 2,
    'video0.mp4': (Question('who sits?', 'man', 'who'),),
  }
  assert source.clips == sources.read_msrvtt(questions=original).clips
  both = sources.read_msrvtt(info, published, subset='train')
  assert [(len(clip.captions), len(clip.questions)) for clip in both.clips] == [(2, 1), (2, 2)]
  # A subset is one of questions too.
  both = sources.read_msrvtt(info, published, subset='test')
  assert _questions(both) == {'video3.mp4': (), 'video4.mp4': ()}


def test_msrvtt_bad_rows(tmp_path):
  path = _write(
    tmp_path,
    'info.json',
    {
      'sentences': [
        {'video_id': 'video0', 'caption': 'fine'},
        {'video_id': 'video1'},
        {'caption': 'whose'},
        'text',
        {'video_id': 'video2', 'caption': 3},
        {'video_id': None, 'caption': 'x'},
        {'video_id': '', 'caption': 'x'},
        {'video_id': '../video3', 'caption': 'x'},
        {'video_id': 'video4', 'caption': ' '},
      ]
    },
  )
  source = sources.read_msrvtt(path)
  assert list(_captions(source)) == ['video0.mp4']
  assert _reasons(source) == [
    ('video1', 'bad row'),
    (f'{path}:sentence 2', 'bad row'),
    (f'{path}:sentence 3', 'bad row'),
    ('video2.mp4', 'bad row'),
    (f'{path}:sentence 5', 'bad row'),
    ('', 'no video name'),
    ('../video3.mp4', 'outside the folder of videos'),
    ('video4.mp4', 'empty caption'),
  ]
  assert all(f'{path}:sentence' in skip.detail for skip in source.skipped)
  assert source.skipped[1].detail == (
    f"{path}:sentence 2: no 'clip_name' or 'video' or 'video_id', only ['caption']"
  )


def test_bad_questions(tmp_path):
  path = _write(
    tmp_path,
    'qa.json',
    [
      {'video_id': 0, 'question': 'who', 'answer': 'man'},
      {'video_id': 0, 'question': ' ', 'answer': 'man'},
      {'video_id': 0, 'question': 'who', 'answer': ''},
      {'video_id': 0, 'question': 'who'},
      {'video_id': 0, 'question': 'who', 'answer': 2},
      {'video_id': 0.5, 'question': 'who', 'answer': 'man'},
      {'video_id': 0, 'question': 'who', 'answer': 'man', 'answer_type': 2},
      3,
    ],
  )
  source = sources.read_msrvtt(questions=path)
  assert _questions(source) == {'video0.mp4': (Question('who', 'man', 'who'),)}
  assert _reasons(source) == [
    ('video0.mp4', 'empty question'),
    ('video0.mp4', 'empty answer'),
    ('0', 'bad row'),
    ('video0.mp4', 'bad row'),
    ('0.5', 'bad row'),
    ('video0.mp4', 'bad row'),
    (f'{path}:entry 7', 'bad row'),
  ]
  assert all(f'{path}:entry' in skip.detail for skip in source.skipped)


# --- DiDeMo -----------------------------------------------------------------


def test_didemo_sentences_become_a_paragraph(tmp_path):
  published = sources.read_didemo(
    _write(
      tmp_path,
      'train_data.json',
      [
        {
          'annotation_id': 7,
          'video': 'b',
          'description': ' a dog. ',
          'times': [[0, 0]],
          'num_segments': 6,
        },
        {
          'annotation_id': 8,
          'video': 'a',
          'description': 'only',
          'times': [[0, 0]],
          'num_segments': 6,
        },
        {
          'annotation_id': 2,
          'video': 'b',
          'description': 'a dog.',
          'times': [[0, 0]],
          'num_segments': 6,
        },
        {
          'annotation_id': 9,
          'video': 'b',
          'description': 'it swims',
          'times': [[0, 0]],
          'num_segments': 6,
        },
      ],
    )
  )
  assert _captions(published) == {'b.mp4': ('a dog. a dog. it swims',), 'a.mp4': ('only',)}
  for rows in (
    [('b', 'a dog. a dog. it swims'), ('a', 'only')],
    [('b', 'a dog.'), ('b', 'a dog. it swims'), ('a', 'only')],
    [('b', ['a dog.', 'a dog.', 'it swims']), ('a', ['only'])],
  ):
    original = sources.read_didemo(
      _write(
        tmp_path, 'train.jsonl', [{'clip_name': name, 'caption': caption} for name, caption in rows]
      )
    )
    assert original.clips == published.clips and not original.skipped


def test_didemo_files_and_lists(tmp_path):
  path = _write(
    tmp_path,
    'test_data.json',
    [
      {'video': '7@N02_1_a.mov', 'description': 'one'},
      {'video': '7@N02_2_b.AVI', 'description': 'two'},
    ],
  )
  ids = _write(tmp_path, 'test_list.txt', '7@N02_1_a.mov\n\n7@N02_3_c.mov\n')
  source = sources.read_didemo(path, ids=ids)
  (clip,) = source.clips
  assert clip.video == '7@N02_1_a.mp4'
  for name in ('.avi', '.mov', '.3gp', '.mov.mp4'):
    assert f'7@N02_1_a{name}' in clip.files
  assert _reasons(source) == [('7@N02_3_c', 'not annotated')]
  assert '7@N02_2_b.AVI' in sources.read_didemo(path).clips[1].files


def test_didemo_bad_rows(tmp_path):
  path = _write(
    tmp_path,
    'data.json',
    [
      {'video': 'a', 'description': 'one'},
      {'video': 'a'},
      {'video': 'a', 'description': ''},
      {'video': 'a', 'description': None},
      {'video': 3, 'description': 'three'},
      {'video': 'a', 'description': '\ud800'},
    ],
  )
  source = sources.read_didemo(path)
  assert _captions(source) == {'a.mp4': ('one',)}
  assert [reason for _, reason in _reasons(source)] == [
    'bad row',
    'empty caption',
    'bad row',
    'bad row',
    'bad row',
  ]


# --- MSVD -------------------------------------------------------------------


def test_msvd_in_both_forms(tmp_path):
  mapping = _write(
    tmp_path, 'youtube_mapping.txt', '-4wsuPCjDBc_5_15 vid1\nzzit5b_-ukg_5_20 vid1970'
  )
  published = _write(
    tmp_path,
    'train_qa.json',
    [
      {'answer': 'chew', 'id': 0, 'video_id': 1, 'question': 'what is an animal doing?'},
      {'answer': 'two', 'id': 1, 'video_id': 1970, 'question': 'how many?'},
    ],
  )
  source = sources.read_msvd(questions=published, mapping=mapping)
  assert [clip.files[:2] for clip in source.clips] == [
    ('-4wsuPCjDBc_5_15.avi', '-4wsuPCjDBc_5_15.mp4'),
    ('zzit5b_-ukg_5_20.avi', 'zzit5b_-ukg_5_20.mp4'),
  ]
  original = sources.read_msvd(
    questions=_write(
      tmp_path,
      'train.jsonl',
      [
        {
          'answer': 'chew',
          'video_id': '-4wsuPCjDBc_5_15',
          'question': 'what is an animal doing?',
          'answer_type': 'what',
        },
        {
          'answer': 'two',
          'video_id': 'zzit5b_-ukg_5_20',
          'question': 'how many?',
          'answer_type': 'how',
        },
      ],
    )
  )
  assert original.clips == source.clips
  unmapped = sources.read_msvd(questions=published)
  assert list(_questions(unmapped)) == ['vid1.avi', 'vid1970.avi']
  captions = _write(
    tmp_path, 'captions.jsonl', [{'clip_name': 'zzit5b_-ukg_5_20', 'caption': 'a man'}]
  )
  both = sources.read_msvd(captions, published, mapping=mapping)
  assert _captions(both) == {'zzit5b_-ukg_5_20.avi': ('a man',), '-4wsuPCjDBc_5_15.avi': ()}


def test_msvd_numbers_that_are_not_mapped(tmp_path):
  mapping = _write(tmp_path, 'map.txt', 'a vid1\n')
  source = sources.read_msvd(
    mapping=mapping,
    questions=_write(tmp_path, 'qa.json', [{'video_id': 2, 'question': 'who', 'answer': 'man'}]),
  )
  assert not source.clips
  assert source.skipped[0].detail.endswith(f'vid2 is not in {mapping}')


# --- Mistakes ---------------------------------------------------------------


@pytest.mark.parametrize(
  ('name', 'content', 'options', 'match'),
  [
    ('a.txt', 'x', {}, 'must end in .json, .jsonl or .csv'),
    (
      'a.json',
      {'sentences': [], 'videos': 3},
      {},
      'a.json: "videos" holds a JSON int, expected a list of',
    ),
    ('a.json', {'videos': []}, {}, r"has \['videos'\], but no .sentences."),
    ('a.json', {'sentences': 3}, {}, 'holds a JSON int, expected a list of'),
    ('a.json', {'sentences': []}, {'subset': '7k'}, 'a.json has none'),
    ('a.jsonl', [], {'subset': '7k'}, 'a.jsonl has none'),
  ],
)
def test_wrong_captions(tmp_path, name, content, options, match):
  path = _write(tmp_path, name, content)
  with pytest.raises(ValueError, match=match):
    sources.read_msrvtt(path, **options)


def test_wrong_files(tmp_path, info):
  with pytest.raises(FileNotFoundError, match='--questions=none is not a'):
    sources.read_msvd(questions='none')
  broken = tmp_path / 'broken.json'
  broken.write_text('[{"video_id": 1,')
  for read in (sources.read_msrvtt, sources.read_didemo):
    with pytest.raises(ValueError, match='broken.json is not JSON: Expecting'):
      read(str(broken))
  with pytest.raises(ValueError, match='--subset=7k needs --captions'):
    sources.read_msrvtt(questions=info, subset='7k')
  with pytest.raises(ValueError, match='expected a list of one object'):
    sources.read_msrvtt(questions=info)
  with pytest.raises(ValueError, match='but not video_id'):
    sources.read_msrvtt(info, ids=_write(tmp_path, 'a.csv', 'video\nx\n'))
  with pytest.raises(ValueError, match='--except_ids=.* lists no video'):
    sources.read_msrvtt(info, except_ids=_write(tmp_path, 'a.txt', '\n'))
  with pytest.raises(ValueError, match="map.txt:1: 'a b c', expected"):
    sources.read_msvd(mapping=_write(tmp_path, 'map.txt', 'a b c\n'))
  with pytest.raises(ValueError, match="map.txt:2: vid1 is 'b' here and 'a'"):
    sources.read_msvd(mapping=_write(tmp_path, 'map.txt', 'a vid1\nb vid1\n'))


# --- MSVD's captions as they are published ----------------------------------


def test_msvd_captions_as_published(tmp_path):
  table = _write(
    tmp_path,
    'MSR Video Description Corpus.csv',
    (
      'VideoID,Start,End,WorkerID,Source,AnnotationTime,Language,Description\n'
      '_mv89psg6,33,46,7,unverified,55,English,"A bird, in a sink"\n'
      '_mv89psg6,33,46,8,clean,30,German,Ein Vogel badet\n'
      '-x_9,1,10,8,clean,30,English,A dog runs\n'
      '-x_9,1,,8,clean,30,English,no end\n'
      '-x_9,1,10,8,clean,30,English,\n'
    ),
  )
  source = sources.read_msvd(table)
  assert _captions(source) == {
    '_mv89psg6_33_46.avi': ('A bird, in a sink',),
    '-x_9_1_10.avi': ('A dog runs',),
  }
  assert (source.rows, source.other_splits) == (5, 1)
  assert [reason for _, reason in _reasons(source)] == ['bad row', 'empty caption']
  lines = _write(
    tmp_path,
    'AllVideoDescriptions.txt',
    (
      '# Comments, and an empty line.\n\n_mv89psg6_33_46 A bird, in a sink\n'
      '-x_9_1_10 A dog runs\n-x_9_1_10\n'
    ),
  )
  published = sources.read_msvd(lines)
  assert published.clips == source.clips and published.rows == 3
  assert _reasons(published) == [('-x_9_1_10.avi', 'empty caption')]
  # Questions call the same videos by numbers.
  mapping = _write(tmp_path, 'youtube_mapping.txt', '-x_9_1_10 vid1\n')
  questions = _write(tmp_path, 'q.json', [{'video_id': 1, 'question': 'who runs', 'answer': 'dog'}])
  both = sources.read_msvd(lines, questions, mapping=mapping)
  assert both.clips[1].questions == (Question('who runs', 'dog', 'who'),)
  assert both.clips[1].captions == ('A dog runs',)


def test_absolute_names_and_missing_values(tmp_path):
  path = _write(
    tmp_path,
    'd.json',
    [
      {'video': str(tmp_path / 'a.mp4'), 'description': 'one'},
      {'video': 'a.mp4', 'description': 'nan'},
      {'video': 'a.mp4', 'description': ['two', 'None']},
      {'video': 'b.mp4', 'description': 'null'},
      {'video': '/elsewhere/c.mp4', 'description': 'three'},
    ],
  )
  source = sources.read_didemo(path, root=tmp_path)
  assert _captions(source) == {'a.mp4': ('one two',)}
  assert _reasons(source) == [
    ('a.mp4', 'empty caption'),
    ('b.mp4', 'empty caption'),
    ('/elsewhere/c.mp4', 'outside the folder of videos'),
  ]


def test_a_column_called_language_leaves_nothing_out(tmp_path):
  path = _write(tmp_path, 'm.jsonl', [{'clip_name': 'video0', 'caption': 'x', 'language': 'de'}])
  assert len(sources.read_msrvtt(path).clips) == 1
