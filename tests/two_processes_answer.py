"""One of two processes with two devices; see test_question_answering.py."""

import sys

import jax

if __name__ == '__main__':
  port, index, output = sys.argv[1:]
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', 2)
  jax.distributed.initialize(f'localhost:{port}', 2, int(index))

  import numpy as np

  from tests import test_question_answering as asked
  from tests import test_retrieval as small

  rows = slice(2 * int(index), 2 * int(index) + 2)
  batches = (
    {name: value[rows] for name, value in batch.items()}
    for batch in small.batches(4, small.clips())
  )
  found = asked.answer(asked.make_model(), 4, batches, asked.QUESTIONS)
  np.savez(output, logits=found.logits, accuracy=found.metrics['accuracy'])
  jax.distributed.shutdown()
