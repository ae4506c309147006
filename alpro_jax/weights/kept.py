"""What a checkpoint keeps of a file, and a file of a checkpoint: the way back.

A file of the original has tensors that no model here has, because nothing reads them. They lie
beside the checkpoint, with the file's names, order and types; what follows from other tensors is
made again. And tensors do not tell task, heads, options, tokenizer and labels of a model: what was
stored with a checkpoint goes into its file as well.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from alpro_jax.files import sha256
from alpro_jax.models.alpro import AlproConfig
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
  """Writes FILE to a folder; see Kept.

  Returns:
    its sha256, by which the checkpoint that it belongs to knows it.
  """
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


def tell(meta: Mapping[str, Mapping[str, Any] | None]) -> dict[str, str]:
  """Returns the metadata of a file, for tensor_files.write_tensors.

  Args:
    meta: what was stored with the checkpoints of the `model` and the `prompter` in it, or None.
  """
  parts = {
    part: values and {name: x for name, x in values.items() if name not in ('arrays', 'step')}
    for part, values in meta.items()
  }
  return {_KEY: json.dumps({'format': _FORMAT, **parts})}


def told(metadata: Mapping[str, str]) -> dict[str, Any]:
  """Returns what `tell` was given; {} of a file that is not one of ours.

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


def complete(
  state: Mapping[str, np.ndarray], kept: Kept, config: AlproConfig
) -> dict[str, np.ndarray]:
  """Adds to the tensors of a model those that the original has as well.

  Args:
    state: tables.to_original of the model.
    kept: of its conversion.
    config: of the model.
  Returns:
    arrays by their names in the original.
  """
  state = {**kept.tensors, **state}
  for name in ('classifier.2.weight', 'classifier.2.bias'):
    if name in kept.tensors:  # Labels that no answer has were left out.
      state[name] = np.concatenate([state[name], kept.tensors[name][len(state[name]) :]])
  bert = f'{tables.bert_prefix(config)}.embeddings'
  state[f'{bert}.position_ids'] = np.arange(config.text.max_positions, dtype=np.int64)[None]
  predictions = 'text_encoder.cls.predictions'
  if f'{predictions}.bias' in state:
    state[f'{predictions}.decoder.weight'] = state[f'{bert}.word_embeddings.weight']
    state[f'{predictions}.decoder.bias'] = state[f'{predictions}.bias']
  return state


def in_order(
  state: Mapping[str, np.ndarray], kept: Kept
) -> tuple[dict[str, np.ndarray], list[str]]:
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
