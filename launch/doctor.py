"""Checks a machine, and what a run needs, before the run does.

  python launch/doctor.py
  python launch/doctor.py --config=configs/pretrain.py:own \\
    --workdir=runs/pretrain --config.prompter.checkpoint=runs/prompter

Looks at versions, devices, memory, disk, data sets (counts and digests),
tokenizer, lists, checkpoints, and compiles and takes one step of the config on
made-up data. Without --config that step is the demo's. Says what is wrong and
how to fix it. Exit code: 0 if a run can start, 1 if not.
"""

try:
  from launch import command
except ModuleNotFoundError:
  import not_installed  # noqa: F401

import os
import pathlib
import shutil
import sys
import time

from absl import flags, logging

from alpro_jax import buckets, files, machine
from alpro_jax.data.annotations import printable_lines
from alpro_jax.machine import GIB

_CONFIG = command.config_flag('Config file of the run, e.g. configs/pretrain.py:own.')
_WORKDIR = flags.DEFINE_string('workdir', '', 'Folder of the run.')
_STEP = flags.DEFINE_bool('step', True, 'Compile and take one step.')


class Doctor:
  """Prints findings as they come, and counts those that stop a run."""

  def __init__(self):
    self.errors = 0

  def good(self, what, text):
    self._say('ok', what, text)

  def warn(self, what, text, fix=''):
    self._say('warning', what, text, fix)

  def bad(self, what, text, fix=''):
    self.errors += 1
    self._say('ERROR', what, text, fix)

  def check(self, what, call, fix):
    """Says what `call` returns, or its error, and how to fix it."""
    try:
      self.good(what, call())
    except (ValueError, OSError, KeyError, ImportError) as error:
      self.bad(what, command.describe(error), fix)

  def _say(self, level, what, text, fix=''):
    print(printable_lines(f'{level:<8} {what}: {text}'))
    if fix:
      print(f'         fix: {fix}')
    sys.stdout.flush()


def main():
  logging.set_verbosity(logging.ERROR)
  doctor = Doctor()
  check_versions(doctor)
  check_devices(doctor)
  config = _CONFIG.value
  if config is not None:
    config = settle_run(doctor, config)
    if config is None:
      end(doctor)
    check_inputs(doctor, config)
    check_checkpoints(doctor, config)
  if _WORKDIR.value:
    check_workdir(doctor, config)
  if config is not None and not doctor.errors:
    check_run(doctor, config)
  if _STEP.value:
    check_step(doctor, config)
  end(doctor)
  print(
    '\nReady.' if config is not None else '\nThe machine is ready; add --config to check a run.'
  )


def end(doctor):
  """Ends the command if something would stop a run."""
  if doctor.errors:
    print(f'\n{doctor.errors} found that would stop a run.')
    sys.exit(1)


def settle_run(doctor, config):
  """Chooses sets and sizes as launch/main.py does; returns the config, None if it refuses."""
  command.start()
  from launch import settle

  try:
    settled = settle.settle(config, _WORKDIR.value, given=command.given_options())
  except (ValueError, OSError, ImportError) as error:
    doctor.bad('choice', command.describe(error))
    return None
  for sentence in settled.said:
    doctor.good('choice', sentence)
  if settled.pretended:
    doctor.bad('choice', settled.pretended)
    return None
  return settled.config


def check_versions(doctor):
  """Compares what is installed with requirements.txt."""
  import platform
  from importlib import metadata

  from packaging.requirements import Requirement

  lines = (command.ROOT / 'requirements.txt').read_text().splitlines()
  wanted = [Requirement(line) for line in lines if line.strip() and not line.startswith(('#', '-'))]
  own = map(Requirement, metadata.requires('alpro_jax') or ())
  needed = {need.name for need in own if not need.marker or need.marker.evaluate({'extra': ''})}
  missing, absent, other = [], [], []
  for need in wanted:
    if need.marker and not need.marker.evaluate():
      continue
    try:
      version = metadata.version(need.name)
    except metadata.PackageNotFoundError:
      (missing if need.name in needed else absent).append(need.name)
      continue
    if not need.specifier.contains(version, prereleases=True):
      other.append(f'{need.name} {version} (tried with{need.specifier})')
  fix = f'{sys.executable} -m pip install -r requirements.txt'
  if missing:
    doctor.bad('packages', f'not installed: {", ".join(missing)}', fix)
  if absent:
    doctor.warn('packages', f'not installed, for tests and extras alone: {", ".join(absent)}', fix)
  if other:
    doctor.warn('packages', f'other versions: {", ".join(other)}', fix)
  if not (missing or absent or other):
    doctor.good(
      'packages',
      f'Python {platform.python_version()}, jax '
      f'{metadata.version("jax")}, all as in requirements.txt',
    )


