"""Eight fake CPU devices for every test, set before jax is first used."""

import os
import pathlib

import jax

# What tests start imports this checkout, whichever one is installed.
os.environ['PYTHONPATH'] = os.pathsep.join(
  filter(None, (str(pathlib.Path(__file__).resolve().parents[1]), os.environ.get('PYTHONPATH')))
)
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
# Tests compile often and run briefly; processes they start inherit this.
os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
  ]
)

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_platforms', 'cpu')
