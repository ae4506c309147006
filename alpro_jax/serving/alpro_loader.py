"""Uses an exported ALPRO; needs the packages in NEEDS, and no other file.

launch/export.py copies this file into the folder it writes; requirements.txt beside it lists the
packages, with the version of jax. An export is code, this file as well as the programs: load only
what you trust. The digests in the manifest tell damage, and not who wrote them. With the folder on
the path:

  from alpro_loader import load
  model = load(folder)
  frames = model.prepare(list_of_frames)          # uint8[T, S, S, 3]
  video = model.encode_video(frames[None])
  text = model.encode_text(*model.tokenize(['a dog swims']))
  similarity = text.feature @ video.feature.T     # -1..1
  model.match(text, video).probability            # if it can match; some hold encoders alone
  model.answers[model.answer(text, video)[0].argmax()]  # if it can answer

Any number B of clips or texts can be given; each number is compiled once, so fill up the last batch
instead of making it smaller. Tokenizers may need more packages (sentencepiece, tokenizers, ftfy),
which requirements.txt lists; ids made elsewhere do not. Programs run on the platforms that the
manifest names.
"""

import base64
import functools
import hashlib
import html
import json
import pathlib
import re
import string
import unicodedata
from typing import Any, NamedTuple

import jax
import numpy as np

# flatbuffers: jax.export reads programs with it, and jax does not bring it.
NEEDS = ('jax', 'numpy', 'flatbuffers')
# An export of another version is laid out in another way.
FORMAT = 1
MANIFEST = 'manifest.json'
# As in training: a frame more than this many times too large is averaged while it is shrunk, below
# that it is sampled.
_SHRINK_PLAINLY = 1.5
_LONGEST_WORD = 100  # BERT: a longer one is unknown.


class Video(NamedTuple):
  """Encoded clips: tokens f[B, S, D]; feature float32[B, E] of length one. None if of no use."""

  tokens: Any
  feature: Any


class Text(NamedTuple):
  """Encoded texts: tokens f[B, L, D] and feature as in Video, mask bool[B, L]."""

  tokens: Any
  mask: Any
  feature: Any


class Match(NamedTuple):
  """Whether pairs belong together: probability float32[B]; margin float32[B].

  The margin is its logit: it orders pairs alike, and does not end at 1.
  """

  probability: Any
  margin: Any


def load(folder, *, device=None, verify: bool = True) -> 'Model':
  """Opens the folder that launch/export.py wrote.

  Args:
    device: where parameters and programs go, of jax.devices(); None is the default one.
    verify: compare all files with their digests.

  Raises:
    FileNotFoundError: if a file is missing.
    ImportError: if a package is missing or too old.
    ValueError: if a file changed or lies elsewhere, or was made for another loader or a newer jax.
  """
  return Model(pathlib.Path(folder), read_manifest(folder, verify=verify), device)


def read_manifest(folder, *, verify: bool = True):
  """Returns manifest.json of an export; the files that it names are there. See `load`."""
  folder = pathlib.Path(folder)
  path = folder / MANIFEST
  if not path.is_file():
    raise FileNotFoundError(
      f'no {MANIFEST} in {folder}; expected a folder that launch/export.py wrote.'
    )
  manifest = json.loads(path.read_text(encoding='utf-8'))
  if manifest.get('format') != FORMAT:
    raise ValueError(
      f'{path} has format {manifest.get("format")!r}, this loader reads {FORMAT}; use the '
      'alpro_loader.py of that folder.'
    )
  listed = manifest.get('files', {})
  for part in (*_texts(manifest), manifest['parameters'], *manifest['programs'].values()):
    if part['file'] not in listed:
      raise ValueError(f'{path} gives no digest of {part["file"]}; copy the export again.')
  for name, expected in listed.items():
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
      raise ValueError(
        f'{path} names {name}, which is not in that folder; copy the files themselves, and no '
        'links, into one folder.'
      )
    digest = verify and hashlib.sha256((folder / name).read_bytes()).hexdigest()
    if verify and digest != expected['sha256']:
      raise ValueError(
        f'{folder / name} has digest {digest}, {MANIFEST} says {expected["sha256"]}; copy the '
        'export again.'
      )
  return manifest


def _texts(manifest):
  """What texts are read by: a tokenizer, and a second one of models with a text tower beside."""
  return [manifest[name] for name in ('text', 'tower') if name in manifest]


