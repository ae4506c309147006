"""The formula of a step's memory agrees with what compilers plan, and knows what is there."""

import jax
import pytest

from alpro_jax import machine, memory, sharding
from benchmarks import dry_run
from configs import common, finetune, finetune_msrvtt_retrieval

GIB = 2**30
# (task, model, batch, accumulation, frames, dtype, remat, kind) -> arguments and temporaries
# in GiB, of jax 0.10.2: on a CPU of memory_analysis(), of an H200 docs/performance.md.
COMPILED = {
  ('pretrain', 'tiny', 16, 1, 4, 'float32', 'none', 'cpu'): 0.097,
  ('pretrain', 'tiny', 64, 1, 4, 'float32', 'none', 'cpu'): 0.380,
  ('pretrain', 'small', 8, 1, 4, 'float32', 'none', 'cpu'): 0.840,
  ('pretrain', 'small', 32, 1, 4, 'float32', 'none', 'cpu'): 2.907,
  ('pretrain', 'small', 32, 2, 4, 'float32', 'none', 'cpu'): 1.568,
  ('pretrain', 'small', 32, 1, 4, 'bfloat16', 'none', 'cpu'): 2.564,
  ('pretrain', 'small', 64, 1, 4, 'float32', 'blocks', 'cpu'): 5.836,
  ('prompter', 'small', 32, 1, 4, 'float32', 'none', 'cpu'): 1.868,
  ('retrieval', 'small', 32, 1, 4, 'float32', 'none', 'cpu'): 2.439,
  ('retrieval', 'small', 16, 1, 8, 'float32', 'none', 'cpu'): 2.089,
  ('question_answering', 'small', 32, 1, 4, 'float32', 'none', 'cpu'): 2.044,
  ('pretrain', 'base', 4, 1, 4, 'float32', 'none', 'cpu'): 10.682,
  ('pretrain', 'base', 8, 1, 4, 'float32', 'blocks', 'cpu'): 19.726,
  ('pretrain', 'base', 64, 1, 4, 'bfloat16', 'none', 'gpu'): 45.0,
  ('pretrain', 'base', 256, 1, 4, 'bfloat16', 'blocks', 'gpu'): 21.5,
}


def make(task, model, batch, accumulation, frames, dtype, remat):
  config = common.get_config(model)
  if task == 'retrieval':
    config = finetune.retrieval(config)
  elif task == 'question_answering':
    config = finetune.question_answering(config)
  config.task, config.optimizer.accumulation = task, accumulation
  config.model.update({'dtype': dtype, 'remat': remat})
  size = config.model.video.image_size
  config.data.update({'batch_size': batch, 'frames': frames, 'image_size': size})
  config.model.video.frames = frames
  return config


def of_device(need):
  return (need.state + need.activations) / GIB


@pytest.mark.parametrize('case', COMPILED, ids=lambda case: '-'.join(map(str, case)))
def test_the_formula_is_within_a_share_that_a_choice_leaves_free(case):
  *options, kind = case
  need = of_device(memory.of_step(make(*options), kind=kind))
  assert 0.88 < need / COMPILED[case] < 1.12


TOWERS = 'video_encoder,text_tower,text_embedding,text_encoder'
# (preset, batch, kind, freeze, rank of LoRA) -> the same of retrieval with parts held: of an
# A100 by launch/compile_for.py, with remat=blocks and 12 frames.
HELD = {
  ('tiny', 64, 'cpu', 'video_encoder,text_encoder,text_embedding', 0): 0.1016,
  ('tiny', 64, 'cpu', 'text_embedding,(video|text|fusion)_encoder', 8): 0.2414,
  ('clip_l14', 32, 'gpu', '', 0): 22.73,
  ('clip_l14', 32, 'gpu', f'{TOWERS},fusion_encoder', 8): 14.67,
  ('clip_l14', 32, 'gpu', TOWERS, 0): 6.15,
}


@pytest.mark.parametrize('case', HELD, ids=lambda case: '-'.join(map(str, case)))
def test_what_is_held_has_no_moments_and_keeps_nothing_below_what_is_trained(case):
  preset, batch, kind, freeze, rank = case
  if kind == 'gpu':
    config = finetune_msrvtt_retrieval.get_config(preset)
    config.data.batch_size, config.model.remat = batch, 'blocks'
  else:
    config = make('retrieval', preset, batch, 1, 4, 'float32', 'none')
  config.optimizer.freeze, config.optimizer.lora.rank = freeze, rank
  assert 0.88 < of_device(memory.of_step(config, kind=kind)) / HELD[case] < 1.12


