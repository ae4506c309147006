"""Texts as ids for the text towers of image-text weights, as each family reads them.

A family is a rule for cleaning, begin, end, padding and length, and its weights come with
a vocabulary in one of several files. `load` makes one thing of both, TowerTokenizer, whose
content, tower.json, is all that travels with a model.

  clip        transformers' CLIP: nothing is cleaned, padded with the end
  open_clip   OpenAI's own code and open_clip: ftfy, HTML entities; padded with 0
  pe_core     the same with 32 or 72 tokens
  siglip      lower case, no punctuation; SentencePiece; padded to 64 with the end
  siglip2     lower case; Gemma's tokenizer; padded to 64 with 0
"""

import base64
import dataclasses
import functools
import gzip
import hashlib
import html
import json
import pathlib
import re
import string
import zlib
from typing import Any

import numpy as np
import sentencepiece
import tokenizers

from alpro_jax.batch import SpecialTokens
from alpro_jax.data import checksum

# What JSON of other things, gzip and SentencePiece raise.
_BROKEN = (ValueError, TypeError, AttributeError, LookupError, RuntimeError)
_BROKEN += (EOFError, gzip.BadGzipFile, zlib.error)
FILE = 'tower.json'  # What `content` is called where it travels with a model.
_PUNCTUATION = str.maketrans('', '', string.punctuation)
# Words, digits one by one, and the rest, as CLIP splits texts.
_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclasses.dataclass(frozen=True)
class Rules:
  """How a family reads texts.

  Attributes:
    family: its name, see above.
    clean: name of one of CLEAN.
    begin, end, pad: pieces, or ids; begin is None where texts have none.
    context: tokens that the tower can read.
    whole: whether it reads padding too, so that every row must have `context` tokens.
  """

  family: str
  clean: str
  begin: Any
  end: Any
  pad: Any
  context: int
  whole: bool = False


# CLIP's pieces of transformers, and what OpenAI's code calls them.
_BEGIN, _END = '<|startoftext|>', '<|endoftext|>'
_OPENAI = {_BEGIN: '<start_of_text>', _END: '<end_of_text>'}
FAMILIES = {
  rules.family: rules
  for rules in (
    Rules('clip', 'none', _BEGIN, _END, _END, 77),
    Rules('open_clip', 'lower', *_OPENAI.values(), 0, 77),
    Rules('pe_core', 'lower', *_OPENAI.values(), 0, 32),
    Rules('siglip', 'no_punctuation', None, '</s>', '</s>', 64, whole=True),
    Rules('siglip2', 'none', None, '<eos>', '<pad>', 64, whole=True),
  )
}
# Classes of tokenizer_config.json whose name tells the family.
_CLASSES = {
  'CLIPTokenizer': 'clip',
  'SiglipTokenizer': 'siglip',
  'T5Tokenizer': 'siglip',
  'GemmaTokenizer': 'siglip2',
  'Siglip2Tokenizer': 'siglip2',
}


