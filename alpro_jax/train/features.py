"""Features of frozen encoders: made once of every clip and text, kept on disk, trained from.

A frozen encoder gives the same for a clip in every epoch, if the clip is the same: so that is
made before the first step, and a step computes what is trained alone. What was made is known
by content, as all that a run depends on: the parameters of the encoder, its options, the
records of the set, and how they are read.

    DIR/0-video/    of the clips of config.data.sources[0]: what the video encoder gives
    DIR/0-text/     of its texts: what a frozen text tower gives

Tokens of the BERT that feeds the fusion encoder are not kept: those of a dozen captions would
take more room than their clip's, and a text is short to read.
"""

import contextlib
import functools
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import linen as nn

from alpro_jax import files, sharding
from alpro_jax.data import features as on_disk
from alpro_jax.data import tokens
from alpro_jax.data.progress import Progress
from alpro_jax.tasks.base import Task
from alpro_jax.train import digests, identity, options, trees

VIDEO, TEXT = 'video_encoder', 'text_tower'
OPTION = 'config.data.features'
# Options of config.data that decide what an encoder sees of a clip.
_CLIPS = ('frames', 'sampling', 'crop', 'image_size', 'resize', 'resize_mode')
_INITIAL = ('matrix_std', 'temporal_fc_std', 'position_std', 'time_std', 'word_std')
# What is larger is not read through when it is opened.
_VERIFY_BELOW_BYTES = 4 << 30


def check(config: Any, task: Task, trained: Any) -> None:
  """Refuses a run whose clips or video encoder change from one step to another.

  Args:
    config: see configs/common.py.
    task: of the run.
    trained: tree of the parameters that are trained.
  Raises:
    ValueError: with every option that would have to be another.
  """
  if not config.data.features:
    return
  data, video = config.data, task.model.config.video
  names = [name for name in trees.by_name(trained) if name.startswith(f'{VIDEO}/')]
  adapted = [name for name in names if name.endswith(('/kernel/a', '/kernel/b'))]
  freeze = ','.join(filter(None, (config.optimizer.freeze, VIDEO)))
  squashed = data.resize == data.image_size and data.resize_mode == 'squash'
  cures = {
    f"optimizer.freeze='{freeze}'": len(adapted) < len(names),
    f"optimizer.lora.kernels='(?!{VIDEO}).*/(query|value)'": adapted,
    'data.sampling=uniform': data.sampling not in ('uniform', 'nlvl_uniform'),
    'data.crop=centre': not squashed and data.crop != 'centre',
    'data.randaugment.enabled=False': data.randaugment.enabled,
    'data.still_frames=0': data.still_frames,
    'data.single_frames=0': data.single_frames,
    'model.video.drop_path=0': video.drop_path,
    'model.video.dropout=0': video.dropout,
    'loss.pem=0': task.needs_prompter,  # Which looks at regions of clips.
  }
  if wanted := [f'--config.{cure}' for cure, needed in cures.items() if needed]:
    raise ValueError(
      f'{OPTION} keeps what a frozen video encoder makes of clips, once for all steps, but here '
      f'encoder or clips change. Train with {" ".join(wanted)}, or without {OPTION}.'
    )


def prepare(
  plan: Any, state: Any, doing: Callable[[str], None] = lambda what: None
) -> list[on_disk.Made]:
  """Opens the features of a run, and makes those that are missing.

  Args:
    plan: of train/loop.py.
    state: TrainState; what it holds still makes them.
    doing: is told before every batch what is being done.
  Returns:
    what each source is read from.
  Raises:
    ValueError: if the folder holds those of other weights, clips or texts, or is damaged; or
      if several processes would have to make them.
    OSError: if the disk is too small.
  """
  folder, tower = pathlib.Path(plan.config.data.features), plan.task.model.config.text_tower
  makers: dict[str, Callable] = {VIDEO: _of_clips}
  if _reads_texts_once(plan.task.model, state.params):
    makers[TEXT] = _of_texts
  elif tower:
    logging.info(f'{OPTION}: the text tower is not frozen, and reads its texts in every step.')
  weights = {part: _digest(digests.of_arrays(state.held[part])) for part in makers}
  # With the scalars that a model has of its own, which it looks for when it is bound.
  own = {name: x for name, x in {**state.params, **state.held}.items() if not isinstance(x, dict)}
  params = {part: {part: state.held[part], **own} for part in makers}
  found = []
  folder.mkdir(parents=True, exist_ok=True)
  for source in plan.sources:
    rows = {
      part: _rows(folder, make(plan, source), weights[part], params[part], plan, doing)
      for part, make in makers.items()
    }
    found.append(on_disk.Made(rows[VIDEO], rows.get(TEXT)))
  return found


