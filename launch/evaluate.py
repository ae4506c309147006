"""Evaluates any checkpoint on any prepared split, and writes its card.

A model that answers questions is asked all questions of the split; every other
one ranks every caption's video and every video's caption, zero-shot if it was
pre-trained. Metrics are printed with their 95 % intervals; --output gets
card.json, card.html, and a line per question in answers.jsonl or per caption in
ranks.jsonl.

The size of the model always comes from the checkpoint, and so do all options
unless --config is given: then its `eval`, and its frames, image and text
lengths in `data`, count. A flag counts more than either.

Zero-shot retrieval of a pre-trained model, and of the same with 8 frames:

  python launch/evaluate.py --checkpoint=runs/pretrain --data=data/msrvtt \\
    --split=test --output=runs/pretrain/msrvtt
  python launch/evaluate.py --checkpoint=runs/pretrain --data=data/msrvtt \\
    --split=test --frames=8

A fine-tuned model on the held-out sets of its config, scored as the paper does
but for the 128 nearest, and how much recall that costs:

  python launch/evaluate.py --checkpoint=runs/msrvtt \\
    --config=configs/finetune_msrvtt_retrieval.py --rerank_k=128 \\
    --output=runs/msrvtt/test
  python launch/evaluate.py --checkpoint=runs/msrvtt --data=data/msrvtt \\
    --split=test --recall_table

Question answering, by the step that was best during training:

  python launch/evaluate.py --checkpoint=runs/msvd_qa/checkpoints/2400 \\
    --data=data/msvd_qa --split=test --output=runs/msvd_qa/test

What clips and texts are familiar to a model, so that others are marked as far from
its training, and how sure it may be; stored in the checkpoint's folder:

  python launch/evaluate.py --checkpoint=runs/msrvtt --data=data/msrvtt \\
    --split=test --familiarity

Models between a fine-tuned one and its start, by the share of the fine-tuned (WiSE-FT), as
a table; launch/convert.py --interpolate writes the one that you choose:

  python launch/evaluate.py --checkpoint=runs/msrvtt --interpolate=runs/clip \\
    --alphas=0,0.25,0.5,0.75,1 --data=data/msrvtt --split=val

A model of the demo, with the truth about the clips, for report.html with all
probes:

  python launch/evaluate.py --checkpoint=runs/demo/pretrain \\
    --data=runs/demo/data/shapes --split=test \\
    --truth=runs/demo/world/test/truth.jsonl --output=runs/demo/test
"""

try:
  from launch import command
except ModuleNotFoundError:
  import not_installed  # noqa: F401

import os
import pathlib
import time

import jax
from absl import flags, logging

from alpro_jax import files
from alpro_jax.data.annotations import printable
from configs import common

_CONFIG = command.config_flag('Config file; without one the options of the run count.')
_CHECKPOINT = flags.DEFINE_string('checkpoint', None, command.MODEL)
_DATA = flags.DEFINE_string(
  'data', '', 'Prepared set; by default every entry of config.eval.sources.'
)
_SPLIT = flags.DEFINE_string('split', '', "Split of the set ('test').")
_STYLE = flags.DEFINE_string(
  'style', '', 'Use captions of this style, or questions of this kind, only.'
)
_FRAMES = flags.DEFINE_integer('frames', 0, 'Frames of every clip.')
_IMAGE_SIZE = flags.DEFINE_integer(
  'image_size', 0, 'Side of the image; what is cropped from scales along.'
)
_SCORING = flags.DEFINE_enum(
  'scoring',
  None,
  ['auto', 'matching', 'matching+similarity', 'similarity'],
  'What orders the results of retrieval; auto: matching. If that was never '
  'trained the similarity does, and the card says why.',
)
_RERANK_K = flags.DEFINE_integer(
  'rerank_k', None, 'Read the k nearest by similarity only; 0: all pairs.'
)
_DUAL_SOFTMAX = flags.DEFINE_bool('dual_softmax', None, 'Report the order by dual softmax beside.')
_RECALL_TABLE = flags.DEFINE_bool(
  'recall_table', False, 'Add a table of recall against k and cost.'
)
_FAMILIARITY = flags.DEFINE_bool(
  'familiarity',
  False,
  'Summarise the training set, and calibrate on this split, which the model must not have '
  'been trained on; no figures.',
)
_INTERPOLATE = flags.DEFINE_string(
  'interpolate', '', 'Checkpoint that the model was fine-tuned from, to evaluate those between.'
)
_ALPHAS = flags.DEFINE_list(
  'alphas', ['0', '0.25', '0.5', '0.75', '1'], 'With --interpolate: shares of the fine-tuned model.'
)
_KEEP = flags.DEFINE_string(
  'keep',
  '',
  'With --interpolate: patterns of parameters that stay as the model has them, as those of '
  'config.optimizer.freeze.',
)
_TRUTH = flags.DEFINE_string('truth', '', 'truth.jsonl of the split, for the probes.')
_TOKENIZER = flags.DEFINE_string(
  'tokenizer', '', 'Its file: only for checkpoints of earlier versions, if it has moved.'
)
_AVERAGED = flags.DEFINE_bool(
  'averaged',
  True,
  'Of a run with train.ema_decay: the averaged weights, not those of its last step.',
)
_OUTPUT = flags.DEFINE_string(
  'output', '', 'Folder for the card; one below it for each of several sets.'
)

