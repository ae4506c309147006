"""Pre-training ALPRO: VTC + VTM + MLM + PEM in one pass (paper section 3)."""

import dataclasses
import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from einops import rearrange
from flax import linen as nn

from alpro_jax import contrastive, losses, masking, sharding
from alpro_jax.batch import SpecialTokens, VideoTextBatch
from alpro_jax.data import entities
from alpro_jax.models import prompter as prompting
from alpro_jax.models.alpro import Alpro, AlproConfig
from alpro_jax.tasks.base import Terms
from alpro_jax.tasks.prompter import abstract_params, contrast, identities, init_model, model_config


@flax.struct.dataclass
class Teacher:
  """The frozen prompter: data to the step, never in the optimizer.

  Attributes:
    params: of its video encoder, projection and temperature.
    bank: prompt features of every entity.
    config: sizes of its model, which may differ from the student's.
  """

  params: Any
  bank: prompting.PromptBank
  config: AlproConfig = flax.struct.field(pytree_node=False)

  def label(
    self,
    crop: jax.Array,
    still: jax.Array,
    *,
    rule: str,
    threshold: float,
    mesh: jax.sharding.Mesh | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Says which entity a region shows.

    Args:
      crop: uint8[B, T, H, W, 3], black outside of the region.
      still: bool[B], True where the clip is a photo.
      rule: of what to ignore; see models.prompter.pseudo_labels.
      threshold: of the rule.
      mesh: of the devices that the batch is sharded over.
    Returns:
      float32[B, Z] soft labels and bool[B], False on examples to ignore. No
      gradient flows through them.
    """
    model = Alpro(self.config, mesh).bind({'params': self.params})
    feature = model.encode_video(crop, train=False).feature
    return prompting.pseudo_labels(
      feature, self.bank, still, model.temperature(), rule=rule, threshold=threshold
    )


@flax.struct.dataclass
class Asked:
  """What is asked of B pairs; a field is None without its loss.

  Attributes:
    found: bool[B, 3], of VTM: the matched pair, then whether a wrong video and
      a wrong text can be found for the row.
    masked_ids: int32[B, L], text with masked words.
    labels: int32[B, L], the masked words, -1 elsewhere.
    region: bool[B, N], patches that the teacher has named.
    target: float32[B, Z], its soft labels.
    keep: bool[B], False where it was not sure enough.
  """

  found: jax.Array | None = None
  masked_ids: jax.Array | None = None
  labels: jax.Array | None = None
  region: jax.Array | None = None
  target: jax.Array | None = None
  keep: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Pretrain:
  """The four losses; a loss of weight 0 costs nothing.

  One call of the text encoder serves clean and masked text, one call of the
  fusion encoder serves matched, mismatched and masked pairs (defect 61).

  Attributes:
    model: the student.
    entities: names, most frequent first; empty without PEM.
    special: ids of the special tokens.
    options: config.loss.
    prompter: config.prompter.
    blocks: of rows among which negatives are drawn; 1 is the whole batch.
    mesh: the devices that the batch is cut over.
  """

  model: Alpro
  entities: tuple[str, ...]
  special: SpecialTokens
  options: Any
  prompter: Any
  blocks: int
  mesh: jax.sharding.Mesh
  answers = ()

  @property
  def weights(self) -> dict[str, float]:
    """Of the losses that are not left out; see tasks/base.py."""
    names = ('vtc', 'vtm', 'mlm', 'pem')
    return {f'loss/{name}': self.options[name] for name in names if self.options[name]}

  @staticmethod
  def heads(options, entity_names) -> dict[str, Any]:
    """The heads of the model, as models.alpro.HEADS names them."""
    del options
    return {'entities': len(entity_names)}

  @classmethod
  def from_config(cls, config, text, mesh):
    """Returns the task of `config`; see tasks/base.py.

    Raises:
      ValueError: for an unknown kind of negatives, or if every weight is 0.
      FileNotFoundError: if there is PEM and no list of entities.
    """
    options = config.loss
    scopes = {'global': 1, 'local': options.negative_blocks or sharding.batch_shards(mesh)}
    if options.negatives not in scopes:
      raise ValueError(f"config.loss.{options.negatives=} must be 'global' or 'local'.")
    if not any((options.vtc, options.vtm, options.mlm, options.pem)):
      raise ValueError('every weight in config.loss is 0; give vtc, vtm, mlm or pem one.')
    names = _entity_names(config.prompter) if options.pem else ()
    return cls(
      model=Alpro(model_config(config.model, text.vocab_size, **cls.heads(options, names)), mesh),
      entities=names,
      special=text.special,
      options=options,
      prompter=config.prompter,
      blocks=scopes[options.negatives],
      mesh=mesh,
    )

  def init(self, key: jax.Array) -> Any:
    return init_model(self.model, key)

  def load_frozen(self, encode, prompter, load_meta, load_params) -> Teacher | None:
    """Builds the teacher from a checkpoint; None without PEM.

    Raises:
      FileNotFoundError: if no checkpoint of a prompter is named or there.
    """
    if not self.options.pem:
      return None
    if not prompter:
      raise FileNotFoundError(
        'pre-training with PEM needs a trained prompter. Make one with '
        '`python launch/main.py --config=configs/pretrain_prompter.py '
        '--workdir=DIR`, then pass --config.prompter.checkpoint=DIR; or '
        'train without PEM: --config.loss.pem=0.'
      )
    config = AlproConfig.from_dict(load_meta(prompter)['model'])
    model = Alpro(config, self.mesh)
    params = load_params(prompter, abstract_params(model, self.mesh))
    return Teacher(
      params=_video_side(params), bank=self._make_bank(model, params, encode), config=config
    )

  def untrained_frozen(self, key: jax.Array) -> Teacher | None:
    """A teacher of random weights, for benchmarks and tests of shapes."""
    if not self.options.pem:
      return None
    config = dataclasses.replace(self.model.config, entities=0)
    model = Alpro(config, self.mesh)
    boxed = jax.eval_shape(lambda k: init_model(model, k), key)
    params = jax.jit(
      lambda k: nn.unbox(init_model(model, k)),
      out_shardings=sharding.tree_sharding(boxed, self.mesh),
    )(key)
    shape = (len(self.entities), config.embed_size)
    rows = jax.random.normal(key, (2, *shape))
    rows /= jnp.linalg.norm(rows, axis=-1, keepdims=True)
    rows = jax.device_put(rows, sharding.replicated(self.mesh))
    bank = prompting.PromptBank(video=rows[0], image=rows[1])
    return Teacher(params=_video_side(params), bank=bank, config=config)

  def _make_bank(self, model, params, encode):
    options = self.prompter
    templates = {
      'video_templates': (options.video_templates or prompting.VIDEO_TEMPLATES),
      'image_templates': (options.image_templates or prompting.IMAGE_TEMPLATES),
    }
    _check_prompts(
      encode, sum(map(tuple, templates.values()), ()), self.entities, options.max_prompt_tokens
    )

    @jax.jit
    def encode_text(params, ids, mask):
      return model.apply({'params': params}, ids, mask, train=False, method='encode_text').feature

    def text_features(texts):
      ids, mask = encode(texts, options.max_prompt_tokens)
      return encode_text(params, jnp.asarray(ids), jnp.asarray(mask))

    return prompting.build_prompt_bank(
      text_features, self.entities, renormalize=options.renormalize, **templates
    )

  def ask(
    self, frozen: Teacher | None, batch: VideoTextBatch, key: jax.Array, *, parts: int = 1
  ) -> tuple[Asked, dict[str, jax.Array]]:
    """See tasks/base.py."""
    options, keys = self.options, _keys(key)
    asked, counts = Asked(), {}
    if options.vtc:
      counts['loss/vtc'] = jnp.float32(batch.video.shape[0])
    if options.vtm:
      found = sharding.map_parts(
        lambda ids: contrastive.has_negative(
          ids, blocks=self.blocks, chunk=options.vtc_chunk, mesh=self.mesh
        ),
        self._identities(batch),
        parts,
        self.mesh,
      )
      found = jnp.stack([jnp.ones_like(found), found, found], axis=1)
      asked = asked.replace(found=found)
      counts['loss/vtm'] = jnp.sum(found.astype(jnp.float32))
    if options.mlm:
      masked_ids, labels = masking.mask_tokens(
        keys['words'],
        batch.text_ids,
        batch.text_mask,
        special=self.special,
        vocab_size=self.model.config.text.vocab_size,
        probability=options.mask_probability,
      )
      asked = asked.replace(masked_ids=masked_ids, labels=labels)
      counts['loss/mlm'] = losses.labelled(labels)
    if options.pem:
      size, patch = batch.video.shape[2], self.model.config.video.patch_size
      region = masking.sample_regions(
        keys['region'],
        batch.video.shape[0],
        size // patch,
        area=options.region_area,
        rule=options.region_rule,
      )
      target, keep = sharding.map_parts(
        lambda rows: self._pseudo_labels(frozen, *rows), (batch, region), parts, self.mesh
      )
      asked = asked.replace(region=region, target=target, keep=keep)
      counts['loss/pem'] = jnp.sum(keep.astype(jnp.float32))
    return asked, counts

  def embed(
    self, params: Any, asked: Asked, batch: VideoTextBatch, key: jax.Array, *, train: bool
  ) -> contrastive.Features:
    """See tasks/base.py."""
    keys = _keys(key)
    model = self.model.bind({'params': params}, rngs={'dropout': keys['dropout']})
    # As in `terms`, or dropout would fall elsewhere.
    video = model.encode_video(batch.video, train=train)
    clean, _ = self._encode_texts(model, asked, batch, train)
    return contrastive.Features(video.feature, clean.feature)

  def contrast(self, params: Any, features: contrastive.Features, batch: VideoTextBatch) -> Terms:
    """See tasks/base.py."""
    if not self.options.vtc:
      return {}
    temperature = self.model.bind({'params': params}).temperature()
    return contrast(features, temperature, batch, self.options, self.mesh)

  def terms(
    self,
    params: Any,
    asked: Asked,
    batch: VideoTextBatch,
    key: jax.Array,
    step: jax.Array,
    *,
    train: bool,
    pull: contrastive.Features | None = None,
  ) -> Terms:
    """See tasks/base.py."""
    options, keys = self.options, _keys(key)
    model = self.model.bind({'params': params}, rngs={'dropout': keys['dropout']})

    video = model.encode_video(batch.video, train=train)
    clean, masked = self._encode_texts(model, asked, batch, train)
    features = contrastive.Features(video.feature, clean.feature)
    if pull is None:
      terms = self.contrast(params, features, batch)
    else:
      terms = {'loss/vtc': contrastive.pulled(features, pull)}
    temperature = model.temperature()
    terms['temperature'] = temperature, 1.0

    # Types of pairs for the fusion encoder: texts, masks, videos, stacked
    # behind the batch axis so that the batch stays where it is. Beside each,
    # how many of its first tokens are wanted: PEM's are the last ones.
    pairs, query_tokens = [], []
    matched = (clean.tokens, batch.text_mask, video.tokens)
    length = batch.text_ids.shape[1]
    if options.vtm or options.pem:
      pairs.append(matched)
      whole = length + video.tokens.shape[1]
      query_tokens.append(whole if options.pem else 1)
    if options.vtm:
      pairs += self._mismatch(matched, features, temperature, batch, keys, step)
      query_tokens += [1, 1]
    if options.mlm:
      pairs.append((masked, batch.text_mask, video.tokens))
      query_tokens.append(length)
    if not pairs:
      return terms
    fused = model.fuse(
      *(self._stack(arrays) for arrays in zip(*pairs, strict=True)),
      train=train,
      query_tokens=tuple(query_tokens),
    )

    if options.vtm:
      pair = jnp.stack([tokens[:, 0] for tokens in fused[:3]], axis=1)
      logits = model.match_logits(pair)
      is_match = jnp.array([1, 0, 0])
      is_match = jnp.broadcast_to(is_match, asked.found.shape)
      right = jnp.argmax(logits, axis=-1) == is_match
      terms |= {
        'loss/vtm': losses.vtm(logits, is_match, asked.found),
        'accuracy/vtm': _share(right, asked.found),
      }

    if options.mlm:
      logits = model.mlm_logits(fused[-1])
      right = jnp.argmax(logits, axis=-1) == asked.labels
      terms |= {
        'loss/mlm': losses.mlm(logits, asked.labels),
        'accuracy/mlm': _share(right, asked.labels != masking.NO_LABEL),
      }

    if options.pem:
      target = asked.target
      logits = model.region_entities(fused[0], asked.region)
      right = jnp.argmax(logits, axis=1) == jnp.argmax(target, axis=1)
      terms |= {
        'loss/pem': losses.pem(logits, target, asked.keep),
        'accuracy/pem': _share(right, asked.keep),
      }
      terms |= _health(target, asked.keep)
    return terms

  def _encode_texts(self, model, asked, batch, train):
    """Returns the encoding of clean text, and tokens of masked text or None."""
    if not self.options.mlm:
      clean = model.encode_text(batch.text_ids, batch.text_mask, train=train)
      return clean, None
    both = model.encode_text(
      self._stack((batch.text_ids, asked.masked_ids)),
      self._stack((batch.text_mask, batch.text_mask)),
      train=train,
    )
    tokens, feature = self._unstack(both.tokens, 2), both.feature[::2]
    clean = type(both)(tokens=tokens[:, 0], feature=feature)
    return clean, tokens[:, 1]

  def _identities(self, batch):
    return identities(batch, equal_captions=self.options.mask_equal_captions)

  def _mismatch(self, matched, features, temperature, batch, keys, step):
    """Draws for every text a wrong video and for every video a wrong text.

    Returns:
      two types of pairs, as `matched`.
    """
    options, (tokens, mask, video) = self.options, matched
    size = mask.shape[0] // self.blocks
    draw = functools.partial(
      contrastive.hard_negatives,
      temperature=temperature,
      ids=self._identities(batch),
      uniform_share=negative_ramp(
        step, options.uniform_negative_steps, options.negative_ramp_steps
      ),
      blocks=self.blocks,
      chunk=options.vtc_chunk,
      mesh=self.mesh,
    )

    def take(array, index):
      return sharding.take_rows(array, index % size, self.mesh, blocks=self.blocks)

    other_video, _ = draw(keys['videos'], features.text, features.video)
    other_text, _ = draw(keys['texts'], features.video, features.text)
    return [
      (tokens, mask, take(video, other_video)),
      (take(tokens, other_text), take(mask, other_text), video),
    ]

  def _pseudo_labels(self, teacher, batch, region):
    """Labels a region of every clip, bool[B, N], with the frozen teacher.

    Returns:
      float32[B, Z] soft labels and bool[B], False on examples to ignore.
    """
    patch = self.model.config.video.patch_size
    return teacher.label(
      masking.crop_regions(batch.video, region, patch),
      batch.still,
      rule=self.prompter.ignore_rule,
      threshold=self.prompter.ignore_threshold,
      mesh=self.mesh,
    )

  def _stack(self, arrays):
    """[f[B, ...]] * K -> f[B * K, ...], the K of one row side by side.

    Side by side, not one after the other: so every device keeps its own rows.
    """
    rows = rearrange(jnp.stack(arrays, axis=1), 'b k ... -> (b k) ...')
    return sharding.constrain_batch(rows, self.mesh)

  def _unstack(self, array, types):
    """f[B * K, ...] -> f[B, K, ...]."""
    rows = sharding.constrain_batch(array, self.mesh)
    return rearrange(rows, '(b k) ... -> b k ...', k=types)

  def describe(self, metrics: dict[str, Any]) -> str:
    """Returns the top entities of the labels that are kept, with shares."""
    if 'pseudo/entities' not in metrics:
      return ''
    share = metrics['pseudo/entities']
    top = sorted(zip(share, self.entities, strict=True), reverse=True)[:5]
    return 'pseudo-labels: ' + (
      ', '.join(f'{n} {s / sum(share):.0%}' for s, n in top if s) or 'none was sure enough'
    )


def _check_prompts(encode, templates, entities, most):
  """Names entities whose prompts are cut off, or are read like another's."""
  cut, read = {}, [b''] * len(entities)
  for template in templates:
    texts = prompting.fill_template(template, entities)
    ids, mask = encode(texts, most + 1)
    cut |= {entities[i]: texts[i] for i in np.flatnonzero(mask[:, -1])}
    # What stands before [SEP] when a prompt has `most` tokens.
    rows = ids[:, : most - 1]
    read = [a + b.tobytes() for a, b in zip(read, rows, strict=True)]
  if cut:
    logging.warning(
      'prompts of %d of %d entities are cut off at prompter.max_prompt_tokens=%d, such as %r.',
      len(cut),
      len(entities),
      most,
      next(iter(cut.values())),
    )
  places = {}
  for name, key in zip(entities, read, strict=True):
    places.setdefault(key, []).append(name)
  for names in places.values():
    if len(names) > 1:
      logging.warning(
        'the tokenizer reads the prompts of %d entities alike, so their '
        'labels say nothing: %s. Keep one of them in the list.',
        len(names),
        ', '.join(names[:5]),
      )


def negative_ramp(step, uniform_steps: int, ramp_steps: int) -> jax.Array:
  """Returns the share of uniform draws: 1, then on a line down to 0.

  Negatives that are hard from the start teach a small model from random
  weights to answer no to everything; the paper starts from trained encoders
  and has no ramp (both 0).

      uniform_steps=2, ramp_steps=4:  1 1 1 .75 .5 .25 0 0 ...
  """
  if not uniform_steps and not ramp_steps:
    return jnp.zeros(())
  late = jnp.asarray(step, jnp.float32) - uniform_steps
  return jnp.clip(1 - late / max(ramp_steps, 1), 0, 1)


def _keys(key):
  """The keys of a step by their use."""
  uses = ('dropout', 'words', 'videos', 'texts', 'region')
  return dict(zip(uses, jax.random.split(key, len(uses)), strict=True))


def _share(right, counted):
  """How much of what counts is right, and how much counts."""
  counted = counted.astype(jnp.float32)
  return jnp.sum(right * counted), jnp.sum(counted)


def _health(target, keep):
  """Tells whether pseudo-labels still say something.

  Returns:
    terms: the kept share, the mean entropy in nats and the mean top
    probability of all labels, and float32[Z], the share of all labels that is
    kept and has the entity on top: so means over parts and steps stay right.
  """
  entropy = -jnp.sum(target * jnp.log(jnp.maximum(target, 1e-30)), axis=1)
  top = jax.nn.one_hot(jnp.argmax(target, axis=1), target.shape[1])
  keep = keep.astype(jnp.float32)
  means = {
    'pseudo/kept': jnp.mean(keep),
    'pseudo/entropy': jnp.mean(entropy),
    'pseudo/confidence': jnp.mean(target.max(axis=1)),
    'pseudo/entities': jnp.mean(keep[:, None] * top, axis=0),
  }
  return {name: (mean, 1.0) for name, mean in means.items()}


def _video_side(params):
  """Keeps what the teacher needs to label a crop."""
  return {
    name: value
    for name, value in params.items()
    if name in ('video_encoder', 'video_projection', 'temperature')
  }


def _entity_names(options) -> tuple[str, ...]:
  if not options.entities:
    raise FileNotFoundError(
      'pre-training with PEM needs a list of entities. Make one with '
      '`python launch/entities.py`, then pass '
      '--config.prompter.entities=FILE; or train without PEM: '
      '--config.loss.pem=0.'
    )
  return tuple(entities.read_entities(options.entities, options.num_entities))
