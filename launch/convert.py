"""Converts published weights to a checkpoint here, and back.

A checkpoint made here has its model's sizes, task and tokenizer with it, like
one of a training: evaluate.py and --config.train.init_from take it as it is.
Every tensor of a file is used, or named with the reason why not. What a file
does not say and decides what the model computes is asked for: the task where
tensors do not tell, heads of attention but for the published widths.

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

Back to the original's names and layouts, as .safetensors or with torch as .pt;
exactly the file that was converted, if one was. Beside its tensors it carries
what was stored with the checkpoint, so that it comes back as the same model:

  python launch/convert.py --checkpoint=runs/alpro \\
    --prompter=runs/alpro_prompter --output=alpro.pt

Reading or writing .pt, .pth, .bin and .pyth needs torch, which is not installed
with this project: `pip install torch --index-url
https://download.pytorch.org/whl/cpu`. Nothing in such a file is ever run.
"""

import contextlib
import dataclasses
import json
import logging as python_logging
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import app, flags, logging
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import config_flags

from alpro_jax import files as whole
from alpro_jax import sharding
from alpro_jax.data import answers as answer_lists
from alpro_jax.data import entities as entity_lists
from alpro_jax.data import tokens
from alpro_jax.data.annotations import printable
from alpro_jax.models.alpro import Alpro, AlproConfig
from alpro_jax.tasks.shared import abstract_params, init_model, model_config
from alpro_jax.train import checkpoints, digests, identity, workdir
from alpro_jax.train.state import TrainState, create_state
from alpro_jax.weights import assemble, files, kept, original, sizes, sources
from configs import finetune_msrvtt_qa, finetune_msrvtt_retrieval, pretrain, pretrain_prompter
from launch import command

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Config whose options beside the sizes of the model are '
  "stored; by default the paper's of the task.",
  lock_config=True,
)
_ORIGINAL = flags.DEFINE_string('original', '', "The original's or LAVIS's weights.")
_VIT = flags.DEFINE_string('vit', '', 'Weights of a ViT or a TimeSformer for the video encoder.')
_BERT = flags.DEFINE_string(
  'bert',
  '',
  'Weights of a BERT for text and fusion encoder; a file, or a '
  'folder with its config.json and vocab.txt.',
)
_CHECKPOINT = flags.DEFINE_string('checkpoint', '', 'Checkpoint to bring back to PyTorch.')
_PROMPTER = flags.DEFINE_string(
  'prompter', '', 'With --checkpoint: the prompter to put into the file.'
)
_OUTPUT = flags.DEFINE_string('output', '', 'Workdir to make; with --checkpoint, file to write.')
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
  assemble.RESIZE_RULES,
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


class Converted(NamedTuple):
  """A model on its way to a checkpoint.

  Attributes:
    model: an Alpro.
    params: nested arrays.
    config: its options.
    answers: that it chooses from.
    notes: {what happened: [lines]}, for the report and the checkpoint.
    told: what was stored with the checkpoint that the file was made of, {} if
      it is not one of ours.
  """

  model: Alpro
  params: Any
  config: Any
  answers: tuple[str, ...]
  notes: dict[str, list[str]]
  told: dict[str, Any] = {}
  entities = None  # A file of others does not name them.


def main(argv):
  with command.mistakes_in_one_line():
    if argv[1:]:
      raise ValueError(f'unexpected {argv[1:]}; every option starts with --.')
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
    if _CHECKPOINT.value:
      convert_back()
    elif _ORIGINAL.value:
      convert_original()
    else:
      convert_start()


def _check_flags():
  start = bool(_VIT.value or _BERT.value)
  if (bool(_ORIGINAL.value) + bool(_CHECKPOINT.value) + start) != 1:
    raise ValueError(
      'exactly one of --original, --checkpoint, or --vit with --bert (one of '
      'them suffices) is needed; see --help.'
    )
  if not _OUTPUT.value:
    raise ValueError('--output is needed: where the result goes.')
  needs = {'prompter': 'checkpoint', 'answers': 'original', 'task': 'original'}
  for name, other in needs.items():
    if flags.FLAGS[name].value and not flags.FLAGS[other].value:
      raise ValueError(f'--{name} goes with --{other} alone.')
  if _CHECKPOINT.value:
    for name in ('config', 'tokenizer', 'image_size', 'frames', 'heads', 'fusion_layer'):
      if flags.FLAGS[name].value:
        raise ValueError(f'--{name} does not go with --checkpoint, which is written as it is.')


