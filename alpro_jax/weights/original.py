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
  lambda x: (x[0, :1], x[0, 1:]), lambda first, rest: np.concatenate([first, rest])[None]
)
# Rows are the query's, then the key's, then the value's.
QKV_MATRIX = Layout(
  lambda x: tuple(part.T for part in np.split(x, 3)),
  lambda *parts: np.concatenate([part.T for part in parts]),
)
QKV_BIAS = Layout(lambda x: tuple(np.split(x, 3)), lambda *parts: np.concatenate(parts))


def _convolution(patch_size: int) -> Layout:
  """(D, 3, P, P) -> (P * P * 3, D)."""
  return Layout(
    lambda x: (einops.rearrange(x, 'd c p q -> (p q c) d'),),
    lambda x: einops.rearrange(x, '(p q c) d -> d c p q', p=patch_size, q=patch_size),
  )


class Rows:
  """Collects the lines of a table."""

  def __init__(self):
    self.rows = []

  def add(self, original, ours, layout=AS_IS):
    ours = (ours,) if isinstance(ours, str) else tuple(ours)
    self.rows.append(Row(original, ours, layout))

  def linear(self, original, ours):
    self.add(f'{original}.weight', f'{ours}/kernel', MATRIX)
    self.add(f'{original}.bias', f'{ours}/bias')

  def norm(self, original, ours):
    self.add(f'{original}.weight', f'{ours}/scale')
    self.add(f'{original}.bias', f'{ours}/bias')

  def fused_attention(self, original, ours):
    parts = [f'{ours}/{name}' for name in ('query', 'key', 'value')]
    self.add(f'{original}.qkv.weight', [f'{p}/kernel' for p in parts], QKV_MATRIX)
    self.add(f'{original}.qkv.bias', [f'{p}/bias' for p in parts], QKV_BIAS)
    self.linear(f'{original}.proj', f'{ours}/out')


def rename_table(config: AlproConfig) -> list[Row]:
  """Returns every tensor of a model, in the original's order.

  Raises:
    ValueError: if the model is one that the original does not have.
  """
  if config.video.attention != 'divided':
    raise ValueError(f'{config.video.attention=}: the original has divided attention only.')
  table = Rows()
  if config.embed_size:
    table.add('temp', 'temperature')
  _add_video(table, config.video)
  _add_text(table, config)
  if config.embed_size:
    table.linear('vision_proj', 'video_projection')
    table.linear('text_proj', 'text_projection')
  if config.match:
    table.linear('itm_head', 'match_head')
  if config.entities:
    table.linear('mpm_head.0', 'entity_head/hidden')
    table.linear('mpm_head.2', 'entity_head/out')
  if config.answers:
    table.linear('classifier.0', 'answer_head/hidden')
    table.linear('classifier.2', 'answer_head/out')
  return table.rows


def _add_video(table, config):
  theirs, ours = 'visual_encoder.model', 'video_encoder'
  table.add(f'{theirs}.cls_token', f'{ours}/class_token', TABLE)
  table.add(f'{theirs}.pos_embed', (f'{ours}/class_position', f'{ours}/positions'), POSITIONS)
  table.add(f'{theirs}.time_embed', f'{ours}/times', TABLE)
  table.add(
    f'{theirs}.patch_embed.proj.weight',
    f'{ours}/patch_embed/kernel',
    _convolution(config.patch_size),
  )
  table.add(f'{theirs}.patch_embed.proj.bias', f'{ours}/patch_embed/bias')
  for i in range(config.depth):
    theirs, ours = f'visual_encoder.model.blocks.{i}', f'video_encoder/block{i}'
    table.norm(f'{theirs}.norm1', f'{ours}/norm')
    table.fused_attention(f'{theirs}.attn', f'{ours}/attention')
    table.norm(f'{theirs}.temporal_norm1', f'{ours}/temporal_norm')
    table.fused_attention(f'{theirs}.temporal_attn', f'{ours}/temporal_attention')
    table.linear(f'{theirs}.temporal_fc', f'{ours}/temporal_fc')
    table.norm(f'{theirs}.norm2', f'{ours}/mlp_norm')
    table.linear(f'{theirs}.mlp.fc1', f'{ours}/mlp/fc1')
    table.linear(f'{theirs}.mlp.fc2', f'{ours}/mlp/fc2')
  table.norm('visual_encoder.model.norm', 'video_encoder/norm')


