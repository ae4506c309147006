"""Makes the entity list of the prompter from the nouns of captions."""

import argparse
import os
import sys

from absl import logging

from alpro_jax.data import annotations, captions, checksum, entities

EXAMPLES = """
examples:
    python launch/entities.py --captions=sets/webvid --output=entities.txt
    python launch/entities.py --captions=captions.jsonl --limit=100 \\
      --stop_words=footage,video,background --output=entities.txt
"""


def _parser():
  parser = argparse.ArgumentParser(
      prog='python launch/entities.py', description=__doc__, epilog=EXAMPLES,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False)
  add = parser.add_argument
  captions.add_flags(parser)
  add('--output', required=True, help='file to write: noun, tab, count')
  add('--limit', type=int, default=1000, help='how many nouns (1000)')
  add('--stop_words', default='',
      help='nouns to leave out: a,b,c or a file with one a line')
  return parser


def _stop_words(text):
  if os.path.isfile(text):
    return checksum.read_text(text).split()
  return [word.strip() for word in text.split(',') if word.strip()]


def main(argv=None):
  options = _parser().parse_args(argv)
  logging.set_verbosity(logging.INFO)
  texts = captions.read_all(options.captions, options.split)
  counted = entities.count_entities(
      texts, options.limit, stop_words=_stop_words(options.stop_words))
  entities.write_entities(counted, options.output)
  print(f'{len(counted)} entities from {len(texts)} captions -> '
        f'{options.output}')
  for noun, count in counted[:10]:
    print(f'  {count:8d}  {annotations.printable(noun)}')
  if len(counted) < options.limit:
    print(f'Only {len(counted)} of {options.limit}: set '
          'config.prompter.num_entities accordingly.')


if __name__ == '__main__':
  try:
    main()
  except (OSError, ValueError) as e:
    sys.exit(f'entities: {annotations.printable_lines(e)}')
