"""What the encoders must and must not depend on."""

import dataclasses
import functools
import json
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from alpro_jax import flops, sharding
from alpro_jax.models import attention, dropout, encoders, layers, timesformer
from alpro_jax.models.alpro import Alpro, AlproConfig, unit_length
from alpro_jax.tasks.shared import init_model
from configs import models
from tests import small_task
from tests.small_task import fresh_params

B, T, L = 2, 4, 6


def make_config(attention='divided', **options):
  """The tiny preset, smaller still, with every parameter at work."""
  values = models.tiny().to_dict()
  values['video'] |= {
    'image_size': 24,
    'width': 16,
    'depth': 2,
    'mlp_size': 32,
    'attention': attention,
    'temporal_fc_std': 0.1,
    'time_std': 0.5,
    'position_std': 0.5,
    'matrix_std': 0.2,
  }
  values['text'] |= {
    'vocab_size': 40,
    'width': 16,
    'depth': 2,
    'fusion_layer': 1,
    'mlp_size': 32,
    'max_positions': 16,
    'matrix_std': 0.2,
    'word_std': 0.5,
  }
  values |= {'embed_size': 8, 'entities': 5, **options}
  return AlproConfig.from_dict(values)


def make_batch(config, key=0):
  size = config.video.image_size
  video = jax.random.randint(jax.random.key(key), (B, T, size, size, 3), 0, 256).astype(jnp.uint8)
  ids = jax.random.randint(jax.random.key(key + 1), (B, L), 1, 40)
  mask = jnp.arange(L) < jnp.array([[L], [L - 2]])
  return video, ids, mask


def make_params(config):
  leaves, tree = jax.tree.flatten(fresh_params(Alpro(config), 7))
  # Biases and scales away from 0 and 1, as in a trained model.
  keys = jax.random.split(jax.random.key(7), len(leaves))
  noisy = [
    x + 0.1 * jax.random.normal(k, x.shape) if x.ndim == 1 else x
    for x, k in zip(leaves, keys, strict=True)
  ]
  return jax.tree.unflatten(tree, noisy)


@pytest.fixture(scope='module', params=timesformer.ATTENTIONS)
def each(request):
  """Config and parameters of one of the three ways of attention."""
  config = make_config(request.param)
  return config, make_params(config)


@pytest.fixture(scope='module')
def divided():
  config = make_config()
  return config, make_params(config)


def encode_video(config, params, video, **options):
  """Float video so that uint8 is not needed; jitted to be quick."""

  @jax.jit
  def encode(params, video):
    return Alpro(config).apply(
      {'params': params}, video, train=False, method='encode_video', **options
    )

  return encode(params, video)


def full(config, params, batch, *, train=False, key=None):
  """Everything the model can compute, in one number and its parts."""
  model = Alpro(config).bind({'params': params}, rngs=None if key is None else {'dropout': key})
  video, ids, mask = batch
  video = model.encode_video(video, train=train)
  text = model.encode_text(ids, mask, train=train)
  fused = model.fuse(text.tokens, mask, video.tokens, train=train)
  parts = (
    model.match_logits(fused[:, 0]),
    model.mlm_logits(fused[:, : ids.shape[1]])[mask.nonzero(size=4)],
    model.entity_logits(fused[:, ids.shape[1] + 1 :].mean(axis=1)),
    video.feature @ text.feature.T / model.temperature(),
  )
  return sum(jnp.sum(jnp.square(x)) for x in parts), (parts, video, text, fused)


def test_shapes_and_types(each):
  config, params = each
  batch = make_batch(config)
  _, (parts, video, text, fused) = jax.jit(lambda p: full(config, p, batch))(params)
  s, d = 1 + config.video.grid**2, config.video.width
  assert video.tokens.shape == (B, s, d) and text.tokens.shape == (B, L, d)
  assert fused.shape == (B, L + s, d)
  assert video.feature.shape == text.feature.shape == (B, config.embed_size)
  assert [x.shape for x in parts[:3]] == [(B, 2), (4, 40), (B, 5)]
  for feature in (video.feature, text.feature):
    np.testing.assert_allclose(jnp.linalg.norm(feature, axis=1), 1, rtol=1e-5)


