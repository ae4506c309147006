"""A digest of every array, the same however it is cut over devices.

The digest of a file finds damage to the file. This one also finds what files
cannot tell: an array that was wrong before it was written, or is wrong after
it was put together again for another number of devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def array_digests(tree: Any) -> dict[str, str]:
  """Returns 16 hex digits for each array, by its name in the tree.

  Two sums, modulo 2^32, of numbers that depend on an element's bits and on its
  place. Whole numbers add up to the same in any order, so each device adds
  its own part where it lies; only the sums travel.

  Args:
    tree: of arrays of numbers or truth values, of at most 4 bytes each. With
      several processes all must call this with the same tree.
  """
  # One after the other: several small programs that add up over devices, all on
  # their way at once, can wait for each other without end where fake devices
  # share a few threads, and XLA then aborts the process.
  sums = {
    leaf_name(path): jax.block_until_ready(_sums(leaf))
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  return {
    name: ''.join(f'{int(word):08x}' for word in words)
    for name, words in jax.device_get(sums).items()
  }


def leaf_name(path) -> str:
  """Returns the words of a leaf's path, parted by slashes.

  A namedtuple comes back from a file as a dict: the words alone are the same.
  """
  return '/'.join(str(getattr(p, 'key', getattr(p, 'name', getattr(p, 'idx', p)))) for p in path)


@jax.jit
def _sums(array: jax.Array) -> jax.Array:
  """array[...] -> uint32[2]."""
  if array.dtype == bool:
    array = array.astype(jnp.uint8)
  word = _WORDS[array.dtype.itemsize]
  bits = jax.lax.bitcast_convert_type(array, word).astype(jnp.uint32)
  place = jnp.zeros(array.shape, jnp.uint32)
  for axis, size in enumerate(array.shape):
    here = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    place = place * np.uint32(size) + here  # Modulo 2^32.
  mixed = _mix(bits ^ _mix(place + np.uint32(0x9E3779B9)))
  return jnp.stack(
    [
      jnp.sum(mixed, dtype=jnp.uint32),
      jnp.sum(_mix(mixed + np.uint32(0x85EBCA6B)), dtype=jnp.uint32),
    ]
  )


def _mix(word: jax.Array) -> jax.Array:
  """A bijection of uint32 in which every bit changes about half of the others.

  The finalizer of MurmurHash3 (Appleby, public domain).
  """
  word = (word ^ (word >> 16)) * np.uint32(0x85EBCA6B)
  word = (word ^ (word >> 13)) * np.uint32(0xC2B2AE35)
  return word ^ (word >> 16)
