"""Whose image-text weights they are: names, sizes and options of their two towers.

transformers  CLIPModel, SiglipModel, Siglip2Model, with their config.json
open_clip     its own ViT, or one of timm's (SigLIP, PE-Core), with its open_clip_config.json
PE-Core       as its authors publish it, which the names tell

What a tower computes is said by those files and by shapes; where they contradict each other, or
name something that no tower here computes, the weights are refused.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from alpro_jax.models import timesformer
from alpro_jax.weights import sizes, tower_names
from alpro_jax.weights.sources import without_prefix
from alpro_jax.weights.tables import LINEAR, TENSOR, Row, rows_of
from alpro_jax.weights.tensor_files import Tensor

TRANSFORMERS, OPEN_CLIP = 'config.json', 'open_clip_config.json'
PREPROCESSOR = 'preprocessor_config.json'


class Towers(NamedTuple):
  """Both towers of a file.

  Attributes:
    tensors: by their names in the file.
    rows: of the table from these to our parameters.
    video, text_tower, model: options of config.model, of the parts of these names.
    resize_mode: of config.data.
    resize: side that frames are scaled to before they are cut; 0: that of the image.
    tokenizer: family of tower_tokens.py; '': said by the files beside the tokenizer.
    notes: lines about what no file says.
  """

  tensors: dict[str, Tensor]
  rows: list[Row]
  video: dict[str, Any]
  text_tower: dict[str, Any]
  model: dict[str, Any]
  resize_mode: str
  resize: int
  tokenizer: str
  notes: list[str]


# What all weights of a family have in common, as config.model.video names it.
_CLIP_PIXELS = {'pixel_mean': timesformer.PIXEL_MEAN, 'pixel_std': timesformer.PIXEL_STD}
_CENTRED_PIXELS = {'pixel_mean': (0.5, 0.5, 0.5), 'pixel_std': (0.5, 0.5, 0.5)}
_WITH_CLASS = {'class_token': True, 'patch_bias': False, 'norm_before': True}
_FAMILIES: dict[str, dict[str, Any]] = {
  'clip': {'pooling': 'class', 'positions': 'absolute', **_WITH_CLASS, **_CLIP_PIXELS},
  'siglip': {
    'class_token': False,
    'pooling': 'attention',
    'patch_bias': True,
    'norm_before': False,
    'positions': 'absolute',
    **_CENTRED_PIXELS,
  },
  'pe': {'pooling': 'attention', 'positions': 'both', **_WITH_CLASS, **_CENTRED_PIXELS},
}
_RESIZE_MODES = {'clip': 'short_side', 'siglip': 'squash', 'pe': 'squash'}

_ACTIVATIONS = {'quick_gelu': 'quick_gelu', 'gelu': 'gelu', 'gelu_pytorch_tanh': 'gelu_tanh'}
# By model_type: the family, and what config.json leaves out where it is the class's default, of
# images and of texts.
_CLIP = {'hidden_act': 'quick_gelu', 'layer_norm_eps': 1e-5}
_SIGLIP = {'hidden_act': 'gelu_pytorch_tanh', 'layer_norm_eps': 1e-6, 'num_attention_heads': 12}
_MODEL_TYPES: dict[str, tuple[str, dict, dict]] = {
  'clip': (
    'clip',
    _CLIP | {'num_attention_heads': 12},
    _CLIP | {'num_attention_heads': 8, 'eos_token_id': 49407},
  ),
  'siglip': ('siglip', _SIGLIP, _SIGLIP),
  'siglip2': ('siglip', _SIGLIP, _SIGLIP),
}
# Names of timm's towers: family, heads, activation.
_TIMM = (
  (r'vit_base_patch32_siglip_256', 'siglip', 12, 'gelu_tanh'),
  (r'vit_large_patch16_siglip_512', 'siglip', 16, 'gelu_tanh'),
  (r'vit_(so400m|giantopt)_patch16_siglip_\d+', 'siglip', 16, 'gelu_tanh'),
  (r'vit_base_patch16_siglip_\d+', 'siglip', 12, 'gelu'),
  (r'vit_large_patch16_siglip_\d+', 'siglip', 16, 'gelu'),
  (r'vit_so400m_patch14_siglip_\d+', 'siglip', 16, 'gelu'),
  (r'vit_pe_core_tiny_patch\d+_\d+', 'pe', 3, 'gelu'),
  (r'vit_pe_core_small_patch\d+_\d+', 'pe', 6, 'gelu'),
  (r'vit_pe_core_base_patch\d+_\d+', 'pe', 12, 'gelu'),
  (r'vit_pe_core_large_patch\d+_\d+', 'pe', 16, 'gelu'),
)
_EPSILON = {'clip': 1e-5, 'siglip': 1e-6, 'pe': 1e-5}
_PE_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}
_PE_POOL_HEADS = 8
_PE_HEAD_SIZE = 64  # Of texts.
# Options of open_clip_config.json that are read here, or change nothing that is computed.
_KNOWN = {
  'model_cfg': 'embed_dim quick_gelu init_logit_scale init_logit_bias nonscalar_logit_scale '
  'custom_text vision_cfg text_cfg',
  'vision_cfg': 'layers width head_width mlp_ratio patch_size image_size patch_dropout act_kwargs '
  'norm_kwargs pos_embed_type final_ln_after_pool timm_model_name timm_model_pretrained timm_pool '
  'timm_proj timm_proj_bias timm_drop timm_drop_path',
  'text_cfg': 'context_length vocab_size width heads layers mlp_ratio no_causal_mask pool_type '
  'eos_id pad_id proj_bias proj_type act_kwargs norm_kwargs hf_tokenizer_name tokenizer_kwargs '
  'tokenizer_mode final_ln_after_pool',
}


def find(tensors: Mapping[str, Tensor], said: Mapping[str, Mapping], heads: int = 0) -> Towers:
  """Returns the towers of a file.

  Args:
    tensors: of the file.
    said: what JSON files beside it say, by their names.
    heads: of attention over images, where neither those nor names of PE-Core tell.

  Raises:
    ValueError: naming what is missing, contradicts something else, or is not computed here.
  """
  tensors = without_prefix(tensors, 'module.')
  for name in ('logit_scale', 'logit_bias'):
    # A vector of one number in some programs.
    if name in tensors and tensors[name].array.size == 1:
      tensors[name] = tensors[name]._replace(array=tensors[name].array.reshape(()))

  def has(*prefixes):
    return any(name.startswith(prefixes) for name in tensors)

  if has('vision_model.'):
    return _of_transformers(tensors, said)
  if has('visual.attn_pool.') and OPEN_CLIP not in said:
    return _of_pe(tensors, heads)
  if has('visual.'):
    return _of_open_clip(tensors, said)
  raise ValueError(
    'no tensor is named vision_model... or visual..., so these are no weights of CLIP, SigLIP or '
    f'PE-Core as Hugging Face, open_clip or their authors name them; got {len(tensors)} tensors: '
    f'{list(tensors)[:5]}.'
  )


def _of_transformers(tensors, said):
  config = said.get(TRANSFORMERS, {})
  kind = config.get('model_type')
  if kind not in _MODEL_TYPES:
    raise ValueError(
      f'{TRANSFORMERS} beside the weights has model_type={kind!r}, expected one of '
      f'{sorted(_MODEL_TYPES)}: tensors do not tell heads and activation. Take it from where the '
      'weights are from.'
    )
  family, *defaults = _MODEL_TYPES[kind]
  made, sections = [], []
  for part, default, make in zip(('vision', 'text'), defaults, (_video, _text), strict=True):
    # Early files have the second name, which goes before the first.
    given = (config.get(f'{part}_config'), config.get(f'{part}_config_dict'))
    section = default | (given[0] or {}) | (given[1] or {})
    if (activation := section['hidden_act']) not in _ACTIVATIONS:
      raise ValueError(
        f'{TRANSFORMERS} has hidden_act={activation!r}; expected one of {sorted(_ACTIVATIONS)}.'
      )
    options = {
      'heads': section['num_attention_heads'],
      'activation': _ACTIVATIONS[activation],
      'epsilon': section['layer_norm_eps'],
    }
    made.append(make(tensors, 'transformers', family, **options))
    _check_agreement(TRANSFORMERS, f'{part}_config', section, made[-1])
    sections.append(section)
  (video, text), clip = made, family == 'clip'
  if clip:
    # 2 stands for the largest of a text's ids, in files from before it was corrected.
    end = sections[1]['eos_token_id']
    text['end_id'] = text['vocab_size'] - 1 if end == 2 else end
  return _towers(
    tensors,
    ('transformers', 'transformers'),
    (video, text),
    (
      (tower_names.NO_BIAS, 'visual_projection') if clip else None,
      (tower_names.NO_BIAS, 'text_projection') if clip else (LINEAR, 'text_model.head'),
    ),
    family=family,
    bias=not clip,
    pixels=_pixels_of_transformers(said.get(PREPROCESSOR)),
    tokenizer='clip' if clip else '',
  )


def _pixels_of_transformers(said):
  if not said:
    return None
  size = said.get('size', {})
  short = size if isinstance(size, int) else size.get('shortest_edge', 0)
  mode = 'short_side' if said.get('do_center_crop') or short else 'squash'
  return said['image_mean'], said['image_std'], mode, short if mode == 'short_side' else 0


def _of_open_clip(tensors, said):
  described = said.get(OPEN_CLIP, {})
  if 'model_cfg' not in described:
    raise ValueError(
      f'these are weights of open_clip, but {OPEN_CLIP} is not beside them, and tensors do not '
      'tell heads and activations; get it from where the weights are from, or name one of '
      "open_clip's configs (or its file) by --open_clip=NAME."
    )
  model = described['model_cfg']
  vision, texts = (model.get(part, {}) for part in ('vision_cfg', 'text_cfg'))
  for part, section in (('model_cfg', model), ('vision_cfg', vision), ('text_cfg', texts)):
    known = {*_KNOWN[part].split(' ')}
    refused = {name: x for name, x in section.items() if x not in ('tok', None, False, 0)}
    if refused := {name: x for name, x in refused.items() if name not in known}:
      raise ValueError(f'{OPEN_CLIP} has {refused} in {part}, which no tower here computes.')
  prefix = 'text.' if any(name.startswith('text.') for name in tensors) else ''
  if name := vision.get('timm_model_name'):
    family, heads, activation = _timm(name, vision)
    options = {'heads': heads, 'activation': activation, 'epsilon': _EPSILON[family]}
    style, projection = 'timm', vision.get('timm_proj')
    if projection == 'linear':
      kind = LINEAR if vision.get('timm_proj_bias') else tower_names.NO_BIAS
      projected = kind, 'visual.head.proj'
    else:
      projected = None if projection == 'none' else (LINEAR, 'visual.trunk.head')
  else:
    style, family, projected = 'open_clip', 'clip', (tower_names.KERNEL, 'visual.proj')
    options = _of_section(model, vision)
    options['heads'] = vision.get('width', 768) // vision.get('head_width', 64)
  video = _video(tensors, style, family, **options)
  text = _text(
    tensors, 'open_clip', family, prefix, heads=texts.get('heads', 8), **_of_section(model, texts)
  )
  pooling = texts.get('pool_type', 'argmax')
  if pooling not in ('argmax', 'eos', 'last'):
    raise ValueError(f'{OPEN_CLIP} has {pooling=} of texts, which no tower here computes.')
  text['causal'] = not texts.get('no_causal_mask', False)
  text['pooling'] = 'last' if pooling == 'last' else 'end'
  if pooling == 'eos':
    text['end_id'] = texts.get('eos_id', 2)
  for part, section, made in (('vision_cfg', vision, video), ('text_cfg', texts, text)):
    _check_agreement(OPEN_CLIP, part, section, made)
  name = f'{prefix}text_projection'
  linear = (LINEAR if texts.get('proj_bias') else tower_names.KERNEL), name
  pixels = described.get('preprocess_cfg')
  return _towers(
    tensors,
    (style, 'open_clip'),
    (video, text),
    (projected, None if texts.get('proj_type') == 'none' else linear),
    family=family,
    prefix=prefix,
    bias=model.get('init_logit_bias') is not None,
    pixels=pixels and _pixels_of_open_clip(pixels),
    tokenizer='' if 'hf_tokenizer_name' in texts else 'open_clip',
  )


def _timm(name, vision):
  """Family, heads and activation of a tower of timm's."""
  row = next((row for row in _TIMM if re.fullmatch(row[0], name)), None)
  if row is None or vision.get('timm_pool') != 'map' or vision.get('timm_proj') == 'mlp':
    raise ValueError(
      f'{OPEN_CLIP} has {name!r} of timm with timm_pool={vision.get("timm_pool")!r} and '
      f'timm_proj={vision.get("timm_proj")!r}; expected vit_..._siglip_... or vit_pe_core_... '
      "of a size below gigantic, with timm_pool='map' and no MLP."
    )
  return row[1:]


