"""Every question of a split, answered from the list of training answers.

Each video is encoded once and each distinct question once; the fusion encoder
and the answer head read every pair of question and video once.

An answer is right if it is the true one, in the canonical form of
data/answers.py. A question whose answer is not in the list cannot be answered:
it counts as wrong and stays in the denominator (defects 24 and 52). Of equal
logits the answer that was more frequent in training counts.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from alpro_jax import metrics
from alpro_jax.data.answers import canonical, equal_entries
from alpro_jax.data.progress import Progress
from alpro_jax.evaluation.scorer import Scorer, Stopwatch

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
  """What a model answers on a split, and what follows from it."""

  questions: tuple[AskedQuestion, ...]  # In the order of the records.
  answers: tuple[str, ...]  # To choose from, most frequent in training first.
  logits: np.ndarray  # float32[questions, answers].
  metrics: dict[str, float]  # See `figures`.
  intervals: dict[str, tuple[float, float]]  # Of the accuracies.
  seconds: dict[str, float]  # Time of each part.

  @property
  def labels(self) -> np.ndarray:
    """int[questions]: the chosen answers."""
    return self.logits.argmax(1)

  @property
  def right(self) -> np.ndarray:
    """bool[questions]."""
    given = [canonical(self.answers[label]) for label in self.labels]
    true = [canonical(asked.answer) for asked in self.questions]
    return np.array([a == b for a, b in zip(given, true, strict=True)])

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
) -> AnswerResult:
  """Answers all questions of a split.

  Args:
    scorer: with the model.
    batches: see Scorer.embed_videos.
    questions: of every record: (text, answer, kind).
    answers: that the model chooses from, most frequent first.
  Raises:
    ValueError: if there is no question, or another number of answers.
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
  if equal := equal_entries(answers):
    logging.warning(
      '%d answers are listed in more than one spelling, such as %s; the '
      'model has a label for each, and any of them counts as right.',
      len(equal),
      list(equal[0]),
    )
  watch = Stopwatch()
  videos = scorer.embed_videos(batches, len(questions))
  watch.lap('videos')
  logits = _logits(scorer, videos, asked)
  watch.lap('questions')
  found, intervals = figures(asked, [answers[label] for label in logits.argmax(1)], answers)
  watch.lap('metrics')
  return AnswerResult(asked, tuple(answers), logits, found, intervals, watch.seconds)


def _logits(scorer, videos, asked):
  """float32[questions, answers]."""
  index = {}
  text = np.array([index.setdefault(question.text, len(index)) for question in asked])
  video = np.array([question.record for question in asked])
  texts = list(index)
  # Questions of one text side by side, so that few texts are held at once.
  order = np.argsort(text, kind='stable')
  logits = np.empty((len(asked), scorer.model.config.answers), np.float32)
  progress = Progress(len(asked), 'questions', log=logging.info)
  for start in range(0, len(texts), _QUESTIONS_AT_ONCE):
    stop = start + _QUESTIONS_AT_ONCE
    chosen = order[slice(*np.searchsorted(text[order], [start, stop]))]
    features = scorer.embed_texts(texts[start:stop])
    own = text[chosen] - start
    logits[chosen] = scorer.answers(features, videos, own, video[chosen], progress)
  return logits


def figures(
  asked: Sequence[AskedQuestion], chosen: Sequence[str], answers: Sequence[str]
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
  """Accuracies in percent, and what they are to be compared with.

  Args:
    asked: all questions.
    chosen: the answer given to each.
    answers: that could be chosen, most frequent in training first.
  Returns:
    Figures: accuracy; in_list, the share of questions whose answer can be
    chosen, which is the most that can be reached; best_per_kind, the accuracy
    of the best single answer for each kind; best_per_wording, that of the best
    answer for each wording, which says little where questions do not recur;
    most_frequent, that of the most frequent training answer; the numbers of
    questions, wordings and videos. The first four, and questions, also for
    each kind, as accuracy_what. And the 95 % intervals of the accuracies, by
    bootstrap over videos.
  """
  video, wordings, true, kinds = (np.array(x, object) for x in zip(*asked, strict=True))
  true, given, answers = (np.array([*map(canonical, x)], object) for x in (true, chosen, answers))
  in_list = np.isin(true, answers)
  hits = {
    'accuracy': true == given,
    'in_list': in_list,
    'best_per_kind': _best_of(kinds, true, in_list),
    'best_per_wording': _best_of(wordings, true, in_list),
  }
  found, intervals = {}, {}
  for suffix, own in [('', np.ones(len(asked), bool))] + [
    (f'_{kind}', kinds == kind) for kind in list_kinds(kinds)
  ]:
    found |= {f'{name}{suffix}': 100.0 * hit[own].mean() for name, hit in hits.items()}
    found[f'questions{suffix}'] = own.sum()
    if not suffix:
      found |= {
        'most_frequent': 100.0 * (true == answers[0]).mean(),
        'wordings': len(set(wordings)),
        'videos': len(set(video)),
      }
    intervals[f'accuracy{suffix}'] = metrics.bootstrap_interval(
      100.0 * hits['accuracy'][own], groups=video[own].astype(int)
    )
  return {name: float(value) for name, value in found.items()}, intervals


def list_kinds(kinds: Iterable[str]) -> list[str]:
  """Returns the distinct kinds in the order in which they are shown."""
  found = set(kinds)
  return [k for k in KINDS if k in found] + sorted(found.difference(KINDS))


def _best_of(groups, true, in_list):
  """bool[questions]: right, if each group got its best answer of the list."""
  count = {}
  for group, answer in zip(groups[in_list], true[in_list], strict=True):
    count.setdefault(group, Counter())[answer] += 1
  best = {group: counted.most_common(1)[0][0] for group, counted in count.items()}
  return np.array([best.get(group) for group in groups], object) == true


def rows(result: AnswerResult, videos: Sequence[str]) -> list[dict]:
  """What was answered to every question, as JSON; videos name the records."""
  return [
    {
      'video': videos[asked.record],
      'question': asked.text,
      'answer': asked.answer,
      'kind': asked.kind,
      'prediction': result.answers[label],
      'right': bool(right),
      'top': [
        {'answer': text, 'probability': round(share, 6)} for text, share in result.top(number)
      ],
    }
    for number, (asked, label, right) in enumerate(
      zip(result.questions, result.labels, result.right, strict=True)
    )
  ]
