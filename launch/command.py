"""What the commands share: options, processes, mistakes.

A mistake in the options or the data ends a command with one line on stderr and
exit code 2; --debug shows where it comes from.
"""

import contextlib
import difflib
import errno
import functools
import logging as python_logging
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from alpro_jax import buckets, machine
from alpro_jax.data.annotations import printable_lines
from alpro_jax.train import options
from configs import common

ROOT = pathlib.Path(__file__).resolve().parents[1]
MISTAKE = 2
MODEL = (
  'Workdir of a run, folder of one checkpoint, folder of an export or in the layout of the '
  "Hugging Face Hub, or 'shapes', which comes with the package."
)

_FULL = 'free space there and repeat the command'
_DENIED = 'change its permissions, or choose another place'
_NO_FOLDER = 'a file lies where a folder is needed; choose another place'
_NO_LOCKS = 'two runs at once would spoil what is there; choose a place on a disk that has locks'
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
  errno.ENOLCK: _NO_LOCKS,
  errno.EOPNOTSUPP: _NO_LOCKS,
  errno.EIO: 'the disk failed; look after it and repeat the command',
}

_NO_MEMORY = (
  'memory ran out; what was saved before is there. Close other programs, or take less at a '
  'time: of a training more --config.optimizer.accumulation, a smaller --config.data.batch_size '
  'or :own, in another --workdir; of an evaluation a smaller --config.eval.batch_size and '
  '--config.eval.pairs_per_call; of a search a smaller --batch_size'
)

_DEBUG = flags.DEFINE_bool('debug', False, 'Show where an error comes from.')
_DISTRIBUTED = flags.DEFINE_bool('distributed', False, 'Find the other processes automatically.')
_COORDINATOR = flags.DEFINE_string('coordinator_address', None, 'host:port of process 0.')
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'Number of processes.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Number of this process, from 0.')
flags.disclaim_key_flags()  # What is defined below is the command's.


def with_defaults(config: Mapping[str, Any]) -> tuple[ml_collections.ConfigDict, dict[str, Any]]:
  """Returns the options of a run, with present defaults for those that it lacks.

  Args:
    config: as a checkpoint keeps it; an export has only what shows clips and texts.
  Returns:
    (config, {dotted name: default} of what was lacking).
  """

  def fill(values, defaults, prefix=''):
    missing = {prefix + name: value for name, value in defaults.items() if name not in values}
    filled = defaults | values
    for name, value in values.items():
      if isinstance(value, dict) and isinstance(defaults.get(name), dict):
        filled[name], below = fill(value, defaults[name], f'{prefix}{name}.')
        missing |= below
    return filled, missing

  defaults = common.get_config().to_dict()
  if config['model'].get('text_tower'):
    del defaults['model']  # Of other encoders.
  filled, missing = fill(config, defaults)
  return ml_collections.ConfigDict(filled), missing


def config_flag(text: str):
  """Defines --config, whose options --config.NAME=VALUE change."""
  return config_flags.DEFINE_config_file('config', None, text, lock_config=True)


def given_options() -> set[str]:
  """Returns the names of the options that the command line sets, e.g. 'train.steps'."""
  return set(config_flags.get_override_values(flags.FLAGS['config']))


def run(
  main, *, words: bool = False, verbosity: int | None = None, in_buckets: bool = False
) -> None:
  """Parses the flags, runs main(*words) and ends the process.

  Args:
    main: returns None or the exit code.
    words: the command takes some, before, between or after its flags.
    verbosity: of the log, unless --verbosity says another.
    in_buckets: gs:// and s3:// may be given wherever a path may.
  """
  if verbosity is not None:
    flags.FLAGS.set_default('verbosity', verbosity)
  flags.adopt_module_key_flags(sys.modules[__name__])

  def guarded(argv):
    with mistakes_in_one_line():
      if argv[1:] and not words:
        raise ValueError(f'unexpected {" ".join(argv[1:])}; every option starts with --.')
      return main(*argv[1:])

  app.run(guarded, flags_parser=functools.partial(parse, in_buckets=in_buckets))


def start(*, reads_frames: bool = True) -> None:
  """Connects the processes, quiets libraries, keeps TensorFlow off GPUs.

  Args:
    reads_frames: TensorFlow is needed in any case. Else it is imported if it comes to that,
      which saves seconds, and takes no more of a GPU than it uses.
  """
  _connect()
  _quiet_logs()
  if not reads_frames:
    os.environ.setdefault('TF_FORCE_GPU_ALLOW_GROWTH', 'true')
    return
  # After the connection, and without its claim on the GPUs.
  import tensorflow as tf

  tf.config.set_visible_devices([], 'GPU')


def parse(argv: list[str], *, in_buckets: bool = False) -> list[str]:
  """Parses flags; a wrong one is one line, not a traceback. Returns the rest."""
  flags.FLAGS.set_gnu_getopt(True)
  try:
    rest = flags.FLAGS(argv)
    _check_config()
    _check_places(rest[1:], in_buckets)
    return rest
  except SystemExit:
    sys.exit(0)  # --help was asked for and shown, which absl calls a failure.
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
    fail(_explain(error, argv), MISTAKE)


