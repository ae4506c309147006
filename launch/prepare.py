"""Turns videos and their captions into a TensorFlow Datasets data set."""

import argparse
import os
import shlex
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from alpro_jax.data import annotations, prepare  # noqa: E402

EXAMPLES = """
examples:
  A folder of videos. captions.jsonl holds one line per caption:
  {"video": "a/dog.mp4", "caption": "a dog swims", "style": "short"}
  (style is optional; a .csv file with these columns will do as well)
    python launch/prepare.py --source=folder --videos=clips \\
      --captions=captions.jsonl --output=sets/clips --split=train

  WebVid, a csv file with video_id (or videoid) and text (or name):
    python launch/prepare.py --source=webvid --videos=webvid/videos \\
      --captions=webvid/train.csv --txt_len_below=80 --output=sets/webvid

  CC3M, a JSON list of {"image": path, "caption": text or list of texts}:
    python launch/prepare.py --source=cc3m --images=cc3m/images \\
      --captions=cc3m/train.json --output=sets/cc3m

An interrupted run continues when the same command is given again.
"""


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
  add('--videos', default='', help='folder of videos (folder, webvid)')
  add('--images', default='', help='folder of photos (cc3m)')
  add('--captions', default='', help='captions file')
  add('--questions', default='',
      help='questions file, with or without captions (folder)')
  add('--output', required=True, help='folder of the set, new or unfinished')
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
      help='decoding processes; 0 is one per core (0)')
  add('--timeout_s', type=float, default=120.,
      help='seconds after which a clip is given up (120)')
  add('--txt_len_below', type=int, default=0,
      help='webvid: keep rows with a smaller txt_len, the original used 80; '
      '0 keeps all (0)')
  add('--allow_pickle', action='store_true',
      help='webvid: open a pandas pickle, which can run any code')
  add('--debug', action='store_true', help='show where an error comes from')
  return parser


def _read_source(args):
  if not (args.captions or args.questions):
    raise prepare.PrepareError('Give --captions, --questions, or both.')
  if args.questions and args.source != 'folder':
    raise prepare.PrepareError(
        f'--source={args.source} has no --questions.')
  root, flag = args.videos, '--videos'
  if args.source == 'cc3m':
    root, flag = args.images or args.videos, '--images'
  if not root:
    raise prepare.PrepareError(f'--source={args.source} needs {flag}.')
  if not os.path.isdir(root):
    raise prepare.PrepareError(f'{flag}={root} is not a folder.')
  if args.source == 'folder':
    return root, annotations.read_folder(
        args.captions, args.questions, split=args.split)
  if args.source == 'webvid':
    return root, annotations.read_webvid(
        args.captions, max_text_length=args.txt_len_below,
        allow_pickle=args.allow_pickle)
  return root, annotations.read_cc3m(args.captions, root)


def _print_report(report, output):
  counts = report['counts']
  if report.get('already_prepared'):
    print(f'{output} has this split already; nothing to do.')
  lines = [('clips in the annotations', counts['clips']),
           ('prepared', counts['prepared']),
           ('  captions', counts['captions']),
           ('  questions', counts['questions']),
           ('  frames', counts['frames']),
           ('  megabytes', round(counts['bytes'] / 1e6, 1)),
           ('skipped rows and clips', counts['skipped'])]
  lines += [(f'  {reason}', count)
            for reason, count in report['skipped_by_reason'].items()]
  if report['partial']:
    lines.append(('kept though they break off', len(report['partial'])))
  if counts['rows_of_other_splits']:
    lines.append(('rows of other splits', counts['rows_of_other_splits']))
  if counts['videos_not_named']:
    lines.append(('videos that no row names', counts['videos_not_named']))
  for name, value in lines:
    print(f'{name:<32}{value:>12,}')
  print(f'report: {os.path.join(output, prepare.REPORT)}')


def main(argv=None):
  args = _parser().parse_args(argv)
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  os.environ['CUDA_VISIBLE_DEVICES'] = ''  # Nothing here uses a GPU.
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
    root, source = _read_source(args)
    report = prepare.prepare(
        source, root, args.output, split=args.split, options=options,
        num_workers=args.workers, timeout_s=args.timeout_s,
        list_unnamed=args.source == 'folder')
  except (Exception, KeyboardInterrupt) as e:
    if stopped:  # Whatever it became: a library that loads hides it.
      print('\nInterrupted. Give the same command again to continue.',
            file=sys.stderr)
      return 128 + stopped[0]
    if args.debug or not isinstance(e, (ValueError, OSError, RuntimeError)):
      raise
    print(f'\nerror: {e}', file=sys.stderr)
    return 2
  _print_report(report, args.output)
  print(f'{time.monotonic() - start:.1f} s in all. Next, unless you have a '
        f'BERT vocab.txt:\n  python launch/tokenizer.py '
        f'--captions={shlex.quote(args.output)} --split={args.split} '
        f'--output=tokenizer.model')
  return 0


if __name__ == '__main__':
  sys.exit(main())
