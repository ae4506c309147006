"""launch/main.py with a loss that is not a number at one step.

python -m tests.reliability.nan_run STEP OPTIONS OF MAIN
"""

import runpy
import sys

import jax.numpy as jnp

from alpro_jax.tasks import prompter
from tests.tiny_run import ROOT

if __name__ == '__main__':
  bad = int(sys.argv.pop(1))
  real = prompter.Prompter.loss

  def loss(self, params, frozen, batch, key, step, **options):
    total, parts = real(self, params, frozen, batch, key, step, **options)
    # The state counts from 0.
    return total * jnp.where(step == bad - 1, jnp.nan, 1.0), parts

  prompter.Prompter.loss = loss
  sys.argv[0] = str(ROOT / 'launch' / 'main.py')
  runpy.run_path(sys.argv[0], run_name='__main__')
