import dataclasses
import functools
import json
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from alpro_jax.models.alpro import Alpro, AlproConfig
from alpro_jax.tasks.shared import init_model
from alpro_jax.weights import kept, sizes, sources, tables, tensor_files
from configs import models
from tests import original_files

FOLDER = os.environ.get('ALPRO_GOLDEN')


def config_of(tensors, *, heads=4, **changes):
  """The config of a model, from its tensors."""
  values = models.base().to_dict()
  values['video'].update(sizes.video_sizes(tensors, heads))
  values['text'].update(sizes.text_sizes(tensors, heads))
  found = sizes.head_sizes(tensors)
  values['entities'] = found['entities']
  values['answers'] = found['answers']
  return AlproConfig.from_dict(values | changes)


@functools.cache
def _shapes_with_every_head(config):
  boxed = jax.eval_shape(lambda key: init_model(Alpro(config), key), jax.random.key(0))
  flat = flatten_dict(nn.unbox(boxed), sep='/')
  return {path: leaf.shape for path, leaf in flat.items()}


def shapes_of(config):
  """{path: shape}; heads that a model lacks do no harm, and tracing costs."""
  return _shapes_with_every_head(
    dataclasses.replace(
      config,
      embed_size=256,
      match=True,
      mlm=True,
      **(
        {'entities': 1000, 'answers': 1500}
        if config.video.width == 768
        else {'entities': 20, 'answers': 15}
      ),
    )
  )


@pytest.fixture(scope='module')
def student():
  tensors = tensor_files.named(original_files.student())
  return {n: t for n, t in tensors.items() if not tables.derived(n)}


@pytest.fixture(scope='module')
def config(student):
  return config_of(student)


@pytest.fixture(scope='module')
def shapes(config):
  return shapes_of(config)


def write(path, arrays, metadata=None):
  tensor_files.write_tensors(path, arrays, metadata)
  return path


def zeros(*shape, dtype=np.float32):
  """An array without memory."""
  return np.broadcast_to(dtype(0), shape)


def check_equal(ours, theirs):
  assert list(ours) == list(theirs)
  for name, array in ours.items():
    assert array.dtype == theirs[name].dtype, name
    np.testing.assert_array_equal(array, theirs[name], err_msg=name)


# Files.


def test_safetensors_come_back_as_they_were(tmp_path):
  arrays = {
    'scalar': np.float32(0.07).reshape(()),
    'ids': np.arange(5, dtype=np.int64)[None],
    'half': np.linspace(0, 1, 6, dtype=np.float16).reshape(2, 3),
    'brain': np.arange(4).astype(jnp.bfloat16),
    'view': np.arange(12.0).reshape(3, 4).T,
    'empty': np.zeros((0, 3)),
  }
  path = write(tmp_path / 'a.safetensors', arrays, {'who': 'me'})
  tensors = tensor_files.open_tensors(path)
  check_equal({n: t.array for n, t in tensors.items()}, arrays)
  assert tensors['view'].array.shape == (4, 3)
  assert tensor_files.read_metadata(path) == {'who': 'me'}
  assert [p.name for p in tmp_path.iterdir()] == ['a.safetensors']


def test_safetensors_of_the_package(tmp_path):
  package = pytest.importorskip('safetensors.numpy')
  arrays = {'b': np.arange(6.0).reshape(2, 3), 'a': np.float32([1, 2])}
  package.save_file(arrays, tmp_path / 'theirs.safetensors')
  found = tensor_files.open_tensors(tmp_path / 'theirs.safetensors')
  assert set(found) == {'a', 'b'}
  np.testing.assert_array_equal(found['b'].array, arrays['b'])
  ours = package.load_file(write(tmp_path / 'ours.safetensors', arrays))
  np.testing.assert_array_equal(ours['b'], arrays['b'])


