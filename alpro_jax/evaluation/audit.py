"""What is in a prepared set, and whom a model serves less well.

The authors leave it to later to look into what such models learn from the web (paper
section 6). Asked here of the splits of one set:

  entities     how often captions name each, together with which, in which split
  words        captions with words of the user's own lists
  duplicates   clips that look alike, within a split and between two: a test clip that
               was trained on is a leak
  accuracy     by entity and by group, with intervals
  labels       clips whose likeliest entity no caption names, though they name others
"""

import collections
import dataclasses
import json
import math
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from alpro_jax import files, metrics
from alpro_jax.data import checksum
from alpro_jax.data.annotations import printable
from alpro_jax.evaluation import card, duplicates, page, question_answering, split
from alpro_jax.evaluation.duplicates import Duplicate, Prints
from alpro_jax.evaluation.question_answering import AnswerResult

_SHOWN = 30  # Lines of a table.
_FEWEST = 5  # Examples of a group that is compared, and mentions of a pair of entities.


class Share(NamedTuple):
  """How well the examples of a group go, in %.

  Attributes:
    name: of the group or entity.
    trained: its share of the captions of training, in %; NaN without such a split.
    examples: of the split that is measured.
    value, low, high: share that is right, and its 95 % interval.
    differs: -1 or 1 where the interval lies below or above that of all others, else 0.
  """

  name: str
  trained: float
  examples: int
  value: float
  low: float
  high: float
  differs: int


class Label(NamedTuple):
  """A clip, the entity that is found in it, how surely, and those that captions name."""

  video: str
  entity: str
  probability: float
  named: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Audit:
  """What was found.

  Attributes:
    about: what was looked at, by name.
    counts: entity -> {split: captions that name it}.
    pairs: (entity, entity, captions that name both, times as often as if independent).
    words: (list, captions with one of its words, share in %, the most frequent ones).
    duplicates: near ones, the nearest first.
    plain: {split: clips that are too plain to be compared}.
    entities, groups: accuracy, the worst first.
    labels: sure ones that captions contradict, the surest first; and their share in %.
  """

  about: Mapping[str, Any]
  counts: Mapping[str, Mapping[str, int]]
  pairs: Sequence[tuple[str, str, int, float]]
  words: Sequence[tuple[str, int, float, str]]
  duplicates: Sequence[Duplicate]
  plain: Mapping[str, int]
  entities: Sequence[Share]
  groups: Sequence[Share]
  labels: Sequence[Label]
  labels_share: float

  @property
  def leaks(self) -> list[Duplicate]:
    """Pairs of two splits."""
    return [pair for pair in self.duplicates if pair.split != pair.other_split]


class Words:
  """Finds whole words or phrases, and their plurals in s, in texts.

  Capitals and Unicode's ways to write one letter make no difference. A word of a script
  without spaces, such as Chinese, is found wherever it stands.

  Args:
    words: to find.
  """

  def __init__(self, words: Iterable[str]):
    # The longest first: 'red ball' is no 'ball' too.
    folded = sorted(set(map(fold, words)), key=lambda word: (-len(word), word))
    self._pattern = re.compile('|'.join(map(_whole, folded)) or '(?!)')
    self._words = frozenset(folded)

  def find(self, text: str) -> frozenset[str]:
    """Returns those that a text has, as `fold` writes them."""
    found = self._pattern.findall(fold(text))
    return frozenset(x if x in self._words else x.removesuffix('s') for x in found)


def fold(text: str) -> str:
  """Returns the form in which words are compared."""
  return unicodedata.normalize('NFKC', unicodedata.normalize('NFKC', text).casefold())


def _whole(word):
  """A pattern of a word that no letter stands beside."""
  before = '' if _alone(word[0]) else r'(?<!\w)'
  after = '' if _alone(word[-1]) else r's?(?!\w)' if word[-1].isalnum() else ''
  return before + re.escape(word) + after


