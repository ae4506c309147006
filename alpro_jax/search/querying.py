"""From a text to the clips that fit it."""

import contextlib
import dataclasses
import datetime
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


# In the order of Only.
_ASKED = (
  "starts_with(path, '{}')",
  'seconds >= {}',
  'seconds <= {}',
  'mtime_ns >= {}',
  'mtime_ns < {}',
  'video = {}',
)


class Only(NamedTuple):
  """Which clips a search looks at; the defaults are all."""

  below: str | None = None  # Beginning of the path of a video below its folder, as it is shown.
  min_seconds: float | None = None  # Length of its video.
  max_seconds: float | None = None
  after: datetime.date | None = None  # Day of the file, here; years 1900 to 2200.
  before: datetime.date | None = None
  video: int | None = None  # See `key`.

  @property
  def where(self) -> str:
    """As SQL."""

    def written(value):
      if isinstance(value, datetime.date):
        return round(datetime.datetime.combine(value, datetime.time()).timestamp()) * 10**9
      return value.replace("'", "''") if isinstance(value, str) else value

    asked = zip(_ASKED, self, strict=True)
    return ' AND '.join(text.format(written(x)) for text, x in asked if x not in (None, ''))


EVERYTHING = Only()


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
  only: Only = EVERYTHING,
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
    only: where to look.
  Raises:
    ValueError: if nothing was indexed.
  """
  each = zip(texts, rows(encoder.texts(list(texts))), strict=True)
  return [
    find(encoder, store, row.feature[0], top=top, only=only, rerank_k=rerank_k, text=text, by=row)
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
  only: Only = EVERYTHING,
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
  if not store.counts()[1]:
    raise ValueError(f'{store.folder} holds no clip; index a folder first.')
  rerank_k = rerank_k if by and encoder.trained.knows_matching else 0
  # Overlapping ones are left out below.
  most = 4 * top if store.cutting.overlaps else top
  clips = store.nearest(vector, max(most, rerank_k), only.where)
  similarity, order = clips.vector @ vector, list(range(len(clips.id)))
  # What is shown is looked at too, where that costs no decoding.
  chosen = order[: rerank_k or (most if store.about['tokens'] else 0)]
  near, videos = _features(encoder, store, clips, chosen) if chosen else ([], None)
  margin, match, far, calibrated = {}, {}, {}, False
  if near:
    far = dict(zip(near, encoder.far_clips(videos), strict=True))
  if near and rerank_k:
    rows = np.arange(len(near))  # Of videos and of scores, which are those of `near`.
    scores = encoder.scorer.matching_by_video(by, videos, np.zeros_like(rows), rows)
    margin = dict(zip(near, scores.margin.tolist(), strict=True))
    share, calibrated = familiarity.match_probability(encoder.trained.familiarity, scores.margin)
    match = dict(zip(near, share.tolist(), strict=True))
  order = sorted(margin, key=lambda i: -margin[i]) + [i for i in order if i not in margin]
  numbers = clips.id, clips.start, clips.stop, similarity, clips.seconds
  each = list(zip(clips.name, *(x.tolist() for x in numbers), strict=True))
  hits = [
    Hit(clip, name, *rest, match.get(i), far.get(i, ''), os.fsdecode(store.path(name)), seconds)
    for i, (name, clip, *rest, seconds) in ((i, each[i]) for i in order)
  ]
  strange = encoder.far_text(text, by) if by else ''
  return SearchResult(
    text, suppress(hits)[:top], len(margin), time.monotonic() - start, strange, calibrated
  )


def suppress(hits: Sequence[Hit]) -> list[Hit]:
  """Leaves out hits that are the same moment as a better one: non-maximum suppression."""
  kept: dict[bytes, list[Hit]] = {}

  def same(one, other):
    common = min(one.end, other.end) - max(one.start, other.start)
    return common > _SAME_MOMENT * (max(one.end, other.end) - min(one.start, other.start))

  for hit in hits:
    better = kept.setdefault(hit.name, [])
    if not any(same(hit, other) for other in better):
      better.append(hit)
  own = {id(hit) for better in kept.values() for hit in better}
  return [hit for hit in hits if id(hit) in own]


def _features(encoder, store, clips, chosen):
  """VideoFeatures of clips, from the index or from their videos.

  Returns:
    those of `chosen` that could be had, and their features; None if there is none.
  """
  if store.about['tokens']:
    dtype = np.dtype(encoder.trained.model.config.dtype)
    ids = clips.id[chosen]
    tokens = store.tokens(ids).astype(dtype)
    return chosen, VideoFeatures(tokens, clips.vector[chosen], store.looks(ids))
  starts = {}
  for i in chosen:
    starts.setdefault(clips.name[i], []).append(float(clips.start[i]))
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
  places = {i: (clips.name[i], float(clips.start[i]), float(clips.stop[i])) for i in chosen}
  there = [i for i in chosen if places[i] in cut]
  if not there:
    return there, None
  found = encoder.videos([cut[places[i]] for i in there])
  return there, found._replace(feature=clips.vector[there])
