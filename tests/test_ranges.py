"""Numbers that would train something else are refused before a run begins."""

import pytest

from alpro_jax.train import ranges
from configs import finetune_qa, finetune_retrieval, pretrain, pretrain_prompter


@pytest.mark.parametrize('preset', [pretrain, pretrain_prompter, finetune_retrieval, finetune_qa])
def test_every_config_has_numbers_that_may_be(preset):
  ranges.check(preset.get_config())


@pytest.mark.parametrize(
  ('name', 'value', 'said'),
  [
    ('optimizer.clip_norm', -1.0, '0 or more, and finite'),
    ('optimizer.clip_norm', float('nan'), '0 or more, and finite'),
    ('optimizer.accumulation', 0, '1 or more'),
    ('loss.mask_probability', 15.0, 'a share, from 0 to 1'),
    ('loss.vtm', -0.1, '0 or more'),
    ('loss.region_area', (30, 50), 'a share'),
    ('loss.region_area', (0.5, 0.3), 'the least and the most'),
    ('model.text.dropout', 1.0, 'from 0 to below 1'),
    ('model.video.drop_path', -0.1, 'from 0 to below 1'),
    ('model.temperature', 5.0, 'must lie in config.model.temperature_range'),
    ('data.frames', 0, '1 or more'),
    ('train.new_parameters', ('answer_head,entity_head',), r"\('answer_head', 'entity_head'\)"),
  ],
)
def test_what_would_train_something_else_is_refused(name, value, said):
  config = pretrain.get_config()
  with config.ignore_type():
    config.update_from_flattened_dict({name: value})
  with pytest.raises(ValueError, match=f'config.{name}.*{said}'):
    ranges.check(config)
