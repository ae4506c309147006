"""Times the training step of a config on made-up data."""

import pathlib
import time
from collections.abc import Callable

import jax

from alpro_jax import sharding
from alpro_jax.train.progress import peak_memory_gib
from benchmarks import dry_run, kernels, profile, timing
from benchmarks.flops import step_flops


def measure(
  config,
  *,
  steps: int,
  warmup: int,
  peak_tflops: float,
  report: Callable[[dict[str, str | int | float | None]], None],
  trace: pathlib.Path | None = None,
) -> None:
  """Compiles and times the step.

  Args:
    config: see configs/common.py.
    steps: that are timed.
    warmup: steps before the clock starts.
    peak_tflops: of all devices together; 0 leaves the share of it out.
    report: takes the figures by name, before the profile, which takes minutes.
    trace: a folder for a profile of three more steps, see profile.py.
  """
  started = time.perf_counter()
  mesh = sharding.mesh_from_config(config.mesh)
  program = dry_run.program(config, mesh)
  task = program.task
  train_state = program.first(config.seed)
  frozen = sharding.create(task.init_frozen, jax.random.key(1), mesh)
  batch = jax.device_put(dry_run.noise(config), sharding.batch_sharding(mesh))

  begin = time.perf_counter()
  compiled = program.step.lower(train_state, frozen, batch).compile()
  compile_s = time.perf_counter() - begin
  memory = compiled.memory_analysis()

  def run():
    nonlocal train_state
    train_state, metrics = compiled(train_state, frozen, batch)
    return metrics

  for _ in range(warmup):
    metrics = run()
  jax.block_until_ready(metrics)
  spent = timing.time_steps(run, jax.block_until_ready, steps)
  loss = float(run()['loss'])
  b = config.data.batch_size
  flop = step_flops(config, task.model)
  of_original = step_flops(config, task.model, as_original=True)
  used = jax.local_devices()[0].memory_stats() or {}
  figures = {
    'device': jax.devices()[0].device_kind,
    'devices': jax.device_count(),
    'jax': jax.__version__,
    'dtype': config.model.dtype,
    'batch_size': b,
    'loss': loss,
    'compile_s': compile_s,
    'setup_s': begin - started,
    **spent,
    'clips_per_s': b / spent['step_s'],
    'model_tflop_per_clip': flop / b / 1e12,
    'model_tflop_per_s': flop / spent['step_s'] / 1e12,
    # What the original would have to do for as many clips.
    'original_tflop_per_clip': of_original / b / 1e12,
    'planned_temporary_gib': memory.temp_size_in_bytes / 2**30,
    'planned_argument_gib': memory.argument_size_in_bytes / 2**30,
    'peak_in_use_gib': used.get('peak_bytes_in_use', 0) / 2**30 or None,
    'memory_gib': used.get('bytes_limit', 0) / 2**30 or None,
    'peak_process_gib': peak_memory_gib(),
    'parameters': sum(x.size for x in jax.tree.leaves(train_state.model)),
  }
  if peak_tflops:
    figures['share_of_peak'] = figures['model_tflop_per_s'] / peak_tflops
    figures['share_of_peak_as_original'] = of_original / spent['step_s'] / 1e12 / peak_tflops
  report(figures)
  if trace is not None:
    on_gpu = jax.devices()[0].platform == 'gpu'
    found = kernels.parse(compiled.as_text()) if on_gpu else []
    text = profile.measure(run, found, trace, steps=3, step_s=spent['step_s'])
    (trace / 'kernels.md').write_text(text)
