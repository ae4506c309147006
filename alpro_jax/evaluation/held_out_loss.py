"""The losses of training on held-out clips, whole ones, without dropout and augmentation."""

import contextlib
import math
from collections.abc import Mapping

import jax
import numpy as np

from alpro_jax import losses, sharding
from alpro_jax.tasks.base import weighted_loss


class HeldOutLoss:
  """Computes them on a few batches of the first set of `config.eval.sources`.

  The same batches each time, with the same masked words, crops and negatives, and
  negatives as in the last step: what changes is the model alone.
  """

  def __init__(self):
    self._run = None

  def names(self, plan) -> list[str]:
    """Names of the figures it will give."""
    return ['eval/loss', *(f'eval/{name}' for name in plan.task.weights)]

  def __call__(self, plan, params, step: int) -> dict[str, float]:
    """See train/loop.py; the plan has what is frozen."""
    del step
    # Here, not at the top: they import TensorFlow.
    from alpro_jax.data import dataset, feed, mixture, pipeline

    config, task = plan.config, plan.task
    if self._run is None:
      self._run = jax.jit(_losses(task, config.train.steps))
    asked = config.eval.sources[0]
    source = mixture.Source(
      dataset.open_dataset(asked.path, asked.split),
      key=0,
      style=asked.style,
      text=config.data.text,
      answers=tuple(task.answers),
    )
    data = config.data.copy_and_resolve_references()
    # Whole clips with their texts, as in evaluation.
    data.randaugment.enabled = False
    data.update({'crop': 'centre', 'sampling': data.eval_sampling})
    data.update({'single_frames': 0.0, 'without_text': 0.0})
    size = batch_size(config, plan.mesh, source.num_records)
    count = min(config.eval.loss_batches, math.ceil(source.num_records / size))
    rows = pipeline.train_batches(
      data,
      [source],
      plan.tokenizer,
      seed=config.seed,
      start_step=0,
      batch_size=size,
      rows=feed.host_rows(size),
    )
    found = []
    with contextlib.closing(rows):
      for number in range(count):
        batch = feed.to_batch(next(rows), plan.mesh)
        found.append(self._run(params, plan.frozen, batch, jax.random.key(number)))
    found = jax.device_get(found)
    return {f'eval/{name}': float(np.mean([one[name] for one in found])) for name in found[0]}


def batch_size(config, mesh, records: int) -> int:
  """Returns the rows of a batch: no more than in training, and than there are records.

  But as many as shards, blocks of negatives and chunks of the loss ask for.
  """
  loss: Mapping[str, int] = config.loss
  parts = math.lcm(
    sharding.batch_shards(mesh), loss['negative_blocks'] or 1, loss['vtc_chunk'] or 1
  )
  return max(min(config.data.batch_size, records) // parts, 1) * parts


def _losses(task, last_step):
  def run(params, frozen, batch, key):
    targets, counts = task.make_targets(frozen, batch, key)
    terms = task.terms(params, targets, batch, key, np.int32(last_step), train=False)
    parts = {name: losses.mean(*terms[name]) for name in task.weights}
    return {'loss': weighted_loss(task.weights, terms, counts), **parts}

  return run