def convert_original():
  """The original's file -> one workdir, or two with a prompter in it."""
  folder = pathlib.Path(_OUTPUT.value)
  _check_free(folder)
  tensors = files.open_tensors(_ORIGINAL.value)
  told = kept.told(files.read_metadata(_ORIGINAL.value))
  if told and _TASK.value:
    raise ValueError(
      f'{_ORIGINAL.value} says that its task is {told["model"]["task"]!r}; leave --task out.'
    )
  task, own, prompter = sources.alpro(tensors, _TASK.value or told and told['model']['task'])
  parts = [(folder, task, own, told and told['model'])]
  if prompter:
    beside = folder.with_name(folder.name + '_prompter')
    parts.append((beside, 'prompter', prompter, told and told['prompter']))
  tokenizer = _load_tokenizer()
  # Everything is read and checked before anything is written.
  converted = [
    _of_original(part_task, part, tokenizer, part_told or {})
    for _, part_task, part, part_told in parts
  ]
  if prompter:
    converted[0].config.prompter.checkpoint = str(parts[1][0])
  places = {tensor.names[0]: name for name, tensor in own.items()} | {
    tensor.names[0]: f'prompter.{name}' for name, tensor in prompter.items()
  }
  order = [(name, places[name], str(tensor.dtype)) for name, tensor in tensors.items()]
  # Of the prompter alone there was no file: its names have no prefix.
  orders = [order, [(name, name, str(tensor.dtype)) for name, tensor in prompter.items()]]
  with contextlib.ExitStack() as stack:
    # The last one gets its name first, and the model is there after all it
    # needs.
    for (where, _, part, _), one, names in zip(parts, converted, orders, strict=False):
      if where is not folder and _is_there(where, one, tokenizer):
        continue
      here = stack.enter_context(whole.folder(where))
      digest = kept.write(
        here,
        names,
        {
          name: tensor
          for name, tensor in part.items()
          if (original.why_unused(name, one.model.config) and not original.derived(name))
          or ('cut' in one.notes and name.startswith('classifier.2.'))
        },
      )
      _save(here, where, one, tokenizer, {kept.KEPT: digest})
  for (where, *_), one in zip(parts, converted, strict=True):
    _report(where, one)


def _of_original(task, tensors, tokenizer, told):
  """Returns one model of the original's file."""
  heads, notes = sizes.head_sizes(tensors), {}
  answers = _answers(task, told)
  if answers:
    tensors = _cut_answers(tensors, len(answers), heads['answers'], notes)
  config = _options(task, told)
  if told:
    _check_told(told, tokenizer)
    values = told['model']
  else:
    values = _seen(task, tensors, heads, answers, config, notes)
    _check_tokenizer(tokenizer, values['text'])

  def made():
    shown = {name: config.model.video[name] for name in ('image_size', 'frames')}
    return AlproConfig.from_dict(values | {'video': values['video'] | shown})

  unused = {name: reason for name in tensors if (reason := original.why_unused(name, made()))}
  _check_derived(tensors)
  used = {name: t for name, t in tensors.items() if name not in unused}
  rows = original.rename_table(made())
  assemble.check(used, rows, _shapes(made()))
  params = assemble.read_params(used, rows)
  notes['not used'] = [f'{tensors[name].names[0]}: {reason}' for name, reason in unused.items()]
  params = _resize(params, config, notes)
  return Converted(Alpro(made()), unflatten_dict(params, sep='/'), config, answers, notes, told)


def _answers(task, told):
  """Returns what a model chooses from; () if it does not answer questions."""
  if task != 'question_answering':
    if _ANSWERS.value:
      raise ValueError(
        f'--answers is of question answering, but {_ORIGINAL.value} is of {task!r}; leave it out.'
      )
    return ()
  if not told:
    if not _ANSWERS.value:
      raise ValueError(
        f'{_ORIGINAL.value} answers questions and does not say which answers '
        'its labels stand for; pass the ans2label.json that it was trained '
        'with as --answers.'
      )
    return answer_lists.read_answers(_ANSWERS.value)
  if _ANSWERS.value and [*answer_lists.read_answers(_ANSWERS.value)] != told['answers']:
    raise ValueError(
      f'{_ANSWERS.value} lists other answers, or in another order, than '
      f'{_ORIGINAL.value} says its labels stand for; leave --answers out.'
    )
  return tuple(told['answers'])