def test_damaged_safetensors_are_refused(tmp_path):
  path = write(tmp_path / 'a.safetensors', {'x': np.arange(100.0)})
  data = path.read_bytes()
  for cut, message in (
    (data[:-8], 'not fully covered'),
    (data[:40], 'header length'),
    (b'', 'too small'),
    (b'\0', 'too small'),
    (b'\x02\0\0\0\0\0\0\0[x', 'invalid JSON'),
    (data.replace(b'F64', b'F99'), 'F99`, expected one of'),
  ):
    path.write_bytes(cut)
    with pytest.raises(ValueError, match=f'a.safetensors is damaged.*{message}'):
      tensor_files.open_tensors(path)


def entry(first, last, shape=(2,), dtype='F32'):
  return {'dtype': dtype, 'shape': shape, 'data_offsets': [first, last]}


@pytest.mark.parametrize(
  'header, message',
  [
    ({'x': entry(-8, 0), 'y': entry(0, 8), 'z': entry(8, 16)}, '-8'),
    ({'x': entry(0, 8), 'y': entry(4, 12), 'z': entry(12, 16, (1,))}, 'offset for tensor `y`'),
    ({'x': entry(0, 8), 'y': entry(0, 8), 'z': entry(8, 16)}, 'offset for tensor'),
    ({'x': entry(0, 8)}, 'not fully covered'),
    ({'x': entry(8, 16)}, 'offset for tensor `x`'),
    ({'x': entry(0, 8), 'y': entry(8, 24, (4,))}, 'not fully covered'),
    ({'x': entry(0, 16, (-2, -2))}, '-2'),
    ({'x': entry(0, 16, (2.0, 2))}, 'floating point'),
    ({'x': entry(False, 16, (4,))}, 'boolean'),
    ({'x': entry(0, 16, (2**62, 2**62, 4))}, 'overflow'),
    ({'x': {'dtype': 'F32', 'shape': [4]}}, 'missing field'),
    ({'x': [1]}, 'invalid type'),
    ({'__metadata__': [], 'x': entry(0, 16, (4,))}, 'expected'),
    ([], 'expected'),
  ],
)
def test_places_that_cannot_be_are_refused(tmp_path, header, message):
  """Numbers of a tensor are its own, and inside of the file."""
  path = tmp_path / 'a.safetensors'
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, 'little') + text + bytes(16))
  with pytest.raises(ValueError, match=f'is damaged, or no safe.*{message}'):
    tensor_files.open_tensors(path)


def test_a_type_that_numpy_lacks_is_named(tmp_path):
  path = tmp_path / 'a.safetensors'
  text = json.dumps({'x': entry(0, 16, (16,), 'F8_E4M3')}).encode()
  path.write_bytes(len(text).to_bytes(8, 'little') + text + bytes(16))
  with pytest.raises(ValueError, match='x has type F8_E4M3; expected one of'):
    tensor_files.open_tensors(path)


def test_npz_is_read_without_pickle(tmp_path):
  path = tmp_path / 'a.npz'
  np.savez(path, x=np.arange(6.0).reshape(2, 3), y=np.float32(2))
  found = tensor_files.open_tensors(path)
  assert found['x'].array.shape == (2, 3) and found['y'].array.shape == ()
  np.testing.assert_array_equal(found['x'].array, [[0, 1, 2], [3, 4, 5]])
  np.savez(path, x=np.array([{}], object))
  with pytest.raises(ValueError, match='a.npz is no npz file.*Object arrays'):
    tensor_files.open_tensors(path)
  path.write_bytes(b'nothing')
  with pytest.raises(ValueError, match='no npz file'):
    tensor_files.open_tensors(path)


def test_what_is_not_there_or_cannot_be_written_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='model.safetensors.*bin not'):
    tensor_files.open_tensors(tmp_path)
  with pytest.raises(FileNotFoundError, match='no weights at nowhere.pt'):
    tensor_files.open_tensors('nowhere.pt')
  with pytest.raises(ValueError, match='must end in .pt'):
    tensor_files.check_writable('a.npz')


