"""Probes of entities: what regions show, what the prompter and the model say.

On crops that hold the object: is the prompter's label true, and does the model
predict that label? See probes.py for the truth about the clips.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

from alpro_jax import masking, sharding
from alpro_jax.evaluation.retrieval import Retrieval
from alpro_jax.evaluation.scorer import Scorer, TextFeatures, VideoFeatures
from examples.shapes.probes import percent

# Share of the object's box, averaged over the frames, that a crop must hold.
HELD = 0.5


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
  crop_share: float = 1.0,
) -> Crops:
  """Crops random regions, labels them, and asks the model the same.

  Args:
    scorer: with the pre-trained model.
    teacher: tasks.teacher.Teacher, the frozen prompter and its bank.
    batches: the split once more; see Scorer.embed_videos.
    texts: features of retrieval.texts.
    videos: features of the split.
    retrieval: tells a caption of each video, which the model sees.
    truth: a row for every video.
    draws: regions for each video.
    seed: of the regions.
    area: as config.loss.region_area.
    region_rule: as config.loss.region_rule.
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
      key,
      video.shape[0],
      (video.shape[2] // patch, video.shape[3] // patch),
      area=area,
      rule=region_rule,
    )
    labels, keep = teacher.label(video, region, still, patch_size=patch)
    return region, labels, keep, record, valid

  @functools.partial(jax.jit, out_shardings=everywhere)
  def answer(params, text_tokens, mask, video_tokens, region):
    model = scorer.model.bind({'params': params})
    fused = model.fuse(text_tokens, mask, video_tokens, train=False)
    return jax.nn.softmax(model.region_entities(fused, region))

  def place(array):
    return jax.make_array_from_callback(array.shape, rows, lambda index: array[index])

  generator = np.random.default_rng(seed)
  wrong = _captions_of_other_shapes(retrieval, truth, generator)
  teacher = jax.device_put(teacher, everywhere)
  parts = []
  for number, batch in enumerate(batches):
    inputs = [
      jax.make_array_from_process_local_data(rows, np.asarray(x))
      for x in (
        batch['video'],
        np.asarray(batch['record'], np.int32),
        np.asarray(batch['valid'], bool),
        np.asarray(batch['still'], bool),
      )
    ]
    for draw in range(draws):
      key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), draw)
      region, labels, keep, record, valid = jax.device_get(label(teacher, *inputs, key))
      valid = valid & np.isin(record, list(caption))
      own = np.array([caption.get(int(video), 0) for video in record])
      video_tokens, where = place(videos.tokens[record]), place(region)
      answers, misled = (
        jax.device_get(
          answer(
            scorer.params, place(texts.tokens[text]), place(texts.mask[text]), video_tokens, where
          )
        )
        for text in (own, wrong[record])
      )
      shape = tuple(side // patch for side in batch['video'].shape[2:4])
      holds = np.array(
        [
          held_share(truth[video]['boxes'], r.reshape(shape), crop_share) >= HELD
          for video, r in zip(record, region, strict=True)
        ]
      )
      parts.append([x[valid] for x in (record, region, labels, keep, answers, misled, holds)])
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
    covered = np.minimum(high[:, None], edge[1:]) - np.maximum(low[:, None], edge[:-1])
    return np.maximum(covered, 0)

  left, top, right, bottom = boxes.T
  held = np.einsum(
    'tr,tc,rc->t', inside(top, bottom, rows), inside(left, right, columns), region.astype(float)
  )
  size = np.maximum((right - left) * (bottom - top), 1e-9)
  return float(np.mean(held / size))


def entity_figures(
  crops: Crops, entities: Sequence[str], truth: Sequence[Mapping], *, seed: int = 0
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
  label, answer, misled = (x.argmax(1) for x in (crops.labels, crops.answers, crops.misled))
  q = np.maximum(crops.labels.astype(np.float64), 1e-30)
  figures = {
    'crops': float(len(label)),
    'crops_held': float(crops.holds.sum()),
    'pseudo/kept': percent(crops.keep),
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
      ('pseudo/right', label),
      ('pem/right', answer),
      ('pem/right_misled', misled),
    ):
      figures[name] = percent(true[row, said])
    figures['pseudo/right_constant'] = 100.0 * float(true.mean(0).max())
    figures['pseudo/right_shuffled'] = percent(true[row, label[dealt]])
  figures |= {
    'pem/agrees': percent(answer == label),
    'pem/agrees_misled': percent(misled == label),
    'pem/agrees_constant': 100.0 * float(np.bincount(label).max()) / len(row),
    'pem/agrees_shuffled': percent(answer == label[dealt]),
  }
  return figures


def top_entities(crops: Crops, entities: Sequence[str]) -> list[tuple[str, int]]:
  """How many kept crops were given each label, most frequent first."""
  count = np.bincount(crops.labels.argmax(1)[crops.keep], minlength=len(entities))
  ranked = sorted(zip(entities, count.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))
  return [(name, number) for name, number in ranked if number]


def names_of(row: Mapping) -> tuple[str, ...]:
  """The entities that are true of a clip."""
  names = (row['shape'], row['colour'], f'{row["colour"]} {row["shape"]}')
  return (*names, 'wall') if row['family'] == 'wall' else names


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
  return np.array([[entity in names_of(row) for entity in entities] for row in truth])