# Options of config.data that decide what the model is shown.
_SHOWN = (
  'frames',
  'eval_sampling',
  'image_size',
  'resize',
  'resize_mode',
  'max_text_tokens',
  'threads',
  'verify',
)


def main():
  if not _CHECKPOINT.value:
    raise ValueError(
      '--checkpoint is needed, e.g. --checkpoint=runs/pretrain --data='
      'data/msrvtt --split=test; see --help.'
    )
  command.start()
  evaluate()


def evaluate():
  """Does what the flags say."""
  from alpro_jax import api
  from alpro_jax.data import dataset
  from alpro_jax.evaluation import split, trained

  start = time.monotonic()
  # One step, though a run may be saving others.
  found = api.find(_CHECKPOINT.value)
  config = choose_options(found.meta)
  splits = [
    (dataset.open_dataset(source['path'], source['split']), source['style'])
    for source in config.eval.sources
  ]
  if _FAMILIARITY.value:
    _check_alone(splits)
  names = [_card_name(*one) for one in splits]
  if _OUTPUT.value and len(set(names)) < len(names):
    raise ValueError(
      f'the cards of {len(names)} sets would have the names {names} in '
      f'{_OUTPUT.value}, and one would overwrite another; evaluate them one '
      'at a time, with --data, --split and an --output of its own.'
    )
  if _OUTPUT.value:  # Hours before it is written to.
    with files.into(_OUTPUT.value):
      pass
  tokenizer = _TOKENIZER.value
  if not tokenizer and _CONFIG.value and files.exists(_CONFIG.value.data.tokenizer):
    tokenizer = _CONFIG.value.data.tokenizer
  model = trained.load(found, config=config, tokenizer=tokenizer, averaged=_AVERAGED.value)
  if _RECALL_TABLE.value and not split.choose_scoring(model).reads:
    raise ValueError(
      '--recall_table is about pairs that the fusion encoder reads, but '
      f'{_CHECKPOINT.value} is scored by similarity '
      f'({model.why_no_matching or "as asked"}); leave it out.'
    )
  if _FAMILIARITY.value:
    _summarise(model, splits)
    return
  if _INTERPOLATE.value:
    _sweep(found, model, splits)
    return
  for prepared, style in splits:
    _evaluate(model, prepared, style, several=len(splits) > 1)
  print(f'{time.monotonic() - start:.1f} s in all.')


