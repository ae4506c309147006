"""Trains a SentencePiece tokenizer on captions and questions."""

import argparse
import sys

import numpy as np

from alpro_jax.data import annotations, captions, tokens

EXAMPLES = """
examples:
    python launch/tokenizer.py --captions=sets/clips --output=clips.model
    python launch/tokenizer.py --captions=captions.jsonl --vocab_size=8000 \\
      --output=clips.model

A BERT vocab.txt needs no training: give its path as config.data.tokenizer.
"""


def _parser():
  parser = argparse.ArgumentParser(
      prog='python launch/tokenizer.py', description=__doc__, epilog=EXAMPLES,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False)
  add = parser.add_argument
  captions.add_flags(parser)
  add('--output', required=True, help='file to write, ending in .model')
  add('--vocab_size', type=int, default=30000,
      help='most pieces; few captions give fewer (30000)')
  return parser


def main(argv=None):
  options = _parser().parse_args(argv)
  texts = captions.read_all(options.captions, options.split, questions=True)
  model = tokens.train_sentencepiece(
      texts, options.output, options.vocab_size)
  print(f'{model.vocab_size} pieces from {len(texts)} texts -> '
        f'{options.output}')
  # An even spread, for the texts of one source or kind stand together.
  texts = texts[::-(-len(texts) // 10_000)]
  lengths = np.sort(model.encode(texts, 512)[1].sum(1))
  middle, most, longest = (
      '512 or more' if length == 512 else str(length) for length in (
          lengths[int(share * (len(lengths) - 1))] for share in (.5, .99, 1)))
  print(f'Tokens per text, [CLS] and [SEP] included: median {middle}, 99 % '
        f'have at most {most}, the longest {longest}; what is longer than '
        'config.data.max_text_tokens is cut.')
  print('Set config.data.tokenizer to the file.')


if __name__ == '__main__':
  try:
    main()
  except (OSError, ValueError) as e:
    sys.exit(f'tokenizer: {annotations.printable_lines(e)}')
