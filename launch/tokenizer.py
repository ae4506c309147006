"""Trains a SentencePiece tokenizer on captions and questions.

  python launch/tokenizer.py --captions=sets/clips --output=clips.model
  python launch/tokenizer.py --captions=captions.jsonl --vocab_size=8000 \\
    --output=clips.model

A BERT vocab.txt needs no training: give its path as config.data.tokenizer.
"""

try:
  from launch import command
except ModuleNotFoundError:
  import not_installed  # noqa: F401

import numpy as np
from absl import flags

from alpro_jax.data import captions, tokens

_CAPTIONS = flags.DEFINE_multi_string(
  'captions',
  None,
  'A prepared set, or a .csv, .jsonl or .txt file; may be repeated.',
  required=True,
)
_SPLIT = flags.DEFINE_string('split', 'train', 'Split of the captions.')
_OUTPUT = flags.DEFINE_string('output', None, 'File to write, ending in .model.', required=True)
_VOCAB_SIZE = flags.DEFINE_integer('vocab_size', 30000, 'Most pieces; few captions give fewer.')


def main():
  texts = captions.read_all(_CAPTIONS.value, _SPLIT.value, questions=True)
  model = tokens.train_sentencepiece(texts, _OUTPUT.value, _VOCAB_SIZE.value)
  print(f'{model.vocab_size} pieces from {len(texts)} texts -> {_OUTPUT.value}')
  # An even spread, for the texts of one source or kind stand together.
  texts = texts[:: -(-len(texts) // 10_000)]
  lengths = np.sort(model.encode(texts, 512)[1].sum(1))
  middle, most, longest = (
    '512 or more' if length == 512 else str(length)
    for length in (lengths[int(share * (len(lengths) - 1))] for share in (0.5, 0.99, 1))
  )
  print(
    f'Tokens per text, [CLS] and [SEP] included: median {middle}, 99 % '
    f'have at most {most}, the longest {longest}; what is longer than '
    'config.data.max_text_tokens is cut.'
  )
  print('Set config.data.tokenizer to the file.')


if __name__ == '__main__':
  command.run(main, in_buckets=True)
