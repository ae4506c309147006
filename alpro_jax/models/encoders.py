"""The encoders that `config.model` chooses by name. Add yours here.

A video encoder is a file with

  Config                     frozen dataclass of the options below config.model.video:
                             at least encoder, image_size, patch_size, frames, width,
                             pixel_mean, pixel_std
  Encoder(config, options)   module: (video, train) -> f[B, 1 + N, D], one token
                             for the clip and one for each of its N patches; or a pair,
                             f[B, T, D], one token for each frame, and these
  forward_flops(config, frames, image_size)

and a text encoder one with

  Config                     of config.model.text: at least encoder, width,
                             vocab_size, mlm_logit_scale
  Embedding(config, options)       module: (ids, train), and its `decode`
  text_encoder(config, options)    module: (x, mask, train)
  fusion_encoder(config, options)  module: (x, mask, train, query_tokens)
  MlmHead(config, options)         module
  text_flops(config, length), fusion_flops(config, length, query_tokens)

A text tower, which stands beside the text encoder and is for contrast alone, has

  Config                     of config.model.text_tower: at least encoder, width,
                             vocab_size, max_positions
  Encoder(config, options)   module: (ids, train) -> f[B, D]
  text_flops(config, length)

The shapes are those of timesformer.py, bert.py and text_tower.py. `options` say how layers are
computed; the pieces of layers.py follow them, and their parameters are sharded.
"""

from alpro_jax.models import bert, text_tower, timesformer, vit

VIDEO = {'timesformer': timesformer, 'vit': vit}
TEXT = {'bert': bert}
TEXT_TOWER = {'transformer': text_tower}
# What config.model has without naming any.
DEFAULT = {'video': 'timesformer', 'text': 'bert', 'text_tower': 'transformer'}


def find(part: str, name: str):
  """Returns the file of an encoder.

  Args:
    part: 'video', 'text' or 'text_tower'.
    name: in the table.
  Raises:
    ValueError: for an unknown name.
  """
  table = {'video': VIDEO, 'text': TEXT, 'text_tower': TEXT_TOWER}[part]
  if name not in table:
    raise ValueError(
      f'config.model.{part}.encoder={name!r} is unknown; choose one of {sorted(table)}, or add '
      'yours to alpro_jax/models/encoders.py.'
    )
  return table[name]
