"""The schedule, the decay mask and AdamW against hand-made sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from alpro_jax import sharding
from alpro_jax.train import optimizer, state
from tests import small_task


def make(schedule='linear', steps=10, warmup=2, final=0.0, rate=1e-3):
  return optimizer.make_schedule(
    learning_rate=rate, schedule=schedule, steps=steps, warmup_steps=warmup, final_fraction=final
  )


def adamw(schedule, **changes):
  values = dict(b1=0.9, b2=0.98, eps=1e-6, eps_rule='standard', weight_decay=0.0, clip_norm=0.0)
  return optimizer.make_optimizer(schedule, **{**values, **changes})


def test_linear_schedule_is_the_originals():
  # docs/specification.md, Optimisation; S=10, W=2: k/W before W, then
  # (S-k)/(S-W), never below 1e-8.
  rates = [float(make()(k)) for k in range(10)]
  expected = [0.5e-3] + [1e-3 * (10 - k) / 8 for k in range(2, 10)] + [1e-8]
  np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_a_fall_of_one_step():
  rates = [float(make(steps=3, warmup=2)(k)) for k in range(3)]
  np.testing.assert_allclose(rates, [0.5e-3, 1e-3, 1e-8], rtol=1e-6)


def test_cosine_ends_at_its_fraction():
  schedule = make('cosine', final=0.05)
  assert float(schedule(1)) == pytest.approx(1e-3)
  assert float(schedule(9)) == pytest.approx(0.05e-3)


def test_bad_schedules_are_refused():
  with pytest.raises(ValueError, match='choose one of'):
    make('liner')
  with pytest.raises(ValueError, match='between 0 and'):
    make(warmup=11)
  with pytest.raises(ValueError, match="'standard' or 'original'"):
    adamw(make(), eps_rule='torch')


def test_a_learning_rate_is_never_above_what_was_asked_for():
  for schedule in optimizer.SCHEDULES:
    for rate in (0.0, 1e-9):
      rates = [float(make(schedule, rate=rate)(k)) for k in range(10)]
      assert max(rates) <= np.float32(rate)
  for rate in (-1e-3, float('nan'), float('inf')):
    with pytest.raises(ValueError, match='must be 0 or more, and finite'):
      make(rate=rate)


def test_original_rule_adds_eps_to_the_uncorrected_root():
  # p -= lr sqrt(1-b2^t)/(1-b1^t) m / (sqrt(v) + eps).
  rng = np.random.default_rng(0)
  gradients = (rng.normal(size=(4, 5)) * 1e-5).astype(np.float32)
  schedule = make('constant', warmup=0)
  tx = adamw(schedule, eps_rule='original')
  params = {'kernel': jnp.zeros(5)}
  opt_state = tx.init(params)
  p, m, v = np.zeros(5), np.zeros(5), np.zeros(5)
  for t, g in enumerate(gradients, 1):
    updates, opt_state = tx.update({'kernel': jnp.array(g)}, opt_state, params)
    params = optax.apply_updates(params, updates)
    m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g
    p -= 1e-3 * np.sqrt(1 - 0.98**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-6)
  np.testing.assert_allclose(params['kernel'], p, rtol=2e-5)


def test_decay_touches_matrices_alone():
  params = {
    'dense': {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)},
    'norm': {'scale': jnp.ones(2)},
    'words': jnp.ones((3, 2)),
    'temperature': jnp.ones(()),
  }
  tx = adamw(make('constant', warmup=0, rate=0.1), weight_decay=0.5)
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zero, tx.init(params), params)
  np.testing.assert_allclose(updates['dense']['kernel'], -0.05, rtol=1e-6)
  del updates['dense']['kernel']
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(updates))


def test_decay_mask_sees_through_boxes():
  boxed = {'kernel': nn.LogicallyPartitioned(jnp.ones(2), ('embed',))}
  mask = optimizer.decay_mask(boxed)
  assert jax.tree.leaves(mask) == [True]


def test_a_boxed_parameter_is_one_leaf_of_what_is_frozen():
  boxed = nn.Partitioned(jnp.ones((2, 2)), ('embed', 'mlp'))
  mask = optimizer.frozen_mask(
    {'video_encoder': {'block0': {'mlp': {'kernel': boxed}, 'norm': {'scale': boxed}}}},
    freeze='video_attention_and_mlp',
  )
  assert mask == {'video_encoder': {'block0': {'mlp': {'kernel': True}, 'norm': {'scale': False}}}}


def test_clipping_is_by_the_norm_of_everything():
  params = {'a': jnp.zeros(1), 'b': jnp.zeros(1)}
  tx = optax.chain(*[adamw(make('constant', warmup=0), clip_norm=1.0)])
  gradients = {'a': jnp.array([30.0]), 'b': jnp.array([40.0])}
  _, state = tx.update(gradients, tx.init(params), params)
  moments = optax.tree.get(state, 'mu')
  np.testing.assert_allclose(moments['a'], 0.1 * 0.6, rtol=1e-5)
  np.testing.assert_allclose(moments['b'], 0.1 * 0.8, rtol=1e-5)


def test_freezing_is_the_originals_accident():
  """Weights of the video encoder's attention and MLP, and nothing else."""
  block = {
    name: {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}
    for name in ('attention', 'temporal_attention', 'mlp', 'temporal_fc')
  }
  params = {
    'video_encoder': {'block0': {**block, 'norm': {'scale': jnp.ones(2)}}},
    'fusion_encoder': {'layer0': {'attention': {'kernel': jnp.ones(2)}}},
  }
  tx = adamw(
    make('constant', warmup=0), freeze='video_attention_and_mlp', weight_decay=0.1, clip_norm=1.0
  )
  updates, _ = jax.jit(tx.update)(jax.tree.map(lambda x: 100 * x, params), tx.init(params), params)
  still = {
    '/'.join(str(p.key) for p in path)
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
    if not leaf.any()
  }
  assert still == {
    f'video_encoder/block0/{name}/{leaf}'
    for name in ('attention', 'temporal_attention', 'mlp')
    for leaf in ('kernel', 'bias')
  }
  with pytest.raises(ValueError, match='one of'):
    adamw(make(), freeze='all')


