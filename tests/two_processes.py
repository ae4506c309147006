"""One of two processes with two devices each; see test_step.py."""

import pathlib
import sys

import jax

if __name__ == '__main__':
  port, index, folder = sys.argv[1:]
  jax.config.update('jax_num_cpu_devices', 2)
  jax.distributed.initialize(f'localhost:{port}', 2, int(index))

  import numpy as np

  from alpro_jax import sharding
  from tests import small_task

  folder = pathlib.Path(folder)
  own = folder / f'process{index}'
  own.mkdir()
  config = small_task.small_config(own)
  mesh = sharding.make_mesh()
  assert mesh.size == 4, mesh
  metrics, gradients = small_task.gradients_on(config, mesh)
  if jax.process_index() == 0:
    arrays = {f'metrics/{k}': v for k, v in metrics.items()}
    for path, leaf in jax.tree.leaves_with_path(gradients):
      arrays[jax.tree_util.keystr(path)] = leaf
    np.savez(folder / 'gradients.npz', **arrays)
  jax.distributed.shutdown()