def test_parameters_that_a_variant_does_not_use_do_not_exist(each):
  config, params = each
  encoder = params['video_encoder']
  divided = config.video.attention == 'divided'
  assert ('temporal_attention' in encoder['block0']) == divided
  assert ('temporal_fc' in encoder['block0']) == divided
  assert ('times' in encoder) == (config.video.attention != 'space_only')


def test_every_parameter_gets_a_gradient(each):
  config, params = each
  grads = jax.jit(jax.grad(lambda p: full(config, p, make_batch(config))[0]))(params)
  for path, grad in jax.tree.leaves_with_path(grads):
    assert np.abs(grad).max() > 0, jax.tree_util.keystr(path)


def test_frame_order_matters_unless_only_space_is_seen(each):
  config, params = each
  video, _, _ = make_batch(config)
  forward = encode_video(config, params, video)
  backward = encode_video(config, params, video[:, ::-1])
  change = np.abs(forward.feature - backward.feature).max()
  if config.video.attention == 'space_only':
    assert change < 1e-5
    np.testing.assert_allclose(forward.tokens, backward.tokens, atol=1e-4)
  else:
    assert change > 1e-2


def test_time_attention_alone_tells_frame_order():
  """Without temporal_fc, divided attention must lose it but for the times."""
  config = make_config(
    video=dataclasses.asdict(
      dataclasses.replace(make_config().video, temporal_fc_std=0.0, time_std=0.0)
    )
  )
  params = make_params(config)
  for block in ('block0', 'block1'):
    fc = params['video_encoder'][block]['temporal_fc']
    np.testing.assert_array_equal(fc['kernel'], 0)
  np.testing.assert_array_equal(params['video_encoder']['times'], 0)
  video, _, _ = make_batch(config)
  forward = encode_video(config, params, video)
  backward = encode_video(config, params, video[:, ::-1])
  np.testing.assert_allclose(forward.feature, backward.feature, atol=1e-5)


def test_patches_differ_by_place(each):
  config, params = each
  video = jnp.full((1, T, 24, 24, 3), 99, jnp.uint8)
  tokens = encode_video(config, params, video).tokens[0, 1:]
  assert np.abs(tokens - tokens[:1]).max() > 1e-2


@pytest.mark.parametrize('frames, height, width', [(7, 24, 24), (1, 36, 12)])
def test_other_lengths_and_sizes_than_configured(each, frames, height, width):
  config, params = each
  video = make_batch(config)[0]
  video = jnp.resize(video, (B, frames, height, width, 3))
  encoding = encode_video(config, params, video)
  patches = height * width // config.video.patch_size**2
  assert encoding.tokens.shape == (B, 1 + patches, config.video.width)
  assert jnp.isfinite(encoding.tokens).all()


def test_a_clip_shown_twice_as_slowly_looks_the_same(divided):
  """Each frame and time vector repeated: softmax over copies is unchanged."""
  config, params = divided
  video, _, _ = make_batch(config)
  once = encode_video(config, params, video)
  twice = encode_video(config, params, jnp.repeat(video, 2, axis=1))
  np.testing.assert_allclose(once.tokens, twice.tokens, atol=1e-4)


def test_positions_resize_on_the_grid():
  rows, columns = jnp.meshgrid(jnp.arange(2.0), jnp.arange(2.0), indexing='ij')
  table = jnp.stack([rows, columns], axis=-1).reshape(4, 2)
  same = timesformer.resize_positions(table, (2, 2), (2, 2))
  np.testing.assert_array_equal(same, table)
  large = timesformer.resize_positions(table, (2, 2), (4, 2)).reshape(4, 2, 2)
  np.testing.assert_allclose(large[:, 0, 0], [0, 0.25, 0.75, 1])
  np.testing.assert_allclose(large[:, :, 1], [[0, 1]] * 4)


def test_uint8_is_normalized_and_floats_are_not(divided):
  config, params = divided
  video, _, _ = make_batch(config)
  mean, std = np.array(timesformer.PIXEL_MEAN), np.array(timesformer.PIXEL_STD)
  floats = jnp.float32((np.asarray(video) / 255 - mean) / std)
  np.testing.assert_allclose(
    encode_video(config, params, video).tokens,
    encode_video(config, params, floats).tokens,
    atol=1e-4,
  )


