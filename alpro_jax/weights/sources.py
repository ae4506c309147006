"""Whose weights they are: every source under the names of the original.

ALPRO, LAVIS    -> a model and perhaps its prompter
timm, ViT's npz, TimeSformer (its authors' or Hugging Face's) -> video encoder
BERT of Hugging Face -> text and fusion encoder, head for words
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from alpro_jax.weights import sizes, tables
from alpro_jax.weights.tensor_files import Tensor

_VIDEO, _TEXT, _PROMPTER = 'visual_encoder.model.', 'text_encoder.', 'prompter.'
# Tasks that tensors alone may not tell from each other.
UNSEEN = ('prompter', 'pretrain', 'retrieval')


class Source(NamedTuple):
  """Tensors that go into one encoder.

  Attributes:
    tensors: by their names in the original.
    copied: name in the original -> where its copy was taken from.
    heads: of attention; 0 if the file does not say.
    note: whether config.json was used, and why not; '' if there is none.
  """

  tensors: dict[str, Tensor]
  copied: dict[str, str]
  heads: int
  note: str


def alpro(
  tensors: Mapping[str, Tensor], task: str = ''
) -> tuple[str, dict[str, Tensor], dict[str, Tensor]]:
  """Sorts a file of the original, or of LAVIS; its task is seen from the tensors if none is given.

  Returns:
    the task, as config.task names it; the model's tensors, by their names in the original; those of
    the prompter in the same file, or none.
  Raises:
    ValueError: if it is no file of ALPRO's, or of another task, or its task cannot be seen.
  """
  tensors = without_prefix(tensors, 'module.')
  own = {name: tensor for name, tensor in tensors.items() if not name.startswith(_PROMPTER)}
  prompter = {
    name.removeprefix(_PROMPTER): tensor for name, tensor in tensors.items() if name not in own
  }
  if not any(name.startswith(_VIDEO) for name in own):
    raise ValueError(
      f'no tensor is named {_VIDEO}..., so this is no file of ALPRO; got {len(own)} tensors: '
      f'{list(own)[:5]}. Weights of a ViT or TimeSformer go to --vit, those of a BERT to --bert.'
    )
  possible = _tasks(own)
  listed = ' or '.join(map(repr, possible))
  if not task and len(possible) > 1:
    raise ValueError(
      f'the file may be of task {listed}: its tensors do not tell, and of a prompter the head that '
      'says match or no match was never trained. Pass --task.'
    )
  if task and task not in possible:
    raise ValueError(f'the tensors are those of task {listed}, not of {task!r}.')
  task = task or possible[0]
  if task == 'question_answering':
    return task, _renamed(own, [(r'text_encoder\.bert\.', _TEXT)]), {}
  # LAVIS has a bare BERT everywhere.
  bare = [(r'text_encoder\.(?=embeddings\.|encoder\.)', 'text_encoder.bert.')]
  return task, _renamed(own, bare), _renamed(prompter, bare) if task == 'pretrain' else {}


def _tasks(own):
  """Returns the tasks that a model of these tensors may have."""

  def any_begins(prefix):
    return any(name.startswith(prefix) for name in own)

  for prefix, task in (
    ('classifier.', 'question_answering'),
    ('mpm_head.', 'pretrain'),
    ('video_prompt_feat', 'prompter'),
  ):
    if any_begins(prefix):
      return [task]
  # The original's file has the classes of Kinetics, LAVIS no head for words.
  if any_begins(f'{_VIDEO}head.') or not any_begins(f'{_TEXT}cls.'):
    return ['retrieval']
  return list(UNSEEN)


def vit(tensors: Mapping[str, Tensor], config: Mapping | None = None) -> Source:
  """Names the tensors of a ViT or a TimeSformer with divided attention.

  Time attention of an image encoder starts as a copy of attention over space, as in the original
  (docs/specification.md, Loading a backbone); `temporal_fc` and `time_embed` are missing.
  `config` is the config.json of Hugging Face beside the file, which may be of another model.

  Raises:
    ValueError: if it computes something else, or lacks a tensor.
  """
  tensors, heads = without_prefix(tensors, 'module.', 'model.'), 0
  if 'Transformer/encoder_norm/scale' in tensors:
    tensors, heads = _of_npz(tensors)
  elif any('.layernorm_before.' in name for name in tensors):
    tensors = _renamed(tensors, _TRANSFORMERS)
  found, copied = {_VIDEO + name: tensor for name, tensor in tensors.items()}, {}
  if _VIDEO + 'time_embed' not in found:
    for name in list(found):
      copy = re.sub(r'\.(attn|norm1)\.', r'.temporal_\1.', name)
      if copy not in found:
        found[copy], copied[copy] = found[name], found[name].names[0]
  said, note = _read_config(
    config,
    '--vit',
    lambda: sizes.video_sizes(found, heads=1),
    hidden_act='gelu',
    layer_norm_eps=1e-6,
    attention_type='divided_space_time',
    qkv_bias=True,
  )
  return Source(found, copied, heads or said, note)


def bert(tensors: Mapping[str, Tensor], config: Mapping | None = None) -> Source:
  """Names the tensors of Hugging Face's BertModel, BertForMaskedLM or BertForPreTraining.

  `config` is the config.json beside the file, which may be of another model.

  Raises:
    ValueError: if it is another kind of BERT, or is not tied.
  """
  tensors = without_prefix(tensors, 'module.', 'model.')
  if not any(name.startswith('bert.') for name in tensors):
    tensors = _renamed(tensors, [(r'^(?!cls\.)', 'bert.')])
  # TensorFlow's names, in which Google's own weights are still published.
  tensors = _renamed(
    tensors, [(r'LayerNorm\.gamma$', 'LayerNorm.weight'), (r'LayerNorm\.beta$', 'LayerNorm.bias')]
  )
  found = {_TEXT + name: tensor for name, tensor in tensors.items()}
  for decoder in [name for name in found if '.predictions.decoder.' in name]:
    # Of tied tensors a file may hold either.
    if tables.tied_to(decoder) not in found:
      found[tables.tied_to(decoder)] = found.pop(decoder)
  heads, note = _read_config(
    config,
    '--bert',
    lambda: sizes.text_sizes(found, heads=1),
    hidden_act='gelu',
    layer_norm_eps=1e-12,
    position_embedding_type='absolute',
  )
  return Source(found, {}, heads, note)


_SIZES_IN_CONFIG = {
  'hidden_size': 'width',
  'num_hidden_layers': 'depth',
  'intermediate_size': 'mlp_size',
  'patch_size': 'patch_size',
  'vocab_size': 'vocab_size',
}


def _read_config(config, flag, find_sizes, **arithmetic):
  """Returns heads and a line about Hugging Face's config.json, which may lie there by chance.

  Raises ValueError if it is that of a model which computes something else.
  """
  if not config:
    return 0, ''
  found = find_sizes()
  for name, ours in _SIZES_IN_CONFIG.items():
    size = found.get(ours)  # A BERT has no patches, a ViT no vocabulary.
    if config.get(name, size) != size:
      return 0, (
        f'config.json beside {flag}: of another model and not used, its {name} is {config[name]}, '
        f'that of these weights {size}'
      )
  for name, value in arithmetic.items():
    if config.get(name, value) != value:
      raise ValueError(
        f'config.json of {flag} has {name}={config[name]!r}; ALPRO has {value!r}, and would '
        'compute something else with these weights.'
      )
  heads = int(config.get('num_attention_heads', 0))
  if not heads or 'hidden_size' not in config:
    return 0, f'config.json beside {flag}: does not say hidden_size and num_attention_heads'
  return heads, f'config.json beside {flag}: {heads} heads of attention; its other sizes agree'


def without_prefix(tensors: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
  """Takes each prefix away that all names have."""
  for prefix in prefixes:
    if tensors and all(name.startswith(prefix) for name in tensors):
      tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
  return dict(tensors)


def _renamed(tensors, rules):
  """Applies rules (pattern, replacement) one after another to every name."""
  renamed = {}
  for name, tensor in tensors.items():
    for pattern, replacement in rules:
      name = re.sub(pattern, replacement, name)
    if name in renamed:
      raise ValueError(
        f'tensors {renamed[name].names[0]} and {tensor.names[0]} are the same one under two names; '
        'expected one of them.'
      )
    renamed[name] = tensor
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
# The ViT authors' npz -> timm's names, but for query, key and value.
_NPZ = (
  (r'^cls$', 'cls_token'),
  (r'^Transformer/posembed_input/pos_embedding$', 'pos_embed'),
  (r'^embedding/', 'patch_embed.proj/'),
  (r'^Transformer/encoder_norm/', 'norm/'),
  (r'^Transformer/encoderblock_(\d+)/', r'blocks.\1.'),
  (r'LayerNorm_0/', 'norm1/'),
  (r'LayerNorm_2/', 'norm2/'),
  (r'MlpBlock_3/Dense_0/', 'mlp.fc1/'),
  (r'MlpBlock_3/Dense_1/', 'mlp.fc2/'),
  (r'MultiHeadDotProductAttention_1/out/', 'attn.proj/'),
  (r'MultiHeadDotProductAttention_1/', 'attn.'),
  (r'/(kernel|scale)$', '.weight'),
  (r'/bias$', '.bias'),
)


def _of_npz(tensors):
  """Turns the names and layouts of the ViT's authors into timm's, and returns the heads too.

  Kernels are (in, out) there, those of attention (D, A, K) or (A, K, D).
  """
  tensors, heads, found = _renamed(tensors, _NPZ), 0, {}
  for name, (names, array) in tensors.items():
    if '.attn.query.' in name:
      parts = [tensors.get(name.replace('query', part)) for part in ('query', 'key', 'value')]
      theirs = [names[0].replace('query', part) for part in ('query', 'key', 'value')]
      for part, its_name in zip(parts, theirs, strict=True):
        if part is None:
          raise ValueError(
            f"tensor {its_name} is missing; expected the ViT authors' published weights."
          )
        if part.array.shape != array.shape:
          raise ValueError(
            f'tensor {its_name} has shape {part.array.shape}, expected {array.shape}.'
          )
      heads, size = array.shape[-2:]
      rows = [part.array.reshape(-1, heads * size).T for part in parts]
      array = np.concatenate(rows)[..., 0] if array.ndim == 2 else np.concatenate(rows)
      found[name.replace('query', 'qkv')] = Tensor(tuple(theirs), array)
    elif array.ndim == 4:
      found[name] = Tensor(names, array.transpose(3, 2, 0, 1))
    elif re.search(r'\.attn\.(key|value)\.', name):
      continue
    elif name.endswith('.weight') and array.ndim > 1:
      found[name] = Tensor(names, array.reshape(-1, array.shape[-1]).T)
    else:
      found[name] = Tensor(names, array)
  return found, heads
