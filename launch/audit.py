"""Looks into a prepared set with a model: leaks, words, and whom it serves less well.

  python launch/audit.py --checkpoint=runs/clips --data=sets/clips --output=audit
  python launch/audit.py --checkpoint=runs/clips --data=sets/clips --splits=train,test \\
    --words=insults.txt,brands.txt --groups=groups.jsonl --output=audit

It writes a page (audit.html), the same for programs (audit.json), and a paragraph for the
card of the model (audit.md). Words: a file for each list, one word or phrase a line; which
ones are sensitive is yours to say. Groups: lines such as {"video": "a.mp4", "group":
"indoors"}; without --groups the folders of the videos are groups.
"""

try:
  from launch import command
except ModuleNotFoundError:
  import not_installed  # noqa: F401

import collections
import json
import os
import pathlib

from absl import flags

_CHECKPOINT = flags.DEFINE_string('checkpoint', None, command.MODEL, required=True)
_DATA = flags.DEFINE_string('data', None, 'Prepared set.', required=True)
_SPLITS = flags.DEFINE_list(
  'splits', [], "Splits to look into, that of training first; by default the set's own."
)
_OUTPUT = flags.DEFINE_string('output', 'audit', 'Folder of the page.')
_WORDS = flags.DEFINE_list('words', [], 'Files of words, one word or phrase a line.')
_GROUPS = flags.DEFINE_string('groups', '', 'Lines of JSON with video and group.')
_ENTITIES = flags.DEFINE_string(
  'entities', '', "File of entities to look for; by default the model's, else frequent nouns."
)
_NEAR = flags.DEFINE_float(
  'near', 0.05, 'Share of the bits of two fingerprints that may differ.', 0.0, 0.5
)
_SURE = flags.DEFINE_float('sure', 0.9, 'Probability from which a label is sure.', 0.0, 1.0)


def main():
  command.start()
  from alpro_jax import api
  from alpro_jax.data import annotations, dataset, own
  from alpro_jax.evaluation import audit, trained

  stems = collections.Counter(pathlib.Path(path).stem for path in _WORDS.value)
  words = {}
  for path in _WORDS.value:  # Lists of several languages may have one name.
    stem = pathlib.Path(path).stem
    words[path if stems[stem] > 1 else stem] = audit.read_words(path)
  groups = _read_groups(_GROUPS.value) if _GROUPS.value else {}
  names = list(dict.fromkeys(_SPLITS.value))
  if not names:
    parts = own.parts(_DATA.value)
    names = [name for name in (parts.train, parts.held_out, *parts.left) if name]
  prepared = {name: dataset.open_dataset(_DATA.value, name) for name in names}
  videos = {record.video for one in prepared.values() for record in one.metadata()}
  if groups and not groups.keys() & videos:
    raise ValueError(
      f'{_GROUPS.value} names none of the {len(videos)} videos of {_DATA.value}: it begins with '
      f'{next(iter(groups))!r}, the set with {min(videos)!r}.'
    )
  for which, some in (
    ('of its names are of no video of the set', groups.keys() - videos),
    ('videos of the set are in no group', videos - groups.keys() if groups else ()),
  ):
    if some:
      print(f'{_GROUPS.value}: {len(some)} {which}, such as {annotations.printable(min(some))}')
  found = api.find(_CHECKPOINT.value)
  model = trained.load(found, config=command.with_defaults(found.meta['config'])[0])
  found = audit.make(
    model,
    prepared,
    measured=names[-1],
    entities=_entities(model, prepared),
    words=words,
    groups=groups,
    near=_NEAR.value,
    sure=_SURE.value,
  )
  print(audit.paragraph(found))
  print(f'Written: {audit.write(found, _OUTPUT.value)}, audit.json, audit.md')


def _entities(model, prepared):
  from alpro_jax.data import entities

  if _ENTITIES.value:
    return entities.read_entities(_ENTITIES.value, 0)
  if known := (model.meta or {}).get('entities'):
    return list(known)
  texts = [text for one in prepared.values() for row in one.captions() for text in row]
  return [name for name, _ in entities.count_entities(texts, 100)]


def _read_groups(path):
  from alpro_jax.data import checksum
  from alpro_jax.data.names import canonical

  groups = {}
  for number, line in enumerate(checksum.read_lines(path), 1):
    try:
      row = json.loads(line)
      video, group = canonical(row['video']), str(row['group'])
      if groups.setdefault(video, group) != group:
        raise ValueError(f'{video} is in group {groups[video]!r} already')
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f'{os.fspath(path)}:{number} is no line such as {{"video": "a.mp4", "group": "indoors"}}: '
        f'{error}'
      ) from error
  return groups


if __name__ == '__main__':
  command.run(main)
