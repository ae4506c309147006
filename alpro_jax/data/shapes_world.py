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

import concurrent.futures
import copy
import dataclasses
import itertools
import json
import multiprocessing
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from alpro_jax.data import workers as processes

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

_DIRECTIONS = {'left': (-1, 0), 'right': (1, 0), 'up': (0, -1), 'down': (0, 1)}
_REVERSED = {
    'left': 'right', 'right': 'left', 'up': 'down', 'down': 'up',
    'grow': 'shrink', 'shrink': 'grow',
}
# Half the sides of the box around a shape, over its radius.
_REACH = {
    'disc': (0.9, 0.9), 'ring': (1.15, 1.15), 'bar': (1.25, 0.4),
    'pole': (0.4, 1.25), 'triangle': (1.16, 1.16), 'cross': (1.0, 1.0),
    'square': (0.85, 0.85),
}
# Number, colour and shapes of the family count.
_GROUPS = {
    'full': (
        '{} {} {}', 'there are {} {} {}', '{0} {2}, all of them {1}',
    ),
    'entity': ('{} {} {}',),
    'shape': ('{0} {2}',),
    'motion': ('{} shapes',),
}
_NUMBERS = {1: 'one', 2: 'two', 3: 'three', 4: 'four'}
# Type, question and answer of each motion.
_ASKED = {
    'left': ('direction', 'does it move left or right?', 'left'),
    'right': ('direction', 'does it move left or right?', 'right'),
    'up': ('direction', 'does it move up or down?', 'up'),
    'down': ('direction', 'does it move up or down?', 'down'),
    'grow': ('change', 'does it get bigger or smaller?', 'bigger'),
    'shrink': ('change', 'does it get bigger or smaller?', 'smaller'),
    'behind': (
        'depth', 'does it pass behind or in front of the wall?', 'behind'),
    'front': (
        'depth', 'does it pass behind or in front of the wall?', 'in front'),
}
# Share of the clips of one shape whose number is asked.
_ONES = 0.25

_DEFAULTS = {
    'pretrain': {
        'train': {
            'move': 4000, 'resize': 1700, 'turn': 400, 'wall': 700,
            'event': 1200,
        },
        'test_captions': {
            'move': -1, 'resize': -1, 'turn': -1, 'wall': 12, 'event': 8,
        },
        'renderings': 2,
    },
    'downstream': {
        'train': {
            'move': 900, 'resize': 400, 'turn': 100, 'wall': 200, 'event': 500,
            'count': 300,
        },
        'test_captions': {
            'move': -1, 'resize': -1, 'turn': -1, 'wall': 16, 'event': 96,
            'count': 24,
        },
        'renderings': 1,
    },
}


class _Wording(NamedTuple):
  """How a world says things; the first way of each is that of the test split.

  Attributes:
    shapes: the word for each shape.
    subjects: of each style, with the places of the colour and the shape.
    phrases: of each motion.
    then: puts two motions in order.
  """

  shapes: Mapping[str, str]
  subjects: Mapping[str, tuple[str, ...]]
  phrases: Mapping[str, tuple[str, ...]]
  then: tuple[str, ...]


