"""Compares programs with the live model that they were made from."""

from collections.abc import Callable

import jax
import numpy as np

from alpro_jax.evaluation.trained import TrainedModel

# Largest difference that is let through, as a share of the largest value of an
# output if that is above 1: on CPUs in float32, and where numbers are coarser
# (bfloat16, and float32 multiplied as accelerators do).
TOLERANCE, COARSE_TOLERANCE = 1e-5, 2e-2
# The live model runs on the largest of these, the programs on each.
BATCH_SIZES = (1, 2, 5)

# (name of a program, arrays) -> {name of an output: array}
Call = Callable[..., dict]


def default_tolerance(trained: TrainedModel) -> float:
  """Returns the tolerance for a model on this machine."""
  exact = jax.default_backend() == 'cpu' and trained.model.config.dtype == 'float32'
  return TOLERANCE if exact else COARSE_TOLERANCE


def differences(
  trained: TrainedModel, call: Call, expected: dict | None = None
) -> dict[str, float]:
  """Asks programs and returns how far each output is from the live one.

  What the encoders found goes into the programs that follow, so that errors
  add up as they do in use.

  Args:
    trained: the live model.
    call: runs a program.
    expected: from `live`; None asks the live model now.
  Returns:
    {'program/output': difference}, as TOLERANCE counts it.
  """
  expected = live(trained) if expected is None else expected
  worst = dict.fromkeys(expected, 0.0)
  for batch in BATCH_SIZES:
    for name, found in _ask(call, _inputs(trained, batch), trained).items():
      right = expected[name][:batch]
      scale = max(1.0, float(np.abs(right).max()))
      error = np.abs(found - right).max() / scale
      worst[name] = float(np.maximum(worst[name], error))  # NaN stays.
  return worst


def live(trained: TrainedModel) -> dict[str, np.ndarray]:
  """Returns what the live model says, {'program/output': array}."""

  def run(params, video, ids, mask):
    model = trained.model.bind({'params': params})
    video = model.encode_video(video, train=False)
    text = model.encode_text(ids, mask, train=False)
    found = {'encode_video/tokens': video.tokens, 'encode_text/tokens': text.tokens}
    if model.config.embed_size:
      found |= {'encode_video/feature': video.feature, 'encode_text/feature': text.feature}
    pair = text.tokens, mask, video.tokens
    if trained.knows_matching:
      logits = model.match(*pair)
      found |= {
        'match/probability': jax.nn.softmax(logits)[:, 1],
        'match/margin': logits[:, 1] - logits[:, 0],
      }
    if trained.answers_questions:
      found['answer/logits'] = model.answer(*pair)
    return found

  found = jax.jit(run)(trained.params, *_inputs(trained, BATCH_SIZES[-1]))
  return {name: np.asarray(x, np.float32) for name, x in found.items()}


def _ask(call, inputs, trained):
  """Runs all programs on the same inputs, as `live`."""
  video, ids, mask = inputs
  found = {
    'encode_video': call('encode_video', video),
    'encode_text': call('encode_text', ids, mask),
  }
  pair = (found['encode_text']['tokens'], mask, found['encode_video']['tokens'])
  if trained.knows_matching:
    found['match'] = call('match', *pair)
  if trained.answers_questions:
    found['answer'] = call('answer', *pair)
  return {
    f'{name}/{output}': np.asarray(x, np.float32)
    for name, outputs in found.items()
    for output, x in outputs.items()
  }


def _inputs(trained, batch):
  """Noise and random words: uint8 clips, int32 ids, bool mask."""
  data, text = trained.config.data, trained.model.config.text
  rng = np.random.default_rng(0)
  most, size, length = BATCH_SIZES[-1], data.image_size, data.max_text_tokens
  video = rng.integers(0, 256, (most, data.frames, size, size, 3), dtype=np.uint8)
  ids = rng.integers(0, text.vocab_size, (most, length), dtype=np.int32)
  mask = np.arange(length) < rng.integers(3, length + 1, (most, 1))
  ids = np.where(mask, ids, trained.tokenizer.special.pad).astype(np.int32)
  return video[:batch], ids[:batch], mask[:batch]
