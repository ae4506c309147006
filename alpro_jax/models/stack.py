"""A stack of equal layers: unrolled or scanned, rematerialised or not."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from alpro_jax.models.layers import ComputeOptions

# What the forward pass keeps of a layer for the backward pass: everything, its
# input alone, or its input and the products of matrices, which leaves the
# cheap rest to be computed again.
REMAT = {
  'none': None,
  'blocks': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def run_layers(
  parent: nn.Module,
  make: Callable[[str | None], nn.Module],
  names: Sequence[str],
  x: jax.Array,
  *shared: Any,
  each: dict[str, Sequence | jax.Array | None],
  options: ComputeOptions,
) -> jax.Array:
  """Sends x through layers that differ in their parameters and `each` alone.

  The parameters are those of `parent`, one tree per layer, in both forms: a
  scan stacks them on the way in, so that state and checkpoints do not know it.

  Args:
    parent: the module whose children the layers are, within its call.
    make: name -> layer; None makes one that is not bound.
    names: of the layers, in order.
    x: what the first layer reads.
    *shared: further arguments of all layers.
    each: arguments by name, with one entry per layer, or None.
    options: say whether to scan and what to keep.
  """
  policy = REMAT[options.remat]

  def run(layer, x, shared, own):
    return layer(x, *shared, **own)

  if options.scan and names and not parent.is_initializing():

    def body(x, inputs):
      params, own = inputs
      layer = functools.partial(make(None).apply, {'params': params})
      return run(layer, x, shared, own), None

    if policy is not None:
      # A loop keeps the two computations apart by itself.
      body = jax.checkpoint(body, policy=policy, prevent_cse=False)
    params = [parent.variables['params'][name] for name in names]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    each = {k: None if v is None else jnp.asarray(v) for k, v in each.items()}
    return jax.lax.scan(body, x, (params, each))[0]

  if policy is not None:
    run = nn.remat(run, policy=policy)
  for i, name in enumerate(names):
    own = {k: None if v is None else v[i] for k, v in each.items()}
    x = run(make(name), x, shared, own)
  return x