class TowerTokenizer:
  """Turns texts into rows of ids as a family's own tokenizer does; made by `load`.

  Attributes:
    path: that it was loaded from.
    kind: 'tower'.
    rules: Rules, with ids for pieces.
    vocab_size: ids are 0..vocab_size-1.
    special: ids of the special tokens, -1 of those that the family has not.
    content: bytes of tower.json: vocabulary and rules.
    digest: sha256 of the content; another digest means other ids.
    packages: that serving/alpro_loader.py reads the content with.
  """

  kind = 'tower'

  def __init__(self, path, content):
    stored = json.loads(content)
    self.path, self.content = pathlib.Path(path), content
    self.digest = hashlib.sha256(content).hexdigest()
    self.rules = rules = Rules(**stored['rules'])
    if 'sentencepiece' in stored:
      model = _sentencepiece(stored['sentencepiece'])
      self.vocab_size, unknown = model.get_piece_size(), model.unk_id()
      self._split, self._join = model.encode, model.decode
    else:
      try:
        model = tokenizers.Tokenizer.from_str(json.dumps(stored['tokenizer']))
      except Exception as error:  # The library raises that itself.
        raise ValueError(str(error)) from error
      model.no_padding()
      model.no_truncation()
      self.vocab_size = 1 + max(model.get_vocab().values())
      spec = stored['tokenizer']['model']
      unknown = spec.get('unk_id', model.token_to_id(spec.get('unk_token') or ''))
      if unknown == rules.end:  # CLIP's, which knows every byte.
        unknown = None
      self._split = lambda texts: [
        row.ids for row in model.encode_batch_fast(texts, add_special_tokens=False)
      ]
      self._join = lambda ids: model.decode(ids).replace('</w>', ' ').strip()
    cleaned = ('ftfy',) if rules.clean in _WITH_FTFY else ()
    self.packages = ('sentencepiece' if 'sentencepiece' in stored else 'tokenizers', *cleaned)
    ids = rules.pad, unknown, rules.begin, rules.end, None
    self.special = SpecialTokens(*(-1 if x is None else x for x in ids))

  def encode(self, texts, max_tokens):
    """Turns texts into rows of the same length; the last token of a text is always its end.

    With max_tokens 5 for CLIP, where 5 is a word, 8 is the begin and 9 the end:

      'disc'           [8 5 9 9 9]  mask [1 1 1 0 0]
      ''               [8 9 9 9 9]  mask [1 1 0 0 0]
      four and more    [8 5 5 5 9]  mask [1 1 1 1 1]

    Args:
      texts: list of str.
      max_tokens: L; fewer than `rules.context` are taken as that by families that read padding.

    Returns:
      int32[B, L] ids and bool[B, L], True on every token but padding.
    """
    rules = self.rules
    length = max(max_tokens, rules.context) if rules.whole else max_tokens
    first = [] if rules.begin is None else [rules.begin]
    if length < len(first) + 2:
      raise ValueError(
        f'{max_tokens=} leaves no room for a word beside begin and end; set '
        'data.max_tower_tokens, or data.max_text_tokens where there is no other tokenizer.'
      )
    ids = np.full((len(texts), length), rules.pad, np.int32)
    mask = np.zeros((len(texts), length), bool)
    for i, row in enumerate(self._split([CLEAN[rules.clean](text) for text in texts])):
      row = [*first, *row[: length - len(first) - 1], rules.end]
      ids[i, : len(row)], mask[i, : len(row)] = row, True
    return ids, mask

  def decode(self, ids):
    """Returns the text of one row of ids, without begin and what follows the end."""
    ids = [int(i) for i in ids if i != self.rules.begin]
    return self._join(ids[: ids.index(self.rules.end)] if self.rules.end in ids else ids)


def load(path, *, family='', context=0):
  """Opens the tokenizer of image-text weights.

  Args:
    path: of tower.json; or of the weights' folder, or a file in it: tokenizer.json,
      vocab.json beside merges.txt, open_clip's bpe_simple_vocab_16e6.txt.gz, spiece.model,
      tokenizer.model.
    family: one of FAMILIES; '' is what open_clip_config.json, or else config.json and
      tokenizer_config.json beside the file say.
    context: tokens that the tower reads; 0 is what these say, or else the family's own.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the family is not said, or the file is none of a tokenizer.
  """
  path = pathlib.Path(path)
  if path.name == FILE or (path / FILE).is_file():
    file, rules = path if path.name == FILE else path / FILE, None
  else:
    folder, given = (path, None) if path.is_dir() else (path.parent, path)
    rules = _rules(folder, family, context)
    file = given or next((x for name in _order(rules) if (x := folder / name).is_file()), None)
  if file is None or not file.is_file():
    raise FileNotFoundError(
      f'No tokenizer at {str(path)!r}; expected {FILE}, or the folder of weights '
      f'with one of {_order(rules or FAMILIES["clip"])}.'
    )
  try:
    content = _content(file, rules) if rules else checksum.read_bytes(file)
    return TowerTokenizer(file, content)
  except _BROKEN as error:
    raise ValueError(
      f'{file} is no tokenizer of {rules.family if rules else "a text tower"}: {error}. Get it '
      'again, or say which family it is of.'
    ) from error


