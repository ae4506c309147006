"""Prompts that name clips as their captions do: chosen templates, and learned ones.

The authors leave better prompts to later (paper section 6). A prompt is judged by clips
whose captions name entities of the list: agreement is the share of them whose likeliest
entity is named. Templates are added to an ensemble as long as agreement grows. Learned
prompts are vectors in the place of a template's words (CoOp, Zhou et al. 2021,
arXiv 2109.01134), trained with all else of the prompter held.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alpro_jax import metrics
from alpro_jax.evaluation import split
from alpro_jax.evaluation.audit import Words, fold
from alpro_jax.evaluation.trained import TrainedModel
from alpro_jax.models import prompter

_HELD_OUT = 5  # Every fifth clip chooses the step.
_STEPS_BETWEEN = 20  # Lines of the log.


class Named(NamedTuple):
  """Clips whose captions name entities.

  Attributes:
    feature: float32[n, E], unit length.
    named: bool[n, Z].
  """

  feature: np.ndarray
  named: np.ndarray


def named_clips(model: TrainedModel, prepared, entities: Sequence[str]) -> Named:
  """Encodes the clips of a split whose captions name an entity.

  Raises:
    ValueError: if there is none.
  """
  named_by, place = Words(entities).find, {fold(name): i for i, name in enumerate(entities)}
  named = np.zeros((len(prepared), len(entities)), bool)
  for row, texts in zip(named, prepared.captions(), strict=True):
    row[[place[name] for text in texts for name in named_by(text)]] = True
  if not named.any():
    raise ValueError(
      f'no caption of {prepared.path}, split {prepared.split!r}, names one of the '
      f'{len(entities)} entities, such as {list(entities[:3])}; give a list of words that '
      'captions say.'
    )
  scorer = split.make_scorer(model)
  feature = scorer.embed_videos(split.batches(model, prepared), len(prepared)).feature
  some = named.any(1)
  return Named(feature[some], named[some])


def agreement(clips: Named, prompts: np.ndarray) -> tuple[float, float, float]:
  """Share of the clips, in %, whose likeliest of prompts float32[Z, E] is named; 95 % interval."""
  value = 100.0 * _agrees(clips, prompts)
  return float(value.mean()), *metrics.bootstrap_interval(value)


def _agrees(clips, prompts):
  best = (clips.feature @ np.asarray(prompts).T).argmax(1)
  return clips.named[np.arange(len(best)), best]


def encode_templates(
  model: TrainedModel, templates: Sequence[str], entities: Sequence[str]
) -> np.ndarray:
  """float32[templates, Z, E] of all prompts."""
  scorer = split.make_scorer(model)
  return np.stack(
    [scorer.embed_texts(prompter.fill_template(x, entities)).feature for x in templates]
  )


def choose_templates(clips: Named, rows: np.ndarray, most: int) -> list[int]:
  """Chooses an ensemble: the best template, then whichever adds most, as long as one does.

  Args:
    clips: to judge by.
    rows: float32[templates, Z, E].
    most: templates of the ensemble.
  Returns:
    their places, in the order in which they were chosen; of equal ones the first.
  """
  chosen: list[int] = []
  best = -1.0
  while len(chosen) < most:
    shares = [
      _agrees(clips, prompter.ensemble(jnp.asarray(rows[[*chosen, i]]), renormalize=True)).mean()
      if i not in chosen
      else -1.0
      for i in range(len(rows))
    ]
    place = int(np.argmax(shares))
    if shares[place] <= best:
      break
    best = shares[place]
    chosen.append(place)
  return chosen


def learn(
  model: TrainedModel,
  clips: Named,
  entities: Sequence[str],
  *,
  start: str,
  steps: int,
  rate: float,
  log: Callable[[str], None] = print,
) -> np.ndarray:
  """Learns vectors in the place of the words of a template.

  The loss on a fifth of the clips, which are not learned from, tells which step's to keep.

  Args:
    model: the prompter.
    clips: to learn from.
    entities: Z names.
    start: the template whose words the vectors begin as, {entity} at its end.
    steps: of Adam.
    rate: its step, as a share of the spread of the word vectors.
    log: takes a line from time to time.
  Returns:
    float32[Z, E], unit length.
  Raises:
    ValueError: if the model has a text tower, or the template does not end in {entity}.
  """
  if model.model.config.text_tower:
    raise ValueError(
      'prompts are learned in the word vectors of the BERT, and this model compares texts by a '
      'tower of their own; choose templates instead.'
    )
  words = start.removesuffix('{entity}').strip()
  if not start.endswith('{entity}') or not words:
    raise ValueError(f'{start!r} must be some words and {{entity}} at its end.')
  encode, length = model.tokenizer.encode, model.config.data.max_text_tokens
  ids, mask = encode([words], length)[:2]
  number, table = int(mask.sum()) - 2, model.params['text_embedding']['words']
  ids = ids[0, 1 : 1 + number]
  apply = _with_new_words(model, number)
  prompts, shown = _prompt_ids(encode, entities, number, len(table), length)
  temperature = split.make_scorer(model).temperature()
  held = np.arange(len(clips.feature)) % _HELD_OUT == 0
  learned, judged = (Named(*(x[part] for x in clips)) for part in (~held, held))

  def loss(clips, feature):
    target = clips.named / clips.named.sum(1, keepdims=True)
    odds = jnp.asarray(clips.feature) @ feature.T / temperature
    return -jnp.mean(jnp.sum(target * jax.nn.log_softmax(odds), axis=1))

  def of_vectors(vectors):
    feature = apply(model.params, vectors, prompts, shown)
    return loss(learned, feature), (feature, loss(judged, feature))

  tx = optax.adam(rate * float(jnp.std(table)))

  @jax.jit
  def step(vectors, moments):
    (_, aux), gradient = jax.value_and_grad(of_vectors, has_aux=True)(vectors)
    change, moments = tx.update(gradient, moments)
    return aux, optax.apply_updates(vectors, change), moments

  vectors = jnp.asarray(table)[ids].astype(jnp.float32)
  moments, best, found = tx.init(vectors), np.inf, None
  for done in range(steps + 1):
    (feature, value), vectors, moments = step(vectors, moments)
    if value < best:
      best, found = value, np.asarray(feature)
    if not done % _STEPS_BETWEEN or done == steps:
      share = 100.0 * _agrees(judged, feature).mean()
      log(f'step {done} of {steps}: held-out loss {value:.3f}, {share:.1f} % named right')
  return found


def _with_new_words(model, number):
  """(params, vectors f[number, D], ids, mask) -> features, with as many ids more."""
  config = model.model.config
  text = dataclasses.replace(config.text, vocab_size=config.text.vocab_size + number)
  longer = model.model.clone(config=dataclasses.replace(config, text=text))

  def apply(params, vectors, ids, mask):
    words = params['text_embedding']['words']
    words = jnp.concatenate([words, vectors.astype(words.dtype)])
    params = {**params, 'text_embedding': {**params['text_embedding'], 'words': words}}
    return longer.apply({'params': params}, ids, mask, train=False, method='encode_text').feature

  return apply


def _prompt_ids(encode, entities, number, first, length):
  """Ids and mask of [CLS], the new words, the entity, [SEP]."""
  ids, mask = encode(list(entities), length)[:2]
  new = np.broadcast_to(np.arange(first, first + number, dtype=ids.dtype), (len(ids), number))
  ids = np.concatenate([ids[:, :1], new, ids[:, 1:]], axis=1)
  mask = np.concatenate([mask[:, :1], np.ones_like(new, bool), mask[:, 1:]], axis=1)
  if mask[:, length:].any():
    raise ValueError(f'some prompts are longer than data.max_text_tokens={length}.')
  return ids[:, :length], mask[:, :length]
