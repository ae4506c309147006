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
Videos and output must then lie in a bucket (gs://, s3://) or a file system that all
workers share, and the workers' image must hold this project: docs/buckets.md.

Videos that are named by an address, in "video": "https://..." or in a column
contentUrl (WebVid) or url, and the photos of CC3M's .tsv are downloaded first:
  python launch/prepare.py fetch --captions=captions.jsonl --videos=clips

Is a set as it was written? Names every broken file and record, and with
--output writes a set of all records that can be read:
  python launch/prepare.py verify sets/clips
  python launch/prepare.py verify sets/clips --output=sets/clips_repaired
"""

try:
  from launch import command
except ModuleNotFoundError:
  import not_installed  # noqa: F401

import os
import shlex
import signal
import sys
import time
import typing
from collections import Counter

from absl import app, flags

from alpro_jax import buckets, files
from alpro_jax.data import annotations, fetch, manifest, own, prepare, sources, verify, workers
from alpro_jax.data.options import options_of

FLAGS = flags.FLAGS
_LIMITS = fetch.Limits()
_DEFINE = {
  str: flags.DEFINE_string,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  bool: flags.DEFINE_bool,
}


def _define(name, kind, default, text):
  """Defines a flag of a Python type, or of a Literal."""
  if typing.get_origin(kind) is typing.Literal:
    flags.DEFINE_enum(name, default, typing.get_args(kind), text)
  else:
    _DEFINE[kind](name, default, text)


flags.DEFINE_enum('source', None, [*sources.SOURCES], 'What the files are.')
flags.DEFINE_string('videos', '', 'Folder of videos.')
flags.DEFINE_string('images', '', 'Folder of photos (cc3m).')
flags.DEFINE_string(
  'captions', '', "Captions file; for fetch a .csv, .jsonl or .json with addresses, or CC3M's .tsv."
)
flags.DEFINE_string(
  'output',
  '',
  'Folder of the set, new or unfinished; for verify a new one for the records that are intact.',
)
flags.DEFINE_bool('follow_links', False, 'Read videos that are links to files outside of --videos.')
flags.DEFINE_string('split', 'train', 'One run makes one split.')
flags.DEFINE_integer(
  'workers',
  0,
  'Decoding processes; 0 is one per core; with --runner=beam, '
  'of each part that is being made, and 0 is one.',
)
flags.DEFINE_enum(
  'runner',
  'local',
  ['local', 'beam'],
  'beam: a pipeline of Apache Beam makes the shards; its own options follow -- at the end.',
)
flags.DEFINE_float(
  'timeout_s',
  None,
  'Seconds of work after which a clip is given up (120, and more for long, large and '
  f'high-definition videos). For fetch: seconds without a byte ({_LIMITS.timeout_s:g}).',
)
for _name, (_kind, _default, _text, *_) in options_of(prepare.Options).items():
  _define(_name, _kind, _default, _text)
for _name, (*_option, _text, _sources) in sources.options().items():
  _define(_name, *_option, f'{", ".join(_sources)}: {_text}')
_FETCH = options_of(fetch.Limits) | {
  'url_column': (str, '', 'column of the addresses (contentUrl, url, or video).'),
  'retry_failed': (bool, False, 'try again what can hardly be had, such as HTTP 404.'),
  'allow_local': (
    bool,
    False,
    'also ask machines of the local network, and this one; an address in a '
    'captions file of others may be meant to reach them.',
  ),
}
_SHARED = {'captions', 'videos', 'timeout_s', 'max_seconds'}  # With the steps of a set.
for _name in _FETCH.keys() - _SHARED:
  *_option, _text = _FETCH[_name]
  _define(_name, *_option, f'fetch: {_text}')


def _check_flags(step, known):
  """Raises ValueError if a flag of another step was given."""
  for flag in FLAGS.get_flags_for_module(sys.argv[0]):
    if flag.present and not known(flag.name):
      raise ValueError(f'{step} has no --{flag.name}; see --help.')


def _maker(beam_flags):
  """Returns what makes the shards; None is worker processes here."""
  if FLAGS.runner != 'beam':
    if beam_flags is not None:
      raise ValueError('Only --runner=beam takes options after --.')
    return None
  try:
    from alpro_jax.data import beam  # noqa: PLC0415  Optional, and slow.
  except ModuleNotFoundError as e:
    if e.name.split('.')[0] != 'apache_beam':
      raise
    raise ValueError('--runner=beam needs Apache Beam: pip install -r requirements-beam.txt') from e
  return beam.maker(beam_flags or [])


def _print_table(lines):
  for name, value in lines:
    print(f'{annotations.printable(name):<32}{value:>12,}')


def _print_report(report):
  counts, reasons = report['counts'], report['skipped_by_reason']
  if report.get('already_prepared'):
    tried = f'{report["tried_again"]} clips of it were tried again, and none could be read.'
    print(
      f'{FLAGS.output} has this split already; '
      + (tried if report['tried_again'] else 'nothing to do.')
    )
  some = [
    ('  which the same command tries again', reasons.get(workers.MACHINE)),
    ('kept though they break off', len(report['partial'])),
    ('rows not asked for', counts['rows_of_other_splits']),
    # Older reports lack it.
    ('of --except_ids, not found', counts.get('to_leave_out_but_not_found')),
    ('videos that no row names', counts['videos_not_named']),
  ]
  _print_table(
    [
      ('clips in the annotations', counts['clips']),
      ('prepared', counts['prepared']),
      *((f'  {name}', counts[name]) for name in ('captions', 'questions', 'frames')),
      ('  megabytes', round(counts['bytes'] / 1e6, 1)),
      ('skipped rows and clips', counts['skipped']),
      *((f'  {reason}', count) for reason, count in reasons.items()),
      *((name, count) for name, count in some if count),
    ]
  )
  print(f'report: {files.join(FLAGS.output, prepare.REPORT)}')


def _verify(words):
  """Checks a set, and repairs it if asked; returns the exit code."""
  _check_flags('verify', {'output'}.__contains__)
  if len(words) != 1:
    raise ValueError(f'verify takes the folder of one set; it was given {words}.')
  found = verify.verify(words[0])
  for problem in found.problems:
    record = '' if problem.number is None else f', record {problem.number} {problem.video!r}'
    print(annotations.printable(f'{problem.split}: {problem.file}{record}: {problem.reason}'))
  broken = (
    f'{len(found.problems) - found.broken_records} problems with files, '
    f'{found.broken_records} broken records.'
  )
  print(
    f'{found.files} files and {found.records:,} records: '
    + (broken if found.problems else 'all as they were written.')
  )
  if FLAGS.output:
    for split, report in verify.repair(words[0], FLAGS.output).items():
      counts = report['counts']
      print(f'{split}: {counts["prepared"]:,} of {counts["clips"]:,} records saved')
    print(f'Written: {FLAGS.output}')
  return 1 if found.problems else 0


def _fetch(words):
  """Downloads the videos of a captions file; returns the exit code."""
  _check_flags('fetch', (_FETCH.keys() | _SHARED).__contains__)
  if words:
    raise ValueError(f'fetch takes no words, but was given {words}.')
  if not (FLAGS.captions and FLAGS.videos):
    raise ValueError('fetch needs --captions and --videos.')
  if buckets.is_address(FLAGS.videos) or buckets.is_address(FLAGS.captions):
    raise ValueError('fetch downloads into a folder of this machine; give one, and copy it.')
  limits = {name: FLAGS[name].value for name in fetch.Limits._fields if FLAGS[name].present}
  for name, value in limits.items():
    if not value > 0:
      raise ValueError(f'--{name}={value} must be more than 0.')
  videos, skipped, rows = fetch.read_videos(FLAGS.captions, url_column=FLAGS.url_column)
  try:
    found = fetch.fetch(
      videos,
      FLAGS.videos,
      limits=_LIMITS._replace(**limits),
      retry_failed=FLAGS.retry_failed,
      allow_local=FLAGS.allow_local,
    )
  except KeyboardInterrupt:
    print('\nInterrupted. Give the same command again to continue.', file=sys.stderr)
    return 130
  for row in skipped:
    print(f'skipped {row.item!r}: {row.reason} ({row.detail})', file=sys.stderr)
  reasons = Counter(filter(None, found.values()))
  reasons.update(row.reason for row in skipped)
  _print_table(
    [
      ('rows', rows),
      ('videos', len(videos)),
      ('there', sum(not reason for reason in found.values())),
      ('not there', reasons.total()),
      *((f'  {reason}', reasons[reason]) for reason in sorted(reasons)),
    ]
  )
  print(f'each is named in {os.path.join(FLAGS.videos, fetch.RESUME)}')
  return 1 if reasons else 0


def _prepare(words, beam_flags):
  """Makes the set; returns the exit code."""
  _check_flags('a set', lambda name: name not in _FETCH.keys() - _SHARED)
  if words:
    raise ValueError(f'unexpected {words}; see --help.')
  if not (FLAGS.source and FLAGS.output):
    raise ValueError('--source and --output are needed; see --help for examples.')
  start = time.monotonic()
  options = prepare.Options(**{name: FLAGS[name].value for name in options_of(prepare.Options)})
  make = _maker(beam_flags)
  source = sources.SOURCES[FLAGS.source]
  root = FLAGS[source.folder].value or FLAGS.videos
  if not root:
    raise ValueError(f'--source={FLAGS.source} needs --{source.folder}.')
  if not buckets.is_address(root) and not os.path.isdir(root):
    raise ValueError(f'--{source.folder}={root} is not a folder.')
  given = {name: FLAGS[name].value for name in ('captions', 'split', *sources.options())}
  given = {
    name: str(files.local(value)) if isinstance(value, str) and buckets.is_address(value) else value
    for name, value in given.items()
  }
  report = prepare.prepare(
    sources.read(FLAGS.source, {**given, 'root': root}),
    root,
    FLAGS.output,
    split=FLAGS.split,
    options=options,
    num_workers=FLAGS.workers,
    timeout_s=FLAGS.timeout_s,
    list_unnamed=source.whole,
    follow_links=FLAGS.follow_links,
    make=make,
  )
  _print_report(report)
  print(f'{time.monotonic() - start:.1f} s in all.')
  if FLAGS.source == 'folder':
    _next_of_own('retrieval' if report['counts']['captions'] else 'qa')
  else:
    _next_of_published(report)
  return 0


def _next_of_own(task):
  """Adds the lists of a set of one's own, and says how it is trained on."""
  try:
    found = own.parts(FLAGS.output)
  except ValueError as e:  # What is held out was prepared first.
    print(e)
    return
  for line in own.write_lists(FLAGS.output):
    print(f'  {line}')
  both = _say_shared(found)
  if refusal := own.refusal(found, FLAGS.output, both):
    print(f'{annotations.printable_lines(refusal)}.')
    return
  print(
    f'{annotations.printable(own.say(found, FLAGS.output, both))}.\n'
    'Next, in minutes on two cores:\n'
    '  python launch/main.py '
    f'--config=configs/finetune_{task}.py:tiny_own '
    f'--config.data.path={shlex.quote(FLAGS.output)} --workdir=runs/clips'
  )


def _say_shared(found):
  """Says which videos of this split are in others too.

  Returns:
    those that are held out and trained on, of which more is to be said.
  """

  def shared(first, second):
    return own.shared((FLAGS.output, first), (FLAGS.output, second))

  for other in manifest.read_manifest(FLAGS.output)['splits']:
    if other != FLAGS.split and {other, FLAGS.split} != {found.train, found.held_out}:
      if both := shared(other, FLAGS.split):
        print(
          f'{len(both)} videos of split {FLAGS.split!r} are in {other!r} too, such as '
          f'{annotations.printable(both[0])}: rows without a "split" belong to every split.'
        )
  return shared(found.train, found.held_out) if found.held_out else []


def _next_of_published(report):
  output = shlex.quote(FLAGS.output)
  print(
    'Next, unless you have a BERT vocab.txt:\n'
    f'  python launch/tokenizer.py --captions={output} '
    f'--split={FLAGS.split} --output=tokenizer.model'
  )
  if report['counts'].get('questions') and FLAGS.split.startswith('train'):
    print(
      'And the list of answers:\n  python launch/answers.py '
      f'--data={output} --split={FLAGS.split} --output=answers.txt'
    )


def _parse(argv):
  """Parses flags and words; what follows -- is Beam's."""
  at = argv.index('--') if '--' in argv else len(argv)
  return command.parse(argv[:at], in_buckets=True) + argv[at:]


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
    # A signal while this loads would end in C++, without a word.
    import array_record.python.array_record_module  # noqa: F401

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    return _prepare(words, beam_flags)
  except (Exception, KeyboardInterrupt) as error:
    if stopped:  # Whatever it became: a library that loads hides it.
      print('\nInterrupted. Give the same command again to continue.', file=sys.stderr)
      return 128 + stopped[0]
    if not (isinstance(error, (ValueError, RuntimeError)) or command.is_mistake(error)):
      raise
    print(file=sys.stderr)  # Below the progress.
    command.fail(error, command.MISTAKE)


if __name__ == '__main__':
  app.run(main, flags_parser=_parse)
