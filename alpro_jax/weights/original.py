"""The names and layouts of the PyTorch original's weights, and ours.

One ordered table holds every tensor; both directions read it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import einops
import numpy as np
from flax import traverse_util

from alpro_jax.models.alpro import AlproConfig


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


AS_IS = Layout(lambda x: (x,), lambda x: x)
# Linear: (out, in) -> (in, out).
MATRIX = Layout(lambda x: (x.T,), lambda x: x.T)
# (1, rows, D) -> (rows, D).
TABLE = Layout(lambda x: (x[0],), lambda x: x[None])
# (1, 1 + N, D) -> the class token's row and the patches'.
POSITIONS = Layout(
    lambda x: (x[0, :1], x[0, 1:]),
    lambda first, rest: np.concatenate([first, rest])[None],
)
# Rows are the query's, then the key's, then the value's.
QKV_MATRIX = Layout(
    lambda x: tuple(part.T for part in np.split(x, 3)),
    lambda *parts: np.concatenate([part.T for part in parts]),
)
QKV_BIAS = Layout(
    lambda x: tuple(np.split(x, 3)), lambda *parts: np.concatenate(parts)
)


def _convolution(patch_size: int) -> Layout:
  """(D, 3, P, P) -> (P * P * 3, D)."""
  return Layout(
      lambda x: (einops.rearrange(x, 'd c p q -> (p q c) d'),),
      lambda x: einops.rearrange(
          x, '(p q c) d -> d c p q', p=patch_size, q=patch_size
      ),
  )


# In the original's state dicts, and no parameters of ours: a head of 400
# classes that nothing reads, a buffer, and the tied decoder's second copies.
UNUSED = (
    'visual_encoder.model.head.weight',
    'visual_encoder.model.head.bias',
    'text_encoder.bert.embeddings.position_ids',
    'text_encoder.cls.predictions.decoder.weight',
    'text_encoder.cls.predictions.decoder.bias',
)


# In the original's question answering, which never reads them (SPEC 11).
UNUSED_BY_ANSWERS = (
    'temp',
    *(f'{head}.{part}' for head in ('vision_proj', 'text_proj', 'itm_head')
      for part in ('weight', 'bias')),
    'text_encoder.embeddings.position_ids',
)


def rename_table(config: AlproConfig) -> list[Row]:
  """Returns every tensor of a model, in the original's order.

  Raises:
    ValueError: if the model is one that the original does not have.
  """
  if config.video.attention != 'divided':
    raise ValueError(
        f'{config.video.attention=}: the original has divided attention only.'
    )
  rows = []
  if config.embed_size:
    rows.append(Row('temp', ('temperature',), AS_IS))

  def add(original, ours, layout=AS_IS):
    ours = (ours,) if isinstance(ours, str) else tuple(ours)
    rows.append(Row(original, ours, layout))

  def linear(original, ours):
    add(f'{original}.weight', f'{ours}/kernel', MATRIX)
    add(f'{original}.bias', f'{ours}/bias')

  def norm(original, ours):
    add(f'{original}.weight', f'{ours}/scale')
    add(f'{original}.bias', f'{ours}/bias')

  def fused_attention(original, ours):
    parts = [f'{ours}/{name}' for name in ('query', 'key', 'value')]
    add(f'{original}.qkv.weight', [f'{p}/kernel' for p in parts], QKV_MATRIX)
    add(f'{original}.qkv.bias', [f'{p}/bias' for p in parts], QKV_BIAS)
    linear(f'{original}.proj', f'{ours}/out')

  theirs, ours = 'visual_encoder.model', 'video_encoder'
  add(f'{theirs}.cls_token', f'{ours}/class_token', TABLE)
  add(
      f'{theirs}.pos_embed',
      (f'{ours}/class_position', f'{ours}/positions'),
      POSITIONS,
  )
  add(f'{theirs}.time_embed', f'{ours}/times', TABLE)
  add(
      f'{theirs}.patch_embed.proj.weight',
      f'{ours}/patch_embed/kernel',
      _convolution(config.video.patch_size),
  )
  add(f'{theirs}.patch_embed.proj.bias', f'{ours}/patch_embed/bias')
  for i in range(config.video.depth):
    theirs, ours = f'visual_encoder.model.blocks.{i}', f'video_encoder/block{i}'
    norm(f'{theirs}.norm1', f'{ours}/norm')
    fused_attention(f'{theirs}.attn', f'{ours}/attention')
    norm(f'{theirs}.temporal_norm1', f'{ours}/temporal_norm')
    fused_attention(f'{theirs}.temporal_attn', f'{ours}/temporal_attention')
    linear(f'{theirs}.temporal_fc', f'{ours}/temporal_fc')
    norm(f'{theirs}.norm2', f'{ours}/mlp_norm')
    linear(f'{theirs}.mlp.fc1', f'{ours}/mlp/fc1')
    linear(f'{theirs}.mlp.fc2', f'{ours}/mlp/fc2')
  norm('visual_encoder.model.norm', 'video_encoder/norm')

  # Question answering has a bare BERT, the others one below a head for words.
  bert = 'text_encoder.bert' if config.mlm else 'text_encoder'
  theirs, ours = f'{bert}.embeddings', 'text_embedding'
  add(f'{theirs}.word_embeddings.weight', f'{ours}/words')
  add(f'{theirs}.position_embeddings.weight', f'{ours}/positions')
  add(f'{theirs}.token_type_embeddings.weight', f'{ours}/types')
  norm(f'{theirs}.LayerNorm', f'{ours}/norm')
  for i in range(config.text.depth):
    theirs = f'{bert}.encoder.layer.{i}'
    fused = i >= config.text.fusion_layer
    ours = f'{"fusion" if fused else "text"}_encoder/layer{i}'
    for name in ('query', 'key', 'value'):
      linear(f'{theirs}.attention.self.{name}', f'{ours}/attention/{name}')
    linear(f'{theirs}.attention.output.dense', f'{ours}/attention/out')
    norm(f'{theirs}.attention.output.LayerNorm', f'{ours}/norm')
    linear(f'{theirs}.intermediate.dense', f'{ours}/mlp/fc1')
    linear(f'{theirs}.output.dense', f'{ours}/mlp/fc2')
    norm(f'{theirs}.output.LayerNorm', f'{ours}/mlp_norm')
  if config.mlm:
    theirs, ours = 'text_encoder.cls.predictions', 'mlm_head'
    add(f'{theirs}.bias', f'{ours}/bias')
    linear(f'{theirs}.transform.dense', f'{ours}/transform')
    norm(f'{theirs}.transform.LayerNorm', f'{ours}/norm')

  if config.embed_size:
    linear('vision_proj', 'video_projection')
    linear('text_proj', 'text_projection')
  if config.match:
    linear('itm_head', 'match_head')
  if config.entities:
    linear('mpm_head.0', 'entity_head/hidden')
    linear('mpm_head.2', 'entity_head/out')
  if config.answers:
    linear('classifier.0', 'answer_head/hidden')
    linear('classifier.2', 'answer_head/out')
  return rows


def from_original(
    state: Mapping[str, Any], config: AlproConfig
) -> dict[str, Any]:
  """Turns a state dict, or gradients named alike, into our parameters.

  Args:
    state: tensors as NumPy arrays, of one model: a prompter's prefix cut off.
    config: of the model.
  Raises:
    ValueError: naming tensors that are missing or not known.
  """
  rows = rename_table(config)
  expected = {row.original for row in rows}
  unused = {*UNUSED, *(UNUSED_BY_ANSWERS if config.answers else ())}
  missing = sorted(expected - set(state))
  unknown = sorted(set(state) - expected - unused)
  if missing or unknown:
    raise ValueError(
        f'{len(missing)} tensors missing: {missing[:5]}; {len(unknown)} not '
        f'known: {unknown[:5]}. Expected the {len(expected)} tensors of this '
        'config; is it the right one?'
    )
  flat = {}
  for row in rows:
    arrays = row.layout.to_ours(np.asarray(state[row.original]))
    for path, array in zip(row.ours, arrays, strict=True):
      flat[path] = np.asarray(array, order='C')
  return traverse_util.unflatten_dict(flat, sep='/')


def to_original(
    params: Mapping[str, Any], config: AlproConfig
) -> dict[str, np.ndarray]:
  """Turns our parameters, or gradients of them, into the original's tensors."""
  flat = traverse_util.flatten_dict(params, sep='/')
  rows = rename_table(config)
  expected = {path for row in rows for path in row.ours}
  missing, unknown = sorted(expected - set(flat)), sorted(set(flat) - expected)
  if missing or unknown:
    raise ValueError(
        f'Parameters missing: {missing[:5]}; not known: {unknown[:5]}. '
        'Expected those of this config; is it the right one?'
    )
  return {
      row.original: np.asarray(
          row.layout.to_original(*(np.asarray(flat[p]) for p in row.ours)),
          order='C',
      )
      for row in rows
  }
