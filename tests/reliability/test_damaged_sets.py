"""One flipped bit, a cut or a loss in any file of a set is never a number.

The tables name what becomes of each kind of file. A kind of file that they do
not name fails the test, so that no new one is forgotten.
"""

import json
import random
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from alpro_jax.data import (
  answers,
  checksum,
  dataset,
  entities,
  pipeline,
  prepare,
  sources,
  tokens,
  verify,
)
from alpro_jax.data.mixture import open_sources
from configs import common
from tests.small_sets import SIZE, Letters

# What opening a set says of a file that is not as it was written. A shard's
# digest is compared with `verify` alone; without it, its records say so.
REFUSED = {
  'manifest': r'manifest\.json',
  'index': r'index-train\.jsonl',
  'shard': r'set-train\.array_record-0000\d-of-00003',
}
# Nothing that trains reads these. `prepare.py verify` names them.
UNUSED = ('report.json', 'dataset_info.json', 'features.json')


def kind_of(file):
  if file.name in UNUSED:
    return 'unused'
  kinds = [kind for kind, name in REFUSED.items() if re.fullmatch(name, file.name)]
  assert len(kinds) == 1, f'{file.name}: say here what its damage does'
  return kinds[0]


@pytest.fixture(scope='module')
def original(tmp_path_factory):
  """Seven photos of noise in shards of three, three and one."""
  root = tmp_path_factory.mktemp('photos')
  rng = np.random.default_rng(0)
  for number in range(7):
    noise = rng.integers(0, 255, (SIZE, SIZE, 3)).astype(np.uint8)
    Image.fromarray(noise).save(root / f'{number}.png')
  (root / 'captions.json').write_text(
    json.dumps([{'image': f'{number}.png', 'caption': f'clip {number}'} for number in range(7)])
  )
  prepare.prepare(
    sources.read_cc3m(root / 'captions.json', root),
    root,
    root / 'set',
    options=prepare.Options(part_size=3),
    num_workers=1,
  )
  return root / 'set'


@pytest.fixture
def path(original, tmp_path):
  return shutil.copytree(original, tmp_path / 'set')


def files_of(path):
  return [file for file in sorted(path.iterdir()) if file.name != '.lock']


