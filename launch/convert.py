"""Converts published weights to a checkpoint here, and back.

A checkpoint made here has its model's sizes, task and tokenizer with it, like
one of a training: evaluate.py and --config.train.init_from take it as it is.
Every tensor of a file is used, or named with the reason why not. What a file
does not say and decides what the model computes is asked for: the task where
tensors do not tell, heads of attention but for the published widths.

What the authors of ALPRO published: it is downloaded, unless it is there, and goes
on where it broke off. OUTPUT/README.md says which figures to expect:

  python launch/convert.py --released=msrvtt_retrieval --output=runs/msrvtt

The original's files, or LAVIS's. A pre-trained file holds its prompter too,
which goes to OUTPUT_prompter:

  python launch/convert.py --original=alpro_pretrained_ckpt.pt \\
    --tokenizer=data/bert-base-uncased/vocab.txt --output=runs/alpro
  python launch/convert.py --original=msrvtt_qa.pt --answers=ans2label.json \\
    --tokenizer=data/bert-base-uncased/vocab.txt --output=runs/alpro_qa
  python launch/evaluate.py --checkpoint=runs/alpro --data=data/msrvtt \\
    --split=test

A start for pre-training from a ViT (timm, or the .npz of its authors) or a
TimeSformer, and a BERT of Hugging Face; either may be left out:

  python launch/convert.py --vit=vit_base_patch16_224.safetensors \\
    --bert=data/bert-base-uncased --output=runs/start
  python launch/main.py --config=configs/pretrain_prompter.py \\
    --workdir=runs/prompter --config.train.init_from=runs/start

A model that searches videos at once, from image-text weights: CLIP, SigLIP or
SigLIP 2 of Hugging Face or open_clip, PE-Core of open_clip or its authors, with
the tokenizer of the same folder. --bert adds a fusion encoder, to be trained
(docs/weights.md has a table):

  python launch/convert.py --image_text=siglip2-base-patch16-224 \\
    --output=runs/siglip2
  python launch/search.py index clips --checkpoint=runs/siglip2 \\
    --index=clips.index

Back to the original's names and layouts, as .safetensors or with torch as .pt;
exactly the file that was converted, if one was. Beside its tensors it carries
what was stored with the checkpoint, so that it comes back as the same model:

  python launch/convert.py --checkpoint=runs/alpro \\
    --prompter=runs/alpro_prompter --output=alpro.pt

What lies between a fine-tuned model and its start, parameter by parameter (WiSE-FT);
launch/evaluate.py --interpolate measures which share is best:

  python launch/convert.py --checkpoint=runs/msrvtt --interpolate=runs/clip \\
    --alpha=0.5 --output=runs/between

Reading or writing .pt, .pth, .bin and .pyth needs torch, which is not installed
with this project: `pip install torch --index-url
https://download.pytorch.org/whl/cpu`. Nothing in such a file is ever run.
"""

try:
  from launch import command
except ModuleNotFoundError:
  import not_installed  # noqa: F401

import contextlib
import dataclasses
import logging as python_logging
import os
import pathlib
import tempfile

import jax
from absl import flags, logging

from alpro_jax import buckets, files
from alpro_jax.data.annotations import printable
from alpro_jax.train import checkpoints, identity
from alpro_jax.weights import (
  convert,
  image_text,
  interpolation,
  kept,
  released,
  sources,
  tables,
  tensor_files,
)
from configs import (
  finetune_didemo_retrieval,
  finetune_msrvtt_qa,
  finetune_msrvtt_retrieval,
  finetune_msvd_qa,
  models,
  pretrain,
  pretrain_prompter,
)

