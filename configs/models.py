"""Model presets: every size of a model, by name."""

import ml_collections
from ml_collections import config_dict


def _model(
  *,
  image_size,
  patch_size,
  frames,
  width,
  depth,
  heads,
  text_depth,
  fusion_layer,
  vocab_size,
  embed_size,
):
  return ml_collections.ConfigDict(
    {
      'embed_size': embed_size,
      # At first; similarities are divided by it. Learned within its range:
      # ALPRO's; CLIP's is (0.01, 0.5), scales up to 100.
      'temperature': 0.07,
      'temperature_range': (0.001, 0.5),
      # Added to similarity / temperature by loss.vtc_form='sigmoid', and learned;
      # SigLIP starts at -10, with temperature 0.1. None: a model without it.
      'logit_bias': config_dict.placeholder(float),
      'dtype': 'float32',  # Compute type: float32 or bfloat16.
      # 'plain' leaves gradients and layouts to JAX; 'fused' has some for GPUs
      # (models/fused.py). Results differ by rounding alone.
      'implementation': 'plain',
      # Attention: 'xla' multiplies matrices; 'elementwise', for TPUs, does not
      # over so few tokens as a clip has frames; 'cudnn', for NVIDIA GPUs and
      # bfloat16, is its fused kernel beside that; 'pallas' is 'cudnn' with a kernel
      # for dropout too, which saves memory; 'auto' asks the device.
      'attention_impl': 'auto',
      # Layers as a loop: compiled once, not once each, for a slower step.
      'scan_layers': False,
      # What the backward pass computes again to save memory: 'none', 'dots'
      # (all but the products of matrices) or 'blocks' (all but their inputs).
      'remat': 'none',
      # Encoders are chosen by name from models/encoders.py.
      'video': {
        'encoder': 'timesformer',
        'image_size': image_size,
        'patch_size': patch_size,
        'frames': frames,
        'width': width,
        'depth': depth,
        'heads': heads,
        'mlp_size': 4 * width,
        'attention': 'divided',  # Or 'joint', 'space_only'.
        'drop_path': 0.1,
        'dropout': 0.0,
        # Initial values of the original. Models that start from random
        # weights and small data learn faster with larger ones: see
        # pretrain:demo.
        'matrix_std': 0.02,
        'temporal_fc_std': 0.0,
        'position_std': 0.02,
        'time_std': 0.0,
        'smooth_positions': False,
      },
      'text': {
        'encoder': 'bert',
        'vocab_size': vocab_size,  # Overwritten by the tokenizer's size.
        'width': width,
        'depth': text_depth,
        'fusion_layer': fusion_layer,  # First layer of the fusion encoder.
        'heads': heads,
        'mlp_size': 4 * width,
        'max_positions': 512,
        'dropout': 0.1,
        'matrix_std': 0.02,
        'word_std': 0.02,
        'position_std': 0.02,
        # Scale of the tied MLM decoder's logits; below 1 with large word_std.
        'mlm_logit_scale': 1.0,
      },
    }
  )


def tiny():
  """A model for laptops, tests and the demo."""
  return _model(
    image_size=48,
    patch_size=12,
    frames=4,
    width=64,
    depth=3,
    heads=2,
    text_depth=4,
    fusion_layer=2,
    vocab_size=256,
    embed_size=64,
  )


def small():
  """A model for a good CPU or a small GPU, between `tiny` and `base`."""
  return _model(
    image_size=112,
    patch_size=16,
    frames=4,
    width=256,
    depth=6,
    heads=4,
    text_depth=6,
    fusion_layer=3,
    vocab_size=8000,
    embed_size=128,
  )


def base():
  """The paper's model: TimeSformer on ViT-B/16, BERT-base."""
  return _model(
    image_size=224,
    patch_size=16,
    frames=4,
    width=768,
    depth=12,
    heads=12,
    text_depth=12,
    fusion_layer=6,
    vocab_size=30522,
    embed_size=256,
  )


def large():
  """ViT-L/16 and BERT-large."""
  return _model(
    image_size=224,
    patch_size=16,
    frames=4,
    width=1024,
    depth=24,
    heads=16,
    text_depth=24,
    fusion_layer=12,
    vocab_size=30522,
    embed_size=256,
  )


# Statistics of pixels that families of weights were trained with: CLIP's own, and
# those that take 0..1 to -1..1.
CLIP_PIXELS = {
  'pixel_mean': (0.48145466, 0.4578275, 0.40821073),
  'pixel_std': (0.26862954, 0.26130258, 0.27577711),
}
CENTRED_PIXELS = {'pixel_mean': (0.5, 0.5, 0.5), 'pixel_std': (0.5, 0.5, 0.5)}


