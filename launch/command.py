"""What the commands share: options, processes, mistakes.

A mistake in the options or the data ends a command with one line on stderr and
exit code 2; --debug shows where it comes from.
"""

import contextlib
import errno
import logging as python_logging
import os
import pathlib
import re
import sys
import traceback

from absl import flags, logging
from ml_collections import config_flags

from alpro_jax.data.annotations import printable_lines

ROOT = pathlib.Path(__file__).resolve().parents[1]
MISTAKE = 2

_FULL = 'free space there and repeat the command'
_DENIED = 'change its permissions, or choose another place'
_NO_FOLDER = 'a file lies where a folder is needed; choose another place'
# What helps when the system refuses something.
_ADVICE = {
  errno.ENOSPC: _FULL,
  errno.EDQUOT: _FULL,
  errno.EFBIG: _FULL,
  errno.EACCES: _DENIED,
  errno.EPERM: _DENIED,
  errno.EROFS: _DENIED,
  errno.ENOTDIR: _NO_FOLDER,
  errno.EEXIST: _NO_FOLDER,
  errno.EIO: 'the disk failed; look after it and repeat the command',
}

_DEBUG = flags.DEFINE_bool('debug', False, 'Show where an error comes from.')
_DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'Find the other processes automatically.')
_COORDINATOR = flags.DEFINE_string('coordinator_address', None, 'host:port of process 0.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Number of processes.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Number of this process, from 0.')


def start() -> None:
  """Connects the processes, quiets libraries, keeps TensorFlow off GPUs."""
  _connect()
  _quiet_logs()
  # After the connection, and without its claim on the GPUs.
  import tensorflow as tf

  tf.config.set_visible_devices([], 'GPU')


def parse(argv):
  """Parses flags; a wrong option is one line, not a traceback."""
  try:
    rest = _read_flags(argv)
    if flags.FLAGS.config is not None:
      name = config_flags.get_config_filename(flags.FLAGS['config'])
      name = name.partition(':')[0]
      if not pathlib.Path(name).is_file():
        raise FileNotFoundError(
          f'config file {name} is not there; see configs/ for those that are.'
        )
    return rest
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    fail(_explain(error, argv), MISTAKE)


def parse_flags(argv):
  """Parses the flags of a program that takes nothing else, no config either."""
  rest = parse_words(argv)
  if rest[1:]:
    fail(f'unexpected {" ".join(rest[1:])}; see --help.', MISTAKE)
  return rest


def parse_words(argv):
  """Parses flags that stand before, between and after words."""
  flags.FLAGS.set_gnu_getopt(True)
  try:
    return _read_flags(argv)
  except flags.Error as error:
    # As text, for --debug was not parsed either; in one line for all flags.
    fail(' '.join(str(error).splitlines()), MISTAKE)


def _read_flags(argv):
  try:
    return flags.FLAGS(argv)
  except SystemExit:
    sys.exit(0)  # --help was asked for and shown, which absl calls a failure.


@contextlib.contextmanager
def mistakes_in_one_line():
  """Ends the command on a mistake of the user; other errors pass."""
  try:
    yield
  except (ValueError, OSError, KeyError, AttributeError, TypeError) as error:
    if not is_mistake(error):
      raise
    fail(error, MISTAKE)


def is_mistake(error: Exception) -> bool:
  """Whether an error is the user's: a missing file or one of our checks."""
  if isinstance(error, OSError):
    return True
  if not isinstance(error, (ValueError, AttributeError, KeyError)):
    return False
  file = traceback.extract_tb(error.__traceback__)[-1].filename
  ours = [ROOT / name for name in ('alpro_jax', 'benchmarks', 'configs', 'examples', 'launch')]
  return any(pathlib.Path(file).is_relative_to(folder) for folder in ours)


def fail(error, code: int) -> None:
  """Prints one line, safe on a terminal, and ends the command."""
  if isinstance(error, Exception) and _DEBUG.value:
    traceback.print_exception(error)
  print(f'error: {printable_lines(describe(error))}', file=sys.stderr, flush=True)
  sys.exit(code)


def describe(error) -> str:
  """What an error says; with what helps, where the system refused something."""
  if isinstance(error, (KeyError, AttributeError)):
    return (
      f'{type(error).__name__}: {error}. No input should end like this: '
      'a file is not what it seems to be, or this program is wrong; '
      '--debug shows where.'
    )
  advice = _ADVICE.get(getattr(error, 'errno', None))
  return f'{error}: {advice}.' if advice else f'{error}'


def _connect():
  given = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
  if any(value is not None for value in given):
    if None in given:
      raise ValueError(
        f'--coordinator_address, --num_processes and --process_id go together; got {given}.'
      )
  else:
    given = ()
  if given or _DISTRIBUTED.value:
    import jax  # Slow, and many commands need none.

    jax.distributed.initialize(*given)


def _explain(error, argv):
  text = str(error)
  # A config file that fails comes with its traceback; its last line says it.
  if 'Traceback' in text and '--debug' not in argv:
    text = text.strip().splitlines()[-1].partition(': ')[2] or text
  # ml_collections names the last part of an unknown option alone.
  if isinstance(error, (AttributeError, KeyError)):
    _, wrong, *hint = re.split('[\'"]+', text.replace('\\', ''))
    given = [a for a in argv if a.startswith('--config.') and wrong in a]
    text = f'unknown option {" ".join(given) or wrong}. ' + (
      f'Did you mean {hint[1]!r} instead of {wrong!r}?'
      if len(hint) > 1
      else 'All options are in configs/common.py.'
    )
  return text


def _quiet_logs():
  """Keeps the chatter of libraries off the console, and out of log.txt."""
  folders = (f'{os.sep}orbax{os.sep}', f'metric_writers{os.sep}')

  def wanted(record):
    # Orbax warns of every checkpoint between two evaluations, too.
    return not any(f in record.pathname for f in folders) or (
      record.levelno > 20 and 'tracked_metric' not in str(record.msg)
    )

  def printable(record):
    # Names and captions of a data set go into messages as they are.
    with contextlib.suppress(TypeError, ValueError):
      record.msg, record.args = printable_lines(record.getMessage()), ()
    return True

  logging.get_absl_logger().addFilter(wanted)
  logging.get_absl_logger().addFilter(printable)
  python_logging.getLogger('jax').setLevel('WARNING')
  # A save that fails raises; what its other threads met adds pages to that.
  python_logging.getLogger('asyncio').setLevel('CRITICAL')