_WORDINGS = {
    'pretrain': _Wording(
        shapes={shape: shape for shape in SHAPES},
        subjects={
            'full': ('a {} {}', 'the {} {}', 'one {} {}'),
            'entity': ('a {} {}',),
            'shape': ('a {1}',),
            'motion': ('a shape',),
        },
        phrases={
            'left': ('drifts left', 'is drifting left', 'goes to the left'),
            'right': (
                'drifts right', 'is drifting right', 'goes to the right'),
            'up': ('drifts up', 'is drifting up', 'goes up'),
            'down': ('drifts down', 'is drifting down', 'goes down'),
            'grow': ('grows', 'is growing', 'becomes larger'),
            'shrink': ('shrinks', 'is shrinking', 'becomes smaller'),
            'turn': ('turns', 'is turning', 'turns around'),
            'behind': (
                'passes behind a wall', 'is passing behind a wall',
                'goes behind a wall',
            ),
            'front': (
                'passes in front of a wall', 'is passing in front of a wall',
                'goes in front of a wall',
            ),
        },
        then=('{}, then {}', '{} and then {}', 'first {}, then {}'),
    ),
    'downstream': _Wording(
        shapes={
            'disc': 'circle', 'ring': 'hoop', 'bar': 'plank', 'pole': 'stick',
            'triangle': 'wedge', 'cross': 'plus', 'square': 'block',
        },
        subjects={
            'full': ('a {} {}', 'the {} {}', 'this {} {}'),
            'entity': ('a {} {}',),
            'shape': ('a {1}',),
            'motion': ('a shape',),
        },
        phrases={
            'left': (
                'moves to the left', 'moves left', 'travels to the left'),
            'right': (
                'moves to the right', 'moves right', 'travels to the right'),
            'up': ('rises', 'moves upwards', 'climbs'),
            'down': ('sinks', 'moves downwards', 'descends'),
            'grow': ('gets bigger', 'is getting bigger', 'swells'),
            'shrink': ('gets smaller', 'is getting smaller', 'contracts'),
            'turn': ('spins', 'is spinning', 'rotates'),
            'behind': (
                'disappears behind a wall', 'vanishes behind a wall',
                'is partly hidden by a wall',
            ),
            'front': (
                'crosses in front of a wall', 'slides in front of a wall',
                'hides part of a wall',
            ),
        },
        then=(
            '{} before it {}', '{} and afterwards {}',
            '{}, and after that it {}',
        ),
    ),
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
    _check_names('purpose', (self.purpose,), PURPOSES)
    for name, value in _DEFAULTS[self.purpose].items():
      if getattr(self, name) is None:
        object.__setattr__(self, name, copy.copy(value))
    _check_names('colours', self.colours, COLOURS)
    _check_names('shapes', self.shapes, SHAPES)
    _check_names('train', self.train, FAMILIES)
    _check_names('test_captions', self.test_captions, FAMILIES)
    if self.size < 16 or self.size % 2:
      raise ValueError(
          f'{self.size=} must be an even number of pixels, at least 16.')
    if self.frames < 2:
      raise ValueError(f'{self.frames=} must be at least 2 to show a motion.')
    if self.renderings < 1:
      raise ValueError(f'{self.renderings=} must be at least 1.')
    if not 0 <= self.never_trained < 0.5:
      raise ValueError(
          f'{self.never_trained=} must be a share from 0 up to 0.5.')


def world_from_options(options: Mapping) -> World:
  """A world with some options changed; lists may stand for tuples."""
  known = {field.name for field in dataclasses.fields(World)}
  _check_names('options of the world', options, known)
  return World(**{
      name: tuple(value) if isinstance(value, list) else value
      for name, value in options.items()
  })


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


class Clip(NamedTuple):
  """One clip to draw; `number` seeds its appearance."""

  name: str
  scene: Scene
  trained: bool
  split: str
  number: int


class Drawing(NamedTuple):
  """Frames uint8[T, H, W, 3] and boxes float32[T, 4].

  A box is (left, top, right, bottom) around the coloured shapes as fractions
  of the frame, cut off at its borders.
  """

  frames: np.ndarray
  boxes: np.ndarray


def list_scenes(world: World) -> list[Scene]:
  """Every scene of the world, in a fixed order."""
  # Motions and number of shapes.
  shown = {
      'move': [((m,), 1) for m in _DIRECTIONS],
      'resize': [(('grow',), 1), (('shrink',), 1)],
      'turn': [(('turn',), 1)],
      'wall': [(('behind',), 1), (('front',), 1)],
      'event': [
          (pair, 1)
          for direction in ('left', 'right') for size in ('grow', 'shrink')
          for pair in ((direction, size), (size, direction))
      ],
      'count': [((), 2), ((), 3), ((), 4)],
  }
  return [
      Scene(family, colour, shape, motions, number)
      for family in FAMILIES for colour in world.colours
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
    kept.update(_shuffled(world, scenes, rng)[:int(
        round(world.never_trained * len(scenes)))])
  return kept


def list_clips(world: World, split: str) -> list[Clip]:
  """The clips of a split, shuffled.

  Training clips go through the trained scenes of a family in turn, so that
  each has as many clips as the others, give or take one.
  """
  _check_names('split', (split,), SPLITS)
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
            'their number of training clips to 0.')
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
      Clip(f'{split}_{number:06d}.mp4', scene, scene not in kept, split, number)
      for number, scene in enumerate(chosen)
  ]


