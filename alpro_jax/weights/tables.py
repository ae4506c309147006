"""The names and layouts of the original's tensors, and of our parameters.

One ordered table holds every tensor; both directions read it, and are strict.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import einops
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from alpro_jax.models.alpro import AlproConfig
from alpro_jax.models.timesformer import fit_table
from alpro_jax.weights.tensor_files import Tensor

RESIZE_RULES = ('2d', 'original')


class Layout(NamedTuple):
  """How one tensor of the original becomes some of ours, and back."""

  to_ours: Callable[..., tuple[np.ndarray, ...]]
  to_original: Callable[..., np.ndarray]


class Row(NamedTuple):
  """A line of the table.

  Attributes:
    original: name in the original's state dict.
    ours: paths of our parameters, in the order that `layout` gives them.
    layout: what happens to the numbers.
  """

  original: str
  ours: tuple[str, ...]
  layout: Layout


def _patch_kernel(kernel):
  """(P * P * 3, D) -> (D, 3, P, P)."""
  side = math.isqrt(len(kernel) // 3)
  return einops.rearrange(kernel, '(p q c) d -> d c p q', p=side, q=side)


AS_IS = Layout(lambda x: (x,), lambda x: x)
# (out, in) -> (in, out).
TRANSPOSED = Layout(lambda x: (x.T,), lambda x: x.T)
_PATCHES = Layout(lambda x: (einops.rearrange(x, 'd c p q -> (p q c) d'),), _patch_kernel)
# (1, rows, D) -> (rows, D).
_WITHOUT_AXIS = Layout(lambda x: (x[0],), lambda x: x[None])
# (1, 1 + N, D) -> the class token's row and the patches'.
_CLASS_AND_PATCHES = Layout(
  lambda x: (x[0, :1], x[0, 1:]), lambda first, rest: np.concatenate([first, rest])[None]
)


def _packed(count):
  """Layouts of kernels and biases whose rows are those of several, one after the other."""
  return (
    Layout(
      lambda x: tuple(part.T for part in np.split(x, count)),
      lambda *parts: np.concatenate([part.T for part in parts]),
    ),
    Layout(lambda x: tuple(np.split(x, count)), lambda *parts: np.concatenate(parts)),
  )


QKV_KERNEL, QKV_BIAS = _packed(3)
KV_KERNEL, KV_BIAS = _packed(2)

# What a name stands for: rows whose names follow it.
TENSOR = (Row('', ('',), AS_IS),)
TABLE = (Row('', ('',), _WITHOUT_AXIS),)
LINEAR = (Row('.weight', ('/kernel',), TRANSPOSED), Row('.bias', ('/bias',), AS_IS))
NORM = (Row('.weight', ('/scale',), AS_IS), Row('.bias', ('/bias',), AS_IS))
QKV_ATTENTION = (
  Row('.qkv.weight', ('/query/kernel', '/key/kernel', '/value/kernel'), QKV_KERNEL),
  Row('.qkv.bias', ('/query/bias', '/key/bias', '/value/bias'), QKV_BIAS),
  Row('.proj.weight', ('/out/kernel',), TRANSPOSED),
  Row('.proj.bias', ('/out/bias',), AS_IS),
)
PATCH_EMBEDDING = (Row('.weight', ('/kernel',), _PATCHES), Row('.bias', ('/bias',), AS_IS))
POSITIONS = (Row('', ('class_position', 'positions'), _CLASS_AND_PATCHES),)

_VIDEO = (
  (TABLE, 'cls_token', 'class_token'),
  (POSITIONS, 'pos_embed', ''),
  (TABLE, 'time_embed', 'times'),
  (PATCH_EMBEDDING, 'patch_embed.proj', 'patch_embed'),
)
_VIDEO_BLOCK = (
  (NORM, 'norm1', 'norm'),
  (QKV_ATTENTION, 'attn', 'attention'),
  (NORM, 'temporal_norm1', 'temporal_norm'),
  (QKV_ATTENTION, 'temporal_attn', 'temporal_attention'),
  (LINEAR, 'temporal_fc', 'temporal_fc'),
  (NORM, 'norm2', 'mlp_norm'),
  (LINEAR, 'mlp.fc1', 'mlp/fc1'),
  (LINEAR, 'mlp.fc2', 'mlp/fc2'),
)
_BERT = (
  (TENSOR, 'word_embeddings.weight', 'words'),
  (TENSOR, 'position_embeddings.weight', 'positions'),
  (TENSOR, 'token_type_embeddings.weight', 'types'),
  (NORM, 'LayerNorm', 'norm'),
)
_BERT_LAYER = (
  (LINEAR, 'attention.self.query', 'attention/query'),
  (LINEAR, 'attention.self.key', 'attention/key'),
  (LINEAR, 'attention.self.value', 'attention/value'),
  (LINEAR, 'attention.output.dense', 'attention/out'),
  (NORM, 'attention.output.LayerNorm', 'norm'),
  (LINEAR, 'intermediate.dense', 'mlp/fc1'),
  (LINEAR, 'output.dense', 'mlp/fc2'),
  (NORM, 'output.LayerNorm', 'mlp_norm'),
)
_MLM = (
  (TENSOR, 'bias', 'bias'),
  (LINEAR, 'transform.dense', 'transform'),
  (NORM, 'transform.LayerNorm', 'norm'),
)


def rename_table(config: AlproConfig) -> list[Row]:
  """Returns every tensor of a model, in the original's order, which has divided attention only."""
  if config.text_tower or config.video.encoder != 'timesformer':
    raise ValueError('the original has no towers of image-text models.')
  if config.video.attention != 'divided':
    raise ValueError(f'{config.video.attention=}: the original has divided attention only.')
  video = 'visual_encoder.model.'
  rows = rows_of([(TENSOR, 'temp', 'temperature')] if config.embed_size else [])
  if config.embed_size and config.logit_bias is not None:  # Ours alone, of a sigmoid loss.
    rows += rows_of([(TENSOR, 'logit_bias', 'logit_bias')])
  rows += rows_of(_VIDEO, video, 'video_encoder/')
  for i in range(config.video.depth):
    rows += rows_of(_VIDEO_BLOCK, f'{video}blocks.{i}.', f'video_encoder/block{i}/')
  rows += rows_of([(NORM, 'norm', 'norm')], video, 'video_encoder/')
  rows += bert_table(config)
  for wanted, theirs, ours in (
    (config.embed_size, 'vision_proj', 'video_projection'),
    (config.embed_size, 'text_proj', 'text_projection'),
    (config.match, 'itm_head', 'match_head'),
    (config.entities, 'mpm_head.0', 'entity_head/hidden'),
    (config.entities, 'mpm_head.2', 'entity_head/out'),
    (config.answers, 'classifier.0', 'answer_head/hidden'),
    (config.answers, 'classifier.2', 'answer_head/out'),
  ):
    rows += rows_of([(LINEAR, theirs, ours)] if wanted else [])
  return rows