_CONFIG = command.config_flag(
  'Config whose options beside the sizes of the model are '
  "stored; by default the paper's of the task."
)
_RELEASED = flags.DEFINE_enum(
  'released', '', ['', *released.RELEASES], 'Published weights to download and convert.'
)
_DOWNLOADS = flags.DEFINE_string(
  'downloads', 'data/released', 'Where --released keeps what it downloads.'
)
_MIRROR = flags.DEFINE_string(
  'mirror',
  '',
  'Address of a folder, with files of the same names, to download from instead of the '
  'published addresses.',
)
_ORIGINAL = flags.DEFINE_string('original', '', "The original's or LAVIS's weights.")
_VIT = flags.DEFINE_string('vit', '', 'Weights of a ViT or a TimeSformer for the video encoder.')
_BERT = flags.DEFINE_string(
  'bert',
  '',
  'Weights of a BERT for text and fusion encoder; a file, or a '
  'folder with its config.json and vocab.txt.',
)
_IMAGE_TEXT = flags.DEFINE_string(
  'image_text',
  '',
  'Weights of an image-text model for both towers; a folder, or a file in it, with its '
  'config.json or open_clip_config.json.',
)
_OPEN_CLIP = flags.DEFINE_string(
  'open_clip',
  '',
  'Config of --image_text where no open_clip_config.json is there: a file, or a name that an '
  'installed open_clip knows.',
)
_TOWER_TOKENIZER = flags.DEFINE_string(
  'tower_tokenizer', '', 'Tokenizer of --image_text, if it is not in the same folder.'
)
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', '', 'Checkpoint to bring back to PyTorch; with --interpolate, the fine-tuned one.'
)
_INTERPOLATE = flags.DEFINE_string(
  'interpolate', '', 'Checkpoint that --checkpoint was fine-tuned from, to write one between.'
)
_ALPHA = flags.DEFINE_float(
  'alpha', None, 'With --interpolate: share of --checkpoint; 0 is the start, 1 --checkpoint.'
)
_KEEP = flags.DEFINE_string(
  'keep',
  '',
  'With --interpolate: patterns of parameters that stay as --checkpoint has them, as those of '
  'config.optimizer.freeze.',
)
_PROMPTER = flags.DEFINE_string(
  'prompter', '', 'With --checkpoint: the prompter to put into the file.'
)
_OUTPUT = flags.DEFINE_string(
  'output', '', 'Workdir to make; with --checkpoint, but for --interpolate, file to write.'
)
_TOKENIZER = flags.DEFINE_string(
  'tokenizer', '', 'vocab.txt of the BERT that the weights come from.'
)
_ANSWERS = flags.DEFINE_string(
  'answers', '', "The original's ans2label.json, of question answering."
)
_IMAGE_SIZE = flags.DEFINE_integer('image_size', 0, 'Resize positions to images of this side.')
_FRAMES = flags.DEFINE_integer('frames', 0, 'Resize times to clips of this many frames.')
_RESIZE_RULE = flags.DEFINE_enum(
  'resize_rule',
  '2d',
  tables.RESIZE_RULES,
  'Resize positions as a grid, or in one row as the original does.',
)
_TASK = flags.DEFINE_enum(
  'task', '', ['', *sources.UNSEEN], 'Of a file whose tensors do not tell it.'
)
_HEADS = flags.DEFINE_integer(
  'heads', 0, 'Of attention; needed where the file does not say, but for the published widths.'
)
_FUSION_LAYER = flags.DEFINE_integer(
  'fusion_layer',
  0,
  'First layer of BERT that fuses; by default half way, with --original of 12 layers alone.',
)
_SEED = flags.DEFINE_integer('seed', 42, 'Of what --vit and --bert do not give.')

_CONFIGS = {
  'pretrain': pretrain,
  'prompter': pretrain_prompter,
  'retrieval': finetune_msrvtt_retrieval,
  'question_answering': finetune_msrvtt_qa,
}
# Of the released models whose config is another than their task's.
_CONFIGS_OF_RELEASED = {'didemo_retrieval': finetune_didemo_retrieval, 'msvd_qa': finetune_msvd_qa}


