"""Configs of the study's runs: --config=examples/study/runs.py:WORLD,ROW,STAGE

Stages: prompter, pretrain, retrieval, questions_N for N % of the clips, and questions_order.
Sets, lists and checkpoints are given by flags; see __main__.py.
"""

from configs import common, finetune, models, pretrain
from configs.ablations import frame_encoder
from examples.study import plan


def get_config(argument):
  """Returns the config of 'WORLD,ROW,STAGE'.

  Raises:
    ValueError: for an unknown one.
  """
  try:
    world, row, stage = argument.split(',')
    world, row = plan.WORLDS[world], plan.ROWS[row]
    make = _STAGES[stage.partition('_')[0]]
  except (ValueError, KeyError):
    raise ValueError(
      f'{argument!r} is no WORLD,ROW,STAGE, such as babyai,alpro,pretrain; see '
      'examples/study/plan.py.'
    ) from None
  config = pretrain.demo()
  config.data.update(
    {
      'batch_size': plan.BATCH,
      'frames': plan.FRAMES,
      'image_size': plan.IMAGE_SIZE,
      'resize': plan.IMAGE_SIZE,
      'max_text_tokens': plan.TOKENS,
    }
  )
  config.model.text.max_positions = plan.TOKENS
  if row.twice:
    for tower in (config.model.video, config.model.text):
      for size in ('width', 'depth', 'heads', 'mlp_size'):
        tower[size] *= 2
    config.model.text.fusion_layer *= 2
    models.from_random_weights(config.model)  # Smaller values for wider ones.
  config.optimizer.clip_norm = 5.0  # Four losses are summed: 1 would cut nearly every step.
  config.loss.uniform_negative_steps = 10**6
  config.eval.rerank_k = 0  # All pairs.
  make(config, world, row, stage)
  config.train.best_metric = ''  # The last step counts.
  if row.averaged and stage != 'prompter':
    frame_encoder.change(config, stage)
  return config


def _prompter(config, world, row, stage):
  del row, stage
  config.task = 'prompter'
  config.data.batch_size = plan.PROMPTER_BATCH
  config.data.sources = _captions(world)
  config.train.steps = plan.PROMPTER_STEPS


def _pretrain(config, world, row, stage):
  del stage
  config.data.sources = _captions(world)
  config.train.steps = row.steps
  config.prompter.num_entities = len(world.entities[row.entities])
  templates = world.templates[: 1 if row.single_prompt else None]
  config.prompter.update({'video_templates': templates, 'image_templates': templates})
  config.prompter.max_prompt_tokens = plan.TOKENS
  config.update_from_flattened_dict(row.pretrain or {})


def _retrieval(config, world, row, stage):
  del world, row, stage
  finetune.retrieval(config)
  config.data.examples = 'texts'
  config.data.sources = (common.source('set', style='whole'),)
  config.optimizer.learning_rate = 1e-3
  config.train.steps = plan.RETRIEVAL_STEPS


def _questions(config, world, row, stage):
  del row
  order = stage == 'questions_order'
  finetune.question_answering(config)
  config.data.examples = 'texts'
  config.data.sources = (common.source('set', style='order' if order else ''),)
  config.optimizer.learning_rate = 1e-3
  config.train.steps = world.order_steps if order else plan.QUESTION_STEPS


_STAGES = {
  'prompter': _prompter,
  'pretrain': _pretrain,
  'retrieval': _retrieval,
  'questions': _questions,
}


def _captions(world):
  return tuple(
    common.source('set', style=style, weight=weight) for style, weight in world.styles.items()
  )
