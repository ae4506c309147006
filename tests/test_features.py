"""Features of frozen encoders on disk: the same losses, whatever is interrupted, and no others."""

import contextlib
import itertools
import os
import shutil
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alpro_jax.data import dataset, feed, mixture, pipeline
from alpro_jax.data import features as on_disk
from alpro_jax.train import features, loop
from configs import common, finetune
from tests import small_sets, small_towers, tiny_run

pytestmark = pytest.mark.slow

FROZEN = 'video_encoder,text_tower'
WORDS = ('clip', *map(str, range(30)))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('features')
  pieces = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *WORDS)
  (folder / 'vocab.txt').write_text(''.join(f'{piece}\n' for piece in pieces))
  small_towers.write(folder / 'tower', context=8)
  return folder


@pytest.fixture(autouse=True, scope='module')
def sets():
  """Every set is one in memory: 12 clips of two captions, two of them photos."""
  captions = [(f'clip {i}', f'clip {i + 12}') for i in range(12)]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      dataset,
      'open_dataset',
      lambda path, split, **_: small_sets.MemorySet(
        12, name=path, captions=captions, stills=(3, 7)
      ),
    )
    yield


def config_of(folder, preset='tiny_clip', **data):
  """Retrieval with a frozen video encoder and text tower, on squares of one colour."""
  config = finetune.retrieval(common.get_config(preset))
  config.model.video.update({'image_size': 16, 'patch_size': 8, 'depth': 1, 'drop_path': 0.0})
  config.model.video.update({'frames': 3, 'temporal_fc_std': 0.1})
  config.model.text.update({'depth': 2, 'fusion_layer': 1})
  config.data.update(
    {
      'sources': (common.source('first'), common.source('second')),
      'tokenizer': str(folder / 'vocab.txt'),
      'batch_size': 8,
      'max_text_tokens': 6,
      'max_tower_tokens': 8,
      'frames': 3,
      'image_size': 16,
      'resize': 18,
      'sampling': 'uniform',
      'crop': 'centre',
      'features': str(folder / 'made'),
      **data,
    }
  )
  config.optimizer.freeze = 'video_encoder'
  if config.model.get('text_tower'):
    config.model.text_tower.update({'depth': 1, 'vocab_size': 517, 'end_id': 516})
    config.data.tower_tokenizer = str(folder / 'tower')
    config.optimizer.freeze = FROZEN
  config.optimizer.learning_rate = 1e-2
  config.train.update({'steps': 4, 'log_every_steps': 1, 'best_metric': ''})
  config.eval.batch_size = 8
  return config


def plan_of(config):
  plan = loop.make_plan(config)
  return plan, plan.update.first(config.seed)


def batches(plan, made=None, *, start=0, count=4):
  """Batches of clips, or of what was made of them."""
  rest = plan.config.data, plan.sources, plan.tokenizer
  how = {'seed': 42, 'start_step': start, 'batch_size': 8, 'rows': slice(0, 8)}
  read = on_disk.train_batches(made, *rest, **how) if made else pipeline.train_batches(*rest, **how)
  with contextlib.closing(read):
    return list(itertools.islice(read, count))


def losses(plan, state, rows):
  found = []
  for row in rows:
    state, metrics = plan.update.step(state, None, feed.to_batch(row, plan.mesh))
    found.append(float(metrics['loss']))
  return found


@pytest.fixture(scope='module')
def first(folder):
  """A plan, its first state, and its features, made at once."""
  plan, state = plan_of(config_of(folder))
  return plan, state, features.prepare(plan, state)


def test_losses_are_those_of_the_frozen_encoders_themselves(first):
  plan, state, made = first
  rows = batches(plan, made)
  assert rows[0]['tower_ids'].dtype == np.float32
  assert [x.shape for x in rows[0]['video']] == [(8, 3, 64), (8, 5, 64)]
  got = losses(plan, jax.tree.map(jnp.copy, state), rows)
  want = losses(plan, jax.tree.map(jnp.copy, state), batches(plan))
  assert len({round(loss, 3) for loss in want}) == 4
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_encoders_do_not_run(first):
  """With nothing but NaN in what is frozen, the loss is what it was."""
  plan, state, made = first
  broken = jax.tree.map(jnp.copy, state)
  for part in FROZEN.split(','):
    broken.held[part] = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), broken.held[part])
  rows = batches(plan, made, count=1)
  assert losses(plan, broken, rows) == losses(plan, jax.tree.map(jnp.copy, state), rows)


