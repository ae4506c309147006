"""The world of moving shapes says what it shows, and repeats itself."""

import collections
import hashlib
import json

import numpy as np
import pytest

from alpro_jax.data import shapes_world

TINY = shapes_world.World(
    train={'move': 6, 'resize': 4, 'turn': 2, 'wall': 2, 'event': 4},
    test_captions={'move': 3, 'resize': 2, 'turn': 1, 'wall': 1, 'event': 1},
)


def _clip(family, motions, colour='red', shape='disc', number=0):
  scene = shapes_world.Scene(family, colour, shape, motions)
  return shapes_world.Clip('x.mp4', scene, True, 'train', number)


def _centres(motions, family='move'):
  boxes = shapes_world.draw(TINY, _clip(family, motions)).boxes
  return (boxes[:, :2] + boxes[:, 2:]) / 2


def test_boxes_follow_the_caption():
  assert (np.diff(_centres(('left',))[:, 0]) < 0).all()
  assert (np.diff(_centres(('right',))[:, 0]) > 0).all()
  assert (np.diff(_centres(('up',))[:, 1]) < 0).all()
  assert (np.diff(_centres(('down',))[:, 1]) > 0).all()
  boxes = shapes_world.draw(TINY, _clip('resize', ('grow',))).boxes
  assert (np.diff(boxes[:, 2] - boxes[:, 0]) > 0).all()


def test_the_box_holds_the_colour():
  drawing = shapes_world.draw(TINY, _clip('move', ('left',)))
  for frame, box in zip(drawing.frames, drawing.boxes, strict=True):
    left, top, right, bottom = np.round(box * TINY.size).astype(int)
    redness = frame[..., 0].astype(int) - frame[..., 1:].max(-1)
    inside = redness[top:bottom, left:right].mean()
    assert inside > 60
    redness[top:bottom, left:right] = 0
    assert redness.mean() < 15


def test_opposite_motions_have_the_same_mean_place():
  rights = [_clip('move', ('right',), number=i) for i in range(40)]
  lefts = [_clip('move', ('left',), number=i) for i in range(40)]
  means = [
      np.mean([shapes_world.draw(TINY, c).boxes[:, [0, 2]].mean()
               for c in clips]) for clips in (lefts, rights)]
  assert abs(means[0] - means[1]) < 0.02


def test_order_of_events():
  clip = _clip('event', ('left', 'grow'))
  boxes = shapes_world.draw(TINY, clip).boxes
  centre = (boxes[:, 0] + boxes[:, 2]) / 2
  assert centre[0] - centre[3] > 0.2 > abs(centre[4] - centre[6]) * 2
  assert shapes_world.caption(clip.scene) == (
      'a red disc drifts left, then grows')
  assert shapes_world.caption(clip.scene.reversed()) == (
      'a red disc shrinks, then drifts right')


def test_only_shapes_whose_turning_is_seen_turn():
  turning = {
      s.shape for s in shapes_world.list_scenes(TINY) if s.family == 'turn'}
  assert turning == {'bar'}


def test_never_trained_captions_are_in_the_test_split_alone():
  world = shapes_world.World(test_captions={
      family: -1 for family in shapes_world.FAMILIES})
  train = {c.scene for c in shapes_world.list_clips(world, 'train')}
  test = shapes_world.list_clips(world, 'test')
  kept = shapes_world.never_trained(world)
  assert kept and not kept & train
  assert kept <= {c.scene for c in test}
  assert all(c.trained == (c.scene in train) for c in test)
  counts = collections.Counter(c.scene for c in test)
  assert set(counts.values()) == {world.renderings}
  # Every word of a caption that is never trained is met in another.
  for part in ('colour', 'shape', 'motions'):
    assert ({getattr(s, part) for s in kept}
            <= {getattr(s, part) for s in train})


def test_caption_rows():
  clip = shapes_world.list_clips(TINY, 'train')[0]
  rows = shapes_world.caption_rows(TINY, clip)
  plain = {s: shapes_world.caption(clip.scene, s) for s in shapes_world.STYLES}
  for style in shapes_world.STYLES:
    texts = [r['caption'] for r in rows if r['style'] == style]
    assert plain[style] in texts
    assert len(texts) <= (2 if style == 'full' else 1)
  assert clip.scene.colour not in plain['motion']
  test = shapes_world.list_clips(TINY, 'test')[0]
  assert [r['style'] for r in shapes_world.caption_rows(TINY, test)] == ['full']


def test_arrays():
  arrays = shapes_world.make_arrays(TINY, 'test')
  assert arrays['frames'].shape == (16, 8, 48, 48, 3)
  assert arrays['frames'].dtype == np.uint8
  assert len(arrays['truth']) == len(arrays['rows']) == 16
  other = shapes_world.make_arrays(
      shapes_world.world_from_options({
          'seed': 1, 'test_captions': dict(TINY.test_captions)}), 'test')
  assert not np.array_equal(arrays['frames'], other['frames'])


def test_files_repeat_and_show_what_was_drawn(tmp_path):
  av = pytest.importorskip('av')
  digests = []
  for name, workers in (('a', 1), ('b', 2)):
    counts = shapes_world.write(TINY, tmp_path / name, workers)
    assert counts == {'train': 18, 'test': 16}
    digests.append({
        str(path.relative_to(tmp_path / name)):
            hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (tmp_path / name).rglob('*') if path.is_file()
    })
  assert digests[0] == digests[1]
  assert len(digests[0]) == 18 + 16 + 5

  truth = [json.loads(line)
           for line in open(tmp_path / 'a/test/truth.jsonl')]
  captions = [json.loads(line)
              for line in open(tmp_path / 'a/test/captions.jsonl')]
  assert [t['video'] for t in truth] == [c['video'] for c in captions]
  assert [t['caption'] for t in truth] == [c['caption'] for c in captions]
  drawn = shapes_world.make_arrays(TINY, 'test')['frames'][0]
  with av.open(str(tmp_path / 'a/test/videos' / truth[0]['video'])) as file:
    read = np.stack([f.to_ndarray(format='rgb24') for f in file.decode()])
  assert read.shape == drawn.shape
  assert np.abs(read.astype(int) - drawn).mean() < 12


@pytest.mark.parametrize('options, message', [
    ({'colours': ['pink']}, 'pink'),
    ({'shapes': ['blob']}, 'blob'),
    ({'train': {'dance': 3}}, 'dance'),
    ({'size': 47}, 'even number'),
    ({'frames': 1}, 'at least 2'),
    ({'renderings': 0}, 'at least 1'),
    ({'never_trained': 0.9}, 'share'),
    ({'speed': 3}, 'speed'),
])
def test_bad_options(options, message):
  with pytest.raises(ValueError, match=message):
    shapes_world.world_from_options(options)


def test_a_family_without_scenes():
  world = shapes_world.World(shapes=('disc',), train={'turn': 3})
  with pytest.raises(ValueError, match='number of training clips to 0'):
    shapes_world.list_clips(world, 'train')


def test_bad_split_and_style():
  with pytest.raises(ValueError, match='valid'):
    shapes_world.list_clips(TINY, 'valid')
  with pytest.raises(ValueError, match='loud'):
    shapes_world.caption(_clip('move', ('left',)).scene, 'loud')
