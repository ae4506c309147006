"""Files of tensors: safetensors, npz, and PyTorch's without its pickle.

A file is opened to names and shapes; numbers are read tensor by tensor.
"""

import json
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

_DTYPES = {
    'F64': np.float64, 'F32': np.float32, 'F16': np.float16,
    'BF16': jnp.bfloat16, 'I64': np.int64, 'I32': np.int32, 'I16': np.int16,
    'I8': np.int8, 'U8': np.uint8, 'BOOL': np.bool_,
}
_CODES = {np.dtype(kind): code for code, kind in _DTYPES.items()}
# What Hugging Face calls the weights in a folder, the safer one first.
_IN_FOLDERS = ('model.safetensors', 'pytorch_model.bin')
# What programs wrap a state dict in: LAVIS, TimeSformer, ALPRO, timm.
_WRAPPERS = ('model', 'model_state', 'model_state_dict', 'state_dict')
_MAX_HEADER = 100_000_000
INSTALL = 'pip install torch --index-url https://download.pytorch.org/whl/cpu'


def dtype(name: str) -> np.dtype:
  """'float32', 'bfloat16', ... -> the type."""
  return np.dtype(jnp.bfloat16 if name == 'bfloat16' else name)


class Tensor(NamedTuple):
  """A tensor that is not read yet.

  Attributes:
    names: in the file; several if it is put together from them.
    shape: of the array that `read` returns.
    dtype: of it.
    read: reads it.
  """

  names: tuple[str, ...]
  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]

  def derive(self, shape, function) -> 'Tensor':
    """Returns one that is computed from this one when it is read."""
    return derive([self], shape, function)


def derive(tensors, shape, function) -> Tensor:
  """Returns function(*arrays), computed when it is read."""
  names = tuple(name for tensor in tensors for name in tensor.names)
  return Tensor(
      names, tuple(shape), tensors[0].dtype,
      lambda: function(*(tensor.read() for tensor in tensors)))


