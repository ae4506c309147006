"""What a pre-trained model knows without fine-tuning, and a page about it."""

import dataclasses
import pathlib

import numpy as np

from alpro_jax.data import dataset
from alpro_jax.evaluation import cases, facts, page, split
from alpro_jax.evaluation.retrieval import Retrieval, retrieve
from alpro_jax.evaluation.trained import TrainedModel, load_teacher
from examples.shapes import entity_probes, probes, report


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
  trained: TrainedModel
  prepared: dataset.PreparedDataset
  retrieval: Retrieval
  truth: list[dict] | None
  crops: entity_probes.Crops | None
  entities: tuple[str, ...]


def evaluate(trained: TrainedModel, path, name: str, *, style: str = '', truth: str = '') -> Result:
  """Zero-shot retrieval and, where the truth is known, all probes.

  Args:
    trained: the model.
    path: of the prepared set.
    name: of the split.
    style: of the captions, '' for all.
    truth: truth.jsonl of the split, '' without one.
  """
  prepared = split.select(trained, dataset.open_dataset(path, name), style=style)
  config, rows, teacher, crops, entities = trained.config, None, None, None, ()
  if truth:
    rows = probes.read_truth(
      truth,
      [record.video for record in prepared.metadata()],
      [record.captions for record in prepared.metadata()],
    )
    if config.task == 'pretrain' and config.loss.pem > 0:
      teacher, entities = load_teacher(trained)
  scorer = split.make_scorer(trained)
  retrieval, texts, videos = retrieve(
    scorer,
    split.batches(trained, prepared),
    prepared.captions(style),
    split.choose_scoring(trained),
  )
  found = {f'zero_shot/{k}': v for k, v in retrieval.metrics.items()}
  if truth:
    asked = probes.ask_all(scorer, retrieval, videos, rows)
    if teacher is not None:
      crops = entity_probes.label_crops(
        scorer,
        teacher,
        split.batches(trained, prepared),
        texts,
        videos,
        retrieval,
        rows,
        area=config.loss.region_area,
        region_rule=config.loss.region_rule,
        crop_share=config.data.image_size / config.data.resize,
      )
      asked |= entity_probes.entity_figures(crops, entities, rows)
    found |= {f'probes/{k}': v for k, v in asked.items()}
  figures = {name.replace('/', '.'): value for name, value in found.items()}
  return Result(figures, trained, prepared, retrieval, rows, crops, entities)


def searches(result: Result, count: int = 4) -> tuple[list[page.Search], list[page.Search]]:
  """The texts that find their video best and worst, with the clips.

  See cases.choose_searches; the best ones are each of another family if the
  truth is known.
  """
  retrieval = result.retrieval
  first, missed = cases.choose_searches(retrieval)
  if result.truth:
    first = cases.take_turns(first, [result.truth[case.video]['family'] for case in first])
  chosen = first[:count], missed[:count]
  captions = result.prepared.captions()
  plans = []
  for case in (case for group in chosen for case in group):
    notes = [(case.video, 'its own clip')]
    first = int(retrieval.order.top[0].item[case.text, 0])
    if first != case.video:
      notes.append((first, f'came first: “{(captions[first] or [""])[0]}”'))
    plans.append((case, notes))
  clips = iter(_read_clips(result, [video for _, notes in plans for video, _ in notes]))
  shown = [
    page.Search(
      retrieval.texts[case.text],
      case.rank,
      [page.ShownClip(next(clips), note, right=video == case.video) for video, note in notes],
    )
    for case, notes in plans
  ]
  return shown[: len(chosen[0])], shown[len(chosen[0]) :]


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
  for crop, frames in zip(drawn, _read_clips(result, crops.video[drawn]), strict=True):
    row = result.truth[crops.video[crop]]
    order = np.argsort(-crops.labels[crop])[:5]
    answer = int(crops.answers[crop].argmax())
    shown.append(
      report.Region(
        frames,
        crops.region[crop].reshape(grid, grid),
        row['caption'],
        [(result.entities[i], float(crops.labels[crop, i])) for i in order],
        bool(crops.keep[crop]),
        (result.entities[answer], float(crops.answers[crop, answer])),
        [name for name in entity_probes.names_of(row) if name in result.entities],
      )
    )
  return shown


