"""Episodes of Meta-World (Yu et al. 2019, arXiv 1910.10897), carried out by its own policies.

Cameras are of ours: they look at the middle of the table from near by. Marks of goals are
left out of the pictures, and so are shadows and reflections, which take most of the time.
"""

import ctypes
import logging
import os
import warnings
from typing import Any, NamedTuple

import numpy as np

from examples.metaworld.tasks import TASKS, shown

INSTALL = (
  'examples.metaworld needs Meta-World: pip install "metaworld==3.1.1" "mujoco==3.3.0" '
  'packaging pyopengl, or ".[metaworld]".'
)
INSTALL_OSMESA = (
  'examples.metaworld draws with OSMesa, which is not there: apt-get install libosmesa6 '
  '(Debian, Ubuntu); or set MUJOCO_GL=egl on a machine with a GPU.'
)
RATE = 8  # Frames per second.
# Azimuth and elevation in degrees. The last one is of the split of its name alone.
CAMERAS = {'right': (160, -30), 'left': (20, -30), 'above': (180, -60), 'behind': (135, -40)}
_HELD_OUT_CAMERA = 'behind'
_LOOK_AT, _DISTANCE = (0.0, 0.7, 0.1), 1.0  # Metres.
_STEPS, _STEPS_PER_FRAME, _MOST_FRAMES = 220, 4, 25
_MISJUDGED_BY = 0.08  # Metres.


class Clip(NamedTuple):
  """One clip to draw.

  Attributes:
    number: of the clip.
    task: of TASKS.
    episode: of the task; it chooses the split.
    seed: of the set.
    size: side of the frames in pixels.
    backwards: share of the clips that are played backwards, where that shows something.
    misjudged: share of the episodes in which the policy sees things in a wrong place.
  """

  number: int
  task: str
  episode: int
  seed: int
  size: int
  backwards: float
  misjudged: float

  @property
  def split(self) -> str:
    if self.episode % 5 == 1:
      return 'test'
    return 'camera' if self.episode % 10 == 3 else 'train'


