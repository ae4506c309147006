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
  real = prompter.Prompter.terms

  def terms(self, params, targets, batch, key, step, **options):
    found = real(self, params, targets, batch, key, step, **options)
    total, count = found['loss/vtc']
    # The state counts from 0.
    total *= jnp.where(step == bad - 1, jnp.nan, 1.0)
    return found | {'loss/vtc': (total, count)}

  prompter.Prompter.terms = terms
  sys.argv[0] = str(ROOT / 'launch' / 'main.py')
  runpy.run_path(sys.argv[0], run_name='__main__')
