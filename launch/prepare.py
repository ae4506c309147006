"""Turns videos and their captions into a TensorFlow Datasets data set.

A folder of videos. captions.jsonl holds one line per caption:
{"video": "a/dog.mp4", "caption": "a dog swims", "style": "short"}
(style is optional; a .csv file with these columns, or a .json list of such
objects, will do as well)
  python launch/prepare.py --source=folder --videos=clips \\
    --captions=captions.jsonl --output=sets/clips --split=train

Questions, with captions or without. questions.jsonl (or .csv) holds
{"video": "a/dog.mp4", "question": "what swims", "answer": "dog"}
(type is optional: the kind of question to count it with)
  python launch/prepare.py --source=folder --videos=clips \\
    --captions=captions.jsonl --questions=questions.jsonl \\
    --output=sets/clips

WebVid, a csv file with video_id (or videoid) and text (or name):
  python launch/prepare.py --source=webvid --videos=webvid/videos \\
    --captions=webvid/train.csv --txt_len_below=80 --output=sets/webvid

CC3M as it is published, a .tsv of captions and addresses, fetched first:
  python launch/prepare.py fetch --captions=cc3m/Train_GCC-training.tsv \\
    --videos=cc3m/images
  python launch/prepare.py --source=cc3m --images=cc3m/images \\
    --captions=cc3m/Train_GCC-training.tsv --output=sets/cc3m
Or a JSON list of {"image": path, "caption": text or list of texts}:
    --captions=cc3m/train.json

MSRVTT retrieval. The 7,010 videos of the 7k split, then the 1k-A list:
  python launch/prepare.py --source=msrvtt --videos=msrvtt/videos \\
    --captions=msrvtt/train_val_videodatainfo.json --subset=7k \\
    --output=sets/msrvtt
  python launch/prepare.py --source=msrvtt --videos=msrvtt/videos \\
    --captions=msrvtt/MSRVTT_JSFUSION_test.csv \\
    --output=sets/msrvtt --split=test
The 9k split is all videos that the 1k-A list does not have, 9,000:
    --captions=msrvtt/MSRVTT_data.json \\
    --except_ids=msrvtt/MSRVTT_JSFUSION_test.csv
Or give a list: --ids=msrvtt/MSRVTT_train.9k.csv

MSRVTT-QA; --captions may be given too, a video is stored once:
  python launch/prepare.py --source=msrvtt --videos=msrvtt/videos \\
    --questions=msrvtt_qa/train_qa.json --output=sets/msrvtt_qa

DiDeMo, where all sentences of a video become one paragraph (about its first
30 seconds; the original reads all of it, --max_seconds=30 no more):
  python launch/prepare.py --source=didemo --videos=didemo/videos \\
    --captions=didemo/train_data.json --output=sets/didemo

MSVD-QA:
  python launch/prepare.py --source=msvd --videos=msvd/YouTubeClips \\
    --questions=msvd_qa/train_qa.json \\
    --mapping=msvd_qa/youtube_mapping.txt --output=sets/msvd_qa
Its captions in English, of the published csv or AllVideoDescriptions.txt:
    --captions="MSR Video Description Corpus.csv"

The .jsonl files of the original ALPRO, {"caption", "clip_name"} and
{"question", "answer", "answer_type", "video_id"}, are read in their place.

An interrupted run continues when the same command is given again.

The same set, made by an Apache Beam pipeline (pip install -r requirements.txt,
then pip install -r requirements-beam.txt). What follows -- are Beam's own
options; without any it runs in this process:
  python launch/prepare.py --runner=beam --source=folder --videos=clips \\
    --captions=captions.jsonl --output=sets/clips -- \\
    --direct_running_mode=multi_processing --direct_num_workers=8
Flink, Spark or Dataflow: -- --runner=FlinkRunner --flink_master=host:8081
Videos and output must then lie in a file system that all workers share, under
the same path, and the workers' image must hold this project.

Videos that are named by an address, in "video": "https://..." or in a column
contentUrl (WebVid) or url, and the photos of CC3M's .tsv are downloaded first:
  python launch/prepare.py fetch --captions=captions.jsonl --videos=clips

Is a set as it was written? Names every broken file and record, and with
--output writes a set of all records that can be read:
  python launch/prepare.py verify sets/clips
  python launch/prepare.py verify sets/clips --output=sets/clips_repaired
"""

