"""Diagnostic probes with ground truth.

Recall on a small split says little: these probes ask one thing each, and state
the figure that chance gives.

  right caption   is the top text of a video one of its own?
  order           does a video score higher with its caption than with that of
                  the same frames backwards? A frame of unknown time
                  cannot tell.
  matching        three rows for every pair, as in training: the pair, its text
                  with a wrong video, its video with a wrong text
  entities        on crops that hold the object: is the prompter's label true,
                  and does the model predict that label?

All shares are percentages. Truth is one row for each video, as
examples/shapes writes it: video, family, colour, shape, motion, caption,
reversed_caption, trained, boxes. A key is absent from the figures where the
split has nothing to ask about.
"""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

from alpro_jax import masking, metrics, sharding
from alpro_jax.data import checksum
from alpro_jax.evaluation.retrieval import (
  Retrieval,
  Scorer,
  TextFeatures,
  VideoFeatures,
)

# Two of three rows of the matching probe are wrong pairs: always saying no
# gives this accuracy.
MATCHING_PRIOR = 200 / 3
# Share of the object's box, averaged over the frames, that a crop must hold.
HELD = 0.5

_ORDERS = {
    'left': 'left_right', 'right': 'left_right', 'up': 'up_down',
    'down': 'up_down', 'grow': 'grow_shrink', 'shrink': 'grow_shrink',
}


def read_truth(
    path, videos: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
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
        f'{missing[:5]}; was it written for another split?')
  ordered = [by_name[name] for name in videos]
  if captions is not None:
    other = [
        (row, own) for row, own in zip(ordered, captions, strict=True)
        if row['caption'] not in own]
    for row, own in other[:1]:
      raise ValueError(
          f'{path} tells of other clips: it says {row["caption"]!r} of '
          f'{row["video"]}, whose captions are {list(own)[:3]}, and differs in '
          f'{len(other)} of {len(videos)}; pass the file of the world that the '
          'set was made of.')
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
  right = metrics.video_to_text_ranks(scores, pairs) == 1
  rows = [truth[video] for video in np.unique(pairs[:, 1])]
  groups = {
      'all': np.ones(len(rows), bool),
      'trained': np.array([row['trained'] for row in rows]),
      'never_trained': np.array([not row['trained'] for row in rows]),
  }
  for family in sorted({row['family'] for row in rows}):
    groups[family] = np.array([row['family'] == family for row in rows])
  figures = _shares(right, groups)
  own = np.bincount(pairs[:, 1], minlength=1)
  figures['chance'] = 100.0 * float(own[own > 0].mean()) / len(scores)
  return figures


