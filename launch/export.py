"""Writes a trained model as a folder that runs without this package.

  python launch/export.py --checkpoint=runs/pretrain --output=exports/alpro
  python launch/export.py --checkpoint=runs/msvd_qa --output=exports/qa \\
    --frames=16 --savedmodel

Encoders for every model; whether text and video match, for one pre-trained or
fine-tuned to retrieve; answers, for one that answers questions. What the folder
holds and how to use it stands in its alpro_loader.py. All programs are compared
with the live model, and nothing is written if they differ.

A small checkpoint again, without the optimizer:

  python launch/export.py --checkpoint=runs/pretrain --output=for_colab \\
    --params_only
  python launch/evaluate.py --checkpoint=for_colab --data=sets/clips \\
    --split=test
"""

try:
  from launch import command
except ModuleNotFoundError:
  import not_installed  # noqa: F401

import time

from absl import flags

_CHECKPOINT = flags.DEFINE_string('checkpoint', None, command.MODEL, required=True)
_OUTPUT = flags.DEFINE_string('output', None, 'Folder to make.', required=True)
_TOKENIZER = flags.DEFINE_string(
  'tokenizer', '', 'Its file: only for checkpoints of earlier versions, if it has moved.'
)
_FRAMES = flags.DEFINE_integer('frames', 0, 'Frames of a clip (as trained).')
_IMAGE_SIZE = flags.DEFINE_integer(
  'image_size', 0, 'Side of the image; what is cropped from scales along (as trained).'
)
_MAX_TEXT_TOKENS = flags.DEFINE_integer('max_text_tokens', 0, 'Length of texts (as trained).')
_UNIFORM = flags.DEFINE_bool(
  'uniform', False, 'Choose frames evenly, whatever the run did in evaluation.'
)
_PLATFORMS = flags.DEFINE_list(
  'platforms', 'cpu,cuda,tpu', 'That programs run on; rocm is another.'
)
_TOLERANCE = flags.DEFINE_float(
  'tolerance',
  None,
  'Largest difference from the live model (1e-5 for float32 on a CPU, else 2e-2).',
)
_SAVEDMODEL = flags.DEFINE_bool('savedmodel', False, 'Add a TensorFlow SavedModel.')
_PARAMS_ONLY = flags.DEFINE_bool(
  'params_only', False, 'Write no programs, but a checkpoint without the optimizer.'
)


def main():
  import jax
  import ml_collections

  from alpro_jax import api, files, sharding
  from alpro_jax.evaluation import trained
  from alpro_jax.serving import export

  start = time.monotonic()
  checkpoint = api.find(_CHECKPOINT.value)
  output = _OUTPUT.value
  if _PARAMS_ONLY.value:
    for flag in (
      _FRAMES,
      _IMAGE_SIZE,
      _MAX_TEXT_TOKENS,
      _UNIFORM,
      _PLATFORMS,
      _TOLERANCE,
      _SAVEDMODEL,
    ):
      if flag.value != flag.default:
        raise ValueError(
          f'--{flag.name} is about programs, and --params_only writes none; leave one of them out.'
        )
    export.write_params(checkpoint, output, tokenizer=_TOKENIZER.value)
  else:
    if _SAVEDMODEL.value:
      import tensorflow as tf

      tf.config.set_visible_devices([], 'GPU')
    config = ml_collections.ConfigDict(checkpoint.meta['config'])
    _change(config.data)
    mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
    export.write(
      trained.load(checkpoint, config=config, tokenizer=_TOKENIZER.value, mesh=mesh),
      output,
      platforms=tuple(_PLATFORMS.value),
      with_saved_model=_SAVEDMODEL.value,
      tolerance=_TOLERANCE.value,
    )
  size = sum(files.sizes(output).values())
  print(f'Written: {output}, {size / 2**20:.1f} MiB, {time.monotonic() - start:.1f} s')


def _change(data):
  """Makes config.data follow the flags about what the model is shown."""
  if _FRAMES.value:
    data.frames = _FRAMES.value
  if _IMAGE_SIZE.value:
    data.resize = round(data.resize * _IMAGE_SIZE.value / data.image_size)
    data.image_size = _IMAGE_SIZE.value
  if _MAX_TEXT_TOKENS.value:
    data.max_text_tokens = _MAX_TEXT_TOKENS.value
  if _UNIFORM.value:
    data.eval_sampling = 'uniform'


if __name__ == '__main__':
  command.run(main, in_buckets=True)
