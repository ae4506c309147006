"""Compares programs with the live model that they were made from."""

from collections.abc import Callable

import jax
import numpy as np

from alpro_jax.evaluation.trained import TrainedModel
from alpro_jax.serving import programs

# Largest difference that is let through, as a share of the largest value of an output if that is
# above 1: on CPUs in float32, and where numbers are coarser (bfloat16, and float32 multiplied as
# accelerators do).
TOLERANCE, COARSE_TOLERANCE = 1e-5, 2e-2
# The live model runs on the largest of these, the programs on each.
BATCH_SIZES = (1, 2, 5)

# (name of a program, arrays) -> {name of an output: array}
Call = Callable[..., dict]


def default_tolerance(trained: TrainedModel) -> float:
  """Returns the tolerance for a model on this machine."""
  exact = jax.default_backend() == 'cpu' and trained.model.config.dtype == 'float32'
  return TOLERANCE if exact else COARSE_TOLERANCE


def live(trained: TrainedModel) -> dict[str, np.ndarray]:
  """Returns what the live model says, {'program/output': array}."""
  params = programs.flatten(trained.params)

  def call(name, *arrays):
    return jax.jit(programs.bind(trained.model, name))(params, *arrays)

  return _ask(call, trained, BATCH_SIZES[-1])


def differences(
  trained: TrainedModel, call: Call, expected: dict[str, np.ndarray]
) -> dict[str, float]:
  """Asks programs and returns how far each output is from the live one.

  Args:
    trained: the live model.
    call: runs a program.
    expected: from `live`.
  Returns:
    {'program/output': difference}, as TOLERANCE counts it.
  """
  worst = dict.fromkeys(expected, 0.0)
  for batch in BATCH_SIZES:
    for name, found in _ask(call, trained, batch).items():
      right = expected[name][:batch]
      scale = max(1.0, float(np.abs(right).max()))
      error = np.abs(found - right).max() / scale
      worst[name] = float(np.maximum(worst[name], error))  # NaN stays.
  return worst


def _ask(call, trained, batch):
  """Runs all programs on noise and texts of random words.

  What the encoders found goes into the programs that follow, so that errors add up as they do in
  use.
  """
  data, tokenizer = trained.config.data, trained.tokenizer
  rng = np.random.default_rng(0)
  most, size, length = BATCH_SIZES[-1], data.image_size, data.max_text_tokens
  video = rng.integers(0, 256, (most, data.frames, size, size, 3), dtype=np.uint8)
  counts = rng.integers(1, length + 1, most)
  words = [tokenizer.decode(rng.integers(0, tokenizer.vocab_size, count)) for count in counts]
  texts = [x[:batch] for x in programs.encode(trained, words)]
  found = {
    'encode_video': call('encode_video', video[:batch]),
    'encode_text': call('encode_text', *texts),
  }
  if pairs := programs.of_pairs(trained):
    pair = found['encode_text']['tokens'], texts[1], found['encode_video']['tokens']
    found |= {name: call(name, *pair) for name in pairs}
  return {
    f'{name}/{output}': np.asarray(x, np.float32)
    for name, outputs in found.items()
    for output, x in outputs.items()
  }
