"""Inputs of the real shapes without data: noise to time, shapes to compile."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from alpro_jax import flops, sharding
from alpro_jax.batch import SpecialTokens, VideoTextBatch
from alpro_jax.models.alpro import Alpro
from alpro_jax.tasks.base import Task, TextInfo, get_task
from alpro_jax.tasks.pretrain import Teacher
from alpro_jax.tasks.prompter import abstract_params
from alpro_jax.train import optimizer, state, step

ANSWERS = 1500  # As many as the original's question answering has.


class Program(NamedTuple):
  """The training step of a config, and what it takes by shape and place.

  Attributes:
    task: see tasks/base.py.
    step: jitted (state, frozen, batch) -> (state, metrics).
    optimizer: that updates the state.
    state: TrainState of ShapeDtypeStruct with sharding.
    frozen: what does not train, as ShapeDtypeStruct with sharding, or None.
    batch: VideoTextBatch of ShapeDtypeStruct with sharding.
  """

  task: Task
  step: Any
  optimizer: Any
  state: Any
  frozen: Any
  batch: VideoTextBatch


def text_info(config) -> TextInfo:
  """Returns a tokenizer's facts, with the vocabulary that the config names."""
  return TextInfo(SpecialTokens(0, 1, 2, 3, 4), config.model.text.vocab_size)


@contextlib.contextmanager
def lists(config) -> Iterator[None]:
  """Gives the config lists of entities, as many as it asks, and of answers."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'entities.txt'
    count = config.prompter.num_entities or 1000
    path.write_text(''.join(f'entity{i} {count - i}\n' for i in range(count)))
    config.prompter.entities = str(path)
    path = pathlib.Path(folder) / 'answers.txt'
    path.write_text(''.join(f'answer{i}\n' for i in range(ANSWERS)))
    config.data.answers = str(path)
    yield


def task(config, mesh) -> Task:
  """Returns the config's task on made-up lists."""
  with lists(config):
    return get_task(config, text_info(config), mesh)


def program(config, mesh) -> Program:
  """Builds the step as training does; nothing is computed or allocated.

  The mesh may be of devices that are not there, to compile for them.

  Raises:
    ValueError: if the batch cannot be cut over the mesh.
  """
  accumulation = config.optimizer.accumulation
  sharding.check_batch_size(
      config.data.batch_size, mesh, accumulation=accumulation
  )
  its_task = task(config, mesh)
  tx, schedule = optimizer.from_config(config.optimizer, config.train.steps)
  shapes = state.abstract_state(its_task.init, tx, mesh)
  train_step = step.make_train_step(
      its_task, tx, schedule, mesh,
      jax.tree.map(lambda leaf: leaf.sharding, shapes),
      seed=config.seed, accumulation=accumulation,
      negatives=config.optimizer.accumulation_negatives,
      freeze=config.optimizer.freeze,
  )
  return Program(
      its_task, train_step, tx, shapes, _abstract_frozen(its_task, mesh),
      _abstract_batch(config, mesh),
  )


def batch(config) -> VideoTextBatch:
  """A batch of noise with the config's shapes, in numpy."""
  rng = np.random.default_rng(0)
  data, text = config.data, text_info(config)
  b, size = data.batch_size, data.image_size
  ids = rng.integers(
      len(text.special), text.vocab_size, (b, data.max_text_tokens), np.int32
  )
  ids[:, 0], ids[:, -1] = text.special.cls, text.special.sep
  return VideoTextBatch(
      video=rng.integers(0, 256, (b, data.frames, size, size, 3), np.uint8),
      text_ids=ids,
      text_mask=np.ones(ids.shape, bool),
      video_id=np.arange(b, dtype=np.int32),
      caption_id=np.arange(b, dtype=np.int32),
      answer=np.zeros(b, np.int32),
      still=np.zeros(b, bool),
      valid=np.ones(b, bool),
  )


def step_flops(config, model: Alpro, *, as_original: bool = False) -> int:
  """Operations that a step needs, by formula; see flops.train_step."""
  return config.data.batch_size * flops.train_step(
      model.config,
      frames=config.data.frames,
      image_size=config.data.image_size,
      length=config.data.max_text_tokens,
      vtm=bool(config.loss.vtm) and config.task in ('pretrain', 'retrieval'),
      mlm=bool(config.loss.mlm) and config.task == 'pretrain',
      pem=bool(config.loss.pem) and config.task == 'pretrain',
      as_original=as_original,
  )


def _abstract_batch(config, mesh):
  data, place = config.data, sharding.batch_sharding(mesh)
  rows, size, length = data.batch_size, data.image_size, data.max_text_tokens

  def array(dtype, *shape):
    return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=place)

  return VideoTextBatch(
      video=array(jnp.uint8, data.frames, size, size, 3),
      text_ids=array(jnp.int32, length),
      text_mask=array(bool, length),
      video_id=array(jnp.int32),
      caption_id=array(jnp.int32),
      answer=array(jnp.int32),
      still=array(bool),
      valid=array(bool),
  )


def _abstract_frozen(its_task, mesh):
  """The frozen part with the places that `load_frozen` gives it."""
  frozen = jax.eval_shape(its_task.untrained_frozen, jax.random.key(0))

  def put(leaf, where):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

  everywhere = jax.tree.map(
      lambda leaf: put(leaf, sharding.replicated(mesh)), frozen
  )
  if not isinstance(frozen, Teacher):
    return everywhere
  layout = abstract_params(Alpro(frozen.config), mesh)
  params = jax.tree.map(
      lambda leaf, like: put(leaf, like.sharding),
      frozen.params, {name: layout[name] for name in frozen.params},
  )
  return everywhere.replace(params=params)