def test_padding_text_changes_nothing(divided):
  config, params = divided
  video, ids, mask = make_batch(config)
  run = jax.jit(lambda ids, mask: full(config, params, (video, ids, mask))[1])
  _, _, text, fused = run(ids, mask)
  # Other words under the padding, and more of it.
  other = jnp.where(mask, ids, 40 - ids)
  longer = jnp.pad(other, ((0, 0), (0, 3)), constant_values=9)
  _, _, text2, fused2 = run(longer, jnp.pad(mask, ((0, 0), (0, 3))))
  np.testing.assert_allclose(text.feature, text2.feature, atol=1e-6)
  real = np.asarray(mask)
  np.testing.assert_allclose(text.tokens[real], text2.tokens[:, :L][real], atol=1e-5)
  np.testing.assert_allclose(fused[:, :L][real], fused2[:, :L][real], atol=1e-5)
  np.testing.assert_allclose(fused[:, L:], fused2[:, L + 3 :], atol=1e-5)


def test_fusion_mixes_both_kinds(divided):
  config, params = divided
  video, ids, mask = make_batch(config)
  run = jax.jit(lambda *batch: full(config, params, batch)[1][0][0])
  logits = run(video, ids, mask)
  assert np.abs(logits - run(255 - video, ids, mask)).max() > 1e-2
  assert np.abs(logits - run(video, ids[:, ::-1], mask)).max() > 1e-2


def test_the_padding_word_learns_from_the_decoder_alone(divided):
  config, params = divided

  def loss(params, decode):
    model = Alpro(config).bind({'params': params})
    ids, mask = jnp.array([[3, 0, 5]]), jnp.ones((1, 3), bool)
    tokens = model.encode_text(ids, mask, train=False).tokens
    return jnp.sum(model.mlm_logits(tokens) if decode else tokens**3)

  for decode in (False, True):
    grads = jax.jit(jax.grad(lambda p: loss(p, decode)))(params)  # noqa: B023
    rows = np.abs(grads['text_embedding']['words']).max(axis=1)
    assert rows[3] > 0 and (rows[0] > 0) == decode


def test_temperature_is_clipped_and_keeps_its_gradient(divided):
  config, params = divided

  def temperature(value):
    changed = params | {'temperature': jnp.float32(value)}
    return Alpro(config).bind({'params': changed}).temperature()

  for value, want in ((0.07, 0.07), (-1.0, 0.001), (3.0, 0.5)):
    clipped, gradient = jax.value_and_grad(temperature)(value)
    np.testing.assert_allclose(clipped, want, rtol=1e-5)
    assert gradient == 1


def test_heads_of_pairs_and_regions_read_their_own_tokens():
  config = make_config(answers=7)
  region = jnp.array([[True, False, True, False], [False] * 3 + [True]])

  @jax.jit
  def run(params, *pairs):
    model = Alpro(config).bind({'params': params})
    fused = model.fuse(*pairs, train=False)
    patches = fused[:, L + 1 :]
    pooled = jnp.stack([(patches[0, 0] + patches[0, 2]) / 2, patches[1, 3]])
    return (
      (model.match(*pairs), model.match_logits(fused[:, 0])),
      (model.answer(*pairs), model.answer_logits(fused[:, 0])),
      (model.region_entities(fused, region), model.entity_logits(pooled)),
    )

  _, _, mask = make_batch(config)
  text = jax.random.normal(jax.random.key(1), (B, L, 16))
  video = jax.random.normal(jax.random.key(2), (B, 5, 16))
  for found, wanted in run(make_params(config), text, mask, video):
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
  'form',
  [
    {'implementation': 'fused'},
    *(
      pytest.param(form, marks=pytest.mark.slow)
      for form in (
        {'scan_layers': True, 'remat': 'dots', 'attention_impl': 'elementwise'},
        {'implementation': 'fused', 'scan_layers': True, 'remat': 'blocks'},
        {'scan_layers': True},
        {'scan_layers': True, 'remat': 'blocks'},
      )
    ),
  ],
  ids=str,
)
def test_every_form_has_the_same_full_gradients(trained, form):
  """Of all parameters: the original's checkpointing lost most (defect 2)."""
  plain, gradients = trained
  ours = gradients(**form)
  for name, want in plain.items():
    # A key's bias has no gradient but rounding: measured by the query's.
    scale = np.abs(plain[name.replace('key/bias', 'query/bias')]).max()
    assert scale > 0, name
    error = np.abs(ours[name] - want).max()
    assert error < 1e-5 * scale, f'{name}: {error / scale:.1e} relative'


