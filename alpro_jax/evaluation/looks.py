"""What frames look like, whatever they show: statistics of their pixels, nearest neighbours.

Features of a model that was trained on few clips say little of what it has never seen: they
keep what tells those clips apart. Colours, and how strong, sparse and fine the edges of a
frame are, tell films, renderings, drawings and noise apart without any training.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

SIZE = 48  # Frames are made smaller as long as their shorter side keeps as many pixels.
_LEVELS = 3  # Of a pyramid: edges of 1, 2 and 4 pixels.
_PLAIN = 3.0  # Grey levels by which a frame of one colour, as in a fade, deviates at most.
_LUMA_CHROMA = np.float32([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])
_STEP = 1 / 255  # A grey level.
WIDTH = 2 * 3 + _LEVELS * 2 * (2 * 3 + 1)
# Distances between which the limit lies, whatever was held out. Other parts of filmed
# videos lie within 0.12 of those of training, drawings, renderings and noise beyond 0.17.
LIMITS = (0.06, 0.17)
KEPT = 0.99  # Share of the clips, held out or left out, that are not far.
_CLIPS, _FRAMES = 500, 4  # Of training, that are kept.


def describe(video: jnp.ndarray) -> jnp.ndarray:
  """uint8[B, T, H, W, 3] -> float32[B, T, WIDTH], the statistics of each frame.

  A frame of one colour is NaN: it says nothing, unless the whole clip is like that.
  """
  plain = video.astype(jnp.float32).std((2, 3)).max(-1) < _PLAIN
  level = jnp.einsum('bthwc,dc->bthwd', video.astype(jnp.float32) / 255, _LUMA_CHROMA)
  level = _shrink(level, max(min(video.shape[2:4]) // SIZE, 1))
  found = [2 * level.mean((2, 3)), 2 * level.std((2, 3))]
  for _ in range(_LEVELS):
    for axis in (2, 3):
      edges = jnp.abs(jnp.diff(level, axis=axis))
      mean, root = edges.mean((2, 3)), jnp.sqrt(jnp.square(edges).mean((2, 3)))
      sparse = jnp.log((root + _STEP) / (mean + _STEP))
      flat = (edges[..., :1] < 2 * _STEP).mean((2, 3))
      found += [jnp.log(mean + _STEP), sparse, flat]
    level = _shrink(level, 2) if min(level.shape[2:4]) >= 4 else level
  nothing = (plain & ~plain.all(1, keepdims=True))[..., None]
  return jnp.where(nothing, jnp.nan, jnp.concatenate(found, -1))


class Looks(NamedTuple):
  """What clips of training look like, and how near to one of them others have to be."""

  frames: np.ndarray  # float16[n, T, WIDTH].
  limit: np.ndarray  # float32[].

  def distance(self, look: np.ndarray, *, left_out: bool = False) -> np.ndarray:
    """f[m, T, WIDTH], or flat, -> float32[m], the mean over frames.

    Of each the distance from the nearest frame of training that is not left out.

    Args:
      look: of clips, from `describe`.
      left_out: these are the clips of training; none is compared with itself.
    """
    known = self.frames.astype(np.float32)
    found = []
    for number, clip in enumerate(np.float32(look).reshape(len(look), -1, WIDTH)):
      clip = clip[~np.isnan(clip[:, 0])]
      away = [np.square(known - frame).mean(-1) for frame in clip]  # float32[n, T] each.
      nearest = np.sqrt(np.fmin.reduce(away, -1))  # float32[frames, n]
      if left_out:
        nearest[:, number] = np.inf
      found.append(nearest.min(1).mean())
    return np.float32(found)


def fit(training: np.ndarray, held_out: np.ndarray) -> Looks:
  """Describes clips f[n, T, WIDTH] of training; `KEPT` of others f[m, T, WIDTH] are not far.

  Others are held-out clips, and those of training without themselves. Of few clips that
  differ as much as any the limit would be no limit: it lies within LIMITS.
  """
  clips = np.linspace(0, len(training) - 1, min(len(training), _CLIPS)).astype(int)
  shown = np.linspace(0, training.shape[1] - 1, min(training.shape[1], _FRAMES)).astype(int)
  kept = Looks(training[clips][:, shown].astype(np.float16), np.float32(np.inf))
  parts = kept.distance(kept.frames, left_out=True), kept.distance(held_out)
  return kept._replace(limit=np.float32(np.clip(np.quantile(np.r_[parts], KEPT), *LIMITS)))


def _shrink(frames, factor):
  """Averages squares of f[B, T, H, W, C]; what is over is left out."""
  batch, time, height, width, channels = frames.shape
  height, width = height // factor, width // factor
  whole = frames[:, :, : height * factor, : width * factor]
  return whole.reshape(batch, time, height, factor, width, factor, channels).mean((3, 5))
