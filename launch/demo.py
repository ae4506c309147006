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

try:
  from launch import command
except ModuleNotFoundError:
  import not_installed  # noqa: F401

from absl import flags

from examples.shapes import demo

_OUTPUT = flags.DEFINE_string('output', 'runs/demo', 'Folder for everything.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the world and of training.')
_QUICK = flags.DEFINE_bool('quick', False, 'A few steps on a few clips; the figures mean nothing.')


def main():
  demo.run(_OUTPUT.value, demo.Options(_SEED.value, _QUICK.value))


if __name__ == '__main__':
  command.run(main)
