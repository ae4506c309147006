"""The sizes of a model, from the shapes of its tensors.

What shapes do not tell are heads of attention, which are known for the widths that are published
alone, and where the fusion encoder begins (half way).
"""

import collections
import math
import re
from collections.abc import Mapping

from alpro_jax.weights.tensor_files import Tensor

# Heads of every published ViT and BERT of a width. Below, widths are shared by models of several
# numbers of heads.
PUBLISHED_HEADS = {768: 12, 1024: 16}
# Layers of the original's text encoder, half of which fuse.
ORIGINAL_DEPTH = 12


def video_sizes(tensors: Mapping[str, Tensor], heads: int = 0) -> dict:
  """Returns the sizes of a video encoder, as config.model.video names them.

  Args:
    tensors: by their names in the original; without time_embed there are no `frames` in the result.
    heads: of attention; 0 is PUBLISHED_HEADS of its width.
  Raises:
    ValueError: naming a tensor that is missing or has an odd shape, or the heads if they are not
      known.
  """
  theirs = 'visual_encoder.model.'
  width = length(tensors, f'{theirs}blocks.*.norm1.weight', 1, 0)
  patches = length(tensors, f'{theirs}pos_embed', 3, 1) - 1
  height, patch_size = (
    length(tensors, f'{theirs}patch_embed.proj.weight', 4, axis) for axis in (2, 3)
  )
  grid = math.isqrt(max(patches, 0))
  if height != patch_size:
    raise wrong_shape(f'{theirs}patch_embed.proj.weight', tensors, 'square patches')
  if grid * grid != patches or not patches:
    raise wrong_shape(
      f'{theirs}pos_embed', tensors, 'one row and those of a square grid of patches'
    )
  sizes = {
    'image_size': grid * patch_size,
    'patch_size': patch_size,
    'width': width,
    'depth': depth_of(tensors, f'{theirs}blocks.*.norm1.weight'),
    'heads': heads or _published_heads(width, 'video'),
    'mlp_size': length(tensors, f'{theirs}blocks.*.mlp.fc1.weight', 2, 0),
  }
  if f'{theirs}time_embed' in tensors:
    sizes['frames'] = length(tensors, f'{theirs}time_embed', 3, 1)
  return sizes


def text_sizes(tensors: Mapping[str, Tensor], heads: int = 0, fusion_layer: int = 0) -> dict:
  """Returns the sizes of a BERT, as config.model.text names them.

  Args:
    tensors: by their names in the original.
    heads: of attention; 0 is PUBLISHED_HEADS of its width.
    fusion_layer: first layer of the fusion encoder; 0 is half of them.
  Raises:
    ValueError: as `video_sizes`.
  """
  bare = any(name.startswith('text_encoder.embeddings.') for name in tensors)
  theirs = 'text_encoder.' if bare else 'text_encoder.bert.'
  norm = f'{theirs}encoder.layer.*.output.LayerNorm.weight'
  width, depth = length(tensors, norm, 1, 0), depth_of(tensors, norm)
  return {
    'vocab_size': length(tensors, f'{theirs}embeddings.word_embeddings.weight', 2, 0),
    'width': width,
    'depth': depth,
    'fusion_layer': fusion_layer or depth // 2,
    'heads': heads or _published_heads(width, 'text'),
    'mlp_size': length(tensors, f'{theirs}encoder.layer.*.intermediate.dense.weight', 2, 0),
    'max_positions': length(tensors, f'{theirs}embeddings.position_embeddings.weight', 2, 0),
  }


def head_sizes(tensors: Mapping[str, Tensor]) -> dict:
  """Returns the widths of the heads: embed_size, entities, answers; 0: none."""
  names = {'embed_size': 'vision_proj', 'entities': 'mpm_head.2', 'answers': 'classifier.2'}
  return {
    size: length(tensors, f'{name}.weight', 2, 0) if f'{name}.weight' in tensors else 0
    for size, name in names.items()
  }


def length(tensors: Mapping[str, Tensor], name: str, axes: int, axis: int) -> int:
  """The length of an axis that most of the tensors of a name have: a wrong one is named later.

  * in the name is any number.
  """
  found = {n: tensor.array.shape for n, tensor in tensors.items() if _matches(n, name)}
  if not found:
    raise ValueError(
      f'tensor {name} is missing; expected the state dict of a whole model, got {len(tensors)} '
      f'tensors: {list(tensors)[:5]}.'
    )
  lengths = collections.Counter(shape[axis] for shape in found.values() if len(shape) == axes)
  if not lengths:
    raise wrong_shape(next(iter(found)), tensors, f'{axes} axes')
  return lengths.most_common(1)[0][0]


def depth_of(tensors: Mapping[str, Tensor], name: str) -> int:
  """One more than the highest number that * stands for in the names of tensors."""
  return 1 + max(int(match[1]) for n in tensors if (match := _matches(n, name)))


def _matches(name, pattern):
  return re.fullmatch(re.escape(pattern).replace(r'\*', r'(\d+)'), name)


def wrong_shape(name: str, tensors: Mapping[str, Tensor], expected: str) -> ValueError:
  """The error to raise."""
  return ValueError(f'tensor {name} has shape {tensors[name].array.shape}; expected {expected}.')


def _published_heads(width, encoder):
  if width not in PUBLISHED_HEADS:
    raise ValueError(
      f'how many heads of attention the {encoder} encoder of {width} channels has cannot be seen '
      'from its tensors, and decides what it computes; pass --heads.'
    )
  return PUBLISHED_HEADS[width]
