"""What card.json says: figures with their intervals, and how they were obtained."""

import datetime
import hashlib
import math
import pathlib
import subprocess
from collections.abc import Sequence
from typing import Any

import jax

import alpro_jax
from alpro_jax.data import tokens
from alpro_jax.data.answers import equal_entries
from alpro_jax.evaluation.question_answering import AnswerResult
from alpro_jax.evaluation.retrieval import Retrieval, Tradeoff
from alpro_jax.evaluation.split import EvaluationResult

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What git must know of for the commit alone to say how something was made.
_CODE = ('alpro_jax', 'configs', 'examples', 'launch')

RULES = {
  'matching': 'the probability of a match that the fusion encoder gives',
  'matching+similarity': "the fusion encoder's logit of a match plus the similarity of the "
  'contrastive features',
  'similarity': 'the similarity of the contrastive features',
}


def collect(evaluated: EvaluationResult, recall: Sequence[Tradeoff] = ()) -> dict[str, Any]:
  """Returns all that card.json says.

  A metric is {'value': v} or {'value': v, 'low': l, 'high': h}; `recall` is that
  of split.recall_against_cost.

  Raises:
    ValueError: if a metric is not a finite number.
  """
  trained, prepared, style, found = evaluated
  data, origin, records = trained.config.data, trained.origin, prepared.metadata()
  stored = [record.frames for record in records]
  answers = isinstance(found, AnswerResult)
  texts = [asked.text for asked in found.questions] if answers else found.texts
  items = {'videos': len(records)} | (
    {'questions': len(texts)} if answers else {'texts': len(texts), 'pairs': len(found.pairs)}
  )
  what = 'Question answering' if answers else 'Text-video retrieval'
  name = f'{pathlib.Path(prepared.path).name}, {prepared.split}'
  return {
    'title': f'{what} on {name}' + (f', {style}' if style else ''),
    'summary': _summary(found, items, origin),
    'task': what[0].lower() + what[1:],
    'trained_for': trained.config.task,
    'data': {
      'path': prepared.path,
      'split': prepared.split,
      'style': style,
      'digest': prepared.digest,
    },
    'items': items,
    'frames': {
      'per_clip': data.frames,
      'chosen': data.eval_sampling,
      'stored': [min(stored, default=0), max(stored, default=0)],
    },
    'image': {
      'side': data.image_size,
      'resize': data.resize,
      'resize_mode': data.resize_mode,
      'crop': 'centre',
    },
    'text': {
      'max_tokens': data.max_text_tokens,
      'cut': tokens.count_cut(trained.tokenizer, texts, data.max_text_tokens),
      'of': len(texts),
    },
    'scoring': _answer_scoring(found) if answers else _search_scoring(found),
    'intervals': '95 %, bootstrap over videos',
    'checkpoint': origin._asdict() if origin else None,
    'code': code_version(),
    'devices': f'{trained.mesh.size} x {trained.mesh.devices.flat[0].device_kind}',
    'compute': trained.model.config.dtype,
    'seconds': {k: round(v, 2) for k, v in found.seconds.items()},
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'metrics': _metrics(found),
    **({'recall_against_cost': [row._asdict() for row in recall]} if recall else {}),
    'run': _run_options(trained),
  }


def _summary(found, items, origin):
  """Who was asked what, and how it was scored."""
  who = 'A model in training'
  if origin:
    run = pathlib.Path(origin.path)
    while run.name == 'checkpoints' or run.name.isdigit():
      run = run.parent
    who = f'{run.name or origin.path} at step {origin.step:,}'
  if isinstance(found, AnswerResult):
    return (
      f'{who}, asked {items["questions"]:,} questions about {items["videos"]:,} videos, '
      f'{found.metrics["in_list"]:.1f} % of them with an answer that it can give.'
    )
  return (
    f'{who}, searching for {items["texts"]:,} texts among {items["videos"]:,} videos, '
    f'and the other way round. {pairs_scored(found)}'
  )


