"""The way back: a checkpoint as a file of the original's, the same that it was made of.

Such a file has tensors that no model here has, because nothing reads them. They lie beside the
checkpoint, with the file's names, order and types; what follows from other tensors is made again.
And tensors do not tell task, heads, options, tokenizer and labels of a model: what was stored with
a checkpoint goes into its file as well.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from alpro_jax import sharding
from alpro_jax.files import sha256
from alpro_jax.models.alpro import Alpro, AlproConfig
from alpro_jax.tasks.shared import abstract_params
from alpro_jax.train import checkpoints, identity
from alpro_jax.weights import tables, tensor_files
from alpro_jax.weights.tensor_files import Tensor

FILE = 'original.safetensors'
# Under this name, as JSON, in the metadata of a file.
_KEY, _FORMAT = 'alpro_jax', 1
# Where a checkpoint's meta have the digest of FILE, in `converted`.
KEPT = 'kept'
_NEEDED = {'task', 'model', 'tokenizer', 'config'}


class Kept(NamedTuple):
  """Attributes:
  order: (name in the file, name in the original, type) of its tensors.
  tensors: that no model here has, by their names in the original.
  """

  order: tuple[tuple[str, str, str], ...] = ()
  tensors: Mapping[str, np.ndarray] = {}


def write(folder, order, tensors: Mapping[str, Tensor]) -> str:
  """Writes FILE to a folder, see Kept; returns its sha256, by which the checkpoint knows it."""
  path = pathlib.Path(folder) / FILE
  arrays = {name: tensor.array for name, tensor in tensors.items()}
  tensor_files.write_tensors(path, arrays, {'order': json.dumps(order)})
  return sha256(path)


def read(step, meta: Mapping[str, Any]) -> Kept:
  """Reads what `write` wrote; nothing if the model was trained here.

  Args:
    step: folder of the checkpoint.
    meta: what was stored with it.
  Raises:
    ValueError: if it is damaged, or of another conversion.
  """
  # WORKDIR/checkpoints/STEP; a checkpoint that was exported has no workdir.
  path = pathlib.Path(step).parents[1] / FILE
  converted = meta.get('converted', {})
  # Conversions of earlier versions name no digest.
  if not path.is_file() or not (KEPT in converted or converted.get('from', {}).get('original')):
    return Kept()
  if KEPT in converted and sha256(path) != converted[KEPT]:
    raise ValueError(
      f'{path} is damaged, or of another conversion than {step}; copy it again, or remove it to do '
      'without.'
    )
  order = json.loads(tensor_files.read_metadata(path)['order'])
  tensors = tensor_files.open_tensors(path)
  return Kept(tuple(map(tuple, order)), {n: t.array for n, t in tensors.items()})


def stored_meta(metadata: Mapping[str, str]) -> dict[str, Any]:
  """What a file of ours says of itself, {} of another.

  Returns:
    what was stored with the checkpoints of the `model` and the `prompter` in it, or None.
  Raises:
    ValueError: if a newer version wrote it, or it is damaged.
  """
  if _KEY not in metadata:
    return {}
  try:
    found = json.loads(metadata[_KEY])
    parts = [found['model'], found['prompter'] or found['model']]
    known = found['format'] == _FORMAT and all(part.keys() >= _NEEDED for part in parts)
  except (ValueError, KeyError, TypeError, AttributeError):
    known = False
  if not known:
    raise ValueError(
      f'what the file says of itself ({metadata[_KEY][:60]!r}...) is not of format {_FORMAT}, '
      'which this version reads; write it again, or use the version that wrote it.'
    )
  return found


def to_original(
  checkpoint, output, prompter=None
) -> tuple[dict[str, np.ndarray], list[str], bool, dict[str, Any] | None]:
  """Writes a checkpoint, with its prompter if given, as the original's file.

  Returns:
    the arrays, by name in the file; names of the file that was converted and that there is no array
    for; whether the checkpoint came from such a file; the prompter that the checkpoint was
    pre-trained with, as identity.of_checkpoint describes it, if it is known and not in the file.
  """
  tensor_files.check_writable(output)
  state, meta, kept = _read_back(checkpoint)
  teacher_meta = None
  if prompter:
    if not meta['model'].get('entities'):
      raise ValueError(
        f'{checkpoint} has no head for entities, so it was not trained with a prompter; leave '
        '--prompter out.'
      )
    teacher, teacher_meta, _ = _read_back(prompter)
    if (task := teacher_meta['config']['task']) != 'prompter':
      raise ValueError(
        f'--prompter={prompter} is of task {task!r}, and no prompter; pass the run of '
        'configs/pretrain_prompter.py that --checkpoint was trained with. Its config says '
        f'{meta["config"]["prompter"]["checkpoint"]!r}.'
      )
    if 'entities' in meta:
      identity.check_teacher(meta, prompter, meta['entities'])
    state |= {f'prompter.{name}': array for name, array in teacher.items()}
  arrays, absent = in_order(state, kept)
  tables.check_finite([name for name, array in arrays.items() if not np.isfinite(array).all()])
  metas = {
    part: values and {name: x for name, x in values.items() if name not in ('arrays', 'step')}
    for part, values in (('model', meta), ('prompter', teacher_meta))
  }
  tensor_files.write_tensors(output, arrays, {_KEY: json.dumps({'format': _FORMAT, **metas})})
  return arrays, absent, bool(kept.order), None if prompter else meta.get('prompter')


def _read_back(checkpoint):
  """Returns arrays by the original's names, the stored JSON, what was kept."""
  found = checkpoints.find(checkpoint)
  config = AlproConfig.from_dict(found.meta['model'])
  params = found.load_params(abstract_params(Alpro(config), sharding.make_mesh()))
  kept = read(found.folder, found.meta)
  state = {**kept.tensors, **tables.to_original(params, config)}
  for name in ('classifier.2.weight', 'classifier.2.bias'):
    if name in kept.tensors:  # Labels that no answer has were left out.
      state[name] = np.concatenate([state[name], kept.tensors[name][len(state[name]) :]])
  bert = f'{tables.bert_prefix(config)}.embeddings'
  state[f'{bert}.position_ids'] = np.arange(config.text.max_positions, dtype=np.int64)[None]
  predictions = 'text_encoder.cls.predictions'
  if f'{predictions}.bias' in state:
    state[f'{predictions}.decoder.weight'] = state[f'{bert}.word_embeddings.weight']
    state[f'{predictions}.decoder.bias'] = state[f'{predictions}.bias']
  return state, found.meta, kept


def in_order(state: Mapping[str, np.ndarray], kept: Kept):
  """Gives tensors the names, order and types of the file they came from.

  A prompter that was not in that file comes last.

  Returns:
    arrays by name in the file, and the names that there is no array for.
  """
  if not kept.order:
    return dict(state), []
  arrays, absent = {}, []
  for name, theirs, dtype in kept.order:
    if theirs in state:
      arrays[name] = state[theirs].astype(np.dtype(dtype), copy=False)
    else:
      absent.append(name)
  if not any(theirs.startswith('prompter.') for _, theirs, _ in kept.order):
    arrays |= {name: array for name, array in state.items() if name.startswith('prompter.')}
  return arrays, absent
