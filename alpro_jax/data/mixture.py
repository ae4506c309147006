"""The prepared sets of a run: which texts of which records, when, how often."""

import array
import collections
import dataclasses
import math

import numpy as np
from absl import logging

from alpro_jax.data import answers, bucket_shards, dataset, tokens

TEXTS = ('captions', 'questions')
EXAMPLES = ('videos', 'texts')
MEASURED = 20_000  # Texts of a source that are counted by their length.


class TooManyBroken(ValueError):
  """More records cannot be read than `data.broken_share` allows: the set is at fault."""


@dataclasses.dataclass(eq=False)
class Source:
  """A prepared set as training uses it; see configs.common.source.

  An example is a video with one of its texts drawn at random, or, where
  `examples` is 'texts', one text with its video.

  Attributes:
    num_records, num_texts: that are used; len() is how many examples there are.
    records: int64[n], the record of each example.
    keys: int64[n], what keys the randomness of each example.
    first: int64[n + 1], index of the first text of each example.
    labels: int32[texts], index among the known answers, -1 for none.
    unknown_answers: how often each answer occurs that is not a known one.
    only_photos: bool, of all examples.
  """

  dataset: dataset.PreparedDataset
  key: int  # Keys its randomness: its index in the list.
  weight: float = 1.0
  style: str = ''  # Of captions, or the kind of questions.
  from_step: int = 0
  until_step: int = -1
  text: str = 'captions'
  examples: str = 'videos'
  answers: tuple[str, ...] = ()  # The known ones, for questions.
  # Record -> why it could not be read; grows while reading.
  broken: dict[int, str] = dataclasses.field(default_factory=dict)
  # Texts that lose tokens, and texts looked at; from `measure_texts`.
  cut: tuple[int, int] | None = None

  def __post_init__(self):
    self.name, self.digest = self.dataset.name, self.dataset.digest
    if not 0 <= self.weight < math.inf:
      raise ValueError(f'{self.name}: weight={self.weight} must not be negative or infinite.')
    if self.text not in TEXTS or self.examples not in EXAMPLES:
      raise ValueError(
        f'config.data.text={self.text!r} must be one of {TEXTS} and '
        f'config.data.examples={self.examples!r} one of {EXAMPLES}.'
      )
    # Arrays, not lists: there may be millions of records.
    numbers, counts, answered = array.array('q'), array.array('q'), []
    self.only_photos = True
    for number, record in enumerate(self.dataset.metadata()):
      if texts := self._texts_of(record):
        numbers.append(number)
        counts.append(len(texts))
        self.only_photos &= record.still
        if self.text == 'questions':
          answered += [question.answer for question in texts]
    if not numbers:
      raise ValueError(self._nothing())
    self.records = self.keys = self._with_texts = np.array(numbers, np.int64)
    self.first = self._first = np.concatenate([[0], np.cumsum(counts)])
    self.num_records, self.num_texts = len(self.records), int(self.first[-1])
    if self.examples == 'texts':
      self.records = np.repeat(self.records, counts)
      self.keys = np.arange(self.num_texts)
      self.first = np.arange(self.num_texts + 1)
    self.labels = np.full(self.num_texts, -1, np.int32)
    self.unknown_answers = collections.Counter()
    if answered:
      self.labels = answers.label_answers(answered, self.answers)
      self.unknown_answers.update(answered[i] for i in np.flatnonzero(self.labels < 0))

  def _texts_of(self, record):
    """Returns list of str, captions, or of Question."""
    if self.text == 'captions':
      return record.captions_of(self.style)
    return record.questions_of(self.style)

  def _nothing(self):
    styles = set()
    for record in self.dataset.metadata():
      kinds = (question.kind for question in record.questions)
      styles.update(record.styles if self.text == 'captions' else kinds)
    if not styles:
      return f'{self.name} has no {self.text}; prepare it with a file of {self.text}.'
    return (
      f'{self.name}: none of its {self.text} has style={self.style!r}, '
      f'only {sorted(styles)}; set style in data.sources.'
    )

  def __len__(self):
    return len(self.records)

  def is_active(self, steps):
    """bool[n] of steps int64[n]: may a batch come from here?"""
    return (steps >= self.from_step) & ((self.until_step < 0) | (steps < self.until_step))

  def read_text(self, index):
    """Returns the text of an index below `num_texts`, as str."""
    row = np.searchsorted(self._first, index, 'right') - 1
    record = self.dataset.metadata()[self._with_texts[row]]
    text = self._texts_of(record)[index - self._first[row]]
    return text if self.text == 'captions' else text.text

  def report(self):
    """Returns what was read, and what could not be, as JSON."""
    records, broken = self.dataset.metadata(), sorted(self.broken.items())
    found = {
      'source': self.name,
      'style': self.style,
      'digest': self.digest,
      'records': self.num_records,
      self.text: self.num_texts,
      'replaced': {records[number].video: reason for number, reason in broken},
    }
    if self.text == 'questions':
      found['unknown_answers'] = self.unknown_answers.total()
    if self.cut:
      found |= {'texts_cut': self.cut[0], 'texts_measured': self.cut[1]}
    return found


