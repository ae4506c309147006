"""Numbers that options may have: others would train, and say nothing of what went wrong."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from alpro_jax.train import options


class _Range(NamedTuple):
  lowest: float
  highest: float
  words: str

  def holds(self, value):
    return self.lowest <= value <= self.highest


_LARGEST = math.nextafter(math.inf, 0)
_COUNT = _Range(1, _LARGEST, '1 or more')
_FROM_0 = _Range(0, _LARGEST, '0 or more, and finite')
_ABOVE_0 = _Range(math.nextafter(0, 1), _LARGEST, 'above 0, and finite')
_SHARE = _Range(0, 1, 'a share, from 0 to 1')
_BELOW_1 = _Range(0, math.nextafter(1, 0), 'a share, from 0 to below 1')

# By dotted names; of a list each entry counts.
_RANGES = {
  **dict.fromkeys(
    ('data.batch_size', 'data.frames', 'data.image_size', 'data.resize', 'data.max_text_tokens')
    + ('data.max_tower_tokens', 'loss.region_candidates', 'prompter.max_prompt_tokens')
    + ('train.steps', 'train.log_every_steps', 'train.checkpoint_every_steps')
    + ('optimizer.accumulation', 'eval.batch_size', 'eval.pairs_per_call', 'train.skip_limit'),
    _COUNT,
  ),
  **dict.fromkeys(
    ('loss.vtc', 'loss.vtm', 'loss.mlm', 'loss.pem', 'loss.uniform_negative_steps')
    + ('loss.negative_ramp_steps', 'loss.negative_blocks', 'loss.vtc_chunk', 'data.still_frames')
    + ('prompter.num_entities', 'optimizer.clip_norm', 'optimizer.weight_decay')
    + ('optimizer.final_fraction', 'optimizer.lora.rank', 'eval.rerank_k', 'eval.loss_batches')
    + ('eval.pictures', 'train.eval_every_steps', 'train.spike_deviations'),
    _FROM_0,
  ),
  **dict.fromkeys(
    ('optimizer.eps', 'optimizer.lora.alpha', 'model.temperature', 'model.temperature_range'),
    _ABOVE_0,
  ),
  **dict.fromkeys(
    ('loss.mask_probability', 'loss.region_area', 'prompter.ignore_threshold')
    + ('data.broken_share',),
    _SHARE,
  ),
  **dict.fromkeys(('optimizer.b1', 'optimizer.b2'), _BELOW_1),
  **{
    f'model.{part}.{name}': _BELOW_1
    for part in ('video', 'text', 'text_tower')
    for name in ('dropout', 'drop_path')
  },
}


def check(config: Mapping[str, Any]) -> None:
  """Checks numbers of a config; see configs/common.py. Options that it lacks are not asked for.

  Raises:
    ValueError: for a number out of its range, or lists with commas within an entry.
  """
  for name, value in options.values(config):
    if allowed := _RANGES.get(name):
      for one in value if isinstance(value, (list, tuple)) else (value,):
        if not allowed.holds(one):
          raise ValueError(f'config.{name}={value!r} must be {allowed.words}.')
  for name, pair in (
    ('loss.region_area', config['loss']['region_area']),
    ('model.temperature_range', config['model'].get('temperature_range', (0, 0))),
  ):
    if len(pair) != 2 or pair[0] > pair[1]:
      raise ValueError(f'config.{name}={pair!r} must be the least and the most.')
  low, high = config['model'].get('temperature_range', (0, math.inf))
  if not low <= config['model'].get('temperature', low) <= high:
    raise ValueError(
      f'config.model.temperature={config["model"]["temperature"]} must lie in '
      f'config.model.temperature_range={(low, high)}.'
    )
  for name in ('new_parameters', 'unused_parameters'):
    for entry in config['train'][name]:
      if ',' in entry:
        several = tuple(entry.split(','))
        raise ValueError(
          f'config.train.{name} has one name {entry!r}; several are '
          f'--config.train.{name}="{several}".'
        )