import os
import shlex
import signal
import sys
import time
from collections import Counter

from absl import app, flags

from alpro_jax.data import annotations, downstream, fetch, prepare, verify, workers
from launch import command

_DEFAULTS = prepare.Options()
_LIMITS = fetch.Limits()

_SOURCE = flags.DEFINE_enum('source', None, annotations.SOURCES, 'What the files are.')
_VIDEOS = flags.DEFINE_string('videos', '', 'Folder of videos.')
_IMAGES = flags.DEFINE_string('images', '', 'Folder of photos (cc3m).')
_CAPTIONS = flags.DEFINE_string(
  'captions', '', "Captions file; for fetch a .csv, .jsonl or .json with addresses, or CC3M's .tsv."
)
_QUESTIONS = flags.DEFINE_string(
  'questions', '', 'folder, msrvtt, msvd: questions file, with or without captions.'
)
_OUTPUT = flags.DEFINE_string(
  'output',
  '',
  'Folder of the set, new or unfinished; for verify a new one for the records that are intact.',
)
_FOLLOW_LINKS = flags.DEFINE_bool(
  'follow_links', False, 'Read videos that are links to files outside of --videos.'
)
_SPLIT = flags.DEFINE_string('split', 'train', 'One run makes one split.')
_FPS = flags.DEFINE_float('fps', _DEFAULTS.fps, 'Frames to keep per second; 0 keeps all.')
_SHORT_SIDE = flags.DEFINE_integer(
  'short_side',
  _DEFAULTS.short_side,
  'Pixels of the shorter side; 0 keeps the size, and nothing is ever enlarged.',
)
_QUALITY = flags.DEFINE_integer('quality', _DEFAULTS.quality, 'Of the JPEG frames, 1 to 95.')
_MAX_FRAMES = flags.DEFINE_integer(
  'max_frames', _DEFAULTS.max_frames, 'Keep no more frames of a clip; 0 is no limit.'
)
_MAX_SECONDS = flags.DEFINE_float(
  'max_seconds',
  None,
  'Read no further into a clip; 0 is no limit '
  f'({_DEFAULTS.max_seconds:g}). For fetch: seconds for one try in all '
  f'({_LIMITS.max_seconds:g}).',
)
_ON_PARTIAL = flags.DEFINE_enum(
  'on_partial',
  _DEFAULTS.on_partial,
  ['skip', 'keep'],
  'What to do with a video that breaks off after some frames; it is named '
  'in the report either way.',
)
_PART_SIZE = flags.DEFINE_integer(
  'part_size', _DEFAULTS.part_size, 'Clips per shard; also the most that an interruption costs.'
)
_WORKERS = flags.DEFINE_integer(
  'workers',
  0,
  'Decoding processes; 0 is one per core; with --runner=beam, '
  'of each part that is being made, and 0 is one.',
)
_RUNNER = flags.DEFINE_enum(
  'runner',
  'local',
  ['local', 'beam'],
  'beam: a pipeline of Apache Beam makes the shards; its own options follow -- at the end.',
)
_TIMEOUT_S = flags.DEFINE_float(
  'timeout_s',
  None,
  'Seconds of work after which a clip is given up (120, '
  'and more for long, large and high-definition videos). For fetch: seconds '
  f'without a byte ({_LIMITS.timeout_s:g}).',
)
_TXT_LEN_BELOW = flags.DEFINE_integer(
  'txt_len_below', 0, 'webvid: keep rows with a smaller txt_len, the original used 80; 0 keeps all.'
)
_ALLOW_PICKLE = flags.DEFINE_bool(
  'allow_pickle', False, 'webvid: open a pandas pickle, which can run any code.'
)
_SUBSET = flags.DEFINE_enum(
  'subset',
  '',
  ['', *downstream.SUBSETS],
  'msrvtt: videos of this split, as '
  "the videodatainfo file has it; 7k is 'train' and 'validate' (all).",
)
_IDS = flags.DEFINE_string(
  'ids',
  '',
  'msrvtt, didemo, msvd: keep only the videos of this list, a '
  '.csv file with video_id or a .txt file with one a line.',
)
_EXCEPT_IDS = flags.DEFINE_string(
  'except_ids', '', 'msrvtt, didemo, msvd: leave out the videos of this list.'
)
_MAPPING = flags.DEFINE_string(
  'mapping', '', 'msvd: youtube_mapping.txt; without it the videos must be called vid<number>.'
)

