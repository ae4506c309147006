"""Uses an exported ALPRO; needs the packages in NEEDS, and no other file.

launch/export.py copies this file into the folder it writes; requirements.txt
beside it lists the packages, with the version of jax. An export is code, this
file as well as the programs: load only what you trust. The digests in the
manifest tell damage, and not who wrote them. With the folder on the path:

  from alpro_loader import load
  model = load(folder)
  frames = model.prepare(list_of_frames)          # uint8[T, S, S, 3]
  video = model.encode_video(frames[None])
  text = model.encode_text(*model.tokenize(['a dog swims']))
  similarity = text.feature @ video.feature.T     # -1..1
  model.match(text, video).probability            # if it can match
  model.answers[model.answer(text, video)[0].argmax()]  # if it can answer

Any number B of clips or texts can be given; each number is compiled once, so
fill up the last batch instead of making it smaller. A text tokenizer that is a
SentencePiece model needs the package sentencepiece; ids made elsewhere do not.
Programs run on the platforms that the manifest names.
"""

import contextlib
import functools
import hashlib
import json
import pathlib
import re
import unicodedata
from typing import Any, NamedTuple

import jax
import numpy as np

# flatbuffers: jax.export reads programs with it, and jax does not bring it.
NEEDS = ('jax', 'numpy', 'flatbuffers')
# An export of another version is laid out in another way.
FORMAT = 1
MANIFEST = 'manifest.json'
# As in training: a frame more than this many times too large is averaged while
# it is shrunk, below that it is sampled.
_SHRINK_PLAINLY = 1.5
_LONGEST_WORD = 100  # BERT: a longer one is unknown.


class Video(NamedTuple):
  """Encoded clips: tokens f[B, S, D]; feature float32[B, E], length one.

  The feature is None where the model was trained without contrast.
  """

  tokens: Any
  feature: Any


class Text(NamedTuple):
  """Encoded texts: tokens f[B, L, D], mask bool[B, L], feature as in Video."""

  tokens: Any
  mask: Any
  feature: Any


class Match(NamedTuple):
  """Whether pairs belong together.

  Attributes:
    probability: float32[B], of a match.
    margin: float32[B], logit(match) - logit(no match): orders pairs as the
      probability does, but does not end at 1.
  """

  probability: Any
  margin: Any


def load(folder, *, device=None, verify: bool = True) -> 'Model':
  """Opens the folder that launch/export.py wrote.

  Args:
    folder: its path.
    device: where parameters and programs go, of jax.devices(); None is the
      default one.
    verify: compare all files with their digests.
  Raises:
    FileNotFoundError: if a file is missing.
    ImportError: if a package is missing or too old.
    ValueError: if a file changed or lies elsewhere, or was made for another
      loader or a newer jax.
  """
  folder = pathlib.Path(folder)
  path = folder / MANIFEST
  if not path.is_file():
    raise FileNotFoundError(
      f'no {MANIFEST} in {folder}; expected a folder that launch/export.py wrote.'
    )
  manifest = json.loads(path.read_text(encoding='utf-8'))
  if manifest.get('format') != FORMAT:
    raise ValueError(
      f'{path} has format {manifest.get("format")!r}, this loader reads '
      f'{FORMAT}; use the alpro_loader.py of that folder.'
    )
  _check_places(folder, manifest)
  if verify:
    for name, expected in manifest['files'].items():
      digest = _sha256(folder / name)
      if digest != expected['sha256']:
        raise ValueError(
          f'{folder / name} has digest {digest}, {MANIFEST} says '
          f'{expected["sha256"]}; copy the export again.'
        )
  return Model(folder, manifest, device)


def _numbers(version):
  """'0.10.2' -> [0, 10, 2]."""
  return [int(number) for number in re.findall(r'\d+', version)[:3]]


