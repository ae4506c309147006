"""From a checkpoint and a prepared split to figures, and a page about them."""

import dataclasses
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import logging

from alpro_jax import metrics, sharding
from alpro_jax.data import dataset, pipeline, tokens
from alpro_jax.evaluation import probes, report
from alpro_jax.evaluation.retrieval import (
    Retrieval,
    Scorer,
    Scoring,
    TextFeatures,
    VideoFeatures,
    retrieve,
)
from alpro_jax.models.alpro import Alpro, AlproConfig
from alpro_jax.tasks.base import TextInfo, get_task
from alpro_jax.tasks.prompter import init_model
from alpro_jax.train import checkpoints


class Trained(NamedTuple):
  """A model as it was trained, with the options of its run."""

  model: Alpro
  params: Any
  config: Any
  tokenizer: Any
  mesh: jax.sharding.Mesh


@dataclasses.dataclass(frozen=True)
class Result:
  """What was found out about a model on a split.

  Attributes:
    figures: by plain names, such as zero_shot.t2v_r1, probes.vtm.hard.
    trained: the model.
    prepared: the split.
    retrieval: all scores.
    truth: a row for every video, or None.
    crops: labelled regions, or None.
    entities: their names, () without crops.
  """

  figures: dict[str, float]
  trained: Trained
  prepared: dataset.PreparedDataset
  retrieval: Retrieval
  truth: list[dict] | None
  crops: probes.Crops | None
  entities: tuple[str, ...]


def load(checkpoint, *, tokenizer: str = '', mesh=None) -> Trained:
  """Loads a model from a workdir or checkpoint, with its options.

  Args:
    checkpoint: what checkpoints.find takes.
    tokenizer: its file, if it is not where it was in training.
    mesh: of devices; None is all of them.
  Raises:
    ValueError: if the tokenizer is not the one of training.
    FileNotFoundError: if there is no checkpoint or tokenizer.
  """
  mesh = mesh or sharding.make_mesh()
  meta = checkpoints.load_meta(checkpoint)
  config = ml_collections.ConfigDict(meta['config'])
  path = tokenizer or config.data.tokenizer
  loaded = tokens.load_tokenizer(path)
  if loaded.digest != meta['tokenizer']['digest']:
    raise ValueError(
        f'{path} has digest {loaded.digest}, but {checkpoint} was trained '
        f'with {meta["tokenizer"]["digest"]}; pass the file of that run as '
        '--tokenizer.')
  model = Alpro(AlproConfig.from_dict(meta['model']))
  boxed = jax.eval_shape(lambda key: init_model(model, key), jax.random.key(0))
  params = checkpoints.load_params(checkpoint, sharding.abstract(boxed, mesh))
  return Trained(model, params, config, loaded, mesh)


def knows_matching(config) -> bool:
  """Whether a run trained the head that says match or no match."""
  return config.task == 'pretrain' and config.loss.vtm > 0


def search(
    trained: Trained, prepared, *, style: str = '', rerank: bool | None = None
) -> tuple[Scorer, Retrieval, TextFeatures, VideoFeatures]:
  """Zero-shot retrieval on a split.

  Args:
    trained: the model.
    prepared: from dataset.open_dataset.
    style: of the captions, '' for all.
    rerank: score all pairs by the fusion encoder; None decides by whether that
      was trained.
  """
  config = trained.config
  if rerank is None:
    rerank = knows_matching(config)
  scorer = Scorer(
      trained.model, trained.params, trained.mesh,
      encode=trained.tokenizer.encode,
      max_text_tokens=config.data.max_text_tokens,
      batch_size=config.eval.batch_size,
      pairs_per_call=config.eval.pairs_per_call)
  captions = pipeline.record_captions(prepared, style)
  return scorer, *retrieve(
      scorer, _batches(trained, prepared), captions,
      Scoring('matching' if rerank else 'similarity'))


