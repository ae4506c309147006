"""A trained model as a folder that others can load: the Hugging Face Hub's layout.

  model.safetensors   parameters, by name, as they were trained
  config.json         sizes, options, labels, digests: all that loading needs
  tokenizer.model     or vocab.txt; entities.txt and answers.txt, if it has any
  README.md           the model card

The folder knows no path of the machine that wrote it.
"""

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jinja2
import numpy as np

from alpro_jax import files
from alpro_jax.data import tokens
from alpro_jax.evaluation.trained import TrainedModel
from alpro_jax.train import identity, trees
from alpro_jax.train.checkpoints import Checkpoint
from alpro_jax.weights.tensor_files import open_tensors, write_tensors

CONFIG, PARAMS, CARD = 'config.json', 'model.safetensors', 'README.md'
_TEMPLATE = 'model_card.md.jinja'
_FORMAT = 1


def write(
  trained: TrainedModel, folder, *, licence: str = '', figures: Sequence[Any] = (), notes: str = ''
) -> None:
  """Writes a model to a new folder.

  Args:
    trained: the model, from a checkpoint.
    folder: to make.
    licence: of the model, as the Hub calls it ('apache-2.0'); '' states none.
    figures: card.json files of launch/evaluate.py, of this very model.
    notes: Markdown for the end of the model card.
  Raises:
    FileExistsError: if the folder is there and not empty.
    ValueError: if the model is still in training, or figures are another's.
  """
  if trained.meta is None or trained.origin is None:
    raise ValueError('a model in the middle of training has no checkpoint to be written from.')
  tokenizer = tokens.NAMES[trained.tokenizer.kind]
  with files.folder(folder) as here:
    params = trees.by_name(trained.params)
    arrays = {name: np.asarray(jax.device_get(leaf)) for name, leaf in params.items()}
    write_tensors(here / PARAMS, arrays, {'format': 'np', 'library': 'alpro_jax'})
    words = identity.words(trained.meta, trained.tokenizer)
    for name, content in words.items():
      (here / name).write_bytes(content)
    config: dict[str, Any] = {
      'library': 'alpro_jax',
      'format': _FORMAT,
      'step': trained.origin.step,
      'tokenizer': tokenizer,
      'sha256': {name: files.sha256(here / name) for name in (PARAMS, *words)},
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
      sha256=config['sha256'][PARAMS],
      abilities=_abilities(trained),
      trained_on=_trained_on(config['meta']),
      licence=licence,
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


def is_model(folder) -> bool:
  """Whether a folder has this layout."""
  return all((pathlib.Path(folder) / name).is_file() for name in (CONFIG, PARAMS))


class HubFolder(Checkpoint):
  """What `write` wrote, as the checkpoint that trained.load takes."""

  @functools.cached_property
  def _stored(self):
    return json.loads((self.folder / CONFIG).read_text(encoding='utf-8'))

  @property
  def meta(self) -> dict[str, Any]:
    return {**self._stored['meta'], 'step': self._stored['step']}

  @property
  def words(self) -> pathlib.Path:
    return self.folder

  @property
  def digest(self) -> str:
    return self._stored['sha256'][PARAMS]

  def _load(self, item, wanted, *, new=(), unused=lambda name: False, resizable=()):
    stored = {name: x.array for name, x in open_tensors(self.folder / PARAMS).items()}
    missing = trees.check_fits(self.folder / PARAMS, stored, wanted, new, unused, resizable)
    placed = {
      name: jax.device_put(array, getattr(wanted.get(name), 'sharding', None))
      for name, array in stored.items()
    }
    return placed, missing


def find(folder) -> HubFolder:
  """Returns what `write` wrote, its files found as they were written.

  Raises:
    ValueError: if a file is not what was written, or the folder is another library's.
    FileNotFoundError: if a file is missing.
  """
  folder = pathlib.Path(folder).absolute()
  config = json.loads((folder / CONFIG).read_text(encoding='utf-8'))
  if config.get('library') != 'alpro_jax' or config.get('format') != _FORMAT:
    raise ValueError(
      f'{folder / CONFIG} is not of alpro_jax, format {_FORMAT}; weights of other libraries '
      'are converted by launch/convert.py.'
    )
  for name, wanted in config['sha256'].items():
    if (digest := files.sha256(folder / name)) != wanted:
      raise ValueError(
        f'{folder / name} has digest {digest}, {CONFIG} says {wanted}; get the folder again.'
      )
  return HubFolder(folder)


def _without_paths(stored: Mapping[str, Any], tokenizer: str) -> dict[str, Any]:
  """A copy of what is stored with a checkpoint, without where files lay."""
  meta = json.loads(json.dumps(dict(stored)))
  config = meta['config']
  config['data']['tokenizer'] = tokenizer
  for part in ('data', 'eval'):
    for source in config[part].get('sources', ()):
      source['path'] = pathlib.PurePath(source['path']).name
  for part, name in (
    ('train', 'init_from'),
    ('prompter', 'checkpoint'),
    ('prompter', 'entities'),
    ('data', 'answers'),
  ):
    if config.get(part, {}).get(name):
      config[part][name] = pathlib.PurePath(config[part][name]).name
  for name in ('prompter', 'start'):
    if isinstance(meta.get(name), dict):
      meta[name] = {key: x for key, x in meta[name].items() if key not in ('path', 'given')}
  meta.pop('arrays', None)
  return meta
