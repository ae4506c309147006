"""One way from a model and a prepared split to figures, for every task.

A model that answers questions is asked all questions of the split; every other
one searches: each caption among all videos, each video among all captions. The
same code serves a checkpoint and the parameters of a training.
"""

import collections
import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from alpro_jax import buckets, files, flops, sharding
from alpro_jax.data import dataset, pipeline
from alpro_jax.data.answers import canonical
from alpro_jax.evaluation import familiarity as familiar
from alpro_jax.evaluation import looks, question_answering, retrieval
from alpro_jax.evaluation.question_answering import AnswerResult
from alpro_jax.evaluation.retrieval import Retrieval, Scoring, Tradeoff
from alpro_jax.evaluation.scorer import Scorer, TextFeatures, VideoFeatures
from alpro_jax.evaluation.trained import TrainedModel
from alpro_jax.evaluation.trained import load as load_trained
from alpro_jax.train import checkpoints

SCORINGS = ('auto', *retrieval.RULES)
# Clips of training and held-out ones that a summary is made of, and how many at a time.
_CLIPS, _CLIPS_AT_ONCE = 2000, 250


class EvaluationResult(NamedTuple):
  """What a model does on a split."""

  trained: TrainedModel
  prepared: dataset.PreparedDataset  # The records that were asked about.
  style: str  # Of the captions, or kind of the questions; '' is all.
  found: Retrieval | AnswerResult  # With metrics and intervals.


def evaluate(trained: TrainedModel, prepared, *, style: str = '') -> EvaluationResult:
  """Evaluates a model by what it was trained for, as its data and eval options say.

  Raises:
    ValueError: if the split has nothing to ask, of this style of captions or
      kind of questions.
  """
  prepared = select(trained, prepared, (style,))
  scorer, videos = make_scorer(trained), batches(trained, prepared)
  asked = _asked(trained, prepared, (style,))
  if not trained.answers_questions:
    found, _, _ = retrieval.retrieve(scorer, videos, asked, choose_scoring(trained))
    return EvaluationResult(trained, prepared, style, found)
  if problem := _none_known(trained, prepared, asked):
    logging.warning('All answers will be wrong: %s', problem)
  found = question_answering.answer(scorer, videos, asked, trained.answers)
  return EvaluationResult(trained, prepared, style, found)


def select(trained: TrainedModel, prepared, styles: Collection[str] = ('',)):
  """Returns the records of a split that have something to ask.

  The others are no competitors: MSRVTT's 1k-A has 1,000 videos, the test split
  of MSRVTT-QA 2,990.

  Raises:
    ValueError: if there is none.
  """
  chosen = prepared.select(lambda record: _asked_of(trained, record, styles))
  if len(chosen):
    return chosen
  records = prepared.metadata()
  if trained.answers_questions:
    task, what, other = 'question answering', 'question', 'captions'
    known = sorted({asked.kind for record in records for asked in record.questions})
  else:
    task, what, other = 'retrieval', 'caption', 'questions'
    known = sorted({style for record in records for style in record.styles})
  problem = f'split {prepared.split!r} of {prepared.path} has no {what}'
  if known:
    raise ValueError(
      f'{problem} of style {" or ".join(map(repr, sorted(styles)))}, only of {known}; choose '
      'another --style, or none.'
    )
  problem += f's, which {task} needs'
  if any(getattr(record, other) for record in records):
    raise ValueError(f'{problem}; it has {other}, for a checkpoint of another task.')
  raise ValueError(f'{problem}; prepare it with a file of {what}s.')


def recall_against_cost(evaluated: EvaluationResult) -> list[Tradeoff]:
  """What fewer pairs for the fusion encoder would have cost in recall."""
  trained, found = evaluated.trained, evaluated.found
  data = trained.config.data
  return retrieval.recall_against_k(
    found,
    flops=lambda pairs: flops.retrieval(
      trained.model.config,
      texts=len(found.texts),
      videos=len(evaluated.prepared),
      pairs=pairs,
      frames=data.frames,
      image_size=data.image_size,
      length=data.max_text_tokens,
    ),
  )


