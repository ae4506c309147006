"""Training the prompter: video-text contrast alone (paper section 3.2)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from alpro_jax import contrastive
from alpro_jax.batch import NO_TEXT, VideoTextBatch
from alpro_jax.contrastive import Features
from alpro_jax.models.alpro import Alpro, Encoding
from alpro_jax.tasks.base import Task
from alpro_jax.tasks.shared import model_config

# Of config.loss; runs that are older than these options did the first.
_RELATIONS = ('neutral', 'positive', 'negative')
CHOICES = {'vtc_form': ('softmax', 'sigmoid'), 'same_video': _RELATIONS, 'same_caption': _RELATIONS}


@dataclasses.dataclass(frozen=True)
class Prompter(Task):
  """Both encoders by VTC; the same loss as in pre-training.

  Attributes:
    options: config.loss.

  Raises:
    ValueError: for an unknown option, or a sigmoid without its bias.
  """

  model: Alpro
  options: Any
  mesh: jax.sharding.Mesh
  contrasts = True

  @property
  def weights(self) -> dict[str, float]:
    return {'loss/vtc': self.options.vtc}

  def __post_init__(self):
    chosen = {name: self.options.get(name, known[0]) for name, known in CHOICES.items()}
    for name, value in chosen.items():
      if value not in CHOICES[name]:
        raise ValueError(f'config.loss.{name}={value!r} is unknown; choose one of {CHOICES[name]}.')
    if chosen['vtc_form'] == 'sigmoid' and self.model.config.logit_bias is None:
      raise ValueError(
        "config.loss.vtc_form='sigmoid' needs a model with a bias: set "
        'config.model.logit_bias=-10, and config.model.temperature=0.1 where nothing is trained '
        "yet; of weights without one, add 'logit_bias' to config.train.new_parameters."
      )

  @classmethod
  def from_config(cls, config, text, mesh):
    if not config.loss.vtc:
      raise ValueError('config.loss.vtc=0 leaves a prompter nothing to learn; set it above 0.')
    model = Alpro(model_config(config.model, text.vocab_size), mesh)
    return cls(model=model, options=config.loss, mesh=mesh)

  def make_targets(self, frozen, batch, key, *, parts=1):
    return None, {'loss/vtc': told(batch)}

  def embed(self, params, targets, batch, key, *, train):
    video, text = self.encode(self.bind(params, key), targets, batch, train)[:2]
    return Features(video.feature, text.feature)

  def contrast(self, params, features, batch, cotangent=None):
    if cotangent is not None:
      return {'loss/vtc': contrastive.zero_with_gradient(features, cotangent)}
    model = self.bind(params)
    temperature = model.temperature()
    ids, positives = self.relations(batch)
    rest = {'positives': positives, 'chunk': self.options.vtc_chunk, 'mesh': self.mesh}
    terms = {'temperature': (temperature, 1.0)}
    if self.options.vtc_form == 'sigmoid':
      bias = model.logit_bias()
      found = contrastive.sigmoid_vtc(features, temperature, bias, ids, **rest)
      terms['logit_bias'] = bias, 1.0
    else:
      found = contrastive.vtc(features, temperature, ids, **rest)
    total, _, (v2t, t2v) = found
    return terms | {
      'loss/vtc': (total, told(batch)),
      'accuracy/v2t': (v2t, 1.0),
      'accuracy/t2v': (t2v, 1.0),
    }

  def terms(self, params, targets, batch, key, step, *, train, cotangent=None):
    features = self.embed(params, targets, batch, key, train=train)
    return self.contrast(params, features, batch, cotangent)

  def bind(self, params: Any, key: jax.Array | None = None) -> Alpro:
    """Returns the model with its parameters, and the key of its dropout."""
    rngs = {} if key is None else {'dropout': key}
    return self.model.bind({'params': params}, rngs=rngs)

  def encode(self, model, targets, batch, train) -> tuple[Encoding, Encoding]:
    """Encodes both sides. Dropout falls alike in `embed` and in `terms`."""
    video = model.encode_video(batch.video, train=train)
    texts = batch.text_ids, batch.text_mask, batch.tower_ids
    return video, model.encode_text(*texts, train=train)

  def relations(self, batch: VideoTextBatch) -> tuple[jax.Array, tuple[int, ...]]:
    """Says which pairs are no negatives of each other, by `same_video` and `same_caption`.

    The original contrasts repeated videos and captions with themselves (defect 22).

    Returns:
      int32[B, 1 or 2]: rows that agree in a column are no negatives; and which
      of the columns make them positives.
    """
    ids = {'same_video': batch.video_id, 'same_caption': batch.caption_id}
    kept = [name for name in ids if self.options[name] != 'negative']
    positives = tuple(i for i, name in enumerate(kept) if self.options[name] == 'positive')
    # A row is never a negative of itself.
    columns = [ids[name] for name in kept] or [jnp.arange(batch.video_id.shape[0])]
    return jnp.stack(columns, axis=1), positives


def has_text(batch: VideoTextBatch) -> jax.Array:
  """bool[B], False for pictures that stand alone."""
  return batch.caption_id != NO_TEXT


def told(batch: VideoTextBatch) -> jax.Array:
  """float32[]: the pairs that VTC is the mean over."""
  return jnp.sum(has_text(batch).astype(jnp.float32))
