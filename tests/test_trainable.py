"""What is trained: frozen parts, LoRA, and averages, in the step and in checkpoints."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from alpro_jax import sharding
from alpro_jax.tasks.shared import abstract_params
from alpro_jax.train import checkpoints, trainable, trees
from alpro_jax.train.step import make_gradients, make_update
from alpro_jax.train.trainable import Trainable
from tests import small_task, tiny_run

LORA = {'rank': 2, 'alpha': 6.0, 'kernels': r'video_encoder/.*/(query|value),text_encoder/.*/fc1'}


def params_of(*names):
  return trainable.nested({name: jnp.ones((3, 4)) for name in names})


NAMES = [f'video_encoder/block{i}/mlp/fc1/kernel' for i in range(11)] + ['match_head/kernel']


@pytest.mark.parametrize(
  'pattern, held',
  [
    ('video_encoder', 11),
    ('match_head/kernel', 1),
    (r'video_encoder/block1', 1),
    (r'video_encoder/block[0-3], match_head', 5),
    ('video_attention_and_mlp', 11),
    (r'(?!match_head).*', 11),
  ],
)
def test_a_pattern_names_a_parameter_or_a_part(pattern, held):
  options = small_options(freeze=pattern)
  params = params_of(*NAMES)
  trained, still = Trainable.from_config(options).split(params, jax.random.key(0))
  assert len(trees.by_name(still)) == held
  assert len(trees.by_name(trained)) == len(NAMES) - held
  assert trees.by_name(trainable.merge(trained, still)).keys() == set(NAMES)


def small_options(**changes):
  from configs import common

  options = common.get_config('tiny').optimizer
  options.update(changes)
  return options


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'freeze': 'video'}, r"freeze: 'video' matches no parameter.*match_head, video_encoder"),
    ({'freeze': '[', 'lora': {'rank': 1}}, 'is no regular expression'),
    ({'freeze': '.*'}, 'leaves nothing to train'),
    ({'lora': {'rank': 1}}, r"lora.kernels: '\.\*/\(query|value\)' matches no"),
    ({'lora': {'rank': -1}}, 'expected a rank of 0'),
    ({'lora': {'rank': 1, 'kernels': ' '}}, 'the patterns of kernels'),
  ],
)
def test_what_cannot_be_trained_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    options = small_options(**changes)
    Trainable.from_config(options).split(params_of(*NAMES), jax.random.key(0))


def test_without_options_the_parameters_are_the_same_objects():
  params = params_of(*NAMES)
  trained, held = Trainable.from_config(small_options()).split(params, jax.random.key(0))
  assert trained is params and held is None
  assert trainable.merge(trained, held) is params


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  return small_task.small_config(tmp_path_factory.mktemp('trainable'), 'prompter')


def changed(config, *, ema_decay=0.0, model=None, **optimizer):
  config = config.copy_and_resolve_references()
  config.optimizer.update(optimizer)
  config.model.update(model or {})
  config.train.update({'ema_decay': ema_decay, 'non_finite': 'skip', 'steps': 100})
  return config


def products(config, *, backward=True, **accumulation):
  """Number of matrix products of a step's gradient, before any compiler looks at it."""
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  task = small_task.small_task(config, mesh)
  split = Trainable.from_config(config.optimizer).split
  trained, held = jax.eval_shape(
    lambda key: split(nn.unbox(task.init(key)), key), jax.random.key(0)
  )
  gradients = make_gradients(task, mesh, **accumulation)
  batch, key = small_task.small_batch(), jax.random.key(0)

  def of(trained, held):
    def whole(trained):
      return trainable.merge(trained, held)

    if backward:
      return gradients(trained, None, batch, key, jnp.int32(0), whole)
    return small_task.loss_of(task, whole(trained), None, batch, key, 0)

  return jax.jit(of).lower(trained, held).as_text().count('dot_general')


@pytest.mark.slow
@pytest.mark.parametrize(
  'options',
  [{}, {'remat': 'dots', 'scan_layers': True}, {'remat': 'blocks', 'implementation': 'fused'}],
  ids=str,
)
def test_no_gradient_is_computed_of_frozen_towers(config, options):
  """A block more costs its forward pass where it is frozen, and three times that else."""

  def of_a_block(freeze, **how):
    counts = []
    for depth in (1, 2):
      now = changed(config, freeze=freeze, model=options)
      now.model.video.depth = depth
      counts.append(products(now, **how))
    return counts[1] - counts[0]

  if options.get('scan_layers'):  # The program has one body for all.
    counts = [products(changed(config, freeze=x, model=options)) for x in ('video_encoder', '')]
    assert counts[0] < 0.6 * counts[1]
    return
  forward = of_a_block('video_encoder', backward=False)
  assert of_a_block('video_encoder') == forward > 0
  if options:
    return
  assert of_a_block('') >= 3 * forward
  assert of_a_block('video_encoder', accumulation=2, negatives='global') == 2 * forward


