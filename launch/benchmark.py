"""Measures on made-up data what a config costs on this machine.

  python launch/benchmark.py step --config=configs/pretrain.py \\
    --config.data.batch_size=64 --peak_tflops=790
  python launch/benchmark.py sweep --config=configs/pretrain.py \\
    --folder=runs/h200 --peak_tflops=790
  python launch/benchmark.py retrieval --texts=1000 --videos=1000 \\
    --config=configs/finetune_msrvtt_retrieval.py --rerank_k=128
  python launch/benchmark.py input --config=configs/pretrain.py \\
    --data=sets/webvid --step_clips_per_s=380
  python launch/benchmark.py torch --config=configs/pretrain.py --steps=3
  python launch/benchmark.py start --config=configs/pretrain.py \\
    --records=2500000 --start_step=100000
  python launch/benchmark.py bucket --config=configs/pretrain.py
  python launch/benchmark.py search --folder=runs/million --vectors=1000000

step       compile time, time of a step, clips/s, model FLOP/s (by formula,
           recomputation not counted) and its share of --peak_tflops, memory by
           the compiler's plan and, where the device tells, the highest in use.
           With --profile=FOLDER three more steps are traced: kernels.md says
           which kernels take the time and at what rates.
sweep      `step` in all its forms and a profile at the smallest of
           --batch_sizes, then for growing batches until one does not fit; a
           table of all, after each. One process each, which may take
           --minutes_each, figures and words in --folder, where a sweep that was
           stopped, by --minutes for instance, goes on.
retrieval  what scoring all pairs costs and what the --rerank_k nearest cost:
           FLOPs by formula, time from measured rates.
input      clips/s and CPU time of each part of the input pipeline, with and
           without augmentation, from --data or a set that is made up; the
           cores that a step of --step_clips_per_s (or of --step_figures, what
           `step --output` wrote) needs, and whether input or step limits.
torch      the pre-training step beside the same in PyTorch, eager and compiled,
           by turns, on the GPU if there is one: CPU and wall time and their
           ratios. Needs
           requirements-torch.txt. For one core start it by `taskset -c 0`.
start      seconds and memory to open a made-up set of --records, and to its
           first batch at step 10 and at step --start_step, each in a process
           of its own.
bucket     requests and bytes for a clip of a set in a bucket, clips/s beside the
           same on disk, and what a start takes of --records in shards of 1,000:
           a server on this machine that answers after --latency_ms.
search     an index of --vectors made-up clips, made in --folder unless it is there:
           seconds to build and to open it, size, memory, time and recall of a
           search, what re-scoring and 1,000 more clips take. Needs no --config.

Figures are printed and, with --output, written as JSON. Only `input`, `start`
and `bucket` need TensorFlow. For machines that are not here see
launch/compile_for.py.
"""

try:
  from launch import command
except ModuleNotFoundError:
  import not_installed  # noqa: F401

import json
import pathlib
import sys

from absl import flags

_CONFIG = command.config_flag('Config file, e.g. configs/pretrain.py:demo.')
_OUTPUT = flags.DEFINE_string('output', '', 'A JSON file to write.')

_STEPS = flags.DEFINE_integer('steps', 20, 'Timed steps.', lower_bound=1)
_WARMUP = flags.DEFINE_integer('warmup', 3, 'Steps before the clock starts.', lower_bound=1)
_PEAK = flags.DEFINE_float(
  'peak_tflops',
  0.0,
  'Peak of all devices together in TFLOP/s; 0 leaves the share out.',
  lower_bound=0.0,
)
_PROFILE = flags.DEFINE_string(
  'profile', '', 'A folder for a trace of three more steps and a table of their kernels.'
)
_TEXTS = flags.DEFINE_integer('texts', 1000, 'Distinct texts.', lower_bound=2)
_VIDEOS = flags.DEFINE_integer('videos', 1000, 'Videos.', lower_bound=2)
_K = flags.DEFINE_integer('rerank_k', 128, 'Candidates of every text and video.', lower_bound=1)
_SAMPLE = flags.DEFINE_integer(
  'sample', 16, 'Texts and videos that are really encoded and paired; 0 is all.', lower_bound=0
)
_DATA = flags.DEFINE_string(
  'data', '', 'A set made by launch/prepare.py; without it one is made up.'
)
_CLIPS = flags.DEFINE_integer('clips', 128, 'Clips of the set that is made up.', lower_bound=1)
_NEEDED = flags.DEFINE_float(
  'step_clips_per_s', 0.0, 'Clips/s that the devices of this host take.', lower_bound=0.0
)
_STEP_FIGURES = flags.DEFINE_string(
  'step_figures', '', 'Or what `step --output` has written of it.'
)
_ROUNDS = flags.DEFINE_integer('rounds', 2, 'How often each kind of step is run.', lower_bound=1)
_RECORDS = flags.DEFINE_integer('records', 2_500_000, 'Of the made-up set.', lower_bound=1000)
_LATENCY = flags.DEFINE_float(
  'latency_ms', 50.0, 'After which the server of `bucket` answers.', lower_bound=0.0
)
_START_STEP = flags.DEFINE_integer('start_step', 100_000, 'The late step.', lower_bound=0)
_BATCH_SIZES = flags.DEFINE_list(
  'batch_sizes', None, 'To measure at, ascending: 2,4 beside PyTorch, 64 to 512 in a sweep.'
)
_FOLDER = flags.DEFINE_string(
  'folder', '', 'Where a sweep keeps its figures, or for the index of `search`.'
)
_VECTORS = flags.DEFINE_integer('vectors', 1_000_000, 'Clips of that index.', lower_bound=1000)
_MINUTES = flags.DEFINE_float(
  'minutes', 0.0, 'After these a sweep begins no measurement; 0 is no end.', lower_bound=0.0
)
_MINUTES_EACH = flags.DEFINE_float(
  'minutes_each', 10.0, 'After these a measurement of a sweep is given up.', lower_bound=0.1
)
_ONLY = flags.DEFINE_enum('only', None, ['torch', 'torch.compile'], 'Times this one alone.')


