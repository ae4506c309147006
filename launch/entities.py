"""Makes the entity list of the prompter from the nouns of captions.

  python launch/entities.py --captions=sets/webvid --output=entities.txt
  python launch/entities.py --captions=captions.jsonl --limit=100 \\
    --stop_words=footage,video,background --output=entities.txt
"""

try:
  from launch import command
except ModuleNotFoundError:
  import not_installed  # noqa: F401

from absl import flags, logging

from alpro_jax import files
from alpro_jax.data import annotations, captions, checksum, entities

_CAPTIONS = flags.DEFINE_multi_string(
  'captions',
  None,
  'A prepared set, or a .csv, .jsonl or .txt file; may be repeated.',
  required=True,
)
_SPLIT = flags.DEFINE_string('split', 'train', 'Split of the captions.')
_OUTPUT = flags.DEFINE_string('output', None, 'File to write: noun, tab, count.', required=True)
_LIMIT = flags.DEFINE_integer('limit', 1000, 'How many nouns.')
_PHRASES = flags.DEFINE_bool(
  'phrases', False, 'Nouns with the adjective or noun before them, as "red ball", "fire truck".'
)
_STOP_WORDS = flags.DEFINE_string(
  'stop_words', '', 'Nouns to leave out: a,b,c or a file with one a line.'
)


def _stop_words(text):
  if files.exists(text):
    words = checksum.read_lines(text)
  elif '/' in text or text.endswith('.txt'):
    raise FileNotFoundError(f'--stop_words={text} is not a file; give one, or words: a,b,c.')
  else:
    words = text.split(',')
  return [word.strip() for word in words if word.strip()]


def main():
  logging.set_verbosity(logging.INFO)
  texts = captions.read_all(_CAPTIONS.value, _SPLIT.value)
  stop_words = _stop_words(_STOP_WORDS.value)
  counted = entities.count_entities(
    texts, _LIMIT.value, stop_words=stop_words, phrases=_PHRASES.value
  )
  entities.write_entities(counted, _OUTPUT.value)
  print(f'{len(counted)} entities from {len(texts)} captions -> {_OUTPUT.value}')
  for noun, count in counted[:10]:
    print(f'  {count:8d}  {annotations.printable(noun)}')
  if len(counted) < _LIMIT.value:
    print(f'Only {len(counted)} of {_LIMIT.value}: set config.prompter.num_entities accordingly.')


if __name__ == '__main__':
  command.run(main, in_buckets=True)
