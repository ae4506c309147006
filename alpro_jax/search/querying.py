"""From a text to the clips that fit it."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from alpro_jax.data.cut import decode
from alpro_jax.data.listing import look_at
from alpro_jax.evaluation import familiarity
from alpro_jax.evaluation.encoder import Encoder
from alpro_jax.evaluation.scorer import TextFeatures, VideoFeatures
from alpro_jax.search.store import Store, among, key, show_name

# Hits of one video are one moment if their intersection is more than that of their union.
_SAME_MOMENT = 0.5


class Hit(NamedTuple):
  """A clip that was found."""

  clip: int  # Its id in the index.
  name: bytes  # Of its video.
  start: float  # In seconds.
  end: float
  similarity: float  # Cosine of the contrastive features.
  match: float | None  # Probability of a match, None if fusion was not asked.
  far: str = ''  # Why the clip is far from those of training, '' if it is not or unknown.
  path: str = ''  # Of its video.
  seconds: float = 0.0  # Length of its video.

  @property
  def score(self) -> float:
    """The probability of a match, or the similarity where fusion was not asked."""
    return self.similarity if self.match is None else self.match


@dataclasses.dataclass(frozen=True)
class SearchResult:
  """What a text found; also a sequence of its hits, best first.

  Attributes:
    text: that was searched by; '' if it was an example.
    hits: best first.
    read: clips that were read by the fusion encoder.
    seconds: that it took.
    far: why the text is far from those of training.
    calibrated: whether matches are worth what they say.
  """

  text: str
  hits: list[Hit]
  read: int
  seconds: float
  far: str = ''
  calibrated: bool = False

  def __len__(self) -> int:
    return len(self.hits)

  def __getitem__(self, number: int) -> Hit:
    return self.hits[number]

  @property
  def by_video(self) -> dict[str, list[Hit]]:
    """The hits of each path; that of the best hit comes first."""
    found: dict[str, list[Hit]] = {}
    for hit in self.hits:
      found.setdefault(hit.path, []).append(hit)
    return found


def search(
  encoder: Encoder,
  store: Store,
  texts: Sequence[str],
  *,
  top: int = 10,
  rerank_k: int = 64,
  where: str = '',
) -> list[SearchResult]:
  """Finds the clips that fit each text.

  The nearest by similarity, of which the `rerank_k` first are put in the
  order of the fusion encoder's logit of a match; the others follow. Of hits that
  overlap the first one stays.

  Args:
    encoder: with the model that the index was made with.
    store: the index.
    texts: to search by.
    top: hits to keep.
    rerank_k: 0 leaves the fusion encoder out, and so does a model that cannot match.
    where: the clips to look at, in SQL over the columns of `clips` (store.py); '' is all.
  Raises:
    ValueError: if nothing was indexed.
  """
  each = zip(texts, rows(encoder.texts(list(texts))), strict=True)
  return [
    find(encoder, store, row.feature[0], top=top, where=where, rerank_k=rerank_k, text=text, by=row)
    for text, row in each
  ]


def rows(features: TextFeatures) -> list[TextFeatures]:
  """The features of each text."""
  each = range(len(features.feature))
  return [TextFeatures(*(x if x is None else x[i : i + 1] for x in features)) for i in each]


def find(
  encoder: Encoder,
  store: Store,
  vector: np.ndarray,
  *,
  top: int = 10,
  where: str = '',
  rerank_k: int = 0,
  text: str = '',
  by: TextFeatures | None = None,
) -> SearchResult:
  """Finds the clips nearest to float32[E], of a clip or of a text; see `search`.

  Args:
    text, by: that the fusion encoder reads beside the clips; without, it does not.

  Raises:
    ValueError: if nothing was indexed.
  """
  start = time.monotonic()
  rerank_k = rerank_k if by and encoder.trained.knows_matching else 0
  # Overlapping ones are left out below.
  most = 4 * top if store.cutting.overlaps else top
  clips = store.nearest(vector, max(most, rerank_k), where)
  if not (len(clips.id) or store.counts()[1]):
    raise ValueError(f'{store.folder} holds no clip; index a folder first.')
  columns = clips.id, clips.start, clips.stop, clips.vector @ vector, clips.seconds
  hits = [
    Hit(clip, name, *rest, None, '', os.fsdecode(store.path(name)), seconds)
    for name, clip, *rest, seconds in zip(clips.name, *(x.tolist() for x in columns), strict=True)
  ]
  # What is shown is looked at too, where that costs no decoding.
  count = rerank_k or (most if store.about['tokens'] else 0)
  near, videos = _features(encoder, store, hits[:count], clips.vector[:count])
  margin, calibrated = np.full(len(hits), -np.inf), False
  if near:
    for i, why in zip(near, encoder.far_clips(videos), strict=True):
      hits[i] = hits[i]._replace(far=why)
  if near and rerank_k:
    rows = np.arange(len(near))  # Of videos and of scores, which are those of `near`.
    scores = encoder.scorer.matching_by_video(by, videos, np.zeros_like(rows), rows)
    margin[near] = scores.margin
    share, calibrated = familiarity.match_probability(encoder.trained.familiarity, scores.margin)
    for i, match in zip(near, share.tolist(), strict=True):
      hits[i] = hits[i]._replace(match=match)
  hits = [hits[i] for i in np.argsort(-margin, kind='stable')]
  read = len(near) if rerank_k else 0
  far = encoder.far_text(text, by) if by else ''
  return SearchResult(text, suppress(hits)[:top], read, time.monotonic() - start, far, calibrated)


def suppress(hits: Sequence[Hit]) -> list[Hit]:
  """Leaves out hits that are the same moment as a better one: non-maximum suppression."""
  kept: list[Hit] = []
  by_video: dict[bytes, list[Hit]] = {}

  def same(one, other):
    common = min(one.end, other.end) - max(one.start, other.start)
    return common > _SAME_MOMENT * (max(one.end, other.end) - min(one.start, other.start))

  for hit in hits:
    better = by_video.setdefault(hit.name, [])
    if not any(same(hit, other) for other in better):
      better.append(hit)
      kept.append(hit)
  return kept


def _features(encoder, store, hits, vectors):
  """The numbers of hits whose clips could be had, and VideoFeatures of these, None of none."""
  if not hits:
    return [], None
  if store.about['tokens']:
    ids = [hit.clip for hit in hits]
    tokens = store.tokens(ids).astype(np.dtype(encoder.trained.model.config.dtype))
    return list(range(len(hits))), VideoFeatures(tokens, vectors, store.looks(ids))
  starts = {}
  for hit in hits:
    starts.setdefault(hit.name, []).append(hit.start)
  known = store.files(among('video', map(key, starts)))
  for name in list(starts):
    # What is not there is said when it is decoded.
    with contextlib.suppress(OSError):
      if known.get(name) != look_at(store.path(name), name):
        logging.warning('%s has changed since it was indexed; index again.', show_name(name))
        del starts[name]
  items = [(os.fsdecode(store.path(name)), tuple(own)) for name, own in starts.items()]
  cut = {}
  for name, result in zip(starts, decode(items, store.cutting), strict=True):
    if not result.clips:
      logging.warning('%s cannot be read again: %s', show_name(name), result.reason)
    cut |= {(name, clip.start, clip.stop): clip for clip in result.clips}
  clips = [cut.get((hit.name, hit.start, hit.end)) for hit in hits]
  there = [i for i, clip in enumerate(clips) if clip]
  if not there:
    return there, None
  found = encoder.videos([clips[i] for i in there])
  return there, found._replace(feature=vectors[there])