_URL_COLUMN = flags.DEFINE_string(
  'url_column', '', 'fetch: column of the addresses (contentUrl, url, or video).'
)
flags.DEFINE_integer('threads', _LIMITS.threads, 'fetch: downloads at a time.')
flags.DEFINE_integer('per_host', _LIMITS.per_host, 'fetch: of one host.')
flags.DEFINE_integer('tries', _LIMITS.tries, 'fetch: of one address.')
flags.DEFINE_float(
  'wait_s', _LIMITS.wait_s, 'fetch: seconds before the second try, doubled for each further one.'
)
flags.DEFINE_integer('max_bytes', _LIMITS.max_bytes, 'fetch: bytes of one video.')
_RETRY_FAILED = flags.DEFINE_bool(
  'retry_failed', False, 'fetch: try again what can hardly be had, such as HTTP 404.'
)
_ALLOW_LOCAL = flags.DEFINE_bool(
  'allow_local',
  False,
  'fetch: also ask machines of the local network, and '
  'this one; an address in a captions file of others may be meant to reach '
  'them.',
)

# Flags that only some steps have; the others are for the set alone.
_ONLY_FETCH = {
  'url_column',
  'threads',
  'per_host',
  'tries',
  'wait_s',
  'max_bytes',
  'retry_failed',
  'allow_local',
}
_FETCH = _ONLY_FETCH | {'captions', 'videos', 'timeout_s', 'max_seconds'}
_VERIFY = {'output'}

# Flags that only some sources have.
_SOURCES_OF = {
  'questions': ('folder', 'msrvtt', 'msvd'),
  'subset': ('msrvtt',),
  'ids': ('msrvtt', 'didemo', 'msvd'),
  'except_ids': ('msrvtt', 'didemo', 'msvd'),
  'mapping': ('msvd',),
  'txt_len_below': ('webvid',),
  'allow_pickle': ('webvid',),
}


def _check_flags(step, known):
  """Raises ValueError if a flag of another step was given."""
  for flag in flags.FLAGS.get_flags_for_module(sys.argv[0]):
    if flag.present and not known(flag.name):
      raise ValueError(f'{step} has no --{flag.name}; see --help.')


def _read_source():
  for flag, sources in _SOURCES_OF.items():
    if flags.FLAGS[flag].value and _SOURCE.value not in sources:
      raise prepare.PrepareError(
        f'--source={_SOURCE.value} has no --{flag}; it is for {", ".join(sources)}.'
      )
  if not (_CAPTIONS.value or _QUESTIONS.value):
    raise prepare.PrepareError(
      f'--source={_SOURCE.value} needs --captions'
      + (', --questions, or both.' if _SOURCE.value in _SOURCES_OF['questions'] else '.')
    )
  root, flag = _VIDEOS.value, '--videos'
  if _SOURCE.value == 'cc3m':
    root, flag = _IMAGES.value or _VIDEOS.value, '--images'
  if not root:
    raise prepare.PrepareError(f'--source={_SOURCE.value} needs {flag}.')
  if not os.path.isdir(root):
    raise prepare.PrepareError(f'{flag}={root} is not a folder.')
  if _SOURCE.value == 'folder':
    return root, annotations.read_folder(
      _CAPTIONS.value, _QUESTIONS.value, split=_SPLIT.value, root=root
    )
  if _SOURCE.value == 'webvid':
    return root, annotations.read_webvid(
      _CAPTIONS.value, max_text_length=_TXT_LEN_BELOW.value, allow_pickle=_ALLOW_PICKLE.value
    )
  if _SOURCE.value == 'cc3m':
    return root, annotations.read_cc3m(_CAPTIONS.value, root)
  lists = {'ids': _IDS.value, 'except_ids': _EXCEPT_IDS.value, 'root': root}
  if _SOURCE.value == 'didemo':
    return root, downstream.read_didemo(_CAPTIONS.value, **lists)
  if _SOURCE.value == 'msvd':
    return root, downstream.read_msvd(
      _CAPTIONS.value, _QUESTIONS.value, mapping=_MAPPING.value, **lists
    )
  return root, downstream.read_msrvtt(
    _CAPTIONS.value, _QUESTIONS.value, subset=_SUBSET.value, **lists
  )