def choose_scoring(trained: TrainedModel) -> Scoring:
  """Returns how retrieval is scored, as config.eval says.

  A head that was not trained never decides: the similarity does instead.

  Raises:
    ValueError: for an unknown rule, or if matching is asked of a model without
      a head for it.
  """
  options = trained.config.eval
  rule, why = options.scoring, trained.why_no_matching
  if rule not in SCORINGS:
    raise ValueError(f'config.eval.scoring={rule!r} is unknown; choose one of {SCORINGS}.')
  if rule not in ('auto', 'similarity') and not trained.model.config.match:
    raise ValueError(
      f'config.eval.scoring={rule!r} asks for matching, which this model '
      "was trained without; choose 'similarity' or 'auto'."
    )
  if (rule != 'auto' or why) and trained.why_no_similarity:
    logging.warning('the similarity says little: %s.', trained.why_no_similarity)
  if rule == 'similarity':
    return Scoring(rule, dual_softmax=options.dual_softmax)
  if why and rule != 'auto':
    logging.warning('the similarity is used, not config.eval.scoring=%s: %s.', rule, why)
  if why:
    return Scoring('similarity', 0, options.dual_softmax, why)
  rerank_k = options.rerank_k
  if rerank_k and (blind := trained.why_no_similarity):
    rerank_k = 0
    logging.warning('matching reads all pairs, not config.eval.rerank_k of them: %s.', blind)
  return Scoring('matching' if rule == 'auto' else rule, rerank_k, options.dual_softmax)


def make_scorer(trained: TrainedModel) -> Scorer:
  """Returns what encodes and scores, as config.eval says."""
  options = trained.config.eval
  return Scorer.of(
    trained,
    batch_size=options.batch_size,
    pairs_per_call=options.pairs_per_call,
    # Checkpoints of older versions do not have it.
    folder=options.get('folder', ''),
  )