@pytest.mark.slow
def test_the_compiled_program_has_no_backward_pass_of_frozen_towers(config):
  def flops(freeze):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    config_now = changed(config, freeze=freeze)
    update = make_update(config_now, small_task.small_task(config_now, mesh), mesh)
    lowered = update.step.lower(update.state, None, small_task.small_batch())
    return lowered.compile().cost_analysis()['flops'], update

  whole, _ = flops('')
  frozen, update = flops('video_encoder,text_encoder,text_embedding')
  assert frozen < 0.45 * whole
  moments = trees.by_name(optax.tree.get(update.state.opt_state, 'mu'))
  assert 'text_projection/kernel' in moments
  assert not any(name.startswith(('video_encoder', 'text_e')) for name in moments)


def add_factors(trained, scale):
  """LoRA as it is drawn in the paper: the input goes through the factors, too."""

  def interceptor(call, arguments, keywords, context):
    out = call(*arguments, **keywords)
    here = trained
    for part in (*context.module.path, 'kernel'):
      here = here.get(part, {}) if isinstance(here, dict) else {}
    if context.method_name != '__call__' or not isinstance(here, dict) or 'a' not in here:
      return out
    return out + scale * (arguments[0] @ here['a']) @ here['b']

  return interceptor


def test_merged_factors_equal_factors_apart(config):
  config = changed(config, lora=LORA, freeze='text_embedding')
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  model = small_task.small_task(config, mesh).model
  update = make_update(config, small_task.small_task(config, mesh), mesh)
  state = update.first(0)
  noise = iter(jax.random.split(jax.random.key(1), 100))
  params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(noise), x.shape), state.params)
  state = state.replace(params=params)
  assert state.scale == 3.0
  factors = [name for name in trees.by_name(params) if name.endswith('/a')]
  # Query and value over time and space, and the first product of the MLP of one layer.
  assert len(factors) == 5
  batch = small_task.small_batch()

  def features(params):
    bound = model.bind({'params': params})
    video = bound.encode_video(batch.video, train=False).feature
    return video, bound.encode_text(batch.text_ids, batch.text_mask, train=False).feature

  @jax.jit
  def run(state):
    base = trainable.merge(state.params, state.held, 0.0)
    with nn.intercept_methods(add_factors(state.params, state.scale)):
      apart = features(base)
    return apart, features(state.model), features(base)

  apart, merged, plain = run(state)
  for one, other, without in zip(merged, apart, plain, strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    assert np.abs(one - without).max() > 0.01


@pytest.fixture(scope='module')
def adapted(config, tmp_path_factory):
  """A run of four steps on eight devices with all there is, saved after two and four."""
  config = changed(
    config,
    ema_decay=0.5,
    lora=LORA,
    freeze='text_embedding,(video|text|fusion)_encoder',
    groups='.*/b=4',
    layer_decay=0.9,
    learning_rate=0.01,
    warmup_steps=0,
  )
  mesh = sharding.make_mesh(2, 2, tensor=2)
  update = make_update(config, small_task.small_task(config, mesh), mesh)
  batch = jax.device_put(small_task.small_batch(), sharding.batch_sharding(mesh))
  store = checkpoints.Checkpoints(tmp_path_factory.mktemp('run'))
  meta = {'config': json.loads(config.to_json())}
  now = update.first(0)
  states = [jax.tree.map(jnp.copy, now)]
  for step in range(1, 5):
    now, metrics = update.step(now, None, batch)
    assert metrics['skipped'] == 0
    states.append(jax.tree.map(jnp.copy, now))
    if step % 2 == 0:
      store.save(now, meta)
  store.close()
  return update, batch, store.folder, states


@pytest.mark.slow
def test_only_factors_and_heads_change(adapted):
  _, _, _, states = adapted
  first, last = (trees.by_name(states[i].model) for i in (0, 4))
  moved = {name for name in first if np.any(first[name] != last[name])}
  lora = {name.rpartition('/')[0] for name in trees.by_name(states[0].params) if '/kernel/' in name}
  assert len(lora) == 5
  heads = {name for name in first if '_head' in name}
  assert moved - heads == lora | {'temperature'} | {
    f'{side}_projection/{leaf}' for side in ('video', 'text') for leaf in ('kernel', 'bias')
  }
  jax.tree.map(np.testing.assert_array_equal, states[0].held, states[4].held)
  # Moments and averages of what is trained, laid out as it is; B of rank 2 begins as 0.
  trained = trees.by_name(states[4].params)
  for tree in (states[4].average, optax.tree.get(states[4].opt_state, 'mu')):
    found = trees.by_name(tree)
    assert found.keys() == trained.keys()
    assert all(x.sharding == trained[name].sharding for name, x in found.items())
  kernel = 'video_encoder/block0/attention/query/kernel'
  assert trained[f'{kernel}/a'].sharding.spec[0] == 'fsdp'
  assert trained[f'{kernel}/b'].sharding.spec[1] == 'tensor'
  assert not np.any(trees.by_name(states[0].params)[f'{kernel}/b'])


@pytest.mark.slow
def test_the_average_is_that_of_the_steps(adapted):
  _, _, _, states = adapted
  name = 'video_projection/kernel'
  values = [np.asarray(trees.by_name(state.params)[name], np.float64) for state in states]
  want = (values[0] + values[1]) / 2
  for value in values[2:]:
    want = (want + value) / 2
  np.testing.assert_allclose(trees.by_name(states[4].model)[name], want, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_a_run_with_factors_and_averages_resumes_bit_for_bit(adapted):
  update, batch, folder, states = adapted
  now = checkpoints.find(folder / '2').restore(update.state)
  assert jax.tree.structure(now) == jax.tree.structure(states[2])
  jax.tree.map(np.testing.assert_array_equal, now, states[2])
  for _ in range(2):
    now, _ = update.step(now, None, batch)
  jax.tree.map(np.testing.assert_array_equal, now, states[4])


def test_a_checkpoint_alone_is_the_model_as_it_is_used(adapted):
  update, _, folder, states = adapted
  found = checkpoints.find(folder / '4')
  abstract = abstract_params(update.task.model, sharding.make_mesh(devices=jax.devices()[:1]))
  jax.tree.map(np.testing.assert_array_equal, found.load_params(abstract), states[4].model)
  last = trainable.merge(states[4].params, states[4].held, states[4].scale)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-7),
    found.load_params(abstract, averaged=False),
    last,
  )
  stored = {name for name in found.meta['arrays'] if name.startswith('train/')}
  held = {name for name in stored if name.startswith('train/held/')}
  assert len(held) == 5  # Kernels that a merged one does not tell; no other weight twice.
  moments = trees.by_name(tiny_run.stored_state(folder.parent)[1]['train']['opt_state'])
  for moment in ('mu', 'nu'):
    of = {name.partition(f'/{moment}/')[2] for name in moments} - {''}
    assert of == set(trees.by_name(states[4].params))
  assert not any('words' in name for name in stored)


