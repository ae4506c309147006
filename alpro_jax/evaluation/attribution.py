"""Which places an answer rests on, and where a model looks.

  evidence        integrated gradients of the target by the pixels: how much
                  each place of each frame adds to it, beside a clip of one
                  colour. What all places add is the target less that of the
                  plain clip.
  attention_maps  attention of all fusion layers and of the last video block.
  video_attention  the latter alone.
                  Grad-CAM is attention from a word to the patches, times the
                  positive part of the target's gradient by it, mean over heads,
                  as in ALBEF's figures, which take the third of six layers.

Nothing in models/ knows of this: while a model runs, calls of its attention
are intercepted (flax.linen.intercept_methods), the weights are computed again
from the same inputs and parameters, and a shift of zeros is added to them,
whose gradient is that of the target by the weights. The model's own numbers
stay as they are.
"""

import functools
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from alpro_jax.models import attention, layers, timesformer, vit
from alpro_jax.models.alpro import Alpro

# What is explained: the margin of a match, the log probability of words that
# are masked, the log probability of the most probable answer, or, without a
# fusion encoder, the similarity.
TARGETS = ('match', 'word', 'answer', 'similarity')


class Texts(NamedTuple):
  """R texts beside one video.

  Attributes:
    ids: int32[R, L].
    mask: bool[R, L].
    wanted: bool[R, L], tokens whose words are the target of 'word'.
    labels: int32[R, L], what stood there before it was masked.
  """

  ids: np.ndarray
  mask: np.ndarray
  wanted: np.ndarray
  labels: np.ndarray


class AttentionMaps(NamedTuple):
  """Where one pass of the model looked.

  Attributes:
    target: float32[R].
    weights: {layer: float32[R, L, N]}, mean over heads, from every text token
      to every patch, of each fusion layer.
    gradcam: {layer: float32[R, L, N]}.
    space, time: see `video_attention`.
  """

  target: jax.Array
  weights: dict[int, jax.Array]
  gradcam: dict[int, jax.Array]
  space: jax.Array
  time: jax.Array | None


@functools.partial(jax.jit, static_argnames=('model', 'target'))
def score(model: Alpro, params: Any, video: jax.Array, texts: Texts, target: str) -> jax.Array:
  """float32[R]: one of TARGETS, of a video uint8[T, H, W, 3] with R texts."""
  bound = model.bind({'params': params})
  tokens = bound.encode_video(video[None], train=False).tokens
  return _score(bound, tokens, texts, target)


def _score(bound, video_tokens, texts, target):
  text_tokens = bound.text_tokens(texts.ids, texts.mask, train=False)
  video_tokens = jnp.repeat(video_tokens, len(texts.ids), axis=0)
  fused = bound.fuse(text_tokens, texts.mask, video_tokens, train=False)
  if target == 'match':
    logits = bound.match_logits(fused[:, 0])
    return logits[:, 1] - logits[:, 0]
  if target == 'answer':
    return jnp.max(jax.nn.log_softmax(bound.answer_logits(fused[:, 0])), 1)
  logits = jax.nn.log_softmax(bound.mlm_logits(fused[:, : texts.ids.shape[1]]))
  known = jnp.take_along_axis(logits, texts.labels[..., None], -1)[..., 0]
  return jnp.sum(known * texts.wanted, axis=1)


@functools.partial(jax.jit, static_argnames=('model', 'target', 'cell', 'steps'))
def evidence(
  model: Alpro,
  params: Any,
  video: jax.Array,
  texts: Texts | jax.Array,
  target: str,
  *,
  cell: int,
  steps: int = 16,
) -> jax.Array:
  """Integrates gradients from a plain clip of the median colour.

  Args:
    model: the model.
    params: its parameters.
    video: uint8[T, H, W, 3].
    texts: rows, each a map of its own; of 'match', what the masked words (if
      `wanted` marks any) add: the margin with `labels` less that with `ids`. Of 'similarity'
      float32[R, E], what is multiplied with the feature of the clip: features of texts, or
      what one has before another.
    target: one of TARGETS.
    cell: pixels of a side that are added up.
    steps: on the way; each is a pass forward and back for every row.
  Returns:
    float32[R, T, H / cell, W / cell].
  """
  bound = Alpro(model.config.plain()).bind({'params': params})
  statistics = model.config.video.pixel_mean, model.config.video.pixel_std
  pixels = timesformer.normalize_pixels(video, *statistics)
  base = jnp.broadcast_to(jnp.median(pixels, axis=(0, 1, 2)), pixels.shape)

  def integrate(row):
    row = jax.tree.map(lambda x: x[None], row)

    def of_pixels(pixels):
      video = bound.encode_video(pixels[None], train=False)
      if target == 'similarity':
        return jnp.sum(video.feature * row)
      tokens = video.tokens
      value = _score(bound, tokens, row, target)[0]
      if target != 'match':
        return value
      masked = jnp.where(jnp.any(row.wanted), value, 0.0)
      return _score(bound, tokens, row._replace(ids=row.labels), target)[0] - masked

    def step(total, share):
      return total + jax.grad(of_pixels)(base + share * (pixels - base)) / steps, None

    shares = (jnp.arange(steps) + 0.5) / steps
    total, _ = jax.lax.scan(step, jnp.zeros_like(pixels), shares)
    change = total * (pixels - base)
    return einops.reduce(change, 't (h p) (w q) c -> t h w', 'sum', p=cell, q=cell)

  return jax.lax.map(integrate, texts)