class Model:
  """An exported model.

  Attributes:
    manifest: what is in manifest.json.
    answers: that it chooses from; () unless it answers questions.
    temperature: that similarities were divided by in training, or None.
    params: {name: array}, all parameters.
  """

  def __init__(self, folder, manifest, device=None):
    self.manifest = manifest
    self.answers = tuple(manifest['answers'])
    self.temperature = manifest['temperature']
    self._device, self._folder, self._programs = device, folder, {}
    written_by = manifest['versions']['jax']
    try:
      import flatbuffers  # noqa: F401
      from jax import export
    except ImportError as error:
      raise ImportError(
        f'this export needs jax {written_by} or newer and flatbuffers: pip install '
        f"'jax>={written_by}' flatbuffers. Here is jax {jax.__version__}, which says: {error}."
      ) from error
    with np.load(folder / manifest['parameters']['file']) as stored:
      self.params = {name: jax.device_put(stored[name], device) for name in stored.files}
    for name, described in manifest['programs'].items():
      self._read_program(name, export, (folder / described['file']).read_bytes())

  def _read_program(self, name, export, data):
    written_by = self.manifest['versions']['jax']
    versions = [re.findall(r'\d+', version)[:3] for version in (jax.__version__, written_by)]
    older = list(map(int, versions[0])) < list(map(int, versions[1]))
    try:
      self._programs[name] = program = jax.jit(export.deserialize(bytearray(data)).call)
      if older:  # It would tell at the first call.
        inputs = self.manifest['programs'][name]['inputs']
        shapes = [jax.ShapeDtypeStruct((1, *x['shape'][1:]), x['dtype']) for x in inputs]
        program.lower(self._params_of(name), *shapes)
    except Exception as error:
      if not older:
        raise
      raise ValueError(
        f'this export was written by jax {written_by} and cannot be read by jax {jax.__version__}: '
        f"pip install 'jax>={written_by}' (jax says: {str(error)[:200]})."
      ) from error

  def prepare(self, frames):
    """Chooses frames of one video and crops and scales them, as in evaluation.

    All frames in order, or one photo, RGB: uint8[n, H, W, 3], or a list of n uint8[H, W, 3] (arrays
    or images of PIL) -> uint8[T, S, S, 3].
    """
    if not len(frames):
      raise ValueError('there are no frames; expected at least one.')
    wanted = self.manifest['preprocessing']
    clip = [np.asarray(frames[i]) for i in choose_frames(len(frames), wanted['frames'])]
    for frame in clip:
      if frame.dtype != np.uint8 or frame.shape != (*clip[0].shape[:2], 3):
        raise ValueError(
          f'a frame is {frame.dtype}{list(frame.shape)}, expected uint8[H, W, 3], RGB in 0..255, '
          f'and all frames of one size, here {list(clip[0].shape)}.'
        )
    sizes = {name: wanted[name] for name in ('image_size', 'resize', 'resize_mode')}
    return crop_and_scale(np.stack(clip), **sizes)

  def tokenize(self, texts):
    """list of B str -> what encode_text takes; a longer text loses its end.

    ids int32[B, L] and mask bool[B, L]; of a model with a tokenizer for its text tower beside,
    that one's ids int32[B, M] too.
    """
    if isinstance(texts, str):
      raise ValueError(f'expected a list of texts, got the text {texts!r}.')
    (ids, mask), *tower = (encode(texts) for encode in self._tokenizers)
    return ids, mask, *(other for other, _ in tower)

  @functools.cached_property
  def _tokenizers(self):
    """Functions from a list of texts to ids and mask, one of each tokenizer."""
    try:
      return [read_tokenizer(self._folder / x['file'], x) for x in _texts(self.manifest)]
    except ImportError as error:
      raise ImportError(
        f'a tokenizer of {self._folder} needs a package that is not here ({error}): pip install -r '
        'requirements.txt in that folder, or give ids to encode_text.'
      ) from error

  def encode_video(self, clips) -> Video:
    """uint8[B, T, S, S, 3], each clip made by `prepare` -> Video."""
    found = self.call('encode_video', clips)
    return Video(found.get('tokens'), found.get('feature'))

  def encode_text(self, ids, mask, *tower_ids) -> Text:
    """What `tokenize` gave, or the like made elsewhere; mask is True but on padding -> Text."""
    found = self.call('encode_text', ids, mask, *tower_ids)
    return Text(found.get('tokens'), mask, found.get('feature'))

  def match(self, text: Text, video: Video) -> Match:
    """Reads B texts together with B clips, the first with the first."""
    return Match(**self.call('match', text.tokens, text.mask, video.tokens))

  def answer(self, text: Text, video: Video):
    """B questions about B clips -> float32[B, answers], logits."""
    return self.call('answer', text.tokens, text.mask, video.tokens)['logits']

  def call(self, name, *arrays):
    """Runs a program of the manifest; returns {name of an output: array}."""
    if name not in self._programs:
      raise ValueError(
        f'this export has no {name!r}, only {sorted(self._programs)}; its task was '
        f'{self.manifest["source"]["task"]!r}.'
      )
    arrays = [x if hasattr(x, 'shape') else np.asarray(x) for x in arrays]
    inputs = self.manifest['programs'][name]['inputs']
    if len(arrays) != len(inputs):
      names = ', '.join(x['name'] for x in inputs)
      raise ValueError(
        f'{name} takes {names}, got {len(arrays)} arrays; tokenize makes all of texts.'
      )
    for array, wanted in zip(arrays, inputs, strict=True):
      shape = (len(arrays[0]), *wanted['shape'][1:])
      if (array.shape, str(array.dtype)) != (shape, wanted['dtype']):
        raise ValueError(
          f'{name}: {wanted["name"]} is {array.dtype}{list(array.shape)}, expected '
          f'{wanted["dtype"]}{list(shape)}; clips are made by prepare and stacked, and all inputs '
          'have the same number of rows.'
        )
    arrays = [jax.device_put(x, self._device) for x in arrays]
    return self._programs[name](self._params_of(name), *arrays)

  def _params_of(self, name):
    return {n: self.params[n] for n in self.manifest['programs'][name]['parameters']}