def _maker(beam_flags):
  """Returns what makes the shards; None is worker processes here."""
  if _RUNNER.value != 'beam':
    if beam_flags is not None:
      raise prepare.PrepareError('Only --runner=beam takes options after --.')
    return None
  try:
    from alpro_jax.data import beam  # noqa: PLC0415  Optional, and slow.
  except ModuleNotFoundError as e:
    if e.name.split('.')[0] != 'apache_beam':
      raise
    raise prepare.PrepareError(
      '--runner=beam needs Apache Beam: pip install -r requirements-beam.txt'
    ) from e
  return beam.maker(beam_flags or [])


def _print_report(report, output):
  counts = report['counts']
  if report.get('already_prepared'):
    print(
      f'{output} has this split already; '
      + (
        f'{report["tried_again"]} clips of it were tried again, and none could be read.'
        if report['tried_again']
        else 'nothing to do.'
      )
    )
  lines = [
    ('clips in the annotations', counts['clips']),
    ('prepared', counts['prepared']),
    ('  captions', counts['captions']),
    ('  questions', counts['questions']),
    ('  frames', counts['frames']),
    ('  megabytes', round(counts['bytes'] / 1e6, 1)),
    ('skipped rows and clips', counts['skipped']),
  ]
  lines += [(f'  {reason}', count) for reason, count in report['skipped_by_reason'].items()]
  if count := report['skipped_by_reason'].get(workers.MACHINE):
    lines.append(('  which the same command tries again', count))
  if report['partial']:
    lines.append(('kept though they break off', len(report['partial'])))
  if counts['rows_of_other_splits']:
    lines.append(('rows not asked for', counts['rows_of_other_splits']))
  if counts.get('to_leave_out_but_not_found'):  # Older reports lack it.
    lines.append(('of --except_ids, not found', counts['to_leave_out_but_not_found']))
  if counts['videos_not_named']:
    lines.append(('videos that no row names', counts['videos_not_named']))
  for name, value in lines:
    print(f'{annotations.printable(name):<32}{value:>12,}')
  print(f'report: {os.path.join(output, prepare.REPORT)}')


def _verify(words):
  """Checks a set, and repairs it if asked; returns the exit code."""
  _check_flags('verify', _VERIFY.__contains__)
  if len(words) != 1:
    raise ValueError(f'verify takes the folder of one set; it was given {words}.')
  found = verify.verify(words[0])
  for problem in found.problems:
    record = '' if problem.number is None else (f', record {problem.number} {problem.video!r}')
    print(annotations.printable(f'{problem.split}: {problem.file}{record}: {problem.reason}'))
  print(
    f'{found.files} files and {found.records:,} records: '
    + (
      f'{len(found.problems) - found.broken_records} problems with '
      f'files, {found.broken_records} broken records.'
      if found.problems
      else 'all as they were written.'
    )
  )
  if _OUTPUT.value:
    for split, report in verify.repair(words[0], _OUTPUT.value).items():
      counts = report['counts']
      print(f'{split}: {counts["prepared"]:,} of {counts["clips"]:,} records saved')
    print(f'Written: {_OUTPUT.value}')
  return 1 if found.problems else 0