def _alone(sign):
  """Whether letters may stand beside this one that belong to another word, or it is none."""
  scripts = ('CJK', 'HIRAGANA', 'KATAKANA', 'THAI', 'LAO', 'KHMER', 'MYANMAR')
  return not sign.isalnum() or unicodedata.name(sign, '').startswith(scripts)


def read_words(path) -> Words:
  """Reads a list of words or phrases, one a line; what follows # is a comment.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it has none.
  """
  lines = [line.partition('#')[0].strip() for line in checksum.read_lines(path)]
  if not any(lines):
    raise ValueError(f'{path} has no words; expected one a line.')
  return Words(filter(None, lines))


def count_words(lists: Mapping[str, Words], captions: Sequence[str]):
  """Returns Audit.words of all captions."""
  rows = []
  for name, words in lists.items():
    hits = [words.find(text) for text in captions]
    touched = sum(map(bool, hits))
    count = collections.Counter(word for found in hits for word in found)
    most = sorted(count.items(), key=lambda pair: (-pair[1], pair[0]))[:5]
    said = ', '.join(f'{word} {number}' for word, number in most)
    rows.append((name, touched, 100.0 * touched / max(len(captions), 1), said))
  return rows


def count_pairs(named: Sequence[frozenset[str]]):
  """Returns Audit.pairs, the strongest of those that are named often enough first."""
  single = collections.Counter(name for found in named for name in found)
  both = collections.Counter((a, b) for found in named for a in found for b in found if a < b)
  rows = [
    (a, b, count, count * len(named) / (single[a] * single[b]))
    for (a, b), count in both.items()
    if count >= _FEWEST
  ]
  return sorted(rows, key=lambda row: (-row[3], row))


def shares(
  right: np.ndarray,
  videos: Sequence[str],
  members: Mapping[str, Sequence[int]],
  trained: Mapping[str, float],
) -> list[Share]:
  """Compares groups of examples, the worst first.

  Args:
    right: bool[n], of each example.
    videos: of each; the examples of one are drawn together.
    members: group -> its examples.
    trained: group -> its share of training, in %.
  """
  value = 100.0 * np.asarray(right, float)
  _, video = np.unique(videos, return_inverse=True)
  rows = []
  for name, chosen in members.items():
    if len(chosen) < _FEWEST:
      continue
    chosen = np.asarray(chosen)
    rest = np.setdiff1d(np.arange(len(value)), chosen)
    low, high = metrics.bootstrap_interval(value[chosen], groups=video[chosen])
    differs = 0
    if len(rest) >= _FEWEST:
      rest_low, rest_high = metrics.bootstrap_interval(value[rest], groups=video[rest])
      differs = int(low > rest_high) - int(high < rest_low)
    mean = float(value[chosen].mean())
    rows.append(Share(name, trained.get(name, math.nan), len(chosen), mean, low, high, differs))
  return sorted(rows, key=lambda row: (row.value, row.name))


