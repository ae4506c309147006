"""Retrieval on one's own captions.

  python launch/main.py --config=configs/finetune_retrieval.py:tiny_own \\
    --workdir=runs/clips --config.data.path=sets/clips

`:tiny_own` takes minutes on two cores, from random weights; `:own` is sized to the
machine, or, with --config.train.init_from=RUN, to the run that it starts from.
"""

from configs import finetune, own


def get_config(scale='own'):
  """Returns the run for one of own.SCALES."""
  return finetune.retrieval(own.get_config(scale))
