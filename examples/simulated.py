"""Sets of clips from simulators: made in processes, captioned by dials, digested.

A world says which clips there are, draws one, and puts it into words. What comes of it:

  options.json            what the clips depend on; another answer is refused
  truth.jsonl             a row for each clip: what the simulator knows of it
  SPLIT/videos/*.mp4
  SPLIT/captions.jsonl    rows of video, caption, style; read by launch/prepare.py
  SPLIT/questions.jsonl   rows of video, question, answer, type
  captions.json           the dials of each file of captions
  digests.json            sha256 of each file of rows, and of the videos of each split

Clips are drawn once, an interrupted run goes on, and words are made anew each time: so
one set of videos may have several files of captions, from exact to mostly wrong.
"""

import collections
import concurrent.futures
import contextlib
import ctypes
import hashlib
import json
import multiprocessing
import os
import pathlib
import random
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from absl import flags

from alpro_jax import files
from alpro_jax.data import workers as processes
from alpro_jax.data.progress import Progress
from examples.shapes.files import write_video
from examples.shapes.stages import claim

TRAIN = 'train'
# What captions of the web have beside what they are about.
_DISTRACTORS = (
  'hd stock footage of {}',
  '4k video clip: {}',
  '{} - royalty free',
  '{}, slow motion background',
  'watch this: {}',
  '{} (close up, isolated)',
)


class Dials(NamedTuple):
  """How far captions are from saying exactly what is shown; shares from 0 to 1.

  Attributes:
    partial: of the captions of training clips, those that name only a part of it.
    wrong: of the training clips, those with the captions of another clip.
    distractors: of the captions of training clips, those with words that say nothing.
  """

  partial: float = 0.5
  wrong: float = 0.0
  distractors: float = 0.0


_EXACT = Dials(partial=0.0)


class Words(Protocol):
  """What a world says of a clip, given its row of truth.jsonl and random numbers."""

  def captions(
    self, row: Mapping[str, Any], rng: random.Random, partial: float
  ) -> list[tuple[str, str]]:
    """Returns (style, caption) of a clip, each partial with that chance in training."""

  def questions(self, row: Mapping[str, Any], rng: random.Random) -> list[tuple[str, str, str]]:
    """Returns (type, question, answer) of a clip."""


def define_flags(clips: int, size: int) -> None:
  """Defines the flags that the commands of all worlds share."""
  flags.DEFINE_string('output', None, 'Folder to write to.', required=True)
  flags.DEFINE_integer('clips', clips, 'How many, of all splits.', lower_bound=1)
  flags.DEFINE_integer('seed', 0, 'Everything random follows from it.', lower_bound=0)
  flags.DEFINE_integer('size', size, 'Side of the frames in pixels.', lower_bound=16)
  for name, share in Dials()._asdict().items():
    what = {
      'partial': 'captions that name only a part of what is shown',
      'wrong': 'training clips that have the captions of another clip',
      'distractors': 'captions with words that say nothing of the clip',
    }[name]
    flags.DEFINE_float(name, share, f'Share of {what}.', lower_bound=0, upper_bound=1)
  flags.DEFINE_string(
    'captions', 'captions', 'Name of the files of captions: a set may have several.'
  )
  flags.DEFINE_integer('workers', 0, 'Processes; 0 is one for each core.', lower_bound=0)


def make(
  clips: Sequence[Any],
  options: Mapping[str, Any],
  function: Callable[[Any], tuple[np.ndarray, dict[str, Any]]],
  words: Words,
  *,
  rate: int,
) -> int | None:
  """Makes a set by the flags of the command line; returns the exit code. Arguments: see draw."""
  given = flags.FLAGS
  options = {**options, **{name: given[name].value for name in ('clips', 'seed', 'size')}}
  dials = Dials(**{name: given[name].value for name in Dials._fields})
  try:
    rows = draw(given.output, options, clips, function, rate=rate, workers=given.workers)
  except KeyboardInterrupt:
    print('\nInterrupted. Give the same command again to continue.', file=sys.stderr)
    return 130
  counts = write_words(given.output, rows, words, seed=given.seed, dials=dials, name=given.captions)
  _say(given.output, counts)


def draw(
  output: str | pathlib.Path,
  options: Mapping[str, Any],
  clips: Sequence[Any],
  function: Callable[[Any], tuple[np.ndarray, dict[str, Any]]],
  *,
  rate: int,
  workers: int = 0,
) -> list[dict[str, Any]]:
  """Draws the clips that are not there yet.

  Args:
    output: folder of the set.
    options: what the clips depend on, as JSON has it.
    clips: picklable; their order is that of truth.jsonl.
    function: clip -> uint8[T, H, W, 3] and its row, with 'video' and 'split'; of a module.
    rate: frames per second of the files.
    workers: processes; 0 is one for each core.
  Returns:
    the rows of truth.jsonl.
  Raises:
    ValueError: the folder was begun with other options.
  """
  output = pathlib.Path(output)
  output.mkdir(parents=True, exist_ok=True)
  claim(output, dict(options))
  truth = output / 'truth.jsonl'
  lines = truth.read_bytes().splitlines(keepends=True) if truth.exists() else []
  if lines and not lines[-1].endswith(b'\n'):  # It was cut off.
    lines.pop()
    truth.write_bytes(b''.join(lines))
  rows = [json.loads(line) for line in lines]
  left = clips[len(rows) :]
  progress = Progress(len(clips))
  progress.found(len(rows))
  job = _Job(function, str(output), rate)
  with open(truth, 'a', encoding='utf-8') as file:
    for row in _map(job, left, workers or os.cpu_count() or 1):
      file.write(json.dumps(row) + '\n')
      file.flush()
      rows.append(row)
      progress.add()
  if left:
    progress.close()
  return rows


