"""How far clips and texts are from what a model was trained on, and how sure it may be.

A model gives scores to anything, and what it says of a clip or a text that is unlike
those of training means nothing. A summary of the training set tells them apart:

  clips   where pooled tokens and features of training clips lie, and what their frames
          look like
  texts   the same of training texts, and which pieces of the tokenizer occurred

What lies further away than nearly all held-out clips or texts is called far. Held-out
data also say what margins and logits are worth as probabilities. `split.familiarity`
makes a summary of prepared sets; it travels beside the parameters.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from alpro_jax import files, metrics
from alpro_jax.encoded import Choice
from alpro_jax.evaluation import looks

FILE = 'familiarity.npz'
KEPT = 0.99  # Share of held-out clips, and of texts by either sign, that are not far.
ENOUGH = 20  # Of fewer nothing is learned: clips and texts of training, held-out pairs.
# Of a small set held-out texts may be nearly all of new words; they are no measure then.
_MOST_UNSEEN = 0.5
# Texts of known words may lie this much further: `a` is missing in `red disc`, no more.
TEXT_SLACK = 1.25
# Directions of the training set that are kept. Few for texts: foreign words show in
# their pieces, and known words in a somewhat new order are no strangers.
VIDEO_DIRECTIONS, TEXT_DIRECTIONS = 64, 16
NO_SUMMARY = (
  'this model has no summary of its training set: nothing is marked as far from it, and '
  'scores are no calibrated probabilities; launch/evaluate.py --familiarity makes one of at least '
  f'{ENOUGH} clips of training and others that were held out.'
)


class Cloud(NamedTuple):
  """Where the vectors of training lie; a Gaussian that is round but in some directions."""

  mean: np.ndarray  # float32[D].
  directions: np.ndarray  # float32[k, D], orthonormal.
  variance: np.ndarray  # float32[k], along them.
  rest: np.ndarray  # float32[], along every other direction.
  limit: np.ndarray  # float32[], distance from which on a vector is far.

  def distance(self, vectors: np.ndarray) -> np.ndarray:
    """f[n, D] -> float32[n], of Mahalanobis, over the root of D: about 1 in training."""
    away = vectors - self.mean
    along = away @ self.directions.T
    beside = np.maximum(np.square(away).sum(1) - np.square(along).sum(1), 0)
    total = (np.square(along) / self.variance).sum(1) + beside / self.rest
    return np.sqrt(total / len(self.mean))


def fit_cloud(training: np.ndarray, held_out: np.ndarray, most: int, slack=1.0) -> Cloud:
  """Describes vectors f[n, D] of training; `KEPT` of what is like held-out ones are not far.

  The limit is `slack` times as far as those; fewer than 99 held-out vectors f[m, D] give
  none. Of few vectors fewer than `most` directions are kept, so that chance is not described.

  Raises:
    ValueError: for fewer than 20 vectors of training, or none that are held out.
  """
  if len(training) < ENOUGH or not len(held_out):
    raise ValueError(
      f'{len(training)} clips or texts of training and {len(held_out)} held-out ones say too '
      f'little of what is familiar; expected at least {ENOUGH} and 1.'
    )
  mean = training.mean(0)
  _, scale, rows = np.linalg.svd(training - mean, full_matrices=False)
  variance = np.square(scale) / len(training)
  k = min(most, len(training) // 8, training.shape[1] // 2)
  # A direction in which nothing varied would be infinitely far.
  least = 1e-6 * variance.sum() / training.shape[1] + 1e-12
  rest = max(variance[k:].sum() / (training.shape[1] - k), least)
  parts = mean, rows[:k], np.maximum(variance[:k], least), rest, np.inf
  cloud = Cloud(*(np.asarray(part, np.float32) for part in parts))
  # What the model was trained on is familiar, though held-out texts be of one kind alone.
  limit = max(looks.conformal(cloud.distance(x), KEPT) for x in (training, held_out))
  return cloud._replace(limit=np.float32(slack * limit))


def video_vectors(videos: Any) -> np.ndarray:
  """VideoFeatures of n clips -> float32[n, 2 D + E]: mean and spread of tokens, feature."""
  tokens = np.asarray(videos.tokens, np.float32)
  return np.concatenate([tokens.mean(1), tokens.std(1), videos.feature], 1)


def text_vectors(texts: Any) -> np.ndarray:
  """TextFeatures of n texts -> float32[n, D + E]: mean of tokens, feature."""
  real = np.asarray(texts.mask, np.float32)[..., None]
  mean = (np.asarray(texts.tokens, np.float32) * real).sum(1) / real.sum(1)
  return np.concatenate([mean, texts.feature], 1)


def pieces(tokenizer: Any, texts: Sequence[str], length: int) -> list[np.ndarray]:
  """The ids of each text as the model reads it, without special tokens but [UNK]."""
  ids, mask = tokenizer.encode(list(texts), length)[:2]
  special = [i for i in tokenizer.special if i != tokenizer.special.unk]
  real = mask & ~np.isin(ids, special)
  return [row[known] for row, known in zip(ids, real, strict=True)]


@dataclasses.dataclass(frozen=True)
class Familiarity:
  """The summary of a training set.

  Attributes:
    videos, texts: where those of training lie.
    seen: bool[vocabulary], pieces that occurred in training.
    unseen_limit: share of other pieces beyond which a text is far; half is too many in
      any case, and the only limit where fewer than 20 clips were held out.
    match: float32[2], scale and offset that make a logit of the margin of a match;
      NaN if it was not calibrated, a scale of 0 or less if held-out margins are no sign
      of a match: no probability is made of either. Another is about a clip and a text
      that are as likely its own as the nearest other.
    answer_temperature, entity_temperature: that logits are divided by; NaN as above.
    counts: int[4], clips and texts of training, held-out clips and texts.
    frames: what those of training look like, where too few clips were held out to say how
      far features may lie; else None, as in a summary of an earlier version.
  """

  videos: Cloud
  texts: Cloud
  seen: np.ndarray
  unseen_limit: float
  counts: np.ndarray
  match: np.ndarray
  answer_temperature: float = np.nan
  entity_temperature: float = np.nan
  frames: looks.Looks | None = None

  def __str__(self) -> str:
    clips, texts, *held_out = self.counts
    return f'{clips} clips and {texts} texts of training, {held_out[0]} and {held_out[1]} held out'

  def far_videos(self, videos: Any) -> tuple[str, ...]:
    """Why each of the encoded clips is far from training; '' if it is not."""
    times = self.videos.distance(video_vectors(videos)) / self.videos.limit
    if self.frames and videos.look is not None:
      times = self.frames.distance(videos.look) / self.frames.limit
    return tuple(_far('clips', x) for x in times)

  def far_texts(
    self, tokenizer: Any, texts: Sequence[str], length: int, features: Any
  ) -> tuple[str, ...]:
    """Why each of the encoded texts is far from training; '' if it is not.

    Args:
      tokenizer: of the model.
      texts: A of them.
      length: tokens that the model reads.
      features: TextFeatures of the texts.
    """
    times = self.texts.distance(text_vectors(features)) / self.texts.limit
    found = []
    for text, row, x in zip(texts, pieces(tokenizer, texts, length), times, strict=True):
      unseen = int((~self.seen[row]).sum())
      if unseen <= min(self.unseen_limit, _MOST_UNSEEN) * len(row):
        found.append(_far('texts', x))
        continue
      words = list(dict.fromkeys(text.split()))
      own = pieces(tokenizer, words, length)
      strange = [word for word, ids in zip(words, own, strict=True) if not self.seen[ids].all()]
      named = f' ({", ".join(strange[:5])})' if strange else ''
      found.append(f'{unseen} of its {len(row)} pieces never occurred in training{named}')
    return tuple(found)

  def save(self, folder: str | pathlib.Path) -> None:
    """Writes itself into a folder, or over what is there."""
    parts = {}
    for name, value in vars(self).items():
      if name in _PARTS and value is not None:
        parts |= {f'{name}.{part}': array for part, array in value._asdict().items()}
      elif value is not None:
        parts[name] = np.asarray(value)
    with files.file(files.join(folder, FILE)) as made, open(made, 'wb') as file:
      np.savez_compressed(file, **parts)


_PARTS = {'videos': Cloud, 'texts': Cloud, 'frames': looks.Looks}


def load(folder: str | pathlib.Path) -> Familiarity | None:
  """Reads the summary in a folder; None if there is none.

  Raises:
    ValueError: if it is damaged.
  """
  path = pathlib.Path(folder) / FILE
  if not path.is_file():
    return None
  try:
    with np.load(path) as stored:
      parts = dict(stored)
    for name, kind in _PARTS.items():
      own = [parts.pop(f'{name}.{part}', None) for part in kind._fields]
      # Summaries of earlier versions have no looks, or others.
      parts |= {} if any(x is None for x in own) else {name: kind(*own)}
    return Familiarity(**parts)
  except Exception as error:  # Whatever zip, NumPy and the names make of it.
    raise ValueError(
      f'{path} is damaged ({error}); remove it, and make it again by launch/evaluate.py '
      '--familiarity.'
    ) from error


def fit_match(margin: np.ndarray, matches: np.ndarray) -> np.ndarray:
  """Margins float[n] of pairs and whether they match bool[n] -> scale and offset float32[2].

  By Platt's rule: the targets stop short of 0 and 1, so that a model that is always
  right does not become infinitely sure.
  """
  count = matches.sum()
  target = np.where(matches, (count + 1) / (count + 2), 1 / (len(matches) - count + 2))
  margin, best = np.asarray(margin, np.float64), np.array([0.0, 0.0])
  rows = np.stack([margin / (margin.std() + 1e-12), np.ones(len(margin))], 1)
  for _ in range(50):  # Newton's steps, of a convex function.
    share = 1 / (1 + np.exp(-np.clip(rows @ best, -50, 50)))
    curve = (rows * (share * (1 - share))[:, None]).T @ rows + 1e-6 * np.eye(2)
    step = np.linalg.solve(curve, rows.T @ (target - share))
    best = best + step / max(1, np.abs(step).max())
  return np.array([best[0] / (margin.std() + 1e-12), best[1]], np.float32)


def fit_temperature(logits: np.ndarray, label: np.ndarray) -> float:
  """The divisor of logits float[n, C] that makes labels int[n] likeliest."""

  def loss(temperature):
    scaled = logits / temperature
    top = scaled.max(1, keepdims=True)
    total = top[:, 0] + np.log(np.exp(scaled - top).sum(1))
    return (total - scaled[np.arange(len(label)), label]).mean()

  return float(min(np.exp(np.linspace(-4, 4, 321)), key=loss))


def match_probability(known: Familiarity | None, margin: np.ndarray) -> tuple[np.ndarray, bool]:
  """Returns float32, of the margin's shape, and whether it was calibrated."""
  calibrated = known is not None and bool(known.match[0] > 0)
  logit = margin * known.match[0] + known.match[1] if known and calibrated else margin
  return np.float32(1 / (1 + np.exp(-np.clip(logit, -80, 80)))), calibrated


