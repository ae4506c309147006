"""Evaluation alone of a model that was converted from image-text weights.

  python launch/evaluate.py --config=configs/zero_shot.py:clip_b16 \\
    --checkpoint=runs/clip_b16 --output=runs/clip_b16/zero_shot

Text finds video by similarity alone, over 12 frames, as published zero-shot figures of
such weights do; --data=SET --split=test is for one's own set in place of MSRVTT. After
`:` one of the models of configs/image_text.py.
"""

from configs import common, image_text


def get_config(model='clip_b16'):
  """Returns the options of an evaluation for one of image_text.SCALES.

  Raises:
    ValueError: for another model.
  """
  if model not in image_text.SCALES:
    raise ValueError(f"unknown {model=} after ':' in --config; choose one of {image_text.SCALES}.")
  config = image_text.start(common.get_config(model))
  config.task = 'prompter'  # Contrast alone.
  config.data.frames = image_text.FRAMES
  # The tower's tokenizer, which the checkpoint brings along, is the only one that counts.
  config.data.update({'tokenizer': '', 'max_text_tokens': config.data.max_tower_tokens})
  config.eval.sources = (common.source('data/msrvtt', split='test'),)
  config.eval.scoring = 'similarity'
  return config