def test_torch_is_asked_for_when_it_is_not_there(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'torch', None)
  (tmp_path / 'a.pt').write_bytes(b'')
  with pytest.raises(ValueError, match='pip install torch'):
    tensor_files.open_tensors(tmp_path / 'a.pt')


def test_a_folder_of_hugging_face_is_a_file(tmp_path):
  write(tmp_path / 'model.safetensors', {'x': np.zeros(1)})
  assert list(tensor_files.open_tensors(tmp_path)) == ['x']


def write_parts(folder, index=None):
  """Weights cut into two files, as Hugging Face writes large ones."""
  first, second = {'x': np.arange(3.0), 'y': np.ones(2)}, {'z': np.zeros(1)}
  folder.mkdir(exist_ok=True)
  names = [f'model-0000{i}-of-00002.safetensors' for i in (1, 2)]
  for name, arrays in zip(names, (first, second), strict=True):
    write(folder / name, arrays)
  index = index or {'z': names[1], 'x': names[0], 'y': names[0]}
  (folder / 'model.safetensors.index.json').write_text(
    json.dumps({'metadata': {'total_size': 48}, 'weight_map': index})
  )
  return names, first | second


def test_weights_in_several_files_are_one(tmp_path):
  names, arrays = write_parts(tmp_path / 'a')
  for path in (tmp_path / 'a', tmp_path / 'a' / 'model.safetensors.index.json'):
    found = tensor_files.open_tensors(path)
    assert list(found) == ['z', 'x', 'y']  # In the order of the index.
    for name, tensor in found.items():
      np.testing.assert_array_equal(tensor.array, arrays[name])
  (tmp_path / 'a' / names[1]).unlink()
  with pytest.raises(FileNotFoundError, match=f'no weights at .*{names[1]}'):
    tensor_files.open_tensors(tmp_path / 'a')


