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


PRESETS = {'tiny': tiny, 'small': small, 'base': base, 'large': large}