@pytest.mark.parametrize('eps_rule', ['standard', 'original'])
def test_frozen_parameters_do_not_count_in_the_norm_that_is_clipped(eps_rule):
  leaf = {'kernel': jnp.zeros((1, 1))}
  params = {'video_encoder': {'block0': {'mlp': leaf, 'temporal_fc': leaf}}}
  tx = adamw(
    make('constant', warmup=0), freeze='video_attention_and_mlp', clip_norm=1.0, eps_rule=eps_rule
  )
  gradients = {
    'video_encoder': {
      'block0': {
        'mlp': {'kernel': jnp.full((1, 1), 1e3)},
        'temporal_fc': {'kernel': jnp.full((1, 1), 0.5)},
      }
    }
  }
  _, state = tx.update(gradients, tx.init(params), params)
  (moment,) = jax.tree.leaves(optax.tree.get(state, 'mu'))
  np.testing.assert_allclose(moment, 0.1 * 0.5, rtol=1e-6)


def test_the_schedule_is_set_by_the_step_and_the_moments_are_not():
  tx = adamw(make())
  params = {'kernel': jnp.zeros(1)}
  fresh = tx.init(params)
  state = optimizer.at_step(fresh, jnp.int32(7))
  assert jax.tree.structure(state) == jax.tree.structure(fresh)
  counts = [int(x) for x in jax.tree.leaves(state) if x.dtype == jnp.int32]
  assert counts == [0, 7]


def test_frozen_parameters_in_their_boxes(tmp_path):
  """As a state is laid out: moments lie where their parameters do."""
  config = small_task.small_config(tmp_path, 'prompter')
  config.optimizer.freeze = 'video_attention_and_mlp'
  mesh = sharding.make_mesh(4, 2)
  task = small_task.small_task(config, mesh)
  tx, _ = optimizer.from_config(config.optimizer, steps=100)
  shapes = state.abstract_state(task.init, tx, mesh)
  params, kept = (
    {jax.tree_util.keystr(path): leaf.sharding for path, leaf in jax.tree.leaves_with_path(tree)}
    for tree in (shapes.params, optax.tree.get(shapes.opt_state, 'mu'))
  )
  held = {
    name
    for name in params
    if "['video_encoder']['block0']" in name
    and any(f"['{x}']" in name for x in ('temporal_attention', 'attention', 'mlp'))
  }
  assert held and set(kept) == set(params) - held
  assert all(params[name] == where for name, where in kept.items())