def _sweep(found, model, splits):
  """Prints the figures of models between the start and this one, a column for each share."""
  from alpro_jax import api
  from alpro_jax.evaluation import split
  from alpro_jax.tasks.shared import abstract_params
  from alpro_jax.weights import interpolation

  alone = ('output', 'truth', 'recall_table')
  if given := [f'--{name}' for name in alone if flags.FLAGS[name].value]:
    raise ValueError(
      f'{", ".join(given)} is of one model, and --interpolate of several; write the one that you '
      'choose with launch/convert.py --interpolate, and evaluate it.'
    )
  try:
    alphas = [float(alpha) for alpha in _ALPHAS.value]
  except ValueError as error:
    raise ValueError(f'--alphas={",".join(_ALPHAS.value)} are no numbers.') from error
  for alpha in alphas:
    interpolation.check_alpha(alpha)
  abstract = abstract_params(model.model, model.mesh)
  start = interpolation.load_start(api.find(_INTERPOLATE.value), found, abstract, _KEEP.value)
  for only, what in ((start.only_tuned, 'stay as they are in'), (start.only_start, 'are not in')):
    if only:
      logging.warning('%d parameters %s %s: %s', len(only), what, found.folder, ', '.join(only))
  for prepared, style in splits:
    rows: dict[str, dict[float, float]] = {}
    for alpha in alphas:
      between = model._replace(params=interpolation.interpolate(model.params, start.params, alpha))
      for name, value in split.evaluate(between, prepared, style=style).found.metrics.items():
        rows.setdefault(name, {})[alpha] = value
    if jax.process_index() == 0:
      print(f'{_card_name(prepared, style)}, by the share of {found.folder}')
      print(f'  {"":<46}' + ''.join(f'{alpha:>10g}' for alpha in alphas))
      for name, values in rows.items():
        if not name.endswith(('_low', '_high')):
          cells = (f'{values[alpha]:.2f}' if alpha in values else '' for alpha in alphas)
          print(f'  {printable(name):<46}' + ''.join(f'{cell:>10}' for cell in cells))


def _check_alone(splits):
  """Raises ValueError for flags that have no place beside --familiarity."""
  if _CONFIG.value is not None or _FRAMES.value or _IMAGE_SIZE.value or len(splits) > 1:
    raise ValueError(
      '--familiarity is about clips as the model was trained on them, and one held-out split; '
      'pass --data and --split, and neither --config nor --frames nor --image_size.'
    )
  for flag, given in (
    ('averaged=False', not _AVERAGED.value),
    ('style', _STYLE.value),
    ('output', _OUTPUT.value),
    ('interpolate', _INTERPOLATE.value),
    ('truth', _TRUTH.value),
    ('recall_table', _RECALL_TABLE.value),
    ('scoring', _SCORING.value is not None),
    ('rerank_k', _RERANK_K.value is not None),
    ('dual_softmax', _DUAL_SOFTMAX.value is not None),
  ):
    if given:
      raise ValueError(
        f'--{flag} has no place beside --familiarity, which writes a summary of the checkpoint '
        'into its folder, and no figures; leave it out.'
      )


def _summarise(model, splits):
  """Stores what is familiar beside the parameters."""
  from alpro_jax.evaluation import familiarity, split

  known = split.summarise(model, splits[0][0])
  if jax.process_index() == 0:
    print(f'Written: {model.origin.path}/{familiarity.FILE}, of {known}.')


def choose_options(meta):
  """Returns the options of a run, with those of --config and the flags.

  Raises:
    ValueError: if --config, or a flag, asks for what the checkpoint is not.
  """
  name = _CHECKPOINT.value
  config, missing = command.with_defaults(meta['config'])
  if missing and 'train' in meta['config']:  # An export has no options of a run.
    logging.warning(
      'the run of %s is older than these options; their present defaults count: %s', name, missing
    )
  answers = config.task == 'question_answering'
  if _CONFIG.value is not None:
    _check_fits(name, meta, _CONFIG.value)
  for flag, given in (
    ('scoring', _SCORING.value is not None),
    ('truth', _TRUTH.value),
    ('rerank_k', _RERANK_K.value is not None),
    ('dual_softmax', _DUAL_SOFTMAX.value is not None),
    ('recall_table', _RECALL_TABLE.value),
  ):
    if answers and given:
      raise ValueError(
        f'--{flag} is of retrieval, but {name} was trained to answer questions; leave it out.'
      )
  with config.ignore_type():
    if _CONFIG.value is not None:
      config.eval = _CONFIG.value.eval
      for option in _SHOWN:
        config.data[option] = _CONFIG.value.data[option]
    if _DATA.value:
      config.eval.sources = (common.source(_DATA.value, split='test'),)
    if not config.eval.sources:
      raise ValueError(
        'there is nothing to evaluate on: the model was trained without held-out clips, as it is '
        'on fewer than 20 videos; pass --data and --split, or a --config with eval.sources.'
      )
    config.eval.sources = tuple(
      common.source(
        source['path'], split=_SPLIT.value or source['split'], style=_STYLE.value or source['style']
      )
      for source in config.eval.sources
    )
    if _TRUTH.value and len(config.eval.sources) > 1:
      raise ValueError(
        f'--truth is of one split, but there are '
        f'{len(config.eval.sources)}; choose one with --data and --split.'
      )
    _change(config)
  return config


