"""Published weights to checkpoints, and checkpoints to the original's file.

What shapes do not say and decides what a model computes is asked for, never guessed in silence.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from alpro_jax import files, sharding
from alpro_jax.data import answers as answer_lists
from alpro_jax.data import checksum, tokens
from alpro_jax.models.alpro import Alpro, AlproConfig
from alpro_jax.tasks.shared import abstract_params, init_model, model_config
from alpro_jax.train import checkpoints, digests, identity, run_folder
from alpro_jax.train.options import with_new_names
from alpro_jax.train.state import TrainState, create_state
from alpro_jax.weights import kept, sizes, sources, tables, tensor_files


@dataclasses.dataclass(frozen=True)
class Options:
  """The flags of launch/convert.py, which explains them; '' and 0 are not given.

  `paper_config` gives the options of a task where neither `config` nor the file says any;
  `card` is the README.md to lie beside the checkpoint.
  """

  output: str
  paper_config: Callable[[str], ml_collections.ConfigDict]
  config: ml_collections.ConfigDict | None = None
  original: str = ''
  vit: str = ''
  bert: str = ''
  image_text: str = ''
  open_clip: str = ''
  tower_tokenizer: str = ''
  tokenizer: str = ''
  answers: str = ''
  image_size: int = 0
  frames: int = 0
  resize_rule: str = '2d'
  task: str = ''
  heads: int = 0
  fusion_layer: int = 0
  seed: int = 0
  released: str = ''
  card: str = ''


class Converted(NamedTuple):
  """A model on its way to a checkpoint.

  Attributes:
    folder: where it goes.
    model: an Alpro.
    params: nested arrays.
    config: its options.
    answers: that it chooses from.
    notes: {what happened: [lines]}, for the report and the checkpoint.
    meta: what was stored with the checkpoint that the file was made of, {} if it is not one of
      ours.
  """

  folder: pathlib.Path
  model: Alpro
  params: Any
  config: Any
  answers: tuple[str, ...]
  notes: dict[str, list[str]]
  meta: Mapping[str, Any]
  entities = None  # A file of others does not name them.
  negative_blocks = 1  # Nobody goes on with its training.


def from_original(options: Options) -> list[Converted]:
  """Writes a checkpoint of the original's file or LAVIS's, and one of the prompter in it."""
  folder = pathlib.Path(options.output)
  files.check_free(folder)
  tensors = tensor_files.open_tensors(options.original)
  meta = kept.stored_meta(tensor_files.read_metadata(options.original))
  said = meta['model']['task'] if meta else ''
  if said and options.task:
    raise ValueError(f'{options.original} says that its task is {said!r}; leave --task out.')
  task, own, prompter = sources.alpro(tensors, options.task or said)
  parts = [(folder, task, own, meta.get('model', {}))]
  if prompter:
    beside = folder.with_name(folder.name + '_prompter')
    parts.append((beside, 'prompter', prompter, meta.get('prompter') or {}))
  tokenizer = load_tokenizer(options)
  # Everything is read and checked before anything is written.
  converted = [_of_original(options, tokenizer, *part) for part in parts]
  if prompter:
    converted[0].config.prompter.checkpoint = str(beside)
  names = {tensor.names[0]: name for name, tensor in own.items()} | {
    tensor.names[0]: f'prompter.{name}' for name, tensor in prompter.items()
  }
  orders = [
    [(name, names[name], str(tensor.array.dtype)) for name, tensor in tensors.items()],
    # Of the prompter alone there was no file: its names have no prefix.
    [(name, name, str(tensor.array.dtype)) for name, tensor in prompter.items()],
  ]
  with contextlib.ExitStack() as stack:
    # The last one gets its name first: the model is there after all that it needs.
    for one, (_, _, part, _), order in zip(converted, parts, orders, strict=False):
      if one.folder == folder or not _is_there(one, tokenizer):
        draft = stack.enter_context(files.folder(one.folder))
        _, unused = tables.split(part, one.model.config)
        unread = {
          name: tensor
          for name, tensor in part.items()
          if (name in unused and not tables.derived(name))
          or ('cut' in one.notes and name.startswith('classifier.2.'))
        }
        save(draft, one, tokenizer, options, {kept.KEPT: kept.write(draft, order, unread)})
  return converted


def _of_original(options, tokenizer, folder, task, tensors, meta):
  """Reads one model of the original's file."""
  notes, labels = {}, sizes.head_sizes(tensors)['answers']
  answers = _answers(options, task, meta)
  if len(answers) > labels:
    raise ValueError(
      f'there are {len(answers)} answers, but classifier.2.weight of {options.original} chooses '
      f'from {labels}; pass the list it was trained with as --answers.'
    )
  if len(answers) < labels:  # Defect 24.
    notes['cut'] = [
      f'classifier.2: the last {labels - len(answers)} of {labels} labels, which no answer has'
    ]
    tensors = tensors | {
      name: tensor._replace(array=tensor.array[: len(answers)])
      for name, tensor in tensors.items()
      if name.startswith('classifier.2.')
    }
  config = stored_config(options, task, meta)
  if meta:
    _check_agreement(options, meta, tokenizer)
    values = meta['model']
  else:
    values = _infer_model(options, task, tensors, answers, config, notes)
    check_vocabulary(options, tokenizer, values['text'])
  model, params, _ = _read(options, tensors, values, config, notes)
  return Converted(folder, model, unflatten_dict(params, sep='/'), config, answers, notes, meta)


