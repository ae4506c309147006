import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from alpro_jax import sharding
from alpro_jax.train import checkpoints, digests, optimizer
from alpro_jax.train.state import TrainState
from alpro_jax.train.trainable import Trainable
from tests.processes import run_two

META = {'task': 'toy'}


def make_state(step=0, *, devices=8, extra=()):
  mesh = sharding.make_mesh(1, devices, devices=jax.devices()[:devices])
  params = {
    'dense': {'kernel': jnp.arange(32.0).reshape(8, 4) + step, 'bias': jnp.full((4,), step + 0.5)},
    **{name: {'bias': jnp.ones((2,))} for name in extra},
  }
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
  state = TrainState(step=jnp.int32(step), params=params, opt_state=tx.init(params))

  def place(x):
    where = NamedSharding(mesh, P('fsdp') if x.ndim == 2 else P())
    # Every process gives the whole array, and keeps its own part of it.
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, where, lambda i: x[i])

  return jax.tree.map(place, state)


def abstract(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def save(folder, *steps, metrics=None, extra=(), **options):
  store = checkpoints.Checkpoints(folder, **options)
  for step in steps:
    given = None if metrics is None else metrics[step]
    assert store.save(make_state(step, extra=extra), META, given)
  store.close()


def kept(folder):
  return sorted(int(p.name) for p in (folder / 'checkpoints').iterdir() if p.name.isdigit())


def test_restores_every_leaf_on_fewer_devices(tmp_path):
  save(tmp_path, 3)
  store = checkpoints.Checkpoints(tmp_path)
  assert store.newest() == 3
  single = make_state(0, devices=1)
  got = store.restore(3, abstract(single))
  jax.tree.map(np.testing.assert_array_equal, got, make_state(3))
  assert jax.tree.structure(got) == jax.tree.structure(single)
  assert all(len(x.sharding.device_set) == 1 for x in jax.tree.leaves(got))
  meta = store.meta(3)
  assert len(meta.pop('arrays')) == len(jax.tree.leaves(single))
  assert meta == {'task': 'toy', 'step': 3}
  store.close()


@pytest.mark.parametrize('eps_rule', ['standard', 'original'])
def test_moments_of_frozen_parameters_are_left_out(tmp_path, eps_rule):
  """Older checkpoints hold them, in the third of six parts."""
  options = dict(b1=0.9, b2=0.98, eps=1e-6, eps_rule=eps_rule, weight_decay=0.1, clip_norm=1.0)
  leaf = {'kernel': jnp.arange(6.0).reshape(2, 3)}
  params = {'video_encoder': {'block0': {'mlp': leaf, 'temporal_fc': leaf}}}
  trained, held = Trainable(('.*/mlp',)).split(params, jax.random.key(0))
  schedule = optax.constant_schedule(1e-3)
  parts = optimizer.make_optimizer(schedule, **options).init(params)
  adam = jax.tree.map(lambda x: x + 1, parts[1])
  new = optimizer.make_optimizer(schedule, holds=True, **options).init(trained)
  old = TrainState(jnp.int32(3), params, (*new[:2], adam, *new[3:]))
  store = checkpoints.Checkpoints(tmp_path)
  store.save(old, META)
  store.close()
  store = checkpoints.Checkpoints(tmp_path)
  wanted = TrainState(jnp.int32(0), trained, new, held)
  got = store.restore(3, abstract(wanted))
  store.close()
  assert jax.tree.structure(got) == jax.tree.structure(wanted)
  moments = optax.tree.get(adam, 'mu')['video_encoder']['block0']
  (kept,) = jax.tree.leaves(optax.tree.get(got.opt_state, 'mu'))
  np.testing.assert_array_equal(kept, moments['temporal_fc']['kernel'])
  jax.tree.map(np.testing.assert_array_equal, got.model, params)
  assert optax.tree.get_all_with_path(got.opt_state[2], 'count')[0][1] == 1


def test_eight_devices_to_two_processes(tmp_path):
  save(tmp_path, 3)
  files = [tmp_path / f'{index}.npz' for index in range(2)]
  run_two('two_processes_restore', files)
  want = jax.tree.leaves_with_path(make_state(3))
  for file in files:
    with np.load(file) as got:
      assert len(got) == len(want)
      for path, leaf in want:
        np.testing.assert_array_equal(got[jax.tree_util.keystr(path)], leaf)


def test_a_donated_state_is_stored_as_it_was(tmp_path):
  store = checkpoints.Checkpoints(tmp_path)
  state = make_state(1)
  expected = jax.device_get(state)
  change = jax.jit(lambda s: jax.tree.map(lambda x: x * 2 + 1, s), donate_argnums=0)
  store.save(state, META)
  for _ in range(5):
    state = change(state)
  store.close()
  store = checkpoints.Checkpoints(tmp_path)
  got = store.restore(1, abstract(make_state()))
  jax.tree.map(np.testing.assert_array_equal, got, expected)
  store.close()


def test_keeps_the_newest_and_the_best(tmp_path):
  metrics = {s: {'r1': r} for s, r in ((1, 3.0), (2, 9.0), (3, 1.0), (4, 2.0))}
  save(tmp_path, 1, 2, 3, 4, metrics=metrics, keep_newest=1, best_metric='r1')
  assert kept(tmp_path) == [2, 4]
  store = checkpoints.Checkpoints(tmp_path, best_metric='r1')
  assert (store.newest(), store.best()) == (4, 2)
  store.close()


def test_a_minus_sign_prefers_small_values(tmp_path):
  metrics = {s: {'rank': r} for s, r in ((1, 3.0), (2, 1.0), (3, 9.0))}
  save(tmp_path, 1, 2, 3, metrics=metrics, keep_newest=1, best_metric='-rank')
  assert kept(tmp_path) == [2, 3]


def test_unknown_best_metric_is_named(tmp_path):
  with pytest.raises(ValueError, match="'r5', which no evaluation gave"):
    save(tmp_path, 1, metrics={1: {'r1': 1.0}}, best_metric='r5')


def test_metrics_of_an_earlier_start_need_not_have_the_name(tmp_path):
  save(tmp_path, 1, metrics={1: {'other': 9.0}}, best_metric='other')
  metrics = {2: {'r1': 2.0}, 3: {'r1': 1.0}}
  save(tmp_path, 2, 3, metrics=metrics, keep_newest=1, best_metric='r1')
  assert kept(tmp_path) == [2, 3]
  store = checkpoints.Checkpoints(tmp_path, best_metric='r1')
  assert store.best() == 2
  store.close()


def test_a_stored_step_is_not_saved_again(tmp_path):
  save(tmp_path, 1)
  store = checkpoints.Checkpoints(tmp_path)
  assert not store.save(make_state(1), META)
  store.close()


def damage(folder, step, how):
  folder = folder / 'checkpoints' / str(step)
  file = max(folder.glob('params/**/d/*'), key=lambda p: p.stat().st_size)
  data = bytearray(file.read_bytes())
  if how == 'truncate':
    file.write_bytes(data[: len(data) // 2])
  elif how == 'flip':
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
  elif how == 'delete':
    file.unlink()
  elif how == 'digests':
    (folder / 'digests.json').write_text('{')
  elif how == 'meta':
    (folder / 'meta' / 'metadata').write_text('')


@pytest.mark.parametrize('how', ['truncate', 'flip', 'delete', 'digests', 'meta'])
def test_a_damaged_newest_is_named_and_the_one_before_used(tmp_path, caplog, how):
  save(tmp_path, 1, 2)
  damage(tmp_path, 2, how)
  assert checkpoints.find(tmp_path).folder.name == '1'
  store = checkpoints.Checkpoints(tmp_path)
  assert 'checkpoints/2 is damaged' in caplog.text
  assert store.newest() == 1
  assert store.save(make_state(2), META)  # The step is free again.
  store.close()
  assert kept(tmp_path) == [1, 2]
  assert (tmp_path / 'damaged' / '2').is_dir()


def test_arrays_of_another_step_are_noticed_in_whole_files(tmp_path):
  save(tmp_path, 1, 2)
  first, second = (tmp_path / 'checkpoints' / step for step in '12')
  shutil.rmtree(second / 'params')
  shutil.copytree(first / 'params', second / 'params')
  digests.write(second)
  shapes = abstract(make_state(devices=1))
  match = r'2 is damaged: params/dense/bias, params/dense/kernel \(2 of '
  with pytest.raises(checkpoints.DamagedCheckpointError, match=match):
    checkpoints.find(tmp_path).load_params(shapes.params)
  store = checkpoints.Checkpoints(tmp_path)
  with pytest.raises(checkpoints.DamagedCheckpointError, match=match) as error:
    store.restore(2, shapes)
  store.set_aside(2, error.value)
  assert store.newest() == 1
  store.restore(1, shapes)
  with pytest.raises(ValueError, match='No other checkpoint is intact'):
    store.set_aside(1, error.value)
  store.close()


def test_a_step_is_replaced_when_asked(tmp_path):
  save(tmp_path, 1)
  store = checkpoints.Checkpoints(tmp_path, best_metric='r1')
  assert store.save(make_state(1), META, {'r1': 5.0}, replace=True)
  assert store.best() == 1
  store.close()


def test_all_damaged_is_refused(tmp_path):
  save(tmp_path, 1, 2)
  damage(tmp_path, 1, 'flip')
  damage(tmp_path, 2, 'truncate')
  with pytest.raises(ValueError, match='No other checkpoint is intact'):
    checkpoints.Checkpoints(tmp_path)
  with pytest.raises(checkpoints.DamagedCheckpointError, match='changed'):
    checkpoints.find(tmp_path)
  assert kept(tmp_path) == [1, 2]


def test_an_unfinished_save_is_no_damage(tmp_path, caplog):
  unfinished = tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp'
  with pytest.raises(FileNotFoundError, match='expected the workdir'):
    checkpoints.find(tmp_path)
  (tmp_path / 'log.txt').write_text('')
  with pytest.raises(FileNotFoundError, match='stopped before it saved one, or is at work'):
    checkpoints.find(tmp_path)
  (unfinished / 'params').mkdir(parents=True)
  with pytest.raises(FileNotFoundError, match='while it saved its first, step 2, or is at work'):
    checkpoints.find(tmp_path)
  with pytest.raises(FileNotFoundError, match=f'not finished: .* Pass {tmp_path}, for the newest'):
    checkpoints.find(unfinished)
  unfinished.rename(tmp_path / 'aside')
  save(tmp_path, 1)
  (tmp_path / 'aside').rename(unfinished)
  assert checkpoints.find(tmp_path).folder.name == '1'
  assert 'save of step 2' in caplog.text and 'Step 1, which is whole, is used.' in caplog.text
  assert 'damaged' not in caplog.text
  store = checkpoints.Checkpoints(tmp_path)
  assert store.newest() == 1
  assert store.save(make_state(2), META)
  store.close()
  assert kept(tmp_path) == [1, 2]


def test_other_shapes_types_and_names_are_listed(tmp_path):
  save(tmp_path, 1)
  store = checkpoints.Checkpoints(tmp_path)
  wanted = abstract(make_state(extra=('new',)))
  wanted.params['dense']['bias'] = jax.ShapeDtypeStruct((4,), jnp.bfloat16)
  wanted.params['dense']['kernel'] = jax.ShapeDtypeStruct((8, 5), jnp.float32)
  with pytest.raises(ValueError) as error:
    store.restore(1, wanted)
  for text in (
    'missing from it: new/bias',
    'dense/bias is float32[4], expected bfloat16[4]',
    'dense/kernel is float32[8, 4], expected float32[8, 5]',
  ):
    assert text in str(error.value)
  store.close()


def test_params_of_another_run(tmp_path):
  save(tmp_path, 1, 2, extra=('old_head',))
  fresh = make_state(0, devices=1, extra=('new_head',)).params
  wanted = abstract(fresh)
  with pytest.raises(ValueError) as error:
    checkpoints.find(tmp_path).load_params(wanted)
  assert 'missing from it: new_head/bias' in str(error.value)
  assert 'unknown to the model: old_head/bias' in str(error.value)
  with pytest.raises(ValueError, match='no initial values'):
    checkpoints.find(tmp_path).load_params(wanted, new=['new'], unused=['old'])
  got = checkpoints.find(tmp_path).load_params(
    wanted, initial=fresh, new=['new_head'], unused=['old_head']
  )
  assert jax.tree.structure(got) == jax.tree.structure(fresh)
  np.testing.assert_array_equal(got['dense']['bias'], np.full(4, 2.5))
  np.testing.assert_array_equal(got['new_head']['bias'], np.ones(2))
  one = tmp_path / 'checkpoints' / '1'
  got = checkpoints.find(one).load_params(abstract(make_state(extra=('old_head',)).params))
  np.testing.assert_array_equal(got['dense']['bias'], np.full(4, 1.5))
  found = checkpoints.load_meta(one)
  assert (found['task'], found['step']) == ('toy', 1)


def test_tables_are_resized_when_asked(tmp_path):
  save(tmp_path, 1)
  wanted = abstract(make_state().params)
  stored = wanted['dense']['kernel']
  assert stored.shape == (8, 4)
  wanted['dense']['kernel'] = jax.ShapeDtypeStruct((16, 4), stored.dtype, sharding=stored.sharding)
  asked = []

  def double(table, rows):
    asked.append((table.shape, rows))
    return jnp.repeat(table, 2, axis=0)

  got = checkpoints.find(tmp_path).load_params(
    wanted, resize={'dense/kernel': double, 'absent': double}
  )
  assert asked == [((8, 4), 16)]
  whole = checkpoints.find(tmp_path).load_params(abstract(make_state().params))
  np.testing.assert_array_equal(
    got['dense']['kernel'], np.repeat(whole['dense']['kernel'], 2, axis=0)
  )
  assert got['dense']['kernel'].sharding == stored.sharding
  # Another width is no resizing.
  wanted['dense']['kernel'] = jax.ShapeDtypeStruct((16, 5), stored.dtype)
  with pytest.raises(ValueError, match='expected float32'):
    checkpoints.find(tmp_path).load_params(wanted, resize={'dense/kernel': double})


def test_no_checkpoint_is_said(tmp_path):
  with pytest.raises(FileNotFoundError, match='no checkpoint in'):
    checkpoints.find(tmp_path)


def test_keep_newest_must_be_positive(tmp_path):
  with pytest.raises(ValueError, match='at least 1'):
    checkpoints.Checkpoints(tmp_path, keep_newest=0)