def make(
  model,
  prepared: Mapping[str, Any],
  *,
  measured: str,
  entities: Sequence[str],
  words: Mapping[str, Words],
  groups: Mapping[str, str],
  near: float,
  sure: float,
) -> Audit:
  """Looks into the splits of a set with a model.

  Args:
    model: evaluation.trained.TrainedModel.
    prepared: split -> PreparedDataset; the first is that of training, if there are two.
    measured: the split on which the model is measured.
    entities: names to look for in captions.
    words: list -> what `read_words` gave.
    groups: video -> its group; {} takes the folders of the videos.
    near: see `duplicates.find`.
    sure: probability from which a label counts as sure.
  """
  prints = {name: _prints(model, one) for name, one in prepared.items()}
  texts = {name: [_texts(record) for record in one.metadata()] for name, one in prepared.items()}
  named_by, first = Words(entities).find, next(iter(prepared))
  named = {name: [named_by(text) for row in rows for text in row] for name, rows in texts.items()}
  counts = {
    entity: {name: sum(entity in found for found in rows) for name, rows in named.items()}
    for entity in map(fold, entities)
  }
  every = [text for rows in texts.values() for row in rows for text in row]
  examples = _examples(model, prepared[measured])
  by_entity, by_group = collections.defaultdict(list), collections.defaultdict(list)
  for number, (video, text, _) in enumerate(examples):
    for entity in named_by(text):
      by_entity[entity].append(number)
    if group := _group(video, groups):
      by_group[group].append(number)
  trained_entities, trained_groups = {}, {}
  if first != measured:
    trained_entities = {x: 100.0 * counts[x][first] / max(len(named[first]), 1) for x in counts}
    own = collections.Counter(_group(video, groups) for video in prints[first].names)
    trained_groups = {x: 100.0 * own[x] / len(prints[first].names) for x in (*own, *by_group)}
  right = np.array([row[2] for row in examples])
  videos = [row[0] for row in examples]
  labels, share = _labels(model, prepared[measured], texts[measured], named_by, sure)
  return Audit(
    about={
      'set': prepared[first].path,
      'clips': {name: len(one.names) for name, one in prints.items()},
      'texts': len(every),
      'measured on': measured,
      'near': near,
      'sure': sure,
    },
    counts=counts,
    pairs=count_pairs([found for rows in named.values() for found in rows])[:_SHOWN],
    words=count_words(words, every),
    duplicates=duplicates.find(prints, near),
    plain={name: int(one.plain.sum()) for name, one in prints.items()},
    entities=shares(right, videos, by_entity, trained_entities),
    groups=shares(right, videos, by_group, trained_groups),
    labels=labels,
    labels_share=share,
  )


def _prints(model, prepared):
  codes, plain = [], []
  for batch in split.batches(model, prepared):
    found, dull = duplicates.fingerprint(batch['video'][batch['valid']])
    codes.append(found)
    plain.append(dull)
  names = [record.video for record in prepared.metadata()]
  return Prints(names, np.concatenate(codes), np.concatenate(plain))


def _texts(record):
  return record.captions or tuple(question.text for question in record.questions)


def _group(video, groups):
  return groups.get(video, '') if groups else pathlib.PurePosixPath(video).parent.name


def _examples(model, prepared) -> list[tuple[str, str, bool]]:
  """(video, text, is it right) of every caption or question of a split."""
  found = split.evaluate(model, prepared)
  videos = [record.video for record in found.prepared.metadata()]
  if isinstance(found.found, AnswerResult):
    rows = question_answering.rows(found.found, videos)
    right = found.found.right
    return [(row['video'], row['question'], bool(x)) for row, x in zip(rows, right, strict=True)]
  return [
    (row['video'], row['text'], row['rank'] == 1) for row in card.rank_rows(found.found, videos)
  ]


def _labels(model, prepared, texts, named_by, sure):
  """Sure labels that captions contradict, and their share of all sure ones in %."""
  names = (model.meta or {}).get('entities', ())
  if not names or not model.model.config.embed_size or model.answers_questions:
    return (), math.nan
  scorer = split.make_scorer(model)
  feature = scorer.embed_videos(split.batches(model, prepared), len(prepared)).feature
  logits = scorer.entities(feature, names, model.entity_templates).astype(np.float64)
  odds = np.exp(logits - logits.max(1, keepdims=True))
  odds /= odds.sum(1, keepdims=True)
  wrong, asked = [], 0
  for record, row, own in zip(prepared.metadata(), odds, texts, strict=True):
    named = frozenset().union(*map(named_by, own))
    entity = names[row.argmax()]
    if row.max() < sure or not named:
      continue
    asked += 1
    if not any(_same(fold(entity), name) for name in named):
      wrong.append(Label(record.video, entity, float(row.max()), tuple(sorted(named))))
  wrong.sort(key=lambda label: (-label.probability, label.video))
  return wrong, 100.0 * len(wrong) / asked if asked else math.nan


def _same(entity, name):
  """'ball' says nothing against 'red ball'."""
  return set(entity.split()) <= set(name.split()) or set(name.split()) <= set(entity.split())


