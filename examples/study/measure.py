"""What a run knows, asked on held-out clips; figures in %.

The truth of a clip is its row of truth.jsonl (docs/worlds.md); what that means says the
module truth.py of each world.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from alpro_jax.data import dataset
from alpro_jax.evaluation import split, trained
from alpro_jax.tasks import regions
from alpro_jax.tasks.base import TextInfo
from alpro_jax.tasks.registry import get_task
from alpro_jax.tasks.teacher import Teacher

# Of a region, as in training; and so many regions of each clip.
_DRAWS = 3
# All pairs are read: a model without contrast has no candidates to choose.
_SEARCHED = '[-250:]'
# Share of the frames in which an object lies in a region for a label to be right.
_SHOWN = 0.5


class World(Protocol):
  """What a row of truth.jsonl says, of a clip that is held out."""

  def kinds(self, row: Mapping) -> Sequence[str]:
    """Returns what the clip shows, by names such as 'red ball'."""

  def places(self, row: Mapping) -> Sequence[Sequence[tuple[str, float, float]]]:
    """Returns the kind, x and y of what is seen, from 0 (left, top) to 1, for each frame."""

  def opposites(self, row: Mapping) -> tuple[str, str] | None:
    """Returns a caption, and one that would be right if time ran otherwise; None if none is."""


class Clips(NamedTuple):
  """A held-out split.

  Attributes:
    data: prepared set.
    split: of it.
    truth: row of each clip, by the name of its video.
    world: what these rows say.
  """

  data: str
  split: str
  truth: Mapping[str, Mapping[str, Any]]
  world: World

  def open(self):
    """Returns the prepared split and the truth of each of its records."""
    prepared = dataset.open_dataset(self.data, self.split)
    return prepared, [self.truth[record.video] for record in prepared.metadata()]


def searches(run: str, clips: Clips, names: Sequence[str]) -> dict[str, float]:
  """Retrieval by whole captions, what time alone tells apart, and the likeliest entity.

  Args:
    run: workdir.
    clips: asked about.
    names: entities, of which every clip shows some; () asks for none.
  Returns:
    t2v_r1, order and entity, by the fusion encoder; similarity.* by features; of what the
    model was not trained for, none.
  """
  model = trained.load(run)
  searched = dataset.open_dataset(clips.data, clips.split + _SEARCHED)
  found = split.evaluate(model, searched, style='whole').found
  figures = {'t2v_r1': found.metrics['t2v_r1']} if model.knows_matching else {}
  if model.config.loss.vtc:
    name = 'similarity/t2v_r1'
    figures['similarity.t2v_r1'] = found.metrics.get(name, found.metrics['t2v_r1'])
  prepared, rows = clips.open()
  scorer = split.make_scorer(model)
  videos = scorer.embed_videos(split.batches(model, prepared), len(prepared))

  def score(texts):
    """{prefix: float32[videos, texts]}, by what the model was trained for."""
    features = scorer.embed_texts(texts)
    scores = {}
    if model.config.loss.vtc:
      scores['similarity.'] = videos.feature @ features.feature.T
    if model.knows_matching:
      scores[''] = scorer.matching(features, videos).margin.T
    return scores

  if names:
    shown = np.array(
      [[any(_is(x, name) for x in clips.world.kinds(row)) for name in names] for row in rows]
    )
    for prefix, scores in score([f'a {name}' for name in names]).items():
      figures[f'{prefix}entity'] = _percent(shown[np.arange(len(rows)), scores.argmax(1)])
  asked = [(i, *both) for i, row in enumerate(rows) if (both := clips.world.opposites(row))]
  if asked:
    texts = sorted({text for _, *both in asked for text in both})
    place = {text: i for i, text in enumerate(texts)}
    for prefix, scores in score(texts).items():
      right = [scores[i, place[this]] > scores[i, place[other]] for i, this, other in asked]
      figures[f'{prefix}order'] = _percent(right)
  return figures


def questions(run: str, clips: Clips, kind: str = '') -> dict[str, float]:
  """Accuracy, of all questions and by type, or of one type."""
  model = trained.load(run)
  found = split.evaluate(model, clips.open()[0], style=kind).found
  return {name: value for name, value in found.metrics.items() if name.startswith('accuracy')}


def labels_of_run(run: str, clips: Clips) -> dict[str, float]:
  """`labels` of the prompter that a pre-training, in workdir `run`, was taught by."""
  model = trained.load(run)
  return labels(model, *trained.load_teacher(model), clips)


def labels_of_prompter(run: str, config, clips: Clips) -> dict[str, float]:
  """`labels` of a prompter, in workdir `run`, as a pre-training by `config` would use it."""
  model = trained.load(run, config=config)
  text = TextInfo(model.tokenizer.special, model.tokenizer.vocab_size)
  task = get_task(config, text, model.mesh)
  teacher = task.make_frozen(model.model, model.params, model.tokenizer.encode)
  return labels(model, teacher, task.entities, clips)


def labels(
  model: trained.TrainedModel, teacher: Teacher, names: Sequence[str], clips: Clips
) -> dict[str, float]:
  """Whether the prompter's labels of regions are true, chosen as in training.

  Of regions in which an object lies for half of the frames or more: how many labels are
  kept, and how many of those name such an object.

  Args:
    model: of a pre-training, for its options.
    teacher: that names the regions.
    names: of its entities.
    clips: asked about.
  """
  prepared, rows = clips.open()
  loss, patch = model.config.loss, model.model.config.video.patch_size
  grid = model.config.data.image_size // patch

  @jax.jit
  def label(teacher, video, still, key):
    boxes = regions.draw(loss, key, len(video), grid)
    return regions.name(loss, teacher, video, still, boxes, patch_size=patch)

  kept, right = [], []
  for number, batch in enumerate(split.batches(model, prepared)):
    for draw in range(_DRAWS):
      key = jax.random.key(number * _DRAWS + draw)
      region, probabilities, keep = jax.device_get(
        label(teacher, batch['video'], batch['still'], key)
      )
      for i in np.flatnonzero(batch['valid']):
        places = clips.world.places(rows[int(batch['record'][i])])
        kinds = _in_region(places, region[i].reshape(-1, grid, grid))
        if kinds:
          kept.append(keep[i])
          right.append(any(_is(kind, names[probabilities[i].argmax()]) for kind in kinds))
  kept, right = np.array(kept), np.array(right)
  return {
    'kept': _percent(kept),
    'right_of_all': _percent(right),
    **({'right': _percent(right[kept])} if kept.any() else {}),
  }


def _is(kind, name):
  """'red ball' is a 'red ball' and a 'ball'."""
  return kind == name or kind.endswith(f' {name}')


def _in_region(places, region):
  """Kinds that lie in a region for half of the frames.

  bool[1, n, n] is the same in all of them, bool[T, n, n] of T that are evenly spread.
  """
  if len(region) > 1:
    places = [places[i * len(places) // len(region)] for i in range(len(region))]
  side, count = region.shape[1], collections.Counter()
  for i, frame in enumerate(places):
    inside = region[min(i, len(region) - 1)]
    count.update(
      {
        kind
        for kind, x, y in frame
        if 0 <= x < 1 and 0 <= y < 1 and inside[int(y * side), int(x * side)]
      }
    )
  return [kind for kind, frames in count.items() if frames >= _SHOWN * len(places)]


def _percent(values):
  return 100.0 * float(np.mean(values))