def in_memory(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
  """Returns arrays as if they were in a file."""
  return {
      name: Tensor((name,), np.shape(array), np.asarray(array).dtype,
                   lambda array=array: np.asarray(array))
      for name, array in arrays.items()
  }


def find(path) -> pathlib.Path:
  """Returns the file of weights: `path`, or the one in that folder.

  Raises:
    FileNotFoundError: if there is none.
  """
  path = pathlib.Path(path)
  tried = [path / name for name in _IN_FOLDERS] if path.is_dir() else [path]
  for file in tried:
    if file.is_file():
      return file
  raise FileNotFoundError(
      f'no weights at {path}: {", ".join(map(str, tried))} not there; expected '
      f'a .pt, .pth, .bin, .pyth, .safetensors or .npz file, or a folder with '
      f'{" or ".join(_IN_FOLDERS)}.')


def open_tensors(path) -> dict[str, Tensor]:
  """Opens a file, in its order of names.

  Args:
    path: as in `find`. A file that ends neither in .safetensors nor in .npz is
      taken for PyTorch's, and needs torch.
  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it cannot be read, or only by running what is in it.
  """
  path = find(path)
  if path.suffix == '.safetensors':
    return _open_safetensors(path)
  if path.suffix == '.npz':
    return _open_npz(path)
  return _open_torch(path)


def write_tensors(path, arrays: Mapping[str, np.ndarray], metadata=None):
  """Writes a file that is never seen half written.

  Args:
    path: ending in .safetensors; .pt and .pth are PyTorch's and need torch.
    arrays: in their order.
    metadata: {name: text}, for safetensors alone.
  """
  path = pathlib.Path(path)
  check_writable(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  draft = path.with_name(path.name + '.draft')
  if path.suffix == '.safetensors':
    _write_safetensors(draft, arrays, metadata or {})
  else:
    torch = _import_torch(path)
    # A copy: torch wants memory that it may write to.
    torch.save(
        {n: _to_torch(torch, a.copy()) for n, a in arrays.items()}, draft)
  os.replace(draft, path)


def check_writable(path) -> None:
  """Raises ValueError if `write_tensors` could not write such a file."""
  path = pathlib.Path(path)
  if path.suffix not in ('.safetensors', '.pt', '.pth'):
    raise ValueError(
        f'{path} must end in .pt or .pth, which need torch, or in '
        '.safetensors, which does not.')
  if path.suffix != '.safetensors':
    _import_torch(path)


def read_metadata(path) -> dict[str, str]:
  """Returns what is stored beside the tensors of a safetensors file."""
  return _read_header(pathlib.Path(path))[0].get('__metadata__', {})


def _read_header(path):
  """Returns the header and the place where the numbers start."""
  size = path.stat().st_size
  with open(path, 'rb') as stream:
    length = int.from_bytes(stream.read(8), 'little')
    if size < 8 or length > min(size - 8, _MAX_HEADER):
      raise ValueError(
          f'{path} is no safetensors file, or was cut off: its {size} bytes do '
          f'not hold a header of {length}.')
    try:
      header = json.loads(stream.read(length))
    except ValueError as error:
      raise ValueError(
          f'{path} is no safetensors file: its header is not JSON ({error}).'
      ) from error
  return header, 8 + length


def _open_safetensors(path):
  header, start = _read_header(path)
  size = path.stat().st_size
  tensors = {}
  for name, entry in header.items():
    if name == '__metadata__':
      continue
    if entry['dtype'] not in _DTYPES:
      raise ValueError(
          f'{path}: {name} has type {entry["dtype"]}; expected one of '
          f'{sorted(_DTYPES)}.')
    kind, shape = np.dtype(_DTYPES[entry['dtype']]), tuple(entry['shape'])
    first, last = entry['data_offsets']
    count = int(np.prod(shape, dtype=np.int64))
    if last - first != count * kind.itemsize or start + last > size:
      raise ValueError(
          f'{path} is damaged: {name} {shape} of {entry["dtype"]} should be '
          f'bytes {first} to {last}, the file has {size - start}.')

    def read(first=first, kind=kind, shape=shape, count=count):
      return np.fromfile(
          path, kind, count, offset=start + first).reshape(shape)

    tensors[name] = Tensor((name,), shape, kind, read)
  return tensors


def _write_safetensors(path, arrays, metadata):
  header, place = {'__metadata__': dict(metadata)}, 0
  for name, array in arrays.items():
    header[name] = {
        'dtype': _CODES[array.dtype], 'shape': array.shape,
        'data_offsets': [place, place + array.nbytes]}
    place += array.nbytes
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  with open(path, 'wb') as stream:
    stream.write(len(text).to_bytes(8, 'little') + text)
    for array in arrays.values():
      stream.write(np.ascontiguousarray(array).tobytes())


def _open_npz(path):
  tensors = {}
  try:
    with zipfile.ZipFile(path) as archive:
      for member in archive.namelist():
        with archive.open(member) as stream:
          version = np.lib.format.read_magic(stream)
          reader = {
              (1, 0): np.lib.format.read_array_header_1_0,
              (2, 0): np.lib.format.read_array_header_2_0,
          }[version]
          shape, _, kind = reader(stream)
        if kind.hasobject:
          raise ValueError(f'{member} holds Python objects')
        name = member.removesuffix('.npy')

        def read(name=name):
          with np.load(path, allow_pickle=False) as arrays:
            return arrays[name]

        tensors[name] = Tensor((name,), shape, kind, read)
  except (zipfile.BadZipFile, KeyError, ValueError) as error:
    raise ValueError(
        f'{path} is no npz file of plain arrays: {error}.') from error
  return tensors


def _import_torch(path):
  try:
    import torch
  except ImportError as error:
    raise ValueError(
        f"{path} is a PyTorch file, which needs torch: `{INSTALL}`. A "
        '.safetensors file of the same tensors needs nothing.') from error
  return torch


def _open_torch(path):
  torch = _import_torch(path)
  options = {'map_location': 'cpu', 'weights_only': True}
  try:
    try:
      loaded = torch.load(path, mmap=True, **options)
    except RuntimeError:  # Not an archive: written before PyTorch 1.6.
      loaded = torch.load(path, **options)
  except pickle.UnpicklingError as error:
    raise ValueError(
        f'{path} holds more than tensors, and reading it could run code; it '
        'was not read. If you trust it, load it in PyTorch and save the state '
        f'dict alone. PyTorch says: {str(error).splitlines()[0]}') from error
  except (RuntimeError, EOFError, AssertionError) as error:
    raise ValueError(
        f'{path} cannot be read as a PyTorch file: {error}') from error
  tensors = {}
  for name, value in _state_dict(path, loaded).items():
    if not isinstance(value, torch.Tensor):
      raise ValueError(
          f'{path}: {name} is a {type(value).__name__}, expected a tensor; '
          'save a state dict alone.')
    kind = str(value.dtype).removeprefix('torch.')
    tensors[name] = Tensor(
        (name,), tuple(value.shape), dtype(kind),
        lambda value=value: _from_torch(torch, value))
  return tensors


def _state_dict(path, loaded):
  """Takes the wrappers off that programs put around a state dict."""
  while isinstance(loaded, Mapping):
    inside = [
        loaded[name] for name in _WRAPPERS
        if isinstance(loaded.get(name), Mapping)]
    if not inside:
      return loaded
    loaded = inside[0]
  raise ValueError(
      f'{path} holds a {type(loaded).__name__}, expected a state dict: tensors '
      'by name.')


def _from_torch(torch, value):
  value = value.detach().contiguous()
  if value.dtype == torch.bfloat16:
    return value.view(torch.int16).numpy().view(jnp.bfloat16)
  return value.numpy()


def _to_torch(torch, array):
  if array.dtype == jnp.bfloat16:
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
  return torch.from_numpy(array)