def main():
  # Conversion is copying; a GPU would only be kept from others.
  jax.config.update('jax_platforms', 'cpu')
  # Orbax tells every step of writing a file, and pages of a full disk, of
  # which the error says enough.
  logging.set_verbosity(logging.WARNING)
  logging.get_absl_logger().addFilter(
    lambda record: f'{os.sep}orbax{os.sep}' not in record.pathname
  )
  python_logging.getLogger('asyncio').setLevel('CRITICAL')
  _check_flags()
  with _on_this_machine():
    _convert()


@contextlib.contextmanager
def _on_this_machine():
  """Fetches what flags name in buckets, and uploads what is made for one."""
  known, output = flags.FLAGS, _OUTPUT.value
  finds_itself = ('checkpoint', 'prompter', 'interpolate', 'output', 'mirror')
  for name in set(known) - set(finds_itself):
    value = known[name].value
    if isinstance(value, str) and buckets.is_address(value):
      known[name].value = str(files.local(value))
  if not buckets.is_address(output):
    yield
    return
  files.check_free(output)
  place, _, name = output.rstrip('/').rpartition('/')
  with tempfile.TemporaryDirectory(prefix='alpro_jax-') as folder:
    known['output'].value = os.path.join(folder, name)
    yield
    for made in sorted(pathlib.Path(folder).iterdir()):  # There may be a prompter, too.
      buckets.upload(made, f'{place}/{made.name}')
      print(f'Uploaded: {place}/{made.name}')


def _convert():
  if _INTERPOLATE.value:
    start, tuned = checkpoints.find(_INTERPOLATE.value), checkpoints.find(_CHECKPOINT.value)
    shared = interpolation.write(start, tuned, _ALPHA.value, _OUTPUT.value, _KEEP.value)
    print(f'{len(shared.params)} tensors are {_ALPHA.value:g} x {tuned.folder}')
    print(f'  + {1 - _ALPHA.value:g} x {start.folder}')
    _print_list('as the fine-tuned model has them', shared.only_tuned)
    _print_list('of the start alone, left out', shared.only_start)
    print(f'Written: {_OUTPUT.value}')
    return
  if _CHECKPOINT.value:
    written = kept.to_original(_CHECKPOINT.value, _OUTPUT.value, _PROMPTER.value)
    _report_file(*written)
    return
  names = {field.name for field in dataclasses.fields(convert.Options)} - {'paper_config'}
  options = convert.Options(
    paper_config=lambda task: _CONFIGS[task].get_config(),
    **{name: flags.FLAGS[name].value for name in names - {'card'}},
  )
  if _RELEASED.value:
    options = _fetch_released(options)
  way = convert.from_original if options.original else convert.from_backbones
  if options.image_text:
    way = image_text.from_image_text
    options = dataclasses.replace(options, paper_config=_image_text_config)
  for one in way(options):
    _report_checkpoint(one)
  if _RELEASED.value:
    print(f'The figures that are published for it: {_OUTPUT.value}/README.md')


def _image_text_config(task):
  """Options of a task, with a model of towers whose sizes the weights decide."""
  config = _CONFIGS[task].get_config()
  config.model = models.clip_b16()
  return config


def _fetch_released(options):
  """Downloads what --released names; returns the options to convert it with."""
  name = _RELEASED.value
  release = released.RELEASES[name]
  # Better known before a download of hours than after it.
  files.check_free(options.output)
  tensor_files.check_readable(release.files[0].name)
  wanted = [file for file in release.files if not getattr(options, file.flag)]
  try:
    paths = released.fetch(wanted, _DOWNLOADS.value, options.output, mirror=_MIRROR.value)
  except KeyboardInterrupt:
    command.fail('interrupted; the same command goes on from here.', 130)
  configs = _CONFIGS | {release.task: _CONFIGS_OF_RELEASED.get(name, _CONFIGS[release.task])}
  return dataclasses.replace(
    options,
    # Tensors of question answering always tell what they are.
    task=release.task if release.task in sources.UNSEEN else '',
    paper_config=lambda task: configs[task].get_config(),
    card=released.card(name, options.output, paths, _MIRROR.value),
    **{flag: str(path) for flag, path in paths.items()},
  )


