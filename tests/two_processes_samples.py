"""One of two processes with two devices each; see test_samples.py."""

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
  from alpro_jax.data import dataset
  from alpro_jax.evaluation.during_training import DuringTraining
  from tests import test_samples

  dataset.open_dataset = test_samples.held_out
  output = pathlib.Path(output)
  own = output.with_suffix('')
  own.mkdir()
  plan, params = test_samples.plan_and_params(own, sharding.make_mesh())
  found = DuringTraining()(plan, params, 7)
  output.write_text(json.dumps({k: np.shape(v) if np.ndim(v) else v for k, v in found.items()}))
  jax.distributed.shutdown()