def _check_told(told, tokenizer):
  """Refuses flags and files that contradict what a file says of itself."""
  if tokenizer.digest != told['tokenizer']['digest']:
    raise ValueError(
      f'{_tokenizer_file()} has digest {tokenizer.digest}, but '
      f'{_ORIGINAL.value} was trained with {told["tokenizer"]["digest"]}; '
      'pass the file of that run as --tokenizer.'
    )
  model = told['model']
  for flag, found in (
    ('heads', {model[part]['heads'] for part in ('video', 'text')}),
    ('fusion_layer', {model['text']['fusion_layer']}),
  ):
    given = flags.FLAGS[flag].value
    if given and found != {given}:
      raise ValueError(
        f'--{flag}={given}, but {_ORIGINAL.value} says {min(found)}; leave --{flag} out.'
      )


def _seen(task, tensors, heads, answers, config, notes):
  """Returns the config of a model, as a dict, from shapes, flags and custom."""
  video = sizes.video_sizes(tensors, _HEADS.value)
  text = sizes.text_sizes(tensors, _HEADS.value, _FUSION_LAYER.value)
  guessed = []
  if not _HEADS.value:
    guessed.append(
      f'{video["heads"]} heads of attention, as all published models of '
      f'{video["width"]} channels have (or pass --heads)'
    )
  if not _FUSION_LAYER.value:
    if text['depth'] != sizes.ORIGINAL_DEPTH:
      raise ValueError(
        f'which of the {text["depth"]} layers of the text encoder is the '
        'first that fuses cannot be seen from its tensors, and decides what '
        'it computes; pass --fusion_layer.'
      )
    guessed.append(
      f'fusion from layer {text["fusion_layer"]} of {text["depth"]}, as in '
      'the original (or pass --fusion_layer)'
    )
  if guessed:
    notes['not said by the file'] = guessed
  config.model.embed_size = heads['embed_size'] or config.model.embed_size
  _set_sizes(config, video, text)
  own_heads = {
    'pretrain': {'entities': heads['entities']},
    'prompter': {},
    'retrieval': {'mlm': False},
    'question_answering': {'embed_size': 0, 'match': False, 'mlm': False, 'answers': len(answers)},
  }[task]
  return dataclasses.asdict(model_config(config.model, text['vocab_size'], **own_heads))


def _cut_answers(tensors, count, labels, notes):
  """Leaves out the labels that no answer has (defect 24)."""
  if count > labels:
    raise ValueError(
      f'there are {count} answers, but classifier.2.weight of '
      f'{_ORIGINAL.value} chooses from {labels}; pass the list it was '
      'trained with as --answers.'
    )
  if count == labels:
    return tensors
  notes['cut'] = [
    f'classifier.2: the last {labels - count} of {labels} labels, which no answer has'
  ]
  return {
    **tensors,
    **{
      name: tensors[name].derive((count, *tensors[name].shape[1:]), lambda array: array[:count])
      for name in ('classifier.2.weight', 'classifier.2.bias')
      if name in tensors
    },
  }


def _check_derived(tensors):
  """Checks what will be made again on the way back."""
  for name, tensor in tensors.items():
    if not original.derived(name):
      continue
    if name.endswith('position_ids'):
      if not np.array_equal(tensor.read().ravel(), np.arange(np.prod(tensor.shape))):
        raise ValueError(f'tensor {name} is not 0, 1, 2, ...')
      continue
    tied = name.replace('.decoder.bias', '.bias').replace(
      'cls.predictions.decoder', 'bert.embeddings.word_embeddings'
    )
    if tied not in tensors:
      raise ValueError(f'tensor {tied} is missing; {name} is tied to it.')
    sources.check_tied(name, tensor, tied, tensors[tied])