def _change(config):
  """Makes a config follow the flags about frames and scoring."""
  if _FRAMES.value:
    config.data.frames = _FRAMES.value
  if _IMAGE_SIZE.value:
    data = config.data
    data.resize = round(data.resize * _IMAGE_SIZE.value / data.image_size)
    data.image_size = _IMAGE_SIZE.value
  for option, flag in (
    ('scoring', _SCORING),
    ('rerank_k', _RERANK_K),
    ('dual_softmax', _DUAL_SOFTMAX),
  ):
    if flag.value is not None:
      config.eval[option] = flag.value


def _check_fits(name, meta, asked):
  """Refuses a --config of another task, size or list of answers."""
  from alpro_jax.data.answers import canonical, read_answers
  from alpro_jax.train import identity

  task = meta['config']['task']
  if (asked.task == 'question_answering') != (task == 'question_answering'):
    raise ValueError(
      f'--config has task={asked.task!r}, but {name} was trained for '
      f'{task!r}, which cannot do that; pass a config of its own task.'
    )
  identity.check_sizes(name, meta['model'], asked.model)
  if task == 'question_answering' and asked.data.answers:
    listed = read_answers(asked.data.answers)
    if [*map(canonical, listed)] != [*map(canonical, meta['answers'])]:
      raise ValueError(
        f'{asked.data.answers} lists {len(listed)} answers that are not '
        f'the {len(meta["answers"])} which {name} was trained with; pass '
        "--config.data.answers='' to use those."
      )


def _card_name(prepared, style):
  name = (os.path.basename(prepared.path), prepared.split, style)
  return '-'.join(filter(None, name))


def _evaluate(model, prepared, style, several):
  """Evaluates on one split, prints the metrics and writes what is asked."""
  from alpro_jax.evaluation import card, facts, split

  start = time.monotonic()
  result = None
  if _TRUTH.value:
    from examples.shapes import zero_shot

    result = zero_shot.evaluate(
      model, prepared.path, prepared.split, style=style, truth=_TRUTH.value
    )
    evaluated = split.EvaluationResult(model, prepared, style, result.retrieval)
  else:
    evaluated = split.evaluate(model, prepared, style=style)
  recall = split.recall_against_cost(evaluated) if _RECALL_TABLE.value else ()
  seconds = time.monotonic() - start
  if jax.process_index() > 0:
    return
  print(f'{os.path.basename(prepared.path)}, {prepared.split}')
  found = evaluated.found
  if not model.answers_questions:
    print(facts.pairs_scored(found))
  for name, value in found.metrics.items():
    if name.endswith(('_low', '_high')):
      continue  # They stand beside what they belong to.
    low, high = found.intervals.get(name, (None, None))
    between = '' if low is None else f'   {low:>8.2f} to {high:.2f}'
    # A kind of question is called what the data set calls it.
    print(f'  {printable(name):<46}{value:>10.2f}{between}')
  for name, value in (result.figures if result else {}).items():
    if name.startswith('probes.'):
      print(f'  {name:<46}{value:>10.2f}')
  if recall:
    table = card.recall_table(recall)
    for row in (table.columns, *table.rows):
      print(
        '  '
        + '  '.join(
          f'{cell if isinstance(cell, (str, int)) else f"{cell:.1f}":>17}' for cell in row
        )
      )
  if not _OUTPUT.value:
    return
  place = files.join(_OUTPUT.value, _card_name(prepared, style)) if several else _OUTPUT.value
  with files.into(place) as folder:
    pages = [card.write(card.make(evaluated, recall=recall), folder)]
    if result:
      pages.append(zero_shot.write_page(result, folder, seconds, _CHECKPOINT.value))
  for page in pages:
    print(f'Written: {files.join(place, pathlib.Path(page).name)}')


if __name__ == '__main__':
  command.run(main, verbosity=0, in_buckets=True)
