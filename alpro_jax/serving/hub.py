"""A trained model as a folder that others can load: the Hugging Face Hub's layout.

  model.safetensors   parameters, by name, as they were trained
  config.json         sizes, options, labels, digests: all that loading needs
  tokenizer.model     or vocab.txt; tower.json, entities.txt and answers.txt, if it has any
  README.md           the model card
  familiarity.npz     what it was trained on, if that was summarised

The folder knows no path of the machine that wrote it.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jinja2
import numpy as np

from alpro_jax import files
from alpro_jax.data import tokens
from alpro_jax.evaluation import familiarity
from alpro_jax.evaluation.trained import TrainedModel
from alpro_jax.serving.layouts import CONFIG, FORMAT, PARAMS
from alpro_jax.train import identity, trees
from alpro_jax.weights import released
from alpro_jax.weights.tensor_files import write_tensors

CARD = 'README.md'
_TEMPLATE = 'model_card.md.jinja'


def write(
  trained: TrainedModel, folder, *, licence: str = '', figures: Sequence[Any] = (), notes: str = ''
) -> None:
  """Writes a model to a new folder.

  Args:
    trained: the model, from a checkpoint.
    folder: to make.
    licence: of the model, as the Hub calls it ('apache-2.0'); '' states that of released
      weights, and else none.
    figures: card.json files of launch/evaluate.py, of this very model.
    notes: Markdown for the end of the model card.
  Raises:
    FileExistsError: if the folder is there and not empty.
    ValueError: if the model is still in training or an export, or figures are another's.
  """
  if trained.meta is None or trained.origin is None:
    raise ValueError('a model in the middle of training has no checkpoint to be written from.')
  if 'data' not in trained.meta:
    raise ValueError(
      f'{trained.origin.path} is an export, which does not say what it was trained on; save the '
      'checkpoint that it was made from.'
    )
  tokenizer = tokens.NAMES[trained.tokenizer.kind]
  origin = trained.meta.get('converted', {}).get('from', {})
  # What lies between a release and another model has other figures than those published.
  between = 'interpolated' in trained.meta
  release = None if between else released.RELEASES.get(origin.get('released'))
  with files.folder(folder) as here:
    params = trees.by_name(trained.params)
    arrays = {name: np.asarray(jax.device_get(leaf)) for name, leaf in params.items()}
    write_tensors(here / PARAMS, arrays, {'format': 'np', 'library': 'alpro_jax'})
    words = identity.words(trained.meta, trained.tokenizer)
    for name, content in words.items():
      (here / name).write_bytes(content)
    names = [PARAMS, *words]
    if trained.familiarity:
      trained.familiarity.save(here)
      names.append(familiarity.FILE)
    config: dict[str, Any] = {
      'library': 'alpro_jax',
      'format': FORMAT,
      'step': trained.origin.step,
      'tokenizer': tokenizer,
      'sha256': {name: files.sha256(here / name) for name in names},
      'meta': _without_paths(trained.meta, tokenizer),
    }
    (here / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True), encoding='utf-8')
    environment = jinja2.Environment(
      loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
      undefined=jinja2.StrictUndefined,
      keep_trailing_newline=True,
    )
    card = environment.get_template(_TEMPLATE).render(
      name=pathlib.Path(folder).name,
      step=trained.origin.step,
      count=sum(array.size for array in arrays.values()),
      meta=config['meta'],
      data=config['meta']['config']['data'],
      entities=trained.meta.get('entities', ()),  # What others trained names none.
      sha256=config['sha256'][PARAMS],
      abilities=_abilities(trained),
      familiarity=trained.familiarity,
      trained_on=_trained_on(config['meta']),
      licence=licence or (released.LICENCE if release else ''),
      release=release,
      image_text='image_text' in origin,
      figures=[_read_figures(path, trained) for path in figures],
      notes=notes,
    )
    (here / CARD).write_text(card, encoding='utf-8')


def _abilities(trained):
  """What the model was trained for, in words."""
  known = {
    'similarity of texts and videos': trained.model.config.embed_size > 0,
    'matching': trained.knows_matching,
    'answers to questions': trained.answers_questions,
  }
  return [what for what, can in known.items() if can]


def _trained_on(meta):
  """The sets that batches came from, each once, with the digest of its records."""
  sources = meta['config']['data'].get('sources', ())
  known = meta['data'] or [''] * len(sources)
  return dict.fromkeys(
    f'{source["path"]}, {source["split"]}' + (f' (`{digest[:12]}`)' if digest else '')
    for source, digest in zip(sources, known, strict=True)
  )


def _read_figures(path, trained):
  """What card.json says; it must be about this checkpoint."""
  card = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
  about = card.get('checkpoint') or {}
  if about.get('digest') != trained.origin.digest:
    raise ValueError(
      f'{path} is about {about.get("path", "no checkpoint")}, step {about.get("step")}, and not '
      f'about {trained.origin.path}, step {trained.origin.step}; evaluate this one.'
    )
  return card


def _without_paths(stored: Mapping[str, Any], tokenizer: str) -> dict[str, Any]:
  """A copy of what is stored with a checkpoint, without where files lay."""
  meta = json.loads(json.dumps(dict(stored)))
  config = meta['config']
  config['data']['tokenizer'] = tokenizer
  if config['data'].get('tower_tokenizer'):
    config['data']['tower_tokenizer'] = tokens.NAMES['tower']
  for part in ('data', 'eval'):
    for source in config[part].get('sources', ()):
      source['path'] = pathlib.PurePath(source['path']).name
  for part, name in (
    ('train', 'init_from'),
    ('prompter', 'checkpoint'),
    ('prompter', 'entities'),
    ('prompter', 'prompts'),
    ('data', 'path'),
    ('data', 'answers'),
    ('data', 'features'),
    ('data', 'cache_dir'),
    ('eval', 'folder'),
  ):
    if config.get(part, {}).get(name):
      config[part][name] = pathlib.PurePath(config[part][name]).name
  for name in ('prompter', 'start'):
    if isinstance(meta.get(name), dict):
      meta[name] = {key: x for key, x in meta[name].items() if key not in ('path', 'given')}
  for name in ('start', 'tuned'):
    meta.get('interpolated', {}).get(name, {}).pop('path', None)
  if converted := meta.get('converted'):
    origin = converted['from'].items()
    converted['from'] = {name: pathlib.PurePath(path).name for name, path in origin}
  meta.pop('arrays', None)
  return meta
