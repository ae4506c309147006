"""Between a fine-tuned model and its start: arithmetic, what both have, what is refused."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from alpro_jax import sharding
from alpro_jax.tasks.base import TextInfo
from alpro_jax.tasks.registry import get_task
from alpro_jax.tasks.shared import abstract_params
from alpro_jax.train import checkpoints, identity, trees
from alpro_jax.train.state import TrainState
from alpro_jax.weights import interpolation
from tests import small_sets, small_task

pytestmark = pytest.mark.slow


class Tokenizer(small_sets.Letters):
  special = small_task.TEXT.special

  def __init__(self, digest='letters'):
    self.digest = digest


def save(folder, task, value, *, change=None, digest='letters', frames=2):
  """Writes a checkpoint whose parameters are all `value`; returns it."""
  config = small_task.small_config(folder.parent, task)
  config.data.tokenizer = 'letters.model'
  config.model.video.frames = frames
  config.model.video.update(change or {})
  made = get_task(config, TextInfo(Tokenizer.special, 256), sharding.make_mesh())
  shapes = nn.unbox(jax.eval_shape(made.init, jax.random.key(0)))
  params = jax.tree.map(lambda x: np.full(x.shape, value, x.dtype), shapes)
  store = checkpoints.Checkpoints(folder, words={'tokenizer.model': b'letters'})
  meta = identity.describe(config, made, Tokenizer(digest), [])
  store.save(TrainState(np.int32(7), jax.tree.map(jax.numpy.asarray, params), ()), meta)
  store.close()
  return checkpoints.find(folder), made.model


@pytest.fixture
def pair(tmp_path):
  """A start of all 1, whose clips have other frames, and a model of all 3."""
  start, _ = save(tmp_path / 'start', 'prompter', 1.0, frames=4)
  tuned, model = save(tmp_path / 'tuned', 'pretrain', 3.0)
  return start, tuned, model


def test_between_is_a_checkpoint_of_its_own(pair, tmp_path):
  start, tuned, model = pair
  shared = interpolation.write(start, tuned, 0.75, tmp_path / 'between')
  found = checkpoints.find(tmp_path / 'between')
  params = trees.by_name(found.load_params(abstract_params(model, sharding.make_mesh())))
  # What the start does not have is the fine-tuned model's.
  assert {name.split('/')[0] for name in shared.only_tuned} == {'entity_head'}
  for name, x in params.items():
    assert np.all(x == (3.0 if name in shared.only_tuned else 2.5)), name
  assert found.meta['step'] == 7 and found.meta['interpolated']['alpha'] == 0.75
  assert found.meta['config']['task'] == 'pretrain'
  assert (found.words / 'tokenizer.model').read_bytes() == b'letters'


@pytest.mark.parametrize('alpha, want', [(0.0, 1.0), (1.0, 3.0)])
def test_the_ends_are_the_two_models_exactly(pair, alpha, want):
  start, tuned, model = pair
  abstract = abstract_params(model, sharding.make_mesh())
  shared = interpolation.load_start(start, tuned, abstract)
  mixed = interpolation.interpolate(tuned.load_params(abstract), shared.params, alpha)
  assert all(np.all(trees.by_name(mixed)[name] == want) for name in shared.params)


def test_what_is_kept_stays_as_it_was_fine_tuned(pair, tmp_path):
  start, tuned, model = pair
  time = r'video_encoder/times,video_encoder/block\d+/temporal_\w+'
  interpolation.write(start, tuned, 0.5, tmp_path / 'between', time)
  found = checkpoints.find(tmp_path / 'between')
  params = trees.by_name(found.load_params(abstract_params(model, sharding.make_mesh())))
  for name, x in params.items():
    kept = '/temporal_' in name or name == 'video_encoder/times' or 'entity_head' in name
    assert np.all(x == (3.0 if kept else 2.0)), name
  assert any('/temporal_' in name for name in params)
  with pytest.raises(ValueError, match="--keep: 'text_tower' matches no parameter"):
    interpolation.write(start, tuned, 0.5, tmp_path / 'other', 'text_tower')


def test_other_models_and_shares_are_refused(pair, tmp_path):
  _, tuned, model = pair
  abstract = abstract_params(model, sharding.make_mesh())
  other, _ = save(tmp_path / 'a', 'pretrain', 1.0, change={'heads': 8}, digest='words')
  with pytest.raises(ValueError, match='model.video.heads is 8 and .*tokenizers differ'):
    interpolation.load_start(other, tuned, abstract)
  with pytest.raises(ValueError, match='alpha=1.5 must lie between'):
    interpolation.write(other, tuned, 1.5, tmp_path / 'between')