def _answers(options, task, meta):
  """Returns what a model chooses from; () if it does not answer questions."""
  if task != 'question_answering':
    if options.answers:
      raise ValueError(
        f'--answers is of question answering, but {options.original} is of {task!r}; leave it out.'
      )
    return ()
  if meta:
    return tuple(meta['answers'])
  if not options.answers:
    raise ValueError(
      f'{options.original} answers questions and does not say which answers its labels stand for; '
      'pass the ans2label.json that it was trained with as --answers.'
    )
  return answer_lists.read_answers(options.answers)


def _check_agreement(options, meta, tokenizer):
  """Refuses flags and files that contradict what a file says of itself."""
  video, text = meta['model']['video'], meta['model']['text']
  answers = answer_lists.read_answers(options.answers) if options.answers else ()
  for flag, given, said in (
    ('tokenizer', tokenizer.digest, meta['tokenizer']['digest']),
    ('heads', options.heads, video['heads']),
    ('heads', options.heads, text['heads']),
    ('fusion_layer', options.fusion_layer, text['fusion_layer']),
    ('answers', answers, tuple(meta['answers'])),
  ):
    if given and given != said:
      raise ValueError(
        f'--{flag} is {str(given)[:80]}, but {options.original} says {str(said)[:80]}; pass that '
        'of the run that it came from.'
      )


