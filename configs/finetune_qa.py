"""Question answering on one's own questions.

  python launch/main.py --config=configs/finetune_qa.py:tiny_own \\
    --workdir=runs/answers --config.data.path=sets/clips

The scales are those of configs/finetune_retrieval.py.
"""

from configs import finetune, own


def get_config(scale='own'):
  """Returns the run for one of own.SCALES."""
  config = finetune.question_answering(own.get_config(scale))
  config.data.examples = 'texts'
  return config
