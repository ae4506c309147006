"""A prepared set of one's own: its training and held-out parts, and the lists beside it."""

import shlex
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from alpro_jax import files
from alpro_jax.data import annotations, answers, captions, dataset, entities, tokens
from alpro_jax.data.manifest import read_manifest

TOKENIZER, ENTITIES, ANSWERS = 'tokenizer.model', 'entities.txt', 'answers.txt'
# The first of them that is there measures a run and chooses its best step: 'test' should not,
# where there is another.
_HELD_OUT = ('val', 'validation', 'validate', 'test')
# A fifth of the videos is held out, and at most so many; of fewer videos than this, none.
_MOST, _ENOUGH = 1000, 20
_PIECES, _NOUNS = 30_000, 1000  # At most, as launch/tokenizer.py and entities.py.


class Parts(NamedTuple):
  """Splits of a set, as `open_dataset` takes them.

  Attributes:
    train, held_out: names; '' is none.
    videos: how many there are to train on.
    held_out_videos: and to evaluate on.
    left: other held-out splits, on which a run measures nothing.
  """

  train: str
  held_out: str
  videos: int
  held_out_videos: int
  left: tuple[str, ...] = ()


def parts(path) -> Parts:
  """Says what of a set is trained on, and what is held out.

  A split of its own is held out where the set has one: `val`, or `test`, which is left alone
  beside a `val`. Otherwise a fifth of the training videos is, at most 1,000, if there are 20.

  Raises:
    FileNotFoundError: if there is no set.
    ValueError: if it has no split to train on.
  """
  splits = {name: entry['examples'] for name, entry in read_manifest(path)['splits'].items()}
  held_out, *left = [name for name in _HELD_OUT if name in splits] or ['']
  others = [name for name in splits if name not in _HELD_OUT]
  train = 'train' if 'train' in splits else others[0] if len(others) == 1 else ''
  if not train:
    raise ValueError(
      f'{path} has no split to train on, only {sorted(splits)}; make one with '
      'launch/prepare.py --split=train.'
    )
  if held_out:
    return Parts(train, held_out, splits[train], splits[held_out], tuple(left))
  count = min(splits[train] // 5, _MOST)
  if splits[train] < _ENOUGH:
    return Parts(train, '', splits[train], 0)
  return Parts(f'{train}[:-{count}]', f'{train}[-{count}:]', splits[train] - count, count)


def shared(trained: tuple[str, str], measured: tuple[str, str]) -> list[str]:
  """Returns the videos of a split that are in another one too, by the names they have there.

  Videos are one if they have the same content, as far as the sets say it (of a thousand,
  see prepare.py), and in one set also if they have the same name: unless their contents
  differ, or those of all others of the same name do, which come from two folders then.

  Args:
    trained, measured: (path, split) of both, as `open_dataset` takes them.
  Raises:
    FileNotFoundError, ValueError: see `open_dataset`.
  """
  here, there = _contents(*trained), _contents(*measured)
  known = set(filter(None, here.values()))
  same = files.absolute(trained[0]) == files.absolute(measured[0])
  alike = here.keys() & there.keys() if same else set()
  told = {video for video in alike if here[video] and there[video]}
  differ = {video for video in told if here[video] != there[video]}
  alike = set() if told and told == differ else alike - differ
  return [video for video, content in there.items() if video in alike or content in known]


def _contents(path, split):
  """Returns {video: size and digest of its ends, '' where that is not known} of a split."""
  entry = read_manifest(path)['splits'].get(split.partition('[')[0], {})
  known = entry.get('plan', {}).get('videos', {})
  records = dataset.open_dataset(path, split, verify=False).metadata()
  return {record.video: known.get(record.video, '') for record in records}


def write_lists(path) -> list[str]:
  """Writes tokenizer, entities and answers of a set's training texts into its folder.

  What is there stays: trained models depend on it.

  Returns:
    a line about each.
  """
  split, said = parts(path).train, []
  records = dataset.open_dataset(path, split, verify=False).metadata()

  def there(name):
    return files.exists(files.join(path, name))

  if there(TOKENIZER):
    said.append(f'{TOKENIZER}: kept as it is')
  else:
    texts = captions.read_all([path], split, questions=True)
    made = tokens.train_sentencepiece(texts, files.join(path, TOKENIZER), _PIECES)
    said.append(f'{TOKENIZER}: {made.vocab_size} pieces from {len(texts)} texts')
  if there(ENTITIES):
    said.append(f'{ENTITIES}: kept as it is')
  else:
    texts = [text for record in records for text in record.captions]
    if counted := entities.count_entities(texts, _NOUNS):
      entities.write_entities(counted, files.join(path, ENTITIES))
      first = ', '.join(annotations.printable(noun) for noun, _ in counted[:3])
      said.append(f'{ENTITIES}: {len(counted)} nouns of captions ({first}, ...)')
  asked = [question.answer for record in records for question in record.questions]
  if there(ANSWERS):
    said.append(f'{ANSWERS}: kept as it is')
  elif asked:
    counted = answers.count_answers(asked)
    answers.write_answers([answer for answer, _ in counted], files.join(path, ANSWERS))
    said.append(f'{ANSWERS}: {len(counted)} answers to {len(asked)} questions')
  return said


def path_of(config: Any, given: Collection[str] = ()) -> str:
  """Returns `data.path`, or '' where the command line names `data.sources` in its place.

  Raises:
    ValueError: if it names both.
  """
  path = config.data.path
  if not path or not any(name.partition('[')[0] == 'data.sources' for name in given):
    return path
  if 'data.path' in given:
    raise ValueError(
      f'--config.data.path={path} and --config.data.sources both say what is trained on; give one '
      'of them: the path for one set with its own lists, or sources for several, for weights '
      'and styles.'
    )
  return ''


def use(config: Any, *, source, given: Collection[str] = ()) -> Any:
  """Returns a config whose sets and lists are those of `data.path`, if it names a set.

  Sets that the config names are replaced, unless the command line names them (see
  `path_of`); tokenizer, entities and answers are where the config names none. `data.path`
  is empty then.

  Args:
    config: see configs/common.py.
    source: configs.common.source.
    given: dotted names of options of the command line; `eval.sources` among them stays.
  Raises:
    FileNotFoundError, ValueError: see `path_of` and `parts`.
  """
  if not config.data.path:
    return config
  config, path = config.copy_and_resolve_references(), path_of(config, given)
  config.data.path = ''
  if not path:
    return config
  found = parts(path)
  with config.unlocked():
    config.data.sources = (source(path, split=found.train),)
    if 'eval.sources' not in given:
      config.eval.sources = (source(path, split=found.held_out),) if found.held_out else ()
    if not config.eval.sources:
      config.train.best_metric = ''  # Nothing measures it.
  for section, option, name, needed, make in (
    # A model of a text tower alone reads with the tower's.
    ('data', 'tokenizer', TOKENIZER, bool(config.model.get('text')), 'tokenizer.py --captions'),
    ('prompter', 'entities', ENTITIES, _labels(config), 'entities.py --captions'),
    ('data', 'answers', ANSWERS, config.data.text == 'questions', 'answers.py --data'),
  ):
    if config[section][option] or not needed:
      continue
    file = files.join(path, name)
    if not files.exists(file):
      raise FileNotFoundError(
        f'{file} is not there, and config.{section}.{option} names no other; make it with: '
        + shlex.join(
          ['python', *f'launch/{make}={path}'.split(' ', 1), f'--split={found.train}']
          + [f'--output={file}']
        )
      )
    config[section][option] = file
  return config


def _labels(config):
  return config.task == 'pretrain' and config.loss.pem > 0


def say(found: Parts, path, both: Sequence[str] = (), *, measured: bool = True) -> str:
  """Says what of a set is trained on and what it is measured on.

  Args:
    found: its parts.
    path: of the set.
    both: what is `shared` by them.
    measured: whether what is held out is measured on, and not another set.
  """
  trains = f'{path}: trains on {found.videos} videos ({found.train})'
  if not measured:
    return f'{trains}, measures on what config.eval.sources names'
  if not found.held_out:
    return (
      f'{path}: trains on all {found.videos} videos; too few (below {_ENOUGH}) to '
      'hold some out, so that nothing measures the model, or marks what is unlike them'
    )
  if both:
    told = f'{found.held_out_videos} ({found.held_out}), of which {_some(both)}'
  else:
    told = f'{found.held_out_videos} others ({found.held_out})'
  if found.left:
    told += f', and leaves {", ".join(found.left)} for launch/evaluate.py --split={found.left[-1]}'
  return f'{trains}, measures on {told}'


def refusal(found: Parts, path, both: Sequence[str]) -> str:
  """Says why a split that is trained on too is not measured on, '' if it may be.

  Of a part of one split no more than copies are, which `say` tells.
  """
  if not both or '[' in found.held_out:
    return ''
  return (
    f'{path}: of the {found.held_out_videos} videos of split {found.held_out!r}, which would be '
    f'measured on, {_some(both)} ({found.train!r}). Rows of a captions file without a "split" '
    'belong to every split: give each row one, and prepare both splits again into another '
    '--output; or train without a measure by --config.eval.sources="()"; or measure on them all '
    "the same by --config.eval.sources=\"({'path': '"
    f"{path}', 'split': '{found.held_out}'}},)\""
  )


def _some(videos):
  names = ', '.join(map(annotations.printable, videos[:2])) + (', ...' if videos[2:] else '')
  return f'{len(videos)} {"is" if len(videos) == 1 else "are"} trained on too: {names}'
