"""Eight fake CPU devices for every test, set before jax is first used.

With ALPRO_TEST_DEVICE=gpu the tests run on the GPU instead, as it is used, and those
that are marked `gpu` run too.
"""

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
ON_GPU = os.environ.get('ALPRO_TEST_DEVICE') == 'gpu'

jax.config.update('jax_num_cpu_devices', 8)
if ON_GPU:
  # Else a product of float32 has the precision of TF32.
  jax.config.update('jax_default_matmul_precision', 'highest')
else:
  # Tests compile often and run briefly; processes they start inherit this.
  os.environ['XLA_FLAGS'] = ' '.join(
    [
      os.environ.get('XLA_FLAGS', ''),
      '--xla_backend_optimization_level=0',
      '--xla_llvm_disable_expensive_passes=true',
    ]
  )
  jax.config.update('jax_platforms', 'cpu')


def pytest_collection_modifyitems(items):
  skip = pytest.mark.skip(reason='needs a GPU and ALPRO_TEST_DEVICE=gpu')
  for item in items:
    if item.get_closest_marker('gpu') and not ON_GPU:
      item.add_marker(skip)


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item, settings):
  """Lets the time limit of a test grow with the load of the machine at its start."""
  if settings.timeout:
    settings = settings._replace(timeout=patience.seconds(settings.timeout))
  return pytest_timeout.pytest_timeout_set_timer(item, settings)