@pytest.mark.slow
@pytest.mark.parametrize(
  'form',
  [{}, {'remat': 'dots'}, {'scan_layers': True, 'remat': 'blocks'}, {'implementation': 'fused'}],
  ids=str,
)
def test_a_last_layer_that_makes_what_is_read_alone(divided, form):
  """Three kinds of pairs side by side: values and all gradients are equal."""
  config, params = divided
  config = dataclasses.replace(config, text=dataclasses.replace(config.text, depth=3), **form)
  # One layer more in the fusion encoder, so that there is one before the last.
  params = make_params(config)
  shape = (3 * B, 9, config.text.width)
  video = jax.random.normal(jax.random.key(1), shape)
  text = jax.random.normal(jax.random.key(2), (3 * B, L, config.text.width))
  mask = jnp.arange(L) < jnp.array([[L], [3], [2]] * B)
  read = (L + 9, 1, 4)

  def whole(params, text, video):
    fused = Alpro(config).bind({'params': params}).fuse(text, mask, video, train=False)
    fused = fused.reshape(B, 3, L + 9, -1)
    return tuple(fused[:, k, :n] for k, n in enumerate(read))

  def in_part(params, text, video):
    return (
      Alpro(config).bind({'params': params}).fuse(text, mask, video, train=False, query_tokens=read)
    )

  def run(function):
    out, pull = jax.vjp(function, params, text, video)
    return out, pull(jax.tree.map(jnp.cos, out))

  found, wanted = jax.jit(run, static_argnums=0)(in_part), run(whole)
  for kind, n in zip(found[0], read, strict=True):
    assert kind.shape == (B, n, config.text.width)
  for path, want in jax.tree_util.tree_leaves_with_path(wanted):
    ours = functools.reduce(
      lambda tree, key: tree[getattr(key, 'key', getattr(key, 'idx', None))], path, found
    )
    np.testing.assert_allclose(ours, want, rtol=1e-4, atol=2e-5 * max(1, np.abs(want).max()))


@pytest.fixture(scope='module')
def trained():
  """Gradients of the plain form, dropout and drop path on, and of others."""
  # Three layers each, of which the second drops at half the rate.
  config = make_config()
  config = dataclasses.replace(
    config,
    video=dataclasses.replace(config.video, depth=3, drop_path=0.4),
    text=dataclasses.replace(config.text, depth=5, fusion_layer=2),
  )
  params, batch = make_params(config), make_batch(config)

  def gradients(**form):
    changed = dataclasses.replace(config, **form)
    key = jax.random.key(5)

    def loss(params):
      return full(changed, params, batch, train=True, key=key)[0]

    return flatten_dict(jax.jit(jax.grad(loss))(params), sep='/')

  return gradients(), gradients


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_attention_over_a_few_tokens_without_matrices(dtype):
  qkv = [jax.random.normal(jax.random.key(i), (2, 7, 4, 2, 8), dtype) for i in range(3)]
  plain, ours = (
    functools.partial(attention.attend, kernel=kernel) for kernel in ('xla', 'elementwise')
  )
  assert 'dot_general' not in str(jax.make_jaxpr(ours)(*qkv))
  tolerance = {'float32': 1e-6, 'bfloat16': 2e-2}[dtype]
  np.testing.assert_allclose(jnp.float32(ours(*qkv)), jnp.float32(plain(*qkv)), atol=tolerance)
  # Not of a type that cuDNN takes, or too short for it.
  np.testing.assert_array_equal(attention.attend(*qkv, kernel='cudnn'), ours(*qkv))


def test_auto_attention_is_the_one_of_the_device():
  class Device(NamedTuple):
    platform: str
    device_kind: str

  choose = attention.choose_kernel
  for platform, kind, want in (
    ('cpu', 'cpu', 'xla'),
    ('gpu', 'NVIDIA H200', 'cudnn'),
    ('gpu', 'AMD MI300', 'xla'),
    ('tpu', 'TPU v5 lite', 'elementwise'),
  ):
    assert choose('auto', Device(platform, kind)) == want
    assert choose('xla', Device(platform, kind)) == 'xla'


