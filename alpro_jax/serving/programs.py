"""What a trained model can do, as programs of jax.export.

Parameters are arguments, {name: array}, so that programs share them. Pixels go
in as uint8 and are normalised inside. The batch size is symbolic.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.export
import numpy as np
from flax import traverse_util

from alpro_jax.evaluation.trained import TrainedModel
from alpro_jax.models.alpro import Alpro

PLATFORMS = ('cpu', 'cuda', 'tpu')


class Program(NamedTuple):
  """One exported function.

  Attributes:
    exported: takes {name: parameter} and the inputs, returns {name: output}.
    parameters: names of those it takes.
    inputs: names of the arrays after them.
  """

  exported: jax.export.Exported
  parameters: tuple[str, ...]
  inputs: tuple[str, ...]

  @property
  def input_specs(self) -> dict:
    """Shape and type of each input, by name."""
    (_, *specs), _ = jax.tree.unflatten(self.exported.in_tree, self.exported.in_avals)
    return dict(zip(self.inputs, specs, strict=True))

  @property
  def output_specs(self) -> dict:
    """Shape and type of each output, by name."""
    return jax.tree.unflatten(self.exported.out_tree, self.exported.out_avals)


def make(trained: TrainedModel, platforms: Sequence[str] = PLATFORMS):
  """Exports what a model was trained for.

  Args:
    trained: its config.data gives frames, image size and text length.
    platforms: of 'cpu', 'cuda', 'rocm', 'tpu'.
  Returns:
    {name: Program}: encode_video and encode_text, then match or answer.
  """
  # Rematerialisation is for gradients.
  model = Alpro(trained.model.config.plain())
  params = flatten(trained.params)
  data = trained.config.data
  (batch,) = jax.export.symbolic_shape('b')

  def spec(dtype, *shape):
    return jax.ShapeDtypeStruct((batch, *shape), dtype)

  def export(function, **inputs):
    own = {
      name: jax.ShapeDtypeStruct(x.shape, x.dtype)
      for name, x in params.items()
      if name.partition('/')[0] in _PARTS[function]
    }
    exported = jax.export.export(jax.jit(bind(model, function)), platforms=platforms)(
      own, *inputs.values()
    )
    return Program(exported, tuple(sorted(own)), tuple(inputs))

  size, mask = data.image_size, spec(bool, data.max_text_tokens)
  made = {
    'encode_video': export(encode_video, video=spec(np.uint8, data.frames, size, size, 3)),
    'encode_text': export(encode_text, ids=spec(np.int32, data.max_text_tokens), mask=mask),
  }
  video, text = (
    spec(found['tokens'].dtype, *found['tokens'].shape[1:])
    for found in (program.output_specs for program in made.values())
  )
  pair = {'text_tokens': text, 'text_mask': mask, 'video_tokens': video}
  if trained.knows_matching:
    made['match'] = export(match, **pair)
  if trained.answers_questions:
    made['answer'] = export(answer, **pair)
  return made


def flatten(params) -> dict[str, jax.Array]:
  """{'video_encoder': {'positions': x}} -> {'video_encoder/positions': x}."""
  return traverse_util.flatten_dict(params, sep='/')


def bind(model: Alpro, function):
  """Returns a function below as one of flat parameters and its arrays."""

  def run(params, *inputs):
    params = traverse_util.unflatten_dict(params, sep='/')
    return model.apply({'params': params}, *inputs, method=function)

  run.__name__ = function.__name__
  return run


def encode_video(model: Alpro, video) -> dict[str, jax.Array]:
  """uint8[B, T, H, W, 3] -> tokens f[B, S, D] and feature float32[B, E]."""
  if not model.config.embed_size:
    return {'tokens': model.video_encoder(video, train=False)}
  found = model.encode_video(video, train=False)
  return {'tokens': found.tokens, 'feature': found.feature}


def encode_text(model: Alpro, ids, mask) -> dict[str, jax.Array]:
  """int32[B, L], bool[B, L] -> tokens f[B, L, D], feature float32[B, E]."""
  if not model.config.embed_size:
    words = model.text_embedding(ids, train=False)
    return {'tokens': model.text_encoder(words, mask, train=False)}
  found = model.encode_text(ids, mask, train=False)
  return {'tokens': found.tokens, 'feature': found.feature}


def match(model: Alpro, text_tokens, text_mask, video_tokens):
  """f[B, L, D], bool[B, L], f[B, S, D] -> probability, margin float32[B]."""
  logits = model.match(text_tokens, text_mask, video_tokens)
  return {'probability': jax.nn.softmax(logits)[:, 1], 'margin': logits[:, 1] - logits[:, 0]}


def answer(model: Alpro, text_tokens, text_mask, video_tokens):
  """f[B, L, D], bool[B, L], f[B, S, D] -> logits float32[B, answers]."""
  return {'logits': model.answer(text_tokens, text_mask, video_tokens)}


# The modules of the model that each one reads. The temperature is touched by
# every call of a model that has one, and used by none of these.
_PARTS = {
  encode_video: ('video_encoder', 'video_projection', 'temperature'),
  encode_text: ('text_embedding', 'text_encoder', 'text_projection', 'temperature'),
  match: ('fusion_encoder', 'match_head', 'temperature'),
  answer: ('fusion_encoder', 'answer_head', 'temperature'),
}