# --- Pixels -----------------------------------------------------------------


def choose_frames(available, wanted):
  """int64[wanted], floor(k available / wanted): of 10 for 4, [0 2 5 7]."""
  return np.arange(wanted) * available // wanted


def crop_and_scale(clip, *, image_size, resize, resize_mode):
  """Cuts out the centre of every frame and scales it.

    squash      as if the whole frame was made resize x resize, then cut
    short_side  as if the short side was made `resize`, then cut

  clip uint8[n, H, W, 3] -> uint8[n, image_size, image_size, 3].
  """
  frame = np.array(clip.shape[1:3])
  side = {'squash': frame, 'short_side': np.full(2, frame.min())}[resize_mode]
  if resize_mode != 'squash' or resize != image_size:
    share = np.float32(image_size / resize)
    side = np.maximum(np.rint(side.astype(np.float32) * share), 1).astype(int)
    top, left = np.minimum((frame - side + 1) // 2, frame - side)
    clip = clip[:, top : top + side[0], left : left + side[1]]
  if (side == image_size).all():
    return clip
  scale = _average if side.max() > int(_SHRINK_PLAINLY * image_size) else _sample
  pixels = scale(clip.astype(np.float32), image_size)
  return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _centres(length, size):
  """float32[size], where the centres of `size` pixels fall among `length`."""
  return (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(length / size)


def _sample(clip, size):
  """Bilinear between the nearest four, as TensorFlow's plain resize."""

  def neighbours(length):
    place = _centres(length, size) - np.float32(0.5)
    floor = np.floor(place)
    high = np.minimum(np.ceil(place), length - 1)
    return np.maximum(floor, 0).astype(int), high.astype(int), place - floor

  top, bottom, down = neighbours(clip.shape[1])
  left, right, across = neighbours(clip.shape[2])
  across, down = across[:, None], down[:, None, None]

  def row(index):
    line = clip[:, index]
    first = line[:, :, left]
    return first + (line[:, :, right] - first) * across

  above = row(top)
  return above + (row(bottom) - above) * down


def _average(clip, size):
  """Weighted mean of all that falls on a pixel, as TensorFlow's antialias."""

  def weights(length):
    reach = max(np.float32(length / size), np.float32(1))
    pixels = np.arange(length, dtype=np.float32) + np.float32(0.5)
    weight = np.maximum(1 - np.abs(pixels - _centres(length, size)[:, None]) / reach, 0)
    return weight / weight.sum(1, keepdims=True)

  clip = np.einsum('yh,nhwc->nywc', weights(clip.shape[1]), clip, optimize=True)
  return np.einsum('xw,nywc->nyxc', weights(clip.shape[2]), clip, optimize=True)


# --- Text -------------------------------------------------------------------

# Each of them is a word.
_IDEOGRAPHS = re.compile(
  '[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b73f'
  '\U0002b740-\U0002b81f\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f]'
)


class WordPiece:
  """BERT's tokenizer from its vocab.txt, as the package tokenizers has it."""

  def __init__(self, path):
    # Only \n and \r\n end a line; str.splitlines cuts at U+2028 as well.
    lines = pathlib.Path(path).read_bytes().decode('utf-8-sig').removesuffix('\n').split('\n')
    self._ids = {line.removesuffix('\r'): i for i, line in enumerate(lines)}
    self._unknown = self._ids['[UNK]']
    # A vocabulary without capitals is meant for lower-cased text.
    self._lower = not any(p != p.lower() for p in self._ids if not p.startswith('['))

  def __call__(self, text):
    """str -> list of ids, without [CLS] and [SEP]."""
    return [i for word in self._words(text) for i in self._pieces(word)]

  def _words(self, text):
    """Splits at spaces; marks of punctuation and ideographs stand alone."""
    text = ''.join(c for c in text if c in '\t\n\r' or not _is_control(c))
    text = _IDEOGRAPHS.sub(r' \g<0> ', text)
    if self._lower:
      text = unicodedata.normalize('NFD', text)
      # Letter by letter: in a whole word, Greek has another last sigma.
      text = ''.join(c.lower() for c in text if unicodedata.category(c) != 'Mn')
    return ''.join(f' {c} ' if _is_punctuation(c) else c for c in text).split()

  def _pieces(self, word):
    """The longest piece first, again and again; [UNK] if that gets stuck."""
    if len(word) > _LONGEST_WORD:
      return [self._unknown]
    found, prefix = [], ''
    while word:
      ends = range(len(word), 0, -1)
      end = next((end for end in ends if prefix + word[:end] in self._ids), 0)
      if not end:
        return [self._unknown]
      found.append(self._ids[prefix + word[:end]])
      word, prefix = word[end:], '##'
    return found


def read_tokenizer(path, described):
  """Returns a function from B texts to int32[B, L], bool[B, L]; `described` by the manifest."""
  kind, length, special = (described[name] for name in ('kind', 'max_tokens', 'special'))
  rules = {'begin': special['cls'], 'end': special['sep'], 'pad': special['pad'], 'clean': 'none'}
  if kind == 'wordpiece':
    split = WordPiece(path)
  elif kind == 'sentencepiece':
    split = _sentencepiece(path.read_bytes())
  else:  # tower.json of alpro_jax.data.tower_tokens.
    stored = json.loads(path.read_text(encoding='utf-8'))
    rules = stored['rules']
    if 'sentencepiece' in stored:
      split = _sentencepiece(base64.b64decode(stored['sentencepiece']))
    else:
      split = _tokenizers(stored['tokenizer'])
  first = [] if rules['begin'] is None else [rules['begin']]
  _clean('', rules['clean'])  # A package is better missing now than at the first text.

  def encode(texts):
    rows = [split(_clean(text, rules['clean'])) for text in texts]
    ids = np.full((len(rows), length), rules['pad'], np.int32)
    mask = np.zeros(ids.shape, bool)
    for i, row in enumerate(rows):
      row = [*first, *row[: length - len(first) - 1], rules['end']]
      ids[i, : len(row)], mask[i, : len(row)] = row, True
    return ids, mask

  return encode


def _sentencepiece(proto):
  import sentencepiece

  return sentencepiece.SentencePieceProcessor(model_proto=proto).encode


def _tokenizers(stored):
  import tokenizers

  model = tokenizers.Tokenizer.from_str(json.dumps(stored))
  model.no_padding()
  model.no_truncation()
  return lambda text: model.encode(text, add_special_tokens=False).ids


_PUNCTUATION = str.maketrans('', '', string.punctuation)


def _clean(text, rule):
  """What a family of image-text weights does to a text first."""
  if rule in ('lower', 'whitespace', 'canonicalize'):
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
  if rule == 'no_punctuation':
    text = text.replace('\u2581', ' ').lower().translate(_PUNCTUATION)
  elif rule == 'canonicalize':
    text = text.replace('_', ' ').translate(_PUNCTUATION).lower()
  if rule == 'lowercase':  # Letter by letter, see WordPiece.
    return ''.join(c.lower() for c in text)
  text = text if rule == 'none' else ' '.join(text.split())
  return text.lower() if rule == 'lower' else text


def _is_control(c):
  return c == '\ufffd' or unicodedata.category(c) in ('Cc', 'Cf', 'Co')


def _is_punctuation(c):
  # ASCII's symbols count as well: $ + < = > ^ ` | ~.
  return unicodedata.category(c).startswith('P') or '!' <= c <= '~' and not c.isalnum()
