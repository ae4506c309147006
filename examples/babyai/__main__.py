"""Makes a set of clips, captions and questions from BabyAI.

  pip install ".[babyai]"
  python -m examples.babyai --output=worlds/babyai --clips=2000

The same videos with other captions beside them, as captions_noisy.jsonl:
  python -m examples.babyai --output=worlds/babyai --clips=2000 \\
    --wrong=0.3 --distractors=0.2 --captions=captions_noisy

What is said of a clip: words.py. An interrupted run goes on.
"""

from absl import flags

from examples import simulated
from examples.babyai import scenes, words
from launch import command

simulated.define_flags(clips=2000, size=96)
flags.adopt_module_key_flags(simulated)  # --help shows them.


def main():
  given = flags.FLAGS
  clips = scenes.list_clips(given.clips, given.seed, given.size)
  return simulated.make(clips, {'world': 'babyai'}, scenes.draw, words, rate=scenes.RATE)


if __name__ == '__main__':
  command.run(main)
