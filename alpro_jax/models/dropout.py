"""Dropout and drop path, from explicit keys, at half the hashing."""

import jax
import jax.numpy as jnp


def split(key: jax.Array | None, count: int):
  """Returns `count` keys of a key, or as many times None."""
  return (None,) * count if key is None else jax.random.split(key, count)


def dropout(x: jax.Array, rate: jax.Array | float, key: jax.Array | None) -> jax.Array:
  """Zeroes a share of the entries and scales the others up to keep the mean.

  Args:
    x: f[...].
    rate: the share, below 1.
    key: None is evaluation, which drops nothing.
  """
  return _drop(x, rate, key, x.shape)


def drop_path(x: jax.Array, rate: jax.Array | float, key: jax.Array | None) -> jax.Array:
  """As dropout of f[..., L, D], but whole sequences f[L, D] at a time."""
  return _drop(x, rate, key, (*x.shape[:-2], 1, 1))


def _drop(x, rate, key, shape):
  if key is None or (isinstance(rate, float) and rate == 0.0):
    return x
  return scale_kept(x, *draw_kept(key, rate, shape))


def scale_kept(x: jax.Array, kept: jax.Array, share: jax.Array) -> jax.Array:
  """x / share where bool[...] `kept` is True, and 0 elsewhere."""
  return jnp.where(kept, x / share.astype(x.dtype), jnp.zeros((), x.dtype))


def draw_kept(
  key: jax.Array, rate: jax.Array | float, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
  """Returns bool[shape], and the share of True in 65536ths: float32[]."""
  threshold = jnp.round((1.0 - rate) * 2**16)
  kept = _draw_16_bits(key, shape) < threshold.astype(jnp.uint32)
  return kept, threshold / 2**16


def _draw_16_bits(key, shape):
  """uint32[shape], uniform in 0..65535: two neighbours share a random word.

  Neighbours along an even axis, and not the first one, so that a device that
  has both makes the word.
  """
  axis = next((i for i, n in enumerate(shape) if i and n % 2 == 0), None)
  if axis is None:
    return jax.random.bits(key, shape, jnp.uint32) >> 16
  half = (*shape[:axis], shape[axis] // 2, *shape[axis + 1 :])
  words = jax.random.bits(key, half, jnp.uint32)
  return jnp.stack([words & 0xFFFF, words >> 16], axis=axis + 1).reshape(shape)
