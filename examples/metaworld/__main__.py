"""Makes a set of clips, captions and questions from Meta-World.

  pip install ".[metaworld]"
  apt-get install libosmesa6
  python -m examples.metaworld --output=worlds/metaworld --clips=2000

The same videos with other captions beside them, as captions_noisy.jsonl:
  python -m examples.metaworld --output=worlds/metaworld --clips=2000 \\
    --wrong=0.3 --distractors=0.2 --captions=captions_noisy

What is said of a clip: words.py and tasks.py. An interrupted run goes on.
"""

from absl import flags

from examples import simulated
from examples.metaworld import scenes, words
from launch import command

simulated.define_flags(clips=2000, size=96)
flags.adopt_module_key_flags(simulated)  # --help shows them.
_TASKS = flags.DEFINE_list('tasks', [], 'Some of the fifty, such as door-open; none is all.')
_BACKWARDS = flags.DEFINE_float(
  'backwards',
  0.5,
  'Share of the clips that are played backwards, of tasks that another one undoes: then '
  'time alone tells the two apart.',
  lower_bound=0,
  upper_bound=1,
)
_MISJUDGED = flags.DEFINE_float(
  'misjudged',
  0.1,
  'Share of the episodes in which the robot sees things 8 cm off: most fail, and failed '
  'ones are a split of their own.',
  lower_bound=0,
  upper_bound=1,
)


def main():
  given = flags.FLAGS
  options = {'tasks': _TASKS.value, 'backwards': _BACKWARDS.value, 'misjudged': _MISJUDGED.value}
  clips = scenes.list_clips(given.clips, given.seed, given.size, **options)
  options['world'] = 'metaworld'
  return simulated.make(clips, options, scenes.draw, words, rate=scenes.RATE)


if __name__ == '__main__':
  command.run(main)