def caption(scene: Scene, style: str = 'full', *, subject: int = 0,
            phrase: int = 0, purpose: str = 'pretrain') -> str:
  """Says a scene; `subject` and `phrase` choose among the wordings."""
  _check_names('style', (style,), STYLES)
  wording = _WORDINGS[purpose]
  if scene.family == 'count':
    return _GROUPS[style][subject].format(
        _NUMBERS[scene.number], scene.colour, _shape_word(scene, purpose))
  words = wording.subjects[style][subject].format(
      scene.colour, _shape_word(scene, purpose))
  if style in ('entity', 'shape'):
    return words
  if len(scene.motions) == 1:
    return f'{words} {wording.phrases[scene.motion][phrase]}'
  first, then = (wording.phrases[motion][0] for motion in scene.motions)
  return f'{words} {wording.then[phrase].format(first, then)}'


def caption_rows(world: World, clip: Clip) -> list[dict[str, str]]:
  """The rows of captions.jsonl for a clip.

  A test clip has its plain full caption alone. A training clip has one caption
  of each style and a second full one in other words; downstream it has the two
  full ones alone. The short captions come in one wording: they say so little
  that the other wordings would be negatives that are right.
  """
  plain = caption(clip.scene, purpose=world.purpose)
  rows = [_row(clip, 'full', plain)]
  if clip.split == 'test':
    return rows
  rng = _clip_rng(world, clip, 0)
  if world.purpose == 'downstream':
    others = sorted({
        caption(clip.scene, subject=s, phrase=p, purpose='downstream')
        for s, p in itertools.product(range(3), repeat=2)
    } - {plain})
    return rows + [_row(clip, 'full', others[rng.integers(len(others))])]
  subject, phrase = rng.integers(0, 3, 2)
  other = caption(clip.scene, subject=subject, phrase=phrase)
  if other != plain:
    rows.append(_row(clip, 'full', other))
  return rows + [
      _row(clip, style, caption(clip.scene, style))
      for style in ('entity', 'shape', 'motion')
  ]


def question_rows(world: World, clip: Clip) -> list[dict[str, str]]:
  """The rows of questions.jsonl for a clip: three to five, downstream alone."""
  if world.purpose == 'pretrain':
    return []
  scene = clip.scene
  rng = _clip_rng(world, clip, 2)
  word = _shape_word(scene, 'downstream')
  be, they = ('is', 'it') if scene.number == 1 else ('are', 'they')
  looks = [
      ('shape', f'what shape {be} {they}?',
       _WORDINGS['downstream'].shapes[scene.shape]),
      ('colour', f'what colour {be} the {word}?', scene.colour),
  ]
  number = [
      ('count', 'how many shapes are there?', _NUMBERS[scene.number])]
  count = scene.family in ('turn', 'count') or rng.random() < _ONES
  if scene.family == 'event':
    # Motion is asked four times already.
    asked = number if count else [looks[rng.integers(2)]]
  else:
    asked = looks + number if count else looks
  asked = asked + [_ASKED[m] for m in scene.motions if m in _ASKED]
  if len(scene.motions) == 2:
    before = scene.motions[0] in _DIRECTIONS
    asked += [
        ('order', 'does it move before or after it changes its size?',
         'before' if before else 'after'),
        ('order', 'when does it move?', 'at first' if before else 'at the end'),
    ]
  return [
      {'video': clip.name, 'question': question, 'answer': answer, 'type': kind}
      for kind, question, answer in asked
  ]