def _content(file, rules):
  """Returns tower.json of a file."""
  stored = _read(file, rules)
  if rules.family == 'siglip2' and rules.clean == 'none' and 'sentencepiece' in stored:
    rules = dataclasses.replace(rules, clean='lowercase')
  ids = _ids(stored, {name: getattr(rules, name) for name in ('begin', 'end', 'pad')})
  rules = dataclasses.asdict(dataclasses.replace(rules, **ids))
  text = json.dumps({'rules': rules} | stored, ensure_ascii=False, separators=(',', ':'))
  return text.encode()


def _rules(folder, family, context):
  """Rules of a folder of weights, or of the family that is given; specials as pieces."""
  named, known = _json(folder / 'tokenizer_config.json'), _json(folder / 'config.json')
  text = _json(folder / 'open_clip_config.json').get('model_cfg', {}).get('text_cfg', {})
  kind = str(named.get('tokenizer_class', '')).removesuffix('Fast')
  if family and family not in FAMILIES:
    raise ValueError(f'{family=} must be one of {sorted(FAMILIES)}.')
  if not family and text and 'hf_tokenizer_name' not in text:
    family = 'open_clip'
  elif not family and (text or known.get('model_type', '').startswith(('clip', 'siglip'))):
    family = 'clip' if known.get('model_type', '').startswith('clip') else _CLASSES.get(kind, '')
  if not family:
    raise ValueError(
      f'{folder} does not say which family its tokenizer is of: that takes open_clip_config.json, '
      'or config.json of a CLIP or SigLIP with tokenizer_config.json. Give the family of the '
      f'weights, one of {sorted(FAMILIES)}.'
    )
  rules = FAMILIES[family]
  changes = {'context': context}
  if rules.clean != 'lower':
    names = {'begin': 'bos_token', 'end': 'eos_token', 'pad': 'pad_token'}
    for part, name in names.items():
      if getattr(rules, part) is not None and (piece := named.get(name)):
        changes[part] = piece['content'] if isinstance(piece, dict) else piece
  if text and family in ('siglip', 'siglip2'):  # As open_clip reads these.
    changes['clean'] = text.get('tokenizer_kwargs', {}).get('clean', 'whitespace')
  for section, name in (
    (text, 'context_length'),
    (known.get('text_config'), 'max_position_embeddings'),
  ):
    changes['context'] = changes['context'] or (section or {}).get(name, 0)
  changes['context'] = changes['context'] or rules.context
  return dataclasses.replace(rules, **changes)


def _json(path):
  return checksum.read_json(path) if path.is_file() else {}


def _order(rules):
  """Names of files that a tokenizer of a family may be in, the best one first."""
  names = ['tokenizer.json', 'vocab.json', 'bpe_simple_vocab_16e6.txt.gz']
  pieces = ['spiece.model', 'tokenizer.model']
  return [*pieces, *names] if rules.clean == 'no_punctuation' else [*names, *pieces]


def _read(file, rules):
  """Returns what tower.json holds of a file: a SentencePiece model or the JSON of `tokenizers`."""
  if file.suffix == '.model':
    return {'sentencepiece': base64.b64encode(checksum.read_bytes(file)).decode()}
  if file.suffix == '.gz':
    vocab, merges = _read_bpe(file)
  elif file.name == 'vocab.json':
    lines = checksum.read_lines(file.with_name('merges.txt'))
    vocab, merges = _json(file), [x for x in lines if x and not x.startswith('#version')]
  else:
    found = _json(file)
    if rules.family not in ('open_clip', 'pe_core'):
      return {'tokenizer': _lower(found) if rules.family == 'siglip2' else found}
    vocab, merges = found['model']['vocab'], found['model']['merges']
  return {'tokenizer': _byte_pairs(vocab, merges, rules)}


def _read_bpe(file):
  """Vocabulary and merges of OpenAI's file: a heading, and a merge on each line."""
  lines = gzip.decompress(checksum.read_bytes(file)).decode().split('\n')
  merges = [x for x in lines[1 : 49152 - 256 - 2 + 1] if x]
  # Bytes that can be printed come first, and stand for themselves.
  plain = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), 256)]
  letters = [*map(chr, plain), *(chr(256 + i) for i in range(256 - len(plain)))]
  pieces = [*letters, *(f'{x}</w>' for x in letters), *(x.replace(' ', '') for x in merges)]
  return {piece: i for i, piece in enumerate([*pieces, _BEGIN, _END])}, merges


