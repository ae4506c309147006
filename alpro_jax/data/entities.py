"""The list of entities the prompter knows: frequent nouns of the captions."""

import collections
import itertools
import os
import re
from collections.abc import Iterable

from absl import logging

from alpro_jax import files
from alpro_jax.data import checksum

# Words only: no numbers, addresses or placeholders such as <person>.
_WORD = re.compile(r"[a-z]+(?:[-'][a-z]+)+|[a-z]{2,}")
_NUMBER = re.compile(r'\d[\d.,]*(e[-+]?\d+)?')
_LOG_EVERY = 200_000
# A verb that the tagger takes for a noun stands behind a subject nearly always.
_VERB_SHARE = 0.8
# What stands behind a noun phrase that ends, and what begins another.
_CLOSES = ('.', 'IN', 'TO', 'RB', 'MD', 'VBZ', 'VBD')
_OPENS = ('DT', 'PRP$', 'CD')
# Behind "the", these seldom stand for a thing.
_NO_THINGS = frozenset('few first last little many next other own same such'.split())


def count_entities(
  captions: Iterable[str], limit: int, *, stop_words: Iterable[str] = (), phrases: bool = False
) -> list[tuple[str, int]]:
  """Counts nouns, or noun phrases, by the lexicon that TextBlob brings along.

  A noun counts once per mention. A plural joins its singular where that occurs as well, so
  "dogs" joins "dog" but "dress" does not become "dres". The lexicon has one part of speech
  for each word. So what closes a phrase such as "a small key" counts, whatever it says of
  "key"; and what can be a verb and stands behind a subject at 80 % of its mentions, as
  "moves" does, is left out. Read the list all the same: "the left" is there too, and a verb
  that is often a noun, such as "light", is counted with the noun.

  A phrase is a noun with the adjective or noun right before it: "a small red ball" counts
  as "red ball" and "two fire trucks" as "fire truck", and not as "ball", "fire" or "truck"
  too. A noun without one counts as itself.

  Args:
    captions: all of them.
    limit: keep this many.
    stop_words: nouns, or phrases, to leave out, in the form that is counted.
    phrases: count phrases.
  Returns:
    list of (noun, count), most frequent first, equal counts by alphabet.
  """
  # Half a second to import, and the training process never needs it.
  from textblob.en import inflect, lexicon, tag  # noqa: PLC0415

  if limit < 1:
    raise ValueError(f'{limit=} must be at least 1.')
  singular, plural, doubtful = (collections.Counter() for _ in range(3))
  for number, caption in enumerate(captions, 1):
    # Lower case, or the tagger takes capitals for names.
    tagged = tag(caption.lower())
    found = [
      (place, word, many, doubt and _can_be_verb(word, lexicon))
      for place, word, many, doubt in _nouns(tagged)
    ]
    if phrases:
      found = _with_modifiers(tagged, found)
    for _, word, many, doubt in found:
      if all(map(_WORD.fullmatch, word.split(' '))):
        (plural if many else singular)[word] += 1
        doubtful[word] += doubt
    if number % _LOG_EVERY == 0:
      logging.info('Tagged %d captions.', number)
  for word, doubts in doubtful.items():
    if doubts and doubts >= _VERB_SHARE * (singular[word] + plural[word]):
      del singular[word], plural[word]
  for word, count in plural.items():
    modifier, _, noun = word.rpartition(' ')
    single = f'{modifier} {inflect.singularize(noun)}'.lstrip()
    singular[single if single in singular else word] += count
  for word in stop_words:
    del singular[word.lower()]
  return sorted(singular.items(), key=lambda item: (-item[1], item[0]))[:limit]


def _can_be_verb(word, lexicon):
  stems = (word, word.removesuffix('s'), word.removesuffix('es'))
  forms = {form for stem in stems for form in (stem, stem.removesuffix('e'), stem + stem[-1:])}
  return any(lexicon.get(f'{form}ing') == 'VBG' for form in forms)


def _nouns(tagged):
  """Yields (place, noun, is it a plural, may it be a verb) of [(word, part of speech)]."""
  tags = [tag for _, tag in tagged]
  for i, (word, tag) in enumerate(tagged):
    earlier = [x for x in tags[:i] if x != 'RB'] or ['']
    if tag.startswith('NN'):
      # "a ball moves", "it moves", "dogs run", "turns and moves".
      subject = ('NN', 'PRP', 'W') if tag == 'NNS' else ('NNS', 'PRP')
      joined = earlier[-1] == 'CC' and earlier[-2:-1] == ['VBZ']
      doubt = joined or (earlier[-1].startswith(subject) and earlier[-1] != 'PRP$')
      tags[i] = 'VBZ' if doubt else tag  # For what stands behind it.
      yield i, word, tag == 'NNS', doubt
    elif _ends_phrase(tagged, tags, i):
      tags[i] = 'NNS' if tag == 'VBZ' else 'NN'
      yield i, word, tag == 'VBZ', False