def probabilities(logits: np.ndarray, temperature: float | None) -> tuple[np.ndarray, bool]:
  """float[n, C] -> probabilities float[n, C], and whether they were calibrated."""
  calibrated = temperature is not None and bool(np.isfinite(temperature))
  scaled = np.asarray(logits, np.float64) / (temperature if calibrated else 1.0)
  share = np.exp(scaled - scaled.max(1, keepdims=True))
  return share / share.sum(1, keepdims=True), calibrated


def choices(
  logits: np.ndarray,
  names: Sequence[str],
  top: int,
  temperature: float | None,
  far: Sequence[str] | None,
) -> list[list[Choice]]:
  """float[n, C] -> the likeliest names of each row, with what is said about it."""
  share, calibrated = probabilities(logits, temperature)
  return [
    [Choice(*x, calibrated and not reason, reason) for x in metrics.most_probable(names, row, top)]
    for row, reason in itertools.zip_longest(share, far or ())
  ]


def warn_of_far(far: Sequence[str], names: Sequence[str], what: str) -> None:
  """Says how many are far from those of training, and of the first why."""
  if strange := [(name, reason) for name, reason in zip(names, far, strict=True) if reason]:
    logging.warning(
      '%d of %d %s are far from what the model was trained on, and scores of them mean '
      'little; the first, %r: %s.',
      *(len(strange), len(far), what, *strange[0]),
    )


def show(share: float, calibrated: bool) -> str:
  """0.873 -> ' 87.3 %', or '  0.87' where that would promise too much."""
  return f'{100 * share:5.1f} %' if calibrated else f'{share:7.2f}'


def _far(what, times):
  """Says how far, from the limit on."""
  if times <= 1:
    return ''
  return f'{times:.2f} times as far from the {what} of training as familiar ones lie'
