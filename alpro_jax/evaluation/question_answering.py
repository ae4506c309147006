"""Every question of a split, answered from the list of training answers.

Each video is encoded once and each distinct question once; the fusion encoder
and the answer head read every pair of question and video once. What only fills
the last call is thrown away and never counted (defect 14).

An answer is right if it is the true one, in the canonical form of
data/answers.py. A question whose answer is not in the list cannot be answered:
it counts as wrong and stays in the denominator (defects 24 and 52). Of equal
logits the answer that was more frequent in training counts.
"""

import dataclasses
import functools
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import logging

from alpro_jax import metrics, sharding
from alpro_jax.data.answers import canonical, equal_entries
from alpro_jax.data.progress import Progress
from alpro_jax.evaluation.scorer import Scorer, VideoFeatures

# Kinds that the paper's data sets have, in the order in which they are shown;
# others follow in alphabetical order.
KINDS = ('what', 'who', 'how', 'where', 'when', 'other')
# Distinct questions whose tokens are held at once.
_QUESTIONS_AT_ONCE = 4096
TOP = 5


class AskedQuestion(NamedTuple):
  """A question about a video: its record, text, true answer and kind."""

  record: int
  text: str
  answer: str
  kind: str


@dataclasses.dataclass(frozen=True)
class AnswerResult:
  """What a model answers on a split, and what follows from it.

  Attributes:
    questions: in the order of the records.
    answers: that the model chooses from, most frequent in training first.
    logits: float32[questions, answers].
    metrics: see `figures`.
    intervals: of the accuracies, {name: (low, high)}, 95 % bootstrap by video.
    seconds: time of each part.
  """

  questions: tuple[AskedQuestion, ...]
  answers: tuple[str, ...]
  logits: np.ndarray
  metrics: dict[str, float]
  intervals: dict[str, tuple[float, float]]
  seconds: dict[str, float]

  @property
  def labels(self) -> np.ndarray:
    """int[questions]: the chosen answers."""
    return self.logits.argmax(1)

  @property
  def right(self) -> np.ndarray:
    """bool[questions]."""
    return np.array(
      [
        canonical(self.answers[label]) == canonical(asked.answer)
        for label, asked in zip(self.labels, self.questions, strict=True)
      ]
    )

  def top(self, question: int) -> list[tuple[str, float]]:
    """The most probable answers to a question with their probabilities."""
    logits = self.logits[question].astype(np.float64)
    share = np.exp(logits - logits.max())
    share /= share.sum()
    best = np.argsort(-logits, kind='stable')[:TOP]
    return [(self.answers[label], float(share[label])) for label in best]


def answer(
  scorer: Scorer,
  batches: Iterable[Mapping[str, np.ndarray]],
  questions: Sequence[Sequence[tuple[str, str, str]]],
  answers: Sequence[str],
  *,
  pairs_per_call: int = 256,
) -> AnswerResult:
  """Answers all questions of a split.

  Args:
    scorer: with the model.
    batches: see Scorer.embed_videos.
    questions: of every record, in order: (text, answer, kind).
    answers: that the model chooses from, most frequent first.
    pairs_per_call: pairs of question and video per call, over all devices.
  Raises:
    ValueError: if there is no question, or the model has another number of
      answers.
  """
  asked = tuple(
    AskedQuestion(record, *question) for record, row in enumerate(questions) for question in row
  )
  if not asked:
    raise ValueError('there is no question to answer.')
  if len(answers) != scorer.model.config.answers:
    raise ValueError(
      f'{len(answers)} answers were given, but the model chooses from '
      f'{scorer.model.config.answers}; pass the list of its training.'
    )
  seconds, start = {}, time.monotonic()

  def lap(name):
    nonlocal start
    now = time.monotonic()
    seconds[name], start = now - start, now

  if equal := equal_entries(answers):
    logging.warning(
      '%d answers are listed in more than one spelling, such as %s; the '
      'model has a label for each, and any of them counts as right.',
      len(equal),
      list(equal[0]),
    )
  videos = scorer.embed_videos(batches, len(questions))
  lap('videos')
  logits = _logits(scorer, videos, asked, pairs_per_call)
  lap('questions')
  chosen = [answers[label] for label in logits.argmax(1)]
  found, intervals = figures(asked, chosen, answers)
  lap('metrics')
  return AnswerResult(asked, tuple(answers), logits, found, intervals, seconds)