def _infer_model(options, task, tensors, answers, config, notes):
  """Returns the config of a model, as a dict, from shapes, flags and custom."""
  video = sizes.video_sizes(tensors, options.heads)
  text = sizes.text_sizes(tensors, options.heads, options.fusion_layer)
  heads, guessed = sizes.head_sizes(tensors), []
  if not options.heads:
    guessed.append(
      f'{video["heads"]} heads of attention, as all published models of {video["width"]} channels '
      'have (or pass --heads)'
    )
  if not options.fusion_layer:
    if text['depth'] != sizes.ORIGINAL_DEPTH:
      raise ValueError(
        f'which of the {text["depth"]} layers of the text encoder is the first that fuses cannot '
        'be seen from its tensors, and decides what it computes; pass --fusion_layer.'
      )
    guessed.append(
      f'fusion from layer {text["fusion_layer"]} of {text["depth"]}, as in the original (or pass '
      '--fusion_layer)'
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
  return model_config(config.model, text['vocab_size'], **own_heads).to_dict()


def from_backbones(options: Options) -> list[Converted]:
  """Writes a checkpoint to train from; what no backbone gives comes from the seed."""
  folder = pathlib.Path(options.output)
  files.check_free(folder)
  tensors, prefixes, left_out, notes, video, text = {}, [], (), {}, {}, {}
  config = stored_config(options, 'prompter', {})
  config.seed = options.seed
  if options.vit:
    source, video = open_backbone(options, 'vit', sources.vit, sizes.video_sizes, notes)
    prefixes.append('visual_encoder.')
    tensors |= source.tensors
    if source.copied:  # An image encoder knows no time.
      left_out = ('.temporal_fc.', '.time_embed')
      notes['copied'] = [f'{name} from {theirs}' for name, theirs in source.copied.items()]
  if options.bert:
    source, text = open_backbone(options, 'bert', sources.bert, sizes.text_sizes, notes)
    text['fusion_layer'] = options.fusion_layer or text['fusion_layer']
    prefixes += ['text_encoder.bert.']
    if any('.cls.predictions.' in name for name in source.tensors):
      prefixes += ['text_encoder.cls.predictions.']
    tensors |= source.tensors
  tokenizer = load_tokenizer(options)
  _set_sizes(config, video, text)
  check_vocabulary(options, tokenizer, text or {'vocab_size': tokenizer.vocab_size})
  values = model_config(config.model, tokenizer.vocab_size).to_dict()

  def optional(name):
    return not name.startswith(tuple(prefixes)) or any(part in name for part in left_out)

  model, params, absent = _read(options, tensors, values, config, notes, optional)
  fresh = create_state(
    lambda key: init_model(model, key), optax.identity(), sharding.make_mesh(), options.seed
  ).params
  params = flatten_dict(fresh, sep='/') | params
  notes['from the seed'] = grouped(absent, params)
  one = Converted(folder, model, unflatten_dict(params, sep='/'), config, (), notes, {})
  with files.folder(folder) as draft:
    save(draft, one, tokenizer, options)
  return [one]


def open_backbone(options, flag, name_tensors, find_sizes, notes):
  """Opens a backbone; returns its Source and sizes."""
  path, described = tensor_files.find(getattr(options, flag)), {}
  beside = path.with_name('config.json')
  if beside.is_file():
    described = checksum.read_json(beside)
  source = name_tensors(tensor_files.open_tensors(path), described)
  if options.heads and source.heads and options.heads != source.heads:
    raise ValueError(
      f'--heads={options.heads}, but what --{flag} names says {source.heads}; leave --heads out.'
    )
  heads = source.heads or options.heads
  try:
    found = find_sizes(source.tensors, heads)
  except ValueError as error:
    raise ValueError(f'{error} ({source.note}.)' if source.note else f'{error}') from error
  if source.note:
    notes.setdefault('config.json', []).append(source.note)
  if not heads:
    notes.setdefault('not said by the file', []).append(
      f'heads of attention of --{flag}: as all published models of that width have (or pass '
      '--heads)'
    )
  return source, found


def grouped(absent, params):
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


def stored_config(options, task, meta):
  """Returns the options that are stored beside the sizes of the model."""
  if options.config is not None:
    config = options.config.copy_and_resolve_references()
    if (config.task, task) == ('pretrain', 'prompter'):
      config.task = task  # A pre-trained file has its prompter in it.
    if config.task != task:
      raise ValueError(
        f'--config has task={config.task!r}, but the weights are for {task!r}; pass a config of '
        'that task, or none.'
      )
    if meta:  # It may be of another size.
      for part in ('video', 'text'):
        known = config.model[part]
        known.update({n: x for n, x in meta['model'][part].items() if n in known})
      config.model.embed_size = meta['model']['embed_size'] or config.model.embed_size
  elif meta:
    config = ml_collections.ConfigDict(with_new_names(meta['config']))
  else:
    config = options.paper_config(task)
    config.model.dtype = 'float32'
    with config.ignore_type():
      config.data.sources = config.eval.sources = ()
  config.model.video.attention = 'divided'
  config.train.update(init_from='', steps=0)
  config.data.tokenizer = _tokenizer_file(options)
  if not meta or options.answers:
    config.data.answers = options.answers
  return config


def _set_sizes(config, video, text):
  config.model.video.update(video)
  config.model.text.update(text)
  # One backbone alone: the other encoder gets the same width.
  for part, own, other in (('video', video, text), ('text', text, video)):
    if not own:
      config.model[part].update({name: other[name] for name in ('width', 'heads', 'mlp_size')})
  _set_pixels(config)


def _set_pixels(config):
  """Makes the options about pixels follow the model."""
  data, video = config.data, config.model.video
  data.resize = round(data.resize * video.image_size / data.image_size)
  data.image_size, data.frames = video.image_size, video.frames


def _read(options, tensors, values, config, notes, optional=lambda name: False):
  """Checks and reads a model, and fits it, and the options, to --image_size and --frames.

  Returns the Alpro, {path: array}, and the paths that no tensor is there for.
  """
  in_file = AlproConfig.from_dict(values)
  used, unused = tables.split(tensors, in_file)
  notes['not used'] = [f'{tensors[name].names[0]}: {why}' for name, why in unused.items()]
  rows = tables.rename_table(in_file)
  abstract = flatten_dict(abstract_params(Alpro(in_file), sharding.make_mesh()), sep='/')
  shapes = {path: leaf.shape for path, leaf in abstract.items()}
  absent = tables.check(used, rows, shapes, optional)
  params = tables.read_params(used, rows)

  video = config.model.video
  if options.image_size % video.patch_size:
    raise ValueError(
      f'--image_size={options.image_size} must be a multiple of {video.patch_size}, the side of a '
      'patch.'
    )
  if options.image_size or options.frames:
    video.image_size = options.image_size or video.image_size
    video.frames = options.frames or video.frames
    _set_pixels(config)
  patches = (video.image_size // video.patch_size) ** 2
  params, lines = tables.resize(params, patches, video.frames, options.resize_rule)
  if lines:
    notes['resized'] = lines
  shown = {name: video[name] for name in ('image_size', 'frames')}
  values = values | {'video': values['video'] | shown}
  return Alpro(AlproConfig.from_dict(values)), params, absent


def _tokenizer_file(options):
  if options.bert and not options.tokenizer:
    beside = tensor_files.find(options.bert).with_name('vocab.txt')
    return str(beside) if beside.is_file() else ''
  return options.tokenizer


def load_tokenizer(options):
  path = _tokenizer_file(options)
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(
      f'--tokenizer={path} is not there. --tokenizer is needed: the vocab.txt of the BERT that the '
      "weights come from (the original's is bert-base-uncased) or their SentencePiece model, since "
      'word vectors mean nothing without it.'
    )
  return tokens.load_tokenizer(path)


def check_vocabulary(options, tokenizer, text):
  """Raises ValueError for a tokenizer of other weights."""
  if tokenizer.vocab_size != text['vocab_size']:
    raise ValueError(
      f'{_tokenizer_file(options)} has {tokenizer.vocab_size} words, but the weights have vectors '
      f'for {text["vocab_size"]}; pass the vocab.txt that they were trained with as --tokenizer.'
    )


def _is_there(one, tokenizer):
  """Whether the same checkpoint was made by a command that was broken off."""
  if (one.folder / kept.FILE).is_file():
    with contextlib.suppress(FileNotFoundError, checkpoints.DamagedCheckpointError):
      made = identity.digest(_meta(one, tokenizer), digests.of_arrays(one.params))
      if identity.of_checkpoint(one.folder)['digest'] == made:
        return True
  files.check_free(one.folder)
  return False


def _meta(one, tokenizer):
  """Returns the JSON that is stored with a checkpoint."""
  # What it was trained on and with, where the file says so.
  trained = ('data', 'start', 'entities', 'templates', 'prompter')
  return identity.describe(one.config, one, tokenizer, sources=()) | {
    name: one.meta[name] for name in trained if name in one.meta
  }


def save(draft, one, tokenizer, options, beside: Mapping[str, str] = {}):
  """Writes a checkpoint of step 0, like one of a training, to a folder `draft`.

  `beside` has the digests of what lies beside it.
  """
  ways = 'released', 'original', 'vit', 'image_text', 'bert'
  origin = {n: x for n in ways if (x := getattr(options, n))}
  meta = _meta(one, tokenizer) | {'converted': {'from': origin, **one.notes, **beside}}
  store = checkpoints.Checkpoints(draft, words=identity.words(meta, tokenizer))
  params = jax.tree.map(jnp.asarray, one.params)
  store.save(TrainState(jnp.zeros((), jnp.int32), params, ()), meta)
  store.close()
  run_folder.write_json(draft / 'config.json', meta['config'])
  if options.card and one.folder == pathlib.Path(options.output):  # Not the prompter's.
    (draft / 'README.md').write_text(options.card, encoding='utf-8')