def order(
    scorer: Scorer, videos: VideoFeatures, truth: Sequence[Mapping], *,
    matching: bool = True,
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
  texts = sorted({truth[i][name] for i in asked
                  for name in ('caption', 'reversed_caption')})
  index = {text: i for i, text in enumerate(texts)}
  features = scorer.embed_texts(texts)
  own, other = (
      np.array([[index[truth[i][name]], i] for i in asked])
      for name in ('caption', 'reversed_caption'))
  rows = [truth[i] for i in asked]
  kinds = [_ORDERS.get(row['motion'], 'event_order') for row in rows]
  groups = {
      'all': np.ones(len(rows), bool),
      'trained': np.array([row['trained'] for row in rows]),
      'never_trained': np.array([not row['trained'] for row in rows]),
      **{kind: np.array([k == kind for k in kinds])
         for kind in sorted(set(kinds))},
  }
  similarity = scorer.similarity(features, videos)
  right = similarity[tuple(own.T)] > similarity[tuple(other.T)]
  figures = _prefixed('similarity', _shares(right, groups))
  if matching:
    margin = scorer.matching_of(features, videos, np.concatenate([own, other]))
    right = margin[:len(own)] > margin[len(own):]
    figures |= _prefixed('matching', _shares(right, groups))
  return figures


def matching_accuracy(
    retrieval: Retrieval, *, temperature: float, batch_size: int = 64,
    rounds: int = 4, seed: int = 0,
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
  right = {kind: {name: [] for name in ('matched', 'wrong_video', 'wrong_text')}
           for kind in ('random', 'hard')}
  for _ in range(rounds):
    dealt = pairs[generator.permutation(len(pairs))]
    for start in range(0, len(dealt), batch_size):
      text, video = dealt[start:start + batch_size].T
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
          a, b = (text, video[drawn]) if name == 'wrong_video' else (
              text[drawn], video)
          rows[name] += list((margin[a, b] <= 0)[found])
  figures = {'prior': MATCHING_PRIOR}
  for kind, rows in right.items():
    figures[kind] = 100.0 * float(np.mean(sum(rows.values(), [])))
    for name, values in rows.items():
      if values:
        figures[f'{kind}/{name}'] = 100.0 * float(np.mean(values))
  return figures


@dataclasses.dataclass(frozen=True)
class Crops:
  """Random region crops and what prompter and model say about them.

  Attributes:
    video: int[crops], record of each.
    region: bool[crops, N], patches inside.
    labels: float32[crops, Z], the prompter's pseudo-labels.
    keep: bool[crops], False where training would ignore the label.
    answers: float32[crops, Z], the entity head's probabilities.
    misled: float32[crops, Z], the same beside a caption that names another
      shape, to see whether the answer is read off the caption.
    holds: bool[crops], the crop holds the object.
  """

  video: np.ndarray
  region: np.ndarray
  labels: np.ndarray
  keep: np.ndarray
  answers: np.ndarray
  misled: np.ndarray
  holds: np.ndarray


def label_crops(
    scorer: Scorer,
    teacher,
    batches: Iterable[Mapping[str, np.ndarray]],
    texts: TextFeatures,
    videos: VideoFeatures,
    retrieval: Retrieval,
    truth: Sequence[Mapping],
    *,
    draws: int = 4,
    seed: int = 0,
    area: tuple[float, float] = (0.3, 0.5),
    region_rule: str = 'original',
    ignore_rule: str = 'probability',
    threshold: float = 0.2,
    crop_share: float = 1.0,
) -> Crops:
  """Crops random regions, labels them, and asks the model the same.

  Args:
    scorer: with the pre-trained model.
    teacher: tasks.pretrain.Teacher, the frozen prompter and its bank.
    batches: the split once more; see Scorer.embed_videos.
    texts: features of retrieval.texts.
    videos: features of the split.
    retrieval: tells a caption of each video, which the model sees.
    truth: a row for every video.
    draws: regions for each video.
    seed: of the regions.
    area: as config.loss.region_area.
    region_rule: as config.loss.region_rule.
    ignore_rule: as config.prompter.ignore_rule.
    threshold: as config.prompter.ignore_threshold.
    crop_share: side of the evaluation crop over that of the resized frame;
      boxes are in fractions of the frame.
  """
  mesh = scorer.mesh
  rows, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  patch = scorer.model.config.video.patch_size
  # The first caption of every video; videos without one are left out.
  caption = {}
  for text, video in retrieval.pairs:
    caption.setdefault(int(video), int(text))

  @functools.partial(jax.jit, out_shardings=everywhere)
  def label(teacher, video, record, valid, still, key):
    region = masking.sample_regions(
        key, video.shape[0],
        (video.shape[2] // patch, video.shape[3] // patch),
        area=area, rule=region_rule)
    labels, keep = teacher.label(
        masking.crop_regions(video, region, patch), still, rule=ignore_rule,
        threshold=threshold)
    return region, labels, keep, record, valid

  @functools.partial(jax.jit, out_shardings=everywhere)
  def answer(params, text_tokens, mask, video_tokens, region):
    model = scorer.model.bind({'params': params})
    fused = model.fuse(text_tokens, mask, video_tokens, train=False)
    return jax.nn.softmax(model.region_entities(fused, region))

  def place(array):
    return jax.make_array_from_callback(
        array.shape, rows, lambda index: array[index])

  generator = np.random.default_rng(seed)
  wrong = _captions_of_other_shapes(retrieval, truth, generator)
  teacher = jax.device_put(teacher, everywhere)
  parts = []
  for number, batch in enumerate(batches):
    inputs = [
        jax.make_array_from_process_local_data(rows, np.asarray(x))
        for x in (batch['video'], np.asarray(batch['record'], np.int32),
                  np.asarray(batch['valid'], bool),
                  np.asarray(batch['still'], bool))]
    for draw in range(draws):
      key = jax.random.fold_in(
          jax.random.fold_in(jax.random.key(seed), number), draw)
      region, labels, keep, record, valid = jax.device_get(
          label(teacher, *inputs, key))
      valid = valid & np.isin(record, list(caption))
      own = np.array([caption.get(int(video), 0) for video in record])
      video_tokens, where = place(videos.tokens[record]), place(region)
      answers, misled = (
          jax.device_get(answer(
              scorer.params, place(texts.tokens[text]), place(texts.mask[text]),
              video_tokens, where))
          for text in (own, wrong[record]))
      shape = tuple(side // patch for side in batch['video'].shape[2:4])
      holds = np.array([
          held_share(truth[video]['boxes'], r.reshape(shape), crop_share)
          >= HELD for video, r in zip(record, region, strict=True)])
      parts.append([x[valid] for x in (
          record, region, labels, keep, answers, misled, holds)])
  return Crops(*map(np.concatenate, zip(*parts, strict=True)))


def held_share(boxes, region: np.ndarray, crop_share: float = 1.0) -> float:
  """Share of a box that lies inside a region, averaged over the frames.

  Args:
    boxes: [T, 4] of (left, top, right, bottom), fractions of the frame.
    region: bool[rows, columns] of patches of the centre crop.
    crop_share: side of the crop over that of the frame.
  """
  boxes = (np.asarray(boxes, float) - 0.5) / crop_share + 0.5
  rows, columns = region.shape

  def inside(low, high, cells):
    # float[T, cells]: part of the span low..high that falls into each cell.
    edge = np.arange(cells + 1) / cells
    covered = (np.minimum(high[:, None], edge[1:])
               - np.maximum(low[:, None], edge[:-1]))
    return np.maximum(covered, 0)

  left, top, right, bottom = boxes.T
  held = np.einsum('tr,tc,rc->t', inside(top, bottom, rows),
                   inside(left, right, columns), region.astype(float))
  size = np.maximum((right - left) * (bottom - top), 1e-9)
  return float(np.mean(held / size))


def entity_figures(
    crops: Crops, entities: Sequence[str], truth: Sequence[Mapping], *,
    seed: int = 0,
) -> dict[str, float]:
  """How true, how followed and how varied the pseudo-labels are.

  A label is true if it names the shape or the colour of the object, or both,
  or the wall that it passes.
  Shares of truth and of agreement are over crops that hold the object and
  whose label is kept; each is given beside the best constant answer and beside
  the same answers dealt to other crops.

  Returns:
    pseudo/kept, /entropy (nats), /entropy_limit, /confidence over all crops;
    pseudo/right, /right_constant, /right_shuffled; pem/agrees,
    /agrees_constant, /agrees_shuffled, pem/right; with _misled beside a caption
    that names another shape; crops, crops_held.
  """
  true = _true_entities(entities, truth)[crops.video]
  use = crops.holds & crops.keep
  label, answer, misled = (
      x.argmax(1) for x in (crops.labels, crops.answers, crops.misled))
  q = np.maximum(crops.labels.astype(np.float64), 1e-30)
  figures = {
      'crops': float(len(label)), 'crops_held': float(crops.holds.sum()),
      'pseudo/kept': _percent(crops.keep),
      'pseudo/entropy': float(-(q * np.log(q)).sum(1).mean()),
      'pseudo/entropy_limit': float(np.log(len(entities))),
      'pseudo/confidence': 100.0 * float(crops.labels.max(1).mean()),
  }
  if not use.any():
    return figures
  true, label, answer, misled = (x[use] for x in (true, label, answer, misled))
  row = np.arange(len(label))
  dealt = np.random.default_rng(seed).permutation(len(label))
  named = true.any(1)
  if named.any():
    for name, said in (
        ('pseudo/right', label), ('pem/right', answer),
        ('pem/right_misled', misled)):
      figures[name] = _percent(true[row, said])
    figures['pseudo/right_constant'] = 100.0 * float(true.mean(0).max())
    figures['pseudo/right_shuffled'] = _percent(true[row, label[dealt]])
  figures |= {
      'pem/agrees': _percent(answer == label),
      'pem/agrees_misled': _percent(misled == label),
      'pem/agrees_constant': 100.0 * float(np.bincount(label).max()) / len(row),
      'pem/agrees_shuffled': _percent(answer == label[dealt]),
  }
  return figures


def top_entities(
    crops: Crops, entities: Sequence[str]
) -> list[tuple[str, int]]:
  """How many kept crops were given each label, most frequent first."""
  count = np.bincount(
      crops.labels.argmax(1)[crops.keep], minlength=len(entities))
  ranked = sorted(zip(entities, count.tolist(), strict=True),
                  key=lambda pair: (-pair[1], pair[0]))
  return [(name, number) for name, number in ranked if number]


def names_of(row: Mapping) -> tuple[str, ...]:
  """The entities that are true of a clip."""
  names = (row['shape'], row['colour'], f'{row["colour"]} {row["shape"]}')
  return (*names, 'wall') if row['family'] == 'wall' else names


def ask_all(
    scorer: Scorer,
    retrieval: Retrieval,
    videos: VideoFeatures,
    truth: Sequence[Mapping],
) -> dict[str, float]:
  """The probes that need no prompter, as one flat dict."""
  figures = _prefixed('right_caption/similarity', right_caption(
      retrieval.similarity, retrieval.pairs, truth))
  if retrieval.matching is not None:
    temperature = jax.jit(lambda params: scorer.model.bind(
        {'params': params}).temperature())(scorer.params)
    figures |= _prefixed('right_caption/matching', right_caption(
        retrieval.matching, retrieval.pairs, truth))
    figures |= _prefixed('vtm', matching_accuracy(
        retrieval, temperature=float(temperature)))
  return figures | _prefixed('order', order(
      scorer, videos, truth, matching=retrieval.matching is not None))


def _captions_of_other_shapes(retrieval, truth, generator):
  """int[videos]: for each a random text that names another shape."""
  shapes = {}
  for text, video in retrieval.pairs:
    shapes.setdefault(int(text), truth[video]['shape'])
  chosen = []
  for row in truth:
    others = [text for text, shape in shapes.items() if shape != row['shape']]
    chosen.append(generator.choice(others or list(shapes)))
  return np.array(chosen)


def _true_entities(entities, truth):
  """bool[videos, Z]."""
  return np.array([
      [entity in names_of(row) for entity in entities] for row in truth])


def _shares(right, groups):
  return {name: _percent(right[group]) for name, group in groups.items()
          if group.any()}


def _percent(right):
  return 100.0 * float(np.mean(right))


def _prefixed(prefix, figures):
  return {f'{prefix}/{name}': value for name, value in figures.items()}
