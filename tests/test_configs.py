"""The configs load at every scale and hold the paper's values."""

import pytest

from alpro_jax.models.alpro import AlproConfig
from configs import common, models, pretrain, pretrain_prompter


@pytest.mark.parametrize('scale', ('', *pretrain.SCALES))
@pytest.mark.parametrize('file', [pretrain, pretrain_prompter])
def test_every_scale_fits_the_model(file, scale):
  config = file.get_config(scale).lock()
  AlproConfig.from_dict(config.model.to_dict())
  assert config.data.sources and config.train.steps > 0
  # Run files change options; they never invent any.
  assert set(config) == set(common.get_config())
  for section in ('data', 'loss', 'prompter', 'optimizer', 'train', 'eval'):
    assert set(config[section]) == set(common.get_config()[section])


def test_pretraining_is_the_papers():
  config = pretrain.get_config()
  assert config.data.batch_size == 16 * 16
  assert (config.data.frames, config.data.image_size) == (4, 224)
  assert config.data.sampling == 'headtail'
  assert config.optimizer.learning_rate == 1e-4
  assert config.optimizer.warmup_steps == 0.05 * config.train.steps
  assert config.optimizer.weight_decay == 1e-3
  assert config.prompter.num_entities == 1000
  assert pretrain_prompter.get_config().task == 'prompter'


def test_unknown_scale_names_the_known_ones():
  with pytest.raises(ValueError, match='demo'):
    pretrain.get_config('huge')


def test_every_source_has_the_same_keys():
  for source in pretrain_prompter.get_config('demo').data.sources:
    assert set(source) == set(common.source('x'))


def test_presets_fit_their_sizes():
  for preset in models.PRESETS.values():
    AlproConfig.from_dict(preset().to_dict())