def check_devices(doctor):
  """Says which devices jax found, and which it should have found."""
  import jax

  try:
    found = jax.devices()
  except RuntimeError as error:
    doctor.bad('devices', error, 'JAX_PLATFORMS=cpu to do without them')
    return
  first = found[0]
  doctor.good(
    'devices', f'{len(found)} x {first.device_kind} ({first.platform}), {os.cpu_count()} CPU cores'
  )
  if first.platform == 'cpu':
    if shutil.which('nvidia-smi'):
      doctor.warn(
        'devices',
        'there is an NVIDIA driver, but jax uses the CPU',
        f'{sys.executable} -m pip install "jax[cuda12]"',
      )
    elif any(pathlib.Path('/dev').glob('accel*')):
      doctor.warn(
        'devices',
        'there is a TPU, but jax uses the CPU',
        f'{sys.executable} -m pip install "jax[tpu]"',
      )
  free, limit = machine.host_memory()
  if free:
    total = machine.total_memory()
    doctor.good('memory', f'{free / GIB:.1f} of {total / GIB:.1f} GiB are left ({limit})')
  limit = (first.memory_stats() or {}).get('bytes_limit')
  if limit:
    doctor.good('memory', f'{limit / GIB:.1f} GiB on each device')


def check_inputs(doctor, config):
  """Opens data sets, tokenizer and lists as a run would."""
  from alpro_jax.data import answers, dataset, entities, mixture, tokens

  tokenizer, opened = None, []

  def open_tokenizer():
    nonlocal tokenizer
    tokenizer = tokens.load_tokenizers(config)
    return '; '.join(f'{one.path}, {one.vocab_size} pieces' for one in tokens.parts(tokenizer))

  def open_sources():
    opened.extend(mixture.open_sources(config.data))
    mixture.check_schedule(opened, config.train.steps)
    return '; '.join(
      f'{source.name}: {source.num_records:,} records, '
      f'{source.num_texts:,} {source.text}' + (f' of style {source.style}' if source.style else '')
      for source in opened
    )

  def open_held_out():
    return '; '.join(
      f'{source.path}, {source.split}: '
      f'{len(dataset.open_dataset(source.path, source.split)):,} records'
      for source in config.eval.sources
    )

  def read_entities():
    options = config.prompter
    names = entities.read_entities(options.entities, options.num_entities)
    return f'{len(names)} in {options.entities}'

  doctor.check(
    'tokenizer',
    open_tokenizer,
    'python launch/tokenizer.py --captions=SET --output=tokenizer.model; '
    '--config.data.tokenizer=tokenizer.model',
  )
  doctor.check(
    'data',
    open_sources,
    'python launch/prepare.py --help makes a set; for a damaged one: '
    'python launch/prepare.py verify SET --output=REPAIRED',
  )
  if config.eval.sources:
    doctor.check(
      'held-out data',
      open_held_out,
      'python launch/prepare.py --help, or --config.eval.sources="()"',
    )
  if config.task == 'pretrain' and config.loss.pem:
    doctor.check(
      'entities',
      read_entities,
      'python launch/entities.py --captions=SET --output=entities.txt; '
      '--config.prompter.entities=entities.txt',
    )
  if config.task == 'question_answering':
    doctor.check(
      'answers',
      lambda: f'{len(answers.read_answers(config.data.answers))} in {config.data.answers}',
      'python launch/answers.py --data=SET --output=answers.txt; --config.data.answers=answers.txt',
    )
  if tokenizer and opened:
    _check_words(doctor, tokenizer, opened, config.data.max_text_tokens)


def _check_words(doctor, tokenizer, sources, length):
  """Says if texts are truncated or not known to the tokenizer."""
  texts = [one.read_text(i) for one in sources for i in range(min(one.num_texts, 2000))]
  ids, mask = tokenizer.encode(texts, 10 * length)[:2]
  unknown = float((ids == tokenizer.special.unk).sum() / max(mask.sum(), 1))
  longer = float((mask.sum(1) > length).mean())
  text = (
    f'{unknown:.1%} of the pieces of {len(texts):,} texts are unknown, '
    f'{longer:.1%} of the texts are longer than {length} pieces'
  )
  if unknown > 0.02 or longer > 0.2:
    doctor.warn('texts', text, 'another tokenizer, or --config.data.max_text_tokens')
  else:
    doctor.good('texts', text)


def check_checkpoints(doctor, config):
  """Reads the digests of all files of the checkpoints that are named."""
  from alpro_jax.train import checkpoints

  def find(path):
    if not path:
      raise ValueError('none is named')
    found = checkpoints.find(path)
    return (
      f'{found.folder}, {found.meta["config"]["task"]}, step '
      f'{found.meta["step"]}, all files as they were written'
    )

  if config.task == 'pretrain' and config.loss.pem:
    doctor.check(
      'prompter',
      lambda: find(config.prompter.checkpoint),
      'python launch/main.py --config=configs/pretrain_prompter.py '
      '--workdir=runs/prompter; --config.prompter.checkpoint=runs/prompter',
    )
  if config.train.init_from:
    doctor.check(
      'start',
      lambda: find(config.train.init_from),
      'another --config.train.init_from; launch/convert.py makes one of published weights',
    )