def _check_places(folder, manifest):
  """Refuses a manifest that reads what it gives no digest of, or elsewhere."""
  listed = manifest.get('files', {})
  for part in (manifest['text'], manifest['parameters'], *manifest['programs'].values()):
    name = part['file']
    if name not in listed:
      raise ValueError(f'{folder / MANIFEST} gives no digest of {name}; copy the export again.')
  for name in listed:
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
      raise ValueError(
        f'{folder / MANIFEST} names {name}, which is not in that folder; '
        'copy the files themselves, and no links, into one folder.'
      )


def _sha256(path):
  digest = hashlib.sha256()
  with open(path, 'rb') as stream:
    while block := stream.read(2**20):
      digest.update(block)
  return digest.hexdigest()


@contextlib.contextmanager
def _errors_of_an_older_jax(written_by):
  """Says so when a newer jax is missing; yields whether this one is older."""
  older = _numbers(jax.__version__) < _numbers(written_by)
  try:
    yield older
  except Exception as error:
    if not older:
      raise
    raise ValueError(
      f'this export was written by jax {written_by} and cannot be read by '
      f"jax {jax.__version__}: pip install 'jax>={written_by}' (jax says: "
      f'{str(error)[:200]}).'
    ) from error


def _jax_export(written_by):
  """Returns jax.export, which needs a package that jax does not bring."""
  try:
    import flatbuffers  # noqa: F401
    from jax import export
  except ImportError as error:
    raise ImportError(
      f'this export needs jax {written_by} or newer and flatbuffers: pip '
      f"install 'jax>={written_by}' flatbuffers. Here is jax "
      f'{jax.__version__}, which says: {error}.'
    ) from error
  return export


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
    self._device = device
    self._tokenizer_path = folder / manifest['text']['file']
    self._programs = {}
    export = _jax_export(manifest['versions']['jax'])
    with np.load(folder / manifest['parameters']['file']) as stored:
      self.params = {name: jax.device_put(stored[name], device) for name in stored.files}
    for name, described in manifest['programs'].items():
      data = (folder / described['file']).read_bytes()
      with _errors_of_an_older_jax(manifest['versions']['jax']) as older:
        program = jax.jit(export.deserialize(bytearray(data)).call)
        if older:  # It would tell at the first call.
          program.lower(
            self._params_of(name),
            *(jax.ShapeDtypeStruct((1, *x['shape'][1:]), x['dtype']) for x in described['inputs']),
          )
      self._programs[name] = program

  def prepare(self, frames):
    """Chooses frames of one video and crops and scales them, as in evaluation.

    Args:
      frames: all frames of a video in order, or one photo: uint8[n, H, W, 3]
        or a list of n uint8[H, W, 3] (arrays or images of PIL), RGB.
    Returns:
      uint8[T, S, S, 3].
    """
    wanted = self.manifest['preprocessing']
    if not len(frames):
      raise ValueError('there are no frames; expected at least one.')
    chosen = choose_frames(len(frames), wanted['frames'])
    clip = [np.asarray(frames[i]) for i in chosen]
    for frame in clip:
      _check_frame(frame, clip[0].shape)
    return crop_and_scale(
      np.stack(clip),
      image_size=wanted['image_size'],
      resize=wanted['resize'],
      resize_mode=wanted['resize_mode'],
    )

  def tokenize(self, texts):
    """list of B str -> ids int32[B, L] and mask bool[B, L].

    A text of more than L tokens loses its end.
    """
    if isinstance(texts, str):
      raise ValueError(f'expected a list of texts, got the text {texts!r}.')
    encode, text = self._encode, self.manifest['text']
    return pad_rows([encode(x) for x in texts], text['max_tokens'], text['special'])

  @functools.cached_property
  def _encode(self):
    """The function that turns a text into a list of ids."""
    if self.manifest['text']['kind'] == 'wordpiece':
      return WordPiece(self._tokenizer_path)
    try:
      import sentencepiece
    except ImportError as error:
      raise ImportError(
        f'{self._tokenizer_path} is a SentencePiece model; pip install '
        'sentencepiece, or give ids to encode_text.'
      ) from error
    return sentencepiece.SentencePieceProcessor(
      model_proto=self._tokenizer_path.read_bytes()
    ).encode

  def encode_video(self, clips) -> Video:
    """uint8[B, T, S, S, 3], each clip made by `prepare` -> Video."""
    found = self.call('encode_video', clips)
    return Video(found['tokens'], found.get('feature'))

  def encode_text(self, ids, mask) -> Text:
    """int32[B, L] and bool[B, L], True but on padding -> Text."""
    found = self.call('encode_text', ids, mask)
    return Text(found['tokens'], mask, found.get('feature'))

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
        f'this export has no {name!r}, only {sorted(self._programs)}; its '
        f'task was {self.manifest["source"]["task"]!r}.'
      )
    described = self.manifest['programs'][name]
    arrays = [x if hasattr(x, 'shape') else np.asarray(x) for x in arrays]
    batch = None
    for array, wanted in zip(arrays, described['inputs'], strict=True):
      batch = len(array) if batch is None else batch
      shape = (batch, *wanted['shape'][1:])
      if (array.shape, str(array.dtype)) != (shape, wanted['dtype']):
        hint = (
          'make clips with prepare and stack them'
          if name == 'encode_video'
          else 'all inputs need the same number of rows'
        )
        raise ValueError(
          f'{name}: {wanted["name"]} is {array.dtype}{list(array.shape)}, '
          f'expected {wanted["dtype"]}{list(shape)}; {hint}.'
        )
    return self._programs[name](
      self._params_of(name), *(jax.device_put(x, self._device) for x in arrays)
    )

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

  Args:
    clip: uint8[n, H, W, 3].
    image_size: side of the result in pixels.
    resize: side that the cut is measured by.
    resize_mode: 'squash' or 'short_side'.
  Returns:
    uint8[n, image_size, image_size, 3].
  """
  frame = np.array(clip.shape[1:3])
  if resize_mode == 'squash':
    side = frame
  elif resize_mode == 'short_side':
    side = np.full(2, frame.min())
  else:
    raise ValueError(f'{resize_mode=} is unknown; expected squash or short_side.')
  if resize_mode != 'squash' or resize != image_size:
    share = np.float32(image_size / resize)
    side = np.maximum(np.rint(side.astype(np.float32) * share), 1).astype(int)
    top, left = (frame - side + 1) // 2
    top, left = np.minimum((top, left), frame - side)
    clip = clip[:, top : top + side[0], left : left + side[1]]
  if (side == image_size).all():
    return clip
  antialias = side.max() > int(_SHRINK_PLAINLY * image_size)
  scale = _average if antialias else _sample
  pixels = scale(clip.astype(np.float32), image_size)
  return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _sample(clip, size):
  """Bilinear between the nearest four, as TensorFlow's plain resize."""

  def places(length):
    place = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(
      length / size
    ) - np.float32(0.5)
    floor = np.floor(place)
    low = np.maximum(floor, 0).astype(int)
    high = np.minimum(np.ceil(place), length - 1).astype(int)
    return low, high, place - floor

  top, bottom, down = places(clip.shape[1])
  left, right, across = places(clip.shape[2])
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
    step = np.float32(length / size)
    wide = max(step, np.float32(1))
    centre = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * step
    place = np.arange(length, dtype=np.float32) + np.float32(0.5)
    weight = np.maximum(1 - np.abs(place - centre[:, None]) / wide, 0)
    return weight / weight.sum(1, keepdims=True)

  clip = np.einsum('yh,nhwc->nywc', weights(clip.shape[1]), clip, optimize=True)
  return np.einsum('xw,nywc->nyxc', weights(clip.shape[2]), clip, optimize=True)