def flip(file, bit):
  data = bytearray(file.read_bytes())
  data[bit // 8] ^= 1 << bit % 8
  file.write_bytes(data)


def spread(file, count):
  """Returns bits of a file: the first, the last, and `count` between."""
  data = file.read_bytes()
  rng = random.Random(file.name)
  # A shard is mostly zeros, up to the end of its last block.
  filled = [place for place, byte in enumerate(data) if byte]
  return [
    0,
    8 * len(data) - 1,
    *(
      8 * rng.choice(places) + rng.randrange(8)
      for places in (filled, range(len(data)))
      for _ in range(count // 2)
    ),
  ]


def read(path, verified):
  """Returns {video: (its record, its captions)}, and the lost videos."""
  data = dataset.open_dataset(path, verify=None if verified else False)
  found, lost = {}, []
  for number, info in enumerate(data.metadata()):
    try:
      (record,) = data.fetch([number])
    except dataset.UnreadableRecord as error:
      assert info.video in str(error) and error.index == number
      lost.append(info.video)
    else:
      found[info.video] = record, info.captions
  return found, lost


def same(file, data):
  """Does a file still say what it did? A last blank line says nothing."""
  if not file.exists():
    return False
  if file.suffix != '.json':
    return file.read_bytes() == data
  try:
    return json.loads(file.read_bytes()) == json.loads(data)
  except ValueError:
    return False


def harms(file):
  """Yields (name, function that does it) of everything done to a file."""
  data = file.read_bytes()
  for bit in spread(file, 40):
    yield f'bit {bit}', lambda bit=bit: flip(file, bit)
  for size in (0, len(data) // 2, len(data) - 1):
    yield f'cut to {size}', lambda size=size: file.write_bytes(data[:size])
  yield 'missing', file.unlink


@pytest.mark.parametrize('verified', (True, False))
def test_every_file_of_a_set(path, verified):
  whole, lost = read(path, verified)
  assert len(whole) == 7 and not lost
  kinds = set()
  for file in files_of(path):
    kind = kind_of(file)
    kinds.add(kind)
    data, named = file.read_bytes(), set()
    for name, harm in harms(file):
      harm()
      try:
        found, lost = read(path, verified)
      except (ValueError, FileNotFoundError) as error:
        assert kind != 'unused', (file.name, name, error)
        assert re.search(REFUSED[kind], str(error)), (file.name, name, error)
      else:
        # What is read is what was written, and what is not read is named.
        assert {**whole, **found} == whole, (file.name, name)
        assert sorted([*found, *lost]) == sorted(whole)
        named.update(lost)
        if kind == 'unused':
          assert same(file, data) or file.name in {
            problem.file for problem in verify.verify(path).problems
          }
        else:  # Only bits of a shard that has its size can get here.
          assert same(file, data) or kind == 'shard' and not verified, (file.name, name)
      file.write_bytes(data)
    if kind == 'shard' and not verified:
      assert named
  assert kinds == {*REFUSED, 'unused'}
  assert verify.verify(path).problems == []


def test_training_names_and_counts_a_damaged_record(path):
  """Without verify, the damage is found while reading: named and replaced."""
  (shard,) = path.glob('*array_record-00000*')
  data = bytearray(shard.read_bytes())
  (record,) = dataset.open_dataset(path).fetch([1])
  flip(shard, 8 * (data.index(record) + len(record) // 2))
  config = common.get_config().data
  config.update(
    {
      'image_size': SIZE,
      'resize': SIZE,
      'verify': False,
      'threads': 1,
      'broken_share': 0.2,
      'sources': (common.source(str(path)),),
    }
  )
  (source,) = sources = open_sources(config)
  batches = pipeline.train_batches(
    config, sources, Letters(), seed=0, start_step=0, batch_size=7, rows=slice(0, 7)
  )
  batch = next(batches)
  batches.close()
  assert list(source.broken) == [1] and '1.png' in source.broken[1]
  assert list(sources[0].report()['replaced']) == ['1.png']
  assert len(np.unique(batch['video_id'])) == 6


# --- Files beside a set -----------------------------------------------------


def write_answers(folder):
  path = folder / 'answers.txt'
  answers.write_answers(['man', 'a red disc', 'guitar'], path)
  return path, lambda: answers.read_answers(path)


def write_entities(folder):
  path = folder / 'entities.txt'
  entities.write_entities([('dog', 9), ('cat', 4), ('disc', 1)], path)
  return path, lambda: entities.read_entities(path, 0)


def write_tokenizer(folder):
  path = folder / 'tokenizer.model'
  tokens.train_sentencepiece(['a red disc', 'a blue square moves', 'the dog'], path, 60)
  return path, lambda: tokens.load_tokenizer(path).encode(['a red dog'], 12)[0].tolist()


@pytest.mark.parametrize('make', (write_answers, write_entities, write_tokenizer))
def test_every_file_beside_a_set(make, tmp_path):
  path, read_it = make(tmp_path)
  whole = read_it()
  beside = tmp_path / f'{path.name}.sha256'
  assert sorted(tmp_path.iterdir()) == [path, beside]
  for file in (path, beside):
    data = file.read_bytes()
    for name, harm in harms(file):
      harm()
      try:
        assert read_it() == whole, name
      except (ValueError, FileNotFoundError) as error:
        assert path.name in str(error), name
      else:
        # The digest without its file name or its end is still the digest.
        assert file == beside, name
      file.write_bytes(data)
  assert read_it() == whole


def test_files_from_elsewhere_have_no_digest(tmp_path):
  path, read_it = write_answers(tmp_path)
  path.write_text('mine\n')
  with pytest.raises(ValueError, match=r'remove answers\.txt\.sha256'):
    read_it()
  (tmp_path / 'answers.txt.sha256').unlink()
  assert read_it() == ('mine',)
  path.write_bytes(b'\xff\n')
  with pytest.raises(ValueError, match=r'answers\.txt is not UTF-8'):
    checksum.read_text(path)
