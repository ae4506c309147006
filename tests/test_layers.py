"""Fused layers against plain ones: values, gradients, padding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from alpro_jax.models import attention, dropout, dropout_attention, fused, layers, timesformer
from alpro_jax.models.alpro import AlproConfig
from configs import models


def close(found, wanted, tolerance):
  """Compares trees of arrays, by the largest entry of each wanted array.

  But for the gradient of a key's bias, which is 0: softmax takes no notice of
  what all scores of a row have in common, so that rounding alone is left.
  """
  found, wanted = (jax.tree_util.tree_leaves_with_path(tree) for tree in (found, wanted))
  for (path, ours), (_, want) in zip(found, wanted, strict=True):
    if "['key']['bias']" in jax.tree_util.keystr(path):
      continue
    ours, want = np.float32(ours), np.float32(want)
    scale = np.abs(want).max()
    np.testing.assert_allclose(ours / scale, want / scale, atol=tolerance)


def with_gradients(function):
  """Its value, and the gradients of a sum that weighs all entries."""

  def run(*args):
    out, pull = jax.vjp(function, *args)
    weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32))
    return out, pull(weights.reshape(out.shape).astype(out.dtype))

  return jax.jit(run)


@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 2e-6), ('bfloat16', 1e-2)])
def test_gelu(dtype, tolerance):
  x = jnp.linspace(-6, 6, 1001, dtype=dtype)
  exact = functools.partial(jax.nn.gelu, approximate=False)
  close(with_gradients(fused.gelu)(x), with_gradients(exact)(x.astype(jnp.float32)), tolerance)


def test_gelu_keeps_its_input_alone():
  _, pull = jax.vjp(fused.gelu, jnp.ones((4, 5)))
  assert [x.shape for x in jax.tree.leaves(pull)] == [(4, 5)]


@pytest.mark.parametrize('shape', [(7, 24), (2, 3, 5, 24)])
@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 5e-6), ('bfloat16', 1e-2)])
def test_layer_norm_is_that_of_flax(shape, dtype, tolerance):
  # Far from mean 0, where a variance of squares would lose its digits.
  x = (30 + jax.random.normal(jax.random.key(0), shape)).astype(dtype)
  params = {
    'scale': 1 + 0.3 * jax.random.normal(jax.random.key(1), shape[-1:]),
    'bias': jax.random.normal(jax.random.key(2), shape[-1:]),
  }

  def run(module):
    return with_gradients(lambda params, x: module.apply({'params': params}, x))(params, x)

  ours = fused.LayerNorm(epsilon=1e-6, dtype=jnp.dtype(dtype))
  theirs = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=dtype)
  close(run(ours), run(theirs), tolerance)
  names = jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x))
  assert names == jax.tree.map(jnp.shape, theirs.init(jax.random.key(0), x))


def qkv(*shape, dtype='float32'):
  return [jax.random.normal(jax.random.key(i), shape).astype(dtype) for i in range(3)]


def plain_attention(query, key, value, mask, kept, share):
  """Softmax, then dropout; every step left to JAX."""
  scores = jnp.einsum('...qak,...lak->...aql', query, key)
  scores = scores.astype(jnp.float32) * query.shape[-1] ** -0.5
  if mask is not None:
    scores = jnp.where(mask[..., None, None, :], scores, -1e9)
  weights = jax.nn.softmax(scores) * kept / share
  return jnp.einsum('...aql,...lak->...qak', weights, value).astype(value.dtype)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 5e-6), ('bfloat16', 2e-2)])
def test_attention_with_dropout(masked, dtype, tolerance):
  arrays = qkv(3, 9, 2, 8, dtype=dtype)
  mask = jnp.arange(9) < jnp.array([[9], [4], [1]]) if masked else None
  options = {'kernel': 'xla', 'rate': 0.25, 'rng': jax.random.key(5)}
  # Of every weight for itself.
  kept, share = dropout.draw_kept(options['rng'], 0.25, (3, 2, 9, 9))

  wide = [x.astype(jnp.float32) for x in arrays]
  wanted = with_gradients(lambda *x: plain_attention(*x, mask, kept, share))(*wide)
  layer = fused.Attention(2, layers.ComputeOptions(jnp.dtype(dtype)), nn.initializers.normal())
  for attend in (attention.attend, layer.attend):
    ours = with_gradients(lambda *x: attend(*x, mask, **options))  # noqa: B023
    close(ours(*arrays), wanted, tolerance)


@pytest.fixture
def no_cudnn(monkeypatch):
  """Lets the path of cuDNN run here: the same call of another kernel."""
  monkeypatch.setattr(
    attention, 'attend_cudnn', functools.partial(attention.attend_cudnn, implementation='xla')
  )


def test_padded_lengths():
  padded = fused.padded_length
  assert padded(197, 'xla', dropout=True) == 197
  assert padded(4, 'cudnn', dropout=False) == 4
  assert padded(197, 'cudnn', dropout=False) == 198
  assert padded(198, 'cudnn', dropout=False) == 198
  assert padded(227, 'cudnn', dropout=True) == 232


def layer(kernel, *, dtype='float32', dropout=0.0, form='fused'):
  replaced = fused.LAYERS if form == 'fused' else ()
  options = layers.ComputeOptions(jnp.dtype(dtype), kernel, replaced=replaced)
  return options.choose(layers.Attention)(2, options, nn.initializers.normal(0.3), dropout)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('query_tokens', [(), (3, 19, 1)])
@pytest.mark.parametrize('form', ['plain', 'fused'])
@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 5e-6), ('bfloat16', 2e-2)])
def test_a_token_that_makes_a_length_even_is_not_seen(
  no_cudnn, masked, query_tokens, form, dtype, tolerance
):
  """bfloat16 takes the kernel of cuDNN; float32 scores with a mask."""
  length, width = 19, 16
  x = jax.random.normal(jax.random.key(0), (2, 3, length, width), dtype)
  full = jnp.full((2, 3, 1), length)
  mask = jnp.arange(length) < (jnp.array([[[length], [7], [9]]] * 2) if masked else full)
  mask = mask if masked or query_tokens else None
  params = nn.unbox(layer('xla').init(jax.random.key(1), x))

  def run(kernel, form):
    def apply(params, x):
      out = layer(kernel, dtype=dtype, form=form).apply(params, x, mask, query_tokens=query_tokens)
      assert out.shape == ((2, sum(query_tokens), width) if query_tokens else x.shape)
      return out

    return with_gradients(apply)(params, x)

  close(run('cudnn', form), run('xla', 'plain'), tolerance)


def test_a_layer_whose_kernel_drops_weights(no_cudnn, monkeypatch):
  """It pads nothing, and so draws as plain layers do."""
  by_kernel, real = [], dropout_attention.attend

  def attend(*arguments, mesh):
    by_kernel.append(arguments[0].shape)
    return real(*arguments, mesh=mesh, interpret=True)

  monkeypatch.setattr(dropout_attention, 'attend', attend)
  x = jax.random.normal(jax.random.key(0), (3, 19, 32), 'bfloat16')
  mask = jnp.arange(19) < jnp.array([[19], [7], [9]])
  params = nn.unbox(layer('xla').init(jax.random.key(1), x))

  def run(kernel, form, dropout=0.25):
    module = layer(kernel, dtype='bfloat16', dropout=dropout, form=form)
    return with_gradients(lambda params, x: module.apply(params, x, mask, rng=jax.random.key(2)))(
      params, x
    )

  plain = run('xla', 'plain')
  close(run('pallas', 'fused'), plain, 2e-2)
  assert by_kernel == [(3, 19, 2, 16)]
  with pytest.raises(AssertionError):
    close(run('xla', 'plain', dropout=0.0), plain, 2e-2)


@pytest.mark.parametrize('kernel', ['cudnn', 'xla'])
def test_a_block_pads_its_frames_unseen(no_cudnn, kernel):
  """24 tokens of a frame and a class token: cuDNN wants 26."""
  config = AlproConfig.from_dict(models.tiny().to_dict()).video
  config = dataclasses.replace(config, matrix_std=0.2, temporal_fc_std=0.1)
  x = jax.random.normal(jax.random.key(0), (2, 1 + 3 * 24, config.width))

  def run(kernel, replaced):
    options = layers.ComputeOptions(jnp.dtype('float32'), kernel, replaced=replaced)
    block = options.choose(timesformer.DividedBlock)(config, options, frames=3)
    params = nn.unbox(block.init(jax.random.key(1), x, key=None, drop_path=0.0))
    return with_gradients(lambda p, x: block.apply(p, x, key=None, drop_path=0.0))(params, x)

  close(run(kernel, fused.LAYERS), run('xla', ()), 5e-6)


def test_padding_for_dropout_is_not_seen(monkeypatch):
  """Nothing dropped: tokens that were padded must not take part."""

  def draw(key, rate, shape):
    return jnp.ones(shape, bool), jnp.float32(1)

  monkeypatch.setattr(fused, 'draw_kept', draw)
  x = jax.random.normal(jax.random.key(0), (2, 19, 16))
  mask = jnp.arange(19) < jnp.array([[19], [7]])
  params = nn.unbox(layer('xla').init(jax.random.key(1), x))

  def run(kernel, dropout):
    return with_gradients(
      lambda params, x: layer(kernel, dropout=dropout).apply(params, x, mask, rng=jax.random.key(2))
    )(params, x)

  close(run('cudnn', 0.1), run('xla', 0.0), 5e-6)
