"""Sets of clips from simulators, BabyAI and Meta-World: captions, restarts, digests."""

import collections
import json
import random
import subprocess
import sys

import numpy as np
import pytest

from alpro_jax.data import entities, manifest
from examples import simulated
from examples.babyai import scenes, words
from examples.babyai import truth as rooms
from examples.metaworld import scenes as robots
from examples.metaworld import tasks
from examples.metaworld import truth as episodes
from examples.metaworld import words as metaworld
from tests import launched

THINGS = ('red ball', 'blue key', 'red ball', 'grey box')
GOTO = {'action': 'goto', 'object': 'blue key', 'frame': 3}
PUT = {'action': 'putnext', 'object': 'grey box', 'target': 'red ball', 'frame': 7}


def row(number=0, split='train', actions=(GOTO, PUT)):
  objects = [{'kind': kind, 'x': i, 'y': 0} for i, kind in enumerate(THINGS)]
  return {
    'video': f'{number}.mp4',
    'split': split,
    'mission': 'go to the key, then put a box next to a ball',
    'objects': objects,
    'actions': list(actions),
  }


def test_a_whole_caption_names_everything_and_a_partial_one_does_not():
  plain = dict(words.captions(row(split='test'), random.Random(0), 0.0))
  assert plain == {
    'whole': 'the agent goes to a blue key, then puts a grey box next to a red ball, '
    'with a red ball in the room',
    'action': 'the agent goes to a blue key, then puts a grey box next to a red ball',
    'mission': 'go to the key, then put a box next to a ball',
  }
  rng, said = random.Random(0), collections.defaultdict(set)
  for _ in range(300):
    for style, text in words.captions(row(), rng, 0.5):
      said[style].add(text)
  assert said.keys() == {'whole', 'action', 'mission', 'objects'}
  assert all(all(kind in text for kind in THINGS) for text in said['whole'])
  assert not any(all(kind in text for kind in THINGS) for text in said['objects'])
  # Of two actions one alone is said, too; and the second one first.
  assert any('key' not in text for text in said['action'])
  assert any(text.index('box') < text.index('key') for text in said['action'] if 'after it' in text)
  assert 'two red balls' in words._listed(THINGS)
  assert {s for s, _ in words.captions(row(), random.Random(1), 0.0)} == {'whole'}


def test_questions_of_a_room_have_true_answers():
  seen = collections.defaultdict(set)
  for seed in range(50):
    for kind, question, answer in words.questions(row(), random.Random(seed)):
      seen[kind].add((question, answer))
  assert seen['order'] == {
    ('does it go for the blue key before or after the grey box?', 'before'),
    ('does it go for the grey box before or after the blue key?', 'after'),
  }
  assert seen['action'] == {
    ('what does it do with the blue key?', 'goes to it'),
    ('what does it do with the grey box?', 'moves it'),
  }
  assert seen['count'] == {
    ('how many balls are there at first?', 'two'),
    ('how many boxes are there at first?', 'one'),
    ('how many keys are there at first?', 'one'),
  }
  assert seen['colour'] == {
    ('what colour is the box?', 'grey'),
    ('what colour is the key?', 'blue'),
  }
  for question, answer in seen['exists']:
    assert (question.removeprefix('is there a ')[:-1] in THINGS) == (answer == 'yes')
  assert ('is there a red key?', 'no') in seen['exists']  # Both words are there, apart.


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_a_room_shows_and_what_time_tells_apart():
  shown = row(split='test') | {'frames': [{'objects': [{'kind': 'grey box', 'x': 3, 'y': 0}]}]}
  assert rooms.kinds(shown) == list(THINGS)
  assert rooms.places(shown) == [[('grey box', 0.875, 0.125)]]
  first = 'the agent goes to a blue key, then puts a grey box next to a red ball'
  other = 'the agent puts a grey box next to a red ball, then goes to a blue key'
  assert rooms.opposites(shown) == (first, other)
  assert rooms.opposites(row(split='test', actions=(GOTO,))) is None


