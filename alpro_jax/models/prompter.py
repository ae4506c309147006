"""The prompter's labels: which entity does a region of a clip show?

A trained, frozen video-text model is asked by prompts: "A video of a dog." is
a text like any other, and a crop of a clip is a video like any other.
"""

import zipfile
from collections.abc import Callable, Sequence

import flax
import jax
import jax.numpy as jnp
import numpy as np

from alpro_jax import files
from alpro_jax.models.alpro import unit_length

IGNORE_RULES = ('probability', 'index')


def _templates(nouns, determiners):
  return tuple(f'A {noun} of {which} {{entity}}.' for noun in nouns for which in determiners)


# The paper's prompts, in its order. A template has one place, {entity}.
VIDEO_TEMPLATES = _templates(('footage', 'video', 'portrait', 'video footage'), ('a', 'the', 'one'))
IMAGE_TEMPLATES = (
  *_templates(('photo', 'picture'), ('a', 'the', 'one')),
  *_templates(('good photo', 'good picture'), ('the', 'a', 'one')),
)


@flax.struct.dataclass
class PromptBank:
  """Features of every entity's prompts, for videos and for photos."""

  video: jax.Array  # float32[Z, E]
  image: jax.Array  # float32[Z, E]


def fill_template(template: str, entities: Sequence[str]) -> list[str]:
  """'A photo of a {entity}.', ['dog', 'cat'] -> the two prompts.

  Raises:
    ValueError: if the template has not exactly one {entity}.
  """
  if template.count('{entity}') != 1:
    raise ValueError(
      f"{template=} must contain {{entity}} exactly once, as in 'A video of a {{entity}}.'."
    )
  return [template.replace('{entity}', entity) for entity in entities]


def build_prompt_bank(
  features: Callable[[list[str]], jax.Array],
  entities: Sequence[str],
  *,
  video_templates: Sequence[str] = VIDEO_TEMPLATES,
  image_templates: Sequence[str] = IMAGE_TEMPLATES,
  renormalize: bool = True,
) -> PromptBank:
  """Averages each entity's features over the templates.

  Args:
    features: Z texts -> float32[Z, E] of unit length; called per template.
    entities: Z names.
    video_templates: for clips.
    image_templates: for photos.
    renormalize: bring the averages back to unit length. The original does not,
      which favours entities that all templates agree on (defect 17).
  Raises:
    ValueError: if there is no entity, a blank one, or no template.
  """
  blank = [i for i, entity in enumerate(entities) if not entity.strip()]
  if not entities or blank:
    raise ValueError(
      f'{len(entities)} entities with blank ones at {blank[:5]}; expected at '
      'least one, none blank. Check the entity file.'
    )

  def average(templates):
    if not templates:
      raise ValueError('No prompt template given; expected at least one.')
    rows = [features(fill_template(text, entities)) for text in templates]
    return ensemble(jnp.stack(rows), renormalize=renormalize)

  return PromptBank(video=average(video_templates), image=average(image_templates))


def write_prompts(path, feature: np.ndarray, entities: Sequence[str], digest: str) -> None:
  """Writes learned prompts float32[Z, E] of a prompter, whose parameters have this digest."""
  with files.file(path, wait=True) as made, open(made, 'wb') as stream:
    np.savez(stream, feature=feature, entities=list(entities), prompter=digest)


def read_prompts(path, entities: Sequence[str], digest: str = '') -> PromptBank:
  """Reads learned prompts: the same for videos and for photos.

  Args:
    path: of the file.
    entities: Z names.
    digest: of the parameters of the prompter; '' is any.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is damaged, or of other entities or another prompter.
  """
  try:
    with np.load(path) as stored:
      feature, names, of = (stored[name] for name in ('feature', 'entities', 'prompter'))
  except (ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
    raise ValueError(f'{path} is no file of launch/prompts.py: {error}.') from error
  for what, wanted, has in (
    ('list of entities', list(entities), names.tolist()),
    ('prompter', digest, str(of)),
  ):
    if wanted and wanted != has:
      raise ValueError(
        f'the prompts of {path} were learned for another {what}: {has}, not '
        f'{wanted}; learn them again with launch/prompts.py.'
      )
  return PromptBank(jnp.asarray(feature), jnp.asarray(feature))


def ensemble(rows: jax.Array, *, renormalize: bool) -> jax.Array:
  """float32[templates, Z, E] -> float32[Z, E], the mean over templates."""
  rows = jnp.mean(rows.astype(jnp.float32), axis=0)
  return unit_length(rows) if renormalize else rows


def pseudo_labels(
  feature: jax.Array,
  bank: PromptBank,
  still: jax.Array,
  temperature: jax.Array,
  *,
  rule: str,
  threshold: float = 0.2,
) -> tuple[jax.Array, jax.Array]:
  """Softens similarities to all prompts into a label per example.

  Args:
    feature: float32[B, E], unit length, of the cropped clip.
    bank: prompts of Z entities.
    still: bool[B], True where the photo prompts are to be used.
    temperature: float32[], the prompter's.
    rule: 'probability' keeps an example if its top probability reaches the
      threshold, as the paper says; 'index' compares the index of the top
      entity, as the original's code does (defect 3): all but entity 0 stay.
    threshold: see `rule`.
  Returns:
    q float32[B, Z] and keep bool[B]. No gradient flows to the prompter.
  """
  if rule not in IGNORE_RULES:
    raise ValueError(f'{rule=} is not known; choose one of {IGNORE_RULES}.')

  def scores(prompts):
    return jnp.einsum('be,ze->bz', feature, prompts, precision=jax.lax.Precision.HIGHEST)

  similarity = jnp.where(still[:, None], scores(bank.image), scores(bank.video))
  q = jax.nn.softmax(similarity / temperature, axis=-1)
  top = jnp.argmax(q, axis=-1) if rule == 'index' else jnp.max(q, axis=-1)
  return jax.lax.stop_gradient(q), top >= threshold