def list_clips(
  number: int, seed: int, size: int, *, tasks=(), backwards: float = 0.5, misjudged: float = 0.1
) -> list[Clip]:
  """Returns the clips of a set, by task, with as many of each as there can be.

  Raises:
    ValueError: a task is unknown, or what draws is not installed.
  """
  names = list(tasks or TASKS)
  if unknown := sorted(set(names) - TASKS.keys()):
    raise ValueError(f'--tasks names {unknown}; choose from {", ".join(TASKS)}.')
  if size % 2:
    raise ValueError(f'--size={size} must be even.')
  _check_installed()
  clips = [
    Clip(i, names[i % len(names)], i // len(names), seed, size, backwards, misjudged)
    for i in range(number)
  ]
  return sorted(clips, key=lambda clip: (names.index(clip.task), clip.number))


def draw(clip: Clip) -> tuple[np.ndarray, dict[str, Any]]:
  """Draws a clip.

  Returns:
    uint8[T, size, size, 3] and its row of truth.jsonl:
      split: 'failed' whenever the episode failed.
      task, success, misjudged, backwards, camera: as drawn.
      verb, thing, place, others: what it shows, in words.
      frames: of each frame the 'hand' and the 'objects', x and y in the picture from 0 (left,
        top) to 1; the objects as Meta-World observes them, first what is handled first.
  """
  rng = np.random.default_rng((clip.seed, clip.number))
  seed = int(rng.integers(1 << 31))
  camera = _HELD_OUT_CAMERA
  if clip.split != 'camera':
    camera = list(CAMERAS)[rng.integers(len(CAMERAS) - 1)]
  backwards, misjudged = rng.random(2) < (clip.backwards, clip.misjudged)
  angle = rng.uniform(0, 2 * np.pi)
  error = _MISJUDGED_BY * misjudged * np.array([np.cos(angle), np.sin(angle), 0])
  frames, places, success = _play(clip.task, seed, camera, clip.size, error)
  backwards = bool(backwards and success and TASKS[clip.task].undone)
  kept = np.linspace(0, len(frames) - 1, min(len(frames), _MOST_FRAMES)).round().astype(int)
  if backwards:
    kept = kept[::-1]
  verb, thing, place = shown(clip.task, backwards)
  return np.stack([frames[i] for i in kept]), {
    'video': f'{clip.number:06d}.mp4',
    'split': clip.split if success else 'failed',
    'task': clip.task,
    'seed': seed,
    'camera': camera,
    'success': success,
    'misjudged': bool(misjudged),
    'backwards': backwards,
    'verb': verb,
    'thing': thing,
    'place': place,
    'others': list(TASKS[clip.task].others),
    'frames': [places[i] for i in kept],
  }


def _check_installed():
  """Raises ValueError unless Meta-World and what draws it are there; chooses what draws."""
  os.environ.setdefault('MUJOCO_GL', 'osmesa')
  os.environ.setdefault('PYOPENGL_PLATFORM', os.environ['MUJOCO_GL'])
  if os.environ['MUJOCO_GL'] == 'osmesa':
    for name in ('libOSMesa.so.8', 'libOSMesa.so', 'libOSMesa.so.6'):
      try:
        ctypes.CDLL(name)
        break
      except OSError:
        pass
    else:
      raise ValueError(INSTALL_OSMESA)
  logging.getLogger('OpenGL').setLevel('WARNING')  # It says which of its parts are missing.
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      import metaworld.policies  # noqa: F401
      import mujoco  # noqa: F401
  except ModuleNotFoundError as error:
    raise ValueError(INSTALL) from error


_painters = {}  # {(task, size): its mujoco.Renderer}, one at most.


def _painter(task, size, model):
  """The renderer of a task. Two at once draw what the other one's memory holds."""
  import mujoco

  if (task, size) not in _painters:
    for one in _painters.values():
      one.close()
    _painters.clear()
    _painters[task, size] = mujoco.Renderer(model, size, size)
  return _painters[task, size]


def _play(task, seed, camera, size, error):
  """Returns frames, the places of each, and whether the episode succeeded."""
  _check_installed()
  import mujoco
  from metaworld.env_dict import ALL_V3_ENVIRONMENTS
  from metaworld.policies import ENV_POLICY_MAP

  view = mujoco.MjvCamera()
  view.type, view.lookat, view.distance = mujoco.mjtCamera.mjCAMERA_FREE, _LOOK_AT, _DISTANCE
  view.azimuth, view.elevation = CAMERAS[camera]
  without_marks = mujoco.MjvOption()
  without_marks.sitegroup[:] = 0
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    # A new one for each episode: what the last one left would be seen in the next.
    env = ALL_V3_ENVIRONMENTS[f'{task}-v3']()
    policy = ENV_POLICY_MAP[f'{task}-v3']()
    env._set_task_called, env._freeze_rand_vec, env.seeded_rand_vec = True, False, True
    env._partially_observable = False  # Policies read the goal, whose limits are kept.
    del env.sawyer_observation_space
    np.random.seed(seed)  # Some scenes are drawn from this one.
    env.seed(seed)
    seen, _ = env.reset()
    painter, frames, places = _painter(task, size, env.model), [], []
    success = False
    for step in range(_STEPS + 1):
      if step % _STEPS_PER_FRAME == 0 or success:
        painter.update_scene(env.data, camera=view, scene_option=without_marks)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
          painter.scene.flags[flag] = 0
        frames.append(painter.render().copy())
        objects = np.reshape(env._get_pos_objects(), (-1, 3))
        on_screen = _project(painter.scene, env.model.vis.global_.fovy)
        places.append(
          {'hand': on_screen(env.tcp_center), 'objects': [on_screen(at) for at in objects]}
        )
      if success or step == _STEPS:
        break
      believed = seen.copy()
      believed[4:7] += error
      action = np.clip(policy.get_action(believed), -1, 1)
      seen, _, _, _, found = env.step(action)
      success = bool(found['success'])
    env.close()
  return frames, places, success


def _project(scene, fovy):
  """Returns a function from places in metres to places in the picture, 0 to 1."""
  eyes = scene.camera
  eye = (eyes[0].pos + eyes[1].pos) / 2
  ahead, up = np.array(eyes[0].forward), np.array(eyes[0].up)
  right, half = np.cross(ahead, up), np.tan(np.radians(fovy) / 2)

  def on_screen(place):
    away = np.asarray(place) - eye
    x, y = (away @ axis / (away @ ahead) / half for axis in (right, up))
    return [round(float(0.5 + x / 2), 3), round(float(0.5 - y / 2), 3)]

  return on_screen
