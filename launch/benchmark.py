"""Times the training step of a config on made-up data; needs no TensorFlow.

  python launch/benchmark.py --config=configs/pretrain.py \\
    --config.data.batch_size=64 --peak_tflops=790

  python launch/benchmark.py --config=configs/pretrain.py:demo

Prints and, with --output, writes as JSON: compile time, step time, clips/s,
model FLOP/s (by formula, recomputation not counted) and its share of the peak,
memory by the compiler's plan and, where the device tells, the highest in use.
"""

import json
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from alpro_jax import flops, sharding
from alpro_jax.batch import SpecialTokens, VideoTextBatch
from alpro_jax.tasks.base import TextInfo, get_task
from alpro_jax.train import optimizer, state, step

_CONFIG = config_flags.DEFINE_config_file('config', lock_config=True)
_STEPS = flags.DEFINE_integer('steps', 10, 'Timed steps.', lower_bound=1)
_WARMUP = flags.DEFINE_integer(
    'warmup', 3, 'Steps before the clock starts.', lower_bound=1
)
_PEAK = flags.DEFINE_float(
    'peak_tflops', 0.0,
    'Peak of all devices together in TFLOP/s; 0 leaves the share out.',
)
_OUTPUT = flags.DEFINE_string('output', '', 'A JSON file to write.')
ANSWERS = 1500  # As many as the original's question answering has.


def made_up_batch(config, text: TextInfo) -> VideoTextBatch:
  """A batch of noise with the config's shapes."""
  rng = np.random.default_rng(0)
  data = config.data
  b, size = data.batch_size, data.image_size
  ids = rng.integers(
      len(text.special), text.vocab_size, (b, data.max_text_tokens), np.int32
  )
  ids[:, 0], ids[:, -1] = text.special.cls, text.special.sep
  return VideoTextBatch(
      video=rng.integers(0, 256, (b, data.frames, size, size, 3), np.uint8),
      text_ids=ids,
      text_mask=np.ones(ids.shape, bool),
      video_id=np.arange(b, dtype=np.int32),
      caption_id=np.arange(b, dtype=np.int32),
      answer=np.zeros(b, np.int32),
      still=np.zeros(b, bool),
      valid=np.ones(b, bool),
  )


def made_up_lists(config, folder: str) -> None:
  """Points the config at lists of entities, as many as it asks, and answers."""
  path = pathlib.Path(folder) / 'entities.txt'
  count = config.prompter.num_entities or 1000
  path.write_text(''.join(f'entity{i} {count - i}\n' for i in range(count)))
  config.prompter.entities = str(path)
  path = pathlib.Path(folder) / 'answers.txt'
  path.write_text(''.join(f'answer{i}\n' for i in range(ANSWERS)))
  config.data.answers = str(path)


def measure(config, *, steps: int, warmup: int, peak_tflops: float) -> dict:
  """Compiles and times the step of a config; returns the figures."""
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
  sharding.check_batch_size(
      config.data.batch_size, mesh, accumulation=config.optimizer.accumulation
  )
  text = TextInfo(SpecialTokens(0, 1, 2, 3, 4), config.model.text.vocab_size)
  with tempfile.TemporaryDirectory() as folder:
    made_up_lists(config, folder)
    task = get_task(config, text, mesh)
  tx, schedule = optimizer.from_config(config.optimizer, config.train.steps)
  layout = jax.tree.map(
      lambda leaf: leaf.sharding, state.abstract_state(task.init, tx, mesh)
  )
  train_step = step.make_train_step(
      task, tx, schedule, mesh, layout,
      seed=config.seed, accumulation=config.optimizer.accumulation,
  )
  train_state = state.create_state(task.init, tx, mesh, config.seed)
  frozen = task.untrained_frozen(jax.random.key(1))
  batch = jax.device_put(
      made_up_batch(config, text), sharding.batch_sharding(mesh)
  )

  begin = time.perf_counter()
  compiled = train_step.lower(train_state, frozen, batch).compile()
  compile_s = time.perf_counter() - begin
  memory = compiled.memory_analysis()

  for _ in range(warmup):
    train_state, metrics = compiled(train_state, frozen, batch)
  jax.block_until_ready(metrics)
  begin = time.perf_counter()
  for _ in range(steps):
    train_state, metrics = compiled(train_state, frozen, batch)
  jax.block_until_ready(metrics)
  step_s = (time.perf_counter() - begin) / steps

  b = config.data.batch_size
  flop = b * flops.train_step(
      task.model.config,
      frames=config.data.frames,
      image_size=config.data.image_size,
      length=config.data.max_text_tokens,
      vtm=bool(config.loss.vtm) and config.task in ('pretrain', 'retrieval'),
      mlm=bool(config.loss.mlm) and config.task == 'pretrain',
      pem=bool(config.loss.pem) and config.task == 'pretrain',
  )
  used = jax.local_devices()[0].memory_stats() or {}
  figures = {
      'device': jax.devices()[0].device_kind,
      'devices': jax.device_count(),
      'jax': jax.__version__,
      'dtype': config.model.dtype,
      'batch_size': b,
      'loss': float(metrics['loss']),
      'compile_s': compile_s,
      'step_s': step_s,
      'clips_per_s': b / step_s,
      'model_tflop_per_clip': flop / b / 1e12,
      'model_tflop_per_s': flop / step_s / 1e12,
      'planned_temporary_gib': memory.temp_size_in_bytes / 2**30,
      'planned_argument_gib': memory.argument_size_in_bytes / 2**30,
      'peak_in_use_gib': used.get('peak_bytes_in_use', 0) / 2**30 or None,
      'parameters': sum(x.size for x in jax.tree.leaves(train_state.params)),
  }
  if peak_tflops:
    figures['share_of_peak'] = figures['model_tflop_per_s'] / peak_tflops
  return figures


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  if _CONFIG.value is None:
    raise app.UsageError('pass --config=configs/pretrain.py')
  figures = measure(
      _CONFIG.value, steps=_STEPS.value, warmup=_WARMUP.value,
      peak_tflops=_PEAK.value,
  )
  for name, value in figures.items():
    shown = f'{value:,.4g}' if isinstance(value, float) else value
    print(f'{name:24}{shown}')
  if _OUTPUT.value:
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=2) + '\n')


if __name__ == '__main__':
  app.run(main)
