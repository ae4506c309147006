"""Weights of image-text models to a checkpoint: what today's retrieval of videos starts from.

At the start the model is the image model: its feature of a clip is the mean of those of its frames.
"""

import importlib.util
import pathlib
import re

import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from alpro_jax import files, sharding
from alpro_jax.data import checksum, tokens, tower_tokens
from alpro_jax.models.alpro import Alpro
from alpro_jax.tasks.shared import abstract_params, init_model, model_config
from alpro_jax.train.state import create_state
from alpro_jax.weights import convert, sizes, sources, tables, tensor_files, towers

FRAMES = 4  # Of a clip, unless asked for another number.
# Parameters that image-text models lack.
_OF_TIME = r'.*/(temporal_.*|times)'
# Tensors that are no parameters of ours, beside those that tables.py knows.
_UNUSED = {
  r'input_resolution|context_length|vocab_size': 'a size, which shapes tell too',
  r'.*\brope\..*': 'angles of rotary positions, which follow from the sizes',
}
_WORD_GUESSES = 'text_encoder.cls.'  # BERT's head, which not every file has.


def from_image_text(options: convert.Options) -> list[convert.Converted]:
  """Writes a checkpoint of both towers, and of a BERT that reads texts for the fusion encoder.

  Without a BERT the model contrasts, and does nothing else.

  Raises:
    ValueError: naming every tensor that is missing, unknown or of another shape, or what the files
      do not say.
  """
  folder = pathlib.Path(options.output)
  files.check_free(folder)
  path = tensor_files.find(options.image_text)
  found = towers.find(tensor_files.open_tensors(path), _read_said(path, options), options.heads)
  notes = {'not said by the file': found.notes} if found.notes else {}
  config = convert.stored_config(options, 'prompter', {})
  if config.model.video.encoder != 'vit':
    config.model = options.paper_config('prompter').model
  config.seed = options.seed
  tower = _load_tower_tokenizer(options, path, found)
  _cut_words(found, tower, notes)
  _set_options(config, found, options)
  config.data.tower_tokenizer = str(tower.path)
  if options.bert:
    source, text = convert.open_backbone(options, 'bert', sources.bert, sizes.text_sizes, notes)
    text['fusion_layer'] = options.fusion_layer or text['fusion_layer']
    config.model.text.update(text)
    words = convert.load_tokenizer(options)
    convert.check_vocabulary(options, words, text)
    tokenizer, bert = tokens.Pair(words, tower, config.data.max_tower_tokens), source.tensors
  else:
    with config.unlocked():
      del config.model['text']
    config.data.max_text_tokens = config.data.max_tower_tokens
    config.eval.scoring = 'similarity'
    tokenizer, bert = tower, {}
  model, params = _read(config, found, tokenizer, bert, notes, options)
  one = convert.Converted(folder, model, unflatten_dict(params, sep='/'), config, (), notes, {})
  with files.folder(folder) as draft:
    convert.save(draft, one, tokenizer, options)
  return [one]


def _read_said(path, options):
  """Returns what JSON files beside the weights say, by their names."""
  names = towers.TRANSFORMERS, towers.OPEN_CLIP, towers.PREPROCESSOR
  beside = {name: path.with_name(name) for name in names}
  said = {name: checksum.read_json(file) for name, file in beside.items() if file.is_file()}
  if options.open_clip:
    file = pathlib.Path(options.open_clip)
    package = importlib.util.find_spec('open_clip')
    if not file.is_file() and package and package.origin:
      file = pathlib.Path(package.origin).parent / 'model_configs' / f'{options.open_clip}.json'
    if not file.is_file():
      raise FileNotFoundError(
        f'--open_clip={options.open_clip} is no file, and no config of an installed open_clip; '
        f"pass an {towers.OPEN_CLIP}, or one of open_clip's model_configs."
      )
    described = checksum.read_json(file)
    said[towers.OPEN_CLIP] = described if 'model_cfg' in described else {'model_cfg': described}
  return said


def _load_tower_tokenizer(options, path, found):
  """Opens what the text tower was trained to read, and checks that it is that."""
  text = found.text_tower
  tower = tower_tokens.load(
    options.tower_tokenizer or path.parent, family=found.tokenizer, context=text['max_positions']
  )
  advice = 'pass the tokenizer that they were trained with as --tower_tokenizer'
  if tower.vocab_size > text['vocab_size']:
    raise ValueError(
      f'{tower.path} has {tower.vocab_size} ids, but the weights have vectors for '
      f'{text["vocab_size"]}; {advice}.'
    )
  if text['pooling'] == 'end' and tower.rules.end != text['end_id']:
    raise ValueError(
      f'a text ends with the id {tower.rules.end} by {tower.path}, but the weights look for '
      f'{text["end_id"]}; {advice}.'
    )
  return tower


