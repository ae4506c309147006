"""One of two processes with other options and other data; see test_loop.py."""

import pathlib
import sys

import jax

if __name__ == '__main__':
  port, index, output = sys.argv[1:]
  jax.config.update('jax_num_cpu_devices', 1)
  jax.distributed.initialize(f'localhost:{port}', 2, int(index))

  from alpro_jax.train import resume

  meta = {'config': {'seed': 1}, 'model': {}, 'tokenizer': {}, 'data': ['d1']}
  resume.check_same_everywhere(meta)  # The same: nothing is raised.
  if index == '1':
    # A longer text than that of process 0, too.
    meta = {**meta, 'config': {'seed': 2, 'loss': {'pem': 0.5}}, 'data': ['d2']}
  try:
    resume.check_same_everywhere(meta)
  except ValueError as error:
    pathlib.Path(output).write_text(str(error))
  jax.distributed.shutdown()