def test_what_was_made_is_found_again_and_goes_on_where_it_was_killed(
  first, folder, monkeypatch, tmp_path
):
  plan, state, _ = first
  whole = folder / 'made'
  monkeypatch.setattr(features, '_make', lambda *_: pytest.fail('made again'))
  again = features.prepare(plan, state)
  assert all(rows.made == rows.count for made in again for rows in made)
  monkeypatch.undo()

  monkeypatch.setattr(on_disk, 'PART_BYTES', 4 * again[0].video.row_bytes)
  config = config_of(folder, features=str(tmp_path / 'killed'))
  plan = plan._replace(config=config)
  calls = []

  def killed(what):
    calls.append(what)
    if len(calls) == 2:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    features.prepare(plan, state, killed)
  parts = tmp_path / 'killed' / '0-video'
  assert [x.name for x in sorted(parts.glob('*.safetensors'))] == [
    '00000.safetensors',
    '00001.safetensors',
  ]
  seen = []
  found = features.prepare(plan, state, seen.append)
  assert seen[0].endswith('0-video at row 8')
  numbers = np.array([11, 0, 7, 7, 4])
  for name in ('tokens', 'frames'):
    np.testing.assert_array_equal(
      found[1].video.read(numbers)[name], again[1].video.read(numbers)[name]
    )
  assert len(list(whole.glob('0-video/*.safetensors'))) == 1
  # What a loss of power left of a part is made again, and all behind it.
  content = (parts / '00001.safetensors').read_bytes()
  for left in (0, len(content) // 2):
    os.truncate(parts / '00001.safetensors', left)
    features.prepare(plan, state, seen.append)
    assert (parts / '00001.safetensors').read_bytes() == content
  assert sum(x.endswith('0-video at row 4') for x in seen) == 2
  # A part that is not what was written is not trained from.
  file = parts / '00001.safetensors'
  content = bytearray(file.read_bytes())
  content[-1] ^= 1
  file.write_bytes(content)
  with pytest.raises(ValueError, match='0-video is damaged.*00001.safetensors.*made again'):
    features.prepare(plan, state)


def test_a_run_goes_on_as_if_it_had_not_been_stopped(folder, tmp_path):
  config = config_of(folder)
  config.task = 'prompter'  # What contrasts alone is compiled soon.
  config.train.update({'steps': 2, 'eval_every_steps': 1})
  assert loop.train(config, tmp_path / 'whole').finished

  def stop(plan, params, step):
    os.kill(os.getpid(), signal.SIGTERM)
    return {}

  assert loop.train(config, tmp_path / 'stopped', evaluations=[stop])[:2] == (1, False)
  assert loop.train(config, tmp_path / 'stopped').finished
  tiny_run.assert_same_end(tmp_path / 'whole', tmp_path / 'stopped')


def test_features_of_others_are_refused_by_what_differs(first, folder):
  plan, state, _ = first
  made_of = r'0-video holds features of something else \(first/train by the weights of a run\): '

  def refused(why, plan=plan, state=state):
    with pytest.raises(ValueError, match=f'{made_of}.*{why}'):
      features.prepare(plan, state)

  other = jax.tree.map(jnp.copy, state)
  norm = other.held['video_encoder']['norm']
  norm['bias'] = norm['bias'].at[0].add(1e-6)
  refused(r"weights was '\w{16}', is '\w{16}'", state=other)
  second = mixture.Source(plan.sources[1].dataset, key=0)
  refused("set was 'first', is 'second'", plan._replace(sources=[second]))
  fewer = mixture.Source(plan.sources[0].dataset.select(lambda record: not record.still), key=0)
  refused(
    r"records was .*rows.tokens was 'float32\[12, .*float32\[10,", plan._replace(sources=[fewer])
  )
  for change, why in (
    ({'resize': 20}, 'clips.resize was 18, is 20'),
    ({'bfloat16_features': True}, 'rows.frames was .*is .bfloat16'),
  ):
    refused(why, plan._replace(config=config_of(folder, **change)))


def test_what_changes_from_step_to_step_is_refused_with_what_to_do(folder):
  config = config_of(folder)
  config.task = 'pretrain'
  config.loss.pem = 1.0
  config.prompter.update({'entities': str(folder / 'entities.txt'), 'num_entities': 0})
  (folder / 'entities.txt').write_text('disc 3\nring 2\n')
  config.data.update({'sampling': 'rand', 'crop': 'random', 'still_frames': 1})
  config.data.randaugment.enabled = True
  config.model.video.update({'drop_path': 0.1, 'dropout': 0.1})
  config.optimizer.freeze = 'text_tower'
  with pytest.raises(ValueError) as refusal:
    loop.make_plan(config)
  said = str(refusal.value)
  for flag in (
    "optimizer.freeze='text_tower,video_encoder'",
    'data.sampling=uniform',
    'data.crop=centre',
    'data.randaugment.enabled=False',
    'data.still_frames=0',
    'model.video.drop_path=0',
    'model.video.dropout=0',
    'loss.pem=0',
  ):
    assert f'--config.{flag}' in said
  assert 'lora' not in said
  config = config_of(folder)
  config.optimizer.lora.rank = 2
  with pytest.raises(ValueError, match='Train with --config.optimizer.lora.kernels=[^-]*, or'):
    loop.make_plan(config)


def test_a_disk_that_is_too_small_is_said_before(first, folder, monkeypatch, tmp_path):
  plan, state, made = first
  need = made[0].video.row_bytes * 12
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: SimpleNamespace(free=need - 1))
  plan = plan._replace(config=config_of(folder, features=str(tmp_path)))
  with pytest.raises(OSError, match='0-video has too little room'):
    features.prepare(plan, state)


