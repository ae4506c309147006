"""What is said of a room of BabyAI, and what is asked about it.

A clip shows four objects and one or two actions. Wordings of training captions, each as
likely as the others:

  style    what it names        example
  whole    actions, objects     a robot picks up a red ball, with a blue key and a box in the room
  action   actions alone        a robot picks up a red ball
  mission  as BabyAI says them  pick up the ball
  objects  one or two objects   a red ball and a blue key

A partial caption is one of the last three. Of two actions in order an 'action' caption
says both or one.
"""

from examples.babyai.scenes import COLOURS, OBJECTS

CAPTIONS = 3  # Of a training clip, at most.
_SUBJECTS = ('the agent', 'a robot', 'a small robot', 'it')
# {0} is what is moved or reached, {1} what it is put next to.
_ACTIONS = {
  'goto': ('goes to {0}', 'walks up to {0}', 'moves to {0}', 'heads for {0}'),
  'pickup': ('picks up {0}', 'takes {0}', 'collects {0}', 'lifts {0}'),
  'putnext': (
    'puts {0} next to {1}',
    'places {0} beside {1}',
    'carries {0} to {1}',
    'brings {0} to {1}',
  ),
}
# {0} comes first.
_IN_ORDER = ('{0}, then {1}', '{0} and after that {1}', '{0} before it {1}', '{1} after it {0}')
_WITH_REST = (
  '{action}, with {rest} in the room',
  '{action}; there are {rest} too',
  'in a room with {rest}, {action}',
)
_LISTS = ('{}', 'a room with {}', 'there is {}', '{} on a black floor')
_NUMBERS = ('zero', 'one', 'two', 'three', 'four')
_DOES = {'goto': 'goes to it', 'pickup': 'picks it up', 'putnext': 'moves it'}


def captions(row, rng, partial):
  """Returns (style, caption) of a clip; see examples.simulated.Words.

  Of a test clip: a whole one, its actions in plain words, and the mission.
  """
  if row['split'] != 'train':
    return [
      ('whole', _whole(row, None)),
      ('action', _actions(row, None)),
      ('mission', row['mission']),
    ]
  said = []
  for _ in range(CAPTIONS):
    style = 'whole'
    if rng.random() < partial:
      style = rng.choice(('action', 'mission', 'objects'))
    text = {
      'whole': lambda: _whole(row, rng),
      'action': lambda: _actions(row, rng, some=True),
      'mission': lambda: row['mission'],
      'objects': lambda: _objects(row, rng),
    }[style]()
    said.append((style, text))
  return list(dict.fromkeys(said))


def questions(row, rng):
  """Returns (type, question, answer) of a clip; see examples.simulated.Words."""
  kinds = [thing['kind'] for thing in row['objects']]
  asked = [('object', 'which object does it go for first?', row['actions'][0]['object'])]
  done = [action['object'] for action in row['actions']]
  if len(set(done)) == len(done):
    action = rng.choice(row['actions'])
    asked.append(
      ('action', f'what does it do with the {action["object"]}?', _DOES[action['action']])
    )
  # Of things that captions seldom name, and of some that are nearly there.
  asked.append(('exists', f'is there {_a(rng.choice(kinds))}?', 'yes'))
  absent = [f'{c} {o}' for c in COLOURS for o in OBJECTS if f'{c} {o}' not in kinds]
  colours, objects = (set(words) for words in zip(*(kind.split() for kind in kinds), strict=True))
  near = [kind for kind in absent if kind.split()[0] in colours and kind.split()[1] in objects]
  asked.append(
    ('exists', f'is there {_a(rng.choice(near if near and rng.random() < 0.5 else absent))}?', 'no')
  )
  counted = rng.choice(OBJECTS)
  number = sum(kind.endswith(counted) for kind in kinds)
  asked.append(('count', f'how many {_many(counted)} are there at first?', _NUMBERS[number]))
  single = [kind for kind in kinds if sum(k.endswith(kind.split()[1]) for k in kinds) == 1]
  if single:
    colour, thing = rng.choice(single).split()
    asked.append(('colour', f'what colour is the {thing}?', colour))
  if len(set(done)) == 2:
    answer = rng.choice(('before', 'after'))
    this, other = done if answer == 'before' else done[::-1]
    asked.append(('order', f'does it go for the {this} before or after the {other}?', answer))
  return asked


def _choose(options, rng):
  return options[0] if rng is None else rng.choice(options)


def _actions(row, rng, some=False):
  phrases = []
  for action in row['actions']:
    things = [_a(action[name]) for name in ('object', 'target') if action.get(name)]
    phrases.append(_choose(_ACTIONS[action['action']], rng).format(*things))
  if some and len(phrases) == 2 and rng.random() < 0.5:
    phrases = [rng.choice(phrases)]
  said = _choose(_IN_ORDER, rng).format(*phrases) if len(phrases) == 2 else phrases[0]
  return f'{_choose(_SUBJECTS, rng)} {said}'


def _whole(row, rng):
  left = [thing['kind'] for thing in row['objects']]
  for kind in {
    action[name] for action in row['actions'] for name in ('object', 'target') if action.get(name)
  }:
    left.remove(kind)
  action = _actions(row, rng)
  if not left:
    return action
  return _choose(_WITH_REST, rng).format(action=action, rest=_listed(left))


def _objects(row, rng):
  kinds = [thing['kind'] for thing in row['objects']]
  return rng.choice(_LISTS).format(_listed(rng.sample(kinds, rng.choice((1, 2)))))


def _listed(kinds):
  """['red ball', 'red ball', 'key'] -> 'two red balls and a key'"""
  said = []
  for kind in dict.fromkeys(kinds):
    number = kinds.count(kind)
    said.append(_a(kind) if number == 1 else f'{_NUMBERS[number]} {_many(kind)}')
  return ' and '.join(filter(None, (', '.join(said[:-1]), said[-1])))


def _a(kind):
  return f'a {kind}'


def _many(kind):
  return f'{kind}es' if kind.endswith('x') else f'{kind}s'
