"""Video question answering on MSRVTT-QA.

  python launch/main.py --config=configs/finetune_msrvtt_qa.py --workdir=DIR \\
    --config.train.init_from=DIR_OF_PRETRAINING

8 processes x 12 questions x 2 accumulated, 10 epochs. The published figures
were trained with most of the video encoder frozen by accident (defect 2);
--config.optimizer.freeze=video_attention_and_mlp does that. `:demo` is the
question answering of `make demo`.
"""

from configs import common, finetune


def get_config(scale=''):
  """Returns the paper's run for '' or 'base', or 'large', 'demo'."""
  config = finetune.question_answering(finetune.start(scale))
  if scale == 'demo':
    return demo(finetune.demo(config, steps=600, learning_rate=1e-3))
  config = finetune.clip(config, frames=16, max_text_tokens=40)
  config = finetune.schedule(
    config,
    examples=158_581,
    epochs=10,
    batch_size=192,
    accumulation=2,
    learning_rate=5e-5,
    clip_norm=5.0,
    evaluations=50,
  )
  config.model.remat = 'blocks'
  config.data.sources = (common.source('data/msrvtt_qa'),)
  config.data.answers = 'data/msrvtt_qa/answers.txt'
  config.eval.sources = (common.source('data/msrvtt_qa', split='val'),)
  return config


def demo(config):
  """What happens first is the hardest, and a ninth of the questions."""
  downstream = config.data.sources[0].path
  config.data.sources = (
    common.source(downstream, weight=0.6),
    common.source(downstream, style='order', weight=0.4),
  )
  return config
