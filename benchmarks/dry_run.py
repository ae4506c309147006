"""The training step of a config without its data: to compile, or to try.

    program = dry_run.program(config, mesh)
    compiled = program.step.lower(
        program.state, program.frozen, program.batch).compile()

Nothing that the config names is read: noise stands in for clips and texts,
numbered words for entities and answers.
"""

import pathlib
import tempfile
from typing import Any, NamedTuple

import jax
import numpy as np

from alpro_jax import sharding
from alpro_jax.batch import SpecialTokens, VideoTextBatch
from alpro_jax.tasks.base import Task, TextInfo
from alpro_jax.tasks.registry import get_task
from alpro_jax.train import step

ENTITIES = 1000  # If the config asks for all of its list.
ANSWERS = 1500  # As many as the original's question answering has.


class Program(NamedTuple):
  """The training step of a config, with the shapes and shardings it takes.

  Attributes:
    task, step, optimizer, state, first: see alpro_jax/train/step.py, Update.
    frozen: what does not train, as ShapeDtypeStruct with sharding, or None.
    batch: VideoTextBatch of ShapeDtypeStruct with sharding.
  """

  task: Task
  step: Any
  optimizer: Any
  state: Any
  first: Any
  frozen: Any
  batch: VideoTextBatch


def text_info(config) -> TextInfo:
  """Returns a tokenizer's facts, with the vocabulary that the config names."""
  encoder = config.model.get('text') or config.model.text_tower
  return TextInfo(SpecialTokens(0, 1, 2, 3, 4), encoder.vocab_size)


def task(config, mesh) -> Task:
  """Returns the config's task, with made-up entities and answers."""
  config = config.copy_and_resolve_references()
  with tempfile.TemporaryDirectory() as folder:
    entities = pathlib.Path(folder, 'entities.txt')
    count = config.prompter.num_entities or ENTITIES
    entities.write_text(''.join(f'entity{i} {count - i}\n' for i in range(count)))
    answers = pathlib.Path(folder, 'answers.txt')
    answers.write_text(''.join(f'answer{i}\n' for i in range(ANSWERS)))
    config.prompter.entities, config.data.answers = str(entities), str(answers)
    return get_task(config, text_info(config), mesh)


def program(config, mesh) -> Program:
  """Builds the step as training does; nothing is computed or allocated.

  The mesh may be of devices that are not there, to compile for them.

  Raises:
    ValueError: if the batch cannot be sharded over the mesh.
  """
  accumulation = config.optimizer.accumulation
  sharding.check_batch_size(config.data.batch_size, mesh, accumulation=accumulation)
  update = step.make_update(config, task(config, mesh), mesh)
  frozen = jax.eval_shape(update.task.init_frozen, jax.random.key(0))
  where, rows = sharding.batch_sharding(mesh), config.data.batch_size
  batch = jax.tree.map(
    lambda row: jax.ShapeDtypeStruct((rows, *row.shape[1:]), row.dtype, sharding=where),
    noise(config, rows=1),
  )
  if config.data.features:
    from alpro_jax.train import features  # Needs what reads data, which compilers have not.

    features.check(config, update.task, update.state.params)
    batch = features.in_place_of(batch, update.task, update.state.params)
  return Program(*update, sharding.abstract(frozen, mesh), batch)


def noise(config, rows: int | None = None) -> VideoTextBatch:
  """Returns a batch of noise, in numpy, with the shapes of the config.

  Args:
    config: see configs/common.py.
    rows: of the batch; config.data.batch_size without.
  """
  rng = np.random.default_rng(0)
  data, text = config.data, text_info(config)
  b, size = rows or data.batch_size, data.image_size
  ids = rng.integers(len(text.special), text.vocab_size, (b, data.max_text_tokens), np.int32)
  ids[:, 0], ids[:, -1] = text.special.cls, text.special.sep
  return VideoTextBatch(
    video=rng.integers(0, 256, (b, data.frames, size, size, 3), np.uint8),
    text_ids=ids,
    text_mask=np.ones(ids.shape, bool),
    tower_ids=_tower_noise(config, rng, b),
    video_id=np.arange(b, dtype=np.int32),
    caption_id=np.arange(b, dtype=np.int32),
    answer=np.zeros(b, np.int32),
    still=np.zeros(b, bool),
    valid=np.ones(b, bool),
  )


def _tower_noise(config, rng, rows):
  """int32[rows, M]: the texts again, for a text tower beside a BERT; M is 0 without."""
  tower, length = config.model.get('text_tower'), config.data.max_tower_tokens
  if not tower or not config.model.get('text'):
    return np.zeros((rows, 0), np.int32)
  ids = rng.integers(0, tower.vocab_size, (rows, length), np.int32)
  ids[:, -1] = tower.end_id
  return ids