def _of_section(model, section):
  """Activation and epsilon of one of open_clip's own towers."""
  tanh = (section.get('act_kwargs') or {}).get('approximate') == 'tanh'
  activation = 'quick_gelu' if model.get('quick_gelu') else 'gelu_tanh' if tanh else 'gelu'
  return {
    'activation': activation,
    'epsilon': (section.get('norm_kwargs') or {}).get('eps', _EPSILON['clip']),
  }


def _pixels_of_open_clip(said):
  modes = {'shortest': 'short_side', 'squash': 'squash'}
  if (mode := said.get('resize_mode', 'shortest')) not in modes:
    raise ValueError(f'{OPEN_CLIP} has resize_mode={mode!r}; expected one of {sorted(modes)}.')
  clip = _FAMILIES['clip']
  return said.get('mean', clip['pixel_mean']), said.get('std', clip['pixel_std']), modes[mode], 0


def _of_pe(tensors, heads):
  if 'visual.class_embedding' not in tensors:
    raise ValueError(
      'tensor visual.class_embedding is missing: PE-Core G has none, and counts its rotary '
      'positions in another way, which is not built; take B or L.'
    )
  width = sizes.length(tensors, 'visual.ln_post.weight', 1, 0)
  if width not in _PE_HEADS and not heads:
    raise ValueError(
      f'how many heads of attention a PE-Core of {width} channels has cannot be seen from its '
      'tensors; pass --heads.'
    )
  options = {'activation': 'gelu', 'epsilon': _EPSILON['pe']}
  video = _video(tensors, 'open_clip', 'pe', heads=heads or _PE_HEADS[width], **options)
  text = _text(tensors, 'open_clip', 'pe', **options)
  text['heads'], odd = divmod(text['width'], _PE_HEAD_SIZE)
  if odd:
    raise ValueError(f'PE-Core has no text tower of {text["width"]} channels; expected 64 a head.')
  towers = _towers(
    tensors,
    ('open_clip', 'open_clip'),
    (video, text),
    ((tower_names.KERNEL, 'visual.proj'), (tower_names.KERNEL, 'text_projection')),
    family='pe',
    pixels=(*_CENTRED_PIXELS.values(), 'squash', 0),
    tokenizer='pe_core',
  )
  towers.notes.append(
    f'{video["heads"]} heads of attention over images and {text["heads"]} over texts, as all '
    'published PE-Core of these widths have'
  )
  return towers


