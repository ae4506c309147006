"""Eight fake CPU devices for every test, set before jax is first used.

With ALPRO_TEST_DEVICE=gpu the tests run on the GPU instead, as it is used, and those
that are marked `gpu` run too.
"""

import gc
import hashlib
import os
import pathlib
import platform
import re
import shutil

import jax
import pytest
import pytest_timeout

from tests import patience

# What tests start imports this checkout, whichever one is installed.
os.environ['PYTHONPATH'] = os.pathsep.join(
  filter(None, (str(pathlib.Path(__file__).resolve().parents[1]), os.environ.get('PYTHONPATH')))
)
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
# Tracing makes many objects and few reference cycles. To look for these after every 700
# objects, as Python does, made test_trainable.py an eighth slower.
gc.set_threshold(50_000, 20, 20)
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
      '--xla_cpu_parallel_codegen_split_count=1',
      # Compiles in three quarters of the time; later versions have no such choice.
      '--xla_cpu_use_fusion_emitters=false' if jax.__version_info__ < (0, 11) else '',
    ]
  )
  jax.config.update('jax_platforms', 'cpu')

# Many tests compile the same programs. Whoever is first keeps them for the others: for
# pytest's other workers, for the processes that tests start, and for the next run.
PROGRAMS = pathlib.Path(__file__).resolve().parents[1] / '.pytest_cache' / 'programs'
MOST_BYTES = 2 << 30  # Of several versions of the code; then all are made anew.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  # JAX tells apart what compiled a program and by which options, but not for which processor.
  info = pathlib.Path('/proc/cpuinfo')
  text = info.read_text() if info.exists() else platform.processor()
  features = set(re.findall(r'^(?:flags|Features)\b.*', text, re.MULTILINE)) or {text}
  folder = PROGRAMS / hashlib.sha256('\n'.join(sorted(features)).encode()).hexdigest()[:12]
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(folder)
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
jax.config.update('jax_compilation_cache_dir', os.environ['JAX_COMPILATION_CACHE_DIR'])
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def pytest_collection_modifyitems(items):
  skip = pytest.mark.skip(reason='needs a GPU and ALPRO_TEST_DEVICE=gpu')
  for item in items:
    if item.get_closest_marker('gpu') and not ON_GPU:
      item.add_marker(skip)


def pytest_sessionfinish(session):
  if not hasattr(session.config, 'workerinput'):  # Not a worker of pytest-xdist.
    if sum(x.stat().st_size for x in PROGRAMS.rglob('*') if x.is_file()) > MOST_BYTES:
      shutil.rmtree(PROGRAMS, ignore_errors=True)  # Another run may delete it too.


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item, settings):
  """Lets the time limit of a test grow with the load of the machine at its start."""
  if settings.timeout:
    settings = settings._replace(timeout=patience.seconds(settings.timeout))
  return pytest_timeout.pytest_timeout_set_timer(item, settings)


@pytest.fixture(params=['gs', 's3'])
def bucket(request, tmp_path, monkeypatch):
  """The address of a bucket on loopback, of both kinds."""
  from tests import buckets_on_loopback  # With its servers, which few tests need.

  monkeypatch.setenv('ALPRO_CACHE', str(tmp_path / 'cache'))
  opened = {'gs': buckets_on_loopback.gcs, 's3': buckets_on_loopback.s3}[request.param]
  with opened() as (_, address):
    yield address