def test_what_lies_above_the_lowest_trained_layer_is_kept():
  config = make('retrieval', 'tiny', 64, 1, 4, 'float32', 'none')
  kept = {}
  for freeze in ('', r'video_encoder/(?!block2).*', 'video_encoder', 'video_encoder,text_.*'):
    config.optimizer.freeze = freeze
    kept[freeze] = memory.of_step(config).activations
  assert list(kept.values()) == sorted(kept.values(), reverse=True)
  assert len(set(kept.values())) == 4
  config.data.features = 'anywhere'
  assert memory.of_step(config).activations <= min(kept.values())
  config.data.features, config.optimizer.freeze = '', ''
  all_of_it = memory.of_step(config)
  config.train.ema_decay = 0.9
  assert memory.of_step(config).state == all_of_it.state * 20 // 16
  # Factors in every block: a gradient passes all.
  config.optimizer.lora.rank = 2
  adapted = memory.of_step(config)
  assert adapted.activations == all_of_it.activations


@pytest.mark.slow
def test_the_present_program_needs_what_the_formula_says():
  config = make('retrieval', 'tiny', 64, 1, 4, 'float32', 'none')
  program = dry_run.program(config, sharding.make_mesh(devices=jax.devices()[:1]))
  compiled = program.step.lower(program.state, program.frozen, program.batch).compile()
  plan = compiled.memory_analysis()
  planned = (plan.argument_size_in_bytes + plan.temp_size_in_bytes) / GIB
  assert 0.88 < of_device(memory.of_step(config)) / planned < 1.12


def test_devices_share_the_batch_and_fsdp_the_state():
  config = make('pretrain', 'base', 64, 1, 4, 'bfloat16', 'none')
  one, eight = (memory.of_step(config, kind='gpu', devices=devices) for devices in (1, 8))
  assert eight.state == one.state and eight.activations == one.activations // 8
  config.mesh.fsdp = 8
  assert memory.of_step(config, kind='gpu', devices=8).state == one.state // 8


def system(folder, *, available, cgroup, files):
  """Writes what Linux would tell in /proc and /sys/fs/cgroup."""
  proc = folder / 'proc'
  (proc / 'self').mkdir(parents=True)
  (proc / 'meminfo').write_text(f'MemTotal: 9 kB\nMemAvailable: {available // 1024} kB\n')
  (proc / 'self' / 'cgroup').write_text(cgroup)
  for name, text in files.items():
    path = folder / 'groups' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  return machine.host_memory(proc, folder / 'groups')


@pytest.mark.parametrize(
  'cgroup, files',
  [
    # Version 2: the limit of a group above counts; what is cached can be had.
    (
      '0::/user/run\n',
      {
        'user/memory.max': f'{8 * GIB}\n',
        'user/memory.current': f'{5 * GIB}\n',
        'user/memory.stat': f'anon 1\ninactive_file {GIB}\n',
        'user/run/memory.max': 'max\n',
      },
    ),
    # Version 1.
    (
      '4:memory:/run\n0::/\n',
      {
        'memory/run/memory.limit_in_bytes': f'{6 * GIB}\n',
        'memory/run/memory.usage_in_bytes': f'{2 * GIB}\n',
      },
    ),
    # In a container the root has it, whatever the path.
    ('0::/docker/abc\n', {'memory.max': f'{4 * GIB}\n', 'memory.current': '0\n'}),
  ],
)
def test_the_control_group_limits_what_is_free(tmp_path, cgroup, files):
  found = system(tmp_path, available=64 * GIB, cgroup=cgroup, files=files)
  assert found == (4 * GIB, 'limit of the control group')


def test_without_a_limit_all_that_is_free_counts(tmp_path):
  files = {'memory/memory.limit_in_bytes': '9223372036854771712\n'}
  found = system(tmp_path, available=64 * GIB, cgroup='4:memory:/\n', files=files)
  assert found == (64 * GIB, 'free memory')
  assert machine.host_memory(tmp_path / 'none', tmp_path / 'none') == (0, 'unknown')


def test_a_machine_can_be_pretended():
  options = common.get_config().machine
  assert machine.ask(options).kind == 'cpu'
  options.update({'device': 'gpu', 'memory_gib': 24.0})
  assert machine.ask(options)[:2] == ('gpu', 24 * GIB)
  options.device = 'abacus'
  with pytest.raises(ValueError, match='must be one of'):
    machine.ask(options)


def test_what_says_that_memory_ran_out():
  for error in (
    MemoryError(),
    RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.'),
    jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Failed to allocate'),
  ):
    assert machine.out_of_memory(error)
  for error in (RuntimeError('INTERNAL: no'), ValueError('RESOURCE_EXHAUSTED'), OSError('disk')):
    assert not machine.out_of_memory(error)