class _Job(NamedTuple):
  function: Callable
  output: str
  rate: int

  def __call__(self, clip):
    # Simulators say on stdout what they reject while they make up a scene.
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
      frames, row = self.function(clip)
    folder = pathlib.Path(self.output, row['split'], 'videos')
    folder.mkdir(parents=True, exist_ok=True)
    write_video(str(folder / row['video']), frames, self.rate)
    return row


def _map(function, items, workers):
  workers = min(workers, len(items))
  if workers <= 1:
    yield from map(function, items)
    return
  # Spawned: a fork of a process with threads may hang.
  with processes.environment_of_children():
    pool = concurrent.futures.ProcessPoolExecutor(
      workers, multiprocessing.get_context('spawn'), _end_with_the_parent
    )
    try:
      # Whole runs of neighbours to one process: they may share a scene.
      yield from pool.map(function, items, chunksize=max(1, min(20, len(items) // (4 * workers))))
    finally:
      pool.shutdown(cancel_futures=True)


def _end_with_the_parent():
  # One that waits for work would not see that its parent was killed.
  with contextlib.suppress(OSError, AttributeError):  # Linux alone.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent.


def write_words(
  output: str | pathlib.Path,
  rows: Iterable[Mapping[str, Any]],
  words: Words,
  *,
  seed: int,
  dials: Dials = _EXACT,
  name: str = 'captions',
) -> dict[str, dict[str, int]]:
  """Writes captions and questions of all splits, and the digests of the set.

  Captions of other splits than train are exact, whatever the dials say. One that is
  wrong comes from another training clip, which its row names as 'captions_of'.

  Args:
    output: folder of the set.
    rows: of truth.jsonl.
    words: of the world.
    seed: everything random follows from it.
    dials: of the captions.
    name: of the files of captions, without .jsonl.
  Returns:
    {split: {'clips', 'captions', 'questions'}}, how many there are.
  """
  output, splits = pathlib.Path(output), collections.defaultdict(list)
  for row in rows:
    splits[row['split']].append(row)
  counts = {}
  for split, of_split in splits.items():
    training = split == TRAIN
    said = {
      row['video']: words.captions(
        row, _rng(seed, row, 'captions'), dials.partial if training else 0.0
      )
      for row in of_split
    }
    other = _exchanged(said, seed, dials.wrong) if training else {}
    captions, questions = [], []
    for row in of_split:
      video, rng = row['video'], _rng(seed, row, 'distractors')
      source = other.get(video, video)
      for style, text in said[source]:
        if training and rng.random() < dials.distractors:
          text = rng.choice(_DISTRACTORS).format(text)
        captions.append({'video': video, 'caption': text, 'style': style})
        if source != video:
          captions[-1]['captions_of'] = source
      for kind, question, answer in words.questions(row, _rng(seed, row, 'questions')):
        questions.append({'video': video, 'question': question, 'answer': answer, 'type': kind})
    for file, made in ((name, captions), ('questions', questions)):
      files.write_text(
        output / split / f'{file}.jsonl', ''.join(json.dumps(row) + '\n' for row in made)
      )
    counts[split] = {'clips': len(of_split), 'captions': len(captions), 'questions': len(questions)}
  known = output / 'captions.json'
  made = json.loads(known.read_text()) if known.exists() else {}
  files.write_text(known, json.dumps(made | {name: dials._asdict()}, indent=1) + '\n')
  write_digests(output)
  return counts


def write_digests(output: pathlib.Path) -> None:
  """Writes digests.json: the same seed and versions give the same."""
  found = {}
  folders = sorted(output.glob('*/videos'))
  for folder in (output, *(videos.parent for videos in folders)):
    for file in sorted(folder.glob('*.jsonl')):
      found[file.relative_to(output).as_posix()] = files.sha256(file)
  for folder in folders:
    digest = hashlib.sha256()
    for video in sorted(folder.iterdir()):
      digest.update(f'{files.sha256(video)}  {video.name}\n'.encode())
    found[folder.relative_to(output).as_posix()] = digest.hexdigest()
  files.write_text(output / 'digests.json', json.dumps(found, indent=1) + '\n')


def _say(output, counts):
  for split, count in counts.items():
    print(f'{split:<10}' + ''.join(f'{value:>8,} {name}' for name, value in count.items()))
  print(f'Written: {output}, with digests.json. Next:')
  for split in (TRAIN, 'test'):
    if split in counts:
      print(
        f'  python launch/prepare.py --source=folder --videos={output}/{split}/videos '
        f'--captions={output}/{split}/captions.jsonl --questions={output}/{split}/questions.jsonl '
        f'--fps=0 --split={split} --output={output}/set'
      )


def _rng(seed, row, use):
  return random.Random(f'{seed} {row["video"]} {use}')


def _exchanged(said, seed, share):
  """{video: whose captions it has} of those that are wrong.

  Each takes those of the next wrong one that says something else.
  """
  wrong = [video for video in said if random.Random(f'{seed} {video} wrong').random() < share]
  others = {}
  for i, video in enumerate(wrong):
    for other in wrong[i + 1 :] + wrong[:i]:
      if not {text for _, text in said[video]} & {text for _, text in said[other]}:
        others[video] = other
        break
  return others
