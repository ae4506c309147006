"""A page about one clip and one text: what the model goes by.

evidence    places of each frame that speak for a word, or against it
attention   where fusion looks from each word, Grad-CAM of one layer
entities    what the prompter calls some regions (pre-training with PEM)
time        where and when the video encoder looks
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alpro_jax import masking
from alpro_jax.evaluation import attention, page, pictures
from alpro_jax.evaluation.attention import Texts
from alpro_jax.evaluation.trained import TrainedModel


class Word(NamedTuple):
  """A word of the text, and where its tokens stand."""

  text: str
  first: int
  stop: int


class Entity(NamedTuple):
  """A region bool[rows, columns] and what it is called, most probable first.

  Attributes:
    region: bool[rows, columns] of patches.
    labels: of the prompter, with probabilities.
    answers: of the entity head, which sees the whole clip and the text.
    kept: whether training would use the label.
  """

  region: np.ndarray
  labels: list[tuple[str, float]]
  answers: list[tuple[str, float]]
  kept: bool


class Explained(NamedTuple):
  """All that is shown.

  Attributes:
    trained: the model.
    name: of the video.
    text: caption or question.
    frames: uint8[T, H, W, 3], what the model sees.
    seconds: (start, stop) of the clip.
    words: those of the text.
    target: see attention.TARGETS.
    verdict: what the model says of the whole.
    evidence: float32[words, T, rows, columns]; of an answer, a single map.
    said: what the model makes of each word; of an answer, the answer.
    looked: attention, a row for each word.
    layer: of fusion that is shown.
    entities: of sampled regions.
    notes: what could not be shown and why.
  """

  trained: TrainedModel
  name: str
  text: str
  frames: np.ndarray
  seconds: tuple[float, float]
  words: list[Word]
  target: str
  verdict: str
  evidence: np.ndarray
  said: list[str]
  looked: attention.Looked
  layer: int
  entities: list[Entity]
  notes: list[str]


def split_words(trained: TrainedModel, text: str) -> list[Word]:
  """Cuts a text at its spaces and finds the tokens of each word.

  A tokenizer that joins words gives them as it reads them, token by token.

  Raises:
    ValueError: if there is no word.
  """
  encode, most = trained.tokenizer.encode, trained.config.data.max_text_tokens
  ids, mask = encode([text], most)
  length = int(mask.sum()) - 1  # Without [SEP], which is last.
  words, at, own = [], 1, []
  for word in text.split():
    row, known = encode([word], most)
    count = int(known.sum()) - 2
    own += row[0, 1 : 1 + count].tolist()
    if count and at < length:
      words.append(Word(word, at, min(at + count, length)))
    at += count
  if own[: length - 1] != ids[0, 1:length].tolist():
    words = [
      Word(trained.tokenizer.decode([i]) or '·', at, at + 1)
      for at, i in enumerate(ids[0, 1:length].tolist(), 1)
    ]
  if not words:
    raise ValueError(f'{text!r} has no word that the tokenizer knows.')
  return words


def choose_target(trained: TrainedModel) -> str:
  """The target that this model was trained for.

  Raises:
    ValueError: if it has no fusion encoder that was trained.
  """
  config = trained.config
  if trained.answers_questions:
    return 'answer'
  if config.task == 'pretrain' and config.loss.mlm > 0:
    return 'word'
  if trained.knows_matching:
    return 'match'
  raise ValueError(
    f'{trained.origin.path} (task={config.task!r}) never trained its fusion '
    'encoder; pass a checkpoint of pre-training, retrieval or question '
    'answering.'
  )


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
  seconds: tuple[float, float],
  text: str,
  *,
  layer: int | None = None,
  steps: int = 16,
) -> Explained:
  """Asks a model about one clip.

  Args:
    trained: the model.
    name: of the video.
    frames: uint8[T, H, W, 3].
    seconds: start and stop of the clip.
    text: a caption, or a question for a model that answers.
    layer: of fusion to show; None chooses.
    steps: see attention.evidence.
  """
  model, params = trained.model, trained.params
  config, special = model.config, trained.tokenizer.special
  layer = choose_layer(config, layer)
  target = choose_target(trained)
  words = split_words(trained, text)
  ids, mask = trained.tokenizer.encode([text], trained.config.data.max_text_tokens)
  rows = len(words)
  labels, mask = ids.repeat(rows, 0), mask.repeat(rows, 0)
  wanted = np.zeros_like(mask)
  for row, word in enumerate(words):
    wanted[row, word.first : word.stop] = True
  masked = Texts(np.where(wanted, special.mask, labels), mask, wanted, labels)
  whole = Texts(labels, mask, wanted, labels)
  patch = config.video.patch_size
  # Small grids are shown in half patches.
  fine = frames.shape[1] // patch < 8 and patch % 2 == 0
  rule = {'cell': patch // 2 if fine else patch, 'steps': steps}
  if target == 'answer':
    # One map: the answer rests on all words.
    one = Texts(*(x[:1] for x in whole))
    places = attention.evidence(model, params, frames, one, target, **rule)
    looked = attention.look(model, params, frames, whole, target)
  else:
    places = attention.evidence(model, params, frames, masked, target, **rule)
    looked = attention.look(model, params, frames, masked if target == 'word' else whole, target)
  said, verdict = _say(trained, frames, masked, whole, target, looked)
  return Explained(
    trained,
    name,
    text,
    frames,
    seconds,
    words,
    target,
    verdict,
    places,
    said,
    looked,
    layer,
    [],
    [],
  )


def _say(trained, frames, masked, whole, target, looked):
  """What the model makes of each word, and of all."""
  model, params = trained.model, trained.params
  if target == 'answer':
    best = _answers(trained, frames, whole)
    return [best[0][0]], ', '.join(f'{text} {100 * share:.1f} %' for text, share in best)
  one = Texts(*(x[:1] for x in whole))
  verdict = 'matching was not trained'
  margin = None
  if trained.knows_matching:
    margin = float(attention.score(model, params, frames, one, 'match')[0])
    verdict = f'a match with {100 / (1 + np.exp(-margin)):.1f} %'
  if target == 'word':
    return [f'{100 * np.exp(x):.0f} %' for x in looked.target], verdict
  without = attention.score(model, params, frames, masked, 'match')
  return [f'{margin - x:+.1f}' for x in without], verdict


def _answers(trained, frames, whole):
  model = trained.model.bind({'params': trained.params})
  video = model.encode_video(jnp.asarray(frames[None]), train=False)
  text = model.encode_text(whole.ids[:1], whole.mask[:1], train=False)
  logits = model.answer(text.tokens, whole.mask[:1], video.tokens)
  share = np.asarray(jax.nn.softmax(logits))[0]
  best = np.argsort(-share, kind='stable')[:5]
  return [(trained.answers[i], float(share[i])) for i in best]


def name_regions(
  trained: TrainedModel,
  teacher,
  entities: Sequence[str],
  frames: np.ndarray,
  text: str,
  *,
  count: int = 6,
  seed: int = 0,
) -> list[Entity]:
  """Asks prompter and model what random regions show, as in training.

  Args:
    trained: a model of pre-training with PEM.
    teacher: its prompter, tasks.teacher.Teacher.
    entities: names.
    frames: uint8[T, H, W, 3].
    text: that the model reads beside the clip.
    count: regions.
    seed: of the regions.
  """
  options, config = trained.config, trained.model.config
  patch, grid = (
    config.video.patch_size,
    (frames.shape[1] // config.video.patch_size, frames.shape[2] // config.video.patch_size),
  )
  ids, mask = trained.tokenizer.encode([text], options.data.max_text_tokens)

  @jax.jit
  def run(params, teacher, video, key):
    region = masking.sample_regions(
      key, count, grid, area=options.loss.region_area, rule=options.loss.region_rule
    )
    clips = jnp.repeat(video[None], count, axis=0)
    labels, keep = teacher.label(
      masking.crop_regions(clips, region, patch),
      jnp.zeros(count, bool),
      rule=options.prompter.ignore_rule,
      threshold=options.prompter.ignore_threshold,
    )
    model = trained.model.bind({'params': params})
    tokens = model.encode_video(video[None], train=False).tokens
    words = model.encode_text(ids, mask, train=False).tokens
    fused = model.fuse(words, mask, tokens, train=False)
    logits = model.region_entities(jnp.repeat(fused, count, axis=0), region)
    return region, labels, keep, jax.nn.softmax(logits)

  found = jax.tree.map(
    np.asarray, run(trained.params, teacher, jnp.asarray(frames), jax.random.key(seed))
  )

  def top(shares):
    best = np.argsort(-shares, kind='stable')[:5]
    return [(entities[i], float(shares[i])) for i in best]

  return [
    Entity(region.reshape(grid), top(labels), top(answers), bool(kept))
    for region, labels, kept, answers in zip(*found, strict=True)
  ]


# --- The page ---------------------------------------------------------------

_ABOUT = {
  'word': 'Each word in turn is hidden from the model, which is asked what '
  'stood there; the number is the probability of the true word. '
  'Colours show what its answer rests on.',
  'match': 'Each word in turn is hidden; the number is what the word adds '
  'to the margin of a match. Colours show what that rests on.',
  'answer': 'Colours show what the probability of its first answer rests on.',
}


def render(shown: Explained) -> str:
  """Returns the page."""
  origin, looked = shown.trained.origin, shown.looked
  frames = shown.frames
  patch = shown.trained.model.config.video.patch_size
  grid = frames.shape[1] // patch, frames.shape[2] // patch
  about = [
    ('model', f'{origin.path}, step {origin.step}' if origin else ''),
    (
      'clip',
      f'{shown.name}, {shown.seconds[0]:.1f} to {shown.seconds[1]:.1f} s, {len(frames)} frames',
    ),
    ('the model says', shown.verdict),
  ]
  # One scale for all words: a word that rests on nothing stays pale.
  most = max(float(np.quantile(np.abs(shown.evidence), 0.995)), 1e-12)
  names, said = [word.text for word in shown.words], shown.said
  if shown.target == 'answer':
    names, said = said, ['']
  evidence = [
    (name, note, pictures.heat(frames, maps / most, signed=True))
    for name, note, maps in zip(names, said, shown.evidence, strict=True)
  ]
  return page.render(
    'explain.html',
    title=f'“{shown.text}”',
    shown=shown,
    about=about,
    introduction=_ABOUT[shown.target],
    evidence=evidence,
    frames=pictures.enlarge(frames),
    attention=_attention(shown, grid),
    regions=[
      (item, pictures.enlarge(pictures.outline(frames, item.region))) for item in shown.entities
    ],
    space=pictures.heat(frames, _own_scale(looked.space.reshape(-1, *grid)), signed=False),
    time=looked.time,
    largest=0 if looked.time is None else max(looked.time.max(), 1e-12),
  )


def _attention(shown, grid):
  """(word, uint8[2, H, W, 3]): Grad-CAM and attention over the mean frame."""
  mean = shown.frames.mean(0, keepdims=True).astype(np.uint8)
  both = (shown.looked.gradcam[shown.layer], shown.looked.weights[shown.layer])
  return [
    (
      word.text,
      np.concatenate(
        [
          pictures.heat(
            mean,
            _own_scale(maps[row, word.first : word.stop].mean(0).reshape(1, *grid)),
            signed=False,
          )
          for maps in both
        ]
      ),
    )
    for row, word in enumerate(shown.words)
  ]


def _own_scale(maps):
  return maps / max(float(maps.max()), 1e-12)
