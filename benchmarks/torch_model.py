"""The model in PyTorch that torch_step.py times, with its four losses.

Written from the description of the method (paper section 3;
docs/specification.md, Video encoder to Losses) in the way that
tasks/pretrain.py is: clean and masked texts in one call, all kinds of pairs in
one call. Tensors have the names and layouts of the PyTorch original, so weights
go over by weights/tables.py.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from alpro_jax.models.alpro import AlproConfig
from alpro_jax.models.bert import EPSILON as TEXT_EPSILON
from alpro_jax.models.bert import PADDING_ID
from alpro_jax.models.timesformer import EPSILON as VIDEO_EPSILON
from alpro_jax.models.timesformer import PIXEL_MEAN, PIXEL_STD


class Batch(NamedTuple):
  """A batch and what is drawn for it, but for negatives, as numpy or torch.

  Attributes:
    video: uint8[B, T, H, W, 3].
    ids, mask: int64[B, L] and bool[B, L], the clean text.
    masked_ids, labels: int64[B, L], of masked words; -1 where none is asked.
    region: bool[B, N], the patches that the prompter sees.
    still: bool[B].
  """

  video: torch.Tensor
  ids: torch.Tensor
  mask: torch.Tensor
  masked_ids: torch.Tensor
  labels: torch.Tensor
  region: torch.Tensor
  still: torch.Tensor


class Losses(NamedTuple):
  """Scalars; their sum is what is trained."""

  vtc: torch.Tensor
  vtm: torch.Tensor
  mlm: torch.Tensor
  pem: torch.Tensor


def attend(query, key, value, heads, mask=None, dropout=0.0):
  """Attention over axis -2 of f[..., L, D] for each of the heads.

  Args:
    query, key, value: f[..., L, D].
    heads: A.
    mask: bool[..., 1, 1, L], True on tokens that may be attended to.
    dropout: on the probabilities.
  """
  query, key, value = (x.unflatten(-1, (heads, -1)).transpose(-2, -3) for x in (query, key, value))
  out = F.scaled_dot_product_attention(query, key, value, mask, dropout)
  return out.transpose(-2, -3).flatten(-2)


def drop_path(x, rate, training):
  """Drops whole sequences: one draw per entry of all but the last two axes."""
  if not rate or not training:
    return x
  kept = torch.rand(*x.shape[:-2], 1, 1, device=x.device) < 1 - rate
  return x * (kept / (1 - rate)).to(x.dtype)


# --- Video ------------------------------------------------------------------


class Attention(nn.Module):
  """Self attention with one matrix for queries, keys and values."""

  def __init__(self, width, heads):
    super().__init__()
    self.heads = heads
    self.qkv = nn.Linear(width, 3 * width)
    self.proj = nn.Linear(width, width)

  def forward(self, x):
    return self.proj(attend(*self.qkv(x).chunk(3, -1), self.heads))


class Mlp(nn.Module):
  def __init__(self, width, size):
    super().__init__()
    self.fc1 = nn.Linear(width, size)
    self.fc2 = nn.Linear(size, width)

  def forward(self, x):
    return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
  """Attention over time at each place, then over space in each frame."""

  def __init__(self, config, rate):
    super().__init__()
    width = config.width
    self.rate = rate
    self.norm1 = nn.LayerNorm(width, VIDEO_EPSILON)
    self.attn = Attention(width, config.heads)
    self.temporal_norm1 = nn.LayerNorm(width, VIDEO_EPSILON)
    self.temporal_attn = Attention(width, config.heads)
    self.temporal_fc = nn.Linear(width, width)
    self.norm2 = nn.LayerNorm(width, VIDEO_EPSILON)
    self.mlp = Mlp(width, config.mlp_size)

  def forward(self, first, patches):
    """f[B, 1, D] class tokens, f[B, T, N, D] patches -> the same."""
    places = patches.transpose(1, 2)
    y = self.temporal_attn(self.temporal_norm1(places))
    y = self.temporal_fc(drop_path(y, self.rate, self.training))
    patches = patches + y.transpose(1, 2)

    copies = first[:, None].expand(-1, patches.shape[1], -1, -1)
    y = self.attn(self.norm1(torch.cat([copies, patches], 2)))
    y = drop_path(y, self.rate, self.training)
    first = first + y[:, :, 0].mean(1, keepdim=True)
    patches = patches + y[:, :, 1:]

    x = torch.cat([first, patches.flatten(1, 2)], 1)
    x = x + drop_path(self.mlp(self.norm2(x)), self.rate, self.training)
    return x[:, :1], x[:, 1:].unflatten(1, patches.shape[1:3])


class TimeSformer(nn.Module):
  """Pixels to a class token and a token per patch, averaged over time."""

  def __init__(self, config):
    super().__init__()
    width, patch = config.width, config.patch_size
    self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
    self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, width))
    self.time_embed = nn.Parameter(torch.zeros(1, config.frames, width))
    self.patch_embed = nn.ModuleDict({'proj': nn.Conv2d(3, width, patch, patch)})
    last = max(config.depth - 1, 1)
    self.blocks = nn.ModuleList(
      Block(config, config.drop_path * i / last) for i in range(config.depth)
    )
    self.norm = nn.LayerNorm(width, VIDEO_EPSILON)
    self.register_buffer('mean', torch.tensor(PIXEL_MEAN), persistent=False)
    self.register_buffer('std', torch.tensor(PIXEL_STD), persistent=False)

  def forward(self, video):
    """uint8[B, T, H, W, 3] -> f[B, 1 + N, D]."""
    count, frames = video.shape[:2]
    pixels = (video / 255 - self.mean) / self.std
    pixels = pixels.flatten(0, 1).permute(0, 3, 1, 2)
    patches = self.patch_embed['proj'](pixels).flatten(2).transpose(1, 2)
    patches = patches.unflatten(0, (count, frames))
    patches = patches + self.pos_embed[:, None, 1:]
    patches = patches + self.time_embed[:, :, None]
    first = (self.cls_token + self.pos_embed[:, :1]).expand(count, -1, -1)
    for block in self.blocks:
      first, patches = block(first, patches)
    return torch.cat([self.norm(first), self.norm(patches).mean(1)], 1)


class VideoSide(nn.Module):
  """What the prompter needs to name a region, and the student has as well."""

  def __init__(self, config):
    super().__init__()
    width = config.video.width
    self.temp = nn.Parameter(torch.tensor(config.temperature))
    self.visual_encoder = nn.ModuleDict({'model': TimeSformer(config.video)})
    self.vision_proj = nn.Linear(width, config.embed_size)

  def encode_video(self, video):
    """uint8[B, T, H, W, 3] -> f[B, 1 + N, D] and f[B, E] of length one."""
    tokens = self.visual_encoder['model'](video)
    return tokens, F.normalize(self.vision_proj(tokens[:, 0]), dim=-1)


# --- Text -------------------------------------------------------------------


class BertLayer(nn.Module):
  """A post-norm transformer layer."""

  def __init__(self, config):
    super().__init__()
    width, size = config.width, config.mlp_size
    self.heads, self.rate = config.heads, config.dropout
    self.attention = nn.ModuleDict(
      {
        'self': nn.ModuleDict(
          {name: nn.Linear(width, width) for name in ('query', 'key', 'value')}
        ),
        'output': _dense_and_norm(width, width),
      }
    )
    self.intermediate = nn.ModuleDict({'dense': nn.Linear(width, size)})
    self.output = _dense_and_norm(size, width)

  def forward(self, x, mask):
    """f[B, L, D], bool[B, 1, 1, L] -> f[B, L, D]."""
    inputs = (part(x) for part in self.attention['self'].values())
    y = attend(*inputs, self.heads, mask, self.rate if self.training else 0.0)
    x = self._add(x, y, self.attention['output'])
    return self._add(x, F.gelu(self.intermediate['dense'](x)), self.output)

  def _add(self, x, y, output):
    y = F.dropout(output['dense'](y), self.rate, self.training)
    return output['LayerNorm'](x + y)


class Bert(nn.Module):
  """Embeddings and all layers, of which a call runs some."""

  def __init__(self, config):
    super().__init__()
    width = config.width
    self.rate = config.dropout
    self.embeddings = nn.ModuleDict(
      {
        'word_embeddings': nn.Embedding(config.vocab_size, width, padding_idx=PADDING_ID),
        'position_embeddings': nn.Embedding(config.max_positions, width),
        'token_type_embeddings': nn.Embedding(2, width),
        'LayerNorm': nn.LayerNorm(width, TEXT_EPSILON),
      }
    )
    self.encoder = nn.ModuleDict(
      {'layer': nn.ModuleList(BertLayer(config) for _ in range(config.depth))}
    )

  def embed(self, ids):
    """int64[B, L] -> f[B, L, D]."""
    parts = self.embeddings
    x = parts['word_embeddings'](ids)
    x = x + parts['position_embeddings'].weight[: ids.shape[1]]
    x = x + parts['token_type_embeddings'].weight[0]
    return F.dropout(parts['LayerNorm'](x), self.rate, self.training)

  def forward(self, x, mask, start, stop):
    mask = mask[:, None, None]
    for layer in self.encoder['layer'][start:stop]:
      x = layer(x, mask)
    return x


class MlmHead(nn.Module):
  """The transform before the decoder that is tied to the words' vectors."""

  def __init__(self, config):
    super().__init__()
    self.bias = nn.Parameter(torch.zeros(config.vocab_size))
    self.transform = _dense_and_norm(config.width, config.width)

  def forward(self, x, words):
    x = self.transform['LayerNorm'](F.gelu(self.transform['dense'](x)))
    return F.linear(x, words, self.bias)