def convert_start():
  """Backbones -> a checkpoint to train from, the rest from the seed."""
  folder = pathlib.Path(_OUTPUT.value)
  _check_free(folder)
  tensors, given, optional, notes = {}, [], [], {}
  config = _options('prompter', {})
  config.seed = _SEED.value
  video = text = None
  if _VIT.value:
    source = sources.vit(files.open_tensors(_VIT.value), _config_beside(_VIT.value))
    video = sizes.video_sizes(source.tensors, _heads('--vit', source, notes))
    given.append('visual_encoder.')
    if source.copied:
      optional = ['.temporal_fc.', '.time_embed']
      notes['copied'] = [f'{name} from {theirs}' for name, theirs in source.copied.items()]
    tensors.update(source.tensors)
    notes['not used'] = [f'{n}: {why}' for n, why in source.unused.items()]
  if _BERT.value:
    source = sources.bert(files.open_tensors(_BERT.value), _config_beside(_BERT.value))
    text = sizes.text_sizes(source.tensors, _heads('--bert', source, notes), _FUSION_LAYER.value)
    given.append('text_encoder.bert.')
    if any(n.startswith('text_encoder.cls.') for n in source.tensors):
      given.append('text_encoder.cls.')
    tensors.update(source.tensors)
    notes['not used'] = notes.get('not used', []) + [
      f'{name}: {why}' for name, why in source.unused.items()
    ]
  tokenizer = _load_tokenizer()
  _set_sizes(config, video or {}, text or {})
  _check_tokenizer(tokenizer, text or {'vocab_size': tokenizer.vocab_size})
  made = model_config(config.model, tokenizer.vocab_size)
  rows = original.rename_table(made)
  absent = assemble.check(tensors, rows, _shapes(made), given=given, optional=optional)
  params = assemble.read_params(tensors, rows)
  params = _resize(params, config, notes)
  made = model_config(config.model, tokenizer.vocab_size)
  model = Alpro(made)
  fresh = create_state(
    lambda key: init_model(model, key), optax.identity(), sharding.make_mesh(), _SEED.value
  ).params
  params = flatten_dict(fresh, sep='/') | params
  notes['from the seed'] = _grouped(absent, params)
  one = Converted(model, unflatten_dict(params, sep='/'), config, (), notes)
  with whole.folder(folder) as here:
    _save(here, folder, one, tokenizer)
  _report(folder, one)


def _heads(flag, source, notes):
  """Returns how many heads of attention a backbone has, 0 if unknown."""
  if not (_HEADS.value or source.heads):
    notes.setdefault('not said by the file', []).append(
      f'heads of attention of {flag}: as all published models of that width have (or pass --heads)'
    )
  if _HEADS.value and source.heads and _HEADS.value != source.heads:
    raise ValueError(
      f'--heads={_HEADS.value}, but what {flag} names says {source.heads}; leave --heads out.'
    )
  return source.heads or _HEADS.value


def _config_beside(path):
  """Returns Hugging Face's config.json of a file of weights, if it is there."""
  beside = files.find(path).with_name('config.json')
  if not beside.is_file():
    return {}
  try:
    return dict(json.loads(beside.read_text(encoding='utf-8')))
  except (ValueError, TypeError) as error:
    raise ValueError(f'{beside} is no config of Hugging Face: {error}.') from error


def _grouped(absent, params):
  """Names parameters, those of a whole module by its name alone."""
  lines = []
  for module in dict.fromkeys(path.partition('/')[0] for path in absent):
    ours = [path for path in params if path.partition('/')[0] == module]
    some = [path for path in ours if path in absent]
    if len(some) == len(ours) > 1:
      lines.append(f'{module}: all {len(ours)}')
    else:
      lines += [f'{path} {params[path].shape}' for path in some]
  return lines


def convert_back():
  """A checkpoint, with a prompter if given -> the original's file."""
  files.check_writable(_OUTPUT.value)
  state, meta, remembered = _read_back(_CHECKPOINT.value)
  told = {'model': meta, 'prompter': None}
  if _PROMPTER.value:
    if not meta['model'].get('entities'):
      raise ValueError(
        f'{_CHECKPOINT.value} has no head for entities, so it was not '
        'trained with a prompter; leave --prompter out.'
      )
    teacher, told['prompter'], _ = _read_back(_PROMPTER.value)
    _check_prompter(meta, told['prompter'])
    state |= {f'prompter.{name}': array for name, array in teacher.items()}
  arrays, absent = kept.in_order(state, remembered)
  assemble.check_finite([name for name, array in arrays.items() if not np.isfinite(array).all()])
  files.write_tensors(_OUTPUT.value, arrays, kept.tell(told))
  size = sum(array.nbytes for array in arrays.values())
  print(f'{len(arrays)} tensors, {size / 2**20:.1f} MiB')
  if absent:
    _print_list('in the file that was converted, and not in this one', absent)
    if any(name.startswith('prompter.') for name in absent):
      print('  (pass --prompter to add the prompter)')
  if not remembered.order:
    print(
      f'{_CHECKPOINT.value} keeps nothing of a file that it was converted '
      'from, so tensors that the original has and never reads are not there; '
      'it loads without them (strict=False).'
    )
  print(f'Written: {_OUTPUT.value}')