def chosen_entities(result: Result) -> list[tuple[str, int]]:
  """See entity_probes.top_entities; empty without crops."""
  if result.crops is None:
    return []
  return entity_probes.top_entities(result.crops, result.entities)


def detail_tables(figures, prefix: str = '') -> dict[str, page.Table]:
  """The probes as tables, for the page."""
  tables = {}
  for title, name in (('Right caption', 'right_caption'), ('Order of frames', 'order')):
    start = f'{prefix}probes.{name}.'
    groups = dict.fromkeys(
      key[len(start) :].split('.', 1)[1] for key in figures if key.startswith(start)
    )
    rows = [
      (
        group.replace('_', ' '),
        figures.get(f'{start}similarity.{group}'),
        figures.get(f'{start}matching.{group}'),
      )
      for group in groups
    ]
    if rows:
      tables[title] = page.Table(['videos', 'by similarity, %', 'by matching, %'], rows)
  kinds = ('random', 'hard')
  rows = [
    (label, *(figures.get(f'{prefix}probes.vtm.{kind}{part}') for kind in kinds))
    for label, part in (
      ('all three rows', ''),
      ('the pair', '.matched'),
      ('wrong video', '.wrong_video'),
      ('wrong text', '.wrong_text'),
    )
  ]
  if rows[0][1] is not None:
    rows.append(('always no', probes.MATCHING_PRIOR, probes.MATCHING_PRIOR))
    tables['Match or no match'] = page.Table(
      ['rows', 'random negatives, %', 'hard negatives, %'], rows
    )
  rows = [
    (
      label,
      *(
        figures.get(f'{prefix}probes.{key}{part}')
        for part in ('', '_misled', '_constant', '_shuffled')
      ),
    )
    for label, key in (
      ('the pseudo-label is true', 'pseudo.right'),
      ('the model says the pseudo-label', 'pem.agrees'),
      ('the model says the truth', 'pem.right'),
    )
  ]
  if rows[0][1] is not None:
    tables['Entities of crops that hold the object'] = page.Table(
      ['share of crops', '%', 'beside a wrong caption, %', 'one answer for all, %', 'shuffled, %'],
      rows,
    )
  return tables


def write_page(
  result: Result, folder: pathlib.Path, seconds: float, checkpoint: str
) -> pathlib.Path:
  """Writes report.html and report.json about one model on one split.

  Args:
    result: of `evaluate`.
    folder: for the page, beside card.html.
    seconds: that the evaluation took.
    checkpoint: of the model, as the page is to name it.
  """
  best, worst = searches(result)
  prepared = result.prepared
  return report.write(
    report.Report(
      title=f'{pathlib.Path(checkpoint).name} on '
      f'{pathlib.Path(prepared.path).name}, {prepared.split}',
      notes=[
        'Zero-shot retrieval: every text against every video. '
        f'{facts.pairs_scored(result.retrieval)} Ties count against the '
        'model.'
      ],
      figures=result.figures,
      headlines=headlines(result.figures),
      best=best,
      worst=worst,
      regions=regions(result),
      entities=chosen_entities(result),
      details=detail_tables(result.figures),
      stages=[report.Stage('evaluate', seconds)],
      files={
        'checkpoint': checkpoint,
        'data': prepared.path,
        'how it was measured': str(folder / 'card.html'),
      },
    ),
    folder,
  )


def headlines(figures) -> list[report.Headline]:
  """The figures of retrieval, without targets."""
  chance = figures['zero_shot.t2v_r1_chance']
  lines = []
  for direction, query, found in (('t2v', 'text', 'video'), ('v2t', 'video', 'text')):
    for k in (1, 5, 10):
      meaning = f'Share of {query}s whose {found} is among the first {k}.'
      if (direction, k) == ('t2v', 1):
        meaning += (
          f' 95 % interval {figures["zero_shot.t2v_r1_low"]:.1f} to '
          f'{figures["zero_shot.t2v_r1_high"]:.1f} %; equal texts of '
          f'several videos allow {figures["zero_shot.t2v_r1_ceiling"]:.1f} % '
          'at most.'
        )
      lines.append(
        report.Headline(
          f'zero_shot.{direction}_r{k}',
          f'{query} to {found}, R@{k}',
          meaning,
          None,
          min(k * chance, 100) if direction == 't2v' else None,
        )
      )
  return lines


def _read_clips(result, records):
  return cases.read_clips(result.trained.config.data, result.prepared, records)
