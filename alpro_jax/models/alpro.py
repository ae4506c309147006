"""ALPRO: a video encoder, a text encoder, and an encoder that fuses both."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn

from alpro_jax.models import attention, encoders, fused, layers, matmul, stack

TEMPERATURE_RANGE = (0.001, 0.5)  # ALPRO's.
# What an option of config.model may be.
CHOICES = {
  'dtype': ('float32', 'bfloat16'),
  'implementation': ('plain', 'fused'),
  'attention_impl': attention.KERNELS,
  'remat': tuple(stack.REMAT),
  'video_projection': ('affine', 'linear', 'none'),
  'text_projection': ('affine', 'linear', 'none'),
}
# Options that models had not at first, which are stored where they say something.
LATER = ('logit_bias', 'temperature_range', 'text_tower', 'video_projection', 'text_projection')
# Options that say how a model is computed, not what.
COMPUTE = ('implementation', 'attention_impl', 'scan_layers', 'remat')


@dataclasses.dataclass(frozen=True)
class AlproConfig:
  """Everything that decides the parameters and the arithmetic of a model.

  Two encoders of texts are possible. `text` reads them for the fusion encoder, and for
  contrast too unless there is a `text_tower`, whose tokenizer is another. Without `text`
  there is no fusion encoder: the model contrasts, and nothing else.
  """

  video: Any  # Config of one of encoders.VIDEO.
  text: Any  # Config of one of encoders.TEXT; None: no fusion encoder.
  embed_size: int  # 0: no contrastive features, so no temperature.
  temperature: float
  dtype: str
  remat: str
  # What the sigmoid loss adds to scores, at first; None: no such parameter.
  logit_bias: float | None = None
  temperature_range: tuple[float, float] = TEMPERATURE_RANGE
  # Heads, which presets leave to the task.
  match: bool = True  # Whether there is a head for match or no match.
  mlm: bool = True  # Whether there is a head for masked words.
  entities: int = 0  # 0: no entity head.
  answers: int = 0  # 0: no answer head.
  # How it is computed; see CHOICES.
  implementation: str = 'plain'
  attention_impl: str = 'auto'
  scan_layers: bool = False
  # Of image-text models.
  text_tower: Any = None  # Config of one of encoders.TEXT_TOWER; None: `text` contrasts.
  # From a tower to the feature: with a bias ('affine'), without ('linear'), or 'none'.
  video_projection: str = 'affine'
  text_projection: str = 'affine'

  def __post_init__(self):
    if isinstance(self.remat, bool):
      # As the first checkpoints have it.
      object.__setattr__(self, 'remat', 'blocks' if self.remat else 'none')
    object.__setattr__(self, 'temperature_range', tuple(self.temperature_range))
    low, high = self.temperature_range
    if not 0 < low < high:
      raise ValueError(
        f'config.model.temperature_range={self.temperature_range} must be two numbers above 0, '
        'the smaller one first.'
      )
    for name, choices in CHOICES.items():
      if (value := getattr(self, name)) not in choices:
        raise ValueError(f'config.model.{name}={value!r} is not known; choose one of {choices}.')
    if self.attention_impl == 'pallas' and self.implementation != 'fused':
      raise ValueError(
        "config.model.attention_impl='pallas' is a kernel of the fused layers; set "
        "config.model.implementation='fused' too."
      )
    if self.text is None:
      if self.text_tower is None:
        raise ValueError('config.model needs `text`, `text_tower`, or both.')
      if self.entities or self.answers:
        raise ValueError(
          'naming entities and answering questions need a fusion encoder, but config.model.text '
          'is left out: give the model a BERT, as `launch/convert.py --bert=FOLDER` does.'
        )
      object.__setattr__(self, 'match', False)
      object.__setattr__(self, 'mlm', False)
    for part in ('video', 'text'):
      width, kind = self.contrasted(part).width, getattr(self, f'{part}_projection')
      if kind == 'none' and self.embed_size not in (0, width):
        raise ValueError(
          f"config.model.{part}_projection='none' needs {self.embed_size=} to be {width}, the "
          f'width of the {part} tower.'
        )

  def contrasted(self, part: str) -> Any:
    """Config of the encoder whose tokens are projected for contrast; 'video' or 'text'."""
    return self.video if part == 'video' else self.text_tower or self.text

  @property
  def token_width(self) -> int:
    """Width of the video tokens that the fusion encoder reads; 0 without one."""
    return self.text.width if self.text else 0

  def plain(self) -> 'AlproConfig':
    """The same model computed layer by layer, the same way on any device.

    For whoever looks inside a layer, or takes the program elsewhere.
    """
    return dataclasses.replace(
      self, implementation='plain', attention_impl='xla', scan_layers=False, remat='none'
    )

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> 'AlproConfig':
    """Builds the nested config; unknown and missing keys are refused."""
    values = dict(values)
    for part, default in encoders.DEFAULT.items():
      if part != 'video' and not values.get(part):
        values[part] = None  # One of the two that read texts may be left out.
      elif part in values:
        encoder = encoders.find(part, values[part].get('encoder', default))
        values[part] = _build(encoder.Config, values[part], f'model.{part}')
    return _build(cls, values, 'model')

  def to_dict(self) -> dict[str, Any]:
    """What `from_dict` takes, as checkpoints and exports store it.

    Without what all models had before there was a choice: so a model is the
    same, and has the same digest, as the one it was stored as.
    """
    values = dataclasses.asdict(self)
    for field in dataclasses.fields(self):
      if field.name in LATER and values[field.name] == field.default:
        del values[field.name]
    for part, default in encoders.DEFAULT.items():
      if values.get(part) and values[part]['encoder'] == default:
        del values[part]['encoder']
    return values


def _build(cls, values, where):
  fields = {field.name: field.default for field in dataclasses.fields(cls)}
  unknown = sorted(set(values) - set(fields))
  required = {name for name, default in fields.items() if default is dataclasses.MISSING}
  missing = sorted(required - set(values))
  if unknown or missing:
    raise ValueError(
      f'config.{where} has {unknown=} and {missing=} keys; expected exactly {sorted(fields)}.'
    )
  return cls(**values)


@flax.struct.dataclass
class Encoding:
  """Attributes: tokens f[B, S, D]; feature float32[B, E] of length one."""

  tokens: jax.Array
  feature: jax.Array


def unit_length(x: jax.Array) -> jax.Array:
  """x / max(|x|, 1e-12) along the last axis, with a finite gradient at 0."""
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def in_range(params: dict[str, Any], temperature_range: tuple[float, float]) -> dict[str, Any]:
  """Returns parameters whose temperature lies in its range."""
  if 'temperature' not in params:
    return params
  return params | {'temperature': jnp.clip(params['temperature'], *temperature_range)}


class Classifier(nn.Module):
  """D -> 2D -> classes with a ReLU: entities of regions, answers."""

  classes: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]
    x = jax.nn.relu(_head(2 * width, width, ('embed', 'mlp'), 'hidden')(x))
    return _head(self.classes, 2 * width, ('mlp', 'classes'), 'out')(x)


def _head(features, fan_in, axes, name=None):
  init = layers.uniform_fan_in(fan_in)
  return layers.dense(features, axes, layers.ComputeOptions(jnp.float32), init, init, name=name)


class Alpro(nn.Module):
  """The model. Call its methods with `apply(..., method='encode_video')`.

  Parameters are float32 whatever the compute type; projections, heads and
  features are computed in float32.

  Attributes:
    config: of the model.
    mesh: of the devices it is computed on; None is the default device.
  """

  config: AlproConfig
  mesh: jax.sharding.Mesh | None = None

  def setup(self):
    config, options = self.config, self._compute_options()
    video = encoders.find('video', config.video.encoder)
    self.video_encoder = video.Encoder(config.video, options)
    if config.text:
      text, width = encoders.find('text', config.text.encoder), config.text.width
      self.text_embedding = text.Embedding(config.text, options)
      self.text_encoder = text.text_encoder(config.text, options)
      self.fusion_encoder = text.fusion_encoder(config.text, options)
      if config.video.width != width:
        self.fusion_projection = _head(width, config.video.width, ('embed', 'embed_out'))
    if config.text_tower:
      tower = encoders.find('text_tower', config.text_tower.encoder)
      self.text_tower = tower.Encoder(config.text_tower, options)
    if config.embed_size:
      self.video_projection = self._projection('video')
      self.text_projection = self._projection('text')
      self.free_temperature = self.param(
        'temperature', nn.initializers.constant(config.temperature), ()
      )
      if config.logit_bias is not None:
        self.free_bias = self.param('logit_bias', nn.initializers.constant(config.logit_bias), ())
    if config.mlm:
      self.mlm_head = text.MlmHead(config.text, options)
    if config.match:
      self.match_head = _head(2, width, ('embed', 'classes'))
    if config.entities:
      self.entity_head = Classifier(config.entities)
    if config.answers:
      self.answer_head = Classifier(config.answers)

  def _projection(self, part):
    kind, size = getattr(self.config, f'{part}_projection'), self.config.embed_size
    if kind == 'none':
      return lambda x: x
    init = layers.uniform_fan_in(self.config.contrasted(part).width)
    kernel = nn.with_logical_partitioning(init, ('embed', 'joint'))
    return nn.Dense(size, kind == 'affine', dtype=jnp.float32, kernel_init=kernel, bias_init=init)

  def _compute_options(self):
    config, mesh = self.config, self.mesh
    # The devices it is compiled for may not be those of this process.
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    dtype = jnp.dtype(config.dtype)
    replaced = fused.LAYERS if config.implementation == 'fused' else ()
    if dtype == jnp.bfloat16 and device.platform == 'cpu':
      replaced += ((nn.Dense, matmul.Dense),)
    return layers.ComputeOptions(
      dtype=dtype,
      kernel=attention.choose_kernel(config.attention_impl, device),
      remat=config.remat,
      scan=config.scan_layers,
      mesh=mesh,
      replaced=replaced,
    )

  def encode_video(self, video: jax.Array, *, train: bool) -> Encoding:
    """Encodes clips.

    Args:
      video: uint8[B, T, H, W, 3] RGB in 0..255, normalised here; floats count
        as already normalised. T, H and W may differ from the config. Or what
        `video_encoder` gave: f[B, T, D] or None, and f[B, S, D].
      train: whether dropout and drop path act.

    Returns:
      Tokens f[B, S, D] and features float32[B, E].
    """
    encoded = video if isinstance(video, tuple) else self.video_encoder(video, train=train)
    frames, tokens = encoded if isinstance(encoded, tuple) else (None, encoded)
    if frames is None:
      feature = self._feature(tokens[:, 0], 'video_projection')
    else:
      # The mean over frames, each of unit length, as users of image-text models take it.
      feature = unit_length(jnp.mean(self._feature(frames, 'video_projection'), axis=1))
    if not self.config.text:
      tokens = tokens[:, :, :0]
    elif self.config.video.width != self.config.text.width:
      tokens = self.fusion_projection(tokens.astype(jnp.float32)).astype(tokens.dtype)
    return Encoding(tokens, feature)

  def encode_text(
    self, ids: jax.Array, mask: jax.Array, tower_ids: jax.Array | None = None, *, train: bool
  ) -> Encoding:
    """Encodes texts.

    Args:
      ids: int32[B, L], of the tokenizer of `config.text`; without one, of the tower's.
      mask: bool[B, L], True on tokens that are no padding.
      tower_ids: int32[B, M], of the tower's tokenizer, where the model has both; or what
        `text_tower` gave, f[B, D].
      train: whether dropout acts.

    Returns:
      Tokens f[B, L, D], of width 0 without `config.text`, and features float32[B, E].
    """
    tokens = self.text_tokens(ids, mask, train=train)
    return Encoding(tokens, self.text_feature(tokens, ids, tower_ids, train=train))

  def text_tokens(self, ids: jax.Array, mask: jax.Array, *, train: bool) -> jax.Array:
    """int32[B, L], bool[B, L] -> f[B, L, D], what the fusion encoder reads of texts."""
    if not self.config.text:
      return jnp.zeros((*ids.shape, 0), self.config.dtype)
    tokens = self.text_embedding(ids, train=train)
    return self.text_encoder(tokens, mask, train=train)

  def text_feature(
    self, tokens: jax.Array, ids: jax.Array, tower_ids: jax.Array | None = None, *, train: bool
  ) -> jax.Array:
    """Of `text_tokens` and the arguments of `encode_text`: features float32[B, E]."""
    if not self.config.text_tower:
      return self._feature(tokens[:, 0], 'text_projection')
    if tower_ids is not None and jnp.issubdtype(tower_ids.dtype, jnp.floating):
      return self._feature(tower_ids, 'text_projection')
    if self.config.text and tower_ids is None:
      raise ValueError(
        'this model has a text tower with a tokenizer of its own: encode_text needs tower_ids.'
      )
    read = cast(jax.Array, tower_ids) if self.config.text else ids
    return self._feature(self.text_tower(read, train=train), 'text_projection')

  def _feature(self, tokens, projection):
    """f[..., D] -> float32[..., E] of unit length; E is 0 without contrast."""
    if not self.config.embed_size:
      return jnp.zeros((*tokens.shape[:-1], 0))
    return unit_length(getattr(self, projection)(tokens.astype(jnp.float32)))

  def fuse(
    self,
    text_tokens: jax.Array,
    text_mask: jax.Array,
    video_tokens: jax.Array,
    *,
    train: bool,
    query_tokens: tuple[int, ...] = (),
  ) -> jax.Array | list[jax.Array]:
    """Lets text and video tokens attend to each other.

    Args:
      text_tokens: f[B, L, D].
      text_mask: bool[B, L].
      video_tokens: f[B, S, D].
      train: whether dropout acts.
      query_tokens: how many of the first tokens are wanted, of each of T types
        of pairs; B = (b T), the T of one clip side by side. The last layer then
        makes no others, which saves a seventh of all for (1,). () is all.

    Returns:
      f[B, L + S, D]: text first, so token 0 stands for the pair and token L is
      the video's class token. With `query_tokens` a list of f[b, n, D].
    """
    tokens = jnp.concatenate([text_tokens, video_tokens], axis=1)
    always = jnp.ones(video_tokens.shape[:2], bool)
    mask = jnp.concatenate([text_mask.astype(bool), always], axis=1)
    return self.fusion_encoder(tokens, mask, train=train, query_tokens=query_tokens)

  def match(self, *pairs: jax.Array, train: bool = False) -> jax.Array:
    """The three arrays of `fuse` -> float32[B, 2]; class 1 is a match."""
    return self.match_logits(self._fuse_to_pair(pairs, train))

  def answer(self, *pairs: jax.Array, train: bool = False) -> jax.Array:
    """The three arrays of `fuse` -> float32[B, answers]."""
    return self.answer_logits(self._fuse_to_pair(pairs, train))

  def _fuse_to_pair(self, pairs, train):
    """f[B, D]: token 0 of the fused tokens, which stands for the pair."""
    (tokens,) = self.fuse(*pairs, train=train, query_tokens=(1,))
    return tokens[:, 0]

  def match_logits(self, pair: jax.Array) -> jax.Array:
    """f[B, D], token 0 of fused pairs -> float32[B, 2]; 1 is a match."""
    return self.match_head(pair.astype(jnp.float32))

  def mlm_logits(self, hidden: jax.Array) -> jax.Array:
    """f[B, L, D] -> float32[B, L, V]."""
    hidden, bias = self.mlm_head(hidden)
    return self.config.text.mlm_logit_scale * self.text_embedding.decode(hidden) + bias

  def region_entities(self, fused: jax.Array, region: jax.Array) -> jax.Array:
    """Names what a region of each clip shows.

    Args:
      fused: f[B, L + 1 + N, D], of matched pairs; the last N are patches.
      region: bool[B, N], the patches that belong to it; or the share of each, float32.

    Returns:
      float32[B, Z]: logits of the mean of these patches.
    """
    patches = fused[:, -region.shape[1] :].astype(jnp.float32)
    weight = region / jnp.maximum(region.sum(axis=1, keepdims=True), 1)
    return self.entity_logits(jnp.einsum('bnd,bn->bd', patches, weight))

  def entity_logits(self, pooled: jax.Array) -> jax.Array:
    """f[B, D], mean of a region's fused tokens -> float32[B, Z]."""
    if not self.config.entities:
      raise ValueError('This model has no entity head; build it with config.entities > 0.')
    return self.entity_head(pooled.astype(jnp.float32))

  def answer_logits(self, pair: jax.Array) -> jax.Array:
    """f[B, D], token 0 of fused pairs -> float32[B, answers]."""
    if not self.config.answers:
      raise ValueError(
        "This model has no answer head; train it with config.task='question_answering'."
      )
    return self.answer_head(pair.astype(jnp.float32))

  def temperature(self) -> jax.Array:
    """float32[], clipped to its range; the gradient passes as if it were not.

    The original clamps the parameter in place, outside autograd, as training
    does by `in_range`; weights from elsewhere may lie outside.
    """
    free = self.free_temperature
    clipped = jax.lax.stop_gradient(jnp.clip(free, *self.config.temperature_range))
    return clipped + (free - jax.lax.stop_gradient(free))

  def logit_bias(self) -> jax.Array:
    """float32[], what the sigmoid loss adds to similarity / temperature."""
    return self.free_bias

  def init_all(
    self, video: jax.Array, ids: jax.Array, mask: jax.Array, tower_ids: jax.Array | None = None
  ) -> jax.Array:
    """Touches every parameter; for `init(..., method='init_all')`."""
    config = self.config
    clip = self.encode_video(video, train=False)
    if not config.text:
      return self.text_feature(clip.tokens, cast(jax.Array, tower_ids), train=False)
    text = self.encode_text(ids, mask, tower_ids, train=False)
    fused = cast(jax.Array, self.fuse(text.tokens, mask, clip.tokens, train=False))
    pair = fused[:, 0]
    for used, head, tokens in (
      (config.match, self.match_logits, pair),
      (config.mlm, self.mlm_logits, fused[:, : ids.shape[1]]),
      (config.entities, self.entity_logits, pair),
      (config.answers, self.answer_logits, pair),
    ):
      if used:
        head(tokens)
    return fused
