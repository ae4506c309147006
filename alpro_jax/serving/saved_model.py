"""Programs as a TensorFlow SavedModel, for TensorFlow Serving and the like.

Each program is a signature of its name and stays StableHLO inside, so what loads it needs a
TensorFlow with XLA; parameters are variables, stored once.

The operation that holds a program is called here and not by jax2tf, which writes for a TensorFlow
of the same month: what jax 0.12 wrote TensorFlow 2.21, the newest there was, could not read.
"""

from collections.abc import Mapping

import jax
import numpy as np
from jaxlib.mlir import ir, passmanager
from jaxlib.mlir.dialects import stablehlo

from alpro_jax.serving.programs import PROGRAMS, signature

# Old enough for a TensorFlow of 2025, new enough for all that a model here uses; what does not fit
# is an error when writing.
STABLEHLO = '1.9.0'


def write(
  made: Mapping[str, jax.export.Exported], params: Mapping[str, np.ndarray], folder
) -> None:
  """Writes what programs.make returned, and {name: array} that it takes, to a new folder.

  Raises:
    ValueError: if the calling convention of this jax is newer than what this TensorFlow knows.
    OSError: if TensorFlow cannot write a file, which it names.
  """
  import tensorflow as tf

  module = tf.Module()
  index = {name: i for i, name in enumerate(params)}
  # A list: what looks like a dict here comes back as another type.
  module.parameters = [tf.Variable(x, trainable=False, name=name) for name, x in params.items()]

  def function(name, exported):
    call, (own, inputs, _) = _call(exported), signature(name, exported)
    specs = [tf.TensorSpec((None, *x.shape[1:]), x.dtype, n) for n, x in inputs.items()]

    def run(*inputs):
      return call({n: module.parameters[index[n]] for n in own}, *inputs)

    return tf.function(run, autograph=False, input_signature=specs)

  functions = {name: function(name, exported) for name, exported in made.items()}
  for name in functions:
    setattr(module, name, functions[name])
  try:
    tf.saved_model.save(module, str(folder), signatures=functions)
  except tf.errors.OpError as error:
    raise OSError(f'the SavedModel could not be written: {error.message}') from error


def _call(exported):
  """The exported function as one of TensorFlow's tensors."""
  import tensorflow as tf
  from tensorflow.compiler.tf2xla.python import xla

  version = exported.calling_convention_version
  newest = xla.call_module_maximum_supported_version()
  if version > newest:
    raise ValueError(
      f'jax {jax.__version__} writes calling convention {version}; TensorFlow {tf.__version__} '
      f'reads up to {newest}: install a newer TensorFlow or leave --savedmodel out.'
    )
  stored = _older(exported.mlir_module_serialized)
  shapes = [[d if isinstance(d, int) else None for d in x.shape] for x in exported.out_avals]

  def call(*args):
    flat = jax.tree.leaves(args)
    found = xla.call_module(
      [flat[i] for i in exported.module_kept_var_idx],
      version=version,
      module=stored,
      Sout=shapes,
      Tout=[tf.dtypes.as_dtype(x.dtype) for x in exported.out_avals],
      platforms=[name.upper() for name in exported.platforms],
    )
    return jax.tree.unflatten(exported.out_tree, found)

  return call


def _older(module):
  """StableHLO bytecode, for readers of version STABLEHLO and newer.

  Composites (erf is one) become calls of their bodies: TensorFlow 2.21 finds the shapes of
  operations for a given batch size, but not of those bodies.
  """
  with ir.Context() as context:
    stablehlo.register_stablehlo_passes()
    parsed = stablehlo.deserialize_portable_artifact(context, module)
    calls = 'builtin.module(func.func(stablehlo-legalize-composite-to-call))'
    passmanager.PassManager.parse(calls).run(parsed.operation)
    return stablehlo.serialize_portable_artifact(parsed, STABLEHLO)


def load(folder):
  """Returns the written programs as a check.Call, to compare them."""
  import tensorflow as tf

  signatures = tf.saved_model.load(str(folder)).signatures

  def call(name, *arrays):
    inputs = zip(PROGRAMS[name].inputs, arrays, strict=False)
    found = signatures[name](**{n: tf.constant(x) for n, x in inputs})
    return {output: x.numpy() for output, x in found.items()}

  return call
