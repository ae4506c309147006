"""Pre-training ALPRO: VTC + VTM + MLM + PEM in one pass (paper section 3)."""

import dataclasses
import functools
from typing import Any

import flax
import jax
import jax.numpy as jnp
from einops import rearrange

from alpro_jax import contrastive, losses, masking, sharding
from alpro_jax.batch import SpecialTokens
from alpro_jax.contrastive import Features
from alpro_jax.data.entities import read_entities
from alpro_jax.models.alpro import Alpro, Encoding
from alpro_jax.tasks import regions
from alpro_jax.tasks.prompter import Prompter, has_text, told
from alpro_jax.tasks.shared import model_config
from alpro_jax.tasks.teacher import init_teacher, make_teacher

LOSSES = ('vtc', 'vtm', 'mlm', 'pem')


@flax.struct.dataclass
class Targets:
  """What is asked of B pairs; a field is None without its loss.

  Attributes:
    found: bool[B, 3], of VTM: the matched pair, then whether a wrong video and
      a wrong text can be found for the row.
    masked_ids: int32[B, L], text with masked words.
    labels: int32[B, L], the masked words, -1 elsewhere.
    region: bool[B, N], patches that the teacher has named; bool[B, T, N] if they move.
    entity: float32[B, Z], its soft labels.
    keep: bool[B], False where it was not sure enough.
  """

  found: jax.Array | None = None
  masked_ids: jax.Array | None = None
  labels: jax.Array | None = None
  region: jax.Array | None = None
  entity: jax.Array | None = None
  keep: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Pretrain(Prompter):
  """The four losses; a loss of weight 0 costs nothing.

  One call of the text encoder serves clean and masked text, one call of the
  fusion encoder serves matched, mismatched and masked pairs (defect 61).

  Attributes:
    model: the student.
    special: ids of the special tokens.
    prompter: config.prompter.
    entities: names, most frequent first; empty without PEM.
  """

  special: SpecialTokens
  prompter: Any
  entities: tuple[str, ...] = ()
  negative_blocks: int = 1

  @property
  def weights(self) -> dict[str, float]:
    return {f'loss/{name}': self.options[name] for name in LOSSES if self.options[name]}

  @property
  def needs_prompter(self) -> bool:
    return bool(self.options.pem)

  @staticmethod
  def heads(options, entities) -> dict[str, Any]:
    """The heads of the model, as AlproConfig has them."""
    return {'entities': len(entities)}

  @classmethod
  def from_config(cls, config, text, mesh):
    """Returns the task of `config`.

    Raises:
      ValueError: as Prompter, for an unknown kind of negatives or a margin that is
        none, or if every weight is 0.
      FileNotFoundError: if there is PEM and no list of entities.
    """
    options = config.loss
    scopes = {
      'global': 1,
      'slice': mesh.shape['slice'],
      'local': options.negative_blocks or sharding.batch_shards(mesh),
    }
    if options.negatives not in scopes:
      raise ValueError(f'config.loss.{options.negatives=} must be one of {list(scopes)}.')
    if options.get('region_choice', 'random') not in masking.REGION_CHOICES:
      raise ValueError(
        f'config.loss.{options.region_choice=} is unknown; choose one of {masking.REGION_CHOICES}.'
      )
    negative_margin = options.get('negative_margin', -2.0)
    if not -2 <= negative_margin <= 2:
      raise ValueError(
        f'config.loss.{negative_margin=} must lie between -2 and 2, as differences of '
        'cosines do; -2 is no margin.'
      )
    if not any(options[name] for name in LOSSES):
      raise ValueError('every weight in config.loss is 0; give vtc, vtm, mlm or pem one.')
    entities, prompter = (), config.prompter
    if options.pem:
      if not prompter.entities:
        raise FileNotFoundError(
          'pre-training with PEM needs a list of entities. Make one with '
          '`python launch/entities.py`, then pass --config.prompter.entities=FILE; '
          'or train without PEM: --config.loss.pem=0.'
        )
      entities = tuple(read_entities(prompter.entities, prompter.num_entities))
    values = model_config(config.model, text.vocab_size, **cls.heads(options, entities))
    fused = [name for name in LOSSES[1:] if options[name]]
    if fused and not values.text:
      raise ValueError(
        f'config.loss has {fused}, which need a fusion encoder, but config.model.text is left '
        'out: give the model a BERT, as `launch/convert.py --bert=FOLDER` does, or set them to 0.'
      )
    return cls(
      model=Alpro(values, mesh),
      options=options,
      mesh=mesh,
      special=text.special,
      prompter=prompter,
      entities=entities,
      negative_blocks=scopes[options.negatives],
    )

  def make_frozen(self, model, params, encode):
    return make_teacher(model, params, self.entities, self.prompter, encode)

  def init_frozen(self, key):
    if not self.needs_prompter:
      return None
    return init_teacher(self.model, len(self.entities), self.prompter, key)

  def make_targets(self, frozen, batch, key, *, parts=1):
    options, keys = self.options, _keys(key)
    targets, counts = Targets(), {}
    if options.vtc:
      counts['loss/vtc'] = told(batch)
    if options.vtm:
      found = sharding.map_parts(
        lambda ids: contrastive.has_negative(ids, **self._columns),
        self.relations(batch)[0],
        parts,
        self.mesh,
      )
      found = jnp.stack([has_text(batch), found, found], axis=1)
      targets = targets.replace(found=found)
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
      targets = targets.replace(masked_ids=masked_ids, labels=labels)
      counts['loss/mlm'] = losses.labelled(labels)
    if options.pem:
      patch = self.model.config.video.patch_size
      rows, _, height = batch.video.shape[:3]
      boxes = regions.draw(options, keys['region'], rows, height // patch)
      name = functools.partial(regions.name, options, frozen, patch_size=patch, mesh=self.mesh)
      region, entity, keep = sharding.map_parts(
        lambda part: name(*part),
        (batch.video, batch.still, sharding.constrain_batch(boxes, self.mesh)),
        parts,
        self.mesh,
      )
      targets = targets.replace(region=region, entity=entity, keep=keep)
      counts['loss/pem'] = jnp.sum(keep.astype(jnp.float32))
    return targets, counts

  def contrast(self, params, features, batch, cotangent=None):
    return super().contrast(params, features, batch, cotangent) if self.options.vtc else {}

  def terms(self, params, targets, batch, key, step, *, train, cotangent=None):
    options, mask = self.options, batch.text_mask
    model = self.bind(params, key)
    video, clean, masked = self.encode(model, targets, batch, train)
    features = Features(video.feature, clean.feature)
    terms = self.contrast(params, features, batch, cotangent)
    terms['temperature'] = model.temperature(), 1.0

    # Pairs for the fusion encoder by their type: text tokens, mask, video tokens,
    # and how many of the first fused tokens are needed: PEM reads the last ones.
    pairs, length = {}, mask.shape[1]
    if options.vtm or options.pem:
      needed = length + video.tokens.shape[1] if options.pem else 1
      pairs['matched'] = clean.tokens, mask, video.tokens, needed
    if options.vtm:
      temperature = terms['temperature'][0]
      other_video, other_text = self._hard_negatives(features, temperature, batch, key, step)
      wrong_text, wrong_mask = (self._take(x, other_text) for x in (clean.tokens, mask))
      pairs['other video'] = clean.tokens, mask, self._take(video.tokens, other_video), 1
      pairs['other text'] = wrong_text, wrong_mask, video.tokens, 1
    if options.mlm:
      pairs['masked'] = masked, mask, video.tokens, length
    if not pairs:
      return terms
    *inputs, needed = zip(*pairs.values(), strict=True)
    fused = model.fuse(*map(self._interleave, inputs), train=train, query_tokens=needed)
    fused = dict(zip(pairs, fused, strict=True))

    def add(name, loss, logits, right, counted):
      is_right = jnp.argmax(logits, axis=-1) == right
      counted = counted.astype(jnp.float32)
      terms[f'loss/{name}'] = loss
      terms[f'accuracy/{name}'] = jnp.sum(is_right * counted), jnp.sum(counted)

    if options.vtm:
      names = ('matched', 'other video', 'other text')
      logits = model.match_logits(jnp.stack([fused[name][:, 0] for name in names], axis=1))
      is_match = jnp.broadcast_to(jnp.array([1, 0, 0]), targets.found.shape)
      loss = losses.vtm(logits, is_match, targets.found)
      add('vtm', loss, logits, is_match, targets.found)
    if options.mlm:
      logits, labels = model.mlm_logits(fused['masked']), targets.labels
      add('mlm', losses.mlm(logits, labels), logits, labels, labels != masking.NO_LABEL)
    if options.pem:
      region = targets.region
      if region.ndim == 3:  # Patches are means over time: each counts by its share of it.
        region = region.mean(axis=1)
      logits = model.region_entities(fused['matched'], region)
      loss = losses.pem(logits, targets.entity, targets.keep)
      add('pem', loss, logits, jnp.argmax(targets.entity, axis=1), targets.keep)
      terms |= pseudo_label_terms(targets.entity, targets.keep)
    return terms

  def bind(self, params, key=None):
    return super().bind(params, None if key is None else _keys(key)['dropout'])

  def encode(self, model, targets, batch, train):
    """Returns as Prompter.encode, and the tokens of masked text or None."""
    if not self.options.mlm:
      return *super().encode(model, targets, batch, train), None
    video = model.encode_video(batch.video, train=train)
    both = model.text_tokens(
      self._interleave((batch.text_ids, targets.masked_ids)),
      self._interleave((batch.text_mask, batch.text_mask)),
      train=train,
    )
    rows = sharding.constrain_batch(both, self.mesh)
    tokens = rearrange(rows, '(b k) l d -> b k l d', k=2)
    clean = tokens[:, 0]
    feature = model.text_feature(clean, batch.text_ids, batch.tower_ids, train=train)
    return video, Encoding(clean, feature), tokens[:, 1]

  @property
  def _columns(self):
    """Where a row looks for negatives, as contrastive.py takes it."""
    return {'blocks': self.negative_blocks, 'chunk': self.options.vtc_chunk, 'mesh': self.mesh}

  def _hard_negatives(self, features, temperature, batch, key, step):
    """int32[B] each: a wrong video for every text, a wrong text for every video."""
    options, keys = self.options, _keys(key)
    share = negative_ramp(step, options.uniform_negative_steps, options.negative_ramp_steps)
    rest = temperature, self.relations(batch)[0]
    draw = functools.partial(
      contrastive.hard_negatives,
      uniform_share=share,
      margin=options.get('negative_margin', -2.0),  # Older runs have none.
      **self._columns,
    )
    other_video, _ = draw(keys['videos'], features.text, features.video, *rest)
    other_text, _ = draw(keys['texts'], features.video, features.text, *rest)
    return other_video, other_text

  def _take(self, array, index):
    """Rows of a batch by their index; negatives come from the row's own block."""
    blocks = self.negative_blocks
    return sharding.take_rows(array, index % (array.shape[0] // blocks), self.mesh, blocks=blocks)

  def _interleave(self, arrays):
    """[f[B, ...]] * K -> f[B * K, ...], the K of one row side by side.

    Side by side, not one after the other: so every device keeps its own rows.
    """
    rows = rearrange(jnp.stack(arrays, axis=1), 'b k ... -> (b k) ...')
    return sharding.constrain_batch(rows, self.mesh)

  def describe(self, metrics):
    """Returns the top entities of the labels that are kept, with shares."""
    if 'pseudo/entities' not in metrics:
      return ''
    share = metrics['pseudo/entities']
    top = sorted(zip(share, self.entities, strict=True), reverse=True)[:5]
    return 'pseudo-labels: ' + (
      ', '.join(f'{n} {s / sum(share):.0%}' for s, n in top if s) or 'none was sure enough'
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


def pseudo_label_terms(q: jax.Array, keep: jax.Array) -> dict[str, tuple[jax.Array, float]]:
  """Tells whether pseudo-labels float32[B, Z], kept where bool[B], still say something.

  Returns:
    terms: the kept share, the mean entropy in nats and the mean top
    probability of all labels, and float32[Z], the share of all labels that is
    kept and has the entity on top: so means over parts and steps stay right.
  """
  entropy = -jnp.sum(q * jnp.log(jnp.maximum(q, 1e-30)), axis=1)
  top = jax.nn.one_hot(jnp.argmax(q, axis=1), q.shape[1])
  keep = keep.astype(jnp.float32)
  means = {
    'pseudo/kept': jnp.mean(keep),
    'pseudo/entropy': jnp.mean(entropy),
    'pseudo/confidence': jnp.mean(q.max(axis=1)),
    'pseudo/entities': jnp.mean(keep[:, None] * top, axis=0),
  }
  return {name: (mean, 1.0) for name, mean in means.items()}


def _keys(key):
  """The keys of a step by their use."""
  uses = ('dropout', 'words', 'videos', 'texts', 'region')
  return dict(zip(uses, jax.random.split(key, len(uses)), strict=True))
