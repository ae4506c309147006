"""One of two processes with two devices each; see test_retrieval.py."""

import json
import pathlib
import sys

import jax

if __name__ == '__main__':
  port, index, output = sys.argv[1:]
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', 2)
  jax.distributed.initialize(f'localhost:{port}', 2, int(index))

  import numpy as np

  from alpro_jax import sharding
  from tests import test_retrieval as small

  model = small.make_model()
  params = jax.device_put(
    jax.tree.map(np.asarray, model[1]), sharding.replicated(sharding.make_mesh())
  )
  scorer = small.scorer((model[0], params), devices=4, pairs_per_call=8)
  rows = slice(2 * int(index), 2 * int(index) + 2)

  def batches(count):
    for batch in small.batches(4, small.clips()[:count]):
      yield {name: value[rows] for name, value in batch.items()}

  pathlib.Path(output).write_text(json.dumps(small.figures_of(scorer, batches)))
  jax.distributed.shutdown()
