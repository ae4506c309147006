"""Eight fake CPU devices for every test, set before jax is first used."""

import os
import pathlib

import jax
import pytest
import pytest_timeout

from tests import patience

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


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item, settings):
  """Lets the time limit of a test grow with the load of the machine at its start."""
  if settings.timeout:
    settings = settings._replace(timeout=patience.seconds(settings.timeout))
  return pytest_timeout.pytest_timeout_set_timer(item, settings)