def _dense_and_norm(inputs, width):
  return nn.ModuleDict(
    {'dense': nn.Linear(inputs, width), 'LayerNorm': nn.LayerNorm(width, TEXT_EPSILON)}
  )


# --- The four losses --------------------------------------------------------


class Student(VideoSide):
  """The model that is trained."""

  def __init__(self, config: AlproConfig):
    super().__init__(config)
    width = config.text.width
    self.fusion_layer, self.depth = config.text.fusion_layer, config.text.depth
    self.text_encoder = nn.ModuleDict(
      {'bert': Bert(config.text), 'cls': nn.ModuleDict({'predictions': MlmHead(config.text)})}
    )
    self.text_proj = nn.Linear(width, config.embed_size)
    self.itm_head = nn.Linear(width, 2)
    self.mpm_head = nn.Sequential(
      nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, config.entities)
    )

  def forward(self, batch: Batch, target, keep) -> Losses:
    """Returns the losses; target f[B, Z] and keep bool[B] are the prompter's.

    Every row is taken for a pair of its own, with no second copy of its video
    or caption in the batch.
    """
    count, length = batch.ids.shape
    video, video_feature = self.encode_video(batch.video)
    texts = self._encode_text(torch.cat([batch.ids, batch.masked_ids]), batch.mask.repeat(2, 1))
    text, masked = texts[:count], texts[count:]
    text_feature = F.normalize(self.text_proj(text[:, 0]), dim=-1)

    similarity = video_feature @ text_feature.T / self.temp
    own = torch.arange(count, device=similarity.device)
    vtc = (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2

    other_video = _draw_negatives(similarity.T)
    other_text = _draw_negatives(similarity)
    fused = self._fuse(
      torch.cat([text, text, text[other_text], masked]),
      torch.cat([batch.mask, batch.mask, batch.mask[other_text], batch.mask]),
      torch.cat([video, video[other_video], video, video]),
    )

    is_match = (torch.arange(3 * count, device=fused.device) < count).long()
    vtm = F.cross_entropy(self.itm_head(fused[: 3 * count, 0]), is_match)

    words = self.text_encoder['bert'].embeddings['word_embeddings'].weight
    logits = self.text_encoder['cls']['predictions'](fused[3 * count :, :length], words)
    mlm = F.cross_entropy(
      logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-1, reduction='sum'
    )
    mlm = mlm / (batch.labels >= 0).sum().clamp(min=1)

    inside = batch.region / batch.region.sum(1, keepdim=True)
    pooled = torch.einsum('bnd,bn->bd', fused[:count, length + 1 :], inside)
    pem = F.cross_entropy(self.mpm_head(pooled), target, reduction='none')
    pem = (pem * keep).sum() / keep.sum().clamp(min=1)
    return Losses(vtc, vtm, mlm, pem)

  def _encode_text(self, ids, mask):
    bert = self.text_encoder['bert']
    return bert(bert.embed(ids), mask, 0, self.fusion_layer)

  def _fuse(self, text, mask, video):
    mask = torch.cat([mask, mask.new_ones(video.shape[:2])], 1)
    return self.text_encoder['bert'](
      torch.cat([text, video], 1), mask, self.fusion_layer, self.depth
    )


def _draw_negatives(similarity):
  """f[R, C] -> int64[R], a column other than the row's own."""
  own = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
  chance = similarity.detach().masked_fill(own, -math.inf).softmax(1)
  return torch.multinomial(chance, 1)[:, 0]


class Prompter(VideoSide):
  """The frozen model that names what a region shows."""

  def __init__(self, config, bank, *, patch_size, threshold):
    """`bank`: f[2, Z, E], prompts for videos and for photos."""
    super().__init__(config)
    self.patch_size, self.threshold = patch_size, threshold
    self.register_buffer('bank', bank, persistent=False)
    self.requires_grad_(False)
    self.eval()

  @torch.no_grad()
  def forward(self, video, region, still):
    """Returns soft labels f[B, Z] and bool[B], whether to learn from them."""
    rows = video.shape[2] // self.patch_size
    inside = region.unflatten(1, (rows, -1))
    for axis in (1, 2):
      inside = inside.repeat_interleave(self.patch_size, axis)
    crop = video * inside[:, None, :, :, None]
    _, feature = self.encode_video(crop)
    prompts = torch.where(still[:, None, None], self.bank[1], self.bank[0])
    scores = torch.einsum('be,bze->bz', feature, prompts)
    target = (scores / self.temp).softmax(1)
    return target, target.amax(1) >= self.threshold