def check_workdir(doctor, config):
  """Says what is in the workdir, and whether it can be written."""
  from alpro_jax.train import checkpoints

  if buckets.is_address(_WORKDIR.value):
    _check_bucket(doctor)
    return
  folder = pathlib.Path(_WORKDIR.value)
  there = folder
  while not there.exists():
    there = there.absolute().parent
  if not os.access(there, os.W_OK):
    doctor.bad('workdir', f'{there} cannot be written', 'another --workdir')
    return
  free = shutil.disk_usage(there).free
  doctor.good('workdir', f'{free / GIB:.1f} GiB free below {there}')
  if config is not None:
    import jax

    from benchmarks import dry_run

    task = dry_run.task(config, _one_device())
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    size = sum(x.size for x in jax.tree.leaves(shapes)) * 4
    # Parameters and two moments; one more while it is written, and the best.
    needed = 3 * size * (config.train.keep_newest + 2)
    if needed > free:
      doctor.bad(
        'workdir',
        f'checkpoints need {needed / GIB:.1f} GiB',
        'free some space, or --config.train.keep_newest=1',
      )
  if checkpoints.have_begun(folder):
    doctor.check(
      'checkpoint',
      lambda: f'{checkpoints.find(folder).folder} is intact',
      'remove the damaged checkpoint, or give another --workdir',
    )


def _check_bucket(doctor):
  """Writes a small object and reads it again, as a run would."""
  from alpro_jax.train import checkpoints

  def write():
    probe, content = files.join(_WORKDIR.value, 'doctor.txt'), b'written by launch/doctor.py'
    buckets.write(probe, content)
    if buckets.read(probe) != content:
      raise OSError(f'{probe} holds something else than was written')
    buckets.remove(probe)
    return f'{_WORKDIR.value} can be written and read'

  doctor.check('workdir', write, 'another --workdir, or credentials for this one')
  if checkpoints.have_begun(_WORKDIR.value):
    doctor.check(
      'checkpoint',
      lambda: f'{checkpoints.find(_WORKDIR.value).folder} is an intact copy of the newest',
      'remove the damaged checkpoint, or give another --workdir',
    )


def check_run(doctor, config):
  """Asks what launch/main.py asks before its first step."""
  from alpro_jax.evaluation import during_training
  from alpro_jax.train import checkpoints, loop, resume, step

  def begin():
    plan = loop.make_plan(config, during_training.evaluations(config))
    counts = [source.num_records for source in plan.sources]
    if said := step.check_negatives(config, plan.task, counts):
      doctor.warn('negatives', said)
    stored = None
    if _WORKDIR.value and checkpoints.have_begun(_WORKDIR.value):
      stored = checkpoints.load_meta(_WORKDIR.value)
    resume.check_beginning(plan.meta, stored)
    if stored:
      return f'goes on from step {stored["step"]} of {config.train.steps}'
    return f'begins, {config.train.steps} steps'

  doctor.check('run', begin, '')


def check_step(doctor, config):
  """Compiles the step and takes one, if the memory allows it."""
  import jax

  from alpro_jax import sharding
  from benchmarks import dry_run

  if config is None:
    from configs import pretrain

    config = pretrain.get_config('demo')
  less = 'a smaller --config.data.batch_size, --config.model.remat=blocks, or --config.mesh.fsdp'
  try:
    mesh = sharding.mesh_from_config(config.mesh)
    program = dry_run.program(config, mesh)
  except ValueError as error:
    doctor.bad('step', error)
    return
  begin = time.monotonic()
  lowered = program.step.lower(program.state, program.frozen, program.batch)
  compiled = lowered.compile()
  compile_s = time.monotonic() - begin
  plan = compiled.memory_analysis()
  needed = plan.temp_size_in_bytes + plan.argument_size_in_bytes
  available = machine.ask(config.machine).memory
  text = (
    f'batch {config.data.batch_size} on {mesh.size} devices, compiled in '
    f'{compile_s:.0f} s, {needed / GIB:.1f} GiB on each'
  )
  if available and needed > available:
    doctor.bad('step', f'{text}, of {available / GIB:.1f} GiB', less)
    return
  begin = time.monotonic()
  try:
    values = program.first(config.seed)
    frozen = sharding.create(program.task.init_frozen, jax.random.key(1), mesh)
    batch = jax.device_put(dry_run.noise(config), sharding.batch_sharding(mesh))
    begin = time.monotonic()
    _, metrics = compiled(values, frozen, batch)
    loss = float(metrics['loss'])
  except Exception as error:
    if not machine.out_of_memory(error):
      raise
    doctor.bad('step', f'{text}, and memory ran out', less)
    return
  if loss - loss != 0:
    doctor.bad(
      'step',
      f'{text}; its loss is {loss}',
      '--config.model.dtype=float32 tells if precision is the cause',
    )
  else:
    doctor.good(
      'step', f'{text}, the first taken in {time.monotonic() - begin:.1f} s, loss {loss:.3f}'
    )


def _one_device():
  import jax

  from alpro_jax import sharding

  return sharding.make_mesh(devices=jax.devices()[:1])


if __name__ == '__main__':
  command.run(main, in_buckets=True)