def _check_flags():
  start = _VIT.value or _IMAGE_TEXT.value or _BERT.value
  ways = (_RELEASED.value, _ORIGINAL.value, _CHECKPOINT.value, start)
  if sum(map(bool, ways)) != 1 or (_VIT.value and _IMAGE_TEXT.value):
    raise ValueError(
      'exactly one of --released, --original, --checkpoint, --image_text, or --vit with --bert '
      '(one of them suffices) is needed; --image_text may have a --bert too. See --help.'
    )
  if not _OUTPUT.value:
    raise ValueError('--output is needed: where the result goes.')
  needs = {
    'prompter': 'checkpoint',
    'task': 'original',
    'mirror': 'released',
    'interpolate': 'checkpoint',
    'keep': 'interpolate',
    'open_clip': 'image_text',
    'tower_tokenizer': 'image_text',
  }
  for name, other in needs.items():
    if flags.FLAGS[name].value and not flags.FLAGS[other].value:
      raise ValueError(f'--{name} goes with --{other} alone.')
  if bool(_INTERPOLATE.value) != (_ALPHA.value is not None) or (
    _INTERPOLATE.value and _PROMPTER.value
  ):
    raise ValueError('--interpolate and --alpha go together, and without --prompter.')
  if _IMAGE_TEXT.value and not _BERT.value and (_TOKENIZER.value or _FUSION_LAYER.value):
    raise ValueError(
      '--tokenizer and --fusion_layer are of a --bert; the tokenizer of --image_text is in its '
      'folder, or --tower_tokenizer.'
    )
  if _ANSWERS.value and not (_ORIGINAL.value or _RELEASED.value):
    raise ValueError('--answers goes with --original or --released alone.')
  if _CHECKPOINT.value:
    for name in ('config', 'tokenizer', 'image_size', 'frames', 'heads', 'fusion_layer'):
      if flags.FLAGS[name].value:
        raise ValueError(f'--{name} does not go with --checkpoint, which is written as it is.')


def _report_checkpoint(one):
  video, text, tower = (getattr(one.model.config, x) for x in ('video', 'text', 'text_tower'))
  count = sum(array.size for array in jax.tree.leaves(one.params))
  line = (
    f'{one.config.task}: {count:,} parameters; video {video.width} x {video.depth}, {video.heads} '
    f'heads, {video.frames} frames of {video.image_size} in patches of {video.patch_size}'
  )
  for name, part in (('text tower', tower), ('text', text)):
    if part:
      line += f'; {name} {part.width} x {part.depth}, {part.heads} heads, {part.vocab_size} words'
  print(line + (f', fusion from layer {text.fusion_layer}' if text else ''))
  for what, lines in one.notes.items():
    _print_list(what, lines)
  print(f'Written: {one.folder}')


def _report_file(arrays, absent, was_converted, prompter):
  size = sum(array.nbytes for array in arrays.values())
  print(f'{len(arrays)} tensors, {size / 2**20:.1f} MiB')
  if absent:
    _print_list('in the file that was converted, and not in this one', absent)
  if prompter or any(name.startswith('prompter.') for name in absent):
    which = prompter and f', {identity.named(prompter)},'
    print(f'The prompter{which or ""} is not in the file; pass --prompter to add it.')
  if not was_converted:
    print(
      f'{_CHECKPOINT.value} keeps nothing of a file that it was converted from, so tensors that '
      'the original has and never reads are not there; it loads without them (strict=False).'
    )
  print(f'Written: {_OUTPUT.value}')


def _print_list(what, lines):
  print(f'  {what}: {len(lines)}')
  for line in lines:
    print(f'    {printable(line)}')


if __name__ == '__main__':
  command.run(main, in_buckets=True)