def test_a_scanned_stack_is_traced_once():
  """And its program does not grow with the depth."""

  def size(depth, scan):
    config = make_config(scan_layers=scan)
    config = dataclasses.replace(config, video=dataclasses.replace(config.video, depth=depth))
    params = make_params(config)
    video = make_batch(config)[0]
    return len(
      jax.jit(lambda p: encode_video(config, p, video).tokens)
      .lower(params)
      .as_text('stablehlo')
      .splitlines()
    )

  # What is stacked costs a few lines for each layer.
  assert size(6, True) - size(3, True) < 0.3 * (size(6, False) - size(3, False))


def test_configs_of_older_checkpoints_load():
  values = dataclasses.asdict(make_config())
  for name in ('implementation', 'attention_impl', 'scan_layers'):
    del values[name]
  for part in ('video', 'text'):
    del values[part]['encoder']
  assert AlproConfig.from_dict(values) == make_config()
  assert AlproConfig.from_dict(make_config().to_dict()) == make_config()
  assert 'encoder' not in make_config().to_dict()['video']
  for old, new in ((False, 'none'), (True, 'blocks')):
    assert AlproConfig.from_dict(values | {'remat': old}).remat == new


def test_a_bias_is_a_parameter_where_it_is_asked_for(divided):
  """And changes nothing of a model without: neither parameters nor what is stored."""
  config, params = divided
  assert not {'logit_bias', 'temperature_range'} & set(config.to_dict())
  assert 'logit_bias' not in params
  biased = dataclasses.replace(config, logit_bias=-10.0, temperature_range=(0.01, 0.5))
  assert AlproConfig.from_dict(json.loads(json.dumps(biased.to_dict()))) == biased
  fresh = jax.eval_shape(lambda key: init_model(Alpro(biased), key), jax.random.key(0))
  assert set(fresh) == {*params, 'logit_bias'}
  changed = params | {'logit_bias': jnp.float32(-9), 'temperature': jnp.float32(0)}
  model = Alpro(biased).bind({'params': changed})
  assert model.logit_bias() == -9 and model.temperature() == jnp.float32(0.01)


def test_bfloat16_computes_near_float32_with_float32_parameters(divided):
  config, params = divided
  small = dataclasses.replace(config, dtype='bfloat16')
  types = {x.dtype for x in jax.tree.leaves(make_params(small))}
  assert types == {jnp.dtype('float32')}
  batch = make_batch(config)
  _, (exact, _, _, _) = jax.jit(lambda p: full(config, p, batch))(params)
  _, (parts, video, text, fused) = jax.jit(lambda p: full(small, p, batch))(params)
  for tokens in (video.tokens, text.tokens, fused):
    assert tokens.dtype == jnp.bfloat16
  for ours, want in zip(parts, exact, strict=True):
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, want, atol=0.06 * np.abs(want).max())


def test_dropout_and_drop_path_act_in_training_only(divided):
  config, params = divided
  batch = make_batch(config)
  run = jax.jit(
    lambda key, train: full(config, params, batch, train=train, key=key)[0], static_argnums=1
  )
  one, two = jax.random.key(1), jax.random.key(2)
  assert run(one, True) != run(two, True)
  assert run(one, True) == run(one, True)
  assert run(one, False) == run(two, False)


def test_drop_path_drops_whole_sequences_and_keeps_the_mean():
  x = jnp.ones((400, 3, 5, 2))
  y = dropout.drop_path(x, 0.25, jax.random.key(0))
  rows = np.asarray(y).reshape(1200, 10)
  assert (rows == rows[:, :1]).all()
  np.testing.assert_allclose(np.unique(rows), [0, 4 / 3])
  np.testing.assert_allclose(rows.mean(), 1, atol=0.06)