def test_several_processes_do_not_make_them(first, folder, monkeypatch, tmp_path):
  plan, state, _ = first
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  plan = plan._replace(config=config_of(folder, features=str(tmp_path)))
  with pytest.raises(ValueError, match='0 of 12 clips, and they are made by one process'):
    features.prepare(plan, state)


def encoded(plan, state, row):
  """Tokens and features of the clips of a batch."""
  encode = plan.task.model.bind({'params': state.model}).encode_video
  return encode(jax.tree.map(jnp.asarray, row['video']), train=False)


def test_in_bfloat16_they_take_half_and_texts_of_a_trained_tower_are_read_anew(folder, tmp_path):
  config = config_of(folder, features=str(tmp_path), bfloat16_features=True)
  config.optimizer.freeze = 'video_encoder'
  plan, state = plan_of(config)
  made = features.prepare(plan, state)
  assert made[0].text is None and made[0].video.row_bytes == 2 * 64 * (3 + 5)
  (row,), (clips,) = (batches(plan, x, count=1) for x in (made, None))
  assert row['tower_ids'].dtype == np.int32
  got, want = (encoded(plan, state, x) for x in (row, clips))
  np.testing.assert_allclose(got.tokens, want.tokens, rtol=2**-8, atol=1e-5)
  assert 0 < np.abs(got.feature - want.feature).max() < 2**-9


def test_of_a_timesformer_there_are_tokens_alone(folder, tmp_path):
  plan, state = plan_of(config_of(folder, 'tiny', features=str(tmp_path)))
  (row,) = batches(plan, features.prepare(plan, state), count=1)
  assert row['video'][0] is None and row['video'][1].shape == (8, 5, 64)
  (clips,) = batches(plan, count=1)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5),
    encoded(plan, state, row),
    encoded(plan, state, clips),
  )


def test_the_crop_is_one_of_two(folder):
  config = config_of(folder, crop='left')
  source = mixture.open_sources(config.data)[0]
  (record,) = source.dataset.fetch([0])
  with pytest.raises(ValueError, match="crop='left' is unknown"):
    pipeline.decode_record(record, np.zeros(2, np.int64), config.data, train=True)