def batches(trained: TrainedModel, prepared) -> Iterator[dict]:
  """This host's rows of every batch of a split, without texts."""
  size = trained.mesh.size
  size *= -(-trained.config.eval.batch_size // size)
  share = size // jax.process_count()
  first = jax.process_index() * share
  return pipeline.eval_batches(
    trained.config.data, prepared, batch_size=size, rows=slice(first, first + share)
  )


def familiarity(
  trained: TrainedModel, training: Sequence[tuple[Any, Collection[str]]], held_out
) -> familiar.Familiarity:
  """Summarises what a model was trained on, and how sure it may be.

  An even spread of at most 2,000 clips of each set is encoded; the pieces of every
  training text count.

  Args:
    trained: the model.
    training: PreparedDatasets of its training, each with the styles of its texts, '' for all.
    held_out: a PreparedDataset that it was not trained on.
  Raises:
    ValueError: if a set has nothing to ask, or there are fewer than 20 clips.
  """
  scorer, length = make_scorer(trained), trained.config.data.max_text_tokens
  numbers = held_out.metadata().numbers
  if any(
    x.digest == held_out.digest and np.isin(numbers, x.metadata().numbers).any()
    for x, _ in training
  ):  # Two parts of one split have its digest, and no record in common.
    raise ValueError(f'{held_out.name} is what the model was trained on; pass a held-out split.')
  training = [(select(trained, x, styles), styles) for x, styles in training]
  held_out = select(trained, held_out)
  seen = np.zeros(trained.tokenizer.vocab_size, bool)
  for prepared, styles in training:
    for row in _asked(trained, prepared, styles):
      for ids in familiar.pieces(trained.tokenizer, _texts(row), length):
        seen[ids] = True
  seen[trained.tokenizer.special.unk] = False  # Unknown words are not all the same.
  size, held_out = _CLIPS // len(training), _spread(held_out, _CLIPS)
  parts = [_vectors(trained, scorer, _spread(x, size), styles) for x, styles in training]
  clips, texts, shown = (np.concatenate(x) for x in zip(*parts, strict=True))
  *rest, _ = _vectors(trained, scorer, held_out)
  own = familiar.pieces(
    trained.tokenizer, [x for row in _asked(trained, held_out) for x in _texts(row)], length
  )
  unseen = [(~seen[ids]).mean() for ids in own if len(ids)]
  # Texts of few clips are alike. Else the largest share of n is as good as 1 in n + 1.
  kept = min(familiar.KEPT, len(unseen) / (len(unseen) + 1))
  enough = len(held_out) >= familiar.ENOUGH
  videos = familiar.fit_cloud(clips, rest[0], familiar.VIDEO_DIRECTIONS)
  return familiar.Familiarity(
    videos,
    familiar.fit_cloud(texts, rest[1], familiar.TEXT_DIRECTIONS, familiar.TEXT_SLACK),
    seen,
    looks.conformal(unseen, kept) if enough else np.inf,
    np.array([len(x) for x in (clips, texts, *rest)]),
    **_calibrate(trained, scorer, held_out),
    frames=None if np.isfinite(videos.limit) else looks.fit(shown),
  )


def summarise(trained: TrainedModel, held_out) -> familiar.Familiarity:
  """Stores the summary of a checkpoint's training sets beside its parameters.

  Args:
    trained: a model of a checkpoint, whose sets lie where they were in training.
    held_out: see familiarity.
  Raises:
    FileNotFoundError: if a training set is no longer there.
    OSError: if the folder cannot be written to.
    ValueError: see familiarity; or if the checkpoint names no training set.
  """
  sources = collections.defaultdict(set)
  for source in trained.config.data.sources:
    sources[source['path'], source['split']].add(source.get('style', ''))
  if not sources:
    raise ValueError(
      f'{trained.origin.path} was converted from weights of others, whose training set is not '
      'here to be summarised; leave --familiarity out, or train the model on clips of your own.'
    )
  training = [(dataset.open_dataset(*x), styles) for x, styles in sources.items()]
  known = familiarity(trained, training, held_out)
  if jax.process_index() == 0:
    known.save(trained.origin.path)
  return known


def summarise_run(workdir, config, newest: int, best: int | None) -> None:
  """Summarises the newest and the best checkpoint of a run, as far as that is not done.

  What prevents it is said; the run is whole without.

  Args:
    workdir: of a run that is finished.
    config: its options; the first of eval.sources is held out.
    newest, best: steps of these checkpoints, alike on all processes; see loop.Outcome.
  """
  asked = config.eval.sources[0]
  for step in dict.fromkeys([newest, newest if best is None else best]):
    place = files.join(files.absolute(workdir), checkpoints.FOLDER, str(step))
    if files.exists(files.join(place, familiar.FILE)):
      continue
    logging.info('step %s: summarising what it was trained on, to mark what is far', step)
    try:
      model = load_trained(place, mesh=sharding.mesh_from_config(config.mesh))
      known = summarise(model, dataset.open_dataset(asked.path, asked.split))
      # It was written into the copy here.
      if buckets.is_address(place) and jax.process_index() == 0:
        known.save(place)
      logging.info('step %s: summarised %s', step, known)
    except (OSError, ValueError) as error:
      logging.warning('nothing will be marked as far from training: %s', error)


def _spread(prepared, most):
  """Up to `most` records, evenly chosen."""
  number, every = itertools.count(), -(-len(prepared) // most)
  return prepared.select(lambda record: next(number) % every == 0)


def _vectors(trained, scorer, prepared, styles=('',)):
  """Vectors of clips and of their texts, and looks; a few clips at a time: tokens are large."""
  clips, texts, shown = [], [], []
  for start in range(0, len(prepared), _CLIPS_AT_ONCE):
    number = itertools.count(-start)
    part = prepared.select(lambda record, n=number: 0 <= next(n) < _CLIPS_AT_ONCE)
    videos = scorer.embed_videos(batches(trained, part), len(part), look=True)
    clips.append(familiar.video_vectors(videos))
    shown.append(videos.look)
    asked = [text for row in _asked(trained, part, styles) for text in _texts(row)]
    distinct, row = np.unique(asked, return_inverse=True)
    texts.append(familiar.text_vectors(scorer.embed_texts(distinct.tolist()))[row])
  return np.concatenate(clips), np.concatenate(texts), np.concatenate(shown)


def _calibrate(trained, scorer, held_out):
  """What margins and logits of a held-out split are worth, by their names in Familiarity."""
  held_out = _spread(held_out, _CLIPS_AT_ONCE * 2)
  asked = _asked(trained, held_out)
  if trained.answers_questions:
    found = question_answering.answer(scorer, batches(trained, held_out), asked, trained.answers)
    place = {canonical(answer): i for i, answer in reversed([*enumerate(trained.answers)])}
    label = np.array([place.get(canonical(one.answer), -1) for one in found.questions])
    known = label >= 0
    enough = known.sum() >= familiar.ENOUGH
    fitted = familiar.fit_temperature(found.logits[known], label[known]) if enough else np.nan
    return {'match': np.full(2, np.nan), 'answer_temperature': fitted}
  names, pairs = retrieval.list_pairs(asked)
  texts = scorer.embed_texts(names)
  videos = scorer.embed_videos(batches(trained, held_out), len(held_out))
  return {
    'match': _calibrate_match(trained, scorer, texts, videos, pairs),
    'entity_temperature': _calibrate_entities(trained, scorer, videos, asked),
  }


def _calibrate_match(trained, scorer, texts: TextFeatures, videos: VideoFeatures, pairs):
  """Each clip with a text of its own and with the nearest other, as many of each."""
  if not trained.knows_matching or len(texts.feature) < 2:
    return np.full(2, np.nan)
  near = videos.feature @ texts.feature.T
  near[pairs[:, 1], pairs[:, 0]] = -np.inf
  video, first = np.unique(pairs[:, 1], return_index=True)
  if len(video) < familiar.ENOUGH:
    return np.full(2, np.nan)
  text = np.stack([pairs[first, 0], near[video].argmax(1)], 1).ravel()
  margin = scorer.matching_by_video(texts, videos, text, video.repeat(2)).margin
  return familiar.fit_match(margin, np.arange(len(text)) % 2 == 0)


def _calibrate_entities(trained, scorer, videos, captions):
  """Clips whose captions name one of the entities, and no other."""
  names = (trained.meta or {}).get('entities', ())
  if not names or not trained.model.config.embed_size:
    return np.nan
  pattern = {re.escape(name.lower()): i for i, name in enumerate(names)}
  named = [
    {i for name, i in pattern.items() if re.search(rf'\b{name}\b', ' '.join(row).lower())}
    for row in captions
  ]
  one = np.array([len(found) == 1 for found in named])
  if one.sum() < familiar.ENOUGH:
    return np.nan
  logits = scorer.entities(videos.feature[one], names, trained.entity_templates)
  return familiar.fit_temperature(logits, np.array([min(x) for x in named if len(x) == 1]))


def figure_names(trained: TrainedModel, prepared, style: str) -> list[str]:
  """The figures with an interval that `evaluate` will give, by name; scores nothing.

  Raises:
    ValueError: if there is no question whose answer can be given.
  """
  asked = _asked(trained, prepared, (style,))
  if not trained.answers_questions:
    return retrieval.figure_names(
      choose_scoring(trained),
      retrieval.list_pairs(asked)[1],
      similarity=trained.model.config.embed_size > 0,
    )
  if problem := _none_known(trained, prepared, asked):
    raise ValueError(problem)
  kinds = question_answering.list_kinds(question.kind for row in asked for question in row)
  return ['accuracy', *(f'accuracy_{kind}' for kind in kinds)]


def _asked_of(trained, record, styles):
  """The questions of a record, or its captions, of some styles; '' is all."""
  of = record.questions_of if trained.answers_questions else record.captions_of
  return of('') if '' in styles else [one for style in sorted(styles) for one in of(style)]


def _asked(trained, prepared, styles=('',)):
  return [_asked_of(trained, record, styles) for record in prepared.metadata()]


def _texts(row):
  """Captions as they are, and questions without their answers."""
  return [one if isinstance(one, str) else one[0] for one in row]


def _none_known(trained, prepared, questions):
  """Says that no question can be answered rightly; '' if some can."""
  known = set(map(canonical, trained.answers))
  answers = [question.answer for row in questions for question in row]
  if not known.isdisjoint(map(canonical, answers)):
    return ''
  return (
    f'not one of the {len(answers)} questions of {prepared.path}, split '
    f'{prepared.split!r}, has an answer among the {len(trained.answers)} '
    f'that the model chooses from: they are answered by {list(dict.fromkeys(answers))[:5]}, '
    f'the list begins with {list(trained.answers[:5])}.'
  )