def _step(config):
  """Times the training step."""
  from benchmarks import step

  step.measure(
    config,
    steps=_STEPS.value,
    warmup=_WARMUP.value,
    peak_tflops=_PEAK.value,
    report=_report,
    trace=pathlib.Path(_PROFILE.value) if _PROFILE.value else None,
  )


def _batch_sizes(default):
  try:
    found = [int(x) for x in _BATCH_SIZES.value or default]
  except ValueError:
    found = []
  if not found or sorted(set(found)) != found or found[0] < 1:
    raise ValueError(
      f'--batch_sizes={",".join(_BATCH_SIZES.value)} must be numbers from 1 '
      'up, ascending, e.g. 16,32,64.'
    )
  return found


def _sweep(config):
  """Times the step in all its forms."""
  del config  # Each process reads it for itself.
  from benchmarks import sweep

  if not _FOLDER.value:
    raise ValueError('--folder is needed, e.g. --folder=runs/h200.')
  folder = pathlib.Path(_FOLDER.value)
  given = [x for x in sys.argv[1:] if x != 'sweep']
  sizes = _batch_sizes(sweep.BATCH_SIZES)
  print(sweep.run(given, folder, sizes, _MINUTES.value, _MINUTES_EACH.value))
  return {'table': str(folder / 'table.md')}


def _retrieval(config):
  """Times the evaluation of retrieval."""
  from benchmarks import retrieval

  return retrieval.measure(
    config, texts=_TEXTS.value, videos=_VIDEOS.value, k=_K.value, sample=_SAMPLE.value
  )


def _input(config):
  """Times the reading, decoding and augmenting of clips."""
  command.start()
  from benchmarks import input as reading

  needed = _NEEDED.value
  if _STEP_FIGURES.value:
    needed = reading.read_needed(_STEP_FIGURES.value)
  return reading.measure(config, data=_DATA.value, clips=_CLIPS.value, needed=needed)


def _torch(config):
  """Times the step beside the same in PyTorch; --only times that alone."""
  if _ONLY.value:
    from benchmarks import torch_step

    return torch_step.measure(
      config, steps=_STEPS.value, warmup=_WARMUP.value, compiled=_ONLY.value == 'torch.compile'
    )
  from benchmarks import compare_torch

  given = [x for x in sys.argv[1:] if x != 'torch']
  return compare_torch.compare(given, _batch_sizes((2, 4)), _ROUNDS.value)


def _start(config):
  """Times the way to the first batch, early and late in a run."""
  from benchmarks import start

  return start.measure(config.data, records=_RECORDS.value, start_step=_START_STEP.value)


def _bucket(config):
  """Times reading from a bucket that answers slowly."""
  command.start()
  from benchmarks import bucket

  return bucket.measure(
    config, clips=_CLIPS.value, records=_RECORDS.value, latency=_LATENCY.value / 1e3
  )


def _search(config):
  """Times an index of many clips."""
  del config
  from benchmarks import search

  if not _FOLDER.value:
    raise ValueError('--folder is needed, e.g. --folder=runs/million.')
  return search.measure(pathlib.Path(_FOLDER.value), _VECTORS.value)


_WORDS = {
  'step': _step,
  'sweep': _sweep,
  'retrieval': _retrieval,
  'input': _input,
  'torch': _torch,
  'start': _start,
  'bucket': _bucket,
  'search': _search,
}


def main(*words):
  if len(words) != 1 or words[0] not in _WORDS:
    raise ValueError(f'{list(words)} is not what to measure; give one of {list(_WORDS)}.')
  if _CONFIG.value is None and words[0] != 'search':
    raise ValueError('--config is needed, e.g. configs/pretrain.py.')
  if figures := _WORDS[words[0]](_CONFIG.value):
    _report(figures)


def _report(figures):
  width = max(map(len, figures)) + 2
  for name, value in figures.items():
    shown = f'{value:,.4g}' if isinstance(value, float) else value
    print(f'{name:{width}}{shown}', flush=True)
  if _OUTPUT.value:
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(figures, indent=2) + '\n')


if __name__ == '__main__':
  command.run(main, words=True)
