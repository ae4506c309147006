"""Compares runs on one page: differing options, figures with intervals, differences.

  python launch/compare.py runs/msrvtt runs/msrvtt_8_frames --output=compare.html

A run is a workdir with the cards of evaluate.py somewhere below it, or the folder of a
card. Figures stand side by side where data and scoring are the same. Where both cards
keep what came of each example (ranks.jsonl, answers.jsonl), their differences are paired,
with a 95 % interval by bootstrap over videos; the first run is what the others are
compared with. Two runs of one config and two seeds show how much the seed alone does.
"""

try:
  from launch import command
except ModuleNotFoundError:
  import not_installed  # noqa: F401

from absl import flags

_OUTPUT = flags.DEFINE_string('output', 'compare.html', 'The page.')


def main(*words):
  from alpro_jax import files
  from alpro_jax.evaluation import compare

  runs = compare.read(words)
  for run in runs:
    print(f'{run.label}: {run.path}, {len(run.measured)} cards')
  print(f'{len(compare.differing(runs))} options differ.')
  files.write_text(_OUTPUT.value, compare.render(runs))
  print(f'Written: {_OUTPUT.value}')


if __name__ == '__main__':
  command.run(main, words=True)
