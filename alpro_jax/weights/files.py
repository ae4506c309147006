"""Files of tensors: safetensors, npz, and PyTorch's without its pickle.

A file is opened to names and shapes; numbers are read tensor by tensor.
"""

import collections
import fnmatch
import json
import math
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from alpro_jax.files import file as whole_file

_DTYPES = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': jnp.bfloat16,
  'I64': np.int64,
  'I32': np.int32,
  'I16': np.int16,
  'I8': np.int8,
  'U8': np.uint8,
  'BOOL': np.bool_,
}
_CODES = {np.dtype(kind): code for code, kind in _DTYPES.items()}
# What Hugging Face calls the weights in a folder, the safer ones first; an
# index names the files that large weights are cut into.
_INDEX = '.index.json'
_IN_FOLDERS = (
  'model.safetensors',
  f'model.safetensors{_INDEX}',
  f'pytorch_model.bin{_INDEX}',
  'pytorch_model.bin',
)
# What programs wrap a state dict in: LAVIS, TimeSformer, ALPRO, timm.
_WRAPPERS = ('model', 'model_state', 'model_state_dict', 'state_dict')
_MAX_HEADER = 100_000_000
# Where a state dict of PyTorch's carries what safetensors call metadata: an
# attribute of the dict, beside its tensors, that nothing else looks at.
_ATTRIBUTE = 'alpro_jax'
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
    names, tuple(shape), tensors[0].dtype, lambda: function(*(tensor.read() for tensor in tensors))
  )