def open_sources(config):
  """Opens `config.sources`; returns list of Source.

  Args:
    config: config.data.
  Raises:
    ValueError: if there is no source, or one has no text of the wanted kind.
    FileNotFoundError: if a set or the list of answers is not there.
  """
  if not config.sources:
    raise ValueError('data.sources is empty; list prepared sets by common.source(path).')
  questions = config.text == 'questions'
  known = answers.read_answers(config.answers) if questions else ()
  opened, sources, cache = {}, [], None
  if folder := config.get('cache_dir', ''):
    cache = bucket_shards.Cache(folder, config.get('cache_gb', 0.0))
  for key, entry in enumerate(config.sources):
    options = dict(entry)
    where = options.pop('path'), options.pop('split')
    if where not in opened:
      verify = None if config.verify else False
      opened[where] = dataset.open_dataset(*where, verify=verify, cache=cache)
    sources.append(
      Source(
        opened[where], key, text=config.text, examples=config.examples, answers=known, **options
      )
    )
    if questions:
      _check_answers(sources[-1], config.answers)
  return sources


def check_schedule(sources, steps):
  """Checks that a batch can come from somewhere at every step below `steps`.

  Raises:
    ValueError: if no source is active at one.
  """
  changes = {0, *(step for x in sources for step in (x.from_step, x.until_step))}
  for step in sorted(change for change in changes if 0 <= change < steps):
    if not any(source.weight and source.is_active(step) for source in sources):
      raise ValueError(
        f'No source is active at {step=} of {steps}; look at from_step, until_step and weight in '
        'data.sources.'
      )


def _check_answers(source, path):
  """Says how many questions of a source have an answer of the list.

  Raises:
    ValueError: if none has: every loss would be 0, and nothing be learned.
  """
  missing = source.unknown_answers.most_common(5)
  examples = ', '.join(f'{answer!r} ({n})' for answer, n in missing)
  known = (source.labels >= 0).mean()
  if not known:
    raise ValueError(
      f'{source.name}: not one of its {source.num_texts} questions has an '
      f'answer of config.data.answers={path}, so that nothing could be '
      f'learned. The questions are answered by {examples}; the list begins '
      f'with {list(source.answers[:5])}. Make the list of this set with '
      f'`python launch/answers.py --data={source.dataset.path} --split='
      f'{source.dataset.split} --output=answers.txt`.'
    )
  logging.info(
    f'{source.name}: {100 * known:.1f} % of {source.num_texts} questions have an answer of '
    'the list; the others teach nothing' + (f', such as {examples}' if missing else '')
  )


def measure_texts(sources, tokenizer, max_tokens):
  """Counts texts that are longer than max_tokens, and says so in the log.

  Of each source all texts are looked at, or MEASURED of them, evenly spread.
  The counts go to `Source.cut`, and into the report.
  """
  for source in sources:
    number = min(source.num_texts, MEASURED)
    indices = np.arange(number) * source.num_texts // number
    cut = tokens.count_cut(tokenizer, [source.read_text(i) for i in indices], max_tokens)
    source.cut = cut, number
    if cut:
      logging.warning(
        f'{source.name}: {cut} of {number} {source.text} have more than '
        f'data.max_text_tokens={max_tokens} tokens; their ends are cut off.'
      )
