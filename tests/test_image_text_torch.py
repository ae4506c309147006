"""Image-text models of transformers, open_clip and timm, and their twins here.

Skipped where torch, or the package in question, is not installed.
"""

import importlib.machinery
import importlib.util
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import unflatten_dict

from alpro_jax.models import alpro, layers, vit
from alpro_jax.weights import convert, image_text, tables, tensor_files, tower_names
from alpro_jax.weights.tables import TENSOR
from configs import models, pretrain_prompter
from tests import small_towers
from tests.test_weights_torch import agree, randomize

torch = pytest.importorskip('torch')

WORDS, LENGTH, END = 517, 8, 516  # Of small_towers.
GRID, PATCH, FRAMES = 3, 8, 3


class Anything(type):
  """A class that has every attribute."""

  def __getattr__(cls, name):
    if name.startswith('__'):
      raise AttributeError(name)
    return name


class Stub(types.ModuleType):
  """torchvision, as far as importing what needs it goes: its builds fit one torch each."""

  __path__: list[str] = []
  __version__ = '0.0'

  def __getattr__(self, name):
    if name.startswith('__'):
      raise AttributeError(name)
    return Anything(name, (), {})

  @classmethod
  def find_spec(cls, name, path=None, target=None):
    known = name.partition('.')[0] == 'torchvision'
    return importlib.machinery.ModuleSpec(name, cls, is_package=True) if known else None

  @classmethod
  def create_module(cls, spec):
    return cls(spec.name)

  @staticmethod
  def exec_module(module):
    pass


@pytest.fixture(scope='module')
def packages():
  """Imports a package that needs torchvision, or skips."""
  try:
    import torchvision.transforms  # noqa: F401

    stubbed = False
  except (ImportError, RuntimeError):  # A build for another torch raises the latter.
    stubbed = True
    for name in [name for name in sys.modules if name.partition('.')[0] == 'torchvision']:
      del sys.modules[name]
    sys.meta_path.insert(0, Stub)
  yield pytest.importorskip
  if stubbed:
    sys.meta_path.remove(Stub)


def small(**section):
  """Sizes that all models of transformers have names for."""
  return {
    'hidden_size': 32,
    'intermediate_size': 48,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    **section,
  }


def of_transformers(kind, **options):
  """Weights of one of its classes: (packages, folder) -> what computes features and logits."""

  def make(packages, folder):
    transformers = packages('transformers')
    text = small(vocab_size=WORDS, max_position_embeddings=LENGTH, **options)
    vision = small(patch_size=PATCH, **options)
    if kind == 'CLIP':
      text = {'eos_token_id': END, 'bos_token_id': 0} | text | {'hidden_size': 24}
      extra = {'projection_dim': 20}
    else:
      text, extra = text | {'projection_size': 32, 'eos_token_id': 1, 'bos_token_id': 0}, {}
    vision |= {'num_patches': GRID**2} if kind == 'Siglip2' else {'image_size': GRID * PATCH}
    config = getattr(transformers, f'{kind}Config')(text_config=text, vision_config=vision, **extra)
    model = randomize(getattr(transformers, f'{kind}Model')(config), 0)
    set_scale(model)
    model.save_pretrained(folder, max_shard_size='30KB')

    def image(x):
      if kind != 'Siglip2':
        return {'pixel_values': x}
      grid = x.reshape(-1, 3, GRID, PATCH, GRID, PATCH).permute(0, 2, 4, 3, 5, 1)
      return {
        'pixel_values': grid.reshape(len(x), GRID**2, -1),
        'pixel_attention_mask': torch.ones(len(x), GRID**2, dtype=torch.int32),
        'spatial_shapes': torch.full((len(x), 2), GRID),
      }

    def run(x, ids):
      features = model.get_image_features(**image(x)), model.get_text_features(input_ids=ids)
      logits = model(input_ids=ids, **image(x)).logits_per_image
      return *(getattr(y, 'pooler_output', y) for y in features), logits

    return run

  return make


def of_open_clip(name, width=96, text_width=24, text_heads=4, head_bias=True, **options):
  """The same of one of its configs, made small, but for the heads that its name tells."""

  def make(packages, folder):
    open_clip, timm = packages('open_clip'), packages('timm')
    config = open_clip.get_model_config(name) | {'embed_dim': 20} | options
    config['text_cfg'] |= {
      'context_length': LENGTH,
      'vocab_size': WORDS,
      'width': text_width,
      'heads': text_heads,
      'layers': 2,
    }
    vision = config['vision_cfg']
    vision['image_size'] = GRID * PATCH
    trunk = vision.get('timm_model_name')
    if trunk:
      config['embed_dim'] = width if vision['timm_proj'] == 'none' else config['embed_dim']
    else:
      vision |= {'width': 32, 'head_width': 8, 'layers': 2, 'patch_size': PATCH}
    arguments = {x: y for x, y in config.items() if x != 'custom_text'}
    if trunk:
      sizes = {'patch_size': PATCH, 'img_size': GRID * PATCH, 'embed_dim': width, 'depth': 2}
      if 'pe_core' in trunk:
        sizes['ref_feat_shape'] = (GRID, GRID)
      classes = 0 if vision['timm_proj'] == 'none' else config['embed_dim']
      tower = timm.create_model(trunk, num_classes=classes, global_pool='map', **sizes)
      with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip.timm_model.timm, 'create_model', lambda *_, **__: tower)
        model = open_clip.CustomTextCLIP(**arguments)
    else:
      kind = open_clip.CustomTextCLIP if config.get('custom_text') else open_clip.CLIP
      model = kind(**arguments)
    randomize(model, 1)
    if not head_bias:
      torch.nn.init.zeros_(model.visual.trunk.head.bias)
    set_scale(model)
    state = {x: y.contiguous().numpy() for x, y in model.state_dict().items()}
    safetensors.numpy.save_file(state, folder / 'open_clip_model.safetensors')
    (folder / 'open_clip_config.json').write_text(json.dumps({'model_cfg': config}))

    def run(x, ids):
      return model.encode_image(x), model.encode_text(ids), model.get_logits(x, ids)[0]

    return run

  return make


