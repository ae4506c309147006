"""Rooms of BabyAI (Chevalier-Boisvert et al. 2019, arXiv 1810.08272), solved by its bot.

One room of 4 x 4 tiles with four objects of 18 kinds. BabyAI's own generator of levels
makes up the mission, one action or two in order, and its bot carries it out.
"""

import warnings
from typing import Any, NamedTuple

import numpy as np

COLOURS = ('red', 'green', 'blue', 'purple', 'yellow', 'grey')
OBJECTS = ('ball', 'box', 'key')
INSTALL = 'examples.babyai needs minigrid: pip install "minigrid==3.2.0", or ".[babyai]".'
TILES = 4
RATE = 8  # Frames per second.
_THINGS = 4
# A clip has all frames of an episode, or so many of them.
_MOST_FRAMES, _FEWEST_STEPS, _MOST_STEPS = 16, 4, 60
_SEQUENCES = 0.4  # Of the clips: two actions in order.
_HELD_OUT = 5  # Every fifth clip is of the test split.


class Clip(NamedTuple):
  """One clip to draw.

  Attributes:
    number: of the clip.
    seed: of the set.
    size: side of the frames in pixels.
  """

  number: int
  seed: int
  size: int

  @property
  def split(self) -> str:
    return 'test' if self.number % _HELD_OUT == _HELD_OUT - 1 else 'train'


def list_clips(number: int, seed: int, size: int) -> list[Clip]:
  """Returns the clips of a set.

  Raises:
    ValueError: the size does not fit the tiles, or minigrid is not installed.
  """
  if size % (2 * TILES):
    raise ValueError(f'--size={size} must be a multiple of {2 * TILES}, for {TILES} tiles.')
  try:
    import minigrid  # noqa: F401
  except ModuleNotFoundError as error:
    raise ValueError(INSTALL) from error
  return [Clip(i, seed, size) for i in range(number)]


def draw(clip: Clip) -> tuple[np.ndarray, dict[str, Any]]:
  """Draws a clip.

  Returns:
    uint8[T, size, size, 3] and its row of truth.jsonl:
      mission: in BabyAI's words, where 'a ball' may be any of several.
      actions: in order, each with 'action' ('goto', 'pickup', 'putnext'), 'object' and, of
        putnext, 'target', as kinds such as 'red ball'; and the 'frame' that shows it done.
      objects: 'kind', 'x', 'y' of each at first, in tiles from the left and from the top.
      frames: of each frame the same of all objects that lie there, the 'agent' and what it
        is 'carrying', a kind or None.
  """
  rng = np.random.default_rng((clip.seed, clip.number))
  sequence = rng.random() < _SEQUENCES
  while True:
    seed = int(rng.integers(1 << 31))
    episode = _play(seed, sequence, clip.size // TILES)
    if episode is not None:
      break
  frames, states, actions, mission = episode
  kept = np.arange(len(frames))
  if len(frames) > _MOST_FRAMES:
    kept = np.linspace(0, len(frames) - 1, _MOST_FRAMES).round().astype(int)
  for action in actions:
    action['frame'] = int(np.searchsorted(kept, action.pop('step')))
  return np.stack([frames[i] for i in kept]), {
    'video': f'{clip.number:06d}.mp4',
    'split': clip.split,
    'seed': seed,
    'mission': mission,
    'actions': actions,
    'objects': states[0]['objects'],
    'frames': [states[i] for i in kept],
  }


def _play(seed, sequence, tile):
  """Returns frames, states, actions and mission of an episode, None if it is of no use."""
  # Late: the words of a set are made without a simulator.
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    from minigrid.envs.babyai.core.levelgen import LevelGen
    from minigrid.envs.babyai.core.verifier import ActionInstr
    from minigrid.utils.baby_ai_bot import BabyAIBot

  env = LevelGen(
    room_size=TILES + 2,
    num_rows=1,
    num_cols=1,
    num_dists=_THINGS,
    locked_room_prob=0,
    locations=False,
    unblocking=False,
    implicit_unlock=False,
    action_kinds=('goto', 'pickup', 'putnext'),
    instr_kinds=('seq',) if sequence else ('action',),
    render_mode='rgb_array',
  )
  env.reset(seed=seed)
  parts = (env.instrs.instr_a, env.instrs.instr_b) if sequence else (env.instrs,)
  if not all(isinstance(part, ActionInstr) for part in parts):  # Three or four actions.
    return None
  frames, states, actions = [_frame(env, tile)], [_state(env)], []
  bot, act, done = BabyAIBot(env), None, False
  waiting = list(parts)
  try:
    while not done and len(frames) <= _MOST_STEPS:
      act = bot.replan(act)
      _, reward, ended, cut, _ = env.step(act)
      done = ended or cut
      frames.append(_frame(env, tile))
      states.append(_state(env))
      for part in [part for part in waiting if _is_done(env, part, done and reward > 0)]:
        waiting.remove(part)
        actions.append(_action(env, part) | {'step': len(frames) - 1})
  except AssertionError:  # The bot is lost.
    return None
  # BabyAI remembers where an object was that the agent has taken away since.
  sound = all(None not in action.values() for action in actions)
  together = len({action['step'] for action in actions}) < len(parts)
  if waiting or together or not sound or len(frames) <= _FEWEST_STEPS:
    return None
  return frames, states, actions, env.mission


def _is_done(env, part, ended):
  if part is env.instrs:
    return ended
  return (env.instrs.a_done if part is env.instrs.instr_a else env.instrs.b_done) == 'success'


def _action(env, part):
  """What was done in the last step, to which things; None for one that is not there."""
  name = type(part).__name__.removesuffix('Instr').lower()
  if name == 'pickup':
    return {'action': name, 'object': _kind(env.carrying)}
  x, y = env.front_pos
  found = {'action': name, 'object': _kind(env.grid.get(x, y))}
  if name == 'putnext':
    beside = [env.grid.get(x + i, y + j) for i, j in ((-1, 0), (1, 0), (0, -1), (0, 1))]
    those = part.desc_fixed.obj_set
    found['target'] = _kind(next((it for it in beside if any(it is one for one in those)), None))
  return found


def _kind(thing):
  return thing and f'{thing.color} {thing.type}'


def _state(env):
  places = [(x, y, env.grid.get(x + 1, y + 1)) for y in range(TILES) for x in range(TILES)]
  return {
    'objects': [{'kind': _kind(thing), 'x': x, 'y': y} for x, y, thing in places if thing],
    'agent': [int(place) - 1 for place in env.agent_pos],
    'carrying': _kind(env.carrying),
  }


def _frame(env, tile):
  inside = slice(tile, tile * (TILES + 1))
  return env.get_frame(tile_size=tile, highlight=False)[inside, inside]
