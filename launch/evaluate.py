"""Zero-shot retrieval, and probes, of any checkpoint on any prepared split."""

import argparse
import os
import pathlib
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

EXAMPLES = """
examples:
    python launch/evaluate.py --checkpoint=runs/pretrain --data=sets/msrvtt \\
      --split=test --output=runs/pretrain/test
    python launch/evaluate.py --checkpoint=runs/demo/pretrain \\
      --data=runs/demo/data/shapes --split=test \\
      --truth=runs/demo/world/test/truth.jsonl

Every text is ranked against every video of the split. The order is that of the
fusion encoder if it was trained, else that of the contrastive similarity; both
are printed. Ties count against the model.
"""


def _parser():
  parser = argparse.ArgumentParser(
      prog='python launch/evaluate.py', description=__doc__, epilog=EXAMPLES,
      formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  add = parser.add_argument
  add('--checkpoint', required=True, help='workdir of a run, or a checkpoint')
  add('--data', required=True, help='prepared set')
  add('--split', default='test', help='split of the set (test)')
  add('--style', default='', help='use captions of this style only')
  add('--tokenizer', default='', help='its file, if it has moved')
  add('--truth', default='', help='truth.jsonl of the split, for the probes')
  add('--rerank', default='auto', choices=['auto', 'yes', 'no'],
      help='score all pairs with the fusion encoder (auto: if it was trained)')
  add('--output', default='', help='folder for report.html and report.json')
  return parser


def main(argv=None):
  options = _parser().parse_args(argv)
  import tensorflow as tf

  tf.config.set_visible_devices([], 'GPU')
  from alpro_jax.evaluation import report, zero_shot

  zero_shot.log_to_console()
  start = time.monotonic()
  trained = zero_shot.load(options.checkpoint, tokenizer=options.tokenizer)
  result = zero_shot.evaluate(
      trained, options.data, options.split, style=options.style,
      truth=options.truth,
      rerank={'auto': None, 'yes': True, 'no': False}[options.rerank])
  seconds = time.monotonic() - start
  for name, value in result.figures.items():
    print(f'{name:<48}{value:>10.2f}')
  print(f'{seconds:.1f} s in all.')
  if options.output:
    best, worst = zero_shot.searches(result)
    page = report.write(report.Report(
        title=f'{pathlib.Path(options.checkpoint).name} on '
              f'{pathlib.Path(options.data).name}, {options.split}',
        notes=['Zero-shot retrieval: every text against every video. Ties '
               'count against the model.'],
        figures=result.figures, headlines=headlines(result.figures),
        best=best, worst=worst, regions=zero_shot.regions(result),
        entities=zero_shot.chosen_entities(result),
        details=zero_shot.detail_tables(result.figures),
        stages=[report.Stage('evaluate', seconds, '', False)],
        files={'checkpoint': str(options.checkpoint),
               'data': str(options.data)}), options.output)
    print(f'Written: {page}')


def headlines(figures):
  """The figures of retrieval, without targets."""
  from alpro_jax.evaluation.report import Headline

  chance = figures['zero_shot.t2v_r1_chance']
  lines = []
  for direction, query, found in (
      ('t2v', 'text', 'video'), ('v2t', 'video', 'text')):
    for k in (1, 5, 10):
      meaning = f'Share of {query}s whose {found} is among the first {k}.'
      if (direction, k) == ('t2v', 1):
        meaning += (
            f' 95 % interval {figures["zero_shot.t2v_r1_low"]:.1f} to '
            f'{figures["zero_shot.t2v_r1_high"]:.1f} %; equal texts of '
            f'several videos allow {figures["zero_shot.t2v_r1_ceiling"]:.1f} % '
            'at most.')
      lines.append(Headline(
          f'zero_shot.{direction}_r{k}', f'{query} to {found}, R@{k}', meaning,
          nothing=min(k * chance, 100) if direction == 't2v' else None))
  return lines


if __name__ == '__main__':
  try:
    main()
  except (FileNotFoundError, ValueError) as e:
    sys.exit(f'evaluate: {e}')
