"""Paragraph-to-video retrieval on DiDeMo.

  python launch/main.py --config=configs/finetune_didemo_retrieval.py \\
    --workdir=DIR --config.train.init_from=DIR_OF_PRETRAINING

8 processes x 12 pairs, 10 epochs.
"""

from configs import common, finetune, finetune_msrvtt_retrieval


def get_config(scale=''):
  """Returns the paper's run for '' or 'base', or 'large', 'demo'."""
  if scale == 'demo':
    return finetune_msrvtt_retrieval.get_config('demo')
  config = finetune.retrieval(finetune.start(scale))
  config = finetune.clip(config, frames=8, max_text_tokens=50)
  config = finetune.schedule(
    config,
    examples=8_395,
    epochs=10,
    batch_size=96,
    learning_rate=4e-5,
    clip_norm=20.0,
    evaluations=20,
  )
  config.data.sources = (common.source('data/didemo'),)
  config.eval.sources = (common.source('data/didemo', split='val'),)
  config.eval.rerank_k = 128
  return config