def in_place_of(batch: Any, task: Task, trained: Any) -> Any:
  """Returns a VideoTextBatch of ShapeDtypeStructs with what a run with features reads.

  Args:
    batch: of clips and ids.
    task: of the run.
    trained: tree of the parameters that are trained.
  """
  model = task.model
  params = nn.unbox(jax.eval_shape(task.init, jax.random.key(0)))

  def made(encode, rows):
    found = jax.eval_shape(encode, params, rows)
    return jax.tree.map(lambda x: x.update(sharding=rows.sharding), found)

  clips = made(_clip_encoder(model), batch.video)
  batch = batch.replace(video=(clips.get('frames'), clips['tokens']))
  if not _reads_texts_once(model, trained):
    return batch
  ids = batch.tower_ids if model.config.text else batch.text_ids
  return batch.replace(tower_ids=made(_text_encoder(model), ids)['text'])


def _reads_texts_once(model, trained):
  tower = model.config.text_tower
  return bool(tower and TEXT not in trained and not (tower.dropout or tower.drop_path))


def _clip_encoder(model):
  """Returns (parameters, uint8[B, T, H, W, 3]) -> {name: f[B, ...]}."""

  def encode(params, video):
    made = model.bind({'params': params}).video_encoder(video, train=False)
    frames, clip = made if isinstance(made, tuple) else (None, made)
    # Without fusion no more than the clip's own token is read.
    rows = {'tokens': clip if model.config.text else clip[:, :1]}
    return rows if frames is None or not model.config.embed_size else rows | {'frames': frames}

  return encode


def _text_encoder(model):
  """Returns (parameters, int32[B, M]) -> {'text': f[B, D]}."""

  def encode(params, ids):
    return {'text': model.bind({'params': params}).text_tower(ids, train=False)}

  return encode


class _Maker(NamedTuple):
  """How rows are made.

  Attributes:
    source: that they are of.
    name: of their folder.
    about: what they depend on beside the weights.
    count, unit: how many of what.
    encode: (parameters, f[B, ...] input) -> {name: f[B, ...]}.
    inputs: (row, B) -> batches of inputs from that row on, the last one filled up.
    shape: of the input of a row, and its type.
  """

  source: Any
  name: str
  about: dict[str, Any]
  count: int
  unit: str
  encode: Callable[[Any, jax.Array], dict[str, jax.Array]]
  inputs: Callable[[int, int], Iterator[np.ndarray]]
  shape: jax.ShapeDtypeStruct


def _of_clips(plan, source) -> _Maker:
  model, data = plan.task.model, plan.config.data.copy_and_resolve_references()
  config, data.eval_sampling = model.config, data.sampling

  def inputs(first, size):
    from alpro_jax.data import pipeline  # Imports TensorFlow.

    read = pipeline.eval_batches(data, source.dataset, batch_size=size, first=first)
    with contextlib.closing(read) as batches:
      for batch in batches:
        yield batch['video']

  about = {'clips': {name: data[name] for name in _CLIPS}} | _of_part(config, 'video')
  shape = (data.frames, data.image_size, data.image_size, 3)
  first = next(one.key for one in plan.sources if one.dataset is source.dataset)
  return _Maker(
    source,
    f'{first}-video',
    about,
    len(source.dataset),
    'clips',
    _clip_encoder(model),
    inputs,
    _one(shape, 'uint8'),
  )


def _of_texts(plan, source) -> _Maker:
  model, data, tokenizer = plan.task.model, plan.config.data, plan.tokenizer
  count, pair = source.num_texts, len(tokens.parts(tokenizer)) == 2
  length = data.max_tower_tokens if pair else data.max_text_tokens

  def inputs(first, size):
    for start in range(first, count, size):
      chosen = np.minimum(np.arange(start, start + size), count - 1)
      found = tokenizer.encode([source.read_text(i) for i in chosen], data.max_text_tokens)
      yield found[2 if pair else 0]

  about = {
    'tokenizer': tokens.parts(tokenizer)[-1].digest[:16],
    'texts': {'of': source.text, 'style': source.style, 'tokens': length},
  } | _of_part(model.config, 'text_tower')
  encode, shape = _text_encoder(model), _one((length,), 'int32')
  name = f'{source.key}-text'
  return _Maker(source, name, about, count, 'texts', encode, inputs, shape)