def _answer_scoring(found):
  return {
    'rule': 'most probable of the training answers',
    'answers': len(found.answers),
    'answers_digest': hashlib.sha256('\n'.join(found.answers).encode()).hexdigest(),
    'right': 'the true answer, whatever its case, white space and form of Unicode; '
    'one that is not among the training answers counts as wrong',
    'listed_twice': equal_entries(found.answers),
    'ties': 'of equal logits the answer that is more frequent in training',
  }


def _search_scoring(found):
  return {
    'pairs': pairs_scored(found),
    'rule': found.scoring.rule,
    'instead_of_matching': found.scoring.instead,
    'k': found.scoring.rerank_k or 'all pairs',
    'ties': 'pessimistic',
    'dual_softmax': found.scoring.dual_softmax,
    'cost': {k: float(v) for k, v in found.cost.items()},
  }


def _metrics(found):
  if bad := {k: v for k, v in found.metrics.items() if not math.isfinite(v)}:
    raise ValueError(f'figures {bad} are not finite; leave out what was not measured.')
  figures = {}
  for name in sorted(found.metrics):
    # The ends of intervals stand beside what they belong to.
    if not name.endswith(('_low', '_high')):
      ends = zip(('low', 'high'), found.intervals.get(name, ()), strict=False)
      figures[name] = {'value': float(found.metrics[name])} | {k: float(v) for k, v in ends}
  return figures


def _run_options(trained):
  """Options of the training in short: {dotted name: value}."""
  config, model = trained.config, trained.model.config
  video, text, tower = model.video, model.text, model.text_tower
  texts = (
    [f'{text.depth} layers of {text.width}, the fusion encoder from layer {text.fusion_layer}']
    if text
    else []
  )
  if tower:
    texts.append(f'for contrast a tower of {tower.depth} layers of {tower.width}')
  losses = {'question_answering': (), 'prompter': ('vtc',)}
  shown = {
    'loss': losses.get(config.task, ('vtc', 'vtm', 'mlm', 'pem')),
    'optimizer': ('learning_rate', 'schedule', 'warmup_steps', 'weight_decay'),
    'train': ('steps', 'init_from'),
  }
  known = {
    'task': config.task,
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(trained.params)),
    'model.video': f'{video.image_size} px, {video.frames} frames, patch {video.patch_size}, '
    f'{video.attention} attention, {video.depth} layers of {video.width}',
    'model.text': '; '.join(texts),
  }
  # An export does not say how it was trained.
  if trained.meta and 'train' not in trained.meta['config']:
    return known
  return (
    known
    | {
      'seed': config.seed,
      'data.sources': ', '.join(
        f'{source["path"]}/{source["split"]}' + (f' ({source["style"]})' if source['style'] else '')
        for source in config.data.sources
      ),
      'data.batch_size': config.data.batch_size,
    }
    | {f'{part}.{name}': config[part][name] for part, names in shown.items() for name in names}
  )


def pairs_scored(found: Retrieval) -> str:
  """How the pairs of a search were scored, in a sentence."""
  scoring, share = found.scoring, found.cost.get('share', 1)
  rule = RULES[scoring.rule]
  if not scoring.reads:
    why = f', for {scoring.instead}' if scoring.instead else ''
    return f'All pairs are scored by {rule} alone{why}.'
  if share == 1:
    return f'All pairs are scored by {rule}, as in the paper.'
  return (
    f'Only {100 * share:.3g} % of the pairs, the {scoring.rerank_k} nearest '
    f'by similarity of every text and of every video, are scored by {rule}; '
    'the others follow by similarity. The paper scores all pairs.'
  )


def code_version() -> str:
  """Returns the commit of this code, with '+changes' if it differs from it.

  Where it is in no repository of its own, the version of the package.
  """

  def git(*command):
    return subprocess.run(
      ['git', '-C', str(ROOT), *command], capture_output=True, text=True, check=True
    ).stdout.strip()

  try:
    if pathlib.Path(git('rev-parse', '--show-toplevel')).samefile(ROOT):
      changes = git('status', '--porcelain', '--', *_CODE)
      return git('rev-parse', 'HEAD') + ('+changes' if changes else '')
  except (OSError, subprocess.CalledProcessError):
    pass  # No git, or no repository.
  return alpro_jax.__version__
