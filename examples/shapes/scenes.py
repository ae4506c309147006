"""A small world of moving shapes, drawn by code, to learn from without data.

A clip shows one coloured shape on a textured background. It moves, grows,
shrinks, turns, passes a wall, or does two things in order:

  family  caption                                  played backwards
  move    a red disc drifts left                   a red disc drifts right
  resize  a blue ring grows                        a blue ring shrinks
  turn    a green bar turns                        (the same)
  wall    a red disc passes behind a wall          (the same)
  event   a red disc drifts left, then grows       ... shrinks, drifts right

Every path is centred on the middle of the frame and every size on its mean, so
captions that differ only in the order of frames cannot be told apart by a
single frame, unless its time is known: at a given time the place or the size
tells. Some captions are never trained: they occur in the test split alone. All
is drawn from a seed; the same options give the same files.

That is the world for pre-training. The world for fine-tuning, with
purpose='downstream', is smaller and says the same in other words. Each test
clip has a caption of its own, there is one more family, and each clip has
questions:

  count   three red circles: two to four equal shapes that stay where they are

  type       question and answers
  shape      what shape is it? circle, hoop, ...
  colour     what colour is the circle? red, green, ...
  count      how many shapes are there? one, two, three, four
  direction  does it move left or right? does it move up or down?
  change     does it get bigger or smaller?
  depth      does it pass behind or in front of the wall?
  order      does it move before or after it changes its size?
             when does it move? at first, at the end

Wherever a question has two answers, each is right for half of the clips. A clip
played backwards is one whose direction, change and order are the opposite: the
frames without their order say nothing of these.
"""

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

COLOURS = {
  'red': (215, 45, 40),
  'green': (45, 170, 60),
  'blue': (45, 75, 220),
  'yellow': (235, 205, 45),
  'white': (240, 240, 240),
  'purple': (150, 50, 170),
}
SHAPES = ('disc', 'ring', 'bar', 'pole', 'triangle', 'cross', 'square')
# A turning disc looks like a still one, and a turning pole becomes a bar.
TURNING_SHAPES = ('bar', 'triangle', 'cross', 'square')
# New families come last: the place of a family seeds its scenes.
FAMILIES = ('move', 'resize', 'turn', 'wall', 'event', 'count')
STYLES = ('full', 'entity', 'shape', 'motion')
SPLITS = ('train', 'test')
PURPOSES = ('pretrain', 'downstream')

DIRECTIONS = {'left': (-1, 0), 'right': (1, 0), 'up': (0, -1), 'down': (0, 1)}
_REVERSED = {
  'left': 'right',
  'right': 'left',
  'up': 'down',
  'down': 'up',
  'grow': 'shrink',
  'shrink': 'grow',
}

_DEFAULTS = {
  'pretrain': {
    'train': {'move': 4000, 'resize': 1700, 'turn': 400, 'wall': 700, 'event': 1200},
    'test_captions': {'move': -1, 'resize': -1, 'turn': -1, 'wall': 12, 'event': 8},
    'renderings': 2,
  },
  'downstream': {
    'train': {'move': 900, 'resize': 400, 'turn': 100, 'wall': 200, 'event': 500, 'count': 300},
    'test_captions': {'move': -1, 'resize': -1, 'turn': -1, 'wall': 16, 'event': 96, 'count': 24},
    'renderings': 1,
  },
}


@dataclasses.dataclass(frozen=True)
class World:
  """What to draw.

  Attributes:
    seed: everything random follows from it.
    size: side of the frames in pixels, a multiple of 2.
    frames: frames per clip.
    rate: frames per second of the files.
    colours: of `COLOURS`.
    shapes: of `SHAPES`.
    train: number of training clips of each family.
    test_captions: number of captions of each family in the test split, or -1
      for all of them. Captions that are never trained come first.
    renderings: test clips of each test caption.
    never_trained: share of the captions of each family that is kept out of
      the training split.
    noise: standard deviation of the noise of each pixel, of 255.
    purpose: 'pretrain', or 'downstream' for the world of fine-tuning. It
      chooses the words, whether there are questions, and the numbers of clips
      (`train`, `test_captions`, `renderings`) that are None.
  """

  seed: int = 0
  size: int = 48
  frames: int = 8
  rate: int = 4
  colours: tuple[str, ...] = ('red', 'green', 'blue', 'yellow')
  shapes: tuple[str, ...] = ('disc', 'ring', 'bar', 'pole')
  train: Mapping[str, int] | None = None
  test_captions: Mapping[str, int] | None = None
  renderings: int | None = None
  never_trained: float = 0.125
  noise: float = 5.0
  purpose: str = 'pretrain'

  def __post_init__(self):
    check_names('purpose', (self.purpose,), PURPOSES)
    for name, value in _DEFAULTS[self.purpose].items():
      if getattr(self, name) is None:
        object.__setattr__(self, name, copy.copy(value))
    check_names('colours', self.colours, COLOURS)
    check_names('shapes', self.shapes, SHAPES)
    check_names('train', self.train, FAMILIES)
    check_names('test_captions', self.test_captions, FAMILIES)
    if self.size < 16 or self.size % 2:
      raise ValueError(f'{self.size=} must be an even number of pixels, at least 16.')
    if self.frames < 2:
      raise ValueError(f'{self.frames=} must be at least 2 to show a motion.')
    if self.renderings < 1:
      raise ValueError(f'{self.renderings=} must be at least 1.')
    if not 0 <= self.never_trained < 0.5:
      raise ValueError(f'{self.never_trained=} must be a share from 0 up to 0.5.')


