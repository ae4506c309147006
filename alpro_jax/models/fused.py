"""The same layers for GPUs: gradients by hand, tokens padded, barriers.

`config.model.implementation='fused'` puts them in place of what JAX makes by
itself. Parameters, names and results are those of the plain layers but for
rounding; what is saved is memory and its traffic, as XLA's GPU compiler plans
them (docs/performance.md).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from alpro_jax.models import attention, layers, timesformer
from alpro_jax.models.dropout import draw_kept, scale_kept


class LayerNorm(nn.LayerNorm):
  """nn.LayerNorm over the last axis, whose gradient stores no products."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """f[..., D] -> f[..., D]."""
    size = x.shape[-1:]
    scale = self.param('scale', self.scale_init, size)
    bias = self.param('bias', self.bias_init, size)
    return _normalize(self.epsilon, self.dtype, x, scale, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _normalize(epsilon, dtype, x, scale, bias):
  return _normalize_forward(epsilon, dtype, x, scale, bias)[0]


def _normalize_forward(epsilon, dtype, x, scale, bias):
  wide = x.astype(jnp.float32)
  mean = jnp.mean(wide, axis=-1, keepdims=True)
  centred = wide - mean
  variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
  inverse = jax.lax.rsqrt(variance + epsilon)
  out = centred * (inverse * scale) + bias
  return out.astype(dtype), (x, scale, mean, inverse)


def _normalize_backward(epsilon, dtype, residuals, cotangent):
  """Reads x and the cotangent twice, once along rows and once down columns.

  Left to itself XLA's GPU compiler makes the products once, in float32, and
  stores them for both.
  """
  del epsilon, dtype
  x, scale, mean, inverse = residuals
  normed = (x.astype(jnp.float32) - mean) * inverse
  wide = cotangent.astype(jnp.float32) * scale
  of_x = wide - jnp.mean(wide, axis=-1, keepdims=True)
  of_x -= normed * jnp.mean(wide * normed, axis=-1, keepdims=True)
  of_x = (of_x * inverse).astype(x.dtype)

  x, mean, inverse, cotangent = jax.lax.optimization_barrier((x, mean, inverse, cotangent))
  normed = (x.astype(jnp.float32) - mean) * inverse
  cotangent = cotangent.astype(jnp.float32)
  axes = tuple(range(x.ndim - 1))
  return of_x, jnp.sum(cotangent * normed, axes), jnp.sum(cotangent, axes)


_normalize.defvjp(_normalize_forward, _normalize_backward)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
  """x Phi(x), exact; f[...] -> the same.

  Its gradient is made from x again. JAX would keep Phi(x) too: another array as
  wide as the MLP in each layer, written once and read once.
  """
  return layers.gelu(x)


def _gelu_backward(x, cotangent):
  wide = x.astype(jnp.float32)
  phi = jax.lax.erfc(-wide * 0.5**0.5) / 2
  density = jnp.exp(-wide * wide / 2) * (2 * jnp.pi) ** -0.5
  slope = phi + wide * density
  return ((slope * cotangent.astype(jnp.float32)).astype(x.dtype),)


gelu.defvjp(lambda x: (layers.gelu(x), x), _gelu_backward)


class Attention(layers.Attention):
  """Attention whose tokens are padded before the projections.

  There they cost next to nothing. Padded later it is a copy each of query, key
  and value, or of all scores: XLA's GPU compiler brings every side of a 16-bit
  product to a multiple of 8, and cuDNN's gradient wants an even length.
  """

  def attend(self, query, key, value, mask, *, kernel, rate, rng):
    """As `attention.attend`; `mask` may be how many first tokens are no padding."""
    dropped = rate and rng is not None
    if isinstance(mask, int):
      if kernel in attention.BY_CUDNN and not dropped and attention.fits_cudnn(query):
        # Cheaper than a mask, which cuDNN would want for every query.
        return attention.attend_cudnn(query, key, value, None, mask)
      mask = jnp.broadcast_to(jnp.arange(key.shape[-3]) < mask, key.shape[:-2])
    if not dropped:
      return attention.attend(query, key, value, mask, kernel=kernel)
    *lead, queries, heads, _ = query.shape
    kept, share = draw_kept(rng, rate, (*lead, heads, queries, key.shape[-3]))
    if query.shape == key.shape and (attend := self._kernel(query.shape[-1])):
      return attend(query, key, value, mask, kept, share, mesh=self.options.mesh)
    return _attend_with_dropout(query, key, value, mask, kept, share)

  def __call__(
    self,
    x: jax.Array,
    mask: jax.Array | None = None,
    *,
    rng: jax.Array | None = None,
    query_tokens: Sequence[int] = (),
  ) -> jax.Array:
    """See layers.Attention."""
    length = x.shape[-2]
    dropped = rng is not None and self.dropout > 0
    size = length
    if not dropped or query_tokens or not self._kernel(x.shape[-1] // self.heads):
      size = padded_length(length, self.options.kernel, dropout=dropped)
    if size > length:
      x = _pad(x, -2, size)
      mask = length if mask is None else _pad(mask, -1, size)
    # A type of which all tokens attend is padded whole.
    counts = [size if n == length else n for n in query_tokens]
    out = super().__call__(x, mask, rng=rng, query_tokens=counts)
    if not query_tokens:
      return out[..., :length, :]
    parts = zip(layers.split_types(out, counts), query_tokens, strict=True)
    return jnp.concatenate([part[:, :n] for part, n in parts], axis=1)

  def _kernel(self, size):
    """The kernel of dropout_attention.py, which pads for itself; None if it is not to be used."""
    if self.options.kernel != 'pallas':
      return None
    # Here, since Pallas takes a quarter of a second to import.
    from alpro_jax.models import dropout_attention

    return dropout_attention.attend if dropout_attention.fits(self.options.dtype, size) else None


class DividedBlock(timesformer.DividedBlock):
  """A block that stores the gradient of its input, and pads frames where it joins them."""

  def __call__(self, x: jax.Array, **options) -> jax.Array:
    # XLA's GPU compiler would keep every block's part of the gradient of the
    # residual stream, and add all up for each reader.
    return super().__call__(jax.lax.optimization_barrier(x), **options)

  def _attend(self, x, prefix='', mask=None):
    length = x.shape[-2]
    size = padded_length(length, self.options.kernel, dropout=False)
    if mask is not None or size == length:
      return super()._attend(x, prefix, mask)
    # Behind the norm, as Attention pads, it would be a copy.
    return super()._attend(_pad(x, -2, size), prefix, length)[..., :length, :]


def padded_length(length: int, kernel: str, *, dropout: bool) -> int:
  """Returns the tokens to attend with, so that no kernel pads by itself."""
  if kernel not in attention.BY_CUDNN or length <= attention.SHORT:
    return length
  multiple = 8 if dropout else 2
  return -(-length // multiple) * multiple


def _pad(x, axis, size):
  """Appends zeros, or False, to an axis until it has that size."""
  pads = [(0, 0)] * x.ndim
  pads[axis] = (0, size - x.shape[axis])
  return jnp.pad(x, pads)


@jax.custom_vjp
def _attend_with_dropout(query, key, value, mask, kept, share):
  """Attention whose weights f[..., A, Q, L] are dropped where not `kept`.

  The backward pass is written by hand for what it moves, since scores are the
  largest arrays of a layer: it reads the weights once, in the compute type, and
  never forms the float32 gradients of softmax and dropout.
  """
  return _dropout_forward(query, key, value, mask, kept, share)[0]


def _dropout_forward(query, key, value, mask, kept, share):
  scores = attention.scores(query, key, mask)
  # The barrier keeps XLA from storing scores, twice as wide, and taking their
  # softmax again in the backward pass.
  weights = jax.lax.optimization_barrier(jax.nn.softmax(scores).astype(value.dtype))
  out = jnp.einsum('...aql,...lak->...qak', scale_kept(weights, kept, share), value)
  return out, (query, key, value, kept, share, weights, out)


def _dropout_backward(residuals, cotangent):
  query, key, value, kept, share, weights, out = residuals
  dropped = scale_kept(weights, kept, share)
  of_value = jnp.einsum('...aql,...qak->...lak', dropped, cotangent)
  of_dropped = jnp.einsum('...qak,...lak->...aql', cotangent, value)
  # Softmax's own part, the sum over l of dropped * of_dropped, is that over k
  # of out * cotangent (Dao et al., FlashAttention, 2022, appendix B).
  common = jnp.sum(out.astype(jnp.float32) * cotangent.astype(jnp.float32), axis=-1)
  common = jnp.swapaxes(common, -1, -2)[..., None]
  of_scores = dropped.astype(jnp.float32) * of_dropped.astype(jnp.float32)
  of_scores -= weights.astype(jnp.float32) * common
  of_scores = of_scores.astype(query.dtype)
  scale = query.shape[-1] ** -0.5
  of_query = scale * jnp.einsum('...aql,...lak->...qak', of_scores, key)
  of_key = jnp.einsum('...aql,...qak->...lak', of_scores, scale * query)
  return of_query, of_key, of_value, None, None, None


_attend_with_dropout.defvjp(_dropout_forward, _dropout_backward)


# To be put in place of the plain layers.
LAYERS = (
  (nn.LayerNorm, LayerNorm),
  (layers.gelu, gelu),
  (layers.Attention, Attention),
  (timesformer.DividedBlock, DividedBlock),
)
