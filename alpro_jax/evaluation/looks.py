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
KEPT = 0.96  # Share of clips like those of training that are not far.
_FEW = 50  # Of fewer distances the largest would be the limit: one odd clip would decide.
_FOLDS = 10
_LEAST = 0.05  # Limit where all clips of training look the same.
_NOISE = 0.02  # Deviation of statistics that means nothing: a few grey levels.
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

  frames: np.ndarray  # float32[n, T, WIDTH], times `metric`.
  metric: np.ndarray  # float32[WIDTH, WIDTH], that makes what varies in training vary alike.
  limit: np.ndarray  # float32[].

  def distance(self, look: np.ndarray) -> np.ndarray:
    """f[m, T, WIDTH] of `describe`, or flat, -> float32[m], the mean over frames.

    Of each the distance from the nearest frame of training.
    """
    found = []
    for clip in np.float32(look).reshape(len(look), -1, WIDTH) @ self.metric:
      away = [np.square(self.frames - x).mean(-1).ravel() for x in clip[~np.isnan(clip[:, 0])]]
      found.append(np.sqrt(np.fmin.reduce(away, -1)).mean())
    return np.float32(found)


def fit(training: np.ndarray) -> Looks:
  """Describes clips f[n, T, WIDTH] of training, n >= 20; `KEPT` of their kind are not far.

  Distances of the clips that it is made of would be too small, and so would those of a
  metric that knows them: tenths of the clips are compared with what is made of the others.
  """
  chosen = np.linspace(0, len(training) - 1, min(len(training), _CLIPS)).astype(int)
  training = training[chosen]
  fold = np.arange(len(training)) % _FOLDS
  left_out = [_known(training[fold != k]).distance(training[fold == k]) for k in range(_FOLDS)]
  limit = max(_limit(np.concatenate(left_out)), _LEAST)
  return _known(training)._replace(limit=np.float32(limit))


def conformal(distances: np.ndarray, kept: float) -> float:
  """What the next distance exceeds with a chance of at most 1 - kept, whatever they are like.

  It is the one of rank ceil((n + 1) kept) of n, if they come from the same source in any
  order (Vovk et al., Algorithmic Learning in a Random World, 2005); infinity if n is less.
  """
  rank = int(np.ceil((len(distances) + 1) * kept - 1e-9))
  return float(np.sort(distances)[rank - 1]) if rank <= len(distances) else np.inf


def _limit(distances):
  """`conformal`; of few, what their spread says, as often exceeded as the largest."""
  if (count := len(distances)) >= _FEW:
    return conformal(distances, KEPT)
  from scipy import special  # Takes a quarter of a second to import; scipy.stats takes longer.

  # Cube roots of sums of squares are nearly normal (Wilson and Hilferty 1931).
  root = np.float64(distances) ** (2 / 3)
  # Student's quantile.
  times = special.stdtrit(count - 1, count / (count + 1)) * np.sqrt(1 + 1 / count)
  return (root.mean() + times * root.std(ddof=1)) ** 1.5


def _known(clips):
  """Looks of f[n, T, WIDTH], without a limit.

  The covariance is shrunk towards a round one as far as so few frames ask for (Ledoit and
  Wolf, A well-conditioned estimator for large-dimensional covariance matrices, 2004).
  """
  rows = np.float64(clips).reshape(-1, WIDTH)
  rows = rows[~np.isnan(rows[:, 0])]
  rows -= rows.mean(0)
  covariance = rows.T @ rows / len(rows)
  target = np.trace(covariance) / WIDTH * np.eye(WIDTH)
  noise = np.square(np.square(rows).sum(1)).mean() - np.square(covariance).sum()
  share = min(noise / len(rows) / max(np.square(covariance - target).sum(), 1e-12), 1)
  mixed = (1 - share) * covariance + share * target + _NOISE**2 * np.eye(WIDTH)
  variance, directions = np.linalg.eigh(mixed)
  metric = np.float32(directions / np.sqrt(variance))
  shown = np.linspace(0, clips.shape[1] - 1, min(clips.shape[1], _FRAMES)).astype(int)
  frames = np.float32(clips[:, shown]) @ metric
  return Looks(frames, metric, np.float32(np.inf))


def _shrink(frames, factor):
  """Averages squares of f[B, T, H, W, C]; what is over is left out."""
  batch, time, height, width, channels = frames.shape
  height, width = height // factor, width // factor
  whole = frames[:, :, : height * factor, : width * factor]
  return whole.reshape(batch, time, height, factor, width, factor, channels).mean((3, 5))
