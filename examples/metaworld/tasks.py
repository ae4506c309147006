"""The fifty tasks of Meta-World in words: what is handled, what is done, what undoes it."""

from typing import NamedTuple


class Task(NamedTuple):
  """A task.

  Attributes:
    thing: what the robot handles.
    verb: of VERBS, what it does with it.
    place: where to, '' if that goes without saying.
    undone: the verb that the clip shows when it is played backwards, '' if none does.
    backwards_place: of that verb.
    others: what else stands there; walls are too faint to be asked about.
  """

  thing: str
  verb: str
  place: str = ''
  undone: str = ''
  backwards_place: str = ''
  others: tuple[str, ...] = ()


# {0} is the thing, and the place follows. The first wording is that of the test splits.
VERBS = {
  'open': ('opens {0}', 'is opening {0}'),
  'close': ('closes {0}', 'shuts {0}', 'is closing {0}'),
  'lock': ('locks {0}', 'is locking {0}'),
  'unlock': ('unlocks {0}', 'is unlocking {0}'),
  'push': ('pushes {0}', 'shoves {0}', 'is pushing {0}'),
  'pull': ('pulls {0}', 'drags {0}', 'is pulling {0}'),
  'press': ('presses {0}', 'pushes down {0}', 'is pressing {0}'),
  'lift': ('lifts {0}', 'raises {0}', 'pulls up {0}'),
  'put': ('puts {0}', 'places {0}', 'is putting {0}'),
  'take': ('takes {0}', 'removes {0}', 'is taking {0}'),
  'slide': ('slides {0}', 'is sliding {0}'),
  'turn': ('turns {0}', 'rotates {0}', 'is turning {0}'),
  'hit': ('hits {0}', 'strikes {0}'),
  'reach': ('reaches out', 'moves its hand', 'stretches out its hand'),
  'sweep': ('sweeps {0}', 'wipes {0}', 'is sweeping {0}'),
  'throw': ('puts {0}', 'drops {0}'),
}
# As an answer.
DOES = {'throw': 'put'}

TASKS = {
  'assembly': Task('ring', 'put', 'onto a peg', 'take', 'off a peg', ('peg',)),
  'basketball': Task('ball', 'throw', 'into a basket', others=('basket',)),
  'bin-picking': Task('cube', 'put', 'into the other bin', others=('bin',)),
  'box-close': Task('box', 'close', 'with its lid', others=('lid',)),
  'button-press-topdown': Task('button', 'press', 'from above'),
  'button-press-topdown-wall': Task('button', 'press', 'behind a wall, from above'),
  'button-press': Task('button', 'press', 'from the side'),
  'button-press-wall': Task('button', 'press', 'behind a wall'),
  'coffee-button': Task('button', 'press', 'of a coffee machine', others=('coffee machine', 'mug')),
  'coffee-pull': Task(
    'mug',
    'pull',
    'away from a coffee machine',
    'push',
    'towards a coffee machine',
    ('coffee machine',),
  ),
  'coffee-push': Task(
    'mug',
    'push',
    'towards a coffee machine',
    'pull',
    'away from a coffee machine',
    ('coffee machine',),
  ),
  'dial-turn': Task('dial', 'turn'),
  'disassemble': Task('ring', 'take', 'off a peg', 'put', 'onto a peg', ('peg',)),
  'door-close': Task('door', 'close', '', 'open'),
  'door-lock': Task('door', 'lock', '', 'unlock'),
  'door-open': Task('door', 'open', '', 'close'),
  'door-unlock': Task('door', 'unlock', '', 'lock'),
  'drawer-close': Task('drawer', 'close', '', 'open'),
  'drawer-open': Task('drawer', 'open', '', 'close'),
  'faucet-close': Task('faucet', 'close', '', 'open'),
  'faucet-open': Task('faucet', 'open', '', 'close'),
  'hammer': Task('nail', 'hit', 'with a hammer', others=('hammer',)),
  'hand-insert': Task('hand', 'reach', 'into a hole', others=('hole',)),
  'handle-press-side': Task('handle', 'press', 'from the side', 'lift'),
  'handle-press': Task('handle', 'press', '', 'lift'),
  'handle-pull-side': Task('handle', 'lift', '', 'press'),
  'handle-pull': Task('handle', 'lift', '', 'press'),
  'lever-pull': Task('lever', 'lift'),
  'peg-insert-side': Task('peg', 'put', 'into a hole', 'take', 'out of a hole', ('hole',)),
  'peg-unplug-side': Task('plug', 'take', 'out of a socket', 'put', 'into a socket', ('socket',)),
  'pick-out-of-hole': Task('puck', 'take', 'out of a hole', others=('hole',)),
  'pick-place': Task('puck', 'put', 'somewhere in the air'),
  'pick-place-wall': Task('puck', 'put', 'behind a wall'),
  'plate-slide-back-side': Task(
    'plate', 'slide', 'out of a goal, sideways', 'slide', 'into a goal, sideways', ('goal',)
  ),
  'plate-slide-back': Task('plate', 'slide', 'out of a goal', 'slide', 'into a goal', ('goal',)),
  'plate-slide-side': Task(
    'plate', 'slide', 'into a goal, sideways', 'slide', 'out of a goal, sideways', ('goal',)
  ),
  'plate-slide': Task('plate', 'slide', 'into a goal', 'slide', 'out of a goal', ('goal',)),
  'push-back': Task('block', 'pull', 'back', 'push', 'away'),
  'push': Task('puck', 'push', 'away', 'pull', 'back'),
  'push-wall': Task('puck', 'push', 'around a wall'),
  'reach': Task('hand', 'reach', 'into the air', others=('puck',)),
  'reach-wall': Task('hand', 'reach', 'over a wall', others=('puck',)),
  'shelf-place': Task('cube', 'put', 'onto a shelf', others=('shelf',)),
  'soccer': Task('ball', 'push', 'into a goal', others=('goal',)),
  'stick-pull': Task('thermos', 'pull', 'with a stick', 'push', 'with a stick', ('stick',)),
  'stick-push': Task('thermos', 'push', 'with a stick', 'pull', 'with a stick', ('stick',)),
  'sweep-into': Task('cube', 'sweep', 'into a hole', others=('hole',)),
  'sweep': Task('cube', 'sweep', 'off the table'),
  'window-close': Task('window', 'close', '', 'open'),
  'window-open': Task('window', 'open', '', 'close'),
}
THINGS = tuple(
  sorted({thing for task in TASKS.values() for thing in (task.thing, *task.others)} - {'hand'})
)
# What Meta-World observes the places of, in its order, where that is not the thing alone.
OBSERVED = {
  'box-close': ('lid',),
  'hammer': ('hammer', 'nail'),
  'hand-insert': (),
  'reach': ('puck',),
  'reach-wall': ('puck',),
  'stick-pull': ('stick', 'thermos'),
  'stick-push': ('stick', 'thermos'),
}


def shown(task: str, backwards: bool) -> tuple[str, str, str]:
  """Returns verb, thing and place of a task, or of what it shows backwards."""
  its = TASKS[task]
  if backwards:
    return its.undone, its.thing, its.backwards_place
  return its.verb, its.thing, its.place