def _fetch(words):
  """Downloads the videos of a captions file; returns the exit code."""
  _check_flags('fetch', _FETCH.__contains__)
  if words or not (_CAPTIONS.value and _VIDEOS.value):
    raise ValueError(
      f'fetch takes no words, but was given {words}.'
      if words
      else 'fetch needs --captions and --videos.'
    )
  limits = _LIMITS._replace(
    **{
      name: flags.FLAGS[name].value
      for name in fetch.Limits._fields
      if flags.FLAGS[name].value is not None
    }
  )
  for name, value in limits._asdict().items():
    if not value > 0:
      raise ValueError(f'--{name}={value} must be more than 0.')
  videos, skipped, rows = fetch.read_videos(_CAPTIONS.value, url_column=_URL_COLUMN.value)
  try:
    found = fetch.fetch(
      videos,
      _VIDEOS.value,
      limits=limits,
      retry_failed=_RETRY_FAILED.value,
      allow_local=_ALLOW_LOCAL.value,
    )
  except KeyboardInterrupt:
    print('\nInterrupted. Give the same command again to continue.', file=sys.stderr)
    return 130
  for row in skipped:
    print(f'skipped {row.item!r}: {row.reason} ({row.detail})', file=sys.stderr)
  reasons = Counter(filter(None, found.values()))
  reasons.update(row.reason for row in skipped)
  there = sum(not reason for reason in found.values())
  lines = [
    ('rows', rows),
    ('videos', len(videos)),
    ('there', there),
    ('not there', sum(reasons.values())),
  ]
  for name, count in lines + [(f'  {reason}', reasons[reason]) for reason in sorted(reasons)]:
    print(f'{name:<32}{count:>12,}')
  print(f'each is named in {os.path.join(_VIDEOS.value, fetch.RESUME)}')
  return 1 if reasons else 0


def _prepare(words, beam_flags):
  """Makes the set; returns the exit code."""
  _check_flags('a set', lambda name: name not in _ONLY_FETCH)
  if words or not (_SOURCE.value and _OUTPUT.value):
    raise ValueError(
      f'unexpected {words}; see --help.'
      if words
      else '--source and --output are needed; see --help for examples.'
    )
  start = time.monotonic()
  options = prepare.Options(
    fps=_FPS.value,
    short_side=_SHORT_SIDE.value,
    quality=_QUALITY.value,
    max_frames=_MAX_FRAMES.value,
    max_seconds=_MAX_SECONDS.value or _DEFAULTS.max_seconds,
    on_partial=_ON_PARTIAL.value,
    part_size=_PART_SIZE.value,
  )
  make = _maker(beam_flags)
  root, source = _read_source()
  report = prepare.prepare(
    source,
    root,
    _OUTPUT.value,
    split=_SPLIT.value,
    options=options,
    num_workers=_WORKERS.value,
    timeout_s=_TIMEOUT_S.value,
    list_unnamed=_SOURCE.value == 'folder',
    follow_links=_FOLLOW_LINKS.value,
    make=make,
  )
  _print_report(report, _OUTPUT.value)
  output = shlex.quote(_OUTPUT.value)
  print(
    f'{time.monotonic() - start:.1f} s in all. Next, unless you have a '
    f'BERT vocab.txt:\n  python launch/tokenizer.py --captions={output} '
    f'--split={_SPLIT.value} --output=tokenizer.model'
  )
  if report['counts'].get('questions') and _SPLIT.value.startswith('train'):
    print(
      'And the list of answers:\n  python launch/answers.py '
      f'--data={output} --split={_SPLIT.value} --output=answers.txt'
    )
  return 0


def _parse(argv):
  """Parses flags and words; what follows -- is Beam's."""
  at = argv.index('--') if '--' in argv else len(argv)
  return command.parse_words(argv[:at]) + argv[at:]


def main(argv):
  os.environ['CUDA_VISIBLE_DEVICES'] = ''  # Nothing here uses a GPU.
  at = argv.index('--') if '--' in argv else len(argv)
  words, beam_flags = argv[1:at], argv[at + 1 :] if argv[at:] else None
  stopped = []

  def stop(number, _):
    stopped.append(number)
    raise KeyboardInterrupt

  try:
    if words[:1] == ['verify']:
      return _verify(words[1:])
    if words[:1] == ['fetch']:
      return _fetch(words[1:])
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    return _prepare(words, beam_flags)
  except (Exception, KeyboardInterrupt) as error:
    if stopped:  # Whatever it became: a library that loads hides it.
      print('\nInterrupted. Give the same command again to continue.', file=sys.stderr)
      return 128 + stopped[0]
    if not isinstance(error, (ValueError, OSError, RuntimeError)):
      raise
    print(file=sys.stderr)  # Below the progress.
    command.fail(error, command.MISTAKE)


if __name__ == '__main__':
  app.run(main, flags_parser=_parse)