def evaluate(
    trained: Trained, path, split: str, *, style: str = '', truth: str = '',
    rerank: bool | None = None,
) -> Result:
  """Zero-shot retrieval and, where the truth is known, all probes.

  Args:
    trained: the model.
    path: of the prepared set.
    split: of it.
    style: of the captions, '' for all.
    truth: truth.jsonl of the split, '' without one.
    rerank: see search.
  """
  prepared = dataset.open_dataset(path, split)
  scorer, retrieval, texts, videos = search(
      trained, prepared, style=style, rerank=rerank)
  found = {f'zero_shot/{k}': v for k, v in retrieval.metrics.items()}
  config, rows, crops, entities = trained.config, None, None, ()
  if truth:
    rows = probes.read_truth(
        truth, [record.video for record in prepared.metadata()])
    asked = probes.ask_all(scorer, retrieval, videos, rows)
    if config.task == 'pretrain' and config.loss.pem > 0:
      teacher, entities = _teacher(trained)
      crops = probes.label_crops(
          scorer, teacher, _batches(trained, prepared), texts, videos,
          retrieval, rows, area=config.loss.region_area,
          region_rule=config.loss.region_rule,
          ignore_rule=config.prompter.ignore_rule,
          threshold=config.prompter.ignore_threshold,
          crop_share=config.data.image_size / config.data.resize)
      asked |= probes.entity_figures(crops, entities, rows)
    found |= {f'probes/{k}': v for k, v in asked.items()}
  figures = {name.replace('/', '.'): value for name, value in found.items()}
  return Result(figures, trained, prepared, retrieval, rows, crops, entities)


def searches(
    result: Result, count: int = 4
) -> tuple[list[report.Search], list[report.Search]]:
  """The texts that find their video best and worst, with the clips.

  A text with several videos counts by the best of them. The best ones are
  those that leave the next video farthest behind, each of another family if
  the truth is known.
  """
  scores, pairs = result.retrieval.scores, result.retrieval.pairs
  ranks = metrics.text_to_video_ranks(scores, pairs)
  pairs = np.unique(pairs, axis=0)
  best = {}  # text -> (rank, own video)
  for (text, video), rank in zip(pairs, ranks, strict=True):
    best[text] = min(best.get(text, (np.inf, 0)), (int(rank), video))
  own = np.zeros(scores.shape, bool)
  own[tuple(pairs.T)] = True
  ahead = np.where(own, scores, -np.inf).max(1) - np.where(
      own, -np.inf, scores).max(1)
  found = sorted((t for t in best if best[t][0] == 1), key=lambda t: -ahead[t])
  if result.truth:
    families = {}
    for text in found:
      family = result.truth[best[text][1]]['family']
      families.setdefault(family, []).append(text)
    # The best of every family, then the second of every family, ...
    found = [text for _, text in sorted(
        (place, text) for texts in families.values()
        for place, text in enumerate(texts))]
  missed = sorted((t for t in best if best[t][0] > 1),
                  key=lambda t: (-best[t][0], ahead[t]))
  captions = pipeline.record_captions(result.prepared)
  plans = []
  for text in found[:count] + missed[:count]:
    rank, video = best[text]
    notes = [(video, 'its own clip')]
    first = int(scores[text].argmax())
    if first != video:
      notes.append((first, f'came first: “{(captions[first] or [""])[0]}”'))
    plans.append((text, rank, notes))
  clips = iter(read_clips(
      result, [video for _, _, notes in plans for video, _ in notes]))
  shown = [
      report.Search(result.retrieval.texts[text], rank,
                    [report.Clip(next(clips), note) for _, note in notes])
      for text, rank, notes in plans]
  split = len(found[:count])
  return shown[:split], shown[split:]


