"""A pre-training task small enough to compile in seconds, and its batch."""

import jax
import numpy as np

from alpro_jax import sharding
from alpro_jax.batch import SpecialTokens, VideoTextBatch
from alpro_jax.tasks.base import TextInfo, weighted_loss
from alpro_jax.tasks.registry import get_task
from alpro_jax.tasks.shared import init_model
from alpro_jax.train.step import make_gradients, step_key
from configs import pretrain

TEXT = TextInfo(SpecialTokens(0, 1, 2, 3, 4), vocab_size=40)


def small_config(folder, task='pretrain'):
  """The demo's config with a model of one video block."""
  config = pretrain.get_config('demo')
  config.task = task
  config.data.update({'batch_size': 16, 'frames': 2, 'image_size': 24})
  config.model.video.update(
    {'image_size': 24, 'patch_size': 12, 'frames': 2, 'width': 32, 'depth': 1, 'mlp_size': 64}
  )
  config.model.text.update(
    {
      'width': 32,
      'depth': 2,
      'fusion_layer': 1,
      'mlp_size': 64,
      'max_positions': 16,
      'dropout': 0.1,
    }
  )
  config.model.embed_size = 16
  config.loss.update({'uniform_negative_steps': 0, 'negative_ramp_steps': 0})
  path = folder / 'entities.txt'
  path.write_text('disc 3\nring 2\ncross 1\n')
  config.prompter.update({'entities': str(path), 'num_entities': 3})
  return config


def fresh_params(model, seed=0):
  """Random parameters of an Alpro, unboxed, on the first device of this process."""
  mesh = sharding.make_mesh(devices=jax.local_devices()[:1])
  return sharding.create(lambda key: init_model(model, key), jax.random.key(seed), mesh)


def small_task(config, mesh):
  return get_task(config, TEXT, mesh)


def loss_of(task, params, frozen, batch, key, step):
  """Returns the loss of a whole batch in training, and its terms."""
  targets, counts = task.make_targets(frozen, batch, key)
  terms = task.terms(params, targets, batch, key, step, train=True)
  return weighted_loss(task.weights, terms, counts), terms


def small_batch(rows=16, seed=0):
  """Noise; rows 0 and 1 show one video, rows 2 and 3 share a caption."""
  rng = np.random.default_rng(seed)
  ids = rng.integers(5, TEXT.vocab_size, (rows, 8)).astype(np.int32)
  ids[:, 0] = TEXT.special.cls
  lengths = rng.integers(4, 9, rows)
  mask = np.arange(8) < lengths[:, None]
  ids[np.arange(rows), lengths - 1] = TEXT.special.sep
  ids[~mask] = TEXT.special.pad
  video_id = np.arange(rows, dtype=np.int32)
  caption_id = np.arange(rows, dtype=np.int32)
  video_id[1] = video_id[0]
  caption_id[3] = caption_id[2]
  video = rng.integers(0, 256, (rows, 2, 24, 24, 3)).astype(np.uint8)
  video[1], ids[3], mask[3] = video[0], ids[2], mask[2]
  return VideoTextBatch(
    video=video,
    text_ids=ids,
    text_mask=mask,
    tower_ids=np.zeros((rows, 0), np.int32),
    video_id=video_id,
    caption_id=caption_id,
    answer=np.where(np.arange(rows) % 4 == 3, -1, np.arange(rows) % 3).astype(np.int32),
    still=np.arange(rows) % 5 == 4,
    valid=np.ones(rows, bool),
  )


def gradients_on(config, mesh, *, step=3, compiled=False, host=None, **options):
  """Loss parts and gradients of one batch, as numpy, on a mesh.

  Of `small_batch`, or of the batch in numpy that is given as `host`; options are those
  of make_gradients.

  Returns:
    (metrics, gradients), or with `compiled` the text of the program.
  """
  task = small_task(config, mesh)
  params = sharding.create(task.init, jax.random.key(0), mesh)
  frozen = sharding.create(task.init_frozen, jax.random.key(1), mesh)
  host = host or small_batch(config.data.batch_size)
  batch = jax.tree.map(
    lambda x: jax.make_array_from_callback(
      x.shape, sharding.batch_sharding(mesh), lambda index: x[index]
    ),
    host,
  )
  run = jax.jit(make_gradients(task, mesh, **options), out_shardings=sharding.replicated(mesh))
  arguments = (params, frozen, batch, step_key(7, step), np.int32(step))
  if compiled:
    return run.lower(*arguments).compile().as_text()
  return jax.tree.map(np.asarray, run(*arguments))