def test_dials_change_training_captions_alone(tmp_path):
  rows = []
  for i in range(240):
    colour, thing = scenes.COLOURS[i % 6], scenes.OBJECTS[i % 3]
    action = {'action': 'goto', 'object': f'{colour} {thing}'}
    one = row(i, 'test' if i % 6 == 5 else 'train', [action])
    one['objects'] = [{'kind': action['object'], 'x': x, 'y': 0} for x in range(2)]
    rows.append(one | {'mission': f'go to the {thing}'})
  dials = simulated.Dials(partial=0.25, wrong=0.3, distractors=0.2)
  simulated.write_words(tmp_path, rows, words, seed=0)
  exact = {name: (tmp_path / name / 'captions.jsonl').read_text() for name in ('train', 'test')}
  counts = simulated.write_words(tmp_path, rows, words, seed=0, dials=dials, name='noisy')
  assert (tmp_path / 'test' / 'noisy.jsonl').read_text() == exact['test']
  assert (tmp_path / 'train' / 'captions.jsonl').read_text() == exact['train']
  assert json.loads((tmp_path / 'captions.json').read_text())['noisy'] == dials._asdict()

  noisy = read(tmp_path / 'train' / 'noisy.jsonl')
  assert counts['train'] == {
    'clips': 200,
    'captions': len(noisy),
    'questions': len(read(tmp_path / 'train' / 'questions.jsonl')),
  }
  colours = {one['video']: one['actions'][0]['object'].split()[0] for one in rows}
  wrong = {said['video'] for said in noisy if 'captions_of' in said}
  assert 0.2 < len(wrong) / 200 < 0.4
  for said in noisy:
    source = said.get('captions_of', said['video'])
    assert said['style'] == 'mission' or colours[source] in said['caption']
  whole = [said for said in noisy if said['style'] == 'whole']
  odd = [said for said in noisy if not said['caption'].startswith(('the', 'a ', 'it', 'go'))]
  assert 0.6 < len(whole) / len(noisy) < 0.9 and odd


def room(clip):
  """A clip without a simulator."""
  frames = np.full((2, 16, 16, 3), 10 * clip, np.uint8)
  return frames, row(clip, 'test' if clip % 2 else 'train')


def test_a_run_that_was_cut_off_goes_on_and_ends_alike(tmp_path):
  def make(folder, clips):
    rows = simulated.draw(folder, {'seed': 0}, range(clips), room, rate=4, workers=1)
    simulated.write_words(folder, rows, words, seed=0)
    return json.loads((folder / 'digests.json').read_text())

  expected = make(tmp_path / 'whole', 6)
  assert expected.keys() == {
    'truth.jsonl',
    *(f'{split}/{name}' for split in ('train', 'test') for name in ('videos', 'captions.jsonl')),
    'train/questions.jsonl',
    'test/questions.jsonl',
  }
  make(tmp_path / 'cut', 3)
  with open(tmp_path / 'cut' / 'truth.jsonl', 'a') as file:
    file.write('{"video": "3.mp')
  prepared = tmp_path / 'cut' / 'set'  # What was made of it is no part of it.
  prepared.mkdir()
  (prepared / 'index-train.jsonl').write_text('')
  before = (tmp_path / 'cut' / 'train' / 'videos' / '0.mp4').stat().st_mtime_ns
  assert make(tmp_path / 'cut', 6) == expected
  assert (tmp_path / 'cut' / 'train' / 'videos' / '0.mp4').stat().st_mtime_ns == before
  with pytest.raises(ValueError, match="was begun with {'seed': 0}"):
    simulated.draw(tmp_path / 'cut', {'seed': 1}, range(6), room, rate=4)


