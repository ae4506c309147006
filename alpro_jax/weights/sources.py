"""Whose weights they are: every source under the names of the original.

ALPRO, LAVIS    -> a model and perhaps its prompter
timm, ViT's npz, TimeSformer (its authors' or Hugging Face's) -> video encoder
BERT of Hugging Face -> text and fusion encoder, head for words
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from alpro_jax.weights.files import Tensor, derive

_VIDEO, _TEXT = 'visual_encoder.model.', 'text_encoder.'
_PROMPTER = 'prompter.'
# Tasks that tensors alone may not tell from each other.
UNSEEN = ('prompter', 'pretrain', 'retrieval')


class Source(NamedTuple):
  """Tensors that go into one model.

  Attributes:
    tensors: by their names in the original.
    unused: name in the file -> why it goes nowhere.
    copied: name in the original -> where its copy was taken from.
    heads: of attention; 0 if the file does not say.
  """

  tensors: dict[str, Tensor]
  unused: dict[str, str] = {}
  copied: dict[str, str] = {}
  heads: int = 0


def alpro(
  tensors: Mapping[str, Tensor], task: str = ''
) -> tuple[str, dict[str, Tensor], dict[str, Tensor]]:
  """Sorts a file of the original, or of LAVIS.

  Args:
    tensors: by their names in the file.
    task: of the model, where it is known; '' sees it from the tensors.
  Returns:
    the task, as config.task names it; the model's tensors, by their names in
    the original; those of the prompter in the same file, or none.
  Raises:
    ValueError: if it is no file of ALPRO's, or of another task than `task`, or
      its task cannot be seen.
  """
  tensors = _without_prefix(tensors, 'module.')
  prompter = {
    name.removeprefix(_PROMPTER): tensor
    for name, tensor in tensors.items()
    if name.startswith(_PROMPTER)
  }
  own = {name: tensor for name, tensor in tensors.items() if not name.startswith(_PROMPTER)}
  if not any(name.startswith(_VIDEO) for name in own):
    raise ValueError(
      f'no tensor is named {_VIDEO}..., so this is no file of ALPRO; got '
      f'{len(own)} tensors: {list(own)[:5]}. Weights of a ViT or TimeSformer '
      'go to --vit, those of a BERT to --bert.'
    )
  possible = _tasks(own)
  if not task and len(possible) > 1:
    raise ValueError(
      f'the file may be of task {" or ".join(map(repr, possible))}: its '
      'tensors do not tell, and of a prompter the head that says match or no '
      'match was never trained. Pass --task.'
    )
  if task and task not in possible:
    raise ValueError(
      f'the tensors are those of task {" or ".join(map(repr, possible))}, not of {task!r}.'
    )
  task = task or possible[0]
  if task == 'question_answering':
    return task, _rename(own, r'text_encoder\.bert\.', _TEXT), {}
  # LAVIS has a bare BERT everywhere.
  bare = r'text_encoder\.(?=embeddings\.|encoder\.)'
  if task == 'pretrain':
    prompter = _rename(prompter, bare, 'text_encoder.bert.')
  else:
    prompter = {}
  return task, _rename(own, bare, 'text_encoder.bert.'), prompter


def _tasks(own):
  """Returns the tasks that a model of these tensors may have."""

  def any_begins(*prefixes):
    return any(name.startswith(prefixes) for name in own)

  if any_begins('classifier.'):
    return ['question_answering']
  if any_begins('mpm_head.'):
    return ['pretrain']
  if 'video_prompt_feat' in own:
    return ['prompter']
  # The original's file has the classes of Kinetics, LAVIS no head for words.
  if any_begins(f'{_VIDEO}head.') or not any_begins(f'{_TEXT}cls.'):
    return ['retrieval']
  return list(UNSEEN)


def vit(tensors: Mapping[str, Tensor], config: Mapping | None = None) -> Source:
  """Names the tensors of a ViT or a TimeSformer with divided attention.

  Time attention of an image encoder starts as a copy of attention over space,
  as in the original (docs/specification.md, Loading a backbone); `temporal_fc`
  and `time_embed` are missing.

  Args:
    tensors: of the file.
    config: config.json beside it, of Hugging Face.
  Raises:
    ValueError: if it computes something else, or lacks a tensor.
  """
  config = config or {}
  _check_config(
    config,
    '--vit',
    hidden_act='gelu',
    layer_norm_eps=1e-6,
    attention_type='divided_space_time',
    qkv_bias=True,
  )
  tensors = _without_prefix(tensors, 'module.', 'model.')
  heads = int(config.get('num_attention_heads', 0))
  if 'Transformer/encoder_norm/scale' in tensors:
    tensors, heads = _of_npz(tensors)
  elif any('.layernorm_before.' in name for name in tensors):
    for pattern, replacement in _TRANSFORMERS:
      tensors = _rename(tensors, pattern, replacement)
  classifiers = ('head.', 'head/', 'classifier.', 'pre_logits.', 'pre_logits/')
  unused = {
    name: 'classes of images or actions'
    for tensor_name in tensors
    if tensor_name.startswith(classifiers)
    for name in tensors[tensor_name].names
  }
  found = {
    _VIDEO + name: tensor for name, tensor in tensors.items() if not name.startswith(classifiers)
  }
  copied = {}
  if _VIDEO + 'time_embed' not in found:
    for name in list(found):
      copy = re.sub(r'\.(attn|norm1)\.', r'.temporal_\1.', name)
      if copy != name and copy not in found:
        found[copy], copied[copy] = found[name], found[name].names[0]
  return Source(found, unused, copied, heads)


def bert(tensors: Mapping[str, Tensor], config: Mapping | None = None) -> Source:
  """Names the tensors of a BERT of Hugging Face, with or without its heads.

  Args:
    tensors: of a BertModel, BertForMaskedLM or BertForPreTraining.
    config: its config.json.
  Raises:
    ValueError: if it is another kind of BERT, or is not tied.
  """
  config = config or {}
  _check_config(
    config, '--bert', hidden_act='gelu', layer_norm_eps=1e-12, position_embedding_type='absolute'
  )
  tensors = _without_prefix(tensors, 'module.', 'model.')
  if not any(name.startswith('bert.') for name in tensors):
    tensors = {
      name if name.startswith('cls.') else f'bert.{name}': tensor
      for name, tensor in tensors.items()
    }
  # TensorFlow's names, in which Google's own weights are still published.
  tensors = _rename(tensors, r'LayerNorm\.gamma$', 'LayerNorm.weight')
  tensors = _rename(tensors, r'LayerNorm\.beta$', 'LayerNorm.bias')
  found, unused = {}, {}
  for name, tensor in tensors.items():
    if name.startswith('bert.pooler.'):
      reason = 'ALPRO has no pooler'
    elif name.startswith('cls.seq_relationship.'):
      reason = 'ALPRO does not guess the next sentence'
    elif name == 'bert.embeddings.position_ids':
      reason = 'the numbers 0, 1, 2, ...'
    else:
      found[_TEXT + name] = tensor
      continue
    unused.update(dict.fromkeys(tensor.names, reason))
  predictions = f'{_TEXT}cls.predictions.'
  for copy, kept in (
    (f'{predictions}decoder.weight', f'{_TEXT}bert.embeddings.word_embeddings.weight'),
    (f'{predictions}decoder.bias', f'{predictions}bias'),
  ):
    if copy in found:
      tensor = found.pop(copy)
      if kept in found:
        check_tied(copy, tensor, kept, found[kept])
        unused.update(dict.fromkeys(tensor.names, 'a second copy of what it is tied to'))
      else:
        found[kept] = tensor
  heads = int(config.get('num_attention_heads', 0))
  return Source(found, unused, heads=heads)


def check_tied(name, tensor: Tensor, other_name, other: Tensor) -> None:
  """Raises ValueError if two tensors that must be equal differ."""
  if tensor.shape != other.shape or not np.array_equal(tensor.read(), other.read()):
    raise ValueError(
      f'tensors {name} {tensor.shape} and {other_name} {other.shape} differ; '
      'expected one and the same, since the decoder of words is tied to '
      'their vectors.'
    )


def _check_config(config, flag, **expected):
  """Refuses what has the names of a model and computes something else."""
  for name, value in expected.items():
    if config.get(name, value) != value:
      raise ValueError(
        f'config.json of {flag} has {name}={config[name]!r}; ALPRO has '
        f'{value!r}, and would compute something else with these weights.'
      )


def _without_prefix(tensors, *prefixes):
  for prefix in prefixes:
    if tensors and all(name.startswith(prefix) for name in tensors):
      tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
  return dict(tensors)


def _rename(tensors, pattern, replacement):
  renamed = {}
  for name, tensor in tensors.items():
    new = re.sub(pattern, replacement, name)
    if new in renamed:
      raise ValueError(
        f'tensors {renamed[new].names[0]} and {tensor.names[0]} are the same '
        'one under two names; expected one of them.'
      )
    renamed[new] = tensor
  return renamed


# Hugging Face's TimeSformer -> its authors' names; order matters.
_TRANSFORMERS = (
  (r'^timesformer\.', ''),
  (r'^embeddings\.cls_token$', 'cls_token'),
  (r'^embeddings\.position_embeddings$', 'pos_embed'),
  (r'^embeddings\.time_embeddings$', 'time_embed'),
  (r'^embeddings\.patch_embeddings\.projection\.', 'patch_embed.proj.'),
  (r'^encoder\.layer\.', 'blocks.'),
  (r'\.temporal_attention\.attention\.qkv\.', '.temporal_attn.qkv.'),
  (r'\.temporal_attention\.output\.dense\.', '.temporal_attn.proj.'),
  (r'\.attention\.attention\.qkv\.', '.attn.qkv.'),
  (r'\.attention\.output\.dense\.', '.attn.proj.'),
  (r'\.intermediate\.dense\.', '.mlp.fc1.'),
  (r'\.output\.dense\.', '.mlp.fc2.'),
  (r'\.layernorm_before\.', '.norm1.'),
  (r'\.layernorm_after\.', '.norm2.'),
  (r'\.temporal_layernorm\.', '.temporal_norm1.'),
  (r'\.temporal_dense\.', '.temporal_fc.'),
  (r'^layernorm\.', 'norm.'),
)


def _of_npz(tensors):
  """The ViT authors' names and layouts -> timm's.

  Kernels are (in, out) there, those of attention (D, A, K) or (A, K, D).

  Returns:
    tensors and the number of heads.
  """
  tensors, found = dict(tensors), {}

  def take(name):
    if name not in tensors:
      raise ValueError(f"tensor {name} is missing; expected the ViT authors' published weights.")
    return tensors.pop(name)

  def as_is(theirs, ours):
    found[ours] = take(theirs)

  def linear(theirs, ours):
    kernel = take(f'{theirs}/kernel')
    found[f'{ours}.weight'] = kernel.derive(kernel.shape[::-1], np.transpose)
    as_is(f'{theirs}/bias', f'{ours}.bias')

  def norm(theirs, ours):
    as_is(f'{theirs}/scale', f'{ours}.weight')
    as_is(f'{theirs}/bias', f'{ours}.bias')

  def attention(theirs, ours):
    parts = [f'{theirs}/{part}' for part in ('query', 'key', 'value')]
    kernels = [take(f'{part}/kernel') for part in parts]
    biases = [take(f'{part}/bias') for part in parts]
    out = take(f'{theirs}/out/kernel')
    width, heads, size = _axes(kernels[0], 3)
    for tensor, shape in (
      *((kernel, (width, heads, size)) for kernel in kernels),
      *((bias, (heads, size)) for bias in biases),
      (out, (heads, size, width)),
    ):
      if tensor.shape != shape:
        raise ValueError(f'tensor {tensor.names[0]} has shape {tensor.shape}, expected {shape}.')
    rows = heads * size
    found[f'{ours}.qkv.weight'] = derive(
      kernels,
      (3 * rows, width),
      lambda *arrays: np.concatenate([array.reshape(width, rows).T for array in arrays]),
    )
    found[f'{ours}.qkv.bias'] = derive(
      biases, (3 * rows,), lambda *arrays: np.concatenate([array.reshape(rows) for array in arrays])
    )
    found[f'{ours}.proj.weight'] = out.derive(
      (width, rows), lambda array: array.reshape(rows, width).T
    )
    as_is(f'{theirs}/out/bias', f'{ours}.proj.bias')
    return heads

  as_is('cls', 'cls_token')
  as_is('Transformer/posembed_input/pos_embedding', 'pos_embed')
  kernel = take('embedding/kernel')
  height, width, channels, features = _axes(kernel, 4)
  found['patch_embed.proj.weight'] = kernel.derive(
    (features, channels, height, width), lambda array: array.transpose(3, 2, 0, 1)
  )
  as_is('embedding/bias', 'patch_embed.proj.bias')
  norm('Transformer/encoder_norm', 'norm')
  numbers = sorted(
    {
      int(match[1])
      for name in tensors
      if (match := re.match(r'Transformer/encoderblock_(\d+)/', name))
    }
  )
  heads = 0
  for i in numbers:
    theirs, ours = f'Transformer/encoderblock_{i}', f'blocks.{i}'
    norm(f'{theirs}/LayerNorm_0', f'{ours}.norm1')
    heads = attention(f'{theirs}/MultiHeadDotProductAttention_1', f'{ours}.attn')
    norm(f'{theirs}/LayerNorm_2', f'{ours}.norm2')
    linear(f'{theirs}/MlpBlock_3/Dense_0', f'{ours}.mlp.fc1')
    linear(f'{theirs}/MlpBlock_3/Dense_1', f'{ours}.mlp.fc2')
  return {**found, **tensors}, heads


def _axes(tensor, count):
  if len(tensor.shape) != count:
    raise ValueError(f'tensor {tensor.names[0]} has shape {tensor.shape}, expected {count} axes.')
  return tensor.shape
