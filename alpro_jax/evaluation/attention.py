"""Where a model looks, and which places its answer rests on.

Nothing in models/ knows of this: while a model runs, calls of its attention
are intercepted (flax.linen.intercept_methods), the weights are computed again
from the same inputs and parameters, and a shift of zeros is added to them,
whose gradient is that of the target by the weights. The model's own numbers
stay as they are.

  look      attention of all fusion layers and of the last video block. Maps
            are attention from a word to the patches, times the positive part
            of the target's gradient by it, mean over heads: Grad-CAM as in
            ALBEF's figures, which take the third of six fusion layers.
  evidence  integrated gradients of the target by the pixels: how much each
            place of each frame adds to it, beside a clip of one colour. What
            all places add is the target less that of the plain clip.

Fusion reads patches averaged over time that have attended to each other: its
maps say where fusion looks, not what is there. On the demo's test clips, with a
masked word as the target, the size of the evidence correlates by 0.57 to 0.63
with the object's boxes (60 clips, whole patches), attention and Grad-CAM of the
fusion layers by -0.26 to 0.39 (120 clips).
"""

import functools
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from alpro_jax.models import layers, timesformer
from alpro_jax.models.alpro import Alpro
from alpro_jax.models.attention import MASKED

# What is explained: the margin of a match, the log probability of words that
# are masked, the log probability of the most probable answer.
TARGETS = ('match', 'word', 'answer')


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


class Looked(NamedTuple):
  """What was seen in one pass.

  Attributes:
    target: float32[R].
    weights: {layer: float32[R, L, N]}, mean over heads, from every text token
      to every patch, of each fusion layer.
    gradcam: {layer: float32[R, L, N]}.
    space: float32[T, N], from the class token to the patches of each frame in
      the last video block, mean over heads.
    time: float32[T, T], from frame to frame in the last video block, mean over
      heads and places; None without attention over time.
  """

  target: np.ndarray
  weights: dict[int, np.ndarray]
  gradcam: dict[int, np.ndarray]
  space: np.ndarray
  time: np.ndarray | None


def look(model: Alpro, params: Any, video: np.ndarray, texts: Texts, target: str) -> Looked:
  """Runs a model on one video uint8[T, H, W, 3] with R texts, and watches."""
  found = _looker(model, target)(params, video, texts)
  return Looked(*jax.tree.map(np.asarray, found))


def score(model: Alpro, params: Any, video: np.ndarray, texts: Texts, target: str) -> np.ndarray:
  """float32[R]: the target alone."""
  return np.asarray(_scorer(model, target)(params, video, texts))


def evidence(
  model: Alpro,
  params: Any,
  video: np.ndarray,
  texts: Texts,
  target: str,
  *,
  cell: int,
  steps: int = 16,
) -> np.ndarray:
  """Integrates gradients from a plain clip of the median colour.

  Args:
    model: the model.
    params: its parameters.
    video: uint8[T, H, W, 3].
    texts: rows, each a map of its own; of 'match', what the masked words (if
      `wanted` marks any) add: the margin with `labels` less that with `ids`.
    target: one of TARGETS.
    cell: pixels of a side that are added up.
    steps: on the way; each is a pass forward and back for every row.
  Returns:
    float32[R, T, H / cell, W / cell].
  """
  return np.asarray(_gatherer(model, target, cell, steps)(params, video, texts))


def _score(bound, target, video_tokens, text_tokens, texts):
  """float32[R]: the target of pairs."""
  fused = bound.fuse(text_tokens, texts.mask, video_tokens, train=False)
  if target == 'match':
    logits = bound.match_logits(fused[:, 0])
    return logits[:, 1] - logits[:, 0]
  if target == 'answer':
    return jnp.max(jax.nn.log_softmax(bound.answer_logits(fused[:, 0])), 1)
  logits = jax.nn.log_softmax(bound.mlm_logits(fused[:, : texts.ids.shape[1]]))
  known = jnp.take_along_axis(logits, texts.labels[..., None], -1)[..., 0]
  return jnp.sum(known * texts.wanted, axis=1)


@functools.lru_cache(maxsize=8)
def _scorer(model, target):

  def run(params, video, texts):
    bound = model.bind({'params': params})
    tokens = bound.encode_video(video[None], train=False).tokens
    text = bound.encode_text(texts.ids, texts.mask, train=False).tokens
    tokens = jnp.repeat(tokens, len(texts.ids), axis=0)
    return _score(bound, target, tokens, text, texts)

  return jax.jit(run)


def _plain(model):
  # What is seen could not leave a rematerialised or a scanned block.
  return Alpro(model.config.plain())