def _check_prompter(meta, prompter):
  if prompter['config']['task'] != 'prompter':
    raise ValueError(
      f'--prompter={_PROMPTER.value} is of task '
      f'{prompter["config"]["task"]!r}, and no prompter; pass the run of '
      'configs/pretrain_prompter.py that --checkpoint was trained with. Its '
      f'config says {meta["config"]["prompter"]["checkpoint"]!r}.'
    )
  if 'entities' in meta:
    identity.check_teacher(meta, _PROMPTER.value, meta['entities'])


def _read_back(checkpoint):
  """Returns arrays by the original's names, the stored JSON, what was kept."""
  found = checkpoints.find(checkpoint)
  meta = found.meta
  config = AlproConfig.from_dict(meta['model'])
  params = found.load_params(abstract_params(Alpro(config), sharding.make_mesh()))
  remembered = kept.read(found.folder, meta)
  state = original.to_original(params, config)
  return kept.complete(state, remembered, config), meta, remembered


def _options(task, told):
  """Returns the options that are stored beside the sizes of the model."""
  if _CONFIG.value is not None:
    config = _CONFIG.value.copy_and_resolve_references()
    if (config.task, task) == ('pretrain', 'prompter'):
      config.task = task  # A pre-trained file has its prompter in it.
    if config.task != task:
      raise ValueError(
        f'--config has task={config.task!r}, but the weights are for '
        f'{task!r}; pass a config of that task, or none.'
      )
  elif told:
    config = ml_collections.ConfigDict(told['config'])
  else:
    config = _CONFIGS[task].get_config()
    config.model.dtype = 'float32'
    with config.ignore_type():
      config.data.sources = config.eval.sources = ()
  config.model.video.attention = 'divided'
  config.train.init_from = ''
  config.train.steps = 0
  config.data.tokenizer = _tokenizer_file()
  if not told or _ANSWERS.value:
    config.data.answers = _ANSWERS.value
  if told and _CONFIG.value is not None:
    # It may be of another size.
    for part in ('video', 'text'):
      config.model[part].update(
        {name: value for name, value in told['model'][part].items() if name in config.model[part]}
      )
    config.model.embed_size = told['model']['embed_size'] or config.model.embed_size
  return config


def _set_sizes(config, video, text):
  config.model.video.update(video)
  config.model.text.update(text)
  # One backbone alone: the other encoder gets the same width.
  for part, own, other in (('video', video, text), ('text', text, video)):
    if not own:
      config.model[part].update({name: other[name] for name in ('width', 'heads', 'mlp_size')})
  _show(config, config.model.video.image_size, config.model.video.frames)


def _show(config, image_size, frames):
  """Makes the options about pixels follow the model."""
  data = config.data
  data.resize = round(data.resize * image_size / data.image_size)
  data.image_size = image_size
  data.frames = frames


