"""One of two processes with two devices each; see test_checkpoints.py."""

import pathlib
import sys

import jax

if __name__ == '__main__':
  port, index, output = sys.argv[1:]
  jax.config.update('jax_num_cpu_devices', 2)
  jax.distributed.initialize(f'localhost:{port}', 2, int(index))

  import numpy as np
  from jax.experimental import multihost_utils

  from alpro_jax.train import checkpoints
  from tests.test_checkpoints import abstract, make_state

  output = pathlib.Path(output)
  want = abstract(make_state(0, devices=4))
  store = checkpoints.Checkpoints(output.parent)
  state = store.restore(3, want)
  store.close()
  kernel = state.params['dense']['kernel']
  assert kernel.sharding == want.params['dense']['kernel'].sharding
  assert len(kernel.addressable_shards) == 2, 'this process holds a half'
  whole = multihost_utils.process_allgather(state, tiled=True)
  np.savez(
    output, **{jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(whole)}
  )
  jax.distributed.shutdown()
