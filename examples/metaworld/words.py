"""What is said of an episode of Meta-World, and what is asked about it.

  style    what it names                 example
  whole    action, place, things, view   a robot arm puts a ring onto a peg, seen from the left
  action   action and thing alone        the robot takes a ring
  task     the name of the task          assembly
  objects  things alone                  a ring and a peg on a table

A partial caption is one of the last three. A failed episode is one in which the robot
'tries to' do something. Names of tasks of clips that are played backwards say what is
shown: 'door close' of door-open.
"""

from examples.metaworld.tasks import DOES, TASKS, THINGS, VERBS

CAPTIONS = 3  # Of a training clip, at most.
_SUBJECTS = ('a robot arm', 'the robot', 'a red robot arm', 'a gripper')
_TRIES = ('tries to {}', 'fails to {}', 'attempts to {}')
_OBJECTS = ('{} on a table', '{}', 'there is {}', 'a table with {}')
# Of which two in time: what is asked, and the answer to it for one of the two.
_EITHER = (('open', 'close'), ('lock', 'unlock'), ('push', 'pull'), ('press', 'lift'))
_TO_OR_FROM = (('onto', 'off'), ('into', 'out of'))


def captions(row, rng, partial):
  """Returns (style, caption) of a clip; see examples.simulated.Words.

  Of other splits than train a whole one, its action in plain words, and the task.
  """
  if row['split'] != 'train':
    return [('whole', _whole(row, None)), ('action', _action(row, None)), ('task', _task(row))]
  said = []
  for _ in range(CAPTIONS):
    style = rng.choice(('action', 'task', 'objects')) if rng.random() < partial else 'whole'
    text = {
      'whole': lambda: _whole(row, rng),
      'action': lambda: _action(row, rng),
      'task': lambda: _task(row),
      'objects': lambda: _objects(row, rng),
    }[style]()
    said.append((style, text))
  return list(dict.fromkeys(said))


def questions(row, rng):
  """Returns (type, question, answer) of a clip; see examples.simulated.Words."""
  thing, verb, does = row['thing'], row['verb'], _does(row['verb'])
  asked = []
  if verb == 'reach':
    asked.append(('action', 'what does the robot do?', does))
  else:
    asked.append(('object', 'what does the robot handle?', thing))
    asked.append(('action', f'what does the robot do with the {thing}?', does))
  # Where another task undoes this one: else the question would say its answer.
  if row['success'] and TASKS[row['task']].undone:
    for pair in _EITHER:
      if verb in pair:
        first, second = _shuffled(pair, rng)
        asked.append(('order', f'does the robot {first} or {second} the {thing}?', verb))
    for pair in _TO_OR_FROM:
      if found := [way for way in pair if row['place'].startswith(f'{way} ')]:
        first, second = _shuffled(pair, rng)
        asked.append(('order', f'does the {thing} go {first} or {second} it?', found[0]))
  present = things(row)
  asked.append(('exists', f'is there {_a(rng.choice(present))}?', 'yes'))
  absent = [other for other in THINGS if other not in present]
  asked.append(('exists', f'is there {_a(rng.choice(absent))}?', 'no'))
  return asked


def things(row):
  """Returns what a clip shows beside the arm."""
  own = [] if row['thing'] == 'hand' else [row['thing']]
  return own + row['others']


def _choose(options, rng):
  return options[0] if rng is None else rng.choice(options)


def _shuffled(pair, rng):
  return pair if rng.random() < 0.5 else pair[::-1]


def _does(verb):
  return DOES.get(verb, verb)


def _action(row, rng):
  if row['success']:
    said = _choose(VERBS[row['verb']], rng).format(_a(row['thing']))
  else:
    what = 'reach out' if row['verb'] == 'reach' else f'{_does(row["verb"])} {_a(row["thing"])}'
    said = _choose(_TRIES, rng).format(what)
  return f'{_choose(_SUBJECTS, rng)} {said}'


def _whole(row, rng):
  said = ' '.join(filter(None, (_action(row, rng), row['place'])))
  if left := [other for other in row['others'] if other not in row['place']]:
    said += f', with {" and ".join(map(_a, left))} on the table'
  if row['camera'] == 'above':
    return f'{said}, seen from above'
  return said if row['camera'] == 'behind' else f'{said}, seen from the {row["camera"]}'


def _task(row):
  if row['backwards']:
    return ' '.join(filter(None, (row['thing'], _does(row['verb']), row['place'])))
  return row['task'].replace('-', ' ')


def _objects(row, rng):
  present = things(row) or ['robot arm']
  return rng.choice(_OBJECTS).format(' and '.join(map(_a, present)))


def _a(thing):
  return f'a {thing}'
