"""What a run on BabyAI knows, asked on the test split; figures in %.

The truth of a clip is its row of truth.jsonl (docs/worlds.md).
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from alpro_jax import masking
from alpro_jax.data import dataset
from alpro_jax.evaluation import split, trained
from examples.babyai import scenes, words

# Of a region, as in training; and so many regions of each clip.
_DRAWS = 3
# All pairs are read: a model without contrast has no candidates to choose.
_SEARCHED = 'test[-250:]'
# Share of the frames in which an object lies in a region for a label to be right.
_SHOWN = 0.5


def searches(
  run: str, data: str, truth: Mapping[str, Mapping], names: Sequence[str]
) -> dict[str, float]:
  """Retrieval by whole captions, the order of two actions, and the likeliest entity.

  Args:
    run: workdir.
    data: prepared set.
    truth: row of each clip, by the name of its video.
    names: entities, of which every clip shows some; () asks for none.
  Returns:
    t2v_r1, order and entity, by the fusion encoder; similarity.* by features; of what the
    model was not trained for, none.
  """
  model = trained.load(run)
  found = split.evaluate(model, dataset.open_dataset(data, _SEARCHED), style='whole').found
  figures = {'t2v_r1': found.metrics['t2v_r1']} if model.knows_matching else {}
  if model.config.loss.vtc:
    name = 'similarity/t2v_r1'
    figures['similarity.t2v_r1'] = found.metrics.get(name, found.metrics['t2v_r1'])
  prepared = dataset.open_dataset(data, 'test')
  rows = [truth[record.video] for record in prepared.metadata()]
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
    shown = np.array([[any(_is(x, name) for x in _kinds(row)) for name in names] for row in rows])
    for prefix, scores in score([f'a {name}' for name in names]).items():
      figures[f'{prefix}entity'] = _percent(shown[np.arange(len(rows)), scores.argmax(1)])
  asked = [(i, *both) for i, row in enumerate(rows) if (both := _both_orders(row))]
  if asked:
    texts = sorted({text for _, *both in asked for text in both})
    place = {text: i for i, text in enumerate(texts)}
    for prefix, scores in score(texts).items():
      right = [scores[i, place[this]] > scores[i, place[other]] for i, this, other in asked]
      figures[f'{prefix}order'] = _percent(right)
  return figures


def questions(run: str, data: str) -> dict[str, float]:
  """Accuracy, of all questions and by type."""
  model = trained.load(run)
  found = split.evaluate(model, dataset.open_dataset(data, 'test')).found
  return {name: value for name, value in found.metrics.items() if name.startswith('accuracy')}


def labels(run: str, data: str, truth: Mapping[str, Mapping]) -> dict[str, float]:
  """Whether the prompter's labels of random regions are true.

  Of regions in which an object lies for half of the frames or more: how many labels are
  kept, and how many of those name such an object.

  Args:
    run: workdir of a pre-training.
    data: prepared set.
    truth: row of each clip, by the name of its video.
  """
  model = trained.load(run)
  teacher, names = trained.load_teacher(model)
  prepared = dataset.open_dataset(data, 'test')
  rows = [truth[record.video] for record in prepared.metadata()]
  loss, patch = model.config.loss, model.model.config.video.patch_size
  grid = model.config.data.image_size // patch

  @jax.jit
  def label(teacher, video, still, key):
    region = masking.sample_regions(
      key, len(video), grid, area=loss.region_area, rule=loss.region_rule
    )
    return region, *teacher.label(video, region, still, patch_size=patch)

  kept, right = [], []
  for number, batch in enumerate(split.batches(model, prepared)):
    for draw in range(_DRAWS):
      key = jax.random.key(number * _DRAWS + draw)
      region, probabilities, keep = jax.device_get(
        label(teacher, batch['video'], batch['still'], key)
      )
      for i in np.flatnonzero(batch['valid']):
        kinds = _in_region(rows[int(batch['record'][i])], region[i].reshape(grid, grid))
        if kinds:
          kept.append(keep[i])
          right.append(any(_is(kind, names[probabilities[i].argmax()]) for kind in kinds))
  kept, right = np.array(kept), np.array(right)
  return {
    'kept': _percent(kept),
    'right_of_all': _percent(right),
    **({'right': _percent(right[kept])} if kept.any() else {}),
  }


def _kinds(row):
  return {thing['kind'] for thing in row['objects']}


def _is(kind, name):
  """'red ball' is a 'red ball' and a 'ball'."""
  return kind == name or kind.endswith(f' {name}')


def _in_region(row, region):
  """Kinds of objects whose tile lies in a region for half of the frames."""
  count: dict[str, int] = {}
  cell = len(region) / scenes.TILES
  for frame in row['frames']:
    seen = {
      thing['kind']
      for thing in frame['objects']
      if region[int(thing['y'] * cell), int(thing['x'] * cell)]
    }
    for kind in seen:
      count[kind] = count.get(kind, 0) + 1
  return [kind for kind, frames in count.items() if frames >= _SHOWN * len(row['frames'])]


def _both_orders(row):
  """The caption of two actions, and of the same in the other order; None if that is one."""
  done = [action['object'] for action in row['actions']]
  if len(set(done)) != 2:
    return None
  both = (row['actions'], row['actions'][::-1])
  return tuple(dict(words.captions(row | {'actions': one}, None, 0.0))['action'] for one in both)


def _percent(values):
  return 100.0 * float(np.mean(values))
