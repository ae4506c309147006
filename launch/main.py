"""Trains what a config says, in a workdir; run again, it goes on.

  python launch/main.py --config=configs/pretrain.py --workdir=runs/pretrain
  python launch/main.py --config=configs/pretrain.py:demo --workdir=DIR \\
    --config.train.steps=100
  python launch/main.py --config=configs/finetune_retrieval.py:tiny_own \\
    --workdir=runs/clips --config.data.path=sets/clips

Exit code: 0 when the last step is reached, 143 when stopped before (SIGTERM or
Ctrl-C; the state is saved), 2 for a mistake in the options or the data and for
too little memory, 1 when
the loss is not finite.

Many hosts: start the same command on each, with --distributed where jax finds
the others by itself (TPU pods, SLURM), else with --coordinator_address,
--num_processes and --process_id.
"""

try:
  from launch import command
except ModuleNotFoundError:
  import not_installed  # noqa: F401

import os
import shlex

from absl import flags, logging

from alpro_jax.train.progress import NonFiniteError
from alpro_jax.train.supervision import STOPPED

_CONFIG = command.config_flag('Config file, e.g. configs/pretrain.py:demo.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')

NOT_FINITE = 1


def main():
  if _CONFIG.value is None or not _WORKDIR.value:
    raise ValueError(
      '--config and --workdir are needed, e.g. --config=configs/pretrain.py --workdir=runs/a.'
    )
  command.start()
  import jax

  from alpro_jax.evaluation import during_training, split
  from alpro_jax.train import loop
  from launch import settle

  settled = settle.settle(_CONFIG.value, _WORKDIR.value, given=command.given_options())
  for sentence in settled.said:
    logging.info('%s', sentence)
  if settled.pretended:
    raise ValueError(settled.pretended)
  config = settled.config
  if config.data.tokenizer.startswith('runs/demo/') and not os.path.exists(config.data.tokenizer):
    raise FileNotFoundError(
      f'{config.data.tokenizer} is not there: this config is about the clips of the demo, which '
      'make demo makes, or in minutes python launch/demo.py --quick (its figures mean nothing); '
      'for a set of your own take another config, such as --config=configs/pretrain.py:tiny_own '
      '--config.data.path=sets/clips.'
    )
  try:
    outcome = loop.train(config, _WORKDIR.value, evaluations=during_training.evaluations(config))
  except NonFiniteError as error:
    command.fail(error, NOT_FINITE)
  # Only process 0 has the report, and in a bucket only after a while: what it says of the
  # run, every process has in the outcome.
  if outcome.finished and settled.held_out and jax.process_index() == 0:
    _say_held_out(outcome.figures or {}, settled.held_out, settled.copies)
  if outcome.finished and settled.path and config.eval.sources:
    split.summarise_run(_WORKDIR.value, config, outcome.step, outcome.best_step)
  if outcome.finished and settled.path and config.task in ('pretrain', 'retrieval'):
    logging.info(
      'next: python launch/search.py find VIDEOS "what you look for" --checkpoint=%s',
      shlex.quote(_WORKDIR.value),
    )
  return 0 if outcome.finished else STOPPED


def _say_held_out(figures, videos, copies):
  """Says in a sentence what the model does on videos that it never saw, but for some copies."""
  if 'eval/t2v_r1' in figures:
    said = (
      f'a text finds its video first in {figures["eval/t2v_r1"]:.1f} % of searches (chance '
      f'{100 / videos:.1f} %), among the first ten in {figures["eval/t2v_r10"]:.1f} % (chance '
      f'{min(1000 / videos, 100):.1f} %)'
    )
  elif 'eval/accuracy' in figures:
    said = f'{figures["eval/accuracy"]:.1f} % of the questions are answered right'
  else:
    return
  but = f' (but for {copies}, of which it knows copies)' if copies else ''
  logging.info('held out: of %d videos that it did not train on%s, %s', videos, but, said)


if __name__ == '__main__':
  command.run(main, verbosity=0, in_buckets=True)