def _check_frame(frame, shape):
  if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
    raise ValueError(
      f'a frame is {frame.dtype}{list(frame.shape)}, expected uint8[H, W, 3], RGB in 0..255.'
    )
  if frame.shape != shape:
    raise ValueError(
      f'frames of {list(shape)} and {list(frame.shape)} in one video; all must have one size.'
    )


# --- Text -------------------------------------------------------------------


class WordPiece:
  """BERT's tokenizer from its vocab.txt, as the package tokenizers has it."""

  def __init__(self, path):
    # Only \n and \r\n end a line; str.splitlines cuts at U+2028 as well.
    lines = pathlib.Path(path).read_bytes().decode('utf-8-sig').split('\n')
    pieces = [line.removesuffix('\r') for line in lines]
    if not pieces[-1]:
      pieces.pop()
    self._ids = {piece: i for i, piece in enumerate(pieces)}
    self._unknown = self._ids['[UNK]']
    # A vocabulary without capitals is meant for lower-cased text.
    self._lower = not any(p != p.lower() for p in pieces if not p.startswith('['))

  def __call__(self, text):
    """str -> list of ids, without [CLS] and [SEP]."""
    return [i for word in self._words(text) for i in self._pieces(word)]

  def _words(self, text):
    """Splits at spaces; marks of punctuation and ideographs stand alone."""
    text = ''.join(_cleaned(c) for c in text)
    if self._lower:
      text = unicodedata.normalize('NFD', text)
      # Letter by letter: in a whole word, Greek has another last sigma.
      text = ''.join(c.lower() for c in text if unicodedata.category(c) != 'Mn')
    return ''.join(f' {c} ' if _is_punctuation(c) else c for c in text).split()

  def _pieces(self, word):
    """The longest piece first, again and again; [UNK] if that gets stuck."""
    if len(word) > _LONGEST_WORD:
      return [self._unknown]
    found, start = [], 0
    while start < len(word):
      prefix = '##' if start else ''
      for end in range(len(word), start, -1):
        if (piece := self._ids.get(prefix + word[start:end])) is not None:
          break
      else:
        return [self._unknown]
      found.append(piece)
      start = end
    return found


