"""Video question answering on MSVD-QA.

  python launch/main.py --config=configs/finetune_msvd_qa.py --workdir=DIR \\
    --config.train.init_from=DIR_OF_PRETRAINING

8 processes x 12 questions x 2 accumulated, 15 epochs. See
finetune_msrvtt_qa.py about the published figures.
"""

from configs import common, finetune, finetune_msrvtt_qa


def get_config(scale=''):
  """Returns the paper's run for '' or 'base', or 'large', 'demo'."""
  if scale == 'demo':
    return finetune_msrvtt_qa.get_config('demo')
  config = finetune_msrvtt_qa.get_config(scale)
  config = finetune.schedule(
    config,
    examples=30_933,
    epochs=15,
    batch_size=192,
    accumulation=2,
    learning_rate=5e-5,
    clip_norm=20.0,
    evaluations=30,
  )
  config.data.sources = (common.source('data/msvd_qa'),)
  config.data.answers = 'data/msvd_qa/answers.txt'
  config.eval.sources = (common.source('data/msvd_qa', split='val'),)
  return config
