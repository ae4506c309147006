"""How an evaluation was made: the facts, which templates/card.html words."""

import datetime
import hashlib
import pathlib
import subprocess
from typing import Any

import jax

import alpro_jax
from alpro_jax.data import tokens
from alpro_jax.data.answers import equal_entries
from alpro_jax.evaluation.question_answering import AnswerResult
from alpro_jax.evaluation.retrieval import Retrieval
from alpro_jax.evaluation.split import EvaluationResult
from alpro_jax.evaluation.trained import TrainedModel

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What git must know of for the commit alone to say how something was made.
_CODE = ('alpro_jax', 'configs', 'launch')

RULES = {
  'matching': 'the probability of a match that the fusion encoder gives',
  'matching+similarity': "the fusion encoder's logit of a match plus the similarity of the "
  'contrastive features',
  'similarity': 'the similarity of the contrastive features',
}


def collect(evaluated: EvaluationResult) -> dict[str, Any]:
  """How figures were obtained, as JSON."""
  trained, prepared, style, found = evaluated
  data, records = trained.config.data, prepared.metadata()
  stored = [record.frames for record in records]
  items = {'videos': len(records)}
  if isinstance(found, AnswerResult):
    task = 'question answering'
    texts = [asked.text for asked in found.questions]
    items['questions'] = len(texts)
    scoring = {
      'rule': 'most probable of the training answers',
      'answers': len(found.answers),
      'answers_digest': hashlib.sha256('\n'.join(found.answers).encode()).hexdigest(),
      'right': 'the true answer, whatever its case, white space and form '
      'of Unicode; one that is not among the training answers '
      'counts as wrong',
      'listed_twice': equal_entries(found.answers),
      'ties': 'of equal logits the answer that is more frequent in training',
    }
  else:
    task, texts = 'text-video retrieval', found.texts
    items |= {'texts': len(texts), 'pairs': len(found.pairs)}
    scoring = {
      'pairs': pairs_scored(found),
      'rule': found.scoring.rule,
      'instead_of_matching': found.scoring.instead,
      'k': found.scoring.rerank_k or 'all pairs',
      'ties': found.scoring.ties,
      'dual_softmax': found.scoring.dual_softmax,
      'cost': {k: float(v) for k, v in found.cost.items()},
    }
  return {
    'task': task,
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
    'scoring': scoring,
    'intervals': '95 %, bootstrap over videos',
    'checkpoint': trained.origin._asdict() if trained.origin else None,
    'code': code_version(),
    'devices': f'{trained.mesh.size} x {trained.mesh.devices.flat[0].device_kind}',
    'compute': trained.model.config.dtype,
    'seconds': {k: round(v, 2) for k, v in found.seconds.items()},
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }


def run_options(trained: TrainedModel) -> dict[str, Any]:
  """Options of the training in short: {dotted name: value}."""
  config, model = trained.config, trained.model.config
  video, text = model.video, model.text
  losses = {'question_answering': (), 'prompter': ('vtc',)}
  shown = {
    'loss': losses.get(config.task, ('vtc', 'vtm', 'mlm', 'pem')),
    'optimizer': ('learning_rate', 'schedule', 'warmup_steps', 'weight_decay'),
    'train': ('steps', 'init_from'),
  }
  return {
    'task': config.task,
    'seed': config.seed,
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(trained.params)),
    'model.video': f'{video.image_size} px, {video.frames} frames, patch {video.patch_size}, '
    f'{video.attention} attention, {video.depth} layers of {video.width}',
    'model.text': f'{text.depth} layers of {text.width}, the '
    f'fusion encoder from layer {text.fusion_layer}',
    'data.sources': ', '.join(
      f'{source["path"]}/{source["split"]}' + (f' ({source["style"]})' if source['style'] else '')
      for source in config.data.sources
    ),
    'data.batch_size': config.data.batch_size,
  } | {f'{part}.{name}': config[part][name] for part, names in shown.items() for name in names}


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