def of_pe(packages, folder):
  """PE-Core under the names of its authors: timm's own table of them, read backwards."""
  run = of_open_clip('PE-Core-T-16-384', 192, 64, 1, head_bias=False)(packages, folder)
  arrays = safetensors.numpy.load_file(folder / 'open_clip_model.safetensors')
  renamed = {}
  for name, x in arrays.items():
    name = name.removeprefix('text.')
    if name.startswith('visual.trunk.'):
      name, x = authors(name.removeprefix('visual.trunk.'), x, arrays)
    if name:
      renamed[name] = np.ascontiguousarray(x)
  (folder / 'open_clip_model.safetensors').unlink()
  (folder / 'open_clip_config.json').unlink()
  safetensors.numpy.save_file(renamed, folder / 'model.safetensors')
  return run


def authors(name, x, arrays):
  """What PE-Core's authors call a tensor of timm's; '' is none of theirs."""
  if name == 'head.bias':
    return '', x
  if name == 'attn_pool.q.weight' or name == 'attn_pool.q.bias':
    kind = name.rpartition('.')[2]
    packed = np.concatenate([x, arrays[f'visual.trunk.attn_pool.kv.{kind}']])
    return f'visual.attn_pool.attn.in_proj_{kind}', packed
  if name.startswith('attn_pool.kv.'):
    return '', x
  for ours, theirs in (
    ('attn_pool.proj', 'attn_pool.attn.out_proj'),
    ('attn_pool.norm', 'attn_pool.layernorm'),
    ('attn_pool.latent', 'attn_pool.probe'),
    ('mlp.fc1', 'mlp.c_fc'),
    ('mlp.fc2', 'mlp.c_proj'),
    ('patch_embed.proj', 'conv1'),
    ('pos_embed', 'positional_embedding'),
    ('norm_pre', 'ln_pre'),
    ('norm1', 'ln_1'),
    ('norm2', 'ln_2'),
    ('attn.qkv.', 'attn.in_proj_'),
    ('attn.proj', 'attn.out_proj'),
    ('cls_token', 'class_embedding'),
    ('blocks.', 'transformer.resblocks.'),
  ):
    name = name.replace(ours, theirs)
  if name.startswith('norm.'):
    name = name.replace('norm.', 'ln_post.')
  if name == 'head.weight':
    name, x = 'proj', x.T
  if name in ('class_embedding', 'positional_embedding'):
    x = x.reshape(x.shape[2:] if name == 'class_embedding' else x.shape[1:])
  return f'visual.{name}', x


def set_scale(model):
  """A temperature as trained models have; any number for the bias."""
  with torch.no_grad():
    model.logit_scale.fill_(4.0)
    if getattr(model, 'logit_bias', None) is not None:
      model.logit_bias.fill_(-9.5)


FAMILIES = {
  'clip': of_transformers('CLIP'),
  'clip_gelu': of_transformers('CLIP', hidden_act='gelu', eos_token_id=2),
  'siglip': of_transformers('Siglip'),
  'siglip2': of_transformers('Siglip2'),
  'open_clip': of_open_clip('ViT-B-16'),
  'open_clip_quickgelu': of_open_clip('ViT-B-16-quickgelu', custom_text=True),
  'open_clip_siglip': of_open_clip('ViT-B-16-SigLIP'),
  'open_clip_siglip2': of_open_clip('ViT-B-16-SigLIP2'),
  'pe_core': of_open_clip('PE-Core-B-16'),
  'pe_core_authors': of_pe,
}


def convert_folder(folder, output, **options):
  """The model and parameters that launch/convert.py makes of a folder."""

  def get_config(task):
    config = pretrain_prompter.get_config()
    config.model = models.clip_b16()
    return config

  (one,) = image_text.from_image_text(
    convert.Options(str(output), get_config, image_text=str(folder), **options)
  )
  return one


