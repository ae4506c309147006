"""GFLOP/s of a Dense of `base`: forward, and both gradients.

  taskset -c 0 python -m benchmarks.products

By JAX as it is, by matmul.py (bfloat16 on a CPU), and by PyTorch if it is installed. 1,576
rows are the tokens of two clips. What a core can do at most, nobody tells a program: the
largest figure is a lower bound of it.
"""

import argparse
import importlib.util
import statistics
import time

import jax
import jax.numpy as jnp
from flax import linen as nn

from alpro_jax.models import matmul

_ROWS, _LAYERS = 1576, ((768, 768), (768, 3072), (3072, 768))
_REPEATS = 12


def main():
  argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  ).parse_args()
  ways = {'jax': _by_jax(nn.Dense), 'matmul.py': _by_jax(matmul.Dense)}
  if importlib.util.find_spec('torch'):
    import torch

    ways[f'torch {torch.__version__}'] = _by_torch
  print(f'jax {jax.__version__}, {jax.local_devices()[0].device_kind}, {_ROWS} rows')
  for dtype in ('float32', 'bfloat16'):
    for way, make in ways.items():
      if way == 'matmul.py' and dtype == 'float32':
        continue
      for layer in _LAYERS:
        forward, backward = make(dtype, *layer)
        flops = 2 * _ROWS * layer[0] * layer[1] / 1e9
        figures = flops / _seconds(forward), 2 * flops / _seconds(backward)
        said = 'forward {:4.0f}, both gradients {:4.0f}'.format(*figures)
        print(f'{dtype:9} {way:20} {layer[0]:4} -> {layer[1]:4}: {said}', flush=True)


def _by_jax(dense):
  def make(dtype, width, out):
    x, kernel, of_out = (
      jnp.ones(shape, dtype) for shape in ((_ROWS, width), (width, out), (_ROWS, out))
    )
    layer, bias = dense(out, dtype=dtype), jnp.ones(out)

    def product(x, kernel):
      return layer.apply({'params': {'kernel': kernel, 'bias': bias}}, x)

    forward = jax.jit(product)
    backward = jax.jit(lambda x, kernel, of_out: jax.vjp(product, x, kernel)[1](of_out))
    return (
      lambda: forward(x, kernel).block_until_ready(),
      lambda: jax.block_until_ready(backward(x, kernel, of_out)),
    )

  return make


def _by_torch(dtype, width, out):
  import torch

  dtype = getattr(torch, dtype)
  x, kernel = torch.ones(_ROWS, width, dtype=dtype), torch.ones(out, width, dtype=dtype)
  of_out = torch.ones(_ROWS, out, dtype=dtype)
  return (lambda: torch.nn.functional.linear(x, kernel), lambda: (of_out @ kernel, of_out.T @ x))


def _seconds(run):
  """The median of a few calls, after two."""
  times = []
  for number in range(2 + _REPEATS):
    begin = time.perf_counter()
    run()
    if number > 1:
      times.append(time.perf_counter() - begin)
  return statistics.median(times)


if __name__ == '__main__':
  main()