@functools.lru_cache(maxsize=8)
def _gatherer(model, target, cell, steps):
  model = _plain(model)

  def run(params, video, texts):
    bound = model.bind({'params': params})
    pixels = timesformer.normalize_pixels(video)
    base = jnp.broadcast_to(jnp.median(pixels, axis=(0, 1, 2)), pixels.shape)

    def gather(row):
      row = jax.tree.map(lambda x: x[None], row)

      def score(pixels):
        tokens = bound.encode_video(pixels[None], train=False).tokens

        def of(ids):
          text = bound.encode_text(ids, row.mask, train=False).tokens
          return _score(bound, target, tokens, text, row)[0]

        if target != 'match':
          return of(row.ids)
        masked = jnp.where(jnp.any(row.wanted), of(row.ids), 0.0)
        return of(row.labels) - masked

      def step(total, share):
        gradient = jax.grad(score)(base + share * (pixels - base))
        return total + gradient / steps, None

      shares = (jnp.arange(steps) + 0.5) / steps
      total, _ = jax.lax.scan(step, jnp.zeros_like(pixels), shares)
      return einops.reduce(
        total * (pixels - base), 't (h p) (w q) c -> t h w', 'sum', p=cell, q=cell
      )

    return jax.lax.map(gather, texts)

  return jax.jit(run)


@functools.lru_cache(maxsize=8)
def _looker(model, target):
  model = _plain(model)
  config = model.config

  def run(params, video, texts):
    bound = model.bind({'params': params})
    rows, length = texts.ids.shape
    watch = _Watch()
    with nn.intercept_methods(watch):
      tokens = bound.encode_video(video[None], train=False).tokens
    of_video = _of_video(watch.weights, config.video, len(video))
    tokens = jnp.repeat(tokens, rows, axis=0)
    text = bound.encode_text(texts.ids, texts.mask, train=False).tokens

    def score(shifts):
      watch = _Watch(shifts)
      with nn.intercept_methods(watch):
        values = _score(bound, target, tokens, text, texts)
      return jnp.sum(values), (values, watch.weights)

    size = length + tokens.shape[1]
    shifts = {
      f'fusion_encoder/layer{i}/attention': jnp.zeros((rows, config.text.heads, size, size))
      for i in range(config.text.fusion_layer, config.text.depth)
    }
    gradient, (values, weights) = jax.grad(score, has_aux=True)(shifts)

    def to_patches(x):
      # [R, A, L + S, L + S]; the video's class token is no patch.
      return jnp.mean(x[:, :, :length, length + 1 :], axis=1)

    number = {name: int(name.split('/')[1][5:]) for name in shifts}
    seen = {number[name]: to_patches(x) for name, x in weights.items()}
    cam = {
      number[name]: to_patches(x * jnp.maximum(gradient[name], 0)) for name, x in weights.items()
    }
    return (values, seen, cam, *of_video)

  return jax.jit(run)


def _of_video(weights, config, frames):
  """Attention of the last video block: float32[T, N] and [T, T] or None."""
  block = f'video_encoder/block{config.depth - 1}'
  mean = jnp.mean(weights[f'{block}/attention'], axis=-3)[0]
  if config.attention == 'joint':
    # [1 + T N, 1 + T N]
    space = einops.rearrange(mean[0, 1:], '(t n) -> t n', t=frames)
    time = einops.rearrange(mean[1:, 1:], '(t n) (s m) -> t n s m', t=frames, s=frames)
    return space, jnp.mean(jnp.sum(time, axis=3), axis=1)
  # [T, 1 + N, 1 + N]: each frame for itself.
  time = weights.get(f'{block}/temporal_attention')
  if time is not None:
    time = jnp.mean(time, axis=(0, 1, 2))  # Of [1, N, A, T, T].
  return mean[:, 0, 1:], time


class _Watch:
  """An interceptor that keeps what attention does, and may shift it.

  Attributes:
    weights: {path: float32[..., A, Q, L]} of every attention.
  """

  def __init__(self, shifts=None):
    self._shifts = shifts or {}
    self.weights = {}

  def __call__(self, call, args, kwargs, context):
    result, module = call(*args, **kwargs), context.module
    if context.method_name != '__call__' or not isinstance(module, layers.Attention):
      return result
    path = '/'.join(module.path)
    x, mask = (*args, None)[:2]
    params = module.variables['params']

    def project(name):
      y = x.astype(jnp.float32) @ params[name]['kernel']
      return einops.rearrange(y + params[name]['bias'], '... l (a k) -> ... l a k', a=module.heads)

    query, key = project('query'), project('key')
    scores = jnp.einsum('...qak,...lak->...aql', query, key)
    scores *= query.shape[-1] ** -0.5
    if mask is not None:
      scores = jnp.where(mask[..., None, None, :], scores, MASKED)
    self.weights[path] = jax.nn.softmax(scores)
    if path not in self._shifts:
      return result
    # The output is linear in the weights, so a shift adds its own part.
    more = jnp.einsum('...aql,...lak->...qak', self._shifts[path], project('value'))
    more = einops.rearrange(more, '... l a k -> ... l (a k)')
    return result + (more @ params['out']['kernel']).astype(result.dtype)
