"""A page about one clip and one text: what the model goes by.

Without a fusion encoder, or where none was trained, that is about their similarity.

evidence    places of each frame that speak for a word, or against it
attention   where fusion looks from each word, Grad-CAM of one layer
regions     what the prompter calls some regions (pre-training with PEM)
time        where and when the video encoder looks
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alpro_jax import masking, metrics, sharding
from alpro_jax.evaluation import attribution, familiarity, page, pictures
from alpro_jax.evaluation.attribution import AttentionMaps, Texts
from alpro_jax.evaluation.scorer import Scorer, fill_batch
from alpro_jax.evaluation.trained import TrainedModel


class Word(NamedTuple):
  """A word of the text, and where its tokens stand."""

  text: str
  first: int
  stop: int


class Region(NamedTuple):
  """A region and what it is called, most probable first.

  Attributes:
    inside: bool[rows, columns] of patches.
    labels: of the prompter, with probabilities.
    answers: of the entity head, which sees the whole clip and the text.
    kept: whether training would use the label.
  """

  inside: np.ndarray
  labels: list[tuple[str, float]]
  answers: list[tuple[str, float]]
  kept: bool


@dataclasses.dataclass(frozen=True)
class Explanation:
  """What `explain` found, and what is shown beside it.

  Attributes:
    frames: uint8[T, H, W, 3], what the model sees.
    seconds: (start, stop) of the clip; None for a whole video.
    target: see attribution.TARGETS.
    verdict: what the model says of the whole.
    figures: what the model makes of each word; of an answer, the answer.
    evidence: float32[words, T, rows, columns]; of an answer, a single map.
    maps: attention, a row for each word.
    layer: of fusion that is shown; None without fusion.
    regions: see `name_regions`.
    notes: what could not be shown and why.
  """

  trained: TrainedModel
  name: str
  text: str
  frames: np.ndarray
  seconds: tuple[float, float] | None
  words: list[Word]
  target: str
  verdict: str
  figures: list[str]
  evidence: np.ndarray
  maps: AttentionMaps
  layer: int | None
  regions: list[Region] = dataclasses.field(default_factory=list)
  notes: list[str] = dataclasses.field(default_factory=list)


def split_words(trained: TrainedModel, text: str) -> list[Word]:
  """Splits a text at its spaces and finds the tokens of each word.

  A tokenizer that joins words gives them as it reads them, token by token.

  Raises:
    ValueError: if there is no word.
  """
  encode, most = trained.tokenizer.encode, trained.config.data.max_text_tokens
  ids, mask = encode([text], most)[:2]
  length = int(mask.sum()) - 1  # Without [SEP], which is last.
  words, at, own = [], 1, []
  for word in text.split():
    row, known = encode([word], most)[:2]
    count = int(known.sum()) - 2
    own += row[0, 1 : 1 + count].tolist()
    if count and at < length:
      words.append(Word(word, at, min(at + count, length)))
    at += count
  tokens = ids[0, 1:length].tolist()
  if own[: length - 1] != tokens:
    words = [
      Word(trained.tokenizer.decode([token]) or '·', at, at + 1)
      for at, token in enumerate(tokens, 1)
    ]
  if not words:
    raise ValueError(f'{text!r} has no word that the tokenizer knows.')
  return words


def choose_target(trained: TrainedModel) -> str:
  """The target that this model was trained for, one of attribution.TARGETS."""
  config = trained.config
  if trained.answers_questions:
    return 'answer'
  if config.task == 'pretrain' and config.loss.mlm > 0:
    return 'word'
  if trained.knows_matching:
    return 'match'
  return 'similarity'


def choose_layer(config, asked: int | None = None) -> int:
  """The fusion layer to show: the third of six, as ALBEF does, or `asked`.

  The last one has a gradient for the class token's row alone, unless words
  are the target.
  """
  first, stop = config.text.fusion_layer, config.text.depth
  layer = first + (stop - first) // 3 if asked is None else asked
  if not first <= layer < stop:
    raise ValueError(f'--layer={layer} is no fusion layer; they are {first} to {stop - 1}.')
  return layer


def explain(
  trained: TrainedModel,
  name: str,
  frames: np.ndarray,
  seconds: tuple[float, float] | None,
  text: str,
  *,
  layer: int | None = None,
  steps: int = 16,
) -> Explanation:
  """Asks a model about one clip.

  Args:
    trained: the model.
    name: of the video.
    frames: uint8[T, H, W, 3].
    seconds: start and stop of the clip; None for a whole video.
    text: a caption, or a question for a model that answers.
    layer: of fusion to show; None chooses.
    steps: see attribution.evidence.
  Raises:
    ValueError: if the text has no word, or a layer is asked for that is none of fusion.
  """
  target = choose_target(trained)
  patch = trained.model.config.video.patch_size
  # Small grids are shown in half patches.
  fine = frames.shape[1] // patch < 8 and patch % 2 == 0
  cell = patch // 2 if fine else patch
  if target == 'similarity':
    if layer is not None:
      raise ValueError(
        f'--layer={layer} is of the fusion encoder, but this model is explained by similarity: '
        f'{trained.why_no_matching}; leave it out.'
      )
    return _explain_similarity(trained, name, frames, seconds, text, cell, steps)
  layer, words = choose_layer(trained.model.config, layer), split_words(trained, text)
  ids, mask = trained.tokenizer.encode([text], trained.config.data.max_text_tokens)[:2]
  ids, mask = (x.repeat(len(words), 0) for x in (ids, mask))
  token = np.arange(ids.shape[1])
  wanted = np.array([(word.first <= token) & (token < word.stop) for word in words])
  whole = Texts(ids, mask, wanted, ids)
  masked = whole._replace(ids=np.where(wanted, trained.tokenizer.special.mask, ids))
  one = Texts(*(x[:1] for x in whole))

  model = trained.model, trained.params, frames
  # An answer rests on all words: one map.
  evidence = attribution.evidence(
    *model, one if target == 'answer' else masked, target, cell=cell, steps=steps
  )
  maps = attribution.attention_maps(*model, masked if target == 'word' else whole, target)
  maps = jax.tree.map(np.asarray, maps)

  notes, far = strangeness(trained, frames, text)
  verdict = 'matching was not trained'
  if target == 'answer':
    best, calibrated = _answers(trained, frames, one)
    show = functools.partial(familiarity.show, calibrated=calibrated and not far)
    verdict = ', '.join(f'{answer} {show(share).strip()}' for answer, share in best)
    figures = [best[0][0]]
  elif trained.knows_matching:
    margin = float(attribution.score(*model, one, 'match')[0])
    share, calibrated = familiarity.match_probability(trained.familiarity, np.array(margin))
    verdict = f'a match with {familiarity.show(float(share), calibrated and not far).strip()}'
  if target == 'word':
    figures = [f'{np.exp(x):.2f}' for x in maps.target]
  elif target == 'match':
    without = np.asarray(attribution.score(*model, masked, 'match'))
    figures = [f'{margin - x:+.1f}' for x in without]
  asked = trained, name, text, frames, seconds, words, target
  shown = Explanation(*asked, verdict, figures, np.asarray(evidence), maps, layer)
  shown.notes.extend(notes)
  return shown


def _explain_similarity(trained, name, frames, seconds, text, cell, steps):
  """What each word adds to the similarity: that of the text less that without the word."""
  words = text.split()
  if not words:
    raise ValueError(f'{text!r} has no word.')
  without = [' '.join(words[:i] + words[i + 1 :]) for i in range(len(words))]
  scorer = Scorer.of(trained, batch_size=1, pairs_per_call=1)
  whole, *others = scorer.embed_texts([text, *without]).feature
  (clip,) = scorer.embed_videos([fill_batch(frames[None], 0, trained.mesh.size, 1)], 1).feature
  added = whole - np.stack(others)
  model = trained.model, trained.params, frames
  evidence = attribution.evidence(*model, added, 'similarity', cell=cell, steps=steps)
  looked = jax.tree.map(np.asarray, attribution.video_attention(*model))
  return Explanation(
    trained,
    name,
    text,
    frames,
    seconds,
    [Word(word, 0, 0) for word in words],  # Their tokens do not matter.
    'similarity',
    f'a similarity of {whole @ clip:.3f}',
    [f'{x:+.3f}' for x in added @ clip],
    np.asarray(evidence),
    AttentionMaps(added @ clip, {}, {}, *looked),
    None,
    notes=strangeness(trained, frames, text)[0],
  )


def strangeness(trained: TrainedModel, frames: np.ndarray, text: str) -> tuple[list[str], bool]:
  """Notes about a clip uint8[T, H, W, 3] and a text: what is far, and whether any is."""
  known = trained.familiarity
  if not known:
    return [familiarity.NO_SUMMARY[0].upper() + familiarity.NO_SUMMARY[1:]], False
  scorer = Scorer.of(trained, batch_size=1, pairs_per_call=1)
  clip = fill_batch(frames[None], 0, trained.mesh.size, 1)
  most = trained.config.data.max_text_tokens
  (video,) = known.far_videos(scorer.embed_videos([clip], 1, look=True))
  (words,) = known.far_texts(trained.tokenizer, [text], most, scorer.embed_texts([text]))
  notes = [
    f'The {what} is far from what the model was trained on, and what it says means little: {why}.'
    for what, why in (('clip', video), ('text', words))
    if why
  ]
  return notes, bool(notes)


def _answers(trained, frames, text):
  model = trained.model.bind({'params': trained.params})
  video = model.encode_video(jnp.asarray(frames[None]), train=False)
  tokens = model.text_tokens(text.ids, text.mask, train=False)
  logits = np.asarray(model.answer(tokens, text.mask, video.tokens))
  known = trained.familiarity
  share, calibrated = familiarity.probabilities(logits, known and known.answer_temperature)
  return metrics.most_probable(trained.answers, share[0]), calibrated


def name_regions(
  trained: TrainedModel,
  teacher,
  entities: Sequence[str],
  video: np.ndarray,
  texts: Sequence[str],
  *,
  still: np.ndarray | None = None,
  seed: int = 0,
) -> list[Region]:
  """Asks prompter and model what a random region of each clip shows, as in training.

  Args:
    trained: a model of pre-training with PEM.
    teacher: its prompter, tasks.teacher.Teacher.
    entities: what the teacher chooses from.
    video: uint8[B, T, H, W, 3].
    texts: B of them, which the model reads beside the clips.
    still: bool[B], True where the clip is a photo; None is nowhere.
    seed: of the regions.
  """
  loss, patch, mesh = trained.config.loss, trained.model.config.video.patch_size, trained.mesh
  grid = video.shape[2] // patch, video.shape[3] // patch
  region = masking.sample_regions(
    jax.random.key(seed), len(video), grid, area=loss.region_area, rule=loss.region_rule
  )
  ids, mask = trained.tokenizer.encode(list(texts), trained.config.data.max_text_tokens)[:2]
  still = np.zeros(len(video), bool) if still is None else still
  # Every device has as many rows; those that are too many repeat the last.
  row = np.minimum(np.arange(-(-len(video) // mesh.size) * mesh.size), len(video) - 1)
  rows = [
    jax.make_array_from_callback(x.shape, sharding.batch_sharding(mesh), x.__getitem__)
    for x in (np.asarray(x)[row] for x in (video, ids, mask, region, still))
  ]
  found = _entities(trained.model, mesh, trained.params, teacher, *rows)
  return [
    Region(
      inside.reshape(grid),
      metrics.most_probable(entities, labels),
      metrics.most_probable(entities, answers),
      bool(kept),
    )
    for inside, labels, kept, answers in zip(
      np.asarray(region), *jax.device_get(found), strict=False
    )
  ]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _entities(model, mesh, params, teacher, video, ids, mask, region, still):
  """Labels float32[B, Z], whether they are kept bool[B], and answers float32[B, Z]."""
  patch = model.config.video.patch_size
  labels, keep = teacher.label(video, region, still, patch_size=patch, mesh=mesh)
  bound = model.bind({'params': params})
  tokens = bound.encode_video(video, train=False).tokens
  words = bound.text_tokens(ids, mask, train=False)
  fused = bound.fuse(words, mask, tokens, train=False)
  found = labels, keep, jax.nn.softmax(bound.region_entities(fused, region))
  # Whole on every device, so that every host can read them.
  return jax.lax.with_sharding_constraint(found, sharding.replicated(mesh))


def render(shown: Explanation) -> str:
  """Returns the page."""
  frames, maps, words = shown.frames, shown.maps, shown.words
  patch = shown.trained.model.config.video.patch_size
  grid = frames.shape[1] // patch, frames.shape[2] // patch
  names, figures = [word.text for word in words], shown.figures
  if shown.target == 'answer':
    names, figures = figures, ['']
  # One scale for all words: a word that rests on nothing stays pale.
  largest = max(float(np.quantile(np.abs(shown.evidence), 0.995)), 1e-12)
  mean = frames.mean(0, keepdims=True).astype(np.uint8)

  def looked(frames, weights):
    weights = weights.reshape(-1, *grid)
    return pictures.heat(frames, weights / max(float(weights.max()), 1e-12), signed=False)

  attention = []
  if shown.layer is not None:
    both = maps.gradcam[shown.layer], maps.weights[shown.layer]
    for row, word in enumerate(words):
      maps_of = [looked(mean, x[row, word.first : word.stop].mean(0)) for x in both]
      attention.append((word.text, np.concatenate(maps_of)))
  outlined = [pictures.outline(frames, region.inside) for region in shown.regions]
  return page.render(
    'explain.html',
    title=f'“{shown.text}”',
    shown=shown,
    evidence=[
      (name, figure, pictures.heat(frames, x / largest, signed=True))
      for name, figure, x in zip(names, figures, shown.evidence, strict=True)
    ],
    frames=pictures.enlarge(frames),
    attention=attention,
    regions=[(x, pictures.enlarge(y)) for x, y in zip(shown.regions, outlined, strict=True)],
    space=looked(frames, maps.space),
    time=maps.time,
  )
