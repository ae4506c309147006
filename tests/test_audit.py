"""The audit finds what was planted: a leak, a near copy, a group served badly, words."""

import json

import numpy as np
import pytest

from alpro_jax import api
from alpro_jax.data import dataset
from alpro_jax.evaluation import audit, duplicates, trained
from tests import launched, small_sets


class Textured(small_sets.MemorySet):
  """Clips of random blocks, each by a seed; some brighter copies of others."""

  def __init__(self, split, seeds, captions, brighter=()):
    super().__init__(len(seeds), 4, captions=captions, size=48)
    self.split, self._seeds, self._brighter = split, seeds, brighter

  def _serialize(self, index):
    number = self.metadata().numbers[index]
    drawn = np.random.default_rng(self._seeds[number]).integers(0, 200, (4, 8, 8, 3))
    frames = np.kron(drawn, np.ones((1, 6, 6, 1))) + 30 * (number in self._brighter)
    info = self.metadata()[index]
    return dataset.features().serialize_example(
      {
        'video': info.video,
        'frames': list(frames.astype(np.uint8)),
        'seconds': np.arange(4, dtype=np.float32),
        'captions': list(info.captions),
        'styles': list(info.styles),
        'questions': [],
        'answers': [],
        'kinds': [],
        'still': False,
      }
    )


@pytest.fixture(scope='module')
def sets():
  """Test clip 3 is training clip 5; test clip 1 is a brighter test clip 0."""
  said = [(f'a red disc and a damned ring {i}',) for i in range(12)]
  train = Textured('train', range(100, 112), said)
  test = Textured(
    'test', [200, 200, 202, 105, 204, 205, 206, 207], [('a blue ring',)] * 8, brighter=(1,)
  )
  return {'train': train, 'test': test}


def test_planted_faults(sets, tmp_path):
  found = audit.make(
    trained.load(api.find('shapes')),
    sets,
    measured='test',
    entities=['disc', 'ring', 'red disc'],
    words={'rude': audit.Words(['damned'])},
    groups={f'{i}.mp4': 'odd' if i % 2 else 'even' for i in range(8)},
    near=0.05,
    sure=0.0,
  )
  (leak,) = found.leaks
  assert leak[:4] == ('train', '5.mp4', 'test', '3.mp4') and leak.differs < 0.02
  (within,) = [pair for pair in found.duplicates if pair not in found.leaks]
  assert within[:4] == ('test', '0.mp4', 'test', '1.mp4')
  assert found.plain == {'train': 0, 'test': 0}
  # 'red disc' is no 'disc' too.
  assert found.counts == {
    'disc': {'train': 0, 'test': 0},
    'ring': {'train': 12, 'test': 8},
    'red disc': {'train': 12, 'test': 0},
  }
  assert found.pairs == [('red disc', 'ring', 12, 1.0)]
  assert found.words == [('rude', 12, 60.0, 'damned 12')]
  # Those of fewer than five examples are left out.
  assert [row.name for row in found.entities] == ['ring'] and not found.groups
  assert found.entities[0].trained == 100 and found.entities[0].examples == 8
  assert 0 <= found.labels_share <= 100
  place = audit.write(found, tmp_path)
  known = json.loads((tmp_path / 'audit.json').read_text())
  assert known['duplicates'][0] == leak._asdict() or known['duplicates'][1] == leak._asdict()
  assert 'have words of the list rude' in (tmp_path / 'audit.md').read_text()
  page = place.read_text()
  assert 'train: 5.mp4' in page and 'been learned by heart' in page


def test_a_group_that_is_served_badly():
  right = np.r_[np.zeros(30), np.ones(60), np.arange(10) % 2] > 0
  videos = [f'{i}.mp4' for i in range(100)]
  members = {'night': range(30), 'day': range(30, 90), 'rest': range(90, 100), 'few': range(3)}
  rows = audit.shares(right, videos, members, {'night': 2.0})
  assert [(row.name, row.differs) for row in rows] == [('night', -1), ('rest', 0), ('day', 1)]
  assert rows[0].trained == 2.0 and np.isnan(rows[1].trained)
  assert rows[0][3:6] == (0, 0, 0)


