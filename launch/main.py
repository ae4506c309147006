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

try:
  from launch import command
except ModuleNotFoundError:
  import not_installed  # noqa: F401

from absl import flags

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
  from alpro_jax.evaluation import split
  from alpro_jax.train import loop

  config = _CONFIG.value
  try:
    outcome = loop.train(config, _WORKDIR.value, evaluations=split.during_training(config))
  except NonFiniteError as error:
    command.fail(error, NOT_FINITE)
  return 0 if outcome.finished else STOPPED


if __name__ == '__main__':
  command.run(main, verbosity=0)