def _ends_phrase(tagged, tags, i):
  """Must this be a noun, as in "a small key", "a stick", "the leaves fall"?"""
  start = i - 1
  while start >= 0 and tags[start] == 'JJ' and tags[i] != 'VBZ':
    start -= 1
  first = tagged[start][0] if start >= 0 else ''
  if not first or tags[start] not in _OPENS or tagged[i][0] in _NO_THINGS:
    return False
  if tags[i] != 'JJ':
    return tags[i] in ('VB', 'VBP') or (tags[i] == 'VBZ' and first not in ('this', 'that'))
  then, after = [*tags[i + 1 :], '.', '.'][:2]
  if then == 'NNS':  # "a key moves", but "the red balls".
    return first in ('a', 'an')
  if then in ('CC', ',', ':'):  # "a key, a box and a ball", but "a big, red ball".
    return after.startswith((*_CLOSES, *_OPENS, ',', 'V', 'W', 'PRP', 'EX'))
  return then in _CLOSES


def _with_modifiers(tagged, nouns):
  """Yields what `_nouns` does, of phrases: see count_entities."""
  nouns = {place: rest for place, *rest in nouns}
  for i, (word, many, doubt) in nouns.items():
    before, tag = tagged[i - 1] if i else ('', '')
    head = i + 1 not in nouns or nouns[i + 1][2]  # "a ball moves": the verb is no head.
    if not head:
      continue
    modifies = (tag == 'JJ' and before not in _NO_THINGS) or (
      i - 1 in nouns and not nouns[i - 1][2] and not doubt
    )
    yield i, f'{before} {word}' if modifies else word, many, doubt


def write_entities(counted: Iterable[tuple[str, int]], path) -> None:
  """Writes a noun, a tab and its count on each line."""
  checksum.write_text(path, ''.join(f'{noun}\t{count}\n' for noun, count in counted))


def read_entities(path, limit: int) -> list[str]:
  """Reads the first `limit` entities of a file, all different, with single blanks.

  Args:
    path: one entity a line, most frequent first. It is all of the line, of one word or
      several, up to a tab: a count may stand there. In files without tabs, numbers at the
      end of every line are counts, too.
    limit: number of entities, Z; 0 takes every line.
  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it has too few lines, a blank one, an entity twice, or it is not clear what
      of a line is the entity.
  """
  if not files.exists(path):
    raise FileNotFoundError(
      f'No entities at {os.fspath(path)!r}; set prompter.entities to a file made by '
      'launch/entities.py.'
    )
  lines = checksum.read_lines(path)
  if not lines:
    raise ValueError(f'{path} is empty; make it with launch/entities.py.')
  if len(lines) < limit:
    raise ValueError(
      f'{path} has {len(lines)} lines, {limit} entities are wanted; make a '
      'longer file or lower prompter.num_entities.'
    )
  if limit < 0:
    raise ValueError(f'{limit} entities are wanted; give a number, or 0 for every line.')
  names = _without_counts(path, lines[: limit or None])
  first = {}
  for number, name in enumerate(names, 1):
    if not name:
      raise ValueError(f'{path}:{number} is blank; each line is an entity.')
    if first.setdefault(name, number) != number:
      raise ValueError(f'{path}:{number} repeats {name!r} of line {first[name]}.')
  logging.info(
    '%s: %d entities, %d of them of several words: %s, ...',
    path,
    len(names),
    sum(' ' in name for name in names),
    ', '.join(names[:8]),
  )
  return names


def _without_counts(path, lines):
  """Returns the entities of lines that may end in counts."""
  words = [line.split('\t')[0].split() for line in lines]
  if all(len(line) > 1 and _NUMBER.fullmatch(line[0]) for line in words):
    raise ValueError(
      f'{path}: every line begins with a number, such as {lines[0]!r}; '
      'expected the entity first, and its count behind a tab.'
    )
  if not any('\t' in line for line in lines):
    numbers = [
      sum(1 for _ in itertools.takewhile(_NUMBER.fullmatch, reversed(line[1:]))) for line in words
    ]
    fewest, most = min(numbers), max(numbers)
    if not fewest and most and all(words):
      raise ValueError(
        f'{path}:{numbers.index(most) + 1} ends in a number and line '
        f'{numbers.index(0) + 1} does not: is it a count, or part of the '
        'entity? Write a tab before every count, or behind such an entity.'
      )
    words = [line[: len(line) - fewest] for line in words]
  return [' '.join(line) for line in words]