def _one(shape, dtype):
  return jax.ShapeDtypeStruct((1, *shape), dtype)


def _of_part(config, part):
  """What the options of an encoder decide, as JSON."""
  ignored = (*_INITIAL, 'drop_path', 'dropout')
  values = config.to_dict()[part]
  return {
    'model': {name: x for name, x in values.items() if name not in ignored}
    | {'dtype': config.dtype}
  }


def _rows(folder, maker, weights, params, plan, doing) -> on_disk.Rows:
  """Returns all rows of a maker, on disk."""
  config, prepared = plan.config, maker.source.dataset
  dtype = jnp.bfloat16 if config.data.bfloat16_features else None
  row = {
    name: (x.shape[1:], np.dtype(dtype or x.dtype))
    for name, x in jax.eval_shape(maker.encode, params, maker.shape).items()
  }
  about = {
    'weights': weights,
    'set': prepared.digest,
    'records': _digest(prepared.metadata().numbers.tolist()),
    'rows': {name: f'{kind}{[maker.count, *shape]}' for name, (shape, kind) in row.items()},
    **maker.about,
  }
  made_of = f'{maker.source.name} by {config.train.init_from or "the weights of a run"}'
  open_rows = functools.partial(
    on_disk.Rows, folder / maker.name, {'made_of': made_of, 'content': about}, row, maker.count
  )
  rows = open_rows()
  was, now = (options.flat(x) for x in (rows.about['content'], about))
  if lines := [f'{name} {how}' for name, how in identity.differences(was, now).items()]:
    raise ValueError(
      f'{rows.folder} holds features of something else ({rows.about["made_of"]}): '
      f'{"; ".join(lines)}. Choose another folder as --{OPTION}, or delete this one.'
    )
  if rows.made < rows.count:
    busy = f'is making features in {folder}; wait for its end, or choose another --{OPTION}.'
    with files.lock(folder / 'lock', busy):
      # That of a part which is no longer whole is not that of the part made in its place.
      (rows.folder / digests.FILE).unlink(missing_ok=True)
      _make(rows := open_rows(), maker, params, plan, doing)
  if not (rows.folder / digests.FILE).exists():
    digests.write(rows.folder)
  elif config.data.verify and rows.row_bytes * rows.count < _VERIFY_BELOW_BYTES:
    if damage := digests.damage(rows.folder, 'folder'):
      raise ValueError(f'{damage} Delete {rows.folder}, and it is made again.')
  return rows


def _make(rows, maker, params, plan, doing):
  """Makes the rows that are missing."""
  if jax.process_count() > 1:
    raise ValueError(
      f'{rows.folder} has {rows.made} of {rows.count} {maker.unit}, and they are made by one '
      f'process: start one alone with this --{OPTION}, and all when it takes its first step.'
    )
  shards = sharding.batch_shards(plan.mesh)
  size = -(-plan.config.eval.batch_size // shards) * shards
  bytes_left = (rows.count - rows.made) * rows.row_bytes
  free = shutil.disk_usage(rows.folder).free
  logging.info(
    f'{OPTION}: making {rows.count - rows.made:,} {maker.unit} of {maker.source.name}, '
    f'{rows.row_bytes:,} bytes each, {bytes_left / 2**30:.2f} GiB in {rows.folder}, where '
    f'{free / 2**30:.1f} GiB are free'
  )
  if free < bytes_left:
    raise OSError(
      f'{rows.folder} has too little room; free some, choose another folder as --{OPTION}, or '
      'halve what a model in float32 needs by --config.data.bfloat16_features=True.'
    )
  run = jax.jit(maker.encode, out_shardings=sharding.replicated(plan.mesh))
  progress = Progress(rows.count, maker.unit, log=logging.info)
  progress.found(rows.made)

  def batches():
    first = rows.made
    with contextlib.closing(maker.inputs(first, size)) as inputs:
      for value in inputs:
        doing(f'making {rows.folder} at row {first}')
        made = run(params, jax.device_put(value, sharding.batch_sharding(plan.mesh)))
        yield {name: np.asarray(x)[: rows.count - first] for name, x in made.items()}
        first += size

  rows.write(batches(), progress.add)
  progress.close()


def _digest(value) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
