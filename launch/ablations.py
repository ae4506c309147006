"""What each part of ALPRO brings, on the embedded data set, in one table.

  make demo                               # or python launch/demo.py
  python launch/ablations.py --demo=runs/demo --output=runs/ablations

Pre-trains once for every config in configs/ablations/, from the demo's prompter
and for as many steps, fine-tunes each for retrieval and for question answering,
and measures all on the held-out clips of the downstream world. What the demo
has trained already is not trained again. Writes ablations.md, ablations.json
and a card for every model. Start it again after an interruption. It takes about
five minutes for each row on two cores; --only=without_pem,two_frames chooses.
"""

try:
  from launch import command
except ModuleNotFoundError:
  import not_installed  # noqa: F401

from absl import flags

from examples.shapes import ablations

_DEMO = flags.DEFINE_string('demo', 'runs/demo', 'A finished demo.')
_OUTPUT = flags.DEFINE_string('output', 'runs/ablations', 'Folder for everything.')
_ONLY = flags.DEFINE_list('only', [], f'Some of {", ".join(ablations.ROWS)}.')


def main():
  ablations.run(_DEMO.value, _OUTPUT.value, _ONLY.value)


if __name__ == '__main__':
  command.run(main)
