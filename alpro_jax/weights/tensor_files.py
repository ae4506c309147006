"""Files of tensors: safetensors, npz, and PyTorch's without its pickle.

Files of safetensors and PyTorch are mapped into memory: opening one reads names and shapes, and
numbers when they are used.
"""

import collections
import fnmatch
import json
import math
import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

from alpro_jax import files

_DTYPES = {
  code: np.dtype(name)
  for code, name in [
    ('BF16', jnp.bfloat16),
    ('BOOL', 'bool'),
    ('U8', 'uint8'),
    *((f'F{bits}', f'float{bits}') for bits in (16, 32, 64)),
    *((f'I{bits}', f'int{bits}') for bits in (8, 16, 32, 64)),
  ]
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
# What Hugging Face calls the weights in a folder, the safer ones first; an index names the files
# that large weights are split into.
_INDEX = '.index.json'
_IN_FOLDERS = (
  'model.safetensors',
  f'model.safetensors{_INDEX}',
  f'pytorch_model.bin{_INDEX}',
  'pytorch_model.bin',
  'open_clip_model.safetensors',
  'open_clip_pytorch_model.bin',
)
# What programs wrap a state dict in: LAVIS, TimeSformer, ALPRO, timm.
_WRAPPERS = ('model', 'model_state', 'model_state_dict', 'state_dict')
# A state dict of PyTorch's carries what safetensors call metadata as an attribute of this name.
_ATTRIBUTE = 'alpro_jax'
_INSTALL = 'pip install torch --index-url https://download.pytorch.org/whl/cpu'
_REWRITE = (
  'take the model.safetensors that is published beside it, or write one with '
  "`pip install 'transformers<5'` and AutoModel.from_pretrained(FOLDER, "
  'from_{}=True).save_pretrained(NEW)'
)
_TF, _FLAX = _REWRITE.format('tf'), _REWRITE.format('flax')
_OTHERS = '*.onnx *.tflite *.gguf *.ot'
# Weights of other programs: their names, first bytes, what they are, what to do.
_FOREIGN = (
  ('*.h5 *.hdf5 *.keras', b'\x89HDF', 'weights of Keras or TensorFlow', _TF),
  ('*.index *.meta *.data-?????-of-????? *.pb', None, 'a checkpoint of TensorFlow', _TF),
  ('*.msgpack', None, 'weights of Flax', _FLAX),
  (_OTHERS, None, 'a model for another program', 'take the weights that it was made from'),
  ('', b'version https://git-lfs', 'a pointer of Git LFS and no file', 'run `git lfs pull` there'),
)


class Tensor(NamedTuple):
  """An array, and its names in the file; several if it was put together from them."""

  names: tuple[str, ...]
  array: np.ndarray


def named(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
  """Returns arrays as they would come from a file."""
  return {name: Tensor((name,), np.asarray(array)) for name, array in arrays.items()}


def find(path) -> pathlib.Path:
  """Returns the file of weights: `path`, or the one in that folder.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is of another program, saying what to do.
  """
  path = pathlib.Path(path)
  tried = [path / name for name in _IN_FOLDERS] if path.is_dir() else [path]
  found = next((file for file in tried if file.is_file()), None)
  if reason := _foreign(found or path):
    raise ValueError(reason)
  if found is None:
    raise FileNotFoundError(
      f'no weights at {path}: {", ".join(map(str, tried))} not there; expected a .pt, .pth, .bin, '
      f'.pyth, .safetensors or .npz file, or a folder with one of {", ".join(_IN_FOLDERS)}.'
    )
  return found


def _foreign(path):
  """Says what a file or folder is that other programs read; '' if unknown."""
  start = b''
  if path.is_dir():
    if any((path / name).is_dir() for name in ('checkpoints', 'params')):
      return (
        f'{path} is a checkpoint of this project; it goes to --checkpoint, which writes it as one '
        'file.'
      )
    names = [entry.name.lower() for entry in path.iterdir()]
  elif path.is_file():
    names = [path.name.lower()]
    with open(path, 'rb') as stream:
      start = stream.read(64)
  else:
    # A checkpoint of TensorFlow is named by what its files begin with.
    names = [entry.name.lower() for entry in path.parent.glob(f'{path.name}.*')]
  for patterns, magic, what, advice in _FOREIGN:
    if (magic and start.startswith(magic)) or any(
      fnmatch.filter(names, pattern) for pattern in patterns.split()
    ):
      return f'{path} is {what}, which is not read here; {advice}.'
  return ''


def open_tensors(path) -> dict[str, Tensor]:
  """Opens the file that `find` returns, in its order of names; an index opens all that it names.

  A file that ends neither in .safetensors nor in .npz is taken for PyTorch's, and needs torch.

  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it is damaged, of another program, or could only be read by running it.
  """
  path = find(path)
  if path.name.endswith(_INDEX):
    return _open_parts(path)
  if path.suffix == '.safetensors':
    return _open_safetensors(path)
  if path.suffix == '.npz':
    return _open_npz(path)
  return _open_torch(path)


def read_metadata(path) -> dict[str, str]:
  """Returns what `write_tensors` stored beside the tensors of a file; `path` as in `find`."""
  path = find(path)
  if path.suffix == '.safetensors':
    return _safe_open(path).metadata() or {}
  if path.suffix in ('.npz', '.json'):
    return {}
  return dict(getattr(_load_torch(path), _ATTRIBUTE, {}))


def write_tensors(path, arrays: Mapping[str, np.ndarray], metadata=None):
  """Writes a file that is never seen half written.

  Args:
    path: ending in .safetensors; .pt and .pth are PyTorch's and need torch.
    arrays: in their order.
    metadata: {name: text} to keep beside them, which other programs ignore.
  """
  path = pathlib.Path(path)
  check_writable(path)
  with files.file(path) as draft:
    write = _write_safetensors if path.suffix == '.safetensors' else _write_torch
    write(draft, arrays, dict(metadata or {}))


def check_writable(path) -> None:
  """Raises ValueError if `write_tensors` could not write such a file."""
  path = pathlib.Path(path)
  if path.suffix not in ('.safetensors', '.pt', '.pth'):
    raise ValueError(
      f'{path} must end in .pt or .pth, which need torch, or in .safetensors, which does not.'
    )
  if path.suffix != '.safetensors':
    _import_torch(path)


def check_readable(path) -> None:
  """Raises ValueError if a file of this name would need torch, which is not installed."""
  if pathlib.Path(path).suffix not in ('.safetensors', '.npz'):
    _import_torch(path)


def _open_parts(path):
  """Opens the files that an index names."""
  try:
    index = json.loads(path.read_text())['weight_map']
    names = sorted(set(index.values()))
    outside = [name for name in names if pathlib.PurePath(name).name != name]
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f'{path} is no index of Hugging Face: expected a "weight_map" from tensors to files beside '
      f'it ({type(error).__name__}: {error}).'
    ) from error
  if outside:
    raise ValueError(f'{path} names {outside[0]}, which is not beside it.')
  parts = {name: open_tensors(path.with_name(name)) for name in names}
  found = {tensor: name for name, part in parts.items() for tensor in part}
  wrong = sorted(name for name in index.keys() | found.keys() if index.get(name) != found.get(name))
  if wrong:
    raise ValueError(
      f'{path} does not fit its files: {wrong[0]} should be in {index.get(wrong[0])}, is in '
      f'{found.get(wrong[0])} ({len(wrong)} such tensors); download all of them again.'
    )
  return {tensor: parts[name][tensor] for tensor, name in index.items()}


def _safe_open(path):
  try:
    return safetensors.safe_open(path, framework='np')
  except safetensors.SafetensorError as error:
    raise ValueError(
      f'{path} is damaged, or no safetensors file: {error}; copy or download it again.'
    ) from error


def _open_safetensors(path):
  stored, arrays = _safe_open(path), {}
  with open(path, 'rb') as stream:
    header = 8 + int.from_bytes(stream.read(8), 'little')
  numbers, end = np.memmap(path, np.uint8, 'r')[header:], 0
  for name in stored.offset_keys():  # One tensor follows the other, as the library has checked.
    described = stored.get_slice(name)
    code, shape = described.get_dtype(), described.get_shape()
    if code not in _DTYPES:
      raise ValueError(f'{path}: {name} has type {code}; expected one of {sorted(_DTYPES)}.')
    start, end = end, end + math.prod(shape) * _DTYPES[code].itemsize
    arrays[name] = np.asarray(numbers[start:end].view(_DTYPES[code]).reshape(shape))
  return named(arrays)


def _write_safetensors(path, arrays, metadata):
  # Not safetensors.numpy.save_file: it sorts tensors, lets nobody else read the file, and hides
  # why the system refused to write it.
  header, start = {'__metadata__': metadata}, 0
  for name, array in arrays.items():
    offsets = [start, start := start + array.nbytes]
    header[name] = {'dtype': _CODES[array.dtype], 'shape': array.shape, 'data_offsets': offsets}
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  with open(path, 'wb') as stream:
    stream.write(len(text).to_bytes(8, 'little') + text)
    for array in arrays.values():
      stream.write(array.tobytes())


def _open_npz(path):
  try:
    with np.load(path, allow_pickle=False) as arrays:
      return named(arrays)
  except (zipfile.BadZipFile, AttributeError, EOFError, ValueError) as error:
    raise ValueError(f'{path} is no npz file of plain arrays: {error}.') from error


def _import_torch(path):
  try:
    import torch
  except ImportError as error:
    raise ValueError(
      f'{path} is a PyTorch file, which needs torch: `{_INSTALL}`. A .safetensors file of the same '
      'tensors needs nothing.'
    ) from error
  return torch


def _open_torch(path):
  torch, arrays = _import_torch(path), {}
  for name, value in _load_torch(path).items():
    if not isinstance(value, torch.Tensor):
      raise ValueError(
        f'{path}: {name} is a {type(value).__name__}, expected a tensor; save a state dict alone.'
      )
    is_bfloat16 = value.dtype == torch.bfloat16  # Which NumPy does not know; its bits go over.
    array = (value.view(torch.int16) if is_bfloat16 else value).detach().numpy()
    arrays[name] = array.view(jnp.bfloat16) if is_bfloat16 else array
  return named(arrays)


def _load_torch(path):
  """Returns the state dict of a file, without running anything."""
  torch, options = _import_torch(path), {'map_location': 'cpu', 'weights_only': True}
  try:
    try:
      loaded = torch.load(path, mmap=True, **options)
    except RuntimeError:  # Not an archive: written before PyTorch 1.6.
      loaded = torch.load(path, **options)
  except pickle.UnpicklingError as error:
    reason, *_ = str(error).split('\n')
    raise ValueError(
      f'{path} holds more than tensors, and reading it could run code; it was not read. If you '
      'trust it, load it in PyTorch and save the state dict alone. PyTorch says: '
      f'{reason}'
    ) from error
  except (RuntimeError, EOFError, AssertionError) as error:
    raise ValueError(f'{path} cannot be read as a PyTorch file: {error}') from error
  while isinstance(loaded, Mapping):
    inside = [name for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)]
    if not inside:
      return loaded
    if len(inside) > 1:
      raise ValueError(
        f'{path} holds several state dicts, {" and ".join(inside)}; save the one that is meant '
        'alone.'
      )
    loaded = loaded[inside[0]]
  raise ValueError(
    f'{path} holds a {type(loaded).__name__}, expected a state dict: tensors by name.'
  )


def _write_torch(path, arrays, metadata):
  torch, state = _import_torch(path), collections.OrderedDict()
  for name, array in arrays.items():
    if array.dtype == jnp.bfloat16:
      state[name] = torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    else:
      state[name] = torch.from_numpy(array.copy())  # Torch wants memory that it may write to.
  setattr(state, _ATTRIBUTE, metadata)
  torch.save(state, path)