@pytest.mark.parametrize(
  'index, message',
  [
    ({'x': 0, 'z': 1}, 'y should be in None, is in model-00001'),
    ({'x': 0, 'y': 0, 'z': 1, 'w': 1}, 'w should be in model-00002'),
    ({'x': 1, 'y': 0, 'z': 1}, 'x should be in model-00002'),
    ({'x': '../secret.safetensors'}, 'secret.safetensors, which is not beside'),
    ({'x': '/secret.safetensors'}, 'secret.safetensors, which is not beside'),
    ([1], 'is no index'),
  ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path, index, message):
  names, _ = write_parts(tmp_path / 'a')
  if isinstance(index, dict):
    index = {name: names[file] if isinstance(file, int) else file for name, file in index.items()}
  write_parts(tmp_path / 'a', index)
  with pytest.raises(ValueError, match=message):
    tensor_files.open_tensors(tmp_path / 'a')


@pytest.mark.parametrize(
  'name, start, message',
  [
    ('tf_model.h5', b'\x89HDF', 'weights of Keras.*from_tf=True'),
    ('weights.bin', b'\x89HDF\r\n', 'weights of Keras'),
    ('model.safetensors', b'\x89HDF\r\n', 'weights of Keras'),
    ('flax_model.msgpack', b'', 'weights of Flax.*from_flax=True'),
    ('bert_model.ckpt.index', b'', 'checkpoint of TensorFlow.*from_tf=True'),
    ('bert_model.ckpt.data-00000-of-00001', b'', 'checkpoint of TensorFlow'),
    ('saved_model.pb', b'', 'checkpoint of TensorFlow'),
    ('model.onnx', b'', 'a model for another program'),
    ('model.bin', b'version https://git-lfs.github.com/spec/v1\n', 'git lfs'),
  ],
)
def test_files_of_other_programs_are_named(tmp_path, name, start, message):
  """Whether the file itself is given or, but for the generic names, its folder.

  No word of torch, which could not read them either.
  """
  (tmp_path / name).write_bytes(start)
  given = [tmp_path / name]
  if not name.endswith(('.bin', '.safetensors')):
    given.append(tmp_path)
  for path in given:
    with pytest.raises(ValueError, match=message) as caught:
      tensor_files.open_tensors(path)
    assert 'torch' not in str(caught.value)


def test_the_prefix_of_a_checkpoint_of_tensorflow_is_named(tmp_path):
  (tmp_path / 'bert_model.ckpt.index').touch()
  with pytest.raises(ValueError, match='bert_model.ckpt is a checkpoint of Te'):
    tensor_files.open_tensors(tmp_path / 'bert_model.ckpt')


def test_a_checkpoint_of_ours_is_sent_to_its_flag(tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(ValueError, match='goes to --checkpoint'):
    tensor_files.open_tensors(tmp_path)


# Names.


@pytest.mark.parametrize('task', ['pretrain', 'prompter', 'retrieval', 'question_answering'])
def test_the_task_is_seen_from_the_tensors(task):
  state = getattr(original_files, task)()
  found, own, prompter = sources.alpro(tensor_files.named(state))
  assert found == task
  assert len(own) + len(prompter) == len(state)
  assert bool(prompter) == (task == 'pretrain')
  assert 'temp' in own


def test_every_tensor_of_a_file_is_used_or_explained():
  for task, changes in (
    ('pretrain', {}),
    ('prompter', {}),
    ('retrieval', {'mlm': False}),
    ('question_answering', {'embed_size': 0, 'match': False, 'mlm': False}),
  ):
    tensors = tensor_files.named(getattr(original_files, task)())
    _, own, prompter = sources.alpro(tensors)
    for part, heads in ((own, changes), (prompter, {})):
      if not part:
        continue
      config = config_of(part, **heads)
      used, _ = tables.split(part, config)
      rows = tables.rename_table(config)
      assert tables.check(used, rows, shapes_of(config)) == []


@pytest.mark.parametrize('task', ['retrieval', 'question_answering'])
def test_lavis_names_are_understood(task):
  state = getattr(original_files, task)()
  found, own, _ = sources.alpro(tensor_files.named(original_files.lavis(state)))
  _, expected, _ = sources.alpro(tensor_files.named(state))
  assert found == task
  assert set(own) <= set(expected)
  for name in set(expected) - set(own):
    assert '.cls.' in name or '.head.' in name


def test_one_tensor_under_two_names_is_refused():
  state = original_files.retrieval()
  name = 'text_encoder.bert.embeddings.LayerNorm.bias'
  state['text_encoder.embeddings.LayerNorm.bias'] = state[name]
  with pytest.raises(ValueError, match='the same one under two names'):
    sources.alpro(tensor_files.named(state))


def test_other_weights_are_sent_where_they_belong():
  with pytest.raises(ValueError, match='no file of ALPRO.*--vit.*--bert'):
    sources.alpro(tensor_files.named(original_files.vit()))


def test_a_vit_gives_time_its_spatial_weights(config, shapes):
  """From timm and from the authors' npz the same."""
  rows = tables.rename_table(config)
  read = []
  for state in (original_files.vit(), original_files.vit_npz()):
    source = sources.vit(tensor_files.named(state))
    used, unused = tables.split(source.tensors, config)
    absent = tables.check(
      used,
      rows,
      shapes,
      lambda name: (
        not name.startswith('visual_encoder.') or '.temporal_fc.' in name or '.time_embed' in name
      ),
    )
    in_video = [p for p in absent if p.startswith('video_encoder')]
    assert in_video == [
      'video_encoder/times',
      *(
        f'video_encoder/block{i}/temporal_fc/{part}'
        for i in range(config.video.depth)
        for part in ('kernel', 'bias')
      ),
    ]
    assert len(unused) == 2
    read.append(tables.read_params(source.tensors, rows))
  assert source.heads == 4
  timm, npz = read
  check_equal(npz, timm)
  expected = original_files.read(original_files.student(), config)
  for path, array in timm.items():
    taken = path.replace('temporal_', '')
    np.testing.assert_array_equal(array, expected[taken], err_msg=path)


def test_a_misshaped_part_of_a_vit_is_named():
  state = original_files.vit_npz()
  name = 'Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/kernel'
  state[name] = state[name][:-1]
  with pytest.raises(ValueError, match=f'{name} has shape'):
    sources.vit(tensor_files.named(state))
  del state[name]
  with pytest.raises(ValueError, match=f'{name} is missing'):
    sources.vit(tensor_files.named(state))


def test_a_bert_of_google_fills_text_and_fusion(config, shapes):
  source = sources.bert(tensor_files.named(original_files.bert()))
  rows = tables.rename_table(config)
  used, unused = tables.split(source.tensors, config)
  absent = tables.check(used, rows, shapes, lambda name: not name.startswith('text_encoder.'))
  assert not any(
    path.startswith(('text_', 'fusion_', 'mlm_')) and 'projection' not in path for path in absent
  )
  expected = original_files.read(original_files.student(), config)
  params = tables.read_params(source.tensors, rows)
  assert len(params) == 5 + 16 * config.text.depth + 5
  for path, array in params.items():
    np.testing.assert_array_equal(array, expected[path], err_msg=path)
  assert set(unused.values()) == {
    'ALPRO has no pooler',
    'ALPRO does not guess the next sentence',
    'the numbers 0, 1, 2, ...',
  }


def test_a_bert_may_be_wrapped(config):
  """As DataParallel and Lightning name what they train."""
  expected = sources.bert(tensor_files.named(original_files.bert()))
  for prefix in ('module.', 'model.'):
    found = sources.bert(
      tensor_files.named({prefix + name: array for name, array in original_files.bert().items()})
    )
    assert list(found.tensors) == list(expected.tensors)
    assert [x.names[0] for x in found.tensors.values()] == [
      prefix + x.names[0] for x in expected.tensors.values()
    ]


def test_a_decoder_must_be_tied(config):
  state = original_files.bert()
  words = state['bert.embeddings.word_embeddings.weight']
  state['cls.predictions.decoder.weight'] = words
  name = 'text_encoder.cls.predictions.decoder.weight'
  _, unused = tables.split(sources.bert(tensor_files.named(state)).tensors, config)
  assert 'second copy' in unused[name]
  state['cls.predictions.decoder.weight'] = words + 1
  with pytest.raises(ValueError, match='decoder.weight.* differ'):
    tables.split(sources.bert(tensor_files.named(state)).tensors, config)


def test_a_config_counts_if_its_sizes_are_those_of_the_tensors():
  """Beside a file may lie the config.json of another model."""
  tensors = tensor_files.named(original_files.vit())
  config = {'hidden_size': 64, 'num_hidden_layers': 4, 'num_attention_heads': 2}
  source = sources.vit(tensors, config)
  assert source.heads == 2 and '2 heads of attention; its other sizes agree' in source.note
  for name in ('hidden_size', 'num_hidden_layers', 'intermediate_size', 'patch_size', 'vocab_size'):
    # Nor does it count what that model computes.
    source = sources.vit(tensors, config | {name: 7, 'hidden_act': 'relu'})
    assert source.heads == 0 and f'not used, its {name} is 7, that of ' in source.note
  source = sources.vit(tensors, {'num_attention_heads': 2})
  assert source.heads == 0 and 'does not say hidden_size' in source.note


def test_other_arithmetic_is_refused():
  with pytest.raises(ValueError, match="hidden_act='relu'.*'gelu'"):
    sources.bert(tensor_files.named(original_files.bert()), {'hidden_act': 'relu'})
  with pytest.raises(ValueError, match="attention_type='joint_space_time'"):
    sources.vit(tensor_files.named(original_files.vit()), {'attention_type': 'joint_space_time'})


def test_what_is_kept_belongs_to_its_checkpoint(tmp_path):
  """By its digest, wherever it lies."""
  order = [('x', 'y', 'float16')]
  tensors = tensor_files.named({'z': np.arange(3.0)})
  digest = kept.write(tmp_path, order, tensors)
  step = tmp_path / 'checkpoints' / '0'
  # Of a version that stored no digest, and of this one.
  for converted in ({'from': {'original': 'a.pt'}}, {kept.KEPT: digest}):
    found = kept.read(step, {'converted': converted})
    assert found.order == (('x', 'y', 'float16'),)
    np.testing.assert_array_equal(found.tensors['z'], np.arange(3.0))
  # A model that was trained here, below a workdir with such a file.
  for meta in ({}, {'converted': {'from': {'vit': 'a.npz'}}}):
    assert kept.read(step, meta) == kept.Kept()
  path = tmp_path / kept.FILE
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)
  with pytest.raises(ValueError, match='is damaged, or of another conversion'):
    kept.read(step, {'converted': {kept.KEPT: digest}})
  path.unlink()
  assert kept.read(step, {'converted': {kept.KEPT: digest}}) == kept.Kept()


# Strictness. Every tensor is left out, added to, and cut in turn.


def test_any_missing_tensor_is_named(student, config, shapes):
  rows = tables.rename_table(config)
  for row in rows:
    tensors = dict(student)
    del tensors[row.original]
    with pytest.raises(ValueError) as caught:
      tables.check(tensors, rows, shapes)
    assert f'1 missing: {row.original}.' in str(caught.value)


def test_any_misshaped_tensor_is_named(student, shapes):
  """Whatever the sizes are seen from, the wrong tensor is the one named."""
  for name, tensor in student.items():
    if not tensor.array.shape or re.search(r'\.[1-9]\d*\.', name):
      continue  # A number; the blocks behind the first one are alike.
    shape = (tensor.array.shape[0] + 1, *tensor.array.shape[1:])
    tensors = student | {name: tensor._replace(array=zeros(*shape))}
    with pytest.raises(ValueError) as caught:
      config = config_of(tensors)
      tables.check(tensors, tables.rename_table(config), shapes)
    assert name in str(caught.value), (name, caught.value)


def test_extra_tensors_and_integers_are_named(student, config, shapes):
  rows = tables.rename_table(config)
  extra = tensor_files.named({'surprise': np.zeros(3)})
  with pytest.raises(ValueError, match='1 not known: surprise'):
    tables.check(student | extra, rows, shapes)
  whole = student['temp']._replace(array=zeros(dtype=np.int64))
  with pytest.raises(ValueError, match='temp is int64 of .*expected floating'):
    tables.check(student | {'temp': whole}, rows, shapes)


def test_sizes_name_what_they_cannot_see(student):
  tensors = dict(student)
  for find in (sizes.video_sizes, sizes.text_sizes):
    with pytest.raises(ValueError, match='64 channels.*pass --heads'):
      find(tensors)
  name = 'visual_encoder.model.pos_embed'
  with pytest.raises(ValueError, match='pos_embed.*square grid'):
    sizes.video_sizes(tensors | {name: tensors[name]._replace(array=zeros(1, 16, 64))})
  name = 'visual_encoder.model.patch_embed.proj.weight'
  with pytest.raises(ValueError, match='square patches'):
    sizes.video_sizes(tensors | {name: tensors[name]._replace(array=zeros(64, 3, 16, 8))})
  with pytest.raises(ValueError, match='has shape .64,.; expected 4 axes'):
    sizes.video_sizes(tensors | {name: tensors[name]._replace(array=zeros(64))})
  with pytest.raises(ValueError, match='tensor text_encoder.bert.* is missing'):
    sizes.text_sizes({'x': tensors['temp']})
  del tensors[name]
  with pytest.raises(ValueError, match=f'{name} is missing'):
    sizes.video_sizes(tensors)


def test_half_precision_is_read_exactly(config):
  state = {n: a.astype(np.float16) for n, a in original_files.student().items()}
  params = tables.read_params(tensor_files.named(state), tables.rename_table(config))
  for path, array in params.items():
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, array.astype(np.float16), path)