def truth_row(world: World, clip: Clip, boxes: np.ndarray) -> dict:
  """The row of truth.jsonl for a clip: what a probe may ask about it.

  'shape' names what is drawn, in the words of pre-training. Downstream there is
  the 'number' of shapes too.
  """
  backwards = clip.scene.reversed()
  row = {
      'video': clip.name,
      'family': clip.scene.family,
      'colour': clip.scene.colour,
      'shape': clip.scene.shape,
      'motion': clip.scene.motion,
      'caption': caption(clip.scene, purpose=world.purpose),
      # The caption of the same frames backwards; '' if that is the same one.
      'reversed_caption': (
          caption(backwards, purpose=world.purpose) if backwards else ''),
      'trained': clip.trained,
      'boxes': [[round(float(x), 4) for x in box] for box in boxes],
  }
  if world.purpose == 'downstream':
    row['number'] = clip.scene.number
  return row


def draw(world: World, clip: Clip) -> Drawing:
  """Draws a clip."""
  rng = _clip_rng(world, clip, 1)
  size, t = world.size, world.frames
  axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
  y, x = axis[:, None], axis[None, :]

  frames = np.broadcast_to(_background(rng, size), (t, size, size, 3)).copy()
  if clip.scene.family == 'count':
    paths = _group(rng, clip.scene, t)
  else:
    paths = [_path(rng, clip.scene, t)]
  colour = np.array(COLOURS[clip.scene.colour]) + rng.uniform(-20, 20, 3)
  cover = np.max([_cover(clip.scene.shape, x, y, *p) for p in paths], axis=0)
  if clip.scene.family == 'wall':
    half = rng.uniform(0.09, 0.13)
    wall = np.clip((half - np.abs(x - rng.uniform(-0.03, 0.03))) * size + 0.5,
                   0, 1)
    wall = np.broadcast_to(wall, (size, size))[None]
    bricks = 70 + rng.uniform(-15, 15) + 18 * np.sign(np.sin(y * 40))[..., None]
    layers = [(cover, colour), (wall, np.broadcast_to(bricks, (size, size, 3)))]
    if clip.scene.motion == 'front':
      layers.reverse()
  else:
    layers = [(cover, colour)]
  for alpha, paint in layers:
    frames += alpha[..., None] * (paint - frames)
  frames += world.noise * rng.standard_normal(frames.shape, dtype=np.float32)
  frames = np.clip(frames + 0.5, 0, 255).astype(np.uint8)

  reach = np.array(_REACH[clip.scene.shape])
  if clip.scene.family == 'turn':
    reach = reach.max()
  low, high = (
      [centre + sign * radius[:, None] * reach for centre, radius, _ in paths]
      for sign in (-1, 1))
  boxes = np.concatenate([np.min(low, 0), np.max(high, 0)], axis=1) + 0.5
  return Drawing(frames, np.clip(boxes, 0, 1).astype(np.float32))


def make_arrays(world: World, split: str, workers: int = 1) -> dict:
  """Draws a split in memory, for experiments that need no files.

  Returns:
    A dict with `clips` (list of Clip), `frames` uint8[n, T, H, W, 3], `boxes`
    float32[n, T, 4], `rows` and `questions` (lists of the caption rows and of
    the question rows of each clip) and `truth` (list of truth rows).
  """
  clips = list_clips(world, split)
  drawings = list(_map(_draw_one, [(world, c) for c in clips], workers))
  boxes = np.stack([d.boxes for d in drawings])
  return {
      'clips': clips,
      'frames': np.stack([d.frames for d in drawings]),
      'boxes': boxes,
      'rows': [caption_rows(world, clip) for clip in clips],
      'questions': [question_rows(world, clip) for clip in clips],
      'truth': [
          truth_row(world, c, b) for c, b in zip(clips, boxes, strict=True)],
  }


