"""The profile: time by instruction, of this machine and as a GPU tells it."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from benchmarks import kernels, profile


@dataclasses.dataclass
class Event:
  name: str
  duration_ns: float
  stats: tuple = ()


@dataclasses.dataclass
class Named:
  """A line with events, or a plane with lines."""

  name: str
  events: tuple = ()
  lines: tuple = ()


@dataclasses.dataclass
class Data:
  planes: tuple


def of_a_gpu():
  def event(name, microseconds):
    return Event('kernel_of_a_library', microseconds * 1e3, (('hlo_op', name),))

  stream = Named(
    'Stream #17(Compute)',
    events=(
      event('gemm.1', 300),
      event('gemm.2', 100),
      event('loop_fusion.7', 50),
      event('gemm.1', 300),
      event('gemm.2', 100),
      event('loop_fusion.7', 50),
      Event('MemcpyH2D', 1e9),
    ),
  )
  again = Named('XLA Ops', events=(event('gemm.1', 300),))
  return Data(
    (
      Named('/host:CPU', lines=(Named('python', events=(event('x', 9),)),)),
      Named('/device:GPU:0', lines=(stream, again)),
    )
  )


def test_a_device_counts_its_streams_alone():
  found = profile.by_instruction(of_a_gpu())
  assert {k: round(v * 1e6) for k, v in found.items()} == {
    'gemm.1': 600,
    'gemm.2': 200,
    'loop_fusion.7': 100,
  }


def test_the_table_has_the_rates_of_a_step():
  def gemm(name, layer):
    return kernels.Kernel(name, 'cublas', 'bf16[8,8]', f'layer{layer}/dot', 10**6, 10**9, runs=1)

  known = [gemm('gemm.1', 3), gemm('gemm.2', 4)]
  text = profile.table(profile.by_instruction(of_a_gpu()), known, steps=2, step_s=5e-4)
  lines = text.splitlines()
  assert lines[0] == '0.45 ms of kernels in a step of 0.50 ms.'
  # 0.4 ms for 2 MB and 2 GFLOP: 5 GB/s and 5 TFLOP/s.
  assert lines[4] == '| 0.400 | 2 | 5 | 5.0 | cublas | bf16[8,8] | layer*/dot |'
  # What is not known by the program's text has its name and time.
  assert lines[5] == '| 0.050 |  |  |  |  |  | loop_fusion |'


# Of jaxlib's own type, with Python 3.12; as an error within C++ it aborts.
@pytest.mark.filterwarnings('ignore:builtin type event_stats')
def test_a_trace_of_this_machine(tmp_path):
  step = jax.jit(lambda x: jnp.tanh(x @ x) @ x)
  x = jnp.ones((256, 256))
  step(x)
  text = profile.measure(lambda: step(x), [], tmp_path / 'trace', steps=2, step_s=0.5)
  assert 'tanh' in text and ' ms of kernels in a step of 500.00 ms.' in text
