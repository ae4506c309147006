"""Text-video retrieval on MSRVTT: 7k training videos, 1k-A test.

  python launch/main.py --config=configs/finetune_msrvtt_retrieval.py \\
    --workdir=DIR --config.train.init_from=DIR_OF_PRETRAINING

8 processes x 8 pairs, 5 epochs of 20 captions for each video. `:demo` is the
retrieval of `make demo`.
"""

from configs import common, finetune


def get_config(scale=''):
  """Returns the paper's run for '' or 'base', or 'large', 'demo'."""
  config = finetune.retrieval(finetune.start(scale))
  if scale == 'demo':
    return finetune.demo(config, steps=300, learning_rate=1e-3)
  config = finetune.clip(config, frames=8, max_text_tokens=40)
  config = finetune.schedule(
    config,
    examples=7_010 * 20,
    epochs=5,
    batch_size=64,
    learning_rate=2.5e-5,
    clip_norm=5.0,
    evaluations=20,
  )
  config.data.sources = (common.source('data/msrvtt'),)
  # 1k-A has no validation split: the best step on it flatters, the last one
  # does not. Both are kept.
  config.eval.sources = (common.source('data/msrvtt', split='test'),)
  config.eval.rerank_k = 128
  return config
