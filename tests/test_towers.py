"""Towers of image-text models: what they compute, and how they stand in a model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from alpro_jax import flops
from alpro_jax.evaluation import attribution
from alpro_jax.models import layers, vit
from alpro_jax.models.alpro import Alpro, AlproConfig
from alpro_jax.models.layers import ComputeOptions
from configs import models
from tests.small_task import fresh_params

FAMILIES = tuple(models.TINY_IMAGE_TEXT)
TOLERANCE = 1e-5


@functools.cache
def built(family, fused=True):
  """A model of random weights, those that start at 0 or 1 too, but for time, which is 0."""
  values = models.PRESETS[family]().to_dict()
  values['video'] |= {'depth': 2, 'registers': 1, 'layer_scale': 0.5, 'width': 64}
  values['text'] = values['text'] | {'depth': 2, 'fusion_layer': 1} if fused else None
  model = Alpro(AlproConfig.from_dict(values))
  leaves, tree = jax.tree.flatten_with_path(fresh_params(model))
  keys = jax.random.split(jax.random.key(1), len(leaves))

  def redraw(path, leaf, key):
    name = jax.tree_util.keystr(path)
    still = "'temporal_fc'" in name or "'times'" in name or "'temperature'" in name
    return leaf if still else leaf + 0.1 * jax.random.normal(key, leaf.shape)

  return model, tree.unflatten([redraw(*x, key) for x, key in zip(leaves, keys, strict=True)])


def video(frames=3, side=48, rows=2):
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.integers(0, 256, (rows, frames, side, side, 3)), jnp.uint8)


def near(ours, theirs, tolerance=TOLERANCE):
  return np.abs(np.asarray(ours) - theirs).max() <= tolerance * np.abs(theirs).max()


def run(model, params, *args, method):
  """A method of a model in evaluation, compiled at once and not operation by operation."""
  return jax.jit(functools.partial(model.apply, train=False, method=method))(
    {'params': params}, *args
  )


@pytest.mark.parametrize('attention', ['divided', 'space_only'])
@pytest.mark.parametrize('family', FAMILIES)
def test_a_clip_starts_out_as_its_frames(family, attention):
  """A clip of frames that differ says the mean of what its frames say one by one."""
  model, params = built(family)
  values = model.config.to_dict()
  values['video'] |= {'attention': attention}
  model = Alpro(AlproConfig.from_dict(values))

  def encode(x):
    return run(model, params, x, method='encode_video')

  clips = video()
  whole, frames = encode(clips), encode(clips.reshape(-1, 1, *clips.shape[2:]))
  of_frames = np.asarray(frames.feature).reshape(2, 3, -1)
  assert np.abs(of_frames[:, 0] - of_frames[:, 1]).max() > 1e-2  # Frames do differ.
  mean = of_frames.mean(axis=1)
  assert near(whole.feature, mean / np.linalg.norm(mean, axis=1, keepdims=True))
  tokens = np.asarray(frames.tokens)
  assert near(whole.tokens, tokens.reshape(2, 3, *tokens.shape[1:]).mean(axis=1))


def test_attention_over_time_sees_the_order_of_frames_once_it_has_weights():
  model, params = built('tiny_clip')
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: x + 0.1 if 'times' in jax.tree_util.keystr(path) else x, params
  )
  block = dict(params['video_encoder']['block0'])
  block['temporal_fc'] = {'kernel': 0.3 * jnp.eye(64), 'bias': jnp.zeros(64)}
  times = jax.random.normal(jax.random.key(2), params['video_encoder']['times'].shape)
  encoder = params['video_encoder'] | {'block0': block, 'times': times}
  encode = functools.partial(run, model, params | {'video_encoder': encoder}, method='encode_video')
  forward, backward = (encode(x).feature for x in (video(), video()[:, ::-1]))
  assert np.abs(forward - backward).max() > 1e-3


def test_joint_attention_reads_all_frames_at_once():
  model, params = built('tiny_pe_core')
  values = model.config.to_dict()
  values['video'] |= {'attention': 'joint'}
  joint = Alpro(AlproConfig.from_dict(values))
  clips = video()
  other = clips.at[:, 2].set(0)
  encode = functools.partial(run, joint, params, method='encode_video')
  assert not near(encode(clips).tokens, np.asarray(encode(other).tokens), 1e-3)
  # Of one frame it is what attention within frames is.
  single = run(model, params, clips[:, :1], method='encode_video')
  assert near(encode(clips[:, :1]).tokens, np.asarray(single.tokens))


def test_rotary_positions_count_columns_first_and_from_one():
  turns = vit.rotary((2, 3), 2, 1, 8)
  assert turns.cos.shape == (1 + 6, 8)
  np.testing.assert_array_equal(turns.sin[0], np.zeros(8))
  # Place (row 1, column 2) of 2 x 3 on a grid of 2 x 2: column (2 + 1) / 3 * 2, row 2 / 2 * 2.
  np.testing.assert_allclose(
    turns.sin[-1, [0, 2, 4, 6]], np.sin([2, 2 / 100, 2, 2 / 100]), rtol=1e-6
  )
  np.testing.assert_allclose(turns.cos[2, [0, 4]], np.cos([2 / 3 * 2, 1]), rtol=1e-6)


def test_turning_is_a_rotation_of_pairs():
  turns = vit.rotary((2, 2), 2, 0, 8)
  x = jax.random.normal(jax.random.key(0), (4, 1, 8))
  turned = np.asarray(turns.turn(x))
  theirs = np.asarray(x).view(np.float32).reshape(4, 1, 4, 2)
  angle = np.arctan2(turns.sin, turns.cos)[:, None, ::2]
  factor = np.exp(1j * angle)
  expected = (theirs[..., 0] + 1j * theirs[..., 1]) * factor
  np.testing.assert_allclose(turned[..., ::2], expected.real, atol=1e-6)
  np.testing.assert_allclose(turned[..., 1::2], expected.imag, atol=1e-6)


def test_causal_text_is_not_changed_by_what_follows_its_end():
  model, params = built('tiny_clip')
  end = model.config.text_tower.end_id
  ids = np.full((2, 32), end, np.int32)
  ids[:, :4] = [[1, 5, 6, 7], [1, 5, 6, 7]]
  ids[1, 6:] = 9  # After the end.
  feature = run(model, params, None, ids, ids, method='text_feature')
  np.testing.assert_allclose(feature[0], feature[1], atol=1e-6)
  ids[1, 3] = 8
  other = run(model, params, None, ids, ids, method='text_feature')
  assert np.abs(other[1] - feature[1]).max() > 1e-3


def test_a_tower_that_reads_its_last_token_wants_whole_rows():
  model, params = built('tiny_siglip2')
  ids = jnp.ones((1, 8), jnp.int32)
  with pytest.raises(ValueError, match='padded to .*32.*max_tower_tokens'):
    model.apply({'params': params}, None, ids, ids, train=False, method='text_feature')


def test_a_model_of_both_needs_ids_of_both():
  model, params = built('tiny_clip')
  ids = jnp.ones((1, 8), jnp.int32)
  with pytest.raises(ValueError, match='needs tower_ids'):
    model.apply({'params': params}, ids, ids > 0, train=False, method='encode_text')


@pytest.mark.parametrize('family', FAMILIES)
def test_a_model_without_a_bert_contrasts_alone(family):
  model, params = built(family, fused=False)
  assert not {'text_embedding', 'fusion_encoder', 'match_head', 'mlm_head'} & set(params)
  clip = run(model, params, video(), method='encode_video')
  assert clip.tokens.shape[-1] == 0 and clip.feature.shape == (2, 64)
  ids = jnp.full((2, 32), model.config.text_tower.end_id, jnp.int32)
  text = run(model, params, ids, ids > 0, method='encode_text')
  assert text.feature.shape == (2, 64)
  again = AlproConfig.from_dict(model.config.to_dict())
  assert again == model.config and not again.match and not again.mlm
  assert flops.fusion_forward(again, 8, 48) == 0 < flops.text_forward(again, 32)


def test_what_needs_a_fusion_encoder_is_refused_without_one():
  values = models.PRESETS['tiny_clip']().to_dict() | {'text': None}
  with pytest.raises(ValueError, match='need a fusion encoder'):
    AlproConfig.from_dict(values | {'answers': 3})
  with pytest.raises(ValueError, match='needs `text`, `text_tower`'):
    AlproConfig.from_dict(values | {'text_tower': None})


@pytest.mark.parametrize(
  'part, changes, message',
  [
    ('video', {'activation': 'relu'}, "video.activation='relu'.*quick_gelu"),
    ('video', {'pooling': 'mean'}, "video.pooling='mean'"),
    ('video', {'class_token': False}, 'needs class_token=True'),
    ('video', {'positions': 'rotary', 'heads': 32}, 'multiple of 4 for rotary'),
    ('text_tower', {'pooling': 'first'}, "text_tower.pooling='first'"),
  ],
)
def test_wrong_options_are_refused(part, changes, message):
  values = models.PRESETS['tiny_clip']().to_dict()
  values[part] |= changes
  with pytest.raises(ValueError, match=message):
    AlproConfig.from_dict(values)


def test_models_of_before_are_stored_as_before():
  """So that their digests stay."""
  stored = AlproConfig.from_dict(models.tiny().to_dict()).to_dict()
  assert not {'text_tower', 'video_projection', 'text_projection'} & set(stored)


@pytest.mark.parametrize('family', FAMILIES)
def test_every_form_computes_the_same(family):
  model, params = built(family)
  ids = jnp.full((2, 32), model.config.text_tower.end_id, jnp.int32)

  def loss(params, form):
    bound = Alpro(AlproConfig.from_dict(model.config.to_dict() | form)).bind({'params': params})
    clip, text = (
      bound.encode_video(video(), train=False),
      bound.text_feature(None, ids, ids, train=False),
    )
    return jnp.sum(clip.feature * text) + jnp.sum(clip.tokens**2) / clip.tokens.size

  plain, *others = (
    jax.jit(jax.value_and_grad(functools.partial(loss, form=form)))(params)
    for form in ({}, {'implementation': 'fused', 'scan_layers': True, 'remat': 'dots'})
  )
  for other in others:
    assert near(other[0], np.asarray(plain[0]))
    for path, leaf in jax.tree.leaves_with_path(plain[1]):
      found = functools.reduce(lambda tree, key: tree[key.key], path, other[1])
      assert np.abs(found - leaf).max() <= 1e-5 * max(1, np.abs(leaf).max()), path


def test_operations_are_those_of_the_compiled_encoder():
  model, params = built('tiny_siglip2')
  config = model.config.video
  encoder = vit.Encoder(config, ComputeOptions(jnp.float32))
  run = jax.jit(lambda p, x: encoder.apply({'params': p}, x, train=False))
  cost = run.lower(params['video_encoder'], video(rows=1)).compile().cost_analysis()
  formula = vit.forward_flops(config, 3, 48)
  assert 0.9 * cost['flops'] <= formula <= cost['flops']


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('attention', ['divided', 'joint'])
def test_where_an_encoder_of_frames_looks(family, attention):
  """From what stands for a frame to its patches; what pools by attention looks with that."""
  model, params = built(family, fused=False)
  values = model.config.to_dict()
  values['video'] |= {'attention': attention}
  model = Alpro(AlproConfig.from_dict(values))
  space, time = attribution.video_attention(model, params, video()[0])
  assert space.shape == (3, 16) and time.shape == (3, 3) and (np.asarray(space) > 0).all()
  # The rest goes to the class token and to registers; over time all goes to frames.
  of_class = attention == 'joint' and model.config.video.pooling == 'class'
  shares = np.asarray(space).sum() if of_class else np.asarray(space).sum(axis=1)
  assert (shares < 1).all() and (shares > 0.5).all()
  if attention == 'divided':
    np.testing.assert_allclose(np.asarray(time).sum(1), 1, rtol=1e-5)


def test_weights_that_are_watched_are_those_that_turn():
  """By hand: with them, and the values, the layer's output comes out again."""
  layer = layers.Attention(2, ComputeOptions(jnp.float32), nn.initializers.normal(0.3))
  turns, x = vit.rotary((2, 2), 2, 1, 8), jax.random.normal(jax.random.key(0), (1, 5, 16))
  params, weights = nn.unbox(layer.init(jax.random.key(1), x)), {}
  with nn.intercept_methods(attribution._recorder(weights)):
    out = layer.apply(params, x, rotary=turns)
  dense = params['params']
  value = (x @ dense['value']['kernel'] + dense['value']['bias']).reshape(1, 5, 2, 8)
  mixed = jnp.einsum('baql,blak->bqak', weights[''], value).reshape(1, 5, 16)
  assert near(out, np.asarray(mixed @ dense['out']['kernel'] + dense['out']['bias']))
