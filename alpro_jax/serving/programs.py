"""What a trained model can do, as programs of jax.export.

Parameters are arguments, {name: array}, so that programs share them. Pixels go in as uint8 and are
normalised inside. The batch size is symbolic.
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


def encode_video(model: Alpro, video) -> dict[str, jax.Array]:
  """uint8[B, T, H, W, 3] -> tokens f[B, S, D] and feature float32[B, E]."""
  return _encoding(model, model.encode_video(video, train=False))


def encode_text(model: Alpro, ids, mask) -> dict[str, jax.Array]:
  """int32[B, L], bool[B, L] -> tokens f[B, L, D], feature float32[B, E]."""
  return _encoding(model, model.encode_text(ids, mask, train=False))


def _encoding(model, found):
  features = {'feature': found.feature} if model.config.embed_size else {}
  return {'tokens': found.tokens, **features}


def match(model: Alpro, text_tokens, text_mask, video_tokens) -> dict[str, jax.Array]:
  """f[B, L, D], bool[B, L], f[B, S, D] -> probability, margin float32[B]."""
  logits = model.match(text_tokens, text_mask, video_tokens)
  return {'probability': jax.nn.softmax(logits)[:, 1], 'margin': logits[:, 1] - logits[:, 0]}


def answer(model: Alpro, text_tokens, text_mask, video_tokens) -> dict[str, jax.Array]:
  """f[B, L, D], bool[B, L], f[B, S, D] -> logits float32[B, answers]."""
  return {'logits': model.answer(text_tokens, text_mask, video_tokens)}


# By name: the function, and the modules of the model that it reads. The temperature is touched by
# every call of a model that has one, and used by none of these.
PROGRAMS = {
  'encode_video': (encode_video, {'video_encoder', 'video_projection', 'temperature'}),
  'encode_text': (
    encode_text,
    {'text_embedding', 'text_encoder', 'text_projection', 'temperature'},
  ),
  'match': (match, {'fusion_encoder', 'match_head', 'temperature'}),
  'answer': (answer, {'fusion_encoder', 'answer_head', 'temperature'}),
}


def of_pairs(trained: TrainedModel) -> list[str]:
  """The programs that a model has beside its encoders."""
  has = {'match': trained.knows_matching, 'answer': trained.answers_questions}
  return [name for name, there in has.items() if there]


def flatten(params) -> dict[str, jax.Array]:
  """{'video_encoder': {'positions': x}} -> {'video_encoder/positions': x}."""
  return traverse_util.flatten_dict(params, sep='/')


def bind(model: Alpro, name: str):
  """Returns a program as a function of flat parameters and its arrays, not exported."""
  function, _ = PROGRAMS[name]

  def run(params, *inputs):
    params = traverse_util.unflatten_dict(params, sep='/')
    return model.apply({'params': params}, *inputs, method=function)

  run.__name__ = name
  return run


def make(trained: TrainedModel, platforms: Sequence[str] = PLATFORMS) -> dict[str, Program]:
  """Exports what a model was trained for: encode_video and encode_text, then match or answer.

  Args:
    trained: its config.data gives frames, image size and text length.
    platforms: of 'cpu', 'cuda', 'rocm', 'tpu'.
  """
  model = Alpro(trained.model.config.plain())
  params, data = flatten(trained.params), trained.config.data
  (batch,) = jax.export.symbolic_shape('b')

  def spec(dtype, *shape):
    return jax.ShapeDtypeStruct((batch, *shape), dtype)

  def export(name, **inputs):
    _, modules = PROGRAMS[name]
    own = {
      path: jax.ShapeDtypeStruct(x.shape, x.dtype)
      for path, x in params.items()
      if path.partition('/')[0] in modules
    }
    exporter = jax.export.export(jax.jit(bind(model, name)), platforms=platforms)
    return Program(exporter(own, *inputs.values()), tuple(sorted(own)), tuple(inputs))

  size, mask = data.image_size, spec(bool, data.max_text_tokens)
  made = {
    'encode_video': export('encode_video', video=spec(np.uint8, data.frames, size, size, 3)),
    'encode_text': export('encode_text', ids=spec(np.int32, data.max_text_tokens), mask=mask),
  }
  video, text = (
    spec(found['tokens'].dtype, *found['tokens'].shape[1:])
    for found in (program.output_specs for program in made.values())
  )
  for name in of_pairs(trained):
    made[name] = export(name, text_tokens=text, text_mask=mask, video_tokens=video)
  return made
