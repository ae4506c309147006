"""Preparation as an Apache Beam pipeline: the parts are made elsewhere.

One element of the pipeline is one part, made by the same functions as on one machine: so
order and bytes are the same. An element is only the path of the part; its clips lie in a
file beside it, since a job has room for a few MB.

Runners try a part again when a worker is lost, and may try it twice at once. So each
attempt writes files of its own, and the process that started the pipeline gives one
attempt of each part its name:

  part-00000.clips                       what to make
  part-00000.try-<random>.array_record
  part-00000.try-<random>.json           written last: the attempt is whole

These lie in a folder that all workers see, or in the bucket of the set. Records stay there:
only what is said of them comes to the process that started the pipeline.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import re
import tempfile
import threading
import uuid

import apache_beam
from apache_beam.options import pipeline_options
from apache_beam.runners.portability import fn_api_runner

from alpro_jax import buckets, files
from alpro_jax.data import workers
from alpro_jax.data.annotations import Clip, Question, Skipped
from alpro_jax.data.manifest import PrepareError
from alpro_jax.data.parts import Part, is_done, make_here, read_part, save_part
from alpro_jax.data.progress import Progress

_WATCH_SECONDS, _WATCH_BUCKET_SECONDS = 2.0, 10.0


class MakePart(apache_beam.DoFn):
  """Makes one part in a Beam worker.

  The decoder runs in processes of its own here too, so that a clip over which it hangs or
  dies costs that clip and not the Beam worker.
  """

  def __init__(self, settings, num_workers, timeout_s):
    self._settings = settings
    self._limits = {'num_workers': num_workers, 'timeout_s': timeout_s}

  def process(self, stem):
    folder, _, name = stem.rpartition('/')
    attempts = re.compile(rf'{re.escape(name)}(\.try-.*)?\.json')
    if any(map(attempts.fullmatch, files.names(folder))):
      return  # An earlier attempt was whole, but the runner lost its answer.
    try:
      clips = [*map(_clip, json.loads(files.read(f'{stem}.clips')))]
    except FileNotFoundError as e:
      raise FileNotFoundError(
        f'This worker does not see {stem}.clips; videos and output must be '
        'in folders that all workers share, or in a bucket.'
      ) from e
    name = f'{name}.try-{uuid.uuid4().hex}'
    with contextlib.ExitStack() as held:
      remote = buckets.is_address(folder)
      here = held.enter_context(tempfile.TemporaryDirectory()) if remote else folder
      attempt = Part(os.path.join(here, name), clips)
      silent = Progress(len(clips), log=lambda text: None)
      make_here([attempt], self._settings, silent, **self._limits)
      if remote:
        for suffix in ('array_record', 'json'):
          buckets.upload(pathlib.Path(f'{attempt.stem}.{suffix}'), f'{folder}/{name}.{suffix}')


def maker(flags: list[str]):
  """Returns a function for prepare.prepare(make=...), for Beam's own options.

  Raises:
    PrepareError: an option is unknown.
  """
  try:
    options = pipeline_options.PipelineOptions(flags)
    known = options.get_all_options()
  except SystemExit as e:  # Its parser has said what is wrong.
    raise PrepareError(f'Beam refuses its options {flags}.') from e
  runner = known['runner']
  if runner in (None, 'DirectRunner'):
    # By its name DirectRunner first tries to download another runner, Prism.
    runner = fn_api_runner.FnApiRunner()
    given = options.get_all_options(retain_unknown_options=True)
    if unknown := sorted(set(given) - set(known)):  # Others pass these on.
      raise PrepareError(f'Beam has no option --{unknown[0]}; after -- come only options of Beam.')
  return functools.partial(_make, options, runner)


def _make(options, runner, parts, settings, progress, *, num_workers, timeout_s):
  """Makes parts, as make_here does; num_workers is per part."""
  waiting = _name_attempts(parts, progress)  # Whole ones of an earlier run.
  for part in waiting:
    clips = json.dumps([dataclasses.asdict(clip) for clip in part.clips])
    files.write_text(f'{_place(part)}.clips', clips)
  if waiting:
    stems = [_place(part) for part in waiting]
    with workers.environment_of_children(), _named_meanwhile(waiting, progress):
      _run(options, runner, stems, MakePart(settings, num_workers or 1, timeout_s))
  if missing := _name_attempts(waiting, progress):
    raise RuntimeError(
      f'The pipeline ended without {len(missing)} of {len(parts)} parts, such as '
      f'{_place(missing[0])}; the output must be in a folder that all workers share, or in a '
      'bucket.'
    )
  return sum(len(part.clips) for part in waiting)


def _place(part):
  """Where workers see it, without suffix."""
  return part.elsewhere or part.stem


def _run(options, runner, stems, make_part):
  try:
    with apache_beam.Pipeline(runner=runner, options=options) as pipeline:
      _ = pipeline | apache_beam.Create(stems) | apache_beam.ParDo(make_part)
  except Exception as e:  # Of many kinds, with all of a worker's traceback.
    lines = [line for line in str(e).splitlines() if line.strip()]
    raise RuntimeError(
      f'The Beam pipeline failed, {lines[-1] if lines else repr(e)}\n'
      'Shards that are done are kept; the same command continues.'
    ) from e


def _clip(fields):
  """Returns the Clip of what dataclasses.asdict and JSON made of it."""
  fields = {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}
  return Clip(**{**fields, 'questions': tuple(Question(*asked) for asked in fields['questions'])})


def _name_attempts(parts, progress):
  """Gives whole attempts the names of their parts; returns the parts that have none."""
  if not parts:
    return []
  waiting, attempts = [], {}
  folder = os.path.dirname(_place(parts[0]))
  there = set(files.names(folder))
  for name in sorted(there, reverse=True):
    if name.endswith('.json') and '.try-' in name:
      attempts[name.rpartition('.try-')[0]] = name.removesuffix('.json')  # The first of several.
  for part in parts:
    if is_done(part.stem):
      continue
    name = os.path.basename(part.stem)
    if attempt := attempts.get(name):
      with contextlib.suppress(FileNotFoundError):  # Moved before a kill.
        _move(folder, attempt, name, 'array_record')
      _move(folder, attempt, name, 'json')
    elif f'{name}.json' not in there:
      waiting.append(part)
      continue
    if part.elsewhere:
      save_part(part.stem, json.loads(files.read(f'{part.elsewhere}.json')))
    made = read_part(part.stem)
    for skipped in made['skipped']:
      progress.add(skipped=Skipped(**skipped))
    progress.add(len(made['index']))
  return waiting


def _move(folder, old, new, suffix):
  old, new = (files.join(folder, f'{name}.{suffix}') for name in (old, new))
  if buckets.is_address(folder):
    buckets.move(old, new)
  else:
    os.replace(old, new)


@contextlib.contextmanager
def _named_meanwhile(parts, progress):
  """Names attempts as they come, so that progress can be seen."""
  stop = threading.Event()

  def watch(waiting):
    seconds = _WATCH_BUCKET_SECONDS if parts[0].elsewhere else _WATCH_SECONDS
    while waiting and not stop.wait(seconds):
      with contextlib.suppress(buckets.BucketError):  # Tried again.
        waiting = _name_attempts(waiting, progress)

  thread = threading.Thread(target=watch, args=(parts,), daemon=True)
  thread.start()
  try:
    yield
  finally:
    stop.set()
    thread.join()