def test_fingerprints_survive_size_and_light_and_tell_clips_apart():
  rng = np.random.default_rng(0)
  drawn = np.kron(rng.integers(40, 200, (20, 2, 8, 9, 3)), np.ones((1, 1, 8, 8, 1)))
  codes, plain = duplicates.fingerprint(drawn.astype(np.uint8))
  lighter, _ = duplicates.fingerprint((drawn[:, :, ::2, ::2] + 20).astype(np.uint8))
  assert not plain.any() and codes.shape == (20, 2) and (codes == lighter).all()
  same = duplicates.Prints([f'{i}' for i in range(20)], codes, plain)
  assert not duplicates.find({'train': same}, 0.2)
  assert len(duplicates.find({'train': same, 'test': same}, 0.0)) == 20
  _, dull = duplicates.fingerprint(np.full((1, 2, 16, 16, 3), 7, np.uint8))
  assert dull.all()


def test_lists_of_words(tmp_path):
  path = tmp_path / 'rude.txt'
  path.write_text('# mine\nfool\nold fool  # both\n')
  pattern = audit.read_words(path)
  said = ['An old FOOL and two fools', 'foolish', 'nothing']
  assert audit.count_words({'rude': pattern}, said) == [
    ('rude', 1, pytest.approx(100 / 3), 'fool 1, old fool 1')
  ]
  path.write_text('# none\n')
  with pytest.raises(ValueError, match='has no words; expected one a line'):
    audit.read_words(path)


@pytest.mark.parametrize(
  ('word', 'text', 'found'),
  [
    ('狗', '一只狗在跑', True),
    ('c++', 'he writes C++ code', True),
    ('cafe\u0301', 'in a caf\u00e9', True),
    ('straße', 'eine STRASSE', True),
    ('dog', 'a hotdog', False),
    ('dog', 'dogma', False),
    ('хлеб', 'свежий Хлеб', True),
    ('bus', 'a bus', True),
  ],
)
def test_words_of_any_script_are_found(word, text, found):
  assert audit.Words([word]).find(text) == ({audit.fold(word)} if found else set())


def test_lists_of_one_name_are_two(tmp_path, monkeypatch):
  """And groups are those of the videos, however they are spelled."""
  for language, word in (('en', 'ball'), ('de', 'xyzzy')):
    (tmp_path / language).mkdir()
    (tmp_path / language / 'rude.txt').write_text(f'{word}\n')
  (tmp_path / 'groups.jsonl').write_text(
    '{"video": "./0.mp4", "group": "odd"}\n{"video": "none.mp4", "group": "even"}\n'
  )
  asked = {}

  def make(model, prepared, **given):
    asked.update(given)
    raise ValueError('enough')

  monkeypatch.setattr(audit, 'make', make)
  monkeypatch.setattr(dataset, 'open_dataset', lambda *_, **__: small_sets.MemorySet(2))
  lists = [str(tmp_path / language / 'rude.txt') for language in ('en', 'de')]
  with pytest.raises(ValueError, match='enough'):
    launched.run(
      'audit',
      '--checkpoint=shapes',
      '--data=none',
      '--splits=test',
      f'--words={",".join(lists)}',
      f'--groups={tmp_path / "groups.jsonl"}',
    )
  assert list(asked['words']) == lists
  assert asked['groups'] == {'0.mp4': 'odd', 'none.mp4': 'even'}


def test_mistakes_are_one_line(tmp_path, capsys):
  groups = tmp_path / 'groups.jsonl'
  groups.write_text('{"video": "a.mp4"}\n')
  given = ('--checkpoint=shapes', '--data=none', f'--output={tmp_path / "out"}')
  assert launched.run('audit', *given, f'--groups={groups}') == 2
  assert 'groups.jsonl:1 is no line such as {"video": "a.mp4"' in capsys.readouterr().err
  groups.write_text('{"video": "a.mp4", "group": "x"}\n{"video": "./a.mp4", "group": "y"}\n')
  assert launched.run('audit', *given, f'--groups={groups}') == 2
  assert "a.mp4 is in group 'x' already" in capsys.readouterr().err
  assert launched.run('audit', *given) == 2
  assert 'none has no manifest.json' in capsys.readouterr().err