@pytest.mark.parametrize('number', [np.nan, np.inf, 1e300])
def test_numbers_that_are_none_are_named(config, number):
  """The last one is too large for float32."""
  state = original_files.student()
  names = ['temp', 'text_encoder.bert.encoder.layer.2.output.dense.bias']
  for name in names:
    state[name] = state[name].astype(np.float64)
    state[name].flat[-1] = number
  with pytest.raises(ValueError, match=f'2 tensors hold NaN or infinity: {", ".join(names)}'):
    tables.read_params(tensor_files.named(state), tables.rename_table(config))


def test_both_rules_of_resizing():
  """Rows are numbered; 2 x 2 patches become 4 x 4, 2 frames 4."""
  table = np.arange(4, dtype=np.float32)[:, None]
  params = {'video_encoder/positions': table, 'video_encoder/times': table[:2]}
  done, lines = tables.resize(params, 16, 4, 'original')
  assert done['video_encoder/positions'][:, 0].tolist() == [
    0,
    0,
    0,
    0,
    1,
    1,
    1,
    1,
    2,
    2,
    2,
    2,
    3,
    3,
    3,
    3,
  ]
  assert done['video_encoder/times'][:, 0].tolist() == [0, 0, 1, 1]
  assert len(lines) == 2 and '4 to 16 rows' in lines[0]
  done, _ = tables.resize(params, 16, 2)
  grid = done['video_encoder/positions'].reshape(4, 4)
  assert np.all(np.diff(grid, axis=0) >= 0)
  assert np.all(np.diff(grid, axis=1) >= 0)
  assert done['video_encoder/times'] is params['video_encoder/times']
  with pytest.raises(ValueError, match='square'):
    tables.resize(params, 15, 2)