def _cut_words(found, tower, notes):
  """Leaves out the vectors of words that no text has, since ids are those of the tokenizer."""
  words, ids = found.text_tower['vocab_size'], tower.vocab_size
  if words > ids:
    name = next(row.original for row in found.rows if row.ours == ('text_tower/words',))
    notes['cut'] = [f'{name}: the last {words - ids} of {words} words, which no text has']
    found.tensors[name] = found.tensors[name]._replace(array=found.tensors[name].array[:ids])
    found.text_tower['vocab_size'] = ids


def _set_options(config, found, options):
  """Makes the stored options those of the weights, at the size they were trained at."""
  config.model.video.update(found.video | {'temporal_fc_std': 0.0, 'time_std': 0.0})
  config.model.text_tower.update(found.text_tower)
  config.model.update(found.model)
  if config.model.logit_bias is not None:  # To train it further as it was.
    config.loss.vtc_form = 'sigmoid'
  video, data = config.model.video, config.data
  data.frames = video.frames = options.frames or FRAMES
  data.image_size, data.resize = video.image_size, found.resize or video.image_size
  data.resize_mode = found.resize_mode
  data.max_tower_tokens = config.model.text_tower.max_positions


def _read(config, found, tokenizer, bert, notes, options):
  """Returns the Alpro and its parameters by path; adds notes about where these are from."""
  model = Alpro(model_config(config.model, tokenizer.vocab_size))
  tensors = found.tensors | bert
  used, unused = tables.split(tensors, model.config)
  for pattern, why in _UNUSED.items():
    names = [name for name in used if re.fullmatch(pattern, name)]
    unused |= dict.fromkeys(names, why)
    used = {name: used[name] for name in used if name not in names}
  notes['not used'] = [f'{tensors[name].names[0]}: {why}' for name, why in unused.items()]
  rows = found.rows + (tables.bert_table(model.config) if bert else [])
  abstract = flatten_dict(abstract_params(model, sharding.make_mesh()), sep='/')
  guesses = any(name.startswith(_WORD_GUESSES) for name in bert)
  tables.check(
    used,
    rows,
    {path: leaf.shape for path, leaf in abstract.items()},
    optional=lambda name: name.startswith(_WORD_GUESSES) and not guesses,
  )
  params = tables.read_params(used, rows)
  params['temperature'] = np.exp(-params['temperature'])
  low, high = model.config.temperature_range
  if not low <= params['temperature'] <= high:
    raise ValueError(
      f'logit_scale is a temperature of {params["temperature"]:.3g}, expected {low} to {high}; '
      'pass a config with another model.temperature_range as --config.'
    )
  if options.image_size:
    params = _resize(config, params, options, notes)
    model = Alpro(model_config(config.model, tokenizer.vocab_size))
  fresh = create_state(
    lambda key: init_model(model, key), optax.identity(), sharding.make_mesh(), options.seed
  ).params
  params = flatten_dict(fresh, sep='/') | params
  notes['zero, so that a clip starts out as its frames'] = ['times; temporal_fc of every block']
  absent = [path for path in abstract if path not in {x for row in rows for x in row.ours}]
  notes['from the seed'] = [
    'temporal_norm and temporal_attention of every block',
    *convert.grouped([path for path in absent if not re.fullmatch(_OF_TIME, path)], params),
  ]
  return model, params


def _resize(config, params, options, notes):
  """Fits positions, and the options, to --image_size."""
  video, data = config.model.video, config.data
  if options.image_size % video.patch_size or video.positions != 'absolute':
    raise ValueError(
      f'--image_size={options.image_size} must be a multiple of {video.patch_size}, the side of a '
      'patch, and is for absolute positions alone: rotary ones are scaled to any image, so leave '
      'it out and set data.image_size where the model is used.'
    )
  data.resize = round(data.resize * options.image_size / data.image_size)
  data.image_size = video.image_size = options.image_size
  params, notes['resized'] = tables.resize(
    params, (video.image_size // video.patch_size) ** 2, video.frames, options.resize_rule
  )
  return params
