"""What stands in for data has the shapes and shardings of the real one."""

import jax
import pytest

from alpro_jax import sharding
from benchmarks import dry_run
from tests import small_task


@pytest.fixture
def config(tmp_path):
  return small_task.small_config(tmp_path)


def shapes(tree):
  return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def test_shapes_to_compile_are_those_of_the_noise_to_time(config):
  program = dry_run.program(config, sharding.make_mesh())
  assert shapes(dry_run.noise(config)) == shapes(program.batch)
  spec = program.batch.video.sharding.spec
  assert spec[0] == sharding.BATCH_AXES


def test_the_config_stays_as_it_is(config):
  before = config.to_json()
  dry_run.task(config, sharding.make_mesh())
  assert config.to_json() == before


def test_the_teacher_is_cut_as_the_parameters_are(config):
  program = dry_run.program(config, sharding.make_mesh(4, 2))
  mine = program.frozen.params['video_encoder']
  student = program.state.params['video_encoder']
  same = jax.tree.map(lambda a, b: a.sharding == b.sharding, mine, student)
  assert all(jax.tree.leaves(same))
  assert program.frozen.bank.video.sharding.is_fully_replicated


def test_a_batch_that_does_not_divide_is_refused(config):
  config.data.batch_size = 12
  with pytest.raises(ValueError, match='cannot be sharded over 8 shards'):
    dry_run.program(config, sharding.make_mesh())
