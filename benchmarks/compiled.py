"""Figures of a compiled training step, from its text and published rates."""

import dataclasses

import jax

from benchmarks import collectives, dry_run, kernels
from benchmarks.chips import Chip
from benchmarks.flops import step_flops


def compile_step(config, mesh):
  """Compiles the real training step for the devices of a mesh.

  Returns:
    the compiled program, and the model that it trains.
  """
  program = dry_run.program(config, mesh)
  lowered = program.step.lower(program.state, program.frozen, program.batch)
  device, options = mesh.devices.flat[0], {}
  if device.platform == 'gpu' and device not in jax.devices():
    # Tiles of Triton's products are chosen by trying them; without a GPU the
    # first guess may be one that its compiler refuses.
    options['xla_gpu_enable_triton_gemm'] = False
  return lowered.compile(compiler_options=options), program.task.model


def memory(compiled, chip: Chip | None) -> dict[str, float | bool]:
  """What each chip holds, in GiB, and whether it has room for it.

  The compiler does not object when a program needs more than there is.
  """
  plan = compiled.memory_analysis()
  parts = {
    'argument_gib': plan.argument_size_in_bytes,
    'output_gib': plan.output_size_in_bytes,
    # Donated arguments, whose room outputs take.
    'aliased_gib': plan.alias_size_in_bytes,
    'temporary_gib': plan.temp_size_in_bytes,
    'program_gib': plan.generated_code_size_in_bytes,
  }
  total = sum(parts.values()) - 2 * plan.alias_size_in_bytes
  figures = {name: size / 2**30 for name, size in parts.items()}
  figures['total_gib'] = total / 2**30
  if chip:
    figures['chip_gib'] = chip.memory_bytes / 2**30
    figures['fits'] = total <= chip.memory_bytes
  return figures


def communication(text: str, chip: Chip | None) -> dict:
  """What each chip sends in one step, and how long that takes at least.

  A reduction or a gathering can use all links of a chip at once, a step of a
  ring one of them. What goes between TPU slices is counted apart and not timed.
  """
  found = collectives.parse(text)
  table = collectives.totals(one for one in found if not one.between_slices)
  slow = collectives.totals(one for one in found if one.between_slices)
  figures = {
    'collectives': {kind: dataclasses.asdict(total) for kind, total in table.items()},
    'sent_bytes': sum(total.sent_bytes for total in table.values()),
  }
  if slow:
    figures['between_slices'] = {kind: dataclasses.asdict(total) for kind, total in slow.items()}
    figures['sent_between_slices_bytes'] = sum(total.sent_bytes for total in slow.values())
  if chip:
    figures['communication_s'] = sum(
      total.sent_bytes
      / (chip.link_bytes_per_s if kind == 'collective-permute' else chip.send_bytes_per_s)
      for kind, total in table.items()
    )
  return figures


def computation(config, model, compiled, mesh, chip: Chip | None) -> dict:
  """Operations of each chip, and how long they take at its published rate."""
  needed = step_flops(config, model) / mesh.size
  figures = {'tflop': needed / 1e12}
  # By the compiler: bodies of loops once, recomputation included. It does not
  # count for GPUs that are not there.
  if counted := compiled.cost_analysis():
    figures['tflop_by_compiler'] = counted['flops'] / 1e12
  if chip:
    figures['compute_s'] = needed / chip.flops
  return figures


def roofline(found: list[kernels.Kernel], chip: Chip | None) -> dict:
  """What the kernels of a GPU's program do, see kernels.py."""
  result = {
    'kernels': sum(one.runs for one in found),
    'moved_gb': sum(one.runs * one.moved_bytes for one in found) / 1e9,
    'product_tflop': sum(one.runs * one.flops for one in found) / 1e12,
  }
  if chip:
    result['roofline_s'] = sum(one.seconds(chip) for one in found)
  return result


def figures(config, compiled, text: str, model, mesh, chip: Chip | None) -> dict:
  """Returns what each chip does in a step.

  Args:
    config: see configs/common.py.
    compiled: its step, of `compile_step`.
    text: of that, which takes a while to write.
    model: that the step trains.
    mesh: that it was compiled for.
    chip: published figures; None leaves out what follows from them.
  """
  result = {
    'chips': mesh.size,
    'mesh': dict(mesh.shape),
    'jax': jax.__version__,
    'dtype': config.model.dtype,
    'batch_size': config.data.batch_size,
    'memory': memory(compiled, chip),
    'computation': computation(config, model, compiled, mesh, chip),
    'communication': communication(text, chip),
  }
  if chip:
    compute = result['computation']['compute_s']
    sending = result['communication']['communication_s']
    result['bound'] = 'compute' if compute > sending else 'communication'
  return result
