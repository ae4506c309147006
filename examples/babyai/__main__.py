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
  options = {'world': 'babyai', 'clips': given.clips, 'seed': given.seed, 'size': given.size}
  rows = simulated.draw(
    given.output, options, clips, scenes.draw, rate=scenes.RATE, workers=given.workers
  )
  counts = simulated.write_words(
    given.output, rows, words, seed=given.seed, dials=simulated.dials(), name=given.captions
  )
  simulated.say(given.output, counts)


if __name__ == '__main__':
  command.run(main)
