"""What a model makes of videos and texts: encoded, with what is said about them."""

import dataclasses
from typing import NamedTuple

import numpy as np


class Skipped(NamedTuple):
  """A video that was left out, its position in the list, and why."""

  name: str
  position: int
  reason: str


class _Encoded:
  """Has `feature` float32[n, E] and `far`, why each is far from training."""

  feature: np.ndarray
  far: tuple[str, ...] | None

  @property
  def familiar(self) -> tuple[bool, ...] | None:
    """Whether each is near what the model was trained on; None if nobody knows."""
    return None if self.far is None else tuple(not reason for reason in self.far)

  def __len__(self) -> int:
    return len(self.feature)

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    return np.array(self.feature, dtype, copy=copy)


@dataclasses.dataclass(frozen=True)
class Videos(_Encoded):
  """Encoded videos; `np.asarray(videos)` is their features.

  Attributes:
    names: of each, its path, or its place in the list.
    feature: float32[B, E], unit length, to compare with texts.
    tokens: f[B, S, D], what the fusion encoder reads.
    skipped: those that were left out.
    far: why each is far from what the model was trained on, '' if it is not; None if
      the model has no summary of its training set.
  """

  names: tuple[str, ...]
  feature: np.ndarray
  tokens: np.ndarray
  skipped: tuple[Skipped, ...] = ()
  far: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Texts(_Encoded):
  """Encoded texts; `np.asarray(texts)` is their features.

  Attributes:
    texts: as they were given.
    feature: float32[A, E], unit length, to compare with videos.
    tokens: f[A, L, D], what the fusion encoder reads.
    mask: bool[A, L], True on tokens that are no padding.
    far: as of Videos.
  """

  texts: tuple[str, ...]
  feature: np.ndarray
  tokens: np.ndarray
  mask: np.ndarray
  far: tuple[str, ...] | None = None


class Choice(NamedTuple):
  """An answer or entity, and its probability among all.

  Attributes:
    calibrated: whether the probability is worth what it says: it was fitted to held-out
      data, and nothing is far. Else it is no percentage to show.
    far: why the video or the words are far from what the model was trained on, so that
      the choice means little; '' if they are not, None if nobody knows.
  """

  name: str
  probability: float
  calibrated: bool = False
  far: str | None = None

  @property
  def familiar(self) -> bool | None:
    """Whether video and words are near those of training; None if nobody knows."""
    return None if self.far is None else not self.far
