"""Draws a clip: frames of uint8 and the box around its shapes."""

from typing import NamedTuple

import numpy as np

from examples.shapes.scenes import COLOURS, DIRECTIONS, ShapeClip, World, clip_rng

# Half the sides of the box around a shape, over its radius.
_REACH = {
  'disc': (0.9, 0.9),
  'ring': (1.15, 1.15),
  'bar': (1.25, 0.4),
  'pole': (0.4, 1.25),
  'triangle': (1.16, 1.16),
  'cross': (1.0, 1.0),
  'square': (0.85, 0.85),
}


class Drawing(NamedTuple):
  """Frames uint8[T, H, W, 3] and boxes float32[T, 4].

  A box is (left, top, right, bottom) around the coloured shapes as fractions
  of the frame, cut off at its borders.
  """

  frames: np.ndarray
  boxes: np.ndarray


def draw(world: World, clip: ShapeClip) -> Drawing:
  """Draws a clip."""
  rng = clip_rng(world, clip, 1)
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
    wall = np.clip((half - np.abs(x - rng.uniform(-0.03, 0.03))) * size + 0.5, 0, 1)
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
    [centre + sign * radius[:, None] * reach for centre, radius, _ in paths] for sign in (-1, 1)
  )
  boxes = np.concatenate([np.min(low, 0), np.max(high, 0)], axis=1) + 0.5
  return Drawing(frames, np.clip(boxes, 0, 1).astype(np.float32))


def _path(rng, scene, t):
  """Centre [T, 2], radius [T], angle [T] in units of the frame side."""
  time = np.linspace(0, 1, t)
  centre = np.zeros((t, 2))
  log_radius = np.zeros(t)
  angle = np.full(t, rng.uniform(-0.2, 0.2))
  phases = (
    [time] if len(scene.motions) == 1 else [np.clip(2 * time, 0, 1), np.clip(2 * time - 1, 0, 1)]
  )
  for motion, phase in zip(scene.motions, phases, strict=True):
    if motion in DIRECTIONS:
      travel = rng.uniform(0.42, 0.58)
      centre += travel * phase[:, None] * np.array(DIRECTIONS[motion])
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
    (place + rng.uniform(-shake, shake, (t, 2)), np.full(t, radius), np.full(t, angle))
    for place, angle in zip(places, angles, strict=True)
  ]


def _cover(shape, x, y, centre, radius, angle):
  """float32[T, H, W] in 0..1: how much of each pixel the shape covers."""
  cos, sin = (f(angle)[:, None, None].astype(np.float32) for f in (np.cos, np.sin))
  cx, cy, r = (v[:, None, None].astype(np.float32) for v in (centre[:, 0], centre[:, 1], radius))
  x, y = x - cx, y - cy
  u, v = cos * x + sin * y, cos * y - sin * x
  if shape == 'disc':
    distance = np.hypot(u, v) - 0.9 * r
  elif shape == 'ring':
    distance = np.abs(np.hypot(u, v) - 0.95 * r) - 0.2 * r
  elif shape == 'triangle':
    side = np.float32(np.sqrt(3) / 2)
    distance = np.maximum(v, np.maximum(side * u - 0.5 * v, -side * u - 0.5 * v)) - 0.58 * r
  elif shape == 'bar':
    distance = np.maximum(np.abs(u) - 1.25 * r, np.abs(v) - 0.4 * r)
  elif shape == 'pole':
    distance = np.maximum(np.abs(u) - 0.4 * r, np.abs(v) - 1.25 * r)
  elif shape == 'cross':
    a, b = np.abs(u), np.abs(v)
    distance = np.minimum(np.maximum(a - r, b - 0.26 * r), np.maximum(b - r, a - 0.26 * r))
  else:
    distance = np.maximum(np.abs(u), np.abs(v)) - 0.85 * r
  return np.clip(0.5 - distance * x.shape[-1], 0, 1)


def _background(rng, size):
  """float32[H, W, 3]: a dull colour with smooth blotches and stripes."""
  axis = np.linspace(0, 4, size)
  low = np.minimum(axis.astype(int), 3)
  part = (axis - low).astype(np.float32)
  blotches = rng.standard_normal((5, 5), dtype=np.float32)
  rows = blotches[low] * (1 - part)[:, None] + blotches[low + 1] * part[:, None]
  smooth = rows[:, low] * (1 - part) + rows[:, low + 1] * part
  slope, wave, shift = rng.uniform((0, 8, 0), (np.pi, 30, 6))
  place = np.linspace(0, 1, size)
  stripes = np.sin(wave * (np.cos(slope) * place[None, :] + np.sin(slope) * place[:, None]) + shift)
  level = rng.uniform(95, 150) + rng.uniform(-12, 12, 3)
  texture = rng.uniform(0, 14) * smooth + rng.uniform(0, 10) * stripes
  return (level + texture[..., None]).astype(np.float32)
