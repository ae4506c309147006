"""Captions of scenes and questions about them."""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

from examples.shapes.scenes import (
  DIRECTIONS,
  SHAPES,
  STYLES,
  Scene,
  ShapeClip,
  World,
  check_names,
  clip_rng,
)

# Number, colour and shapes of the family count.
_GROUPS = {
  'full': ('{} {} {}', 'there are {} {} {}', '{0} {2}, all of them {1}'),
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
  'behind': ('depth', 'does it pass behind or in front of the wall?', 'behind'),
  'front': ('depth', 'does it pass behind or in front of the wall?', 'in front'),
}
# Share of the clips of one shape whose number is asked.
_ONES = 0.25


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
      'right': ('drifts right', 'is drifting right', 'goes to the right'),
      'up': ('drifts up', 'is drifting up', 'goes up'),
      'down': ('drifts down', 'is drifting down', 'goes down'),
      'grow': ('grows', 'is growing', 'becomes larger'),
      'shrink': ('shrinks', 'is shrinking', 'becomes smaller'),
      'turn': ('turns', 'is turning', 'turns around'),
      'behind': ('passes behind a wall', 'is passing behind a wall', 'goes behind a wall'),
      'front': (
        'passes in front of a wall',
        'is passing in front of a wall',
        'goes in front of a wall',
      ),
    },
    then=('{}, then {}', '{} and then {}', 'first {}, then {}'),
  ),
  'downstream': _Wording(
    shapes={
      'disc': 'circle',
      'ring': 'hoop',
      'bar': 'plank',
      'pole': 'stick',
      'triangle': 'wedge',
      'cross': 'plus',
      'square': 'block',
    },
    subjects={
      'full': ('a {} {}', 'the {} {}', 'this {} {}'),
      'entity': ('a {} {}',),
      'shape': ('a {1}',),
      'motion': ('a shape',),
    },
    phrases={
      'left': ('moves to the left', 'moves left', 'travels to the left'),
      'right': ('moves to the right', 'moves right', 'travels to the right'),
      'up': ('rises', 'moves upwards', 'climbs'),
      'down': ('sinks', 'moves downwards', 'descends'),
      'grow': ('gets bigger', 'is getting bigger', 'swells'),
      'shrink': ('gets smaller', 'is getting smaller', 'contracts'),
      'turn': ('spins', 'is spinning', 'rotates'),
      'behind': (
        'disappears behind a wall',
        'vanishes behind a wall',
        'is partly hidden by a wall',
      ),
      'front': ('crosses in front of a wall', 'slides in front of a wall', 'hides part of a wall'),
    },
    then=('{} before it {}', '{} and afterwards {}', '{}, and after that it {}'),
  ),
}


def caption(
  scene: Scene, style: str = 'full', *, subject: int = 0, phrase: int = 0, purpose: str = 'pretrain'
) -> str:
  """Says a scene; `subject` and `phrase` choose among the wordings."""
  check_names('style', (style,), STYLES)
  wording = _WORDINGS[purpose]
  if scene.family == 'count':
    return _GROUPS[style][subject].format(
      _NUMBERS[scene.number], scene.colour, _shape_word(scene, purpose)
    )
  words = wording.subjects[style][subject].format(scene.colour, _shape_word(scene, purpose))
  if style in ('entity', 'shape'):
    return words
  if len(scene.motions) == 1:
    return f'{words} {wording.phrases[scene.motion][phrase]}'
  first, then = (wording.phrases[motion][0] for motion in scene.motions)
  return f'{words} {wording.then[phrase].format(first, then)}'


def caption_rows(world: World, clip: ShapeClip) -> list[dict[str, str]]:
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
  rng = clip_rng(world, clip, 0)
  if world.purpose == 'downstream':
    others = sorted(
      {
        caption(clip.scene, subject=s, phrase=p, purpose='downstream')
        for s, p in itertools.product(range(3), repeat=2)
      }
      - {plain}
    )
    return rows + [_row(clip, 'full', others[rng.integers(len(others))])]
  subject, phrase = rng.integers(0, 3, 2)
  other = caption(clip.scene, subject=subject, phrase=phrase)
  if other != plain:
    rows.append(_row(clip, 'full', other))
  return rows + [
    _row(clip, style, caption(clip.scene, style)) for style in ('entity', 'shape', 'motion')
  ]


def question_rows(world: World, clip: ShapeClip) -> list[dict[str, str]]:
  """The rows of questions.jsonl for a clip: three to five, downstream alone."""
  if world.purpose == 'pretrain':
    return []
  scene = clip.scene
  rng = clip_rng(world, clip, 2)
  word = _shape_word(scene, 'downstream')
  be, they = ('is', 'it') if scene.number == 1 else ('are', 'they')
  looks = [
    ('shape', f'what shape {be} {they}?', _WORDINGS['downstream'].shapes[scene.shape]),
    ('colour', f'what colour {be} the {word}?', scene.colour),
  ]
  number = [('count', 'how many shapes are there?', _NUMBERS[scene.number])]
  count = scene.family in ('turn', 'count') or rng.random() < _ONES
  if scene.family == 'event':
    # Motion is asked four times already.
    asked = number if count else [looks[rng.integers(2)]]
  else:
    asked = looks + number if count else looks
  asked = asked + [_ASKED[m] for m in scene.motions if m in _ASKED]
  if len(scene.motions) == 2:
    before = scene.motions[0] in DIRECTIONS
    asked += [
      (
        'order',
        'does it move before or after it changes its size?',
        'before' if before else 'after',
      ),
      ('order', 'when does it move?', 'at first' if before else 'at the end'),
    ]
  return [
    {'video': clip.name, 'question': question, 'answer': answer, 'type': kind}
    for kind, question, answer in asked
  ]


def _shape_word(scene, purpose):
  word = _WORDINGS[purpose].shapes[scene.shape]
  if scene.number == 1:
    return word
  return word + ('es' if word.endswith('s') else 's')


def _row(clip, style, text):
  return {'video': clip.name, 'caption': text, 'style': style}
