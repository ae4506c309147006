"""What of a model is trained: all of it, all but frozen parts, or LoRA's factors of kernels.

A step sees two trees. Gradients, moments and averages have the structure of the trained one;
the held one stays as it is, and is no argument of the gradient. Where LoRA (Hu et al. 2021,
arXiv 2106.09685) adapts a kernel, the held tree has the kernel and the trained one its factors
under the same name:

    trained  {'head': {'kernel': H}, 'query': {'kernel': {'a': A, 'b': B}}}
    held     {'query': {'kernel': W, 'bias': c}}
    merged   {'head': {'kernel': H}, 'query': {'kernel': W + scale A B, 'bias': c}}

so that no layer, and nobody who uses a model, knows of factors.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from alpro_jax.train import trees

# Names for what runs of the original held still; see docs/specification.md, defect 2.
FROZEN = {'video_attention_and_mlp': r'video_encoder/block\d+/(temporal_attention|attention|mlp)'}
FACTORS = ('a', 'b')


@dataclasses.dataclass(frozen=True)
class Trainable:
  """Which parameters are trained; see config.optimizer.freeze and config.optimizer.lora.

  Attributes:
    freeze: patterns of the parts that are held; see `matching`.
    rank: of the factors of a kernel; 0: no LoRA.
    alpha: the product of two factors is scaled by alpha / rank.
    kernels: patterns of the kernels that LoRA adapts.
  """

  freeze: tuple[str, ...] = ()
  rank: int = 0
  alpha: float = 1.0
  kernels: tuple[str, ...] = ()

  @classmethod
  def from_config(cls, optimizer: Any) -> 'Trainable':
    """Returns what `config.optimizer` says.

    Raises:
      ValueError: for a rank below 0, or LoRA of no kernels.
    """
    rank, alpha, kernels = (optimizer.lora[name] for name in ('rank', 'alpha', 'kernels'))
    if rank < 0 or rank and not listed(kernels):
      raise ValueError(
        f'config.optimizer.lora has {rank=} and {kernels=}; expected a rank of 0 (none) or more, '
        'and with one the patterns of kernels, e.g. .*/(query|value).'
      )
    freeze = tuple(FROZEN.get(pattern, pattern) for pattern in listed(optimizer.freeze))
    return cls(freeze, rank, alpha, listed(kernels))

  @property
  def scale(self) -> float:
    return self.alpha / self.rank if self.rank else 1.0

  def split(self, params: Any, key: jax.Array) -> tuple[Any, Any]:
    """Returns (trained, held): what is trained, and what is not, or None.

    Args:
      params: of the model, nested dicts of arrays, or of these in boxes of logical axes.
      key: for the factors. A begins as U(-1, 1) / sqrt(rows of the kernel), as in the
        authors' code, B as 0: so the model begins as it is.
    Raises:
      ValueError: for a pattern that matches nothing, or if nothing is left to train.
    """
    if not (self.freeze or self.rank):
      return params, None
    leaves = named(params)
    held = matching('config.optimizer.freeze', self.freeze, leaves)
    adapted = set()
    if self.rank:
      kernels = [name for name in leaves if name.endswith('/kernel')]
      adapted = matching('config.optimizer.lora.kernels', self.kernels, kernels)
    trained = {name: leaf for name, leaf in leaves.items() if name not in held | adapted}
    for index, name in enumerate(sorted(adapted)):
      factors = _factors(leaves[name], self.rank, jax.random.fold_in(key, index))
      trained |= {f'{name}/{factor}': x for factor, x in zip(FACTORS, factors, strict=True)}
    if not trained:
      raise ValueError(
        'config.optimizer.freeze leaves nothing to train; leave out the parts that are to learn, '
        'or adapt kernels with config.optimizer.lora.rank.'
      )
    still = {name: leaf for name, leaf in leaves.items() if name in held | adapted}
    return nested(trained), nested(still)


ALL = Trainable()


def merge(trained: Any, held: Any, scale: float = 1.0) -> Any:
  """Returns the parameters of the model; of kernels that LoRA adapts, W + scale A B."""
  if held is None:
    return trained
  if not isinstance(held, dict):
    return held + scale * (trained['a'] @ trained['b'])
  names = trained.keys() | held.keys()
  both = trained.keys() & held.keys()
  return {
    name: merge(trained[name], held[name], scale) if name in both else {**trained, **held}[name]
    for name in sorted(names)
  }


def listed(patterns: str) -> tuple[str, ...]:
  """Returns the patterns of an option, which commas separate."""
  return tuple(filter(None, (pattern.strip() for pattern in patterns.split(','))))


def matching(option: str, patterns: Iterable[str], names: Iterable[str]) -> set[str]:
  """Returns the names that patterns choose.

  A pattern is a regular expression for the whole name of a parameter, or of a part that it
  lies in: `video_encoder/block1` is all of that block, and nothing of block 10.

  Args:
    option: its name, for the message.
    patterns: from `listed`.
    names: of the parameters, with slashes.
  Raises:
    ValueError: for a pattern that chooses none, with the names that there are.
  """
  found, names = set(), set(names)
  for pattern in patterns:
    try:
      chosen = {name for name in names if re.fullmatch(f'(?:{pattern})(/.*)?', name)}
    except re.error as error:
      raise ValueError(f'{option}: {pattern!r} is no regular expression: {error}.') from error
    if not chosen:
      there = {re.sub(r'\d+', r'\\d+', name.rpartition('/')[0] or name) for name in names}
      raise ValueError(
        f'{option}: {pattern!r} matches no parameter. It must be the whole name '
        f'of one, or of a part, as a regular expression; there are {trees.listed(there)}.'
      )
    found |= chosen
  return found


def named(params: Any) -> dict[str, Any]:
  """Returns {name: leaf}; a parameter in its box of logical axes is one."""
  leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_box)
  return {trees.leaf_name(path): leaf for path, leaf in leaves}


def nested(leaves: dict[str, Any]) -> Any:
  """Undoes `named`."""
  return traverse_util.unflatten_dict(leaves, sep='/')


def _is_box(leaf):
  return isinstance(leaf, nn.meta.AxisMetadata)


def _factors(kernel, rank, key):
  """Returns A and B of a kernel, boxed as it is: each with the logical axis of its side."""
  value = kernel.value if _is_box(kernel) else kernel
  rows, columns = value.shape
  a = jax.random.uniform(key, (rows, rank), value.dtype, -1, 1) / jnp.sqrt(rows)
  b = jnp.zeros((rank, columns), value.dtype)
  if not _is_box(kernel):
    return a, b
  into, out = kernel.names
  return kernel.replace(value=a, names=(into, None)), kernel.replace(value=b, names=(None, out))