@pytest.fixture(scope='module', params=FAMILIES)
def compared(request, packages, tmp_path_factory):
  """What both sides compute of clips whose frames differ, and of texts."""
  folder = tmp_path_factory.mktemp(request.param)
  words = small_towers.write(folder / 'words', LENGTH)
  theirs = FAMILIES[request.param](packages, folder)
  one = convert_folder(folder, folder / 'converted', tower_tokenizer=str(words))
  video = one.model.config.video
  assert (video.attention, video.image_size) == ('divided', GRID * PATCH)
  rng = np.random.default_rng(0)
  clips = rng.normal(size=(2, FRAMES, GRID * PATCH, GRID * PATCH, 3)).astype(np.float32)
  ids = rng.integers(1, END - 1, (4, LENGTH)).astype(np.int32)
  for row, end in enumerate((LENGTH - 1, 2, 5, 3)):
    ids[row, end:] = END

  def features(model, clips, ids):
    frames, _ = model.video_encoder(clips, train=False)
    projected = model.video_projection(frames)
    text = model.text_projection(model.text_tower(ids, train=False))
    both = alpro.unit_length(projected), alpro.unit_length(text)
    logits = jnp.einsum('bte,ce->btc', *both) / model.temperature()
    if model.config.logit_bias is not None:
      logits += model.logit_bias()
    clip = model.encode_video(clips, train=False).feature
    mask = jnp.ones(ids.shape, bool)
    return projected, text, logits, clip, model.encode_text(ids, mask, train=False).feature

  run = jax.jit(lambda params: one.model.apply({'params': params}, clips, ids, method=features))
  pixels = torch.from_numpy(clips).flatten(0, 1).permute(0, 3, 1, 2).contiguous()
  with torch.no_grad():
    expected = theirs(pixels, torch.from_numpy(ids).long())
  return one, [np.asarray(x) for x in run(one.params)], expected


def test_features_and_logits_agree(compared):
  """Of every frame, within a clip of others, and of every text."""
  _, (image, text, logits, *_), expected = compared
  for ours, theirs in zip((image, text, logits), expected, strict=True):
    agree(ours.reshape(theirs.shape), theirs)


def test_the_feature_of_a_clip_is_the_mean_of_its_frames(compared):
  """As users of these models take it: the frames' and the mean of unit length."""
  _, (*_, clip, text), expected = compared
  unit = torch.nn.functional.normalize
  frames = unit(expected[0], dim=-1).unflatten(0, (-1, FRAMES))
  assert frames.std(dim=1).min() > 1e-4  # They differ.
  agree(clip, unit(frames.mean(dim=1), dim=-1))
  agree(text, unit(expected[1], dim=-1))


def test_registers_and_layer_scale_agree(packages):
  """Of a ViT of timm's whose registers have positions too."""
  timm = packages('timm')
  sizes = {'patch_size': PATCH, 'width': 32, 'depth': 2, 'heads': 4, 'mlp_size': 64}
  theirs = timm.models.VisionTransformer(
    img_size=GRID * PATCH,
    patch_size=PATCH,
    embed_dim=32,
    depth=2,
    num_heads=4,
    mlp_ratio=2,
    num_classes=0,
    reg_tokens=2,
    init_values=0.1,
    global_pool='token',
  )
  randomize(theirs, 2)
  config = vit.Config(
    **models.clip_b16().video.to_dict()
    | {'image_size': GRID * PATCH, 'attention': 'space_only', 'registers': 2, 'epsilon': 1e-6}
    | {'patch_bias': True, 'norm_before': False, 'layer_scale': 0.1, 'activation': 'gelu'}
    | sizes
  )
  tensors = tensor_files.named({x: y.detach().numpy() for x, y in theirs.state_dict().items()})
  block = (
    *tower_names.BLOCK['timm'],
    (TENSOR, 'ls1.gamma', 'scale'),
    (TENSOR, 'ls2.gamma', 'mlp_scale'),
  )
  rows = tables.rows_of(
    [(tables.PATCH_EMBEDDING, 'patch_embed.proj', 'patch_embed'), (tables.NORM, 'norm', 'norm')]
  )
  for i in range(2):
    rows += tables.rows_of(block, f'blocks.{i}.', f'block{i}/')
  params = tables.read_params(tensors, rows)
  positions = tensors['pos_embed'].array[0]
  params |= {
    'class_token': tensors['cls_token'].array[0],
    'class_position': positions[:1],
    'registers': tensors['reg_token'].array[0] + positions[1:3],
    'positions': positions[3:],
  }
  clips = np.random.default_rng(1).normal(size=(2, 1, GRID * PATCH, GRID * PATCH, 3))
  clips = clips.astype(np.float32)
  encoder = vit.Encoder(config, layers.ComputeOptions(jnp.float32))
  params = unflatten_dict(params, sep='/')
  frames, tokens = jax.jit(lambda x: encoder.apply({'params': params}, x, train=False))(clips)
  with torch.no_grad():
    expected = theirs.forward_features(torch.from_numpy(clips[:, 0]).permute(0, 3, 1, 2))
  agree(np.asarray(frames[:, 0]), expected[:, 0])
  agree(np.asarray(tokens[:, 1:]), expected[:, 3:])