def bert_prefix(config: AlproConfig) -> str:
  """Question answering has a bare BERT, the others one below MLM's head."""
  return 'text_encoder' if config.answers else 'text_encoder.bert'


def _add_text(table, config):
  bert = bert_prefix(config)
  theirs, ours = f'{bert}.embeddings', 'text_embedding'
  table.add(f'{theirs}.word_embeddings.weight', f'{ours}/words')
  table.add(f'{theirs}.position_embeddings.weight', f'{ours}/positions')
  table.add(f'{theirs}.token_type_embeddings.weight', f'{ours}/types')
  table.norm(f'{theirs}.LayerNorm', f'{ours}/norm')
  for i in range(config.text.depth):
    theirs = f'{bert}.encoder.layer.{i}'
    fused = i >= config.text.fusion_layer
    ours = f'{"fusion" if fused else "text"}_encoder/layer{i}'
    for part in ('query', 'key', 'value'):
      table.linear(f'{theirs}.attention.self.{part}', f'{ours}/attention/{part}')
    table.linear(f'{theirs}.attention.output.dense', f'{ours}/attention/out')
    table.norm(f'{theirs}.attention.output.LayerNorm', f'{ours}/norm')
    table.linear(f'{theirs}.intermediate.dense', f'{ours}/mlp/fc1')
    table.linear(f'{theirs}.output.dense', f'{ours}/mlp/fc2')
    table.norm(f'{theirs}.output.LayerNorm', f'{ours}/mlp_norm')
  if config.mlm:
    theirs, ours = 'text_encoder.cls.predictions', 'mlm_head'
    table.add(f'{theirs}.bias', f'{ours}/bias')
    table.linear(f'{theirs}.transform.dense', f'{ours}/transform')
    table.norm(f'{theirs}.transform.LayerNorm', f'{ours}/norm')


def derived(name: str) -> bool:
  """Whether a tensor of the original follows from others of its file.

  The tied decoder of words, stored a second time, and the numbers of the
  places in a text.
  """
  return name.endswith(
    ('.embeddings.position_ids', '.predictions.decoder.weight', '.predictions.decoder.bias')
  )


def why_unused(name: str, config: AlproConfig) -> str:
  """Says why a tensor of the original is no parameter of ours; '' if unknown.

  Args:
    name: in the original, a prompter's prefix cut off.
    config: of the model.
  """
  if name.endswith('.embeddings.position_ids'):
    return 'the numbers 0, 1, 2, ...'
  if derived(name):
    return 'a second copy of what it is tied to'
  if name.startswith('visual_encoder.model.head.'):
    return 'classes of Kinetics, which nothing reads (defect 62)'
  if name in ('video_prompt_feat', 'image_prompt_feat'):
    return 'prompts, which pre-training encodes anew from the list of entities'
  heads = ('vision_proj.', 'text_proj.', 'itm_head.')
  if config.answers and (name == 'temp' or name.startswith(heads)):
    return 'random: question answering never reads it'
  bare = not config.mlm and not config.answers
  if bare and name.startswith('text_encoder.cls.'):
    return 'the head for masked words, which retrieval never reads'
  return ''


def from_original(state: Mapping[str, Any], config: AlproConfig) -> dict[str, Any]:
  """Turns arrays by their names in the original into our parameters.

  Args:
    state: tensors, or gradients of them, of one model: a prompter's prefix cut
      off. What `why_unused` explains may be there.
    config: of the model.
  Raises:
    ValueError: naming tensors that are missing or not known.
  """
  rows = rename_table(config)
  expected = {row.original for row in rows}
  missing = sorted(expected - set(state))
  unknown = sorted(name for name in set(state) - expected if not why_unused(name, config))
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


def to_original(params: Mapping[str, Any], config: AlproConfig) -> dict[str, np.ndarray]:
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
      row.layout.to_original(*(np.asarray(flat[p]) for p in row.ours)), order='C'
    )
    for row in rows
  }
