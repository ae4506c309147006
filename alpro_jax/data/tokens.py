"""Captions as ids, by a BERT vocabulary or a SentencePiece model.

The tokenizers of image-text weights are in tower_tokens.py.
"""

import hashlib
import io
import os
import pathlib

import numpy as np
import sentencepiece
import tokenizers
from absl import logging

from alpro_jax import files
from alpro_jax.batch import SpecialTokens
from alpro_jax.data import checksum, tower_tokens

# One name for each field of SpecialTokens, the same in every tokenizer here.
PIECES = SpecialTokens('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
# What the file of each kind is called where it travels with a model.
NAMES = {
  'wordpiece': 'vocab.txt',
  'sentencepiece': 'tokenizer.model',
  tower_tokens.TowerTokenizer.kind: tower_tokens.FILE,
}


class Tokenizer:
  """Turns texts into rows of ids; made by load_tokenizer.

  Attributes:
    path: of its file.
    kind: 'wordpiece' or 'sentencepiece'.
    vocab_size: ids are 0..vocab_size-1.
    special: ids of the five special tokens.
    content: bytes of the file, by which it is copied.
    digest: sha256 of the content; another digest means other ids.
    packages: that serving/alpro_loader.py reads the file with.
  """

  def __init__(self, path, kind, pieces, split, join):
    ids = {piece: i for i, piece in enumerate(pieces)}
    if missing := [piece for piece in PIECES if piece not in ids]:
      raise ValueError(
        f'{path} lacks {missing}; a tokenizer needs all of {list(PIECES)}. '
        'launch/tokenizer.py makes one that has them.'
      )
    self.path, self.kind = pathlib.Path(path), kind
    self.packages = ('sentencepiece',) if kind == 'sentencepiece' else ()
    self.vocab_size = len(pieces)
    self.special = SpecialTokens(*(ids[piece] for piece in PIECES))
    self.content = checksum.read_bytes(path)
    self.digest = hashlib.sha256(self.content).hexdigest()
    self._split = split  # list of str -> list of list of ids, none special.
    self._join = join  # list of ids, none special -> str.

  def encode(self, texts, max_tokens):
    """Turns texts into rows of the same length.

    With max_tokens 7, where 5 and 6 are words, 2 is [CLS], 3 is [SEP]:

      'disc'                  [2 5 3 0 0 0 0]  mask [1 1 1 0 0 0 0]
      ''                      [2 3 0 0 0 0 0]  mask [1 1 0 0 0 0 0]
      six words and more      [2 5 6 5 6 5 3]  mask [1 1 1 1 1 1 1]

    Args:
      texts: list of str.
      max_tokens: L, at least 3.

    Returns:
      int32[B, L] ids and bool[B, L], True on every token but padding.
    """
    if max_tokens < 3:
      raise ValueError(
        f'{max_tokens=} leaves no room for a word between [CLS] and [SEP]; '
        'set data.max_text_tokens.'
      )
    ids = np.full((len(texts), max_tokens), self.special.pad, np.int32)
    mask = np.zeros((len(texts), max_tokens), bool)
    ids[:, 0] = self.special.cls
    for i, row in enumerate(self._split(list(texts))):
      row = row[: max_tokens - 2]
      ids[i, 1 : len(row) + 1] = row
      ids[i, len(row) + 1] = self.special.sep
      mask[i, : len(row) + 2] = True
    return ids, mask

  def decode(self, ids):
    """Returns the text of one row of ids, without special tokens."""
    return self._join([int(i) for i in ids if i not in self.special])


class Pair:
  """The tokenizers of a model with two encoders of texts, its BERT's and its text tower's.

  All attributes but these are those of the BERT's.

  Attributes:
    text: Tokenizer.
    tower: TowerTokenizer.
    tower_tokens: M, of every row of the tower's ids.
  """

  def __init__(self, text, tower, tower_tokens):
    self.text, self.tower, self.tower_tokens = text, tower, tower_tokens
    self.path, self.kind, self.vocab_size = text.path, text.kind, text.vocab_size
    self.special, self.content, self.digest = text.special, text.content, text.digest

  def encode(self, texts, max_tokens):
    """Returns what the BERT's gives, int32[B, L] and bool[B, L], and int32[B, M] of the tower."""
    return *self.text.encode(texts, max_tokens), self.tower.encode(texts, self.tower_tokens)[0]

  def decode(self, ids):
    """Returns the text of one row of the BERT's ids."""
    return self.text.decode(ids)


def parts(tokenizer):
  """Returns the tokenizers that one is made of: both of a Pair, or itself alone."""
  return (tokenizer.text, tokenizer.tower) if isinstance(tokenizer, Pair) else (tokenizer,)


def load_tokenizers(config):
  """Opens what the model of a config reads texts with: a tokenizer, or a Pair.

  Args:
    config: see configs/common.py. A model without `text` reads with its tower's alone.

  Raises:
    FileNotFoundError, ValueError: see load_tokenizer; or the tower knows too few ids.
  """
  data, tower = config.data, config.model.get('text_tower')
  if not tower:
    return load_tokenizer(data.tokenizer)
  if not (path := data.tower_tokenizer or data.tokenizer):
    raise FileNotFoundError(
      'This model has a text tower, whose tokenizer comes with its weights; pass '
      '--config.data.tower_tokenizer=FOLDER.'
    )
  second = tower_tokens.load(path)
  if not config.model.get('text'):
    return second
  if second.vocab_size > tower.vocab_size:
    raise ValueError(
      f'{second.path} has {second.vocab_size} ids, but {tower.vocab_size=}: this is the tokenizer '
      'of other weights. Set config.data.tower_tokenizer to the folder of these.'
    )
  return Pair(load_tokenizer(data.tokenizer), second, data.max_tower_tokens)


def load_tokenizer(path):
  """Opens a tokenizer: a vocabulary (.txt), a SentencePiece model (.model), or a text tower's.

  The last is a folder, or a file that tower_tokens.load takes.
  """
  path = files.local(path)
  if path.is_dir() and str(path) != '.' or path.name.endswith(('.json', '.gz')):
    return tower_tokens.load(path)
  if not path.is_file():
    raise FileNotFoundError(
      f'No tokenizer at {str(path)!r}; pass --config.data.tokenizer=FILE: a BERT vocab.txt, '
      'a model made by launch/tokenizer.py, or the tokenizer.model in the folder of a set '
      "of one's own."
    )
  kinds = {'.txt': _load_wordpiece, '.model': _load_sentencepiece}
  if path.suffix not in kinds:
    raise ValueError(
      f'{path.name!r} ends in {path.suffix!r}; a tokenizer is a BERT '
      'vocab.txt or a SentencePiece .model file.'
    )
  return kinds[path.suffix](path)


def _load_wordpiece(path):
  pieces = checksum.read_lines(path)  # Of BERT's vocab.txt: id = line - 1.
  vocab = {piece: i for i, piece in enumerate(pieces)}
  if len(vocab) != len(pieces):
    twice = next(piece for i, piece in enumerate(pieces) if vocab[piece] != i)
    raise ValueError(f'{path} lists {twice!r} twice; ids must be unique.')
  # A vocabulary without capitals is meant for lower-cased text.
  lower = not any(piece != piece.lower() for piece in pieces if not piece.startswith('['))
  model = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token=PIECES.unk))
  model.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lower, strip_accents=lower)
  model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()

  def split(texts):
    return [row.ids for row in model.encode_batch_fast(texts, add_special_tokens=False)]

  def join(ids):
    return ' '.join(pieces[i] for i in ids).replace(' ##', '')

  return Tokenizer(path, 'wordpiece', pieces, split, join)


