"""What a trained model can do, as programs of jax.export.

Parameters are arguments, {name: array}, so that programs share them. Pixels go in as uint8 and are
normalised inside. The batch size is symbolic. A model whose fusion encoder is of no use, or that
has none, gives no tokens: its features are all.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.export
import numpy as np
from flax import traverse_util

from alpro_jax.evaluation.trained import TrainedModel
from alpro_jax.models.alpro import Alpro

PLATFORMS = ('cpu', 'cuda', 'tpu')


def encode_video(model: Alpro, video) -> dict[str, jax.Array]:
  """uint8[B, T, H, W, 3] -> tokens f[B, S, D] and feature float32[B, E]."""
  return _encoding(model, model.encode_video(video, train=False))


def encode_text(model: Alpro, ids, mask, tower_ids=None) -> dict[str, jax.Array]:
  """int32[B, L], bool[B, L], of a tower beside int32[B, M] -> as `encode_video`, L tokens."""
  return _encoding(model, model.encode_text(ids, mask, tower_ids, train=False))


def _encoding(model, found):
  tokens = {'tokens': found.tokens} if model.config.text else {}
  return tokens | ({'feature': found.feature} if model.config.embed_size else {})


def match(model: Alpro, text_tokens, text_mask, video_tokens) -> dict[str, jax.Array]:
  """f[B, L, D], bool[B, L], f[B, S, D] -> probability, margin float32[B]."""
  logits = model.match(text_tokens, text_mask, video_tokens)
  return {'probability': jax.nn.softmax(logits)[:, 1], 'margin': logits[:, 1] - logits[:, 0]}


def answer(model: Alpro, text_tokens, text_mask, video_tokens) -> dict[str, jax.Array]:
  """f[B, L, D], bool[B, L], f[B, S, D] -> logits float32[B, answers]."""
  return {'logits': model.answer(text_tokens, text_mask, video_tokens)}


class Program(NamedTuple):
  """What is exported under a name.

  Attributes:
    function: of a model and the inputs.
    inputs: names of the arrays that it takes; the last ones are of some models alone.
    modules: of the model that it reads. The temperature and the bias are touched by every call of
      a model that has them, and used by none of these.
  """

  function: Callable[..., dict[str, jax.Array]]
  inputs: tuple[str, ...]
  modules: tuple[str, ...]


# Parameters that are no module's.
SCALARS = ('temperature', 'logit_bias')
_PAIR = ('text_tokens', 'text_mask', 'video_tokens')
PROGRAMS = {
  'encode_video': Program(
    encode_video, ('video',), ('video_encoder', 'video_projection', 'fusion_projection')
  ),
  'encode_text': Program(
    encode_text,
    ('ids', 'mask', 'tower_ids'),
    ('text_embedding', 'text_encoder', 'text_tower', 'text_projection'),
  ),
  'match': Program(match, _PAIR, ('fusion_encoder', 'match_head')),
  'answer': Program(answer, _PAIR, ('fusion_encoder', 'answer_head')),
}


def of_pairs(trained: TrainedModel) -> list[str]:
  """The programs that a model has beside its encoders."""
  has = {'match': trained.knows_matching, 'answer': trained.answers_questions}
  return [name for name, there in has.items() if there]


def flatten(params) -> dict[str, jax.Array]:
  """{'video_encoder': {'positions': x}} -> {'video_encoder/positions': x}."""
  return traverse_util.flatten_dict(params, sep='/')


def encode(trained: TrainedModel, texts: list[str]) -> tuple[np.ndarray, ...]:
  """Returns what the program encode_text takes of texts."""
  return trained.tokenizer.encode(texts, trained.config.data.max_text_tokens)


def bind(model: Alpro, name: str):
  """Returns a program as a function of flat parameters and its arrays, not exported."""

  def run(params, *inputs):
    params = traverse_util.unflatten_dict(params, sep='/')
    return model.apply({'params': params}, *inputs, method=PROGRAMS[name].function)

  run.__name__ = name
  return run


def make(
  trained: TrainedModel, platforms: Sequence[str] = PLATFORMS
) -> dict[str, jax.export.Exported]:
  """Exports what a model was trained for: encode_video and encode_text, then match or answer.

  Args:
    trained: its config.data gives frames, image size and text length.
    platforms: of 'cpu', 'cuda', 'rocm', 'tpu'.
  Returns:
    functions of {name: parameter} and the inputs, which return {name: output}.
  """
  model = Alpro(trained.model.config.plain())
  params, data = flatten(trained.params), trained.config.data
  (batch,) = jax.export.symbolic_shape('b')

  def spec(dtype, *shape):
    return jax.ShapeDtypeStruct((batch, *shape), dtype)

  def export(name, *inputs):
    own = {
      path: jax.ShapeDtypeStruct(x.shape, x.dtype)
      for path, x in params.items()
      if path.partition('/')[0] in (*PROGRAMS[name].modules, *SCALARS)
    }
    return jax.export.export(jax.jit(bind(model, name)), platforms=platforms)(own, *inputs)

  size = data.image_size
  texts = [spec(x.dtype, *x.shape[1:]) for x in encode(trained, [''])]
  made = {
    'encode_video': export('encode_video', spec(np.uint8, data.frames, size, size, 3)),
    'encode_text': export('encode_text', *texts),
  }
  if pairs := of_pairs(trained):
    video, text = (signature(*item).outputs['tokens'] for item in made.items())
    text, video = (spec(tokens.dtype, *tokens.shape[1:]) for tokens in (text, video))
    made |= {name: export(name, text, texts[1], video) for name in pairs}
  return made


class Signature(NamedTuple):
  """Shape and type of everything that goes in and out of a program, by name."""

  parameters: dict[str, jax.core.ShapedArray]
  inputs: dict[str, jax.core.ShapedArray]
  outputs: dict[str, jax.core.ShapedArray]


def signature(name: str, exported: jax.export.Exported) -> Signature:
  """Returns what a program takes and returns."""
  (params, *inputs), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
  outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
  return Signature(params, dict(zip(PROGRAMS[name].inputs, inputs, strict=False)), outputs)