def _resize(params, config, notes):
  """Fits tables to --image_size and --frames, and the options with them."""
  video = config.model.video
  if _IMAGE_SIZE.value % video.patch_size:
    raise ValueError(
      f'--image_size={_IMAGE_SIZE.value} must be a multiple of '
      f'{video.patch_size}, the side of a patch.'
    )
  video.image_size = _IMAGE_SIZE.value or video.image_size
  video.frames = _FRAMES.value or video.frames
  if _IMAGE_SIZE.value or _FRAMES.value:
    _show(config, video.image_size, video.frames)
  params, lines = assemble.resize(
    params,
    positions=(video.image_size // video.patch_size) ** 2,
    frames=video.frames,
    rule=_RESIZE_RULE.value,
  )
  if lines:
    notes['resized'] = lines
  return params


def _shapes(config):
  """{path: shape} of every parameter of a model."""
  abstract = abstract_params(Alpro(config), sharding.make_mesh())
  flat = flatten_dict(abstract, sep='/')
  return {path: leaf.shape for path, leaf in flat.items()}


def _tokenizer_file():
  if not _TOKENIZER.value and _BERT.value:
    beside = files.find(_BERT.value).with_name('vocab.txt')
    if beside.is_file():
      return str(beside)
  return _TOKENIZER.value


def _load_tokenizer():
  if not _tokenizer_file():
    raise ValueError(
      '--tokenizer is needed: the vocab.txt of the BERT that the weights '
      "come from (the original's is bert-base-uncased), since word vectors "
      'mean nothing without it.'
    )
  if not pathlib.Path(_tokenizer_file()).is_file():
    raise FileNotFoundError(
      f'--tokenizer={_tokenizer_file()} is not there; expected the vocab.txt '
      'that the weights were trained with, or a SentencePiece .model file.'
    )
  return tokens.load_tokenizer(_tokenizer_file())


def _check_tokenizer(tokenizer, text):
  if tokenizer.vocab_size != text['vocab_size']:
    raise ValueError(
      f'{_tokenizer_file()} has {tokenizer.vocab_size} words, but the '
      f'weights have vectors for {text["vocab_size"]}; pass the vocab.txt '
      'that they were trained with as --tokenizer.'
    )


def _check_free(folder):
  if (folder / checkpoints.FOLDER).exists():
    raise FileExistsError(
      f'{folder} holds checkpoints already; choose another --output, or delete it.'
    )
  whole.check_free(folder)


def _is_there(where, one, tokenizer):
  """Whether the same checkpoint was made by a command that was broken off."""
  if (where / kept.FILE).is_file():
    with contextlib.suppress(FileNotFoundError, checkpoints.DamagedCheckpointError):
      if identity.of_checkpoint(where)['digest'] == identity.digest(
        _meta(one, tokenizer), digests.of_arrays(one.params)
      ):
        return True
  _check_free(where)
  return False


def _meta(one, tokenizer):
  """Returns the JSON that is stored with a checkpoint."""
  meta = identity.describe(one.config, one, tokenizer, sources=())
  # What it was trained on and with, where the file says so.
  return meta | {
    name: one.told[name]
    for name in ('data', 'start', 'entities', 'templates', 'prompter')
    if name in one.told
  }


def _save(here, where, one, tokenizer, beside=()):
  """Writes a checkpoint of step 0, like one of a training.

  Args:
    here: folder to write to.
    where: the name that it will have.
    one: Converted.
    tokenizer: its tokenizer.
    beside: {name: digest} of what lies beside it.
  """
  if names := one.told.get('entities'):
    entity_lists.write_entities(((name, '') for name in names), here / 'entities.txt')
    one.config.prompter.entities = str(where / 'entities.txt')
    one.config.prompter.num_entities = 0
  origin = {
    name: flags.FLAGS[name].value for name in ('original', 'vit', 'bert') if flags.FLAGS[name].value
  }
  meta = _meta(one, tokenizer) | {'converted': {'from': origin, **one.notes, **dict(beside)}}
  store = checkpoints.Checkpoints(here)
  params = jax.tree.map(jnp.asarray, one.params)
  store.save(TrainState(jnp.zeros((), jnp.int32), params, ()), meta)
  store.close()
  workdir.write_json(here / 'config.json', workdir.plain(one.config))


def _report(folder, one):
  config = one.model.config
  count = sum(array.size for array in jax.tree.leaves(one.params))
  video, text = config.video, config.text
  print(
    f'{one.config.task}: {count:,} parameters; video {video.width} x '
    f'{video.depth}, {video.heads} heads, {video.frames} frames of '
    f'{video.image_size} in patches of {video.patch_size}; text {text.width} '
    f'x {text.depth}, {text.heads} heads, fusion from layer '
    f'{text.fusion_layer}, {text.vocab_size} words'
  )
  for what, lines in one.notes.items():
    _print_list(what, lines)
  print(f'Written: {folder}')


def _print_list(what, lines):
  print(f'  {what}: {len(lines)}')
  for line in lines:
    print(f'    {printable(line)}')


if __name__ == '__main__':
  flags.adopt_module_key_flags(command)
  app.run(main, flags_parser=command.parse)
