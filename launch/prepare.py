"""Turns videos and their captions into a TensorFlow Datasets data set."""

import argparse
import os
import shlex
import signal
import sys
import time
from collections import Counter

from alpro_jax.data import (
    annotations,
    downstream,
    prepare,
    workers,
)

EXAMPLES = """
examples:
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


class _Parser(argparse.ArgumentParser):

  def error(self, message):
    self.exit(2, f'error: {message}; see --help for examples.\n')


def _parser():
  parser = _Parser(
      prog='python launch/prepare.py', description=__doc__, epilog=EXAMPLES,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False)
  add = parser.add_argument
  add('--source', required=True, choices=annotations.SOURCES)
  add('--videos', default='', help='folder of videos')
  add('--images', default='', help='folder of photos (cc3m)')
  add('--captions', default='', help='captions file')
  add('--questions', default='',
      help='folder, msrvtt, msvd: questions file, with or without captions')
  add('--output', required=True, help='folder of the set, new or unfinished')
  add('--follow_links', action='store_true',
      help='read videos that are links to files outside of --videos')
  add('--split', default='train', help='one run makes one split (train)')
  defaults = prepare.Options()
  add('--fps', type=float, default=defaults.fps,
      help='frames to keep per second; 0 keeps all (1)')
  add('--short_side', type=int, default=defaults.short_side,
      help='pixels of the shorter side; 0 keeps the size, and nothing is '
      'ever enlarged (256)')
  add('--quality', type=int, default=defaults.quality,
      help='of the JPEG frames, 1 to 95 (85)')
  add('--max_frames', type=int, default=defaults.max_frames,
      help='keep no more frames of a clip; 0 is no limit (0)')
  add('--max_seconds', type=float, default=defaults.max_seconds,
      help='read no further into a clip; 0 is no limit (0)')
  add('--on_partial', default=defaults.on_partial, choices=['skip', 'keep'],
      help='what to do with a video that breaks off after some frames; it is '
      'named in the report either way (skip)')
  add('--part_size', type=int, default=defaults.part_size,
      help='clips per shard; also the most that an interruption costs (1000)')
  add('--workers', type=int, default=0,
      help='decoding processes; 0 is one per core (0); with --runner=beam, of '
      'each part that is being made, and 0 is one')
  add('--runner', default='local', choices=['local', 'beam'],
      help='beam: a pipeline of Apache Beam makes the shards; its own options '
      'follow -- at the end (local)')
  add('--timeout_s', type=float, default=None,
      help='seconds of work after which a clip is given up (120, and more for '
      'long, large and high-definition videos)')
  add('--txt_len_below', type=int, default=0,
      help='webvid: keep rows with a smaller txt_len, the original used 80; '
      '0 keeps all (0)')
  add('--allow_pickle', action='store_true',
      help='webvid: open a pandas pickle, which can run any code')
  add('--subset', default='', choices=[*downstream.SUBSETS],
      help="msrvtt: videos of this split, as the videodatainfo file has it; "
      "7k is 'train' and 'validate' (all)")
  add('--ids', default='',
      help='msrvtt, didemo, msvd: keep only the videos of this list, a .csv '
      'file with video_id or a .txt file with one a line')
  add('--except_ids', default='',
      help='msrvtt, didemo, msvd: leave out the videos of this list')
  add('--mapping', default='',
      help='msvd: youtube_mapping.txt; without it the videos must be called '
      'vid<number>')
  add('--debug', action='store_true', help='show where an error comes from')
  return parser


def _read_source(args):
  for flag, sources in _SOURCES_OF.items():
    if getattr(args, flag) and args.source not in sources:
      raise prepare.PrepareError(
          f'--source={args.source} has no --{flag}; it is for '
          f'{", ".join(sources)}.')
  if not (args.captions or args.questions):
    raise prepare.PrepareError(
        f'--source={args.source} needs --captions'
        + (', --questions, or both.'
           if args.source in _SOURCES_OF['questions'] else '.'))
  root, flag = args.videos, '--videos'
  if args.source == 'cc3m':
    root, flag = args.images or args.videos, '--images'
  if not root:
    raise prepare.PrepareError(f'--source={args.source} needs {flag}.')
  if not os.path.isdir(root):
    raise prepare.PrepareError(f'{flag}={root} is not a folder.')
  if args.source == 'folder':
    return root, annotations.read_folder(
        args.captions, args.questions, split=args.split, root=root)
  if args.source == 'webvid':
    return root, annotations.read_webvid(
        args.captions, max_text_length=args.txt_len_below,
        allow_pickle=args.allow_pickle)
  if args.source == 'cc3m':
    return root, annotations.read_cc3m(args.captions, root)
  lists = {'ids': args.ids, 'except_ids': args.except_ids, 'root': root}
  if args.source == 'didemo':
    return root, downstream.read_didemo(args.captions, **lists)
  if args.source == 'msvd':
    return root, downstream.read_msvd(
        args.captions, args.questions, mapping=args.mapping, **lists)
  return root, downstream.read_msrvtt(
      args.captions, args.questions, subset=args.subset, **lists)


def _maker(args, beam_flags):
  """Returns what makes the shards; None is worker processes here."""
  if args.runner != 'beam':
    if beam_flags is not None:
      raise prepare.PrepareError(
          'Only --runner=beam takes options after --.')
    return None
  try:
    from alpro_jax.data import beam  # noqa: PLC0415  Optional, and slow.
  except ModuleNotFoundError as e:
    if e.name.split('.')[0] != 'apache_beam':
      raise
    raise prepare.PrepareError(
        '--runner=beam needs Apache Beam: '
        'pip install -r requirements-beam.txt') from e
  return beam.maker(beam_flags or [])


def _print_report(report, output):
  counts = report['counts']
  if report.get('already_prepared'):
    print(f'{output} has this split already; '
          + (f'{report["tried_again"]} clips of it were tried again, and none '
             'could be read.' if report['tried_again'] else 'nothing to do.'))
  lines = [('clips in the annotations', counts['clips']),
           ('prepared', counts['prepared']),
           ('  captions', counts['captions']),
           ('  questions', counts['questions']),
           ('  frames', counts['frames']),
           ('  megabytes', round(counts['bytes'] / 1e6, 1)),
           ('skipped rows and clips', counts['skipped'])]
  lines += [(f'  {reason}', count)
            for reason, count in report['skipped_by_reason'].items()]
  if count := report['skipped_by_reason'].get(workers.MACHINE):
    lines.append(('  which the same command tries again', count))
  if report['partial']:
    lines.append(('kept though they break off', len(report['partial'])))
  if counts['rows_of_other_splits']:
    lines.append(('rows not asked for', counts['rows_of_other_splits']))
  if counts.get('to_leave_out_but_not_found'):  # Older reports lack it.
    lines.append(('of --except_ids, not found',
                  counts['to_leave_out_but_not_found']))
  if counts['videos_not_named']:
    lines.append(('videos that no row names', counts['videos_not_named']))
  for name, value in lines:
    print(f'{annotations.printable(name):<32}{value:>12,}')
  print(f'report: {os.path.join(output, prepare.REPORT)}')


def _verify(argv):
  """Checks a set, and repairs it if asked; returns the exit code."""
  from alpro_jax.data import verify  # noqa: PLC0415

  parser = _Parser(
      prog='python launch/prepare.py verify', allow_abbrev=False,
      description='Compares a prepared set with what was written. Exit code: '
      '0 if all is intact, 1 if something is broken, 2 for a mistake.')
  parser.add_argument('data', help='folder of the set')
  parser.add_argument(
      '--output', default='', help='new folder for the records that are intact')
  args = parser.parse_args(argv)
  try:
    found = verify.verify(args.data)
    for problem in found.problems:
      record = '' if problem.number is None else (
          f', record {problem.number} {problem.video!r}')
      print(annotations.printable(
          f'{problem.split}: {problem.file}{record}: {problem.reason}'))
    print(f'{found.files} files and {found.records:,} records: '
          + (f'{len(found.problems) - found.broken_records} problems with '
             f'files, {found.broken_records} broken records.'
             if found.problems else 'all as they were written.'))
    if args.output:
      for split, report in verify.repair(args.data, args.output).items():
        counts = report['counts']
        print(f'{split}: {counts["prepared"]:,} of {counts["clips"]:,} records '
              'saved')
      print(f'Written: {args.output}')
  except (ValueError, OSError) as error:
    print(f'error: {annotations.printable_lines(error)}', file=sys.stderr)
    return 2
  return 1 if found.problems else 0


def _fetch(argv):
  """Downloads the videos of a captions file; returns the exit code."""
  from alpro_jax.data import fetch  # noqa: PLC0415

  parser = _Parser(
      prog='python launch/prepare.py fetch', allow_abbrev=False,
      description='Downloads the videos of a captions file. Give the same '
      'command again for what is missing. Exit code: 0 if all are there, 1 if '
      'some are not, 2 for a mistake.')
  add = parser.add_argument
  limits = fetch.Limits()
  add('--captions', required=True,
      help=".csv, .jsonl or .json with addresses, or CC3M's .tsv")
  add('--videos', required=True, help='folder to write to')
  add('--url_column', default='',
      help='column of the addresses (contentUrl, url, or video)')
  for name, text in [
      ('threads', 'downloads at a time'), ('per_host', 'of them, of one host'),
      ('tries', 'of one address'),
      ('wait_s', 'seconds before the second try, doubled for each further one'),
      ('timeout_s', 'seconds without a byte'),
      ('max_seconds', 'seconds for one try in all'),
      ('max_bytes', 'bytes of one video')]:
    value = getattr(limits, name)
    add(f'--{name}', type=type(value), default=value, help=f'{text} ({value})')
  add('--retry_failed', action='store_true',
      help='try again what can hardly be had, such as HTTP 404')
  add('--allow_local', action='store_true',
      help='also ask machines of the local network, and this one; an address '
      'in a captions file of others may be meant to reach them')
  args = parser.parse_args(argv)
  try:
    limits = fetch.Limits(**{
        name: getattr(args, name) for name in fetch.Limits._fields})
    for name, value in limits._asdict().items():
      if not value > 0:
        raise ValueError(f'--{name}={value} must be more than 0.')
    videos, skipped, rows = fetch.read_videos(
        args.captions, url_column=args.url_column)
    found = fetch.fetch(
        videos, args.videos, limits=limits, retry_failed=args.retry_failed,
        allow_local=args.allow_local)
  except (ValueError, OSError) as error:
    print(f'error: {annotations.printable_lines(error)}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('\nInterrupted. Give the same command again to continue.',
          file=sys.stderr)
    return 130
  for row in skipped:
    print(f'skipped {row.item!r}: {row.reason} ({row.detail})',
          file=sys.stderr)
  reasons = Counter(filter(None, found.values()))
  reasons.update(row.reason for row in skipped)
  there = sum(not reason for reason in found.values())
  lines = [('rows', rows), ('videos', len(videos)), ('there', there),
           ('not there', sum(reasons.values()))]
  for name, count in lines + [
      (f'  {reason}', reasons[reason]) for reason in sorted(reasons)]:
    print(f'{name:<32}{count:>12,}')
  print(f'each is named in {os.path.join(args.videos, fetch.RESUME)}')
  return 1 if reasons else 0


def main(argv=None):
  os.environ['CUDA_VISIBLE_DEVICES'] = ''  # Nothing here uses a GPU.
  argv = sys.argv[1:] if argv is None else argv
  if argv[:1] == ['verify']:
    return _verify(argv[1:])
  if argv[:1] == ['fetch']:
    return _fetch(argv[1:])
  beam_flags = None
  if '--' in argv:
    at = argv.index('--')
    argv, beam_flags = argv[:at], argv[at + 1:]
  args = _parser().parse_args(argv)
  start = time.monotonic()
  stopped = []

  def stop(number, _):
    stopped.append(number)
    raise KeyboardInterrupt

  signal.signal(signal.SIGINT, stop)
  signal.signal(signal.SIGTERM, stop)
  try:
    options = prepare.Options(
        fps=args.fps, short_side=args.short_side, quality=args.quality,
        max_frames=args.max_frames, max_seconds=args.max_seconds,
        on_partial=args.on_partial, part_size=args.part_size)
    make = _maker(args, beam_flags)
    root, source = _read_source(args)
    report = prepare.prepare(
        source, root, args.output, split=args.split, options=options,
        num_workers=args.workers, timeout_s=args.timeout_s,
        list_unnamed=args.source == 'folder',
        follow_links=args.follow_links, make=make)
  except (Exception, KeyboardInterrupt) as e:
    if stopped:  # Whatever it became: a library that loads hides it.
      print('\nInterrupted. Give the same command again to continue.',
            file=sys.stderr)
      return 128 + stopped[0]
    if args.debug or not isinstance(e, (ValueError, OSError, RuntimeError)):
      raise
    print(f'\nerror: {annotations.printable_lines(e)}', file=sys.stderr)
    return 2
  _print_report(report, args.output)
  print(f'{time.monotonic() - start:.1f} s in all. Next, unless you have a '
        f'BERT vocab.txt:\n  python launch/tokenizer.py '
        f'--captions={shlex.quote(args.output)} --split={args.split} '
        f'--output=tokenizer.model')
  if report['counts'].get('questions') and args.split.startswith('train'):
    print(f'And the list of answers:\n  python launch/answers.py '
          f'--data={shlex.quote(args.output)} --split={args.split} '
          f'--output=answers.txt')
  return 0


if __name__ == '__main__':
  sys.exit(main())
