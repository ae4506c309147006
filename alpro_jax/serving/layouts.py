"""Models that are stored otherwise than runs store them, as checkpoints to load.

HubFolder      what hub.write wrote, the layout of the Hugging Face Hub
ExportFolder   what export.write wrote; its parameters, not its programs, are used
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from alpro_jax import files
from alpro_jax.serving import alpro_loader
from alpro_jax.train import trees
from alpro_jax.train.checkpoints import Checkpoint
from alpro_jax.train.identity import TOKENIZERS
from alpro_jax.train.options import with_new_names
from alpro_jax.weights.tensor_files import open_tensors

CONFIG, PARAMS = 'config.json', 'model.safetensors'
FORMAT = 1  # Of CONFIG.


class _Folder(Checkpoint):
  """One whose parameters are arrays by name in one file, its words beside it."""

  file: str

  def __init__(self, folder: pathlib.Path):
    super().__init__(folder)
    self._check()

  def _check(self) -> None:
    """Raises ValueError if a file is not what was written."""
    raise NotImplementedError

  def _arrays(self) -> Mapping[str, np.ndarray]:
    raise NotImplementedError

  @property
  def words(self) -> pathlib.Path:
    return self.folder

  def _load(self, item, wanted, *, new=(), unused=lambda name: False, resizable=()):
    stored, where = self._arrays(), self.folder / self.file
    missing = trees.check_fits(where, stored, wanted, new, unused, resizable)
    placed = {
      name: jax.device_put(array, getattr(wanted.get(name), 'sharding', None))
      for name, array in stored.items()
    }
    return placed, missing


class HubFolder(_Folder):
  """A folder in the layout of the Hugging Face Hub; its files are those of its digests.

  Raises:
    ValueError: if a file is not what was written, or the folder is another library's.
    FileNotFoundError: if a file is missing.
  """

  file = PARAMS

  def _check(self):
    stored = self._stored
    if stored.get('library') != 'alpro_jax' or stored.get('format') != FORMAT:
      raise ValueError(
        f'{self.folder / CONFIG} is not of alpro_jax, format {FORMAT}; weights of other libraries '
        'are converted by launch/convert.py.'
      )
    for name, wanted in stored['sha256'].items():
      if (digest := files.sha256(self.folder / name)) != wanted:
        raise ValueError(
          f'{self.folder / name} has digest {digest}, {CONFIG} says {wanted}; get the folder again.'
        )

  @functools.cached_property
  def _stored(self):
    return json.loads((self.folder / CONFIG).read_text(encoding='utf-8'))

  @property
  def meta(self) -> dict[str, Any]:
    meta = self._stored['meta']
    config = with_new_names(meta['config'])
    return {**meta, 'config': config, 'step': self._stored['step']}

  @property
  def digest(self) -> str:
    return self._stored['sha256'][PARAMS]

  def _arrays(self):
    return {name: tensor.array for name, tensor in open_tensors(self.folder / PARAMS).items()}


class ExportFolder(_Folder):
  """An export: encoders, and the head for match or answers. Heads of training alone are gone.

  Raises:
    ValueError: if a file is not what was written, or lies elsewhere.
    FileNotFoundError: if a file is missing.
  """

  def _check(self):
    alpro_loader.read_manifest(self.folder)

  @functools.cached_property
  def _manifest(self):
    return alpro_loader.read_manifest(self.folder, verify=False)

  @property
  def file(self) -> str:
    return self._manifest['parameters']['file']

  @functools.cached_property
  def meta(self) -> dict[str, Any]:
    stored, shown = self._manifest, self._manifest['preprocessing']
    text, can = stored['text'], stored['programs']
    own = {'mlm': False, 'entities': 0, 'match': 'match' in can}
    data = {name: shown[name] for name in ('frames', 'image_size', 'resize', 'resize_mode')}
    data |= {'max_text_tokens': text['max_tokens'], 'tokenizer': text['file'], 'answers': ''}
    read = [x for name in ('text', 'tower') if (x := stored.get(name))]
    data['max_tower_tokens'] = read[-1]['max_tokens']
    return {
      'step': stored['source']['step'] or 0,
      'model': stored['model'] | own,
      **{
        name: {
          'digest': stored['files'][one['file']]['sha256'],
          'vocab_size': one['vocab_size'],
          'special': one['special'],
        }
        for name, one in zip(TOKENIZERS, read, strict=False)
      },
      'answers': stored['answers'],
      'entities': stored.get('entities', []),
      'templates': stored.get('templates', {}),
      'config': {
        'task': stored['source']['task'],
        'model': stored['model'] | own,
        'data': data | {'eval_sampling': 'uniform'},
        'loss': {'vtm': float('match' in can), 'mlm': 0.0, 'pem': 0.0},
        'eval': {},
      },
    }

  @property
  def digest(self) -> str:
    return files.sha256(self.folder / alpro_loader.MANIFEST)

  def _arrays(self):
    with np.load(self.folder / self.file) as stored:
      return dict(stored)


def find(folder) -> Checkpoint | None:
  """Returns the model of a folder in one of these layouts, None of any other folder."""
  folder = pathlib.Path(folder).absolute()
  if is_hub(folder):
    return HubFolder(folder)
  return ExportFolder(folder) if (folder / alpro_loader.MANIFEST).is_file() else None


def is_hub(folder: pathlib.Path) -> bool:
  """Whether a folder has the layout of the Hugging Face Hub."""
  return all((folder / name).is_file() for name in (CONFIG, PARAMS))