@pytest.mark.skipif(not FOLDER, reason='the manifests are in ALPRO_GOLDEN')
@pytest.mark.parametrize('name', ['pretrain', 'prompter', 'retrieval', 'qa'])
def test_the_original_in_full_size_fits(name):
  """Names and shapes of the released models; nothing is read."""
  manifest = json.loads((pathlib.Path(FOLDER) / f'manifest_{name}.json').read_text())
  tensors = {
    n: tensor_files.Tensor((n,), zeros(*shape)) for n, shape in manifest['state_dict'].items()
  }
  task, own, prompter = sources.alpro(tensors)
  changes = {
    'retrieval': {'mlm': False},
    'question_answering': {'embed_size': 0, 'match': False, 'mlm': False},
  }
  for part, heads in ((own, changes.get(task, {})), (prompter, {})):
    if part:
      config = config_of(part, heads=0, **heads)
      used, _ = tables.split(part, config)
      rows = tables.rename_table(config)
      assert tables.check(used, rows, shapes_of(config)) == []
      assert dataclasses.asdict(config)['video']['heads'] == 12
      assert config.text.fusion_layer == 6


def test_the_bias_of_a_sigmoid_loss_goes_along():
  """The original has none; a file of ours comes back with it."""
  config = AlproConfig.from_dict(models.tiny().to_dict() | {'logit_bias': -10.0})
  boxed = jax.eval_shape(lambda key: init_model(Alpro(config), key), jax.random.key(0))
  params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), nn.unbox(boxed))
  params['logit_bias'] = np.float32(-9.5)
  written = tables.to_original(params, config)
  assert written['logit_bias'] == np.float32(-9.5)
  again = tables.read_params(tensor_files.named(written), tables.rename_table(config))
  assert again['logit_bias'] == np.float32(-9.5) and len(again) == len(flatten_dict(params))