def _load_sentencepiece(path):
  try:
    model = sentencepiece.SentencePieceProcessor(model_proto=checksum.read_bytes(path))
  except RuntimeError as e:
    raise ValueError(f'{path} is no SentencePiece model; make one with launch/tokenizer.py.') from e
  pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
  return Tokenizer(path, 'sentencepiece', pieces, model.encode, model.decode)


def count_cut(tokenizer, texts, max_tokens):
  """Returns how many of a list of texts `encode` has to cut, as int."""
  mask = tokenizer.encode(texts, max_tokens + 1)[1]
  return int(mask[:, -1].sum())


def warn_of_cut(tokenizer, texts, max_tokens, consequence):
  """Logs how many of a list of texts `encode` has to cut, and what becomes of their ends."""
  if cut := count_cut(tokenizer, texts, max_tokens):
    logging.warning(
      '%d of %d texts have more than %d tokens; their ends are %s.',
      cut,
      len(texts),
      max_tokens,
      consequence,
    )


def train_sentencepiece(captions, path, vocab_size, *, max_captions=1_000_000):
  """Trains a lower-casing byte-pair model; the same captions, the same file.

  Args:
    captions: list of str.
    path: file to write, ending in .model.
    vocab_size: largest number of pieces, the special ones included; there are
      fewer if the captions have no more.
    max_captions: of more captions, an even spread of this many is used.

  Returns:
    The trained tokenizer.
  """
  if not os.fspath(path).endswith('.model'):
    raise ValueError(f'{os.fspath(path)!r} must end in .model.')
  # Texts with U+2585, which is a mark of its own, are dropped by the trainer.
  captions = [x.replace('\u2585', ' ') for x in captions]
  captions = [x for x in captions if x.strip()]
  if not captions:
    raise ValueError('There are no captions to train a tokenizer from.')
  if len(captions) > max_captions:
    chosen = np.arange(max_captions) * len(captions) // max_captions
    captions = [captions[i] for i in chosen]
  model = io.BytesIO()
  # And so are texts of more bytes than this, 4,192 unless it is told.
  longest = max(len(caption.encode()) for caption in captions)
  length = {'max_sentence_length': longest} if longest > 4192 else {}
  try:
    # Byte pairs, not unigrams: on a few hundred captions those stay letters.
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(captions),
      model_writer=model,
      vocab_size=vocab_size,
      hard_vocab_limit=False,
      model_type='bpe',
      character_coverage=0.9999 if len(captions) > 10_000 else 1.0,
      normalization_rule_name='nmt_nfkc_cf',
      pad_id=0,
      unk_id=1,
      bos_id=2,
      eos_id=3,
      pad_piece=PIECES.pad,
      unk_piece=PIECES.unk,
      bos_piece=PIECES.cls,
      eos_piece=PIECES.sep,
      control_symbols=[PIECES.mask],
      num_threads=1,
      minloglevel=2,
      **length,
    )
  except RuntimeError as e:
    advice = ' every letter needs one, so allow more.' if 'required_chars' in str(e) else ''
    raise ValueError(
      f'SentencePiece cannot make {vocab_size=} pieces from '
      f'{len(captions)} captions;{advice} It says: {e}'
    ) from e
  checksum.write_bytes(path, model.getvalue())
  return load_tokenizer(path)
