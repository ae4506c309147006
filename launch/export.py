"""Writes a trained model as a folder that runs without this package.

Encoders for every model; whether text and video match, for one pre-trained or
fine-tuned to retrieve; answers, for one that answers questions. What the folder
holds and how to use it stands in its alpro_loader.py. All programs are compared
with the live model, and nothing is written if they differ.
"""

import argparse
import pathlib
import sys
import time

EXAMPLES = """
examples:
    python launch/export.py --checkpoint=runs/pretrain --output=exports/alpro
    python launch/export.py --checkpoint=runs/msvd_qa --output=exports/qa \\
      --frames=16 --savedmodel
    python launch/export.py --checkpoint=runs/pretrain --output=for_colab \\
      --params_only

The last one is a small checkpoint again, parameters, meta and tokenizer:
    python launch/evaluate.py --checkpoint=for_colab --data=sets/clips \\
      --split=test
"""


def _parser():
  parser = argparse.ArgumentParser(
      prog='python launch/export.py', description=__doc__, epilog=EXAMPLES,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False)
  add = parser.add_argument
  add('--checkpoint', required=True,
      help='workdir of a run, or the folder of one checkpoint')
  add('--output', required=True, help='folder to make')
  add('--tokenizer', default='', help='its file, if it has moved')
  add('--frames', type=int, default=0, help='frames of a clip (as trained)')
  add('--image_size', type=int, default=0,
      help='side of the image; what is cropped from scales along (as trained)')
  add('--max_text_tokens', type=int, default=0,
      help='length of texts (as trained)')
  add('--uniform', action='store_true',
      help='choose frames evenly, whatever the run did in evaluation')
  add('--platforms', default='cpu,cuda,tpu',
      help='that programs run on (cpu,cuda,tpu); rocm is another')
  add('--tolerance', type=float, default=None,
      help='largest difference from the live model (1e-5 for float32 on a '
      'CPU, else 2e-2)')
  add('--savedmodel', action='store_true',
      help='add a TensorFlow SavedModel')
  add('--params_only', action='store_true',
      help='write no programs, but a checkpoint without the optimizer')
  add('--debug', action='store_true', help='show where an error comes from')
  return parser


def main(argv=None):
  args = _parser().parse_args(argv)
  try:
    export(args)
  except Exception as error:
    if args.debug or not isinstance(error, (ValueError, OSError)):
      raise
    from alpro_jax.data.annotations import printable_lines

    print(f'error: {printable_lines(error)}', file=sys.stderr)
    return 2
  return 0


def export(args):
  """Does what the options say."""
  import jax
  import ml_collections

  from alpro_jax import sharding
  from alpro_jax.evaluation import trained
  from alpro_jax.serving import folder
  from alpro_jax.train import checkpoints

  start = time.monotonic()
  checkpoint = checkpoints.find(args.checkpoint)
  meta = checkpoints.load_meta(checkpoint)
  config = ml_collections.ConfigDict(meta['config'])
  tokenizer, _ = trained.find_tokenizer(checkpoint, meta, args.tokenizer)
  if args.params_only:
    size = folder.write_params(checkpoint, args.output, tokenizer=tokenizer)
  else:
    if args.savedmodel:
      import tensorflow as tf

      tf.config.set_visible_devices([], 'GPU')
    change(config.data, args)
    mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
    model = trained.load(
        checkpoint, config=config, tokenizer=tokenizer, mesh=mesh)
    folder.write(
        model, args.output, tokenizer=tokenizer,
        platforms=tuple(args.platforms.split(',')),
        with_saved_model=args.savedmodel, tolerance=args.tolerance)
    size = sum(
        p.stat().st_size for p in pathlib.Path(args.output).rglob('*')
        if p.is_file())
  print(f'Written: {args.output}, {size / 2**20:.1f} MiB, '
        f'{time.monotonic() - start:.1f} s')


def change(data, args):
  """Makes config.data follow the options about what the model is shown."""
  if args.frames:
    data.frames = args.frames
  if args.image_size:
    data.resize = round(data.resize * args.image_size / data.image_size)
    data.image_size = args.image_size
  if args.max_text_tokens:
    data.max_text_tokens = args.max_text_tokens
  if args.uniform:
    data.eval_sampling = 'uniform'


if __name__ == '__main__':
  sys.exit(main())