def bert_table(config: AlproConfig) -> list[Row]:
  """The part of `rename_table` that a BERT has."""
  bert = f'{bert_prefix(config)}.'
  rows = rows_of(_BERT, f'{bert}embeddings.', 'text_embedding/')
  for i in range(config.text.depth):
    encoder = 'fusion_encoder' if i >= config.text.fusion_layer else 'text_encoder'
    rows += rows_of(_BERT_LAYER, f'{bert}encoder.layer.{i}.', f'{encoder}/layer{i}/')
  return rows + (rows_of(_MLM, 'text_encoder.cls.predictions.', 'mlm_head/') if config.mlm else [])


def rows_of(entries, theirs='', ours=''):
  """Puts the names of a module and of its parts before those of the rows."""
  return [
    Row(f'{theirs}{name}{row.original}', tuple(f'{ours}{path}{p}' for p in row.ours), row.layout)
    for part, name, path in entries
    for row in part
  ]


def bert_prefix(config: AlproConfig) -> str:
  """Question answering has a bare BERT, the others one below MLM's head."""
  return 'text_encoder' if config.answers else 'text_encoder.bert'


# Tensors of the original, or of a backbone, that are no parameters of ours.
_UNUSED = {
  r'.*\.embeddings\.position_ids': 'the numbers 0, 1, 2, ...',
  r'.*\.predictions\.decoder\.(weight|bias)': 'a second copy of what it is tied to',
  r'visual_encoder\.model\.(head|classifier|pre_logits)\..*': (
    'classes of Kinetics or images, which nothing reads (defect 62)'
  ),
  r'(video|image)_prompt_feat': (
    'prompts, which pre-training encodes anew from the list of entities'
  ),
  r'text_encoder\.bert\.pooler\..*': 'ALPRO has no pooler',
  r'text_encoder\.cls\.seq_relationship\..*': 'ALPRO does not guess the next sentence',
}


def derived(name: str) -> bool:
  """Whether a tensor follows from others of its file, and is made again on the way back."""
  return '.position_ids' in name or '.predictions.decoder.' in name


def tied_to(decoder: str) -> str:
  """'...cls.predictions.decoder.weight' (or .bias) -> the tensor it is a second copy of."""
  return decoder.replace('.decoder.bias', '.bias').replace(
    'cls.predictions.decoder', 'bert.embeddings.word_embeddings'
  )


def split(
  tensors: Mapping[str, Tensor], config: AlproConfig
) -> tuple[dict[str, Tensor], dict[str, str]]:
  """Parts the tensors of a model from those that it does not use.

  Returns:
    the former, and {name: why not} of the latter.
  Raises:
    ValueError: if a tensor that follows from others does not.
  """
  rules = dict(_UNUSED)
  if config.answers:
    unread = 'random: question answering never reads it'
    rules[r'temp|(vision_proj|text_proj|itm_head)\..*'] = unread
  elif not config.mlm:
    rules[r'text_encoder\.cls\..*'] = 'the head for masked words, which retrieval never reads'
  used, unused = {}, {}
  for name, tensor in tensors.items():
    reasons = [why for pattern, why in rules.items() if re.fullmatch(pattern, name)]
    if reasons:
      unused[name] = reasons[0]
    else:
      used[name] = tensor
    if derived(name):
      _check_derived(name, tensor.array, tensors)
  return used, unused