def _image_text(video, tower, **model):
  """A model whose towers are those of image-text weights, with a BERT-base to fuse.

  Args:
    video: what differs from a plain ViT; see alpro_jax/models/vit.py.
    tower: the same of the text tower; see alpro_jax/models/text_tower.py.
    **model: options of the model itself.
  """
  config = base()
  common = {'drop_path': 0.0, 'dropout': 0.0, 'matrix_std': 0.02, 'position_std': 0.02}
  config.video = {
    'encoder': 'vit',
    'patch_size': 16,
    'image_size': 224,
    'frames': 4,
    'attention': 'divided',
    'activation': 'gelu',
    'epsilon': 1e-5,
    'class_token': True,
    'registers': 0,
    'pooling': 'class',
    'pool_heads': 8,
    'patch_bias': False,
    'norm_before': True,
    'positions': 'absolute',
    'layer_scale': 0.0,
    # Zero, so that a clip starts out as its frames.
    'temporal_fc_std': 0.0,
    'time_std': 0.0,
    **CLIP_PIXELS,
    **common,
    **video,
    'mlp_size': 4 * video['width'],
  }
  config.text_tower = {
    'encoder': 'transformer',
    'vocab_size': 49408,
    'max_positions': 77,
    'activation': config.video.activation,
    'epsilon': config.video.epsilon,
    'causal': True,
    'pooling': 'end',
    'end_id': 49407,
    'word_std': 0.02,
    **common,
    **tower,
    'mlp_size': 4 * tower['width'],
  }
  config.update({'video_projection': 'linear', 'text_projection': 'linear', **model})
  return config


def _clip(width, text_width, **video):
  """OpenAI's CLIP (arXiv 2103.00020); LAION's and DataComp's have the exact GELU."""
  video = {'activation': 'quick_gelu', 'width': width, 'heads': width // 64, **video}
  tower = {'width': text_width, 'depth': 12, 'heads': text_width // 64}
  return _image_text(video, tower, embed_size=text_width)


def clip_b32():
  """CLIP ViT-B/32."""
  return _clip(768, 512, depth=12, patch_size=32)


def clip_b16():
  """CLIP ViT-B/16."""
  return _clip(768, 512, depth=12)


def clip_l14():
  """CLIP ViT-L/14."""
  return _clip(1024, 768, depth=24, patch_size=14)


def siglip2_b16():
  """SigLIP 2 B/16 at 224 pixels (arXiv 2502.14786)."""
  video = {
    'activation': 'gelu_tanh',
    'epsilon': 1e-6,
    'width': 768,
    'depth': 12,
    'heads': 12,
    'class_token': False,
    'pooling': 'attention',
    'pool_heads': 12,
    'patch_bias': True,
    'norm_before': False,
    **CENTRED_PIXELS,
  }
  tower = {
    'vocab_size': 256_000,
    'max_positions': 64,
    'causal': False,
    'pooling': 'last',
    'end_id': 1,
    'width': 768,
    'depth': 12,
    'heads': 12,
  }
  model = {'embed_size': 768, 'video_projection': 'none', 'text_projection': 'affine'}
  # Of its sigmoid loss, at first (arXiv 2303.15343, section 3.2).
  return _image_text(video, tower, **model, temperature=0.1, logit_bias=-10.0)


def _pe_core(width, depth, heads, **video):
  """Perception Encoder, core (arXiv 2504.13181)."""
  video = {
    'width': width,
    'depth': depth,
    'heads': heads,
    'pooling': 'attention',
    'positions': 'both',
    **CENTRED_PIXELS,
    **video,
  }
  tower = {'max_positions': 32, 'width': 1024, 'depth': 24, 'heads': 16}
  return _image_text(video, tower, embed_size=1024)


def pe_core_b16():
  """PE-Core B/16 at 224 pixels."""
  return _pe_core(768, 12, 12)


def pe_core_l14():
  """PE-Core L/14 at 336 pixels."""
  return _pe_core(1024, 24, 16, patch_size=14, image_size=336)


def _shrink(make):
  """Returns a preset with the options of another and the sizes of `tiny`."""

  def small():
    config, sizes = make(), tiny()
    config.text = sizes.text
    config.video.update({name: sizes.video[name] for name in TINY_SIZES})
    config.video.pool_heads = config.video.heads
    config.text_tower.update(
      {
        'vocab_size': 320,
        'end_id': 319 if config.text_tower.pooling == 'end' else 1,
        'max_positions': 32,
        'width': sizes.text.width,
        'depth': 2,
        'heads': sizes.text.heads,
        'mlp_size': sizes.text.mlp_size,
      }
    )
    config.embed_size = sizes.video.width
    return config

  return small


TINY_SIZES = ('image_size', 'patch_size', 'frames', 'width', 'depth', 'heads', 'mlp_size')
# What starts from image-text weights, each with a form for tests.
IMAGE_TEXT = {
  f.__name__: f for f in (clip_b32, clip_b16, clip_l14, siglip2_b16, pe_core_b16, pe_core_l14)
}
TINY_IMAGE_TEXT = {
  'tiny_clip': _shrink(clip_b16),
  'tiny_siglip2': _shrink(siglip2_b16),
  'tiny_pe_core': _shrink(pe_core_b16),
}


def from_random_weights(model):
  """Sets initial values for a model that starts from nothing, on little data.

  Large, or captions and clips all start out alike and neither side has anything to
  learn from; but not so large that attention sees one token. Written for a width of
  64, and less for wider ones, as products of matrices add up more values.
  """
  scale = (64 / model.video.width) ** 0.5
  model.video.update(
    {
      'drop_path': 0.0,
      'matrix_std': 0.16 * scale,
      'temporal_fc_std': 0.16 * scale,
      'position_std': 1.0,
      'time_std': 1.0,
      'smooth_positions': True,
    }
  )
  model.text.update(
    {
      'dropout': 0.0,
      'matrix_std': 0.15 * scale,
      'word_std': 1.0,
      'position_std': 0.3,
      'mlm_logit_scale': 0.125 * scale,
    }
  )
  return model


PRESETS = {
  'tiny': tiny,
  'small': small,
  'base': base,
  'large': large,
  **IMAGE_TEXT,
  **TINY_IMAGE_TEXT,
}