def in_memory(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
  """Returns arrays as if they were in a file."""
  return {
    name: Tensor(
      (name,), np.shape(array), np.asarray(array).dtype, lambda array=array: np.asarray(array)
    )
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
  if reason := _foreign(path):
    raise ValueError(reason)
  raise FileNotFoundError(
    f'no weights at {path}: {", ".join(map(str, tried))} not there; expected '
    f'a .pt, .pth, .bin, .pyth, .safetensors or .npz file, or a folder with '
    f'one of {", ".join(_IN_FOLDERS)}.'
  )


_TRANSFORMERS = (
  'take the model.safetensors that is published beside it, or write one with '
  "`pip install 'transformers<5'` and AutoModel.from_pretrained(FOLDER, "
  'from_{}=True).save_pretrained(NEW)'
)
# What weights of other programs look like: names, first bytes, what it is, what
# to do.
_FOREIGN = (
  (
    ('*.h5', '*.hdf5', '*.keras'),
    b'\x89HDF',
    'weights of Keras or TensorFlow',
    _TRANSFORMERS.format('tf'),
  ),
  (
    ('*.index', '*.meta', '*.data-?????-of-?????', '*.pb'),
    None,
    'a checkpoint of TensorFlow',
    _TRANSFORMERS.format('tf'),
  ),
  (('*.msgpack',), None, 'weights of Flax', _TRANSFORMERS.format('flax')),
  (
    ('*.onnx', '*.tflite', '*.gguf', '*.ot'),
    None,
    'a model for another program',
    'take the weights that it was made from',
  ),
  (
    (),
    b'version https://git-lfs',
    'a note of Git LFS in the place of a file',
    'run `git lfs pull` there',
  ),
)


def _foreign(path):
  """Says what a file or folder is that other programs read, '' if unknown."""
  start = b''
  if path.is_dir():
    if any((path / name).is_dir() for name in ('checkpoints', 'params')):
      return (
        f'{path} is a checkpoint of this project; it goes to --checkpoint, '
        'which writes it as one file.'
      )
    names = [entry.name for entry in path.iterdir()]
  elif path.is_file():
    names = [path.name]
    with open(path, 'rb') as stream:
      start = stream.read(64)
  else:
    # A checkpoint of TensorFlow is named by what its files begin with.
    names = [entry.name for entry in path.parent.glob(f'{path.name}.*')]
  for patterns, magic, what, advice in _FOREIGN:
    if (magic and start.startswith(magic)) or any(
      fnmatch.fnmatch(name.lower(), pattern) for name in names for pattern in patterns
    ):
      return f'{path} is {what}, which is not read here; {advice}.'
  return ''


def open_tensors(path) -> dict[str, Tensor]:
  """Opens a file, in its order of names.

  Args:
    path: as in `find`; an index opens the files that it names. A file that
      ends neither in .safetensors nor in .npz is taken for PyTorch's, and needs
      torch.
  Raises:
    FileNotFoundError: if there is none.
    ValueError: if it cannot be read, or only by running what is in it.
  """
  path = find(path)
  if path.name.endswith(_INDEX):
    return _open_parts(path)
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
    metadata: {name: text} to keep beside them, which other programs ignore.
  """
  path = pathlib.Path(path)
  check_writable(path)
  with whole_file(path) as draft:
    if path.suffix == '.safetensors':
      _write_safetensors(draft, arrays, metadata or {})
      return
    torch = _import_torch(path)
    # A copy: torch wants memory that it may write to.
    state = collections.OrderedDict((n, _to_torch(torch, a.copy())) for n, a in arrays.items())
    setattr(state, _ATTRIBUTE, dict(metadata or {}))
    torch.save(state, draft)


def check_writable(path) -> None:
  """Raises ValueError if `write_tensors` could not write such a file."""
  path = pathlib.Path(path)
  if path.suffix not in ('.safetensors', '.pt', '.pth'):
    raise ValueError(
      f'{path} must end in .pt or .pth, which need torch, or in .safetensors, which does not.'
    )
  if path.suffix != '.safetensors':
    _import_torch(path)


def read_metadata(path) -> dict[str, str]:
  """Returns what `write_tensors` stored beside the tensors of a file.

  Args:
    path: as in `open_tensors`.
  """
  path = find(path)
  if path.suffix == '.safetensors':
    return _read_header(path)[0].get('__metadata__', {})
  if path.suffix in ('.npz', '.json'):
    return {}
  state = _state_dict(path, _load_torch(_import_torch(path), path))
  return dict(getattr(state, _ATTRIBUTE, {}))


def _open_parts(path):
  """Opens the files that an index names."""
  try:
    index = json.loads(path.read_text())['weight_map']
    files = sorted(set(index.values()))
    outside = [name for name in files if pathlib.PurePath(name).name != name]
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f'{path} is no index of Hugging Face: expected a "weight_map" from '
      f'tensors to files beside it ({type(error).__name__}: {error}).'
    ) from error
  if outside:
    raise ValueError(f'{path} names {outside[0]}, which is not beside it.')
  parts = {name: open_tensors(path.with_name(name)) for name in files}
  found = {name: file for file, part in parts.items() for name in part}
  wrong = sorted(name for name in index.keys() | found.keys() if index.get(name) != found.get(name))
  if wrong:
    raise ValueError(
      f'{path} does not fit its files: {wrong[0]} should be in '
      f'{index.get(wrong[0])}, is in {found.get(wrong[0])} ({len(wrong)} '
      'such tensors); download all of them again.'
    )
  return {name: parts[file][name] for name, file in index.items()}


def _read_header(path):
  """Returns the header and the place where the numbers start."""
  size = path.stat().st_size
  with open(path, 'rb') as stream:
    length = int.from_bytes(stream.read(8), 'little')
    if size < 8 or length > min(size - 8, _MAX_HEADER):
      raise ValueError(
        _foreign(path)
        or f'{path} is no safetensors file, or was cut off: its {size} bytes do '
        f'not hold a header of {length}.'
      )
    try:
      header = json.loads(stream.read(length))
    except (ValueError, RecursionError) as error:
      raise ValueError(
        f'{path} is no safetensors file: its header is not JSON ({error}).'
      ) from error
  if not (isinstance(header, dict) and isinstance(header.get('__metadata__', {}), dict)):
    raise ValueError(f'{path} is no safetensors file: its header is no list of tensors.')
  return header, 8 + length


def _open_safetensors(path):
  header, start = _read_header(path)
  size = path.stat().st_size - start
  tensors, places = {}, []
  for name, entry in header.items():
    if name == '__metadata__':
      continue
    try:
      code, shape = entry['dtype'], tuple(entry['shape'])
      first, last = entry['data_offsets']
      sound = all(type(number) is int and number >= 0 for number in (*shape, first, last))
    except (KeyError, TypeError, ValueError):
      code, shape, first, last, sound = None, (), 0, 0, False
    if sound and code not in _DTYPES:
      raise ValueError(f'{path}: {name} has type {code}; expected one of {sorted(_DTYPES)}.')
    kind, count = np.dtype(_DTYPES.get(code)), math.prod(shape)
    if not sound or last - first != count * kind.itemsize or last > size:
      raise ValueError(
        f'{path} is damaged: {name} is {entry}, and the file has {size} bytes of numbers.'
      )
    places.append((first, last, name))

    def read(first=first, kind=kind, shape=shape, count=count):
      return np.fromfile(path, kind, count, offset=start + first).reshape(shape)

    tensors[name] = Tensor((name,), shape, kind, read)
  end = 0
  for first, last, name in [*sorted(places), (size, size, 'the end')]:
    if first != end:
      raise ValueError(
        f'{path} is damaged: {name} begins at byte {first} of the numbers, '
        f'where the one before ends at {end}.'
      )
    end = last
  return tensors


def _write_safetensors(path, arrays, metadata):
  header, place = {'__metadata__': dict(metadata)}, 0
  for name, array in arrays.items():
    header[name] = {
      'dtype': _CODES[array.dtype],
      'shape': array.shape,
      'data_offsets': [place, place + array.nbytes],
    }
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
    raise ValueError(f'{path} is no npz file of plain arrays: {error}.') from error
  return tensors


def _import_torch(path):
  if path.is_file() and (reason := _foreign(path)):
    raise ValueError(reason)
  try:
    import torch
  except ImportError as error:
    raise ValueError(
      f'{path} is a PyTorch file, which needs torch: `{INSTALL}`. A '
      '.safetensors file of the same tensors needs nothing.'
    ) from error
  return torch


def _open_torch(path):
  torch = _import_torch(path)
  tensors = {}
  for name, value in _state_dict(path, _load_torch(torch, path)).items():
    if not isinstance(value, torch.Tensor):
      raise ValueError(
        f'{path}: {name} is a {type(value).__name__}, expected a tensor; save a state dict alone.'
      )
    kind = str(value.dtype).removeprefix('torch.')
    tensors[name] = Tensor(
      (name,), tuple(value.shape), dtype(kind), lambda value=value: _from_torch(torch, value)
    )
  return tensors


def _load_torch(torch, path):
  """Returns what a file holds, without running anything."""
  options = {'map_location': 'cpu', 'weights_only': True}
  try:
    try:
      return torch.load(path, mmap=True, **options)
    except RuntimeError:  # Not an archive: written before PyTorch 1.6.
      return torch.load(path, **options)
  except pickle.UnpicklingError as error:
    raise ValueError(
      f'{path} holds more than tensors, and reading it could run code; it '
      'was not read. If you trust it, load it in PyTorch and save the state '
      f'dict alone. PyTorch says: {str(error).splitlines()[0]}'
    ) from error
  except (RuntimeError, EOFError, AssertionError) as error:
    raise ValueError(f'{path} cannot be read as a PyTorch file: {error}') from error


def _state_dict(path, loaded):
  """Takes the wrappers off that programs put around a state dict."""
  while isinstance(loaded, Mapping):
    inside = [name for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)]
    if not inside:
      return loaded
    if len(inside) > 1:
      raise ValueError(
        f'{path} holds several state dicts, {" and ".join(inside)}; save the '
        'one that is meant alone.'
      )
    loaded = loaded[inside[0]]
  raise ValueError(
    f'{path} holds a {type(loaded).__name__}, expected a state dict: tensors by name.'
  )


def _from_torch(torch, value):
  value = value.detach().contiguous()
  if value.dtype == torch.bfloat16:
    return value.view(torch.int16).numpy().view(jnp.bfloat16)
  return value.numpy()


def _to_torch(torch, array):
  if array.dtype == jnp.bfloat16:
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
  return torch.from_numpy(array)