def _check_derived(name, array, tensors):
  if name.endswith('.position_ids'):
    if not np.array_equal(array.ravel(), np.arange(array.size)):
      raise ValueError(f'tensor {name} is not 0, 1, 2, ...')
    return
  if (other := tied_to(name)) not in tensors:
    raise ValueError(f'tensor {other} is missing; {name} is tied to it.')
  if not np.array_equal(array, tensors[other].array):
    raise ValueError(
      f'tensors {name} {array.shape} and {other} {tensors[other].array.shape} differ; expected one '
      'and the same, since the decoder of words is tied to their vectors.'
    )


def check(
  tensors: Mapping[str, Tensor],
  rows: Sequence[Row],
  shapes: Mapping[str, tuple[int, ...]],
  optional: Callable[[str], bool] = lambda name: False,
) -> list[str]:
  """Compares tensors, by their names in the original, with a rename_table; reads none.

  Args:
    shapes: of our parameters, by path.
    optional: whether the tensor of a name may be missing.
  Returns:
    the paths of our parameters that no tensor is there for.
  Raises:
    ValueError: naming every tensor that is missing, unknown, of another shape or no float.
  """
  missing, wrong, absent = [], [], []
  for row in rows:
    if (tensor := tensors.get(row.original)) is None:
      absent += row.ours
      if not optional(row.original):
        missing.append(row.original)
    else:
      # Zeros without memory: only their shape counts.
      ours = [np.broadcast_to(np.float32(0), shapes[path]) for path in row.ours]
      expected = row.layout.to_original(*ours).shape
      found = tensor.array
      if found.shape != expected or not jnp.issubdtype(found.dtype, jnp.floating):
        wrong.append(
          f'{_named(row.original, tensor)} is {found.dtype} of shape {found.shape}, expected '
          f'floating point of shape {expected}'
        )
  known = {row.original for row in rows}
  unknown = [_named(name, tensor) for name, tensor in tensors.items() if name not in known]
  lines = [
    f'{len(names)} {what}: {"; ".join(names)}'
    for what, names in (('missing', missing), ('not known', unknown), ('do not fit', wrong))
    if names
  ]
  if lines:
    raise ValueError(
      f'the tensors are not those of the model. {". ".join(lines)}. Expected the {len(rows)} '
      'tensors of these sizes, which are those that most of the tensors have.'
    )
  return absent


def read_params(tensors: Mapping[str, Tensor], rows: Sequence[Row]) -> dict[str, np.ndarray]:
  """Reads tensors into float32 arrays by our paths; ValueError names what is NaN or infinite."""
  params, broken = {}, []
  for row in rows:
    if tensor := tensors.get(row.original):
      with np.errstate(over='ignore'):  # It is infinity then.
        array = tensor.array.astype(np.float32, copy=False)
      if not np.isfinite(array).all():
        broken.append(_named(row.original, tensor))
      params |= _to_ours(row, array)
  check_finite(broken)
  return params


def resize(
  params: Mapping[str, np.ndarray], positions: int, frames: int, rule: str = '2d'
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Makes parameters, by path, fit an image of other `positions` or a clip of other `frames`.

  The rule '2d' resizes positions as the grid they are; 'original' repeats or skips them in the
  order of reading, as the original does on loading (defect 15).

  Returns:
    the parameters, and a line about every table that changed.
  """
  resized, lines = dict(params), []
  for name, rows in (('positions', positions), ('times', frames)):
    path = f'video_encoder/{name}'
    if path in params and len(params[path]) != rows:
      kind = 'times' if rule == 'original' else name
      resized[path] = np.asarray(fit_table(kind, params[path], rows))
      lines.append(f'{path}: {len(params[path])} to {rows} rows')
  return resized, lines


def check_finite(broken: Sequence[str]) -> None:
  """Raises ValueError if there are names of tensors that are not finite."""
  if broken:
    raise ValueError(
      f'{len(broken)} tensors hold NaN or infinity: {", ".join(broken)}. A model with them '
      'computes nothing; take the weights of an earlier step.'
    )


def to_original(params: Mapping[str, Any], config: AlproConfig) -> dict[str, np.ndarray]:
  """Turns our parameters, or gradients of them, into the original's tensors."""
  flat, rows = traverse_util.flatten_dict(params, sep='/'), rename_table(config)
  if different := set(flat) ^ {path for row in rows for path in row.ours}:
    raise ValueError(
      f'parameters {sorted(different)[:5]} are either missing or not known; expected those of '
      'this config. Is it the right one?'
    )
  return {
    row.original: np.asarray(
      row.layout.to_original(*(np.asarray(flat[path]) for path in row.ours)), order='C'
    )
    for row in rows
  }


def _to_ours(row, array):
  parts = zip(row.ours, row.layout.to_ours(array), strict=True)
  return {path: np.asarray(part, order='C') for path, part in parts}


def _named(name, tensor):
  """A name in the original, with those in the file if they are others."""
  return name if tensor.names == (name,) else f'{name} (in the file: {", ".join(tensor.names)})'
