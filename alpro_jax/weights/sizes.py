"""The sizes of a model, from the shapes of its tensors.

What shapes do not tell are heads of attention, which are known for the widths
that are published alone, and where the fusion encoder begins (half way).
"""

import collections
import math
import re
from collections.abc import Mapping

from alpro_jax.weights.files import Tensor

# Heads of every published ViT and BERT of a width. Below, widths are shared by
# models of several numbers of heads.
PUBLISHED_HEADS = {768: 12, 1024: 16}
# Layers of the original's text encoder, half of which fuse.
ORIGINAL_DEPTH = 12
_VIDEO = 'visual_encoder.model'


def video_sizes(tensors: Mapping[str, Tensor], heads: int = 0) -> dict:
  """Returns the sizes of a video encoder, as config.model.video names them.

  Args:
    tensors: by their names in the original; without time_embed there are no
      `frames` in the result.
    heads: of attention; 0 is PUBLISHED_HEADS of its width.
  Raises:
    ValueError: naming a tensor that is missing or has an odd shape, or the
      heads if they are not known.
  """
  block = rf'{_VIDEO}\.blocks\.\d+\.'
  width = _most(tensors, rf'{block}norm[12]\.weight', 0)
  patch = _shape(tensors, f'{_VIDEO}.patch_embed.proj.weight', 4)
  rows = _shape(tensors, f'{_VIDEO}.pos_embed', 3)[1] - 1
  grid = math.isqrt(max(rows, 0))
  if patch[2] != patch[3]:
    _odd(tensors, f'{_VIDEO}.patch_embed.proj.weight', 'square patches')
  if grid * grid != rows or not rows:
    _odd(tensors, f'{_VIDEO}.pos_embed', 'one row and those of a square grid of patches')
  sizes = {
    'image_size': grid * patch[2],
    'patch_size': patch[2],
    'width': width,
    'depth': _depth(tensors, rf'{_VIDEO}\.blocks\.(\d+)\.'),
    'heads': heads or _heads(width, 'video'),
    'mlp_size': _most(tensors, rf'{block}mlp\.fc1\.weight', 0),
  }
  if f'{_VIDEO}.time_embed' in tensors:
    sizes['frames'] = _shape(tensors, f'{_VIDEO}.time_embed', 3)[1]
  return sizes


def text_sizes(tensors: Mapping[str, Tensor], heads: int = 0, fusion_layer: int = 0) -> dict:
  """Returns the sizes of a BERT, as config.model.text names them.

  Args:
    tensors: by their names in the original.
    heads: of attention; 0 is PUBLISHED_HEADS of its width.
    fusion_layer: first layer of the fusion encoder; 0 is half of them.
  Raises:
    ValueError: naming a tensor that is missing or has an odd shape, or the
      heads if they are not known.
  """
  bert = r'text_encoder(?:\.bert)?'
  layer = rf'{bert}\.encoder\.layer\.\d+\.'
  width = _most(tensors, rf'{layer}.*LayerNorm\.weight', 0)
  depth = _depth(tensors, rf'{bert}\.encoder\.layer\.(\d+)\.')
  found = 'text_encoder.bert.embeddings'
  if f'{found}.word_embeddings.weight' not in tensors:
    found = 'text_encoder.embeddings'
  return {
    'vocab_size': _shape(tensors, f'{found}.word_embeddings.weight', 2)[0],
    'width': width,
    'depth': depth,
    'fusion_layer': fusion_layer or depth // 2,
    'heads': heads or _heads(width, 'text'),
    'mlp_size': _most(tensors, rf'{layer}intermediate\.dense\.weight', 0),
    'max_positions': _shape(tensors, f'{found}.position_embeddings.weight', 2)[0],
  }


def head_sizes(tensors: Mapping[str, Tensor]) -> dict:
  """Returns the widths of the heads: embed_size, entities, answers; 0: none."""

  def rows(name):
    return _shape(tensors, name, 2)[0] if name in tensors else 0

  return {
    'embed_size': rows('vision_proj.weight'),
    'entities': rows('mpm_head.2.weight'),
    'answers': rows('classifier.2.weight'),
  }


def _shape(tensors, name, dimensions):
  if name not in tensors:
    raise ValueError(f'tensor {name} is missing; expected the state dict of a whole model.')
  if len(tensors[name].shape) != dimensions:
    _odd(tensors, name, f'{dimensions} axes')
  return tensors[name].shape


def _odd(tensors, name, expected):
  raise ValueError(f'tensor {name} has shape {tensors[name].shape}; expected {expected}.')


def _most(tensors, pattern, axis):
  """The size that most of the tensors agree on: a wrong one is named later."""
  found = collections.Counter(
    tensor.shape[axis]
    for name, tensor in tensors.items()
    if re.fullmatch(pattern, name) and len(tensor.shape) > axis
  )
  if not found:
    raise ValueError(
      f'no tensor is named like {pattern}; expected the state dict of a '
      f'whole model, got {len(tensors)} tensors: {list(tensors)[:5]}.'
    )
  return found.most_common(1)[0][0]


def _depth(tensors, pattern):
  numbers = [int(match[1]) for name in tensors if (match := re.match(pattern, name))]
  return 1 + max(numbers, default=-1)


def _heads(width, encoder):
  if width not in PUBLISHED_HEADS:
    raise ValueError(
      f'how many heads of attention the {encoder} encoder of {width} '
      'channels has cannot be seen from its tensors, and decides what it '
      'computes; pass --heads.'
    )
  return PUBLISHED_HEADS[width]