@contextlib.contextmanager
def mistakes_in_one_line():
  """Ends the command on a mistake of the user; other errors pass."""
  try:
    yield
  except Exception as error:
    if machine.out_of_memory(error):
      fail(f'{_NO_MEMORY}. It was {" ".join(str(error).split())[:200] or "MemoryError"}', MISTAKE)
    if not is_mistake(error):
      raise
    fail(error, MISTAKE)


def is_mistake(error: Exception) -> bool:
  """Whether an error is the user's: a missing file or library, or one of our checks."""
  if isinstance(error, OSError):
    return True
  if isinstance(error, ImportError):
    return error.name is None  # Ours says what to install; Python's has a name.
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


def _check_config():
  """Refuses a config file that is not there, or that sets what is no option."""
  if 'config' not in flags.FLAGS or flags.FLAGS.config is None:
    return
  name = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')[0]
  if not pathlib.Path(name).is_file():
    raise FileNotFoundError(f'config file {name} is not there; see configs/ for those that are.')
  known = common.option_names()
  for option in options.names(flags.FLAGS.config):
    if option not in known:
      raise ValueError(f'{name}: {_unknown(option, option, known)}')
  for part in ('data', 'eval'):
    if sets := flags.FLAGS.config.get(part, {}).get('sources'):
      flags.FLAGS.config[part].sources = _sources(f'--config.{part}.sources', sets)


def _sources(option, sets):
  """Sets as the command line names them, with what it leaves out."""
  try:
    return tuple(common.source(**one) for one in sets)
  except (TypeError, ValueError):  # No mapping, another name, or no path.
    raise ValueError(
      f'{option}={sets!r}: each set is a dict with a path and, if need be, split, weight, style, '
      f"from_step and until_step, as in {option}=\"({{'path': 'sets/clips', 'split': "
      "'test'},)\"; of a set of your own --config.data.path=sets/clips says it all."
    ) from None


def _check_places(words, in_buckets):
  """Refuses addresses that the command cannot read or write, in flags, options and words.

  Whoever opens such a path would find, or make, a folder called gs: here.
  """
  given = [(f'--{name}', flags.FLAGS[name].value) for name in flags.FLAGS if name != 'mirror']
  if 'config' in flags.FLAGS and flags.FLAGS.config is not None:
    given += [(f'--config.{name}', value) for name, value in options.values(flags.FLAGS.config)]
  given += [('', word) for word in words if not any(map(str.isspace, word))]
  for name, value in given:
    for text in value if isinstance(value, (list, tuple)) else (value,):
      if isinstance(text, str):
        try:
          address = buckets.is_address(text)
        except ValueError as error:
          raise ValueError(f'{name}: {error}' if name else f'{error}') from None
        if address and not in_buckets:
          raise ValueError(
            f'{name}: {text} is in a bucket, and this command reads and writes files of this '
            'machine alone: give a path that is copied here or mounted, as by gcsfuse.'
          )


def _explain(error, argv):
  """Says in one line what is wrong with the flags."""
  if isinstance(error, (AttributeError, KeyError, TypeError)):
    # What ml_collections says names the last part of an option alone.
    known = _options_of_config(argv)
    for arg in argv if known else ():
      option = re.match(r'--?(no)?config\.([^=]+)', arg)
      if option and (name := re.sub(r'\[\d+\]', '', option[2])) not in known:
        return _unknown(arg, name, known)
  text = str(error)
  # A config file that fails comes with its traceback; its last line says it.
  if 'Traceback' in text and '--debug' not in argv:
    text = text.strip().splitlines()[-1].partition(': ')[2] or text
  # absl has a line for each flag.
  return ' '.join(text.splitlines()) if isinstance(error, flags.Error) else text


def _options_of_config(argv):
  """Returns the names of what --config has before anything changes it."""
  for arg, following in zip(argv, [*argv[1:], ''], strict=True):
    if path := re.fullmatch(r'--?config(?:=(.*))?', arg):
      with contextlib.suppress(Exception):  # It may be what is wrong.
        return set(options.names(flags.FLAGS['config'].parser.parse(path[1] or following)))
  return set()


def _unknown(given, name, known):
  """Says which options one that does not exist may mean."""
  if name in options.RENAMED:
    new, values = options.RENAMED[name]
    changed = ', '.join(f'{old} is now {value!r}' for old, value in values.items())
    return f'option {given} is now called --config.{new}' + (f'; {changed}.' if changed else '.')
  last = name.rpartition('.')[2]

  def likeness(option):
    own = option.rpartition('.')[2]
    initials = ''.join(word[0] for word in own.split('_') if word)
    alike = difflib.SequenceMatcher(None, last, own).ratio()
    return max(alike, float(last == initials)), difflib.SequenceMatcher(None, name, option).ratio()

  best = max(map(likeness, known))[0]
  near = [option for option in known if likeness(option)[0] > max(0.6, best - 0.2)]
  if not near:
    return f'unknown option {given}; all options are in configs/common.py.'
  near = sorted(near, key=likeness, reverse=True)[:3]
  return f'unknown option {given}; did you mean {" or ".join(f"--config.{x}" for x in near)}?'


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