def test_rooms_of_babyai():
  pytest.importorskip('minigrid', reason='needs minigrid')
  clips = scenes.list_clips(12, seed=0, size=48)
  assert [clip.split for clip in clips[:5]] == ['train'] * 4 + ['test']
  done, orders = collections.Counter(), collections.Counter()
  for clip in clips:
    frames, shown = scenes.draw(clip)
    assert frames.shape[1:] == (48, 48, 3) and 5 <= len(frames) <= 16
    assert len(shown['frames']) == len(frames) and len(shown['objects']) == 4
    orders[len(shown['actions'])] += 1
    for action in shown['actions']:
      done[action['action']] += 1
      now, before = (shown['frames'][action['frame'] - i] for i in (0, 1))
      places = {(o['x'], o['y']): o['kind'] for o in now['objects']}
      x, y = now['agent']
      ahead = [places.get(place) for place in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1))]
      if action['action'] == 'pickup':
        assert now['carrying'] == action['object'] and not before['carrying']
        continue
      assert action['object'] in ahead
      assert action['action'] == 'goto' or before['carrying'] == action['object']
    # An object is where the truth says: the tile is not black there.
    for thing in shown['frames'][0]['objects']:
      tile = frames[0][12 * thing['y'] :, 12 * thing['x'] :][1:12, 1:12]
      assert tile.max() > 60, thing
  assert done.keys() == {'goto', 'pickup', 'putnext'} and orders.keys() == {1, 2}
  np.testing.assert_array_equal(scenes.draw(clips[3])[0], scenes.draw(clips[3])[0])
  with pytest.raises(ValueError, match='--size=50 must be a multiple of 8'):
    scenes.list_clips(1, 0, 50)


def test_the_command_makes_a_set_for_prepare(tmp_path):
  pytest.importorskip('minigrid', reason='needs minigrid')
  world = tmp_path / 'world'
  command = [sys.executable, '-m', 'examples.babyai', f'--output={world}', '--size=48']
  made = subprocess.run(
    [*command, '--clips=10', '--workers=2'], cwd=launched.ROOT, capture_output=True, text=True
  )
  assert not made.returncode and '10/10 clips' in made.stderr, made.stderr
  assert 'test             2 clips       6 captions' in made.stdout
  for split, clips in (('train', 8), ('test', 2)):
    assert not launched.run(
      'prepare',
      '--source=folder',
      '--fps=0',
      f'--videos={world}/{split}/videos',
      f'--captions={world}/{split}/captions.jsonl',
      f'--questions={world}/{split}/questions.jsonl',
      f'--split={split}',
      f'--output={world}/set',
    )
    assert manifest.read_manifest(world / 'set')['splits'][split]['examples'] == clips
  nouns = entities.read_entities(world / 'set' / 'entities.txt', 0)
  assert {'ball', 'box', 'key'} <= set(nouns)


def test_what_is_not_installed_is_said(monkeypatch):
  monkeypatch.setitem(sys.modules, 'minigrid', None)
  with pytest.raises(ValueError, match='pip install "minigrid==3.2.0"'):
    scenes.list_clips(1, 0, 48)


def episode(task='door-open', split='train', backwards=False, success=True, camera='left'):
  verb, thing, place = tasks.shown(task, backwards)
  return {
    'video': '0.mp4',
    'split': split,
    'task': task,
    'camera': camera,
    'success': success,
    'backwards': backwards,
    'verb': verb,
    'thing': thing,
    'place': place,
    'others': list(tasks.TASKS[task].others),
  }


@pytest.mark.parametrize(
  'shown, whole, task',
  [
    ({}, 'a robot arm opens a door, seen from the left', 'door open'),
    ({'backwards': True}, 'a robot arm closes a door, seen from the left', 'door close'),
    ({'success': False}, 'a robot arm tries to open a door, seen from the left', 'door open'),
    (
      {'task': 'coffee-button', 'camera': 'behind'},
      'a robot arm presses a button of a coffee machine, with a mug on the table',
      'coffee button',
    ),
    (
      {'task': 'peg-insert-side', 'backwards': True, 'camera': 'above'},
      'a robot arm takes a peg out of a hole, seen from above',
      'peg take out of a hole',
    ),
    ({'task': 'reach'}, 'a robot arm reaches out into the air, with a puck on the table', 'reach'),
  ],
)
def test_an_episode_in_words(shown, whole, task):
  row = episode(split='test', **shown)
  said = dict(metaworld.captions(row, random.Random(0), 0.0))
  assert said['whole'].startswith(whole) and said['task'] == task
  assert whole.startswith(said['action'].split(',')[0])