def write(world: World, output: str | pathlib.Path, workers: int = 1) -> dict:
  """Writes the world as files.

    output/world.json          the options
    output/train/captions.jsonl   rows of video, caption, style
    output/train/questions.jsonl  rows of video, question, answer, type; of the
                                downstream world alone
  output/train/truth.jsonl      what each clip shows
    output/train/videos/*.mp4
    output/test/...               the same

  Returns:
    The number of clips of each split.
  """
  output = pathlib.Path(output)
  counts = {}
  for split in SPLITS:
    folder = output / split
    (folder / 'videos').mkdir(parents=True, exist_ok=True)
    clips = list_clips(world, split)
    jobs = [(world, clip, str(folder / 'videos')) for clip in clips]
    boxes = list(_map(_write_one, jobs, workers))
    _write_rows(folder / 'captions.jsonl', (
        row for clip in clips for row in caption_rows(world, clip)))
    if world.purpose == 'downstream':
      _write_rows(folder / 'questions.jsonl', (
          row for clip in clips for row in question_rows(world, clip)))
    _write_rows(folder / 'truth.jsonl', (
        truth_row(world, c, b) for c, b in zip(clips, boxes, strict=True)))
    counts[split] = len(clips)
  (output / 'world.json').write_text(
      json.dumps(dataclasses.asdict(world), indent=1) + '\n')
  return counts


def write_video(path: str, frames: np.ndarray, rate: int) -> None:
  """Writes uint8[T, H, W, 3] as one mp4 file."""
  import av  # Slow to import, and not needed for arrays.

  with av.open(path, 'w', options={'fflags': '+bitexact'}) as container:
    # Not h264: libx264 wrote other bytes for the same frames now and then.
    stream = container.add_stream('mpeg4', rate=Fraction(rate))
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = 'yuv420p'
    stream.bit_rate = 8 * frames.shape[1] * frames.shape[2] * rate
    stream.options = {'threads': '1', 'flags': '+bitexact', 'qmax': '4'}
    for frame in frames:
      frame = av.VideoFrame.from_ndarray(frame, format='rgb24')
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _path(rng, scene, t):
  """Centre [T, 2], radius [T], angle [T] in units of the frame side."""
  time = np.linspace(0, 1, t)
  centre = np.zeros((t, 2))
  log_radius = np.zeros(t)
  angle = np.full(t, rng.uniform(-0.2, 0.2))
  phases = [time] if len(scene.motions) == 1 else [
      np.clip(2 * time, 0, 1), np.clip(2 * time - 1, 0, 1)]
  for motion, phase in zip(scene.motions, phases, strict=True):
    if motion in _DIRECTIONS:
      travel = rng.uniform(0.42, 0.58)
      centre += travel * phase[:, None] * np.array(_DIRECTIONS[motion])
    elif motion in ('grow', 'shrink'):
      ratio = np.log(rng.uniform(2.0, 2.8))
      log_radius += ratio * phase * (1 if motion == 'grow' else -1)
    elif motion == 'turn':
      sense = rng.choice((-1, 1))
      angle = angle + sense * np.deg2rad(rng.uniform(80, 110)) * phase
    else:
      sense = rng.choice((-1, 1))
      centre[:, 0] += sense * rng.uniform(0.5, 0.66) * phase
  # Centred over time: the mean place and size say nothing of the order.
  centre += rng.uniform(-0.05, 0.05, 2) - centre.mean(0)
  radius = rng.uniform(0.19, 0.24) * np.exp(log_radius - log_radius.mean())
  return centre, radius, angle


def _group(rng, scene, t):
  """A path for each of several equal shapes, at random places apart."""
  radius = rng.uniform(0.09, 0.115)
  angles = rng.uniform(-0.1, 0.1, scene.number)
  shake = max(0, rng.uniform(-0.012, 0.012))  # Every other clip is still.
  reach = np.array(_REACH[scene.shape])
  # The box of a tilted shape with its shaking and half of the gap to the next.
  half = radius * (reach + 0.1 * reach[::-1]) + shake + 0.025
  while True:
    places = rng.uniform(half - 0.5, 0.5 - half, (256, scene.number, 2))
    gaps = np.abs(places[:, :, None] - places[:, None])
    near = (gaps < 2 * half).all(-1).sum((1, 2)) > scene.number
    if not near.all():
      break
  places = places[np.argmin(near)]
  return [
      (place + rng.uniform(-shake, shake, (t, 2)), np.full(t, radius),
       np.full(t, angle)) for place, angle in zip(places, angles, strict=True)
  ]


