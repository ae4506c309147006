"""How an evaluation was made: facts for programs, and the same in words."""

import datetime
import hashlib
import pathlib
import subprocess
from collections.abc import Mapping
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

_FRAMES = {
  'uniform': 'evenly spaced, from the first on',
  'nlvl_uniform': 'evenly spaced, from the first on',
  'nlvl_rand': 'one drawn from each of equal parts, always the same draw',
  'rand': 'drawn at random, always the same draw',
  'headtail': 'half of them drawn from each half, always the same draw',
}
RULES = {
  'matching': 'the probability of a match that the fusion encoder gives',
  'matching+similarity': "the fusion encoder's logit of a match plus the similarity of the "
  'contrastive features',
  'similarity': 'the similarity of the contrastive features',
}
_TIES = {
  'pessimistic': 'a wrong one of equal score counts as better',
  'optimistic': 'a wrong one of equal score counts as worse',
  'expected': 'the mean over all orders of those of equal score',
}


def collect(evaluated: EvaluationResult) -> dict[str, Any]:
  """How figures were obtained, as JSON."""
  trained, prepared, style, found = evaluated
  data, origin = trained.config.data, trained.origin
  records = prepared.metadata()
  stored = [record.frames for record in records]
  items = {'videos': len(records)}
  if isinstance(found, AnswerResult):
    task = 'question answering'
    texts = [asked.text for asked in found.questions]
    items['questions'] = len(found.questions)
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
    task = 'text-video retrieval'
    texts = found.texts
    items |= {'texts': len(found.texts), 'pairs': len(found.pairs)}
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
    'checkpoint': origin._asdict() if origin else None,
    'code': code_version(),
    'devices': f'{trained.mesh.size} x {trained.mesh.devices.flat[0].device_kind}',
    'compute': trained.model.config.dtype,
    'seconds': {k: round(v, 2) for k, v in found.seconds.items()},
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }


def run_options(trained: TrainedModel) -> dict[str, Any]:
  """Options of the training in short: {dotted name: value}."""
  config, model = trained.config, trained.model.config
  size = sum(leaf.size for leaf in jax.tree.leaves(trained.params))
  run = {
    'task': config.task,
    'seed': config.seed,
    'parameters': size,
    'model.video': f'{model.video.image_size} px, {model.video.frames} '
    f'frames, patch {model.video.patch_size}, '
    f'{model.video.attention} attention, '
    f'{model.video.depth} layers of {model.video.width}',
    'model.text': f'{model.text.depth} layers of {model.text.width}, the '
    f'fusion encoder from layer {model.text.fusion_layer}',
    'data.sources': ', '.join(
      f'{source["path"]}/{source["split"]}' + (f' ({source["style"]})' if source['style'] else '')
      for source in config.data.sources
    ),
    'data.batch_size': config.data.batch_size,
  }
  weights = {name: config.loss[name] for name in ('vtc', 'vtm', 'mlm', 'pem')}
  if trained.answers_questions:
    weights = {}
  elif config.task == 'prompter':
    weights = {'vtc': weights['vtc']}
  run |= {f'loss.{name}': value for name, value in weights.items()}
  run |= {
    f'optimizer.{name}': config.optimizer[name]
    for name in ('learning_rate', 'schedule', 'warmup_steps', 'weight_decay')
  }
  run |= {f'train.{name}': config.train[name] for name in ('steps', 'init_from')}
  return run


def pairs_scored(found: Retrieval) -> str:
  """How the pairs of a search were scored, in a sentence."""
  scoring, share = found.scoring, found.cost.get('share', 1)
  if not scoring.reads:
    why = f', for {scoring.instead}' if scoring.instead else ''
    return f'All pairs are scored by {RULES[scoring.rule]} alone{why}.'
  if share == 1:
    return f'All pairs are scored by {RULES[scoring.rule]}, as in the paper.'
  return (
    f'Only {100 * share:.3g} % of the pairs, the {scoring.rerank_k} nearest '
    'by similarity of every text and of every video, are scored by '
    f'{RULES[scoring.rule]}; the others follow by similarity. The paper '
    'scores all pairs.'
  )


def describe(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
  """What `collect` returned in words: (what, how); '' is nothing to say."""
  data, frames, image, text = (facts[name] for name in ('data', 'frames', 'image', 'text'))
  low, high = frames['stored']
  stored = f'{low}' if low == high else f'{low} to {high}'
  shape = {'squash': 'squashed to', 'short_side': 'short side scaled to'}
  rows = [
    ('task', facts['task']),
    ('trained for', facts['trained_for']),
    ('data set', data['path']),
    ('split', data['split']),
    ('only of style', data['style']),
    ('digest of the split', data['digest']),
    *((name, f'{count:,}') for name, count in facts['items'].items()),
    (
      'frames',
      f'{frames["per_clip"]} of {stored}, {_FRAMES[frames["chosen"]]} ({frames["chosen"]})',
    ),
    (
      'image',
      f'{image["side"]} x {image["side"]} pixels: '
      f'{shape[image["resize_mode"]]} {image["resize"]}, '
      f'{image["crop"]} crop',
    ),
    (
      'text',
      f'at most {text["max_tokens"]} tokens: {text["cut"]:,} of '
      f'{text["of"]:,} texts are longer and lose their end',
    ),
  ]
  scoring = facts['scoring']
  if 'answers' in scoring:
    rows += [
      ('scoring rule', f'{scoring["rule"]} ({scoring["answers"]:,})'),
      ('digest of the answers', scoring['answers_digest']),
      ('right is', scoring['right']),
      (
        'listed in several spellings, any of which counts',
        '; '.join(map(', '.join, scoring['listed_twice'])),
      ),
      ('tie rule', scoring['ties']),
    ]
  else:
    cost, k = scoring['cost'], scoring['k']
    read = (
      f'{k}'
      if isinstance(k, str)
      else (f'the {k} nearest by similarity, of every text and every video')
    )
    if cost.get('pairs'):
      read += f': {cost["pairs"]:,.0f} pairs, {100 * cost["share"]:.3g} % of all'
    rows += [
      ('scoring rule', f'{scoring["rule"]}: {RULES[scoring["rule"]]}'),
      ('k', read if scoring['rule'] != 'similarity' else 'no pair is read by the fusion encoder'),
      ('tie rule', f'{scoring["ties"]}: {_TIES[scoring["ties"]]}'),
      ('dual softmax', 'reported beside' if scoring['dual_softmax'] else ''),
    ]
  origin = facts['checkpoint'] or {}
  return rows + [
    ('intervals', facts['intervals']),
    ('checkpoint', origin.get('path', 'in training')),
    ('step', f'{origin["step"]:,}' if origin else ''),
    ('digest of the checkpoint', origin.get('digest', '')),
    ('code', facts['code']),
    (
      'computed',
      f'on {facts["devices"]}, in {facts["compute"]}, '
      f'{sum(facts["seconds"].values()):.0f} s, {facts["date"]}',
    ),
  ]


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