@pytest.mark.parametrize('shape', [(9, 6, 500), (9, 501), (7,)])
def test_dropout_drops_each_entry_for_itself(shape):
  keys = jax.random.split(jax.random.key(0), 40)
  y = jax.vmap(lambda key: dropout.dropout(jnp.ones(shape), 0.1, key))(keys)
  np.testing.assert_allclose(np.unique(y), [0, 1 / 0.9], rtol=1e-4)
  np.testing.assert_allclose(y.mean(), 1, atol=0.05)
  kept = np.asarray(y > 0).astype(float)
  for axis in range(1, kept.ndim):
    first, second = np.split(kept.take(np.arange(kept.shape[axis] // 2 * 2), axis), 2, axis)
    np.testing.assert_allclose((first * second).mean(), 0.81, atol=0.05)
  if len(shape) == 3:
    pairs = kept[:, :, ::2] * kept[:, :, 1::2]
    np.testing.assert_allclose(pairs.mean(), 0.81, atol=0.01)


def test_dropping_the_time_attention_keeps_the_bias_of_temporal_fc(divided):
  """Defect 25, kept: the drop comes before temporal_fc."""
  config, params = divided
  block = timesformer.DividedBlock(config.video, layers.ComputeOptions(jnp.float32), frames=T)
  weights = params['video_encoder']['block0']
  x = jax.random.normal(jax.random.key(0), (B, 1 + 4 * T, 16))
  y = block.apply({'params': weights}, x, key=jax.random.key(1), drop_path=0.9999)
  bias = weights['temporal_fc']['bias']
  np.testing.assert_allclose(y[:, :1], x[:, :1], atol=1e-6)
  np.testing.assert_allclose(y[:, 1:], x[:, 1:] + bias, atol=1e-6)


def test_first_block_never_drops_and_the_last_drops_most():
  video = dataclasses.replace(make_config().video, depth=3, drop_path=0.3)
  assert timesformer.drop_path_rates(video) == [0.0, 0.15, 0.3]


def test_smooth_positions_make_neighbours_alike():
  init = timesformer.smooth_init(2.0, (8, 8))
  table = np.asarray(init(jax.random.key(0), (64, 512)))
  np.testing.assert_allclose(table.std(), 2.0, rtol=0.1)
  grid = table.reshape(8, 8, 512)
  near = np.square(grid[:, 1:] - grid[:, :-1]).mean()
  far = np.square(grid[:, 7] - grid[:, 0]).mean()
  assert near < 0.2 * far and far > 4


def test_every_parameter_has_known_logical_axes(each):
  config, _ = each
  boxed = jax.eval_shape(
    lambda key: Alpro(config).init(key, *make_batch(config), method='init_all'), jax.random.key(0)
  )
  specs = nn.get_partition_spec(boxed)['params']

  def is_spec(x):
    return isinstance(x, jax.P)

  names = {name for spec in jax.tree.leaves(specs, is_leaf=is_spec) for name in spec}
  assert names - {None} <= set(sharding.RULES)
  kernels = [
    spec
    for path, spec in jax.tree.leaves_with_path(specs, is_leaf=is_spec)
    if 'kernel' in jax.tree_util.keystr(path)
  ]
  assert kernels and all(len(spec) == 2 for spec in kernels)


def test_unit_length_is_finite_at_zero():
  value, gradient = jax.value_and_grad(lambda x: jnp.sum(unit_length(x)))(jnp.zeros(3))
  assert value == 0 and jnp.isfinite(gradient).all()


@pytest.mark.parametrize(
  'change, message',
  [
    ({'dtype': 'float16'}, "config.model.dtype='float16' is not known"),
    ({'temperature_range': (0.5, 0.01)}, r'range=\(0.5, 0.01\) must be two numbers above 0'),
    ({'spin': 1}, r"unknown=\['spin'\]"),
    ({'implementation': 'quick'}, r"implementation='quick' is not known; choose one of \('plain'"),
    ({'video': {'attention': 'sideways'}}, 'is not known; choose one of'),
    ({'video': {'encoder': 'vivit'}}, r"'vivit' is unknown; choose .* \['timesformer', 'vit'\]"),
    ({'text': {'encoder': 'gpt'}}, r"encoder='gpt' is unknown; choose one of \['bert'\]"),
    ({'video': {'patch_size': 7}}, 'self.patch_size=7 must divide'),
    ({'video': {'heads': 5}}, 'self.heads=5 must divide'),
    ({'text': {'heads': 5}}, 'self.heads=5 must divide'),
    ({'text': {'fusion_layer': 4}}, 'self.fusion_layer=4 must be above 0'),
    ({'text': {'spin': 1}}, r"config.model.text has unknown=\['spin'\]"),
  ],
)
def test_wrong_configs_are_refused(change, message):
  values = models.tiny().to_dict() | {'entities': 0}
  for key, value in change.items():
    values[key] = values[key] | value if isinstance(value, dict) else value
  with pytest.raises(ValueError, match=message):
    AlproConfig.from_dict(values)


def test_missing_options_are_named():
  values = models.tiny().to_dict() | {'entities': 0}
  del values['dtype']
  with pytest.raises(ValueError, match=r"missing=\['dtype'\]"):
    AlproConfig.from_dict(values)


def test_wrong_inputs_are_refused(divided):
  config, params = divided
  apply = Alpro(config).apply
  with pytest.raises(ValueError, match='must be multiples of p=12'):
    apply(
      {'params': params},
      jnp.zeros((1, T, 24, 30, 3), jnp.uint8),
      train=False,
      method='encode_video',
    )
  with pytest.raises(ValueError, match='truncate the text'):
    apply(
      {'params': params},
      jnp.zeros((1, 17), int),
      jnp.ones((1, 17), bool),
      train=False,
      method='encode_text',
    )
  headless = dataclasses.replace(config, entities=0)
  with pytest.raises(ValueError, match='config.entities > 0'):
    Alpro(headless).apply({'params': params}, jnp.zeros((1, 16)), method='entity_logits')
  with pytest.raises(ValueError, match='self.heads=3 must divide width=16'):
    layers.Attention(3, layers.ComputeOptions(jnp.float32), nn.initializers.ones).init(
      jax.random.key(0), jnp.ones((1, 2, 16))
    )


@dataclasses.dataclass(frozen=True)
class ToyConfig:
  """A video encoder of somebody else: the mean of each patch over time."""

  image_size: int
  patch_size: int
  frames: int
  width: int
  encoder: str = 'toy'


class ToyEncoder(nn.Module):
  config: ToyConfig
  options: layers.ComputeOptions

  @nn.compact
  def __call__(self, video, *, train):
    p = self.config.patch_size
    video = timesformer.normalize_pixels(video)
    pixels = einops.reduce(video, 'b t (h p) (w q) c -> b (h w) (p q c)', 'mean', p=p, q=p)
    init = layers.uniform_fan_in(pixels.shape[-1])
    embed = layers.dense(self.config.width, ('pixels', 'embed'), self.options, init, name='patches')
    patches = embed(pixels)
    return jnp.concatenate([patches.mean(axis=1, keepdims=True), patches], axis=1)


class toy:
  Config, Encoder = ToyConfig, ToyEncoder

  @staticmethod
  def forward_flops(config, frames, image_size):
    return 2 * image_size**2 * 3 * config.width


@pytest.fixture
def toy_config(monkeypatch):
  monkeypatch.setitem(encoders.VIDEO, 'toy', toy)
  video = {'encoder': 'toy', 'image_size': 24, 'patch_size': 12, 'frames': T, 'width': 16}
  return make_config(video=video)


def test_another_video_encoder_is_a_line_of_the_table(toy_config):
  config, params = toy_config, make_params(toy_config)
  assert AlproConfig.from_dict(config.to_dict()) == config
  assert set(params['video_encoder']) == {'patches'}
  video, ids, mask = make_batch(config)
  _, (_, encoding, _, fused) = jax.jit(lambda p: full(config, p, (video, ids, mask)))(params)
  assert encoding.tokens.shape == (B, 5, 16) and fused.shape == (B, L + 5, 16)
  grads = jax.jit(jax.grad(lambda p: full(config, p, (video, ids, mask))[0]))(params)
  assert np.abs(grads['video_encoder']['patches']['kernel']).max() > 0
  assert flops.video_forward(config, T, 24) == 2 * 24 * 24 * 3 * 16 + 2 * 16 * 8
  with pytest.raises(ValueError, match=r"missing=\['width'\] keys; expected exactly"):
    values = config.to_dict()
    del values['video']['width']
    AlproConfig.from_dict(values)


@pytest.mark.slow
def test_another_video_encoder_is_trained_by_every_loss(toy_config, tmp_path):
  config = small_task.small_config(tmp_path)
  config.model.video = dataclasses.asdict(toy_config.video) | {'width': 32, 'frames': 2}
  metrics, grads = small_task.gradients_on(config, sharding.make_mesh())
  assert {'loss/vtc', 'loss/vtm', 'loss/mlm', 'loss/pem'} <= set(metrics)
  assert np.abs(grads['video_encoder']['patches']['kernel']).max() > 0
