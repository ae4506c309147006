"""The list of entities the prompter knows: frequent nouns of the captions."""

import collections
import pathlib
import re

from absl import logging

from alpro_jax.data import checksum

# Words only: no numbers, addresses or placeholders such as <person>.
WORD = re.compile(r"[a-z]+(?:[-'][a-z]+)*")
LOG_EVERY = 200_000


def count_entities(captions, limit, *, stop_words=()):
  """Counts nouns by the lexicon that TextBlob brings along.

  A noun counts once per mention. A plural joins its singular where that
  occurs as well, so "dogs" joins "dog" but "dress" does not become "dres".

  Args:
    captions: iterable of str.
    limit: keep this many.
    stop_words: nouns to leave out, in the form that is counted.

  Returns:
    list of (noun, count), most frequent first, equal counts by alphabet.
  """
  # Half a second to import, and the training process never needs it.
  from textblob.en import inflect, tag  # noqa: PLC0415

  if limit < 1:
    raise ValueError(f'{limit=} must be at least 1.')
  singular, plural = collections.Counter(), collections.Counter()
  for number, caption in enumerate(captions, 1):
    # Lower case, or the tagger takes capitals for names.
    for word, kind in tag(caption.lower()):
      if kind.startswith('NN') and len(word) > 1 and WORD.fullmatch(word):
        (plural if kind == 'NNS' else singular)[word] += 1
    if number % LOG_EVERY == 0:
      logging.info('Tagged %d captions.', number)
  for word, count in plural.items():
    single = inflect.singularize(word)
    singular[single if single in singular else word] += count
  stop_words = {word.lower() for word in stop_words}
  counted = [x for x in singular.items() if x[0] not in stop_words]
  return sorted(counted, key=lambda x: (-x[1], x[0]))[:limit]


def write_entities(counted, path):
  """Writes `noun count`, one a line."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(f'{noun} {count}\n' for noun, count in counted))
  checksum.write(path)


def read_entities(path, limit):
  """Reads the first `limit` entities of a file.

  Args:
    path: one entity a line, most frequent first; what follows the first blank
      of a line, such as a count, is not read.
    limit: number of entities, Z; 0 takes every line.

  Returns:
    list of str, all different.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(
        f'No entities at {str(path)!r}; set prompter.entities to a file made '
        'by launch/entities.py.')
  lines = checksum.read_text(path).splitlines()
  limit = limit or len(lines)
  if not lines:
    raise ValueError(f'{path} is empty; make it with launch/entities.py.')
  if len(lines) < limit:
    raise ValueError(
        f'{path} has {len(lines)} lines, {limit} entities are wanted; make a '
        'longer file or lower prompter.num_entities.')
  names = []
  places = {}
  for number, line in enumerate(lines[:limit], 1):
    if not line.strip():
      raise ValueError(f'{path}:{number} is blank; each line is an entity.')
    name = line.split()[0]
    if name in places:
      raise ValueError(
          f'{path}:{number} repeats {name!r} of line {places[name]}.')
    places[name] = number
    names.append(name)
  return names