def world_from_options(options: Mapping) -> World:
  """A world with some options changed; lists may stand for tuples."""
  known = {field.name for field in dataclasses.fields(World)}
  check_names('options of the world', options, known)
  return World(
    **{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
  )


class Scene(NamedTuple):
  """What a caption says: coloured shapes and their motions in order.

  A shape alone has one motion or two, several shapes have none.
  """

  family: str
  colour: str
  shape: str
  motions: tuple[str, ...]
  number: int = 1

  @property
  def motion(self) -> str:
    return ', '.join(self.motions)

  def reversed(self) -> 'Scene | None':
    """The scene that its frames show backwards, None if it is the same."""
    motions = tuple(_REVERSED.get(m, m) for m in reversed(self.motions))
    return None if motions == self.motions else self._replace(motions=motions)


class ShapeClip(NamedTuple):
  """One clip to draw; `number` seeds its appearance."""

  name: str
  scene: Scene
  trained: bool
  split: str
  number: int


def list_scenes(world: World) -> list[Scene]:
  """Every scene of the world, in a fixed order."""
  # Motions and number of shapes.
  shown = {
    'move': [((m,), 1) for m in DIRECTIONS],
    'resize': [(('grow',), 1), (('shrink',), 1)],
    'turn': [(('turn',), 1)],
    'wall': [(('behind',), 1), (('front',), 1)],
    'event': [
      (pair, 1)
      for direction in ('left', 'right')
      for size in ('grow', 'shrink')
      for pair in ((direction, size), (size, direction))
    ],
    'count': [((), 2), ((), 3), ((), 4)],
  }
  return [
    Scene(family, colour, shape, motions, number)
    for family in FAMILIES
    for colour in world.colours
    for shape in world.shapes
    if family != 'turn' or shape in TURNING_SHAPES
    for motions, number in shown[family]
  ]


def never_trained(world: World) -> set[Scene]:
  """The scenes that are kept out of the training split."""
  kept = set()
  for number, family in enumerate(FAMILIES):
    scenes = [s for s in list_scenes(world) if s.family == family]
    rng = np.random.default_rng([world.seed, 1, number])
    kept.update(_shuffled(world, scenes, rng)[: int(round(world.never_trained * len(scenes)))])
  return kept


def list_clips(world: World, split: str) -> list[ShapeClip]:
  """The clips of a split, shuffled.

  Training clips go through the trained scenes of a family in turn, so that
  each has as many clips as the others, give or take one.
  """
  check_names('split', (split,), SPLITS)
  kept = never_trained(world)
  chosen = []
  for number, family in enumerate(FAMILIES):
    scenes = [s for s in list_scenes(world) if s.family == family]
    rng = np.random.default_rng([world.seed, 2, number, SPLITS.index(split)])
    if split == 'train':
      scenes = [s for s in scenes if s not in kept]
      count = world.train.get(family, 0)
      if count and not scenes:
        raise ValueError(
          f'the world has no {family!r} scenes with {world.shapes=}; set '
          'their number of training clips to 0.'
        )
      while count > 0:
        turn = _shuffled(world, scenes, rng)[:count]
        chosen.extend(turn)
        count -= len(turn)
    else:
      order = _shuffled(world, scenes, rng)
      order.sort(key=lambda scene: scene not in kept)
      limit = world.test_captions.get(family, 0)
      order = order if limit < 0 else order[:limit]
      chosen.extend(order * world.renderings)
  rng = np.random.default_rng([world.seed, 3, SPLITS.index(split)])
  chosen = [chosen[i] for i in rng.permutation(len(chosen))]
  return [
    ShapeClip(f'{split}_{number:06d}.mp4', scene, scene not in kept, split, number)
    for number, scene in enumerate(chosen)
  ]


def clip_rng(world: World, clip: ShapeClip, use: int) -> np.random.Generator:
  """Returns what draws for one use of a clip: 0 words, 1 looks, 2 questions."""
  return np.random.default_rng([world.seed, 4 + use, SPLITS.index(clip.split), clip.number])


def _shuffled(world, scenes, rng):
  """The scenes in a random order.

  Downstream all scenes of a coloured shape stand in a row. Whatever is taken
  from the front has then, of each coloured shape, all answers or none, and
  neither a question nor the look of a shape tells the answer.
  """
  shuffled = [scenes[i] for i in rng.permutation(len(scenes))]
  if world.purpose == 'downstream':
    entities = list(dict.fromkeys((s.colour, s.shape) for s in shuffled))
    shuffled.sort(key=lambda s: entities.index((s.colour, s.shape)))
  return shuffled


def check_names(what: str, names: Iterable[str], known: Iterable[str]) -> None:
  """Raises ValueError for names that are not known."""
  unknown = sorted(set(names) - set(known))
  if unknown:
    raise ValueError(f'{what}: unknown {unknown}; choose from {sorted(known)}.')
