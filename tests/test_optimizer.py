"""The schedule, the decay mask and AdamW against hand-made sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from alpro_jax.train import optimizer


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


def test_clipping_is_by_the_norm_of_everything():
  params = {'a': jnp.zeros(1), 'b': jnp.zeros(1)}
  tx = optax.chain(*[adamw(make('constant', warmup=0), clip_norm=1.0)])
  gradients = {'a': jnp.array([30.0]), 'b': jnp.array([40.0])}
  _, state = tx.update(gradients, tx.init(params), params)
  moments = optax.tree.get(state, 'mu')
  np.testing.assert_allclose(moments['a'], 0.1 * 0.6, rtol=1e-5)
  np.testing.assert_allclose(moments['b'], 0.1 * 0.8, rtol=1e-5)


def test_the_schedule_is_set_by_the_step_and_the_moments_are_not():
  tx = adamw(make())
  params = {'kernel': jnp.zeros(1)}
  fresh = tx.init(params)
  state = optimizer.at_step(fresh, jnp.int32(7))
  assert jax.tree.structure(state) == jax.tree.structure(fresh)
  counts = [int(x) for x in jax.tree.leaves(state) if x.dtype == jnp.int32]
  assert counts == [0, 7]


def tower(depth, layer, *others):
  return [f'{layer}{i}/mlp/kernel' for i in range(depth)] + list(others)


def test_rates_fall_by_layer_as_in_beit():
  """Each tower by itself; text and fusion encoder are one BERT."""
  video, text = 'video_encoder/block', 'text_encoder/layer'
  names = [
    *tower(12, video, 'video_encoder/patch_embed/kernel', 'video_encoder/norm/scale'),
    *tower(2, text, 'text_embedding/words', 'fusion_encoder/layer2/mlp/kernel'),
    *tower(3, 'text_tower/block', 'text_tower/positions', 'text_tower/norm/bias'),
    *('match_head/kernel', 'temperature', 'video_encoder/block11/attention/query/kernel/a'),
  ]
  rates = optimizer.rate_factors(names, layer_decay=0.5)
  assert set(rates) == set(names)
  assert [rates[f'{video}{i}/mlp/kernel'] for i in (0, 1, 11)] == [0.5**12, 0.5**11, 0.5]
  assert rates['video_encoder/block11/attention/query/kernel/a'] == 0.5
  assert rates['video_encoder/patch_embed/kernel'] == 0.5**13
  assert rates['text_embedding/words'] == 0.5**4
  assert [rates[f'{text}{i}/mlp/kernel'] for i in range(2)] == [0.5**3, 0.5**2]
  assert rates['fusion_encoder/layer2/mlp/kernel'] == 0.5
  assert [rates[f'text_tower/block{i}/mlp/kernel'] for i in range(3)] == [0.125, 0.25, 0.5]
  assert rates['text_tower/positions'] == 0.5**4
  tops = ('video_encoder/norm/scale', 'text_tower/norm/bias', 'match_head/kernel', 'temperature')
  assert {rates[name] for name in tops} == {1.0}
  assert optimizer.rate_factors(names) == {}


def test_the_last_group_that_matches_counts_beside_the_layer():
  names = tower(2, 'video_encoder/block', 'match_head/kernel', 'match_head/bias', 'temperature')
  rates = optimizer.rate_factors(
    names, groups='video_encoder=0.1, video_encoder/block1=2,.*_head=10', layer_decay=0.5
  )
  assert rates == {
    'video_encoder/block0/mlp/kernel': 0.25 * 0.1,
    'video_encoder/block1/mlp/kernel': 0.5 * 2,
    'match_head/kernel': 10,
    'match_head/bias': 10,
    'temperature': 1,
  }


@pytest.mark.parametrize(
  'options, message',
  [
    ({'groups': 'video=0.1'}, r"'video' matches no parameter.*video_encoder/block\\d\+/mlp"),
    ({'groups': '(=2'}, 'no regular expression'),
    ({'groups': 'match_head'}, 'expected PATTERN=FACTOR'),
    ({'groups': 'match_head=0'}, 'a factor above 0'),
    ({'groups': 'match_head=fast'}, 'a factor above 0'),
    ({'layer_decay': 0.0}, 'above 0 and at most 1'),
  ],
)
def test_rates_that_mean_nothing_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    optimizer.rate_factors(['video_encoder/block0/mlp/kernel', 'match_head/kernel'], **options)


def test_a_factor_scales_update_and_decay():
  params = {'a': {'kernel': jnp.ones((2, 2))}, 'b': {'kernel': jnp.ones((2, 2))}}
  rates = {'a/kernel': 0.25, 'b/kernel': 1.0}
  tx = adamw(make('constant', warmup=0), weight_decay=0.5, rates=rates)
  updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
  plain = adamw(make('constant', warmup=0), weight_decay=0.5)
  alone, _ = plain.update(jax.tree.map(jnp.ones_like, params), plain.init(params), params)
  np.testing.assert_array_equal(updates['b']['kernel'], alone['b']['kernel'])
  np.testing.assert_array_equal(updates['a']['kernel'], alone['a']['kernel'] / 4)
