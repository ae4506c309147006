"""Clips that look alike, by fingerprints of their frames."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

_ROWS, _COLUMNS = 8, 8  # Of a fingerprint, for each frame.
# Clips whose parts differ by fewer grey levels than this have none.
_CONTRAST = 4.0
_BLOCK = 1 << 22  # Pairs compared at once.


class Prints(NamedTuple):
  """The fingerprints of the clips of a split.

  Attributes:
    names: of the videos.
    codes: uint64[n, T] of `fingerprint`.
    plain: bool[n], those with too little contrast to be compared.
  """

  names: Sequence[str]
  codes: np.ndarray
  plain: np.ndarray


class Duplicate(NamedTuple):
  """Two clips that look alike, and the share of the bits in which they differ."""

  split: str
  video: str
  other_split: str
  other: str
  differs: float


def fingerprint(video: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Says of each part of a frame whether it is brighter than the one to its left.

  As the difference hash of still pictures: size, compression and brightness hardly change
  it.

  Args:
    video: uint8[B, T, H, W, 3], H of at least 8 and W of at least 9.
  Returns:
    uint64[B, T], and bool[B], True where the parts differ by too little for it to say much.
  """
  grey = video.astype(np.float32).mean(-1)
  rows = np.array_split(np.arange(grey.shape[2]), _ROWS)
  columns = np.array_split(np.arange(grey.shape[3]), _COLUMNS + 1)
  parts = np.stack([grey[:, :, part].mean(2) for part in rows], 2)
  parts = np.stack([parts[..., part].mean(-1) for part in columns], -1)
  bits = (parts[..., 1:] > parts[..., :-1]).reshape(*parts.shape[:2], -1)
  weights = np.left_shift(np.uint64(1), np.arange(_ROWS * _COLUMNS, dtype=np.uint64))
  codes = (bits * weights).sum(-1, dtype=np.uint64)
  return codes, np.abs(np.diff(parts, axis=-1)).max((1, 2, 3)) < _CONTRAST


def find(prints: Mapping[str, Prints], most: float) -> list[Duplicate]:
  """Finds clips that look alike, the nearest first.

  Args:
    prints: by split.
    most: share of the bits in which two clips may differ.
  """
  found, splits = [], list(prints)
  for i, one in enumerate(splits):
    for other in splits[i:]:
      for a, b, differs in _near(prints[one], prints[other], most, within=one == other):
        found.append(Duplicate(one, prints[one].names[a], other, prints[other].names[b], differs))
  return sorted(found, key=lambda pair: (pair.differs, pair))


def _near(one, other, most, within) -> Iterator[tuple[int, int, float]]:
  bits = _ROWS * _COLUMNS * one.codes.shape[1]
  columns = np.flatnonzero(~other.plain)
  rows = np.flatnonzero(~one.plain)
  step = max(_BLOCK // max(len(columns), 1), 1)
  for start in range(0, len(rows), step):
    block = rows[start : start + step]
    different = np.zeros((len(block), len(columns)), np.int32)
    for frame in range(one.codes.shape[1]):
      different += np.bitwise_count(one.codes[block, frame, None] ^ other.codes[columns, frame])
    near = different <= most * bits
    if within:
      near &= block[:, None] < columns
    for i, j in zip(*np.nonzero(near), strict=True):
      yield int(block[i]), int(columns[j]), float(different[i, j]) / bits
