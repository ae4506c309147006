"""Trains what a config says, in a workdir; run again, it goes on.

  python launch/main.py --config=configs/pretrain.py --workdir=runs/pretrain
  python launch/main.py --config=configs/pretrain.py:demo --workdir=DIR \\
    --config.train.steps=100

Exit code: 0 when the last step is reached, 143 when stopped before (SIGTERM or
Ctrl-C; the state is saved), 2 for a mistake in the options or the data, 1 when
the loss is not finite.

Many hosts: start the same command on each, with --distributed where jax finds
the others by itself (TPU pods, SLURM), else with --coordinator_address,
--num_processes and --process_id.
"""

import sys

from absl import app, flags
from ml_collections import config_flags

from alpro_jax.train.progress import NonFiniteError
from alpro_jax.train.supervision import STOPPED
from launch import command

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config file, e.g. configs/pretrain.py:demo.', lock_config=True
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')

NOT_FINITE = 1


def main(argv):
  del argv
  with command.mistakes_in_one_line():
    if _CONFIG.value is None or not _WORKDIR.value:
      raise ValueError(
        '--config and --workdir are needed, e.g. --config='
        'configs/pretrain.py --workdir=runs/pretrain.'
      )
    command.start()
    from alpro_jax.evaluation import split
    from alpro_jax.train import loop

    config = _CONFIG.value
    try:
      outcome = loop.train(config, _WORKDIR.value, evaluations=split.during_training(config))
    except NonFiniteError as error:
      command.fail(error, NOT_FINITE)
  sys.exit(0 if outcome.finished else STOPPED)


if __name__ == '__main__':
  flags.FLAGS.set_default('verbosity', 0)
  app.run(main, flags_parser=command.parse)
