"""The frozen prompter as the teacher of PEM (paper section 3.2)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from alpro_jax import masking
from alpro_jax.models import prompter
from alpro_jax.models.alpro import Alpro, AlproConfig
from alpro_jax.tasks.base import Encode
from alpro_jax.tasks.shared import init_model


@flax.struct.dataclass
class Teacher:
  """The frozen prompter: data to the step, never in the optimizer.

  Attributes:
    params: of its video encoder, projection and temperature.
    bank: prompt features of every entity.
    config: sizes of its model, which may differ from the student's.
    rule: of what to ignore; see models.prompter.pseudo_labels.
    threshold: of the rule.
  """

  params: Any
  bank: prompter.PromptBank
  config: AlproConfig = flax.struct.field(pytree_node=False)
  rule: str = flax.struct.field(pytree_node=False)
  threshold: float = flax.struct.field(pytree_node=False)

  def label(
    self,
    video: jax.Array,
    region: jax.Array,
    still: jax.Array,
    *,
    patch_size: int,
    mesh: jax.sharding.Mesh | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Says which entity a region of each clip shows.

    Args:
      video: uint8[B, T, H, W, 3].
      region: bool[B, N] of patches, or bool[B, T, N] of each frame.
      still: bool[B], True where the clip is a photo.
      patch_size: of the regions.
      mesh: of the devices that the batch is sharded over.
    Returns:
      float32[B, Z] soft labels and bool[B], False on examples to ignore. No
      gradient flows through them.
    """
    crop = masking.crop_regions(video, region, patch_size)
    model = Alpro(self.config, mesh).bind({'params': self.params})
    feature, temperature = model.encode_video(crop, train=False).feature, model.temperature()
    return prompter.pseudo_labels(
      feature, self.bank, still, temperature, rule=self.rule, threshold=self.threshold
    )


def make_teacher(
  model: Alpro, params: Any, entities: Sequence[str], options, encode: Encode
) -> Teacher:
  """Returns the teacher that a trained prompter makes; warns of useless prompts.

  Args:
    model: of the prompter.
    params: its parameters.
    entities: Z names.
    options: config.prompter.
    encode: of its tokenizer.
  """
  if path := options.get('prompts', ''):
    return _teacher(params, prompter.read_prompts(path, entities), model.config, options)
  video = tuple(options.video_templates or prompter.VIDEO_TEMPLATES)
  image = tuple(options.image_templates or prompter.IMAGE_TEMPLATES)
  check_prompts(encode, video + image, entities, options.max_prompt_tokens)

  @jax.jit
  def features(params, *ids):
    return model.apply({'params': params}, *ids, train=False, method='encode_text').feature

  bank = prompter.build_prompt_bank(
    lambda texts: features(params, *map(jnp.asarray, encode(texts, options.max_prompt_tokens))),
    entities,
    video_templates=video,
    image_templates=image,
    renormalize=options.renormalize,
  )
  return _teacher(params, bank, model.config, options)


def init_teacher(student: Alpro, entities: int, options, key: jax.Array) -> Teacher:
  """A teacher of the student's sizes with random weights, boxed."""
  config = dataclasses.replace(student.config, entities=0)
  rows = jax.random.normal(key, (2, entities, config.embed_size))
  rows /= jnp.linalg.norm(rows, axis=-1, keepdims=True)
  params = init_model(Alpro(config, student.mesh), key)
  return _teacher(params, prompter.PromptBank(*rows), config, options)


def _teacher(params, bank, config, options):
  # The bias is touched by every call of a model that has one.
  names = ('video_encoder', 'video_projection', 'temperature', 'logit_bias')
  used = {name: params[name] for name in names if name in params}
  return Teacher(used, bank, config, options.ignore_rule, options.ignore_threshold)


def check_prompts(
  encode: Encode, templates: Sequence[str], entities: Sequence[str], max_tokens: int
) -> None:
  """Warns of entities whose prompts are cut off, or are read like another's."""
  cut, read = {}, [b''] * len(entities)
  for template in templates:
    texts = prompter.fill_template(template, entities)
    ids, mask = encode(texts, max_tokens + 1)[:2]
    cut |= {entities[i]: texts[i] for i in np.flatnonzero(mask[:, -1])}
    # What stands before [SEP] when a prompt has `max_tokens` tokens.
    read = [a + b.tobytes() for a, b in zip(read, ids[:, : max_tokens - 1], strict=True)]
  if cut:
    logging.warning(
      'prompts of %d of %d entities are cut off at prompter.max_prompt_tokens=%d, such as %r.',
      len(cut),
      len(entities),
      max_tokens,
      next(iter(cut.values())),
    )
  alike = {}
  for name, tokens in zip(entities, read, strict=True):
    alike.setdefault(tokens, []).append(name)
  for names in alike.values():
    if len(names) > 1:
      logging.warning(
        'the tokenizer reads the prompts of %d entities alike, so their '
        'labels say nothing: %s. Keep one of them in the list.',
        len(names),
        ', '.join(names[:5]),
      )