def pad_rows(encoded, max_tokens, special):
  """Adds [CLS] and [SEP], cuts what is too long before [SEP], pads.

  Args:
    encoded: B lists of ids.
    max_tokens: L.
    special: {'cls', 'sep', 'pad'} -> id.
  Returns:
    int32[B, L] ids and bool[B, L], True on every token but padding.
  """
  ids = np.full((len(encoded), max_tokens), special['pad'], np.int32)
  mask = np.zeros((len(encoded), max_tokens), bool)
  for i, row in enumerate(encoded):
    row = [special['cls'], *row[: max_tokens - 2], special['sep']]
    ids[i, : len(row)] = row
    mask[i, : len(row)] = True
  return ids, mask


# Blocks of ideographs; each of them is a word.
_IDEOGRAPHS = (
  (0x4E00, 0x9FFF),
  (0x3400, 0x4DBF),
  (0x20000, 0x2A6DF),
  (0x2A700, 0x2B73F),
  (0x2B740, 0x2B81F),
  (0x2B920, 0x2CEAF),
  (0xF900, 0xFAFF),
  (0x2F800, 0x2FA1F),
)


def _cleaned(c):
  """A letter without what text should not have, spaces as ' '."""
  if c in '\t\n\r':
    return ' '
  if c == '\ufffd' or unicodedata.category(c) in ('Cc', 'Cf', 'Co'):
    return ''
  if c.isspace():
    return ' '
  if any(first <= ord(c) <= last for first, last in _IDEOGRAPHS):
    return f' {c} '
  return c


def _is_punctuation(c):
  # ASCII's symbols count as well: $ + < = > ^ ` | ~.
  return unicodedata.category(c).startswith('P') or '!' <= c <= '~' and not c.isalnum()
