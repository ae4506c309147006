"""From nothing to a report: data, prompter, pre-training, figures.

  python launch/demo.py --output=runs/demo

Draws a world of moving shapes, prepares it, makes tokenizer and entities,
trains the prompter, pre-trains ALPRO with it, and fine-tunes that for retrieval
and for question answering on a second world that says things in other words.
To compare, it pre-trains with contrast alone, fine-tunes from random weights,
and answers from averaged frames. Then it asks all of them what they know, and
writes report.html and two cards.
Every step is one of the commands of this repository, printed before it runs. A
step that is done is not done again: start it again after an interruption.
"""

import argparse
import sys

from examples.shapes import demo


def _parser():
  parser = argparse.ArgumentParser(
      prog='python launch/demo.py', description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  add = parser.add_argument
  add('--output', default='runs/demo', help='folder for everything')
  add('--seed', type=int, default=0, help='of the world and of training (0)')
  add('--quick', action='store_true',
      help='a few steps on a few clips; the figures mean nothing')
  return parser


if __name__ == '__main__':
  try:
    demo.run(_parser().parse_args())
  except (OSError, ValueError) as e:
    sys.exit(f'demo: {e}')
