"""What a converted checkpoint keeps of its file, for an exact way back.

A file of the original has tensors that no model here has, because nothing
reads them. They lie beside the checkpoint, with the file's names, order and
types; what follows from other tensors is not kept but made again.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from alpro_jax.models.alpro import AlproConfig
from alpro_jax.weights import files, original
from alpro_jax.weights.files import Tensor

FILE = 'original.safetensors'


class Kept(NamedTuple):
  """Attributes:
    order: (name in the file, name in the original, type) of its tensors.
    tensors: that no model here has, by their names in the original.
  """

  order: tuple[tuple[str, str, str], ...] = ()
  tensors: Mapping[str, np.ndarray] = {}


def write(folder, order, tensors: Mapping[str, Tensor]) -> None:
  """Writes FILE to a folder; see Kept."""
  files.write_tensors(
      pathlib.Path(folder) / FILE,
      {name: tensor.read() for name, tensor in tensors.items()},
      {'order': json.dumps(order)})


def read(folder) -> Kept:
  """Reads what `write` wrote; nothing if the model was trained here."""
  path = pathlib.Path(folder) / FILE
  if not path.is_file():
    return Kept()
  order = json.loads(files.read_metadata(path)['order'])
  tensors = files.open_tensors(path)
  return Kept(
      tuple(map(tuple, order)), {n: t.read() for n, t in tensors.items()})


def complete(
    state: Mapping[str, np.ndarray], kept: Kept, config: AlproConfig
) -> dict[str, np.ndarray]:
  """Adds to the tensors of a model those that the original has as well.

  Args:
    state: original.to_original of the model.
    kept: of its conversion.
    config: of the model.
  Returns:
    arrays by their names in the original.
  """
  state = {**kept.tensors, **state}
  for name in ('classifier.2.weight', 'classifier.2.bias'):
    # Labels that no answer has were cut off.
    whole = kept.tensors.get(name)
    if whole is not None:
      state[name] = np.concatenate([state[name], whole[len(state[name]):]])
  bert = f'{original.bert_prefix(config)}.embeddings'
  state[f'{bert}.position_ids'] = np.arange(
      config.text.max_positions, dtype=np.int64)[None]
  predictions = 'text_encoder.cls.predictions'
  if f'{predictions}.bias' in state:
    words = state[f'{bert}.word_embeddings.weight']
    state[f'{predictions}.decoder.weight'] = words
    state[f'{predictions}.decoder.bias'] = state[f'{predictions}.bias']
  return state


def in_order(
    state: Mapping[str, np.ndarray], kept: Kept
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Gives tensors the names, order and types of the file they came from.

  Returns:
    arrays by name in the file, and the names that there is no array for.
  """
  if not kept.order:
    return dict(state), []
  arrays, absent = {}, []
  for name, theirs, dtype in kept.order:
    if theirs in state:
      arrays[name] = state[theirs].astype(files.dtype(dtype), copy=False)
    else:
      absent.append(name)
  return arrays, absent
