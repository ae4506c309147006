"""What makes numbers differ between machines: how many threads XLA has on a CPU."""

import os
import subprocess
import sys

import pytest

# A product and a sum, as gradients are made of them.
PROGRAM = """
import hashlib, os, sys
os.sched_setaffinity(0, {int(x) for x in sys.argv[1].split(',')})
import jax, numpy as np
x = jax.random.normal(jax.random.key(0), (3000, 300))
found = jax.jit(lambda x: (x.T @ x[:, :200], x.sum(0)))(x)
print(hashlib.sha256(b''.join(np.asarray(one).tobytes() for one in found)).hexdigest())
"""


def digest(cores, threads):
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, ','.join(map(str, cores))],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '', 'PJRT_NPROC': str(threads)},
    capture_output=True,
    text=True,
    check=True,
  )
  return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='cores can be chosen on Linux')
def test_as_many_threads_give_the_same_numbers_on_any_cores():
  cores = sorted(os.sched_getaffinity(0))
  if len(cores) < 2:
    pytest.skip('one core has nothing to compare with')
  one, two = digest(cores[:1], threads=2), digest(cores[:2], threads=2)
  assert one == two
  assert digest(cores[:2], threads=1) != two