def test_a_run_starts_from_a_model(adapted):
  update, batch, _, states = adapted
  given = states[4].model
  now = jax.tree.map(jnp.copy, states[0]).start_from(jax.tree.map(jnp.copy, given))
  # B is 0, so it is that model.
  jax.tree.map(np.testing.assert_array_equal, now.model, given)
  now, metrics = update.step(now, None, batch)  # No buffer is donated twice.
  assert np.isfinite(metrics['loss'])


def test_an_update_that_is_left_out_leaves_the_average(adapted):
  update, batch, _, states = adapted
  bad = jax.tree.map(jnp.copy, states[2])
  bad.params['temperature'] = jnp.full_like(bad.params['temperature'], jnp.nan)
  before = jax.tree.map(jnp.copy, bad)
  now, metrics = update.step(bad, None, batch)
  assert metrics['skipped'] == 1
  for tree in ('average', 'opt_state'):
    jax.tree.map(np.testing.assert_array_equal, getattr(now, tree), getattr(before, tree))


def test_an_average_that_is_none_is_refused(config):
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  for decay in (-0.1, 1.0):
    with pytest.raises(ValueError, match='ema_decay'):
      now = changed(config, ema_decay=decay)
      make_update(now, small_task.small_task(now, mesh), mesh)


@pytest.mark.slow
def test_without_an_average_there_is_none_to_leave_aside(adapted, tmp_path):
  update, _, folder, states = adapted
  store = checkpoints.Checkpoints(tmp_path)
  store.save(states[1].replace(average=None), {'config': {'train': {'ema_decay': 0.0}}})
  store.close()
  with pytest.raises(ValueError, match='has no others'):
    checkpoints.find(tmp_path).load_params(
      abstract_params(update.task.model, update.task.mesh), averaged=False
    )


def test_moments_of_what_is_trained_lie_where_it_does(config):
  config = changed(config, freeze='video_attention_and_mlp')
  mesh = sharding.make_mesh(4, 2)
  state = make_update(config, small_task.small_task(config, mesh), mesh).state
  params, held = trees.by_name(state.params), trees.by_name(state.held)
  kept = trees.by_name(optax.tree.get(state.opt_state, 'mu'))
  assert set(kept) == set(params)
  assert all(params[name].sharding == leaf.sharding for name, leaf in kept.items())
  parts = ('temporal_attention', 'attention', 'mlp')
  assert held and all(
    name.startswith(tuple(f'video_encoder/block0/{part}/' for part in parts)) for name in held
  )
  assert dataclasses.replace(Trainable(), rank=2, alpha=1.0).scale == 0.5