def _byte_pairs(vocab, merges, rules):
  """CLIP's tokenizer as the JSON of `tokenizers`; texts that were cleaned stay as they are."""
  own = rules.clean == 'none'
  if not own:
    vocab = {_OPENAI.get(piece, piece): i for piece, i in vocab.items()}
  # In a text these words are the tokens themselves, as with the original.
  words = {piece: vocab[piece] for piece in (rules.begin, rules.end)}
  vocab = dict(sorted(vocab.items(), key=lambda item: item[1]))  # One content of any file.
  plain = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False}
  normal = [
    {'type': 'NFC'},
    {'type': 'Replace', 'pattern': {'Regex': r'\s+'}, 'content': ' '},
    {'type': 'Lowercase'},
  ]
  split = '|'.join([*map(re.escape, words), _SPLIT])
  if not own:  # Where case is ignored, this combining iota is no letter and no other sign.
    split = split.replace(r'[^\s', r'[^\s\x{345}')
  level = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False}
  return {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': [{'id': i, 'content': x, **plain, 'special': True} for x, i in words.items()],
    'normalizer': {'type': 'Sequence', 'normalizers': normal if own else []},
    'pre_tokenizer': {
      'type': 'Sequence',
      'pretokenizers': [
        {'type': 'Split', 'pattern': {'Regex': split}, 'behavior': 'Removed', 'invert': True},
        level,
      ],
    },
    'post_processor': None,
    'decoder': level,
    'model': {
      'type': 'BPE',
      'dropout': None,
      'unk_token': rules.end,
      'continuing_subword_prefix': '',
      'end_of_word_suffix': '</w>',
      'fuse_unk': False,
      'byte_fallback': False,
      'vocab': vocab,
      'merges': [x if isinstance(x, str) else ' '.join(x) for x in merges],
    },
  }


def _lower(found):
  """A tokenizer that lowers what stands between its special tokens, as SigLIP 2 was trained."""
  before = found.get('normalizer')
  steps = [{'type': 'Lowercase'}, *([before] if before else [])]
  return found | {'normalizer': {'type': 'Sequence', 'normalizers': steps}}


@functools.lru_cache(maxsize=1)  # Read for its pieces, and then to be used.
def _sentencepiece(encoded):
  return sentencepiece.SentencePieceProcessor(model_proto=base64.b64decode(encoded))


def _ids(stored, pieces):
  """The ids of some pieces, by name; None and ids stay."""
  if 'sentencepiece' in stored:
    model = _sentencepiece(stored['sentencepiece'])
    known = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
  else:
    vocab = stored['tokenizer']['model']['vocab']
    if isinstance(vocab, list):  # Pieces and their scores, of a unigram model.
      vocab = {piece: i for i, (piece, _) in enumerate(vocab)}
    known = vocab | {x['content']: x['id'] for x in stored['tokenizer'].get('added_tokens', ())}
  named = {name: piece for name, piece in pieces.items() if isinstance(piece, str)}
  if missing := sorted({*named.values()} - {*known}):
    raise ValueError(f'it has no pieces {missing}')
  return pieces | {name: known[piece] for name, piece in named.items()}


def _basic(text):
  # Not at the top: it takes longer to import than everything else here.
  import ftfy  # noqa: PLC0415

  return html.unescape(html.unescape(ftfy.fix_text(text)))


def _squeeze(text):
  return ' '.join(text.split())


def _strip_punctuation(text):
  return re.sub(r'\s+', ' ', text.lower().translate(_PUNCTUATION)).strip()


_WITH_FTFY = ('lower', 'whitespace', 'canonicalize')
# Text -> text, before it is split. These three are open_clip's, by its names.
CLEAN = {
  'none': lambda text: text,
  'lowercase': tokenizers.normalizers.Lowercase().normalize_str,
  'no_punctuation': lambda text: _strip_punctuation(text.replace('▁', ' ')),
  'lower': lambda text: _squeeze(_basic(text)).lower(),
  'whitespace': lambda text: _squeeze(_basic(text)),
  'canonicalize': lambda text: _squeeze(
    _basic(text).replace('_', ' ').translate(_PUNCTUATION).lower()
  ),
}