def test_every_task_has_words_and_a_question_of_time_where_another_undoes_it():
  assert len(tasks.TASKS) == 50
  for name, task in tasks.TASKS.items():
    for backwards in (False, True)[: 1 + bool(task.undone)]:
      row = episode(name, backwards=backwards)
      assert row['verb'] in tasks.VERBS
      texts = [text for _, text in metaworld.captions(row, random.Random(1), 0.5)]
      assert texts and not any('{' in text or '  ' in text for text in texts)
      asked = {
        kind: (question, answer)
        for kind, question, answer in metaworld.questions(row, random.Random(2))
      }
      assert {'action', 'exists'} <= asked.keys()
      if task.undone:
        question, answer = asked['order']
        assert answer in question
        other = episode(name, backwards=not backwards)
        said = dict((k, a) for k, _, a in metaworld.questions(other, random.Random(2)))
        assert said['order'] != answer, name
        # What is right of the one is wrong of the other.
        row, other = row | {'split': 'test'}, other | {'split': 'test'}
        right, wrong = episodes.opposites(row)
        assert right != wrong and episodes.opposites(other) == (wrong, right)
      else:
        assert episodes.opposites(row | {'split': 'test'}) is None


def test_what_an_episode_shows_and_where():
  at = {'hand': [0.1, 0.2], 'objects': [[0.3, 0.4], [0.5, 0.6]]}
  door, hammer = (episode(name) | {'frames': [at]} for name in ('door-open', 'hammer'))
  assert episodes.kinds(hammer) == ['nail', 'hammer']
  assert episodes.places(door) == [[('door', 0.3, 0.4)]]
  assert episodes.places(hammer) == [[('hammer', 0.3, 0.4), ('nail', 0.5, 0.6)]]
  assert episodes.places(episode('hand-insert') | {'frames': [at]}) == [[]]
  failed = episode(split='test', success=False)
  assert episodes.opposites(failed) is None
  assert episodes.opposites(episode('plate-slide', split='test')) == (
    'a robot arm slides a plate into a goal',
    'a robot arm slides a plate out of a goal',
  )


def test_episodes_of_metaworld():
  try:
    clips = robots.list_clips(8, 0, 64, tasks=['door-open', 'drawer-close'], misjudged=0.0)
  except ValueError as missing:
    pytest.skip(str(missing))
  assert [clip.task for clip in clips] == ['door-open'] * 4 + ['drawer-close'] * 4
  assert [clip.split for clip in clips[:4]] == ['train', 'test', 'train', 'camera']
  drawn = [robots.draw(clip) for clip in (clips[0], clips[3], clips[4])]
  for frames, shown in drawn:
    assert frames.shape[1:] == (64, 64, 3) and len(frames) == len(shown['frames']) <= 25
    assert shown['success'] and shown['split'] in ('train', 'camera')
    # The hand comes close to what it handles, and both are in the picture.
    away = [np.subtract(at['hand'], at['objects'][0]) for at in shown['frames']]
    assert min(np.linalg.norm(away, axis=1)) < 0.15
    assert 0 < np.min(shown['frames'][0]['objects'][0]) < 1
  assert drawn[1][1]['camera'] == 'behind'
  # What was drawn before changes nothing.
  np.testing.assert_array_equal(robots.draw(clips[0])[0], drawn[0][0])
  forward = robots.draw(clips[0]._replace(backwards=0.0))
  backward = robots.draw(clips[0]._replace(backwards=1.0))
  np.testing.assert_array_equal(forward[0], backward[0][::-1])
  assert (forward[1]['verb'], backward[1]['verb']) == ('open', 'close')
  assert forward[1]['frames'] == backward[1]['frames'][::-1]


def test_what_metaworld_needs_is_said(monkeypatch):
  with pytest.raises(ValueError, match="--tasks names \\['door'\\]; choose from assembly"):
    robots.list_clips(1, 0, 96, tasks=['door'])
  with pytest.raises(ValueError, match='--size=63 must be even'):
    robots.list_clips(1, 0, 63)
  monkeypatch.setenv('MUJOCO_GL', 'egl')
  monkeypatch.setitem(sys.modules, 'metaworld', None)
  with pytest.raises(ValueError, match='pip install "metaworld==3.1.1"'):
    robots.list_clips(1, 0, 96)
  monkeypatch.setenv('MUJOCO_GL', 'osmesa')

  def missing(name):
    raise OSError(name)

  monkeypatch.setattr(robots.ctypes, 'CDLL', missing)
  with pytest.raises(ValueError, match='apt-get install libosmesa6'):
    robots.list_clips(1, 0, 96)
