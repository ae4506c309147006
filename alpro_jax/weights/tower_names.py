"""The names of the tensors of two towers, as programs for image-text models call them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from alpro_jax.weights.tables import (
  AS_IS,
  KV_BIAS,
  KV_KERNEL,
  LINEAR,
  NORM,
  PATCH_EMBEDDING,
  POSITIONS,
  QKV_ATTENTION,
  QKV_BIAS,
  QKV_KERNEL,
  TABLE,
  TENSOR,
  TRANSPOSED,
  Layout,
  Row,
  rows_of,
)


class Names(NamedTuple):
  """How a program names the parts of a tower."""

  prefix: str
  positions: str
  block: str  # Before its number.
  norm: str
  patches: str = ''
  class_token: str = ''
  norm_before: str = ''
  pool: str = ''
  words: str = ''


VIDEO = {
  'transformers': Names(
    'vision_model.',
    'embeddings.position_embedding.weight',
    'encoder.layers.',
    'post_layernorm',
    'embeddings.patch_embedding',
    'embeddings.class_embedding',
    'pre_layrnorm',
    'head.',
  ),
  'open_clip': Names(
    'visual.',
    'positional_embedding',
    'transformer.resblocks.',
    'ln_post',
    'conv1',
    'class_embedding',
    'ln_pre',
    'attn_pool.',
  ),
  'timm': Names(
    'visual.trunk.',
    'pos_embed',
    'blocks.',
    'norm',
    'patch_embed.proj',
    'cls_token',
    'norm_pre',
    'attn_pool.',
  ),
}
TEXT = {
  'transformers': Names(
    'text_model.',
    'embeddings.position_embedding.weight',
    'encoder.layers.',
    'final_layer_norm',
    words='embeddings.token_embedding.weight',
  ),
  'open_clip': Names(
    '', 'positional_embedding', 'transformer.resblocks.', 'ln_final', words='token_embedding.weight'
  ),
}

# PyTorch's MultiheadAttention.
_PACKED = (
  Row('in_proj_weight', ('query/kernel', 'key/kernel', 'value/kernel'), QKV_KERNEL),
  Row('in_proj_bias', ('query/bias', 'key/bias', 'value/bias'), QKV_BIAS),
  Row('out_proj.weight', ('out/kernel',), TRANSPOSED),
  Row('out_proj.bias', ('out/bias',), AS_IS),
)
_KEY_VALUE = (
  Row('.weight', ('key/kernel', 'value/kernel'), KV_KERNEL),
  Row('.bias', ('key/bias', 'value/bias'), KV_BIAS),
)
# (D, E), applied from the right.
KERNEL = (Row('', ('/kernel',), AS_IS),)
NO_BIAS = LINEAR[:1]
# Of one vector, (D,), and of a table without a leading axis.
_VECTOR = (Row('', ('',), Layout(lambda x: (x[None],), lambda x: x[0])),)
_FLAT_POSITIONS = (
  Row(
    '',
    ('class_position', 'positions'),
    Layout(lambda x: (x[:1], x[1:]), lambda first, rest: np.concatenate([first, rest])),
  ),
)
BLOCK = {
  'transformers': (
    (NORM, 'layer_norm1', 'norm'),
    (LINEAR, 'self_attn.q_proj', 'attention/query'),
    (LINEAR, 'self_attn.k_proj', 'attention/key'),
    (LINEAR, 'self_attn.v_proj', 'attention/value'),
    (LINEAR, 'self_attn.out_proj', 'attention/out'),
    (NORM, 'layer_norm2', 'mlp_norm'),
    (LINEAR, 'mlp.fc1', 'mlp/fc1'),
    (LINEAR, 'mlp.fc2', 'mlp/fc2'),
  ),
  'open_clip': (
    (NORM, 'ln_1', 'norm'),
    (_PACKED, 'attn.', 'attention/'),
    (NORM, 'ln_2', 'mlp_norm'),
    (LINEAR, 'mlp.c_fc', 'mlp/fc1'),
    (LINEAR, 'mlp.c_proj', 'mlp/fc2'),
  ),
  'timm': (
    (NORM, 'norm1', 'norm'),
    (QKV_ATTENTION, 'attn', 'attention'),
    (NORM, 'norm2', 'mlp_norm'),
    (LINEAR, 'mlp.fc1', 'mlp/fc1'),
    (LINEAR, 'mlp.fc2', 'mlp/fc2'),
  ),
}
_POOL = {
  'transformers': (
    (TABLE, 'probe', 'latent'),
    (_PACKED, 'attention.', ''),
    (NORM, 'layernorm', 'norm'),
    (LINEAR, 'mlp.fc1', 'mlp/fc1'),
    (LINEAR, 'mlp.fc2', 'mlp/fc2'),
  ),
  'open_clip': (
    (TABLE, 'probe', 'latent'),
    (_PACKED, 'attn.', ''),
    (NORM, 'layernorm', 'norm'),
    (LINEAR, 'mlp.c_fc', 'mlp/fc1'),
    (LINEAR, 'mlp.c_proj', 'mlp/fc2'),
  ),
  'timm': (
    (TABLE, 'latent', 'latent'),
    (LINEAR, 'q', 'query'),
    (_KEY_VALUE, 'kv', ''),
    (LINEAR, 'proj', 'out'),
    (NORM, 'norm', 'norm'),
    (LINEAR, 'mlp.fc1', 'mlp/fc1'),
    (LINEAR, 'mlp.fc2', 'mlp/fc2'),
  ),
}


def video_rows(style: str, video: Mapping[str, Any], *, flat_patches: bool) -> list[Row]:
  """Returns the table of an image tower.

  Args:
    style: key of VIDEO.
    video: options of config.model.video.
    flat_patches: whether patches are embedded by a Linear over p, q and c in a row.
  """
  names, lead, ours = VIDEO[style], style == 'timm', 'video_encoder/'
  positions = (
    ((TABLE, TENSOR), (POSITIONS, _FLAT_POSITIONS))[video['class_token']][not lead],
    names.positions,
    '' if video['class_token'] else 'positions',
  )
  patches = LINEAR if flat_patches else PATCH_EMBEDDING
  entries = [
    positions,
    (patches if video['patch_bias'] else patches[:1], names.patches, 'patch_embed'),
    (NORM, names.norm, 'norm'),
  ]
  if video['class_token']:
    entries.append((TABLE if lead else _VECTOR, names.class_token, 'class_token'))
  if video['norm_before']:
    entries.append((NORM, names.norm_before, 'norm_before'))
  rows = rows_of(entries, names.prefix, ours)
  for i in range(video['depth']):
    rows += rows_of(BLOCK[style], f'{names.prefix}{names.block}{i}.', f'{ours}block{i}/')
  if video['pooling'] == 'attention':
    rows += rows_of(_POOL[style], names.prefix + names.pool, f'{ours}pool/')
  return rows


def text_rows(style: str, text: Mapping[str, Any], prefix: str = '') -> list[Row]:
  """Returns the table of a text tower; `prefix` stands before the names of `style`."""
  names, ours = TEXT[style], 'text_tower/'
  prefix += names.prefix
  rows = rows_of(
    [
      (TENSOR, names.words, 'words'),
      (TENSOR, names.positions, 'positions'),
      (NORM, names.norm, 'norm'),
    ],
    prefix,
    ours,
  )
  for i in range(text['depth']):
    rows += rows_of(BLOCK[style], f'{prefix}{names.block}{i}.', f'{ours}block{i}/')
  return rows
