"""Eight fake CPU devices for every test, set before jax is first used."""

import os

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
# Tests compile often and run briefly; processes they start inherit this.
os.environ['XLA_FLAGS'] = ' '.join([
    os.environ.get('XLA_FLAGS', ''),
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
])

import jax  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_platforms', 'cpu')