def _video(tensors, style, family, *, heads, activation, epsilon):
  """Options of config.model.video, from shapes and what is said."""
  names, block = (
    tower_names.VIDEO[style],
    {ours: name for _, name, ours in tower_names.BLOCK[style]},
  )
  options = _FAMILIES[family]
  blocks = f'{names.prefix}{names.block}*.'
  patches, positions = f'{names.prefix}{names.patches}.weight', names.prefix + names.positions
  lead = style == 'timm'
  count = sizes.length(tensors, positions, 2 + lead, int(lead)) - options['class_token']
  grid = math.isqrt(max(count, 0))
  if not grid or grid * grid != count:
    expected = 'one row and those of' if options['class_token'] else 'the rows of'
    raise sizes.wrong_shape(positions, tensors, f'{expected} a square grid of patches')
  if patches in tensors and tensors[patches].array.ndim == 2:  # Siglip2Model's, p q c in a row.
    patch = math.isqrt(sizes.length(tensors, patches, 2, 1) // 3)
  else:
    patch = sizes.length(tensors, patches, 4, 3)
  width = sizes.length(tensors, f'{blocks}{block["norm"]}.weight', 1, 0)
  return {
    **options,
    'encoder': 'vit',
    'image_size': grid * patch,
    'patch_size': patch,
    'width': width,
    'depth': sizes.depth_of(tensors, f'{blocks}{block["norm"]}.weight'),
    'heads': heads,
    'pool_heads': _PE_POOL_HEADS if family == 'pe' else heads,
    'mlp_size': sizes.length(tensors, f'{blocks}{block["mlp/fc1"]}.weight', 2, 0),
    'activation': activation,
    'epsilon': epsilon,
    'registers': 0,
    'layer_scale': 0.0,
  }


def _text(tensors, style, family, prefix='', *, heads=0, activation, epsilon):
  """Options of config.model.text_tower, from shapes and what is said."""
  names, block = tower_names.TEXT[style], {ours: name for _, name, ours in tower_names.BLOCK[style]}
  prefix += names.prefix
  norm = f'{prefix}{names.block}*.{block["norm"]}.weight'
  words = sizes.length(tensors, prefix + names.words, 2, 0)
  return {
    'encoder': 'transformer',
    'vocab_size': words,
    'width': sizes.length(tensors, norm, 1, 0),
    'depth': sizes.depth_of(tensors, norm),
    'heads': heads,
    'mlp_size': sizes.length(tensors, f'{prefix}{names.block}*.{block["mlp/fc1"]}.weight', 2, 0),
    'max_positions': sizes.length(tensors, prefix + names.positions, 2, 0),
    'activation': activation,
    'epsilon': epsilon,
    'causal': family != 'siglip',
    'pooling': 'last' if family == 'siglip' else 'end',
    'end_id': words - 1,
  }


# What files call the options above.
_SIZES = {
  **dict.fromkeys(('hidden_size', 'width'), 'width'),
  **dict.fromkeys(('num_hidden_layers', 'layers'), 'depth'),
  **dict.fromkeys(('max_position_embeddings', 'context_length'), 'max_positions'),
  'intermediate_size': 'mlp_size',
  **{name: name for name in ('image_size', 'patch_size', 'vocab_size')},
}


def _check_agreement(file, part, said, found):
  for name, ours in _SIZES.items():
    if (size := said.get(name)) is not None and ours in found and size != found[ours]:
      raise ValueError(
        f'{file} says {name}={size} in {part}, but the tensors have {found[ours]}; take both from '
        'one place.'
      )


def _towers(
  tensors, styles, parts, projections, *, family, bias=False, prefix='', pixels, tokenizer
):
  """Puts rows and options together; a projection is (part, name) or None."""
  (video, text), notes = parts, []
  patches = tensors[
    tower_names.VIDEO[styles[0]].prefix + tower_names.VIDEO[styles[0]].patches + '.weight'
  ].array
  rows = tower_names.video_rows(styles[0], video, flat_patches=patches.ndim == 2)
  rows += tower_names.text_rows(styles[1], text, prefix)
  kinds = []
  for ours, projected in zip(('video', 'text'), projections, strict=True):
    if projected is None:
      kinds.append('none')
    else:
      rows += rows_of([(*projected, f'{ours}_projection')])
      kinds.append('affine' if projected[0] is LINEAR else 'linear')
  size = video['width']
  if projections[0]:
    part, name = projections[0]
    size = sizes.length(tensors, name + part[0].original, 2, int(part is tower_names.KERNEL))
  rows += rows_of([(TENSOR, 'logit_scale', 'temperature')])
  rows += rows_of([(TENSOR, 'logit_bias', 'logit_bias')] if bias else [])
  if pixels is None:
    pixels = video['pixel_mean'], video['pixel_std'], _RESIZE_MODES[family], 0
    notes.append(
      f'how pixels are prepared: mean {pixels[0]}, deviation {pixels[1]}, {pixels[2]}, as weights '
      'of this kind have it'
    )
  mean, std, mode, resize = pixels
  video = video | {'pixel_mean': tuple(mean), 'pixel_std': tuple(std)}
  model = {
    'embed_size': size,
    'video_projection': kinds[0],
    'text_projection': kinds[1],
    'logit_bias': None,
  }
  if bias:  # What such weights began with; their own values are parameters.
    model |= {'temperature': 0.1, 'logit_bias': -10.0}
  return Towers(tensors, rows, video, text, model, mode, resize, tokenizer, notes)
