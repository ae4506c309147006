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

import logging as python_logging
import os
import pathlib
import re
import sys
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# TensorFlow only reads clips here; what it says while starting is noise.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')

import jax  # noqa: E402
from absl import app, flags, logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from alpro_jax.train.progress import NonFiniteError  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Config file, e.g. configs/pretrain.py:demo.',
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_DEBUG = flags.DEFINE_bool('debug', False, 'Show where an error comes from.')
_DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'Find the other processes automatically.'
)
_COORDINATOR = flags.DEFINE_string(
    'coordinator_address', None, 'host:port of process 0.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
    'num_processes', None, 'Number of processes.'
)
_PROCESS_ID = flags.DEFINE_integer(
    'process_id', None, 'Number of this process, from 0.'
)

STOPPED, MISTAKE, NOT_FINITE = 143, 2, 1


def main(argv):
  del argv
  try:
    if _CONFIG.value is None or not _WORKDIR.value:
      raise ValueError(
          '--config and --workdir are needed, e.g. --config='
          'configs/pretrain.py --workdir=runs/pretrain.'
      )
    _connect()
    _quiet_logs()
    # After the connection, and without its claim on the GPUs.
    import tensorflow as tf

    tf.config.set_visible_devices([], 'GPU')
    from alpro_jax.evaluation import split
    from alpro_jax.train import loop

    config = _CONFIG.value
    evaluations = [split.DuringTraining()] if config.eval.sources else []
    outcome = loop.train(config, _WORKDIR.value, evaluations=evaluations)
  except NonFiniteError as error:
    _fail(error, NOT_FINITE)
  except (ValueError, OSError, KeyError, AttributeError, TypeError) as error:
    if not _is_mistake(error):
      raise
    _fail(error, MISTAKE)
  sys.exit(0 if outcome.finished else STOPPED)


def _connect():
  given = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  if any(value is not None for value in given):
    if None in given:
      raise ValueError(
          '--coordinator_address, --num_processes and --process_id go '
          f'together; got {given}.'
      )
    jax.distributed.initialize(*given)
  elif _DISTRIBUTED.value:
    jax.distributed.initialize()


def _parse(argv):
  """Parses flags; a wrong option is one line, not a traceback."""
  try:
    rest = flags.FLAGS(argv)
    if _CONFIG.value is not None:
      name = config_flags.get_config_filename(flags.FLAGS['config'])
      name = name.partition(':')[0]
      if not pathlib.Path(name).is_file():
        raise FileNotFoundError(
            f'config file {name} is not there; see configs/ for those that are.'
        )
    return rest
  except (
      flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError
  ) as error:
    _fail(_explain(error, argv), MISTAKE)


def _explain(error, argv):
  text = str(error)
  # A config file that fails comes with its traceback; its last line says it.
  if 'Traceback' in text and '--debug' not in argv:
    text = text.strip().splitlines()[-1].partition(': ')[2] or text
  # ml_collections names the last part of an unknown option alone.
  if isinstance(error, (AttributeError, KeyError)):
    _, wrong, *hint = re.split('[\'"]+', text.replace('\\', ''))
    given = [a for a in argv if a.startswith('--config.') and wrong in a]
    text = f"unknown option {' '.join(given) or wrong}. " + (
        f'Did you mean {hint[1]!r} instead of {wrong!r}?'
        if len(hint) > 1 else 'All options are in configs/common.py.'
    )
  return text


def _is_mistake(error):
  """Whether an error is the user's: a missing file or one of our checks."""
  if isinstance(error, OSError):
    return True
  if not isinstance(error, (ValueError, AttributeError, KeyError)):
    return False
  file = traceback.extract_tb(error.__traceback__)[-1].filename
  ours = [ROOT / name for name in ('alpro_jax', 'configs', 'launch')]
  return any(pathlib.Path(file).is_relative_to(folder) for folder in ours)


def _fail(error, code):
  if isinstance(error, Exception) and _DEBUG.value:
    traceback.print_exception(error)
  print(f'error: {error}', file=sys.stderr, flush=True)
  sys.exit(code)


def _quiet_logs():
  """Keeps the chatter of libraries off the console, and out of log.txt."""
  folders = (f'{os.sep}orbax{os.sep}', f'metric_writers{os.sep}')

  def wanted(record):
    # Orbax warns of every checkpoint between two evaluations, too.
    return not any(f in record.pathname for f in folders) or (
        record.levelno > 20 and 'tracked_metric' not in str(record.msg)
    )

  logging.get_absl_logger().addFilter(wanted)
  python_logging.getLogger('jax').setLevel('WARNING')


if __name__ == '__main__':
  flags.FLAGS.set_default('verbosity', 0)
  app.run(main, flags_parser=_parse)