def _cover(shape, x, y, centre, radius, angle):
  """float32[T, H, W] in 0..1: how much of each pixel the shape covers."""
  cos, sin = (f(angle)[:, None, None].astype(np.float32)
              for f in (np.cos, np.sin))
  cx, cy, r = (v[:, None, None].astype(np.float32)
               for v in (centre[:, 0], centre[:, 1], radius))
  x, y = x - cx, y - cy
  u, v = cos * x + sin * y, cos * y - sin * x
  if shape == 'disc':
    distance = np.hypot(u, v) - 0.9 * r
  elif shape == 'ring':
    distance = np.abs(np.hypot(u, v) - 0.95 * r) - 0.2 * r
  elif shape == 'triangle':
    side = np.float32(np.sqrt(3) / 2)
    distance = np.maximum(
        v, np.maximum(side * u - 0.5 * v, -side * u - 0.5 * v)) - 0.58 * r
  elif shape == 'bar':
    distance = np.maximum(np.abs(u) - 1.25 * r, np.abs(v) - 0.4 * r)
  elif shape == 'pole':
    distance = np.maximum(np.abs(u) - 0.4 * r, np.abs(v) - 1.25 * r)
  elif shape == 'cross':
    a, b = np.abs(u), np.abs(v)
    distance = np.minimum(np.maximum(a - r, b - 0.26 * r),
                          np.maximum(b - r, a - 0.26 * r))
  else:
    distance = np.maximum(np.abs(u), np.abs(v)) - 0.85 * r
  return np.clip(0.5 - distance * x.shape[-1], 0, 1)


def _background(rng, size):
  """float32[H, W, 3]: a dull colour with smooth blotches and stripes."""
  axis = np.linspace(0, 4, size)
  low = np.minimum(axis.astype(int), 3)
  part = (axis - low).astype(np.float32)
  blotches = rng.standard_normal((5, 5), dtype=np.float32)
  rows = (blotches[low] * (1 - part)[:, None]
          + blotches[low + 1] * part[:, None])
  smooth = rows[:, low] * (1 - part) + rows[:, low + 1] * part
  slope, wave, shift = rng.uniform((0, 8, 0), (np.pi, 30, 6))
  place = np.linspace(0, 1, size)
  stripes = np.sin(wave * (np.cos(slope) * place[None, :]
                           + np.sin(slope) * place[:, None]) + shift)
  level = rng.uniform(95, 150) + rng.uniform(-12, 12, 3)
  texture = rng.uniform(0, 14) * smooth + rng.uniform(0, 10) * stripes
  return (level + texture[..., None]).astype(np.float32)


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


def _shape_word(scene, purpose):
  word = _WORDINGS[purpose].shapes[scene.shape]
  if scene.number == 1:
    return word
  return word + ('es' if word.endswith('s') else 's')


def _clip_rng(world, clip, use):
  return np.random.default_rng(
      [world.seed, 4 + use, SPLITS.index(clip.split), clip.number])


def _row(clip, style, text):
  return {'video': clip.name, 'caption': text, 'style': style}


def _write_rows(path, rows: Iterator[dict]):
  with open(path, 'w', encoding='utf-8') as lines:
    for row in rows:
      lines.write(json.dumps(row) + '\n')


def _draw_one(job):
  return draw(*job)


def _write_one(job):
  world, clip, folder = job
  drawing = draw(world, clip)
  write_video(f'{folder}/{clip.name}', drawing.frames, world.rate)
  return drawing.boxes


def _map(function, jobs: Sequence, workers: int):
  if workers <= 1:
    yield from map(function, jobs)
    return
  # Spawned: a fork of a process with threads (jax, tf) may hang.
  with processes.environment_of_children(), (
      concurrent.futures.ProcessPoolExecutor(
          workers, mp_context=multiprocessing.get_context('spawn'))) as pool:
    yield from pool.map(function, jobs, chunksize=64)


def _check_names(what, names, known):
  unknown = sorted(set(names) - set(known))
  if unknown:
    raise ValueError(
        f'{what}: unknown {unknown}; choose from {sorted(known)}.')