def paragraph(audit: Audit) -> str:
  """Says in a few sentences what was found, for the card of a model."""
  clips = ', '.join(f'{n:,} of {name}' for name, n in audit.about['clips'].items())
  said = [
    f'Audited on {pathlib.Path(audit.about["set"]).name} ({clips}; {audit.about["texts"]:,} '
    'texts).',
    f'Pairs of clips that look alike: {len(audit.leaks)} of two splits, '
    f'{len(audit.duplicates) - len(audit.leaks)} within one (at most '
    f'{100 * audit.about["near"]:.0f} % of the bits of their fingerprints differ).',
  ]
  for name, touched, share, _ in audit.words:
    said.append(f'{share:.1f} % of the texts ({touched:,}) have words of the list {name}.')
  for what, rows in (('entities', audit.entities), ('groups', audit.groups)):
    worse = [row for row in rows if row.differs < 0]
    if rows:
      said.append(
        f'On {audit.about["measured on"]}, {what} found less often than the rest, beyond the 95 % '
        f'intervals: {len(worse)} of {len(rows)} with {_FEWEST} examples or more'
        + (f' ({", ".join(row.name for row in worse[:5])}).' if worse else '.')
      )
  if not math.isnan(audit.labels_share):
    said.append(
      f'{audit.labels_share:.1f} % of the labels given with a probability of '
      f'{audit.about["sure"]:g} or more contradict all captions of their clip.'
    )
  return printable(' '.join(said))


def write(audit: Audit, folder) -> pathlib.Path:
  """Writes audit.json, audit.html and audit.md, the paragraph; returns the page."""
  folder = pathlib.Path(folder)
  content = {
    'about': dict(audit.about),
    'paragraph': paragraph(audit),
    'counts': audit.counts,
    'pairs': audit.pairs,
    'words': audit.words,
    'duplicates': [pair._asdict() for pair in audit.duplicates],
    'plain': audit.plain,
    'entities': [_known(row) for row in audit.entities],
    'groups': [_known(row) for row in audit.groups],
    'labels': [label._asdict() for label in audit.labels],
    'labels_share': None if math.isnan(audit.labels_share) else audit.labels_share,
  }
  files.write_text(folder / 'audit.json', json.dumps(content, indent=1, ensure_ascii=False) + '\n')
  files.write_text(folder / 'audit.md', paragraph(audit) + '\n')
  files.write_text(folder / 'audit.html', render(audit))
  return folder / 'audit.html'


def _known(row):
  return {
    k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row._asdict().items()
  }


def render(audit: Audit) -> str:
  """Returns the page."""
  splits = list(audit.about['clips'])
  ordered = sorted(audit.counts.items(), key=lambda row: (-sum(row[1].values()), row[0]))
  return page.render(
    'audit.html',
    title=f'Audit of {printable(pathlib.Path(audit.about["set"]).name)}',
    audit=audit,
    paragraph=paragraph(audit),
    shown=_SHOWN,
    counts=page.Table(
      ['entity', *splits], [(name, *(row[x] for x in splits)) for name, row in ordered[:_SHOWN]]
    ),
    pairs=page.Table(
      ['entities', 'texts', 'times as often as by chance'],
      [(f'{a}, {b}', count, lift) for a, b, count, lift in audit.pairs],
    ),
    words=page.Table(['list', 'texts', '%', 'most frequent'], audit.words),
    duplicates=page.Table(
      ['clip', 'looks like', 'bits that differ, %'],
      [
        (
          f'{x.split}: {printable(x.video)}',
          f'{x.other_split}: {printable(x.other)}',
          100 * x.differs,
        )
        for x in sorted(audit.duplicates, key=lambda x: x.split == x.other_split)[:_SHOWN]
      ],
    ),
    labels=page.Table(
      ['clip', 'found in it', 'probability', 'captions name'],
      [
        (printable(x.video), x.entity, f'{x.probability:.2f}', ', '.join(x.named))
        for x in audit.labels[:_SHOWN]
      ],
    ),
  )
