"""Diagnostic probes with ground truth.

Recall on a small split says little: these probes ask one thing each, and state
the figure that chance gives.

  right caption   is the top text of a video one of its own?
  order           does a video score higher with its caption than with that of
                  the same frames backwards? A frame of unknown time
                  cannot tell.
  matching        three rows for every pair, as in training: the pair, its text
                  with a wrong video, its video with a wrong text

All shares are percentages. Truth is one row for each video, as
examples/shapes writes it: video, family, colour, shape, motion, caption,
reversed_caption, trained, boxes. A key is absent from the figures where the
split has nothing to ask about.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from alpro_jax import metrics
from alpro_jax.data import checksum
from alpro_jax.evaluation import candidates
from alpro_jax.evaluation.retrieval import Retrieval
from alpro_jax.evaluation.scorer import Scorer, VideoFeatures

# Two of three rows of the matching probe are wrong pairs: always saying no
# gives this accuracy.
MATCHING_PRIOR = 200 / 3

_ORDERS = {
  'left': 'left_right',
  'right': 'left_right',
  'up': 'up_down',
  'down': 'up_down',
  'grow': 'grow_shrink',
  'shrink': 'grow_shrink',
}


def read_truth(
  path, videos: Sequence[str], captions: Sequence[Sequence[str]] | None = None
) -> list[dict]:
  """Reads truth.jsonl and puts its rows in the order of the videos.

  Args:
    path: of the file.
    videos: names.
    captions: of every video. Names recur in every world that is drawn, so a
      row must tell of a clip with its own caption.
  Raises:
    ValueError: if a video has no row, or a row is of another clip.
  """
  rows = [json.loads(x) for x in checksum.read_lines(path) if x.strip()]
  by_name = {row['video']: row for row in rows}
  missing = [name for name in videos if name not in by_name]
  if missing:
    raise ValueError(
      f'{path} has no row for {len(missing)} of {len(videos)} videos, e.g. '
      f'{missing[:5]}; was it written for another split?'
    )
  ordered = [by_name[name] for name in videos]
  if captions is not None:
    other = [
      (row, own) for row, own in zip(ordered, captions, strict=True) if row['caption'] not in own
    ]
    for row, own in other[:1]:
      raise ValueError(
        f'{path} tells of other clips: it says {row["caption"]!r} of '
        f'{row["video"]}, whose captions are {list(own)[:3]}, and differs in '
        f'{len(other)} of {len(videos)}; pass the file of the world that the '
        'set was made of.'
      )
  return ordered


def right_caption(
  scores: np.ndarray, pairs: np.ndarray, truth: Sequence[Mapping]
) -> dict[str, float]:
  """Share of videos whose top text is one of theirs.

  Args:
    scores: f[texts, videos].
    pairs: int[pairs, 2] of (text, video).
    truth: a row for every video.
  Returns:
    all, trained, never_trained and each family; chance. A tie with a wrong
    text counts as wrong.
  """
  right = metrics.rank_matrix(scores, pairs)['v2t'][1].resolve() == 1
  rows = [truth[video] for video in np.unique(pairs[:, 1])]
  groups = _groups(rows, [row['family'] for row in rows])
  figures = _shares(right, groups)
  own = np.bincount(pairs[:, 1], minlength=1)
  figures['chance'] = 100.0 * float(own[own > 0].mean()) / len(scores)
  return figures


def order(
  scorer: Scorer, videos: VideoFeatures, truth: Sequence[Mapping], *, matching: bool = True
) -> dict[str, float]:
  """Share of videos that prefer their caption to the one for reversed frames.

  Args:
    scorer: with the model.
    videos: features of the split, in the order of `truth`.
    truth: a row for every video.
    matching: ask the fusion encoder, too.
  Returns:
    similarity/all, /trained, /never_trained, /left_right, /up_down,
    /grow_shrink, /event_order, and the same with matching/. Chance is 50. A
    tie counts as wrong.
  """
  asked = [i for i, row in enumerate(truth) if row['reversed_caption']]
  if not asked:
    return {}
  texts = sorted({truth[i][name] for i in asked for name in ('caption', 'reversed_caption')})
  index = {text: i for i, text in enumerate(texts)}
  features = scorer.embed_texts(texts)
  own, other = (
    np.array([[index[truth[i][name]], i] for i in asked])
    for name in ('caption', 'reversed_caption')
  )
  rows = [truth[i] for i in asked]
  groups = _groups(rows, [_ORDERS.get(row['motion'], 'event_order') for row in rows])
  similarity = candidates.similarity_matrix(features.feature, videos.feature)
  right = similarity[tuple(own.T)] > similarity[tuple(other.T)]
  figures = _prefixed('similarity', _shares(right, groups))
  if matching:
    text, video = np.concatenate([own, other]).T
    by_video = np.argsort(video, kind='stable')
    margin = np.empty(len(video), np.float32)
    margin[by_video] = scorer.matching_by_video(
      features, videos, text[by_video], video[by_video]
    ).margin
    right = margin[: len(own)] > margin[len(own) :]
    figures |= _prefixed('matching', _shares(right, groups))
  return figures


def matching_accuracy(
  retrieval: Retrieval, *, temperature: float, batch_size: int = 64, rounds: int = 4, seed: int = 0
) -> dict[str, float]:
  """Accuracy of match or no match on three rows for every pair.

  Pairs are dealt into batches, as in training. Negatives come from the batch,
  uniformly ('random') or by contrastive similarity ('hard'), never one that
  belongs to the video or has an equal caption.

  Args:
    retrieval: with matching scores.
    temperature: of the model, for the hard negatives.
    batch_size: pairs that negatives are drawn among.
    rounds: times that the pairs are dealt.
    seed: of all draws.
  Returns:
    random, hard, and their parts /matched, /wrong_video, /wrong_text; prior.
  """
  pairs, margin = retrieval.pairs, retrieval.matching
  own = np.zeros(margin.shape, bool)
  own[tuple(pairs.T)] = True
  generator = np.random.default_rng(seed)
  right = {
    kind: {name: [] for name in ('matched', 'wrong_video', 'wrong_text')}
    for kind in ('random', 'hard')
  }
  for _ in range(rounds):
    dealt = pairs[generator.permutation(len(pairs))]
    for start in range(0, len(dealt), batch_size):
      text, video = dealt[start : start + batch_size].T
      score = retrieval.similarity[np.ix_(text, video)] / temperature
      # Pair (i, j) is forbidden if text i belongs to video j or the other way.
      allowed = ~own[np.ix_(text, video)]
      for kind, rows in right.items():
        logits = score if kind == 'hard' else np.zeros_like(score)
        rows['matched'] += list(margin[text, video] > 0)
        for name, table in (('wrong_video', logits), ('wrong_text', logits.T)):
          free = allowed if name == 'wrong_video' else allowed.T
          found = free.any(1)
          noise = generator.gumbel(size=table.shape)
          drawn = np.where(free, table + noise, -np.inf).argmax(1)
          a, b = (text, video[drawn]) if name == 'wrong_video' else (text[drawn], video)
          rows[name] += list((margin[a, b] <= 0)[found])
  figures = {'prior': MATCHING_PRIOR}
  for kind, rows in right.items():
    figures[kind] = 100.0 * float(np.mean(sum(rows.values(), [])))
    for name, values in rows.items():
      if values:
        figures[f'{kind}/{name}'] = 100.0 * float(np.mean(values))
  return figures


def ask_all(
  scorer: Scorer, retrieval: Retrieval, videos: VideoFeatures, truth: Sequence[Mapping]
) -> dict[str, float]:
  """The probes that need no prompter, as one flat dict."""
  figures = _prefixed(
    'right_caption/similarity', right_caption(retrieval.similarity, retrieval.pairs, truth)
  )
  if retrieval.matching is not None:
    figures |= _prefixed(
      'right_caption/matching', right_caption(retrieval.matching, retrieval.pairs, truth)
    )
    figures |= _prefixed('vtm', matching_accuracy(retrieval, temperature=scorer.temperature()))
  return figures | _prefixed(
    'order', order(scorer, videos, truth, matching=retrieval.matching is not None)
  )


def _groups(rows, kinds):
  """{name: bool[rows]} of all, of those trained and never trained, and of each kind."""
  trained = np.array([row['trained'] for row in rows], bool)
  groups = {'all': np.ones(len(rows), bool), 'trained': trained, 'never_trained': ~trained}
  return groups | {kind: np.array(kinds) == kind for kind in sorted(set(kinds))}


def _shares(right, groups):
  return {name: percent(right[group]) for name, group in groups.items() if group.any()}


def percent(right) -> float:
  """Returns the share of True, in percent."""
  return 100.0 * float(np.mean(right))


def _prefixed(prefix, figures):
  return {f'{prefix}/{name}': value for name, value in figures.items()}