def regions(result: Result, count: int = 6, seed: int = 0):
  """Some crops that hold their object, drawn at random, to show."""
  crops = result.crops
  if crops is None:
    return []
  among = np.flatnonzero(crops.holds)
  drawn = np.random.default_rng(seed).permutation(among)[:count]
  patch = result.trained.model.config.video.patch_size
  grid = result.trained.config.data.image_size // patch
  shown = []
  for crop, frames in zip(
      drawn, read_clips(result, crops.video[drawn]), strict=True):
    row = result.truth[crops.video[crop]]
    order = np.argsort(-crops.labels[crop])[:5]
    answer = int(crops.answers[crop].argmax())
    shown.append(report.Region(
        frames, crops.region[crop].reshape(grid, grid), row['caption'],
        [(result.entities[i], float(crops.labels[crop, i])) for i in order],
        bool(crops.keep[crop]),
        (result.entities[answer], float(crops.answers[crop, answer])),
        [name for name in probes.names_of(row) if name in result.entities]))
  return shown


def chosen_entities(result: Result) -> list[tuple[str, int]]:
  """See probes.top_entities; empty without crops."""
  if result.crops is None:
    return []
  return probes.top_entities(result.crops, result.entities)


def read_clips(result: Result, records) -> list[np.ndarray]:
  """[uint8[T, H, W, 3]]: clips as the model sees them."""
  wanted, found = set(map(int, records)), {}
  for batch in _batches(result.trained, result.prepared):
    for record, clip in zip(batch['record'], batch['video'], strict=True):
      if int(record) in wanted:
        found[int(record)] = clip.copy()
    if len(found) == len(wanted):
      break
  return [found[int(record)] for record in records]


def log_to_console() -> None:
  """Shows progress lines, without the chatter of other libraries."""
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)

  def ours(record):
    return record.levelno > 30 or 'alpro_jax' in record.pathname

  logging.get_absl_handler().addFilter(ours)


def detail_tables(figures, prefix: str = '') -> dict[str, report.Table]:
  """The probes as tables, for the page."""
  tables = {}
  for title, name in (('Right caption', 'right_caption'),
                      ('Order of frames', 'order')):
    start = f'{prefix}probes.{name}.'
    groups = dict.fromkeys(
        key[len(start):].split('.', 1)[1] for key in figures
        if key.startswith(start))
    rows = [(group.replace('_', ' '),
             figures.get(f'{start}similarity.{group}'),
             figures.get(f'{start}matching.{group}')) for group in groups]
    if rows:
      tables[title] = report.Table(
          ['videos', 'by similarity, %', 'by matching, %'], rows)
  kinds = ('random', 'hard')
  rows = [
      (label, *(figures.get(f'{prefix}probes.vtm.{kind}{part}')
                for kind in kinds))
      for label, part in (
          ('all three rows', ''), ('the pair', '.matched'),
          ('wrong video', '.wrong_video'), ('wrong text', '.wrong_text'))]
  if rows[0][1] is not None:
    rows.append(('always no', probes.MATCHING_PRIOR, probes.MATCHING_PRIOR))
    tables['Match or no match'] = report.Table(
        ['rows', 'random negatives, %', 'hard negatives, %'], rows)
  rows = [
      (label, *(figures.get(f'{prefix}probes.{key}{part}')
                for part in ('', '_misled', '_constant', '_shuffled')))
      for label, key in (
          ('the pseudo-label is true', 'pseudo.right'),
          ('the model says the pseudo-label', 'pem.agrees'),
          ('the model says the truth', 'pem.right'))]
  if rows[0][1] is not None:
    tables['Entities of crops that hold the object'] = report.Table(
        ['share of crops', '%', 'beside a wrong caption, %',
         'one answer for all, %', 'shuffled, %'], rows)
  return tables


def _batches(trained, prepared):
  """This host's rows of every batch of a split."""
  size = trained.mesh.size
  size *= -(-trained.config.eval.batch_size // size)
  share = size // jax.process_count()
  first = jax.process_index() * share
  return pipeline.eval_batches(
      trained.config.data, prepared, batch_size=size,
      rows=slice(first, first + share))


def _teacher(trained):
  text = TextInfo(trained.tokenizer.special, trained.tokenizer.vocab_size)
  task = get_task(trained.config, text, trained.mesh)
  logging.info('prompter: %s', trained.config.prompter.checkpoint)
  teacher = task.load_frozen(
      trained.tokenizer.encode, checkpoints.load_meta, checkpoints.load_params)
  return teacher, task.entities