@functools.partial(jax.jit, static_argnames=('model',))
def video_attention(
  model: Alpro, params: Any, video: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
  """Runs a video encoder on uint8[T, H, W, 3], and watches its last block.

  Returns:
    float32[T, N], from the token that stands for the clip, or for each frame, to the patches
    of each frame, mean over heads; and float32[T, T], from frame to frame, mean over heads
    and places, or None without attention over time.
  """
  return _watch_video(Alpro(model.config.plain()).bind({'params': params}), video)[1]


def _watch_video(bound, video):
  """Tokens f[1, S, D] of a video, and what `video_attention` returns."""
  weights, config = {}, bound.config.video
  with nn.intercept_methods(_recorder(weights)):
    tokens = bound.encode_video(video[None], train=False).tokens
  return tokens, _last_block(weights, config, len(video))


@functools.partial(jax.jit, static_argnames=('model', 'target'))
def attention_maps(
  model: Alpro, params: Any, video: jax.Array, texts: Texts, target: str
) -> AttentionMaps:
  """Runs a model on one video uint8[T, H, W, 3] with R texts, and watches."""
  # Nothing could leave a rematerialised or a scanned block.
  model = Alpro(model.config.plain())
  config, bound = model.config, model.bind({'params': params})
  tokens, of_video = _watch_video(bound, video)

  def of_shifts(shifts):
    weights = {}
    with nn.intercept_methods(_recorder(weights, shifts)):
      values = _score(bound, tokens, texts, target)
    return jnp.sum(values), (values, {name: weights[name] for name in shifts})

  (rows, length), heads = texts.ids.shape, config.text.heads
  size = length + tokens.shape[1]
  fusion = range(config.text.fusion_layer, config.text.depth)
  layer_of = {f'fusion_encoder/layer{i}/attention': i for i in fusion}
  shifts = {name: jnp.zeros((rows, heads, size, size)) for name in layer_of}
  slopes, (values, weights) = jax.grad(of_shifts, has_aux=True)(shifts)

  def to_patches(weights):
    # [R, A, L + S, L + S]; the video's class token is no patch.
    return jnp.mean(weights[:, :, :length, length + 1 :], axis=1)

  return AttentionMaps(
    values,
    {i: to_patches(weights[name]) for name, i in layer_of.items()},
    {i: to_patches(weights[name] * jnp.maximum(slopes[name], 0)) for name, i in layer_of.items()},
    *of_video,
  )


def _last_block(weights, config, frames):
  """Attention of the last video block: float32[T, N] and [T, T] or None."""
  block, of_frames = f'video_encoder/block{config.depth - 1}', config.encoder == 'vit'
  mean = jnp.mean(weights[f'{block}/attention'], axis=-3)[0]
  first = config.prefix if of_frames else 1  # Patch of a frame, or of the clip.
  if config.attention == 'joint' and of_frames:
    # [1, T L, T L], the tokens of a frame side by side.
    mean = einops.rearrange(mean[0], '(t n) (s m) -> t n s m', t=frames, s=frames)
    space, time = jnp.mean(mean[:, 0, :, first:], axis=0), mean[:, first:]
    time = jnp.mean(jnp.sum(time, axis=3), axis=1)
  elif config.attention == 'joint':
    # [1 + T N, 1 + T N]
    space = einops.rearrange(mean[0, 1:], '(t n) -> t n', t=frames)
    time = einops.rearrange(mean[1:, 1:], '(t n) (s m) -> t n s m', t=frames, s=frames)
    time = jnp.mean(jnp.sum(time, axis=3), axis=1)
  else:
    # [T, 1 + N, 1 + N]: each frame for itself.
    space, time = mean[:, 0, first:], weights.get(f'{block}/temporal_attention')
    time = None if time is None else jnp.mean(time, axis=(0, 1, 2))  # [1, N, A, T, T].
  if (pool := weights.get('video_encoder/pool')) is not None:  # [1, T, A, 1, L].
    space = jnp.mean(pool[0, :, :, 0, first:], axis=1)
  return space, time


def _recorder(weights, shifts=None):
  """An interceptor that keeps the weights of every attention, and may shift them.

  Args:
    weights: {path: float32[..., A, Q, L]}, filled while the model runs.
    shifts: by path, added to the weights.
  """
  shifts = shifts or {}

  def intercept(call, args, kwargs, context):
    result, module = call(*args, **kwargs), context.module
    pools = isinstance(module, vit.AttentionPool)
    if context.method_name != '__call__' or not (pools or isinstance(module, layers.Attention)):
      return result
    path = '/'.join(module.path)
    x, mask = (*args, None)[:2]
    params, rotary = module.variables['params'], kwargs.get('rotary')
    heads = module.config.pool_heads if pools else module.heads

    def project(name, x=x):
      y = x.astype(jnp.float32) @ params[name]['kernel'] + params[name]['bias']
      y = einops.rearrange(y, '... l (a k) -> ... l a k', a=heads)
      return y if rotary is None or name == 'value' else rotary.turn(y)

    query = project('query', params['latent']) if pools else project('query')
    weights[path] = jax.nn.softmax(attention.scores(query, project('key'), mask))
    if path not in shifts:
      return result
    # The output is linear in the weights, so a shift adds its own part.
    more = jnp.einsum('...aql,...lak->...qak', shifts[path], project('value'))
    more = einops.rearrange(more, '... l a k -> ... l (a k)')
    return result + (more @ params['out']['kernel']).astype(result.dtype)

  return intercept