def figures(
  asked: Sequence[AskedQuestion], chosen: Sequence[str], answers: Sequence[str]
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
  """Accuracies in percent, and what they are to be compared with.

  Args:
    asked: all questions.
    chosen: the answer given to each.
    answers: that could be chosen, most frequent in training first.
  Returns:
    Figures, in percent: accuracy; in_list, the share of questions whose answer
    can be chosen, which is the most that can be reached; most_frequent, the
    accuracy of always giving the most frequent training answer; best_per_kind,
    that of the best single answer for each kind; best_per_wording, that of the
    best answer for each wording, which says little where questions do not
    recur. And questions, wordings and videos, which are counts. All but
    most_frequent, wordings and videos also for each kind, as accuracy_what.
    And the 95 % intervals of the accuracies, by bootstrap over videos.
  """
  asked = [question._replace(answer=canonical(question.answer)) for question in asked]
  chosen, answers = (list(map(canonical, x)) for x in (chosen, answers))
  known = frozenset(answers)
  video = np.array([question.record for question in asked])
  kinds = np.array([question.kind for question in asked], object)
  right = np.array(
    [question.answer == given for question, given in zip(asked, chosen, strict=True)]
  )
  in_list = np.array([question.answer in known for question in asked])
  wordings = np.array([question.text for question in asked], object)
  by_kind = _best_of(kinds, asked, known)
  by_wording = _best_of(wordings, asked, known)

  def shares(own):
    return {
      'accuracy': 100.0 * right[own].mean(),
      'in_list': 100.0 * in_list[own].mean(),
      'best_per_kind': 100.0 * by_kind[own].mean(),
      'best_per_wording': 100.0 * by_wording[own].mean(),
      'questions': own.sum(),
    }

  everything = np.ones(len(asked), bool)
  first = np.array([question.answer == answers[0] for question in asked])
  found = shares(everything) | {
    'most_frequent': 100.0 * first.mean(),
    'wordings': len(set(wordings)),
    'videos': len(np.unique(video)),
  }
  intervals = {'accuracy': metrics.bootstrap_interval(100.0 * right, groups=video)}
  for kind in list_kinds(kinds):
    own = kinds == kind
    found |= {f'{name}_{kind}': value for name, value in shares(own).items()}
    intervals[f'accuracy_{kind}'] = metrics.bootstrap_interval(
      100.0 * right[own], groups=video[own]
    )
  return {name: float(value) for name, value in found.items()}, intervals


def figure_names(kinds: Iterable[str]) -> list[str]:
  """The figures that have an interval, by name; kinds of the questions."""
  return ['accuracy', *(f'accuracy_{kind}' for kind in list_kinds(kinds))]


def _best_of(groups, asked, known):
  """bool[questions]: right, if each group got its best answer of the list."""
  count = {}
  for group, question in zip(groups, asked, strict=True):
    if question.answer in known:
      count.setdefault(group, Counter())[question.answer] += 1
  best = {group: counted.most_common(1)[0][0] for group, counted in count.items()}
  return np.array(
    [best.get(group) == question.answer for group, question in zip(groups, asked, strict=True)]
  )


def list_kinds(kinds: Iterable[str]) -> list[str]:
  """Returns the distinct kinds in the order in which they are shown."""
  found = set(kinds)
  return [k for k in KINDS if k in found] + sorted(found.difference(KINDS))


def rows(answered: AnswerResult, videos: Sequence[str]) -> list[dict]:
  """What was answered to every question, as JSON; videos name the records."""
  return [
    {
      'video': videos[asked.record],
      'question': asked.text,
      'answer': asked.answer,
      'kind': asked.kind,
      'prediction': answered.answers[label],
      'right': bool(right),
      'top': [
        {'answer': text, 'probability': round(share, 6)} for text, share in answered.top(number)
      ],
    }
    for number, (asked, label, right) in enumerate(
      zip(answered.questions, answered.labels, answered.right, strict=True)
    )
  ]


def _logits(
  scorer: Scorer, videos: VideoFeatures, asked: Sequence[AskedQuestion], pairs_per_call: int
) -> np.ndarray:
  """float32[questions, answers]."""
  index = {}
  text = np.array([index.setdefault(question.text, len(index)) for question in asked])
  video = np.array([question.record for question in asked])
  texts = list(index)
  # Questions of one text side by side, so that few texts are held at once.
  order = np.argsort(text, kind='stable')
  mesh = scorer.mesh
  size = min(max(pairs_per_call, 1), len(asked))
  size = -(-size // mesh.size) * mesh.size
  call, rows = _compiled(scorer.model, mesh), sharding.batch_sharding(mesh)

  def place(array):
    return jax.make_array_from_callback(array.shape, rows, lambda part: array[part])

  logits = np.empty((len(asked), scorer.model.config.answers), np.float32)
  progress = Progress(len(asked), 'questions', log=logging.info)
  for start in range(0, len(texts), _QUESTIONS_AT_ONCE):
    stop = min(start + _QUESTIONS_AT_ONCE, len(texts))
    features = scorer.embed_texts(texts[start:stop])
    first, last = np.searchsorted(text[order], [start, stop])
    for begin in range(first, last, size):
      # The last call repeats its last pair until it is full.
      padded = order[np.minimum(np.arange(begin, begin + size), last - 1)]
      real = min(size, last - begin)
      own = text[padded] - start
      part = call(
        scorer.params,
        place(features.tokens[own]),
        place(features.mask[own]),
        place(videos.tokens[video[padded]]),
      )
      logits[padded[:real]] = jax.device_get(part)[:real]
      progress.add(real)
  return logits


@functools.lru_cache(maxsize=8)
def _compiled(model, mesh):
  """The jitted call of a model; an evaluation during training reuses it."""

  # Results leave the devices whole, so that every host can read them.
  @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
  def call(params, text_tokens, mask, video_tokens):
    return model.bind({'params': params}).answer(text_tokens, mask, video_tokens)

  return call
