"""Digests of a checkpoint's files and arrays, taken before anything is used.

The digest of a file finds damage to the file. That of an array, the same
however it is sharded, finds what files cannot tell: an array that was wrong
before it was written, or is wrong after it was put together again for another
number of devices.
"""

import json
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alpro_jax import buckets, files
from alpro_jax.train import trees

FILE = 'digests.json'
# Orbax rewrites its own record of times after the digests are taken.
_UNSEALED = (FILE, '_CHECKPOINT_METADATA', 'commit_success.txt')
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
# Multipliers of MurmurHash3's finalizer (Appleby, public domain), and 2^32 by
# the golden ratio. Stored digests depend on them.
_MULTIPLIERS = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)
_GOLDEN = np.uint32(0x9E3779B9)


def write(folder) -> None:
  """Stores the size and SHA-256 of every file in a folder, here or in a bucket."""
  sizes = files.sizes(folder)
  names = sorted(name for name in sizes if name.rpartition('/')[2] not in _UNSEALED)
  with futures.ThreadPoolExecutor(8) as pool:  # A bucket reads several as fast as one.
    digests = pool.map(lambda name: files.sha256(files.join(folder, name)), names)
    found = {
      name: {'bytes': sizes[name], 'sha256': digest}
      for name, digest in zip(names, digests, strict=True)
    }
  text = json.dumps(found, indent=1)
  if buckets.is_address(folder):
    buckets.write(files.join(folder, FILE), text.encode())
  else:
    (folder / FILE).write_text(text)


def damage(folder, what: str = 'checkpoint', *, content: bool = True) -> str:
  """Says which file of a folder, called `what`, is not what was written, '' if none.

  Without `content` sizes are compared alone, which is one request to a bucket: its arrays
  are compared when they are read.
  """
  prefix = f'{what} {folder} is damaged:'
  try:
    stored = json.loads(files.read(files.join(folder, FILE)))
  except (FileNotFoundError, ValueError) as error:
    return f'{prefix} {FILE} cannot be read ({error}).'
  sizes = files.sizes(folder)
  for name, expected in stored.items():
    if name not in sizes:
      return f'{prefix} {name} is missing, expected {expected["bytes"]} bytes.'
    if sizes[name] != expected['bytes']:
      return f'{prefix} {name} has {sizes[name]} bytes, expected {expected["bytes"]} bytes.'
    if content and files.sha256(files.join(folder, name)) != expected['sha256']:
      return f'{prefix} the contents of {name} changed after it was written.'
  return ''


def of_arrays(tree: Any) -> dict[str, str]:
  """Returns 16 hex digits for each array, by its name in the tree.

  Two sums, modulo 2^32, of numbers that depend on an element's bits and on its
  index. Integers add up to the same in any order, so each device adds its own
  part where it lies; only the sums travel.

  Args:
    tree: of arrays of numbers or truth values, of at most 4 bytes each. With
      several processes all must call this with the same tree.
  """
  # One after the other: several small programs that add up over devices, all on
  # their way at once, can wait for each other without end where fake devices
  # share a few threads, and XLA then aborts the process.
  sums = {name: jax.block_until_ready(_sums(leaf)) for name, leaf in trees.by_name(tree).items()}
  return {
    name: ''.join(f'{int(word):08x}' for word in words)
    for name, words in jax.device_get(sums).items()
  }


@jax.jit
def _sums(array: jax.Array) -> jax.Array:
  """array[...] -> uint32[2]."""
  if array.dtype == bool:
    array = array.astype(jnp.uint8)
  bits = jax.lax.bitcast_convert_type(array, _WORDS[array.dtype.itemsize]).astype(jnp.uint32)
  index = jnp.zeros(array.shape, jnp.uint32)
  for axis, size in enumerate(array.shape):  # Row-major, modulo 2^32.
    index = index * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
  mixed = _mix(bits ^ _mix(index + _GOLDEN))
  both = mixed, _mix(mixed + _MULTIPLIERS[0])
  return jnp.stack([jnp.sum(words, dtype=jnp.uint32) for words in both])


def _mix(word: jax.Array) -> jax.Array:
  """A bijection of uint32 in which every bit changes about half of the others."""
  word = (word ^ (word >> 16)) * _MULTIPLIERS[0]
  word = (word ^ (word >> 13)) * _MULTIPLIERS[1]
  return word ^ (word >> 16)
