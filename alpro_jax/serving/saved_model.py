"""Programs as a TensorFlow SavedModel, for TensorFlow Serving and the like.

Each program is a signature of its name and stays StableHLO inside, so what
loads it needs a TensorFlow with XLA; parameters are variables, stored once.
"""

from collections.abc import Mapping

import numpy as np

from alpro_jax.serving.programs import Program


def write(programs: Mapping[str, Program], params: Mapping, folder) -> None:
  """Writes programs with their parameters.

  Args:
    programs: from programs.make.
    params: {name: array}.
    folder: to make.
  Raises:
    ValueError: if this jax cannot write for TensorFlow.
  """
  import tensorflow as tf

  try:
    from jax.experimental import jax2tf
  except ImportError as error:
    raise ValueError(
        'this jax has no jax2tf, which makes SavedModels; install one that '
        'has (0.10 and 0.12 do), or leave --savedmodel out.') from error
  module = tf.Module()
  used = sorted({n for p in programs.values() for n in p.parameters})
  # A list: what looks like a dict here comes back as another type.
  module.parameters = [
      tf.Variable(np.asarray(params[n]), trainable=False, name=n) for n in used]
  place = {name: i for i, name in enumerate(used)}

  def signature(program):
    polymorphic = [None, *['b, ...'] * len(program.inputs)]
    convert = jax2tf.convert(
        program.exported.call, polymorphic_shapes=polymorphic,
        with_gradient=False,
        native_serialization_platforms=program.exported.platforms)

    def run(*inputs):
      own = {n: module.parameters[place[n]] for n in program.parameters}
      return convert(own, *inputs)

    return tf.function(run, autograph=False, input_signature=[
        tf.TensorSpec((None, *spec.shape[1:]), spec.dtype, name)
        for name, spec in program.input_specs.items()])

  for name, program in programs.items():
    setattr(module, name, signature(program))
  tf.saved_model.save(
      module, str(folder), signatures={n: getattr(module, n) for n in programs})


def load(programs: Mapping[str, Program], folder):
  """Returns the written programs as one function, to compare them.

  It takes (name, *arrays) and returns {name of an output: numpy array}.
  """
  import tensorflow as tf

  signatures = tf.saved_model.load(str(folder)).signatures

  def call(name, *arrays):
    inputs = zip(programs[name].inputs, arrays, strict=True)
    found = signatures[name](**{n: tf.constant(x) for n, x in inputs})
    return {output: x.numpy() for output, x in found.items()}

  return call
